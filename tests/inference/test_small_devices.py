"""LiteRT and NCNN behind the protocol of backends: the same numbers as ONNX Runtime, and typed errors for
what is cut, foreign or missing; files for chips are not run here."""

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cv_pipeline.core.model_files import artefact_sha256, model_parts
from cv_pipeline.core.types import BackendError, ConfigError
from cv_pipeline.inference import small_devices as S
from cv_pipeline.inference.loading import load_backend, load_model
from cv_pipeline.inference.manifest import Artefact, ModelSpecMismatch, save_manifest
from cv_pipeline.inference.onnx import OnnxBackend
from tests.helpers.tiny_detectors import manifest
from tests.helpers.waiting import apart

FILES = Path(__file__).resolve().parents[1] / "models" / "tiny_small_devices"
KINDS = {"litert": ("ai_edge_litert", "tiny.tflite"), "ncnn": ("ncnn", "tiny.param")}


@pytest.fixture(params=KINDS)
def kind(request):
    module, _ = KINDS[request.param]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f'{module} is not installed: pip install "cv_pipeline[{request.param}]"')
    return request.param


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(FILES, tmp_path / "tiny"))


def opened(kind, folder, **more):
    return load_backend(folder / KINDS[kind][1], manifest(KINDS[kind][1], **more), threads=1)


def pictures(n, seed=0):
    return np.random.default_rng(seed).random((n, 3, 32, 32), dtype=np.float32)


def test_the_numbers_are_those_of_onnx_runtime(kind, folder):
    given = pictures(5)
    mine = opened(kind, folder).infer(given)
    theirs = OnnxBackend(folder / "tiny.onnx", manifest()).infer(given)
    assert mine.shape == theirs.shape == (5, 6, 16)
    assert np.abs(mine - theirs).max() < 1e-4


def test_no_picture_is_an_empty_answer(kind, folder):
    assert opened(kind, folder).infer(pictures(0)).shape[:2] == (0, 6)


def test_answers_do_not_share_memory(kind, folder):
    backend = opened(kind, folder)
    first = backend.infer(pictures(1, 1))
    kept = first.copy()
    backend.infer(pictures(1, 2))
    assert (first == kept).all()


def test_threads_that_ask_together_get_their_own(kind, folder):
    from concurrent.futures import ThreadPoolExecutor

    backend = opened(kind, folder)
    alone = [backend.infer(pictures(2, seed)) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: backend.infer(pictures(2, seed)), range(12)))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together))


def test_a_closed_backend_says_so(kind, folder):
    backend = opened(kind, folder)
    backend.warmup()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.infer(pictures(1))


def test_bytes_are_refused(kind, folder):
    with pytest.raises(BackendError, match="float32"):
        opened(kind, folder).infer(np.zeros((1, 3, 32, 32), np.uint8))
    with pytest.raises(BackendError, match="layout"):
        load_backend(folder / KINDS[kind][1], manifest(KINDS[kind][1], layout="nhwc-uint8"))


def test_pictures_of_another_size_are_refused(kind, folder):
    with pytest.raises(BackendError, match=r"\(3, 32, 32\)"):
        opened(kind, folder).infer(np.zeros((1, 3, 64, 64), np.float32))


def test_a_model_of_other_classes_is_refused(kind, folder):
    more = replace(manifest(KINDS[kind][1]), names=("nut", "bolt", "gear"))
    with pytest.raises(BackendError):
        load_backend(folder / KINDS[kind][1], more, threads=1).infer(pictures(1))


@pytest.mark.parametrize("threads", [-1, True, "2"])
def test_threads_are_checked(kind, folder, threads):
    with pytest.raises(ConfigError, match="threads"):
        load_backend(folder / KINDS[kind][1], manifest(KINDS[kind][1]), threads=threads)


def test_a_missing_file_is_named(kind, tmp_path):
    with pytest.raises(BackendError, match="not found"):
        load_backend(tmp_path / KINDS[kind][1], manifest(KINDS[kind][1]))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_that_is_cut_is_a_typed_error(kind, folder, share):
    name = "tiny.tflite" if kind == "litert" else "tiny.param"
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises((BackendError, ModelSpecMismatch)):
        opened(kind, folder).infer(pictures(1))


def test_noise_is_a_typed_error(kind, folder):
    (folder / KINDS[kind][1]).write_bytes(np.random.default_rng(0).bytes(4000))
    with pytest.raises(BackendError):
        opened(kind, folder)


def test_weights_of_ncnn_that_are_missing_or_cut(folder):
    if importlib.util.find_spec("ncnn") is None:
        pytest.skip('ncnn is not installed: pip install "cv_pipeline[ncnn]"')
    data = (folder / "tiny.bin").read_bytes()
    for content in (b"", data[:100], data[:-4]):
        (folder / "tiny.bin").write_bytes(content)
        with pytest.raises(BackendError):
            opened("ncnn", folder).infer(pictures(1))
    (folder / "tiny.bin").unlink()
    with pytest.raises(BackendError, match="weights of this NCNN model are missing"):
        opened("ncnn", folder)


def rectified(folder):
    "In a process of its own, which a layer that writes into borrowed memory would end."
    Path(folder, "net.param").write_text("7767517\n2 2\nInput in0 0 1 in0\nReLU r 1 1 in0 out0\n")
    Path(folder, "net.bin").write_bytes(b"1234")
    image = pictures(1)[0] - np.float32(0.5)
    kept = image.copy()
    made = S.NcnnBackend(Path(folder, "net.param"), manifest("net.param"), threads=1)._one(image)
    assert np.array_equal(made, np.maximum(kept, 0)) and np.array_equal(image, kept)


def test_layers_in_place_leave_the_picture_as_it_was(tmp_path):
    if importlib.util.find_spec("ncnn") is None:
        pytest.skip('ncnn is not installed: pip install "cv_pipeline[ncnn]"')
    apart(rectified, tmp_path)


def test_a_model_folder_runs_the_file_that_is_asked_for(kind, folder):
    module, name = KINDS[kind]
    parts = artefact_sha256(folder / name)
    artefact = Artefact(name, kind, "fp32", parts, gate={"accepted": True, "reason": "tested"})
    save_manifest(replace(manifest(), artefacts=(artefact,)), folder)
    with_it = load_model(folder, backend=kind, threads=1)
    assert with_it.backend.provider.startswith({"litert": "LiteRT", "ncnn": "NCNN"}[kind])
    with_it.close()


def test_a_file_that_was_changed_is_not_run(folder):
    artefact = Artefact("tiny.param", "ncnn", "fp32", artefact_sha256(folder / "tiny.param"))
    save_manifest(replace(manifest(), artefacts=(artefact,)), folder)
    (folder / "tiny.bin").write_bytes(b"other weights")
    with pytest.raises((BackendError, ConfigError, ModelSpecMismatch)):
        load_model(folder, backend="ncnn")


# --- without the runtimes


def test_both_files_of_ncnn_count(folder):
    assert [p.name for p in model_parts(folder / "tiny.param")] == ["tiny.param", "tiny.bin"]
    before = artefact_sha256(folder / "tiny.param")
    (folder / "tiny.bin").write_bytes(b"other weights")
    assert artefact_sha256(folder / "tiny.param") != before


def test_a_runtime_that_is_missing_names_its_extra(monkeypatch, folder):
    import sys

    for module in ("ai_edge_litert", "ai_edge_litert.interpreter", "ncnn"):
        monkeypatch.setitem(sys.modules, module, None)
    for kind, (_, name) in KINDS.items():
        with pytest.raises(BackendError, match=rf"cv_pipeline\[{kind}\]"):
            load_backend(folder / name, manifest(name))


@pytest.mark.parametrize("name, words", [("a.rknn", "an NPU of Rockchip"), ("a.hef", "a Hailo accelerator")])
def test_files_for_chips_are_not_run_here(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BackendError, match=words):
        load_backend(tmp_path / name, manifest(name))


PARAM = "7767517\n2 2\nInput in0 0 1 in0\nReLU r 1 1 in0 out0\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7767517",
        "7767517\n2",
        "7767517\nx y\n",
        PARAM.replace("2 2", "9 2"),
        PARAM.replace("1 1 in0", "5 1 in0"),
    ],
    ids=repr,
)
def test_what_is_no_param_file(tmp_path, text):
    (tmp_path / "a.param").write_text(text)
    with pytest.raises(BackendError, match="not a .param file"):
        S.ncnn_layers(tmp_path / "a.param")


def test_inputs_and_outputs_of_a_param_file(tmp_path):
    (tmp_path / "a.param").write_text(PARAM)
    assert S.ncnn_layers(tmp_path / "a.param") == (["in0"], ["out0"])
