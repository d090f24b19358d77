"""A head on the features of a detector: the linear fit, the graph, the folder, and bad input."""

import numpy as np
import pytest
from scipy.special import expit

from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.inference.loading import load_model
from cv_pipeline.training.feature_head import HeadSettings, fit_head, fit_linear
from tests.helpers.scenes import scene
from tests.helpers.services import require

NAMES = ["bright", "red"]


@pytest.fixture(scope="module")
def labelled():
    rng = np.random.default_rng(0)
    y = rng.random((60, 2)) < 0.5
    images = [(scene(k, (64, 64)) // 3 + 110 * bright).astype(np.uint8) for k, (bright, _) in enumerate(y)]
    for image, (_, red) in zip(images, y):
        image[20:44, 20:44] = (0, 0, 255) if red else (255, 0, 0)
    return images, y


@pytest.fixture(scope="module")
def detector():
    require("onnx")
    return load_model("factory_line", threads=1)


def test_the_linear_fit_is_at_its_minimum():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 3))
    y = rng.random(200) < expit(2 * x[:, 0] - 1)
    w = fit_linear(x, y, 2.0)
    sign, share = np.where(y, 1, -1), np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())
    slope = -sign * share * expit(-sign * (x @ w[:3] + w[3]))
    assert np.abs(x.T @ slope + 2.0 / 200 * w[:3]).max() < 1e-4 and abs(slope.sum()) < 1e-4


def test_what_can_be_seen_is_learnt_and_the_folder_is_a_model(detector, labelled, tmp_path):
    images, y = labelled
    fit_head(detector, images[:40], y[:40], NAMES, tmp_path / "m", HeadSettings(imgsz=64))
    model = load_model(tmp_path / "m", threads=1)
    batch, _ = model.preprocess.batch(images[40:])
    scores = model.postprocess.checked(model.backend.infer(batch), 20)
    assert model.manifest.task == "multilabel" and model.manifest.names == tuple(NAMES)
    assert ((scores > 0.5) == y[40:]).mean() > 0.9


def test_an_exclusive_head_is_a_classifier(detector, labelled, tmp_path):
    images, y = labelled
    one = np.stack([y[:, 1], ~y[:, 1]], axis=1)
    fit_head(detector, images, one, ["red", "blue"], tmp_path / "m", HeadSettings(imgsz=64, exclusive=True))
    model = load_model(tmp_path / "m", threads=1)
    found = [c.class_id[0] for c in model.classify(images[:20])]
    assert (np.array(found) == np.where(y[:20, 1], 0, 1)).mean() > 0.9


def test_one_picture_and_many_have_the_same_scores(detector, labelled, tmp_path):
    images, y = labelled
    fit_head(detector, images, y, NAMES, tmp_path / "m", HeadSettings(imgsz=64))
    model = load_model(tmp_path / "m", threads=1)
    many = model.backend.infer(model.preprocess.batch(images[:5])[0])
    one = np.concatenate([model.backend.infer(model.preprocess.batch([i])[0]) for i in images[:5]])
    assert np.abs(many - one).max() < 1e-3


@pytest.mark.parametrize(
    "labels", [np.zeros((60, 2), bool), np.ones((60, 2), bool), np.eye(60, 2, dtype=bool)]
)
def test_a_class_without_examples(detector, labelled, labels, tmp_path):
    with pytest.raises(DataError, match="too few pictures with or without bright"):
        fit_head(detector, labelled[0], labels, NAMES, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_labels_of_another_shape(detector, labelled, tmp_path):
    with pytest.raises(DataError, match="labels"):
        fit_head(detector, labelled[0], labelled[1][:, :1], NAMES, tmp_path / "m")


@pytest.mark.parametrize(
    "how", [{"stride": 5}, {"imgsz": 100}, {"imgsz": 0}, {"l2": 0}, {"l2": float("nan")}]
)
def test_bad_settings(how):
    with pytest.raises(ConfigError, match="feature head"):
        HeadSettings(**how)
