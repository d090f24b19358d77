"""Label errors: planted as promised, found at ordinary confidences on lines and BCCD, with cleanlab's
defaults beside; the same answer whatever the order or the scale of confidences."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cv_pipeline.annotation.label_errors import (
    KINDS,
    LabelErrors,
    auroc,
    error_suspects,
    label_errors,
    pair_up,
    plant_errors,
    search_power,
    trust_curves,
    worth_of,
)
from cv_pipeline.core.types import ConfigError, DataError, box_iou
from cv_pipeline.evaluation.records import EvalSet, box_table
from tests.benchmarks import try_label_errors as bench


@pytest.fixture(scope="module")
def line() -> EvalSet:
    return bench.line_set(lines=36, first=7100, seed=11)  # not the lines that the notebook looks at


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=30), st.lists(st.integers(0, 6), min_size=1, max_size=30)
)
def test_auroc_equals_sklearn(yes, no):
    assert auroc(np.array(yes), np.array(no)) == pytest.approx(
        roc_auc_score([1] * len(yes) + [0] * len(no), yes + no)
    )


def test_auroc_without_one_side_is_unknown():
    assert np.isnan(auroc(np.array([]), np.array([1.0])))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_planted_errors_are_what_they_claim(line, seed):
    made = plant_errors(line, seed=seed)
    t, old, count = made.set.truth, line.truth, round(0.05 * (~line.truth.crowd).sum())
    assert [int((made.kind == code).sum()) for code in (2, 3, 4, 5)] == [count] * 4 and len(
        made.gone
    ) == count
    kept = made.was >= 0
    assert len(t) == len(old) and (made.kind[~kept] == 2).all()
    same = made.kind == 0
    assert (t.xyxy[same] == old.xyxy[made.was[same]]).all() and (
        t.class_id[same] == old.class_id[made.was[same]]
    ).all()
    swapped = made.kind == 3
    assert (t.class_id[swapped] != old.class_id[made.was[swapped]]).all() and (
        t.xyxy[swapped] == old.xyxy[made.was[swapped]]
    ).all()
    for r in np.flatnonzero(made.kind >= 4):
        assert 0.1 < box_iou(t.xyxy[[r]], old.xyxy[[made.was[r]]])[0, 0] < 0.9
    size = np.tile(line.size[t.image], 2)
    assert (t.xyxy[made.kind >= 2] >= 0).all() and (t.xyxy[made.kind >= 2] <= size[made.kind >= 2]).all()
    assert set(made.was[kept]) | set(np.flatnonzero(np.isin(old.id, made.gone.id))) == set(
        range(len(old))
    )  # no label is lost unsaid
    assert not made.gone.crowd.any() and (t.crowd.sum() == old.crowd.sum())


def test_planting_is_repeatable_and_refuses_nonsense(line):
    a, b = plant_errors(line, seed=3), plant_errors(line, seed=3)
    assert (a.set.truth.xyxy == b.set.truth.xyxy).all() and (a.kind == b.kind).all()
    for share in (0, -1, 0.5):
        with pytest.raises(ConfigError, match="share="):
            plant_errors(line, share=share)
    with pytest.raises(ConfigError):
        plant_errors(line.select(np.zeros(len(line), bool)))


def test_every_kind_is_found_on_unseen_lines(line):
    ours = bench.judged(line, 3, rivals={})["ours"]
    assert all(ours[kind][0] >= 0.9 for kind in KINDS), ours
    table = bench.judged(line, 1, rivals={"cleanlab": None})
    assert all(table["ours"][kind][0] > table["cleanlab"][kind][0] for kind in KINDS), table


def test_every_kind_is_found_below_a_confidence_of_95(line):
    shy = replace(line, predictions=replace(line.predictions, confidence=line.predictions.confidence * 0.9))
    assert shy.predictions.confidence.max() < 0.95
    ours = bench.judged(shy, 3, rivals={})["ours"]
    assert all(ours[kind][0] >= 0.9 for kind in KINDS), ours


@pytest.mark.slow
@pytest.mark.real
def test_every_kind_is_found_in_bccd(real_data):
    s = bench.bccd_set(real_data)
    assert np.quantile(s.predictions.confidence, 0.99) < 0.95
    ours = bench.judged(s, 5, rivals={})["ours"]
    assert all(ours[kind][0] >= 0.9 for kind in KINDS), ours
    some = s.select(np.arange(0, len(s), 4))  # cleanlab is slow
    table = bench.judged(some, 1, rivals={"cleanlab": None})
    assert all(table["ours"][kind][0] > table["cleanlab"][kind][0] for kind in KINDS), table


def test_the_order_of_rows_does_not_matter(line):
    made, rng = plant_errors(line.select(np.arange(30)), seed=1), np.random.default_rng(0)
    s = made.set
    order, shuffled = rng.permutation(len(s.truth)), rng.permutation(len(s.predictions))
    mixed = replace(s, truth=s.truth[order], predictions=s.predictions[shuffled])
    one, two = label_errors(s), label_errors(mixed)
    assert two.scores == pytest.approx(one.scores[order], abs=1e-6)
    assert np.sort(two.free.confidence) == pytest.approx(np.sort(one.free.confidence), abs=1e-6)


def test_pairing_is_one_to_one_and_only_of_what_touches():
    rng = np.random.default_rng(2)
    for _ in range(50):
        corner = rng.uniform(0, 80, (2, 12, 2))
        a, b = (np.hstack([c, c + rng.uniform(5, 30, (12, 2))]) for c in corner)
        mate, overlap = pair_up(a, rng.integers(3, size=12), b, rng.random((12, 3)))
        used = mate[mate >= 0]
        assert len(set(used.tolist())) == len(used) and (overlap[mate >= 0, used] >= 0.1).all()


def tiny(truth, said, crowd=None) -> EvalSet:
    box = lambda rows: np.array([r[:4] for r in rows], float).reshape(-1, 4)
    return EvalSet(
        ("disc", "ring"),
        ("one.png",),
        np.array([[200, 100]]),
        box_table([0] * len(truth), box(truth), [r[4] for r in truth], crowd=crowd),
        box_table([0] * len(said), box(said), [r[4] for r in said], [r[5] for r in said]),
    )


def test_each_kind_is_named_with_a_reason_and_a_suggestion():
    kinds = {
        "wrong class": ([10, 10, 50, 50, 1], [10, 10, 50, 50, 0, 0.95]),
        "shifted": ([10, 10, 50, 50, 0], [30, 10, 70, 50, 0, 0.95]),
        "scaled": ([10, 10, 50, 50, 0], [16, 16, 44, 44, 0, 0.95]),
    }
    for kind, (label, seen) in kinds.items():
        first = error_suspects(label_errors(tiny([label], [seen])))[0]
        assert (first.kind, first.row) == (kind, 0) and first.reason, first
    assert error_suspects(label_errors(tiny([[10, 10, 50, 50, 1]], [[10, 10, 50, 50, 0, 0.95]])))[
        0
    ].suggestion == {"class_name": "disc"}
    both = error_suspects(label_errors(tiny([[10, 10, 50, 50, 0]], [[120, 10, 160, 50, 1, 0.9]])))
    assert {s.kind for s in both} == {"spurious", "missed"}
    missed = next(s for s in both if s.kind == "missed")
    assert missed.suggestion["class_name"] == "ring" and missed.row == -1 and missed.class_name == ""


def test_crowds_are_neither_accused_nor_missed():
    s = tiny(
        [[0, 0, 100, 100, 0], [120, 10, 160, 50, 0]],
        [[20, 20, 60, 60, 0, 0.9], [120, 10, 160, 50, 0, 0.9]],
        crowd=[True, False],
    )
    found = label_errors(s)
    assert (found.scores[0] == 0).all() and found.free.confidence.max() < 1e-6
    assert error_suspects(found) == []  # the label outside of it is explained


def test_pictures_without_labels_or_without_detections():
    s = tiny([], [[20, 20, 60, 60, 1, 0.9]])
    assert [x.kind for x in error_suspects(label_errors(s))] == ["missed"]
    with pytest.raises(DataError, match="no predictions"):
        label_errors(tiny([[0, 0, 9, 9, 0]], []))


def test_curves_are_as_they_are_where_nothing_can_be_said():
    assert (trust_curves(tiny([[0, 0, 9, 9, 0]], [[0, 0, 9, 9, 0, 0.5]])) == [[1, 0], [1, 0]]).all()


def test_worth_of_a_score_by_hand():
    at, worth = worth_of(np.array([0.9, 0.5, 0]), np.array([0.7, 0.1, 0]))
    assert at.tolist() == [0.1, 0.1, 0.5, 0.7, 0.9, 0.9] and worth.tolist() == pytest.approx(
        [0, 0, 1 / 3, 1 / 3, 1 / 2, 1 / 2]
    )
    assert worth_of(np.zeros(3), np.ones(2)) is None


@settings(max_examples=60)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=40), st.lists(st.floats(0.01, 1), max_size=40))
def test_worth_never_falls_and_stays_a_share(yes, no):
    at, worth = worth_of(np.array(yes), np.array(no))
    assert (np.diff(at) >= 0).all() and (np.diff(worth) >= 0).all() and 0 <= worth.min() and worth.max() < 1


def test_far_from_all_planted_errors_nothing_is_suspect():
    at, worth = worth_of(np.linspace(0.8, 0.9, 50), np.linspace(0.1, 0.6, 900))
    assert np.interp(0.6, at, worth) < 0.05 and np.interp(0.85, at, worth) > 0.9


def test_power_is_told_and_ranks_planted_errors_first(line):
    made = plant_errors(line, seed=8)
    power = search_power(made.set)
    assert power.planted >= 50 and all(power.auroc[kind] > 0.7 for kind in KINDS)
    listed = [s for s in error_suspects(label_errors(made.set), power) if s.row >= 0]
    first = [made.kind[s.row] > 0 for s in listed[:40]]
    assert np.mean(first) > 0.7  # a fifth of the labels are wrong: chance is .2
    assert all(a.score >= b.score for a, b in zip(listed, listed[1:]))
    small = search_power(line.select(np.arange(3)))
    assert small.curves == {} and "at least 100" in small.reason
    assert isinstance(label_errors(line), LabelErrors)
