"""Resident memory over 20,000 frames through the whole pipeline with every sink that grows a file."""

import gc
import itertools
import statistics
import tempfile
from pathlib import Path

import psutil

from cv_pipeline.core.types import Frame, utc_now
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.line import open_line
from cv_pipeline.tracking.sort import SortTracker
from cv_pipeline.video.pipeline import Pipeline
from cv_pipeline.video.sinks import JsonlSink, ParquetSink


class Loop:
    "The same 100 line frames again and again, so that the source itself costs nothing."

    source_id, live = "loop", False

    def __init__(self, frames: int):
        self.images = [f.image for f in open_line("line:frames=100", "x")]
        self.frames = frames

    def __iter__(self):
        for k, image in enumerate(itertools.islice(itertools.cycle(self.images), self.frames)):
            yield Frame(image, self.source_id, k, utc_now())

    def close(self):
        pass


class Meter:
    def __init__(self):
        self.process, self.readings = psutil.Process(), []

    def write(self, result):
        if result.frame.frame_id % 500 == 0:
            gc.collect()
            self.readings.append((result.frame.frame_id, self.process.memory_info().rss / 2**20))

    def close(self):
        pass


def run(quick: bool = False) -> list[dict]:
    frames = 4000 if quick else 20_000
    meter = Meter()
    with tempfile.TemporaryDirectory() as folder:
        sinks = [ParquetSink(Path(folder)), JsonlSink(Path(folder) / "results.jsonl"), meter]
        Pipeline([Loop(frames)], load_model("factory_line"), sinks, lambda source: SortTracker()).run()
    at = {k: v for k, v in meter.readings}
    late = [v for k, v in meter.readings if k >= frames // 4]
    slope = statistics.linear_regression(range(len(late)), late).slope * (1000 / 500)
    return [
        {
            "frames": frames,
            "MiB at 1,000": at[1000],
            "MiB in the middle": at[frames // 2],
            "MiB at the end": meter.readings[-1][1],
            "MiB / 1,000 frames": slope,
        }
    ]
