"""Bootstrap, comparisons, verdicts: multiplicity is kept, clusters are drawn, bounds decide."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import DataError
from cv_pipeline.evaluation.intervals import (
    APSampler,
    Finding,
    Interval,
    Verdict,
    ap_interval,
    average,
    clusters,
    compare_models,
    draw_weights,
    interval_of,
    judge,
    overall,
    picture_counts,
    rate_intervals,
)
from cv_pipeline.evaluation.metrics import ap_table, match_set, mean_ap
from tests.helpers.eval_sets import random_set


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_a_draw_is_the_evaluation_of_the_copied_pictures(seed):
    """The fast sampler against a real evaluation of a set in which drawn pictures stand as often as they were
    drawn."""
    s = random_set(seed)
    if not len(s.truth[~s.truth.crowd]):
        return
    drawn = np.random.default_rng(seed).integers(0, len(s), len(s))
    copies, weights = s.select(drawn), np.bincount(drawn, minlength=len(s)).astype(np.float32)
    table = ap_table(copies, match_set(copies))
    ap = APSampler(s, match_set(s))(weights)
    some = table["objects"] > 0
    np.testing.assert_allclose(ap[:, some], table["ap"][:, some], atol=1e-9)
    assert np.isnan(ap[:, ~some]).all()
    if some.any():
        assert average(ap) == pytest.approx(mean_ap(table), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.9))
def test_counts_account_for_every_object_and_every_shown_box(seed, conf):
    s = random_set(seed, crowds=False)
    counts = picture_counts(s, match_set(s), conf)
    assert (counts >= 0).all() and (counts[:, 0] + counts[:, 2]).sum() == len(s.truth)
    assert counts[:, :2].sum() == (s.predictions.confidence >= conf).sum()


def test_clusters_are_drawn_whole_and_counts_stay():
    s = replace(
        random_set(3), columns={"sequence": np.array(list("aabbccddeeff")), "camera": np.array([0, 1] * 6)}
    )
    assert (
        clusters(s, ("sequence",)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        and len(set(clusters(s))) == 12
    )
    weights = draw_weights(clusters(s, ("sequence",)), 200)
    assert (
        (weights[:, ::2] == weights[:, 1::2]).all()
        and (weights.sum(axis=1) == 12).all()
        and weights.max() >= 3
    )
    assert (draw_weights(clusters(s), 5, seed=1) == draw_weights(clusters(s), 5, seed=1)).all()


def test_a_better_model_is_seen_and_an_equal_one_is_not():
    s = random_set(5, pictures=80, crowds=False)
    worse = replace(s, predictions=s.predictions[np.random.default_rng(0).random(len(s.predictions)) < 0.6])
    weights = draw_weights(clusters(s), 300)
    gain = compare_models(s, worse, match_set(s), match_set(worse), weights)
    assert gain.low > 0
    same = compare_models(s, s, match_set(s), match_set(s), weights)
    assert same.low == same.high == same.value == 0
    apart = ap_interval(s, match_set(s), weights)
    assert gain.high - gain.low < 2 * (apart.high - apart.low)
    with pytest.raises(DataError, match="different truth"):
        compare_models(s, replace(s, truth=s.truth[:-1]), match_set(s), match_set(s), weights)
    with pytest.raises(DataError, match="different names"):
        compare_models(s, replace(s, names=("x", "y", "z")), match_set(s), match_set(s), weights)


@pytest.mark.parametrize(
    "interval, floor, pictures, objects, verdict",
    [
        (Interval(0.7, 0.65, 0.75), 0.6, 100, 500, "PASS"),
        (Interval(0.7, 0.65, 0.75), 0.8, 100, 500, "FAIL"),
        (
            Interval(0.7, 0.65, 0.75),
            0.7,
            100,
            500,
            "INSUFFICIENT",
        ),  # the point is not below the floor, and that proves nothing
        (Interval(0.7, 0.65, 0.75), 0.6, 29, 500, "INSUFFICIENT"),
        (Interval(0.7, 0.65, 0.75), 0.6, 100, 49, "INSUFFICIENT"),
        (Interval(0.7, float("nan"), float("nan")), 0.6, 100, 500, "INSUFFICIENT"),
    ],
)
def test_bounds_decide_not_points(interval, floor, pictures, objects, verdict):
    found = judge("AP", interval, floor, pictures, objects)
    assert found.verdict == verdict and found.reason


def test_one_failure_fails_the_whole_and_doubt_does_not_pass():
    kinds = lambda *names: overall([Finding("x", Verdict(n), "") for n in names])
    assert (
        kinds("PASS", "PASS") == Verdict.PASS
        and kinds("PASS", "INSUFFICIENT") == Verdict.INSUFFICIENT
        and kinds("FAIL", "INSUFFICIENT", "PASS") == Verdict.FAIL
    )
    assert overall([]) == Verdict.INSUFFICIENT


def test_values_that_do_not_exist_are_no_numbers():
    empty = interval_of(float("nan"), np.full(10, np.nan))
    assert np.isnan(empty.low) and empty.draws == 0
    rates = rate_intervals(np.zeros((40, 3), int), draw_weights(np.arange(40), 50))
    assert np.isnan(rates["recall"].value)
    with pytest.raises(DataError, match="needed to resample"):
        draw_weights(np.zeros(40, int))


@pytest.mark.parametrize("nothing", ["", None, float("nan"), "nan", " ", "None"])
def test_pictures_without_a_sequence_are_clusters_of_their_own(nothing):
    s = replace(
        random_set(3),
        columns={
            "sequence": np.array([nothing] * 5 + list("aabbccc"), object),
            "camera": np.array(["n"] * 12, object),
        },
    )
    number = clusters(s)
    assert len(set(number.tolist())) == 8 and len(set(number[:5].tolist())) == 5
    assert not set(number[:5].tolist()) & set(number[5:].tolist())
    same = lambda values: [(values[i] == values[j]) for i in range(5, 12) for j in range(5, 12)]
    assert same(number) == same("_____aabbccc")
