"""Weeks of the line as a prediction log: the calendar is in it, as the readers of this chapter see it."""

import os
from collections import Counter
from dataclasses import replace
from datetime import date, datetime, timezone

import numpy as np
import pytest

from cv_pipeline.core.types import ConfigError, Detections
from cv_pipeline.monitoring.drift_report import observed_of
from cv_pipeline.monitoring.prediction_log import read_log
from cv_pipeline.monitoring.season_line import (
    SIZE,
    TRAFFIC,
    Scenery,
    Seen,
    chosen,
    measured_bank,
    moments_of,
    scenes_of,
    season_calendar,
    tinted,
    write_weeks,
)
from cv_pipeline.synthetic.belt import LineConfig
from cv_pipeline.synthetic.calendar import Calendar, Event, by_hour, traffic_of


@pytest.fixture(scope="module")
def week(tmp_path_factory):
    "Eight days of two cameras from a Monday on, a frame an hour; a lamp of the second fails on Friday."
    folder = tmp_path_factory.mktemp("weeks")
    return write_weeks(folder, a_day=24, days=8, cameras=2, keep=48)


@pytest.fixture(scope="module")
def log(week):
    return read_log(week)


def table(log, camera, values):
    "Days and hours of a camera."
    mine = log.frames["camera"] == log.cameras.index(camera)
    return by_hour(Calendar(), log.at[mine], values[mine], 8)


@pytest.mark.slow
def test_every_hour_of_every_day_is_in_the_log(log):
    assert log.cameras == ("camera-1", "camera-2")
    assert len(log) == 2 * 8 * 24
    assert not np.isnan(table(log, "camera-1", log.frames["brightness"])).any()


@pytest.mark.slow
def test_nights_are_darker_than_days(log):
    bright = table(log, "camera-1", log.frames["brightness"])
    assert bright[:, [0, 1, 2]].mean() < 0.75 * bright[:, [12, 13, 14]].mean()


def test_the_weekend_is_quiet(log):
    count = np.bincount(log.detections["frame"], minlength=len(log))
    parts = table(log, "camera-1", count)[:7, 6:22].mean(axis=1)
    assert parts[5:].max() < 0.6 * parts[:5].min()


def test_the_lamp_of_one_camera_fails_at_the_moment_of_the_calendar(log):
    ratio = table(log, "camera-2", log.frames["brightness"]) / table(
        log, "camera-1", log.frames["brightness"]
    )
    assert ratio[4, 11:].mean() < 0.8 * ratio[4, :10].mean()
    assert ratio[5:].mean() < 0.8 * ratio[:4].mean()


def test_pictures_are_kept_under_their_frame_number(week):
    kept = sorted(p.name for p in (week / "frames_kept" / "camera-2").iterdir())
    assert kept == [f"{i:06d}.jpg" for i in range(0, 192, 48)]


def test_a_log_of_weeks_is_observed_with_all_statistics_and_vectors(log):
    seen = observed_of(log)
    assert set(seen.image) == {"brightness", "contrast", "blur", "noise", "saturation"}
    assert seen.embedding.shape == (384, 64)
    assert len(seen.box_frame) == len(log.detections["frame"])
    assert seen.notes == ()


@pytest.mark.slow
def test_the_same_seed_writes_the_same_log(tmp_path):
    how = dict(a_day=4, days=1, cameras=1, fails=None)
    a, b, c = (read_log(write_weeks(tmp_path / n, seed=s, **how)) for n, s in (("a", 1), ("b", 1), ("c", 2)))
    assert a.frames["brightness"].tolist() == b.frames["brightness"].tolist()
    assert a.frames["brightness"].tolist() != c.frames["brightness"].tolist()


def test_scenes_share_renderings():
    calendar = season_calendar(fails=None)
    noons = np.array([calendar.when(d, "12:00").timestamp() for d in range(5)])
    scenery = Scenery(LineConfig(size=(64, 64), cameras=1), each=3)
    frames = list(scenery.frames(calendar, 0, noons, np.random.default_rng(0)))
    scenery.close()
    scenes = set(scenes_of(calendar, 0, noons, np.zeros(5))[0])
    assert len(frames) == 5 and len(scenery) == 3 * len(scenes)


def test_traffic_between_two_rungs_is_right_on_average():
    calendar = Calendar(shifts=((0, 24, 0.7),))
    at, chance = np.full(4000, calendar.when(0).timestamp()), np.random.default_rng(1).random(4000)
    scenes, _ = scenes_of(calendar, 0, at, chance)
    assert np.mean([TRAFFIC[s.traffic] for s in scenes]) == pytest.approx(0.7, abs=0.02)


def test_traffic_above_full_work_is_full_work():
    calendar = Calendar(shifts=((0, 24, 3.0),))
    scenes, _ = scenes_of(calendar, 0, np.array([calendar.when(0).timestamp()]), np.array([0.999]))
    assert TRAFFIC[scenes[0].traffic] == 1.0


def test_the_gain_of_a_picture_multiplies_its_brightness():
    image = np.full((8, 8, 3), 100, np.uint8)
    assert tinted(image, 0.8, 0.0).mean() == 80
    assert tinted(image, 1.0, 0.1)[0, 0].tolist() == [90, 100, 110]
    assert tinted(image, 9.0, 0.0).max() == 255


def test_frames_are_chosen_in_proportion_to_the_mix():
    image = np.zeros((8, 8, 3), np.uint8)
    of = lambda *classes: Seen(image, Detections(np.zeros((len(classes), 4)), None, np.array(classes, int)))
    seen, weights = [of(0, 0), of(1), of()], np.array([0.8, 0.2])
    picked = Counter(len(chosen(seen, weights, c).detections) for c in np.linspace(0.0005, 0.9995, 1000))
    odds = np.array([1.6**2, 0.4, 1.0])  # two of class 0, one of class 1, none
    shares = np.array([picked[2], picked[1], picked[0]]) / 1000
    assert shares == pytest.approx(odds / odds.sum(), abs=0.005)


def test_days_of_23_hours_have_as_many_frames_as_others():
    calendar = Calendar(start=date(2026, 3, 28), timezone="Europe/Berlin")
    at = moments_of(calendar, 0, 3, 46)
    assert len(at) == 3 * 46
    assert np.diff(at)[46:91] == pytest.approx(1800)  # 23 hours by 46
    assert datetime.fromtimestamp(at[46], timezone.utc).hour == 23


@pytest.mark.slow
def test_a_camera_that_is_absent_writes_no_frames(tmp_path):
    calendar = Calendar()
    late = Event("absent", until=calendar.when(0, "12:00"), cameras=(0,))
    calendar = replace(calendar, events=(late,))
    assert traffic_of(calendar, 0, moments_of(calendar, 0, 1, 24)).there.all()
    log = read_log(write_weeks(tmp_path, a_day=24, days=1, cameras=1, calendar=calendar))
    assert len(log) == 12


def test_a_bank_is_measured_as_the_telemetry_measures(tmp_path):
    bank = measured_bank([("fog", 3.0)], lights=(0.0, 3.0), each=4, cameras=2)
    assert len(bank.camera) == 2 * 2 * 2 * 4
    assert bank.kinds == ("", "fog 3") and bank.embedding.shape == (32, 64)
    plain, foggy = (bank.image["contrast"][(bank.kind == k) & (bank.light == 0)].mean() for k in (0, 1))
    assert foggy < 0.8 * plain
    assert bank.size.max() < 1 and bank.box_frame.max() < 32
    assert SIZE == (256, 192)


@pytest.mark.parametrize(
    "how, message",
    [
        ({"fails": "camera-9"}, "unknown camera 'camera-9'"),
        ({"a_day": 0}, "a_day=0"),
        ({"days": 400}, "days=400"),
        ({"cameras": 0, "fails": None}, "cameras=0"),
        ({"keep": 0}, "keep=0"),
        ({"a_day": 2.5}, "a_day=2.5"),
    ],
)
def test_weeks_that_cannot_be_written_are_refused_before_a_file_exists(tmp_path, how, message):
    with pytest.raises(ConfigError, match=message):
        write_weeks(tmp_path / "log", **how)
    assert os.listdir(tmp_path) == []
