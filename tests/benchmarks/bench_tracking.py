"""SORT on the same detections: ours beside the `trackers` package, milliseconds a frame; accuracy on real sequences where the data is there.

Alternating rounds over the same 150 frames, one new tracker a round, median over rounds of the median frame; one thread (SciPy's solver and NumPy's
element-wise operations use one). Crowds: objects that walk and bounce in 1920×1080, 1 px jitter, one in twenty missed, seed 0.
"""
import configparser
import os
import statistics
import tempfile
import time
import warnings
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from cv_pipeline.types import Detections, Frame
from cv_pipeline.video.tracking import SortTracker

NOON, BLANK = datetime(2026, 6, 1, 12, tzinfo=timezone.utc), np.zeros((2, 2, 3), np.uint8)
REAL = Path(os.environ["CV_PIPELINE_REAL_DATA"]) if os.environ.get("CV_PIPELINE_REAL_DATA") else None
TRUTH = {"TUD-Campus": "gt/gt.txt", "KITTI-13": "gt/gt.kitti_derived.txt", "KITTI-17": "gt/gt.kitti_derived.txt", "PETS09-S2L1": None}


def crowd(n: int, frames: int, seed: int = 0) -> list[Detections]:
    rng = np.random.default_rng(seed)
    place, speed, size = rng.uniform(0, 1, (n, 2)) * (1920, 1080), rng.normal(0, 3, (n, 2)), rng.uniform(25, 70, (n, 2))
    found = []
    for _ in range(frames):
        place = place + speed
        speed = np.where((place < 0) | (place > (1920, 1080)), -speed, speed)
        boxes = np.hstack([place - size / 2, place + size / 2]) + rng.normal(0, 1, (n, 4))
        boxes = boxes[rng.random(n) > 0.05]
        found.append(Detections(boxes, np.full(len(boxes), 0.8)))
    return found


def sequence(name: str) -> list[Detections]:
    "Public detections of a MOT sequence."
    table, ini = np.loadtxt(REAL / "mot" / name / "det/det.txt", delimiter=","), configparser.ConfigParser()
    ini.read(REAL / "mot" / name / "seqinfo.ini")
    found = []
    for i in range(1, int(ini["Sequence"]["seqLength"]) + 1):
        rows = table[table[:, 0] == i]
        found.append(Detections(np.hstack([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]]), rows[:, 6].clip(0, 1)))
    return found


def ours(found: list[Detections]) -> tuple[list[float], list[np.ndarray]]:
    "Seconds and ids of every frame."
    tracker, spent, ids = SortTracker(), [], []
    frames = [Frame(BLANK, "cam", i, NOON + timedelta(seconds=i / 30)) for i in range(len(found))]
    for frame, detections in zip(frames, found):
        began = time.perf_counter()
        result = tracker.update(detections, frame)
        spent.append(time.perf_counter() - began)
        ids.append(result.tracker_id)
    return spent, ids


def theirs(found: list[Detections]) -> tuple[list[float], list[np.ndarray]]:
    "The same with trackers.SORTTracker; its input is made before the clock starts."
    import supervision as sv
    from trackers import SORTTracker

    tracker, spent, ids = SORTTracker(), [], []
    inputs = [sv.Detections(d.xyxy, confidence=d.confidence, class_id=d.class_id.astype(int)) for d in found]
    for detections in inputs:
        began = time.perf_counter()
        result = tracker.update(detections)
        spent.append(time.perf_counter() - began)
        ids.append(result.tracker_id)
    return spent, ids


def accuracy(name: str, found: list[Detections], ids: list[np.ndarray]) -> dict[str, float]:
    "HOTA, IDF1, MOTA and id switches, by the evaluation of `trackers` (a port of TrackEval)."
    from trackers.eval.evaluate import evaluate_mot_sequence

    with tempfile.TemporaryDirectory() as folder:
        truth, result = Path(folder) / "gt.txt", Path(folder) / "result.txt"
        rows = [line.split(",") for line in (REAL / "mot" / name / TRUTH[name]).read_text().split()]
        truth.write_text("".join(",".join(r[:6]) + ",1,1,1\n" for r in rows if float(r[6]) > 0))
        result.write_text("".join(f"{f + 1},{i + 1},{b[0]:.3f},{b[1]:.3f},{b[2] - b[0]:.3f},{b[3] - b[1]:.3f},1,-1,-1,-1\n"
                                  for f, (d, k) in enumerate(zip(found, ids)) for b, i in zip(d.xyxy, k) if i >= 0))
        scores = evaluate_mot_sequence(truth, result, metrics=["CLEAR", "HOTA", "Identity"])
    return {"HOTA": scores.HOTA.HOTA, "IDF1": scores.Identity.IDF1, "MOTA": scores.CLEAR.MOTA, "IDSW": scores.CLEAR.IDSW}


def measure(name: str, found: list[Detections], rounds: int) -> list[dict]:
    "A row for each tracker, the peer's with its ratio."
    both = {"cv_pipeline SORT": ours, "trackers SORT": theirs}
    times, ids, rows = {key: [] for key in both}, {}, []
    for _ in range(rounds):
        for key, function in both.items():
            try: spent, ids[key] = function(found)
            except ImportError: continue
            times[key].append(statistics.median(spent[min(20, len(spent) // 4):]) * 1e3)
    base = statistics.median(times["cv_pipeline SORT"])
    for key in both:
        if not times[key]:
            rows.append({"detections": name, "tracker": f"{key}: not installed"})
            continue
        cost = statistics.median(times[key])
        given = {int(i) for frame in ids[key] for i in frame if i >= 0}
        scores = accuracy(name, found, ids[key]) if TRUTH.get(name) and times["trackers SORT"] else {}
        rows.append({"detections": name, "tracker": key, "ms a frame": round(cost, 4), "× ours": round(cost / base, 1), "ids": len(given)}
                    | {k: round(v, 3) for k, v in scores.items()})
    return rows


def run(quick: bool = False) -> list[dict]:
    warnings.simplefilter("ignore")
    frames, rounds = (60, 2) if quick else (150, 5)
    rows = []
    for n in (20, 50, 100, 300): rows += measure(f"crowd of {n}", crowd(n, frames), rounds)
    for name in TRUTH if REAL else (): rows += measure(name, sequence(name), 2 if quick else 3)
    return rows


def main() -> None:
    print(__doc__)
    rows = run()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print(" ".join(f"{c:>18s}" for c in columns))
    for row in rows: print(" ".join(f"{str(row.get(c, '–')):>18s}" for c in columns))


if __name__ == "__main__":
    main()
