"""Threshold tuning: the sweep says what running everything again would say, the matching is COCO's, and what
cannot be reached is said."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError, DataError, Detections, box_iou
from cv_pipeline.evaluation.guarantees import read_promise
from cv_pipeline.inference.manifest import ModelManifest, PostprocessSpec, load_manifest, save_manifest
from cv_pipeline.inference.postprocess import Postprocessor
from cv_pipeline.inference.preprocess import Preprocessor, fit
from cv_pipeline.optimization.tuning import (
    TuningSettings,
    achieved,
    collect,
    evaluate,
    judge,
    match,
    parse_objective,
    prove,
    summarise,
    sweep,
    tune,
    tune_model,
    units_of,
)
from tests.helpers.services import require

NAMES, SIZE = ("a", "b", "c"), (64, 64)
PER_CLASS = TuningSettings(per_class=True)
PLACE = fit(128, 128, SIZE)  # pictures are twice the network input


def scene(seed: int, classes: int = 3, objects: int = 4, boxes: int = 30) -> tuple[np.ndarray, Detections]:
    "A raw output (4 + classes, boxes) and the truth it is about; scores on a lattice so that ties come."
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, objects + 1))
    centre, side, label = rng.uniform(10, 54, (n, 2)), rng.uniform(8, 20, (n, 2)), rng.integers(0, classes, n)
    raw = np.zeros((4 + classes, boxes), np.float32)
    raw[:2], raw[2:4] = rng.uniform(5, 59, (2, boxes)), rng.uniform(6, 20, (2, boxes))
    raw[4:] = np.round(rng.uniform(0, 0.4, (classes, boxes)), 2)
    if n:
        of = rng.integers(0, n, boxes // 2)
        near = np.arange(boxes // 2)
        raw[:2, near], raw[2:4, near] = (
            centre[of].T + rng.normal(0, 1, (2, len(of))),
            side[of].T * np.exp(rng.normal(0, 0.1, (2, len(of)))),
        )
        raw[4 + label[of], near] = np.round(rng.uniform(0.1, 1, len(of)), 2)
    return raw, Detections(2 * np.concatenate([centre - side / 2, centre + side / 2], 1), class_id=label)


def dataset(count: int, **more) -> tuple:
    "predict and dataset for `tune`; pictures are numbers. Picture 0 of these seeds has truth."
    scenes = {i: scene(i + 1, **more) for i in range(count)}
    return lambda i: (scenes[i][0], PLACE), [(i, truth) for i, (_, truth) in scenes.items()]


def by_hand(predict, data, spec: PostprocessSpec) -> np.ndarray:
    "Hits, false alarms and truth, by running the Postprocessor as the pipeline does."
    post, total = Postprocessor(spec, NAMES, SIZE), np.zeros(3, int)
    for image, truth in data:
        found = post.one(*predict(image))
        hit = match(found, truth)
        total += [(hit >= 0).sum(), (hit == -1).sum(), len(truth)]
    return total


@pytest.mark.parametrize("options", [{}, {"agnostic_nms": True}, {"max_det": 3}, {"classes": (0, 2)}])
def test_every_cell_of_the_sweep_is_what_running_again_gives(options):
    predict, data = dataset(25)
    spec = PostprocessSpec(**options)
    if "classes" in options:
        data = [(i, t[np.isin(t.class_id, options["classes"])]) for i, t in data]
    conf, iou = np.array([0.01, 0.1, 0.25, 0.3, 0.5, 0.77, 0.95]), np.array([0.0, 0.3, 0.5, 0.7, 1.0])
    found = sweep(collect(predict, data, spec, NAMES, SIZE, 0.01), spec, 3, conf, iou)
    for i, t in enumerate(iou):
        for j, c in enumerate(conf):
            hits, alarms, truth = by_hand(predict, data, replace(spec, conf=float(c), iou=float(t)))
            assert (found.hits[i, j], found.alarms[i, j], found.truth) == (hits, alarms, truth), (t, c)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(0.02, 0.9),
    st.floats(0, 1),
    st.dictionaries(st.sampled_from(NAMES), st.floats(0.02, 0.9)),
)
def test_evaluate_is_what_the_postprocessor_does(seed, conf, iou, class_conf):
    scenes = {i: scene(seed + i) for i in range(4)}
    data = [(i, t) for i, (_, t) in scenes.items()] + [(0, Detections([[0, 0, 9, 9]]))]
    predict, spec = (
        (lambda i: (scenes[i][0], PLACE)),
        PostprocessSpec(conf=conf, iou=iou, class_conf=class_conf),
    )
    table = evaluate(collect(predict, data, spec, NAMES, SIZE, 0.01), spec, NAMES, SIZE)
    assert table.sum(0).tolist() == by_hand(predict, data, spec).tolist()


def test_matching_is_cocos():
    coco = require("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    rng, images, annotations, results, mine = np.random.default_rng(3), [], [], [], []
    for i in range(1, 121):
        truth_boxes = np.sort(rng.uniform(0, 100, (rng.integers(0, 8), 2, 2)), 1).reshape(-1, 4)
        boxes = np.concatenate(
            [
                truth_boxes + rng.normal(0, 4, truth_boxes.shape),
                np.sort(rng.uniform(0, 100, (5, 2, 2)), 1).reshape(-1, 4),
            ]
        )
        boxes = np.concatenate(
            [np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:]) + 1], 1
        )
        truth = Detections(
            truth_boxes,
            class_id=rng.integers(0, 2, len(truth_boxes)),
            data={"iscrowd": (rng.uniform(size=len(truth_boxes)) < 0.2).astype(np.int8)},
        )
        found = Detections(boxes, rng.permutation(len(boxes)) / 40 + 0.1, rng.integers(0, 2, len(boxes)))
        images.append({"id": i})
        to_xywh = lambda b: [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])]
        for b, k, c in zip(truth.xyxy, truth.class_id, truth.data["iscrowd"]):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": int(k),
                    "bbox": to_xywh(b),
                    "area": float((b[2] - b[0]) * (b[3] - b[1])),
                    "iscrowd": int(c),
                }
            )
        for b, k, s in zip(found.xyxy, found.class_id, found.confidence):
            results.append({"image_id": i, "category_id": int(k), "bbox": to_xywh(b), "score": float(s)})
        hit = match(found, truth, 0.5)
        mine += [(hit >= 0).sum(), (hit == -1).sum()]
    truth_set = coco.COCO()
    truth_set.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 0}, {"id": 1}],
        "info": {},
    }
    truth_set.createIndex()
    evaluation = COCOeval(truth_set, truth_set.loadRes(results), "bbox")
    evaluation.params.iouThrs, evaluation.params.areaRng, evaluation.params.areaRngLbl = (
        np.array([0.5]),
        [[0, 1e10]],
        ["all"],
    )
    evaluation.evaluate()
    hits = alarms = 0
    for entry in filter(None, evaluation.evalImgs):
        matched, ignored = entry["dtMatches"][0] > 0, entry["dtIgnore"][0].astype(bool)
        hits, alarms = hits + (matched & ~ignored).sum(), alarms + (~matched & ~ignored).sum()
    assert (sum(mine[::2]), sum(mine[1::2])) == (hits, alarms)
    assert hits > 50 and alarms > 50


@given(st.integers(0, 10**6), st.floats(0.1, 0.9))
@settings(max_examples=60, deadline=None)
def test_a_truth_is_found_once(seed, iou):
    raw, truth = scene(seed)
    found = Postprocessor(PostprocessSpec(conf=0.05, iou=1.0), NAMES, SIZE).one(raw, PLACE)
    hit = match(found, truth, iou)
    taken = hit[hit >= 0]
    assert len(set(taken.tolist())) == len(taken)
    rows = np.flatnonzero(hit >= 0)
    assert (found.class_id[rows] == truth.class_id[taken]).all()
    assert all(box_iou(found.xyxy[[r]], truth.xyxy[[t]])[0, 0] >= iou - 1e-6 for r, t in zip(rows, taken))


# ---------------------------------------------------------------- objectives


@given(
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(0, 50),
    st.sampled_from(["f1", "fbeta=2", "fbeta=0.5", "recall@precision=0.8", "precision@recall=0.5"]),
)
def test_objectives_against_their_definitions(hits, alarms, missed, text):
    goal, truth = parse_objective(text), hits + missed
    value = float(achieved(goal, np.array(hits), np.array(alarms), truth))
    precision, recall = hits / max(hits + alarms, 1), hits / max(truth, 1)
    if goal.kind == "fbeta":
        b = goal.value**2
        expected = (1 + b) * precision * recall / (b * precision + recall) if hits else 0.0
        assert value == pytest.approx(expected)
    else:
        best, floor = (recall, precision) if goal.kind == "recall" else (precision, recall)
        assert np.isnan(value) if floor < goal.value or not hits else value == pytest.approx(best)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mAP",
        "f",
        "f0",
        "fbeta=-1",
        "recall",
        "recall@precision=0",
        "recall@precision=1.2",
        "precision@precision=0.5",
        None,
        7,
    ],
)
def test_unknown_objectives(text):
    with pytest.raises(ConfigError, match="unknown objective"):
        parse_objective(text)


# ---------------------------------------------------------------- tune


@pytest.mark.parametrize("objective", ["f1", "fbeta=2", "recall@precision=0.8", "precision@recall=0.6"])
@pytest.mark.parametrize("per_class", [False, True])
def test_the_winner_beats_or_equals_every_cell(objective, per_class):
    predict, data = dataset(60)
    spec = PostprocessSpec()
    wanted = TuningSettings(
        objective, per_class, conf=np.arange(0.05, 1, 0.05), iou=[0.3, 0.5, 0.7], min_truth=5
    )
    result = tune(predict, data, spec, NAMES, SIZE, wanted)
    goal = parse_objective(objective)
    hits, alarms, truth = by_hand(predict, data, result.spec)
    assert (
        result.reachable
        and result.comparison[1]["hits"] == hits
        and result.comparison[1]["false_alarms"] == alarms
    )
    value = float(achieved(goal, np.array(hits), np.array(alarms), truth))
    assert value == pytest.approx(result.comparison[1]["value"])
    best = np.nanmax([row["value"] for row in result.table])
    if not per_class:
        assert value == pytest.approx(best)
    elif goal.kind == "fbeta":
        assert value >= best - 0.02  # classes alone maximise their own score, not the common one
    assert len(result.table) == 19 * 3
    assert bool(result.spec.class_conf) == per_class


def test_the_model_runs_once_a_picture():
    predict, data = dataset(10)
    asked = []
    tune(lambda i: asked.append(i) or predict(i), data, PostprocessSpec(), NAMES, SIZE)
    assert asked == list(range(10))


def test_nothing_else_in_the_spec_changes():
    predict, data = dataset(20)
    spec = PostprocessSpec(
        conf=0.4,
        max_det=50,
        accept_conf=0.9,
        policy="drop",
        class_policy={"a": "review"},
        class_conf={"b": 0.9},
    )
    tuned = tune(predict, data, spec, NAMES, SIZE).spec
    assert (
        replace(tuned, conf=spec.conf, iou=spec.iou, class_conf=spec.class_conf) == spec
        and tuned.class_conf == {}
    )


def test_no_truth_at_all():
    predict, data = dataset(5)
    for empty in ([], [(i, Detections.empty()) for i, _ in data]):
        with pytest.raises(DataError, match="has a label"):
            tune(predict, empty, PostprocessSpec(), NAMES, SIZE)


def test_label_of_an_unknown_class():
    predict, _ = dataset(1)
    for bad in (3, -1):
        with pytest.raises(DataError, match="the model has 0..2"):
            tune(predict, [(0, Detections([[0, 0, 9, 9]], class_id=[bad]))], PostprocessSpec(), NAMES, SIZE)


def test_one_class_only():
    predict, data = dataset(30, classes=1)
    result = tune(predict, data, PostprocessSpec(), ("only",), SIZE, PER_CLASS)
    assert result.reachable and list(result.spec.class_conf) == ["only"]


def test_a_class_without_labels_or_detections_keeps_the_common_threshold():
    predict, data = dataset(40, classes=1)
    wide = lambda i: (np.concatenate([predict(i)[0], np.zeros((2, 30), np.float32)]), PLACE)
    result = tune(wide, data, PostprocessSpec(), NAMES, SIZE, PER_CLASS)
    assert set(result.spec.class_conf) == {"a"}
    assert [row["note"].split(" (")[0] for row in result.per_class] == [
        "tuned",
        "too few labels",
        "too few labels",
    ]
    assert any("b: keeps the common threshold" in note for note in result.notes)


@pytest.mark.parametrize("per_class", [False, True])
def test_empty_predictions(per_class):
    _, data = dataset(8)
    spec = PostprocessSpec(conf=0.33)
    for raw in (np.zeros((7, 50), np.float32), np.zeros((7, 0), np.float32)):
        result = tune(
            lambda i, raw=raw: (raw, PLACE), data, spec, NAMES, SIZE, TuningSettings(per_class=per_class)
        )
        assert not result.reachable and result.spec == spec and "found none" in result.notes[0]


@pytest.mark.parametrize("per_class", [False, True])
def test_impossible_floor_is_said_and_changes_nothing(per_class):
    predict, data = dataset(40)
    spec = PostprocessSpec()
    result = tune(predict, data, spec, NAMES, SIZE, TuningSettings("precision@recall=1", per_class))
    assert not result.reachable and result.spec == spec
    assert "recall 1 is not reachable: the highest is 0." in result.notes[0]
    assert np.isnan(result.comparison[1]["value"]) and "value" not in result.summary()["after"]


def test_a_floor_that_only_separate_thresholds_reach():
    """Class a is right from .6 on, class b from .2 on and never above .5: no common threshold gives 9 of 10
    of both cleanly."""

    def picture(i):
        raw = np.zeros((6, 4), np.float32)
        raw[:, 0], raw[:, 1] = [10, 10, 8, 8, 0.7, 0], [40, 40, 8, 8, 0, 0.3]  # both right
        raw[:, 2], raw[:, 3] = [40, 10, 8, 8, 0.5, 0], [10, 40, 8, 8, 0, 0.1]  # both false
        return raw, PLACE

    truth = Detections([[12, 12, 28, 28], [72, 72, 88, 88]], class_id=[0, 1])
    data = [(i, truth) for i in range(30)]
    common = tune(picture, data, PostprocessSpec(), ("a", "b"), SIZE, TuningSettings("precision@recall=0.95"))
    split = tune(
        picture, data, PostprocessSpec(), ("a", "b"), SIZE, TuningSettings("precision@recall=0.95", True)
    )
    assert common.comparison[1]["precision"] < 0.7 and split.comparison[1]["precision"] == 1.0
    assert 0.5 <= split.spec.class_conf["a"] < 0.7 and 0.1 <= split.spec.class_conf["b"] < 0.3


def test_end2end_heads_sweep_confidence_only():
    rows = np.float32([[10, 10, 30, 30, 0.9, 0], [40, 40, 60, 60, 0.3, 0]])
    result = tune(
        lambda i: (rows, fit(64, 64, SIZE)),
        [(i, Detections([[10, 10, 30, 30]])) for i in range(9)],
        PostprocessSpec(head="end2end"),
        NAMES,
        SIZE,
    )
    assert (
        result.comparison[1]["value"] == 1.0
        and 0.3 <= result.spec.conf < 0.9
        and {row["iou"] for row in result.table} == {0.7}
    )


def test_intervals_hold_what_they_promise():
    "The bootstrap interval covers the true value in about 95 % of repetitions."
    rng, goal, covered = np.random.default_rng(0), parse_objective("f1"), 0
    true = 2 * 0.8 / (0.8 + 0.2 + 1)  # per object: found with .8; false alarms come at .2 per object
    for repetition in range(120):
        objects = rng.integers(1, 6, 150)
        hits, alarms = rng.binomial(objects, 0.8), rng.poisson(0.2 * objects)
        table = np.stack([hits, alarms, objects], 1)
        row = summarise(table, table, goal, draws=300, seed=repetition)[1]
        covered += row["low"] <= true <= row["high"]
    assert 0.88 <= covered / 120 <= 1.0


def test_the_result_goes_into_the_manifest(tmp_path):
    predict, data = dataset(30)
    (tmp_path / "m.onnx").write_bytes(b"x")
    manifest = ModelManifest("m", "m.onnx", NAMES)
    result = tune(
        predict, data, manifest.postprocess, NAMES, SIZE, TuningSettings(per_class=True, min_truth=5)
    )
    save_manifest(replace(manifest, postprocess=result.spec, metrics={"tuning": result.summary()}), tmp_path)
    loaded, _ = load_manifest(tmp_path)
    assert loaded.postprocess == result.spec and loaded.metrics["tuning"]["after"]["value"] > 0


def test_grids_out_of_range():
    for grid in ([], [25], [-0.1], [float("nan")]):
        with pytest.raises(ConfigError, match="0..1"):
            TuningSettings(conf=grid)
        with pytest.raises(ConfigError, match="0..1"):
            TuningSettings(iou=grid)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"objective": "mAP"}, "objective"),
        ({"conf": [1.1]}, "conf: "),
        ({"iou": []}, "iou: "),
        ({"match_iou": 0}, "match_iou: 0"),
        ({"match_iou": 1.5}, "match_iou: 1.5"),
        ({"min_truth": 0}, "min_truth: 0"),
    ],
)
def test_settings_that_are_wrong_name_the_field(wrong, said):
    with pytest.raises(ConfigError, match=said):
        TuningSettings(**wrong)


def test_a_grid_is_kept_sorted_and_each_value_once():
    assert TuningSettings(conf=[0.5, 0.1, 0.5]).conf == (0.1, 0.5)


def test_a_model_is_tuned_on_pictures_that_are_there():
    with pytest.raises(DataError, match="no labelled images"):
        tune_model(None, [])


@pytest.mark.slow
@pytest.mark.real
def test_yolov8n_on_real_photos(real_data):
    cv2, ort = require("cv2"), require("onnxruntime")
    file = real_data / "models" / "yolov8n_fp32_reconstructed.onnx"
    net = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    manifest, _ = load_manifest(file, metadata=lambda: net.get_modelmeta().custom_metadata_map)
    prepare = Preprocessor(manifest.preprocess)

    def predict(image):
        tensor, places = prepare.batch([image])
        return net.run(None, {"images": tensor})[0][0], places[0]

    data = []
    for picture in sorted((real_data / "coco8").rglob("*.jpg")):
        image = cv2.imread(str(picture))
        label = picture.parents[2] / "labels" / picture.parent.name / f"{picture.stem}.txt"
        rows = np.loadtxt(label, ndmin=2) if label.exists() else np.zeros((0, 5))
        centre, side = rows[:, 1:3], rows[:, 3:5]
        scale = np.tile(image.shape[1::-1], 2)
        data.append(
            (
                image,
                Detections(
                    np.concatenate([centre - side / 2, centre + side / 2], 1) * scale, class_id=rows[:, 0]
                ),
            )
        )
    assert sum(len(t) for _, t in data) == 30
    result = tune(predict, data, manifest.postprocess, manifest.names, manifest.preprocess.imgsz)
    before, after, _ = result.comparison
    print(
        f"coco8: f1 {before['value']:.3f} → {after['value']:.3f} at conf {result.spec.conf:.2f}, iou "
        f"{result.spec.iou:.2f}; {result.notes}"
    )
    assert after["value"] >= before["value"] and after["value"] > 0.5
    assert (
        judge(
            collect(predict, data, manifest.postprocess, manifest.names, (640, 640)),
            manifest.postprocess,
            80,
            0.7,
        ).truth.sum()
        == 30
    )


# ---------------------------------------------------------------- promises


@pytest.mark.parametrize(
    "text, kind, value, sure",
    [
        ("recall>=0.95@95%", "precision", 0.95, 0.95),
        ("precision>=0.99@90%", "recall", 0.99, 0.9),
        ("miss<=2%@95%", "precision", 0.98, 0.95),
    ],
)
def test_a_promise_maximises_the_other_one(text, kind, value, sure):
    goal = parse_objective(text)
    assert (goal.kind, goal.value, goal.confidence) == (kind, value, sure)


@pytest.mark.parametrize("options", [{}, {"agnostic_nms": True}, {"max_det": 3}])
def test_units_are_what_running_again_finds(options):
    predict, data = dataset(40)
    spec = PostprocessSpec(conf=0.01, **options)
    samples = collect(predict, data, spec, NAMES, SIZE, 0.01)
    recall, precision = read_promise("recall>=0.5"), read_promise("precision>=0.5")
    best = TuningSettings(share=0.0)
    found = units_of(recall, samples, spec, range(40), best)  # a picture is found with any of its objects
    alerts = units_of(precision, samples, spec, range(40), best)
    for t in np.float32([0.1, 0.3, 0.57]):
        post = Postprocessor(replace(spec, conf=float(t)), NAMES, SIZE)
        hits = [match(post.one(*predict(image)), truth) for image, truth in data]
        assert (found.score > t).sum() == sum((h >= 0).any() for h in hits)
        assert ((alerts.score > t) & (alerts.after <= t)).sum() == sum(len(h) > 0 for h in hits)


def test_a_promise_of_a_class_meets_the_others_as_they_are_set():
    predict, data = dataset(60)
    spec = PostprocessSpec(conf=0.5, agnostic_nms=True)
    settings = TuningSettings("precision>=0.2@80%", class_name="b")
    samples = collect(predict, data, spec, NAMES, SIZE, 0.01)
    chosen, (proven,) = prove(samples, spec, NAMES, settings, range(60))
    post, alerts = Postprocessor(chosen, NAMES, SIZE), 0
    for image, _ in data:
        alerts += bool((post.one(*predict(image)).class_id == 1).any())
    assert chosen.class_conf == {"b": proven.threshold}
    assert alerts == proven.n


def test_each_class_takes_its_part_of_the_risk():
    predict, data = dataset(60)
    result = tune(
        predict, data, PostprocessSpec(), NAMES, SIZE, TuningSettings("recall>=0.1@90%", per_class=True)
    )
    assert [round(p.promise.confidence, 6) for p in result.proven] == [round(1 - 0.1 / 3, 6)] * 3
    assert set(result.spec.class_conf) == {p.class_name for p in result.proven if p.threshold is not None}


def test_among_proven_recalls_the_cleanest_is_taken():
    predict, data = dataset(80)
    result = tune(predict, data, PostprocessSpec(), NAMES, SIZE, TuningSettings("recall>=0.3@80%"))
    (proven,) = result.proven
    assert proven.bound >= 0.3
    assert result.spec.conf == proven.threshold
    assert result.spec.iou == PostprocessSpec().iou  # one walk along one axis


def test_units_of_a_sequence_are_fewer():
    predict, data = dataset(80)
    few = tune(
        predict,
        data,
        PostprocessSpec(),
        NAMES,
        SIZE,
        TuningSettings("recall>=0.3@80%"),
        [i // 4 for i in range(80)],
    )
    assert few.proven[0].n == 20


def test_what_is_not_proven_leaves_the_spec_and_says_what_is_missing():
    predict, data = dataset(20)
    result = tune(predict, data, PostprocessSpec(), NAMES, SIZE, TuningSettings("recall>=0.99@95%"))
    assert (result.reachable, result.spec) == (False, PostprocessSpec())
    assert result.notes[0].startswith("not proven: recall ≥ 0.99 with 95 % confidence")


@pytest.mark.parametrize(
    "spec, more, keys, text",
    [
        (PostprocessSpec(policy="drop"), {}, None, "are dropped"),
        (PostprocessSpec(), {"class_name": "z"}, None, "no class 'z'"),
        (PostprocessSpec(), {}, [1, 2], "2 units for 20 images"),
    ],
)
def test_promises_that_cannot_be_made(spec, more, keys, text):
    predict, data = dataset(20)
    with pytest.raises((ConfigError, DataError), match=text):
        tune(predict, data, spec, NAMES, SIZE, TuningSettings("recall>=0.5@95%", **more), keys)


@pytest.mark.parametrize(
    "more, text", [({"share": 2}, "outside 0..1"), ({"class_name": "a", "per_class": True}, "per_class")]
)
def test_settings_of_a_promise_are_checked(more, text):
    with pytest.raises(ConfigError, match=text):
        TuningSettings("recall>=0.5@95%", **more)
