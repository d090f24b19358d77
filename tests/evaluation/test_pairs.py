"""Two models on one frame: numbers by hand, symmetry, votes of tracks."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError, Detections
from cv_pipeline.evaluation.pairs import FRAME_NUMBERS, SIGNED_NUMBERS, TrackVotes, compare_frame

NAMES = ("gear", "bolt", "nut")


def boxes(places, classes=None, confidence=None, tracks=None):
    "Boxes of 10 × 10 pixels at some places of a line."
    return Detections([[x, 0, x + 10, 10] for x in places], confidence, classes, tracks)


some = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), max_size=6, unique_by=lambda t: t[0]).map(
    lambda rows: boxes([15 * x for x, _ in rows], [c for _, c in rows])
)


@given(some, some)
@settings(max_examples=80, deadline=None)
def test_numbers_are_those_of_sets(a, b):
    "Boxes that cannot overlap by half with another place: sets of (place, class)."
    keys = lambda d: {(float(x), int(c)) for x, c in zip(d.xyxy[:, 0], d.class_id)}
    n, m, hits = len(a), len(b), len(keys(a) & keys(b))
    found = compare_frame(a, b, NAMES)
    if n + m == 0:
        assert math.isnan(found["disagree"])
    else:
        assert found["disagree"] == pytest.approx(1 - 2 * hits / (n + m))
        assert found["lost"] + found["added"] == pytest.approx(found["disagree"])
        assert found["added"] - found["lost"] == pytest.approx(found["count"])
    assert found["empty"] == (m == 0) - (n == 0)
    for k, name in enumerate(NAMES):
        mine, theirs = ({p for p in keys(d) if p[1] == k} for d in (a, b))
        if mine or theirs:
            both = len(mine & theirs)
            assert found[f"disagree: {name}"] == pytest.approx(1 - 2 * both / (len(mine) + len(theirs)))


@given(some, some)
@settings(max_examples=40, deadline=None)
def test_exchanging_the_models_turns_the_sign(a, b):
    there, back = compare_frame(a, b, NAMES), compare_frame(b, a, NAMES)
    signed = [*SIGNED_NUMBERS, *(f"count: {n}" for n in NAMES)]
    assert [there[k] for k in signed] == pytest.approx([-back[k] for k in signed], nan_ok=True)
    assert there["disagree"] == pytest.approx(back["disagree"], nan_ok=True)


@given(some, some)
@settings(max_examples=40, deadline=None)
def test_every_number_lies_in_its_range(a, b):
    for name, value in compare_frame(a, b, NAMES).items():
        low = -1 if name in SIGNED_NUMBERS or name.startswith("count: ") else 0
        assert math.isnan(value) or low <= value <= 1


def test_all_numbers_are_named():
    assert tuple(compare_frame(boxes([0]), boxes([0]))) == FRAME_NUMBERS


def test_a_frame_without_boxes_says_nothing():
    none = compare_frame(Detections.empty(), Detections.empty(), NAMES)
    assert all(math.isnan(v) for k, v in none.items() if k != "empty") and none["empty"] == 0


def test_a_class_swap_moves_no_count_and_is_seen_by_class():
    old, new = boxes([0, 20], [0, 1]), boxes([0, 20], [1, 0])
    found = compare_frame(old, new, NAMES)
    assert (found["count"], found["disagree"]) == (0, 1)
    assert (found["disagree: gear"], found["count: gear"]) == (1, 0)
    assert math.isnan(found["disagree: nut"])


def test_the_shift_of_confidence_is_that_of_matched_boxes():
    old, new = boxes([0, 20], confidence=[0.9, 0.8]), boxes([0, 90], confidence=[0.7, 0.1])
    assert compare_frame(old, new)["confidence"] == pytest.approx(-0.2)


def test_boxes_that_move_and_still_match_are_seen():
    old = boxes([0, 20])
    wide = Detections(old.xyxy + np.float32([0, 0, 4, 0]))
    assert compare_frame(old, wide)["disagree"] == 0
    assert compare_frame(old, wide)["moved"] == pytest.approx(1 - 10 / 14)


def test_overlap_decides():
    old, new = boxes([0]), boxes([4])  # overlap 6/14
    assert (compare_frame(old, new)["disagree"], compare_frame(old, new, iou=0.4)["disagree"]) == (1, 0)


@pytest.mark.parametrize("iou", [0, -1, 1.1, math.nan])
def test_an_overlap_that_cannot_be_is_refused(iou):
    with pytest.raises(ConfigError, match="0 < iou"):
        compare_frame(boxes([0]), boxes([0]), iou=iou)


def votes_of(frames, lost_s=1.0):
    votes = TrackVotes(lost_s=lost_s)
    return [v for k, (a, b) in enumerate(frames) for v in votes.update(a, b, k / 5)] + votes.close()


def test_an_object_votes_once():
    both = [(boxes([k], tracks=[1]), boxes([k], tracks=[9])) for k in range(20)]
    assert votes_of(both) == [0.0]


@pytest.mark.parametrize("side", [0, 1])
def test_an_object_of_one_model_votes_1(side):
    one = boxes([0], tracks=[1])
    pair = (one, Detections.empty()) if side == 0 else (Detections.empty(), one)
    assert votes_of([pair] * 10) == [1.0]


def test_what_is_not_confirmed_does_not_vote():
    assert votes_of([(boxes([0], tracks=[-1]), Detections.empty())] * 10) == []


def test_a_track_is_finished_after_its_pause_and_not_before():
    votes = TrackVotes(lost_s=1.0)
    votes.update(boxes([0], tracks=[1]), boxes([0], tracks=[1]), 0.0)
    assert votes.update(Detections.empty(), Detections.empty(), 1.0) == []
    assert votes.update(Detections.empty(), Detections.empty(), 1.1) == [0.0]


def test_a_partner_in_less_than_half_of_the_frames_is_none():
    a, none = boxes([0], tracks=[1]), Detections.empty()
    assert votes_of([(a, a)] * 4 + [(a, none)] * 6) == [1.0]
    assert votes_of([(a, a)] * 6 + [(a, none)] * 4) == [0.0]


@pytest.mark.parametrize("bad", [{"iou": 0}, {"lost_s": 0}, {"lost_s": -1}])
def test_settings_of_the_votes_are_checked(bad):
    with pytest.raises(ConfigError, match="TrackVotes"):
        TrackVotes(**bad)


def test_a_copy_agrees_with_itself():
    d = boxes([0, 20, 40], [0, 1, 1], np.array([0.5, 0.6, 0.7]))
    found = compare_frame(d, d, NAMES)
    assert [found[k] for k in FRAME_NUMBERS] == pytest.approx([0] * len(FRAME_NUMBERS))
