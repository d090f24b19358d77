"""The checks, in the order in which they are worth having. Each gives its figures, or raises: NotHere where
it cannot run, anything else where something is wrong."""

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cv_pipeline.inference.backends import SteadyBackend
from cv_pipeline.inference.device_preprocess import KernelPreprocessor
from cv_pipeline.inference.engines import BuildOptions, build_engine
from cv_pipeline.inference.loading import load_model
from cv_pipeline.inference.manifest import PreprocessSpec, load_manifest
from cv_pipeline.inference.onnx import OnnxBackend
from cv_pipeline.inference.preprocess import Preprocessor
from cv_pipeline.optimization.engine_build import verify_engine
from tests.gpu.ground import Ground, NotHere, pace, sweep

Figures = dict[str, Any]
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Check(NamedTuple):
    "Something that only a card can show."

    question: str
    work: Callable[[Ground], Figures]
    limit_s: float


CHECKS: dict[str, Check] = {}


def check(question: str, limit_s: float = 60) -> Callable[[Callable[[Ground], Figures]], Any]:
    "Add a function to the checks, by its name."

    def add(work: Callable[[Ground], Figures]) -> Callable[[Ground], Figures]:
        CHECKS[work.__name__] = Check(question, work, limit_s)
        return work

    return add


def same(what: str, ours: np.ndarray, theirs: np.ndarray, most: float = 0.0) -> float:
    "The largest difference; ValueError where it is larger than allowed."
    if ours.shape != theirs.shape:
        raise ValueError(f"{what}: the shape is {ours.shape}, expected {theirs.shape}")
    away = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    worst = float(away.max(initial=0))
    if not worst <= most:
        raise ValueError(
            f"{what}: {int((~(away <= most)).sum())} of {away.size} numbers differ, by {worst:g} at most"
        )
    return worst


def pictures(sizes: list[tuple[int, int]], seed: int = 1) -> list[np.ndarray]:
    "Noise, (height, width, 3) uint8."
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for w, h in sizes]


@check("Which card is it, and who else uses it?", 20)
def card(g: Ground) -> Figures:
    i = g.info
    found: Figures = {"name": i.name, "capability": list(i.capability), "driver": i.driver}
    found["memory_gib"] = round(i.memory_bytes / 2**30, 1)
    if program := shutil.which("nvidia-smi"):
        asked = "clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu,mig.mode.current,memory.used"
        words = [program, f"--id={i.index}", f"--query-gpu={asked}", "--format=csv,noheader"]
        said = subprocess.run(words, capture_output=True, text=True, timeout=15)
        if said.returncode == 0:
            found |= dict(zip(asked.split(","), (w.strip() for w in said.stdout.strip().split(","))))
    return found


@check("Do bytes come back as they went, how fast, and what does a recorded graph save?")
def copies(g: Ground) -> Figures:
    device = g.device()
    size = 1 << 20 if g.stand_ins else 64 << 20
    there = device.memory(size)
    ours, back = device.pinned((size,), np.uint8), device.pinned((size,), np.uint8)
    ours[:] = np.random.default_rng(0).integers(0, 256, size, np.uint8)

    def up() -> None:
        device.upload(there, ours)
        device.synchronize()

    def down() -> None:
        device.download(back, there)
        device.synchronize()

    rate = lambda p: round(size / p["p50_ms"] / 1e6, 2)
    found = {"upload_gb_s": rate(pace(up, g.seconds)), "download_gb_s": rate(pace(down, g.seconds))}
    same("copied bytes", back, ours)
    graph = device.record(lambda: device.upload(there, ours[:4096]))
    ours[:4096] = 7

    def replay() -> None:
        device.replay(graph)
        device.synchronize()

    found["replay_ms"] = pace(replay, g.seconds / 2)["p50_ms"]
    down()
    same("bytes that a replayed graph copied", back[:4096], ours[:4096])
    return found


SPECS = {
    "letterbox": ("float32", PreprocessSpec((320, 320))),
    "half": ("float16", PreprocessSpec((320, 320))),
    "stretch": ("float32", PreprocessSpec((256, 416), letterbox="stretch", stride=1)),
    "bytes": ("uint8", PreprocessSpec((320, 320), layout="nhwc-uint8")),
}


@check(
    "Does the kernel make the host's tensor bit for bit, and how many bytes a second does it move?",
    90,
)
def kernel(g: Ground) -> Figures:
    sizes = [(640, 480), (1920, 1080), (33, 91), (320, 320), (1000, 10), (7, 7), (641, 479), (1279, 721)]
    found: Figures = {}
    for name, (dtype, spec) in SPECS.items():
        device = g.kernel_device(dtype)
        ours = KernelPreprocessor(spec, device, dtype)
        images = pictures(sizes)
        wanted, places = Preprocessor(spec).batch(images)
        wanted = wanted.astype(dtype)
        memory = device.memory(wanted.nbytes)
        address = memory.ctypes.data if isinstance(memory, np.ndarray) else memory.address
        got = device.pinned(wanted.shape, wanted.dtype)

        def fill(ours=ours, images=images, address=address) -> Any:
            return ours.into(images, address)

        if fill() != places:
            raise ValueError(f"{name}: the places of the pictures differ from the host's")
        if isinstance(memory, np.ndarray):
            got = memory[: wanted.nbytes].view(wanted.dtype).reshape(wanted.shape)
        else:
            device.download(got, memory)
            device.synchronize()
        same(name, got, wanted)
        found[f"{name}_numbers_equal"] = int(wanted.size)
    return found | kernel_speed(g)


def kernel_speed(g: Ground) -> Figures:
    "16 pictures of 1080p: the whole way from the host, and what the kernel alone reads and writes a second."
    spec, count = PreprocessSpec((640, 640)), 2 if g.stand_ins else 16
    device, images = g.kernel_device("float32"), pictures([(1920, 1080)] * count)
    ours = KernelPreprocessor(spec, device)
    memory = device.memory(count * 3 * 640 * 640 * 4)
    address = memory.ctypes.data if isinstance(memory, np.ndarray) else memory.address

    def whole() -> None:
        ours.into(images, address)
        device.synchronize()

    p = pace(whole, g.seconds)
    host = pace(lambda: Preprocessor(spec).batch(images), g.seconds)
    moved = sum(i.nbytes for i in images) + count * 3 * 640 * 640 * 4
    return {
        "batch": count,
        "whole_ms": p["p50_ms"],
        "host_ms": host["p50_ms"],
        "times_the_host": round(host["p50_ms"] / p["p50_ms"], 2),
        "moved_gb_s": round(moved / p["p50_ms"] / 1e6, 2),
    }


@check("Does ONNX Runtime on the card agree with the processor, and what do batches bring?", 90)
def onnx_runtime(g: Ground) -> Figures:
    import onnxruntime as ort

    if not g.stand_ins and "CUDAExecutionProvider" not in ort.get_available_providers():
        raise NotHere("this ONNX Runtime has no CUDA provider: install onnxruntime-gpu in its place")
    manifest, own = load_manifest("factory_line")
    here, there = OnnxBackend(own, manifest, ["cpu"]), OnnxBackend(own, manifest, g.providers)
    batch = Preprocessor(manifest.preprocess).batch(pictures([(640, 480)] * 4))[0]
    found: Figures = {"provider": there.provider}
    found["largest_difference"] = round(same("scores", there.infer(batch), here.infer(batch), 0.05), 6)
    found["sweep"] = sweep(
        there.infer, batch.shape[1:], BATCHES[:3] if g.stand_ins else BATCHES, g.seconds / 2
    )
    return found


def source_of(g: Ground, precision: str) -> Path:
    "The bundled detector in a precision, as the file that an engine is built from."
    from cv_pipeline.optimization import graphs, quantize

    manifest, own = load_manifest("factory_line")
    path = g.out / f"{precision}.onnx"
    if precision == "fp32":
        shutil.copy(own, path)
    elif precision == "fp16":
        graphs.save_graph(graphs.half_precision(graphs.open_graph(own)), path)
    else:
        graph = graphs.upgrade_opset(graphs.open_graph(own))
        host = Preprocessor(manifest.preprocess)
        batches = (host.batch([i])[0] for i in line_images(8 if g.stand_ins else 200))
        ranges = quantize.activation_ranges(graph, batches)
        graphs.save_graph(quantize.quantize_tensorrt(graph, ranges), path)
    return path


def line_images(count: int) -> list[np.ndarray]:
    "Pictures of the factory line."
    from cv_pipeline.synthetic.belt import FactoryLine, LineConfig

    line = FactoryLine(LineConfig(seed=5))
    return [line.render(17 * k)[0].image for k in range(count)]


def engine_of(g: Ground, precision: str, most: float) -> Figures:
    "Build, open a second time from its file, compare and sweep."
    manifest, own = load_manifest("factory_line")
    source, top = source_of(g, precision), 4 if g.stand_ins else 64
    options = BuildOptions(max_batch=top, tf32=False, timing_cache=g.out / "timings.bin")
    path = g.out / f"{precision}.engine"
    make = lambda: build_engine(source, manifest, path, options, device=g.info, trt=g.trt)
    built = make()
    if make().built:
        raise ValueError("the engine was built again although its file fits this machine")
    backend = g.open_engine(path, manifest)
    backend.warmup()
    probe = Preprocessor(manifest.preprocess).batch(line_images(8))[0]
    agreement = verify_engine(backend, OnnxBackend(own, manifest, ["cpu"]), manifest, probe, most)
    rows = sweep(backend.infer, backend.input_shape, tuple(b for b in BATCHES if b <= top), g.seconds / 2)
    found: Figures = {"engine": backend.provider, "build_s": round(built.seconds, 1)}
    found |= {"agreement": agreement, "events": dict(backend.events), "sweep": rows}
    if not g.stand_ins:
        found["free_gib"] = round(backend.device.free_memory()[0] / 2**30, 2)
    backend.close()
    return found


@check("TensorRT in float32: does it build, agree with ONNX Runtime, and what do batches bring?", 150)
def tensorrt_fp32(g: Ground) -> Figures:
    return engine_of(g, "fp32", 0.01)


@check("TensorRT in half precision", 150)
def tensorrt_fp16(g: Ground) -> Figures:
    return engine_of(g, "fp16", 0.05)


@check("TensorRT in eight bits", 150)
def tensorrt_int8(g: Ground) -> Figures:
    return engine_of(g, "int8", 0.5)  # what it costs is measured as accuracy


@check("TensorRT from pictures: is the way over the kernel the same as over the host, and faster?", 90)
def tensorrt_pictures(g: Ground) -> Figures:
    if g.stand_ins:
        raise NotHere(
            "the stand-in of TensorRT does not launch kernels; tests/inference/test_tensorrt.py does"
        )
    path = g.out / "fp32.engine"
    if not path.is_file():
        raise NotHere("the check tensorrt_fp32 made no engine")
    manifest, _ = load_manifest("factory_line")
    backend, images = g.open_engine(path, manifest), pictures([(1920, 1080)] * 16)
    host = Preprocessor(manifest.preprocess)
    raw, places = backend.infer_images(images)
    tensor, wanted = host.batch(images)
    if places != wanted:
        raise ValueError("the places of the pictures differ from the host's")
    same("scores", raw, backend.infer(tensor), 1e-3)
    over_kernel = pace(lambda: backend.infer_images(images), g.seconds)
    over_host = pace(lambda: backend.infer(host.batch(images)[0]), g.seconds)
    gain = over_host["p50_ms"] / over_kernel["p50_ms"]
    return {"kernel_ms": over_kernel["p50_ms"], "host_ms": over_host["p50_ms"], "gain": round(gain, 2)}


@check("Is a batch that does not fit into memory split, and are the answers whole?", 60)
def out_of_memory(g: Ground) -> Figures:
    path = g.out / "fp32.engine"
    if not path.is_file():
        raise NotHere("the check tensorrt_fp32 made no engine")
    manifest, own = load_manifest("factory_line")
    batch = Preprocessor(manifest.preprocess).batch(pictures([(320, 240)] * 8))[0]
    if g.stand_ins:
        g.world.limit = 3 * batch.nbytes
    else:
        device = g.device()
        hold = []
        while device.free_memory()[0] > (600 << 20):
            hold.append(device.memory(min(1 << 30, device.free_memory()[0] - (500 << 20))))
    backend = SteadyBackend(OnnxBackend(own, manifest, g.providers))
    raw = backend.infer(np.concatenate([batch] * 64) if not g.stand_ins else batch)
    wanted = OnnxBackend(own, manifest, ["cpu"]).infer(batch)
    worst = same("answers beside a full memory", raw[: len(batch)], wanted, 0.05)
    return {"splits": int(backend.events.get("oom_split", 0)), "largest_difference": round(worst, 6)}


@check("Does the card decode video as the processor does?", 60)
def video(g: Ground) -> Figures:
    from cv_pipeline.video.decoding import probe_device

    if why := probe_device("cuda"):
        if not g.stand_ins:
            raise NotHere(f"FFmpeg here cannot decode on the card: {why}")
    path = clip_of(g.out / "clip.mp4", 60 if g.stand_ins else 600)
    here, seconds = decoded(path, "none")
    there, card_s = decoded(path, "none" if g.stand_ins else "cuda")
    if len(here) != len(there):
        raise ValueError(f"{len(there)} frames from the card, {len(here)} from the processor")
    away = max(float(np.abs(a.astype(int) - b.astype(int)).mean()) for a, b in zip(here, there))
    if away > 2:
        raise ValueError(f"a frame differs from the processor's by {away:.2f} grey levels on average")
    return {
        "frames": len(here),
        "largest_mean_difference": round(away, 3),
        "processor_fps": round(len(here) / seconds, 1),
        "card_fps": round(len(there) / card_s, 1),
    }


def clip_of(path: Path, frames: int) -> Path:
    "Moving stripes, 1280×720, H.264."
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        base = np.tile(np.linspace(0, 255, 1280).astype(np.uint8)[None, :, None], (720, 1, 3))
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(base, 9 * k, axis=1), format="bgr24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def decoded(path: Path, hardware: str) -> tuple[list[np.ndarray], float]:
    "Every tenth frame of a file, and the seconds for all of them."
    from cv_pipeline.video.sources import FileSource

    began, kept = time.perf_counter(), []
    source = FileSource(str(path), hardware=hardware)
    try:
        for k, frame in enumerate(source):
            if k % 10 == 0:
                kept.append(np.array(frame.image))
    finally:
        source.close()
    return kept, time.perf_counter() - began


@check("How many cameras does one card carry, end to end?", 90)
def streams(g: Ground) -> Figures:
    from cv_pipeline.core.config import load_config
    from cv_pipeline.service.assembly import run_config

    count, frames = (2, 10) if g.stand_ins else (16, 400)
    lines = [{"uri": f"line:frames={frames},seed={k}", "id": f"camera-{k}"} for k in range(count)]
    about = {"sources": lines, "delivery.out": str(g.out / "run"), "model.providers": g.providers}
    summary = run_config(load_config(None, about))
    if summary["frames_delivered"] != count * frames:
        raise ValueError(f"{summary['frames_delivered']} of {count * frames} frames were delivered")
    late = summary["latency_ms"]["total"]
    return {
        "cameras": count,
        "frames_per_second": summary["frames_per_second"],
        "latency_ms": {k: late[k] for k in ("p50", "p95") if k in late},
        "model": summary["model"],
    }


MOST_LOST = {"fp32": 0.005, "fp16": 0.02, "int8": 0.05}  # AP, on the factory line


@check("What does each file cost in accuracy?", 60)
def accuracy(g: Ground) -> Figures:
    from cv_pipeline.evaluation.summary import evaluate_model, line_pictures

    items = line_pictures(g.out / "line", 4 if g.stand_ins else 60)[0]
    model = load_model("factory_line")
    found: Figures = {"pictures": len(items), "processor": ap_of(evaluate_model(model, items))}
    for engine in sorted(g.out.glob("*.engine")):
        on_card = replace(model, backend=g.open_engine(engine, model.manifest))
        found[engine.stem] = ap_of(evaluate_model(on_card, items))
        if found[engine.stem] < found["processor"] - MOST_LOST[engine.stem]:
            raise ValueError(f"{engine.stem}: AP {found[engine.stem]} against {found['processor']}")
    return found


def ap_of(evaluation: Any) -> float:
    "COCO's AP."
    return round(float(evaluation.coco["AP"]), 4)
