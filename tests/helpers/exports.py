"""Small datasets in the shapes that labelling tools export: their folders, names and quirks."""

import json
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np
import yaml

NAMES = ("gear", "bolt", "nut")
SIZE = (96, 64)
BOXES = {"p0": [(0, 10, 10, 40, 40)], "p1": [(2, 5, 8, 25, 30), (1, 50, 20, 90, 60)], "p2": []}


def picture(path: Path, seed: int = 0, size=SIZE) -> Path:
    "A random smooth picture; different seeds look different."
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC))[1])
    return path


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def yolo_text(rows, size=SIZE) -> str:
    w, h = size
    return "".join(
        f"{c} {(x1 + x2) / 2 / w:.6f} {(y1 + y2) / 2 / h:.6f} {(x2 - x1) / w:.6f} {(y2 - y1) / h:.6f}\n"
        for c, x1, y1, x2, y2 in rows
    )


def coco_book(prefix: str = "", first_category: int = 1, **more) -> dict:
    "A COCO json of the three pictures."
    rows = [(n, row) for n, stem in enumerate(BOXES, 1) for row in BOXES[stem]]
    return {
        "images": [
            {"id": n, "file_name": f"{prefix}{stem}.jpg", "width": SIZE[0], "height": SIZE[1]}
            for n, stem in enumerate(BOXES, 1)
        ],
        "categories": [{"id": k + first_category, "name": name} for k, name in enumerate(NAMES)],
        "annotations": [
            {
                "id": k,
                "image_id": n,
                "category_id": c + first_category,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            for k, (n, (c, x1, y1, x2, y2)) in enumerate(rows, 1)
        ],
    } | more


def voc_text(stem: str, name: str | None = None, size=SIZE, difficult=0) -> str:
    things = "".join(
        f"<object><name>{escape(NAMES[c])}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax>"
        f"<ymax>{y2}</ymax></bndbox></object>"
        for c, x1, y1, x2, y2 in BOXES.get(stem, [(0, 10, 10, 40, 40)])
    )
    return (
        f"<annotation><folder>images</folder><filename>{name or stem + '.jpg'}</filename>"
        f"<path>/home/someone/{stem}.jpg</path><size><width>{size[0]}</width><height>{size[1]}</height>"
        f"<depth>3</depth></size>{things}</annotation>"
    )


def pair(images: Path, labels: Path, prefix: str = "") -> None:
    "The three pictures and their YOLO labels."
    for seed, (stem, rows) in enumerate(BOXES.items()):
        picture(images / f"{prefix}{stem}.jpg", seed)
        write(labels / f"{prefix}{stem}.txt", yolo_text(rows))


def roboflow(root: Path) -> Path:
    pair(root / "train/images", root / "train/labels", "t")
    pair(root / "valid/images", root / "valid/labels")
    book = {"train": "../train/images", "val": "../valid/images", "test": "../test/images"}
    book |= {"nc": 3, "names": {str(k): n for k, n in enumerate(NAMES)}, "roboflow": {"version": 1}}
    write(root / "data.yaml", yaml.safe_dump(book))
    write(root / "README.roboflow.txt", "exported\n")
    return root / "data.yaml"


def cvat_yolo(root: Path) -> Path:
    pair(root / "obj_train_data", root / "obj_train_data")
    write(root / "obj.names", "\n".join(NAMES) + "\n")
    write(
        root / "obj.data", "classes = 3\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    )
    write(root / "train.txt", "".join(f"data/obj_train_data/{s}.jpg\n" for s in BOXES))
    return root


def cvat_ultralytics(root: Path) -> Path:
    pair(root / "images/train", root / "labels/train")
    book = {"path": ".", "train": "train.txt", "names": dict(enumerate(NAMES))}
    write(root / "data.yaml", yaml.safe_dump(book))
    write(root / "train.txt", "".join(f"data/images/train/{s}.jpg\n" for s in BOXES))
    return root


def cvat_coco(root: Path) -> Path:
    for seed, stem in enumerate(BOXES):
        picture(root / "images/default" / f"{stem}.jpg", seed)
    return write(root / "annotations/instances_default.json", json.dumps(coco_book()))


def label_studio_yolo(root: Path) -> Path:
    pair(root / "images", root / "labels", "1a2b3c4d-")
    write(root / "classes.txt", "\n".join(NAMES))
    rows = [{"id": k, "name": n} for k, n in enumerate(NAMES)]
    write(root / "notes.json", json.dumps({"categories": rows, "info": {"contributor": "Label Studio"}}))
    return root


def label_studio_coco(root: Path) -> Path:
    for seed, stem in enumerate(BOXES):
        picture(root / "images" / f"{stem}.jpg", seed)
    return write(root / "result.json", json.dumps(coco_book("images\\", first_category=0)))


def labelimg_yolo(root: Path) -> Path:
    pair(root, root)
    write(root / "classes.txt", "\r\n".join(NAMES) + "\r\n")
    return root


def labelimg_voc(root: Path) -> Path:
    for seed, stem in enumerate(BOXES):
        picture(root / f"{stem}.jpg", seed)
        write(root / f"{stem}.xml", voc_text(stem))
    write(root / "classes.txt", "\ufeff" + "\r\n".join(NAMES))
    return root


def ultralytics(root: Path) -> Path:
    pair(root / "images/train", root / "labels/train", "t")
    pair(root / "images/val", root / "labels/val")
    book = {"path": str(root), "train": "images/train", "val": "images/val", "test": None}
    write(root / "data.yaml", yaml.safe_dump(book | {"names": dict(enumerate(NAMES))}))
    return root / "data.yaml"


def fiftyone_yolo(root: Path) -> Path:
    pair(root / "images/val", root / "labels/val")
    book = {"names": dict(enumerate(NAMES)), "path": str(root.parent / "gone"), "val": "./images/val/"}
    write(root / "dataset.yaml", yaml.safe_dump(book))
    return root


def fiftyone_coco(root: Path) -> Path:
    for seed, stem in enumerate(BOXES):
        picture(root / "data" / f"{stem}.jpg", seed)
    return write(root / "labels.json", json.dumps(coco_book(first_category=0)))


EXPORTS = {
    f.__name__: f
    for f in (
        roboflow,
        cvat_yolo,
        cvat_ultralytics,
        cvat_coco,
        label_studio_yolo,
        label_studio_coco,
        labelimg_yolo,
        labelimg_voc,
        ultralytics,
        fiftyone_yolo,
        fiftyone_coco,
    )
}
