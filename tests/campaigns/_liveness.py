"""Many short runs with every sink in one process, each with an exception at one call; `liveness` starts it.

A line of JSON comes in for each trial, and one goes out: what happened, and what was promised
otherwise.
A trial that hangs ends the process with the stacks of all threads.
"""

import builtins
import faulthandler
import json
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.helpers.injection import STRIKES, instrument

MODULES = """
annotation.cases annotation.collect core.files core.results inference.backends inference.batching
inference.postprocess inference.preprocess monitoring.exporter monitoring.frame_statistics
monitoring.telemetry monitoring.upkeep service.assembly synthetic.line tracking.bytetrack
tracking.frame_clock tracking.sort tracking.zones video.events video.health video.pipeline video.reconnect
video.selection video.sinks video.stages core.animations
""".split()
FRAMES = 12
HANGS_S = 25.0  # a run takes some tenths of a second
OURS = ("_deliver", "_infer", "_prepare", "read ", "health", "telemetry", "open ")  # threads of a run


def settings(folder: Path) -> dict[str, Any]:
    "One camera and one file on the synthetic line, every sink, and the health server."
    lines = [f"line:width=160,height=120,frames={FRAMES},seed={k}" for k in (1, 2)]
    zone = {"name": "dock", "polygon": [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]], "dwell_s": 0.1}
    return {
        "sources": [{"uri": lines[0], "id": "file"}, {"uri": lines[1], "id": "camera"}],
        "delivery.out": str(folder),
        "delivery.video": True,
        "telemetry": {"part_seconds": 0.1},
        "collect": {"random": 0.5},
        "events.zones": [zone],
        "health.port": 0,
        "runtime.max_batch": 2,
        "runtime.policy": "every-frame",
    }


class Once:
    "A camera that gives its frames once; the connection is lost at the first try."

    live = True

    def __init__(self, source: Any):
        self.source, self.source_id, self.tries, self.ended = source, "camera", 0, threading.Event()

    def connect(self) -> Any:
        from cv_pipeline.core.types import SourceError

        self.tries += 1
        if self.tries == 1:
            raise SourceError("the cable is out", "camera")
        return self

    def __iter__(self):
        if not self.ended.is_set():
            yield from self.source
            self.ended.set()
        self.camera.close()  # nothing more will come: as if somebody had ended the run

    def close(self) -> None:
        self.source.close()


def as_camera(source: Any) -> Any:
    "The source behind a connection that is lost and opened again."
    from cv_pipeline.video.reconnect import Backoff, ReconnectingSource

    once = Once(source)
    once.camera = ReconnectingSource(once.connect, "camera", backoff=Backoff(0.001, 0.002))
    return once.camera


class Trial:
    "One run."

    def __init__(self, folder: Path, model: Any):
        self.folder, self.model, self.wrong, self.pipeline = folder, model, list[str](), None
        self.before = set(threading.enumerate())

    def build(self, real: Any, config: Any) -> Any:
        from cv_pipeline.service import assembly

        def opened(configs: Any, gates: Any = None) -> Any:
            file, camera = assembly_open(configs, gates)
            return [file, as_camera(camera)]

        assembly_open = assembly.open_configured
        with (
            patch.object(assembly, "open_configured_model", lambda _: self.model),
            patch.object(assembly, "open_configured", opened),
        ):
            self.pipeline = real(config)
        return self.pipeline

    def ask(self, url: str | None, pipeline: Any) -> None:
        "The health server, while the run lasts; a run that has failed must not be called alive."
        self.url = url
        failed = pipeline.summary()["error"]
        for page in ("healthz", "readyz", "metrics"):
            try:
                with urllib.request.urlopen(f"{url}/{page}", timeout=5) as answer:
                    status = answer.status
                    answer.read()
            except urllib.error.HTTPError as e:
                status = e.code
            except OSError:
                status = 0
            if page == "healthz" and status == 200 and failed:
                self.wrong.append(f"/healthz is 200 after {failed}")

    def go(self) -> dict[str, Any]:
        from cv_pipeline.core.config import load_config
        from cv_pipeline.core.types import CVPipelineError
        from cv_pipeline.service import assembly

        config, ended = load_config(None, settings(self.folder)), "done"
        real = assembly.build_pipeline
        with patch.object(assembly, "build_pipeline", lambda c: self.build(real, c)):
            try:
                summary = assembly.run_config(config, lambda p: self.ask(self.url, p), self.ask)
                if any(s["state"] == "failed" for s in summary["sources"].values()):
                    ended = "a source failed"
            except CVPipelineError as e:
                ended = f"{type(e).__name__}: {e}"
            except Exception as e:
                ended = f"{type(e).__name__}: {e}"
                self.wrong.append(f"not a typed error: {ended}")
        STRIKES.rest()
        self.look(ended)
        return {"ended": ended, "wrong": self.wrong}

    def look(self, ended: str) -> None:
        "What is left of the run, read back."
        from cv_pipeline.core.results import read_jsonl, read_results
        from cv_pipeline.video.health import healthz

        late = [t for t in threading.enumerate() if t.name.startswith(OURS) and t not in self.before]
        for thread in late:
            thread.join(3)
        idle = (
            "telemetry could not be closed: struck at" in ended
        )  # the call that would have ended its thread
        late = [t for t in late if not (idle and t.name.startswith("telemetry"))]
        self.wrong += [f"the thread {t.name} lives on" for t in late if t.is_alive()]
        if self.pipeline is None or not self.pipeline.finished:
            return  # it never began
        try:
            summary = json.loads((self.folder / "summary.json").read_text())
        except (OSError, ValueError) as e:
            return self.wrong.append(f"no summary: {type(e).__name__}: {e}")
        if summary["error"] is not None and healthz(self.pipeline.summary())[0] == 200:
            self.wrong.append("healthz is 200 on a run that has failed")
        lines, rows = list(read_jsonl(self.folder / "results.jsonl")), None
        try:
            rows = read_results(self.folder).num_rows
        except Exception as e:
            if "parquet" not in ended or len(lines) != summary["frames_delivered"]:
                self.wrong.append(f"results cannot be read: {type(e).__name__}: {e}")
        if summary["error"] is None:  # what failed was only the cleaning up
            self.compare(summary, rows, lines)

    def compare(self, summary: dict[str, Any], rows: int | None, lines: list[Any]) -> None:
        "A run that claims to be done has everything, and what it counts is there."
        for name, source in summary["sources"].items():
            kept, lost = source["frames_delivered"], source["state"] == "failed" or source["reconnects"]
            if not lost and kept != FRAMES:  # a loss is told
                self.wrong.append(f"{kept} of {FRAMES} frames of {name}, and not a word")
        if len(lines) != summary["frames_delivered"]:
            self.wrong.append(f"{len(lines)} lines of {summary['frames_delivered']} delivered frames")
        if rows != sum(len(line["detections"]) for line in lines):
            self.wrong.append(f"{rows} rows, and other lines")


def stub() -> Any:
    "The bundled model with a backend that gives one answer of its own again and again."
    import numpy as np

    from cv_pipeline.inference.backends import Model
    from cv_pipeline.inference.loading import load_model
    from cv_pipeline.synthetic.line import open_line

    class Remembers:
        name, provider, max_batch, checks_output = "remembers", "CPUExecutionProvider", 8, False

        def infer(self, batch):
            return np.repeat(answer, len(batch), axis=0)

        def warmup(self):
            pass

        def close(self):
            pass

    real = load_model("factory_line", threads=1)
    frame = next(iter(open_line("line:width=160,height=120,frames=1", "first")))
    answer = real.backend.infer(real.preprocess.batch([frame.image])[0])
    backend = Remembers()
    model = Model(real.manifest, backend, real.preprocess, real.postprocess)
    model.opener = lambda: backend
    return model


@contextmanager
def no_room(number: int):
    "The thread of this number cannot be started; 0: all can."
    real, begun = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        begun.append(thread)
        if len(begun) == number:
            STRIKES.struck = thread.name
            raise RuntimeError("can't start new thread")
        real(thread)

    with patch.object(threading.Thread, "start", start) if number else nullcontext():
        yield


def main(folder: Path) -> None:
    instrument(f"cv_pipeline.{name}" for name in MODULES)
    model, unheard = stub(), list[str]()
    threading.excepthook = lambda told: unheard.append(told.exc_type.__name__)
    for line in sys.stdin:
        asked = json.loads(line)
        faulthandler.dump_traceback_later(HANGS_S, exit=True)
        out = folder / f"{asked['number']:05d}"
        unheard.clear()
        trial = Trial(out, model)
        error = getattr(builtins, asked.get("error", "MemoryError"))
        STRIKES.arm(asked.get("point"), asked.get("nth", 1), error)
        with no_room(asked.get("thread", 0)):
            outcome = trial.go()
        outcome |= {"struck": STRIKES.struck, "unheard": list(unheard)}
        if asked.get("point") is None:
            outcome["counts"] = {k: [n, sorted(STRIKES.threads[k])] for k, n in STRIKES.counts.items()}
            outcome["points"] = [str(p) for p in STRIKES.points]
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(outcome), flush=True)
        with suppress(OSError):
            import shutil

            shutil.rmtree(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
