"""The calendar of the line against the clock of the standard library, closed formulas and simulation with
known truth; bad calendars are refused with what is wrong and where."""

from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, poisson

from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.synthetic.belt import LineConfig
from cv_pipeline.synthetic.calendar import (
    COLUMNS,
    DIMMED,
    EFFECTS,
    LOADS,
    Bank,
    Calendar,
    Event,
    batch_of,
    by_hour,
    class_weights,
    clock_of,
    conditions_at,
    darkness,
    drawn_weeks,
    effect_of,
    line_at,
    sunlight,
    traffic_at,
    weather_of,
    work_of,
)
from cv_pipeline.synthetic.conditions import CONDITION_NAMES
from cv_pipeline.synthetic.parts import CLASS_NAMES, seeded

FLAT = Calendar(sun=0, shifts=((0, 24, 1),), surge=0, differ=0)
DAY = 86_400.0


def hours_of(calendar, days, step=3600.0):
    "Moments from the calendar's beginning on."
    return calendar.when(0).timestamp() + np.arange(0, days * DAY, step)


@settings(max_examples=60, deadline=None)
@given(
    zone=st.sampled_from(
        ["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu"]
    ),
    day=st.integers(0, 364),
    second=st.integers(0, 86_399),
)
def test_the_clock_is_that_of_the_standard_library(zone, day, second):
    calendar = Calendar(start=date(2026, 1, 1), timezone=zone)
    at = datetime(2026, 1, 2, tzinfo=timezone.utc).timestamp() + day * DAY + second
    clock, local = clock_of(calendar, np.array([at])), datetime.fromtimestamp(at, ZoneInfo(zone))
    assert clock.hour[0] == pytest.approx(local.hour + local.minute / 60 + local.second / 3600)
    assert clock.weekday[0] == local.weekday()
    assert clock.day[0] == (local.date() - date(2026, 1, 1)).days


@pytest.mark.parametrize(
    "start, hours", [(date(2026, 3, 29), 23), (date(2026, 10, 25), 25), (date(2026, 6, 1), 24)]
)
def test_days_have_as_many_hours_as_the_clock_gives_them(start, hours):
    calendar = replace(FLAT, start=start, timezone="Europe/Berlin")
    assert len(drawn_weeks(calendar, days=1, step=600, cameras=1)) == hours * 6


def test_shifts_follow_the_clock_and_the_sun_does_not():
    calendar = Calendar(start=date(2026, 10, 24), timezone="Europe/Berlin", sunrise=6, sunset=18)
    saturday, sunday = (calendar.when(d, "06:00").timestamp() for d in (0, 1))
    assert (sunday - saturday) / 3600 == 25
    assert work_of(calendar, np.array([saturday, saturday - 1, sunday, sunday - 1])).tolist() == [
        1,
        0.15,
        1,
        0.15,
    ]
    assert sunlight(calendar, np.array([saturday]))[0] == pytest.approx(
        sunlight(calendar, np.array([sunday - 3600]))[0]
    )


def test_sunlight_is_smooth_over_every_hour_and_longer_days_have_more_of_it():
    calendar = Calendar(sunrise=5, sunset=21)
    light = sunlight(calendar, hours_of(calendar, 2, 60.0))
    assert np.abs(np.diff(light)).max() < 0.01
    assert light.min() < 0.01 and light.max() > 0.99
    growing = replace(calendar, sunrise=8, sunset=16, season=1.0)
    at = hours_of(growing, 28, 600.0)
    by_day = by_hour(growing, at, sunlight(growing, at)).sum(axis=1)
    assert (np.diff(by_day) > 0).all()


def test_weekday_factors_multiply_the_work_of_their_day():
    factors = (1.0, 0.5, 1.0, 1.0, 1.0, 0.25, 0.0)
    calendar = replace(FLAT, weekdays=factors)
    at = hours_of(calendar, 7)
    assert by_hour(calendar, at, work_of(calendar, at), 7).mean(axis=1).tolist() == list(factors)


@pytest.mark.parametrize("hours", [1, 6, 36])
def test_weather_forgets_as_fast_as_it_should(hours):
    calendar = Calendar(weather=2.0, weather_hours=hours, weather_shared=1.0)
    paths = [weather_of(replace(calendar, seed=s), 0, hours_of(calendar, 390, 1800.0)) for s in range(4)]
    x = np.stack(paths) / 2
    lag = 2 * hours
    assert x.std() == pytest.approx(1, abs=0.12)
    assert np.mean(x[:, :-lag] * x[:, lag:]) == pytest.approx(np.exp(-1), abs=0.12)


def test_weather_is_shared_to_the_part_that_is_asked_for():
    calendar = Calendar(weather=1.0, weather_hours=1, weather_shared=0.6)
    a, b = (weather_of(calendar, c, hours_of(calendar, 390)) for c in (0, 1))
    assert np.corrcoef(a, b)[0, 1] == pytest.approx(0.6, abs=0.04)


def test_a_batch_is_one_number_until_the_next():
    calendar = replace(FLAT, batch=1.0, batch_hours=8)
    values = batch_of(calendar, hours_of(calendar, 200), "brightness").reshape(-1, 8)
    assert (values == values[:, :1]).all()
    assert len(np.unique(values)) == 600
    assert values[:, 0].std() == pytest.approx(1, abs=0.1)


def test_frames_have_the_spread_and_memory_that_the_columns_name():
    weeks = drawn_weeks(FLAT, days=20, step=60, cameras=1)
    for name, (usual, spread) in COLUMNS.items():
        x = (weeks.image[name].astype(float) - usual) / spread
        assert x.mean() == pytest.approx(0, abs=0.05)
        assert x.std() == pytest.approx(1, abs=0.03)
        assert np.corrcoef(x[:-1], x[1:])[0, 1] == pytest.approx(0.6, abs=0.03)


def test_numbers_of_parts_are_poisson():
    weeks = drawn_weeks(FLAT, days=10, step=120, cameras=1)
    count = np.bincount(weeks.box_frame, minlength=len(weeks))
    wanted = poisson.pmf(np.arange(6), 2.0)
    found = np.bincount(np.minimum(count, 6), minlength=7)
    assert chisquare(found, np.append(wanted, 1 - wanted.sum()) * len(count)).pvalue > 0.001


@pytest.mark.parametrize("what", ["brightness", "contrast", "blur", "noise", "saturation", "size"])
def test_a_factor_multiplies_its_column_from_its_moment_on(what):
    since = FLAT.when(1, "10:40")
    event = Event(what, since=since, factor=0.5, cameras=(1,))
    plain, changed = (
        drawn_weeks(c, days=2, step=300, cameras=2) for c in (FLAT, replace(FLAT, events=(event,)))
    )
    of = lambda w: w.size if what == "size" else w.image[what]
    frame = plain.box_frame if what == "size" else np.arange(len(plain))
    inside = (plain.camera[frame] == 1) & (plain.at[frame] >= since.timestamp())
    assert of(changed)[inside] == pytest.approx(of(plain)[inside] * 0.5)
    assert (of(changed)[~inside] == of(plain)[~inside]).all()


def test_events_of_a_belt_that_stands_still_and_of_a_camera_that_is_absent():
    noon = FLAT.when(0, "12:00")
    events = (Event("stopped", since=noon, cameras=(0,)), Event("absent", until=noon, cameras=(1,)))
    weeks = drawn_weeks(replace(FLAT, events=events), days=1, step=300, cameras=2)
    first, second = (weeks.at[weeks.camera == c] for c in (0, 1))
    assert len(first) == 288 and len(second) == 144
    assert second.min() >= noon.timestamp()
    at = weeks.at[weeks.box_frame[weeks.camera[weeks.box_frame] == 0]]
    assert len(at) and at.max() < noon.timestamp()


def test_the_class_mix_moves_the_last_class_only():
    weeks = drawn_weeks(replace(FLAT, events=(Event("class mix", factor=4.0),)), days=10, step=120, cameras=1)
    share = np.bincount(weeks.box_class, minlength=5) / len(weeks.box_class)
    assert share == pytest.approx(np.array([1, 1, 1, 1, 4]) / 8, abs=0.02)


def test_cameras_asleep_give_no_frames_between_sunset_and_sunrise():
    weeks = drawn_weeks(replace(FLAT, sunrise=7, sunset=17, asleep=(0,)), days=3, step=600, cameras=2)
    hour = (weeks.at % DAY) / 3600
    assert hour[weeks.camera == 0].min() >= 7 and hour[weeks.camera == 0].max() <= 17.01
    assert (weeks.camera == 1).sum() == 3 * 144


def test_the_same_seed_gives_the_same_weeks_and_another_gives_others():
    calendar = Calendar(batch=0.5, batch_mix=0.5, weather=1.0)
    a, b, c = (drawn_weeks(calendar, days=2, step=300, cameras=2, seed=s) for s in (1, 1, 2))
    for name, column in a.columns().items():
        if isinstance(column, np.ndarray):
            assert (column == b.columns()[name]).all()
    assert (a.image["brightness"] != c.image["brightness"]).any()


def test_a_stream_with_more_cameras_and_days_contains_the_smaller_one():
    calendar = Calendar(weather=1.0, batch=0.3)
    few, many = drawn_weeks(calendar, 1, 300, 1), drawn_weeks(calendar, 1, 300, 3)
    assert (many.image["noise"][: len(few)] == few.image["noise"]).all()


def test_every_condition_has_measured_effects_and_none_at_severity_0():
    assert set(EFFECTS) == set(CONDITION_NAMES)
    for name in CONDITION_NAMES:
        assert effect_of(name, 0.0) == ((1.0,) * len(COLUMNS), 1.0, 0.0)
        assert EFFECTS[name].shape == (4, len(COLUMNS) + 2)


def test_pictures_and_numbers_lose_the_same_light_at_night():
    calendar = Calendar(sun=6.0)
    noon, night = (np.array([calendar.when(0, c).timestamp()]) for c in ("13:00", "01:00"))
    level = lambda at: np.interp(darkness(calendar, 0, at)[0], range(6), DIMMED)
    usual, spread = COLUMNS["brightness"]
    assert level(night) / level(noon) == pytest.approx(1 - 6.0 * spread / usual, abs=0.02)


def test_a_frame_of_the_night_is_darker_and_emptier_than_one_of_noon():
    calendar = Calendar(sun=9.0, shifts=((6, 22, 1.0),))
    config = LineConfig(size=(160, 120), seed=3, density=6, hand_every=0)
    (night, empty), (noon, full) = (
        line_at(calendar, 0, calendar.when(0, c), config) for c in ("01:00", "12:00")
    )
    assert night.image.mean() < 0.8 * noon.image.mean()
    assert len(empty.detections) == 0 and len(full.detections) >= 2
    assert noon.captured_at == calendar.when(0, "12:00")


def test_conditions_at_a_moment_are_those_of_the_events():
    calendar = Calendar()
    calendar = replace(
        calendar, events=(Event("fog", calendar.when(1), calendar.when(2), (0,), severity=2.5),)
    )
    fog = lambda camera, day: conditions_at(calendar, camera, calendar.when(day, "12:00")).fog
    assert [fog(0, 0), fog(0, 1), fog(0, 2), fog(1, 1)] == [0, 2.5, 0, 0]


def test_traffic_at_a_moment_knows_shift_weekday_and_stop():
    calendar = Calendar(weekdays=(1, 1, 1, 1, 1, 0.5, 0))
    calendar = replace(
        calendar, events=(Event("stopped", calendar.when(0, "09:00"), calendar.when(0, "10:00")),)
    )
    moments = [calendar.when(*m) for m in ((0, "08:00"), (0, "09:30"), (5, "08:00"), (6, "08:00"))]
    assert [traffic_at(calendar, 0, m)[0] for m in moments] == [1.0, 0.0, 0.5, 0.0]


def test_batches_mix_classes_around_an_even_share():
    calendar = replace(FLAT, batch_mix=0.5)
    weight = class_weights(calendar, hours_of(calendar, 300, DAY))
    assert weight.sum(axis=1) == pytest.approx(1)
    assert weight.std(axis=0).min() > 0.05
    assert weight.mean(axis=0) == pytest.approx(1 / len(CLASS_NAMES), abs=0.03)


def small_bank(**change):
    "A bank of one camera: eight lights of thirty frames, three boxes in each."
    rng, light = seeded(5, "bank"), np.repeat(np.arange(0, 4, 0.5), 30)
    n, frame = len(light), np.repeat(np.arange(len(light)), 3)
    bright = np.interp(light, range(6), DIMMED) * 60
    columns = dict(
        camera=np.zeros(n, int),
        light=light,
        kind=np.zeros(n, int),
        kinds=("",),
        image={"brightness": bright + rng.normal(0, 1, n)},
        box_frame=frame,
        box_class=rng.integers(0, 5, len(frame)),
        confidence=rng.uniform(0.5, 1, len(frame)),
        size=np.full(len(frame), 0.02),
    )
    return Bank(**{**columns, **change})


def test_weeks_from_a_bank_have_its_light_and_the_traffic_of_the_hour():
    calendar = Calendar(sun=6.0, shifts=((6, 18, 1.0), (18, 6, 0.25)))
    weeks = drawn_weeks(calendar, days=10, step=300, cameras=1, bank=small_bank())
    bright = by_hour(calendar, weeks.at, weeks.image["brightness"], 10).mean(axis=0)
    assert bright[1] / bright[13] == pytest.approx(1 - 0.36, abs=0.05)
    boxes = by_hour(calendar, weeks.at, np.bincount(weeks.box_frame, minlength=len(weeks)), 10).mean(axis=0)
    assert boxes[6:18].mean() == pytest.approx(3.0, abs=0.01)
    assert boxes[:6].mean() == pytest.approx(0.75, abs=0.15)


def test_a_bank_shows_only_the_faults_that_it_has():
    event = replace(FLAT, events=(Event("dirt", severity=3.0),))
    with pytest.raises(ConfigError, match="no frames with 'dirt 3'"):
        drawn_weeks(event, days=1, bank=small_bank())


def test_a_fault_of_the_bank_is_shown_from_its_moment_on():
    bank = small_bank()
    n = len(bank.camera)
    twice = small_bank(
        camera=np.zeros(2 * n, int),
        light=np.tile(bank.light, 2),
        kind=np.repeat([0, 1], n),
        kinds=("", "dirt 3"),
        image={"brightness": np.concatenate([bank.image["brightness"], np.full(n, 5.0)])},
    )
    since = FLAT.when(0, "10:40")
    calendar = replace(FLAT, events=(Event("dirt", since=since, severity=3.0),))
    weeks = drawn_weeks(calendar, days=1, step=300, cameras=1, bank=twice)
    after = weeks.at >= since.timestamp()
    assert (weeks.image["brightness"][after] == 5.0).all()
    assert (weeks.image["brightness"][~after] > 20).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"timezone": "Mars/Olympus"}, "unknown time zone 'Mars/Olympus'"),
        ({"timezone": ""}, "unknown time zone ''"),
        ({"start": "2026-06-01"}, "start: '2026-06-01' is not a date"),
        ({"start": datetime(2026, 6, 1)}, "is not a date"),
        ({"sunrise": 20.0, "sunset": 6.0}, "not hours of one day, in this order"),
        ({"sunrise": float("nan")}, "not hours of one day"),
        ({"shifts": ((6, 14),)}, "shifts: each is"),
        ({"shifts": ((6, 30, 1.0),)}, "shifts: hours are outside 0..24"),
        ({"shifts": ((6, 14, -1.0),)}, "shifts: parts are negative"),
        ({"weekdays": (1.0,) * 5}, "not 7 factors"),
        ({"batch": -0.1}, "batch: -0.1 is negative"),
        ({"batch_hours": 0}, "batch_hours: 0 is not above 0"),
        ({"weather_hours": float("nan")}, "weather_hours: nan is not above 0"),
        ({"weather_shared": 1.5}, "weather_shared: is outside 0..1"),
        ({"events": ("fog",)}, "events: must be Event objects"),
    ],
)
def test_a_calendar_that_cannot_be_is_refused(change, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        Calendar(**change)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"what": "gremlins"}, "unknown event 'gremlins'"),
        ({"what": "fog", "severity": 6.0}, "severity: 6.0 is outside 0..5"),
        ({"what": "brightness"}, "factor: brightness needs one"),
        ({"what": "brightness", "factor": -1.0}, "factor: -1.0 is outside 0..100"),
        ({"what": "fog", "since": datetime(2026, 6, 1)}, "since: must be a time with a time zone"),
        ({"what": "fog", "cameras": (-1,)}, "cameras: must be whole numbers"),
    ],
)
def test_an_event_that_cannot_be_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Event(**change)


def test_an_event_must_not_end_before_it_begins():
    noon = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
    with pytest.raises(ConfigError, match="until: is not after since"):
        Event("fog", since=noon, until=noon - timedelta(hours=1))


@pytest.mark.parametrize(
    "how", [{"days": 0}, {"days": 400}, {"days": 1.5}, {"step": 0}, {"step": float("nan")}, {"cameras": 0}]
)
def test_weeks_that_cannot_be_drawn_are_refused(how):
    with pytest.raises(ConfigError, match="are not possible"):
        drawn_weeks(FLAT, **how)


def test_moments_outside_a_calendar_are_refused_with_how_far_they_are():
    with pytest.raises(DataError, match=r"-1.0 … -1.0 days from the calendar's beginning"):
        weather_of(Calendar(weather=1.0), 0, hours_of(FLAT, 1)[:1] - DAY)
    with pytest.raises(DataError, match="is not a time with a time zone"):
        conditions_at(FLAT, 0, datetime(2026, 6, 1))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"light": np.zeros(3)}, "light: other lengths than 240 frames"),
        ({"size": np.zeros(2)}, "size: other lengths"),
        ({"kinds": ("fog 3",)}, "contains no frames without a fault"),
        ({"box_frame": np.arange(720)[::-1] // 3}, "box_frame is not ascending"),
        ({"embedding": np.zeros((1, 8))}, "embedding: other lengths"),
    ],
)
def test_a_bank_whose_columns_do_not_fit_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        small_bank(**change)


def test_loads_name_the_columns():
    assert set(LOADS) == {*COLUMNS, "confidence", "size"}
