"""ByteTrack: what doubtful boxes may and may not do."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import Detections, Frame
from cv_pipeline.synthetic.crowds import crowd, id_f1
from cv_pipeline.tracking.bytetrack import ByteTrackTracker
from cv_pipeline.tracking.sort import SortTracker

NOON, BLANK = datetime(2026, 6, 1, 12, tzinfo=timezone.utc), np.zeros((2, 2, 3), np.uint8)


def at(i):
    return Frame(BLANK, "cam", i, NOON + timedelta(seconds=i / 30))


def seen(*rows):
    "Rows of (x, y, confidence), 40 × 40 boxes."
    rows = np.array(rows, float).reshape(-1, 3)
    return Detections(np.hstack([rows[:, :2] - 20, rows[:, :2] + 20]), rows[:, 2])


def ids(tracker, frames):
    return [tracker.update(d, at(i)).tracker_id.tolist() for i, d in enumerate(frames)]


@settings(max_examples=40, deadline=None)
@given(level=st.floats(0.05, 0.59), frames=st.integers(1, 12))
def test_doubt_starts_nothing_however_long_it_lasts(level, frames):
    tracker = ByteTrackTracker(minimum_consecutive_frames=1, track_activation_threshold=0.1)
    assert ids(tracker, [seen((100, 100, level))] * frames) == [[-1]] * frames
    assert tracker.confirmed == 0 and len(tracker.tracks.hits) == 0


def test_doubt_continues_a_track():
    tracker = ByteTrackTracker()
    assert ids(
        tracker, [seen((100, 100, 0.9)), seen((102, 100, 0.9)), seen((104, 100, 0.1)), seen((106, 100, 0.9))]
    ) == [[-1], [0], [0], [0]]


def test_confident_boxes_choose_first():
    "The doubtful box fits better; the confident one is served first, and the doubtful one finds nobody."
    tracker = ByteTrackTracker(minimum_consecutive_frames=1)
    assert ids(tracker, [seen((100, 100, 0.9)), seen((100, 100, 0.3), (110, 100, 0.9))]) == [[0], [-1, 0]]


def test_a_doubtful_box_needs_a_better_overlap():
    for far, expected in ((15, 0), (28, -1)):  # overlap 0.45 and 0.18
        tracker = ByteTrackTracker(minimum_consecutive_frames=1)
        assert ids(tracker, [seen((100, 100, 0.9)), seen((100 + far, 100, 0.3))])[1] == [expected]
    tracker = ByteTrackTracker(minimum_consecutive_frames=1)
    assert ids(tracker, [seen((100, 100, 0.9)), seen((128, 100, 0.9))])[1] == [0]  # a sure box may


def test_a_lost_track_needs_a_better_overlap():
    for gap, expected in ((0, 0), (5, 1)):
        tracker = ByteTrackTracker(minimum_consecutive_frames=1)
        frames = [seen((100, 100, 0.9))] * 10 + [seen()] * gap + [seen((128, 100, 0.9))]
        assert ids(tracker, frames)[-1] == [expected]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_where_nothing_is_in_doubt_it_is_sort(seed):
    "High confidences, the same overlap for all: the rounds have nothing to do, ids are SORT's."
    rng = np.random.default_rng(seed)
    place, speed = rng.uniform(0, 900, (10, 2)), rng.normal(0, 3, (10, 2))
    one, two = (
        ByteTrackTracker(
            0.5, minimum_iou_threshold=0.3, minimum_consecutive_frames=3, high_conf_det_threshold=0.5
        ),
        SortTracker(0.5),
    )
    for i in range(40):
        place = place + speed
        rows = np.column_stack([place, np.full(10, 0.9)])[rng.random(10) > 0.1]
        assert np.array_equal(
            one.update(seen(*rows), at(i)).tracker_id, two.update(seen(*rows), at(i)).tracker_id
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["line-heap", "line-hands", "line-shaky"])
def test_doubtful_boxes_are_worth_having(name):
    belt = crowd(name, 12)

    def score(at_least):
        tracker = ByteTrackTracker(0.5, high_conf_det_threshold=0.5, frame_rate=belt.fps)
        return id_f1(belt, [tracker.update(d[d.confidence >= at_least], frame) for frame, d in belt])[0]

    assert score(0.0) > score(0.5) + 0.01
