"""Hours of a place: night shifts, holidays, the two days a year on which the clock jumps."""

from datetime import date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cv_pipeline.core.config import HoursSection
from cv_pipeline.core.types import ConfigError
from cv_pipeline.tracking.hours import Schedules, place_of, within_hours

BERLIN = place_of("Europe/Berlin")


def hours(**more):
    return HoursSection(**{"name": "h", "timezone": "Europe/Berlin", **more})


def local(*at):
    return datetime(*at, tzinfo=BERLIN)


@pytest.mark.parametrize(
    "at, within",
    [
        ((2026, 6, 5, 21, 59), False),
        ((2026, 6, 5, 22, 0), True),
        ((2026, 6, 6, 5, 59), True),  # Saturday morning is Friday's night
        ((2026, 6, 6, 6, 0), False),
        ((2026, 6, 6, 23, 0), False),
        ((2026, 6, 5, 3, 0), False),  # Thursday's night
    ],
)
def test_a_night_belongs_to_the_day_on_which_it_begins(at, within):
    assert within_hours(hours(start="22:00", end="06:00", days=["fri"]), local(*at)) is within


def test_a_holiday_closes_its_day_and_the_night_that_begins_on_it():
    shift = hours(start="22:00", end="06:00", holidays=[date(2026, 12, 24)])
    assert not within_hours(shift, local(2026, 12, 24, 23)) and not within_hours(
        shift, local(2026, 12, 25, 5)
    )
    assert within_hours(shift, local(2026, 12, 24, 5)) and within_hours(shift, local(2026, 12, 25, 23))


def minutes_within(section, day):
    start = datetime(*day, tzinfo=timezone.utc)
    return sum(within_hours(section, start + timedelta(minutes=m)) for m in range(1440))


@pytest.mark.parametrize("day, minutes", [((2026, 3, 29), 0), ((2026, 10, 25), 120), ((2026, 6, 1), 60)])
def test_the_hour_that_is_left_out_and_the_one_that_comes_again(day, minutes):
    assert minutes_within(hours(start="02:00", end="03:00"), day) == minutes


@pytest.mark.parametrize(
    "day, minutes", [((2026, 3, 29), 7 * 60), ((2026, 10, 25), 9 * 60), ((2026, 6, 1), 8 * 60)]
)
def test_a_night_shift_is_as_long_as_the_clock_makes_it(day, minutes):
    shift = hours(start="22:00", end="06:00")
    noon_before = datetime(*day, 10, tzinfo=timezone.utc) - timedelta(days=1)
    assert sum(within_hours(shift, noon_before + timedelta(minutes=m)) for m in range(1440)) == minutes


@given(
    start=st.integers(0, 23),
    end=st.integers(0, 24),
    when=st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31), timezones=st.just(timezone.utc)),
)
def test_outside_is_everything_else(start, end, when):
    given_hours = {"start": f"{start:02d}:00", "end": f"{end:02d}:00"}
    inside = within_hours(hours(**given_hours), when)
    assert within_hours(hours(**given_hours, outside=True), when) is not inside


def test_all_day_is_all_day_and_schedules_agree():
    section = hours()
    assert all(within_hours(section, local(2026, 10, 25) + timedelta(hours=h)) for h in range(30))
    many = Schedules([hours(name="a", start="08:00", end="09:00"), hours(name="b", days=["sun"])])
    for minute in range(0, 3 * 1440, 7):
        at = datetime(2026, 6, 6, tzinfo=timezone.utc) + timedelta(minutes=minute)
        assert many.at(at) == {n: within_hours(h, at) for n, h in many._hours.items()}


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../../etc/passwd", "/etc/passwd", "Europe"])
def test_unknown_time_zones(name):
    with pytest.raises(ConfigError, match="unknown time zone"):
        place_of(name)


def test_yaml_reads_ten_in_the_evening_as_a_number():
    assert hours(start=1320).start == "22:00"


@pytest.mark.parametrize("start", ["24:30", "7:00", "-1:00", "noon", -60, True, 3000])
def test_clock_times_that_do_not_exist(start):
    with pytest.raises(ValidationError, match="HH:MM"):
        hours(start=start)
