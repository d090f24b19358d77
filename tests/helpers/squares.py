"""Grey pictures with painted squares, and a model that finds them: what tiles are checked by."""

import cv2
import numpy as np

from cv_pipeline.inference.backends import Model, make_postprocessor
from cv_pipeline.inference.manifest import ModelManifest, PostprocessSpec, PreprocessSpec
from cv_pipeline.inference.preprocess import Preprocessor

NAMES = ("red", "blue")
COLOURS = np.array([(0, 0, 255), (255, 0, 0)], np.uint8)  # BGR


def paint(squares, size=(640, 480)):
    "Squares (left, top, width, height, class) on grey."
    image = np.full((size[1], size[0], 3), 114, np.uint8)
    for left, top, width, height, *kind in squares:
        image[top : top + height, left : left + width] = COLOURS[kind[0] if kind else 0]
    return image


class FindsSquares:
    "A backend: end-to-end rows of all connected regions of each colour, in network pixels."

    name, provider = "squares 1", "CPUExecutionProvider"

    def __init__(self, max_batch=1, before=None):
        self.max_batch, self.before, self.calls, self.inputs = max_batch, before, 0, 0

    def infer(self, batch):
        self.calls, self.inputs = self.calls + 1, self.inputs + len(batch)
        if self.before is not None:
            self.before(self.calls)
        found = [self._one(picture) for picture in batch]
        made = np.zeros((len(batch), max([1, *map(len, found)]), 6), np.float32)
        for row, boxes in zip(made, found):
            row[: len(boxes)] = boxes
        return made

    def _one(self, picture):  # (3, H, W) float32 RGB
        red, green, blue = picture
        rows = []
        for kind, mask in enumerate(((red > 0.7) & (blue < 0.3), (blue > 0.7) & (red < 0.3))):
            _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
            for x, y, w, h, _ in stats[1:].tolist():
                rows.append([x, y, x + w, y + h, 0.5 + 0.4 * (w * h) ** 0.5 / 1000, kind])
        return np.array(sorted(rows, key=lambda r: -r[4]), np.float32).reshape(-1, 6)

    def warmup(self):
        pass

    def close(self):
        pass


def squares_model(imgsz=160, **how) -> Model:
    manifest = ModelManifest(
        name="squares",
        version="1",
        file="squares.onnx",
        names=NAMES,
        preprocess=PreprocessSpec(imgsz=(imgsz, imgsz)),
        postprocess=PostprocessSpec(head="end2end", conf=0.3),
    )
    backend = FindsSquares(**how)
    return Model(manifest, backend, Preprocessor(manifest.preprocess), make_postprocessor(manifest))


__all__ = ["COLOURS", "FindsSquares", "NAMES", "paint", "squares_model"]
