"""OpenVINO as a backend: the same answers as ONNX Runtime, the precision that was asked for, batches of any
size on any number of requests, typed errors."""

import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from cv_pipeline.core.types import Backend, BackendError, ConfigError, ModelSpecMismatch
from cv_pipeline.inference.backends import InvalidOutput
from cv_pipeline.inference.loading import load_backend, load_model
from cv_pipeline.inference.manifest import load_manifest
from cv_pipeline.inference.openvino import (
    OpenVINOBackend,
    OpenVINOSettings,
    _pieces,
    default_precision,
    open_openvino,
    read_metadata,
)
from cv_pipeline.optimization.graphs import bytes_input, open_graph, save_graph, simplify
from cv_pipeline.optimization.quantize import write_openvino
from tests.helpers.services import require

pytestmark = pytest.mark.slow

require("openvino")


@pytest.fixture(scope="module")
def line():
    "The bundled model by ONNX Runtime, its manifest and file."
    model = load_model("factory_line", threads=1)
    return model, *load_manifest("factory_line")


@pytest.fixture(scope="module")
def fixed(line, tmp_path_factory):
    "The same graph for a batch of exactly two."
    graph = onnx.load(line[2])
    for value in (graph.graph.input[0], graph.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    return save_graph(graph, tmp_path_factory.mktemp("fixed") / "two.onnx")


def noise(count, seed=0, size=320):
    return np.random.default_rng(seed).random((count, 3, size, size), np.float32)


@pytest.mark.parametrize("mode, streams", [("latency", 0), ("throughput", 0), ("throughput", 2)])
def test_answers_are_those_of_onnx_runtime_for_any_batch(line, fixed, mode, streams):
    model, manifest, file = line
    feed = noise(7)
    wanted = model.backend.infer(feed)
    for path in (file, fixed):
        backend = OpenVINOBackend(
            path, manifest, threads=streams or 1, settings=OpenVINOSettings(mode=mode, streams=streams)
        )
        assert isinstance(backend, Backend) and backend.settings["precision"] == "fp32" == backend.precision
        assert backend.settings["requests"] >= (streams or 1) and ("throughput" in backend.provider) == (
            mode == "throughput"
        )
        backend.warmup()
        for n in (1, 2, 3, 7):
            got = backend.infer(feed[:n])
            assert got.shape == wanted[:n].shape and got.dtype == np.float32
            np.testing.assert_allclose(got, wanted[:n], atol=2e-2, rtol=1e-3)
    assert backend.fixed_batch == 2 and backend.max_batch == 2 * backend.settings["requests"]


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_compiled_for_any_number_of_pictures_a_call(line, batch):
    model, manifest, file = line
    backend = OpenVINOBackend(file, manifest, threads=1, settings=OpenVINOSettings(batch=batch))
    assert backend.fixed_batch == (batch or None) and backend.max_batch == 64
    for n in (1, 3, 4):
        np.testing.assert_allclose(
            backend.infer(noise(n)), model.backend.infer(noise(n)), atol=2e-2, rtol=1e-3
        )
    with pytest.raises(ConfigError, match="batch: must be"):
        OpenVINOSettings(batch=-1)


def test_what_was_returned_stays(line):
    "The result of a call is not overwritten by the next one."
    backend = OpenVINOBackend(line[2], line[1], threads=1)
    first = backend.infer(noise(1))
    kept = first.copy()
    backend.infer(noise(1, seed=9))
    assert np.array_equal(first, kept)


def test_views_and_strides(line):
    backend, feed = OpenVINOBackend(line[2], line[1], threads=1), noise(4)
    assert np.array_equal(backend.infer(feed[::2]), backend.infer(np.ascontiguousarray(feed[::2])))
    assert np.array_equal(backend.infer(np.asfortranarray(feed[:1])), backend.infer(feed[:1]))


def test_threads_take_turns(line):
    backend, feed = (
        OpenVINOBackend(line[2], line[1], threads=1, settings=OpenVINOSettings(mode="throughput")),
        noise(6),
    )
    wanted, wrong = backend.infer(feed), []

    def ask(k):
        for _ in range(3):
            if not np.allclose(backend.infer(feed[k : k + 1]), wanted[k : k + 1], atol=1e-4):
                wrong.append(k)

    crowd = [threading.Thread(target=ask, args=(k,)) for k in range(6)]
    for t in crowd:
        t.start()
    for t in crowd:
        t.join()
    assert wrong == []


@given(st.integers(0, 40), st.integers(1, 6), st.none() | st.integers(1, 5))
def test_pieces_cover_a_batch_once_and_in_order(count, requests, fixed_):
    pieces = _pieces(count, requests, fixed_)
    assert [i for a, b in pieces for i in range(a, b)] == list(range(count))
    assert all(0 < b - a <= (fixed_ or count) for a, b in pieces) and (fixed_ or len(pieces) <= requests)


def test_the_precision_is_the_one_asked_for(line):
    "The silent default is never taken; half precision that would become bfloat16 is refused."
    _, manifest, file = line
    assert OpenVINOBackend(file, manifest, threads=1).precision == "fp32"
    default = default_precision()
    assert default in ("fp32", "bf16", "fp16")
    for precision in ("bf16", "fp16"):
        try:
            backend = OpenVINOBackend(file, manifest, threads=1, settings=OpenVINOSettings(precision))
        except BackendError as e:
            assert f"requested was {precision}" in str(e) and "would compute in" in str(e)
        else:
            assert backend.precision == precision and precision in backend.provider


def test_bfloat16_differs_and_says_so(line):
    if default_precision() != "bf16":
        pytest.skip("this processor has no bfloat16")
    model, manifest, file = line
    backend, feed = OpenVINOBackend(file, manifest, threads=1, settings=OpenVINOSettings("bf16")), noise(1)
    gap = np.abs(backend.infer(feed)[:, 4:] - model.backend.infer(feed)[:, 4:]).max()
    assert 0 < gap < 0.05 and "bf16" in backend.provider


def test_pair_and_registered_ending(line, tmp_path):
    """An .xml opens through load_backend, with a batch of any size; options reach the backend; metadata of
    the ONNX file goes along."""
    model, manifest, file = line
    graph = open_graph(file)
    for key, value in {"task": "detect", "imgsz": "[320, 320]", "names": "{0: 'a'}"}.items():
        if key not in {p.key for p in graph.metadata_props}:
            graph.metadata_props.add(key=key, value=value)
    xml = write_openvino(graph, tmp_path / "m.xml")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    backend = load_backend(xml, manifest, threads=1)
    np.testing.assert_allclose(backend.infer(noise(3)), model.backend.infer(noise(3)), atol=2e-2, rtol=1e-3)
    assert (
        load_backend(file, manifest, threads=1, runtime="openvino", mode="throughput").settings["mode"]
        == "throughput"
    )
    said = read_metadata(xml)
    assert said["task"] == "detect" and "names" in said
    (tmp_path / "metadata.yaml").write_text("task: detect\nnames: {0: z}\nimgsz: [320, 320]\n")
    assert read_metadata(xml)["names"] == "{0: 'z'}"
    (tmp_path / "metadata.yaml").write_text("a: [1,")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_metadata(xml)


def test_ultralytics_reads_and_writes_the_same_pair(line, tmp_path):
    "A folder as Ultralytics' exporter makes it, metadata.yaml beside the pair, opens as a bare model."
    xml = write_openvino(open_graph(line[2]), tmp_path / "yolo.xml")
    (tmp_path / "metadata.yaml").write_text(
        "task: detect\nstride: 32\nimgsz: [320, 320]\nnames: {0: gear, 1: bolt, 2: nut, 3: bracket, 4: "
        "defect}\n"
    )
    model = load_model(xml, threads=1)
    assert model.manifest.names[0] == "gear" and model.manifest.preprocess.imgsz == (320, 320)
    picture = np.full((100, 200, 3), 90, np.uint8)
    assert len(model.predict([picture, picture])) == 2


def test_bytes_in(line, tmp_path):
    model, manifest, file = line
    graph, spec = bytes_input(simplify(open_graph(file)), manifest.preprocess)
    xml = write_openvino(graph, tmp_path / "bytes.xml")
    backend = OpenVINOBackend(xml, replace(manifest, preprocess=spec), threads=1)
    picture = np.random.default_rng(0).integers(0, 256, (2, 320, 320, 3), np.uint8)
    floats = np.ascontiguousarray(picture[..., ::-1].transpose(0, 3, 1, 2)).astype(np.float32) / 255
    np.testing.assert_allclose(backend.infer(picture), model.backend.infer(floats), atol=2e-2, rtol=1e-3)
    backend.warmup()
    with pytest.raises(BackendError, match="takes uint8, not float32"):
        backend.infer(floats)
    with pytest.raises(BackendError, match="takes float32, not uint8"):
        OpenVINOBackend(file, manifest, threads=1).infer(picture)
    with pytest.raises(BackendError):
        OpenVINOBackend(xml, manifest)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"precision": "int8"}, "precision: must be one of"),
        ({"mode": "fast"}, "mode: must be"),
        ({"streams": 1.5}, "streams: must be"),
        ({"batch": True}, "batch: must be"),
    ],
)
def test_settings_that_are_wrong_name_the_field(wrong, said):
    with pytest.raises(ConfigError, match=said):
        OpenVINOSettings(**wrong)


@pytest.mark.parametrize("wrong", [-1, True, 1.5])
def test_a_number_of_threads_that_is_none(line, wrong):
    with pytest.raises(ConfigError, match="threads: must be"):
        OpenVINOBackend(line[2], line[1], threads=wrong)


def test_options_of_a_manifest_are_settings(line):
    assert open_openvino(line[2], line[1], threads=1, mode="throughput").settings["mode"] == "throughput"


def test_an_option_that_openvino_does_not_have_is_named(line):
    with pytest.raises(ConfigError, match="unknown OpenVINO option: 'precisoin'"):
        open_openvino(line[2], line[1], precisoin="bf16")


def test_files_and_devices_that_are_none(line, tmp_path):
    _, manifest, file = line
    with pytest.raises(BackendError, match="model file not found"):
        OpenVINOBackend(tmp_path / "no.xml", manifest)
    (tmp_path / "a.xml").write_text("<net/>")
    with pytest.raises(BackendError, match=r"weights .* is missing"):
        OpenVINOBackend(tmp_path / "a.xml", manifest)
    for content in (b"", b"<net/>", b"\x00\xff" * 50):
        (tmp_path / "a.xml").write_bytes(content)
        (tmp_path / "a.bin").write_bytes(b"1")
        with pytest.raises(BackendError, match="cannot open it"):
            OpenVINOBackend(tmp_path / "a.xml", manifest)
    half = write_openvino(open_graph(file), tmp_path / "h.xml")
    half.with_suffix(".bin").write_bytes(half.with_suffix(".bin").read_bytes()[:1000])
    with pytest.raises(BackendError):
        OpenVINOBackend(half, manifest)
    with pytest.raises(BackendError, match="devices here"):
        OpenVINOBackend(file, manifest, providers=["NPU"])
    with pytest.raises(ModelSpecMismatch):
        OpenVINOBackend(file, replace(manifest, names=("one",), postprocess=replace(manifest.postprocess)))


def test_graphs_that_are_no_detector(line, tmp_path):
    two = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["c"])],
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 320, 320]) for n in "ab"],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)],
    )
    save_graph(
        helper.make_model(two, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "two.onnx",
    )
    with pytest.raises(BackendError, match="one image tensor"):
        OpenVINOBackend(tmp_path / "two.onnx", line[1])


def test_nan_closed_and_wrong_input(line, tmp_path):
    _, manifest, file = line
    graph = open_graph(file)
    graph.graph.node.append(helper.make_node("Log", [graph.graph.output[0].name], ["worse"]))
    graph.graph.output[0].name = "worse"
    backend = OpenVINOBackend(save_graph(graph, tmp_path / "nan.onnx"), manifest, threads=1)
    with pytest.raises(InvalidOutput, match="NaN or infinity"):
        backend.infer(np.full((1, 3, 320, 320), -50, np.float32))
    backend = OpenVINOBackend(file, manifest, threads=1)
    with pytest.raises(BackendError, match="failed on input"):
        backend.infer(np.zeros((1, 4, 320, 320), np.float32))
    assert backend.infer(noise(1)).shape[0] == 1, "a failed call does no lasting harm"
    assert backend.infer(noise(1)[:0]).shape == (0, 9, 0)
    backend.close()
    with pytest.raises(BackendError, match="is closed"):
        backend.infer(noise(1))


def test_without_openvino_the_extra_is_named(line):
    code = (
        "import sys; sys.modules['openvino'] = None\nfrom cv_pipeline.inference.manifest import "
        "load_manifest\nfrom cv_pipeline.inference.loading import load_backend\n"
        "m, f = load_manifest('factory_line')\ntry: load_backend(f, m, runtime='openvino')\nexcept Exception "
        "as e: print(type(e).__name__, e)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout
    assert said.startswith("BackendError") and "cv_pipeline[openvino]" in said


def test_importing_the_room_does_not_import_the_runtime():
    code = (
        "import sys, cv_pipeline.inference.openvino, cv_pipeline.optimization.graphs, "
        "cv_pipeline.optimization.quantize; print([m for m in ('openvino', 'nncf', 'onnx', "
        "'onnxslim', 'torch') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        ).stdout.strip()
        == "[]"
    )


@settings(max_examples=15)
@given(st.integers(1, 5), st.integers(0, 99))
def test_a_batch_is_its_pictures(line, count, seed):
    backend = _one(line)
    feed = noise(count, seed)
    together = backend.infer(feed)
    for i in range(count):
        np.testing.assert_allclose(together[i], backend.infer(feed[i : i + 1])[0], atol=2e-2, rtol=1e-3)


_KEPT = []


def _one(line):
    if not _KEPT:
        _KEPT.append(
            OpenVINOBackend(line[2], line[1], threads=1, settings=OpenVINOSettings(mode="throughput"))
        )
    return _KEPT[0]
