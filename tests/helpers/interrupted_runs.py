"""Runs that are interrupted at random moments, one after the other in the main thread of one process.

`python -m tests.helpers.interrupted_runs FOLDER COUNT SEED pipeline|config` prints a line of JSON a run.
A deadlock ends the process with the stacks of all threads, instead of hanging.
"""

import faulthandler
import json
import random
import signal
import sys
import threading
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path
from unittest.mock import patch

import av
import numpy as np

from cv_pipeline.core.config import load_config
from cv_pipeline.core.results import read_results
from cv_pipeline.core.types import Frame
from cv_pipeline.inference.backends import Model
from cv_pipeline.inference.loading import load_model
from cv_pipeline.service import assembly as rooms
from cv_pipeline.video.pipeline import Pipeline
from cv_pipeline.video.sinks import JsonlSink, VideoSink

START = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
PATIENCE_S = 40  # a run takes some hundredths of a second
MOST_FRAMES = 5_000  # ends a run that no signal has reached


class Endless:
    "A source that has always another frame."

    source_id, live = "belt", False

    def __iter__(self):
        image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        for k in range(MOST_FRAMES):
            yield Frame(image, "belt", k, START + timedelta(seconds=k / 25))

    def close(self):
        pass


class Remembers:
    "A backend that gives one old answer."

    name, provider, max_batch = "remembers", "CPUExecutionProvider", 1

    def __init__(self, answer):
        self.answer = answer

    def infer(self, batch):
        return self.answer

    def warmup(self):
        pass

    def close(self):
        pass


class Strict:
    "A sink that notes who touches it, and what must not happen."

    def __init__(self):
        self.writers, self.frames, self.closed, self.problems = set(), 0, 0, []
        self.began = threading.Event()

    def write(self, result):
        if self.closed:
            self.problems.append("written to after it was closed")
        self.writers.add(threading.current_thread())
        self.frames += 1
        self.began.set()

    def close(self):
        alive = {t.name for t in self.writers if t.is_alive()} - {threading.current_thread().name}
        if alive:
            self.problems.append(f"closed while {alive} may write")
        self.closed += 1


def interrupter(rng: random.Random, signals: int, began: threading.Event | None = None) -> threading.Thread:
    """A thread that sends Ctrl-C to the main thread so many times; not before a first frame is written, if it
    is given that event."""
    main, longest = threading.main_thread().ident, rng.choice((0.002, 0.01, 0.04))

    def send():
        if began:
            began.wait(PATIENCE_S / 2)
        for _ in range(signals):
            threading.Event().wait(rng.uniform(0, longest))
            signal.pthread_kill(main, signal.SIGINT)

    return threading.Thread(target=send, daemon=True)


def deaf() -> None:
    "From here on Ctrl-C means nothing; a late one may still come in between."
    while signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        except KeyboardInterrupt:
            pass


def attempt(begin, sender: threading.Thread) -> str:
    "How a run ended that is interrupted."
    ended = "raised"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            sender.start()
            begin()
            ended = "returned"
        finally:
            deaf()
    except KeyboardInterrupt:
        pass
    deaf()
    sender.join()
    for thread in threading.enumerate():
        if thread.name in ("_deliver", "_infer", "_prepare"):
            thread.join()
    return ended


def broken(folder: Path, strict: Strict) -> list[str]:
    "What is wrong with the files that a run has left."
    text = (folder / "results.jsonl").read_bytes()
    lines = [json.loads(line) for line in text.splitlines()]
    films = sorted(folder.glob("*.mp4"))
    with av.open(str(films[0])) if films else patch("os.sep") as film:
        shown = sum(1 for _ in film.decode(video=0)) if films else 0
    counts = {"strict": strict.frames, "jsonl": len(lines), "video": shown}
    return [
        *strict.problems,
        *(["the last line is torn"] if text and not text.endswith(b"\n") else []),
        *(
            ["frames are missing in the middle"]
            if [r["frame_id"] for r in lines] != list(range(len(lines)))
            else []
        ),
        *([f"closed {strict.closed} times"] if strict.closed != 1 else []),
        *([f"not the same frames everywhere: {counts}"] if len(set(counts.values())) > 1 else []),
    ]


def as_pipeline(
    folder: Path, model: Model, sender: threading.Thread, strict: Strict
) -> tuple[str, list[str]]:
    "`Pipeline.run`, as in a notebook or a script."
    folder.mkdir()
    sinks = [strict, JsonlSink(folder / "results.jsonl"), VideoSink(folder, preset="ultrafast", threads=1)]
    pipeline = Pipeline([Endless()], model, sinks)
    ended = attempt(pipeline.run, sender)
    if (
        not pipeline.finished
    ):  # interrupted before the run began: nothing was written, the sinks are still ours
        for sink in sinks:
            sink.close()
        return "before", broken(folder, strict)
    said = pipeline.summary()["interrupted"]
    return ended, broken(folder, strict) + (
        [] if said else ["the summary does not say that it was interrupted"]
    )


def as_config(folder: Path, model: Model, sender: threading.Thread, strict: Strict) -> tuple[str, list[str]]:
    "`run_config`, as the command line calls it, with its folder and its summary."
    config = load_config(None, {"sources": ["line:"], "delivery.out": str(folder), "delivery.video": True})
    opened, real = [], rooms.open_sinks

    def sinks(config, heard=()):
        opened.extend([strict, *real(config)])
        return list(opened)

    with (
        patch.object(rooms, "build_pipeline", lambda config: Pipeline([Endless()], model)),
        patch.object(rooms, "open_sinks", sinks),
    ):
        ended = attempt(lambda: rooms.run_config(config), sender)
    if not opened:
        return "before", []
    if not (folder / "summary.json").exists():
        return ended, ["there is no summary", *broken(folder, strict)]
    summary = json.loads((folder / "summary.json").read_text())
    rows = read_results(folder).num_rows
    return ended, [
        *broken(folder, strict),
        *([] if summary["interrupted"] else ["the summary does not say that it was interrupted"]),
        *(
            []
            if summary["frames_delivered"] == strict.frames or summary["error"]
            else ["the summary counts other frames"]
        ),
        *(
            []
            if summary["detections"] == rows or summary["error"]
            else [f"{rows} rows of {summary['detections']} detections"]
        ),
    ]


def main(folder: Path, count: int, seed: int, way: str) -> None:
    model = load_model("factory_line", threads=1)
    image = next(iter(Endless())).image
    fast = Remembers(model.backend.infer(model.preprocess.batch([image])[0]))
    model = Model(model.manifest, fast, model.preprocess, model.postprocess)
    ways, ends = {"pipeline": as_pipeline, "config": as_config}, Counter()
    for k in range(count):
        faulthandler.dump_traceback_later(PATIENCE_S, exit=True)
        strict, signals = Strict(), 1 + k % 3
        began = (
            strict.began if k % 2 else None
        )  # a slow machine needs longer than any interval that is drawn to get as far
        sender = interrupter(random.Random(f"{seed}/{k}"), signals, began)
        ended, problems = ways[way](folder / f"{k:03d}", model, sender, strict)
        ends[ended] += 1
        print(
            json.dumps(
                {"run": k, "signals": signals, "ended": ended, "frames": strict.frames, "problems": problems}
            ),
            flush=True,
        )
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
