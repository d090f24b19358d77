"""What every tracker promises, whichever it is; and that none is worse than the packages that people use."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError, DataError, Detections, Frame, Tracker
from cv_pipeline.evaluation.tracking_scores import evaluate_tracking, tracks_of
from cv_pipeline.synthetic.crowds import CROWDS, Sequence, crowd, id_f1, mot_sequence
from cv_pipeline.tracking.trackers import TRACKERS, make_tracker, tracker_settings
from tests.helpers.services import require

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
BLANK = np.zeros((2, 2, 3), np.uint8)
NAMES = sorted(TRACKERS)
EVERY = pytest.mark.parametrize("name", NAMES)


def at(i, seconds=None, source="cam", image=BLANK):
    return Frame(image, source, i, NOON + timedelta(seconds=i / 30 if seconds is None else float(seconds)))


def boxes(*centres, side=40, sure=0.9):
    c = np.array(centres, float).reshape(-1, 2)
    return Detections(np.hstack([c - side / 2, c + side / 2]), np.full(len(c), sure))


def make(name, **more):
    "Any tracker with the same few settings."
    return make_tracker(
        name,
        **{
            "track_activation_threshold": 0.5,
            "minimum_consecutive_frames": 3,
            "lost_track_buffer": 30,
            "minimum_iou_threshold": 0.3,
        }
        | more,
    )


def wander(seed, n=8, frames=40, miss=0.1):
    "Detections of things that wander, with random confidences; true ids ride along."
    rng = np.random.default_rng(seed)
    place, speed = rng.uniform(0, 400, (n, 2)), rng.normal(0, 4, (n, 2))
    for _ in range(frames):
        place = place + speed + rng.normal(0, 1, (n, 2))
        seen = rng.random(n) > miss
        found = boxes(*place[seen])
        yield Detections(
            found.xyxy,
            rng.uniform(0.3, 1, len(found)),
            rng.integers(0, 2, len(found)),
            None,
            {"true_id": np.flatnonzero(seen)},
        )


def ids_of(tracker, found):
    return [tracker.update(d, at(i)).tracker_id.tolist() for i, d in enumerate(found)]


# --- the contract


@EVERY
def test_it_is_a_tracker_and_starts_at_zero(name):
    for _ in range(2):  # nothing is shared between instances
        tracker = make(name)
        assert isinstance(tracker, Tracker) and tracker.confirmed == 0
        assert (
            ids_of(tracker, [boxes((100 + 2 * i, 100), (400, 300)) for i in range(5)])
            == [[-1, -1]] * 2 + [[0, 1]] * 3
        )
        assert tracker.confirmed == 2


@EVERY
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), need=st.integers(1, 4), miss=st.floats(0, 0.5))
def test_outputs_are_the_inputs_with_sane_ids(name, seed, need, miss):
    tracker, ever = make(name, minimum_consecutive_frames=need), set()
    for i, found in enumerate(wander(seed, miss=miss)):
        result = tracker.update(found, at(i))
        assert (
            np.array_equal(result.xyxy, found.xyxy)
            and np.array_equal(result.confidence, found.confidence)
            and np.array_equal(result.class_id, found.class_id)
        )
        assert (
            result.data["true_id"] is found.data["true_id"]
            and result.tracker_id.dtype == np.int32
            and (found.tracker_id == -1).all()
        )
        given_ids = result.tracker_id[result.tracker_id >= 0].tolist()
        assert len(set(given_ids)) == len(given_ids), "one id twice in a frame"
        assert i + 1 >= need or not given_ids
        ever |= set(given_ids)
    assert ever == set(range(tracker.confirmed)), "ids count from 0 without holes, and -1 is not counted"


@EVERY
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
@pytest.mark.slow
def test_the_order_of_detections_only_renames(name, seed):
    rng, one, other, renamed = np.random.default_rng(seed), make(name), make(name), {}
    for i, found in enumerate(wander(seed)):
        order = rng.permutation(len(found))
        a, b = one.update(found, at(i)).tracker_id[order], other.update(found[order], at(i)).tracker_id
        for x, y in zip(a.tolist(), b.tolist()):
            assert (x < 0) == (y < 0) and renamed.setdefault(x, y) == y
    assert one.confirmed == other.confirmed and len(set(renamed.values())) == len(renamed)


@EVERY
def test_two_cameras_do_not_meet_and_reset_is_new(name):
    left, right = list(wander(1)), list(wander(2))
    alone = ids_of(make(name), left), ids_of(make(name), right)
    a, b, together = make(name), make(name), ([], [])
    for i, (x, y) in enumerate(zip(left, right)):
        together[0].append(a.update(x, at(i)).tracker_id.tolist())
        together[1].append(b.update(y, at(i, source="other")).tracker_id.tolist())
    assert together == alone
    a.reset()
    assert a.confirmed == 0 and len(a.tracks.hits) == 0 and ids_of(a, right) == alone[1]


@EVERY
def test_time_is_real(name):
    rng = np.random.default_rng(0)
    moments = np.cumsum(rng.choice([1, 2, 9], 60))
    moments[:6] = range(6)
    tracker, counting = make(name), make(name)
    ids = [
        tracker.update(boxes((6.0 * t, 100)), at(n, t / 30)).tracker_id.tolist()
        for n, t in enumerate(moments)
    ]
    assert ids[2:] == [[0]] * 58
    for n, t in enumerate(moments):
        counting.update(boxes((6.0 * t, 100)), at(n, n / 30))
    assert counting.confirmed > 1, "a tracker that counts calls should fail here, or this test shows nothing"


@EVERY
def test_a_lost_track_returns_within_the_buffer_and_not_after_it(name):
    for gap, expected in ((9, [0]), (12, [-1])):
        frames = [boxes((100 + 3 * i, 100)) for i in range(40)]
        for i in range(8, 8 + gap):
            frames[i] = Detections.empty()
        assert ids_of(make(name, lost_track_buffer=10), frames)[8 + gap] == expected


@EVERY
def test_class_aware(name):
    flips = [boxes((50, 50)) for _ in range(6)]
    for i, found in enumerate(flips):
        found.class_id[:] = i % 2
    assert ids_of(make(name, minimum_consecutive_frames=1), flips) == [[0]] * 6
    assert ids_of(make(name, minimum_consecutive_frames=1, class_aware=True), flips) == [
        [0],
        [1],
        [0],
        [1],
        [0],
        [1],
    ]


@EVERY
def test_bad_boxes_and_frames_leave_no_trace(name):
    tracker = make(name, minimum_consecutive_frames=1)
    tracker.update(boxes((50, 50)), at(5))
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(DataError, match="NaN or infinite.*row 1.*cam frame 6"):
            tracker.update(Detections([[10, 10, 20, 20], [bad, 0, 5, 5]]), at(6))
    with pytest.raises(DataError, match="inverted"):
        tracker.update(Detections([[20, 10, 10, 20]]), at(6))
    for frame, message in (
        (at(5), "frame 5 of 'cam' after frame 5"),
        (at(3), "frame 3"),
        (at(6, source="other"), "'other'"),
    ):
        with pytest.raises(DataError, match=message):
            tracker.update(boxes((50, 50)), frame)
    assert tracker.update(boxes((51, 50)), at(6)).tracker_id.tolist() == [0]
    assert tracker.update(Detections.empty(), at(7)).tracker_id.shape == (0,)
    assert tracker.update(boxes((51, 50)), at(8, 1e9)).tracker_id.tolist() in ([0], [1])  # thirty years later
    state = tracker.tracks
    assert all(np.isfinite(np.asarray(column, float)).all() for column in state)


@EVERY
def test_clock_set_back_counts_as_one_frame(name):
    tracker = make(name, minimum_consecutive_frames=1)
    seconds = [0, 1 / 30, 2 / 30, -3600, -3600 + 1 / 30, -3600 + 1 / 30, -3600 + 2 / 30]
    assert [
        tracker.update(boxes((50 + 4 * i, 50)), at(i, s)).tracker_id.tolist() for i, s in enumerate(seconds)
    ] == [[0]] * 7
    assert tracker.clock_jumps == 2


@EVERY
def test_memory_does_not_grow_with_time(name):
    tracker, rng = make(name, lost_track_buffer=5, minimum_consecutive_frames=1), np.random.default_rng(0)
    for i in range(1000):
        tracker.update(boxes(*rng.uniform(0, 3000, (6, 2))), at(i))
    assert len(tracker.tracks.hits) < 60
    assert {len(column) for column in vars(tracker._book).values()} == {len(tracker._boxes)}


# --- what others may read


@EVERY
def test_track_states(name):
    tracker = make(name, frame_rate=30)
    assert tracker.tracks.xyxy.shape == (0, 4) and tracker.tracks.velocity.shape == (0, 2)
    for i in range(40):
        tracker.update(
            boxes((100 + 5.0 * i, 100), (300, 400)) if i != 20 else boxes((200, 100), (300, 400), (600, 600)),
            at(i),
        )
    state = tracker.tracks
    assert (
        state.tracker_id.tolist() == [0, 1]
        and state.confirmed.all()
        and state.hits.tolist() == [40, 40]
        and (state.since_seen_s == 0).all()
    )
    assert np.allclose(state.velocity, [[150, 0], [0, 0]], atol=3), "pixels a second"
    assert np.allclose(state.xyxy, boxes((295, 100), (300, 400)).xyxy, atol=2)
    before = state.uncertainty
    for i in range(40, 46):
        tracker.update(boxes((300, 400)), at(i))
    later = tracker.tracks
    assert (
        np.allclose(later.since_seen_s, [0.2, 0])
        and later.uncertainty[0] > 2 * before[0]
        and later.uncertainty[1] == pytest.approx(before[1], rel=0.1)
    )
    later.hits[:] = 0
    assert tracker.tracks.hits.tolist() == [40, 46], "a copy, not the tracker's own arrays"


@pytest.mark.slow
def test_uncertainty_is_of_the_right_size():
    """The error of predictions on a belt, in units of the uncertainty that was told: it may be careful, not
    careless."""
    tracker, belt, ratios = make_tracker("sort", 25), crowd("line-heap", 8), []
    told = {}
    for (frame, found), truth in zip(belt, belt.truth):
        real = dict(zip(truth.tracker_id.tolist(), (truth.xyxy[:, :2] + truth.xyxy[:, 2:]) / 2))
        result = tracker.update(found, frame)
        for true, given_id in zip(result.data["true_id"].tolist(), result.tracker_id.tolist()):
            if given_id in told and true in real:
                ratios.append(np.abs(told[given_id][0] - real[true]).max() / told[given_id][1])
        s = tracker.tracks
        ahead = (s.xyxy[:, :2] + s.xyxy[:, 2:]) / 2 + s.velocity / 25
        told = {
            i: (place, sd)
            for i, place, sd, ok in zip(s.tracker_id.tolist(), ahead, s.uncertainty, s.confirmed)
            if ok
        }
    assert len(ratios) > 1000 and 0.2 < np.median(ratios) < 1.5 and np.mean(np.array(ratios) < 3) > 0.95


# --- by name


def test_names_and_settings_are_checked():
    assert list(TRACKERS) == ["sort", "bytetrack", "ocsort", "deepsort"]
    with pytest.raises(ConfigError, match="did you mean 'ocsort'"):
        make_tracker("OC-SORT")
    with pytest.raises(ConfigError) as caught:
        make_tracker("sort", delta_t=3, gallery_size=1)
    assert len(caught.value.problems) == 2
    assert make_tracker("bytetrack", 12.5, lost_track_buffer=None).lost_track_buffer == 30
    assert make_tracker("ocsort", 12.5).frame_rate == 12.5
    for name in TRACKERS:
        assert {
            "track_activation_threshold",
            "lost_track_buffer",
            "minimum_iou_threshold",
            "minimum_consecutive_frames",
            "frame_rate",
            "class_aware",
        } <= set(tracker_settings(name))


@pytest.mark.real
def test_cameras_share_the_network_and_nothing_else(real_data):
    path = real_data / "models/osnet_x0_25_msmt17.onnx"
    one, two = make_tracker("deepsort", embedder=str(path)), make_tracker("deepsort", embedder=path)
    assert one.embedder is two.embedder and one.embedder.dim == 512
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (240, 320, 3), np.uint8)
    for i in range(4):
        one.update(boxes((60 + 2 * i, 60), (200, 120)), at(i, image=picture))
    assert one.confirmed == 2 and two.confirmed == 0 and len(two.tracks.hits) == 0


@EVERY
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_wrong_setting_is_named(name, data):
    numbers = [
        key
        for key, value in tracker_settings(name).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    wrong = data.draw(
        st.dictionaries(
            st.sampled_from(numbers),
            st.sampled_from([-1, -0.5, np.nan, "3", True, float("-inf")]),
            min_size=1,
        )
    )
    with pytest.raises(ConfigError) as caught:
        make_tracker(name, **wrong)
    assert sorted(p.split(":")[0] for p in caught.value.problems) == sorted(wrong)


# --- crowds


@pytest.fixture(scope="module")
def belts():
    return {name: crowd(name, 8, images=True) for name in CROWDS}


SUITED = {
    "sort": {},
    "deepsort": {},
    "bytetrack": dict(track_activation_threshold=0.4, high_conf_det_threshold=0.4, minimum_iou_threshold=0.2),
    "ocsort": dict(track_activation_threshold=0.4, high_conf_det_threshold=0.4),
}


def results(tracker, sequence: Sequence):
    return [tracker.update(found, frame) for frame, found in sequence]


@pytest.mark.slow
@EVERY
def test_crowds_keep_their_ids_and_selected_frames_too(name, belts):
    for belt in belts.values():
        f1, switches = id_f1(belt, results(make_tracker(name, belt.fps, **SUITED[name]), belt))
        assert f1 > 0.72 and switches < 60
    some = belts["line-hands"].every(4)
    assert (
        id_f1(
            some, results(make_tracker(name, some.fps, minimum_consecutive_frames=2, **SUITED[name]), some)
        )[0]
        > 0.7
    )


@EVERY
def test_uneven_frames_need_their_real_times(name, belts):
    belt = belts["line-hands"]
    chosen = [i for i in np.cumsum(np.random.default_rng(1).choice([1, 2, 16], len(belt))) if i < len(belt)]
    some = replace(
        belt, **{key: [getattr(belt, key)[i] for i in chosen] for key in ("frames", "found", "truth")}
    )
    calls = replace(
        some,
        frames=[
            Frame(f.image, f.source_id, n, NOON + timedelta(seconds=n / belt.fps))
            for n, f in enumerate(some.frames)
        ],
    )
    real, counted = (
        id_f1(s, results(make_tracker(name, belt.fps, minimum_consecutive_frames=2, **SUITED[name]), s))
        for s in (some, calls)
    )
    assert real[0] > 0.6 and real[0] > counted[0] + 0.05 and real[1] < counted[1]


# --- beside the package `trackers`


def hota_and_idf1(sequence, ids):
    named = [
        Detections(d.xyxy, d.confidence, d.class_id, np.asarray(k, np.int32))
        for d, k in zip(sequence.found, ids)
    ]
    found = evaluate_tracking(tracks_of(sequence.truth), tracks_of(named)).to_dict()
    return found["HOTA"], found["IDF1"]


def peer_ids(kind, sequence):
    peers, sv = (
        require("trackers", reason="the peer package `trackers` is not installed"),
        require("supervision"),
    )
    tracker, ids = getattr(peers, kind)(), []
    for found in sequence.found:
        back = tracker.update(
            sv.Detections(
                found.xyxy,
                confidence=found.confidence,
                class_id=found.class_id.astype(int),
                data={"row": np.arange(len(found))},
            )
        )
        ids.append(np.full(len(found), -1))
        if len(back):
            ids[-1][np.asarray(back.data["row"], int)] = back.tracker_id
    return ids


PAIRS = pytest.mark.parametrize(
    ("name", "kind"),
    [("sort", "SORTTracker"), ("bytetrack", "ByteTrackTracker"), ("ocsort", "OCSORTTracker")],
)


def at_least_as_good(name, kind, sequence):
    ours = hota_and_idf1(
        sequence, [r.tracker_id for r in results(make_tracker(name, sequence.fps), sequence)]
    )
    theirs = hota_and_idf1(sequence, peer_ids(kind, sequence))
    assert ours[0] >= theirs[0] and ours[1] >= theirs[1], (
        f"{name} on {sequence.name}: HOTA, IDF1 ours {ours}, trackers {theirs}"
    )


@pytest.mark.slow
@PAIRS
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("belt", list(CROWDS))
def test_at_least_as_good_as_the_package_on_crowds(name, kind, belt):
    at_least_as_good(name, kind, crowd(belt, 20))


@PAIRS
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
def test_at_least_as_good_as_the_package_on_streets(real_data, name, kind, sequence, truth):
    at_least_as_good(name, kind, mot_sequence(real_data / "mot" / sequence, truth))
