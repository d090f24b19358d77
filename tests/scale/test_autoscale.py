"Copies that come and go: what a Kubernetes autoscaler would do, second by second."

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError
from cv_pipeline.scale.autoscale import (
    Behaviour,
    Hours,
    Policy,
    policies_for,
    simulate_copies,
    two_shifts,
)

POLICIES = st.builds(
    Policy,
    busy=st.none() | st.floats(0.1, 0.9),
    backlog=st.none() | st.floats(1, 500),
    least=st.integers(0, 2),
    most=st.integers(2, 9),
)


@settings(max_examples=40, deadline=None)
@given(POLICIES, st.lists(st.floats(0, 300), min_size=60, max_size=900), st.floats(0, 120))
def test_what_comes_is_served_or_waits_and_copies_stay_within_their_limits(policy, arrivals, cold):
    day = np.array(arrivals)
    run = simulate_copies(day, 20.0, policy, cold)
    assert policy.least <= run.copies.min() and run.copies.max() <= policy.most
    assert 0 <= run.late <= 1 and run.copy_hours == pytest.approx(run.copies.sum() / 3600)
    assert run.waiting[-1] <= day.sum() + 1e-3 and run.waiting.min() >= 0
    served = day.cumsum() - run.waiting
    assert np.diff(served, prepend=0).max() <= 20.0 * policy.most + 1e-2


def test_a_steady_load_gets_the_copies_that_its_target_asks_for():
    for busy, wanted in ((0.5, 8), (0.8, 5)):
        run = simulate_copies(np.full(3600, 80.0), 20, Policy(busy=busy), 30)
        assert run.copies[-1] == wanted and run.waiting[-1] == 0


def test_fewer_copies_only_after_five_calm_minutes():
    day = np.concatenate([np.full(1200, 100.0), np.full(1200, 10.0)])
    copies = simulate_copies(day, 20, Policy(busy=0.5), 15).copies
    assert copies[1199] == 10 and copies[1200 + 290] == 10 and copies[-1] < 3
    first = int(np.flatnonzero(copies[1200:] < 10)[0])
    assert 300 <= first <= 330


def test_up_it_goes_by_twice_or_four_at_most_in_one_look():
    copies = simulate_copies(np.full(300, 5000.0), 20, Policy(busy=0.5, most=1000), 15).copies
    looks = copies[::15].astype(int)
    assert all(b <= max(2 * a, a + 4) for a, b in zip(looks, looks[1:])) and looks[-1] > 100


def test_a_copy_is_ready_after_its_cold_start():
    day = np.full(600, 40.0)
    quick, slow = (simulate_copies(day, 20, Policy(busy=0.5), cold) for cold in (1, 200))
    assert quick.longest_s < 60 < slow.longest_s and slow.late > quick.late


def test_without_a_copy_a_picture_waits_for_one_to_start():
    day = np.zeros(900)
    day[600] = 1.0
    run = simulate_copies(day, 20, Policy(backlog=10, least=0), cold_s=45)
    assert run.copies[0] == 0 and run.longest_s >= 45 and run.copies[630] == 1


def test_the_hours_of_the_day_hold_on_every_day():
    run = simulate_copies(np.zeros(2 * 86400), 20, Policy(busy=0.5, hours=(Hours(6, 22, 7),)), 30)
    for day in (0, 86400):
        assert run.copies[day + 7 * 3600] == 7 and run.copies[day + 3 * 3600] == 1


@pytest.mark.slow
def test_backlog_alone_is_at_least_five_times_as_late_as_two_signals_for_more_money():
    day = two_shifts()
    policies = policies_for(day, 50)
    for cold in (30, 90, 300):
        alone = simulate_copies(day, 50, policies["backlog 50"], cold)
        both = simulate_copies(day, 50, policies["busy .7 or backlog 50"], cold)
        ahead = simulate_copies(day, 50, policies["busy .5 or backlog 50, and the hours"], cold)
        assert alone.late > 5 * both.late and alone.copy_hours > 2 * both.copy_hours
        assert ahead.late < 0.002


def test_policies_fit_a_day_of_ones_own():
    quiet = policies_for(np.full(86400, 1.0), 50)
    assert next(iter(quiet.values())) == Policy.fixed(1)
    night = np.where((np.arange(86400) < 5 * 3600) | (np.arange(86400) >= 22 * 3600), 100.0, 1.0)
    hours = policies_for(night, 50)["busy .5 or backlog 50, and the hours"].hours
    assert hours == (Hours(0.0, 5.0, 4), Hours(21.75, 24.0, 4))


@pytest.mark.parametrize(
    ("arrivals", "rate", "cold"),
    [
        ([], 5, 1),
        ([math.nan], 5, 1),
        ([-1.0], 5, 1),
        ([[1.0]], 5, 1),
        ([1.0], 0, 1),
        ([1.0], math.inf, 1),
        ([1.0], 5, -1),
    ],
)
def test_what_is_no_day_is_an_error(arrivals, rate, cold):
    with pytest.raises(ConfigError):
        simulate_copies(np.array(arrivals), rate, Policy(), cold)


@pytest.mark.parametrize(
    "wrong",
    [
        {"busy": 0},
        {"busy": 1.0},
        {"busy": True},
        {"backlog": -1},
        {"least": -1},
        {"most": 0},
        {"least": 5, "most": 4},
    ],
)
def test_a_policy_that_is_none_is_an_error(wrong):
    with pytest.raises(ConfigError, match="scaling policy"):
        Policy(**wrong)


def test_another_behaviour_is_followed():
    day = np.concatenate([np.full(600, 100.0), np.full(600, 10.0)])
    copies = simulate_copies(day, 20, Policy(busy=0.5), 15, behaviour=Behaviour(down_s=30)).copies
    assert copies[600 + 120] < 5
