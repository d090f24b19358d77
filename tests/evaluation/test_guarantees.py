"""Promises: exact bounds against SciPy and closed formulas, prices in labels by enumeration, thresholds by
simulation with a known truth, and what voids them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.evaluation.guarantees import (
    GRID,
    Promise,
    Proven,
    changed_since,
    label_table,
    lower,
    needed,
    needed_to_pass,
    promise_settings,
    promises_of,
    prove_threshold,
    read_promise,
    route,
    sequence,
    standing,
    units_alerted,
    units_found,
    upper,
    with_promises,
)
from cv_pipeline.evaluation.intervals import Verdict
from cv_pipeline.inference.manifest import ModelManifest, PostprocessSpec
from tests.benchmarks import try_guarantees as study

RECALL = Promise("recall", 0.95)
PRECISION = Promise("precision", 0.95)


# ---------------------------------------------------------------- bounds and prices


@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from([0.8, 0.9, 0.95, 0.975, 0.999]))
@settings(max_examples=60, deadline=None)
def test_bounds_are_scipys_exact_ones(n, share, sure):
    k = round(share * n)
    low = binomtest(k, n, alternative="greater").proportion_ci(sure, "exact").low
    assert lower(k, n, sure) == pytest.approx(low, abs=1e-9)
    high = binomtest(k, n, alternative="less").proportion_ci(sure, "exact").high
    assert upper(k, n, sure) == pytest.approx(high, abs=1e-9)


def test_without_an_error_the_bound_is_a_root():
    assert lower(59, 59) == pytest.approx(0.05 ** (1 / 59), abs=1e-12)


def test_without_a_trial_nothing_is_known():
    assert (lower(0, 0), upper(0, 0)) == (0.0, 1.0)


@pytest.mark.parametrize("good, n, sure", [(8, 7, 0.95), (-1, 7, 0.95), (3, 7, 1.0), (3, 7, 0.0)])
def test_impossible_counts_are_refused(good, n, sure):
    with pytest.raises(DataError, match="are needed"):
        lower(good, n, sure)


@pytest.mark.parametrize(
    "rate, errors, labels",
    [(0.95, 0, 59), (0.95, 1, 93), (0.95, 2, 124), (0.95, 5, 208), (0.95, 10, 336), (0.99, 0, 299)]
    + [(0.99, 1, 473), (0.99, 2, 628), (0.99, 5, 1049), (0.99, 10, 1693), (0.995, 0, 598), (0.995, 1, 947)]
    + [(0.999, 0, 2995), (0.999, 1, 4742), (0.98, 0, 149)],
)
def test_the_price_list(rate, errors, labels):
    assert needed(rate, errors=errors) == labels


@given(st.floats(0.3, 0.999), st.integers(0, 60), st.floats(0.6, 0.999))
@settings(max_examples=80, deadline=None)
def test_one_label_less_is_too_few(rate, errors, sure):
    n = needed(rate, sure, errors)
    assert binom.cdf(errors, n, 1 - rate) <= 1 - sure + 1e-12
    assert n == errors + 1 or binom.cdf(errors, n - 1, 1 - rate) > 1 - sure - 1e-12


@pytest.mark.parametrize(
    "rate, truth", [(0.95, 0.97), (0.95, 0.98), (0.95, 0.99), (0.99, 0.997), (0.99, 0.999)]
)
def test_labels_to_pass_by_enumeration(rate, truth):
    n = np.arange(1, 2000)
    allowed = binom.ppf(0.05, n, 1 - rate)
    allowed -= binom.cdf(allowed, n, 1 - rate) > 0.05
    chance = np.where(allowed >= 0, binom.cdf(allowed, n, 1 - truth), 0)
    first = int(np.argmax(chance >= 0.8))
    assert needed_to_pass(rate, truth) == (n[first], allowed[first])


def test_tables_before_anyone_labels():
    by_errors, by_truth = label_table(0.99, truths=[0.995])
    assert [r["labels"] for r in by_errors] == [299, 473, 628, 1049, 1693]
    assert by_truth == [{"true rate": 0.995, "labels": 1941, "errors allowed": 12}]


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: needed(1.0), "can never be proven"),
        (lambda: needed(0.0), "not between 0 and 1"),
        (lambda: needed(0.9, 1.5), "confidence 1.5"),
        (lambda: needed(0.9, errors=-1), "-1 errors"),
        (lambda: needed_to_pass(0.95, 0.95), "cannot prove"),
        (lambda: needed_to_pass(0.95, 0.99, chance=1.0), "chance 1"),
    ],
)
def test_prices_of_impossible_promises(call, text):
    with pytest.raises(ConfigError, match=text):
        call()


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    "text, promise",
    [
        ("recall>=0.95@95%", Promise("recall", 0.95, 0.95)),
        ("Precision ≥ 99% @ 0.9", Promise("precision", 0.99, 0.9)),
        ("miss<=2%@95%", Promise("recall", 0.98, 0.95)),
        ("recall>=.9", Promise("recall", 0.9, 0.95)),
    ],
)
def test_promises_are_read(text, promise):
    assert read_promise(text) == promise


def test_what_was_written_is_read_again():
    assert read_promise(Promise("precision", 0.975, 0.99).text) == Promise("precision", 0.975, 0.99)


@pytest.mark.parametrize(
    "text", ["", "recall", "recall>.9", "recall<=0.9@95%", "miss>=.1", "AP>=0.5@95%", "recall>=95@95%"]
)
def test_other_words_are_refused_with_examples(text):
    with pytest.raises(ConfigError, match="promise|between 0 and 1"):
        read_promise(text)


# ---------------------------------------------------------------- units


def test_a_track_is_found_as_its_share_says():
    key, score = ["a", "a", "a", "b", "b"], [0.2, 0.9, 0.6, 0.0, 0.3]
    found = {s: units_found(key, score, s).score.tolist() for s in (0, 0.5, 1)}
    assert found == {
        s: np.float32(v).tolist() for s, v in {0: [0.9, 0.3], 0.5: [0.6, 0.3], 1: [0.2, 0.0]}.items()
    }


def test_one_object_is_drawn_whatever_its_score():
    drawn = [units_found(["a"] * 4, [0.1, 0.2, 0.3, 0.4], seed=s).score[0] for s in range(400)]
    shares = np.bincount(np.round(np.array(drawn) * 10).astype(int), minlength=5)[1:] / 400
    assert (abs(shares - 0.25) < 0.08).all()


def test_alerts_are_drawn_among_those_above():
    rng = np.random.default_rng(0)
    key, score, right = rng.integers(0, 30, 300), rng.random(300).round(2), rng.random(300) < 0.5
    units = units_alerted(key.tolist(), score, right, seed=3)
    first = list(dict.fromkeys(key.tolist()))
    order = np.lexsort((np.random.default_rng(3).permutation(300), [first.index(k) for k in key]))
    for t in np.float32([0.05, 0.3, 0.5, 0.77, 0.9, 0.99]):
        good = n = 0
        for k in first:
            above = [i for i in order if key[i] == k and np.float32(score[i]) > t]
            n, good = n + bool(above), good + bool(above and right[above[0]])
        counts = (units.score > t) & (units.after <= t)
        assert (counts.sum(), (counts & units.right).sum()) == (n, good)


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda: units_found(["a"], [1.5]), DataError, "row 0 has score 1.5"),
        (lambda: units_found(["a"], [np.nan]), DataError, "row 0 has score nan"),
        (lambda: units_found(["a"], [0.5, 0.6]), DataError, "1 units for scores"),
        (lambda: units_found(["a"], [0.5], 2), ConfigError, "share 2"),
        (lambda: units_alerted(["a", "b"], [0.5, 0.6], [True]), DataError, "answers for 2 alerts"),
        (lambda: route([0.5], [True, False]), DataError, "one answer a score"),
        (lambda: route([0.5], [True], split=1), DataError, "split 1"),
    ],
)
def test_units_that_cannot_be(call, error, text):
    with pytest.raises(error, match=text):
        call()


# ---------------------------------------------------------------- thresholds


@given(st.integers(0, 10**6), st.integers(59, 400))
@settings(max_examples=40, deadline=None)
def test_recall_is_the_tolerance_limit(seed, n):
    score = np.random.default_rng(seed).beta(3, 2, n).astype(np.float32)
    allowed = max(e for e in range(n) if needed(0.95, errors=e) <= n)
    below = [t for t in GRID if np.float32(t) < np.sort(score)[allowed]]  # Wilks 1941
    assert prove_threshold(RECALL, units_found(range(n), score)).threshold == (below[-1] if below else None)


def test_ties_are_above_or_not_all_together():
    score = np.repeat(np.float32([0.3, 0.8]), [5, 95])
    assert prove_threshold(RECALL, units_found(range(100), score)).threshold == 0.295
    assert prove_threshold(RECALL, units_found(range(100), score[4:].tolist() + [0.8] * 4)).threshold == 0.795


def test_the_walk_stops_at_the_first_failure():
    score = np.r_[np.full(400, 0.9), np.full(100, 0.6), np.full(3000, 0.3)]
    right = np.r_[np.ones(400), np.zeros(100), np.ones(3000)].astype(bool)  # good, bad, and good again below
    found = prove_threshold(PRECISION, units_alerted(range(3500), score, right))
    assert (found.threshold, found.n) == (0.6, 400)


def test_precision_starts_where_enough_alerts_are():
    score, right = np.linspace(0.01, 0.99, 2000), np.ones(2000, bool)
    steps, _ = sequence(PRECISION, units_alerted(range(2000), score, right))
    assert steps[0].n >= 59 > (score > steps[0].threshold + 0.005).sum()


@pytest.mark.parametrize("n, missing", [(0, 59), (58, 1), (40, 19)])
def test_too_few_labels_are_counted(n, missing):
    found = prove_threshold(RECALL, units_found(range(n), np.full(n, 0.9)))
    assert (found.verdict, found.missing, found.threshold) == (Verdict.INSUFFICIENT, missing, None)


def test_too_few_alerts_are_not_a_bad_model():
    found = prove_threshold(PRECISION, units_alerted(range(30), np.full(30, 0.9), np.zeros(30, bool)))
    assert (found.verdict, found.missing) == (Verdict.INSUFFICIENT, 29)


def test_a_model_that_cannot_is_a_failure():
    found = prove_threshold(RECALL, units_found(range(300), np.where(np.arange(300) % 5 == 0, 0, 0.8)))
    assert found.verdict is Verdict.FAIL
    assert "240 of 300" in found.sentence


def test_units_and_promise_must_fit():
    with pytest.raises(ConfigError, match="units_alerted for precision"):
        prove_threshold(PRECISION, units_found(["a"], [0.5]))
    with pytest.raises(ConfigError, match="0..1"):
        prove_threshold(RECALL, units_found(["a"], [0.5]), grid=[])


@pytest.mark.parametrize(
    "shape", ["one hump", "easy and hard ones", "steps of .05 (ties)", "5.2 % never found"]
)
def test_a_recall_promise_holds_where_a_point_estimate_does_not(shape):
    rows = [
        study.recall_draw(study.FOUND[shape], 100, RECALL, np.random.default_rng(k))
        for k in range(10_000, 10_400)
    ]
    made = study.summary(shape, 100, rows)
    assert made["broken"] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert made["naive broken"] > 0.4


@pytest.mark.parametrize("shape", list(study.ALERTS))
def test_a_precision_promise_holds(shape):
    rows = [
        study.precision_draw(study.ALERTS[shape], 300, PRECISION, np.random.default_rng(k))
        for k in range(10_000, 10_300)
    ]
    assert study.summary(shape, 300, rows)["broken"] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


@pytest.mark.slow
def test_frames_of_a_track_are_not_units():
    broken = [
        np.mean(
            [study.frames_draw(100, 40, RECALL, frames, np.random.default_rng(k))[1] < 0 for k in range(300)]
        )
        for frames in (False, True)
    ]
    assert broken[0] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    assert broken[1] > 0.3


def test_the_kept_study_is_within_its_promise():
    kept = json.loads((Path(study.__file__).with_name("guarantees_study.json")).read_text())
    rows = [r for name in ("recall", "precision", "route") for r in kept[name]]
    assert kept["draws"] == 2000
    assert max(r["broken"] for r in rows) <= 0.06


# ---------------------------------------------------------------- routes


def test_a_route_keeps_both_promises_or_asks_people():
    rng = np.random.default_rng(5)
    bad = rng.random(8000) < 0.3
    score = np.where(bad, rng.beta(6, 2, 8000), rng.beta(1.5, 7, 8000))
    kinds = route(score, bad).decide(score)
    assert bad[kinds == "block"].mean() >= 0.99
    assert (kinds[bad] == "pass").mean() <= 0.05
    assert set(route(score[:40], bad[:40]).decide(score)) == {"person"}


def test_the_risk_of_a_route_is_divided():
    made = route(np.full(100, 0.5), np.ones(100, bool), confidence=0.95, split=0.2)
    assert made.block.promise.confidence == pytest.approx(0.99)
    assert made.clear.promise.confidence == pytest.approx(0.96)


# ---------------------------------------------------------------- standing

MODEL = ModelManifest("m", "m.onnx", ("a", "b"), sha256="1" * 64, postprocess=PostprocessSpec(conf=0.4))


def kept(text="recall>=0.95@95%", name="", manifest=MODEL, conf=0.4) -> dict:
    found = Proven(read_promise(text), Verdict.PASS, conf, 299, 300, 0.98, 0, "", "track", name)
    stamp = {"model": {"name": "m", "sha256": manifest.sha256}, "data": "d" * 64}
    return replace(found, settings=promise_settings(manifest, conf), stamp=stamp).to_dict()


def drift(verdict):
    return {"verdict": verdict, "until": "2026-06-08T10:40:00+00:00", "families": ["image"]}


@pytest.mark.parametrize(
    "verdict, state",
    [("GREEN", "valid"), ("AMBER", "valid"), ("RED", "void"), ("GREY", "not proven at present")],
)
def test_drift_decides_whether_a_promise_stands(verdict, state):
    assert standing(kept(), MODEL, drift(verdict)).state == state


def test_red_says_since_when_and_what():
    assert standing(kept(), MODEL, drift("RED")).why == "void since 2026-06-08T10:40: drift RED (image)"


def test_without_a_drift_report_nothing_is_proven():
    assert standing(kept(), MODEL).state == "not proven at present"


@pytest.mark.parametrize(
    "change, text",
    [
        ({"sha256": "2" * 64}, "made for another model"),
        ({"sha256": ""}, "made for another model"),
        ({"postprocess": PostprocessSpec(conf=0.5)}, "made for conf 0.4, which is 0.5 now"),
        ({"postprocess": PostprocessSpec(conf=0.4, class_conf={"b": 0.6})}, "which is 0.4, 0.6 now"),
        ({"postprocess": PostprocessSpec(conf=0.4, iou=0.3)}, "iou was 0.7, is 0.3"),
        (
            {"postprocess": PostprocessSpec(conf=0.4, accept_conf=0.6, policy="drop")},
            "drops was False, is True",
        ),
    ],
)
def test_a_changed_model_voids(change, text):
    assert text in changed_since(kept(), replace(MODEL, **change))
    assert standing(kept(), replace(MODEL, **change), drift("GREEN")).state == "void"


def test_a_lower_threshold_keeps_a_recall_and_voids_a_precision():
    lowered = replace(MODEL, postprocess=PostprocessSpec(conf=0.3))
    assert changed_since(kept(), lowered) == ""
    assert "made for conf" in changed_since(kept("precision>=0.95@95%"), lowered)


def test_a_promise_of_one_class_does_not_care_for_another():
    other = replace(MODEL, postprocess=PostprocessSpec(conf=0.4, class_conf={"b": 0.9}))
    assert changed_since(kept(name="a"), other) == ""
    assert "does not have" in changed_since(kept(name="z"), MODEL)


@pytest.mark.parametrize("damaged", [{}, {"stamp": None, "settings": None}, {"stamp": {"model": []}}])
def test_a_damaged_promise_is_void(damaged):
    assert standing(damaged, MODEL, drift("GREEN")).state == "void"


def test_manifests_keep_promises_as_plain_json():
    p = Proven(RECALL, Verdict.PASS, 0.4, 299, 300, 0.98, 0, "", "track", "a")
    once = replace(MODEL, metrics=with_promises(MODEL, [p]))
    again = replace(
        once, metrics=with_promises(once, [replace(p, threshold=0.3), replace(p, class_name="b")])
    )
    assert json.loads(json.dumps(again.to_dict()))["metrics"]["promises"][0]["errors"] == 1
    assert [(r["class"], r["threshold"]) for r in promises_of(again)] == [("a", 0.3), ("b", 0.4)]
    assert promises_of(replace(MODEL, metrics={"promises": "many"})) == []
