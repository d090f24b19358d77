"""Time a frame around the model call (letterbox, tensor, NMS, mapping, tracking): ours beside Ultralytics'
track(stream=True) with ByteTrack.

Decoding and the model call itself are taken out on both sides; same ONNX file, same video, same conf and iou,
alternating rounds.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.line import write_video
from cv_pipeline.tracking.sort import SortTracker
from cv_pipeline.video.sources import open_source

os.environ.update(YOLO_OFFLINE="1", YOLO_AUTOINSTALL="false")
REAL = Path(os.environ["CV_PIPELINE_REAL_DATA"]) if os.environ.get("CV_PIPELINE_REAL_DATA") else None


def ours(model, video: Path, frames: int) -> tuple[list[float], float]:
    "Milliseconds around the model call for each frame, and objects a frame."
    tracker, times, objects = SortTracker(), [], []
    tensor, geometry = np.empty((1, 3, *model.manifest.preprocess.imgsz), np.float32), None
    for k, frame in enumerate(open_source(video)):
        if k == frames:
            break
        a = time.perf_counter()
        geometry = model.preprocess.into(frame.image, tensor[0], geometry)
        b = time.perf_counter()
        raw = model.backend.infer(tensor)
        c = time.perf_counter()
        found = tracker.update(model.postprocess(raw, [geometry])[0], frame)
        times.append((b - a + time.perf_counter() - c) * 1e3)
        objects.append(len(found))
    return times, statistics.mean(objects)


class TimedDataset:
    "Ultralytics' loader, with the time of each read noted."

    def __init__(self, dataset):
        self.dataset, self.seconds = dataset, 0.0

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def __iter__(self):
        iter(self.dataset)
        return self

    def __len__(self):
        return len(self.dataset)

    def __next__(self):
        started = time.perf_counter()
        try:
            return next(self.dataset)
        finally:
            self.seconds += time.perf_counter() - started


def theirs(yolo, video: Path, frames: int, **settings) -> tuple[list[float], float]:
    "The same for YOLO(onnx).track(stream=True)."
    holder = {}

    def wrap(predictor):
        holder["data"] = predictor.dataset = TimedDataset(predictor.dataset)

    yolo.callbacks["on_predict_start"] = [
        wrap,
        *[f for f in yolo.callbacks.get("on_predict_start", []) if getattr(f, "__name__", "") != "wrap"],
    ]
    times, objects, previous, read = [], [], None, 0.0
    for k, result in enumerate(
        yolo.track(
            str(video),
            stream=True,
            persist=False,
            tracker="bytetrack.yaml",
            rect=False,
            verbose=False,
            **settings,
        )
    ):
        now = time.perf_counter()
        if previous is not None:
            times.append((now - previous - (holder["data"].seconds - read)) * 1e3 - result.speed["inference"])
            objects.append(len(result.boxes))
        read, previous = holder["data"].seconds, time.perf_counter()
        if k == frames:
            break
    return times, statistics.mean(objects)


def run(quick: bool = False) -> list[dict]:
    from ultralytics import YOLO

    frames, rounds = (60, 1) if quick else (250, 3)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        crowded = Path(folder) / "line-1080p.mp4"
        line = FactoryLine(LineConfig(size=(1920, 1080), seed=77, density=20))
        write_video(crowded, (frame.image for frame, _ in line.frames(frames + 2)))
        cases = [("factory_line", "1080p line", load_model("factory_line").path, crowded, 0.25)]
        if REAL:
            yolov8n = REAL / "models/yolov8n_fp32_reconstructed.onnx"
            cases += [
                ("yolov8n", "person video", yolov8n, REAL / "videos/one-by-one-person-detection.mp4", 0.35),
                ("yolov8n", "1080p line", yolov8n, crowded, 0.25),
            ]
        for name, what, path, video, conf in cases:
            model = load_model(
                path if REAL and path.is_relative_to(REAL) else "factory_line"
            ).with_postprocess(conf=conf, iou=0.7)
            yolo = YOLO(str(path), task="detect")
            imgsz = list(model.manifest.preprocess.imgsz)
            a, b = [], []
            for _ in range(rounds):
                mine, count = ours(model, video, frames)
                peer, peer_count = theirs(yolo, video, frames, conf=conf, iou=0.7, imgsz=imgsz)
                a += mine
                b += peer
            mine, peer = statistics.median(a), statistics.median(b)
            rows.append(
                {
                    "model": name,
                    "video": what,
                    "objects ours": count,
                    "objects peer": peer_count,
                    "ours ms": mine,
                    "ultralytics ms": peer,
                    "ours / peer": mine / peer,
                    "target": 1 / 3,
                }
            )
    return rows
