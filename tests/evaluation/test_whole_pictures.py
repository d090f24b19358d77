"""Labels, vectors and maps of whole pictures, against scikit-learn and counts by hand."""

import cv2
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.evaluation.anomaly_maps import MapScores, defect_pictures
from cv_pipeline.evaluation.tasks import evaluate_task
from cv_pipeline.evaluation.whole_pictures import (
    PictureLabels,
    average_precision,
    label_scores,
    label_table,
    picture_labels,
    retrieval_scores,
)
from cv_pipeline.inference.loading import load_model
from tests.helpers.plain_networks import BRIGHTNESS, MEAN_COLOUR, node_model


def grey(path, value, spot=None, size=(40, 60)):
    "A picture of one colour (BGR), with a white square."
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*size, 3), value, np.uint8)
    if spot:
        image[spot] = 255
    cv2.imwrite(str(path), image)


# --- labels


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_is_scikit_learns_with_ties_and_without(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 200))
    truth = rng.random(n) < 0.3
    truth[0] = True
    scores = rng.random(n) if seed % 2 else rng.integers(0, 4, n) / 3
    assert average_precision(scores, truth) == pytest.approx(
        average_precision_score(truth, scores), abs=1e-12
    )


def test_unknown_labels_count_neither_as_right_nor_as_wrong():
    truth = np.float32([[1], [0], [np.nan], [1]])
    scores = np.float32([[0.9], [0.8], [0.99], [0.1]])
    metrics, bounds, (row,) = label_scores(scores, scores > 0.5, PictureLabels([], ("hand",), truth))
    assert (row["pictures"], row["unknown"], row["recall"], row["precision"]) == (2, 1, 0.5, 0.5)
    assert metrics["F1"] == 0.5
    assert bounds["recall"][0] < 0.5 < bounds["recall"][1]


def test_a_class_without_a_picture_has_no_average_precision():
    metrics, _, (row,) = label_scores(
        np.zeros((3, 1)), np.zeros((3, 1), bool), PictureLabels([], ("hand",), np.zeros((3, 1), np.float32))
    )
    assert metrics["mAP"] is None and row["AP"] is None and metrics["recall"] is None


@pytest.mark.parametrize(
    "text, what",
    [
        ("", "the classes or the lines are missing"),
        ("file,hand\n", "the classes or the lines are missing"),
        ("file\na.png\n", "the classes or the lines are missing"),
        ("picture,hand\na.png,1\n", "the classes or the lines are missing"),
        ("file,hand\na.png,2\n", "'2' in column hand is not 1, 0 or empty"),
        ("file,hand\na.png,1\na.png,0\n", "a.png is listed twice"),
        ("file,hand\n,1\n", "a picture without a name"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_its_line(tmp_path, text, what):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=what):
        label_table(tmp_path / "labels.csv")


def test_the_line_of_a_mistake_is_named(tmp_path):
    (tmp_path / "labels.csv").write_text("file,hand\na.png,1\nb.png,x\n")
    with pytest.raises(DataError, match=r"labels.csv line 3"):
        label_table(tmp_path / "labels.csv")


def test_a_dataset_of_boxes_says_what_each_picture_shows(tmp_path):
    for k, lines in enumerate(("1 .5 .5 .2 .2\n1 .2 .2 .1 .1\n", "", "0 .5 .5 .2 .2\n")):
        grey(tmp_path / "images" / "val" / f"{k}.png", 80)
        (tmp_path / "labels" / "val").mkdir(parents=True, exist_ok=True)
        (tmp_path / "labels" / "val" / f"{k}.txt").write_text(lines)
    (tmp_path / "data.yaml").write_text("path: .\nval: images/val\nnames: [gear, nut]\n")
    found = picture_labels(tmp_path / "data.yaml")
    assert found.names == ("gear", "nut")
    assert found.truth.tolist() == [[0, 1], [0, 0], [1, 0]]


def test_a_multilabel_model_is_measured_at_its_own_thresholds(tmp_path):
    model = load_model(node_model(tmp_path / "m", "multilabel", "probabilities", MEAN_COLOUR, conf=0.7))
    for name, colour in (("red", (0, 0, 200)), ("both", (0, 200, 200)), ("dim", (0, 0, 150))):
        grey(tmp_path / f"{name}.png", colour)
    (tmp_path / "labels.csv").write_text(
        "file,red,green,violet\nred.png,1,0,1\nboth.png,1,1,0\ndim.png,1,0,0\n"
    )
    e = evaluate_task(model, tmp_path)
    assert e.metrics["mAP"] == 1.0
    assert e.metrics["recall"] == pytest.approx(3 / 4)  # the dim one is below .7
    assert e.metrics["precision"] == 1.0
    assert [row["class"] for row in e.per_class] == ["red", "green"]
    assert e.notes[0] == "the model has no class violet"


def test_black_pictures_have_scores_too(tmp_path):
    model = load_model(node_model(tmp_path / "m", "multilabel", "probabilities", MEAN_COLOUR))
    grey(tmp_path / "black.png", 0)
    (tmp_path / "labels.csv").write_text("file,red\nblack.png,1\n")
    assert evaluate_task(model, tmp_path).metrics["recall"] == 0.0


def test_labels_of_other_classes_are_refused(tmp_path):
    model = load_model(node_model(tmp_path / "m", "multilabel", "probabilities", MEAN_COLOUR))
    (tmp_path / "labels.csv").write_text("file,cat\na.png,1\n")
    with pytest.raises(DataError, match="no class in common"):
        evaluate_task(model, tmp_path)


# --- vectors


@pytest.mark.parametrize("n", [7, 40, 300])  # fewer and more than a block of questions
def test_retrieval_is_that_of_a_loop(n):
    rng = np.random.default_rng(n)
    truth = rng.integers(0, 5, n)
    vectors = rng.normal(size=(n, 8)) + np.eye(5, 8)[truth]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    first, five, mean = [], [], []
    for i in range(n):
        others = np.delete(np.arange(n), i)
        alike = truth[others] == truth[i]
        if not alike.any():
            continue
        near = vectors[others] @ vectors[i]
        order = np.argsort(-near, kind="stable")
        first.append(alike[order[0]])
        five.append(alike[order[:5]].any())
        mean.append(average_precision_score(alike, near))
    metrics, bounds, _ = retrieval_scores(vectors, truth, tuple("abcde"))
    assert metrics["recall@1"] == pytest.approx(np.mean(first))
    assert metrics["recall@5"] == pytest.approx(np.mean(five))
    assert metrics["mAP"] == pytest.approx(np.mean(mean), abs=1e-6)
    assert bounds["recall@1"][0] <= metrics["recall@1"] <= bounds["recall@1"][1]


def test_an_embedding_model_is_measured_by_what_lies_together(tmp_path):
    model = load_model(node_model(tmp_path / "m", "embed", "vector", MEAN_COLOUR))
    for k in range(3):
        grey(tmp_path / "data" / "warm" / f"{k}.png", (20, 60 + k, 200))
        grey(tmp_path / "data" / "cold" / f"{k}.png", (200, 60 + k, 20))
    grey(tmp_path / "data" / "lone" / "0.png", (90, 90, 90))
    e = evaluate_task(model, tmp_path / "data")
    assert (e.metrics["recall@1"], e.metrics["mAP"], e.pictures) == (1.0, 1.0, 7)
    assert e.notes[0] == "one picture only, not asked for: lone"


def test_pictures_without_a_second_of_their_class_are_refused():
    with pytest.raises(DataError, match="no two of one class"):
        retrieval_scores(np.eye(3, dtype=np.float32), np.arange(3), tuple("abc"))


# --- maps of what is odd


def planted(seed):
    "Maps of flaws of different sizes, with masks, and good ones."
    rng = np.random.default_rng(seed)
    found = []
    for k in range(6):
        heat, mask = rng.random((30, 40)) * 0.7, np.zeros((30, 40), bool)
        if k % 2:
            mask[2:9, 3:20] = mask[20:24, 30:33] = True
            heat[2:9, 3:20] += 0.25
            heat[20:24, 30:33] += rng.uniform(-0.2, 0.2)
        found.append((np.clip(heat, 0, 1).astype(np.float32), mask if k % 2 else None))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_pixel_auroc_is_scikit_learns(seed):
    scores, maps = MapScores(), planted(seed)
    for heat, mask in maps:
        scores.add(heat, mask)
    every = np.concatenate([h.ravel() for h, _ in maps])
    wrong = np.concatenate([(np.zeros(h.shape, bool) if m is None else m).ravel() for h, m in maps])
    assert scores.pixel_auroc() == pytest.approx(roc_auc_score(wrong, every), abs=2e-4)


@pytest.mark.parametrize("seed", range(4))
def test_aupro_is_that_of_every_threshold_in_turn(seed):
    scores, maps = MapScores(), planted(seed)
    for heat, mask in maps:
        scores.add(heat, mask)
    good = np.concatenate([(h if m is None else h[~m]).ravel() for h, m in maps])
    boxes = (slice(2, 9), slice(3, 20)), (slice(20, 24), slice(30, 33))
    regions = [h[box] for h, m in maps if m is not None for box in boxes]
    curve = [(0.0, 0.0)]
    for at in np.unique(good)[::-1]:
        curve.append(((good >= at).mean(), np.mean([(r >= at).mean() for r in regions])))
    x, y = np.array(curve).T
    fine = np.linspace(0, 0.3, 20_001)
    wanted = np.interp(fine, x, y).mean()
    assert scores.aupro() == pytest.approx(wanted, abs=2e-3)
    assert 0.2 < wanted < 0.95


def mvtec(folder):
    "A test of anomalies: four good pictures, four with a spot, and the masks."
    for k in range(4):
        grey(folder / "test" / "good" / f"{k}.png", 60 + k)
        where = (slice(10, 20), slice(10 + 5 * k, 22 + 5 * k))
        grey(folder / "test" / "spot" / f"{k}.png", 60, where)
        grey(folder / "ground_truth" / "spot" / f"{k}_mask.png", 0, where)
    return folder


def test_a_map_is_measured_by_picture_by_pixel_and_at_its_threshold(tmp_path):
    model = load_model(node_model(tmp_path / "m", "anomaly", "score-map", BRIGHTNESS, conf=0.5))
    e = evaluate_task(model, mvtec(tmp_path / "data"))
    assert (e.metrics["AUROC"], e.metrics["found"], e.metrics["false alarms"]) == (1.0, 1.0, 0.0)
    assert e.metrics["pixel AUROC"] > 0.97 and e.metrics["AUPRO"] > 0.9
    assert e.bounds["false alarms"] == (0.0, pytest.approx(0.6024, abs=1e-3))  # four good ones prove little
    keen = evaluate_task(model.with_postprocess(conf=0.2), tmp_path / "data")
    assert (keen.metrics["AUROC"], keen.metrics["found"], keen.metrics["false alarms"]) == (1.0, 1.0, 1.0)


def test_flaws_without_masks_are_judged_by_picture_and_counted(tmp_path):
    model = load_model(node_model(tmp_path / "m", "anomaly", "score-map", BRIGHTNESS, conf=0.5))
    for mask in (mvtec(tmp_path / "data") / "ground_truth" / "spot").glob("[01]_mask.png"):
        mask.unlink()
    e = evaluate_task(model, tmp_path / "data")
    assert e.labels == 2 and "2 pictures of flaws have no mask" in e.notes[0]


def test_a_mask_of_another_size_is_refused(tmp_path):
    model = load_model(node_model(tmp_path / "m", "anomaly", "score-map", BRIGHTNESS, conf=0.5))
    grey(mvtec(tmp_path / "data") / "ground_truth" / "spot" / "1_mask.png", 0, size=(9, 9))
    with pytest.raises(DataError, match="the mask is 9×9, its picture 60×40"):
        evaluate_task(model, tmp_path / "data")


@pytest.mark.parametrize("kind, what", [("good", "a flaw"), ("spot", "a good part")])
def test_a_test_of_anomalies_needs_both_kinds(tmp_path, kind, what):
    grey(tmp_path / "test" / kind / "0.png", 60)
    with pytest.raises(DataError, match=f"no picture of {what}"):
        defect_pictures(tmp_path)


def test_a_detector_is_measured_elsewhere_and_named(tmp_path):
    with pytest.raises(ConfigError, match='this model\'s task is "detect"'):
        evaluate_task(load_model("factory_line"), tmp_path)
