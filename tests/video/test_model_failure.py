"""A model that stops giving usable answers in the middle of a video: tiny ONNX graphs that do so on purpose,
through the command line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper

from cv_pipeline.core.results import read_jsonl, read_results
from cv_pipeline.core.types import BackendError
from cv_pipeline.inference.backends import InvalidOutput, SteadyBackend, check_output
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.line import write_video

CLI = str(Path(sys.executable).with_name("cv-pipeline"))
SIDE, DARK, BRIGHT = 64, 60, 220  # pixels, grey levels
LIMIT = 0.6  # mean brightness above which the graph fails


def detector(path: Path, fails: str = "", kind: int = TensorProto.FLOAT) -> Path:
    """A graph with one detection a picture, whatever it shows: class 0, confidence .9, box (8, 12)-(40, 44).
    On a bright picture it fails: `fails` is "nan", "inf" or "rows" (a class row less than promised, in a
    graph whose dimensions are dynamic)."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    raw = np.zeros(
        (1, 6, 5), dtype
    )  # cx, cy, w, h and two classes; five cells, one of them sure of something
    raw[0, :5, 2] = 24, 28, 32, 32, 0.9
    constant = lambda name, value: helper.make_tensor(
        name, kind if value.dtype == dtype else TensorProto.INT64, value.shape, value.tobytes(), raw=True
    )
    node = helper.make_node
    nodes = [
        node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=1),
        node("Squeeze", ["mean", "last"], ["level"]),
        node("Greater", ["level", "limit"], ["bright"]),
    ]
    if fails == "rows":
        nodes += [
            node("ReduceMax", ["level"], ["top"], axes=[0, 1, 2], keepdims=0),
            node("Greater", ["top", "limit"], ["any"]),
            node("Where", ["any", "five", "six"], ["count"]),
            node("Slice", ["raw", "zero", "count", "first"], ["some"]),
        ]
    else:
        nodes += [node("Identity", ["raw"], ["some"])]
    nodes += [
        node("Where", ["bright", "rubbish", "nothing"], ["extra"]),
        node("Add", ["some", "extra"], ["output"]),
    ]
    rubbish = {"nan": np.nan, "inf": np.inf}.get(fails, 0)
    given = [
        constant("raw", raw),
        constant("last", np.array([3])),
        constant("limit", np.array(LIMIT, dtype).reshape(1)),
        constant("five", np.array([5])),
        constant("six", np.array([6])),
        constant("zero", np.array([0])),
        constant("first", np.array([1])),
        constant("rubbish", np.array(rubbish, dtype).reshape(1)),
        constant("nothing", np.zeros(1, dtype)),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", kind, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output", kind, ["batch", "rows", "cells"])],
        given,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    path.with_suffix(".yaml").write_text(
        f"version: '7'\nnames: [gear, nut]\npreprocess: {{imgsz: [{SIDE}, {SIDE}]}}\n"
    )
    return path


def flat(level: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), level, np.uint8)


@pytest.fixture(scope="module")
def dusk(tmp_path_factory):
    "Twenty dark frames, three bright ones, seven dark ones."
    path = tmp_path_factory.mktemp("video") / "dusk.mp4"
    write_video(path, [flat(BRIGHT if 20 <= k < 23 else DARK) for k in range(30)])
    return path


def run(video, model, out, *more):
    return subprocess.run(
        [
            CLI,
            "run",
            str(video),
            "--model",
            str(model),
            "--out",
            str(out),
            "--tracker",
            "none",
            "--max-batch",
            "1",
            *more,
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "fails, words",
    [
        ("nan", "NaN or infinity for 1 of 1 images"),
        ("inf", "NaN or infinity for 1 of 1 images"),
        ("rows", "has shape (1, 5, 5), expected (1, 6, any)"),
    ],
)
def test_a_model_that_fails_in_the_middle_of_a_video(tmp_path, dusk, fails, words):
    """Exit code 4, one sentence with the model's name, and everything up to the failure readable in three
    formats."""
    out = tmp_path / "out"
    done = run(dusk, detector(tmp_path / "moody.onnx", fails), out)
    text = " ".join(done.stderr.split())
    assert done.returncode == 4 and words in text and "moody 7" in text and "Traceback" not in text, (
        done.stderr
    )
    table = pq.read_table(out / "results.parquet")
    assert (
        table["frame_id"].to_pylist() == list(range(20))
        and table.equals(read_results(out))
        and set(table["class_name"].to_pylist()) == {"gear"}
    )
    np.testing.assert_allclose(
        [table[c][0].as_py() for c in ("x1", "y1", "x2", "y2", "confidence")], [8, 12, 40, 44, 0.9], rtol=1e-6
    )
    records = list(read_jsonl(out / "results.jsonl"))
    assert [r["frame_id"] for r in records] == list(range(20)) and all(
        len(r["detections"]) == 1 and r["status"] == "ok" for r in records
    )
    assert len(records) == len((out / "results.jsonl").read_text().splitlines())  # no torn line
    summary = json.loads((out / "summary.json").read_text())
    assert (
        words in summary["error"]
        and "moody 7" in summary["error"]
        and summary["detections"] == summary["frames_inferred"] == 20
    )
    assert summary["model"]["events"] == {}  # rubbish is not asked for twice


@pytest.mark.slow
def test_frames_without_an_answer_are_marked_when_the_run_goes_on(tmp_path, dusk):
    out = tmp_path / "out"
    done = run(dusk, detector(tmp_path / "moody.onnx", "nan"), out, "--on-model-error", "skip")
    assert done.returncode == 0, done.stderr
    records = list(read_jsonl(out / "results.jsonl"))
    assert [r["status"] for r in records] == ["ok"] * 20 + ["model_error"] * 3 + ["ok"] * 7
    assert [len(r["detections"]) for r in records] == [1] * 20 + [0] * 3 + [1] * 7


# --- half precision and other inputs


@pytest.mark.slow
def test_a_half_precision_model_answers_like_the_float32_one(tmp_path, dusk):
    "Ultralytics' half=True export takes float16 and returns float16."
    single, half = (
        load_model(detector(tmp_path / f"{name}.onnx", kind=kind))
        for name, kind in (("single", TensorProto.FLOAT), ("half", TensorProto.FLOAT16))
    )
    batch, _ = half.preprocess.batch([flat(DARK), flat(BRIGHT)])
    raw = half.backend.infer(batch)
    assert batch.dtype == raw.dtype == np.float32 and np.abs(raw - single.backend.infer(batch)).max() < 1e-3
    assert [len(d) for d in half.predict([flat(DARK), flat(BRIGHT)])] == [1, 1]
    done = run(dusk, tmp_path / "half.onnx", tmp_path / "out")
    assert done.returncode == 0 and pq.read_table(tmp_path / "out/results.parquet").num_rows == 30, (
        done.stderr
    )
    with pytest.raises(InvalidOutput, match="NaN"):  # float16 overflow looks like this
        load_model(detector(tmp_path / "overflow.onnx", "inf", TensorProto.FLOAT16)).predict([flat(BRIGHT)])


@pytest.mark.slow
def test_a_double_input_is_refused_at_the_start(tmp_path, dusk):
    done = run(dusk, detector(tmp_path / "double.onnx", kind=TensorProto.DOUBLE), tmp_path / "out")
    text = " ".join(done.stderr.split())
    assert done.returncode == 4 and "tensor(double)" in text and "double.onnx" in text.replace(" ", "")


# --- who is asked again, and who is not


class Fake:
    name, provider, max_batch = "fake 1", "nowhere", 8

    def __init__(self, answer=None, story=None, label="", **attributes):
        self.answer, self.story, self.label = answer, [] if story is None else story, label
        vars(self).update(attributes)

    def infer(self, batch):
        self.story.append(f"{self.label}call")
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer(batch) if self.answer else np.zeros((len(batch), 6, 5), np.float32)

    def warmup(self):
        pass

    def close(self):
        self.story.append(f"{self.label}close")


@pytest.mark.parametrize(
    "answer",
    [
        lambda b: np.full((len(b), 6, 5), np.nan, np.float32),
        lambda b: np.zeros((len(b), 5, 5), np.float32),
        lambda b: np.zeros((len(b) + 1, 6, 5), np.float32),
        lambda b: np.zeros(len(b), np.float32),
    ],
)
def test_rubbish_is_neither_asked_for_again_nor_a_reason_to_reopen(answer):
    inner = Fake(answer)
    steady = SteadyBackend(inner, lambda: pytest.fail("reopened"), shape=(6, None))
    with pytest.raises(InvalidOutput, match="fake 1"):
        steady.infer(np.zeros((2, 3, 8, 8), np.float32))
    assert inner.story == ["call"] and not steady.events


def test_an_inner_check_is_not_retried_either_and_not_repeated(monkeypatch):
    inner = Fake(InvalidOutput("the output contains NaN", "fake 1"))
    with pytest.raises(InvalidOutput):
        SteadyBackend(inner, lambda: pytest.fail("reopened")).infer(np.zeros((1, 3, 8, 8), np.float32))
    assert inner.story == ["call"]
    checked = []
    monkeypatch.setattr(
        "cv_pipeline.inference.backends.check_output",
        lambda raw, *more: checked.append(1) or check_output(raw, *more),
    )
    SteadyBackend(Fake(checks_output=True)).infer(np.zeros((1, 3, 8, 8), np.float32))
    assert checked == []
    SteadyBackend(Fake()).infer(np.zeros((1, 3, 8, 8), np.float32))
    assert checked == [1]


def test_the_old_backend_is_closed_before_the_new_one_is_opened():
    story = []
    steady = SteadyBackend(
        Fake(BackendError("device lost", "fake 1"), story, "old "),
        lambda: story.append("open") or Fake(None, story, "new "),
    )
    assert steady.infer(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 6, 5)
    assert story == ["old call", "old close", "open", "new call"] and steady.events == {"retry": 1}
    steady.close()
    assert story[-1] == "new close"


def test_an_old_backend_that_cannot_be_closed_does_not_stop_the_second_try():
    class Stuck(Fake):
        def close(self):
            raise RuntimeError("device lost")

    steady = SteadyBackend(Stuck(BackendError("device lost", "fake 1")), Fake)
    assert steady.infer(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 6, 5)


def test_a_closed_backend_says_so(tmp_path):
    model = load_model(detector(tmp_path / "m.onnx"))
    model.close()
    with pytest.raises(BackendError, match="is closed"):
        model.predict([flat(DARK)])
