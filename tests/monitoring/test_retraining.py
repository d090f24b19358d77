"""Retraining: what is recommended, why, and that the same evidence twice changes nothing."""

import json
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.monitoring.retraining import (
    ACTIONS,
    Change,
    DriftWindow,
    Evidence,
    RetrainPolicy,
    decide,
    read_changes,
    read_drift,
    retrain_check,
    running,
    triggers,
)

NOW = datetime(2026, 6, 20, tzinfo=timezone.utc)
DAY = timedelta(days=1)


def window(
    day, verdict="AMBER", cause="world changed", alarms=("embedding",), reference="r", days=1, devices=()
):
    since = datetime(2026, 6, 1, tzinfo=timezone.utc) + day * DAY
    return DriftWindow(
        since,
        since + days * DAY,
        verdict,
        cause,
        alarms if verdict in ("AMBER", "RED") else (),
        devices,
        reference,
    )


BELOW, KEPT = (
    {"state": s, "name": "AP", "change": c, "low": c - 0.02, "high": c + 0.02, "delta": 0.02}
    for s, c in (("below", -0.2), ("kept", 0.0))
)


@pytest.mark.parametrize(
    "windows, count",
    [
        ([window(0), window(1)], 2),
        ([window(1), window(0)], 2),
        ([window(0), window(1), window(2)], 3),
        ([window(0)], 1),
        ([], 0),
        ([window(0), window(1, "GREEN")], 0),
        ([window(0), window(1, "GREY"), window(2)], 1),
        ([window(0), window(3)], 1),
        ([window(0), window(0)], 1),
        ([window(0, days=2), window(1, days=2)], 1),
        ([window(0, alarms=("image",)), window(1)], 1),
        ([window(0, reference="other"), window(1)], 1),
        ([window(0), window(0.5), window(1)], 2),
    ],
)
def test_windows_that_run(windows, count):
    assert running(windows)[0] == count


def test_drift_alone_never_recommends_training():
    assert decide(Evidence([window(d) for d in range(6)]), RetrainPolicy(), NOW)[0] == "AUDIT"
    assert (
        decide(Evidence([window(d) for d in range(6)], KEPT, audit_until=NOW), RetrainPolicy(), NOW)[0]
        == "NOTHING"
    )
    assert decide(Evidence([window(5)], None, labels=10_000), RetrainPolicy(), NOW)[0] == "WAIT"


def test_persistent_drift_and_accuracy_or_labels_do():
    twice = [window(4), window(5)]
    assert decide(Evidence(twice, BELOW), RetrainPolicy(), NOW)[0] == "RETRAIN"
    assert decide(Evidence(twice, None, labels=500), RetrainPolicy(), NOW)[0] == "RETRAIN"
    assert decide(Evidence(twice, None, labels=499), RetrainPolicy(), NOW)[0] == "AUDIT"
    assert decide(Evidence(twice, BELOW), RetrainPolicy(persistence=3), NOW)[0] == "LABEL"


@pytest.mark.parametrize("cause, action", [("device fault", "MEND"), ("mix shift", "MIX")])
def test_a_camera_or_the_mix_is_no_matter_for_training(cause, action):
    evidence = Evidence(
        [window(4, cause=cause, devices=("gate",)), window(5, cause=cause, devices=("gate",))], KEPT
    )
    assert decide(evidence, RetrainPolicy(), NOW)[0] == action
    if cause == "device fault":
        assert decide(Evidence(evidence.windows, BELOW, labels=9999), RetrainPolicy(), NOW)[0] == "MEND"


def test_a_cooldown_holds_everything_but_a_fault_of_a_camera():
    twice = [window(4), window(5)]
    for days, action in ((3, "WAIT"), (13, "WAIT"), (14, "RETRAIN")):
        assert (
            decide(Evidence(twice, BELOW, labels=900, trained=NOW - days * DAY), RetrainPolicy(), NOW)[0]
            == action
        )
    assert (
        decide(Evidence([window(5, cause="device fault")], trained=NOW - 3 * DAY), RetrainPolicy(), NOW)[0]
        == "MEND"
    )


def test_declared_changes_cadence_and_users():
    washer = Change("class", "washer", NOW - 3 * DAY)
    assert decide(Evidence(changes=[washer]), RetrainPolicy(), NOW)[0] == "LABEL"
    assert (
        decide(Evidence(changes=[washer], class_labels={"washer": 100}), RetrainPolicy(), NOW)[0] == "RETRAIN"
    )
    assert (
        decide(
            Evidence(changes=[washer], class_labels={"washer": 100}, trained=NOW - 2 * DAY),
            RetrainPolicy(),
            NOW,
        )[0]
        == "NOTHING"
    )  # it was trained since
    assert (
        decide(Evidence(changes=[Change("class", "washer", NOW + DAY)]), RetrainPolicy(), NOW)[0] == "NOTHING"
    )
    assert (
        decide(Evidence(changes=[Change("environment", "lamp", NOW - DAY)]), RetrainPolicy(), NOW)[0]
        == "AUDIT"
    )
    assert decide(Evidence((), KEPT, trained=NOW - 90 * DAY), RetrainPolicy(), NOW)[0] == "RETRAIN"
    assert (
        decide(Evidence((), KEPT, trained=NOW - 900 * DAY), RetrainPolicy(cadence_days=None), NOW)[0]
        == "NOTHING"
    )
    assert (
        decide(Evidence(flags={"state": "raised", "flags": 9, "looks": 10}), RetrainPolicy(), NOW)[0]
        == "AUDIT"
    )


def test_reasons_are_ranked_and_nothing_known_is_said_to_be_unknown():
    found = triggers(Evidence(), RetrainPolicy(), NOW)
    assert [t.name for t in found] == [
        "accuracy",
        "new class",
        "confidence drift",
        "input drift",
        "users",
        "environment",
        "labels",
        "cadence",
    ]
    assert {t.name for t in found if t.state == "unknown"} == {
        "accuracy",
        "confidence drift",
        "input drift",
        "users",
        "labels",
        "cadence",
    }


@pytest.mark.parametrize(
    "families, confidence, inputs",
    [
        (("confidence",), "on", "off"),
        (("embedding", "image"), "off", "on"),
        (("confidence", "size"), "on", "on"),
    ],
)
def test_confidence_and_input_are_reasons_of_their_own(families, confidence, inputs):
    by = {
        t.name: t
        for t in triggers(Evidence([window(d, alarms=families) for d in (4, 5)]), RetrainPolicy(), NOW)
    }
    assert (by["confidence drift"].state, by["input drift"].state) == (confidence, inputs)
    assert (
        decide(Evidence([window(d, alarms=families) for d in (4, 5)], labels=600), RetrainPolicy(), NOW)[0]
        == "RETRAIN"
    )
    changing = [
        window(4, alarms=("confidence",)),
        window(5, alarms=("image",)),
    ]  # one after the other is not two windows of either
    assert {
        t.state for t in triggers(Evidence(changing), RetrainPolicy(), NOW) if t.name.endswith("drift")
    } == {"off", "pending"}


def test_what_is_older_than_the_training_or_than_its_use_decides_nothing(tmp_path):
    may, april = datetime(2026, 5, 1, tzinfo=timezone.utc), datetime(2026, 4, 7, tzinfo=timezone.utc)
    assert decide(Evidence((), BELOW, april, labels=600, trained=may), RetrainPolicy(), NOW) == (
        "NOTHING",
        "no reason is sufficient",
    )
    assert (
        decide(Evidence([window(4), window(5)], BELOW, april, labels=0, trained=may), RetrainPolicy(), NOW)[0]
        == "AUDIT"
    )
    assert (
        decide(Evidence((), BELOW, NOW - 3 * DAY, labels=600, trained=may), RetrainPolicy(), NOW)[0]
        == "RETRAIN"
    )
    raised = {"state": "raised", "flags": 9, "looks": 10}
    assert [
        decide(Evidence(flags=raised, flags_until=until, trained=may), RetrainPolicy(), NOW)[0]
        for until in (april, NOW)
    ] == ["NOTHING", "AUDIT"]
    old = Evidence([window(-60), window(-59)], labels=600)
    assert (
        decide(old, RetrainPolicy(), NOW)[0] == "NOTHING"
        and decide(old, RetrainPolicy(stale_days=90), NOW)[0] == "RETRAIN"
    )
    assert "days old" in triggers(old, RetrainPolicy(), NOW)[2].reason


def test_the_day_of_the_training_can_be_corrected_and_is_not_in_the_future(tmp_path):
    with pytest.raises(ConfigError, match="in the future"):
        retrain_check(tmp_path, Evidence(trained=datetime(2062, 5, 1, tzinfo=timezone.utc)), NOW)
    for day in (NOW - 10 * DAY, NOW - 40 * DAY):
        made = retrain_check(tmp_path, Evidence(trained=day), NOW)
    assert next(t["reason"] for t in made["triggers"] if t["name"] == "cadence").startswith(
        "trained 40 days ago"
    )
    assert retrain_check(tmp_path, Evidence(), NOW)["evidence"]["trained"] == NOW - 40 * DAY


@given(
    st.lists(
        st.tuples(
            st.integers(0, 9),
            st.sampled_from(["GREEN", "AMBER", "RED", "GREY"]),
            st.sampled_from(["world changed", "device fault", "mix shift", "none"]),
        ),
        max_size=6,
    ),
    st.sampled_from([None, BELOW, KEPT, {"state": "undecided"}]),
    st.one_of(st.none(), st.integers(0, 1000)),
    st.one_of(st.none(), st.integers(0, 200)),
)
def test_the_same_evidence_twice_changes_nothing(tmp_path_factory, rows, accuracy, labels, age):
    folder = tmp_path_factory.mktemp("state")
    evidence = Evidence(
        [window(*row) for row in rows],
        accuracy,
        labels=labels,
        trained=None if age is None else NOW - age * DAY,
    )
    first = retrain_check(folder, evidence, NOW)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}
    assert retrain_check(folder, evidence, NOW) == first and first["action"] in ACTIONS
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()} == before


def test_two_windows_running_across_runs(tmp_path):
    made = [
        retrain_check(tmp_path, Evidence([window(d, v)], labels=600), NOW)["action"]
        for d, v in ((4, "GREEN"), (5, "AMBER"), (6, "RED"))
    ]
    assert made == ["NOTHING", "WAIT", "RETRAIN"]
    book = json.loads((tmp_path / "recommendation.json").read_text())
    assert (
        book["next_command"].startswith("cv-pipeline train ")
        and book["evidence"]["windows"][-1]["verdict"] == "RED"
        and book["since"] == "2026-06-08T00:00:00+00:00"
    )
    assert (
        retrain_check(tmp_path, Evidence(labels=600), NOW + DAY)["since"] == book["since"]
    )  # it stands since then
    assert (
        retrain_check(tmp_path, Evidence(trained=NOW), NOW + DAY)["action"] == "NOTHING"
    )  # what was before the training is answered by it
    assert (
        retrain_check(tmp_path, Evidence([window(30), window(31)], labels=700), NOW + 20 * DAY)["action"]
        == "RETRAIN"
    )


def test_a_window_that_is_reported_again_with_another_verdict_counts_as_said_last(tmp_path):
    retrain_check(tmp_path, Evidence([window(5), window(6)], labels=600), NOW)
    assert retrain_check(tmp_path, Evidence([window(6, "GREEN")], labels=600), NOW)["action"] == "NOTHING"


def report(tmp_path, **changes):
    book = {
        "verdict": "AMBER",
        "cause": "world changed",
        "families": [{"family": "image", "state": "AMBER"}, {"family": "classes", "state": "GREEN"}],
        "window": {"from": "2026-06-01T00:00:00Z", "to": "2026-06-02T00:00:00+00:00"},
        "reference": {"from": "a", "to": "b"},
        "devices": ["gate"],
        **changes,
    }
    (tmp_path / "metrics.json").write_text(json.dumps({k: v for k, v in book.items() if v is not None}))
    return tmp_path


def test_drift_reports_are_read_and_others_refused_by_name(tmp_path):
    found = read_drift(report(tmp_path))
    assert (
        found.alarms == ("image",)
        and found.until - found.since == DAY
        and found.devices == ("gate",)
        and found.reference == "a/b"
    )
    asked = read_drift(
        report(
            tmp_path,
            window={"from": "2026-06-01T08:00:00Z", "to": "2026-06-01T18:00:00Z"},
            periods={
                "reference": "all before",
                "window": {"from": "2026-06-01T00:00:00Z", "to": "2026-06-02T00:00:00Z"},
            },
        )
    )
    assert asked.until - asked.since == DAY and asked.reference == "all before"
    one = {"from": "2026-06-01T08:00:00Z", "to": "2026-06-01T08:00:00Z"}
    assert read_drift(report(tmp_path, window=one)).since == read_drift(report(tmp_path, window=one)).until
    for changes, what in (
        ({"cause": None}, "cause missing"),
        ({"verdict": "PASS"}, "verdict 'PASS'"),
        ({"window": {"from": "soon", "to": "2026-06-02"}}, "'soon' is not a time"),
        ({"window": {"from": "2026-06-03", "to": "2026-06-02"}}, "before it begins"),
        ({"families": [1]}, "not a drift report"),
    ):
        with pytest.raises(DataError, match=what):
            read_drift(report(tmp_path, **changes))
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(DataError, match="no drift report"):
        read_drift(tmp_path)


def test_bad_files_and_settings(tmp_path):
    (tmp_path / "state.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="delete it: the history starts again"):
        retrain_check(tmp_path, Evidence(), NOW)
    (tmp_path / "c.yaml").write_text(
        "changes:\n  - {kind: class}\n  - {kind: weather, name: rain, since: 2026-06-01}\n  - {kind: class, "
        "name: nut, since: never}\n"
    )
    with pytest.raises(DataError, match="3 invalid declared changes"):
        read_changes(tmp_path / "c.yaml")
    for text, what in (("[1", "cannot read the declared changes"), ("- a", "the list `changes` is missing")):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(DataError, match=what):
            read_changes(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="2 invalid settings"):
        RetrainPolicy(persistence=0, cooldown_days=-1)
    with pytest.raises(ConfigError, match="the time has no zone"):
        retrain_check(tmp_path / "x", Evidence(), datetime(2026, 6, 1))


def test_one_red_report_has_seen_two_windows_itself(tmp_path):
    """A report with a moving reference: its RED says that the window ahead of it alarmed against the same
    reference."""
    red, amber = window(6, "RED"), window(6, "AMBER")
    state = lambda w, **policy: next(
        t.state for t in triggers(Evidence([w]), RetrainPolicy(**policy), NOW) if t.name == "input drift"
    )
    assert state(red) == "on" and state(amber) == "pending" and state(red, persistence=3) == "pending"
    assert retrain_check(tmp_path, Evidence([red], labels=600), NOW)["action"] == "RETRAIN"


def test_a_plant_that_rests_at_night_has_windows_running(tmp_path):
    "What was asked for are whole days; the frames are from eight to six."
    made = []
    for day in (4, 5, 6):
        period = {"from": f"2026-06-0{day}T00:00:00+00:00", "to": f"2026-06-0{day + 1}T00:00:00+00:00"}
        made.append(
            read_drift(
                report(
                    tmp_path,
                    window={"from": f"2026-06-0{day}T08:00:00+00:00", "to": f"2026-06-0{day}T18:00:00+00:00"},
                    periods={"reference": "all before", "window": period},
                )
            )
        )
    assert (
        running(made)[0] == 3
        and next(
            t.state
            for t in triggers(Evidence(made), RetrainPolicy(persistence=3), NOW)
            if t.name == "input drift"
        )
        == "on"
    )


def test_a_mix_shift_without_named_families_is_told_too():
    assert decide(
        Evidence([DriftWindow(NOW - DAY, NOW, "AMBER", "mix shift", ())]), RetrainPolicy(), NOW
    ) == ("MIX", "the newest window is AMBER, cause: mix shift")
