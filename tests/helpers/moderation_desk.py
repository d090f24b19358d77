"""A moderator whose network scores a picture by the grey level of its first pixel."""

from datetime import datetime, timezone

import cv2
import numpy as np

from cv_pipeline.apps.decisions import Policy
from tests.helpers.scenes import scene

LIMITS = {"x": {"block": 0.9, "pass": 0.2}}

CLOCK = lambda: datetime(2026, 6, 15, 12, tzinfo=timezone.utc)


def jpg(image):
    return cv2.imencode(".jpg", image)[1].tobytes()


def policy_of(limits=LIMITS, sha="", **more):
    proven = lambda t: {"threshold": t, "sentence": "made up"}
    classes = {n: {k: proven(t) for k, t in v.items()} for n, v in limits.items()}
    return Policy(classes, {"sha256": sha} if sha else {}, **more)


class Told:
    "A network whose score of a picture is the grey level of its first pixel."

    class manifest:
        task, names = "multilabel", ("x",)

    identity = {"name": "told", "sha256": "a" * 64}

    def __init__(self, fails=None):
        self.fails, self.preprocess, self.postprocess, self.backend = fails, self, self, self

    def batch(self, images):
        return np.array([[i[0, 0, 0] / 255] for i in images], np.float32), None

    def infer(self, batch):
        if self.fails:
            raise self.fails
        return batch

    def checked(self, raw, n):
        return raw


def pixel(score, seed=0):
    "A PNG file that `Told` gives this score."
    image = scene(seed)
    image[:2, :2] = round(255 * score)
    return cv2.imencode(".png", image)[1].tobytes()
