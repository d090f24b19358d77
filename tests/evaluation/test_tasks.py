"""The measures of models that are not detectors, against pycocotools, Ultralytics and a count by hand."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

from cv_pipeline.annotation.select import select_collected
from cv_pipeline.core.files import read_json
from cv_pipeline.core.labels import LabelledImage
from cv_pipeline.core.types import ConfigError, DataError, Detections
from cv_pipeline.evaluation.baseline import baseline_experiment
from cv_pipeline.evaluation.robustness import robustness
from cv_pipeline.evaluation.summary import evaluate_model
from cv_pipeline.evaluation.tasks import (
    coco_predictions,
    coco_scores,
    evaluate_task,
    read_turned,
    turned_ap,
)
from cv_pipeline.evaluation.whole_pictures import top_scores
from cv_pipeline.inference.loading import load_model
from cv_pipeline.optimization.tuning import tune_model
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.regions import write_task_data
from cv_pipeline.video.cover import CoverSettings, RegionFinder
from tests.helpers.cli import called
from tests.helpers.services import require

MODELS = Path(__file__).parents[1] / "models"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    "Labels of each task for six frames of a line."
    root = tmp_path_factory.mktemp("tasks")
    line = FactoryLine(LineConfig(size=(320, 240), seed=7, class_weights=(1, 3, 1, 1, 1)))
    for task in ("classify", "segment", "pose", "obb"):
        write_task_data(root / task, task, "val", [(line, 26 * k) for k in range(6)])
    return root


def model(task: str):
    return load_model(MODELS / f"line_{task}", threads=1)


@pytest.mark.parametrize("task, kind", [("segment", "segm"), ("pose", "keypoints")])
@pytest.mark.slow
def test_ap_is_that_of_pycocotools(task, kind, data):
    require("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    m, book = model(task).with_postprocess(conf=0.001), read_json(data / task / "annotations/val.json")
    import cv2

    ids = {c["name"]: c["id"] for c in book["categories"]}
    rows = []
    for image in book["images"]:
        found = m.predict([cv2.imread(str(data / task / image["file_name"]))])[0]
        rows += coco_predictions(found, image["id"], [ids[n] for n in m.manifest.names])
    ours = coco_scores(book, rows, kind, 3)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"info": {}, **book}
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(json.loads(json.dumps(rows))), kind)
        if kind == "keypoints":
            judge.params.kpt_oks_sigmas = np.full(3, 1 / 3)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert ours["AP"] == pytest.approx(judge.stats[0], abs=1e-9)
    assert ours["AP50"] == pytest.approx(judge.stats[1], abs=1e-9)
    assert ours["AP50"] > 0.05
    e = evaluate_task(model(task), data / task)
    assert e.metrics[f"{'mask' if task == 'segment' else 'key points'} AP"] == pytest.approx(ours["AP"])


def test_turned_ap_is_ultralytics_from_the_same_matches():
    require("ultralytics")
    from ultralytics.utils.metrics import ap_per_class

    rng = np.random.default_rng(2)
    truth, found, flags, scores = [], [], [], []
    for _ in range(12):
        label = np.column_stack(
            [rng.uniform(50, 550, (5, 2)), np.full(5, 60), np.full(5, 20), rng.uniform(0, 1.5, 5)]
        )
        lost = rng.random(5) < 0.3
        shown = np.concatenate(
            [label[~lost] + rng.normal(0, 1, (int((~lost).sum()), 5)) * [2, 2, 2, 2, 0.05]]
        )
        noise = np.column_stack(
            [rng.uniform(2000, 3000, (2, 2)), np.full(2, 60), np.full(2, 20), np.zeros(2)]
        )
        rows, conf = np.concatenate([shown, noise]), rng.random(len(shown) + 2)
        make = lambda b, c=None: Detections(np.zeros((len(b), 4)), c, data={"xywhr": b.astype(np.float32)})
        truth.append(make(label))
        found.append(make(rows, conf))
        flags += [True] * len(shown) + [False] * 2
        scores += conf.tolist()
    order = np.argsort(-np.array(scores))
    tp = np.array(flags)[order, None]
    zeros = np.zeros(len(order))
    theirs = ap_per_class(tp, np.array(scores)[order], zeros, np.zeros(60))[5][0, 0]
    assert turned_ap(found, truth, 0, 0.3) == pytest.approx(
        theirs, abs=0.01
    )  # theirs interpolates between points
    assert 0.2 < theirs < 0.9


def test_top_scores_are_those_counted_by_hand():
    scores = np.eye(7)[[0, 1, 2, 3, 3, 0]] + np.linspace(0.06, 0, 7)
    metrics, bounds, rows = top_scores(scores, np.array([0, 1, 2, 3, 4, 6]), tuple("abcdefg"))
    assert metrics == {"top1": 4 / 6, "top5": 5 / 6}
    assert bounds["top1"][0] < 4 / 6 < bounds["top1"][1]
    assert rows[3] == {"class": "d", "pictures": 1, "recall": 1.0, "precision": 0.5}
    assert rows[5] == {"class": "f", "pictures": 0, "recall": None, "precision": None}


def test_each_task_has_its_measure(data):
    names = {"classify": "top1", "segment": "mask AP50", "pose": "key points AP50", "obb": "AP50"}
    for task, name in names.items():
        e = evaluate_task(model(task), data / task)
        assert e.task == task and e.labels > 5
        assert 0.05 < e.metrics[name] <= 1
        assert json.loads(json.dumps(e.to_dict()))["model"]["sha256"]


def test_a_wrong_task_is_named_with_those_that_fit(data):
    detr = load_model(MODELS / "tiny_rtdetr", threads=1)
    with pytest.raises(
        ConfigError, match='evaluate: this model\'s task is "detect"; it takes models for classify'
    ):
        evaluate_task(detr, data / "obb")
    with pytest.raises(
        ConfigError, match='evaluate: this model\'s task is "classify"; it takes models for detect'
    ):
        evaluate_model(model("classify"), [])
    with pytest.raises(ConfigError, match='tune: this model\'s task is "pose"; it takes models for detect'):
        tune_model(model("pose"), [object()])


@pytest.mark.parametrize(
    "what, asked",
    [
        ("robustness", lambda m, folder: robustness(m, [])),
        ("select", lambda m, folder: select_collected(folder, folder / "out", 3, model=m)),
        ("evaluate", lambda m, folder: baseline_experiment(m, [LabelledImage(folder / "a.png", ("a",))])),
    ],
)
def test_what_works_with_boxes_refuses_a_model_without(what, asked, tmp_path):
    with pytest.raises(ConfigError, match=f'{what}: this model\'s task is "classify"'):
        asked(model("classify"), tmp_path)


def test_a_classifier_is_no_finder_of_plates():
    settings = CoverSettings(regions=("plates",), plate_model=str(MODELS / "line_classify"))
    with pytest.raises(ConfigError, match='cover plates: this model\'s task is "classify"'):
        RegionFinder(settings)


def changed(source: Path, target: Path, change) -> Path:
    "A COCO file with a change, beside a link to its pictures."
    book = read_json(source / "annotations/val.json")
    change(book)
    (target / "images").symlink_to(source / "images")
    (target / "annotations").mkdir()
    (target / "annotations/val.json").write_text(json.dumps(book))
    return target


@pytest.mark.parametrize(
    "task, change, message",
    [
        ("segment", lambda b: b.update(annotations=[]), "'annotations' is missing or empty"),
        ("segment", lambda b: [a.pop("segmentation") for a in b["annotations"]], "no label has masks"),
        ("pose", lambda b: [a.pop("keypoints") for a in b["annotations"]], "no label has key points"),
        ("pose", lambda b: b["annotations"][0]["keypoints"].pop(), "other key points than the model's 3"),
        (
            "segment",
            lambda b: [c.update(name="x" + c["name"]) for c in b["categories"]],
            "no class in common",
        ),
        ("segment", lambda b: b["images"][0].update(file_name="gone.png"), "gone.png was not found"),
    ],
)
def test_labels_that_do_not_fit_are_named(task, change, message, data, tmp_path):
    with pytest.raises(DataError) as e:
        evaluate_task(model(task), changed(data / task, tmp_path, change))
    assert message in str(e.value)


def test_folders_of_unknown_classes_are_counted(data, tmp_path):
    for name in ("gear", "spoon"):
        (tmp_path / name).mkdir()
        picture = next((data / "classify/val/gear").glob("*.png"))
        (tmp_path / name / "a.png").write_bytes(picture.read_bytes())
    e = evaluate_task(model("classify"), tmp_path)
    assert e.pictures == 1 and "no class spoon: 1 pictures left out" in e.notes[0]
    (tmp_path / "gear/a.png").unlink()
    with pytest.raises(DataError, match="no folder has the name of a class of the model"):
        evaluate_task(model("classify"), tmp_path)


@pytest.mark.parametrize("line", ["0 1 2 3", "0 a b c d e f g h", "0 nan 0 0 0 0 0 0 0"])
def test_a_line_that_is_no_turned_box_is_named(line, tmp_path):
    (tmp_path / "a.txt").write_text(f"0 0.1 0.1 0.5 0.1 0.5 0.3 0.1 0.3\n{line}\n")
    with pytest.raises(DataError, match="nine numbers .*line 2"):
        read_turned(tmp_path / "a.txt", (100, 100))


def test_a_picture_without_labels_counts_against_what_is_found_there():
    one = Detections([[0, 0, 1, 1]], [0.9], data={"xywhr": np.float32([[5, 5, 4, 2, 0]])})
    none = Detections(np.zeros((0, 4)), data={"xywhr": np.zeros((0, 5), np.float32)})
    assert turned_ap([one, one], [one, none], 0) == pytest.approx(1.0)
    worse = Detections([[0, 0, 1, 1]], [0.95], data={"xywhr": np.float32([[5, 5, 4, 2, 0]])})
    assert turned_ap([one, worse], [one, none], 0) == pytest.approx(0.5)


@pytest.mark.slow
def test_the_command_measures_and_refuses(data, tmp_path):
    made = called("evaluate", MODELS / "line_obb", data / "obb", "--out", tmp_path / "e.json")
    assert made.returncode == 0, made.stderr
    assert read_json(tmp_path / "e.json")["metrics"]["AP50"] > 0.05
    assert "AP50" in made.stdout + made.stderr
