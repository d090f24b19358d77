"""Tiles: the plan covers every pixel, and every object is found once, wherever it lies."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.tiles import (
    TileSettings,
    fragments,
    frame_pixels,
    group_rows,
    join_parts,
    join_tiles,
    keep_best,
    overlapping,
    plan_tiles,
    tile_size,
    tile_starts,
)
from cv_pipeline.core.types import ConfigError, DataError, Detections, box_iou
from tests.benchmarks.try_tiles import ORACLES, OVERLAP, SIZE, TILE, layout, tiles


def boxes_of(rows, confidence=None, class_id=None):
    return Detections(np.array(rows, np.float32).reshape(-1, 4), confidence, class_id)


@given(st.integers(1, 5000), st.integers(32, 1500), st.floats(0, 0.89, allow_nan=False, exclude_max=True))
@settings(max_examples=200, deadline=None)
def test_tiles_cover_an_axis_with_at_least_the_overlap(length, size, overlap):
    starts = tile_starts(length, size, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(length - size, 0)
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (size - steps >= int(size * overlap) - 1).all()  # whole pixels


def test_every_pixel_of_a_frame_is_in_a_tile():
    plan = plan_tiles((1001, 703), (320, 320), 0.15)
    covered = np.zeros((703, 1001), bool)
    for x1, y1, x2, y2 in plan.boxes[:-1]:
        covered[y1:y2, x1:x2] = True
    assert covered.all()
    assert plan.boxes[-1].tolist() == [0, 0, 1001, 703]


def test_a_view_is_not_a_copy():
    image = np.zeros((700, 900, 3), np.uint8)
    plan = plan_tiles((900, 700), (320, 320))
    assert all(np.shares_memory(plan.view(image, t), image) for t in range(len(plan)))


@pytest.mark.parametrize("size", [(320, 320), (100, 80), (320, 200)])
def test_a_frame_no_larger_than_a_tile_is_not_cut(size):
    plan = plan_tiles(size, (320, 320))
    assert not plan.cuts
    assert plan.boxes.tolist() == [[0, 0, *size]]


def test_a_frame_that_is_only_wider_than_a_tile_is_cut_along_one_axis():
    plan = plan_tiles((1000, 100), (320, 320), whole=False)
    assert set(map(tuple, plan.boxes[:, [1, 3]].tolist())) == {(0, 100)}
    assert not plan.inner[:, [1, 3]].any()


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"size": 31}, "size: at least 32 pixels, not 31"),
        ({"size": 640.5}, "size: at least 32"),
        ({"size": True}, "size: at least 32"),
        ({"overlap": 0.9}, "overlap: a share in 0..0.9"),
        ({"overlap": -0.1}, "overlap: a share"),
        ({"overlap": float("nan")}, "overlap: a share"),
        ({"iou": 0}, "iou: above 0"),
        ({"when": "sometimes"}, "always or motion"),
        ({"every": 0}, "every: a whole number"),
        ({"level": 255}, "level: grey levels"),
    ],
)
def test_invalid_settings_are_named(bad, words):
    with pytest.raises(ConfigError, match="invalid settings of tiles") as e:
        TileSettings(**bad)
    assert words in str(e.value)


def test_tiles_below_the_stride_are_refused():
    with pytest.raises(ConfigError, match="smaller than the network's stride of 64"):
        tile_size(TileSettings(size=48), (640, 640), 64)
    assert tile_size(TileSettings(), (320, 640)) == (640, 320)


# ---------------------------------------------------------------- the parts of the rule


@given(st.integers(0, 2**32 - 1), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_overlapping_pairs_are_those_of_two_loops(seed, n):
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 40, (n, 2))
    xyxy = np.concatenate([corner, corner + rng.integers(0, 15, (n, 2))], 1).astype(np.float32)
    found = {tuple(sorted(p)) for p in zip(*(rows.tolist() for rows in overlapping(xyxy)))}
    inside = lambda a, b: (np.minimum(a[2:], b[2:]) > np.maximum(a[:2], b[:2])).all()
    positive = lambda i: (xyxy[i, 2:] > xyxy[i, :2]).all()
    wanted = {(i, j) for i in range(n) for j in range(i + 1, n) if inside(xyxy[i], xyxy[j])}
    assert {p for p in found if positive(p[0]) and positive(p[1])} == {
        p for p in wanted if positive(p[0]) and positive(p[1])
    }


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0, 0.3))
@settings(max_examples=80, deadline=None)
def test_suppression_without_a_loop_keeps_what_one_after_the_other_keeps(seed, n, density):
    rng = np.random.default_rng(seed)
    conflict = np.triu(rng.random((n, n)) < density, 1)
    kept = np.ones(n, bool)
    for i in range(n):
        if kept[i]:
            kept[conflict[i]] = False
    assert (keep_best(*conflict.nonzero(), n) == kept).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 40))
@settings(max_examples=80, deadline=None)
def test_groups_are_connected_components(seed, n, pairs):
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a, b = np.random.default_rng(seed).integers(0, n, (2, pairs))
    label = group_rows(a, b, n)
    _, known = connected_components(coo_array((np.ones(pairs), (a, b)), (n, n)), directed=False)
    least = np.array([np.flatnonzero(known == k).min() for k in known])
    assert (label == least).all()


def test_a_box_at_an_inner_edge_is_a_fragment_and_one_at_the_frames_edge_is_not():
    plan = plan_tiles((1152, 640), (640, 640), whole=False)
    xyxy = np.array([[0, 10, 50, 50], [600, 10, 640, 50], [600, 10, 634, 50]], np.float32)
    assert fragments(xyxy, np.zeros(3, int), plan).tolist() == [False, True, False]


# ---------------------------------------------------------------- the rule as a whole


def cut_into(plan, objects, least=0.0, tiles=None):
    "What a perfect model finds in each tile: objects (n, 4), cut at its edges."
    objects = np.asarray(objects, np.float32).reshape(-1, 4)
    parts = []
    for x1, y1, x2, y2 in plan.boxes[slice(None) if tiles is None else tiles]:
        cut = np.concatenate([np.maximum(objects[:, :2], [x1, y1]), np.minimum(objects[:, 2:], [x2, y2])], 1)
        sides, full = cut[:, 2:] - cut[:, :2], objects[:, 2:] - objects[:, :2]
        there = ((sides > 0) & (sides >= least * full)).all(1)
        rows = np.flatnonzero(there)
        parts.append(Detections(cut[rows] - np.tile([x1, y1], 2), 0.9 - 0.001 * rows, np.zeros(len(rows))))
    return parts


def joined(plan, parts, **how):
    every = range(len(plan))
    return join_parts(frame_pixels(parts, every, plan), every, plan, TileSettings(**how))


def apart(rng, count, size, sides):
    "Boxes that do not touch."
    made = np.zeros((0, 4), np.float32)
    while len(made) < count:
        wide, high = rng.integers(sides[0], sides[1], 2)
        x, y = rng.integers(0, size[0] - wide), rng.integers(0, size[1] - high)
        box = np.array([[x, y, x + wide, y + high]], np.float32)
        grown = box + np.array([-3, -3, 3, 3], np.float32)
        if not len(made) or not box_iou(grown, made).any():
            made = np.concatenate([made, box])
    return made


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("whole", [False, True])
def test_every_object_is_found_once_wherever_it_lies(seed, whole):
    "20 × 10 layouts of objects from 4 pixels to twice the tile, cut exactly."
    rng = np.random.default_rng(seed)
    for _ in range(10):
        size = tuple(rng.integers(400, 900, 2).tolist())
        plan = plan_tiles(size, (320, 320), float(rng.choice([0.1, 0.2, 0.35])), whole)
        objects = np.concatenate([apart(rng, 12, size, (4, 40)), [[0, 0, 0, 0]]])[:12]
        big = apart(rng, 1, size, (320, min(size) - 1))
        objects = np.concatenate([objects[~box_iou(objects, big).any(axis=1)], big])
        keeps = (box_iou(objects, objects) > 0).sum(axis=1) == 1
        objects = objects[keeps]
        found = joined(plan, cut_into(plan, objects))
        assert len(found) == len(objects)
        assert np.allclose(found.xyxy[np.lexsort(found.xyxy.T)], objects[np.lexsort(objects.T)])


@pytest.mark.parametrize("corner", product((250, 300, 318, 320), repeat=2))
def test_a_box_over_four_tiles_is_one(corner):
    plan = plan_tiles((576, 576), (320, 320), 0.2, whole=False)
    x, y = corner
    box = [x - 90, y - 100, x + 120, y + 110]
    found = joined(plan, cut_into(plan, [box]))
    assert found.xyxy.tolist() == [box]


def test_identical_squares_in_neighbouring_tiles_are_two():
    plan = plan_tiles((576, 320), (320, 320), 0.2, whole=False)
    objects = [[100, 100, 130, 130], [356, 100, 386, 130]]  # at one place of their tiles
    assert len(joined(plan, cut_into(plan, objects))) == 2


def test_boxes_of_one_tile_are_never_joined():
    plan = plan_tiles((576, 320), (320, 320), 0.2, whole=False)
    two = boxes_of([[10, 10, 50, 50], [12, 10, 52, 50]], [0.9, 0.8])
    other = boxes_of([[300, 10, 310, 20]], [0.7])
    found = join_tiles(Detections(np.concatenate([two.xyxy, other.xyxy]), [0.9, 0.8, 0.7]), [0, 0, 1], plan)
    assert len(found) == 3


def test_classes_are_kept_apart_unless_agnostic():
    plan = plan_tiles((576, 320), (320, 320), 0.2, whole=False)
    found = boxes_of([[270, 10, 300, 40], [270, 10, 300, 40]], [0.9, 0.8], [0, 1])
    assert len(join_tiles(found, [0, 1], plan)) == 2
    assert join_tiles(found, [0, 1], plan, agnostic=True).class_id.tolist() == [0]


def test_a_whole_box_beats_a_fragment_with_more_confidence():
    plan = plan_tiles((576, 320), (320, 320), 0.2, whole=False)
    found = boxes_of([[280, 10, 320, 40], [280, 10, 340, 40]], [0.95, 0.6])
    assert join_tiles(found, [0, 1], plan).xyxy.tolist() == [[280, 10, 340, 40]]


def test_best_first_and_at_most_max_det():
    plan = plan_tiles((576, 320), (320, 320), 0.2, whole=False)
    found = boxes_of([[10, 10, 20, 20], [400, 10, 420, 20], [500, 10, 520, 20]], [0.5, 0.9, 0.7])
    result = join_tiles(found, [0, 1, 1], plan, max_det=2)
    assert result.confidence.tolist() == pytest.approx([0.9, 0.7])


def test_columns_follow_their_boxes_and_the_order_of_tiles_does_not_matter():
    plan = plan_tiles((900, 900), (320, 320), 0.2)
    objects = apart(np.random.default_rng(3), 25, (900, 900), (5, 60))
    parts = cut_into(plan, objects)
    every = np.concatenate([p.xyxy + np.tile(b[:2], 2) for p, b in zip(parts, plan.boxes)])
    tile = np.repeat(np.arange(len(plan)), [len(p) for p in parts])
    confidence = np.concatenate([p.confidence for p in parts]) - 0.0001 * np.arange(len(every))
    found = Detections(every, confidence, data={"row": np.arange(len(every))})
    result = join_tiles(found, tile, plan)
    assert (result.confidence == confidence.astype(np.float32)[result.data["row"]]).all()
    shuffled = np.random.default_rng(0).permutation(len(every))
    again = join_tiles(found[shuffled], tile[shuffled], plan)
    assert again.xyxy.tolist() == result.xyxy.tolist()


def test_nothing_found_and_one_tile_alone_come_back_as_they_are():
    plan = plan_tiles((576, 320), (320, 320))
    assert len(join_tiles(Detections.empty(), [], plan)) == 0
    found = boxes_of([[10, 10, 50, 50], [11, 10, 51, 50]], [0.6, 0.9])
    assert join_tiles(found, [1, 1], plan) is found


def test_a_tile_for_every_box_is_needed():
    with pytest.raises(DataError, match="1 tiles for 2 boxes"):
        join_tiles(boxes_of([[0, 0, 1, 1], [0, 0, 1, 1]]), [0], plan_tiles((576, 320), (320, 320)))


# ---------------------------------------------------------------- beside sahi and supervision

_RECORDED = np.load(ORACLES)
MERGERS = [key.split("|")[0] for key in _RECORDED.files if key.endswith("|count")]


def recorded(merger, seed):
    "Boxes that a merger made of a layout, as recorded."
    count, boxes = _RECORDED[f"{merger}|count"].astype(int), _RECORDED[f"{merger}|boxes"]
    end = count.cumsum()[seed]
    return boxes[end - count[seed] : end].astype(np.float32)


def ours(seed):
    "The objects of a layout, and our boxes."
    objects, rows = layout(seed)
    plan = plan_tiles(SIZE, (TILE, TILE), OVERLAP, whole=False)
    found = join_tiles(Detections(rows[:, :4], rows[:, 4]), rows[:, 5].astype(int), plan)
    return objects.astype(np.float32), found.xyxy


def mistakes(objects, boxes):
    "Objects without a box, and boxes too many."
    hits = (box_iou(objects, boxes).max(axis=1, initial=0) >= 0.5).sum()
    return len(objects) - hits + len(boxes) - hits


LAYOUTS = range(len(_RECORDED[f"{MERGERS[0]}|count"]))


def test_the_tiles_of_the_recording_are_those_of_the_plan():
    assert (tiles() == plan_tiles(SIZE, (TILE, TILE), OVERLAP, whole=False).boxes).all()


def test_no_object_is_lost_or_counted_twice_in_the_recorded_layouts():
    assert sum(mistakes(*ours(seed)) for seed in LAYOUTS) == 0


@pytest.mark.parametrize("merger", MERGERS)
def test_where_a_merger_of_sahi_or_supervision_is_right_we_agree_with_it(merger):
    right = 0
    for seed in LAYOUTS:
        objects, boxes = ours(seed)
        theirs = recorded(merger, seed)
        if mistakes(objects, theirs) == 0:
            right += 1
            assert len(boxes) == len(theirs)
            assert (box_iou(theirs, boxes).max(axis=1) > 0.5).all()
    assert right >= 10  # the recording is not empty of meaning
