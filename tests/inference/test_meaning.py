"""Answers that fit the shape and not its meaning: tiny ONNX graphs with a constant output, through load_model
and the command line; the YOLOv5 head against brute force and a real YOLOX that is decoded outside."""

import json
import logging
import subprocess
import sys

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from cv_pipeline.core.types import BackendError, ModelSpecMismatch
from cv_pipeline.inference.loading import load_model
from cv_pipeline.inference.manifest import PostprocessSpec, grid_cells
from cv_pipeline.inference.meaning import FIRST, AnswerWatch, box_problem, class_problem, marks, score_problem
from cv_pipeline.inference.postprocess import Postprocessor, yolov5_candidates
from cv_pipeline.inference.preprocess import fit
from cv_pipeline.synthetic.line import write_video
from cv_pipeline.video.health import readyz

SIDE = 64
MAIN = "from cv_pipeline.commands.main import main; main()"


def run(tmp_path, model, frames):
    "Exit code, output and summary of a run on noise."
    rng = np.random.default_rng(0)
    write_video(tmp_path / "clip.mp4", (rng.integers(0, 255, (64, 96, 3), np.uint8) for _ in range(frames)))
    args = ["run", str(tmp_path / "clip.mp4"), "--model", str(model), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *args],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = " ".join((done.stdout + done.stderr).split())
    return done.returncode, said, json.loads((tmp_path / "out" / "summary.json").read_text())


def constant(path, raw, names=("a", "b", "c"), **postprocess):
    "A detector that answers `raw` (1, …) to every picture, with its manifest beside it."
    raw = np.asarray(raw, np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["raw", "nothing"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, SIDE, SIDE))],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, raw.shape)],
        [numpy_helper.from_array(raw, "raw"), numpy_helper.from_array(np.float32(0), "zero")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    spec = {"names": list(names), "preprocess": {"imgsz": SIDE}, "postprocess": postprocess}
    path.with_suffix(".json").write_text(json.dumps(spec))
    return path


def columns(*boxes, cells=84, classes=3):
    "A YOLOv8 output: (cx, cy, w, h, class, score)."
    raw = np.zeros((1, 4 + classes, cells), np.float32)
    for i, (x, y, w, h, c, s) in enumerate(boxes):
        raw[0, :4, i], raw[0, 4 + int(c), i] = (x, y, w, h), s
    return raw


def rows(*values, width=8, cells=84):
    raw = np.zeros((1, cells, width), np.float32)
    for i, value in enumerate(values):
        raw[0, i] = value
    return raw


WRONG = {
    "logits": (columns((32, 32, 20, 10, 1, 3.7)), {"head": "yolov8"}, "logits"),
    "negative logits": (columns((32, 32, 20, 10, 1, 0.9), (9, 9, 9, 9, 0, -4)), {"head": "yolov8"}, "logits"),
    "percent": (columns((32, 32, 20, 10, 1, 87)), {"head": "yolov8"}, "percent"),
    "shares": (columns((0.5, 0.5, 0.3, 0.2, 1, 0.9)), {"head": "yolov8"}, "shares of the input"),
    "shares, end to end": (rows((0.1, 0.1, 0.6, 0.5, 0.9, 1), width=6), {"head": "end2end"}, "shares"),
    "negative sizes": (columns((32, 32, -20, 10, 1, 0.9)), {"head": "yolov8"}, "right or lower edge"),
    "corners": (
        columns(*((x, x, x + 30, x + 30, 0, 0.9) for x in range(30, 54, 4))),
        {"head": "yolov8"},
        "look like corners",
    ),
    "class 7": (rows((10, 10, 40, 30, 0.9, 7), width=6), {"head": "end2end"}, "class 7 of 3"),
    "class -1": (rows((10, 10, 40, 30, 0.8, -1), width=6), {"head": "end2end"}, "class -1 of 3"),
    "class 7 with class_conf": (
        rows((10, 10, 40, 30, 0.9, 7), width=6),
        {"head": "end2end", "class_conf": {"a": 0.5}},
        "class 7 of 3",
    ),
    "inverted": (rows((40, 30, 10, 10, 0.7, 1), width=6), {"head": "end2end"}, "right or lower edge"),
    "swapped": (rows((10, 10, 40, 30, 1, 0.9), width=6), {"head": "end2end"}, "swapped"),
    "decoded yolox": (rows((32, 32, 20, 10, 0.9, 0, 1, 0)), {"head": "yolox"}, "as of head: yolov5"),
    "yolox, not decoded": (rows((0.4, 0.2, -0.3, 0.5, 0.9, 0, 1, 0)), {"head": "yolov5"}, "shares|yolox"),
    "yolov5 logits": (rows((32, 32, 20, 10, 4.2, 0, 1, 0)), {"head": "yolov5"}, "logits"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_answer_that_cannot_mean_what_its_head_says_is_refused(tmp_path, name):
    raw, spec, text = WRONG[name]
    model = load_model(constant(tmp_path / "m.onnx", raw, **spec))
    with pytest.raises(ModelSpecMismatch, match=text) as error:
        model.predict([np.full((48, SIDE, 3), 90, np.uint8)])
    assert error.value.exit_code == 4 and "export the model again" in str(error.value)


@pytest.mark.parametrize(
    "raw, spec",
    [
        (columns((32, 32, 20, 10, 1, 0.9)), {"head": "yolov8"}),
        (rows((32, 32, 20, 10, 0.9, 0, 1, 0)), {"head": "yolov5"}),
        (rows((22, 27, 42, 37, 0.9, 1), width=6), {"head": "end2end"}),
    ],
)
def test_the_same_box_in_three_heads(tmp_path, raw, spec):
    (found,) = load_model(constant(tmp_path / "m.onnx", raw, **spec)).predict(
        [np.zeros((SIDE, SIDE, 3), np.uint8)]
    )
    assert found.xyxy.round(3).tolist() == [[22, 27, 42, 37]] and found.class_id.tolist() == [1]
    assert found.confidence.tolist() == [pytest.approx(0.9)]


def test_nothing_found_is_no_mismatch(tmp_path):
    "An empty picture: no score, no box, for any head."
    for head, raw in (
        ("yolov8", columns()),
        ("yolov5", rows()),
        ("yolox", rows()),
        ("end2end", rows(width=6)),
    ):
        model = load_model(constant(tmp_path / f"{head}.onnx", raw, head=head))
        assert len(model.predict([np.zeros((SIDE, SIDE, 3), np.uint8)])[0]) == 0


@pytest.mark.slow
def test_a_run_with_such_a_model_ends_with_code_4_and_names_the_head(tmp_path):
    model = constant(tmp_path / "m.onnx", rows((32, 32, 20, 10, 0.9, 0, 1, 0)), head="yolox")
    code, said, summary = run(tmp_path, model, 6)
    assert code == 4 and "head: yolov5" in said and "head: yolov5" in summary["error"]


@pytest.mark.parametrize("seed", range(3))
def test_the_yolov5_head_is_its_definition(seed):
    "Object × class, the first best class, above the threshold; one row at a time."
    rng = np.random.default_rng(seed)
    raw = np.concatenate([rng.uniform(1, 60, (300, 4)), rng.random((300, 1)), rng.random((300, 5))], 1)
    raw = raw.astype(np.float32)
    found, wanted = yolov5_candidates(raw, 0.4), []
    for x, y, w, h, thing, *classes in raw:
        best = int(np.argmax(classes))
        if np.float32(thing) * np.float32(classes[best]) > np.float32(0.4):
            wanted.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2, best))
    assert np.allclose(np.column_stack([found.xyxy, found.class_id]), wanted, atol=1e-4)


def test_a_real_yolox_gives_the_same_boxes_when_it_is_decoded_outside(real_data):
    "By hand, cell by cell, as YOLOX's --decode_in_inference does; then read as head: yolov5."
    spec = PostprocessSpec(head="yolox", conf=0.3)
    file = real_data / "models/yolox_nano.onnx"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    picture = cv2.imread(str(sorted((real_data / "coco8/images").rglob("*.jpg"))[0]))
    blob = cv2.resize(picture, (416, 416)).transpose(2, 0, 1)[None].astype(np.float32)
    (raw,) = session.run(None, {session.get_inputs()[0].name: blob})
    names, geometry = [f"c{i}" for i in range(80)], fit(416, 416, (416, 416))
    ours = Postprocessor(spec, names, (416, 416)).one(raw[0], geometry)
    decoded, row = raw[0].copy(), 0
    for stride in (8, 16, 32):
        for y in range(416 // stride):
            for x in range(416 // stride):
                dx, dy, w, h = raw[0, row, :4]
                decoded[row, :4] = (
                    (dx + x) * stride,
                    (dy + y) * stride,
                    np.exp(w) * stride,
                    np.exp(h) * stride,
                )
                row += 1
    assert row == grid_cells((416, 416)) and len(ours) > 0
    other = Postprocessor(PostprocessSpec(head="yolov5", conf=0.3), names, (416, 416)).one(decoded, geometry)
    assert np.allclose(other.xyxy, ours.xyxy, atol=0.01) and other.class_id.tolist() == ours.class_id.tolist()
    for head, wrong, text in (("yolox", decoded, "head: yolov5"), ("yolov5", raw[0], "head: yolox|shares")):
        with pytest.raises(ModelSpecMismatch, match=text):
            Postprocessor(PostprocessSpec(head=head, conf=0.3), names, (416, 416)).one(wrong, geometry)


# --- scores that never differ


class Nothing:
    xyxy, confidence, class_id = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int)


def watched(scores, pictures, more=()):
    watch = AnswerWatch("m", "yolov8", 1, (SIDE, SIDE))
    for score, picture in [*zip(scores, pictures), *((s, 1e9) for s in more)]:
        watch(columns((9, 9, 9, 9, 0, score), classes=1)[0], Nothing, picture)
    return watch.suspicion


def test_scores_that_never_differ_over_the_first_pictures_are_suspicious(caplog):
    with caplog.at_level(logging.WARNING):
        suspicion = watched(np.full(FIRST, 0.125), np.arange(FIRST))
    assert "the best score was 0.125 for 100 different pictures" in suspicion
    assert [r.getMessage() for r in caplog.records] == [f"m: {suspicion}"]


@pytest.mark.parametrize(
    "scores, pictures, more",
    [
        (np.zeros(FIRST - 1), np.arange(FIRST - 1), ()),  # not yet
        (np.zeros(FIRST), np.zeros(FIRST), ()),  # one picture all the time
        (np.r_[np.zeros(FIRST - 1), 0.01], np.arange(FIRST), ()),  # one differs
        (np.zeros(FIRST), np.arange(FIRST), (0.2,)),  # differs later: it works after all
    ],
)
def test_what_is_not_suspicious(scores, pictures, more):
    assert watched(scores, pictures, more) is None


@pytest.mark.slow
def test_a_run_says_that_its_model_is_suspicious(tmp_path):
    model = constant(tmp_path / "m.onnx", columns(), head="yolov8")
    code, said, summary = run(tmp_path, model, FIRST + 20)
    assert code == 0 and summary["model"]["state"] == "suspicious" and "the best score was 0 for" in said
    assert "the best score was 0 for" in summary["model"]["suspicion"]
    status, body = readyz({**summary, "warm": True, "error": None}, 1e9)
    assert status == 503 and "the model is suspicious: the best score was 0" in body["reason"]


# --- the parts


@pytest.mark.parametrize(
    "scores, fine",
    [([0, 1], True), ([-0.005, 1.005], True), ([0, 1.02], False), ([-0.2, 0.5], False), ([], True)],
)
def test_scores_are_probabilities_up_to_rounding(scores, fine):
    assert (score_problem(np.float32(scores)) is None) == fine


def test_boxes_of_any_size_inside_are_fine():
    rng = np.random.default_rng(0)
    corner = rng.uniform(-30, SIDE, (500, 2))
    boxes = np.hstack([corner, corner + rng.uniform(0, 3 * SIDE, (500, 2))]).astype(np.float32)
    assert box_problem(boxes, rng.random(500), (SIDE, SIDE)) is None
    assert class_problem(rng.integers(0, 3, 500), 3) is None
    assert "not finite" in box_problem(np.float32([[0, 0, np.nan, 1]]), np.float32([0.5]), (64, 64))
    assert "not a number" in box_problem(boxes[:1], np.float32([np.nan]), (SIDE, SIDE))


def test_marks_differ_for_different_pictures():
    batch = np.random.default_rng(0).random((5, 3, 64, 64)).astype(np.float32)
    batch[4] = batch[0]
    assert len(set(marks(batch))) == 4 and marks(batch)[0] == marks(batch)[4]
    assert marks(object()) == [] and len(marks(np.zeros((2, 3, 4, 4), np.uint8))) == 2


def test_metadata_that_is_not_utf8_and_names_that_no_disk_takes(tmp_path):
    file = constant(tmp_path / "m.onnx", columns((32, 32, 20, 10, 1, 0.9)), head="yolov8")
    model = onnx.load(file)
    model.metadata_props.add(key="names", value="{0: 'aXXb'}")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model.SerializeToString().replace(b"aXXb", b"a\xff\xfeb"))
    with pytest.raises(ModelSpecMismatch, match="metadata is not UTF-8"):
        load_model(broken)
    assert load_model(broken, file.with_suffix(".json")).manifest.names == ("a", "b", "c")
    for name in ("x" * 300, "a\0b", "d/" + "y" * 300):
        with pytest.raises(BackendError, match="model not found"):
            load_model(name)


def test_names_of_a_yolov5_export_are_read(tmp_path):
    "The YOLOv5 project writes names and stride, no task and no size."
    file = constant(tmp_path / "m.onnx", rows((32, 32, 20, 10, 0.9, 0, 1, 0)))
    file.with_suffix(".json").unlink()
    model = onnx.load(file)
    model.metadata_props.add(key="names", value="{0: 'nut', 1: 'bolt', 2: 'crack'}")
    model.metadata_props.add(key="stride", value="32")
    onnx.save(model, file)
    spec = tmp_path / "size.yaml"
    spec.write_text("preprocess: {imgsz: 64}\n")
    (found,) = load_model(file, spec).predict([np.zeros((SIDE, SIDE, 3), np.uint8)])
    assert load_model(file, spec).manifest.names == ("nut", "bolt", "crack")
    assert found.xyxy.round(3).tolist() == [[22, 27, 42, 37]]
