"""Letterbox and tensor: the same floats as the trainer's own transform, and boxes that come back to where
they were."""

import threading

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.inference.manifest import PreprocessSpec
from cv_pipeline.inference.preprocess import Preprocessor, equalise, fit, letterbox, value_tables
from tests.helpers.services import require

SILLY = [
    (1, 1),
    (1, 5000),
    (5000, 1),
    (1, 2),
    (2, 1),
    (3, 641),
    (641, 3),
    (639, 641),
    (640, 640),
    (1280, 1280),
    (640, 639),
    (1279, 720),
    (4097, 33),
]


def sizes(count: int = 200, seed: int = 7) -> list[tuple[int, int]]:
    "(width, height): the silly ones, then random ones, log-uniform so that small and large both come."
    rng = np.random.default_rng(seed)
    drawn = np.exp(rng.uniform(0, np.log(2200), (count, 2))).astype(int).clip(1)
    return SILLY + [tuple(map(int, size)) for size in drawn]


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ultralytics_tensor(image: np.ndarray, imgsz: tuple[int, int], stretch: bool = False) -> np.ndarray:
    """What Ultralytics' predictor feeds its network: the real LetterBox, then the predictor's own tensor
    conversion."""
    torch = require("torch")
    from ultralytics.data.augment import LetterBox

    padded = LetterBox(imgsz, auto=False, scale_fill=stretch)(image=image)
    return (
        torch.from_numpy(padded)
        .unsqueeze(0)
        .permute(0, 3, 1, 2)
        .contiguous()
        .flip(1)
        .float()
        .div_(255)[0]
        .numpy()
    )


def yolox_tensor(image: np.ndarray, imgsz: tuple[int, int]) -> np.ndarray:
    """YOLOX's preprocessing, written from its description: ratio = min(h/H, w/W), size cut to int, padding
    114 right and below, BGR 0..255."""
    canvas = np.full((*imgsz, 3), 114, np.uint8)
    ratio = min(imgsz[0] / image.shape[0], imgsz[1] / image.shape[1])
    small = cv2.resize(
        image, (int(image.shape[1] * ratio), int(image.shape[0] * ratio)), interpolation=cv2.INTER_LINEAR
    ).astype(np.uint8)
    canvas[: small.shape[0], : small.shape[1]] = small
    return np.ascontiguousarray(canvas.transpose(2, 0, 1), dtype=np.float32)


@pytest.mark.parametrize("imgsz", [(640, 640), (320, 416)])
def test_center_is_ultralytics_on_213_sizes(imgsz):
    require("ultralytics")
    prepare, tensor = Preprocessor(PreprocessSpec(imgsz=imgsz)), np.empty((3, *imgsz), np.float32)
    from ultralytics.data.augment import LetterBox

    for width, height in sizes():
        image = noise(width, height)
        prepare.into(image, tensor)
        assert np.array_equal(tensor, ultralytics_tensor(image, imgsz)), (width, height)
        assert np.array_equal(letterbox(image, imgsz).image, LetterBox(imgsz, auto=False)(image=image)), (
            width,
            height,
        )


def test_stretch_is_ultralytics_scale_fill():
    require("ultralytics")
    prepare, tensor = (
        Preprocessor(PreprocessSpec(imgsz=320, letterbox="stretch")),
        np.empty((3, 320, 320), np.float32),
    )
    for width, height in sizes(40):
        image = noise(width, height)
        prepare.into(image, tensor)
        assert np.array_equal(tensor, ultralytics_tensor(image, (320, 320), stretch=True)), (width, height)


def test_top_left_is_yolox_on_200_sizes():
    prepare = Preprocessor(PreprocessSpec(imgsz=416, letterbox="top-left", color="BGR", scale=1))
    tensor, compared = np.empty((3, 416, 416), np.float32), 0
    for width, height in sizes(230):
        image = noise(width, height)
        g = prepare.into(image, tensor)
        assert g.inner[0] >= 1 and g.inner[1] >= 1
        if min(width, height) * 416 // max(width, height) < 1:
            continue  # YOLOX itself fails there: a side of 0 pixels
        assert np.array_equal(tensor, yolox_tensor(image, (416, 416))), (width, height)
        compared += 1
    assert compared >= 200


@pytest.mark.real
def test_real_pictures_are_identical(real_data):
    require("ultralytics")
    prepare, tensor = Preprocessor(PreprocessSpec()), np.empty((3, 640, 640), np.float32)
    files = sorted((real_data / "coco8").rglob("*.jpg")) + sorted((real_data / "voc100").rglob("*.jpg"))[:40]
    assert len(files) >= 40
    for file in files:
        image = cv2.imread(str(file))
        prepare.into(image, tensor)
        assert np.array_equal(tensor, ultralytics_tensor(image, (640, 640))), file.name


side = st.integers(1, 6000)


@settings(max_examples=300, deadline=None)
@given(
    side,
    side,
    st.sampled_from(["center", "top-left", "stretch"]),
    st.sampled_from([(640, 640), (320, 416), (1280, 736)]),
    st.data(),
)
def test_boxes_come_back(width, height, mode, imgsz, data):
    g = fit(width, height, imgsz, mode)
    unit = st.floats(0, 1, width=32)
    boxes = np.float32(data.draw(st.lists(st.tuples(unit, unit, unit, unit), max_size=8))).reshape(
        -1, 4
    ) * np.float32([width, height] * 2)
    back = g.to_original(g.to_input(boxes), clip=False)
    # float32 holds 24 bits of the largest number on the way: the network side plus its padding
    allowed = (
        np.finfo(np.float32).eps
        * 4
        * np.array([max(width, imgsz[1] / g.scale_x), max(height, imgsz[0] / g.scale_y)] * 2)
    )
    assert (np.abs(back - boxes) <= allowed).all()
    inside = g.to_original(g.to_input(boxes))
    assert (inside >= 0).all() and (inside <= np.float32([width, height] * 2)).all()


@settings(max_examples=200, deadline=None)
@given(side, side, st.sampled_from(["center", "top-left", "stretch"]))
def test_the_image_lies_inside_the_input(width, height, mode):
    g = fit(width, height, (640, 640), mode)
    assert 1 <= g.inner[0] <= 640 and 1 <= g.inner[1] <= 640
    assert 0 <= g.pad_left <= 640 - g.inner[0] and 0 <= g.pad_top <= 640 - g.inner[1]
    corners = g.to_input(np.float32([[0, 0, width, height]]))[0]
    np.testing.assert_allclose(
        corners, [g.pad_left, g.pad_top, g.pad_left + g.inner[0], g.pad_top + g.inner[1]], rtol=1e-6
    )


def test_mapping_is_ultralytics_scale_boxes():
    ops = require("ultralytics.utils.ops")
    rng = np.random.default_rng(1)
    for width, height in sizes(200):
        boxes = rng.uniform(-40, 700, (16, 4)).astype(np.float32)
        theirs = ops.scale_boxes((640, 640), boxes.copy(), (height, width))
        np.testing.assert_allclose(
            fit(width, height, (640, 640)).to_original(boxes),
            theirs,
            atol=2e-7 * max(width, height) * 4,
            rtol=1e-6,
        )


def test_reused_buffer_forgets_the_last_image():
    prepare, tensor = Preprocessor(PreprocessSpec(imgsz=320)), np.empty((3, 320, 320), np.float32)
    last = None
    for width, height in sizes(60):
        image = noise(width, height)
        last = prepare.into(image, tensor, last)
        fresh, _ = prepare.batch([image])
        assert np.array_equal(tensor, fresh[0]), (width, height)


def test_batch_equals_one_by_one_and_reuses_out():
    prepare, room = Preprocessor(PreprocessSpec(imgsz=320)), np.empty((8, 3, 320, 320), np.float32)
    images = [noise(w, h) for w, h in SILLY[:6]]
    blob, places = prepare.batch(images, room)
    assert blob.shape == (6, 3, 320, 320) and np.shares_memory(blob, room)
    for image, one, g in zip(images, blob, places):
        assert np.array_equal(one, prepare.batch([image])[0][0])
        assert (g.width, g.height) == (image.shape[1], image.shape[0])


@pytest.mark.parametrize(
    "view",
    [
        lambda i: i[::-1],
        lambda i: i[:, ::-1],
        lambda i: i[..., ::-1],
        lambda i: i[5:50, 7:91],
        lambda i: i[::2, ::3],
        lambda i: np.asfortranarray(i),
        lambda i: i[100:200, 100:260],
    ],
)
@pytest.mark.parametrize("size", [(300, 200), (320, 320)])
def test_views_and_crops(view, size):
    prepare, image = Preprocessor(PreprocessSpec(imgsz=320)), view(noise(*size))
    assert np.array_equal(prepare.batch([image])[0], prepare.batch([image.copy(order="C")])[0])


def test_the_image_is_never_changed():
    image = noise(640, 640)
    before = image.copy()
    Preprocessor(PreprocessSpec(clahe=4)).batch([image])
    assert np.array_equal(image, before)


def test_mean_std_scale_and_order():
    image = noise(90, 120)
    for color in ("RGB", "BGR"):
        spec = PreprocessSpec(
            imgsz=320, color=color, scale=1 / 128, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), pad_value=20
        )
        blob, _ = Preprocessor(spec).batch([image])
        padded = letterbox(image, (320, 320), pad_value=20).image[..., :: -1 if color == "RGB" else 1]
        exact = (padded.astype(np.float64) / 128 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
        np.testing.assert_allclose(blob[0], exact.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)
    assert value_tables(PreprocessSpec()).shape == (3, 256)


def test_clahe_raises_contrast_and_takes_any_size():
    dim = (noise(320, 200) * 0.2).astype(np.uint8)
    assert equalise(dim, 4).std() > dim.std() * 1.5
    for width, height in SILLY:
        assert np.isfinite(
            Preprocessor(PreprocessSpec(imgsz=64, clahe=2)).batch([noise(width, height)])[0]
        ).all()


def test_threads_do_not_share_scratch():
    prepare, wrong = Preprocessor(PreprocessSpec(imgsz=320)), []
    cases = [(noise(w, h, 3), None) for w, h in [(640, 480), (480, 640), (300, 100), (640, 360)]]
    cases = [(image, prepare.batch([image])[0][0].copy()) for image, _ in cases]

    def work(image, expected):
        tensor = np.empty((3, 320, 320), np.float32)
        for _ in range(60):
            prepare.into(image, tensor)
            if not np.array_equal(tensor, expected):
                wrong.append(image.shape)

    threads = [threading.Thread(target=work, args=case) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "bad, said",
    [
        (np.zeros((4, 4), np.uint8), "uint8 (4, 4)"),
        (np.zeros((4, 4, 4), np.uint8), "(4, 4, 4)"),
        (np.zeros((4, 4, 3), np.uint16), "uint16"),
        (np.zeros((0, 4, 3), np.uint8), "(0, 4, 3)"),
        (None, "NoneType"),
    ],
)
def test_not_an_image(bad, said):
    with pytest.raises(DataError) as e:
        Preprocessor(PreprocessSpec()).batch([bad])
    assert said in str(e.value)


def test_wrong_tensor():
    prepare, image = Preprocessor(PreprocessSpec()), noise(10, 10)
    for tensor in (
        np.empty((3, 640, 320), np.float32),
        np.empty((3, 640, 640)),
        np.empty((640, 640, 3), np.float32).transpose(2, 0, 1),
    ):
        with pytest.raises(DataError):
            prepare.into(image, tensor)
    with pytest.raises(ConfigError):
        fit(10, 10, (640, 640), "corner")


@pytest.mark.parametrize("mode", ["center", "top-left", "stretch"])
@pytest.mark.parametrize("clahe", [0, 2.0])
def test_bytes_layout_is_the_float_tensor_before_its_arithmetic(mode, clahe):
    """What a graph with the arithmetic inside receives, put through that arithmetic, is what the plain model
    receives."""
    floats, plain = (
        Preprocessor(PreprocessSpec(imgsz=(320, 416), letterbox=mode, clahe=clahe, layout=x))
        for x in ("nchw-float", "nhwc-uint8")
    )
    slot, last = np.empty((320, 416, 3), np.uint8), None
    for width, height in sizes(60):
        image = noise(width, height)
        last = plain.into(image, slot, last)
        assert np.array_equal(
            slot[..., ::-1].transpose(2, 0, 1).astype(np.float32) / 255, floats.batch([image])[0][0]
        ), (width, height)


def test_bytes_layout_checks_its_tensor():
    plain = Preprocessor(PreprocessSpec(imgsz=64, layout="nhwc-uint8"))
    assert (plain.shape, plain.dtype) == ((64, 64, 3), np.uint8) and plain.batch([])[0].shape == (
        0,
        64,
        64,
        3,
    )
    for wrong in (
        np.empty((64, 64, 3), np.float32),
        np.empty((3, 64, 64), np.uint8),
        np.empty((64, 64, 6), np.uint8)[..., ::2],
    ):
        with pytest.raises(DataError, match="contiguous uint8"):
            plain.into(noise(9, 9), wrong)
