"""Frames a second of the whole pipeline beside a bare ONNX Runtime loop on a ready tensor: same file, same
thread count."""

import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from cv_pipeline.core.config import RuntimeConfig
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.line import write_video
from cv_pipeline.tracking.sort import SortTracker
from cv_pipeline.video.pipeline import Pipeline
from cv_pipeline.video.sources import open_source

REAL = Path(os.environ["CV_PIPELINE_REAL_DATA"]) if os.environ.get("CV_PIPELINE_REAL_DATA") else None


class Discard:
    def write(self, result):
        pass

    def close(self):
        pass


def line_1080p(folder: Path, frames: int) -> Path:
    line = FactoryLine(LineConfig(size=(1920, 1080), seed=77))
    write_video(folder / "line-1080p.mp4", (frame.image for frame, _ in line.frames(frames)))
    return folder / "line-1080p.mp4"


def bare(model, seconds_of: int) -> float:
    tensor = np.random.default_rng(0).random((1, *model.backend.input_shape), np.float32)
    session, name = model.backend.session, model.backend.session.get_inputs()[0].name
    started = time.perf_counter()
    for _ in range(seconds_of):
        session.run(None, {name: tensor})
    return seconds_of / (time.perf_counter() - started)


class First:
    "The first n frames of a source."

    def __init__(self, source, n):
        self.source, self.n, self.source_id, self.live = source, n, source.source_id, False

    def __iter__(self):
        for k, frame in enumerate(self.source):
            if k == self.n:
                return
            yield frame

    def close(self):
        self.source.close()


def whole(model, video: Path, frames: int) -> float:
    source = First(open_source(video, threads=1), frames)
    summary = Pipeline(
        [source], model, [Discard()], lambda source: SortTracker(), runtime=RuntimeConfig(max_batch=1)
    ).run()
    return summary["frames_per_second"]


def run(quick: bool = False) -> list[dict]:
    frames, rounds = (60, 2) if quick else (250, 5)
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        clip = line_1080p(Path(folder), frames)
        cases.append(("factory_line", "1080p line", "factory_line", clip))
        if REAL:
            yolo = REAL / "models/yolov8n_fp32_reconstructed.onnx"
            cases += [
                ("yolov8n", "person video 768x432", yolo, REAL / "videos/one-by-one-person-detection.mp4"),
                ("yolov8n", "1080p line", yolo, clip),
            ]
        rows = []
        for name, what, path, video in cases:
            for threads in (1, 2):
                model = load_model(path, threads=threads)
                if name == "yolov8n":
                    model = model.with_postprocess(conf=0.35)
                model.backend.warmup()
                pairs = [(bare(model, frames), whole(model, video, frames)) for _ in range(rounds)]
                fps = [statistics.median(column) for column in zip(*pairs)]
                ratio = statistics.median(b / a for a, b in pairs)
                rows.append(
                    {
                        "model": name,
                        "video": what,
                        "threads": threads,
                        "bare loop fps": fps[0],
                        "pipeline fps": fps[1],
                        "ratio": ratio,
                        "target": 0.95,
                    }
                )
    return rows
