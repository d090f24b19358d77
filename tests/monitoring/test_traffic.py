"""Traffic: counts by hour with zeros, limits that hold, occupancy and stays that are cut off, ways and
speeds, tables for other tools, and the report."""

import csv
import io
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow.parquet as pq
import pytest

from cv_pipeline.core.files import read_json, write_json, write_whole
from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.monitoring.traffic import (
    LEAST_PAIRS,
    Change,
    HourCount,
    TrafficSettings,
    compare_periods,
    count_hours,
    example_traffic,
    example_ways,
    occupancy,
    ratio_of,
    read_audit_rates,
    read_hand_counts,
    stay_percentiles,
    traffic_of,
    traffic_rows,
    ways_of,
    with_intervals,
    write_traffic,
)
from cv_pipeline.reporting.runner import run_report
from cv_pipeline.tracking.watch import poisson_interval
from cv_pipeline.tracking.zones import Event
from cv_pipeline.video.events import table_of_events

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)


def event(kind, minutes, direction="in", rule="door", dwell=None, lost=False, track=1):
    at = NOON + timedelta(minutes=minutes)
    return Event(kind, "cam", rule, track, 0, "person", at, 1, direction, dwell, 0.0, 0.0, lost)


def hours(counts, start=NOON):
    return [HourCount("cam", "door", "in", start + timedelta(hours=h), int(c)) for h, c in enumerate(counts)]


# --- counts


def test_an_hour_without_anybody_is_a_zero_and_the_ends_are_half_open():
    events = [
        event("line_cross", 0),
        event("line_cross", 59.99),
        event("line_cross", 180),
        event("dwell", 61),
    ]
    rows = count_hours(events, NOON, NOON + timedelta(hours=3))
    assert [(r.hour.hour, r.count) for r in rows] == [(12, 2), (13, 0), (14, 0)]


def test_the_night_with_an_hour_more_has_twenty_five_of_them():
    since = datetime(2026, 10, 24, 22, tzinfo=timezone.utc)
    one = [replace(event("line_cross", 0), at=since)]
    rows = count_hours(one, since, since + timedelta(hours=25), "Europe/Berlin")
    assert [r.hour.hour for r in rows][:5] == [0, 1, 2, 2, 3] and rows[-1].hour.date() == rows[0].hour.date()


def test_kinds_and_directions_are_kept_apart():
    events = [event("zone_enter", 1), event("zone_leave", 2, "out"), event("line_cross", 3, "out", "gate")]
    rows = count_hours(events, NOON, NOON + timedelta(hours=1))
    assert [(r.rule, r.direction, r.count) for r in rows] == [
        ("door", "in", 1),
        ("door", "out", 1),
        ("gate", "out", 1),
    ]


# --- limits


def test_limits_of_a_ratio_hold_for_clustered_hours():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(400):
        camera = rng.poisson(rng.uniform(20, 150, 12))
        hand = rng.poisson(camera * 1.1 * rng.lognormal(0, 0.05, 12))
        found = ratio_of(hand, camera)
        inside += found.low <= 1.1 * np.exp(0.05**2 / 2) <= found.high
    assert 0.91 <= inside / 400 <= 0.985


def test_hours_counted_by_hand_cover_the_true_count_of_other_hours():
    rng, inside, n = np.random.default_rng(1), 0, 0
    for _ in range(60):
        truth = rng.poisson(rng.uniform(20, 150, 40))
        rows = hours(rng.binomial(truth, 0.9) + rng.poisson(1, 40))
        hand = {(*r.key, r.hour): int(t) for r, t in zip(rows[:12], truth)}
        made, why = with_intervals(rows, hand)
        inside += sum(r.low <= t <= r.high for r, t in zip(made[12:], truth[12:]))
        n += 28
    assert "12 hours counted by hand" in why and 0.9 <= inside / n <= 0.99


def audited(tmp_path, verdict="SUFFICIENT", **camera):
    "audit_result.json of one camera, as `audit score` writes it."
    row = {"looks": 60, "objects": 200, **camera}
    for name, (value, low, high) in {"precision": (0.95, 0.92, 0.98), "recall": (0.9, 0.86, 0.94)}.items():
        row |= {name: value, f"{name}_low": low, f"{name}_high": high, f"{name}_n": 60.0}
    by_camera = {"cam": {**row, **camera}, "blind": {**row, "recall": None, "recall_low": None}}
    result = {"format": "cv_pipeline audit result 1", "verdict": verdict, "reason": "60 frames of 9,000"}
    return write_json(tmp_path / "audit_result.json", {**result, "by_camera": by_camera}).parent


def test_an_audit_gives_limits_of_the_true_count(tmp_path):
    rates = read_audit_rates(audited(tmp_path))
    rows = [HourCount("cam", "door", "in", NOON, 1000), HourCount("yard", "door", "in", NOON, 1000)]
    (a, b), why = with_intervals(rows, None, rates)
    middle = 1000 * 0.95 / 0.9
    chance = 1.96**2 * 1000 * (0.95 * 0.05 + 0.95 * 0.1) / 0.81
    assert a.low == pytest.approx(middle - ((middle - 920 / 0.94) ** 2 + chance) ** 0.5)
    assert a.high == pytest.approx(middle + ((980 / 0.86 - middle) ** 2 + chance) ** 0.5)
    assert (b.low, b.high) == poisson_interval(1000)
    assert "cam 1.056, yard not audited" in why and "60 frames of 9,000" in why


def test_hours_by_hand_come_before_an_audit_and_an_insufficient_audit_serves_nobody(tmp_path):
    rows = [HourCount("cam", "door", "in", NOON + timedelta(hours=h), 50) for h in range(10)]
    hand = {(*r.key, r.hour): 55 for r in rows}
    assert "10 hours counted by hand" in with_intervals(rows, hand, read_audit_rates(audited(tmp_path)))[1]
    poor = read_audit_rates(audited(tmp_path, verdict="INSUFFICIENT"))
    made, why = with_intervals(rows, None, poor)
    assert "the audit does not serve: 60 frames" in why and (made[0].low, made[0].high) == poisson_interval(
        50
    )


def test_a_camera_whose_recall_is_not_known_has_no_rates(tmp_path):
    assert set(read_audit_rates(audited(tmp_path)).cameras) == {"cam"}


@pytest.mark.parametrize("text", ["[]", "{}", '{"by_camera": 3, "verdict": "SUFFICIENT", "reason": ""}', "{"])
def test_what_is_no_result_of_an_audit_is_an_error_with_the_file(tmp_path, text):
    write_whole(tmp_path / "audit_result.json", text)
    with pytest.raises(DataError, match="not the result of an audit") as caught:
        read_audit_rates(tmp_path)
    assert "audit_result.json" in str(caught.value)


def test_too_few_hours_by_hand_correct_nothing_and_that_is_reported():
    rows = hours([10] * 24)
    hand = {(*r.key, r.hour): 20 for r in rows[: LEAST_PAIRS - 1]}
    made, why = with_intervals(rows, hand)
    assert "7 hours were counted by hand, 8 are needed" in why and made[0].low < 10 < made[0].high
    assert "errors of counting are not known" in with_intervals(rows)[1]


def test_weeks_are_compared_by_weekday():
    rng = np.random.default_rng(2)
    level = np.array([100, 90, 95, 110, 160, 220, 40])
    days = lambda first, times: [
        HourCount("cam", "door", "in", NOON + timedelta(days=first + d), int(c))
        for d, c in enumerate(rng.poisson(times * level))
    ]
    wrong = sum(
        compare_periods(days(7, 1.0), days(0, 1.0))[0].verdict != "not distinguishable" for _ in range(200)
    )
    assert wrong <= 20
    (more,) = compare_periods(days(7, 1.5), days(0, 1.0))
    assert more.verdict == "more" and more.how == "7 pairs of weekdays" and more.low < 1.5 < more.high


def test_a_few_days_are_judged_by_counting_noise_and_that_is_reported():
    (change,) = compare_periods(hours([100]), hours([50], NOON - timedelta(days=7)))
    assert change.how == "counting noise alone" and change.verdict == "more" and change.low < 2 < change.high
    (new,) = compare_periods(hours([3]), [replace(h, count=0) for h in hours([3], NOON - timedelta(days=7))])
    assert new.ratio == float("inf") and new.high == float("inf")
    assert compare_periods([], hours([1])) == []


def test_less_is_less():
    assert Change("a", "b", "in", 1, 9, 0.1, 0.0, 0.9, "").verdict == "less"


# --- inside


def test_occupancy_is_the_integral_of_who_is_in():
    events = [event("zone_enter", 0), event("zone_enter", 30), event("zone_leave", 90, "out")]
    one, two = occupancy(events, NOON, NOON + timedelta(hours=2))
    assert (one.mean, one.most, two.mean, two.most) == (1.5, 2, 1.5, 2)


def test_who_was_in_before_the_first_event_is_counted():
    (hour,) = occupancy([event("zone_leave", 30, "out")], NOON, NOON + timedelta(hours=1))
    assert (hour.mean, hour.most) == (0.5, 1)


def test_stays_that_are_cut_off_do_not_make_the_others_short():
    rng = np.random.default_rng(0)
    stays, cut = rng.exponential(60, 4000), rng.exponential(60, 4000)
    seen, lost = np.minimum(stays, cut), cut < stays
    assert abs(stay_percentiles(seen, lost, (0.5,))[0] - 60 * np.log(2)) < 3
    assert abs(np.median(seen[~lost]) - 60 * np.log(2)) > 10


def test_stays_without_any_cut_are_plain_quantiles_and_what_was_not_reached_is_not_known():
    assert stay_percentiles([1, 2, 3, 4], [False] * 4, (0.5, 1.0)) == [2.0, 4.0]
    assert (
        np.isnan(stay_percentiles([1, 2], [False, True], (0.9,))[0]) and np.isnan(stay_percentiles([], []))[0]
    )


# --- ways


def test_the_yards_walkers_walk_and_its_seconds_are_those_of_the_film():
    yard = example_ways(300)["yard"]
    speed, error = np.array(yard.speed), np.array(yard.error)
    moving = speed > 3 * error
    assert moving.sum() > 10 and 0.8 < np.median(speed[moving]) < 2.0
    assert 60 < yard.seconds.sum() < 60 * 15 and yard.seconds.shape == (34, 60)


def test_a_run_without_boxes_has_no_ways(tmp_path):
    with pytest.raises(DataError, match="there are no results"):
        ways_of(tmp_path)


# --- the whole


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    return example_traffic(tmp_path_factory.mktemp("door"))


UNTIL, BERLIN = datetime(2026, 6, 14, 22, tzinfo=timezone.utc), TrafficSettings("Europe/Berlin")


def test_the_made_weeks(door):
    traffic = traffic_of(door, UNTIL, BERLIN)
    assert len([r for r in traffic.hours if r.key == ("door", "entrance", "in")]) == 7 * 24
    change = next(c for c in traffic.changes if (c.rule, c.direction) == ("entrance", "in"))
    assert change.low < 1.1 < change.high and change.now > 1000
    (stay,) = traffic.stays
    assert 170 < stay["median s"] < 240 and 0.1 < stay["cut off"] < 0.2 and traffic.ways == {}
    rows = traffic_rows(traffic)
    assert sum(r["count"] for r in rows) == sum(r.count for r in traffic.hours) and "×" in rows[0]["change"]


def test_whole_days_when_no_end_is_given(door):
    traffic = traffic_of(door, None, TrafficSettings("Europe/Berlin", 1))
    assert traffic.until - traffic.since == timedelta(days=1)
    assert traffic.until.astimezone(traffic.hours[0].hour.tzinfo).hour == 0


def test_tables_for_other_tools_hold_the_same_and_no_formula(door, tmp_path):
    traffic = traffic_of(door, UNTIL, BERLIN)
    traffic.hours = [replace(r, rule="=cmd|' /c calc'!A1") for r in traffic.hours[:5]]
    files = {p.name: p for p in write_traffic(traffic, tmp_path)}
    assert {"hours.csv", "hours.parquet", "occupancy.csv", "stays.csv", "changes.parquet"} <= set(files)
    rows = list(csv.DictReader(io.StringIO(files["hours.csv"].read_text())))
    assert rows[0]["rule"].startswith("'=") and rows[0]["hour"].endswith("+02:00")
    table = pq.read_table(files["hours.parquet"]).to_pylist()
    assert [r["count"] for r in table] == [int(r["count"]) for r in rows] == [r.count for r in traffic.hours]


def test_a_run_without_events(tmp_path):
    write_whole(tmp_path / "events.parquet", lambda f: pq.write_table(table_of_events([]), f))
    with pytest.raises(DataError, match="no events of zones and lines"):
        traffic_of(tmp_path)


@pytest.mark.parametrize(
    "text, words",
    [
        ("source,rule,direction,hour,count\n", "there are no counts"),
        ("source,rule,direction,hour,count\na,b,in,2026-06-01T08:00,3\n", "row 2 is not a count"),
        ("source,rule,direction,hour,count\na,b,in,2026-06-01T08:00+02:00,-3\n", "row 2 is not a count"),
        ("source,rule,direction,hour,count\na,b,in,2026-06-01T08:00+02:00,many\n", "row 2 is not a count"),
        ("a,b\n1,2\n", "row 2 is not a count"),
    ],
)
def test_counts_by_hand_that_are_none(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        read_hand_counts(write_whole(tmp_path / "hand.csv", text))


def test_counts_by_hand_are_found_in_any_zone(tmp_path):
    text = "source,rule,direction,hour,count\ncam,door,in,2026-06-01T14:00+02:00,7\n"
    assert read_hand_counts(write_whole(tmp_path / "hand.csv", text)) == {("cam", "door", "in", NOON): 7}


@pytest.mark.parametrize(
    "settings, words", [({"days": 0}, "days: 0"), ({"timezone": "Mars"}, "unknown time zone")]
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ConfigError, match=words):
        TrafficSettings(**settings)


@pytest.mark.slow
def test_the_report_of_a_run(door, tmp_path):
    given = {"results": str(door), "until": UNTIL.isoformat(), "timezone": "Europe/Berlin"}
    report = run_report("traffic", given, root=tmp_path)
    page = (report.folder / "report.html").read_text()
    assert "this period beside the one before" in page and "errors of counting are not known" in page
    assert read_json(report.folder / "metrics.json")["stays"][0]["zone"] == "shop"
    assert (report.folder / "tables" / "hours.parquet").exists()
