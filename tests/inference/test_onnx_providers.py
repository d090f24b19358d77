"""Choosing a card in ONNX Runtime: names, options, and a real onnxruntime-gpu that finds no card and must not
fall back in silence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cv_pipeline.core.types import BackendError, ConfigError
from cv_pipeline.inference import onnx as room
from cv_pipeline.inference.loading import load_model
from cv_pipeline.inference.onnx import (
    OnnxBackend,
    ProviderOptions,
    choose_providers,
    options_in,
    parse_provider,
    provider_options,
    provider_settings,
)
from cv_pipeline.inference.preprocess import Preprocessor
from tests.helpers.tiny_detectors import manifest, tiny

ALL = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("cuda", ("CUDAExecutionProvider", None)),
        ("CUDA:3", ("CUDAExecutionProvider", 3)),
        ("tensorrt:0", ("TensorrtExecutionProvider", 0)),
        ("CPUExecutionProvider", ("CPUExecutionProvider", None)),
        ("XnnpackExecutionProvider", ("XnnpackExecutionProvider", None)),
    ],
)
def test_names_of_providers(text, wanted):
    assert parse_provider(text) == wanted


@pytest.mark.parametrize("text", ["gpu", "", "cuda:", "cuda:x", "cuda:-1", None])
def test_what_is_no_provider(text):
    with pytest.raises(ConfigError, match="providers"):
        parse_provider(text)


def test_tensorrt_is_never_chosen_by_itself_and_absent_ones_are_named():
    assert choose_providers(present=ALL)[0] == "CUDAExecutionProvider"
    assert choose_providers("cuda:1", ALL) == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    with pytest.raises(
        ConfigError,
        match="does not have CUDAExecutionProvider, TensorrtExecutionProvider.*install onnxruntime-gpu",
    ):
        choose_providers(["cuda", "tensorrt"], ["CPUExecutionProvider"])
    with pytest.raises(ConfigError) as e:
        choose_providers(["openvino"], ["CPUExecutionProvider"])
    assert "onnxruntime-gpu" not in str(e.value)


def test_options_become_the_providers_own(tmp_path):
    options = ProviderOptions(
        tmp_path / "new" / "cache",
        fp16=True,
        int8=True,
        workspace_mb=256,
        batches=(1, 4, 8),
        memory_mb=2048,
        tf32=False,
    )
    (trt, t), (cuda, c), (cpu, none) = provider_settings(
        ["tensorrt:2", "cuda"], ALL, options, "images", (3, 320, 416)
    )
    assert (trt, cuda, cpu, none) == (*ALL, {}) and (tmp_path / "new" / "cache").is_dir()
    assert t == {
        "device_id": "2",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path / "new" / "cache"),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path / "new" / "cache"),
        "trt_fp16_enable": "1",
        "trt_int8_enable": "1",
        "trt_max_workspace_size": str(256 << 20),
        "trt_profile_min_shapes": "images:1x3x320x416",
        "trt_profile_opt_shapes": "images:4x3x320x416",
        "trt_profile_max_shapes": "images:8x3x320x416",
    }
    assert c == {
        "device_id": "2",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "gpu_mem_limit": str(2048 << 20),
    }
    assert provider_options({"fp16": True, "batches": [1, 2, 3]}) == ProviderOptions(
        fp16=True, batches=(1, 2, 3)
    )
    with pytest.raises(ConfigError, match="unknown: fp8"):
        provider_options({"fp8": True})


def test_options_may_stand_behind_the_name_of_a_provider():
    asked = [
        "tensorrt:1?engine_cache=/var/cache/engines&fp16=true&batches=1,4,8",
        "cuda?memory_mb=2048&tf32=false",
    ]
    assert [parse_provider(p) for p in asked] == [
        ("TensorrtExecutionProvider", 1),
        ("CUDAExecutionProvider", None),
    ]
    assert choose_providers(asked, ALL)[:2] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    assert options_in(asked) == {
        "engine_cache": "/var/cache/engines",
        "fp16": True,
        "batches": (1, 4, 8),
        "memory_mb": 2048,
        "tf32": False,
    }
    assert options_in(None) == options_in("cpu") == {}
    for wrong in ("cuda?memory_mb=lots", "cuda?batches=1,x"):
        with pytest.raises(ConfigError, match="is invalid"):
            options_in(wrong)


def test_unknown_options_end_it_before_a_session_is_opened():
    with pytest.raises(ConfigError, match="unknown: fp8"):
        load_model("factory_line", providers=["cpu?fp8=true"])
    assert (
        load_model("factory_line", providers=["cpu?memory_mb=64"], threads=1).backend.provider
        == "CPUExecutionProvider"
    )


def test_a_cache_that_is_missing_or_cannot_be_made(tmp_path):
    with pytest.raises(ConfigError, match="builds for minutes at every start"):
        provider_settings(["tensorrt"], ALL, ProviderOptions(), "images", (3, 32, 32))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot create the engine cache"):
        provider_settings(["tensorrt"], ALL, ProviderOptions(tmp_path / "file"), "images", (3, 32, 32))


@pytest.mark.parametrize("kind", ["fp32", "fp16", "half", "int8", "bytes"])
def test_every_layout_and_precision_runs_and_warms_up(tmp_path, kind):
    made_for = manifest(layout="nhwc-uint8" if kind == "bytes" else "nchw-float")
    backend = OnnxBackend(tiny(tmp_path / "m.onnx", kind), made_for, ["cpu"], threads=1)
    backend.warmup()
    images = [np.random.default_rng(k).integers(0, 256, (20 + k, 50, 3), dtype=np.uint8) for k in range(3)]
    raw = backend.infer(Preprocessor(made_for.preprocess).batch(images)[0])
    plain = OnnxBackend(tiny(tmp_path / "f.onnx"), manifest(), threads=1)
    reference = plain.infer(Preprocessor(manifest().preprocess).batch(images)[0])
    if kind == "bytes":
        assert (
            raw.shape == reference.shape and np.isfinite(raw).all()
        )  # its colours are in another order: another model
    else:
        assert np.abs(raw - reference).max() < (0.03 if kind == "int8" else 2e-3)


def test_bytes_and_floats_are_no_casts_of_one_another(tmp_path):
    as_bytes = OnnxBackend(tiny(tmp_path / "b.onnx", "bytes"), manifest(layout="nhwc-uint8"), threads=1)
    floats = OnnxBackend(tiny(tmp_path / "f.onnx"), manifest(), threads=1)
    for backend, batch in (
        (as_bytes, np.zeros((1, 32, 32, 3), np.float32)),
        (floats, np.zeros((1, 3, 32, 32), np.uint8)),
    ):
        with pytest.raises(BackendError, match="the graph takes .*, the batch is"):
            backend.infer(batch)
    with pytest.raises(BackendError):
        OnnxBackend(tmp_path / "b.onnx", manifest(), threads=1)
    with pytest.raises(BackendError):
        OnnxBackend(tmp_path / "f.onnx", manifest(layout="nhwc-uint8"), threads=1)


def test_a_fixed_batch_of_bytes_is_filled_up(tmp_path):
    backend = OnnxBackend(
        tiny(tmp_path / "b.onnx", "bytes", batch=4), manifest(layout="nhwc-uint8"), threads=1
    )
    batch = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    assert np.abs(backend.infer(batch)[5:] - backend.infer(batch[5:])).max() < 1e-6


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_silent_fall_back_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(room.ort, "get_available_providers", lambda: ALL)
    with pytest.raises((BackendError, ConfigError)) as e:
        OnnxBackend(tiny(tmp_path / "m.onnx"), manifest(), ["cuda"])
    assert "CUDAExecutionProvider" in str(e.value)


CODE = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import onnxruntime as ort
from pathlib import Path
from tests.helpers.tiny_detectors import manifest, tiny
from cv_pipeline.inference.onnx import OnnxBackend, ProviderOptions
folder = Path(sys.argv[2])
model = tiny(folder / "m.onnx")
print("present", *ort.get_available_providers())
options = ProviderOptions(folder / "cache", batches=(1, 2, 4))
for wanted in (["cuda"], ["tensorrt:0", "cuda:0"], ["cpu"], None):
    try: print("opened", wanted, OnnxBackend(model, manifest(), wanted, options=options).provider)
    except Exception as e: print(type(e).__name__, e)
"""


def gpu_build() -> Path:
    for folder in (
        Path(sys.prefix) / "ortgpu",
        Path(os.environ.get("CV_PIPELINE_TRT", "/nowhere")) / "ortgpu",
    ):
        if folder.is_dir():
            return folder
    assert not os.environ.get("CV_PIPELINE_REQUIRE_SERVICES"), (
        "no onnxruntime-gpu: `make test` puts it beside the environment"
    )
    pytest.skip(
        "no onnxruntime-gpu beside the environment (340 MB): pip install --no-deps --target "
        f"{Path(sys.prefix) / 'ortgpu'} onnxruntime-gpu"
    )


def test_a_real_onnxruntime_gpu_without_a_card_refuses_what_was_asked_for(tmp_path):
    answer = subprocess.run(
        [
            sys.executable,
            "-c",
            CODE,
            json.dumps([str(gpu_build()), str(Path(__file__).parents[2])]),
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = [
        line for line in answer.stdout.splitlines() if line.startswith(("present", "opened", "BackendError"))
    ]
    assert lines[0] == "present " + " ".join(ALL), answer.stderr[-500:]
    if "opened ['cuda'] CUDAExecutionProvider" in answer.stdout:
        pytest.skip("there is a card here")
    assert lines[1].startswith(
        "BackendError CUDAExecutionProvider was requested, ONNX Runtime fell back to CPUExecutionProvider"
    )
    assert lines[2].startswith("BackendError TensorrtExecutionProvider was requested")
    assert lines[3:] == ["opened ['cpu'] CPUExecutionProvider", "opened None CPUExecutionProvider"]


def test_the_names_of_the_options_are_in_a_real_onnxruntime_gpu(tmp_path):
    "An unknown option is only noticed on a card; so the names are looked up in the provider's own library."
    capi = gpu_build() / "onnxruntime" / "capi"
    options = ProviderOptions(tmp_path, True, True, 1, (1, 2, 3), 1)
    for library, names in (("tensorrt", options.tensorrt(0, "x", (3,))), ("cuda", options.cuda(0))):
        data = (capi / f"libonnxruntime_providers_{library}.so").read_bytes()
        assert [n for n in names if n.encode() + b"\0" not in data] == []


@pytest.mark.gpu
def test_on_a_card_the_cuda_provider_answers_as_the_cpu(tmp_path):
    "Runs where there is a card; it was not run so far."
    if "CUDAExecutionProvider" not in room.ort.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider")
    model, batch = tiny(tmp_path / "m.onnx"), np.random.default_rng(0).random((5, 3, 32, 32), np.float32)
    on_card = OnnxBackend(model, manifest(), ["cuda:0"])
    assert np.abs(on_card.infer(batch) - OnnxBackend(model, manifest(), ["cpu"]).infer(batch)).max() < 2e-2
