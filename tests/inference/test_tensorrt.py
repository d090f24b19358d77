"""The TensorRT backend on the imitation (real names, real bytes, ONNX Runtime inside) and, in processes of
their own, everything that must not crash."""

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import Backend, BackendError, ConfigError, ModelSpecMismatch
from cv_pipeline.inference.backends import InvalidOutput, OutOfMemory, SteadyBackend
from cv_pipeline.inference.cuda import CudaDevice, DeviceInfo, NoDevice, find_devices
from cv_pipeline.inference.engines import (
    BrokenEngine,
    BuildOptions,
    EngineMismatch,
    build_engine,
    read_engine,
    write_engine,
)
from cv_pipeline.inference.loading import load_backend, load_model
from cv_pipeline.inference.manifest import PreprocessSpec
from cv_pipeline.inference.onnx import OnnxBackend
from cv_pipeline.inference.preprocess import Preprocessor
from cv_pipeline.inference.tensorrt import TensorRTBackend, read_metadata
from tests.helpers import tensorrt_imitation
from tests.helpers.services import place, require
from tests.helpers.tiny_detectors import NAMES, manifest, tiny

FOUR = BuildOptions(max_batch=4)
CARD = DeviceInfo(0, "Imitated Card", (8, 9), "CUDA 13.2", 24 << 30)


class Bench:
    "One tiny model, its engine, and a card that is none."

    def __init__(
        self,
        folder: Path,
        kind: str = "fp32",
        options: BuildOptions = FOUR,
        version: str = "10.16.1.11",
        **graph,
    ):
        self.world, self.layout = (
            tensorrt_imitation.World(),
            "nhwc-uint8" if kind == "bytes" else "nchw-float",
        )
        self.manifest, self.onnx, self.path = (
            manifest(layout=self.layout),
            tiny(folder / "tiny.onnx", kind, **graph),
            folder / "tiny.engine",
        )
        self.trt = tensorrt_imitation.tensorrt(self.world, version)
        build_engine(self.onnx, self.manifest, self.path, options, device=CARD, trt=self.trt)
        self.world.story.clear()

    def device(self, info=CARD):
        return CudaDevice(info, tensorrt_imitation.cuda_runtime(self.world))

    def open(self, made_for=None, info=CARD, **more):
        return TensorRTBackend(
            self.path, made_for or self.manifest, device=self.device(info), trt=self.trt, **more
        )

    def reference(self):
        return OnnxBackend(self.onnx, self.manifest, threads=1)

    def batch(self, count, seed=0):
        rng = np.random.default_rng(seed)
        if self.layout == "nhwc-uint8":
            return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return rng.random((count, 3, 32, 32), np.float32)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


# numbers


@pytest.mark.parametrize("kind", ["fp32", "fp16", "half", "int8", "bytes"])
@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_the_same_answers_as_onnx_runtime_for_any_number_of_images(tmp_path, kind, version):
    bench = Bench(tmp_path, kind, version=version)
    backend, reference = bench.open(), bench.reference()
    assert (
        isinstance(backend, Backend)
        and backend.max_batch == 4
        and backend.fixed_batch is None
        and backend.input_shape == bench.batch(1).shape[1:]
    )
    for count in (1, 4, 7, 1, 4, 12, 3, 7):
        batch = bench.batch(count, count)
        raw = backend.infer(batch)
        assert raw.dtype == np.float32 and raw.shape == (count, 6, 16)
        assert np.abs(raw - reference.infer(batch)).max() < 2e-3
    precision = {"half": "fp16", "fp16": "fp16", "int8": "int8"}.get(kind, "fp32")
    assert backend.provider == f"TensorRT {version}, {precision}, Imitated Card"


@settings(max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 3))
def test_any_sequence_of_batches_with_any_number_of_graphs(tmp_path_factory, counts, graphs):
    bench = getattr(test_any_sequence_of_batches_with_any_number_of_graphs, "bench", None) or Bench(
        tmp_path_factory.mktemp("b")
    )
    test_any_sequence_of_batches_with_any_number_of_graphs.bench = bench
    backend, reference = bench.open(graphs=graphs), bench.reference()
    for k, count in enumerate(counts):
        batch = bench.batch(count, k)
        assert np.abs(backend.infer(batch) - reference.infer(batch)).max() < 1e-5
        assert len(backend._graphs.graphs) <= graphs
    backend.close()


def test_fixed_and_smallest_batches_are_filled_up(tmp_path):
    fixed = Bench(tmp_path, options=BuildOptions(), batch=3)
    backend = fixed.open()
    assert (backend.fixed_batch, backend.max_batch) == (3, 3)
    assert np.abs(backend.infer(fixed.batch(7))[6] - backend.infer(fixed.batch(7)[6:])[0]).max() < 1e-6
    (tmp_path / "two").mkdir()
    low = Bench(tmp_path / "two", options=BuildOptions(2, 3, 4))
    assert np.abs(low.open().infer(low.batch(1)) - low.reference().infer(low.batch(1))).max() < 1e-5
    assert ("set_input_shape", (2, 3, 32, 32)) in low.world.story and (
        "set_input_shape",
        (1, 3, 32, 32),
    ) not in low.world.story


# calls


def test_the_golden_sequence(bench):
    backend = bench.open()
    assert bench.world.story == [
        ("cudaSetDevice", 0),
        ("cudaStreamCreateWithFlags",),
        ("cudaSetDevice", 0),
        ("init_libnvinfer_plugins",),
        ("Runtime",),
        ("deserialize_cuda_engine", False),
        ("create_execution_context",),
        ("set_input_shape", (4, 3, 32, 32)),
        ("cudaMallocHost", 4 * 3 * 32 * 32 * 4),
        ("cudaMallocHost", 4 * 6 * 16 * 4),
        ("cudaMalloc", 4 * 3 * 32 * 32 * 4),
        ("cudaMalloc", 4 * 6 * 16 * 4),
        ("set_tensor_address", "images"),
        ("set_tensor_address", "output0"),
    ]
    bench.world.story.clear()
    backend.infer(bench.batch(2))
    work = [
        ("cudaMemcpyAsync", "up", 2 * 3 * 32 * 32 * 4, 77),
        ("execute_async_v3", 77),
        ("cudaMemcpyAsync", "down", 2 * 6 * 16 * 4, 77),
    ]
    assert bench.world.story == [
        ("set_input_shape", (2, 3, 32, 32)),
        *work,
        ("cudaStreamSynchronize",),
        ("cudaStreamBeginCapture", 77),
        *work,
        ("cudaStreamEndCapture",),
        ("cudaGraphInstantiate",),
        ("cudaGraphDestroy",),
    ]
    bench.world.story.clear()
    backend.infer(bench.batch(2))
    assert bench.world.story == [("cudaGraphLaunch", 77), ("cudaStreamSynchronize",)]
    bench.world.story.clear()
    backend.close()
    backend.close()
    assert bench.world.names() == ["cudaGraphExecDestroy", "cudaFree", "cudaFree", "cudaStreamDestroy"]
    with pytest.raises(BackendError, match="the backend is closed"):
        backend.infer(bench.batch(1))


def test_nothing_is_allocated_after_the_start(bench):
    backend = bench.open()
    backend.warmup()
    bench.world.story.clear()
    for count in (1, 2, 3, 4, 4, 9):
        backend.infer(bench.batch(count))
    assert not {"cudaMalloc", "cudaMallocHost"} & set(bench.world.names())


def test_after_warmup_the_smallest_and_the_largest_batch_are_replays(bench):
    backend = bench.open()
    backend.warmup()
    bench.world.story.clear()
    backend.infer(bench.batch(1))
    backend.infer(bench.batch(4))
    assert bench.world.names() == ["cudaGraphLaunch", "cudaStreamSynchronize"] * 2


def test_graphs_are_bounded_and_the_longest_unused_goes(bench):
    backend = bench.open(graphs=2)
    for count in (1, 2, 1, 3):
        backend.infer(bench.batch(count))
    assert list(backend._graphs.graphs) == [(1, True), (3, True)]
    assert bench.world.names().count("cudaGraphExecDestroy") == 1
    none = bench.open(graphs=0)
    none.infer(bench.batch(2))
    none.infer(bench.batch(2))
    assert none.events == {}


def test_a_network_that_cannot_be_recorded_runs_plainly_and_is_not_tried_again(bench):
    bench.world.fail["cudaStreamEndCapture"] = 901
    backend, reference = bench.open(), bench.reference()
    for k in range(3):
        assert np.abs(backend.infer(bench.batch(2, k)) - reference.infer(bench.batch(2, k))).max() < 1e-5
    assert backend.events == {"graph_refused": 1} and bench.world.names().count("cudaStreamBeginCapture") == 1


def test_a_version_compatible_engine_may_carry_host_code_and_no_other(tmp_path):
    bench = Bench(tmp_path, options=BuildOptions(max_batch=2, version_compatible=True))
    bench.open()
    assert ("deserialize_cuda_engine", True) in bench.world.story


def test_many_threads_get_their_own_answers(bench):
    backend, reference, wrong = bench.open(), bench.reference(), []

    def ask(seed):
        for k in range(20):
            batch = bench.batch(1 + (seed + k) % 5, 100 * seed + k)
            if np.abs(backend.infer(batch) - reference.infer(batch)).max() > 1e-5:
                wrong.append((seed, k))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert bench.world.names().count("cudaSetDevice") > 2, (
        "the current device belongs to a thread: each one must set it"
    )


# failures


def test_no_room_for_the_largest_batch_halves_it(bench):
    bench.world.limit = 2 * (3 * 32 * 32 + 6 * 16) * 4 * 2 + 100
    backend = bench.open()
    assert backend.max_batch == 2 and backend.events == {"oom_split": 1}
    assert np.abs(backend.infer(bench.batch(5)) - bench.reference().infer(bench.batch(5))).max() < 1e-5
    bench.world.limit = 1000
    with pytest.raises(OutOfMemory):
        bench.open()


def test_out_of_memory_while_running_is_split_by_the_steady_backend(bench):
    inner, reference = bench.open(graphs=0), bench.reference()
    steady = SteadyBackend(inner)

    def refuse():
        inner._log.log(1, "Cuda Runtime (out of memory)")
        return False

    bench.world.fail["execute_async_v3"] = [refuse]
    assert np.abs(steady.infer(bench.batch(4)) - reference.infer(bench.batch(4))).max() < 1e-5
    assert steady.events == {"oom_split": 1} and steady.max_batch == 2


def test_what_an_engine_says_when_it_does_not_run_is_quoted(bench):
    backend = bench.open()

    def refuse():
        backend._log.log(1, "Error Code 3: API Usage Error (the stream is lost)")
        return False

    bench.world.fail["execute_async_v3"] = refuse
    with pytest.raises(BackendError, match="failed on a batch of 2: Error Code 3"):
        backend.infer(bench.batch(2))


@pytest.mark.parametrize(
    "call, code, message",
    [
        ("cudaMemcpyAsync", 719, "restart it"),
        ("cudaStreamSynchronize", 700, "restart it"),
        ("cudaMemcpyAsync", 1, "returned error (1)"),
    ],
)
def test_a_lost_device_is_a_backend_error(bench, call, code, message):
    backend = bench.open()
    bench.world.fail[call] = code
    with pytest.raises(BackendError) as e:
        backend.infer(bench.batch(1))
    assert message in str(e.value)


def test_nan_is_never_an_answer(bench):
    with pytest.raises(InvalidOutput, match="NaN or infinity for 1 of 2"):
        bench.open().infer(np.stack([bench.batch(1)[0], np.full((3, 32, 32), np.nan, np.float32)]))


def test_wrong_batches_are_refused(bench, tmp_path):
    backend = bench.open()
    for batch in (bench.batch(1)[:, :2], bench.batch(1)[..., :16], (bench.batch(1) * 255).astype(np.uint8)):
        with pytest.raises(BackendError, match="the model call failed on input"):
            backend.infer(batch)
    (tmp_path / "b").mkdir()
    as_bytes = Bench(tmp_path / "b", "bytes")
    with pytest.raises(BackendError, match="of uint8"):
        as_bytes.open().infer(as_bytes.batch(1).astype(np.float32))


def test_the_manifest_of_another_model(bench):
    for changes, message in [
        (dict(names=NAMES[::-1]), "its classes are nut, bolt"),
        (dict(preprocess=PreprocessSpec(imgsz=(32, 32), color="BGR")), "differs in color"),
        (dict(preprocess=PreprocessSpec(imgsz=64)), "differs in imgsz"),
        (dict(preprocess=PreprocessSpec(imgsz=(32, 32), layout="nhwc-uint8")), "differs in layout"),
    ]:
        with pytest.raises(ModelSpecMismatch) as e:
            bench.open(replace(bench.manifest, **changes))
        assert message in str(e.value)


def test_an_engine_from_elsewhere(bench):
    for info, differences in [
        (replace(CARD, name="Other"), ("gpu",)),
        (replace(CARD, capability=(9, 0)), ("capability",)),
        (replace(CARD, driver="CUDA 12.1"), ("driver",)),
    ]:
        with pytest.raises(EngineMismatch) as e:
            bench.open(info=info)
        assert e.value.differences == differences and "cv-pipeline build" in str(e.value)
        bench.open(info=info, allow=differences)
    assert "deserialize_cuda_engine" in bench.world.names()
    bench.world.story.clear()
    bench.trt.__version__ = "10.17.0.1"
    with pytest.raises(EngineMismatch):
        bench.open()
    assert "Runtime" not in bench.world.names(), "a foreign plan never reaches TensorRT"


def test_a_plan_that_tensorrt_does_not_take(bench, tmp_path):
    write_engine(bench.path, b"some plan", read_engine(bench.path).header)
    with pytest.raises(EngineMismatch, match="not compatible with this version"):
        bench.open()
    data = bytearray(bench.path.read_bytes())
    data[-1] ^= 1
    bench.path.write_bytes(data)
    bench.world.story.clear()
    with pytest.raises(BrokenEngine, match="the plan is damaged"):
        bench.open()
    assert "Runtime" not in bench.world.names()


def test_other_providers_are_refused(bench):
    with pytest.raises(ConfigError, match="an engine runs in TensorRT, not in CPUExecutionProvider"):
        TensorRTBackend(bench.path, bench.manifest, ["cpu"])
    with pytest.raises(ConfigError, match="not an execution provider"):
        TensorRTBackend(bench.path, bench.manifest, ["gpu"])


def test_an_engine_that_gives_integers_or_two_answers(bench, monkeypatch):
    monkeypatch.setattr(
        tensorrt_imitation.Engine, "get_tensor_dtype", lambda self, name: tensorrt_imitation.DataType.INT32
    )
    with pytest.raises(BackendError, match="outputs must be float32 or float16"):
        bench.open()


def test_how_much_is_known_only_when_it_runs(bench, monkeypatch):
    monkeypatch.setattr(tensorrt_imitation.Context, "get_tensor_shape", lambda self, name: (4, 6, -1))
    with pytest.raises(BackendError, match="data-dependent size"):
        bench.open()


# pictures prepared on the device


def test_pictures_prepared_on_the_device_give_what_prepared_tensors_give(tmp_path):
    import shutil

    from tests.helpers.on_the_host import OnTheHost

    if not shutil.which("gcc"):
        pytest.skip("no C compiler for the kernel")
    for kind, dtype in (("fp32", "float32"), ("half", "float16"), ("bytes", "uint8")):
        (tmp_path / kind).mkdir()
        bench = Bench(tmp_path / kind, kind)
        backend = bench.open()
        host = OnTheHost(tmp_path / kind, dtype)
        backend.device.load_kernel = lambda code, name, host=host: getattr(host.library, name)

        def launch(kernel, blocks, threads, arguments, bench=bench):
            import ctypes

            values = [
                ctypes.c_void_p(a.address)
                if hasattr(a, "address")
                else ctypes.c_void_p(int(a))
                if isinstance(a, np.uint64)
                else int(a)
                for a in arguments
            ]
            bench.world.do(lambda: kernel(*values, blocks[1]))

        backend.device.launch = launch
        rng = np.random.default_rng(1)
        images = [
            rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
            for w, h in [(64, 48), (33, 91), (32, 32), (100, 10), (64, 64), (7, 7)]
        ]
        tensor, places = Preprocessor(bench.manifest.preprocess).batch(images)
        for _ in range(3):
            raw, where = backend.infer_images(images)
            assert where == places and np.abs(raw - backend.infer(tensor)).max() < 2e-3
        assert backend.events["graph_replay"] >= 4


# the whole way, and processes of their own


def test_a_bare_engine_is_opened_by_its_ending_with_the_metadata_inside(bench, monkeypatch):
    from cv_pipeline.inference import tensorrt as room

    monkeypatch.setattr(room, "open_device", lambda index: bench.device())
    monkeypatch.setattr(room, "load_tensorrt", lambda build: bench.trt)
    model = load_model(bench.path)
    assert model.manifest.names == NAMES and model.manifest.preprocess.imgsz == (32, 32)
    sure = model.with_postprocess(conf=0.99)  # its boxes are noise: none above that
    assert len(sure.predict([np.zeros((40, 60, 3), np.uint8)])) == 1
    assert isinstance(load_backend(bench.path, bench.manifest), TensorRTBackend)
    assert read_metadata(bench.path)["names"] == "{0: 'nut', 1: 'bolt'}"


def no_card():
    try:
        find_devices()
    except NoDevice:
        return True
    return False


@pytest.mark.skipif(not no_card(), reason="there is a card here")
@pytest.mark.parametrize(
    "case, message",
    [
        ("good", "NoDevice: no NVIDIA driver"),
        ("missing", "engine file not found"),
        ("damaged", "NoDevice"),
        ("garbage", "BrokenEngine"),
        ("onnx", "this is an ONNX model, not an engine"),
    ],
)
def test_without_a_driver_nothing_crashes(bench, case, message):
    "In a process of its own and with the real TensorRT-RTX in reach, whose runtime would end the process."
    path = bench.path if case in ("good", "damaged") else bench.path.with_name(f"{case}.engine")
    if case == "garbage":
        path.write_bytes(os.urandom(2) + b"\x00\x00" + os.urandom(50))
    if case == "onnx":
        path.write_bytes(bench.onnx.read_bytes())
    if case == "damaged":
        path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    rtx = Path(sys.prefix) / "trtrtx"
    code = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parents[2])!r}, {str(rtx)!r}]
from tests.helpers.tiny_detectors import manifest
from cv_pipeline.inference.loading import load_backend
from pathlib import Path
load_backend(Path({str(path)!r}), manifest())
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 1 and message in answer.stderr and "Traceback" in answer.stderr, (
        answer.returncode,
        answer.stderr,
    )


@pytest.mark.skipif(not no_card(), reason="there is a card here")
@pytest.mark.parametrize("plan", ["real", "garbage"])
def test_a_real_runtime_that_finds_no_card_is_quoted(tmp_path, plan):
    """The real TensorRT-RTX, led past the question for a driver by an imitated device: it refuses, and its
    reason is ours."""
    code = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parents[2])!r}, {str(place("trtrtx"))!r}]
from pathlib import Path
from tests.helpers import tensorrt_imitation
from tests.helpers.tiny_detectors import manifest, tiny
from cv_pipeline.inference.cuda import CudaDevice, DeviceInfo
from cv_pipeline.inference.engines import build_engine, load_tensorrt, read_engine, write_engine
from cv_pipeline.inference.tensorrt import TensorRTBackend
card, folder = DeviceInfo(0, "Imitated Card", (8, 9), "CUDA 13.2", 24 << 30), Path({str(tmp_path)!r})
trt = load_tensorrt("tensorrt_rtx_bindings")
built = build_engine(tiny(folder / "tiny.onnx"), manifest(), device=card, trt=trt)
if {plan!r} == "garbage": write_engine(built.path, b"garbage" * 9, read_engine(built.path).header)
runtime = tensorrt_imitation.cuda_runtime(tensorrt_imitation.World())
TensorRTBackend(built.path, manifest(), device=CudaDevice(card, runtime), trt=trt)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 1 and "BackendError: TensorRT cannot access the GPU" in answer.stderr, (
        answer.returncode,
        answer.stderr,
    )


@pytest.mark.gpu
def test_on_a_card_build_run_and_compare(tmp_path):
    "Runs where there is a card and TensorRT; it was not run so far."
    if no_card():
        pytest.skip("no card here")
    require("tensorrt")
    for kind in ("fp32", "fp16", "int8", "bytes"):
        layout = "nhwc-uint8" if kind == "bytes" else "nchw-float"
        onnx, made_for = tiny(tmp_path / f"{kind}.onnx", kind), manifest(f"{kind}.onnx", layout)
        built = build_engine(onnx, made_for, options=BuildOptions(max_batch=4))
        backend, reference = (
            TensorRTBackend(built.path, made_for),
            OnnxBackend(onnx, made_for, ["cpu"], threads=1),
        )
        backend.warmup()
        rng = np.random.default_rng(0)
        for count in (1, 4, 3, 4, 9):
            batch = (
                rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
                if kind == "bytes"
                else rng.random((count, 3, 32, 32), np.float32)
            )
            assert np.abs(backend.infer(batch) - reference.infer(batch)).max() < 2e-2
        assert backend.events["graph_replay"] > 0
        backend.close()
