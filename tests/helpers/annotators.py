"""Labels of three classes of their own size and shape, and people who draw them more or less well."""

import numpy as np

from cv_pipeline.annotation.annotations import Annotation
from cv_pipeline.core.types import Detections
from cv_pipeline.evaluation.records import EvalSet, box_table

NAMES = ("disc", "ring", "bolt")


def random_labels(pictures=80, per=6, seed=0, size=(640, 480)) -> EvalSet:
    "Three classes of their own size and shape, nothing wrong."
    rng, n = np.random.default_rng(seed), pictures * per
    klass = rng.integers(3, size=n)
    area, aspect = (
        np.array([1500, 4000, 9000])[klass] * np.exp(rng.normal(0, 0.2, n)),
        np.array([1, 0.5, 2])[klass] * np.exp(rng.normal(0, 0.1, n)),
    )
    side = np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)], axis=1)
    cell = np.stack(
        [np.tile(np.arange(per) % 3, pictures) * 210, np.tile(np.arange(per) // 3, pictures) * 230], axis=1
    ) + rng.uniform(0, 20, (n, 2))
    return EvalSet(
        NAMES,
        tuple(f"{i}.png" for i in range(pictures)),
        np.full((pictures, 2), size),
        box_table(np.repeat(np.arange(pictures), per), np.hstack([cell, cell + side]), klass),
    )


def people(who, seed, missing=0.0, wrong=0.0, pictures=40, jitter=1.0, base=0) -> list[Annotation]:
    "Boxes of one person: some left out, some of another class, all a little off."
    s, rng, made = random_labels(pictures=pictures, seed=base), np.random.default_rng(seed), []
    for i, name in enumerate(s.images):
        rows = np.flatnonzero(s.truth.image == i)
        rows = rows[rng.random(len(rows)) >= missing]
        klass = np.where(
            rng.random(len(rows)) < wrong, (s.truth.class_id[rows] + 1) % 3, s.truth.class_id[rows]
        )
        made.append(
            Annotation(
                name,
                who,
                (640, 480),
                NAMES,
                Detections(s.truth.xyxy[rows] + rng.uniform(0, jitter, (len(rows), 1)), class_id=klass),
            )
        )
    return made
