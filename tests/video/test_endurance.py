"""Days of running in small: three simulated hours of two cameras; and whether growth would be seen."""

import os

import pytest

from tests.campaigns.endurance import outcomes, simulate
from tests.helpers.growth import growing, held, slope, unfinished


@pytest.mark.slow
def test_hours_of_cameras_leave_nothing_behind_but_finished_hours(tmp_path):
    samples, counted = simulate(tmp_path, hours=2.5, cameras=2, every_s=40, film=False)
    wrong = [outcome for outcome in outcomes(samples, counted, cameras=2) if outcome.wrong]
    assert wrong == [] and counted["hours"] == 3 and len(samples) == 2


def test_growth_is_seen_and_noise_is_not():
    assert growing([100 + 2 * hour for hour in range(24)], 24)
    assert growing([100] * 12 + [200] + [100] * 11, 24)
    assert not growing([100 + hour % 7 for hour in range(24)], 24)
    assert slope([5, 6, 7, 8]) == pytest.approx(3)


def test_what_a_process_holds_is_read_from_the_system(tmp_path):
    before = held(os.getpid(), 0, tmp_path)
    with open(tmp_path / "x", "w"), open(tmp_path / "y", "w"):
        during = held(os.getpid(), 0, tmp_path)
    assert (during.descriptors - before.descriptors, during.files) == (2, 2)
    assert during.threads >= 1 and during.rss_mb > 20


def test_finished_hours_are_not_counted(tmp_path):
    for name in (
        "results/2026-11-28T10.parquet",
        "results/2026-11-28T11.parts/part-000000.parquet",
        "results.jsonl",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(p.name for p in unfinished(tmp_path)) == ["part-000000.parquet", "results.jsonl"]
