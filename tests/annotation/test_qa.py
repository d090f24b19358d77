"""Labels without a model: limits learnt from data, doubles, contradictions, coverage; Krippendorff's α by its
definition, and what people's habits do to it."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.annotation.annotations import read_annotations
from cv_pipeline.annotation.qa import (
    LEAST,
    Suspect,
    agreement,
    alpha_of,
    box_suspects,
    class_balance,
    class_suspects,
    coverage,
    disagreement,
    dispute_suspects,
    learn_limits,
    ranked,
    shape_of,
    units_of,
)
from cv_pipeline.core.types import ConfigError, DataError, Detections
from cv_pipeline.evaluation.records import EvalSet, box_table
from tests.helpers.annotators import NAMES, people, random_labels


def with_box(s, row, box):
    return replace(
        s, truth=replace(s.truth, xyxy=np.where((np.arange(len(s.truth)) == row)[:, None], box, s.truth.xyxy))
    )


@pytest.mark.parametrize("seed", range(3))
def test_sound_labels_are_left_alone(seed):
    assert len(box_suspects(random_labels(seed=seed))) <= 2  # 480 boxes, four spreads


@pytest.mark.parametrize(
    "change, kind",
    [
        (lambda b: [b[0], b[1], b[0] + 6 * (b[2] - b[0]), b[1] + 6 * (b[3] - b[1])], "unusual size"),
        (lambda b: [b[0], b[1], b[0] + 3 * (b[2] - b[0]), b[1] + (b[3] - b[1]) / 3], "unusual shape"),
        (lambda b: [b[0] - 40, b[1], b[2] - 40, b[3]], "outside"),
        (lambda b: [b[0], b[1], b[0] + 1, b[3]], "no size"),
    ],
)
def test_a_broken_box_comes_first(change, kind):
    s = random_labels()
    row = int(np.flatnonzero((s.truth.xyxy[:, 0] < 20) & (s.truth.image == 7))[0])
    first = box_suspects(with_box(s, row, change(s.truth.xyxy[row])))[0]
    assert first.row == row and kind in f"{first.kind} {first.reason}" and 0.5 <= first.score <= 1


def test_a_class_that_fits_better_is_suggested():
    s = random_labels()
    shape = shape_of(s.truth.xyxy, s.size[s.truth.image])
    row = int(
        np.argmin(np.abs(shape - learn_limits(s)[0, 0]).max(axis=1) + 9 * (s.truth.class_id != 0))
    )  # as ordinary as a disc can be
    wrong = replace(
        s, truth=replace(s.truth, class_id=np.where(np.arange(len(s.truth)) == row, 2, s.truth.class_id))
    )
    found = next(x for x in box_suspects(wrong) if x.row == row)
    assert found.suggestion == {"class_name": "disc"} and "usual for disc" in found.reason


def test_limits_come_from_reviewed_data_and_bend_little():
    s, rng = random_labels(), np.random.default_rng(0)
    box = s.truth.xyxy.copy()
    bad = rng.random(len(box)) < 0.08
    box[bad, 2:] += 150
    moved = learn_limits(replace(s, truth=replace(s.truth, xyxy=box)))
    assert np.abs(moved - learn_limits(s))[:, 0].max() < 0.1
    found = {x.row for x in box_suspects(replace(s, truth=replace(s.truth, xyxy=box)), learn_limits(s))}
    assert len(found & set(np.flatnonzero(bad).tolist())) / bad.sum() > 0.9
    with pytest.raises(DataError, match="limits have shape"):
        box_suspects(s, learn_limits(s)[:1])


def test_few_labels_have_no_usual():
    s = random_labels(pictures=LEAST // 6 - 1)
    assert np.isnan(learn_limits(s)).all() and box_suspects(s) == []
    assert box_suspects(replace(s, truth=s.truth[:0])) == []


@settings(max_examples=40)
@given(st.floats(0.2, 5), st.floats(5, 200), st.floats(5, 200))
def test_shape_does_not_depend_on_resolution(times, w, h):
    box, size = np.array([[10, 10, 10 + w, 10 + h]]), np.array([[640, 480]])
    assert shape_of(box * times, size * times) == pytest.approx(shape_of(box, size), abs=1e-6)


def test_doubles_and_two_classes_in_one_place():
    s = random_labels()
    t = s.truth
    more = box_table(
        np.append(t.image, [0, 1]),
        np.vstack([t.xyxy, t.xyxy[[0, 6]] + 0.5]),
        np.append(t.class_id, [t.class_id[0], (t.class_id[6] + 1) % 3]),
    )
    found = {(x.kind, x.row) for x in box_suspects(replace(s, truth=more))}
    assert ("drawn twice", len(t)) in found and {r for k, r in found if k == "two classes"} == {6, len(t) + 1}


def test_crowds_are_no_doubles():
    s = random_labels()
    t = s.truth
    both = box_table(
        np.append(t.image, 0),
        np.vstack([t.xyxy, t.xyxy[:1]]),
        np.append(t.class_id, t.class_id[0]),
        crowd=np.append(t.crowd, True),
    )
    assert not [x for x in box_suspects(replace(s, truth=both)) if x.kind == "drawn twice"]


def test_twins_that_agree_are_left_alone():
    s = EvalSet(NAMES, ("a", "b"), np.full((2, 2), 100), box_table([0, 1], [[10, 10, 40, 40]] * 2, [1, 1]))
    assert class_suspects(s, [(0, 1)]) == []
    other = class_suspects(replace(s, truth=replace(s.truth, class_id=np.array([1, 2]))), [(0, 1)])
    assert {(x.picture, x.suggestion["class_name"]) for x in other} == {("a", "bolt"), ("b", "ring")}


def test_balance_and_coverage_count_everything_once():
    s = replace(random_labels(), columns={"light": np.array(["day", "night"] * 40, object)})
    assert (
        sum(r["objects"] for r in class_balance(s)) == len(s.truth) == sum(r["objects"] for r in coverage(s))
    )
    nothing = replace(s, truth=s.truth[s.truth.class_id != 1])
    assert class_balance(nothing)[0] == {
        "class": "ring",
        "objects": 0,
        "pictures": 0,
        "enough": False,
        "share": 0.0,
        "one in": float("inf"),
    }
    assert coverage(s)[0]["expected"] == pytest.approx(np.bincount(s.truth.class_id).min() / 2, rel=0.4)
    with pytest.raises(DataError, match="unknown column"):
        coverage(s, ["fog"])


def test_ranked_keeps_all_reasons():
    a = Suspect("1", "x", 0.2, "one", row=3)
    merged = ranked(
        [
            a,
            replace(a, kind="y", score=0.9, reason="two"),
            replace(a, row=-1, xyxy=(0, 0, 1, 1)),
            replace(a, row=-1, xyxy=(5, 0, 9, 1)),
        ]
    )
    assert len(merged) == 3 and merged[0].reason == "two; x: one"


def by_definition(table) -> float:
    """Krippendorff (2011): coincidences of all ordered pairs of values within a unit, each weighted by 1 /
    (people − 1)."""
    values = sorted({v for unit in table for v in unit})
    o = {(c, k): 0.0 for c in values for k in values}
    for unit in table:
        if len(unit) < 2:
            continue
        for a, b in permutations(range(len(unit)), 2):
            o[unit[a], unit[b]] += 1 / (len(unit) - 1)
    n_c = {c: sum(o[c, k] for k in values) for c in values}
    n = sum(n_c.values())
    expected = sum(n_c[c] * n_c[k] for c in values for k in values if c != k) / (n - 1) if n > 1 else 0
    seen = sum(v for (c, k), v in o.items() if c != k)
    return float("nan") if n < 2 else 1.0 if expected == 0 else 1 - seen / expected


@settings(max_examples=150)
@given(st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=15))
def test_alpha_is_its_definition(table):
    counts = np.array([[unit.count(v) for v in range(4)] for unit in table])
    assert alpha_of(*disagreement(counts))[0] == pytest.approx(by_definition(table), nan_ok=True)


def test_perfect_people_are_reliable():
    found = agreement(people("a", 1) + people("b", 2))
    assert (
        found.verdict == "reliable"
        and found.alpha.value == 1
        and found.units == 240
        and dispute_suspects(people("a", 1) + people("b", 2)) == []
    )


def test_alpha_falls_with_errors_and_names_who():
    values = [
        agreement(people("a", 1) + people("b", 2, missing=m, wrong=m)).alpha.value for m in (0, 0.1, 0.3)
    ]
    assert values[0] > values[1] > values[2]
    found = agreement(people("a", 1) + people("b", 2, missing=0.3) + people("c", 3))
    assert max(found.by_person, key=lambda r: r["alpha without"])["person"] == "b"
    b = next(r for r in found.by_person if r["person"] == "b")
    assert b["missed"] == pytest.approx(0.3, abs=0.08) and b["other class"] == 0


def test_chance_is_zero():
    rng = np.random.default_rng(4)
    guess = [
        replace(a, boxes=Detections(a.boxes.xyxy, class_id=rng.integers(3, size=len(a.boxes))))
        for a in people("a", 1, pictures=150) + people("b", 2, pictures=150)
    ]
    found = agreement(guess)
    assert (
        abs(found.alpha.value) < 0.08
        and found.alpha.low < 0 < found.alpha.high
        and found.verdict == "unreliable"
    )


@pytest.mark.slow
def test_the_interval_covers_what_is_drawn():
    "Thirty samples of people with fixed habits: about 95 % of the intervals hold the mean of a large sample."
    truth = agreement(
        people("a", 1, wrong=0.1, pictures=600) + people("b", 2, wrong=0.1, pictures=600), draws=50
    ).alpha.value
    inside = [
        f.alpha.low <= truth <= f.alpha.high
        for k in range(30)
        for f in [
            agreement(
                people("a", 2 * k, wrong=0.1, base=k) + people("b", 2 * k + 1, wrong=0.1, base=k),
                draws=300,
                ious=(0.5,),
            )
        ]
    ]
    assert sum(inside) >= 25


def test_what_cannot_be_known_is_insufficient():
    with pytest.raises(DataError, match="no annotations found"):
        agreement([])
    alone = agreement(people("ana", 1))
    assert (
        alone.verdict == "insufficient" and "only one annotator (ana)" in alone.reason and alone.alpha is None
    )
    apart = agreement(people("a", 1)[:20] + people("b", 2)[20:])
    assert apart.verdict == "insufficient" and "0 image(s)" in apart.reason
    few = agreement(people("a", 1, pictures=4) + people("b", 2, pictures=4))
    assert few.verdict == "insufficient" and "at least 50" in few.reason
    empty = [replace(a, boxes=Detections.empty()) for a in people("a", 1) + people("b", 2)]
    assert agreement(empty).verdict == "insufficient"


def test_bad_annotations_are_refused():
    a = people("a", 1)
    with pytest.raises(DataError, match="two annotations of one image"):
        agreement(a + a)
    with pytest.raises(DataError, match="different class lists"):
        agreement(a + [replace(x, annotator="b", names=("disc", "ring", "screw")) for x in a])
    with pytest.raises(ConfigError, match="iou"):
        units_of(a, 0)


def test_from_the_file_of_lines(tmp_path):
    from cv_pipeline.annotation.annotations import write_annotations

    file = write_annotations(people("a", 1) + people("b", 2, wrong=0.2), tmp_path / "annotations.jsonl")
    direct, read = (
        agreement(people("a", 1) + people("b", 2, wrong=0.2)),
        agreement(read_annotations(file, NAMES)),
    )
    assert read.alpha.value == pytest.approx(direct.alpha.value) and read.units == direct.units


def test_somebody_who_was_not_asked_says_nothing():
    both = people("a", 1) + people("b", 2)
    with_third = agreement(both + people("c", 3, missing=1.0)[:5])  # c saw five pictures and drew nothing
    without = agreement([x for x in both if x.picture not in {f"{i}.png" for i in range(5)}])
    assert without.alpha.value == 1 and with_third.alpha.value < 1
    assert next(r for r in with_third.by_person if r["person"] == "c")["missed"] == 1.0


def test_disputes_tell_who_said_what():
    found = dispute_suspects(people("a", 1) + people("b", 2, wrong=0.2) + people("c", 3))
    assert found and all("a: " in x.reason and "b: " in x.reason and x.suggestion for x in found)
    assert all(x.score == pytest.approx(1 / 3) for x in found)
