"""The study of the seasons in miniature: streams, rows, tables, and its intervals against scipy."""

import json
from argparse import Namespace

import numpy as np
import pytest
from scipy.stats import binomtest

from tests.benchmarks.try_seasons import (
    ALL,
    CALENDARS,
    PLANTED,
    cells,
    file_of,
    merged,
    moved,
    null_row,
    observed,
    periods,
    planted_row,
    psi,
    rate,
    run,
)


def asked(folder, **change):
    "Options of a call."
    usual = dict(part=["null"], reference=[14], window=[1], cameras=[2], only=["all together"], streams=1)
    return Namespace(**{**usual, "first": 0, "workers": 1, "rows": folder, **change})


@pytest.mark.parametrize("hits, n", [(0, 200), (1, 200), (10, 200), (200, 200), (3, 7)])
def test_intervals_are_the_exact_ones(hits, n):
    exact = binomtest(hits, n).proportion_ci(method="exact")
    assert rate(hits, n) == [round(hits / n, 4), round(exact.low, 4), round(exact.high, 4)]


def test_a_rate_of_nothing_is_not_a_number():
    assert rate(0, 0) == [None, None, None]


def test_the_grid_is_that_of_the_targets(tmp_path):
    made = cells(
        asked(tmp_path, part=["null", "planted", "few"], reference=[], window=[], cameras=[], only=[])
    )
    kinds = [key.split("|")[0] for key in made]
    assert kinds.count("null") == len(CALENDARS) * 3 * 2 + 3 * 2
    assert kinds.count("planted") == len(PLANTED) * 2
    assert kinds.count("few") == 4 and kinds.count("few planted") == 8
    assert len({file_of(tmp_path, key) for key in made}) == len(made)


def test_streams_begin_on_every_weekday():
    assert {moved(ALL, seed).start.weekday() for seed in range(7)} == set(range(7))


def test_periods_do_not_overlap_and_have_their_days():
    calendar = moved(CALENDARS["day and night"], 3)
    seen = observed(calendar, 9, 2)
    a, b = periods(seen, calendar.when(8).timestamp() + 7200, 7, 1)
    assert len(b) == 2 * 360 and len(a) == 2 * 7 * 360
    assert a.at.max() < b.at.min()
    assert b.at.max() < calendar.when(8).timestamp() + 7200


def test_psi_is_nothing_for_the_same_numbers_and_large_for_others():
    x = np.random.default_rng(0).standard_normal(5000)
    assert psi(x, x) == pytest.approx(0, abs=1e-12)
    assert psi(x, x + 1) > 0.5


@pytest.mark.slow
def test_a_stream_without_drift_and_one_with_a_step_give_their_rows():
    quiet = null_row(("all together", 7, 1, 2, 0))
    assert quiet["seed"] == 0 and quiet["verdict"] in ("GREEN", "AMBER", "GREY")
    dark = planted_row(("all cameras: brightness × .5", 14, 0, None, (24,)))
    assert dark["verdict"] in ("AMBER", "RED") and "image" in dark["alarms"]
    assert dark["hours"] == 24


@pytest.mark.slow
def test_parts_are_continued_and_merged(tmp_path):
    run(asked(tmp_path, streams=1))
    path = file_of(tmp_path, "null|all together|14|1|2")
    first = json.loads(path.read_text())["rows"]
    run(asked(tmp_path, streams=2))
    rows = json.loads(path.read_text())["rows"]
    assert [r["seed"] for r in rows] == [0, 1] and rows[0] == first[0]  # seconds included: not run again
    tables = merged(tmp_path)
    (row,) = tables["null"]
    assert row["streams"] == 2 and row["calendar"] == "all together"
    assert tables["planted"] == [] and tables["evidently"] is None
    assert row["GREY"][0] == sum(r["verdict"] == "GREY" for r in rows) / 2
