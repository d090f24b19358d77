"""Files for LiteRT and NCNN: converters that are missing, fail, hang or write nothing; where the real ones
and both runtimes are installed, the whole way."""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from cv_pipeline.core.types import BackendError
from cv_pipeline.inference.loading import load_backend
from cv_pipeline.inference.onnx import OnnxBackend
from cv_pipeline.optimization.engine_build import TOOLS, convert, find_tool, one_picture, run_tool
from cv_pipeline.optimization.graphs import inspect_graph, open_graph
from cv_pipeline.optimization.optimize import DEFAULT_STEPS, STEPS
from tests.helpers.tiny_detectors import manifest, tiny


@pytest.fixture
def graph(tmp_path):
    return open_graph(tiny(tmp_path / "tiny.onnx"))


def program(folder: Path, text: str) -> Path:
    "A converter of a few lines."
    path = folder / "tool"
    path.write_text(f"#!{sys.executable}\nimport sys, pathlib, time, os\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(params=TOOLS)
def kind(request):
    return request.param


def ending(kind):
    return "a.param" if kind == "ncnn" else "a.tflite"


def test_a_converter_that_is_missing(kind, graph, tmp_path, monkeypatch):
    name, variable = TOOLS[kind]
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(BackendError, match=f"{name} is not found on the PATH"):
        convert(graph, (32, 32), tmp_path / ending(kind))
    monkeypatch.setenv(variable, "/nowhere/tool")
    with pytest.raises(BackendError, match=variable):
        find_tool(kind)


def test_a_converter_that_fails_or_hangs(kind, graph, tmp_path, monkeypatch):
    monkeypatch.setenv(TOOLS[kind][1], str(program(tmp_path, "print('layer Foo is unknown'); sys.exit(7)")))
    with pytest.raises(BackendError, match="failed with 7: layer Foo is unknown"):
        convert(graph, (32, 32), tmp_path / ending(kind))
    assert not (tmp_path / ending(kind)).exists()
    slow = program(tmp_path, "time.sleep(600)")
    with pytest.raises(BackendError, match="does not run"):
        run_tool([str(slow)], tmp_path, timeout_s=1.0)


def test_a_converter_that_writes_nothing(kind, graph, tmp_path, monkeypatch):
    monkeypatch.setenv(TOOLS[kind][1], str(program(tmp_path, "pass")))
    with pytest.raises(BackendError, match="the converter wrote no"):
        convert(graph, (32, 32), tmp_path / ending(kind))


def test_a_converter_does_not_see_our_packages(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere/of/ours")
    text = run_tool([str(program(tmp_path, "print(os.environ.get('PYTHONPATH'))"))], tmp_path)
    assert text.strip() == "None"


def test_the_graph_is_given_a_batch_of_one(graph):
    facts = inspect_graph(one_picture(graph, (32, 32)))
    assert facts.batch == 1
    assert inspect_graph(graph).batch is None  # the given one is not changed


def test_a_graph_of_one_picture_answers_the_same(graph, tmp_path):
    from cv_pipeline.optimization.graphs import save_graph

    save_graph(one_picture(graph, (32, 32)), tmp_path / "one.onnx")
    given = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)
    one = OnnxBackend(tmp_path / "one.onnx", manifest("one.onnx")).infer(given)
    assert np.allclose(one, OnnxBackend(tmp_path / "tiny.onnx", manifest()).infer(given), atol=1e-6)


def test_they_are_not_made_unless_asked_for():
    small = {n for n, s in STEPS.items() if s.runtime in ("litert", "ncnn")}
    assert small == {"litert", "litert-fp16", "ncnn", "ncnn-fp16"}
    assert not small & set(DEFAULT_STEPS)


def ready(kind):
    module = {"litert": "ai_edge_litert", "ncnn": "ncnn"}[kind]
    try:
        find_tool(kind)
    except BackendError as e:
        pytest.skip(str(e))
    if importlib.util.find_spec(module) is None:
        pytest.skip(f'{module} is not installed: pip install "cv_pipeline[{kind}]"')


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
def test_a_real_converter(kind, graph, tmp_path, half):
    ready(kind)
    path = convert(graph, (32, 32), tmp_path / ending(kind), half)
    given = np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32)
    mine = load_backend(path, manifest(path.name), threads=1).infer(given)
    theirs = OnnxBackend(tmp_path / "tiny.onnx", manifest()).infer(given)
    assert np.abs(mine - theirs).max() < (2e-2 if half else 1e-4)


def test_a_step_without_its_converter_is_skipped_with_the_reason(kind, tmp_path, monkeypatch):
    from cv_pipeline.optimization.optimize import run_step

    for _, variable in TOOLS.values():
        monkeypatch.setenv(variable, "/nowhere/tool")
    result = run_step(kind, None, None, tmp_path)
    assert result.skipped
    assert "is not installed" in result.problem or "is not found at" in result.problem
    assert os.listdir(tmp_path) == []
