"""Raw outputs to detections: the same boxes as Ultralytics and torchvision, in the same order, and nothing
falls over in the corners."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError, Decision, ModelSpecMismatch, box_iou
from cv_pipeline.inference.manifest import PostprocessSpec, PreprocessSpec, load_manifest
from cv_pipeline.inference.postprocess import (
    Postprocessor,
    class_rules,
    decide,
    nms,
    nms_model,
    yolov8_candidates,
    yolox_candidates,
    yolox_grid,
)
from cv_pipeline.inference.preprocess import Preprocessor, fit
from tests.helpers.services import require

SQUARE = fit(640, 640, (640, 640))


def names(nc: int) -> tuple[str, ...]:
    return tuple(f"c{i}" for i in range(nc))


def dense(seed: int = 0, nc: int = 80, cells: int = 8400) -> np.ndarray:
    "(4 + nc, cells): boxes everywhere, nearly all above any threshold."
    rng = np.random.default_rng(seed)
    raw = np.empty((4 + nc, cells), np.float32)
    raw[:2], raw[2:4], raw[4:] = (
        rng.uniform(0, 640, (2, cells)),
        rng.uniform(8, 120, (2, cells)),
        rng.uniform(0, 1, (nc, cells)) ** 8,
    )
    return raw


def clustered(
    seed: int = 0, nc: int = 80, cells: int = 8400, objects: int = 40, levels: int = 0
) -> np.ndarray:
    """(4 + nc, cells): every object found many times; `levels`: scores and corners on a coarse lattice, so
    that ties and exact overlaps come."""
    rng = np.random.default_rng(seed)
    raw = np.zeros((4 + nc, cells), np.float32)
    of, label = rng.integers(0, objects, cells), rng.integers(0, nc, objects)
    raw[:2] = rng.uniform(60, 580, (2, objects))[:, of] + rng.normal(0, 5, (2, cells))
    raw[2:4] = rng.uniform(20, 150, (2, objects))[:, of] * np.exp(rng.normal(0, 0.15, (2, cells)))
    raw[4:] = rng.uniform(0, 0.002, (nc, cells))
    raw[4 + label[of], np.arange(cells)] = rng.uniform(0, 1, cells)
    if levels:
        raw[:4], raw[4:] = np.round(raw[:4] / 20) * 20, np.round(raw[4:] * levels) / levels
    return raw


def ultralytics_nms(raw: np.ndarray, conf: float, iou: float, **more) -> np.ndarray:
    torch = require("torch")
    require("torchvision")
    import torchvision  # noqa: F401  Ultralytics uses it only when it is loaded
    from ultralytics.utils.nms import non_max_suppression

    return non_max_suppression(torch.from_numpy(raw[None].copy()), conf, iou, **more)[0].numpy()


def assert_same(detections, theirs: np.ndarray) -> None:
    assert len(detections) == len(theirs)
    np.testing.assert_array_equal(detections.confidence, theirs[:, 4])
    np.testing.assert_array_equal(detections.class_id, theirs[:, 5])
    np.testing.assert_allclose(detections.xyxy, theirs[:, :4].clip(0, 640), atol=1e-3)


@pytest.mark.parametrize("conf", [0.25, 0.001, 0.0])
@pytest.mark.parametrize("iou", [0.7, 0.45, 0.6, 0.5, 0.0, 1.0])
@pytest.mark.parametrize(
    "raw",
    [
        dense(nc=3, cells=2000),
        clustered(1, cells=3000),
        clustered(2, nc=1, cells=1000, objects=4),
        clustered(3, nc=2, objects=30, levels=20),
    ],
    ids=["dense", "clustered", "one class", "ties"],
)
def test_same_as_ultralytics(raw, conf, iou):
    nc = len(raw) - 4
    detections = Postprocessor(PostprocessSpec(conf=conf, iou=iou), names(nc), (640, 640)).one(raw, SQUARE)
    assert_same(detections, ultralytics_nms(raw, conf, iou))


@pytest.mark.parametrize(
    "more",
    [
        {"agnostic": True},
        {"classes": [0, 3, 7]},
        {"max_det": 5},
        {"classes": [2], "max_det": 1, "agnostic": True},
        {"max_det": 10**6},
    ],
)
def test_same_as_ultralytics_with_options(more):
    raw = clustered(4, nc=9, cells=3000)
    spec = PostprocessSpec(
        conf=0.1,
        iou=0.6,
        agnostic_nms=more.get("agnostic", False),
        max_det=more.get("max_det", 300),
        classes=tuple(more["classes"]) if "classes" in more else None,
    )
    assert_same(
        Postprocessor(spec, names(9), (640, 640)).one(raw, SQUARE), ultralytics_nms(raw, 0.1, 0.6, **more)
    )


def test_more_candidates_than_max_nms():
    raw = clustered(5, nc=3, cells=36000, objects=200)
    raw[4:] = 0.9 * raw[4:] + (
        np.random.default_rng(0).permutation(36000).astype(np.float32) * 1e-6
    )  # no ties: torch does not promise their order
    detections = Postprocessor(PostprocessSpec(conf=0.0001, iou=0.5), names(3), (640, 640)).one(raw, SQUARE)
    assert_same(detections, ultralytics_nms(raw, 0.0001, 0.5))


def test_end2end_same_as_ultralytics():
    rng = np.random.default_rng(6)
    raw = np.concatenate(
        [
            np.sort(rng.uniform(0, 640, (300, 2, 2)), 1).reshape(300, 4),
            np.sort(rng.uniform(0, 1, (300, 1)), 0)[::-1],
            rng.integers(0, 5, (300, 1)),
        ],
        1,
    )
    raw = raw.astype(np.float32)
    for spec in (
        PostprocessSpec(head="end2end"),
        PostprocessSpec(head="end2end", classes=(1, 4), max_det=7, conf=0.6),
    ):
        theirs = ultralytics_nms(
            raw,
            spec.conf,
            spec.iou,
            classes=list(spec.classes) if spec.classes else None,
            max_det=spec.max_det,
        )
        assert_same(Postprocessor(spec, names(5), (640, 640)).one(raw, SQUARE), theirs)


coordinate = st.integers(0, 12)
box = st.tuples(
    coordinate, coordinate, st.integers(0, 6), st.integers(0, 6)
)  # small whole numbers: exact overlaps, zero areas and twins are common


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(box, st.integers(1, 6), st.integers(0, 2)), max_size=40),
    st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.6, 0.7, 1.0]),
    st.booleans(),
    st.integers(1, 9),
)
def test_nms_is_torchvisions(rows, iou, agnostic, max_det):
    torch, ops = require("torch"), require("torchvision.ops")
    boxes = np.float32([(x, y, x + w, y + h) for (x, y, w, h), _, _ in rows]).reshape(-1, 4)
    scores, classes = np.float32([s / 7 for _, s, _ in rows]), np.array([c for _, _, c in rows], int)
    kept = nms(boxes, scores, classes, iou, max_det, agnostic)
    shifted = boxes if agnostic else boxes + (classes * 7680).astype(np.float32)[:, None]
    assert (
        kept.tolist() == ops.nms(torch.from_numpy(shifted), torch.from_numpy(scores), iou)[:max_det].tolist()
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(box, st.floats(0, 1, width=32)), max_size=30), st.floats(0, 1))
def test_what_nms_promises(rows, iou):
    boxes, scores = (
        np.float32([(x, y, x + w, y + h) for (x, y, w, h), _ in rows]).reshape(-1, 4),
        np.float32([s for _, s in rows]),
    )
    kept = nms(boxes, scores, iou=iou)
    over = box_iou(boxes[kept], boxes[kept]) - np.eye(len(kept), dtype=np.float32)
    assert (over <= iou + 1e-6).all(), "two kept boxes overlap too much"
    assert (np.diff(scores[kept]) <= 0).all(), "best first"
    for row in set(range(len(boxes))) - set(kept.tolist()):
        rivals = kept[scores[kept] >= scores[row]]
        assert (box_iou(boxes[[row]], boxes[rivals]) > iou - 1e-6).any(), (
            "a box went although no better box covers it"
        )


def test_the_one_node_model_is_valid_onnx():
    onnx = require("onnx")
    model = onnx.load_model_from_string(nms_model())
    onnx.checker.check_model(model, full_check=True)
    assert [n.op_type for n in model.graph.node] == ["NonMaxSuppression"]


# ---------------------------------------------------------------- heads


def test_best_class_ties_go_to_the_lower_class():
    for cells in (40, 9000):  # both ways of asking for the class
        raw = np.zeros((7, cells), np.float32)
        raw[4:, :30] = 0.5
        assert set(yolov8_candidates(raw, 0.25).class_id.tolist()) == {0}
        assert len(yolov8_candidates(np.ones((7, cells), np.float32), 0.25).class_id) == cells


@pytest.mark.parametrize("nc", [1, 3, 255, 256, 300])
@pytest.mark.parametrize("share", [0.05, 0.95])  # few and many survivors take different ways
def test_candidates_are_the_best_class_of_each_column(nc, share):
    rng = np.random.default_rng(nc)
    raw = rng.uniform(0, 1, (4 + nc, 700)).astype(np.float32)
    raw[4:] = np.round(raw[4:] * 50) / 50 * (rng.uniform(0, 1, 700) < share)  # ties are common
    raw[4:, ::97] = np.nan
    found, best = yolov8_candidates(raw, 0.01), raw[4:].max(0)
    index = np.flatnonzero(best > 0.01)
    x, y, w, h = raw[:4, index]
    assert np.array_equal(found.confidence, best[index]) and np.array_equal(
        found.class_id, raw[4:, index].argmax(0)
    )
    assert np.array_equal(found.xyxy, np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1))


def test_yolox_decoding_against_the_formula():
    rng = np.random.default_rng(8)
    raw = rng.normal(0, 1, (21, 9)).astype(np.float32)  # 16·4 + 4 + 1 cells of a 32×32 input
    raw[:, 4:] = rng.uniform(0, 1, (21, 5))
    found, row = yolox_candidates(raw, 0.0, (32, 32)), 0
    for stride in (8, 16, 32):
        for y in range(32 // stride):
            for x in range(32 // stride):
                cx, cy = (raw[row, 0] + x) * stride, (raw[row, 1] + y) * stride
                w, h = np.exp(raw[row, 2]) * stride, np.exp(raw[row, 3]) * stride
                np.testing.assert_allclose(
                    found.xyxy[row], [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], rtol=1e-4, atol=1e-4
                )
                assert found.class_id[row] == raw[row, 5:].argmax()
                assert found.confidence[row] == pytest.approx(raw[row, 4] * raw[row, 5:].max(), rel=1e-6)
                row += 1
    assert row == 21 and len(yolox_grid((416, 416))[0]) == 3549


@pytest.mark.parametrize("shape", [(1, 6, 8400), (1, 8400, 7), (7, 8400), (2, 7, 8400), (1, 7)])
def test_wrong_output_shape(shape):
    with pytest.raises(ModelSpecMismatch) as e:
        Postprocessor(PostprocessSpec(), names(3), (640, 640))(np.zeros(shape, np.float32), [SQUARE])
    assert str(shape) in str(e.value)


@pytest.mark.parametrize(
    "head, shape",
    [("yolov8", (2, 7, 21)), ("yolox", (2, 21, 8)), ("end2end", (2, 300, 6)), ("yolov8", (2, 7, 0))],
)
@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_nothing_found(head, shape, fill):
    found = Postprocessor(PostprocessSpec(head=head), names(3), (32, 32))(
        np.full(shape, fill, np.float32), [SQUARE] * 2
    )
    assert [len(d) for d in found] == [0, 0]
    assert all(d.data["decision"].dtype == np.int8 and d.xyxy.shape == (0, 4) for d in found)
    assert (
        Postprocessor(PostprocessSpec(head=head), names(3), (32, 32))(
            np.zeros((0, *shape[1:]), np.float32), []
        )
        == []
    )


def test_all_scores_equal_and_half_precision():
    raw = clustered(9, nc=2, cells=500)
    raw[4:] = 0.5
    spec = PostprocessSpec()
    assert_same(
        Postprocessor(spec, names(2), (640, 640)).one(raw, SQUARE), ultralytics_nms(raw, spec.conf, spec.iou)
    )
    half = Postprocessor(spec, names(2), (640, 640))(raw[None].astype(np.float16), [SQUARE])[0]
    assert half.xyxy.dtype == np.float32


def test_batch_equals_one_by_one():
    raws, places = (
        np.stack([clustered(s, nc=4, cells=900) for s in range(4)]),
        [fit(w, h, (640, 640)) for w, h in [(640, 640), (1920, 1080), (33, 700), (1, 1)]],
    )
    post = Postprocessor(PostprocessSpec(), names(4), (640, 640))
    for one, raw, place in zip(post(raws, places), raws, places):
        alone = post(raw[None], [place])[0]
        assert np.array_equal(one.xyxy, alone.xyxy) and np.array_equal(one.confidence, alone.confidence)
        assert (one.xyxy >= 0).all() and (one.xyxy <= np.float32([place.width, place.height] * 2)).all()


# ---------------------------------------------------------------- thresholds and the uncertain band


def test_per_class_thresholds_and_wanted_classes():
    raw = clustered(10, nc=3, cells=3000)
    every = Postprocessor(PostprocessSpec(conf=0.1, iou=1.0, max_det=10**6), names(3), (640, 640)).one(
        raw, SQUARE
    )
    spec = PostprocessSpec(
        conf=0.4, iou=1.0, max_det=10**6, class_conf={"c0": 0.1, "c2": 0.9}, classes=(0, 2)
    )
    found = Postprocessor(spec, names(3), (640, 640)).one(raw, SQUARE)
    floor = np.float32([0.1, np.inf, 0.9])[every.class_id]
    assert np.array_equal(found.confidence, every.confidence[every.confidence > floor])
    assert set(found.class_id.tolist()) == {0, 2}


@given(st.floats(0, 1, width=32), st.floats(0, 1), st.sampled_from(["accept", "review", "drop"]))
def test_decision(confidence, accept, policy):
    rules = class_rules(PostprocessSpec(conf=0, accept_conf=accept, policy=policy), names(2))
    decision = Decision(int(decide(np.float32([confidence]), np.array([1]), rules)[0]))
    assert decision is (Decision.ACCEPT if confidence >= np.float32(accept) else Decision[policy.upper()])


def test_drop_is_counted_and_not_delivered():
    raw = clustered(11, nc=3, cells=3000)
    spec = PostprocessSpec(
        conf=0.1, accept_conf=0.9, class_accept_conf={"c1": 0.0}, class_policy={"c2": "drop"}
    )
    post = Postprocessor(spec, names(3), (640, 640))
    found, every = (
        post.one(raw, SQUARE),
        Postprocessor(replace(spec, class_policy={}), names(3), (640, 640)).one(raw, SQUARE),
    )
    lost = (every.class_id == 2) & (every.confidence < np.float32(0.9))
    assert lost.any() and post.dropped == lost.sum() and len(found) == len(every) - lost.sum()
    assert not (found.data["decision"] == Decision.DROP).any()
    assert (found.data["decision"][found.class_id == 1] == Decision.ACCEPT).all()


def test_settings_for_unknown_classes():
    with pytest.raises(ConfigError) as e:
        Postprocessor(
            PostprocessSpec(class_conf={"x": 0.1}, class_policy={"y": "drop"}, classes=(9,)),
            names(3),
            (640, 640),
        )
    assert len(e.value.problems) == 3


# ---------------------------------------------------------------- real models, real pictures


def session(file):
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def assets() -> list:
    ultralytics = require("ultralytics.utils")
    return [cv2.imread(str(ultralytics.ASSETS / name)) for name in ("bus.jpg", "zidane.jpg")]


def video_frames(file, count: int) -> list[np.ndarray]:
    av = require("av")
    with av.open(str(file)) as container:
        total = container.streams.video[0].frames
        return [
            f.to_ndarray(format="bgr24")
            for i, f in enumerate(container.decode(video=0))
            if i % (total // count) == 0
        ][:count]


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("conf, iou", [(0.25, 0.7), (0.001, 0.45)])
def test_whole_way_equals_ultralytics_predict(real_data, conf, iou):
    YOLO = require("ultralytics").YOLO
    file = real_data / "models" / "yolov8n_fp32_reconstructed.onnx"
    net = session(file)
    manifest, _ = load_manifest(file, metadata=lambda: net.get_modelmeta().custom_metadata_map)
    prepare = Preprocessor(manifest.preprocess)
    post = Postprocessor(
        replace(manifest.postprocess, conf=conf, iou=iou), manifest.names, manifest.preprocess.imgsz
    )
    images = assets() + [cv2.imread(str(f)) for f in sorted((real_data / "coco8").rglob("*.jpg"))]
    images += video_frames(
        real_data / "videos" / "one-by-one-person-detection.mp4", 50 if conf == 0.25 else 5
    )
    theirs, box_error, conf_error, boxes = YOLO(str(file), task="detect"), 0.0, 0.0, 0
    for image in images:
        tensor, places = prepare.batch([image])
        (found,) = post(net.run(None, {"images": tensor})[0], places)
        result = theirs.predict(image, conf=conf, iou=iou, verbose=False, device="cpu")[0].boxes.cpu().numpy()
        assert len(found) == len(result) and np.array_equal(found.class_id, result.cls)
        boxes += len(found)
        if len(found):
            box_error, conf_error = (
                max(box_error, np.abs(found.xyxy - result.xyxy).max()),
                max(conf_error, np.abs(found.confidence - result.conf).max()),
            )
    print(
        f"{len(images)} images, {boxes} boxes at conf {conf}, iou {iou}: largest box difference "
        f"{box_error:.2g} px, confidence {conf_error:.2g}"
    )
    assert boxes > 50 and box_error <= 0.5 and conf_error <= 1e-3


@pytest.mark.real
def test_yolov8n_expected_confidences(real_data):
    net = session(real_data / "models" / "yolov8n_fp32_reconstructed.onnx")
    prepare, post = Preprocessor(PreprocessSpec()), Postprocessor(PostprocessSpec(), names(80), (640, 640))
    tensor, places = prepare.batch(assets())
    bus, zidane = [
        post(net.run(None, {"images": one[None]})[0], [place])[0] for one, place in zip(tensor, places)
    ]
    np.testing.assert_allclose(
        np.sort(bus.confidence[bus.class_id == 0])[::-1], [0.909, 0.905, 0.904, 0.373], atol=1e-3
    )
    np.testing.assert_allclose(bus.confidence[bus.class_id == 5], [0.837], atol=1e-3)
    np.testing.assert_allclose(zidane.confidence, [0.891, 0.858, 0.375], atol=1e-3)


@pytest.mark.real
def test_yolox_expected_confidences(real_data):
    net = session(real_data / "models" / "yolox_nano.onnx")
    prepare = Preprocessor(PreprocessSpec(imgsz=416, letterbox="top-left", color="BGR", scale=1))
    tensor, places = prepare.batch(assets()[:1])
    (bus,) = Postprocessor(PostprocessSpec(head="yolox", iou=0.45), names(80), (416, 416))(
        net.run(None, {"images": tensor})[0], places
    )
    np.testing.assert_allclose(bus.confidence[bus.class_id == 5], [0.909], atol=1e-3)
    np.testing.assert_allclose(bus.confidence[bus.class_id == 0], [0.855, 0.806, 0.687, 0.256], atol=1e-3)
    assert (
        box_iou(bus.xyxy[bus.class_id == 5], np.float32([[17, 230, 802, 755]]))[0, 0] > 0.85
    )  # where YOLOv8 sees the bus, too
