"""Cameras that need maintenance: raised for what is wrong, cleared when it is mended, quiet otherwise, and
not
taught the fault by a restart."""

from datetime import datetime, timedelta, timezone

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError, DataError, Detections, Frame, FrameResult, SinkError
from cv_pipeline.monitoring.frame_statistics import frame_statistics
from cv_pipeline.monitoring.upkeep import (
    SIGNALS,
    CameraWatch,
    Gate,
    Healthy,
    Upkeep,
    UpkeepEvent,
    UpkeepSettings,
    edges_of,
    read_events,
    shift_between,
    spots,
)
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.conditions import Changing, Conditions

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
QUICK = {"learn": 40, "learn_s": 8}


@pytest.fixture(scope="module")
def belt():
    "A minute of a healthy line, half size, four frames a second."
    line = FactoryLine(LineConfig(density=4, fps=4, size=(320, 240), seed=3))
    return [line.render(k)[0].image for k in range(160)]


def results(images, step=0.25, numbers=None, start=NOON):
    for k, image in enumerate(images):
        yield FrameResult(
            Frame(image, "gate", numbers[k] if numbers else k, start + timedelta(seconds=step * k)),
            Detections.empty(),
        )


def heard(stream, watch=None, **settings):
    watch = watch or CameraWatch("gate", UpkeepSettings(**{**QUICK, **settings}))
    return [
        (e.signal, e.raised) for r in stream for e in watch.update(r, frame_statistics(r.frame.image))
    ], watch


def changed(belt, change, first=60, last=120):
    return [change(image) if first <= k < last else image for k, image in enumerate(belt)]


@pytest.mark.slow
def test_a_healthy_camera_is_quiet(belt):
    events, watch = heard(results(belt))
    assert events == [] and watch.healthy is not None and watch.raised == ()
    assert watch.values["frame_rate"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "signal, change",
    [
        ("dark", lambda i: cv2.convertScaleAbs(i, alpha=0.4)),
        ("bright", lambda i: cv2.convertScaleAbs(i, alpha=1.9)),
        ("blur", lambda i: cv2.GaussianBlur(i, (0, 0), 3)),
        ("haze", lambda i: cv2.convertScaleAbs(i, alpha=0.5, beta=40)),
        ("moved", lambda i: np.roll(i, 14, axis=1)),
        ("dirt", lambda i: spotted(i)),
    ],
)
def test_each_signal_is_raised_once_and_cleared_once(belt, signal, change):
    events, _ = heard(
        results(changed(belt, change) + belt[60:] * (signal == "dirt"))
    )  # a background forgets spots slowly
    assert [e for e in events if e[0] == signal] == [(signal, True), (signal, False)]
    assert {s for s, _ in events} - {signal} <= {"dirt", "haze", "blur"}  # what may follow from it


def spotted(image):
    dirty = image.copy()
    for x, y in ((40, 50), (150, 120), (260, 180), (90, 190), (220, 60)):
        cv2.circle(dirty, (x, y), 8, (4, 4, 4), -1)
    return dirty


@pytest.mark.slow
def test_the_lines_own_lamp_failure_is_heard_and_other_conditions_of_a_day_are_not():
    def film(conditions):
        line = FactoryLine(LineConfig(density=4, fps=4, size=(320, 240), seed=5), {0: Changing(conditions)})
        return results([line.render(k)[0].image for k in range(110)])

    assert ("dark", True) in heard(film(lambda t: Conditions(lamp_failure=5 if t > 14 else 0)))[0]
    assert heard(film(lambda t: Conditions(noise=1, lamp_flicker=1 if t > 14 else 0)))[0] == []


def test_a_frozen_picture_and_a_slow_camera(belt):
    stuck = belt[:60] + [belt[60]] * 60 + belt[61:100]
    assert heard(results(stuck))[0] == [("frozen", True), ("frozen", False)]
    slow = [
        *results(belt[:60]),
        *(
            FrameResult(
                Frame(belt[k], "gate", k, NOON + timedelta(seconds=15 + 0.6 * (k - 60))), Detections.empty()
            )
            for k in range(60, 120)
        ),
    ]
    assert heard(slow)[0] == [("frame_rate", True)]


def test_frames_that_we_left_out_ourselves_are_no_slow_camera(belt):
    thinned = [r for r in results(belt) if r.frame.frame_id < 60 or r.frame.frame_id % 3 == 0]
    assert heard(thinned)[0] == []


def test_a_clock_that_is_set_back_and_a_source_that_begins_anew(belt):
    again = [
        *results(belt[:80]),
        *results(belt[80:], start=NOON - timedelta(hours=1)),
    ]  # numbers begin at 0 again too
    assert heard(again)[0] == []


def test_another_frame_size_after_a_reconnect_is_no_fault(belt):
    larger = [
        cv2.resize(i, (640, 480), interpolation=cv2.INTER_LINEAR) if k >= 80 else i
        for k, i in enumerate(belt)
    ]
    assert heard(results(larger), blur=None)[0] == []


def test_a_camera_that_shows_nothing_from_the_start_is_dark_and_nothing_else():
    events, watch = heard(results([np.zeros((120, 160, 3), np.uint8)] * 80), frozen=None)
    assert events == [("dark", True)] and not any(np.isinf(v) for v in watch.values.values())


@given(st.lists(st.floats(0, 2), min_size=1, max_size=200), st.booleans())
def test_a_gate_changes_its_mind_no_faster_than_it_holds(values, low):
    gate, changes = Gate((0.6, 0.8) if low else (1.6, 1.4), 3.0, 4), []
    for k, v in enumerate(values):
        if (state := gate.update(v, k * 0.5)) is not None:
            changes.append((k * 0.5, state))
    assert [s for _, s in changes] == [k % 2 == 0 for k in range(len(changes))]
    assert all(b - a >= 3.0 for (a, _), (b, _) in zip(changes, changes[1:]))


def test_nan_says_nothing():
    gate = Gate((0.6, 0.8), 0.0, 1)
    assert gate.update(float("nan"), 0.0) is None and gate.update(0.1, 1.0) is True


def test_shift_is_measured_to_a_pixel_and_light_does_not_matter(belt):
    grey = np.mean(
        [
            cv2.resize(cv2.cvtColor(i, cv2.COLOR_BGR2GRAY), (160, 120), interpolation=cv2.INTER_AREA)
            for i in belt[:60]
        ],
        axis=0,
    ).astype(np.float32)
    for far in (3, 6):
        assert shift_between(
            edges_of(grey), edges_of(np.roll(grey * 0.5, far, axis=1))
        ) * 160 == pytest.approx(far, abs=1.0)
    assert shift_between(edges_of(grey), edges_of(grey * 0.4 + 3)) * 160 < 0.5
    assert spots(grey, grey * 0.3).mean() < 0.001


def test_a_restart_does_not_learn_the_fault(tmp_path, belt):
    upkeep = Upkeep(tmp_path, UpkeepSettings(**QUICK))
    for r in results(belt[:60]):
        upkeep(r, frame_statistics(r.frame.image))
    dark = [cv2.convertScaleAbs(i, alpha=0.3) for i in belt[60:100]]
    again = Upkeep(tmp_path, UpkeepSettings(**QUICK))
    for r in results(dark):
        again(r, frame_statistics(r.frame.image))
    assert again.states()["gate"]["dark"] and read_events(tmp_path)[-1].signal == "dark"
    assert set(again.states()["gate"]) == set(SIGNALS)


def test_a_broken_file_of_a_healthy_self_is_said_and_learnt_anew(tmp_path, belt):
    (tmp_path / "gate.npz").write_bytes(b"PK\x03\x04 not whole")
    upkeep = Upkeep(tmp_path, UpkeepSettings(**QUICK))
    for r in results(belt[:60]):
        upkeep(r, frame_statistics(r.frame.image))
    assert "delete it" in upkeep.problems["gate"] and Healthy.load(tmp_path / "gate.npz").brightness > 1
    with pytest.raises(DataError, match="not a camera reference"):
        Healthy.load(tmp_path / "none.npz")


def test_events_survive_torn_and_wrong_lines(tmp_path):
    good = (
        '{"camera": "gate", "signal": "dark", "raised": true, "at": "2026-06-01T12:00:00+00:00", '
        '"value": '
        "0.4}\n"
    )
    file, notes = tmp_path / "upkeep.jsonl", []
    file.write_text(good + good[:30])  # a crash in the middle of a line
    assert len(read_events(tmp_path)) == 1 and read_events(tmp_path / "nothing") == []
    event = UpkeepEvent("gate", "blur", True, NOON, 0.1)
    for _ in range(2):
        Upkeep(tmp_path)._tell(event)
    assert [e.signal for e in read_events(tmp_path, notes)] == ["dark", "blur", "blur"]
    assert len(notes) == 1 and notes[0].startswith(
        "1 lines of upkeep.jsonl were left out; line 2 is not an upkeep event"
    )
    file.write_bytes(b"{}\n" + good.encode() + b"\xff\xfe\n\n" + good.encode())
    assert len(read_events(tmp_path, notes)) == 2 and notes[1].startswith("2 lines")
    file.write_text("{}\n[1]\n")
    with pytest.raises(DataError, match="line 1 is not an upkeep event.*nor are the other 1"):
        read_events(tmp_path)


def test_an_event_that_cannot_be_written_is_an_error(tmp_path):
    upkeep = Upkeep(tmp_path)
    (tmp_path / "upkeep.jsonl").mkdir()
    with pytest.raises(SinkError, match="cannot write an upkeep event"):
        upkeep._tell(UpkeepEvent("gate", "dark", True, NOON, 0.1))


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError):
        Upkeep(tmp_path / "file" / "upkeep")


def test_wrong_settings_are_all_said():
    with pytest.raises(ConfigError, match="3 invalid settings of the upkeep"):
        UpkeepSettings(dark=(0.5, 0.5), learn=0, hold_s=-1)
    assert "dark" not in CameraWatch("gate", UpkeepSettings(dark=None)).gates


def test_a_camera_with_a_unicode_line_break_in_its_name_keeps_its_events(tmp_path):
    events = [UpkeepEvent("tor\u2028a\u0085", s, True, NOON, 0.1) for s in ("blur", "dark")]
    for e in events:
        Upkeep(tmp_path)._tell(e)
    assert read_events(tmp_path) == events
