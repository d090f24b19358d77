"""A made-up camera: pictures of noise, tracks that come and go, and what a model says about them."""

from datetime import datetime, timedelta, timezone

import numpy as np

from cv_pipeline.core.types import Detections, Frame, FrameResult

NOON, NAMES = datetime(2026, 6, 1, 12, tzinfo=timezone.utc), ("a", "b", "c")


def picture(number, size=(32, 24)):
    return np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)


def result(i, boxes=(), source="cam", t=None, image=None, **more):
    "boxes: (x, y, track, class, confidence)"
    d = Detections(
        [[x, y, x + 10, y + 10] for x, y, *_ in boxes],
        [b[4] for b in boxes],
        [b[3] for b in boxes],
        [b[2] for b in boxes],
    )
    frame = Frame(
        picture(i) if image is None else image,
        source,
        i,
        NOON + timedelta(seconds=i / 5 if t is None else t),
        meta=more.pop("meta", {}),
    )
    return FrameResult(frame, d, NAMES, model="m 1", **more)


def stream(n, seed=0, source="cam", tracks=3):
    "A made-up camera: tracks that come and go, are missed and confused; unsure boxes, ghosts, gaps in time."
    rng, t = np.random.default_rng([seed, 7]), 0.0
    for i in range(n):
        t += float(rng.choice([0.2, 0.2, 0.2, 3]))
        boxes = [
            (30 * k, int(i % 3), k, k % 3 if rng.random() > 0.1 else 2, float(rng.choice([0.95, 0.7, 0.4])))
            for k in range(tracks)
            if rng.random() > 0.15
        ]
        if rng.random() < 0.1:
            boxes.append((float(rng.integers(0, 60)), 60.0, -1, 1, 0.97))
        yield result(i, boxes if rng.random() > 0.05 else [], source, t)


def fill(sink, results):
    for r in results:
        sink.write(r)
    sink.close()
