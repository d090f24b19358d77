"""What the checks stand on: a card, or its stand-ins on the memory of the host, where the way is walked and
nothing is proven."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from cv_pipeline.inference.cuda import CudaDevice, DeviceInfo, find_device
from cv_pipeline.inference.engines import load_tensorrt
from cv_pipeline.inference.tensorrt import TensorRTBackend

STAND_IN = DeviceInfo(0, "Stand-in", (8, 9), "CUDA 13.2", 24 << 30)


class NotHere(Exception):
    "A check that cannot run on this machine, and why."


@dataclass
class Ground:
    "A card and a folder."

    out: Path
    stand_ins: bool = False
    seconds: float = 3.0  # of one measurement
    index: int = 0

    @cached_property
    def info(self) -> DeviceInfo:
        return STAND_IN if self.stand_ins else find_device(self.index)

    @cached_property
    def world(self) -> Any:
        "The memory that the stand-ins share."
        from tests.helpers import tensorrt_imitation

        return tensorrt_imitation.World()

    def device(self) -> CudaDevice:
        "Memory, a stream and graphs."
        if not self.stand_ins:
            return CudaDevice(self.info)
        from tests.helpers import tensorrt_imitation

        return CudaDevice(self.info, tensorrt_imitation.cuda_runtime(self.world))

    @cached_property
    def trt(self) -> Any:
        "The module of TensorRT."
        if not self.stand_ins:
            return load_tensorrt()
        from tests.helpers import tensorrt_imitation

        return tensorrt_imitation.tensorrt(self.world)

    def kernel_device(self, dtype: str) -> Any:
        "A device that runs the preprocessing kernel."
        if not self.stand_ins:
            return CudaDevice(self.info)
        if not shutil.which("gcc"):
            raise NotHere("no C compiler, which the stand-in of the kernel needs")
        from tests.helpers.on_the_host import OnTheHost

        folder = self.out / f"kernel-{dtype}"
        folder.mkdir(parents=True, exist_ok=True)
        return OnTheHost(folder, dtype)

    def open_engine(self, path: Path, manifest: Any) -> TensorRTBackend:
        "An engine on this card."
        return TensorRTBackend(path, manifest, device=self.device(), trt=self.trt)

    @property
    def providers(self) -> list[str]:
        "Of ONNX Runtime."
        return ["cpu"] if self.stand_ins else [f"cuda:{self.index}"]


def pace(
    call: Callable[[], Any],
    seconds: float,
    fewest: int = 5,
) -> dict[str, float]:  # median and 95th percentile of a call in ms, and how many there were
    "Time a call again and again, after two that do not count."
    call(), call()
    times, end = list[float](), time.perf_counter() + seconds
    while len(times) < fewest or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    p95 = float(np.percentile(times, 95))
    return {"p50_ms": round(median(times), 3), "p95_ms": round(p95, 3), "calls": len(times)}


def sweep(
    infer: Callable[[np.ndarray], Any],
    shape: tuple[int, ...],
    batches: tuple[int, ...],
    seconds: float,
    dtype: Any = np.float32,
) -> list[dict[str, Any]]:
    "Pictures a second by batch size, and how many times that of single pictures."
    rows = list[dict[str, Any]]()
    rng = np.random.default_rng(0)
    for size in batches:
        batch = rng.random((size, *shape)).astype(dtype)
        p = pace(lambda batch=batch: infer(batch), seconds)
        rate = size / p["p50_ms"] * 1e3
        gain = rate / rows[0]["pictures_per_s"] if rows else 1.0
        rows.append({"batch": size, "pictures_per_s": round(rate, 1), "gain": round(gain, 2), **p})
    return rows
