"""Anomaly models: bank, outline, painted flaws, thresholds, folders, and bad pictures."""

import json

import numpy as np
import pytest

from cv_pipeline.apps.anomaly import (
    SIDE,
    AnomalySettings,
    combined,
    fit_good,
    outline,
    outline_gap,
    part_mask,
    squared,
)
from cv_pipeline.apps.anomaly_model import fit_model, load_anomaly, pass_threshold, save_anomaly
from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.evaluation.patch_bank import EarlyMaps, PatchBank, coreset, first_layers
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.flaws import FLAWS, flawed, part_crops
from cv_pipeline.synthetic.parts import draw_part

QUICK = AnomalySettings(patches=300, flaws=1)


@pytest.fixture(scope="module")
def detector():
    return load_model("factory_line", threads=1)


@pytest.fixture(scope="module")
def nuts():
    return part_crops(2, range(1, 7), 10)


@pytest.fixture(scope="module")
def model(detector, nuts):
    return fit_model({"nut": nuts}, detector, QUICK)


def test_the_coreset_leaves_nothing_far_away():
    x = np.random.default_rng(0).normal(0, 1, (400, 3)).astype(np.float32)
    rows = coreset(x, 40)
    reach = np.linalg.norm(x[:, None] - x[rows], axis=2).min(axis=1).max()
    chance = np.linalg.norm(x[:, None] - x[:40], axis=2).min(axis=1).max()
    assert len(set(rows.tolist())) == 40 and reach < chance


def test_more_rows_than_there_are_and_equal_vectors():
    assert sorted(coreset(np.zeros((3, 2)), 9).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("bad", [np.zeros((0, 3)), np.zeros(3), np.full((4, 3), np.nan)])
def test_vectors_that_are_none(bad):
    with pytest.raises(DataError):
        coreset(bad, 2)


def test_the_distance_to_a_bank_is_that_of_the_nearest_vector():
    x = np.random.default_rng(1).normal(0, 3, (50, 6)).astype(np.float32)
    bank = PatchBank.fit(x, 20)
    slow = np.linalg.norm(((x - bank.mean) * bank.scale)[:, None] - bank.vectors, axis=2)
    assert np.allclose(bank.distance(x), slow.min(axis=1), atol=5e-3)
    assert np.allclose(bank.distance(x, 3), np.sort(slow, axis=1)[:, 2], atol=5e-3)
    with pytest.raises(DataError, match="for a bank of 6 numbers"):
        bank.distance(np.zeros((2, 5)))


def test_a_number_that_never_changes_does_not_count():
    x = np.column_stack([np.ones(20), np.arange(20)])
    assert PatchBank.fit(x, 5).distance(np.array([[999.0, 3.0]]))[0] < 1


def test_the_first_layers_give_the_maps_of_the_whole_network_at_any_size(detector):
    graph, _ = first_layers(detector.path)
    early = EarlyMaps(graph)
    assert early(np.zeros((2, 96, 96, 3), np.uint8)).shape == (2, 24, 24, 16)
    assert len(graph) < 50_000


@pytest.mark.parametrize("kind", FLAWS)
def test_a_flaw_changes_the_part_and_nothing_around_it(kind):
    part = draw_part(0, (1, "part", 2), 1.0)
    made = flawed(part, kind, np.random.default_rng(4))
    outside = part.mask == 0
    changed = (made.paint != part.paint).any(axis=-1)
    assert changed.any() and (not changed[outside].any() or kind == "chip")
    assert (made.mask <= part.mask).all()


def test_a_bite_out_of_the_outline_is_a_gap():
    y, x = np.mgrid[:SIDE, :SIDE]
    plate = ((abs(x - 80) < 55) & (abs(y - 80) < 25)).astype(np.uint8)
    bitten = plate * (np.hypot(x - 40, y - 55) > 16)
    known = np.stack([outline(plate)] * 3)
    assert outline_gap(outline(plate), known) < 0.02
    assert outline_gap(outline(bitten.astype(np.uint8)), known) > 0.3
    assert outline_gap(outline(np.rot90(plate).copy()), known) < 0.2


@pytest.mark.slow
def test_good_parts_pass_and_flaws_score_higher(model):
    good = [model.judge(c, "nut").score for c in part_crops(2, [41, 42], 6)]
    bad = [model.judge(c, "nut").score for kind in FLAWS for c in part_crops(2, [41, 42], 6, kind)]
    assert np.mean(bad) > np.mean(good)


def test_the_heat_is_where_the_spot_is(model):
    crop = part_crops(2, [43], 1)[0].copy()
    h, w = crop.shape[:2]
    part = np.argwhere(part_mask(squared(crop)))
    y, x = part[len(part) // 8]
    scale = max(h, w) / SIDE
    cy, cx = int(y * scale - (max(h, w) - h) / 2), int(x * scale - (max(h, w) - w) / 2)
    crop[max(cy - 5, 0) : cy + 6, max(cx - 5, 0) : cx + 6] = (20, 20, 230)
    heat = model.judge(crop, "nut").heat
    top = np.array(np.unravel_index(heat.argmax(), heat.shape)) * 4
    assert np.hypot(*(top - [y, x])) < 25


def test_a_model_is_the_same_after_it_was_written(model, nuts, tmp_path):
    save_anomaly(model, tmp_path / "m")
    again = load_anomaly(tmp_path / "m")
    for crop in nuts[:3]:
        a, b = model.judge(crop, "nut"), again.judge(crop, "nut")
        assert (a.score, a.anomalous, a.channels) == (b.score, b.anomalous, b.channels)
    book = json.loads((tmp_path / "m" / "manifest.json").read_text())
    assert book["task"] == "anomaly" and set(book["classes"]["nut"]) == {
        "good",
        "threshold",
        "scores",
        "promise",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "class-0.npz").write_bytes(b"cut"), "class-0.npz changed"),
        (lambda f: (f / "first_layers.onnx").unlink(), "cannot be read"),
        (lambda f: (f / "manifest.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "manifest.json").write_text('{"format": "cv_pipeline anomaly 2"}'), "anomaly 2"),
        (lambda f: (f / "manifest.json").unlink(), "no anomaly model found"),
    ],
)
def test_a_damaged_model_is_a_typed_error(model, tmp_path, change, message):
    save_anomaly(model, tmp_path / "m")
    change(tmp_path / "m")
    with pytest.raises(DataError, match=message):
        load_anomaly(tmp_path / "m")


def test_a_folder_is_not_overwritten(model, tmp_path):
    save_anomaly(model, tmp_path / "m")
    with pytest.raises(ConfigError, match="already exists"):
        save_anomaly(model, tmp_path / "m")


@pytest.mark.parametrize("count", [0, 1, 12])
def test_too_few_good_pictures(detector, nuts, count):
    with pytest.raises(DataError, match="too few to fit"):
        fit_model({"nut": nuts[:count]}, detector, QUICK)


def test_flat_pictures_are_refused(detector):
    graph, _ = first_layers(detector.path)
    with pytest.raises(DataError, match="all pictures are flat"):
        fit_good([np.full((40, 40, 3), 80, np.uint8)] * 12, EarlyMaps(graph), QUICK)


def test_a_flat_picture_gets_a_score(model):
    v = model.judge(np.full((40, 60, 3), 80, np.uint8), "nut")
    assert np.isfinite(v.score) and 0 <= v.score <= 1


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), None])
def test_what_is_no_picture(model, bad):
    with pytest.raises(DataError, match="a crop of shape"):
        model.judge(bad, "nut")


def test_a_class_that_was_not_fitted(model, nuts):
    with pytest.raises(DataError, match="no good parts of class 'bolt'"):
        model.judge(nuts[0], "bolt")


def test_a_threshold_needs_fifty_nine_good_parts():
    rng = np.random.default_rng(0)
    few, enough = pass_threshold(rng.uniform(0, 0.5, 58))[1], pass_threshold(rng.uniform(0, 0.5, 59))[1]
    assert few.threshold is None and few.missing == 1
    assert enough.threshold is not None


@pytest.mark.parametrize("bad", [[], [0.2, np.nan]])
def test_scores_that_are_none(bad):
    with pytest.raises(DataError, match="scores, or they contain NaN"):
        pass_threshold(bad)


def test_the_score_is_at_least_the_largest_channel():
    for parts in np.random.default_rng(0).uniform(0, 0.99, (50, 3)).astype(np.float32):
        assert parts.max() - 1e-4 <= combined(parts) <= 1
