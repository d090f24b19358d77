"""Models that misbehave in the process of a shadow: what they do is written in the file that is their model,
as `kind` or `kind at N`, N calls later."""

import ctypes
import json
import os
import resource
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from cv_pipeline.core.types import Detections

NAMES = ("gear", "bolt")
OPENER = "tests.helpers.bad_shadow:open_model"


def boxes(count: int, class_id: int = 0) -> Detections:
    "So many boxes, always the same."
    x = 10.0 * np.arange(count)
    return Detections(
        np.stack([x, x * 0, x + 8, x * 0 + 8], axis=1), np.full(count, 0.9), np.full(count, class_id)
    )


class Model:
    "As many boxes as the first pixel says, until something happens."

    def __init__(self, path: str):
        self.path, words = Path(path), Path(path).read_text().split()
        self.kind, self.after = words[0], int(words[2]) if len(words) > 2 else 0
        self.manifest = SimpleNamespace(names=NAMES[::-1] if self.kind == "reversed" else NAMES)
        self.calls = 0

    def predict(self, images):
        self.calls += 1
        count = int(images[0][0, 0, 0])
        if self.calls > self.after:
            return [getattr(self, self.kind)(count)]
        return [boxes(count)]

    def good(self, count):
        return boxes(count)

    def reversed(self, count):
        return boxes(count, 1)

    def fewer(self, count):
        return boxes(count - 1)

    def crash(self, count):
        ctypes.string_at(0)  # a segmentation fault

    def hang(self, count):
        threading.Event().wait()

    def spin(self, count):
        while True:
            pass

    def hungry(self, count):
        return np.ones(2 << 30, np.uint8)

    def nan(self, count):
        found = boxes(max(count, 1))
        found.xyxy[0, 0] = np.nan
        return found

    def failing(self, count):
        raise RuntimeError("driver gone")

    def who(self, count):
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        row = {
            "nice": os.getpriority(os.PRIO_PROCESS, 0),
            "idle": not hasattr(os, "SCHED_IDLE") or os.sched_getscheduler(0) == os.SCHED_IDLE,
            "limit": limit,
            "threads": os.environ["OMP_NUM_THREADS"],
        }
        self.path.with_suffix(".who").write_text(json.dumps(row))
        return boxes(count)


def open_model(path: str, threads: int = 0, **how: object) -> Model:
    "What a shadow calls."
    if Path(path).read_text() == "unopened":
        threading.Event().wait()
    return Model(path)
