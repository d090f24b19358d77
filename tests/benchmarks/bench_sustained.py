"""Cameras sustained: twenty-four cameras of 640×480 at 5 frames a second on this machine, with the inference.

The load is that of the best published figure (24 such cameras on two cores, with the inference on two USB
accelerators). Cameras are files played at their own speed; a picture that is not taken before the next one
comes is lost and counted. Every contestant runs the bundled detector with one thread and a tracker a camera,
in a process of its own, on the same files: ours (every frame; adaptive selection), a loop of ONNX Runtime and
supervision over the newest picture of each camera, and Ultralytics' `track` on the same pictures. `age` is
from the moment a picture was due to the moment its tracks are known, `cores` the processor time of the whole
process a second.

    python -m tests.benchmarks.bench_sustained [--cameras 24] [--seconds 30]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from tests.benchmarks.bench_cameras import CLIPS, clips, fleet
from tests.benchmarks.bench_cameras_per_core import _imgsz

FPS = 5
CONTESTANTS = {
    "ours, every frame": ("ours", {}),
    "ours, adaptive": ("ours", {"adaptive": True}),
    "ONNX Runtime + supervision": ("loop", {}),
    "Ultralytics track": ("ultralytics", {}),
}


class Cameras:
    "Files played at their own speed, a thread each; the newest picture of each waits to be taken."

    def __init__(self, files: list[str], cameras: int):
        self.newest: list[tuple[float, np.ndarray] | None] = [None] * cameras
        self.read = self.lost = 0
        self._lock, self._began = threading.Lock(), time.perf_counter() + 1.0
        self._threads = [
            threading.Thread(target=self._play, args=(k, files[k % len(files)]), daemon=True)
            for k in range(cameras)
        ]
        for thread in self._threads:
            thread.start()

    def _play(self, camera: int, file: str) -> None:
        import cv2

        capture, number = cv2.VideoCapture(file), 0
        while True:
            due = self._began + number / FPS
            time.sleep(max(0.0, due - time.perf_counter()))
            there, image = capture.read()
            if not there:
                return
            with self._lock:
                self.read, self.lost = self.read + 1, self.lost + (self.newest[camera] is not None)
                self.newest[camera] = (due, image)
            number += 1

    def taken(self):
        "Camera, when its picture was due, and the picture; in turns, until all files have ended."
        while any(t.is_alive() for t in self._threads):
            idle = True
            for camera in range(len(self.newest)):
                with self._lock:
                    waiting, self.newest[camera] = self.newest[camera], None
                if waiting is not None:
                    idle = False
                    yield camera, *waiting
            if idle:
                time.sleep(0.002)


def loop(files: list[str], cameras: int, model: str, settings: dict) -> dict:
    "What one writes with ONNX Runtime, supervision and its trackers: letterbox, call, NMS, ByteTrack."
    import cv2
    import onnxruntime
    import supervision as sv
    import trackers

    cv2.setNumThreads(1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    height, width = entry.shape[2:]
    own = [trackers.ByteTrackTracker(frame_rate=FPS) for _ in range(cameras)]
    ages, played = [], Cameras(files, cameras)
    for camera, due, image in played.taken():
        scale = min(width / image.shape[1], height / image.shape[0])
        small = cv2.resize(image, (round(image.shape[1] * scale), round(image.shape[0] * scale)))
        canvas = np.full((height, width, 3), 114, np.uint8)
        top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
        canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
        tensor = canvas[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 255
        (raw,) = session.run(None, {entry.name: tensor})
        scores, boxes = raw[0, 4:].T, raw[0, :4].T
        best = scores.max(axis=1)
        keep = best > 0.25
        centre, half = boxes[keep, :2], boxes[keep, 2:] / 2
        xyxy = (np.hstack([centre - half, centre + half]) - [left, top, left, top]) / scale
        found = sv.Detections(
            xyxy=xyxy, confidence=best[keep], class_id=scores[keep].argmax(axis=1).astype(int)
        )
        own[camera].update(found.with_nms(0.7))
        ages.append(time.perf_counter() - due)
    return {"ages": ages, "read": played.read, "lost": played.lost}


def ultralytics(files: list[str], cameras: int, model: str, settings: dict) -> dict:
    "Ultralytics' own tracking, a predictor with its trackers for each camera."
    import cv2
    import torch
    from ultralytics import YOLO

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    imgsz = _imgsz(model)
    models = [YOLO(model, task="detect") for _ in range(cameras)]
    for own in models:  # load before the cameras begin
        own.track(np.zeros((480, 640, 3), np.uint8), persist=True, imgsz=imgsz, rect=False, verbose=False)
    ages, played = [], Cameras(files, cameras)
    for camera, due, image in played.taken():
        models[camera].track(
            image, persist=True, tracker="bytetrack.yaml", imgsz=imgsz, conf=0.25, rect=False, verbose=False
        )
        ages.append(time.perf_counter() - due)
    return {"ages": ages, "read": played.read, "lost": played.lost}


def ours(files: list[str], cameras: int, model: str, settings: dict) -> dict:
    "A run as `cv-pipeline run` does it."
    from cv_pipeline.service.assembly import run_config

    with tempfile.TemporaryDirectory() as out:
        config = fleet(
            [Path(f) for f in files],
            cameras,
            Path(out),
            model={"threads": 1},
            selection=settings,
            tracker={"name": "bytetrack"},
            privacy={"off": "a benchmark"},
        )
        s = run_config(config)
    age = s["latency_ms"]["end_to_end"]
    tell = {"p50": age["p50"], "p95": age["p95"], "read": s["frames_read"], "lost": s["frames_dropped"]}
    return tell | {"asked": s["frames_inferred"]}


def contest(name: str, files: list[Path], cameras: int, model: str, seconds: float) -> dict:
    "One contestant in a process of its own."
    kind, settings = CONTESTANTS[name]
    call = (
        f"from tests.benchmarks.bench_sustained import {kind}; import sys, json; "
        f"print('ROW' + json.dumps({kind}(*json.loads(sys.argv[1]))))"
    )
    given = json.dumps([[str(f) for f in files], cameras, model, settings])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "false"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", call, given], env=env, capture_output=True, text=True
    )
    if done.returncode:
        return {"what": name, "cameras": cameras, "problem": done.stderr.strip().splitlines()[-1][:100]}
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("ROW"))[3:])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if "ages" in told:
        told |= {f"p{q}": 1e3 * float(np.percentile(told["ages"], q)) for q in (50, 95)}
    return {
        "what": name,
        "cameras": cameras,
        "lost": f"{told['lost'] / max(told['read'], 1):.1%}",
        "asked/s": round(told.get("asked", len(told.get("ages", ()))) / seconds, 1),
        "age p50 ms": round(told["p50"]),
        "age p95 ms": round(told["p95"]),
        "CPU s a second": round(cpu / seconds, 2),
    }


def run(quick: bool = False, cameras: int = 24, seconds: float = 30.0) -> list[dict]:
    from cv_pipeline.inference.loading import load_model

    model = str(load_model("factory_line").path)
    with tempfile.TemporaryDirectory() as folder:
        files = clips(Path(folder), FPS, 6.0 if quick else seconds)
        assert len(files) == CLIPS
        rows = []
        for name in CONTESTANTS:
            rows.append(contest(name, files, cameras, model, 6.0 if quick else seconds))
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--cameras", type=int, default=24)
    ask.add_argument("--seconds", type=float, default=30.0)
    ask.add_argument("--quick", action="store_true")
    a = ask.parse_args()
    run(a.quick, a.cameras, a.seconds)


if __name__ == "__main__":
    main()
