"""Ultralytics' own prediction with a file of the tests; its metadata is put back for that."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from cv_pipeline.core.files import read_json


@cache
def _opened(file: Path, task: str):
    import onnx
    from ultralytics import RTDETR, YOLO

    table = read_json(file.parent / "manifest.json")
    model = onnx.load(file)
    known = {
        "task": task,
        "imgsz": str(table["preprocess"]["imgsz"]),
        "stride": "32",
        "batch": "1",
        "names": str(dict(enumerate(table["names"]))),
        "kpt_shape": str(table.get("keypoints", {}).get("shape", [])),
    }
    del model.metadata_props[:]
    for key, value in known.items():
        model.metadata_props.add(key=key, value=value)
    copy = Path(mkdtemp()) / ("rtdetr.onnx" if "rtdetr" in file.parent.name else "model.onnx")
    onnx.save(model, copy)
    return RTDETR(str(copy)) if "rtdetr" in file.parent.name else YOLO(str(copy), task=task)


def predict(file: Path, task: str, picture: np.ndarray, conf: float | None, iou: float):
    "Results of one BGR picture; masks in its own size."
    size = read_json(file.parent / "manifest.json")["preprocess"]["imgsz"]
    how = {"imgsz": size, "conf": conf, "iou": iou, "retina_masks": True, "rect": False}
    return _opened(file, task).predict(picture, verbose=False, device="cpu", **how)[0]
