"""Label errors planted in the line and in BCCD's training pictures, found by ours and by cleanlab with its
defaults: the same labels, the same detections.

    python tests/benchmarks/try_label_errors.py
        # the table; writes label_errors/bccd.json when CV_PIPELINE_REAL_DATA is set
    python tests/benchmarks/try_label_errors.py --train WEIGHTS
        # trains the two detectors of BCCD's halves again (about 6 minutes), writes label_errors/bccd.npz
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from cv_pipeline.annotation.label_errors import KINDS, label_errors, plant_errors, planted_aurocs
from cv_pipeline.core.formats import read_dataset, to_yolo
from cv_pipeline.core.types import Detections
from cv_pipeline.evaluation.records import EvalSet, box_table, tabled
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.conditions import random_conditions
from cv_pipeline.synthetic.parts import CLASS_NAMES

HERE = Path(__file__).parent / "label_errors"
SIZE = (640, 480)


def line_set(lines: int = 80, first: int = 1500, seed: int = 5) -> EvalSet:
    "The bundled detector on lines it never saw; parts that are hardly visible are crowds."
    from cv_pipeline.inference.loading import load_model

    model, rng, truths, said = (
        load_model("factory_line", threads=1).with_postprocess(conf=0.005, accept_conf=0.0, max_det=300),
        np.random.default_rng(seed),
        [],
        [],
    )
    for k in range(lines):
        line = FactoryLine(
            LineConfig(seed=first + k, density=6, overlap=0.35),
            random_conditions(rng, worst=4.0, at_once=3.0),
        )
        for i in range(2):
            frame, truth = line.render(20 + 25 * i)
            d = truth.detections
            truths.append(Detections(d.xyxy, None, d.class_id, data={"iscrowd": d.data["visibility"] < 0.3}))
            said.append(model.predict([frame.image])[0])
    return EvalSet(
        tuple(CLASS_NAMES),
        tuple(f"line-{i:03d}.png" for i in range(len(truths))),
        np.full((len(truths), 2), SIZE),
        tabled(truths),
        tabled(said),
    )


def _bccd(real: Path):
    items = sorted(read_dataset(real / "bccd", "train"), key=lambda i: i.path.name)
    return items, [i.truth(SIZE) for i in items]


def bccd_set(real: Path) -> EvalSet:
    "BCCD's training labels with the kept answers of detectors that were trained on the other half."
    items, truths = _bccd(real)
    kept = np.load(HERE / "bccd.npz")
    said = box_table(
        kept["image"], kept["box"] / 10.0, kept["class_id"], kept["confidence"].astype(float) / 65535
    )
    return EvalSet(
        items[0].names,
        tuple(i.path.name for i in items),
        np.full((len(items), 2), SIZE),
        tabled(truths),
        said,
        paths=tuple(i.path for i in items),
    )


def by_cleanlab(planted, high=None):
    "cleanlab's scores in our form; it has none for spurious labels, `badloc` is nearest."
    from cleanlab.object_detection.rank import (
        compute_badloc_box_scores,
        compute_overlooked_box_scores,
        compute_swap_box_scores,
    )

    s, n = planted.set, len(planted.set.names)
    t, p = s.truth, s.predictions
    kept = [np.flatnonzero((t.image == i) & ~t.crowd) for i in range(len(s))]
    labels = [{"bboxes": t.xyxy[r], "labels": t.class_id[r].astype(int)} for r in kept]
    order, told = (
        [[np.flatnonzero((p.image == i) & (p.class_id == c)) for c in range(n)] for i in range(len(s))],
        [],
    )
    for rows in order:
        one = np.empty(n, object)
        for c, r in enumerate(rows):
            one[c] = np.column_stack([p.xyxy[r], p.confidence[r]])
        told.append(one)
    given = {} if high is None else {"high_probability_threshold": high}
    over, bad, swap = (
        f(labels=labels, predictions=told, **k)
        for f, k in (
            (compute_overlooked_box_scores, given),
            (compute_badloc_box_scores, {}),
            (compute_swap_box_scores, given),
        )
    )
    scores, at = np.zeros((len(t), 4)), np.concatenate([r for rows in order for r in rows])
    scores[np.concatenate(kept)] = np.stack([1 - np.concatenate(v) for v in (bad, swap, bad, bad)], axis=1)
    return scores, replace(p[at], confidence=1 - np.nan_to_num(np.concatenate(over), nan=1.0))


RIVALS = {"cleanlab 2.9, defaults": None, "cleanlab 2.9, trusts from .5": 0.5}


def judged(
    s: EvalSet, plantings: int = 3, rivals: dict[str, float | None] = RIVALS
) -> dict[str, dict[str, tuple[float, float]]]:
    "Who → kind → mean and worst AUROC over plantings."
    rows = {"ours": [], **{name: [] for name in rivals}}
    for seed in range(plantings):
        made = plant_errors(s, seed=seed)
        mine = label_errors(made.set)
        rows["ours"].append(planted_aurocs(made, mine.scores, mine.free))
        for name, high in rivals.items():
            rows[name].append(planted_aurocs(made, *by_cleanlab(made, high)))
    kinds = lambda name: (
        [*KINDS, "missed, of free places"] if name == "ours" else KINDS
    )  # what is free is our notion
    return {
        name: {
            k: (float(np.mean([r[k] for r in found])), float(np.min([r[k] for r in found])))
            for k in kinds(name)
        }
        for name, found in rows.items()
    }


def train(weights: str, real: Path, epochs: int = 60) -> None:
    """Two small detectors, each trained on one half of labels with planted errors and asked about the other
    half."""
    import cv2
    import matplotlib

    items, truths = _bccd(real)
    s = EvalSet(
        items[0].names, tuple(i.path.name for i in items), np.full((len(items), 2), SIZE), tabled(truths)
    )
    labels, half, found = (
        plant_errors(s, seed=100).set.truth,
        np.random.default_rng(1).permutation(len(items)) % 2,
        [],
    )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        fonts = work / "settings" / "Ultralytics"
        fonts.mkdir(parents=True)
        shutil.copy(
            Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", fonts / "Arial.ttf"
        )
        os.environ.update(
            YOLO_OFFLINE="1",
            YOLO_AUTOINSTALL="false",
            YOLO_CONFIG_DIR=str(work / "settings"),
            YOLO_VERBOSE="false",
        )
        from ultralytics import YOLO

        for f in (0, 1):
            root = work / f"half{f}"
            for i, item in enumerate(items):
                side = "val" if half[i] == f else "train"
                for kind in ("images", "labels"):
                    (root / kind / side).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(
                    str(root / "images" / side / f"{item.path.stem}.png"),
                    cv2.resize(cv2.imread(str(item.path)), (320, 240), interpolation=cv2.INTER_AREA),
                )
                rows = labels.image == i
                (root / "labels" / side / f"{item.path.stem}.txt").write_text(
                    to_yolo(Detections(labels.xyxy[rows], None, labels.class_id[rows]), SIZE, clip=True)
                )
            (root / "data.yaml").write_text(
                json.dumps(
                    {
                        "path": str(root),
                        "train": "images/train",
                        "val": "images/val",
                        "names": dict(enumerate(items[0].names)),
                    }
                )
            )
            YOLO(weights).train(
                data=str(root / "data.yaml"),
                project=str(work),
                name=f"run{f}",
                workers=0,
                plots=False,
                amp=False,
                cache="ram",
                device="cpu",
                patience=0,
                verbose=False,
                val=False,
                imgsz=320,
                epochs=epochs,
                batch=8,
                optimizer="AdamW",
                lr0=0.002,
                lrf=0.02,
                cos_lr=True,
                warmup_epochs=1.0,
                mosaic=0.0,
                close_mosaic=0,
                fliplr=0.5,
                flipud=0.5,
                scale=0.15,
                translate=0.06,
                seed=0,
            )
            net = YOLO(work / f"run{f}" / "weights" / "last.pt")
            for i in np.flatnonzero(half == f):
                boxes = net.predict(
                    cv2.imread(str(items[i].path)), imgsz=320, conf=0.005, iou=0.6, max_det=300, verbose=False
                )[0].boxes
                found.append(
                    (np.full(len(boxes), i), boxes.xyxy.numpy(), boxes.cls.numpy(), boxes.conf.numpy())
                )
    keep(*(np.concatenate(c) for c in zip(*found)))


def keep(image, box, class_id, confidence) -> None:
    "Answers as small integers: tenths of a pixel, confidences in 1/65535."
    HERE.mkdir(exist_ok=True)
    np.savez_compressed(
        HERE / "bccd.npz",
        image=image.astype(np.int16),
        box=np.round(box * 10).astype(np.int16),
        class_id=class_id.astype(np.int8),
        confidence=np.round(confidence * 65535).astype(np.uint16),
    )


def run(quick: bool = False) -> list[dict]:
    "Rows: data, who, AUROC of each kind."
    plantings, real = 1 if quick else 5, os.environ.get("CV_PIPELINE_REAL_DATA")
    sets = {"line": line_set(20 if quick else 80)}
    if real:
        sets["BCCD train"] = bccd_set(Path(real))
    rows, tables = [], {}
    for name, s in sets.items():
        tables[name] = judged(s, plantings)
        rows += [
            {"data": name, "who": who, **{k: round(v[0], 3) for k, v in table.items()}}
            for who, table in tables[name].items()
        ]
    began = time.perf_counter()
    label_errors(sets["line"])
    rows.append(
        {
            "data": "line",
            "who": "ours: milliseconds a picture",
            "missed": round((time.perf_counter() - began) * 1e3 / len(sets["line"]), 2),
        }
    )
    if real and not quick:
        s = sets["BCCD train"]
        book = {
            "table": {"BCCD train": tables["BCCD train"]},
            "labels": len(s.truth),
            "detections": len(s.predictions),
            "q99": float(np.quantile(s.predictions.confidence, 0.99)),
            "plantings": plantings,
        }
        (HERE / "bccd.json").write_text(json.dumps(book, indent=1) + "\n")
    return rows


def main() -> None:
    "The table on the screen."
    ask = argparse.ArgumentParser()
    ask.add_argument("--train", metavar="WEIGHTS")
    ask.add_argument("--quick", action="store_true")
    given = ask.parse_args()
    if given.train:
        train(given.train, Path(os.environ["CV_PIPELINE_REAL_DATA"]))
    for row in run(given.quick):
        print(row)


if __name__ == "__main__":
    main()
