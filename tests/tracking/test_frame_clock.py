"Time by the frames: gaps, low rates and clocks that are set, for the clock and for all trackers."

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import DataError, Detections, Frame
from cv_pipeline.tracking.frame_clock import FrameClock
from cv_pipeline.tracking.trackers import TRACKERS, make_tracker

NOON, BLANK = datetime(2026, 6, 1, 12, tzinfo=timezone.utc), np.zeros((480, 640, 3), np.uint8)


def frame(number, seconds, source="cam"):
    return Frame(BLANK, source, number, NOON + timedelta(seconds=float(seconds)))


def ids(moments, name="bytetrack", **settings):
    "The ids given to one box that stays in its place, at (frame number, seconds)."
    tracker = make_tracker(name, frame_rate=25, **settings)
    return [
        int(tracker.update(Detections([[250, 250, 350, 330]], [0.9]), frame(*m)).tracker_id[0])
        for m in moments
    ]


SECOND = [(k, k / 25) for k in range(25)]


@pytest.mark.parametrize("name", sorted(TRACKERS))
@pytest.mark.parametrize("away", [5, 60, 600, 3600, 86400])
def test_after_a_gap_the_same_place_is_another_object(name, away):
    got = ids([*SECOND, *((25 + k, 1 + away + k / 25) for k in range(25))], name)
    assert set(got) == {-1, 0, 1} and got[24] == 0 and got[-1] == 1
    assert max(got[:25]) == 0 and min(got[25:]) == -1


@pytest.mark.parametrize("name", sorted(TRACKERS))
@pytest.mark.parametrize(
    "moments",
    [
        [(k, 5.0 * k) for k in range(40)],  # 0.2 frames a second
        [*SECOND, *((25 + k, 1 + 0.5 + k / 25) for k in range(25))],  # away for less than the buffer
        [*SECOND, *((25 + k, 1 - 86400 + k / 25) for k in range(25))],  # set back by a day
        [*SECOND, *((25 + 250 * k, 1 + 10.0 * k) for k in range(9))],  # 25 a second came, few were looked at
        [(k, 600.0 * k) for k in range(30)],  # photos of a day
    ],
)
def test_low_rates_short_gaps_and_clocks_set_back_keep_the_id(name, moments):
    got = ids(moments, name)
    assert set(got) - {-1} == {0} and got[-1] == 0 and got.count(-1) <= 4


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_who_is_lost_longer_than_the_buffer_is_not_found_by_one_long_step(name):
    """Lost since twenty frames, then a step of twenty more, within the buffer of thirty by itself: too old
    together."""
    tracker = make_tracker(name, frame_rate=25, lost_track_buffer=30)
    here, nobody = Detections([[250, 250, 350, 330]], [0.9]), Detections.empty()
    for k in range(10):
        tracker.update(here, frame(k, k / 25))
    for k in range(10, 30):
        tracker.update(nobody, frame(k, k / 25))
    assert tracker.update(here, frame(30, 49 / 25)).tracker_id.tolist() == [-1]


@settings(deadline=None, max_examples=200)
@given(
    rate=st.floats(0.001, 60),
    jitter=st.floats(0, 0.9),
    away=st.floats(3.5, 1e5),
    limit=st.floats(0.1, 10),
    seed=st.integers(0, 10**6),
)
def test_only_time_that_the_rate_does_not_explain_is_a_gap(rate, jitter, away, limit, seed):
    "Any rate, uneven by up to 90 % of a step; a gap is a step that is neither usual nor short."
    times = np.arange(12) / rate + np.random.default_rng(seed).uniform(0, jitter, 12) / rate
    clock, gaps = FrameClock(nominal=1 / rate), []
    for number, seconds in enumerate(times):
        clock.step(frame(number, seconds))
        gaps.append(clock.gap(max(limit, 2 / rate)))
    assert not any(gaps)
    seconds = times[-1] + max(away / rate * 3, limit * 3)
    clock.step(frame(12, seconds))
    assert clock.gap(limit) and clock.too_old(np.array([clock.before]), limit).all()
    assert not clock.too_old(np.array([clock.now]), limit).any()


def test_a_lower_rate_is_believed_after_four_frames():
    clock, gaps = FrameClock(nominal=0.04), []
    for number, seconds in [*SECOND, *((25 + k, 1 + 10.0 * k) for k in range(1, 9))]:
        clock.step(frame(number, seconds))
        gaps.append(clock.gap(2.0))
    assert gaps == [False] * 25 + [True] * 4 + [False] * 4


def test_steps_back_are_counted_and_worth_a_usual_one():
    clock = FrameClock(rate=25)
    steps = [clock.step(frame(k, s)) for k, s in ((0, 0), (1, 0.08), (2, 0.16), (4, 0.1), (5, 0.18))]
    assert np.allclose(steps, [0, 2, 2, 4, 2]) and clock.jumps == 1 and clock.now == pytest.approx(10)


@pytest.mark.parametrize("after", [(3, "cam"), (2, "cam"), (4, "other")])
def test_frames_out_of_order_or_of_another_camera_are_refused_without_a_trace(after):
    clock = FrameClock()
    clock.step(frame(3, 1))
    with pytest.raises(DataError, match="one tracker per camera"):
        clock.step(frame(after[0], 2, after[1]))
    assert clock.step(frame(4, 3)) == pytest.approx(2)
