"""An evaluation of 2,000 pictures and 90,000 predictions: what each part costs, beside pycocotools on the
same tables.

Eight classes, six objects a picture; predictions near, doubled, of another class, of nothing. Bootstrap:
1,000 draws of 200 sequences.
"""

import contextlib
import io
import time

import numpy as np

from cv_pipeline.evaluation.errors import explain_errors, lrp_table
from cv_pipeline.evaluation.intervals import ap_interval, clusters, draw_weights
from cv_pipeline.evaluation.metrics import (
    ap_table,
    coco_books,
    coco_metrics,
    confusion_matrix,
    match_set,
    mean_ap,
)
from cv_pipeline.evaluation.records import EvalSet, box_table
from cv_pipeline.evaluation.summary import class_rows


def busy_set(pictures: int, a_picture: int, seed: int = 0) -> EvalSet:
    rng = np.random.default_rng(seed)
    image, klass = np.repeat(np.arange(pictures), 6), rng.integers(0, 8, pictures * 6)
    corner, side = rng.uniform(0, 500, (len(image), 2)), rng.uniform(15, 200, (len(image), 2))
    truth = np.hstack([corner, corner + side])
    near = rng.integers(0, 6, (pictures, a_picture)) + 6 * np.arange(pictures)[:, None]
    near = near.ravel()
    boxes = (
        truth[near]
        + rng.normal(0, 1, (len(near), 4))
        * side[near].mean(axis=1, keepdims=True)
        * rng.choice([0.03, 0.15, 1.5], len(near))[:, None]
    )
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    said = np.where(rng.random(len(near)) < 0.85, klass[near], rng.integers(0, 8, len(near)))
    return EvalSet(
        tuple("abcdefgh"),
        tuple(map(str, range(pictures))),
        np.full((pictures, 2), 640),
        box_table(image, truth, klass),
        box_table(np.repeat(np.arange(pictures), a_picture), boxes, said, rng.random(len(near)) ** 2),
        {"sequence": np.arange(pictures) // 10},
    )


def many_classes(pictures: int, classes: int, a_picture: int = 8) -> EvalSet:
    rng = np.random.default_rng(0)
    image, klass = np.repeat(np.arange(pictures), a_picture), rng.integers(0, classes, pictures * a_picture)
    corner = rng.uniform(0, 500, (len(image), 2))
    truth = np.hstack([corner, corner + rng.uniform(30, 120, corner.shape)])
    said = truth + rng.normal(0, 2, truth.shape)
    return EvalSet(
        tuple(f"c{i}" for i in range(classes)),
        tuple(map(str, range(pictures))),
        np.full((pictures, 2), 640),
        box_table(image, truth, klass),
        box_table(image, said, klass, rng.random(len(image))),
    )


def class_table(quick: bool) -> list[dict]:
    "The table of 80 classes, in CPU seconds; each class drawn for itself is measured at 20 of the draws."
    s, few = many_classes(200 if quick else 1000, 80), 20
    m, weights = match_set(s), draw_weights(clusters(s), 100 if quick else 1000)
    began = time.process_time()
    class_rows(s, m, weights)
    shared = time.process_time() - began
    began = time.process_time()
    for c in range(80):
        ap_interval(s, m, weights[:few], lambda ap, c=c: float(np.nanmean(ap[:, c])))
    alone = (time.process_time() - began) * len(weights) / few
    what = f"80 classes, {len(s)} pictures, {len(weights)} draws, CPU s"
    return [
        {"part": f"class table, one pass: {what}", "seconds": round(shared, 2)},
        {"part": f"class table, a pass a class: {what}", "seconds": None, "value": f"about {alone:.0f}"},
    ]


def run(quick: bool = False) -> list[dict]:
    s = busy_set(400 if quick else 2000, 45)
    rows, kept = [], {}

    def timed(name, work):
        began = time.perf_counter()
        kept[name] = work()
        rows.append({"part": name, "seconds": round(time.perf_counter() - began, 3)})
        return kept[name]

    def peer():
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):
            book = COCO()
            book.dataset, said = coco_books(s)
            book.createIndex()
            judge = COCOeval(book, book.loadRes(said), "bbox")
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        return judge.stats

    timed("pycocotools, the twelve numbers", peer)
    timed("the twelve numbers (faster-coco-eval)", lambda: coco_metrics(s))
    m = timed("own matching, ten thresholds", lambda: match_set(s))
    timed("own AP of every class from the matches", lambda: mean_ap(ap_table(s, m)))
    timed("error causes and their gains", lambda: explain_errors(s, m))
    timed("LRP of every class", lambda: lrp_table(s, m))
    timed("confusion matrix", lambda: confusion_matrix(s))
    timed("bootstrap of AP, 1000 draws", lambda: ap_interval(s, m, draw_weights(clusters(s), 1000)))
    ours = sum(r["seconds"] for r in rows[1:])
    rows.append(
        {
            "part": f"all of ours together ({len(s)} pictures, {len(s.predictions)} predictions)",
            "seconds": round(ours, 2),
        }
    )
    rows.append(
        {
            "part": "AP: pycocotools / library / own",
            "seconds": None,
            "value": f"{kept[rows[0]['part']][0]:.9f} / {kept[rows[1]['part']]['AP']:.9f} / "
            f"{kept[rows[3]['part']]:.9f}",
        }
    )
    return rows + class_table(quick)


def main() -> None:
    print(__doc__)
    for row in run():
        print(
            f"{row['part']:60s} {row.get('seconds') if row.get('seconds') is not None else '':>8} "
            f"{row.get('value', '')}"
        )


if __name__ == "__main__":
    main()
