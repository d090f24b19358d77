"""Known causes: a table that is read or refused as a whole, and causes that explain only what is gone without
their frames. What happened is planted, so that the right answer is known."""

from dataclasses import replace

import numpy as np
import pytest

from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.monitoring.context import (
    CAUSE_NAMES,
    KnownCause,
    during,
    explain,
    gone_from,
    read_context,
)
from cv_pipeline.monitoring.drift import compare
from cv_pipeline.monitoring.observed import DriftSettings, Observed
from cv_pipeline.synthetic.calendar import Calendar, Event, drawn_weeks

HEAD = "from,to,camera,cause,note\n"
LINE = Calendar(sun=0, shifts=((0, 24, 1),), surge=0)  # no rhythm: what is planted is all that happens
MIDDLE = LINE.when(14).timestamp()
DAY, HOUR = 86_400.0, 3_600.0
SETTINGS = DriftSettings(permutations=799)


def written(tmp_path, text, name="context.csv", **how):
    path = tmp_path / name
    path.write_bytes(text.encode(**how))
    return path


def test_a_table_is_read_with_its_zones(tmp_path):
    path = written(
        tmp_path,
        HEAD + "2026-06-25T10:00+02:00,2026-06-25T14:00+02:00,camera-2,maintenance,lid open\n\n"
        "2026-06-25T00:00Z,2026-06-26T00:00Z,, Product  Batch ,\n",
    )
    first, second = read_context(path)
    assert (first.since, first.until) == (1782374400.0, 1782388800.0)
    assert (first.camera, first.cause, first.note) == ("camera-2", "maintenance", "lid open")
    assert (second.camera, second.cause) == ("", "product batch")


def test_times_without_a_zone_are_those_of_the_place_that_is_named(tmp_path):
    path = written(tmp_path, HEAD + "2026-10-25 00:00,2026-10-26 00:00,,shift,\n")
    (cause,) = read_context(path, "Europe/Berlin")
    assert cause.until - cause.since == 25 * HOUR
    assert str(cause) == "shift, 2026-10-25 00:00–2026-10-26 00:00"


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + HEAD + "2026-06-25T10:00Z,2026-06-25T14:00Z,,weather,rain\n",
        HEAD.replace(",", ";") + "2026-06-25T10:00Z;2026-06-25T14:00Z;;weather;rain\r\n",
        "Note,Cause,Camera,To,From\nrain,Weather,,2026-06-25T14:00Z,2026-06-25T10:00Z\n",
        '"from","to","camera","cause"\n"2026-06-25T10:00Z","2026-06-25T14:00Z","","weather"\n',
    ],
    ids=["byte order mark", "semicolons", "other order", "quoted, no notes"],
)
def test_tables_of_other_programs_are_read(tmp_path, text):
    (cause,) = read_context(written(tmp_path, text))
    assert (cause.since, cause.until, cause.cause) == (1782381600.0, 1782396000.0, "weather")


def test_every_line_that_cannot_be_used_is_named(tmp_path):
    path = written(
        tmp_path,
        HEAD + "2026-06-25T10:00,2026-06-25T14:00Z,,weather,\n"
        "2026-06-25T10:00Z,2026-06-25T14:00Z,,weather,\n"
        "2026-06-25T14:00Z,2026-06-25T10:00Z,,gremlins,\n"
        "yesterday,2026-06-25T10:00Z,,shift,\n"
        "2026-06-25T10:00Z,2026-06-25T14:00Z,weather\n",
    )
    with pytest.raises(DataError) as caught:
        read_context(path)
    text = str(caught.value)
    assert "4 invalid lines" in text and str(path) in text
    assert "line 2: from: 2026-06-25T10:00 has no time zone" in text
    assert (
        "line 4: from 2026-06-25T14:00Z is not before to 2026-06-25T10:00Z; unknown cause 'gremlins'" in text
    )
    assert "line 5: from: 'yesterday' is not a time" in text
    assert "line 6: 3 cells instead of 5" in text
    assert "line 3" not in text
    assert all(name in text for name in CAUSE_NAMES)


def test_a_table_without_its_columns_is_refused(tmp_path):
    with pytest.raises(DataError, match="without the columns from, to, camera, cause"):
        read_context(written(tmp_path, ""))
    with pytest.raises(DataError, match="without the columns cause"):
        read_context(written(tmp_path, "from,to,camera,reason\n"))


def test_a_file_that_is_missing_or_not_text_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"context\.csv"):
        read_context(tmp_path / "context.csv")
    with pytest.raises(DataError):
        read_context(written(tmp_path, HEAD + "\u00e9", encoding="latin-1"))


def test_an_unknown_zone_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="unknown time zone 'Europe/Atlantis'"):
        read_context(written(tmp_path, HEAD), "Europe/Atlantis")


def test_a_table_without_lines_knows_nothing(tmp_path):
    assert read_context(written(tmp_path, HEAD)) == []


def seen_with(*events, seed=3, days=15):
    "A reference of fourteen days and a window of one, three cameras, a frame every four minutes."
    weeks = drawn_weeks(replace(LINE, events=events), days=days, step=240, cameras=3, seed=seed)
    whole = Observed(**weeks.columns())
    return whole.between(0, MIDDLE), whole.between(MIDDLE, MIDDLE + DAY)


def explained(causes, *events):
    reference, window = seen_with(*events)
    return explain(reference, window, compare(reference, window, SETTINGS), causes, SETTINGS)


LID = Event("brightness", LINE.when(14, "10:00"), LINE.when(14, "14:00"), (1,), factor=0.4)
LAMP = Event("lamp_failure", LINE.when(14, "10:40"), cameras=(1,))
OPEN = KnownCause(MIDDLE + 10 * HOUR, MIDDLE + 14 * HOUR, "maintenance", "camera-2")
RAIN = KnownCause(MIDDLE + HOUR, MIDDLE + 5 * HOUR, "weather", note="rain")
RED_OR_AMBER = ("AMBER", "RED")


def test_frames_of_a_cause_are_those_of_its_camera_and_time():
    _, window = seen_with()
    mask = during(window, [OPEN])
    assert mask.sum() == 60
    assert set(window.camera[mask]) == {1}
    assert window.at[mask].min() >= OPEN.since and window.at[mask].max() < OPEN.until
    assert during(window, [OPEN, RAIN]).sum() == 60 + 3 * 60
    assert not during(window, []).any()
    assert not during(window, [replace(OPEN, camera="camera-9")]).any()


@pytest.mark.slow
def test_a_cause_explains_what_is_gone_without_its_frames():
    e = explained([OPEN, RAIN], LID)
    assert e.found.verdict in RED_OR_AMBER
    assert e.causes == [OPEN] and e.also == [RAIN]
    assert e.left.verdict == e.drift.verdict == "GREEN"
    assert e.sentence.startswith(
        "explained by maintenance on camera-2, 2026-06-15 10:00–14:00; nothing is left"
    )
    assert e.sentence in e.drift.notes


@pytest.mark.slow
def test_a_cause_does_not_explain_what_is_still_there_without_its_frames():
    e = explained([OPEN], LAMP)
    assert e.causes == [] and e.also == [OPEN] and e.left is None
    assert e.drift.verdict == e.found.verdict and e.drift.verdict in RED_OR_AMBER
    assert e.drift.families == e.found.families
    assert "no known cause accounts for the change" in e.sentence
    assert "still there without these frames" in e.sentence


@pytest.mark.slow
def test_of_two_changes_the_one_that_is_left_is_reported():
    noisy = Event("size", LINE.when(14), factor=3.0)
    e = explained([OPEN], LID, noisy)
    assert e.causes == [OPEN]
    assert [f.family for f in e.found.families if f.alarm] == ["image", "size"]
    assert [f.family for f in e.left.families if f.alarm] == ["size"]
    assert e.drift.verdict in RED_OR_AMBER and "is left without these frames" in e.sentence


def test_explained_with_nothing_left_to_judge_is_grey_not_green():
    e = explained([KnownCause(MIDDLE, MIDDLE + DAY, "maintenance")], LAMP)
    assert e.drift.verdict == "GREY" and e.left is None
    assert {f.state for f in e.drift.families} == {"GREY"}
    assert "nothing left to judge" in e.sentence


def test_without_a_change_causes_are_known_and_explain_nothing():
    e = explained([RAIN])
    assert e.found.verdict == e.drift.verdict == "GREEN"
    assert e.causes == [] and e.also == [RAIN]
    assert e.sentence.startswith("nothing to explain; also known: weather")


def test_a_change_without_a_known_cause_stays_unknown():
    before = KnownCause(MIDDLE - 3 * DAY, MIDDLE - 2 * DAY, "other")
    e = explained([before], LAMP)
    assert e.causes == e.also == []
    assert e.sentence == "no known cause in the window"
    assert any("1 days of the reference have other" in n for n in e.notes)


def test_a_camera_that_the_log_does_not_have_is_a_note():
    e = explained([replace(OPEN, camera="camera-9")], LAMP)
    assert e.causes == e.also == []
    assert any("names a camera that the log does not have" in n for n in e.notes)


def rain(day, factor):
    "A day on which it rains from six to eighteen: brightness, and the line of the table."
    begin, end = LINE.when(day, "06:00"), LINE.when(day, "18:00")
    cause = KnownCause(begin.timestamp(), end.timestamp(), "weather", note="rain")
    return Event("brightness", begin, end, factor=factor), cause


@pytest.mark.parametrize("today, alike", [(0.8, True), (0.2, False)])
def test_rain_is_compared_with_rain_where_the_reference_has_three_days_of_it(today, alike):
    days = [rain(d, 0.8) for d in (2, 5, 7, 11)] + [rain(14, today)]
    e = explained([c for _, c in days], *(event for event, _ in days))
    assert any("4 days of the reference have weather" in n for n in e.notes)
    if alike:
        assert e.drift.verdict == "GREEN"
    else:
        assert e.found.verdict in RED_OR_AMBER
        assert e.causes == [] and e.also == [days[-1][1]]
        assert any("differ in" in n for n in e.notes)


def test_an_alarm_is_gone_when_nothing_of_it_is_left_and_it_sits_in_the_cause():
    reference, window = seen_with(LAMP)
    found = compare(reference, window, SETTINGS)
    alarms = {f.family for f in found.families if f.alarm}
    changed = lambda **how: replace(found, families=[replace(f, **how) for f in found.families])
    small = [replace(f, state="GREEN", effect=f.effect / 3) for f in found.families]
    none = set(), set()
    assert gone_from(found, found, found) == none
    assert gone_from(found, changed(state="GREEN", p=0.04), found) == none  # weaker, and still there
    assert gone_from(found, changed(state="GREY", p=0.04), found) == none
    assert gone_from(found, changed(state="GREEN", p=0.4, effect=0.1), found) == (alarms, set())
    assert gone_from(found, replace(found, families=small), found) == (alarms, set())
    assert gone_from(found, changed(state="GREY", p=0.4, effect=0.1), found) == (set(), alarms)
    assert gone_from(found, None, found) == (set(), alarms)
    assert (
        gone_from(found, changed(state="GREEN", p=0.4, effect=0.1), changed(p=0.4)) == none
    )  # not in the cause
    assert gone_from(found, changed(state="GREEN", p=0.4, effect=0.1), None) == none


@pytest.mark.slow
def test_short_causes_do_not_explain_a_lasting_fault_and_do_explain_their_own():
    right = wrong = 0
    for seed in range(8):
        for event in (LID, LAMP):
            reference, window = seen_with(event, seed=seed)
            found = compare(reference, window, SETTINGS)
            e = explain(reference, window, found, [OPEN, RAIN], SETTINGS)
            right += event is LID and e.causes == [OPEN]
            wrong += event is LAMP and bool(e.causes)
    assert right >= 7 and wrong == 0


@pytest.mark.slow
def test_a_camera_that_is_silent_during_its_maintenance_is_explained_by_it():
    off = Event("absent", LINE.when(14), LINE.when(14, "17:00"), cameras=(1,))
    cause = KnownCause(MIDDLE, MIDDLE + 17 * HOUR, "maintenance", "camera-2")
    e = explained([cause], off)
    assert "cameras" in {f.family for f in e.found.families if f.alarm}
    assert e.causes == [cause] and e.drift.verdict == "GREEN"


@pytest.mark.slow
def test_leaving_a_camera_out_is_not_a_change_of_the_mix_of_cameras():
    half = KnownCause(MIDDLE, MIDDLE + 14 * HOUR, "maintenance", "camera-2")
    bright = Event("brightness", LINE.when(14), LINE.when(14, "14:00"), (1,), factor=0.4)
    e = explained([half], bright)
    assert e.causes == [half]
    assert e.left.verdict == "GREEN" and e.left.cause == "none"


def test_a_camera_of_which_hardly_anything_is_left_is_not_judged():
    most = KnownCause(MIDDLE, MIDDLE + 20 * HOUR, "maintenance", "camera-2")
    e = explained([most], Event("brightness", LINE.when(14), LINE.when(14, "20:00"), (1,), factor=0.4))
    assert e.causes == [most] and e.left is None
    assert e.drift.verdict == "GREY"


def test_what_is_explained_is_written_as_plain_values():
    e = explained([OPEN], LID)
    made = e.to_dict()
    assert made["explained by"] == [
        {
            "from": "2026-06-15T10:00:00+00:00",
            "to": "2026-06-15T14:00:00+00:00",
            "camera": "camera-2",
            "cause": "maintenance",
            "note": None,
        }
    ]
    assert made["verdict"] == "GREEN" and made["verdict of all frames"] in RED_OR_AMBER
    assert made["left"]["verdict"] == "GREEN"
    assert np.isfinite(made["left"]["families"][0]["effect"])
