"""Models that are not detectors, and DETR heads: each head against Ultralytics' own prediction with the same
file, and refused where it does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from cv_pipeline.core.files import read_json
from cv_pipeline.core.images import decode_mask
from cv_pipeline.core.types import Classification, ConfigError, ModelSpecMismatch
from cv_pipeline.inference.backends import Model, make_postprocessor
from cv_pipeline.inference.heads import postprocessor_of, prob_iou, turned_corners, turned_nms
from cv_pipeline.inference.loading import load_backend, load_model
from cv_pipeline.inference.manifest import ModelManifest, PostprocessSpec, check_graph
from cv_pipeline.inference.preprocess import Preprocessor, fit
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from tests.helpers.services import require
from tests.helpers.two_outputs import detr_manifest, two_outputs

MODELS = Path(__file__).parents[1] / "models"
TASKS = ("segment", "pose", "obb")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    "Frames of the line in sizes whose letterbox has padding on either side, an odd one, and none."
    made = [
        FactoryLine(LineConfig(seed=s, size=z))
        for s, z in ((5, (333, 251)), (6, (320, 320)), (8, (200, 340)))
    ]
    return [line.render(30 * k)[0].image for line in made for k in (1, 2)]


def theirs(name: str, task: str, picture: np.ndarray, conf: float | None, iou: float = 0.7):
    "What Ultralytics predicts with the same file, at the model's own input size."
    from tests.helpers.ultralytics_models import predict

    return predict(MODELS / name / "model.onnx", task, picture, conf, iou)


@pytest.mark.parametrize("iou", [0.7, 0.3])
@pytest.mark.parametrize("task", TASKS)
def test_same_as_ultralytics(task, iou, pictures):
    require("ultralytics")
    model = load_model(MODELS / f"line_{task}", threads=1).with_postprocess(conf=0.02, iou=iou)
    found = 0
    for picture in pictures:
        ours, result = model.predict([picture])[0], theirs(f"line_{task}", task, picture, 0.02, iou)
        rows = result.obb if task == "obb" else result.boxes
        found += len(ours)
        assert len(ours) == len(rows)
        assert np.array_equal(ours.class_id, rows.cls.numpy().astype(int))
        assert np.allclose(ours.confidence, rows.conf.numpy(), atol=1e-5)
        if task == "obb":
            assert np.allclose(ours.data["xywhr"], rows.xywhr.numpy(), atol=1e-3)
            continue
        assert np.allclose(ours.xyxy, rows.xyxy.numpy(), atol=1e-3)
        if task == "pose" and len(ours):
            assert np.allclose(ours.data["keypoints"], result.keypoints.data.numpy(), atol=1e-3)
        if task == "segment" and len(ours):
            masks = np.stack([decode_mask(m) for m in ours.data["mask"]])
            assert (masks != result.masks.data.numpy().astype(bool)).mean() < 1e-5
    assert found > 5


def test_classifier_same_as_ultralytics(pictures):
    require("ultralytics")
    model = load_model(MODELS / "line_classify", threads=1)
    for picture in pictures:
        (said,), result = model.classify([picture]), theirs("line_classify", "classify", picture, None)
        assert said.class_id[0] == result.probs.top1
        assert (
            np.abs(said.scores - result.probs.data.numpy()).max() < 0.01
        )  # Pillow's order of passes differs
        assert [c for c, _ in said.top(5)] == result.probs.top5 or np.abs(
            np.diff(np.sort(said.scores))
        ).min() < 0.01


def test_turned_overlap_and_suppression_same_as_ultralytics():
    torch = require("torch")
    from ultralytics.utils.metrics import batch_probiou
    from ultralytics.utils.nms import TorchNMS

    rng = np.random.default_rng(3)
    boxes = np.column_stack(
        [rng.uniform(0, 300, (900, 2)), rng.uniform(2, 90, (900, 2)), rng.uniform(-2, 2, 900)]
    )
    boxes, scores = boxes.astype(np.float32), rng.permutation(900).astype(np.float32) / 900
    mine = prob_iou(boxes.astype(float), boxes[:50].astype(float))
    assert np.allclose(
        mine,
        batch_probiou(torch.from_numpy(boxes).double(), torch.from_numpy(boxes[:50]).double()),
        atol=1e-6,
    )
    for iou in (0.2, 0.5, 0.8):
        kept = TorchNMS.fast_nms(
            torch.from_numpy(boxes).double(), torch.from_numpy(scores), iou, iou_func=batch_probiou
        ).numpy()
        assert np.array_equal(turned_nms(boxes.astype(float), scores, iou), kept)


def test_turned_suppression_does_not_depend_on_the_block():
    rng = np.random.default_rng(4)
    boxes = np.column_stack(
        [rng.uniform(0, 99, (200, 2)), rng.uniform(2, 60, (200, 2)), rng.uniform(-2, 2, 200)]
    )
    scores = rng.random(200)
    kept = [turned_nms(boxes, scores, 0.4, block).tolist() for block in (1, 7, 200, 512)]
    assert kept.count(kept[0]) == 4


def test_turned_corners_are_opencvs():
    import cv2

    box = np.float64([[50, 40, 30, 10, 0.4]])
    opencv = cv2.boxPoints(((50, 40), (30, 10), float(np.rad2deg(0.4))))
    assert np.allclose(np.sort(turned_corners(box)[0], axis=0), np.sort(opencv, axis=0), atol=1e-4)


# --- the DETR family


def test_rtdetr_same_as_ultralytics(pictures):
    require("ultralytics")
    model = load_model(MODELS / "tiny_rtdetr", threads=1).with_postprocess(conf=0.01)
    for picture in pictures:
        ours, rows = model.predict([picture])[0], theirs("tiny_rtdetr", "detect", picture, 0.01).boxes
        order = np.argsort(-rows.conf.numpy(), kind="stable")
        assert len(ours) == len(order) > 0
        assert np.allclose(ours.confidence, rows.conf.numpy()[order], atol=1e-5)
        assert np.array_equal(ours.class_id, rows.cls.numpy().astype(int)[order])
        size = [picture.shape[1], picture.shape[0]] * 2
        assert np.allclose(ours.xyxy, rows.xyxy.numpy()[order].clip(0, size), atol=1e-2)


@pytest.mark.parametrize("family", ["rtdetr", "rfdetr", "dfine"])
def test_detr_with_two_outputs_same_as_transformers(family):
    """Tiny networks with the graphs of RT-DETR, RF-DETR and D-FINE, exported from transformers 5.24; what its
    own post-processing made of their outputs lies beside them."""
    folder = MODELS / f"tiny_{family}_two_outputs"
    if family == "dfine" and tuple(map(int, ort.__version__.split(".")[:2])) < (1, 20):
        pytest.skip("this ONNX Runtime has no cosine of doubles, which the export of D-FINE takes")
    model, known = load_model(folder, threads=1), np.load(folder / "expected.npz")
    for i in range(2):
        picture = np.ascontiguousarray(known[f"picture{i}"])
        (found,), size = model.predict([picture]), [picture.shape[1], picture.shape[0]] * 2
        assert len(found) == len(known[f"scores{i}"]) > 5
        assert np.allclose(found.confidence, known[f"scores{i}"], atol=1e-4)
        assert np.array_equal(found.class_id, known[f"labels{i}"])
        assert np.allclose(found.xyxy, known[f"boxes{i}"].clip(0, size), atol=1e-2)


def naive_detr(logits: np.ndarray, boxes: np.ndarray, size: tuple[int, int], conf: float):
    "Loops over queries and classes, as the published post-processing: (score, class, box) best first."
    found = []
    for q in range(len(logits)):
        for c in range(logits.shape[1]):
            score = 1 / (1 + np.exp(-float(logits[q, c])))
            x, y, w, h = boxes[q] * np.array([*size, *size])
            found.append((score, c, (x - w / 2, y - h / 2, x + w / 2, y + h / 2)))
    best = sorted(found, key=lambda f: -f[0])[: len(logits)]
    return [f for f in best if f[0] > conf]


@pytest.mark.parametrize("background", [0, 1])
def test_detr_is_the_naive_loop(background):
    rng = np.random.default_rng(7)
    boxes = np.concatenate([rng.uniform(0.3, 0.7, (20, 2)), rng.uniform(0.05, 0.4, (20, 2))], 1).astype(
        np.float32
    )
    logits = rng.normal(-1, 2, (20, 3)).astype(np.float32)
    raw = np.concatenate([boxes, logits, np.full((20, background), 9, np.float32)], axis=1)
    (found,) = postprocessor_of(detr_manifest(conf=0.3))(raw[None], [fit(200, 100, (64, 64), "stretch")])
    wanted = naive_detr(logits, boxes, (200, 100), 0.3)
    assert len(wanted) > 5
    assert np.allclose(found.confidence, [w[0] for w in wanted], atol=1e-5)
    assert found.class_id.tolist() == [w[1] for w in wanted]
    assert np.allclose(found.xyxy, [w[2] for w in wanted], atol=1e-3)


@pytest.mark.parametrize("names", [("pred_boxes", "logits"), ("dets", "labels")])
@pytest.mark.parametrize("nc", [3, 4])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_two_outputs_are_told_apart_by_every_runtime_that_packs(tmp_path, names, nc, runtime):
    require(runtime)
    two_outputs(tmp_path, names, nc)
    manifest = detr_manifest(nc, conf=0.5)
    backend = load_backend(tmp_path / "m.onnx", manifest, None, 1, runtime)
    model = Model(manifest, backend, Preprocessor(manifest.preprocess), make_postprocessor(manifest))
    found = model.predict([np.full((50, 80, 3), 128, np.uint8)] * 2)
    assert len(found) == 2 and len(found[0]) > 0
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(0.3, 0.7, (6, 2)), rng.uniform(0.1, 0.3, (6, 2))], 1).astype(
        np.float32
    )
    logits = rng.normal(0, 2, (6, nc)).astype(np.float32) + np.float32(128 / 255)
    wanted = naive_detr(logits, boxes, (80, 50), 0.5)
    assert np.allclose(found[1].confidence, [w[0] for w in wanted], atol=1e-3)
    assert np.allclose(found[1].xyxy, [w[2] for w in wanted], atol=1e-2)


# --- bad input


def broken(name: str, tmp_path: Path, **changes) -> Path:
    "A model of the tests with a changed manifest."
    table = read_json(MODELS / name / "manifest.json") | {"sha256": ""}
    for key, value in changes.items():
        table[key] = (
            {**table[key], **value} if value and isinstance(value, dict) and table.get(key) else value
        )
    (tmp_path / "model.onnx").write_bytes((MODELS / name / "model.onnx").read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(table))
    return tmp_path


@pytest.mark.parametrize(
    "name, changes, error, message",
    [
        ("line_classify", {"task": "detect"}, ConfigError, "'probabilities' is not a head of task 'detect'"),
        ("line_segment", {"task": "naming"}, ConfigError, "task: must be one of detect, classify"),
        ("line_pose", {"keypoints": {}}, ConfigError, "a pose model needs keypoints"),
        ("line_obb", {"keypoints": {"shape": [3, 3]}}, ConfigError, "task 'obb' has none"),
        ("line_pose", {"keypoints": {"shape": [3, 4]}}, ConfigError, "a key point has 2 or 3 numbers"),
        ("line_pose", {"keypoints": {"skeleton": [[0, 9]]}}, ConfigError, "is not at least 0 and at most 2"),
        ("line_obb", {"preprocess": {"letterbox": "stretch"}}, ConfigError, "a turned box does not stay one"),
        ("line_segment", {"preprocess": {"letterbox": "crop"}}, ConfigError, "'crop' cuts off"),
        ("line_pose", {"keypoints": {"shape": [4, 3], "names": []}}, ModelSpecMismatch, "(any, 17, any)"),
        (
            "line_segment",
            {"task": "detect", "postprocess": {"head": "yolov8"}},
            ModelSpecMismatch,
            "the graph has 2 outputs",
        ),
        (
            "line_classify",
            {"task": "detect", "postprocess": {"head": "yolov8"}, "preprocess": {"letterbox": "center"}},
            ModelSpecMismatch,
            "two dimensions: probably a classifier",
        ),
        (
            "line_classify",
            {"names": ["a", "b"]},
            ModelSpecMismatch,
            "expects (any, 2)",
        ),
    ],
)
def test_what_does_not_fit_is_named(name, changes, error, message, tmp_path):
    with pytest.raises(error) as e:
        load_model(broken(name, tmp_path, **changes), threads=1)
    assert message in str(e.value)


def test_a_network_of_other_classes_is_no_mask(pictures, tmp_path):
    folder = broken("line_segment", tmp_path, names=["a", "b"])
    with pytest.raises(ModelSpecMismatch, match="cannot be candidates|expects"):
        load_model(folder, threads=1).predict(pictures[:1])


def test_a_runtime_that_takes_one_output_says_so():
    manifest = detr_manifest()
    outputs = [(1, 6, 4), (1, 6, 3)]
    assert check_graph(manifest, (1, 3, 64, 64), outputs, names=["pred_boxes", "logits"]) == (0, 1)
    with pytest.raises(ModelSpecMismatch, match="run the .onnx file with onnxruntime or openvino"):
        check_graph(manifest, (1, 3, 64, 64), outputs)
    with pytest.raises(ModelSpecMismatch, match="the graph knows 7 classes"):
        check_graph(manifest, (1, 3, 64, 64), [(1, 6, 4), (1, 6, 7)], names=["pred_boxes", "logits"])


def test_logits_read_as_probabilities_are_refused():
    manifest = ModelManifest(
        "m", "m.onnx", ("a", "b"), postprocess=PostprocessSpec(head="probabilities"), task="classify"
    )
    with pytest.raises(ModelSpecMismatch, match="logits, without the sigmoid"):
        postprocessor_of(manifest)(np.float32([[4.0, -1.0]]), [fit(9, 9, (640, 640))])


def test_tasks_of_a_model_are_named_by_its_methods(pictures):
    model = load_model(MODELS / "line_classify", threads=1)
    with pytest.raises(
        ConfigError, match='embed: this model\'s task is "classify"; it takes models for embed'
    ):
        model.embed(pictures)


def test_a_constant_classifier_is_suspected():
    manifest = ModelManifest(
        "m", "m.onnx", ("a", "b"), postprocess=PostprocessSpec(head="softmax"), task="classify"
    )
    read = postprocessor_of(manifest)
    for number in range(120):
        read(np.float32([[1, 0]]), [fit(9, 9, (640, 640))], np.full((1, 3, 4, 4), number, np.float32))
    assert "the best score was 0.7311" in read.suspicion


def test_thresholds_by_class_and_the_uncertain_band_hold_for_every_task(pictures):
    model = load_model(MODELS / "line_segment", threads=1).with_postprocess(conf=0.1)
    every = model.predict(pictures[:1])[0]
    name = model.manifest.names[every.class_id[0]]
    strict = replace(model.manifest.postprocess, class_conf={name: 0.99}, accept_conf=0.9)
    some = replace(model, postprocess=postprocessor_of(replace(model.manifest, postprocess=strict)))
    left = some.predict(pictures[:1])[0]
    assert not (left.class_id == every.class_id[0]).any()
    assert (left.data["decision"] == (left.confidence < 0.9)).all()
    assert len(left.data["mask"]) == len(left)


def test_old_manifests_keep_their_digest():
    shipped = Path(__file__).parents[2] / "cv_pipeline/models/factory_line/manifest.json"
    table = read_json(shipped)
    assert ModelManifest.from_dict(table).to_dict() == table | {"calibration": {}}


def test_a_classifier_reports_its_best_class_unless_told_otherwise(pictures):
    model = load_model(MODELS / "line_classify", threads=1)
    assert len(model.predict(pictures[:1])[0]) == 1
    assert model.with_postprocess(conf=0.9999).classify(pictures[:1]) == [None]
    said = Classification.of(model.predict(pictures[:1])[0])
    assert said.confidence[0] == said.scores.max()


# --- vectors, several labels, maps of scores: graphs of one or two nodes, whose answer is known


def small_graph(folder: Path, task: str, head: str, nodes: list, shape: list, **more) -> Path:
    "A model folder whose graph is these nodes, from `images` to `out`."
    onnx = require("onnx")
    from onnx import TensorProto, helper

    value = lambda name, dims: helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
    made = [helper.make_node(kind, inputs, [output], **how) for kind, inputs, output, how in nodes]
    graph = helper.make_graph(made, "g", [value("images", ["b", 3, 32, 32])], [value("out", shape)])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "m.onnx"
    )
    preprocess = {"imgsz": 32, "stride": 1, "letterbox": "center" if task == "anomaly" else "crop"}
    table = {"name": "m", "file": "m.onnx", "task": task, "preprocess": preprocess, "names": ["a", "b", "c"]}
    (folder / "manifest.json").write_text(json.dumps(table | {"postprocess": {"head": head}} | more))
    return folder


MEAN = [("GlobalAveragePool", ["images"], "mean", {}), ("Flatten", ["mean"], "out", {})]
COLOUR = np.tile(np.uint8([[[51, 102, 204]]]), (40, 60, 1))  # BGR


def test_an_embedding_model_gives_vectors_of_length_one(tmp_path):
    model = load_model(small_graph(tmp_path, "embed", "vector", MEAN, ["b", 3]), threads=1)
    vectors = model.embed([COLOUR, COLOUR[..., ::-1]])
    wanted = np.float32([204, 102, 51]) / np.linalg.norm([204, 102, 51])
    assert vectors.shape == (2, 3) and vectors.dtype == np.float32
    assert np.allclose(vectors, [wanted, wanted[::-1]], atol=1e-5)
    assert model.embed([]).shape == (0, 0)
    with pytest.raises(ModelSpecMismatch, match="a vector of length 0"):
        model.embed([np.zeros((9, 9, 3), np.uint8)])


def test_a_multilabel_model_reports_every_class_above_its_threshold(tmp_path):
    graph = small_graph(
        tmp_path,
        "multilabel",
        "probabilities",
        MEAN,
        ["b", 3],
        postprocess={"head": "probabilities", "conf": 0.3, "class_conf": {"c": 0.1}},
    )
    (said,) = load_model(graph, threads=1).classify([COLOUR])
    assert said.class_id.tolist() == [0, 1, 2]
    assert np.allclose(said.scores, [0.8, 0.4, 0.2], atol=1e-5)
    strict = load_model(graph, threads=1).with_postprocess(conf=0.5)
    assert strict.classify([COLOUR])[0].class_id.tolist() == [0]
    assert strict.classify([np.zeros((5, 5, 3), np.uint8)]) == [None]


def test_a_map_of_scores_gives_the_regions_above_its_threshold(tmp_path):
    nodes = [("ReduceMean", ["images"], "out", {"axes": [1], "keepdims": 1})]
    model = load_model(small_graph(tmp_path, "anomaly", "score-map", nodes, ["b", 1, 32, 32]), threads=1)
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[20:40, 30:60] = 255
    (found,) = model.with_postprocess(conf=0.6).predict([picture])
    assert len(found) == 1 and found.confidence[0] == pytest.approx(1, abs=1e-3)
    assert np.abs(found.xyxy[0] - [30, 20, 60, 40]).max() <= 4
    mask = decode_mask(found.data["mask"][0])
    assert mask.shape == (64, 128) and mask[22:38, 34:56].all() and not mask[:14].any()
