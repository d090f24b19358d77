"""Days of running: simulated hours of cameras through the real pipeline and all sinks, by a clock that
leaps. Memory, descriptors, threads, unfinished files and the time to close must stay flat."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from cv_pipeline.annotation.collect import CollectPolicy, CollectSink
from cv_pipeline.core.background import tick_once
from cv_pipeline.core.results import merge_results, read_jsonl, read_results, read_table, table_files
from cv_pipeline.core.tables import Hours
from cv_pipeline.core.types import Clocks, Frame, FrameResult
from cv_pipeline.inference.backends import Model
from cv_pipeline.inference.loading import load_model
from cv_pipeline.monitoring.prediction_log import read_log
from cv_pipeline.monitoring.telemetry import LogSettings, TelemetrySink
from cv_pipeline.tracking.trackers import make_tracker
from cv_pipeline.tracking.zones import read_rules
from cv_pipeline.video.events import EventSink
from cv_pipeline.video.pipeline import Pipeline
from cv_pipeline.video.sinks import JsonlSink, ParquetSink, VideoSink
from tests.campaigns import Outcome
from tests.helpers.growth import Held, growing, held, slope

START = datetime(2026, 11, 28, 22, tzinfo=timezone.utc)  # a midnight comes soon
SIZE = (96, 64)


class Camera:
    "A frame every few simulated seconds."

    live = False

    def __init__(self, name: str, hours: float, every_s: float):
        self.source_id, self.frames, self.every_s = name, round(hours * 3600 / every_s), every_s

    def __iter__(self) -> Iterator[Frame]:
        rng = np.random.default_rng(len(self.source_id))
        images = rng.integers(0, 255, (16, SIZE[1], SIZE[0], 3), dtype=np.uint8)
        for k in range(self.frames):
            yield Frame(images[k % 16], self.source_id, k, START + timedelta(seconds=k * self.every_s))

    def close(self) -> None:
        pass


class Alternates:
    "A backend whose answer is now a box, now nothing."

    name, provider, max_batch, state, events = "alternates", "CPUExecutionProvider", 1, "ready", Counter()

    def __init__(self, answer: Any, every: int = 200):
        self.answers, self.every, self.calls = (answer, np.zeros_like(answer)), every, 0

    def infer(self, batch: np.ndarray) -> np.ndarray:
        self.calls += 1
        return self.answers[self.calls // self.every % 2] * np.float32(1 - self.calls % 50 * 1e-4)

    def warmup(self) -> None:
        pass

    def close(self) -> None:
        pass


class Heart:
    "The first sink: the clock of the others, their background, and the sampling at the end of each hour."

    def __init__(self, out: Path, tick_s: float):
        self.out, self.tick_s, self.at, self.ticked = out, tick_s, 0.0, 0.0
        self.members: list[Any] = []
        self.samples: list[Held] = []

    def now(self) -> datetime:
        return START + timedelta(seconds=self.at)

    def write(self, result: FrameResult) -> None:
        before, self.at = self.at, max(self.at, (result.frame.captured_at - START).total_seconds())
        if self.at - self.ticked >= self.tick_s:
            self.ticked = self.at
            for member in self.members:
                tick_once(member)
        if before // 3600 != (self.at + self.tick_s) // 3600 and before % 3600 < 3600 - self.tick_s:
            self.samples.append(held(os.getpid(), self.at / 3600, self.out, closing(self.out)))
            s = self.samples[-1]
            print(
                f"hour {s.hour:5.2f}: {s.rss_mb:6.1f} MB, {s.descriptors} descriptors, {s.threads} threads, "
                f"{s.files} unfinished files, {s.close_s:.2f} CPU s to close",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        pass


def closing(out: Path) -> float:
    "Processor seconds that it takes to finish a copy of the unfinished tables."
    with tempfile.TemporaryDirectory() as copy:
        for name in ("results", "events"):
            if (out / f"{name}.parts").exists():
                shutil.copytree(out / f"{name}.parts", Path(copy) / f"{name}.parts")
        began = time.process_time()
        for name in ("results", "events"):
            merge_results(copy, name=name)
        return time.process_time() - began


def simulate(
    out: Path,
    hours: float,
    cameras: int,
    every_s: float,  # simulated, between two frames of a camera
    film: bool = True,
) -> tuple[list[Held], dict[str, Any]]:  # a sample an hour; what was counted afterwards
    "Run, sample, close, and read everything back."
    heart = Heart(out, tick_s=5.0)
    clock = lambda: heart.at
    rolled = Hours(out, 20e9, now=heart.now, clock=clock)
    zone = {"name": "all", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}
    tables = [
        ParquetSink(out, clock=clock, hours=rolled),
        EventSink(out, read_rules({"zones": [zone]}), clock=clock, hours=rolled),
        TelemetrySink(out / "log", LogSettings(part_seconds=60), clock=clock, now=heart.now),
    ]
    heart.members = [tables[0], tables[1]._table, tables[2]]
    others = [JsonlSink(out / "results.jsonl", hours=rolled)]
    others += [VideoSink(out, threads=1, preset="ultrafast", hours=rolled)] if film else []
    others += [CollectSink(out / "collected", CollectPolicy(quota=5), clock=clock)]
    real = load_model("factory_line", threads=1)
    image = FrameImage()
    answer = real.backend.infer(real.preprocess.batch([image])[0])
    model = Model(real.manifest, Alternates(answer), real.preprocess, real.postprocess)
    sources = [Camera(f"camera {k}", hours, every_s) for k in range(cameras)]
    trackers = lambda source: make_tracker("bytetrack", frame_rate=1 / every_s)
    clocks = Clocks(time.perf_counter, heart.now)
    pipeline = Pipeline(sources, model, [heart, *tables, *others], trackers, clocks=clocks)
    ended: dict[str, float] = {}
    pipeline.attach([Closes(ended, "cpu")])
    pipeline._run.sinks.insert(0, Closes(ended, "began"))
    summary = pipeline.run()
    pipeline.close()
    log = read_log(out / "log")
    return heart.samples, {
        "frames": summary["frames_delivered"],
        "detections": summary["detections"],
        "rows": len(read_results(out)),
        "lines": sum(1 for _ in read_jsonl(out)),
        "log": len(log),
        "boxes": len(log.detections["frame"]),
        "events": len(read_table(out, "events")),
        "hours": len(table_files(out)),
        "films": len(list(out.glob("video/*/*.mp4"))),
        "close_s": ended["cpu"] - ended["began"],
    }


class Closes:
    "Notes the processor time when it is closed."

    def __init__(self, noted: dict[str, float], name: str):
        self.noted, self.name = noted, name

    def write(self, result: FrameResult) -> None:
        pass

    def close(self) -> None:
        self.noted[self.name] = time.process_time()


def FrameImage() -> np.ndarray:
    "A picture of the line, on which the bundled model finds parts."
    from cv_pipeline.synthetic.belt import FactoryLine, LineConfig

    return FactoryLine(LineConfig(size=(320, 240), density=6)).render(0)[0].image


def outcomes(samples: list[Held], counted: dict[str, Any], cameras: int) -> Iterable[Outcome]:
    "What must be flat, from the second hour on, and what must have arrived."
    after = samples[1:] or samples
    limits = {"rss_mb": 24.0, "descriptors": 2, "threads": 1, "files": 128 + 128 * cameras, "close_s": 0.5}
    units = {"rss_mb": "MB resident", "close_s": "CPU s to close"}
    for name, more in limits.items():
        values = [getattr(sample, name) for sample in after]
        seen = f"{values[0]:.4g} in the 2nd hour, {max(values):.4g} at most, trend {slope(values):+.3g}"
        what = f"{units.get(name, name)}: flat over {len(values)} hours"
        yield Outcome(what, len(values), int(growing(values, more)), seen)
    c = counted
    wrong = [c["frames"] != c["lines"], c["frames"] != c["log"], c["detections"] != c["rows"]]
    wrong += [c["detections"] != c["boxes"], not c["events"]]
    seen = ", ".join(f"{c[name]:,} {name}" for name in ("frames", "detections", "events", "hours", "films"))
    yield Outcome("lines, rows, events and log read back whole", len(wrong), sum(wrong), seen)
    yield Outcome("closing takes at most 2 s", 1, int(c["close_s"] > 2), f"{c['close_s']:.2f} CPU s")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hours", type=float, default=24, help="simulated")
    parser.add_argument("--cameras", type=int, default=8)
    parser.add_argument("--every", type=float, default=5, help="simulated seconds between two frames")


def run(options: argparse.Namespace) -> Iterable[Outcome]:
    with tempfile.TemporaryDirectory() as folder:
        samples, counted = simulate(Path(folder), options.hours, options.cameras, options.every)
    yield from outcomes(samples, counted, options.cameras)
