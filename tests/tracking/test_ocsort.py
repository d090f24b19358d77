"""OC-SORT: re-living, direction, second chance, each against its definition."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import Detections, Frame
from cv_pipeline.tracking.ocsort import (
    MOST_VIRTUAL,
    OCSortTracker,
    SteadyFilter,
    direction_agreement,
    reference,
    relive,
)
from cv_pipeline.tracking.sort import SortTracker

NOON, BLANK = datetime(2026, 6, 1, 12, tzinfo=timezone.utc), np.zeros((2, 2, 3), np.uint8)


def at(i, seconds=None):
    return Frame(BLANK, "cam", i, NOON + timedelta(seconds=i / 30 if seconds is None else float(seconds)))


def boxes(*centres, side=40, sure=0.9):
    c = np.array(centres, float).reshape(-1, 2)
    return Detections(np.hstack([c - side / 2, c + side / 2]), np.full(len(c), sure))


def ids(tracker, frames):
    return [tracker.update(d, at(i)).tracker_id.tolist() for i, d in enumerate(frames)]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 6), m=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_direction_is_its_definition(n, m, seed):
    rng = np.random.default_rng(seed)
    origin, centres, turn = (
        rng.uniform(0, 100, (n, 2)),
        rng.uniform(0, 100, (m, 2)),
        rng.uniform(0, 2 * np.pi, n),
    )
    heading = np.stack([np.cos(turn), np.sin(turn)], 1)
    ours = direction_agreement(origin, heading, centres)
    for i in range(n):
        for j in range(m):
            way = centres[j] - origin[i]
            off = np.abs((np.arctan2(way[1], way[0]) - turn[i] + np.pi) % (2 * np.pi) - np.pi)
            assert ours[i, j] == pytest.approx(0.5 - off / np.pi, abs=2e-3)
    assert (direction_agreement(origin, np.zeros((n, 2)), centres) == 0).all(), "no heading, no say"


@settings(max_examples=60, deadline=None)
@given(gaps=st.lists(st.floats(0.3, 6), min_size=1, max_size=6), window=st.integers(1, 5))
def test_reference_is_the_oldest_within_the_window_else_the_last(gaps, window):
    when = -np.concatenate([[0.5], 0.5 + np.cumsum(gaps)])  # newest first; now is 0
    past = np.stack([np.arange(len(when)), np.arange(len(when))], 1).astype(float)[None]
    within = [k for k in range(len(when)) if -when[k] <= window + 0.01]
    assert reference(past, when[None], 0.0, window)[0, 0] == (within[-1] if within else 0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 5))
def test_reliving_all_at_once_is_one_by_one(seed, k):
    rng = np.random.default_rng(seed)
    filter = SteadyFilter()
    filter.start(rng.uniform(20, 200, (k, 4)).astype(np.float32))
    for _ in range(5):
        filter.predict(1.0)
        filter.correct(np.arange(k), filter.state[:, :4] + rng.normal(0, 2, (k, 4)).astype(np.float32))
    before, now = (
        filter.state[:, :4].copy(),
        filter.state[:, :4] + rng.normal(0, 30, (k, 4)).astype(np.float32),
    )
    gap = rng.uniform(1.2, 40, k)
    together = relive(filter.state, filter.covariance, before, now, gap)
    for row in range(k):
        one, steps = SteadyFilter(), int(np.clip(np.ceil(gap[row]), 1, MOST_VIRTUAL))
        one.state, one.covariance = filter.state[[row]].copy(), filter.covariance[[row]].copy()
        for i in range(1, steps + 1):
            one.predict(gap[row] / steps)
            if i < steps:
                one.correct(
                    np.array([0]), (before[[row]] + (now[[row]] - before[[row]]) * np.float32(i / steps))
                )
        assert np.allclose(together.state[row], one.state[0], atol=0.05, rtol=1e-3) and np.allclose(
            together.covariance[row], one.covariance[0], rtol=1e-2
        )


def test_second_chance_where_it_was_last_seen():
    "It walked behind a pillar and waited there: the prediction has gone on, the last place has not."
    walk = (
        [boxes((100 + 6.0 * i, 100)) for i in range(10)] + [Detections.empty()] * 12 + [boxes((158, 100))] * 3
    )
    assert ids(OCSortTracker(), walk)[-3:] == [[0]] * 3
    assert ids(SortTracker(), walk)[-1] != [0]


def test_after_a_stop_it_does_not_overshoot():
    tracker = OCSortTracker()
    for i in range(20):
        tracker.update(boxes((100 + 6.0 * i, 100)), at(i))
    for i in range(20, 40):
        tracker.update(Detections.empty(), at(i))
    tracker.update(boxes((225, 100)), at(40))
    assert abs(tracker.tracks.velocity[0, 0]) < 60, (
        "it stood still in hiding: 11 pixels in 20 frames are 16 pixels a second, not 180"
    )


def test_direction_decides_between_two_that_fit_alike():
    "Two tracks meet; each box fits both predictions, only the way they came tells them apart."
    frames = [boxes((100 + 5.0 * i, 100), (200 - 5.0 * i, 104)) for i in range(22)]
    kept = ids(OCSortTracker(direction_consistency_weight=1.0, minimum_consecutive_frames=1), frames)
    assert kept == [[0, 1]] * 22


def test_doubtful_boxes_take_no_part():
    tracker = OCSortTracker(minimum_consecutive_frames=1)
    assert ids(tracker, [boxes((100, 100)), boxes((101, 100), sure=0.5), boxes((102, 100))]) == [
        [0],
        [-1],
        [0],
    ]
    assert tracker.tracks.hits.tolist() == [2]


@pytest.mark.parametrize("gap", [0.05, 1.0, 60.0, 1e7])
def test_gaps_of_any_length_leave_finite_states(gap):
    tracker = OCSortTracker(minimum_consecutive_frames=1)
    for i in range(5):
        tracker.update(boxes((100 + 3 * i, 100)), at(i))
    tracker.update(Detections.empty(), at(5))
    tracker.update(boxes((118, 100)), at(6, 5 / 30 + gap))
    assert all(np.isfinite(np.asarray(column, float)).all() for column in tracker.tracks)
