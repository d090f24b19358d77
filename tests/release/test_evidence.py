"""Bets against limits: e-processes by hand and against Ville's bound, blocks against the window that is
kept, evidence that is interrupted, several cameras, labels."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.monitoring.statistics import autocorrelation_time
from cv_pipeline.release.evidence import (
    ABOVE,
    BASE_S,
    BELOW,
    FIRST,
    LEVELS,
    BlockLevels,
    Column,
    Evidence,
    LabelEvidence,
    block_levels,
    confidence_sequence,
    describe,
    evidence_above,
    evidence_below,
    evidence_from_dict,
    evidence_of_change,
    evidence_to_dict,
    log_evidence,
    log_gain_above,
    log_gain_below,
    log_mean,
    more_seconds,
    readings_of,
    shortest_blocks,
    together,
)
from tests.benchmarks.try_rollout import streams

PROOF = math.log(20)


def filled(columns, values, fps=5.0):
    "Evidence after some rows."
    e = Evidence(columns)
    e.add(np.arange(len(values)) / fps, np.asarray(values, float).reshape(len(values), -1))
    return e


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.001, 0.999))
@settings(max_examples=60, deadline=None)
@pytest.mark.slow
def test_capitals_are_products_of_the_stakes(x, limit):
    up = [math.prod(1 + g / limit * (v - limit) for v in x) for g in ABOVE]
    down = [math.prod(1 + g / (1 - limit) * (limit - v) for v in x) for g in BELOW]
    assert evidence_above(np.array(x), limit)[-1] == pytest.approx(math.log(np.mean(up)), abs=1e-6)
    shares = [0.1, 0.1, 0.2, 0.6]
    assert evidence_below(np.array(x), limit)[-1] == pytest.approx(math.log(np.dot(down, shares)), abs=1e-6)


@pytest.mark.parametrize("limit", [0.02, 0.1, 0.51, 0.9])
def test_nobody_wins_on_average_at_the_limit(limit):
    "The expectation of a capital after one number of that mean is 1."
    for values, chances in (([0.0, 1.0], [1 - limit, limit]), ([limit], [1.0])):
        up = np.exp(log_gain_above(values, limit)).T @ chances
        down = np.exp(log_gain_below(values, limit)).T @ chances
        np.testing.assert_allclose(up, 1, atol=1e-9)
        np.testing.assert_allclose(down, 1, atol=1e-9)


def test_the_mean_of_capitals_does_not_overflow():
    assert log_mean(np.array([5000.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(5000 + math.log(0.5))


@pytest.mark.parametrize("kind", [evidence_above, evidence_below])
def test_ville_holds_at_the_limit(kind):
    x = streams(1500, 0.1, 0.0, 400, seed=11)
    assert (kind(x, 0.1) >= PROOF).any(axis=0).mean() <= 0.05


def test_restarts_keep_the_rate_over_the_horizon_and_see_a_late_change():
    x = np.concatenate([streams(600, 0.05, 0.0, 200, seed=12), streams(100, 0.2, 0.0, 200, seed=13)])
    log_e = evidence_of_change(x, 0.1, 700)
    assert (log_e[:600] >= PROOF).any(axis=0).mean() <= 0.05
    assert np.median(np.where(log_e[600:] >= PROOF, 1, 0).argmax(axis=0)) <= 60
    assert (log_e[600:] >= PROOF).any(axis=0).mean() > 0.95
    assert (evidence_above(x, 0.1)[600:] >= PROOF).any(axis=0).mean() < 0.2, "without restarts it is missed"


@pytest.mark.parametrize("limit, mean", [(0.01, 0.0), (0.02, 0.0), (0.02, 0.01), (0.1, 0.05), (0.51, 0.5)])
def test_the_shortest_proof_is_the_shortest(limit, mean):
    n = shortest_blocks(limit, 0.05, mean)
    log_e = evidence_below(np.full(n, mean), limit)
    assert log_e[n - 1] >= PROOF > log_e[n - 2]


@pytest.mark.parametrize(
    "bad", [(0, 0.05, 0), (1, 0.05, 0), (0.1, 0, 0), (0.1, 0.05, 0.1), (math.nan, 0.05, 0)]
)
def test_what_cannot_be_proven_is_refused(bad):
    with pytest.raises(ConfigError, match="no proof is possible"):
        shortest_blocks(*bad)


def test_blocks_are_the_means_of_their_seconds_whatever_the_portions():
    rng = np.random.default_rng(0)
    at, x = np.sort(rng.uniform(0, 200, 2400)), rng.random((2400, 2))
    x[:, 0][rng.random(2400) < 0.3] = np.nan
    whole, pieces, found = BlockLevels(2), BlockLevels(2), {}
    for level, means in whole.add(at, x):
        found[level] = means
    for part in np.array_split(np.arange(2400), 37):
        pieces.add(at[part], x[part])
    for level in range(6):
        block = np.floor(at / (BASE_S * 2**level)).astype(int)
        rows = [x[block == b] for b in np.unique(block)[:-1]]
        expected = [np.where(np.isfinite(r), r, 0).sum(0) / np.isfinite(r).sum(0) for r in rows]
        np.testing.assert_allclose(found[level], expected)
    np.testing.assert_allclose(whole.moments, pieces.moments, atol=1e-9)


def test_moments_are_those_of_numpy():
    x = np.random.default_rng(1).random((500, 3))
    b = BlockLevels(3)
    for part in np.array_split(x, 9):
        b.add(np.zeros(len(part)), part)
    n, mean, squares = b.moments[LEVELS]
    np.testing.assert_allclose((mean, squares / (n - 1)), (x.mean(axis=0), x.var(axis=0, ddof=1)))


@pytest.mark.parametrize("rho", [0.0, 0.9, 0.98])
def test_the_autocorrelation_time_is_that_of_the_window_that_is_kept(rho):
    x = streams(5 * 3600, 0.1, rho, 30, seed=14)
    b = BlockLevels(30)
    b.add(np.arange(len(x)) / 5, x.astype(float))
    level, tau, known = block_levels(b)
    assert known.mean() > 0.9
    kept = np.median(autocorrelation_time(x)) / 5
    assert np.median(tau) == pytest.approx(kept, rel=0.25)
    assert np.median(BASE_S * 2.0**level) >= max(10, 3.2 * kept)


def test_longer_memory_moves_to_longer_blocks():
    "The memory grows tenfold in the middle: the level that counts moves up, and nothing is begun again."
    x = np.concatenate([streams(9000, 0.1, 0.5, 8, seed=15), streams(18000, 0.1, 0.99, 8, seed=16)])
    b, levels = BlockLevels(8), []
    for part in np.array_split(np.arange(len(x)), 30):
        b.add(part / 5, x[part].astype(float))
        levels.append(np.median(block_levels(b)[0]))
    assert levels[9] == FIRST and levels[-1] >= FIRST + 3


@pytest.mark.parametrize("hour", [0.25, 0.5, 0.75])
def test_a_step_is_not_taken_for_memory(hour):
    "With one mean for the whole hour a regression would make τ so long that it hides itself."
    n = int(hour * 18000)
    x = np.concatenate([streams(n, 0.05, 0.9, 20, seed=20), streams(18000 - n, 0.3, 0.9, 20, seed=21)])
    e = Evidence([Column(f"s{i}", 0.1) for i in range(20)])
    seen = np.zeros(20, bool)
    for part in np.array_split(np.arange(18000), 60):
        e.add(part / 5, x[part].astype(float))
        seen |= log_evidence(e)[0] >= PROOF
    assert seen.all()
    assert np.median(block_levels(e.blocks)[1]) < 10 < np.median(autocorrelation_time(x)) / 5


def test_epochs_are_about_their_own_mean():
    "Nine epochs of 16 blocks and a rest, by hand."
    x = np.random.default_rng(7).random((150, 2)) + np.repeat([0, 5, 9], [64, 64, 22])[:, None]
    b = BlockLevels(2)
    for part in np.array_split(np.arange(150), 7):
        b.add(part * BASE_S, x[part])
    b.add(np.array([150 * BASE_S]), np.full((1, 2), np.nan))
    pieces = np.split(x, range(16, 150, 16))
    squares = sum(((p - p.mean(axis=0)) ** 2).sum(axis=0) for p in pieces)
    np.testing.assert_allclose(b.epochs[0, 1] + b.epoch[0, 2], squares)
    np.testing.assert_allclose(b.epochs[0, 0] + b.epoch[0, 0] - 1, 150 - 10)


def test_before_eight_blocks_nothing_is_evidence():
    e = filled([Column("a", 0.02)], np.ones(5 * 79))
    assert [float(v[0]) for v in log_evidence(e)] == [0.0, 0.0]
    more = filled([Column("a", 0.02)], np.ones(5 * 91))
    assert log_evidence(more)[0][0] > PROOF


def test_a_signed_column_is_judged_both_ways():
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 0.05, (18000, 3))
    values = noise + [-0.1, 0.0, 0.1]
    e = filled([Column(n, 0.03, signed=True) for n in ("down", "zero", "up")], values)
    beyond, within = log_evidence(e)
    assert (beyond >= PROOF).tolist() == [True, False, True]
    assert (within >= PROOF).tolist() == [False, True, False]
    assert readings_of(e)[0].mean == pytest.approx(-0.1, abs=0.005)


def test_signed_and_plain_columns_keep_their_places():
    rng = np.random.default_rng(3)
    columns = [Column("p", 0.1), Column("s", 0.1, signed=True), Column("q", 0.1)]
    e = filled(
        columns, np.stack([rng.random(9000) * 0.1, rng.normal(0.3, 0.02, 9000), rng.random(9000) * 0.6], 1)
    )
    readings = readings_of(e)
    assert [round(r.mean, 2) for r in readings] == [0.05, 0.3, 0.3]
    assert [r.beyond >= PROOF for r in readings] == [False, True, True]


def test_the_confidence_sequence_holds_the_mean_at_all_times():
    x = streams(1000, 0.3, 0.0, 300, seed=17)
    n = np.arange(1, 1001)[:, None]
    mean = x.cumsum(axis=0) / n
    sd = np.sqrt(
        np.maximum((x.astype(float) ** 2).cumsum(axis=0) / n - mean**2, 0) * n / np.maximum(n - 1, 1)
    )
    half = np.array([confidence_sequence(i, 1.0) for i in range(30, 1001)])[:, None]
    assert (np.abs(mean - 0.3)[29:] > half * sd[29:]).any(axis=0).mean() <= 0.06


def test_more_seconds_is_about_the_truth():
    x = np.full(5 * 600, 0.004)
    r = readings_of(filled([Column("a", 0.02)], x))[0]
    expected = shortest_blocks(0.02, 0.05, 0.004) * 10 - 600
    assert more_seconds(r) == pytest.approx(expected, rel=0.1)
    assert more_seconds(readings_of(Evidence([Column("a", 0.02)]))[0]) == shortest_blocks(0.02) * 10
    assert more_seconds(readings_of(filled([Column("a", 0.02)], np.full(9000, 0.5)))[0]) == math.inf
    assert more_seconds(readings_of(filled([Column("a", 0.1)], np.zeros(9000)))[0]) == 0


def test_a_mean_at_the_limit_is_never_proven_within():
    r = readings_of(filled([Column("a", 0.02)], np.full(9000, 0.02)))[0]
    assert more_seconds(r) == math.inf and r.within <= 0


def test_an_interrupted_evidence_equals_one_that_was_not():
    x = streams(6000, 0.02, 0.9, 2, seed=18).astype(float)
    columns = [Column("a", 0.02), Column("b", 0.05, signed=True)]
    whole, part = filled(columns, x), Evidence(columns)
    for rows in np.array_split(np.arange(6000), 41):
        part.add(rows / 5, x[rows])
        part = evidence_from_dict(json.loads(json.dumps(evidence_to_dict(part), allow_nan=False)))
    part.leave_out("dirt", 3)
    for a, b in zip(log_evidence(part), log_evidence(whole)):
        np.testing.assert_allclose(a, b, atol=1e-7)
    assert evidence_from_dict(evidence_to_dict(part)).left_out == {"dirt": 3}


def test_the_state_does_not_grow():
    columns = [Column(f"c{i}", 0.1) for i in range(20)]
    sizes = []
    for n in (3000, 30000):
        x = np.random.default_rng(4).random((n, 20))
        sizes.append(len(json.dumps(evidence_to_dict(filled(columns, x)))))
    assert sizes[1] < 1.25 * sizes[0] < 110_000, "only digits may be added"


@pytest.mark.parametrize(
    "change, what",
    [
        ({"columns": [["a", 7, False]]}, "settings of a column"),
        ({"columns": []}, "evidence"),
        ({"moments": [[1]]}, "wrong shape"),
        ({"capitals": {}}, "plain"),
        ({"now": "x"}, "invalid literal"),
        ({"left_out": 3}, "left_out|items"),
    ],
)
def test_a_foreign_state_is_refused(change, what):
    state = {**evidence_to_dict(Evidence([Column("a", 0.1)])), **change}
    with pytest.raises((DataError, ConfigError), match=what):
        evidence_from_dict(state, "state.json")


def test_a_state_with_nan_is_refused():
    state = evidence_to_dict(Evidence([Column("a", 0.1)]))
    state["capitals"]["plain"][0][0][0] = math.nan
    with pytest.raises(DataError, match="NaN"):
        evidence_from_dict(state)


@pytest.mark.parametrize(
    "at, rows, what",
    [
        (0.0, {"a": 1.2}, "a is 1.2 in row 0, outside 0..1"),
        (0.0, {"a": -0.1}, "outside 0..1"),
        (0.0, {"s": -1.1}, "outside -1..1"),
        (0.0, {"a": math.inf}, "a is inf"),
        (0.0, {"b": 0.1}, r"unknown columns \['b'\]"),
        (math.nan, {"a": 0.1}, "1 of them not finite"),
        ([0.0, 1.0], {"a": 0.1}, "2 times for 1 rows"),
    ],
)
def test_bad_rows_are_refused_and_change_nothing(at, rows, what):
    e = Evidence([Column("a", 0.1), Column("s", 0.1, signed=True)])
    with pytest.raises(DataError, match=what):
        e.add(at, rows)
    assert not e.blocks.moments.any()


def test_a_missing_number_says_nothing_about_its_column():
    e = Evidence([Column("a", 0.1), Column("b", 0.1)])
    e.add(np.arange(600) / 5, [{"a": 0.5}] * 600)
    assert [r.rows for r in readings_of(e)] == [600, 0]
    assert log_evidence(e)[0][1] == 0


def test_no_rows_are_no_error():
    e = Evidence([Column("a", 0.1)])
    e.add(np.zeros(0), np.zeros((0, 1)))
    assert math.isnan(readings_of(e)[0].mean) and describe(readings_of(e)[0])["mean"] is None


def test_a_clock_that_leaps_back_loses_no_row_and_one_that_leaps_ahead_invents_none():
    e = Evidence([Column("a", 0.1)])
    for at in (100.0, 50.0, 5e6, 5e6 + 1):
        e.add(at, {"a": 0.5})
    assert e.blocks.moments[LEVELS, 0, 0] == 4 and e.blocks.moments[0, 0, 0] == 1


@pytest.mark.parametrize("columns, horizon", [([], 1), ([Column("a", 0.1)] * 2, 1), ([Column("a", 0.1)], 0)])
def test_evidence_needs_columns_and_a_horizon(columns, horizon):
    with pytest.raises(ConfigError, match="name of its own"):
        Evidence(columns, horizon)


@pytest.mark.parametrize("limit", [0, 1, -0.1, math.nan, "0.1", True])
def test_a_limit_lies_between_0_and_1(limit):
    with pytest.raises(ConfigError, match="not between 0 and 1"):
        Column("a", limit)


def test_a_bad_camera_among_ten_is_named_and_delays_by_the_logarithm_of_ten():
    column = [Column("a", 0.02)]
    good, bad = filled(column, np.zeros(3000)), filled(column, np.full(3000, 0.1))
    readings = {f"camera-{i}": readings_of(good)[0] for i in range(9)} | {"camera-9": readings_of(bad)[0]}
    beyond, within, worst = together(readings)
    assert worst == "camera-9"
    assert beyond == pytest.approx(readings["camera-9"].beyond - math.log(10), abs=0.01)
    assert within == readings["camera-9"].within < 0 < readings["camera-0"].within


def test_cameras_that_move_together_are_wrong_no_more_often():
    "Ten copies of one stream at the limit: the mean of their evidence is that of one."
    x = streams(5 * 1800, 0.1, 0.9, 100, seed=19).astype(float)
    e = Evidence([Column(f"s{i}", 0.1) for i in range(100)])
    e.add(np.arange(len(x)) / 5, x)
    beyond = log_evidence(e)[0]
    readings = readings_of(e)
    mean = [together({str(k): r for k in range(10)})[0] for r in readings]
    np.testing.assert_allclose(mean, beyond, atol=1e-9)
    assert (beyond >= PROOF).mean() <= 0.05


def exact_share(e):
    "The share of wins at which both bets are even, by the closed formula."
    return e.new / (e.new + e.old)


def test_labels_are_decided_by_their_share():
    e = LabelEvidence(0.0, 0.05)
    e.add(new=40, old=5)
    assert e.better > PROOF > e.worse
    e.add(old=120)
    assert e.worse > PROOF > e.better and exact_share(e) < 0.5


def test_labels_at_one_half_are_rarely_decided():
    rng, wrong = np.random.default_rng(5), 0
    for _ in range(200):
        won = rng.random(200) < 0.5
        n = np.arange(1, 201)
        wins = won.cumsum()
        e = LabelEvidence(0.0, 0.05)
        for k in range(9, 200, 10):
            e.new, e.old = int(wins[k]), int(n[k] - wins[k])
            if max(e.better, e.worse) >= math.log(40):
                wrong += 1
                break
    assert wrong / 200 <= 0.05


def test_a_small_disagreement_is_harmless_without_a_label():
    assert LabelEvidence(0.02, 0.02).harmless == math.inf
    assert LabelEvidence(0.02, 0.05).harmless == pytest.approx(0)


def test_the_allowed_loss_is_the_one_of_the_formula():
    "D (2q − 1) = −allowed at the share `least`."
    e = LabelEvidence(0.02, 0.05)
    assert e.least == pytest.approx(brentq(lambda q: 0.05 * (2 * q - 1) + 0.02, 0, 1))


@pytest.mark.parametrize("bad", [{"new": -1}, {"old": 1.5}, {"new": None}])
def test_labels_are_counted_in_whole_numbers(bad):
    with pytest.raises(DataError, match="whole numbers"):
        LabelEvidence().add(**bad)


@pytest.mark.parametrize("bad", [(-0.1, 0.5), (1.0, 0.5), (0.02, 0.0), (0.02, 1.5)])
def test_labels_need_shares(bad):
    with pytest.raises(ConfigError, match="0 < differ"):
        LabelEvidence(*bad)
