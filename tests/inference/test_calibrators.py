"""Calibration curves as a model carries them: monotone, checked, applied in the pipeline with the raw score
kept."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError, Decision
from cv_pipeline.inference.calibrators import Calibrator, apply_curve, curve_problem
from cv_pipeline.inference.loading import load_model
from cv_pipeline.inference.manifest import ModelManifest, load_manifest, save_manifest
from cv_pipeline.synthetic.line import open_line

unit = st.floats(0, 1)
knots = st.lists(unit, min_size=2, max_size=8, unique=True).map(sorted)
curve = st.one_of(
    st.builds(lambda t: {"kind": "temperature", "t": t}, st.floats(0.05, 20)),
    st.builds(lambda a, b: {"kind": "platt", "a": a, "b": b}, st.floats(0.05, 10), st.floats(-5, 5)),
    knots.flatmap(
        lambda x: st.lists(unit, min_size=len(x), max_size=len(x)).map(
            lambda y: {"kind": "isotonic", "x": x, "y": sorted(y)}
        )
    ),
    st.just({"kind": "identity"}),
)


@given(curve, st.lists(unit, min_size=1, max_size=20))
def test_curves_are_monotone_and_stay_in_0_to_1(c, scores):
    assert curve_problem(c) is None
    scores = np.sort(scores)
    made = apply_curve(c, scores)
    assert ((made >= 0) & (made <= 1)).all() and (np.diff(made) >= -1e-9).all()
    table = Calibrator({"a": c}).table(("b", "a"))
    np.testing.assert_allclose(
        table(scores.astype(np.float32), np.ones(len(scores), int)),
        apply_curve(c, scores.astype(np.float32)),
        atol=2e-3,
    )
    np.testing.assert_allclose(
        table(scores.astype(np.float32), np.zeros(len(scores), int)), np.clip(scores, 1e-6, 1), atol=1e-5
    )


def test_the_pipeline_reports_calibrated_confidences_and_keeps_the_raw_ones():
    model = load_model("factory_line", threads=1)
    timid = Calibrator({"gear": {"kind": "platt", "a": 1.0, "b": -2.0}}, {"kind": "temperature", "t": 2.0})
    image = next(iter(open_line("line:frames=1,seed=3", "x"))).image
    before, after = model.predict([image])[0], model.with_calibration(timid).predict([image])[0]
    np.testing.assert_allclose(after.data["raw_confidence"], before.confidence)
    np.testing.assert_array_equal(after.xyxy, before.xyxy)
    expected = timid.table(model.manifest.names)(before.confidence, before.class_id)
    np.testing.assert_allclose(after.confidence, expected)
    assert (after.confidence < before.confidence)[before.class_id == model.manifest.names.index("gear")].all()
    strict = model.with_postprocess(accept_conf=0.8).with_calibration(timid).predict([image])[0]
    np.testing.assert_array_equal(
        strict.data["decision"] == Decision.ACCEPT, strict.confidence >= 0.8
    )  # the band is on the calibrated scale
    assert (
        "raw_confidence" not in before.data
        and "raw_confidence" not in model.with_calibration(None).predict([image])[0].data
    )
    kept = model.with_calibration(timid).with_postprocess(conf=0.5)  # other thresholds do not lose the curves
    assert "raw_confidence" in kept.predict([image])[0].data


def test_a_calibration_travels_with_the_manifest(tmp_path):
    timid = Calibrator(
        {"gear": {"kind": "platt", "a": 1.0, "b": -2.0}},
        {"kind": "isotonic", "x": [0.0, 1.0], "y": [0.0, 0.8]},
        fitted={"n": 300},
    )
    model = load_model("factory_line")
    (tmp_path / model.manifest.file).write_bytes(model.path.read_bytes())
    save_manifest(replace(model.manifest, calibration=timid.to_dict()), tmp_path)
    assert Calibrator.from_dict(load_manifest(tmp_path)[0].calibration) == timid
    assert load_model(tmp_path).postprocess.calibrate is not None


@pytest.mark.parametrize(
    "calibration, words",
    [
        ({"classes": {"cat": {"kind": "identity"}}}, "no class 'cat'"),
        ({"default": {"kind": "magic"}}, "kind must be one of"),
        ({"curve": 1}, "unknown keys"),
        ({"default": {"kind": "platt", "a": float("nan"), "b": 0.0}}, "a must be above 0"),
        ({"target": "luck"}, "target must be"),
        ({"default": {"kind": "isotonic", "x": [0.5, 0.1], "y": [0.0, 1.0]}}, "x must increase"),
        ({"default": {"kind": "isotonic", "x": [0.0], "y": [0.0]}}, "two at least"),
    ],
)
def test_a_calibration_that_cannot_be_used_is_refused_with_the_manifest(calibration, words):
    with pytest.raises(ConfigError, match=words):
        ModelManifest(name="m", file="m.onnx", names=("gear",), calibration=calibration)
