"""Metres on the ground: exact on true points, error bars that hold in simulation, points without a plane."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError
from cv_pipeline.synthetic.incidents import yard_pixels
from cv_pipeline.tracking.ground import (
    LEAST_JITTER,
    Ground,
    distance_between,
    ground_problem,
    jitter_of,
    speeds,
)

KNOWN = np.array([[-3, 5], [3, 5], [4, 14], [-4, 14]], float)
TIMES = np.arange(20) / 10


def floor(metres):
    metres = np.asarray(metres, float)
    return yard_pixels(np.concatenate([metres, np.zeros((*metres.shape[:-1], 1))], axis=-1))[0]


def walker(begin, velocity, times=TIMES):
    return floor(np.asarray(begin) + np.outer(times, velocity))


@settings(deadline=None, max_examples=40)
@given(x=st.floats(-6, 6), y=st.floats(5, 25))
def test_metres_and_pixels_are_each_others_inverse(x, y):
    ground = Ground(floor(KNOWN), KNOWN)
    assert np.allclose(ground.to_metres(floor([[x, y]])), [[x, y]], atol=1e-6)
    assert np.allclose(ground.to_pixels(np.array([[x, y]])), floor([[x, y]]), atol=1e-5)


def test_the_slopes_are_the_derivatives():
    ground, point, step = Ground(floor(KNOWN), KNOWN), floor([[1.5, 9.0]]), 1e-4
    by_point, by_plane = ground.slopes(point)
    for k in range(2):
        moved = point + step * np.eye(2)[k]
        assert np.allclose(
            (ground.to_metres(moved) - ground.to_metres(point)) / step, by_point[:, :, k], rtol=1e-3
        )
    h = ground.h.copy()
    for k in range(8):
        ground.h = h + 1e-6 * np.eye(8)[k]
        up = ground.to_metres(point)
        ground.h = h - 1e-6 * np.eye(8)[k]
        assert np.allclose((up - ground.to_metres(point)) / 2e-6, by_plane[:, :, k], rtol=1e-3, atol=1e-6)


def test_the_covariance_is_that_of_planes_through_points_with_errors():
    rng, planes = np.random.default_rng(0), []
    true = Ground(floor(KNOWN), KNOWN, 1.0, 0.02)
    for _ in range(1500):
        image, metres = floor(KNOWN) + rng.normal(0, 1, (4, 2)), KNOWN + rng.normal(0, 0.02, (4, 2))
        planes.append(Ground(image, metres).to_metres(floor([[1.0, 9.0]]))[0])
    _, by_plane = true.slopes(floor([[1.0, 9.0]]))
    expected = np.sqrt(np.diag(by_plane[0] @ true.covariance @ by_plane[0].T))
    assert np.allclose(np.std(planes, axis=0), expected, rtol=0.12)


@pytest.mark.parametrize(
    "jitter, point_px, speed, y", [(2.0, 1.0, 1.4, 8), (1.0, 3.0, 8.0, 12), (4.0, 0.5, 5.0, 16)]
)
def test_speeds_lie_within_their_bars(jitter, point_px, speed, y):
    rng, inside, n = np.random.default_rng(3), 0, 300
    for _ in range(n):
        angle = rng.uniform(0, 2 * np.pi)
        ground = Ground(
            floor(KNOWN) + rng.normal(0, point_px, (4, 2)),
            KNOWN + rng.normal(0, 0.02, (4, 2)),
            point_px,
            0.02,
        )
        way = walker([0, y], speed * np.array([np.cos(angle), np.sin(angle)]), TIMES - 1)
        found = speeds(
            ground, TIMES[None], (way + rng.normal(0, jitter, way.shape))[None], np.ones((1, 20), bool)
        )
        inside += abs(found.value[0] - speed) <= 1.96 * found.error[0]
    assert 0.91 <= inside / n <= 0.995


def test_who_stands_does_not_run():
    rng, ground = np.random.default_rng(1), Ground(floor(KNOWN), KNOWN)
    spot = np.repeat(floor([[0.0, 12.0]]), 20, axis=0)
    shaken = np.stack([spot + rng.normal(0, 2, spot.shape) for _ in range(50)])
    found = speeds(ground, np.tile(TIMES, (50, 1)), shaken, np.ones((50, 20), bool))
    assert np.median(found.value) < 0.15 and (found.value - 1.96 * found.error > 1.0).sum() == 0


def test_errors_of_a_plane_cancel_between_points_that_are_near():
    ground = Ground(floor(KNOWN), KNOWN, point_px=4.0)
    near = distance_between(ground, floor([[0, 9.0]]), floor([[0.5, 9.0]]), 0.0)
    far = distance_between(ground, floor([[-3, 9.0]]), floor([[3, 9.0]]), 0.0)
    assert np.isclose(near.value[0], 0.5) and np.isclose(far.value[0], 6.0)
    assert near.error[0] < far.error[0] / 4


def test_perspective_is_not_jitter():
    ground, used = Ground(floor(KNOWN), KNOWN), np.ones((1, 20), bool)
    away = walker([0, 6], [0, 6])[None]
    assert jitter_of(TIMES[None], ground.to_metres(away), ground.slopes(away)[0], used)[0] == LEAST_JITTER
    shaken = away + np.random.default_rng(0).normal(0, 3, away.shape)
    assert 2 < jitter_of(TIMES[None], ground.to_metres(shaken), ground.slopes(shaken)[0], used)[0] < 4


def test_few_places_have_no_speed_and_the_least_jitter():
    ground, used = Ground(floor(KNOWN), KNOWN), np.zeros((1, 20), bool)
    used[0, :3] = True
    way = walker([0, 9], [1, 0])[None]
    found = speeds(ground, TIMES[None], way, used)
    assert np.isnan(found.value[0]) and np.isinf(found.error[0])
    assert jitter_of(TIMES[None], ground.to_metres(way), ground.slopes(way)[0], used)[0] == LEAST_JITTER


def test_above_the_horizon_is_nowhere():
    assert np.isnan(Ground(floor(KNOWN), KNOWN).to_metres(np.array([[480.0, -2000.0]]))).all()


@pytest.mark.parametrize(
    "image, metres, text",
    [
        ([[0, 0], [1, 1], [2, 2], [3, 3]], KNOWN, "three of the four points lie on one line"),
        ([[0, 0], [1, 1], [2, 2], [0, 9]], KNOWN, "three of the four points lie on one line"),
        (floor(KNOWN), [[0, 0], [1, 0], [2, 0], [0, 9]], "metres: three of the four points lie on one line"),
        ([[0, 0], [9, 0], [9, 9]], KNOWN, "must be four points"),
        ([[0, 0], [9, 0], [9, 9], [0, float("nan")]], KNOWN, "must be four points"),
        ([[5, 5]] * 4, KNOWN, "three of the four points lie on one line"),
    ],
)
def test_points_that_span_no_plane(image, metres, text):
    assert text in str(ground_problem(image, metres))
    with pytest.raises(ConfigError, match="not a ground plane"):
        Ground(image, metres)
