"""Other packages' trackers on our detections, each with the settings of ours that are named alike.

`trackers` runs in this process. `supervision` (ByteTrack left it after 0.27) and `boxmot` do not fit beside
it: install them with `pip install --no-deps --target FOLDER supervision==0.27.0`, `pip install --no-deps
--target FOLDER2 boxmot filterpy lapx gdown huggingface-hub timm scikit-learn loguru threadpoolctl joblib` and
name the folders in CV_PIPELINE_PEERS=FOLDER:FOLDER2; they run in a process of their own, on the same arrays.
"""

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cv_pipeline.core.types import Detections, Tracker
from cv_pipeline.tracking.bytetrack import ByteTrackTracker
from cv_pipeline.tracking.ocsort import OCSortTracker
from cv_pipeline.tracking.sort import SortTracker

Outcome = tuple[list[float], list[np.ndarray]]  # seconds and (n,) ids of every frame


def _with_trackers(name: str) -> Callable[[list[Detections]], Outcome]:
    def run(found: list[Detections]) -> Outcome:
        import supervision as sv
        import trackers

        tracker, spent, ids = getattr(trackers, name)(), [], []
        inputs = [
            sv.Detections(
                d.xyxy,
                confidence=d.confidence,
                class_id=d.class_id.astype(int),
                data={"row": np.arange(len(d))},
            )
            for d in found
        ]
        for d, given in zip(found, inputs):
            began = time.perf_counter()
            result = tracker.update(given)
            spent.append(time.perf_counter() - began)
            ids.append(np.full(len(d), -1))
            if len(result):
                ids[-1][result.data["row"].astype(int)] = result.tracker_id
        return spent, ids

    return run


def _supervision(found: list[Detections]) -> Outcome:
    import supervision as sv

    if not hasattr(sv, "ByteTrack"):
        raise ImportError("this supervision has no ByteTrack any more")
    tracker, spent, ids = sv.ByteTrack(), [], []
    inputs = [
        sv.Detections(
            d.xyxy, confidence=d.confidence, class_id=d.class_id.astype(int), data={"row": np.arange(len(d))}
        )
        for d in found
    ]
    for d, given in zip(found, inputs):
        began = time.perf_counter()
        result = tracker.update_with_detections(given)
        spent.append(time.perf_counter() - began)
        ids.append(np.full(len(d), -1))
        if len(result):
            ids[-1][np.asarray(result.data["row"], int)] = result.tracker_id
    return spent, ids


def _boxmot(name: str) -> Callable[[list[Detections]], Outcome]:
    def run(found: list[Detections]) -> Outcome:
        import boxmot

        tracker, spent, ids, image = getattr(boxmot, name)(), [], [], np.zeros((1080, 1920, 3), np.uint8)
        inputs = [np.column_stack([d.xyxy, d.confidence, d.class_id]).astype(np.float32) for d in found]
        for d, given in zip(found, inputs):
            began = time.perf_counter()
            result = tracker.update(given, image)
            spent.append(time.perf_counter() - began)
            ids.append(np.full(len(d), -1))
            if len(result):
                ids[-1][result[:, 7].astype(int)] = result[:, 4].astype(int)
        return spent, ids

    return run


# peer → how to run it, and ours with the same settings (frame rate → tracker)
PEERS: dict[str, tuple[Callable[[list[Detections]], Outcome], Callable[[float], Tracker]]] = {
    "trackers SORT": (_with_trackers("SORTTracker"), lambda fps: SortTracker(frame_rate=fps)),
    "trackers ByteTrack": (_with_trackers("ByteTrackTracker"), lambda fps: ByteTrackTracker(frame_rate=fps)),
    "trackers OC-SORT": (_with_trackers("OCSORTTracker"), lambda fps: OCSortTracker(frame_rate=fps)),
    # supervision: boxes above 0.25 are sure, 0.1 more starts a track, a matching threshold of 0.8 is an
    # overlap of 0.2, a track is shown at its second frame
    "supervision ByteTrack": (
        _supervision,
        lambda fps: ByteTrackTracker(0.35, 30, 0.2, 2, high_conf_det_threshold=0.25, frame_rate=fps),
    ),
    # boxmot: boxes above 0.45 are sure and start tracks; the rest likewise
    "boxmot ByteTrack": (
        _boxmot("ByteTrack"),
        lambda fps: ByteTrackTracker(0.45, 25, 0.2, 2, high_conf_det_threshold=0.45, frame_rate=fps),
    ),
    "boxmot OC-SORT": (
        _boxmot("OcSort"),
        lambda fps: OCSortTracker(0.3, 30, 0.3, 3, high_conf_det_threshold=0.3, frame_rate=fps),
    ),
}


def run_peer(name: str, found: list[Detections]) -> Outcome | None:
    "Seconds and ids of a peer; None where it is not installed."
    folders = [f for f in os.environ.get("CV_PIPELINE_PEERS", "").split(":") if f]
    if name.startswith("trackers"):
        try:
            return PEERS[name][0](found)
        except ImportError:
            return None
    with tempfile.TemporaryDirectory() as place:
        given, answer = Path(place) / "in.npz", Path(place) / "out.npz"
        columns = {
            key: np.concatenate([getattr(d, key) for d in found])
            for key in ("xyxy", "confidence", "class_id")
        }
        np.savez(given, counts=[len(d) for d in found], **columns)
        for folder in folders:
            if not (Path(folder) / name.split()[0]).is_dir():
                continue
            root = Path(__file__).resolve().parents[2]
            paths = os.pathsep.join([folder, str(root), os.environ.get("PYTHONPATH", "")])
            done = subprocess.run(
                [sys.executable, __file__, name, given, answer],
                env=os.environ | {"PYTHONPATH": paths, "NO_COLOR": "1"},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
            result = np.load(answer)
            return result["spent"].tolist(), np.split(result["ids"], np.cumsum([len(d) for d in found])[:-1])
    return None


def run_ours(tracker: Tracker, frames: list, found: list[Detections]) -> Outcome:
    "The same for one of ours."
    spent, ids = [], []
    for frame, detections in zip(frames, found):
        began = time.perf_counter()
        result = tracker.update(detections, frame)
        spent.append(time.perf_counter() - began)
        ids.append(result.tracker_id)
    return spent, ids


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    name, given, answer = sys.argv[1:]
    data = np.load(given)
    parts = [
        np.split(data[key], np.cumsum(data["counts"])[:-1]) for key in ("xyxy", "confidence", "class_id")
    ]
    spent, ids = PEERS[name][0]([Detections(*columns) for columns in zip(*parts)])
    np.savez(answer, spent=spent, ids=np.concatenate(ids))
