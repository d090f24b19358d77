"""AP, matches and confusion: pycocotools is the oracle; what makes numbers meaningless is refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import DataError
from cv_pipeline.evaluation.metrics import (
    COCO_NAMES,
    SIZES,
    ap_table,
    coco_metrics,
    confusion_matrix,
    match_set,
    mean_ap,
    pr_curve,
    slice_table,
)
from cv_pipeline.evaluation.records import EvalSet, box_table, check_set, read_coco
from tests.helpers.eval_sets import pycocotools_numbers, random_set


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_library_and_own_matches_equal_pycocotools(seed, crowds, ties):
    s = random_set(seed, crowds=crowds, ties=ties)
    if not len(s.truth) or not len(s.predictions):
        return
    judge = pycocotools_numbers(s)
    theirs = dict(zip(COCO_NAMES, judge.stats))
    for name, value in coco_metrics(s).items():
        assert (-1 if value is None else value) == pytest.approx(theirs[name], abs=1e-9), name
    if theirs["AP"] < 0:
        return
    table = ap_table(s, match_set(s))
    precision = judge.eval["precision"][:, :, :, 0, 2]  # thresholds, recalls, classes
    some = table["objects"] > 0
    np.testing.assert_allclose(table["ap"][:, some], precision.mean(axis=1)[:, some], atol=1e-9)
    for (size, limits), name in zip(SIZES.items(), ("APs", "APm", "APl")):
        own = mean_ap(ap_table(s, match_set(s, area=limits)))
        assert (-1 if np.isnan(own) else own) == pytest.approx(theirs[name], abs=1e-9), size


def test_many_predictions_in_a_picture_are_cut_like_cocos():
    rng = np.random.default_rng(0)
    box = np.tile([10.0, 10, 60, 60], (300, 1)) + rng.normal(0, 3, (300, 4))
    s = EvalSet(
        ("a",),
        ("p",),
        np.full((1, 2), 500),
        box_table([0] * 40, box[:40], [0] * 40),
        box_table([0] * 300, box, [0] * 300, rng.random(300)),
    )
    theirs = dict(zip(COCO_NAMES, pycocotools_numbers(s).stats))
    assert (
        mean_ap(ap_table(s, match_set(s))) == pytest.approx(theirs["AP"], abs=1e-9)
        and len(match_set(s).rows) == 100
    )


@pytest.mark.real
def test_the_published_numbers_of_the_reference_come_out(real_data):
    folder = real_data / "map_reference/cocoapi_val2014_100"
    text = (folder / "published_eval.txt").read_text().split("type=bbox")[1].split("type=keypoints")[0]
    published = [float(line.rsplit("=", 1)[1]) for line in text.splitlines() if "Average" in line]
    s = read_coco(folder / "gt_instances.json", folder / "det_bbox.json")
    ours = coco_metrics(s)
    assert [round(ours[k], 3) for k in COCO_NAMES] == published
    for k, v in zip(COCO_NAMES, pycocotools_numbers(s).stats):
        assert ours[k] == pytest.approx(v, abs=1e-6)
    assert (
        ours["AP"] == pytest.approx(0.504581, abs=1e-6)
        and ours["AP50"] == pytest.approx(0.696973, abs=1e-6)
        and ours["AP75"] == pytest.approx(0.572982, abs=1e-6)
    )
    assert mean_ap(ap_table(s, match_set(s))) == pytest.approx(ours["AP"], abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_a_slice_is_the_metric_of_its_pictures_and_weights_are_copies(seed):
    s = random_set(seed, 10)
    if not len(s.truth):
        return
    rng = np.random.default_rng(seed)
    s = replace(s, columns={"camera": np.array([["n", "s"][k] for k in rng.integers(0, 2, len(s))], object)})
    m = match_set(s)
    for row in slice_table(s, m, "camera"):
        part = s.select(s.slices("camera")[row["slice"][-1]])
        if not len(part.truth[~part.truth.crowd]):
            assert np.isnan(row["AP"])
            continue
        assert row["AP"] == pytest.approx(mean_ap(ap_table(part, match_set(part))), abs=1e-9)
    drawn = rng.integers(0, len(s), len(s))
    copies = s.select(drawn)
    weights = np.bincount(drawn, minlength=len(s))
    a, b = mean_ap(ap_table(s, m, weights)), mean_ap(ap_table(copies, match_set(copies)))
    assert (np.isnan(a) and np.isnan(b)) or a == pytest.approx(b, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.7]))
def test_the_confusion_matrix_accounts_for_every_box(seed, conf):
    s = random_set(seed)
    matrix = confusion_matrix(s, conf)
    assert matrix[:-1].sum() == (~s.truth.crowd).sum() and matrix[-1, -1] == 0
    shown = s.predictions.confidence >= conf
    lost = match_set(replace(s, predictions=s.predictions[shown]), [0.5], max_det=10**6).ignored[0].sum()
    assert matrix[:, :-1].sum() == shown.sum() - lost
    np.testing.assert_array_equal(
        np.diag(matrix)[:-1],
        [
            match_set(replace(s, predictions=s.predictions[shown]), [0.5], max_det=10**6)
            .hit[0][
                s.predictions[shown].class_id[
                    match_set(replace(s, predictions=s.predictions[shown]), [0.5], max_det=10**6).rows
                ]
                == c
            ]
            .sum()
            for c in range(3)
        ],
    )


def test_a_perfect_and_an_empty_detector():
    s = random_set(3, crowds=False)
    perfect = replace(s, predictions=s.truth)
    assert (
        coco_metrics(perfect)["AP"] == pytest.approx(1)
        and pr_curve(perfect, match_set(perfect)).f1.max() == 1
    )
    nothing = replace(s, predictions=box_table([], [], []))
    assert coco_metrics(nothing)["AP"] == 0 == mean_ap(ap_table(nothing, match_set(nothing)))
    assert confusion_matrix(nothing)[:-1, -1].sum() == len(s.truth)
    one = EvalSet(
        ("only",),
        s.images,
        s.size,
        box_table([0], [[0, 0, 50, 50]], [0]),
        box_table([0], [[0, 0, 50, 50]], [0], [0.9]),
    )
    assert coco_metrics(check_set(one))["AP50"] == pytest.approx(1)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: {"truth": box_table([], [], [])}, "no labelled box"),
        (lambda s: {"images": ("p0",) * len(s)}, "listed 12 times"),
        (lambda s: {"predictions": box_table([99], [[0, 0, 1, 1]], [0])}, "unknown image"),
        (lambda s: {"predictions": box_table([0], [[0, 0, np.inf, 1]], [0])}, "NaN or infinite"),
        (lambda s: {"predictions": box_table([0], [[0, 0, 9, 9]], [7])}, "class id outside 0..2"),
        (lambda s: {"predictions": box_table([0], [[0, 0, 9, 9]], [0], [1.2])}, "confidence outside 0..1"),
        (
            lambda s: {"truth": box_table([0, 1], [[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1]], [0, 1])},
            "are these fractions",
        ),
        (
            lambda s: {"truth": box_table([0, 1], [[300, 200, 50, 60], [200, 300, 40, 50]], [0, 1])},
            "x, y, width, height",
        ),
        (lambda s: {"columns": {"camera": np.array(["n"])}}, "1 values for 12 pictures"),
    ],
)
def test_what_makes_numbers_meaningless_is_named(change, words):
    s = random_set(3)
    with pytest.raises(DataError, match=words):
        check_set(replace(s, **change(s)))
