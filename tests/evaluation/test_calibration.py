"""Calibration errors against the reference, curves against planted ones, and refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import DataError
from cv_pipeline.evaluation.calibration import (
    Claims,
    calibrate,
    claims_of,
    curve_for,
    d_ece,
    fit_calibrator,
    fit_isotonic,
    fit_platt,
    halves,
    la_ece,
    lrp_thresholds,
    null_ece,
    reliability,
)
from cv_pipeline.evaluation.metrics import match_set
from cv_pipeline.evaluation.records import EvalSet, box_table
from cv_pipeline.inference.calibrators import apply_curve, curve_problem, expit, logit
from tests.helpers.eval_sets import random_set


def made_up(n: int, seed: int, a: float = 1.0, b: float = 0.0) -> Claims:
    "Claims whose true probability is a line in the logit of what is claimed."
    rng = np.random.default_rng(seed)
    said = rng.beta(2, 1.2, n)
    right = rng.random(n) < expit(a * logit(said) + b)
    return Claims(said, right, np.where(right, 0.8, 0.0), rng.integers(0, 2, n), np.arange(n))


@pytest.mark.real
def test_ece_equals_the_published_reference(real_data):
    folder = real_data / "calibration_reference"
    values = json.loads((folder / "reference_values.json").read_text())
    arrays = {p.stem: np.load(p) for p in folder.glob("*.npy")} or dict(np.load(next(folder.glob("*.npz"))))
    soft = next(a for a in arrays.values() if a.ndim == 2)
    labels = next(a for a in arrays.values() if a.ndim == 1)
    sure, guess = soft.max(axis=1), soft.argmax(axis=1)
    claims = Claims(
        sure.astype(float),
        guess == labels,
        (guess == labels).astype(float),
        np.zeros(len(labels), int),
        np.arange(len(labels)),
    )
    assert values and d_ece(claims, bins=15) == pytest.approx(0.10789, abs=5e-5)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.4, 2.5), st.floats(-1.5, 1.5), st.integers(0, 1000))
def test_platt_finds_a_planted_line_and_lowers_the_error(a, b, seed):
    claims = made_up(6000, seed, a, b)
    curve = fit_platt(claims.confidence, claims.right.astype(float))
    assert (
        curve_problem(curve) is None
        and curve["a"] == pytest.approx(a, rel=0.25, abs=0.1)
        and curve["b"] == pytest.approx(b, abs=0.3)
    )
    fresh = made_up(6000, seed + 1, a, b)
    later = replace_confidence(fresh, apply_curve(curve, fresh.confidence))
    assert d_ece(later) < null_ece(later.confidence)[1] + 0.02


def replace_confidence(claims: Claims, confidence: np.ndarray) -> Claims:
    return Claims(confidence, claims.right, claims.overlap, claims.class_id, claims.image)


def test_isotonic_finds_what_a_line_cannot():
    rng = np.random.default_rng(0)
    said = rng.random(20_000)
    steps = np.select([said < 0.3, said < 0.7], [0.1, 0.5], 0.6)
    claims = Claims(said, rng.random(20_000) < steps, steps, np.zeros(20_000, int), np.arange(20_000))
    line, any_curve = (f(claims.confidence, claims.right.astype(float)) for f in (fit_platt, fit_isotonic))
    error = {
        k: np.abs(apply_curve(c, said) - steps).mean() for k, c in (("line", line), ("isotonic", any_curve))
    }
    assert error["isotonic"] < 0.02 < error["line"] and curve_problem(any_curve) is None


@pytest.mark.parametrize(
    "n, hits, kind",
    [
        (5000, 2500, "isotonic"),
        (1000, 199, "platt"),
        (999, 900, "platt"),
        (100, 20, "platt"),
        (99, 50, None),
        (500, 19, None),
        (5000, 4990, None),
    ],
)
def test_the_rule_of_sample_sizes(n, hits, kind):
    assert curve_for(np.arange(n) < hits) == kind


def test_classes_without_enough_take_the_common_curve():
    claims = made_up(1500, 3, 2.0)
    few = Claims(
        claims.confidence, claims.right, claims.overlap, np.where(np.arange(1500) < 30, 1, 0), claims.image
    )
    calibrator, chosen = fit_calibrator(few, ("gear", "nut"))
    assert list(calibrator.classes) == ["gear"] and "only 30 boxes" in chosen["nut"]
    with pytest.raises(DataError, match="99 boxes, .* too few"):
        fit_calibrator(claims[np.arange(99)], ("gear", "nut"))


def test_null_error_of_a_perfect_detector_is_what_it_shows():
    "The known values: about .149 at 100 boxes and .048 at 1000, in 25 bins."
    for n, low, high in ((100, 0.12, 0.17), (1000, 0.04, 0.055)):
        shown = [d_ece(made_up(n, seed)) for seed in range(40)]
        assert (
            np.mean(shown) == pytest.approx(null_ece(made_up(n, 0).confidence)[0], abs=0.015)
            and low < np.mean(shown) < high
        )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_errors_are_their_formulas_and_weights_are_copies(seed):
    claims = made_up(300, seed, 1.7)
    by_hand = sum(
        (mine := (claims.confidence * 25).astype(int).clip(max=24) == b).sum()
        / 300
        * abs(claims.confidence[mine].mean() - claims.right[mine].mean())
        for b in range(25)
        if ((claims.confidence * 25).astype(int).clip(max=24) == b).any()
    )
    assert d_ece(claims) == pytest.approx(by_hand, abs=1e-12)
    weights = np.random.default_rng(seed).integers(0, 3, (4, 300)).astype(float)
    for row, value, located in zip(weights, d_ece(claims, weights), la_ece(claims, weights)):
        copies = claims[np.repeat(np.arange(300), row.astype(int))]
        assert d_ece(copies) == pytest.approx(value, abs=1e-12)
        assert la_ece(copies) == pytest.approx(located, abs=1e-12)


def test_halves_are_divided_by_sequence_and_thresholds_come_from_one():
    s = replace(random_set(5, pictures=40), columns={"sequence": np.arange(40) // 4})
    first, second = halves(s)
    assert (
        (first ^ second).all()
        and all(len(set(first[k : k + 4])) == 1 for k in range(0, 40, 4))
        and abs(first.sum() - 20) <= 4
    )
    with pytest.raises(DataError, match="cannot be split"):
        halves(replace(s, columns={"sequence": np.zeros(40)}))
    m = match_set(s, [0.5])
    claims = claims_of(s, m, lrp_thresholds(s, m))
    assert (
        len(claims) and not m.ignored[0][np.isin(m.rows, np.flatnonzero(s.predictions.confidence > 2))].any()
    )


def test_nothing_to_calibrate_is_refused_with_its_reason():
    s = random_set(1, pictures=30)
    report = calibrate(s, draws=50)
    assert not report.accepted and "too few" in report.reason and report.before == report.after
    silent = EvalSet(s.names, s.images, s.size, s.truth, box_table([], [], []))
    assert not calibrate(silent, draws=50).accepted and reliability(made_up(0, 0)) == []


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize(
    "photos, least", [("voc100/coco_format_v1/instances_default.json", 100), ("coco8/data.yaml", 8)]
)
def test_photographs_hold_too_few_errors_for_a_curve(real_data, photos, least):
    "YOLOv8n on classes that both know: refused, with the reason, and nothing is stored."
    from cv_pipeline.core.formats import read_dataset
    from cv_pipeline.evaluation.records import predict_set
    from cv_pipeline.inference.loading import load_model

    model = load_model(real_data / "models" / "yolov8n_fp32_reconstructed.onnx", threads=1)
    s = predict_set(model, read_dataset(real_data / photos))
    report = calibrate(s)
    assert (
        len(s) == least
        and not report.accepted
        and report.calibrator is None
        and "too few to calibrate" in report.reason
    )
