"""From a model folder to an engine in its manifest, on the imitation: what is picked, compared, listed, and
what never is."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from cv_pipeline.core.types import BackendError, ConfigError, ModelSpecMismatch
from cv_pipeline.inference.cuda import CudaDevice, DeviceInfo, NoDevice, find_devices
from cv_pipeline.inference.engines import BuildOptions
from cv_pipeline.inference.loading import load_backend
from cv_pipeline.inference.manifest import Artefact, load_manifest, save_manifest
from cv_pipeline.inference.onnx import OnnxBackend
from cv_pipeline.inference.tensorrt import TensorRTBackend
from cv_pipeline.optimization.engine_build import (
    EngineSettings,
    build_model,
    pick_source,
    probe_batch,
    scores_of,
    verify_engine,
)
from tests.helpers import tensorrt_imitation
from tests.helpers.tiny_detectors import manifest, tiny

pytestmark = pytest.mark.slow

CARD = DeviceInfo(0, "Imitated Card", (8, 9), "CUDA 13.2", 24 << 30)
YES = {"accepted": True}


def test_a_card_has_no_negative_number():
    with pytest.raises(ConfigError, match="device: -1"):
        EngineSettings(device=-1)


@pytest.fixture
def folder(tmp_path):
    "A model folder with files in every precision; the half one and the INT8 one passed the gate."
    for name, kind in (("tiny", "fp32"), ("half", "fp16"), ("int8", "int8"), ("bytes", "bytes")):
        tiny(tmp_path / f"{name}.onnx", kind)
    files = (
        Artefact("int8.onnx", "onnxruntime", "int8", gate=YES),
        Artefact("half.onnx", "onnxruntime", "fp16", gate={**YES, "AP": 0.6}),
        Artefact("bytes.onnx", "onnxruntime", "fp32", layout="nhwc-uint8"),
    )
    save_manifest(manifest(artefacts=files), tmp_path)
    return tmp_path


@pytest.fixture
def build(folder):
    world = tensorrt_imitation.World()
    trt = tensorrt_imitation.tensorrt(world)

    def open_engine(path, made_for):
        return TensorRTBackend(
            path, made_for, device=CudaDevice(CARD, tensorrt_imitation.cuda_runtime(world)), trt=trt
        )

    def make(model=folder, file=None, **more):
        settings = EngineSettings(file, BuildOptions(max_batch=4))
        return build_model(
            model, settings=settings, **{"info": CARD, "trt": trt, "open_engine": open_engine, **more}
        )

    make.world, make.open_engine = world, open_engine
    return make


def test_the_half_precision_file_that_passed_is_built_compared_and_listed(build, folder):
    done = build()
    assert (done.source, done.engine.path.name, done.engine.precision, done.listed) == (
        "half.onnx",
        "half.engine",
        "fp16",
        True,
    )
    loaded, _ = load_manifest(folder)
    entry = loaded.artefacts[-1]
    assert (entry.file, entry.backend, entry.gated, entry.gate["AP"]) == (
        "half.engine",
        "tensorrt",
        True,
        0.6,
    )
    assert (
        "built from half.onnx, which was accepted" in entry.gate["reason"]
        and entry.gate["agreement"]["score_difference"] < 1e-3
    )
    assert entry.made["binding"]["gpu"] == "Imitated Card" and len(entry.sha256) == 64
    assert [a.file for a in loaded.artefacts] == ["int8.onnx", "half.onnx", "bytes.onnx", "half.engine"]
    before = build.world.names().count("build_serialized_network")
    again = build()
    assert not again.engine.built and build.world.names().count("build_serialized_network") == before
    assert len(load_manifest(folder)[0].artefacts) == 4, "listed once"


def test_what_did_not_pass_is_listed_as_not_accepted_and_bytes_keep_their_layout(build, folder):
    done = build(file="bytes.onnx")
    entry = load_manifest(folder)[0].artefacts[-1]
    assert (entry.file, entry.layout, entry.gated) == (
        "bytes.engine",
        "nhwc-uint8",
        False,
    ) and "was not accepted" in entry.gate["reason"]
    assert done.agreement["images"] == 4
    opened = build.open_engine(folder / "bytes.engine", load_manifest(folder)[0].for_artefact(entry))
    assert opened.input_shape == (32, 32, 3)


def test_without_a_gated_half_the_models_own_file(folder):
    loaded, own = load_manifest(folder)
    assert pick_source(replace(loaded, artefacts=loaded.artefacts[:1]), own)[0].name == "tiny.onnx"
    half = loaded.artefacts[1]
    unproven = replace(half, gate={}), replace(half, gate={"accepted": False}, options={"x": 1})
    assert pick_source(replace(loaded, artefacts=unproven), own)[0].name == "tiny.onnx"
    assert pick_source(loaded, own, "int8.onnx")[1].precision == "int8"
    with pytest.raises(
        ConfigError,
        match="the manifest has no 'x.onnx'.*it names int8.onnx, half.onnx, bytes.onnx, tiny.onnx",
    ):
        pick_source(loaded, own, "x.onnx")
    (folder / "half.onnx").unlink()
    with pytest.raises(ModelSpecMismatch, match="'half.onnx' not found"):
        pick_source(loaded, own)


def test_a_changed_file_is_neither_built_nor_blessed(build, folder):
    tiny(folder / "half.onnx", "half")
    with pytest.raises(ModelSpecMismatch, match="'half.onnx' is not the file that passed the gate"):
        build()
    tiny(folder / "half.onnx", "fp16")
    tiny(folder / "int8.onnx", "fp32")
    text = (folder / "manifest.json").read_text()
    with pytest.raises(ModelSpecMismatch, match="int8.onnx"):
        build()
    assert (folder / "manifest.json").read_text() == text


class Answers:
    name, provider, max_batch, checks_output = "demo", "nowhere", 4, True

    def __init__(self, change):
        self.change = change

    def infer(self, batch):
        return self.change(batch)

    def warmup(self):
        pass

    def close(self):
        self.closed = True


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda raw: np.full_like(raw, 0.5), "nearly all the same"),
        (lambda raw: raw[:, ::-1].copy(), "a score differs by"),
        (lambda raw: raw + np.float32(0.2), "a score differs by 0.2"),
    ],
)
def test_an_engine_that_answers_something_else_is_deleted_and_not_listed(build, folder, change, message):
    reference, engines = OnnxBackend(folder / "half.onnx", manifest(), threads=1), []

    def open_engine(path, made_for):
        engines.append(Answers(lambda batch: change(reference.infer(batch))))
        return engines[0]

    text = (folder / "manifest.json").read_text()
    with pytest.raises(BackendError, match=message):
        build(open_engine=open_engine)
    assert (
        not (folder / "half.engine").exists()
        and (folder / "manifest.json").read_text() == text
        and engines[0].closed
    )


def test_scores_of_every_head_and_rounding_is_no_disagreement():
    raw = np.random.default_rng(0).random((2, 10, 30)).astype(np.float32)
    assert (
        scores_of(raw, "yolov8").shape == (2, 6, 30)
        and scores_of(raw, "yolox").shape == (2, 10, 25)
        and scores_of(raw, "end2end").shape == (2, 10)
    )
    boxes_moved = raw.copy()
    boxes_moved[:, :4] += 100
    found = verify_engine(
        Answers(lambda b: boxes_moved), Answers(lambda b: raw), manifest(), np.zeros((2, 1))
    )
    assert found["score_difference"] == 0 and found["images"] == 2


def test_probes_are_the_users_images_where_there_are_some():
    assert probe_batch(manifest()).shape == (4, 3, 32, 32) and np.array_equal(
        probe_batch(manifest()), probe_batch(manifest())
    )
    assert probe_batch(manifest(layout="nhwc-uint8"), [np.zeros((9, 9, 3), np.uint8)] * 40).shape == (
        32,
        32,
        32,
        3,
    )


def test_elsewhere_means_not_listed_and_bundled_models_stay_as_they_are(build, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "x.engine"
    text = (folder / "manifest.json").read_text()
    assert build(out=out).listed is False and out.exists() and (folder / "manifest.json").read_text() == text
    with pytest.raises(ConfigError, match="bundled models cannot be changed"):
        build("factory_line")
    bare = shutil.copy(folder / "tiny.onnx", out.parent / "bare.onnx")
    with pytest.raises(ModelSpecMismatch):
        build(bare)
    save_manifest(manifest("bare.onnx"), out.parent / "spec.yaml")
    assert build(bare, spec=out.parent / "spec.yaml").engine.path.name == "bare.engine"


def test_a_listed_engine_is_opened_like_any_other_artefact(build, folder, monkeypatch):
    from cv_pipeline.inference import tensorrt as room

    build()
    monkeypatch.setattr(
        room, "open_device", lambda index: CudaDevice(CARD, tensorrt_imitation.cuda_runtime(build.world))
    )
    monkeypatch.setattr(
        room, "load_tensorrt", lambda build: tensorrt_imitation.tensorrt(tensorrt_imitation.World())
    )
    loaded, _ = load_manifest(folder)
    backend = load_backend(folder / "half.engine", loaded.for_artefact(loaded.artefacts[-1]))
    assert backend.provider == "TensorRT 10.16.1.11, fp16, Imitated Card"


def test_no_card_is_the_first_thing_that_is_said(folder):
    try:
        find_devices()
    except NoDevice:
        with pytest.raises(NoDevice):
            build_model("model not found")
    else:
        pytest.skip("there is a card here")
