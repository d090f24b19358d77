"""Bootstrap, comparisons, verdicts: multiplicity is kept, clusters are drawn, bounds decide."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, t

from cv_pipeline.core.types import DataError
from cv_pipeline.evaluation.intervals import (
    FEWEST_CLUSTERS,
    INTRACLUSTER,
    APSampler,
    Finding,
    Interval,
    Verdict,
    answers_worth,
    ap_draws,
    ap_interval,
    average,
    cluster_freedom,
    clusters,
    compare_models,
    draw_weights,
    drawn_together,
    exact_bounds,
    interval_of,
    judge,
    overall,
    picture_counts,
    rate_intervals,
    slice_weights,
)
from cv_pipeline.evaluation.metrics import ap_table, match_set, mean_ap
from tests.benchmarks.try_coverage import study_cell
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
    assert (weights[:, ::2] == weights[:, 1::2]).all(), "pictures of a cluster count the same"
    np.testing.assert_allclose(weights.sum(axis=1), 12, rtol=1e-5)
    assert weights.max() > 2 and (weights > 0).all()
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


# closed forms


@pytest.mark.parametrize("n", [5, 8, 12, 40])
def test_the_mean_of_normal_numbers_gets_its_t_interval(n):
    x = np.random.default_rng(n).normal(3, 2, n)
    drawn = draw_weights(np.arange(n), 20_000) @ x / n
    found = interval_of(x.mean(), drawn, share=False)
    half = t.ppf(0.975, n - 1) * x.std(ddof=1) / np.sqrt(n)
    assert found.high - found.value == pytest.approx(half, rel=0.03)
    assert found.value - found.low == pytest.approx(half, rel=0.03)


def test_a_cluster_of_many_equal_pictures_is_one_number():
    x = np.random.default_rng(0).normal(0, 1, 10)
    alone = draw_weights(np.arange(10), 500) @ x / 10
    copied = draw_weights(np.repeat(np.arange(10), 7), 500) @ np.repeat(x, 7) / 70
    np.testing.assert_allclose(alone, copied, atol=1e-5)


@pytest.mark.parametrize("right", [21, 34, 47])
def test_a_rate_of_single_answers_is_as_wide_as_clopper_and_pearson(right):
    "One object a picture: n* is the number of pictures, but for what Student's t takes."
    hit = (np.arange(50) < right).astype(int)
    counts = np.stack([hit, np.zeros(50, int), 1 - hit], axis=1)
    found = rate_intervals(counts, draw_weights(np.arange(50), 5000))["recall"]
    exact = binomtest(right, 50).proportion_ci(method="exact")
    assert found.value == right / 50 and found.clusters == 50
    assert found.low == pytest.approx(exact.low, abs=0.02) and found.high == pytest.approx(
        exact.high, abs=0.02
    )
    assert found.low <= exact.low + 0.003, "never narrower than the exact one"


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.5, 0.999))
def test_exact_bounds_are_those_of_scipy(right, wrong, level):
    exact = binomtest(right, right + wrong).proportion_ci(level, method="exact")
    np.testing.assert_allclose(
        exact_bounds(right / (right + wrong), right + wrong, level), (exact.low, exact.high), atol=1e-9
    )


def test_nothing_wrong_in_the_sample_is_no_proof():
    counts = np.tile([4, 0, 0], (40, 1))
    found = rate_intervals(counts, draw_weights(np.repeat(np.arange(10), 4), 300))
    worth = 160 / (1 + (160 / 10 - 1) * 0.2)
    for name in ("precision", "recall"):
        assert found[name].high == 1 and found[name].low == pytest.approx(0.025 ** (1 / worth), abs=1e-9)
    assert interval_of(1.0, np.ones(50), n_clusters=30).low == pytest.approx(
        binomtest(30, 30).proportion_ci().low
    )
    nothing = interval_of(0.0, np.zeros(50), n_clusters=30, share=True)
    assert nothing.low == 0 and nothing.high == pytest.approx(1 - 0.025 ** (1 / 30))
    assert interval_of(1.0, np.ones(50)).low < 0.7, "not known how many: as if they were very few"


def test_independent_objects_are_worth_more_in_more_clusters():
    assert answers_worth(100, 100) == 100
    assert answers_worth(100, 10) == pytest.approx(100 / 2.8)
    assert answers_worth(0, 12) == 12


@given(st.lists(st.integers(1, 60), min_size=2, max_size=40))
def test_degrees_of_freedom_are_those_of_the_quadratic_form(sizes):
    "Satterthwaite's formula with the matrix written out."
    n = np.array(sizes)
    p, own = n / n.sum(), INTRACLUSTER + (1 - INTRACLUSTER) / n
    centre = np.eye(len(n)) - np.outer(np.ones(len(n)), p)
    form = centre.T @ np.diag(p**2) @ centre @ np.diag(own)
    freedom, variance, _ = cluster_freedom(n)
    assert freedom == pytest.approx(np.trace(form) ** 2 / np.trace(form @ form), rel=1e-6)
    assert variance == pytest.approx((p**2 * own).sum())
    assert freedom <= len(n) - 1 + 1e-6


def test_one_sequence_with_most_pictures_leaves_little_freedom():
    assert cluster_freedom(np.full(12, 9))[0] == pytest.approx(11)
    assert cluster_freedom(np.r_[400, np.full(11, 3)])[0] < 3
    uneven = np.repeat(np.arange(12), np.r_[60, np.full(11, 6)])
    even = np.repeat(np.arange(12), np.full(12, 10))
    x = np.random.default_rng(0).normal(0, 1, 12)
    width = lambda c: (draw_weights(c, 2000) @ x[c] / len(c)).std()
    assert width(uneven) > 1.3 * width(even)


# slices and classes


def test_the_clusters_behind_weights_are_known_and_a_slice_draws_its_own():
    cluster = np.repeat(np.arange(20), 3)
    weights = draw_weights(cluster, 400)
    back = drawn_together(weights)
    assert (
        all((back[cluster == c] == back[cluster == c][0]).all() for c in range(20)) and len(set(back)) == 20
    )
    few = slice_weights(weights, cluster < 8)
    assert not few[:, cluster >= 8].any()
    np.testing.assert_array_equal(few[:, cluster < 8], draw_weights(cluster[cluster < 8], 400))
    np.testing.assert_array_equal(slice_weights(weights, np.ones(60, bool)), weights)


def test_a_class_in_few_clusters_says_so_and_is_wider():
    s = random_set(2, pictures=60, crowds=False)
    rare = (s.truth.class_id != 1) | (s.truth.image < 6)
    s = replace(s, truth=s.truth[rare])
    drawn = ap_draws(s, match_set(s), draw_weights(clusters(s), 300))
    holding = len(set(s.truth.image[s.truth.class_id == 1].tolist()))
    assert drawn.of_class(1).clusters == holding < FEWEST_CLUSTERS < drawn.of_class(0).clusters
    found = judge("AP, b", drawn.of_class(1), 0.0, 60, 60)
    assert found.verdict == Verdict.INSUFFICIENT and f"{holding} clusters" in found.reason


# too few


@pytest.mark.parametrize("have, text", [(5, "5 clusters"), (7, "1 more sequence"), (1, "1 cluster of")])
def test_too_few_clusters_are_insufficient_and_the_number_needed_is_given(have, text):
    found = judge("AP", Interval(0.9, 0.85, 0.95, clusters=have), 0.5, 100, 500)
    assert found.verdict == Verdict.INSUFFICIENT
    assert text in found.reason and f"at least {FEWEST_CLUSTERS} are needed" in found.reason


def test_enough_clusters_or_an_unknown_number_are_judged_by_the_bounds():
    for have in (0, FEWEST_CLUSTERS, 400):
        assert judge("AP", Interval(0.9, 0.85, 0.95, clusters=have), 0.5, 100, 500).verdict == Verdict.PASS


def test_no_draws_and_a_level_that_is_none_are_refused():
    with pytest.raises(DataError, match="0 draws"):
        draw_weights(np.arange(9), 0)
    for level in (0, 1, 95, float("nan")):
        with pytest.raises(DataError, match="not a confidence in 0..1"):
            interval_of(0.5, np.array([0.4, 0.6]), level)


# coverage


def covered(rows, method, metric):
    row = next(r for r in rows if (r["method"], r["metric"]) == (method, metric))
    return 1 - (row["below"] + row["above"]) / row["repeats"], row["below"] / row["repeats"]


@pytest.mark.slow
def test_ten_sequences_hold_the_truth_where_the_textbook_does_not():
    rows = study_cell(10, 4, "equal", "usual", 60, draws=120, seed=5)
    metrics = ("AP", "AP50", "precision", "recall", "F1")
    ours = np.mean([covered(rows, "ours", m)[0] for m in metrics])
    assert ours > np.mean([covered(rows, "textbook", m)[0] for m in metrics]) and ours >= 0.9
