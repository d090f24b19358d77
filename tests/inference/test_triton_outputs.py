"""Graphs with two outputs behind Triton: the repository in NVIDIA's schema, the runner on a stand-in of the
server's module, and the client on a stand-in of the server that answers by ONNX Runtime."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from cv_pipeline.core.types import ConfigError, ModelSpecMismatch
from cv_pipeline.inference.backends import InvalidOutput
from cv_pipeline.inference.loading import load_model
from cv_pipeline.inference.manifest import ModelManifest, save_manifest
from cv_pipeline.inference.triton import NUMPY_TYPES, Line, Served, open_remote
from cv_pipeline.optimization.triton_repository import ServeOptions, write_repository
from tests.helpers.services import require
from tests.helpers.two_outputs import detr_manifest, two_outputs

require("tritonclient", reason='pip install "cv_pipeline[triton]"')
from google.protobuf import text_format  # noqa: E402
from tritonclient import http as library  # noqa: E402
from tritonclient.grpc import model_config_pb2  # noqa: E402

NAMES = ("pred_boxes", "logits")
SEGMENT = Path(__file__).parents[1] / "models" / "line_segment"


@pytest.fixture(params=["detr", "segment"])
def model(request, tmp_path):
    "A folder whose graph has two outputs."
    if request.param == "segment":
        return SEGMENT
    folder = tmp_path / "model"
    folder.mkdir()
    two_outputs(folder, NAMES)
    save_manifest(detr_manifest(conf=0.5), folder)
    return folder


def config_of(folder):
    text = (folder / "config.pbtxt").read_text("utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


class StandIn:
    "A client of a server that serves a repository: metadata of its config, answers of ONNX Runtime."

    library = library

    def __init__(self, folder, swapped=False, silent=()):
        self.config, self.silent, self.asked = config_of(folder), silent, []
        self.session = ort.InferenceSession(
            str(next(folder.glob("*/model.onnx"))), providers=["CPUExecutionProvider"]
        )
        kinds = {model_config_pb2.DataType.Value(f"TYPE_{k}"): k for k in NUMPY_TYPES}
        ends = lambda rows: {t.name: (kinds[t.data_type], (-1, *t.dims)) for t in rows}
        outputs = list(ends(self.config.output).items())
        carried = self.config.parameters["manifest"].string_value
        self.said = Served(
            ends(self.config.input),
            dict(outputs[::-1] if swapped else outputs),
            self.config.max_batch_size,
            ModelManifest.from_dict(json.loads(carried)),
        )

    def ready(self, timeout):
        return True

    def served(self, timeout):
        return self.said

    def infer(self, inputs, outputs, timeout):
        (given,) = inputs
        data = np.frombuffer(given._raw_data, NUMPY_TYPES[given.datatype()]).reshape(given.shape())
        names = [o.name() for o in outputs]
        self.asked.append(names)
        made = dict(zip(names, self.session.run(names, {given.name(): data})))
        answer = types.SimpleNamespace()
        answer.as_numpy = lambda name: None if name in self.silent else made[name]
        return answer


def remote(monkeypatch, folder, **how):
    client = StandIn(folder, **how)
    monkeypatch.setattr(Line, "client", lambda self: client)
    return open_remote("triton://127.0.0.1:9/m"), client


def test_the_configuration_names_both_outputs_in_the_heads_order(tmp_path, model):
    folder = write_repository(model, tmp_path / "repository", ServeOptions(max_batch=4), name="m")["m"]
    c, own = config_of(folder), load_model(model, threads=1)
    shapes = [len(o.dims) for o in c.output]
    assert len(c.output) == 2
    if own.manifest.task == "detect":
        assert [o.name for o in c.output] == list(NAMES) and c.output[0].dims[-1] == 4
    else:
        assert shapes == [2, 3]  # candidates, then prototypes


@pytest.mark.parametrize("swapped", [False, True])
def test_results_of_a_served_model_equal_local_ones(tmp_path, monkeypatch, model, swapped):
    folder = write_repository(model, tmp_path / "repository", ServeOptions(max_batch=4), name="m")["m"]
    served, client = remote(monkeypatch, folder, swapped=swapped)
    local = load_model(model, threads=1)
    pictures = [np.random.default_rng(k).integers(0, 255, (90, 120, 3), np.uint8) for k in range(6)]
    how = {"conf": 0.01}
    ours, theirs = (m.with_postprocess(**how).predict(pictures) for m in (served, local))
    assert sum(map(len, theirs)) > 0
    for a, b in zip(ours, theirs):
        assert np.allclose(a.xyxy, b.xyxy, atol=1e-3) and np.allclose(a.confidence, b.confidence, atol=1e-5)
    assert len(client.asked) == 2 and len(client.asked[0]) == 2  # two batches of at most four


def test_an_output_that_is_missing_in_an_answer_is_invalid(tmp_path, monkeypatch, model):
    folder = write_repository(model, tmp_path / "repository", name="m")["m"]
    name = config_of(folder).output[1].name
    served, _ = remote(monkeypatch, folder, silent=(name,))
    with pytest.raises(InvalidOutput):
        served.predict([np.zeros((64, 64, 3), np.uint8)])


def test_outputs_of_another_head_are_refused(tmp_path, monkeypatch, model):
    folder = write_repository(model, tmp_path / "repository", name="m")["m"]
    client = StandIn(folder)
    client.said = client.said.__class__(
        client.said.inputs,
        {**client.said.outputs, "third": ("FP32", (-1, 5))},
        client.said.max_batch,
        client.said.manifest,
    )
    monkeypatch.setattr(Line, "client", lambda self: client)
    with pytest.raises(ModelSpecMismatch, match="3 outputs"):
        open_remote("triton://127.0.0.1:9/m")


def test_detections_on_the_server_are_refused_for_two_outputs(tmp_path, model):
    with pytest.raises(ConfigError, match="cannot be made on the server"):
        write_repository(model, tmp_path / "repository", ServeOptions(ends=True))
    assert not (tmp_path / "repository").exists()


def test_the_runner_answers_every_request_with_both_outputs(tmp_path, monkeypatch, model):
    folder = write_repository(model, tmp_path / "repository", ServeOptions("python"), name="m")["m"]
    pb = types.ModuleType("triton_python_backend_utils")
    pb.Tensor = lambda name, array: (name, array)
    pb.InferenceResponse = lambda tensors=None, error=None: error or dict(tensors)
    pb.TritonError = RuntimeError
    pb.get_input_tensor_by_name = lambda request, name: types.SimpleNamespace(as_numpy=lambda: request[name])
    monkeypatch.setitem(sys.modules, pb.__name__, pb)
    space: dict = {}
    exec(next(folder.glob("*/model.py")).read_text(), space)
    runner = space["TritonPythonModel"]()
    args = {"model_config": json.dumps({"parameters": {}}), "model_instance_kind": "CPU"}
    args |= {"model_repository": str(folder), "model_version": "1", "model_instance_device_id": "0"}
    runner.initialize(args)
    size = load_model(model, threads=1).manifest.preprocess.imgsz
    rng = np.random.default_rng(0)
    parts = [rng.random((n, 3, *size), np.float32) for n in (1, 2)]
    one, two = runner.execute([{runner.input: p} for p in parts])
    assert list(one) == runner.outputs and len(runner.outputs) == 2
    alone = runner.session.run(runner.outputs, {runner.input: parts[1]})
    for name, array in zip(runner.outputs, alone):
        assert len(one[name]) == 1 and np.allclose(two[name], array, atol=1e-4)
