"""Trackers: ours beside the same algorithms of `trackers`, `supervision` and `boxmot`, accuracy and time on
the same detections.

Accuracy: HOTA, IDF1, MOTA, IDSW by cv_pipeline.evaluation.tracking_scores (equal to TrackEval's) on three
crowds of the factory line, further seeds of them that no constant was chosen on (`held out`), and public
sequences where CV_PIPELINE_REAL_DATA points to them. Settings that are named alike are alike, see
tracking_peers.py, which also says how to install the peers that do not fit into one environment.

Time: `crowd of n`, objects that walk and bounce in 1920×1080, 1 px jitter, one in twenty missed, confidences
0.4 … 1, seed 0; alternating rounds over the same 150 frames, one new tracker a round, median over rounds of
the median frame; one thread. Peers in a process of their own take part one round each.

`--profile`: where the time of one update goes, 100 objects.
"""

import cProfile
import os
import pstats
import statistics
import sys
import time
import warnings
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from cv_pipeline.core.types import Detections, Frame
from cv_pipeline.evaluation.tracking_scores import evaluate_tracking, tracks_of
from cv_pipeline.synthetic.crowds import CROWDS, Sequence, crowd, mot_sequence
from cv_pipeline.tracking.deepsort import DeepSortTracker
from cv_pipeline.tracking.sort import SortTracker
from cv_pipeline.tracking.trackers import TRACKERS, make_tracker

sys.path.insert(0, str(Path(__file__).parent))
from tracking_peers import PEERS, run_ours, run_peer  # noqa: E402

NOON, BLANK = datetime(2026, 6, 1, 12, tzinfo=timezone.utc), np.zeros((2, 2, 3), np.uint8)
REAL = Path(os.environ["CV_PIPELINE_REAL_DATA"]) / "mot" if os.environ.get("CV_PIPELINE_REAL_DATA") else None
TRUTH = {
    "TUD-Campus": "gt/gt.txt",
    "KITTI-13": "gt/gt.kitti_derived.txt",
    "KITTI-17": "gt/gt.kitti_derived.txt",
}
HELD_OUT = (200, 201, 202, 203, 204)


def walkers(n: int, frames: int, seed: int = 0) -> Sequence:
    "n objects that walk and bounce; nobody scores them, they are for the clock."
    rng = np.random.default_rng(seed)
    place, speed, size = (
        rng.uniform(0, 1, (n, 2)) * (1920, 1080),
        rng.normal(0, 3, (n, 2)),
        rng.uniform(25, 70, (n, 2)),
    )
    found = []
    for _ in range(frames):
        place = place + speed
        speed = np.where((place < 0) | (place > (1920, 1080)), -speed, speed)
        boxes = (np.hstack([place - size / 2, place + size / 2]) + rng.normal(0, 1, (n, 4)))[
            rng.random(n) > 0.05
        ]
        found.append(Detections(boxes, rng.uniform(0.4, 1, len(boxes))))
    return Sequence(
        f"crowd of {n}",
        30.0,
        [Frame(BLANK, "cam", i, NOON + timedelta(seconds=i / 30)) for i in range(frames)],
        found,
        [],
    )


def scores(sequence: Sequence, ids: list[np.ndarray]) -> dict[str, float]:
    named = [
        Detections(d.xyxy, d.confidence, d.class_id, k.astype(np.int32)) for d, k in zip(sequence.found, ids)
    ]
    found = evaluate_tracking(tracks_of(sequence.truth), tracks_of(named)).to_dict()
    return {key: round(100 * found[key], 2) for key in ("HOTA", "IDF1", "MOTA")} | {
        "IDSW": int(found["IDSW"])
    }


def accuracy(sequences: list[Sequence], among: str = "") -> list[dict]:
    "A row for each sequence and peer whose name begins so: theirs, ours with the same settings."
    rows = []
    for name, (_, ours) in PEERS.items():
        if not name.startswith(among):
            continue
        for sequence in sequences:
            theirs = run_peer(name, sequence.found)
            if theirs is None:
                rows.append({"detections": sequence.name, "peer": f"{name}: not installed"})
                break
            a, b = (
                scores(sequence, run_ours(ours(sequence.fps), sequence.frames, sequence.found)[1]),
                scores(sequence, theirs[1]),
            )
            rows.append(
                {"detections": sequence.name, "peer": name}
                | {f"ours {k}": v for k, v in a.items()}
                | {f"peer {k}": v for k, v in b.items()}
                | {"at least": "yes" if a["HOTA"] >= b["HOTA"] and a["IDF1"] >= b["IDF1"] else "NO"}
            )
    return rows


def speed(n: int, frames: int, rounds: int) -> list[dict]:
    "A row for each peer: milliseconds a frame, theirs and ours, in alternating rounds."
    sequence, rows = walkers(n, frames), []
    middle = lambda spent: statistics.median(spent[min(20, len(spent) // 4) :]) * 1e3
    for name, (_, ours) in PEERS.items():
        mine, other = [], []
        for _ in range(rounds if name.startswith("trackers") else 1):
            mine.append(middle(run_ours(ours(30.0), sequence.frames, sequence.found)[0]))
            result = run_peer(name, sequence.found)
            if result is None:
                break
            other.append(middle(result[0]))
        if not other:
            continue  # not installed: said once, with the accuracy
        a, b = statistics.median(mine), statistics.median(other)
        rows.append(
            {
                "detections": sequence.name,
                "peer": name,
                "ours ms": round(a, 3),
                "peer ms": round(b, 3),
                "times": round(b / a, 1),
                "ours fps": round(1e3 / a),
                "peer fps": round(1e3 / b),
            }
        )
    return rows


def alone(n: int, frames: int) -> list[dict]:
    "All four of ours; DeepSORT with colours of a 1080p picture of noise."
    sequence, rng, rows = walkers(n, frames), np.random.default_rng(0), []
    picture = rng.integers(0, 255, (1080, 1920, 3), np.uint8)
    shown = [Frame(picture, f.source_id, f.frame_id, f.captured_at) for f in sequence.frames]
    for name in TRACKERS:
        spent = run_ours(make_tracker(name), shown, sequence.found)[0]
        rows.append(
            {
                "detections": sequence.name,
                "tracker": name,
                "ours ms": round(statistics.median(spent[20:]) * 1e3, 3),
                "ours fps": round(1 / statistics.median(spent[20:])),
            }
        )
    return rows


def profile(n: int = 100, frames: int = 300) -> str:
    "The costliest functions of SORT's update (by their own time), and of DeepSORT's."
    lines = []
    for kind in (SortTracker, DeepSortTracker):
        sequence, watch, tracker = walkers(n, frames), cProfile.Profile(), kind()
        for frame, found in zip(sequence.frames, sequence.found):
            watch.enable()
            tracker.update(found, frame)
            watch.disable()
        stats = pstats.Stats(watch)
        whole = stats.total_tt
        lines.append(
            f"{kind.__name__}, {n} objects, {frames} frames under cProfile (its own cost included): "
            f"{whole / frames * 1e3:.3f} ms a frame"
        )
        for (file, _, name), (_, calls, own, total, _) in sorted(
            stats.stats.items(), key=lambda item: -item[1][2]
        )[:12]:
            lines.append(
                f"  {own / whole:5.1%} own {total / whole:6.1%} with callees  {calls / frames:5.1f} calls a "
                f"frame  {Path(file).name if file != '~' else ''} {name}"
            )
    return "\n".join(lines)


def run(quick: bool = False) -> list[dict]:
    warnings.simplefilter("ignore")
    rows = accuracy([crowd(name, 6 if quick else 20) for name in CROWDS])
    if REAL:
        rows += accuracy([mot_sequence(REAL / name, truth) for name, truth in TRUTH.items()])
    if not quick:
        rows += [
            row | {"detections": f"{row['detections']} (held out)"}
            for row in accuracy(
                [crowd(name, 20, seed=seed) for seed in HELD_OUT for name in CROWDS], "trackers"
            )
        ]
    for n in (20, 50, 100, 300):
        rows += speed(n, 60 if quick else 150, 2 if quick else 5)
    for n in (20, 50, 100, 300):
        rows += alone(n, 60 if quick else 150)
    return rows


def main() -> None:
    if "--profile" in sys.argv:
        return print(profile())
    print(__doc__)
    began, rows = time.perf_counter(), run("--quick" in sys.argv)
    for keys in ("at least", "times", "tracker", None):
        some = [
            row
            for row in rows
            if (keys in row if keys else not any(k in row for k in ("at least", "times", "tracker")))
        ]
        columns = list(dict.fromkeys(key for row in some for key in row))
        if some:
            print("  ".join(f"{c:>12s}" if i > 1 else f"{c:26s}" for i, c in enumerate(columns)))
        for row in some:
            print(
                "  ".join(
                    f"{row.get(c, '–')!s:>12s}" if i > 1 else f"{row.get(c, '–')!s:26s}"
                    for i, c in enumerate(columns)
                )
            )
        print()
    print(profile(), f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
