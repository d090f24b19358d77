"The threshold explorer, moved without a browser: numbers, pictures, a card where there is no kernel."

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.progress import WIDGETS
from cv_pipeline.core.types import ConfigError, DataError, MissingExtraError
from cv_pipeline.evaluation.intervals import picture_counts
from cv_pipeline.evaluation.metrics import match_set
from cv_pipeline.evaluation.records import EvalSet, box_table
from cv_pipeline.reporting import panels
from cv_pipeline.reporting.thresholds import COUNTS, threshold_explorer
from tests.helpers.services import require

require("ipywidgets")


def made(n=40, names=("gear", "<b>bolt</b>"), seed=5):
    "Pictures with two objects each; predictions that hit, miss and invent, with confidences of all sizes."
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(n), 2)
    corners = rng.uniform(0, 200, (2 * n, 2))
    square = np.concatenate([corners, corners + 50], axis=1)
    truth = box_table(image, square, np.tile([0, 1], n))
    moved = square + rng.choice([1, 90], 2 * n, p=[0.8, 0.2])[:, None]
    said = box_table(image, moved, np.tile([0, 1], n), rng.uniform(0.05, 0.99, 2 * n))
    return EvalSet(names, tuple(f"{i}.jpg" for i in range(n)), np.full((n, 2), 300), truth, said)


def picture(number):
    return np.full((300, 300, 3), number * 5 % 255, np.uint8)


@pytest.fixture
def explorer():
    return threshold_explorer(made(), thresholds=0.3, picture=picture)


@given(st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_counts_are_those_of_matching_again_at_the_threshold(conf, seed):
    s = made(20, seed=seed)
    x = threshold_explorer(s, picture=picture).move(conf)
    cut = EvalSet(s.names, s.images, s.size, s.truth, s.predictions[s.predictions.confidence >= conf])
    again = picture_counts(cut, match_set(cut, [0.5], max_det=10**6), 0.0)
    assert x.per_picture().tolist() == again.tolist()


def test_moving_the_slider_changes_the_picture_and_the_numbers(explorer):
    assert explorer.widget is explorer.widget
    image, numbers = explorer.parts["image"].value, explorer.parts["numbers"].value
    explorer.parts["slider"].value = 0.9
    assert explorer.parts["image"].value != image
    assert explorer.parts["numbers"].value != numbers


def test_the_picture_is_a_jpeg(explorer):
    _ = explorer.widget
    assert cv2.imdecode(np.frombuffer(explorer.parts["image"].value, np.uint8), 1).shape == (300, 300, 3)


def test_the_buttons_walk_from_the_worst_picture_and_stop_at_both_ends(explorer):
    _ = explorer.widget
    explorer.parts["worse"].click()
    assert explorer.rank == 0
    for _ in range(50):
        explorer.parts["better"].click()
    assert explorer.rank == 39
    errors = explorer.per_picture()[explorer.order(), 1:].sum(axis=1)
    assert (np.diff(errors) <= 0).all()


def test_one_class_is_moved_alone(explorer):
    _ = explorer.widget
    explorer.parts["class"].value = 1
    explorer.parts["slider"].value = 0.8
    assert explorer.settings() == {"gear": 0.3, "<b>bolt</b>": 0.8}


def test_choosing_a_class_changes_no_threshold(explorer):
    _ = explorer.widget
    explorer.move(0.7, "<b>bolt</b>")
    explorer.parts["class"].value = 0
    explorer.parts["class"].value = 1
    assert explorer.settings() == {"gear": 0.3, "<b>bolt</b>": 0.7}


def test_every_count_lies_in_its_interval(explorer):
    _ = explorer.widget
    from cv_pipeline.reporting.thresholds import counts_at

    rows = counts_at(explorer.per_picture(), explorer.weights)
    assert [r[""] for r in rows[:3]] == list(COUNTS)
    assert all(r["low"] <= r["value"] <= r["high"] for r in rows)


def test_one_cluster_has_numbers_and_no_interval():
    rows = threshold_explorer(made(1), picture=picture).card()
    assert "low" not in rows and "hits" in rows


def test_names_of_classes_are_text_in_the_card(explorer):
    assert "<b>bolt" not in explorer.move(0.5, "<b>bolt</b>").card()


def test_without_a_front_end_it_is_a_card_with_a_picture(explorer, monkeypatch):
    monkeypatch.setenv(WIDGETS, "0")
    shown = explorer._repr_mimebundle_()
    assert sorted(shown) == ["text/html", "text/plain"]
    assert "data:image/jpeg;base64," in shown["text/html"] and "<svg" in shown["text/html"]


def test_with_a_front_end_it_is_a_widget(explorer, monkeypatch):
    monkeypatch.setenv(WIDGETS, "1")
    assert "application/vnd.jupyter.widget-view+json" in explorer._repr_mimebundle_()


def test_without_ipywidgets_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(panels, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r'pip install "cv_pipeline\[lab\]"'):
        threshold_explorer(made(), picture=picture)


def test_missing_pictures_leave_the_numbers():
    x = threshold_explorer(made())
    assert "hits" in x.card() and "the image is missing" in x.card()


@pytest.mark.parametrize("wrong", [1.5, -0.1, float("nan"), [0.1, 0.2, 0.3], "much"])
def test_thresholds_that_are_none_are_refused(wrong):
    with pytest.raises(ConfigError, match="give a number in 0..1"):
        threshold_explorer(made(), thresholds=wrong)


def test_a_set_without_labels_is_refused():
    s = made()
    with pytest.raises(DataError, match="no labelled box"):
        threshold_explorer(EvalSet(s.names, s.images, s.size, box_table([], [], []), s.predictions))


def test_pictures_with_people_are_covered_before_anything_is_drawn(monkeypatch):
    monkeypatch.delenv("CV_PIPELINE_PRIVACY_OFF", raising=False)
    x = threshold_explorer(made(names=("person", "bag")), picture=picture)
    assert x.album.cover.privacy.on
