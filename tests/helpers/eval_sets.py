"""Made-up evaluation sets, and what pycocotools says about them."""

import contextlib
import io

import numpy as np

from cv_pipeline.evaluation.metrics import coco_books
from cv_pipeline.evaluation.records import EvalSet, box_table


def random_set(
    seed: int, pictures: int = 12, classes: int = 3, crowds: bool = True, ties: bool = False
) -> EvalSet:
    "Objects with predictions that are near, doubled, of the wrong class, or of nothing."
    rng = np.random.default_rng(seed)
    rows, said = [], []
    for i in range(pictures):
        for _ in range(rng.integers(0, 9)):
            corner, side = rng.uniform(0, 300, 2), rng.uniform(8, 200, 2)
            box, c = np.r_[corner, corner + side], int(rng.integers(classes))
            crowd = crowds and rng.random() < 0.1
            rows.append((i, *box, c, crowd))
            for _ in range(rng.integers(0, 4)):
                said.append(
                    (
                        i,
                        *(box + rng.normal(0, side.mean() * 0.1, 4)),
                        c if rng.random() < 0.8 else rng.integers(classes),
                        rng.random(),
                    )
                )
        for _ in range(rng.integers(0, 4)):
            said.append(
                (i, *np.sort(rng.uniform(0, 400, 4))[[0, 1, 2, 3]], rng.integers(classes), rng.random())
            )
    g, d = np.array(rows, float).reshape(-1, 7), np.array(said, float).reshape(-1, 7)
    d[:, 3:5] = np.maximum(d[:, 3:5], d[:, 1:3])
    score = np.round(d[:, 6], 1) if ties else d[:, 6]
    return EvalSet(
        tuple("abc"[:classes]),
        tuple(f"p{i}" for i in range(pictures)),
        np.full((pictures, 2), 500),
        box_table(g[:, 0], g[:, 1:5], g[:, 5], crowd=g[:, 6] > 0),
        box_table(d[:, 0], d[:, 1:5], d[:, 5], score),
    )


def pycocotools_numbers(s: EvalSet):
    "COCOeval after `summarize`."
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, said = coco_books(s)
    with contextlib.redirect_stdout(io.StringIO()):
        book = COCO()
        book.dataset = truth
        book.createIndex()
        judge = COCOeval(book, book.loadRes(said), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge
