"""SORT: properties, bad input, the reference implementation on real sequences."""

import configparser
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from cv_pipeline.core.types import ConfigError, DataError, Detections, Frame, Tracker, box_iou
from cv_pipeline.tracking.sort import BoxFilter, SortTracker, associate
from tests.helpers.services import require

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
BLANK = np.zeros((2, 2, 3), np.uint8)


def at(i, seconds=None, source="cam"):
    return Frame(BLANK, source, i, NOON + timedelta(seconds=i / 30 if seconds is None else float(seconds)))


def boxes(*centres, side=40):
    c = np.array(centres, float).reshape(-1, 2)
    return Detections(np.hstack([c - side / 2, c + side / 2]))


def run(tracker, frames):
    return [tracker.update(found, at(i)).tracker_id.tolist() for i, found in enumerate(frames)]


finite = st.floats(-500, 500, width=32)
box_arrays = st.lists(
    st.tuples(finite, finite, st.floats(0, 300, width=32), st.floats(0, 300, width=32)), max_size=30
).map(lambda rows: np.array([(x, y, x + w, y + h) for x, y, w, h in rows], np.float32).reshape(-1, 4))


@settings(deadline=None)
@given(box_arrays, box_arrays)
def test_box_iou_is_its_definition(a, b):
    ours = box_iou(a, b)
    low, high = (
        np.maximum(a[:, None, :2], b[None, :, :2]).astype(float),
        np.minimum(a[:, None, 2:], b[None, :, 2:]).astype(float),
    )
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    area = [np.prod((x[:, 2:] - x[:, :2]).astype(float), axis=1) for x in (a, b)]
    union = area[0][:, None] + area[1] - common
    wanted = common / np.maximum(union, 1e-9)  # boxes of less than a billionth of a pixel count as empty
    assert ours.shape == (len(a), len(b)) and np.allclose(ours, wanted, atol=1e-3) and (ours >= 0).all()


@settings(deadline=None, max_examples=200)
@given(
    n=st.integers(0, 25),
    m=st.integers(0, 25),
    minimum=st.floats(0.05, 0.9),
    density=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
def test_associate_finds_the_best_gated_assignment(n, m, minimum, density, seed):
    rng = np.random.default_rng(seed)
    table = (rng.random((n, m)) * (rng.random((n, m)) < density)).astype(np.float32)
    rows, columns = associate(table, minimum)
    assert len(set(rows)) == len(rows) == len(columns) == len(set(columns))
    assert (table[rows, columns] >= np.float32(minimum)).all()
    gated = np.where(table >= minimum, table, 0)
    i, j = linear_sum_assignment(gated, maximize=True)
    assert gated[rows, columns].sum() == pytest.approx(gated[i, j].sum(), abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_filter_equals_matrices(n, seed):
    rng = np.random.default_rng(seed)
    start = rng.uniform(50, 500, (n, 4))
    ours = BoxFilter()
    ours.start(start.astype(np.float32))
    x = np.hstack([start, np.zeros((n, 4))])
    P = np.repeat(np.kron(np.diag([1.0, BoxFilter.first_velocity]), np.eye(4))[None], n, 0)
    H, q, p = np.eye(4, 8), BoxFilter.acceleration, BoxFilter.wander
    for _ in range(30):
        t = rng.choice([0.3, 1, 2, 6])
        F = np.kron([[1, t], [0, 1]], np.eye(4))
        Q = np.kron([[q * t**3 / 3 + p * t, q * t * t / 2], [q * t * t / 2, q * t]], np.eye(4))
        x, P = x @ F.T, F @ P @ F.T + Q
        ours.predict(t)
        rows = np.flatnonzero(rng.random(n) < 0.7)
        seen = x[rows, :4] + rng.normal(0, 5, (len(rows), 4))
        K = P[rows] @ H.T @ np.linalg.inv(H @ P[rows] @ H.T + np.eye(4))
        x[rows] += (K @ (seen - x[rows, :4])[..., None])[..., 0]
        P[rows] = (np.eye(8) - K @ H) @ P[rows]
        ours.correct(rows, seen.astype(np.float32))
    assert np.allclose(ours.state, x, atol=0.05, rtol=1e-3)
    assert (ours.covariance[:, [0, 2]] > 0).all()


# --- ids


def test_ids_start_at_zero_in_each_instance_and_minus_one_is_never_counted():
    for _ in range(2):  # no counter shared between instances
        tracker = SortTracker()
        assert isinstance(tracker, Tracker)
        assert (
            run(tracker, [boxes((100 + 2 * i, 100), (400, 300)) for i in range(5)])
            == [[-1, -1]] * 2 + [[0, 1]] * 3
        )
        assert tracker.confirmed == 2
        tracker.reset()
        assert tracker.confirmed == 0 and run(tracker, [boxes((5, 5))] * 3)[-1] == [0]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), need=st.integers(1, 5), misses=st.floats(0, 0.5))
def test_every_output_is_sane(seed, need, misses):
    rng, tracker, ever = np.random.default_rng(seed), SortTracker(minimum_consecutive_frames=need), set()
    place, speed = rng.uniform(0, 500, (8, 2)), rng.normal(0, 4, (8, 2))
    for i in range(40):
        place += speed
        here = boxes(*place[rng.random(8) > misses])
        here.confidence[:] = rng.uniform(0, 1, len(here))
        result = tracker.update(here, at(i))
        assert np.array_equal(result.xyxy, here.xyxy) and np.array_equal(result.confidence, here.confidence)
        assert (
            result.tracker_id.dtype == np.int32 and (here.tracker_id == -1).all()
        )  # the input is not written to
        ids = result.tracker_id[result.tracker_id >= 0].tolist()
        assert len(set(ids)) == len(ids)
        if i + 1 < need:
            assert not ids
        ever |= set(ids)
    assert ever == set(range(tracker.confirmed))


def test_confirmation_needs_frames_on_end():
    seen, gone = boxes((50, 50)), Detections.empty()
    assert run(SortTracker(), [seen, seen, gone, seen, seen, seen]) == [[-1], [-1], [], [-1], [-1], [0]]
    assert run(SortTracker(minimum_consecutive_frames=1), [seen, seen]) == [[0], [0]]


def test_weak_detections_continue_a_track_but_start_none():
    tracker, weak = SortTracker(track_activation_threshold=0.5), boxes((50, 50))
    weak.confidence[:] = 0.3
    assert run(tracker, [weak] * 4)[-1] == [-1]
    tracker.reset()
    assert run(tracker, [boxes((50, 50))] * 3 + [weak])[-1] == [0]


def test_a_lost_track_comes_back_within_the_buffer_and_not_after_it():
    for gap, expected in ((9, [0]), (12, [-1])):
        tracker = SortTracker(lost_track_buffer=10)
        frames = [boxes((100 + 3 * i, 100)) for i in range(40)]
        for i in range(8, 8 + gap):
            frames[i] = Detections.empty()
        assert run(tracker, frames)[8 + gap] == expected


def test_buffer_is_time_not_calls():
    for step in (1, 5, 10):
        tracker = SortTracker(lost_track_buffer=30, frame_rate=30)
        times = [i * step / 30 for i in range(100)]
        for i in range(5):
            tracker.update(boxes((100, 100)), at(i, times[i]))
        missed = 30 // step
        for i in range(5, 5 + missed):
            tracker.update(Detections.empty(), at(i, times[i]))
        assert len(tracker._book.id) == 1
        tracker.update(Detections.empty(), at(5 + missed, times[5 + missed]))
        assert len(tracker._book.id) == 0


def test_real_time_steps_carry_a_track_over_uneven_gaps():
    rng = np.random.default_rng(0)
    moments = np.cumsum(rng.choice([1, 2, 9], 60))
    moments[:6] = range(6)
    tracker, counting = SortTracker(), SortTracker()
    ours = [
        tracker.update(boxes((6.0 * t, 100)), at(n, t / 30)).tracker_id.tolist()
        for n, t in enumerate(moments)
    ]
    assert ours[2:] == [[0]] * 58
    for n, t in enumerate(moments):
        counting.update(boxes((6.0 * t, 100)), at(n, n / 30))
    assert counting.confirmed > 1  # what a tracker without time does


def test_crossing_objects_keep_their_ids():
    frames = [boxes((5.0 * i, 100), (300 - 5.0 * i, 130)) for i in range(60)]
    assert run(SortTracker(), frames)[2:] == [[0, 1]] * 58


def test_class_aware():
    flips = [boxes((50, 50)) for _ in range(6)]
    for i, found in enumerate(flips):
        found.class_id[:] = i % 2
    assert run(SortTracker(minimum_consecutive_frames=1), flips) == [[0]] * 6
    assert run(SortTracker(minimum_consecutive_frames=1, class_aware=True), flips) == [
        [0],
        [1],
        [0],
        [1],
        [0],
        [1],
    ]


# --- bad input


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_boxes_are_refused_without_a_trace(bad):
    tracker = SortTracker(minimum_consecutive_frames=1)
    tracker.update(boxes((50, 50)), at(0))
    with pytest.raises(DataError, match="NaN or infinite") as caught:
        tracker.update(Detections([[10, 10, 20, 20], [bad, 0, 5, 5]]), at(1))
    assert "cam frame 1" in str(caught.value) and "row 1" in str(caught.value)
    with pytest.raises(DataError, match="inverted"):
        tracker.update(Detections([[20, 10, 10, 20]]), at(1))
    assert tracker.update(boxes((51, 50)), at(1)).tracker_id.tolist() == [0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 1.1])
def test_confidences_that_are_none_are_refused_without_a_trace(bad):
    tracker = SortTracker(minimum_consecutive_frames=1)
    tracker.update(boxes((50, 50)), at(0))
    two = Detections([[30, 30, 70, 70], [200, 0, 250, 50]], [0.9, bad])
    with pytest.raises(DataError, match="confidence outside 0..1") as caught:
        tracker.update(two, at(1))
    assert "cam frame 1" in str(caught.value) and "row 1" in str(caught.value)
    assert tracker.update(boxes((51, 50)), at(1)).tracker_id.tolist() == [0] and tracker.confirmed == 1


def test_frames_out_of_order_or_of_another_camera_are_refused():
    tracker = SortTracker(minimum_consecutive_frames=1)
    tracker.update(boxes((50, 50)), at(5))
    for frame, message in (
        (at(5), "frame 5 of 'cam' after frame 5"),
        (at(3), "frame 3"),
        (at(6, source="other"), "'other'"),
    ):
        with pytest.raises(DataError, match=message):
            tracker.update(boxes((50, 50)), frame)
    assert tracker.update(boxes((50, 50)), at(6)).tracker_id.tolist() == [0]
    tracker.reset()
    assert tracker.update(boxes((50, 50)), at(0, source="other")).tracker_id.tolist() == [0]


def test_clock_set_back_counts_as_one_frame():
    tracker = SortTracker(minimum_consecutive_frames=1)
    seconds = [0, 1 / 30, 2 / 30, -3600, -3600 + 1 / 30, -3600 + 1 / 30, -3600 + 2 / 30]
    ids = [
        tracker.update(boxes((50 + 4 * i, 50)), at(i, s)).tracker_id.tolist() for i, s in enumerate(seconds)
    ]
    assert ids == [[0]] * 7 and tracker.clock_jumps == 2


def test_huge_gaps_empty_frames_and_flat_boxes():
    tracker = SortTracker(minimum_consecutive_frames=1)
    assert tracker.update(Detections.empty(), at(0)).tracker_id.shape == (0,)
    assert tracker.update(Detections([[5, 5, 5, 30], [7, 7, 9, 7]]), at(1)).tracker_id.tolist() == [-1, -1]
    for i in range(2, 6):
        tracker.update(boxes((100 + 5 * i, 100)), at(i))
    assert tracker.update(boxes((130, 100)), at(6, 1e9)).tracker_id.tolist() == [
        1
    ]  # thirty years later: somebody else
    assert np.isfinite(tracker._boxes.state).all() and np.isfinite(tracker._boxes.covariance).all()
    assert tracker.update(boxes((131, 100)), at(7, 1e9 + 1 / 30)).tracker_id.tolist() == [1]


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        SortTracker(
            track_activation_threshold=2,
            lost_track_buffer=-1,
            minimum_iou_threshold=0,
            minimum_consecutive_frames=0,
            frame_rate=0,
        )
    assert len(caught.value.problems) == 5


def test_memory_does_not_grow_with_time():
    tracker, rng = SortTracker(lost_track_buffer=5), np.random.default_rng(0)
    for i in range(2000):
        tracker.update(boxes(*rng.uniform(0, 2000, (6, 2))), at(i))
    assert len(tracker._book.id) < 60 and len(tracker._book.id) == len(tracker._boxes) == len(
        tracker._book.seen
    ) == len(tracker._book.class_id)


# --- the reference, on real sequences


def mot_detections(folder):
    table = np.loadtxt(folder / "det/det.txt", delimiter=",")
    ini = configparser.ConfigParser()
    ini.read(folder / "seqinfo.ini")
    length, rate = int(ini["Sequence"]["seqLength"]), float(ini["Sequence"]["frameRate"])
    found = []
    for i in range(1, length + 1):
        rows = table[table[:, 0] == i]
        found.append(
            Detections(np.hstack([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]]), rows[:, 6].clip(0, 1))
        )
    return found, rate


def scores(truth, result_rows, tmp_path):
    "(HOTA, IDF1, MOTA) by the evaluation of the `trackers` package, a port of TrackEval."
    evaluate = require("trackers.eval.evaluate", reason="the peer package `trackers` is not installed")
    rows = [line.split(",")[:6] for line in truth.read_text().split() if float(line.split(",")[6]) > 0]
    (tmp_path / "gt.txt").write_text("".join(",".join(r) + ",1,1,1\n" for r in rows))
    (tmp_path / "ours.txt").write_text(
        "".join(
            f"{f},{i + 1},{b[0]:.3f},{b[1]:.3f},{b[2] - b[0]:.3f},{b[3] - b[1]:.3f},1,-1,-1,-1\n"
            for f, i, b in result_rows
        )
    )
    found = evaluate.evaluate_mot_sequence(
        tmp_path / "gt.txt", tmp_path / "ours.txt", metrics=["CLEAR", "HOTA", "Identity"]
    )
    return found.HOTA.HOTA, found.Identity.IDF1, found.CLEAR.MOTA


@pytest.mark.real
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("sequence", "truth"),
    [
        ("TUD-Campus", "gt/gt.txt"),
        ("KITTI-13", "gt/gt.kitti_derived.txt"),
        ("KITTI-17", "gt/gt.kitti_derived.txt"),
    ],
)
def test_at_least_as_good_as_the_reference(real_data, tmp_path, sequence, truth):
    peer = require("trackers", reason="the peer package `trackers` is not installed")
    sv = require("supervision")
    found, _ = mot_detections(real_data / "mot" / sequence)
    ours, theirs = SortTracker(), peer.SORTTracker()
    mine = [
        (i + 1, k, b)
        for i, d in enumerate(found)
        for k, b in zip(ours.update(d, at(i)).tracker_id.tolist(), d.xyxy)
        if k >= 0
    ]
    other = []
    for i, d in enumerate(found):
        result = theirs.update(sv.Detections(d.xyxy, confidence=d.confidence, class_id=np.zeros(len(d), int)))
        other += [(i + 1, int(k), b) for k, b in zip(result.tracker_id, d.xyxy) if k >= 0]
    a, b = (
        scores(real_data / "mot" / sequence / truth, mine, tmp_path),
        scores(real_data / "mot" / sequence / truth, other, tmp_path),
    )
    assert a[0] >= b[0] - 1e-9 and a[1] >= b[1] - 1e-9, f"HOTA, IDF1, MOTA: ours {a}, trackers {b}"


@pytest.mark.real
def test_tud_campus_is_sane(real_data):
    found, rate = mot_detections(real_data / "mot/TUD-Campus")
    tracker, ever = SortTracker(frame_rate=rate), set()
    for i, d in enumerate(found):
        ids = tracker.update(d, at(i, i / rate)).tracker_id
        ever |= set(ids[ids >= 0].tolist())
    assert ever == set(range(tracker.confirmed))
    assert 8 <= tracker.confirmed <= 20  # eight people walk by, with occlusions
