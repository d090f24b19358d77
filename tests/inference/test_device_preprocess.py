"""Letterbox on the device: the same floats as on the host, to the last bit, in torch and in the kernel's own
text compiled for the host."""

import os
import shutil
import subprocess

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import BackendError, ConfigError, DataError
from cv_pipeline.inference.device_preprocess import (
    VALUE_TYPES,
    KernelPreprocessor,
    Packed,
    TorchPreprocessor,
    compile_kernel,
    resize_axis,
)
from cv_pipeline.inference.manifest import PreprocessSpec
from cv_pipeline.inference.preprocess import Preprocessor, fit
from tests.helpers.on_the_host import OnTheHost
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
    (1280, 720),
    (1920, 1080),
]
SPECS = {
    "yolov8": PreprocessSpec(imgsz=(640, 640)),
    "odd": PreprocessSpec(imgsz=(320, 416)),
    "bytes": PreprocessSpec(imgsz=(320, 416), layout="nhwc-uint8"),
    "yolox": PreprocessSpec(imgsz=416, letterbox="top-left", color="BGR", scale=1),
    "stretch": PreprocessSpec(imgsz=(96, 160), letterbox="stretch", pad_value=0),
    "imagenet": PreprocessSpec(imgsz=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}


def sizes(count: int, seed: int = 3) -> list[tuple[int, int]]:
    drawn = np.exp(np.random.default_rng(seed).uniform(0, np.log(1500), (count, 2))).astype(int).clip(1)
    return SILLY + [tuple(map(int, size)) for size in drawn]


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def host(tmp_path):
    if not shutil.which("gcc"):
        pytest.skip("no C compiler here")
    return lambda dtype="float32": OnTheHost(tmp_path, dtype)


@pytest.mark.parametrize("name", SPECS)
def test_torch_makes_the_hosts_tensor_on_many_odd_sizes(name):
    require("torch")
    spec = SPECS[name]
    reference, device = (
        Preprocessor(spec),
        TorchPreprocessor(spec, dtype="uint8" if name == "bytes" else "float32"),
    )
    for width, height in sizes(40):
        image = noise(width, height)
        (wanted, places), (given_, where) = reference.batch([image]), device.batch([image])
        assert np.array_equal(given_.numpy(), wanted) and where == places, (name, width, height)


@pytest.mark.parametrize("name", SPECS)
def test_the_kernel_makes_the_hosts_tensor_in_one_launch_of_mixed_sizes(name, host):
    spec, dtype = SPECS[name], "uint8" if name == "bytes" else "float32"
    device, reference = host(dtype), Preprocessor(spec)
    prepare, all_sizes = KernelPreprocessor(spec, device, dtype), sizes(26)
    for start in range(0, len(all_sizes), 8):
        images = [noise(*size) for size in all_sizes[start : start + 8]]
        wanted, places = reference.batch(images)
        out = np.full_like(wanted, 77)
        before = device.launches
        assert prepare.into(images, out.ctypes.data) == places
        assert np.array_equal(out, wanted), (name, all_sizes[start : start + 8])
        assert device.launches == before + 1


def test_half_precision_is_the_rounded_float(host):
    images = [noise(333, 517), noise(64, 20)]
    wanted = Preprocessor(SPECS["imagenet"]).batch(images)[0].astype(np.float16)
    out = np.empty_like(wanted)
    KernelPreprocessor(SPECS["imagenet"], host("float16"), "float16").into(images, out.ctypes.data)
    assert np.array_equal(out, wanted)
    torch = require("torch")
    assert TorchPreprocessor(SPECS["imagenet"], dtype="float16").batch(images)[0].dtype == torch.float16
    assert np.array_equal(
        TorchPreprocessor(SPECS["imagenet"], dtype="float16").batch(images)[0].numpy(), wanted
    )


@settings(max_examples=150)
@given(st.integers(1, 4000), st.integers(1, 1500))
def test_weights_are_a_partition_and_positions_lie_inside(taken, given_):
    for across in (True, False):
        table = resize_axis(taken, given_, across)
        assert table.shape == (given_, 4) and table.dtype == np.int32
        assert (table[:, 2] + table[:, 3] == 2048).all() and table[:, 2:].min() >= 0
        assert table[:, :2].min() >= 0 and table[:, :2].max() < taken


def test_rounding_is_opencvs_and_not_torchs():
    "The reason for this room: float interpolation is another preprocessing, in one level of 255."
    torch = require("torch")
    image = noise(768, 432)
    floats = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].float(),
        (360, 640),
        mode="bilinear",
        align_corners=False,
    )
    off = np.abs(
        floats[0].permute(1, 2, 0).round().numpy() - cv2.resize(image, (640, 360)).astype(np.float32)
    )
    assert 0 < off.max() <= 1 and (off > 0).mean() > 0.02


def test_views_flips_and_tensors_already_there():
    torch = require("torch")
    image = noise(300, 200)
    reference, device = Preprocessor(SPECS["odd"]), TorchPreprocessor(SPECS["odd"])
    for odd in (image[::-1], image[:, ::-1], image[10:77, 5:200], image[..., ::-1], np.asfortranarray(image)):
        assert np.array_equal(device.batch([odd])[0].numpy(), reference.batch([odd])[0])
    assert np.array_equal(device.batch([torch.from_numpy(image)])[0].numpy(), reference.batch([image])[0])


def test_writes_into_a_given_tensor_and_leaves_other_slots_alone():
    torch = require("torch")
    out = torch.full((4, 3, 320, 416), -7.0)
    given_, _ = TorchPreprocessor(SPECS["odd"]).batch([noise(50, 60), noise(900, 8)], out)
    assert given_.data_ptr() == out.data_ptr() and len(given_) == 2
    assert (out[2:] == -7).all() and (out[:2] >= 0).all()
    assert TorchPreprocessor(SPECS["odd"]).batch([])[0].shape == (0, 3, 320, 416)


def test_tables_go_over_only_when_sizes_change_and_views_are_packed_rightly(host):
    device, out = host(), np.empty((2, 3, 320, 416), np.float32)
    prepare = KernelPreprocessor(SPECS["odd"], device)
    cameras = [noise(640, 480), noise(1280, 720)]
    prepare.into(cameras, out.ctypes.data)
    device.uploads.clear()
    flipped = [cameras[0][::-1], cameras[1][:, ::-1]]
    prepare.into(flipped, out.ctypes.data)
    assert device.uploads == [sum(c.nbytes for c in cameras)], (
        "the second batch of the same cameras uploads its bytes only"
    )
    assert np.array_equal(out, Preprocessor(SPECS["odd"]).batch(flipped)[0])
    prepare.into(cameras[:1], out.ctypes.data)
    assert device.uploads[-1] == cameras[0].nbytes and prepare.into([], 0) == []


def test_a_failed_upload_does_not_leave_old_tables_in_use(host):
    device, out = host(), np.empty((1, 3, 320, 416), np.float32)
    prepare, upload = KernelPreprocessor(SPECS["odd"], device), device.upload
    prepare.into([noise(100, 50)], out.ctypes.data)

    def broken(memory, array):
        raise BackendError("lost")

    device.upload = broken
    with pytest.raises(BackendError):
        prepare.into([noise(60, 80)], out.ctypes.data)
    device.upload = upload
    prepare.into([noise(60, 80)], out.ctypes.data)
    assert np.array_equal(out, Preprocessor(SPECS["odd"]).batch([noise(60, 80)])[0])


def test_cameras_of_one_size_share_their_tables():
    one, many = Packed([(1920, 1080)], SPECS["yolov8"]), Packed([(1920, 1080)] * 16, SPECS["yolov8"])
    assert one.axes.nbytes == many.axes.nbytes and many.nbytes == 16 * one.nbytes
    assert many.geometries[3] == fit(1920, 1080, (640, 640))


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.zeros((5, 5), np.uint8), "not uint8 (5, 5) [image 1]"),
        (np.zeros((5, 5, 3), np.float32), "not float32"),
        (np.zeros((0, 5, 3), np.uint8), "(0, 5, 3)"),
        ("picture.jpg", "not str ()"),
    ],
)
def test_what_is_no_picture_is_refused_before_anything_is_written(bad, message, host):
    require("torch")
    out = np.full((2, 3, 320, 416), 5, np.float32)
    for call in (
        lambda: TorchPreprocessor(SPECS["odd"]).batch([noise(4, 4), bad]),
        lambda: KernelPreprocessor(SPECS["odd"], host()).into([noise(4, 4), bad], out.ctypes.data),
    ):
        with pytest.raises(DataError) as e:
            call()
        assert message in str(e.value)
    assert (out == 5).all()


def test_what_has_no_kernel_is_a_config_error(host):
    require("torch")
    for spec, dtype, message in [
        (PreprocessSpec(clahe=2), "float32", "clahe is supported on the host only"),
        (PreprocessSpec(), "float64", "does not support float64"),
        (PreprocessSpec(), "uint8", "nchw-float does not support uint8"),
        (PreprocessSpec(layout="nhwc-uint8"), "float32", "nhwc-uint8 does not support"),
    ]:
        for make in (
            lambda s, d: TorchPreprocessor(s, dtype=d),
            lambda s, d: KernelPreprocessor(s, object(), d),
        ):
            with pytest.raises(ConfigError) as e:
                make(spec, dtype)
            assert message in str(e.value)


@pytest.mark.parametrize(
    "arch", ["compute_75", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
)
def test_nvrtc_compiles_the_kernel_for_every_card_since_turing(arch):
    require("cuda.bindings.nvrtc")
    for dtype in VALUE_TYPES:
        code = compile_kernel(arch, dtype)
        assert code[:4] == b"\x7fELF" if arch.startswith("sm_") else b".entry letterbox_batch" in code


def test_a_chip_that_nvrtc_does_not_know_is_a_backend_error():
    require("cuda.bindings.nvrtc")
    with pytest.raises(BackendError, match="NVRTC cannot compile the kernel"):
        compile_kernel("sm_10")


@pytest.mark.gpu
def test_on_a_card_the_same_floats():
    "Runs where there is a card; it was not run so far."
    from cv_pipeline.inference.cuda import NoDevice, open_device

    try:
        device = open_device()
    except NoDevice as e:
        pytest.skip(f"no card here: {e.what}")
    spec, images = SPECS["odd"], [noise(*size) for size in SILLY]
    wanted, _ = Preprocessor(spec).batch(images)
    memory, back = device.memory(wanted.nbytes), device.pinned(wanted.shape, np.float32)
    KernelPreprocessor(spec, device).into(images, memory.address)
    device.download(back, memory)
    device.synchronize()
    assert np.array_equal(back, wanted)

    assert np.array_equal(TorchPreprocessor(spec, "cuda").batch(images)[0].cpu().numpy(), wanted)


def test_the_module_does_not_import_torch_or_cuda_at_its_top():
    code = (
        "import sys, cv_pipeline.inference.device_preprocess, cv_pipeline.inference.cuda, "
        "cv_pipeline.inference.tensorrt; assert not {'torch', 'cuda', 'tensorrt', 'onnx'} & "
        "set(sys.modules)"
    )
    subprocess.run([os.sys.executable, "-c", code], check=True)
