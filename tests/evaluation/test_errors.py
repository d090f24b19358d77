"""Error types and LRP: tidecv is the oracle, and a formula written out."""

import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.evaluation import metrics
from cv_pipeline.evaluation.errors import KINDS, explain_errors, lrp, lrp_table
from cv_pipeline.evaluation.metrics import match_set
from cv_pipeline.evaluation.records import EvalSet, box_table
from tests.helpers.eval_sets import random_set
from tests.helpers.services import require

tidecv = require("tidecv", reason="tidecv is not installed: `make test` does it")


def oracle(s: EvalSet) -> tuple[float, dict[str, float], dict[str, int]]:
    "tidecv's AP, gains (fractions) and counts."
    from tidecv import TIDE, Data

    truth, said = Data("truth"), Data("said")
    for c, name in enumerate(s.names):
        truth.add_class(c, name)
        said.add_class(c, name)
    for i, name in enumerate(s.images):
        truth.add_image(i, name)
        said.add_image(i, name)
    box = lambda b: [b[0], b[1], b[2] - b[0], b[3] - b[1]]
    for i, b, c in zip(s.truth.image.tolist(), s.truth.xyxy.tolist(), s.truth.class_id.tolist()):
        truth.add_ground_truth(i, c, box(b))
    for i, b, c, p in zip(
        s.predictions.image.tolist(),
        s.predictions.xyxy.tolist(),
        s.predictions.class_id.tolist(),
        s.predictions.confidence.tolist(),
    ):
        said.add_detection(i, c, p, box(b))
    judge = TIDE()
    with contextlib.redirect_stdout(io.StringIO()):
        found = judge.evaluate(truth, said, mode=TIDE.BOX)
    gains = {
        e.short_name: v / 100 for e, v in {**found.fix_main_errors(), **found.fix_special_errors()}.items()
    }
    return found.ap / 100, gains, {e.short_name: v for e, v in found.count_errors().items()}


def whole(seed: int, pictures: int = 15) -> EvalSet | None:
    "A random set in which every class has objects; tidecv counts a class without any as AP 0."
    s = random_set(seed, pictures, crowds=False)
    return s if len(np.unique(s.truth.class_id)) == 3 and len(s.predictions) else None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_gains_and_counts_equal_tidecv(seed):
    """tidecv reads precision at k/100, COCO (and we) at linspace(0, 1, 101); they differ in the last bit,
    which moves a whole step where a recall is hit exactly."""
    s = whole(seed)
    if s is None:
        return
    ap, gains, counts = oracle(s)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "RECALLS", np.array([k / 100 for k in range(101)]))
        report = explain_errors(s)
    assert report.ap == pytest.approx(ap, abs=1e-3)
    assert report.counts == counts
    for name, value in gains.items():
        assert report.gain[name] == pytest.approx(max(value, 0), abs=1e-3), name


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_every_box_and_every_missed_object_is_explained_once(seed):
    s = random_set(seed)
    if not len(s.truth):
        return
    m = match_set(s, [0.5])
    report = explain_errors(s, m)
    assert (report.kind >= 0).sum() == (~m.ignored[0]).sum() and (report.kind == 0).sum() == m.hit[0].sum()
    assert sum(report.counts[k] for k in KINDS[1:]) == (~m.ignored[0] & ~m.hit[0]).sum()
    hits = np.zeros(len(s.truth), bool)
    hits[m.truth[0][m.hit[0]]] = True
    assert not (report.missed & hits).any() and not (report.missed & s.truth.crowd).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_lrp_is_its_formula_at_every_threshold(seed, threshold):
    s = random_set(seed)
    if not len(s.truth):
        return
    for c in range(3):
        found = lrp(s, match_set(s), c)
        if not found.objects or not len(found.confidence):
            continue
        threshold = float(found.confidence[np.argmin(np.abs(found.confidence - threshold))])
        shown = replace(s, predictions=s.predictions[s.predictions.confidence >= threshold])
        m = match_set(shown, [0.5])
        mine = (shown.predictions.class_id[m.rows] == c) & ~m.ignored[0]
        hit = m.hit[0] & mine
        tp, fp = hit.sum(), (mine & ~hit).sum()
        fn = found.objects - tp
        by_hand = (((1 - m.overlap[0][hit]) / 0.5).sum() + fp + fn) / max(tp + fp + fn, 1)
        assert found.error[list(found.confidence).index(threshold)] == pytest.approx(by_hand, abs=1e-9)
        assert found.optimal <= found.error.min() + 1e-12 and 0 <= found.optimal <= 1


def test_nothing_said_is_all_missed_and_lrp_one():
    s = replace(random_set(3, crowds=False), predictions=box_table([], [], []))
    report = explain_errors(s)
    assert report.ap == 0 and report.counts["Miss"] == len(s.truth) == report.missed.sum()
    assert lrp_table(s, match_set(s))[-1]["oLRP"] == 1
    perfect = replace(s, predictions=s.truth)
    assert explain_errors(perfect).ap == pytest.approx(1) and lrp_table(perfect, match_set(perfect))[-1][
        "oLRP"
    ] == pytest.approx(0)
