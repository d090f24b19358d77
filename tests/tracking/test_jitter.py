"The noise that a track measures of itself against least squares, and swings against their definition."

import numpy as np
import pytest

from cv_pipeline.tracking.jitter import (
    MEMORY,
    WINDOW,
    WORST_NOISE,
    WORST_SWING,
    JitterBook,
    jitter_columns,
    needed_margin,
    note_distance,
    note_swings,
)


def book_of(tracks, rules=1):
    book = JitterBook(**jitter_columns(rules))
    book.add(tracks)
    return book


def weighted_residual(times, values):
    "Squared next residual over its variance factor, by numpy's least squares; the last value is predicted."
    t, w = np.array(times[:-1]) - times[-1], (1 - 1 / WINDOW) ** np.arange(len(times) - 1)[::-1]
    design = np.stack([np.ones_like(t), t], axis=1)
    normal = design.T @ (design * w[:, None])
    line = np.linalg.solve(normal, design.T @ (w * np.array(values[:-1])))
    return (values[-1] - line[0]) ** 2 / (1 + np.linalg.inv(normal)[0, 0])


@pytest.mark.parametrize("seed", range(5))
def test_the_noise_is_the_mean_of_the_recursive_residuals_of_a_weighted_line(seed):
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.uniform(0.02, 0.5, 20))
    values = 30 * times + rng.normal(0, 3, 20)
    book = book_of(1)
    for t, d in zip(times, values):
        note_distance(book, np.arange(1), np.array([[d]]), np.full((1, 1), 1e4), float(t))
    wanted = np.mean([weighted_residual(times[: n + 1], values[: n + 1]) for n in range(2, 20)])
    assert book.noise[0, 0] == pytest.approx(wanted, rel=1e-6)


def test_a_straight_way_has_no_noise_and_rules_do_not_mix():
    book = book_of(2, rules=2)
    for k in range(40):
        distance = np.array([[2.0 * k - 30, np.nan], [5.0 * (-1) ** k, 7.0]])
        note_distance(book, np.arange(2), distance, np.full((2, 1), 100.0), k / 25)
    assert book.noise[0, 0] == pytest.approx(0, abs=1e-12) and book.measured[0, 1] == 0
    assert 20 < book.noise[1, 0] < 40 and book.noise[1, 1] == pytest.approx(0, abs=1e-12)


def test_what_is_far_from_the_border_is_not_measured():
    book = book_of(1)
    note_distance(book, np.arange(1), np.array([[301.0]]), np.full((1, 1), 100.0), 0.0)
    note_distance(book, np.arange(0), np.zeros((0, 1)), np.zeros((0, 1)), 0.1)
    assert book.measured[0, 0] == 0


@pytest.mark.parametrize(
    "sigma, wanted", [(0.0, 0.12), (0.02, 0.12), (0.06, 4.5 * 0.06), (0.5, 4.5 * WORST_NOISE)]
)
def test_the_margin_is_the_least_or_the_noise_and_never_more_than_believed(sigma, wanted):
    rng, book, size = np.random.default_rng(0), book_of(500), np.full((500, 1), 100.0)
    for k in range(MEMORY + 20):
        distance = rng.normal(0, sigma * 100, (500, 1))
        note_distance(book, np.arange(500), distance, size, k / 25)
    margin = needed_margin(book, np.arange(500), size, 0.12)
    assert np.median(margin) == pytest.approx(
        wanted * 100, rel=0.08
    )  # two noises of the least margin are mixed in
    assert margin.min() >= 12 and margin.max() <= 4.5 * WORST_NOISE * 100 + 1e-9
    assert (needed_margin(book, np.arange(500), size, 0) == 0).all()


@pytest.mark.parametrize("peak, seconds, swing", [(0.2, 1, 0.2), (0.2, 5, 0), (0.6, 1, 0)])
def test_a_swing_comes_back_soon_and_is_small(peak, seconds, swing):
    book, size, none = book_of(1), np.full((1, 1), 50.0), np.zeros((1, 1), bool)
    for now, far in ((10.0, 0.1), (10.0 + seconds / 2, peak), (10.0 + seconds, -0.3)):
        distance = np.array([[far * 50]])
        note_swings(book, np.arange(1), distance > 0, none, distance, size, now)
    assert book.swing[0, 0] == pytest.approx(swing) and book.peak[0, 0] == 0
    margin = needed_margin(book, np.arange(1), size, 0.12)[0, 0]
    assert margin == pytest.approx(max(0.12, min(2 * swing, WORST_SWING)) * 50)


def test_a_side_that_changes_back_at_once_was_a_swing():
    book, size, flip = book_of(2), np.full((2, 1), 50.0), np.ones((2, 1), bool)
    for now in (np.array([10.0, 10.0]), np.array([13.0, 70.0])):
        for row in range(2):
            note_swings(
                book, np.array([row]), flip[:1], flip[:1], np.array([[9.0]]), size[:1], float(now[row])
            )
    assert book.swing[:, 0].tolist() == [pytest.approx(0.18), 0]
