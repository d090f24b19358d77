"""Files whose graph ends in its best rows: against a choice made by hand, through parity and gate, in use."""

from dataclasses import replace

import numpy as np
import pytest

from cv_pipeline.core.types import BackendError, ConfigError, ModelSpecMismatch
from cv_pipeline.evaluation.summary import line_pictures
from cv_pipeline.inference.choice import Measuring, open_chosen
from cv_pipeline.inference.loading import load_model, open_artefact
from cv_pipeline.inference.manifest import Artefact, PostprocessSpec, load_manifest, open_model_folder
from cv_pipeline.inference.postprocess import Postprocessor, answer_as
from cv_pipeline.inference.preprocess import fit
from cv_pipeline.optimization.graphs import best_rows, opset_of, run_once
from cv_pipeline.optimization.optimize import OptimizeSettings, optimize
from cv_pipeline.optimization.parity import check_parity
from cv_pipeline.optimization.triton_repository import write_repository
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from tests.helpers.services import require

onnx = require("onnx")

SIZE, CLASSES = (64, 96), 3
CELLS = sum((SIZE[0] // s) * (SIZE[1] // s) for s in (8, 16, 32))


def passing(head, opset=17, batch="batch", cells=CELLS):
    "A graph that hands its input through: the raw output is what the test says."
    inner = [4 + CLASSES, cells] if head == "yolov8" else [cells, 5 + CLASSES]
    ends = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [batch, *inner]) for n in ("x", "raw")
    ]
    node = onnx.helper.make_node("Mul", ["x", "one"], ["raw"])
    one = onnx.numpy_helper.from_array(np.float32(1), "one")
    graph = onnx.helper.make_graph([node], "passing", ends[:1], ends[1:], [one])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    model.ir_version = 8
    return model


def answers(head, pictures=2, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    boxes = (
        rng.uniform(0, 60, (pictures, CELLS, 4))
        if head != "yolox"
        else rng.normal(0, 1, (pictures, CELLS, 4))
    )
    scores = rng.uniform(0, 1, (pictures, CELLS, CLASSES + (head != "yolov8")))
    if ties:
        scores = np.round(scores, 1)
    raw = np.concatenate([boxes, scores], axis=2).astype(np.float32)
    return raw.transpose(0, 2, 1).copy() if head == "yolov8" else raw


def by_hand(raw, head, rows):
    "Candidate by candidate, in the simplest way."
    made = []
    cells = [(x, y, s) for s in (8, 16, 32) for y in range(SIZE[0] // s) for x in range(SIZE[1] // s)]
    for candidates in raw.transpose(0, 2, 1) if head == "yolov8" else raw:
        listed = []
        for place, row in enumerate(candidates):
            scores = row[4:] if head == "yolov8" else row[5:] * row[4]
            label = int(np.argmax(scores if head == "yolov8" else row[5:]))
            box = row[:4].astype(np.float64)
            if head == "yolox":
                x, y, stride = cells[place]
                box = np.array([(box[0] + x), (box[1] + y), np.exp(box[2]), np.exp(box[3])]) * stride
            listed.append((-scores.max(), place, [*box, scores.max(), label]))
        made.append([row for _, _, row in sorted(listed, key=lambda r: r[:2])[:rows]])
    return np.array(made)


@pytest.mark.parametrize("head", ["yolov8", "yolov5", "yolox"])
@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21])
def test_the_rows_are_those_that_are_chosen_by_hand(head, opset):
    graph, raw = best_rows(passing(head, opset), head, CLASSES, SIZE, 20), answers(head)
    found = run_once(graph, raw)
    assert found.shape == (2, 20, 6)
    np.testing.assert_allclose(found, by_hand(raw, head, 20), rtol=1e-5, atol=1e-4)
    assert opset_of(graph) == max(opset, 17)


@pytest.mark.parametrize("head", ["yolov8", "yolov5", "yolox"])
def test_of_equal_scores_the_first_candidate_is_first(head):
    raw = answers(head, ties=True, seed=4)
    found = run_once(best_rows(passing(head), head, CLASSES, SIZE, CELLS), raw)
    np.testing.assert_allclose(found, by_hand(raw, head, CELLS), rtol=1e-5, atol=1e-4)


def test_a_graph_with_fewer_candidates_than_rows_keeps_them_all():
    graph = best_rows(passing("yolov8"), "yolov8", CLASSES, SIZE, 5000)
    assert run_once(graph, answers("yolov8")).shape == (2, CELLS, 6)


def test_a_fixed_batch_stays():
    graph = best_rows(passing("yolov8", batch=1), "yolov8", CLASSES, SIZE, 10)
    assert [d.dim_value for d in graph.graph.output[0].type.tensor_type.shape.dim] == [1, 10, 6]


@pytest.mark.parametrize("head", ["end2end", "detr", "topk"])
def test_other_heads_are_refused_by_name(head):
    with pytest.raises(BackendError, match=f"head '{head}' has no rows to choose from"):
        best_rows(passing("yolov8"), head, CLASSES, SIZE)


@pytest.mark.parametrize("head", ["yolov8", "yolov5"])
def test_boxes_are_those_of_the_whole_answer(head):
    "After suppression, with every threshold at which no candidate is missing."
    raw, names, geometry = answers(head, 8, seed=2), ("a", "b", "c"), fit(*SIZE[::-1], SIZE)
    short = answer_as(raw, head, "topk", CLASSES, SIZE, CELLS)
    for conf in (0.05, 0.5, 0.9):
        whole = Postprocessor(PostprocessSpec(head=head, conf=conf), names, SIZE)(raw, [geometry] * 8)
        rows = Postprocessor(PostprocessSpec(head="topk", conf=conf), names, SIZE)(short, [geometry] * 8)
        for a, b in zip(whole, rows, strict=True):
            np.testing.assert_array_equal(a.confidence, b.confidence)
            np.testing.assert_array_equal(a.class_id, b.class_id)
            np.testing.assert_allclose(a.xyxy, b.xyxy, atol=1e-4)


def test_pictures_with_more_candidates_than_rows_are_counted_and_reported():
    raw, names = answers("yolov8", 4, seed=3), ("a", "b", "c")
    short = answer_as(raw, "yolov8", "topk", CLASSES, SIZE, 10)
    post = Postprocessor(PostprocessSpec(head="topk", conf=0.5), names, SIZE)
    post(short, [fit(*SIZE[::-1], SIZE)] * 4)
    assert post.full == 4
    assert "in 4 of 4 pictures every row of the graph was above conf 0.5" in post.suspicion
    post.watch.seen = 401  # 4 of 401: below one in a hundred
    assert post.suspicion is None
    rare = Postprocessor(PostprocessSpec(head="topk", conf=0.9999), names, SIZE)
    rare(short, [fit(*SIZE[::-1], SIZE)] * 4)
    assert (rare.full, rare.suspicion) == (0, None)


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [(5, 1.5, "score and class may be swapped"), (5, 3, "class 3 of 3"), (4, 40.0, "percent")],
)
def test_rows_that_cannot_be_rows_are_refused(place, value, problem):
    rows = np.float32([[[30, 30, 10, 10, 0.9, 1]]])
    rows[0, 0, place] = value
    post = Postprocessor(PostprocessSpec(head="topk"), ("a", "b", "c"), SIZE)
    with pytest.raises(ModelSpecMismatch, match=problem):
        post(rows, [fit(*SIZE[::-1], SIZE)])


def test_an_unknown_head_of_a_file_is_refused():
    with pytest.raises(ConfigError, match="head: must be one of yolov8, .*, not .best."):
        Artefact("model.onnx", "onnxruntime", "fp32", head="best")


def test_answers_that_cannot_replace_each_other_are_refused():
    with pytest.raises(ConfigError, match="cannot be read as 'yolox'"):
        answer_as(np.zeros((1, 3, 6), np.float32), "topk", "yolox", CLASSES, SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "The bundled detector with its fused files."
    require("openvino")
    place = tmp_path_factory.mktemp("fused")
    items, columns = line_pictures(place / "judge", 30)
    calibration = [i.path for i in line_pictures(place / "calibrate", 9, seed=90)[0]]
    steps = ("fused", "fp16-fused", "int8-fused", "openvino-fused")
    settings = OptimizeSettings(steps, max_loss=0.05, draws=100, threads=1)
    report = optimize("factory_line", place / "model", items, calibration, settings, columns=columns)
    return place / "model", report


@pytest.fixture(scope="module")
def pictures():
    return [f.image for f, _ in FactoryLine(LineConfig(seed=31, density=4)).frames(6)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::cv_pipeline.optimization.quantize.CalibrationWarning")
def test_they_pass_parity_and_gate_and_say_what_they_answer(folder):
    path, report = folder
    assert all(report[s].accepted for s in ("fused", "fp16-fused", "openvino-fused")), report.markdown()
    assert abs(report["fused"].gate.change.value) < 1e-6
    assert report["fused"].parity.matched == 1.0
    heads = {a.file: a.head for a in load_manifest(path)[0].artefacts}
    assert heads["model.onnx"] == "" and heads["model_fused.onnx"] == heads["model_fp16_fused.onnx"] == "topk"


@pytest.mark.slow
def test_whatever_file_is_chosen_the_boxes_stay(folder, pictures):
    path, _ = folder
    own = load_model(path, threads=1).predict(pictures)
    for wanted in ("model_fused.onnx", "model_openvino_fused.xml"):
        model = load_model(path, backend=wanted, threads=1)
        assert model.manifest.postprocess.head == "topk"
        for a, b in zip(own, model.predict(pictures), strict=True):
            np.testing.assert_array_equal(a.class_id, b.class_id)
            np.testing.assert_allclose(a.xyxy, b.xyxy, atol=0.01)
        model.close()


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["model_fused.onnx", "model.onnx"])
def test_one_takes_the_place_of_the_other_in_the_middle(folder, pictures, dies, tmp_path):
    "A fused file fails and the whole one answers for it, and the other way about."
    path, _ = folder
    family = open_model_folder(path)
    two = [a for a in family.manifest.artefacts if a.file in ("model_fused.onnx", "model.onnx")]
    family = replace(family, manifest=replace(family.manifest, artefacts=tuple(two)))
    timer = lambda openers, batch: {label: 1.0 if label.startswith(f"{dies} ") else 9.0 for label in openers}
    opened = []

    def opener(a):
        opened.append(a.file)
        if a.file == dies and opened.count(dies) > 1:
            raise BackendError("the card is gone", a.file)
        backend = open_artefact(family, a, threads=1)
        if a.file == dies:
            answer, calls = backend.infer, []

            def infer(batch):
                calls.append(len(batch))
                if len(calls) > 2:
                    raise BackendError("device lost", a.file)
                return answer(batch)

            backend.infer = infer
        return backend

    model = open_chosen(family, opener, how=Measuring(cache=tmp_path, timer=timer))
    expected = load_model(path, threads=1).predict(pictures)
    for i, (image, wanted) in enumerate(zip(pictures, expected, strict=True)):
        (found,) = model.predict([image])
        np.testing.assert_array_equal(found.class_id, wanted.class_id)
        np.testing.assert_allclose(found.xyxy, wanted.xyxy, atol=0.01)
        assert model.backend.state == ("ready" if i < 2 else "fallback")


@pytest.mark.slow
def test_parity_finds_a_fused_file_whose_scores_are_dead(folder, pictures):
    path, _ = folder
    reference, broken = load_model(path, threads=1), load_model(path, backend="model_fused.onnx", threads=1)
    whole = broken.backend.infer
    broken.backend.infer = lambda batch: whole(batch) * np.float32([1, 1, 1, 1, 0, 1])
    found = check_parity(reference, broken, pictures, fail=False)
    assert any("the head was destroyed" in p or "matched" in p for p in found.problems)


@pytest.mark.slow
def test_a_server_sends_six_numbers_a_row(folder, tmp_path):
    path, _ = folder
    (place,) = write_repository(path, tmp_path / "served", name="line", artefact="model_fused.onnx").values()
    text = (place / "config.pbtxt").read_text()
    assert "dims: [ 300, 6 ]" in text and '\\"topk\\"' in text
