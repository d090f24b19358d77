"""The driver asked before anything else: drivers written for the purpose, the real cuda-python without a
card, and bytes through host memory."""

import contextlib
import ctypes
import inspect
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_pipeline.core.types import BackendError, ConfigError
from cv_pipeline.inference import cuda
from cv_pipeline.inference.backends import OutOfMemory
from cv_pipeline.inference.cuda import (
    CudaDevice,
    DeviceInfo,
    NoDevice,
    TorchDevice,
    checked,
    find_device,
    find_devices,
    launch_arguments,
    open_device,
)
from tests.helpers import tensorrt_imitation
from tests.helpers.services import require

CARD = DeviceInfo(0, "Imitated Card", (8, 9), "CUDA 13.2", 24 << 30)
DRIVER = r"""
#include <string.h>
#include <stdio.h>
static int ready = 0;
int cuInit(unsigned f) { ready = 1; return INIT; }
int cuDriverGetVersion(int* v) { *v = 12080; return 0; }
int cuDeviceGetCount(int* n) { *n = COUNT; return ready ? 0 : 3; }
int cuDeviceGet(int* d, int i) { *d = 40 + i; return 0; }
int cuDeviceGetName(char* s, int n, int d) {
  if (n < 16) return 1;
  snprintf(s, n, "Card %d", d - 40);
  return 0;
}
int cuDeviceGetAttribute(int* v, int a, int d) {
  *v = a == 75 ? 12 : a == 76 ? d - 40 : -1;
  return ATTRIBUTE;
}
int cuDeviceTotalMem_v2(size_t* b, int d) { *b = (size_t)141 << 30; return 0; }
int cuGetErrorName(int e, const char** s) {
  *s = e == 100 ? "CUDA_ERROR_NO_DEVICE" : 0;
  return e == 100 ? 0 : 1;
}
"""
here = pytest.mark.skipif(not shutil.which("gcc"), reason="no C compiler to write a driver with")


@pytest.fixture
def driver(tmp_path):
    def make(init=0, count=3, attribute=0, text=DRIVER):
        (tmp_path / "d.c").write_text(text)
        path = tmp_path / "libcuda.so.1"
        defines = [f"-DINIT={init}", f"-DCOUNT={count}", f"-DATTRIBUTE={attribute}"]
        subprocess.run(["gcc", "-shared", "-fPIC", *defines, "-o", path, tmp_path / "d.c"], check=True)
        return str(path)

    return make


@here
def test_a_working_driver_is_read_completely(driver):
    devices = find_devices(driver())
    assert [(d.index, d.name, d.capability, d.memory_bytes, d.arch) for d in devices] == [
        (i, f"Card {i}", (12, i), 141 << 30, f"sm_12{i}") for i in range(3)
    ]
    assert all("CUDA 12.8" in d.driver for d in devices) and "141 GiB" in str(devices[0])


@here
@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(init=100), ["cuInit returned CUDA_ERROR_NO_DEVICE (100)", "--gpus all"]),
        (dict(init=803), ["error 803", "restart the machine"]),
        (dict(init=3), ["error 3", "'spawn'"]),
        (dict(init=802), ["fabricmanager"]),
        (dict(init=999), ["error 999", "nvidia-smi"]),
        (dict(count=0), ["the driver sees no GPU"]),
        (dict(attribute=1), ["cuDeviceGetAttribute returned"]),
        (dict(text="int x;"), ["has no function cuInit"]),
    ],
)
def test_every_no_has_a_name_and_a_remedy(driver, settings, words):
    path = driver(**settings)
    code = f"from cv_pipeline.inference.cuda import find_devices\nfind_devices({path!r})"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )  # a process of its own: a crash would be seen as one
    assert answer.returncode == 1 and "cv_pipeline.inference.cuda.NoDevice" in answer.stderr
    assert all(word in answer.stderr for word in words), answer.stderr


def test_no_driver_at_all():
    with pytest.raises(NoDevice, match="no NVIDIA driver") as e:
        find_devices("libcuda-that-nobody-has.so.1")
    assert (
        isinstance(e.value, BackendError) and e.value.exit_code == 4 and "install the driver" in str(e.value)
    )


@here
def test_a_device_that_is_not_there(driver):
    with pytest.raises(NoDevice, match="device 9 not found — present: 0: Card 0, 1: Card 1, 2: Card 2"):
        find_device(9, driver())
    with pytest.raises(NoDevice):
        find_device(-1, driver())


def test_module_version_is_read_from_the_kernels_words(tmp_path):
    text = (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (root@x)  "
        "Mon "
        "Sep\nGCC version:  gcc version 13.3.0\n"
    )
    (tmp_path / "version").write_text(text)
    assert cuda._module_version(tmp_path / "version") == "580.95.05"
    assert cuda._module_version(tmp_path / "none") == ""


def test_status_codes_become_the_right_errors():
    assert checked((0,), "x") is None and checked((0, 5), "x") == 5
    with pytest.raises(OutOfMemory, match="cudaMalloc of 3 MB"):
        checked((2, None), "cudaMalloc of 3 MB")
    for code in (700, 719):
        with pytest.raises(BackendError, match="restart it"):
            checked((code,), "replay")
    with pytest.raises(BackendError) as e:
        checked((1,), "x")
    assert not isinstance(e.value, OutOfMemory)


@pytest.mark.slow
def test_the_real_cuda_python_without_a_card_raises_and_does_not_crash():
    require("cuda.bindings.runtime")
    code = """
from cv_pipeline.inference.cuda import *
from cv_pipeline.core.types import BackendError
info = DeviceInfo(0, "Imitated Card", (8, 9), "CUDA 13.2", 1)
try: find_devices()
except NoDevice: pass
else: raise SystemExit(77)
for make in (CudaDevice, TorchDevice):
    try: make(info)
    except BackendError as e: print(make.__name__, e)
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    if answer.returncode == 77:
        pytest.skip("there is a card here")
    assert answer.returncode == 0, answer.stderr
    assert (
        "CudaDevice cudaSetDevice returned cuda" in answer.stdout and "TorchDevice torch: " in answer.stdout
    ), answer.stdout


def test_every_name_and_every_number_of_arguments_is_cuda_pythons():
    runtime, driver = require("cuda.bindings.runtime"), require("cuda.bindings.driver")
    text = inspect.getsource(cuda)
    calls = (
        set(re.findall(r'_call\(\s*"(cuda\w+)"', text))
        | set(re.findall(r"self\.runtime\.(cuda[A-Z]\w+)\(", text))
        | set(re.findall(r"driver\.(cu[A-Z]\w+)\(", text))
    )
    assert len(calls) >= 16 and "cudaMemcpyAsync" in calls and "cuLaunchKernel" in calls
    assert [name for name in calls if not hasattr(runtime, name) and not hasattr(driver, name)] == []
    imitated = vars(tensorrt_imitation.cuda_runtime(tensorrt_imitation.World()))
    assert [name for name in imitated if not hasattr(runtime, name)] == [], (
        "the imitation knows a call that cuda-python does not have"
    )
    assert [n for n in calls if n.startswith("cuda") and n not in imitated] == []
    parameters = lambda f: re.search(r"\((.*?)\)", f.__doc__.splitlines()[0])[1].count(",") + 1
    assert [
        parameters(f)
        for f in (
            runtime.cudaMemcpyAsync,
            runtime.cudaStreamBeginCapture,
            runtime.cudaGraphInstantiate,
            driver.cuLaunchKernel,
        )
    ] == [5, 2, 2, 11]
    assert (
        int(runtime.cudaMemcpyKind.cudaMemcpyHostToDevice) == 1
        and int(runtime.cudaError_t.cudaErrorMemoryAllocation) == 2
    )
    assert runtime.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed is not None


def test_the_real_cuda_python_takes_these_types_of_arguments_in_every_call():
    """Without a driver each call gets as far as the library's own status; an argument of a wrong type would
    be a TypeError before that."""
    runtime, driver = require("cuda.bindings.runtime"), require("cuda.bindings.driver")
    if int(runtime.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a card here: made-up addresses must not reach it")
    device = CudaDevice.__new__(CudaDevice)
    device.info, device.runtime, device.driver, device.stream = CARD, runtime, driver, 77
    array, memory = np.zeros(4, np.float32), cuda.DeviceMemory(1 << 40, 16, lambda: None)
    graph = runtime.cudaGraphExec_t(3)
    for call in (
        device.use,
        lambda: device.memory(100),
        lambda: device.pinned((2, 3), np.float32),
        lambda: device.upload(memory, array),
        lambda: device.download(array, memory),
        device.synchronize,
        lambda: device.record(lambda: None),
        lambda: device.replay(graph),
        lambda: device.forget(graph),
        device.free_memory,
    ):
        with pytest.raises(
            BackendError, match=r"cudaErrorInsufficientDriver \(35\)|cudaErrorNoDevice \(100\)"
        ):
            call()
    for status in (
        runtime.cudaStreamEndCapture(77)[0],
        runtime.cudaGraphInstantiate(runtime.cudaGraph_t(3), 0)[0],
        runtime.cudaGraphDestroy(runtime.cudaGraph_t(3))[0],
        runtime.cudaFree(5)[0],
        runtime.cudaFreeHost(5)[0],
    ):
        assert int(status) in (35, 100)
    kernel = "module", driver.CUfunction(5)
    for call in (
        lambda: driver.cuModuleLoadData(b"image"),
        lambda: driver.cuModuleGetFunction(driver.CUmodule(3), b"letterbox_batch"),
        lambda: device.launch(kernel, (7, 2), 256, [memory, np.uint64(1 << 41), 640, 1]),
    ):
        with pytest.raises(Exception) as e:  # no libcuda at all, or a driver that does not start
            call()
            raise BackendError("answered by a driver")
        assert not isinstance(e.value, TypeError), e.value
    with pytest.raises(TypeError):
        driver.cuLaunchKernel(5, 7, 2, 1, 256, 1, 1, 0, 77, ((1,), (str,)), 0)


def test_kernel_arguments_are_what_cuda_python_packs():
    memory = cuda.DeviceMemory(1 << 40, 8, lambda: None)
    values, types = launch_arguments([memory, np.uint64(1 << 41), 640, 1])
    assert values == (1 << 40, 1 << 41, 640, 1)
    assert types == (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)


@pytest.fixture
def device():
    world = tensorrt_imitation.World()
    made = CudaDevice(CARD, tensorrt_imitation.cuda_runtime(world))
    made.world = world
    return made


@given(st.integers(0, 300), st.sampled_from([np.uint8, np.float16, np.float32]))
def test_bytes_come_back_as_they_went(count, dtype):
    device = CudaDevice(CARD, tensorrt_imitation.cuda_runtime(tensorrt_imitation.World()))
    up, down = device.pinned((count,), dtype), device.pinned((count,), dtype)
    up[:] = np.arange(count) % 251
    memory = device.memory(up.nbytes)
    device.upload(memory, up)
    device.download(down, memory)
    device.synchronize()
    assert np.array_equal(up, down) and down.dtype == dtype


def test_recording_does_not_run_and_replaying_does(device):
    up, down, memory = device.pinned((4,), np.uint8), device.pinned((4,), np.uint8), device.memory(4)
    up[:], down[:] = 7, 0
    graph = device.record(lambda: (device.upload(memory, up), device.download(down, memory)))
    assert (down == 0).all()
    up[:] = 9
    device.replay(graph)
    device.synchronize()
    assert (down == 9).all()


def test_a_failed_recording_is_ended_so_that_the_stream_stays_usable(device):
    def broken():
        raise BackendError("in the middle")

    with pytest.raises(BackendError, match="in the middle"):
        device.record(broken)
    assert device.world.names()[-1] == "cudaStreamEndCapture" and device.world.recording is None
    device.world.fail["cudaStreamEndCapture"] = [901]
    with pytest.raises(BackendError, match="recording a graph returned error .901."):
        device.record(lambda: None)


def test_memory_is_freed_once_and_pinned_views_keep_their_block(device):
    memory, array = device.memory(100), device.pinned((10,), np.float32)
    view = array[3:]
    del array
    assert device.world.freed == 0
    view[:] = 1
    del view
    memory.free()
    memory.free()
    del memory
    assert device.world.freed == 2 and device.world.blocks == {}


def test_no_memory_is_out_of_memory(device):
    device.world.limit = 1000
    for call in (lambda: device.memory(2000), lambda: device.pinned((2000,), np.uint8)):
        with pytest.raises(OutOfMemory):
            call()
    device.close()
    device.close()
    assert device.world.names().count("cudaStreamDestroy") == 1


def test_copies_that_do_not_fit_are_refused(device):
    memory = device.memory(10)
    for array in (np.zeros(11, np.uint8), np.zeros((4, 4), np.uint8)[:, :2]):
        with pytest.raises(BackendError, match="to 10 bytes of device memory"):
            device.upload(memory, array)
    assert "cudaMemcpyAsync" not in device.world.names()


def test_kernels_fall_back_to_ptx_where_the_compiler_does_not_know_the_chip(device):
    calls = []

    class Driver:
        def cuModuleLoadData(self, text):
            calls.append(text)
            return 0, "module"

        def cuModuleGetFunction(self, module, name):
            return 0, (module, name)

        def cuLaunchKernel(self, *args):
            calls.append(args)
            return (0,)

    def code(arch):
        if arch == "sm_89":
            raise BackendError("unknown chip")
        return arch.encode()

    device.driver = Driver()
    kernel = device.load_kernel(code, "letterbox_batch")
    device.launch(kernel, (7, 2), 256, [np.uint64(5), 3])
    assert calls == [
        b"compute_75",
        (
            ("module", b"letterbox_batch"),
            7,
            2,
            1,
            256,
            1,
            1,
            0,
            77,
            ((5, 3), (ctypes.c_void_p, ctypes.c_int)),
            0,
        ),
    ]


def test_who_allocates(monkeypatch):
    with pytest.raises(ConfigError, match="use auto, torch or cuda-python"):
        open_device(memory="cupy")
    taken = []
    monkeypatch.setattr(cuda, "TorchDevice", lambda info: taken.append("torch"))
    monkeypatch.setattr(cuda, "CudaDevice", lambda info: taken.append("cuda-python"))
    monkeypatch.setitem(sys.modules, "torch", object())
    open_device(info=CARD)
    open_device(memory="cuda-python", info=CARD)
    monkeypatch.delitem(sys.modules, "torch")
    open_device(info=CARD)
    open_device(memory="torch", info=CARD)
    assert taken == ["torch", "cuda-python", "cuda-python", "torch"]


class TorchOnTheHost:
    "torch, whose device memory and pinned memory are ordinary tensors; streams and graphs are written down."

    def __init__(self, torch):
        self.real, self.story, story = torch, [], []
        self.story, self.uint8, self.device, self.from_numpy = (
            story,
            torch.uint8,
            lambda kind, index: torch.device("cpu"),
            torch.from_numpy,
        )
        self.OutOfMemoryError = torch.OutOfMemoryError

        class Stream:
            cuda_stream = 77

            def __init__(self, device):
                pass

            def synchronize(self):
                story.append("synchronize")

        @contextlib.contextmanager
        def stream(which):
            story.append("enter")
            yield
            story.append("leave")

        @contextlib.contextmanager
        def graph(what, stream, capture_error_mode):
            story.append(f"record {capture_error_mode}")
            yield

        self.cuda = SimpleNamespace(
            Stream=Stream,
            stream=stream,
            graph=graph,
            CUDAGraph=lambda: SimpleNamespace(
                replay=lambda: story.append("replay"), reset=lambda: story.append("reset")
            ),
        )

    def empty(self, size, dtype, device=None, pin_memory=False):
        return self.real.empty(size, dtype=dtype)


def test_torchs_memory_takes_and_gives_bytes_of_every_type():
    torch = require("torch")
    device = TorchDevice(CARD, TorchOnTheHost(torch))
    assert device.stream == 77 and device.kind == "torch"
    for dtype in (np.uint8, np.float16, np.float32):
        up, down = device.pinned((3, 5), dtype), device.pinned((3, 5), dtype)
        up[:] = np.arange(15).reshape(3, 5)
        memory = device.memory(2 * up.nbytes)
        assert memory.address == memory.owner.data_ptr() and memory.nbytes == 2 * up.nbytes
        device.upload(memory, up)
        device.download(down[:2], memory)
        assert np.array_equal(down[:2], up[:2]) and down.dtype == dtype
        with pytest.raises(BackendError, match="bytes of device memory"):
            device.upload(memory, np.zeros(1000, dtype))
    graph = device.record(lambda: None)
    device.replay(graph)
    device.forget(graph)
    device.synchronize()
    assert device.torch.story[-6:] == ["record relaxed", "enter", "replay", "leave", "reset", "synchronize"]
    memory.free()
    assert memory.owner is None


def test_every_name_is_torchs():
    torch = require("torch")
    for owner, names in (
        (torch.cuda, ("Stream", "stream", "graph", "CUDAGraph", "mem_get_info", "set_device")),
        (torch.cuda.CUDAGraph, ("replay", "reset")),
        (torch.cuda.Stream, ("synchronize",)),
        (torch, ("OutOfMemoryError", "from_numpy")),
    ):
        assert [n for n in names if not hasattr(owner, n)] == []
    assert {"stream", "capture_error_mode"} <= set(inspect.signature(torch.cuda.graph.__init__).parameters)


def test_torch_without_cuda_is_a_backend_error_and_its_out_of_memory_is_ours():
    torch = require("torch")
    device = TorchDevice.__new__(TorchDevice)
    device.torch = torch

    def broken(error):
        raise error

    with pytest.raises(OutOfMemory, match="smaller max_batch"):
        device._try(
            lambda: broken(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"))
        )
    for error in (
        RuntimeError("CUDA error: device-side assert"),
        AssertionError("Torch not compiled with CUDA enabled"),
    ):
        with pytest.raises(BackendError, match="torch: "):
            device._try(lambda error=error: broken(error))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["cuda-python", "torch"])
def test_on_a_card_bytes_come_back_and_graphs_replay(kind):
    "Runs where there is a card; it was not run so far."
    try:
        device = open_device(memory=kind)
    except NoDevice as e:
        pytest.skip(f"no card here: {e.what}")
    errors = []

    def other_thread():
        try:
            device.use()
            test_recording_does_not_run_and_replaying_does(device)
        except BaseException as e:
            errors.append(e)

    test_recording_does_not_run_and_replaying_does(device)
    worker = threading.Thread(target=other_thread)
    worker.start()
    worker.join()
    assert errors == [] and device.free_memory()[0] > 0
    assert Path("/proc/driver/nvidia").exists() or sys.platform == "win32"
