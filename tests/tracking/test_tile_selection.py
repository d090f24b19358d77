"""The model sees the tiles that changed or hold a track that needs it, and every tile in its turn."""

from datetime import datetime, timedelta, timezone

import cv2
import numpy as np
import pytest

from cv_pipeline.core.tiles import TileSettings
from cv_pipeline.core.types import Detections, Frame
from cv_pipeline.tracking.sort import SortTracker, TrackStates
from cv_pipeline.tracking.tile_selection import (
    TileSelector,
    cell_boxes,
    cell_picture,
    expected_tiles,
    tile_selector,
)
from tests.helpers.squares import paint, squares_model

START = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
SIZE = (640, 480)


def selector(model, **how):
    return TileSelector(TileSettings(**{"when": "motion", "whole": False, **how}), model)


def frame_of(image, i):
    return Frame(image, "cam", i, START + timedelta(seconds=i / 25))


def played(chosen, model, images, tracker=None, before=lambda i: None):
    "Tiles and detections of each frame, as the pipeline does it."
    for i, image in enumerate(images):
        frame = frame_of(image, i)
        look = chosen.select(frame)
        parts = [model.predict([look.plan.view(image, t)])[0] for t in look.tiles]
        before(i)
        found = chosen.join(look, parts, model.manifest.postprocess)
        if tracker is not None:
            found = tracker.update(found, frame)
        chosen.observe(frame, found, tracker)
        yield look, found


def off(found, box):
    "Pixels by which the nearest box is off at its worst corner."
    return np.abs(found.xyxy - np.array(box, np.float32)).max(axis=1).min(initial=np.inf)


def noisy(image, seed, sigma=4):
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def test_without_motion_only_the_first_frame_and_the_turn_are_computed():
    model = squares_model()
    chosen = selector(model, every=10)
    still = paint([(100, 100, 20, 20)])
    looks = [look for look, _ in played(chosen, model, [noisy(still, i) for i in range(21)])]
    tiles = len(looks[0].plan)
    assert len(looks[0].tiles) == tiles
    assert sum(len(look.tiles) for look in looks[1:]) == 2 * tiles


@pytest.mark.parametrize("every", [1, 3, 7, 20, 50, 97])
def test_no_tile_waits_for_more_than_every_frames(every):
    model = squares_model()
    chosen, rng = selector(model, every=every), np.random.default_rng(every)
    last = waits = None
    for i in range(150):
        x, y = rng.integers(0, 600), rng.integers(0, 440)
        look = chosen.select(frame_of(paint([(x, y, 20, 20)] if rng.random() < 0.3 else []), i))
        if last is None:
            last, waits = np.zeros(len(look.plan), int), np.zeros(len(look.plan), int)
        last[look.tiles] = i
        waits = np.maximum(waits, i - last)
    assert waits.max() <= every - 1  # frames in which it was not computed


@pytest.mark.parametrize("seed", range(5))
def test_a_moving_square_is_never_missed(seed):
    "Any way over all borders, 12 to 30 pixels, on a noisy sensor: found in every frame where it is."
    model, rng = squares_model(), np.random.default_rng(seed)
    side = int(rng.integers(12, 30))
    at, step = rng.uniform(0, 400, 2), rng.uniform(-9, 9, 2)
    boxes, images = [], []
    for i in range(60):
        at = at + step
        bounced = (at < 0) | (at > np.array(SIZE) - side)
        step = np.where(bounced, -step, step)
        at = np.clip(at, 0, np.array(SIZE) - side)
        x, y = at.astype(int).tolist()
        boxes.append([x, y, x + side, y + side])
        images.append(noisy(paint([(x, y, side, side)]), [seed, i]))
    results = list(played(selector(model, every=1000), model, images))
    assert [len(found) for _, found in results] == [1] * 60
    assert max(off(found, box) for box, (_, found) in zip(boxes, results)) <= 1


def test_what_stands_still_is_kept_without_being_computed_and_is_marked():
    model = squares_model()
    images = [paint([(30, 30, 20, 20), (100 + 5 * i, 300, 20, 20)]) for i in range(30)]
    results = list(played(selector(model, every=1000), model, images))
    assert [len(found) for _, found in results] == [2] * 30
    _, found = results[-1]
    reused = dict(zip((found.xyxy[:, 1] < 100).tolist(), found.data["reused"].tolist()))
    assert reused == {True: True, False: False}
    assert model.backend.inputs < 0.4 * 30 * len(results[0][0].plan)


def test_what_has_left_is_gone_with_the_next_frame():
    model = squares_model()
    images = [paint([(30, 30, 20, 20)])] * 3 + [paint([])] * 2
    counts = [len(found) for _, found in played(selector(model, every=1000), model, images)]
    assert counts == [1, 1, 1, 0, 0]


def test_slow_motion_adds_up():
    "Half a pixel a frame: each step is below the bar, the sum is not."
    model = squares_model()
    images = [paint([(100 + i // 2, 100, 20, 20)]) for i in range(60)]
    results = list(played(selector(model, every=1000), model, images))
    last = max(off(found, [100 + i // 2, 100, 120 + i // 2, 120]) for i, (_, found) in enumerate(results))
    assert last <= 2


def test_the_turn_finds_what_appears_below_the_bar_within_its_frames():
    model = squares_model()
    chosen = selector(model, every=12, level=200)  # no change is large enough
    images = [paint([])] * 5 + [paint([(333, 222, 20, 20)])] * 30
    counts = [len(found) for _, found in played(chosen, model, images)]
    first = counts.index(1)
    assert 5 <= first < 5 + 12
    assert set(counts[first:]) == {1}


def test_a_lamp_is_not_motion():
    model = squares_model()
    base = noisy(paint([(100, 100, 20, 20)]), 1, 2)
    images = [cv2.convertScaleAbs(base, alpha=1 + 0.02 * i) for i in range(10)]
    looks = [look for look, _ in played(selector(model, every=1000), model, images)]
    assert sum(len(look.tiles) for look in looks[1:]) == 0


def test_a_camera_that_was_pushed_is_computed_whole():
    model = squares_model()
    scene = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    scene = cv2.resize(scene, SIZE, interpolation=cv2.INTER_NEAREST)
    looks = [look for look, _ in played(selector(model), model, [scene, np.roll(scene, 16, axis=1)])]
    assert len(looks[1].tiles) == len(looks[1].plan)


@pytest.mark.parametrize("sigma", [4, 12])
def test_noise_alone_changes_nothing(sigma):
    model = squares_model()
    still = paint([(100, 100, 20, 20)])
    chosen = selector(model, every=1000)
    looks = [chosen.select(frame_of(noisy(still, i, sigma), i)) for i in range(20)]
    assert sum(len(look.tiles) for look in looks[3:]) == 0  # the noise is known after two frames


def test_another_size_begins_anew():
    model = squares_model()
    chosen = selector(model, every=1000)
    images = [paint([(30, 30, 20, 20)]), paint([(30, 30, 20, 20)], (800, 480)), paint([], (800, 480))]
    results = list(played(chosen, model, images))
    assert [len(look.tiles) == len(look.plan) for look, _ in results] == [True, True, False]
    assert [len(found) for _, found in results] == [1, 1, 0]


def test_after_forget_everything_is_computed():
    model = squares_model()
    chosen = selector(model, every=1000)
    before = lambda i: chosen.forget() if i == 1 else None
    looks = [look for look, _ in played(chosen, model, [paint([])] * 4, before=before)]
    assert [len(look.tiles) for look in looks] == [len(looks[0].plan), 0, len(looks[0].plan), 0]


def test_the_whole_frame_is_computed_when_any_tile_is():
    model = squares_model()
    chosen = selector(model, every=10_000, whole=True)
    images = [paint([])] * 2 + [paint([(30, 30, 20, 20)])]
    looks = [look for look, _ in played(chosen, model, images)]
    whole = len(looks[0].plan) - 1
    assert whole not in looks[1].tiles
    assert whole in looks[2].tiles


# ---------------------------------------------------------------- tracks


def test_a_track_is_not_broken_at_the_borders_of_tiles_and_does_not_age_where_nothing_is_computed():
    model, tracker = squares_model(), SortTracker(frame_rate=25, lost_track_buffer=5)
    images = [paint([(30, 30, 24, 24), (20 + 5 * i, 200 + i, 24, 24)]) for i in range(110)]
    results = list(played(selector(model, every=1000), model, images, tracker))
    assert tracker.confirmed == 2
    ids = [set(found.tracker_id.tolist()) for _, found in results[5:]]
    assert ids == [{0, 1}] * 105
    assert (tracker.tracks.since_seen_s == 0).all()


def states(xyxy, velocity=(0.0, 0.0), confirmed=True, since=0.0):
    return TrackStates(
        np.array([xyxy], np.float32),
        np.array([velocity], np.float32),
        np.array([0 if confirmed else -1], np.int32),
        np.array([confirmed]),
        np.ones(1, np.int32),
        np.array([since]),
        np.zeros(1, np.float32),
    )


@pytest.mark.parametrize(
    "known, wanted",
    [
        (states([40, 40, 60, 60]), []),
        (states([40, 40, 60, 60], confirmed=False), [0]),
        (states([40, 40, 60, 60], since=0.2), [0]),
        (states([40, 40, 60, 60], (30, 0)), [0]),
        (states([40, 40, 60, 60], (1, 0)), []),  # a twentieth of a pixel since then
        (states([30, 40, 50, 60], (1000, 0)), [1, 2]),  # where it is expected, not where it was
        (states([-90, 40, -70, 60], (1, 0), since=1), []),  # it has left the frame
    ],
)
def test_tiles_of_tracks(known, wanted):
    plan = squares_model().plan((320, 160), TileSettings(whole=False))
    found = expected_tiles(known, 0.2, np.full(len(plan), 0.2), plan)
    assert plan.boxes[:, 0].tolist() == [0, 80, 160]
    assert np.flatnonzero(found).tolist() == wanted


def test_new_tracks_get_fresh_evidence():
    "A single false box must not be confirmed by being shown twice."
    model, tracker = squares_model(), SortTracker(frame_rate=25, minimum_consecutive_frames=3)
    flash = [paint([])] * 3 + [paint([(100, 100, 20, 20)])] + [paint([])] * 6
    chosen = selector(model, every=1000, level=250)  # pixels alone do not tell
    lives = []
    for i, (look, found) in enumerate(played(chosen, model, flash, tracker)):
        if i == 2:
            chosen.forget()  # the frame with the flash is computed
        lives.append((len(look.tiles) > 0, len(found)))
    assert lives[3] == (True, 1)
    assert lives[4] == (True, 0)  # looked at again because the track was new
    assert tracker.confirmed == 0


# ---------------------------------------------------------------- small things


def test_cells_are_a_quarter_and_cover_their_tiles():
    image = paint([], (1283, 721))
    small = cell_picture(image)
    assert small.shape == (180, 321)
    plan = squares_model().plan((1283, 721), TileSettings())
    for (rows, columns), (x1, y1, x2, y2) in zip(cell_boxes(plan, small.shape), plan.boxes.tolist()):
        assert columns.start * 1283 / 321 <= x1 and rows.start * 721 / 180 <= y1
        assert (
            min(columns.stop, 321) * 1283 / 321 >= x2 - 0.01 and min(rows.stop, 180) * 721 / 180 >= y2 - 0.01
        )


def test_a_frame_of_a_pixel_has_a_cell():
    assert cell_picture(np.zeros((1, 1, 3), np.uint8)).shape == (1, 1)


def test_only_named_sources_are_cut():
    model = squares_model().with_tiles(sources=("roof",))
    assert tile_selector(model, "roof") is not None
    assert tile_selector(model, "door") is None
    assert tile_selector(squares_model(), "roof") is None


def test_a_frame_that_is_not_cut_is_reported_once(caplog):
    model = squares_model(imgsz=640)
    chosen = selector(model)
    for i in range(3):
        look = chosen.select(frame_of(paint([]), i))
        found = chosen.join(look, model.predict([paint([(30, 30, 20, 20)])]), model.manifest.postprocess)
        assert len(found) == 1
    assert caplog.text.count("fit into one tile") == 1
    assert chosen.summary()["notes"] == ["frames of 640×480 fit into one tile: not cut"]


def test_a_clock_that_is_set_back_stops_nothing():
    model, tracker = squares_model(), SortTracker(frame_rate=25)
    chosen = selector(model)
    for i, seconds in enumerate((0, 1, 2, -3600, -3599)):
        frame = Frame(paint([(30, 30, 20, 20)]), "cam", i, START + timedelta(seconds=seconds))
        look = chosen.select(frame)
        parts = [model.predict([look.plan.view(frame.image, t)])[0] for t in look.tiles]
        found = tracker.update(chosen.join(look, parts, model.manifest.postprocess), frame)
        chosen.observe(frame, found, tracker)
        assert len(found) == 1


def test_without_a_tracker_there_are_no_tracks():
    model = squares_model()
    chosen = selector(model)
    chosen.observe(frame_of(paint([]), 0), Detections.empty(), None)
    assert [len(f) for _, f in played(chosen, model, [paint([(30, 30, 20, 20)])] * 3)] == [1, 1, 1]
