"""From heartbeats to states, and a model on its way through a fleet: rings, brakes, pauses, silence."""

import json
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.edge.central import CentreStore, Heard, changing, hear
from cv_pipeline.edge.devices import (
    STATES,
    FleetLimits,
    Known,
    abort_push,
    advance_push,
    example_fleet,
    fleet_families,
    in_words,
    keep_drift,
    pause_devices,
    push_model,
    read_device,
    read_fleet,
    read_pushes,
    resume_devices,
    settle_pushes,
)
from cv_pipeline.edge.forward import Inbox
from cv_pipeline.release.rollout import Policy, RolloutReport, RolloutVerdict

OLD, NEW, NEXT = "a1" * 32, "c3" * 32, "d4" * 32
WELL = {"state": "running", "model": {"name": "line", "version": "1.0", "digest": OLD}}
NOW = 1.8e9


def device(change=None, age=5.0, **known):
    return read_device("box-1", "hall", Heard(NOW - age, {**WELL, **(change or {})}), NOW, Known(**known))


@pytest.mark.parametrize(
    "change, age, known, state",
    [
        ({}, 29, {}, "ok"),
        ({}, 31, {}, "stale"),
        ({}, 301, {}, "offline"),
        ({"state": "no model"}, 5, {}, "no model"),
        ({"trying": NEW}, 5, {}, "trying"),
        ({"rolled_back": {"digest": NEW, "why": "crashed"}}, 5, {}, "rolled back"),
        ({"rolled_back": {"digest": NEW, "why": "crashed"}}, 5, {"newest": NEW}, "rolled back"),
        ({"rolled_back": {"digest": NEW, "why": "crashed"}}, 5, {"newest": NEXT}, "ok"),
        ({"rolled_back": {}}, 5, {}, "ok"),
        ({"outbox": {"state": "disk"}}, 5, {}, "disk"),
        ({"hardware": {"disk_free": 0.04}}, 5, {}, "disk"),
        ({"hardware": {"disk_free": 0.06}}, 5, {}, "ok"),
        ({"at": NOW - 5 - 31}, 5, {}, "clock off"),
        ({"at": NOW - 5 + 31}, 5, {}, "clock off"),
        ({"at": 0.0}, 5, {}, "clock off"),
        ({"at": NOW - 5 + 29}, 5, {}, "ok"),
        ({}, 5, {"clock_error_s": -86400.0}, "clock off"),
        ({}, 5, {"forked_s": 3600.0}, "fork"),
        ({}, 5, {"forked_s": 86401.0}, "ok"),
        ({"state": "no model"}, 400, {"forked_s": 1.0}, "no model"),
    ],
)
def test_each_state_has_its_reason(change, age, known, state):
    found = device(change, age, **known)
    assert found.state == state
    assert [r.partition(":")[0] for r in found.reasons][:1] == ([] if state == "ok" else [state])


def test_all_reasons_are_kept_the_worst_first():
    found = device({"state": "no model", "at": 0.0, "hardware": {"disk_free": 0.01}}, 4000)
    assert [r.partition(":")[0] for r in found.reasons] == ["no model", "offline", "disk", "clock off"]


def test_a_device_that_was_never_heard_is_new():
    assert read_device("box-1", "hall", None, NOW).state == "new"


def test_what_needs_a_person_on_a_device_that_is_ok():
    assert not device({"cameras": {"up": 2, "of": 2}}).attention
    assert device({"cameras": {"up": 1, "of": 2}}).attention
    assert device({"upkeep": {"gate": ["dark", "moved"]}}).upkeep == ("gate: dark", "gate: moved")
    assert device({"signals": {"too hot": "84 °C"}}).hardware == ("too hot: 84 °C",)
    assert device(drift="RED").attention and not device(drift="GREEN").attention


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = (
    "state reason at model trying rolled_back outbox cameras hardware upkeep signals update blocked"
).split()


@given(st.dictionaries(st.sampled_from(KEYS), anything))
@settings(max_examples=80)
def test_no_heartbeat_breaks_the_centre(body):
    body = json.loads(json.dumps(body))
    found = read_device("box-1", "hall", Heard(NOW, body), NOW + 1)
    assert found.state in STATES
    assert all("\n" not in r and len(r) < 400 for r in found.reasons)
    list(fleet_families([found]))


@pytest.mark.parametrize(
    "seconds, words",
    [(0, "0 s"), (119, "119 s"), (121, "2 min"), (7300, "2 h"), (200_000, "2 d"), (None, "")],
)
def test_times_in_words(seconds, words):
    assert in_words(seconds) == words


def test_bad_limits_are_listed():
    with pytest.raises(ConfigError, match="2 invalid limits of a fleet"):
        FleetLimits(beat_s=0, stale_beats=30)


# -- the fleet


@pytest.fixture
def store(tmp_path):
    clock = [NOW]
    with closing(CentreStore(tmp_path / "centre", now=lambda: clock[0])) as made:
        made.clock = clock
        with changing(made) as db:
            for k in range(20):
                row = (f"box-{k:02d}", f"hash {k}", ("north", "south")[k % 2])
                db.execute("INSERT INTO devices VALUES (?, ?, ?, 0, NULL)", row)
        for name in made.sites:
            hear(made, name, {**WELL, "at": made.clock[0]})
        yield made


def beat(store, digest, bad=(), silent=()):
    "One heartbeat of each device; it does what is wanted, or rolls back."
    store.clock[0] += 10
    for name in store.sites:
        if name in silent:
            continue
        body = {**store.beats[name].body, "at": store.clock[0]}
        answer = hear(store, name, body)
        wish = (answer["wanted"] or {}).get("digest", "")
        if answer["paused"] or not wish:
            continue
        if wish == digest and (bad == "all" or name in bad):
            body["rolled_back"] = {"digest": digest, "why": "crashed at load"}
        else:
            body["model"] = {"name": "line", "version": "x", "digest": wish}
        hear(store, name, body)


def play(store, digest, beats=12, **how):
    decided = []
    for _ in range(beats):
        beat(store, digest, **how)
        decided += settle_pushes(store)
    return decided


QUICK = Policy(hours=0.0, steps=(0.1, 0.3, 1.0))


def runs(store, digest):
    return sorted(n for n, h in store.beats.items() if h.body["model"]["digest"] == digest)


def test_a_model_takes_ring_after_ring_of_each_site(store):
    push = push_model(store, "line", NEW, "1.1", QUICK)
    sizes = [len(push.state.cameras)]
    assert {store.sites[d] for d in push.state.cameras} == {"north", "south"}
    for _ in range(4):
        beat(store, NEW)
        settle_pushes(store)
        sizes.append(len(read_pushes(store)[-1].state.cameras))
    assert sizes == [2, 6, 20, 20, 20] and read_pushes(store)[-1].state.stage == "promoted"
    assert len(runs(store, NEW)) == 20


def test_each_ring_lasts_its_time(store):
    push_model(store, "line", NEW, "1.1", Policy(hours=1.0))
    assert play(store, NEW, 30) == []
    store.clock[0] += 3600
    assert len(play(store, NEW, 1)) == 1


def test_two_of_the_first_ring_that_roll_back_halt_it_everywhere(store):
    push_model(store, "line", NEW, "1.1", QUICK)
    decided = play(store, NEW, bad="all")
    assert [d.partition(":")[0] for d in decided] == ["halted line 1.1"]
    assert read_pushes(store)[-1].state.stage == "halted"
    assert runs(store, OLD) == sorted(store.sites)
    assert {w["digest"] for w in store.wanted.values()} == {OLD}, "who rolled back is not asked again"


def test_a_fifth_of_all_that_roll_back_halts_a_later_ring(store):
    push = push_model(store, "line", NEW, "1.1", QUICK)
    order = [d for ring in zip(*push.state.order.values()) for d in ring]
    decided = play(store, NEW, bad=order[6:14])
    assert decided[-1].startswith("halted line 1.1: 8 of 20 devices rolled back")
    assert len(runs(store, NEW)) == 12, "those on which it is good keep it"


def test_one_device_that_rolls_back_does_not_stop_the_others(store):
    push = push_model(store, "line", NEW, "1.1", QUICK)
    play(store, NEW, bad=push.state.cameras[:1])
    assert read_pushes(store)[-1].state.stage == "promoted" and len(runs(store, NEW)) == 19


def test_silence_never_promotes(store):
    push_model(store, "line", NEW, "1.1", QUICK)
    store.clock[0] += 90 * 86400
    assert settle_pushes(store) == []
    assert read_pushes(store)[-1].state.step == 0


def test_devices_that_are_away_do_not_hold_up_the_others(store):
    push = push_model(store, "line", NEW, "1.1", QUICK)
    away = push.state.cameras[0]
    decided = play(store, NEW, beats=20, silent=[away])
    assert "1 of 2 devices run it, 1 are away" in decided[0]
    assert read_pushes(store)[-1].state.stage == "promoted"
    beat(store, NEW)
    assert away in runs(store, NEW), "it gets the model when it is back"


def test_a_paused_fleet_changes_nothing(store):
    push_model(store, "line", NEW, "1.1", QUICK)
    pause_devices(store, ["*"], "stocktaking")
    assert play(store, NEW) == [] and runs(store, NEW) == []
    resume_devices(store, ["*"])
    play(store, NEW)
    assert len(runs(store, NEW)) == 20


def test_a_paused_device_is_left_out(store):
    push = push_model(store, "line", NEW, "1.1", QUICK)
    pause_devices(store, push.state.cameras[:1], "rebuilt")
    play(store, NEW)
    assert len(runs(store, NEW)) == 19
    assert [d.name for d in read_fleet(store) if d.paused] == list(push.state.cameras[:1])


def test_an_aborted_push_brings_the_old_model_back(store):
    push_model(store, "line", NEW, "1.1", QUICK)
    play(store, NEW, 2)
    assert runs(store, NEW)
    abort_push(store, NEW[:8], "wrong file")
    beat(store, NEW)
    assert runs(store, OLD) == sorted(store.sites)
    with pytest.raises(ConfigError, match="is on its way"):
        abort_push(store, NEW[:8], "again")


def test_the_next_model_after_a_good_one(store):
    for digest in (NEW, NEXT):
        push_model(store, "line", digest, digest[:2], QUICK)
        play(store, digest)
    assert len(runs(store, NEXT)) == 20
    assert {w["digest"] for w in store.wanted.values()} == {NEXT}


def test_a_new_device_gets_what_all_have(store):
    push_model(store, "line", NEW, "1.1", QUICK)
    play(store, NEW)
    with changing(store) as db:
        db.execute("INSERT INTO devices VALUES ('box-99', 'x', 'north', 0, NULL)")
    settle_pushes(store)
    assert store.wanted["box-99"] == {"model": "line", "digest": NEW}


def test_a_fleet_without_a_model_has_nothing_to_return_to(store):
    for name in store.sites:
        hear(store, name, {"state": "no model", "model": {"digest": ""}})
    push = push_model(store, "line", NEW, "1.1", QUICK)
    assert push.state.previous == "none"
    abort_push(store, NEW, "wrong file")
    assert store.wanted == {}


def test_a_rollout_whose_file_is_damaged_changes_no_wish_and_hides_no_device(store):
    push = push_model(store, "line", NEW, "1.1", QUICK)
    wishes = dict(store.wanted)
    lines = push.file.read_text().splitlines()
    push.file.write_text("\n".join(["{torn", *lines]) + "\n")
    with pytest.raises(DataError):
        settle_pushes(store)
    assert store.wanted == wishes and len(wishes) == 2
    assert len(read_fleet(store)) == 20
    assert read_pushes(store, strict=False) == []


def test_what_was_decided_survives_a_restart(store, tmp_path):
    push_model(store, "line", NEW, "1.1", QUICK)
    play(store, NEW, 1)
    with closing(CentreStore(tmp_path / "centre", now=lambda: store.clock[0])) as again:
        assert again.wanted == store.wanted and len(again.wanted) == 6
        assert [p.digest for p in read_pushes(again)] == [NEW]


@pytest.mark.parametrize(
    "how, words",
    [
        ({"digest": "1.1"}, "is not a digest of a bundle"),
        ({"digest": "Z" * 64}, "is not a digest of a bundle"),
        ({"digest": NEW}, "line 1.0 is on its way"),
    ],
)
def test_a_push_that_cannot_be_is_refused(store, how, words):
    push_model(store, "line", NEXT, "1.0", QUICK)
    with pytest.raises(ConfigError, match=words):
        push_model(store, "line", version="1.1", **how)


def test_a_push_without_devices_is_refused(tmp_path):
    with closing(CentreStore(tmp_path)) as empty, pytest.raises(ConfigError, match="no device is enrolled"):
        push_model(empty, "line", NEW)


@pytest.mark.parametrize("devices, reason", [(["box-99"], "x"), ([], "x"), (["box-01"], "  ")])
def test_a_pause_needs_known_devices_and_a_reason(store, devices, reason):
    with pytest.raises(ConfigError, match="unknown devices: box-99|no device, or no reason"):
        pause_devices(store, devices, reason)


def test_gaps_copied_cards_and_clocks_come_from_the_inbox(store, tmp_path):
    with closing(Inbox(tmp_path / "inbox")) as inbox:
        sql = "INSERT INTO findings(device, spool, what, first, last, at) VALUES (?, 's', ?, ?, ?, ?)"
        inbox.base.db.execute(sql, ("box-01", "gap", 11, 20, NOW))
        inbox.base.db.execute(sql, ("box-01", "gap", 31, 35, NOW))
        inbox.base.db.execute(sql, ("box-02", "fork", 1, 9, NOW - 60))
        sql = "INSERT INTO spools(device, lane, spool, mark, digest, clock_error, last) "
        sql += "VALUES (?, 'run', ?, 1, '', ?, ?)"
        inbox.base.db.execute(sql, ("box-03", "old", 0.0, NOW - 999))
        inbox.base.db.execute(sql, ("box-03", "new", 7200.0, NOW))
        hear(store, "box-03", WELL)
        found = {d.name: d for d in read_fleet(store, inbox)}
    assert found["box-01"].gaps == 15
    assert found["box-02"].state == "fork"
    assert (found["box-03"].state, found["box-03"].clock_error_s) == ("clock off", 7200.0)


def test_drift_of_a_device_is_the_worst_of_its_cameras(store):
    class Drift:
        verdict = "AMBER"
        devices = ("box-01/gate",)
        cameras = [
            {"camera": "box-01/gate", "judged": True},
            {"camera": "box-01/dock", "judged": True},
            {"camera": "box-02/gate", "judged": True},
            {"camera": "box-03/gate", "judged": False},
        ]

    assert keep_drift(store, Drift) == {"box-01": "AMBER", "box-02": "GREEN", "box-03": "GREY"}
    assert {d.name: d.drift for d in read_fleet(store) if d.drift} == {
        "box-01": "AMBER",
        "box-02": "GREEN",
        "box-03": "GREY",
    }


def test_figures_name_each_device_once(store):
    from datetime import datetime, timedelta, timezone

    push_model(store, "line", NEW, "1.1", QUICK)
    hour_later = datetime.fromtimestamp(NOW, timezone.utc) + timedelta(hours=1)
    found = {f.name: f for f in fleet_families(read_fleet(store), read_pushes(store), hour_later)}
    states = found["cv_pipeline_fleet_state"].samples
    assert len({s.labels["device"] for s in states}) == len(states) == 20
    assert [s.value for s in found["cv_pipeline_fleet_step_seconds"].samples] == [3600.0]


def test_the_example_has_every_kind_of_trouble(tmp_path):
    with closing(CentreStore(tmp_path, now=lambda: NOW)) as store:
        example_fleet(store)
        found = {d.state for d in read_fleet(store)}
    assert found == {"ok", "stale", "offline", "disk", "rolled back", "clock off"}


SLOW = Policy(hours=24.0, steps=(0.1, 0.3, 1.0))  # time alone takes no ring in these tests


def verdict(word):
    return RolloutReport(RolloutVerdict(word), ())


def test_the_verdict_of_a_trial_takes_ring_after_ring(store):
    push_model(store, "line", NEW, "1.1", SLOW)
    assert play(store, NEW, beats=3) == [] and len(runs(store, NEW)) == 2
    for devices in (6, 20):
        assert len(advance_push(store, NEW[:12], verdict("PROMOTE")).state.cameras) == devices
        play(store, NEW, beats=2)
        assert len(runs(store, NEW)) == devices
    assert advance_push(store, NEW[:12], verdict("PROMOTE")).state.stage == "promoted"


def test_the_verdict_of_a_trial_brings_the_old_model_back_on_all_devices(store):
    push_model(store, "line", NEW, "1.1", SLOW)
    play(store, NEW, beats=2)
    assert advance_push(store, NEW, verdict("ROLLBACK")).state.stage == "rolled back"
    play(store, NEW, beats=2)
    assert runs(store, NEW) == [] and len(runs(store, OLD)) == 20


@pytest.mark.parametrize("word", ["INSUFFICIENT", "NEEDS LABELS"])
def test_a_verdict_that_is_none_changes_nothing(store, word):
    push_model(store, "line", NEW, "1.1", SLOW)
    before = dict(store.wanted)
    assert advance_push(store, NEW, verdict(word)).state.step == 0 and store.wanted == before
    with pytest.raises(ConfigError, match="is on its way"):
        advance_push(store, "f" * 12, verdict("PROMOTE"))


def test_devices_that_find_a_model_unfit_before_the_switch_halt_it(store):
    push = push_model(store, "line", NEW, "1.1", SLOW)
    for name in push.state.cameras:
        body = {**store.beats[name].body, "blocked": {NEW[:12]: "it cannot be opened"}}
        hear(store, name, body)
    decided = settle_pushes(store)
    assert len(decided) == 1 and decided[0].startswith("halted line 1.1: 2 consecutive devices")
    assert store.query("SELECT DISTINCT reason FROM outcomes") == [{"reason": "it cannot be opened"}]
    assert {w["digest"] for n, w in store.wanted.items() if n in push.state.cameras} == {OLD}
