"""Round trips through every format change nothing; what a format cannot say is a DataError that names the
place."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core import formats as F
from cv_pipeline.core.types import DataError, Detections, box_iou, merge_detections, validate_detections
from tests.helpers.services import require

SIZE = (1920, 1080)
NAMES = ("gear", "bolt", "nut")
ONE = Detections([[10.25, 20.5, 110.75, 220]], [0.75], [2], [5])
ZERO_AREA = Detections([[50, 50, 50, 50], [60, 60, 90, 60]], [1, 0.5], [0, 1], [0, 1])
OUTSIDE = Detections([[-30, -20, 40, 50], [1900, 1000, 2500, 1300]], [0.5, 0.25], [0, 1], [3, 4])


@st.composite
def detections(draw, inside=True):
    n = draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low, high = (np.zeros(2), np.array(SIZE)) if inside else (np.array([-500, -500]), np.array([3000, 3000]))
    a, b = rng.uniform(low, high, (n, 2)), rng.uniform(low, high, (n, 2))
    flat = rng.random(n) < 0.2  # some boxes without area
    b[flat, 0] = a[flat, 0]
    xyxy = np.hstack([np.minimum(a, b), np.maximum(a, b)]).astype(np.float32)
    return Detections(
        xyxy, rng.random(n).astype(np.float32), rng.integers(0, len(NAMES), n), rng.permutation(n)
    )


def same(a: Detections, b: Detections, px=1e-3, conf=1e-6, ids=True):
    assert len(a) == len(b)
    np.testing.assert_allclose(a.xyxy, b.xyxy, atol=px)
    np.testing.assert_allclose(a.confidence, b.confidence, atol=conf)
    np.testing.assert_array_equal(a.class_id, b.class_id)
    if ids:
        np.testing.assert_array_equal(a.tracker_id, b.tracker_id)


@settings(max_examples=60, deadline=None)
@given(detections())
def test_yolo_round_trip(d):
    text = F.to_yolo(d, SIZE, with_confidence=True)
    same(F.from_yolo(text, SIZE, len(NAMES)), d, ids=False)


@settings(max_examples=60, deadline=None)
@given(detections(inside=False))
def test_coco_round_trip(d):
    ids = [1, 17, 90]
    text = json.dumps(F.to_coco_annotations(d, 4, ids, with_score=True))  # through real JSON
    same(F.from_coco_annotations(json.loads(text), ids), d, ids=False)


@settings(max_examples=60, deadline=None)
@given(detections(inside=False), st.integers(0, 10**6))
def test_mot_round_trip(d, frame_id):
    back = F.from_mot(F.to_mot(d, frame_id))
    if len(d) == 0:
        assert back == {}
    else:
        assert list(back) == [frame_id]
        same(back[frame_id], d)


@settings(max_examples=40, deadline=None)
@given(detections(inside=False))
def test_supervision_round_trip(d):
    require("supervision")
    d.data["decision"] = np.arange(len(d), dtype=np.int8)
    back = F.from_supervision(F.to_supervision(d))
    same(back, d, px=0, conf=0)
    np.testing.assert_array_equal(back.data["decision"], d.data["decision"])


@settings(max_examples=25, deadline=None)
@given(detections())
def test_ultralytics_round_trip(d):
    require("ultralytics")
    back = F.from_ultralytics(F.to_ultralytics(d, np.zeros((SIZE[1], SIZE[0], 3), np.uint8), NAMES))
    same(back, d, px=1e-3, ids=len(d) > 0)


@pytest.mark.parametrize("d", [Detections.empty(), ONE, ZERO_AREA], ids=["empty", "one", "zero-area"])
def test_corner_cases_survive_all_formats(d):
    same(F.from_yolo(F.to_yolo(d, SIZE, with_confidence=True), SIZE), d, ids=False)
    same(F.from_coco_annotations(F.to_coco_annotations(d, 1, with_score=True)), d, ids=False)
    back = F.from_mot(F.to_mot(d, 0))
    same(back.get(0, Detections.empty()), d)
    same(F.from_supervision(F.to_supervision(d)), d)


def test_boxes_outside_the_image():
    same(F.from_coco_annotations(F.to_coco_annotations(OUTSIDE, 1, with_score=True)), OUTSIDE, ids=False)
    same(F.from_mot(F.to_mot(OUTSIDE, 3))[3], OUTSIDE)
    with pytest.raises(DataError, match="beyond the 1920x1080 image"):
        F.to_yolo(OUTSIDE, SIZE)
    cut = F.from_yolo(F.to_yolo(OUTSIDE, SIZE, clip=True), SIZE)
    np.testing.assert_allclose(cut.xyxy, [[0, 0, 40, 50], [1900, 1000, 1920, 1080]], atol=1e-3)


@pytest.mark.parametrize(
    "write",
    [
        lambda d: F.to_yolo(d, SIZE),
        lambda d: F.to_coco_annotations(d, 1),
        lambda d: F.to_mot(d, 0, confirmed_only=False),
    ],
    ids=["yolo", "coco", "mot"],
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_is_refused_on_the_way_out(write, value):
    with pytest.raises(DataError, match="NaN or infinite"):
        write(Detections([[0, 0, 5, 5], [0, 0, value, 1]]))


def test_nan_is_refused_on_the_way_in():
    supervision = require("supervision")
    nan = np.float32([[0, 0, np.nan, 1]])
    with pytest.raises(DataError, match="line 2 contains NaN"):
        F.from_yolo("0 .5 .5 .1 .1\n0 .5 nan .1 .1\n", SIZE, where="b.txt")
    with pytest.raises(DataError, match="NaN"):
        F.from_coco_annotations([{"id": 1, "category_id": 0, "bbox": [0, 0, float("nan"), 1]}])
    with pytest.raises(DataError, match="line 1 contains NaN"):
        F.from_mot("1,1,nan,0,5,5,1,1,1")
    with pytest.raises(DataError, match="NaN"):
        theirs = supervision.Detections(
            xyxy=np.float32([[0, 0, 1, 1]]), class_id=np.array([0]), confidence=np.array([1.0])
        )
        theirs.xyxy = nan  # supervision checks when it constructs, not afterwards
        F.from_supervision(theirs)
    with pytest.raises(DataError, match="NaN"):
        F.to_supervision(Detections(nan))


def test_mot_frames_come_in_order_and_detection_files_have_no_class():
    text = "3,-1,1,1,5,5,0.5,-1,-1,-1\n1,-1,2,2,5,5,0.25,-1,-1,-1\n3,-1,9,9,5,5,0.75,-1,-1,-1\n"
    found = F.from_mot(text)
    assert list(found) == [0, 2]
    assert found[2].confidence.tolist() == [0.5, 0.75]
    assert found[2].class_id.tolist() == [0, 0] and found[2].tracker_id.tolist() == [-1, -1]


def test_unconfirmed_tracks_stay_out_of_track_files_and_zones():
    d = Detections([[0, 0, 5, 5], [9, 9, 12, 12]], tracker_id=[-1, 0])
    assert F.to_mot(d, 0).count("\n") == 1
    assert len(F.to_supervision(d, confirmed_only=True)) == 1


@settings(max_examples=40, deadline=None)
@given(detections(inside=False), detections(inside=False))
def test_merge_and_indexing_agree(a, b):
    both = merge_detections([a, b])
    same(both[: len(a)], a)
    same(both[np.arange(len(both)) >= len(a)], b)
    assert validate_detections(both, class_count=3) is both
    iou = box_iou(both.xyxy, both.xyxy)
    assert ((iou >= 0) & (iou <= 1 + 1e-5)).all() and np.allclose(iou, iou.T)


@pytest.mark.real
def test_real_datasets_are_read(real_data):
    bccd = F.read_dataset(real_data / "bccd", "val")
    assert len(bccd) == 87 and len(bccd[0].names) == 3
    assert sum(len(item.truth((640, 480))) for item in bccd) > 500
    coco8 = F.read_dataset(real_data / "coco8")
    assert len(coco8) == 8


@pytest.mark.real
def test_real_mot_file(real_data):
    truth = F.from_mot((real_data / "mot/TUD-Campus/gt/gt.txt").read_text(), "gt.txt")
    assert len(truth) == 71 and min(truth) == 0
