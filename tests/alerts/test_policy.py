"Who is called, and when: ladders, hours, windows, and every mistake of a file."

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.alerts.policy import (
    Hours,
    Level,
    Step,
    Subject,
    Window,
    days_of,
    due_steps,
    hours_until,
    maintenance_until,
    quiet_until,
    read_policy,
    step_after,
)
from cv_pipeline.core.types import ConfigError

UTC = ZoneInfo("UTC")
GATE = Subject("brno", "gate", "fence")
DESK = {"desk": {"kind": "webhook", "url": "http://127.0.0.1/x"}}
LEVELS = [{"after_s": 0, "channels": ["desk"], "repeat_s": 60}]


def wall(text, zone=UTC):
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


def policy(**more):
    return read_policy({"channels": DESK, "levels": LEVELS, **more})


def problems(**more):
    with pytest.raises(ConfigError) as caught:
        policy(**more)
    return "\n".join(caught.value.problems)


def naive_steps(ladder, until):
    "Every call up to a time, one after the other."
    made, step = [], step_after(ladder)
    while step is not None and step.after_s <= until:
        made.append(step)
        step = step_after(ladder, step)
    return made


LADDERS = st.lists(
    st.tuples(st.integers(1, 50), st.one_of(st.none(), st.integers(1, 20))), min_size=1, max_size=4
).map(
    lambda rows: tuple(
        Level(after_s=sum(r[0] for r in rows[: k + 1]), channels=("desk",), repeat_s=every)
        for k, (_, every) in enumerate(rows)
    )
)


@settings(max_examples=60, deadline=None)
@given(LADDERS, st.floats(0, 400), st.floats(1, 60))
def test_what_is_due_is_the_newest_or_all_that_are_fresh(ladder, elapsed, late):
    every = naive_steps(ladder, elapsed)
    fresh = [s for s in every if s.after_s >= elapsed - late]
    assert due_steps(ladder, None, elapsed, late) == (fresh or every[-1:])


@settings(max_examples=40, deadline=None)
@given(LADDERS, st.lists(st.floats(0.1, 30), min_size=1, max_size=20))
def test_asked_often_every_call_is_made_once_in_order(ladder, pauses):
    now, last, made = 0.0, None, []
    for pause in pauses:
        now += pause
        for step in due_steps(ladder, last, now, 60.0):
            made.append(step)
            last = step
    assert made == naive_steps(ladder, now)


def test_a_year_of_repeats_is_found_at_once():
    ladder = (Level(after_s=0, channels=("desk",), repeat_s=1),)
    assert due_steps(ladder, None, 365 * 86_400.0, 1.0)[-1] == Step(0, 365 * 86_400, 365 * 86_400.0)


def test_a_ladder_that_ends_has_no_further_call():
    ladder = (Level(after_s=0, channels=("desk",), repeat_s="never"),)
    assert step_after(ladder, Step(0, 0, 0.0)) is None


@pytest.mark.parametrize(
    ("text", "days"),
    [("mon-fri", {0, 1, 2, 3, 4}), ("sat, sun", {5, 6}), ("fri-mon", {4, 5, 6, 0}), ("Monday", {0})],
)
def test_days(text, days):
    assert days_of(text) == days


@pytest.mark.parametrize(
    ("at", "until"),
    [
        ("2026-06-05T21:59", None),
        ("2026-06-05T22:00", "2026-06-06T06:00"),
        ("2026-06-06T05:59", "2026-06-06T06:00"),
        ("2026-06-06T06:00", None),
        ("2026-06-06T23:00", None),  # a Saturday: its night does not begin
        ("2026-06-08T05:00", None),  # the night of Sunday did not begin
    ],
)
def test_a_night_belongs_to_the_day_on_which_it_begins(at, until):
    night = Hours(days="mon-fri", begin="22:00", end="06:00")
    assert hours_until(night, wall(at), UTC) == (until and wall(until))


@pytest.mark.parametrize(("day", "hours"), [("2026-03-28", 7), ("2026-10-24", 9), ("2026-06-01", 8)])
def test_summer_time_makes_a_night_shorter_or_longer(day, hours):
    zone = ZoneInfo("Europe/Prague")
    begin = wall(f"{day}T22:00", zone)
    assert hours_until(Hours(begin="22:00", end="06:00"), begin, zone) - begin == hours * 3600


def test_severe_calls_pass_quiet_hours():
    made = policy(quiet=[{"from": "22:00", "to": "06:00", "below": "critical"}])
    at = wall("2026-06-05T23:00")
    assert quiet_until(made, "warning", at) == wall("2026-06-06T06:00")
    assert quiet_until(made, "critical", at) is None


def test_quiet_hours_that_touch_and_overlap_are_one():
    quiet = [
        {"from": "20:00", "to": "23:00"},
        {"from": "22:00", "to": "02:00"},
        {"from": "02:00", "to": "05:00"},
    ]
    assert quiet_until(policy(quiet=quiet), "info", wall("2026-06-05T21:00")) == wall("2026-06-06T05:00")


def test_windows_that_overlap_end_together_and_name_the_reason():
    once = {"since": "2026-06-05T08:00", "until": "2026-06-05T10:00", "why": "crane"}
    later = {"since": "2026-06-05T09:30", "until": "2026-06-05T12:00", "why": "paint"}
    made = policy(maintenance=[once, later])
    assert maintenance_until(made, GATE, wall("2026-06-05T08:30")) == (wall("2026-06-05T12:00"), "crane")
    assert maintenance_until(made, GATE, wall("2026-06-05T12:00")) is None


def test_a_window_is_about_its_subjects():
    made = policy(
        maintenance=[{"cameras": ["gate*"], "rules": ["fence"], "why": "x", "from": "08:00", "to": "09:00"}]
    )
    at = wall("2026-06-05T08:30")
    assert maintenance_until(made, GATE, at) is not None
    assert maintenance_until(made, GATE._replace(rule="door"), at) is None
    assert maintenance_until(made, GATE._replace(camera="yard"), at) is None


def test_silences_count_as_windows():
    silence = Window(
        cameras=("gate",), why="stocktaking", since=datetime(2026, 6, 5), until=datetime(2026, 6, 6)
    )
    assert maintenance_until(policy(), GATE, wall("2026-06-05T08:30"), [silence])[1] == "stocktaking"


def test_the_first_route_counts():
    routes = [{"cameras": ["gate"], "severity": "critical"}, {"severity": "info"}]
    made = policy(routes=routes)
    assert (made.route(GATE).severity, made.route(GATE._replace(camera="x")).severity) == ("critical", "info")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"levels": []}, "has no level"),
        ({"levels": [{"after_s": 0, "channels": ["desk"]}]}, "has no last level"),
        ({"levels": [{**LEVELS[0], "channels": []}]}, "levels.0.channels"),
        ({"levels": [{**LEVELS[0], "channels": ["dsk"]}]}, "'dsk' is unknown; did you mean 'desk'"),
        ({"levels": [{**LEVELS[0], "repeat_s": 0.01}]}, "at most once a second"),
        ({"levels": [LEVELS[0], LEVELS[0]]}, "must grow from level to level"),
        ({"levels": [{**LEVELS[0], "after_s": -1}]}, "greater than or equal to 0"),
        ({"ladders": {"night": []}}, "ladders.night: has no level"),
        ({"routes": [{"ladder": "nigt"}], "ladders": {"night": LEVELS}}, "did you mean 'night'"),
        ({"channels": {"desk": {"kind": "pigeon"}}}, "kind must be one of webhook"),
        ({"channels": {}}, "channels"),
        ({"timezone": "Europe/Brno"}, "is not a time zone"),
        ({"quiet": [{"from": "6", "to": "7"}]}, "HH:MM"),
        ({"quiet": [{"days": "someday"}]}, "list of days"),
        (
            {"quiet": [{"from": "06:00", "to": "18:00"}, {"from": "18:00", "to": "06:00"}]},
            "would wait for ever",
        ),
        ({"maintenance": [{"why": "x"}]}, "never ends"),
        ({"maintenance": [{"why": "x", "since": "2026-06-05T08:00"}]}, "belong together"),
        (
            {"maintenance": [{"why": "x", "since": "2026-06-05T08:00", "until": "2026-06-05T07:00"}]},
            "ends before it begins",
        ),
        ({"maintenance": [{"from": "08:00", "to": "09:00", "why": ""}]}, "why"),
        ({"ack_hours": 0}, "ack_hours"),
        ({"late": 5}, "late: Extra inputs"),
    ],
)
def test_a_mistake_is_named(more, text):
    assert text in problems(**more)


def test_windows_that_close_a_ring_only_together():
    ring = [{"from": "00:00", "to": "13:00", "why": "a"}, {"from": "12:00", "to": "01:00", "why": "b"}]
    assert "never ends" in problems(maintenance=ring)
    apart = [{**ring[0], "cameras": ["a"]}, {**ring[1], "cameras": ["b"]}]
    assert policy(maintenance=apart).maintenance[0].why == "a"


def test_several_mistakes_are_listed_at_once():
    found = problems(levels=[{"after_s": 0, "channels": ["x"]}], timezone="UTC", routes=[{"ladder": "y"}])
    assert found.count("\n") == 2


def test_secrets_in_a_wrong_place_are_not_shown():
    planted = "-".join(["planted", "value", "17"])
    heartbeat = {"url": f"https://a:{planted}@b", "x": 1}
    assert planted not in problems(channels={"desk": {"kind": "webhook"}}, heartbeat=heartbeat)


def test_a_file_that_is_not_yaml(tmp_path):
    (tmp_path / "p.yaml").write_text("channels: [")
    with pytest.raises(ConfigError, match="invalid YAML"):
        read_policy(tmp_path / "p.yaml")
