"""The face finder: what it finds, what it is blind for, and what it refuses."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from cv_pipeline.core.types import BackendError, ConfigError, DataError, box_iou
from cv_pipeline.synthetic.passers import Passers, PassersConfig, draw_face
from cv_pipeline.video.faces import FaceFinder, YuNet, face_model, heads_of


@pytest.fixture(scope="module")
def finder():
    return YuNet()


def scene(width=64, size=(360, 640), at=(100, 200), seed=1):
    image = np.full((*size, 3), 140, np.uint8)
    head = draw_face(seed, width)
    h, w = head.alpha.shape
    top, left = at
    alpha = head.alpha[..., None] / 255
    image[top : top + h, left : left + w] = head.image * alpha + image[top : top + h, left : left + w] * (
        1 - alpha
    )
    return image, np.array([head.box], np.float32) + (left, top, left, top)


def found(finder, image, box):
    return bool((box_iou(finder.find([image])[0].xyxy, box) > 0.4).any())


def test_the_bundled_file_has_its_licence_beside_it(finder):
    folder = face_model().parent
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert "Apache License 2.0" in (folder / "NOTICE").read_text()
    assert hashlib.sha256(face_model().read_bytes()).hexdigest()[:12] in finder.name
    assert isinstance(finder, FaceFinder)


@pytest.mark.parametrize("width", [24, 48, 100, 180])
def test_faces_of_many_sizes_are_found_where_they_are(finder, width):
    image, box = scene(width, at=(10, 100))
    assert found(finder, image, box)


def test_boxes_are_in_pixels_of_the_picture_and_not_of_the_net(finder):
    image, box = scene(160, (1080, 1920), (300, 900))
    assert found(finder, image, box)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: cv2.cvtColor(image, cv2.COLOR_BGR2GRAY),
        lambda image: cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None],
        lambda image: (image * 0.04).astype(np.uint8),
        lambda image: np.asfortranarray(image),
        lambda image: image[:, ::-1][:, ::-1],
    ],
    ids=["grey", "one channel", "night", "columns first", "a view"],
)
def test_other_pictures_of_the_same_face(finder, change):
    image, box = scene()
    assert found(finder, change(image), box)


def test_a_face_upside_down_takes_the_thorough_way():
    image, box = scene(80)
    turned = image[::-1, ::-1].copy()
    there = np.array([[640, 360, 640, 360]], np.float32) - box[:, [2, 3, 0, 1]]
    assert found(YuNet(thorough=True), turned, there)


def test_pictures_of_several_sizes_are_one_call_and_keep_their_order(finder):
    images, boxes = zip(
        *(scene(64, size, at) for size, at in (((360, 640), (50, 50)), ((480, 480), (90, 300))))
    )
    both = finder.find([images[0], images[1], images[0]])
    assert [len(f.xyxy) for f in both] == [1, 1, 1]
    assert all(box_iou(f.xyxy, b)[0, 0] > 0.4 for f, b in zip(both, (boxes[0], boxes[1], boxes[0])))


def test_points_are_inside_the_face_and_eyes_above_the_mouth(finder):
    image, box = scene(100, at=(50, 200))
    (faces,) = finder.find([image])
    points = faces.points[0]
    assert ((points > box[0, :2]) & (points < box[0, 2:])).all()
    assert points[:2, 1].max() < points[3:, 1].min()


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (3000, 2), (7, 5)])
def test_tiny_and_narrow_pictures_have_no_faces(finder, size):
    assert len(finder.find([np.full((*size, 3), 9, np.uint8)])[0].xyxy) == 0


def test_many_pictures_are_several_calls_of_the_net_and_keep_their_order(finder):
    image, box = scene()
    empty = np.full((360, 640, 3), 90, np.uint8)
    many = finder.find([image if k % 3 == 0 else empty for k in range(20)])
    assert [len(f.xyxy) for f in many] == [1 if k % 3 == 0 else 0 for k in range(20)]


def test_no_pictures_have_no_faces(finder):
    assert finder.find([]) == []


@pytest.mark.slow
def test_three_hundred_faces_are_as_many(finder):
    film = Passers(PassersConfig(size=(1600, 1000)))
    image = film._base.copy()
    for k in range(300):
        head = draw_face(k, 36)
        h, w = head.alpha.shape
        top, left = k // 25 * 80 + 10, k % 25 * 63 + 5
        alpha = head.alpha[..., None] / 255
        image[top : top + h, left : left + w] = head.image * alpha + image[top : top + h, left : left + w] * (
            1 - alpha
        )
    assert len(YuNet(side=1280).find([image])[0].xyxy) >= 285


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_what_is_not_a_picture_is_refused(finder, image):
    with pytest.raises(DataError, match="not a picture"):
        finder.find([image])


@pytest.mark.parametrize("bad", [{"conf": 0}, {"conf": 1}, {"side": 8}, {"iou": 0}, {"max_det": 0}])
def test_invalid_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        YuNet(**bad)


def test_another_model_in_its_place_is_refused():
    other = Path(face_model().parents[1] / "factory_line" / "model.onnx")
    with pytest.raises(BackendError, match="not a YuNet"):
        YuNet(path=other)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BackendError, match="cannot be opened"):
        YuNet(path=tmp_path / "none.onnx")


def test_heads_are_the_upper_part_of_people():
    standing, sitting = heads_of([[0, 0, 60, 180], [0, 0, 100, 110]])
    assert standing[3] == pytest.approx(30, abs=1)
    assert sitting[3] == pytest.approx(45, abs=1)
    assert (standing[0], standing[2]) == pytest.approx((12, 48))
