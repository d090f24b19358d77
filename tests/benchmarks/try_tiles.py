"""Tiles against whole frames, SAHI and supervision's slicer: objects found, calls and processor time a frame.

    python -m tests.benchmarks.try_tiles table              # our rows, on the bundled detector
    python -m tests.benchmarks.try_tiles photos DATA MODEL  # on real photos, with a COCO detector
    ORACLE/bin/python tests/benchmarks/try_tiles.py record  # in an environment with sahi and supervision

`record` writes tests/core/tile_oracles.npz: what the mergers of sahi and supervision keep of random sets of
boxes, so that the comparison runs without them. Nothing here asserts a speed.
"""

import sys
from pathlib import Path

import numpy as np

ORACLES = Path(__file__).parents[1] / "core" / "tile_oracles.npz"
SIZE, TILE, OVERLAP = (1000, 760), 320, 0.2


def starts(length):
    "As in core.tiles, written again: the oracles' environment has no cv_pipeline."
    count = int(np.ceil((length - TILE) / (TILE * (1 - OVERLAP)))) + 1
    return np.rint(np.linspace(0, length - TILE, count)).astype(int)


def tiles():
    "(k, 4) of the frame, row by row."
    left, top = (axis.ravel() for axis in np.meshgrid(starts(SIZE[0]), starts(SIZE[1])))
    return np.stack([left, top, left + TILE, top + TILE], 1)


def layout(seed):
    """Objects (n, 4) of 8 to 400 pixels that do not touch, and what a detector with errors of half a pixel or
    2 % finds of them in each tile: boxes, confidences, tiles."""
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(np.log(8), np.log(60), (14, 2)))
    if seed % 2:
        sides[:2] = rng.uniform(150, 400, (2, 2))
    corner = rng.uniform(0, 1, (14, 2)) * (np.array(SIZE) - sides)
    objects = np.concatenate([corner, corner + sides], 1)
    keep = [0]
    for i in range(1, len(objects)):
        o, k = objects[i], objects[keep]
        apart = (np.minimum(o[2:], k[:, 2:]) + 4 < np.maximum(o[:2], k[:, :2])).any(1)
        keep += [i] if apart.all() else []
    objects, rows = objects[keep], []
    for tile, edges in enumerate(tiles()):
        for o in objects:
            cut = np.concatenate([np.maximum(o[:2], edges[:2]), np.minimum(o[2:], edges[2:])])
            side, full = cut[2:] - cut[:2], o[2:] - o[:2]
            if (side < 6).any() or side.prod() < 0.15 * full.prod():
                continue
            noise = rng.normal(0, 1, 4) * np.maximum(0.5, 0.02 * np.tile(side, 2))
            inner = np.abs(cut - edges) < 1  # at the border of a tile a detector's box ends at the border
            cut = np.where(inner, cut, cut + noise)
            cut = np.concatenate([np.maximum(cut[:2], edges[:2]), np.minimum(cut[2:], edges[2:])])
            rows.append([*cut.round(1), round(float(rng.uniform(0.4, 0.95)), 3), tile])
    return objects, np.array(rows)


def record(count=105):
    "What each merger keeps of the same sets; corners rounded to whole pixels."
    import supervision as sv
    from sahi.postprocess.combine import GreedyNMMPostprocess, NMMPostprocess, NMSPostprocess
    from sahi.prediction import ObjectPrediction

    mergers = {
        "sahi GREEDYNMM IOS": GreedyNMMPostprocess(0.5, "IOS"),
        "sahi NMM IOS": NMMPostprocess(0.5, "IOS"),
        "sahi NMS IOU": NMSPostprocess(0.5, "IOU"),
    }
    kept = {name: [] for name in (*mergers, "supervision NMS IOU", "supervision NMM IOS")}
    for seed in range(count):
        _, rows = layout(seed)
        for name, merge in mergers.items():
            given = [
                ObjectPrediction([*map(float, r[:4])], 0, score=float(r[4]), full_shape=[SIZE[1], SIZE[0]])
                for r in rows
            ]
            kept[name].append(sorted([round(v) for v in p.bbox.to_xyxy()] for p in merge(given)))
        d = sv.Detections(
            rows[:, :4].astype(np.float32), confidence=rows[:, 4], class_id=np.zeros(len(rows), int)
        )
        merged = d.with_nmm(0.5, overlap_metric=sv.OverlapMetric.IOS)
        for name, found in (("supervision NMS IOU", d.with_nms(0.5)), ("supervision NMM IOS", merged)):
            kept[name].append(sorted(np.rint(found.xyxy).astype(int).tolist()))
    packed = {}
    for name, sets in kept.items():
        packed[f"{name}|count"] = np.array([len(boxes) for boxes in sets], np.uint8)
        packed[f"{name}|boxes"] = np.concatenate([np.reshape(boxes, (-1, 4)) for boxes in sets]).astype(
            np.int16
        )
    np.savez_compressed(ORACLES, **packed)
    print(f"{ORACLES.name}: {ORACLES.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__" and sys.argv[1:2] == ["record"]:
    record()
