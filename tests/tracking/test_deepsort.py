"""DeepSORT: who comes back is recognised, by looks, within the gate."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import BackendError, ConfigError, DataError, Detections, Frame
from cv_pipeline.tracking.deepsort import (
    CLEAR_OVERLAP,
    DeepSortTracker,
    clear_looks,
    doubt_distance,
    likeness,
)
from cv_pipeline.tracking.sort import SortTracker

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
RED, BLUE, GREEN = (40, 40, 200), (200, 60, 40), (60, 180, 60)


def painted(i, *things, seconds=None):
    "A frame with things (x, y, colour) of 40 × 40 pixels, and its detections."
    image = np.full((240, 640, 3), 110, np.uint8)
    centres = np.array([thing[:2] for thing in things], float).reshape(-1, 2)
    for x, y, colour in things:
        image[int(y) - 20 : int(y) + 20, int(x) - 20 : int(x) + 20] = colour
    frame = Frame(image, "cam", i, NOON + timedelta(seconds=i / 30 if seconds is None else seconds))
    return Detections(np.hstack([centres - 20, centres + 20]), np.full(len(things), 0.9)), frame


def ids(tracker, scenes):
    return [tracker.update(*painted(i, *scene)).tracker_id.tolist() for i, scene in enumerate(scenes)]


def test_who_comes_back_elsewhere_is_recognised():
    "Two went behind something and came out where overlap finds nobody, in changed places."
    scenes = (
        [[(100 + 3 * i, 80, RED), (100 + 3 * i, 160, BLUE)] for i in range(15)]
        + [[]] * 15
        + [[(230, 80, BLUE), (230, 160, RED)]] * 4
    )
    assert ids(DeepSortTracker(motion_gate=20), scenes)[-1] == [1, 0]
    assert not {0, 1} <= set(ids(SortTracker(lost_track_buffer=90), scenes)[-1])


def test_a_stranger_is_not_recognised():
    scenes = [[(100, 80, RED)]] * 10 + [[]] * 5 + [[(150, 80, GREEN)]] * 4
    assert ids(DeepSortTracker(), scenes)[-1] == [1]


def test_the_gate_holds_back_twins_far_away():
    scenes = [[(100, 80, RED)]] * 10 + [[]] * 2 + [[(560, 80, RED)]] * 4
    assert ids(DeepSortTracker(), scenes)[-1] == [1]
    assert ids(DeepSortTracker(motion_gate=1e5), scenes)[-1] == [0]


def test_the_buffer_ends_memory():
    scenes = [[(100, 80, RED)]] * 10 + [[]] * 25 + [[(150, 80, RED)]] * 4
    assert ids(DeepSortTracker(lost_track_buffer=40), scenes)[-1] == [0]
    assert ids(DeepSortTracker(lost_track_buffer=20), scenes)[-1] == [1]


def test_class_aware_recognition():
    tracker, found = DeepSortTracker(class_aware=True, minimum_consecutive_frames=1), []
    for i, scene in enumerate([[(100, 80, RED)]] * 10 + [[]] * 5 + [[(150, 80, RED)]] * 2):
        detections, frame = painted(i, *scene)
        detections.class_id[:] = int(i > 12)
        found.append(tracker.update(detections, frame).tracker_id.tolist())
    assert found[-1] == [1]


@settings(max_examples=40, deadline=None)
@given(r=st.integers(0, 5), c=st.integers(0, 5), kept=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_likeness_is_the_best_look(r, c, kept, seed):
    rng = np.random.default_rng(seed)
    gallery, looks = (
        rng.normal(0, 1, (r, kept, 7)).astype(np.float32),
        rng.normal(0, 1, (c, 7)).astype(np.float32),
    )
    ours = likeness(gallery, looks)
    assert ours.shape == (r, c)
    for i in range(r):
        for j in range(c):
            assert ours[i, j] == pytest.approx(max(float(look @ looks[j]) for look in gallery[i]), abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_distance_is_mahalanobis(seed):
    rng, tracker = np.random.default_rng(seed), SortTracker(minimum_consecutive_frames=1)
    centres = rng.uniform(0, 500, (4, 2))
    frame = lambda i: Frame(np.zeros((2, 2, 3), np.uint8), "cam", i, NOON + timedelta(seconds=i / 30))
    for i in range(3):
        tracker.update(Detections(np.hstack([centres - 20, centres + 30])), frame(i))
    tracker.update(Detections.empty(), frame(3))
    seen = np.hstack([rng.uniform(0, 500, (3, 2)), rng.uniform(20, 60, (3, 2))]).astype(np.float32)
    ours, boxes = doubt_distance(tracker, np.array([2, 0]), seen), tracker._boxes
    for a, row in enumerate((2, 0)):
        w, h = boxes.state[row, 2:4].astype(float)
        S = np.diag(
            (tracker.detector_error * np.array([w, h, w, h])) ** 2 * (float(boxes.covariance[row, 0]) + 1)
        )
        for b in range(3):
            d = seen[b].astype(float) - boxes.state[row, :4]
            assert ours[a, b] == pytest.approx(d @ np.linalg.inv(S) @ d, rel=1e-3)


def test_galleries_take_clear_looks_only_and_forget_the_oldest():
    boxes = Detections(
        [[0, 0, 10, 10], [8, 0, 18, 10], [5, 0, 15, 10], [50, 0, 60, 10], [80, 0, 90, 10]],
        [0.9, 0.9, 0.9, 0.9, 0.3],
    )
    assert (
        CLEAR_OVERLAP == 0.1
        and clear_looks(boxes).tolist() == [False, False, False, True, False]
        and clear_looks(Detections.empty()).shape == (0,)
    )
    tracker = DeepSortTracker(gallery_size=3)
    for i in range(7):
        tracker.update(*painted(i, (100, 80, RED if i < 4 else BLUE)))
    assert tracker._book.looks.tolist() == [7]
    red, blue = (
        tracker.embedder(painted(0, (100, 80, colour))[1].image, [[80, 60, 120, 100]])[0]
        for colour in (RED, BLUE)
    )
    assert (tracker._book.gallery[0] @ blue > 0.99).all() and (tracker._book.gallery[0] @ red < 0.5).all()


class Embeds:
    dim = 2

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, image, xyxy):
        return self.answer(len(xyxy))


def test_broken_embedders_leave_no_trace():
    def broken(n):
        raise BackendError("the embedding call failed")

    good = lambda n: np.tile(np.float32([1, 0]), (n, 1))
    embedder = Embeds(good)
    tracker = DeepSortTracker(embedder, minimum_consecutive_frames=1)
    tracker.update(*painted(0, (100, 80, RED)))
    for answer, error in (
        (broken, BackendError),
        (lambda n: np.ones((n, 3)), DataError),
        (lambda n: np.full((n, 2), np.nan), DataError),
    ):
        embedder.answer = answer
        with pytest.raises(error):
            tracker.update(*painted(1, (101, 80, RED)))
    embedder.answer = good
    assert tracker.update(*painted(1, (101, 80, RED))).tracker_id.tolist() == [0]
    with pytest.raises(ConfigError, match="is not an Embedder"):
        DeepSortTracker("osnet")
    assert "embedder" in vars(DeepSortTracker())


def test_frames_without_pictures_leave_overlap_alone():
    blank, tracker, plain = np.zeros((2, 2, 3), np.uint8), DeepSortTracker(), SortTracker()
    for i in range(20):
        found, frame = painted(i, (100 + 3 * i, 80, RED), (400, 150, BLUE))
        frame = Frame(blank, "cam", i, frame.captured_at)
        assert np.array_equal(tracker.update(found, frame).tracker_id, plain.update(found, frame).tracker_id)
