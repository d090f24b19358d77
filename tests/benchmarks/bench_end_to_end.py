"""Frames a second of the whole pipeline beside a bare ONNX Runtime loop on a ready tensor: same file, same
thread count.

The bare loop decodes nothing. Where its threads use every core, decoding must take its time from the model's:
so a second loop does what every program must (decode and convert to BGR in a thread of its own, then the same
call on the same ready tensor), and `bound` is what processor time alone leaves of the bare loop's speed then,
CPU ms of the bare loop / CPU ms of the one that decodes. It says nothing where a core is idle (one thread of
two). CPU ms a frame are those of the whole process; on a busy machine they hold better than frames a second.
"""

import os
import queue
import statistics
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import av
import numpy as np

from cv_pipeline.core.config import RuntimeConfig
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.line import write_video
from cv_pipeline.tracking.sort import SortTracker
from cv_pipeline.video.decoding import to_bgr
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


def ready(model) -> np.ndarray:
    return np.random.default_rng(0).random((1, *model.backend.input_shape), np.float32)


def bare(model, frames: int) -> None:
    tensor, session = ready(model), model.backend.session
    name = session.get_inputs()[0].name
    for _ in range(frames):
        session.run(None, {name: tensor})


def decoding(model, video: Path, frames: int) -> None:
    "The bare loop, one call a picture of the video, decoded by one thread beside it."
    tensor, session, pictures = ready(model), model.backend.session, queue.Queue(4)
    name = session.get_inputs()[0].name

    def read() -> None:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for _, frame in zip(range(frames), container.decode(stream)):
                pictures.put(to_bgr(frame))
        pictures.put(None)

    reader = threading.Thread(target=read)
    reader.start()
    while pictures.get() is not None:
        session.run(None, {name: tensor})
    reader.join()


def measured(loop, frames: int) -> tuple[float, float]:
    "Frames a second, and CPU milliseconds a frame of this process."
    wall, spent = time.perf_counter(), time.process_time()
    fps = loop()  # the pipeline's own: without its warm-up
    return fps or frames / (time.perf_counter() - wall), (time.process_time() - spent) / frames * 1e3


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
    runtime = RuntimeConfig(max_batch=1)
    pipeline = Pipeline([source], model, [Discard()], lambda source: SortTracker(), runtime=runtime)
    return pipeline.run()["frames_per_second"]


def run(quick: bool = False) -> list[dict]:
    frames, rounds = (100, 3) if quick else (250, 5)
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
                loops = (
                    partial(bare, model, frames),
                    partial(decoding, model, video, frames),
                    partial(whole, model, video, frames),
                )
                turns = [[measured(loop, frames) for loop in loops] for _ in range(rounds)]
                rows.append(row(name, what, threads, turns))
    return rows


def row(name: str, what: str, threads: int, turns: list[list[tuple[float, float]]]) -> dict:
    "Medians over turns of (frames a second, CPU ms a frame) of the three loops."
    fps, spent = ([[one[k] for one in column] for column in zip(*turns)] for k in (0, 1))
    cpu = [statistics.median(column) for column in spent]
    return {
        "model": name,
        "video": what,
        "threads": threads,
        "bare loop fps": statistics.median(fps[0]),
        "and decoding fps": statistics.median(fps[1]),
        "pipeline fps": statistics.median(fps[2]),
        "ratio": statistics.median(b / a for a, b in zip(fps[0], fps[2])),
        "to decoding": statistics.median(b / a for a, b in zip(fps[1], fps[2])),
        "CPU ms bare, decoding, pipeline": ", ".join(f"{one:.1f}" for one in cpu),
        "bound": cpu[0] / cpu[1] if threads > 1 else None,
        "target": 0.95,
    }
