"""Updates of a device: every refusal with its reason and without harm, resumed downloads, wrong clocks, and
the whole way in processes of their own."""

import json
import shutil
import sys
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from cv_pipeline.core.types import ConfigError, DataError, utc_now
from cv_pipeline.edge import updates as U
from cv_pipeline.edge.agent import Agent, AgentSettings
from cv_pipeline.edge.outbox import Outbox, OutboxSettings
from cv_pipeline.edge.slots import Slots, install_version, read_state, resolve_current, version_folder
from cv_pipeline.release import trust as T
from tests.helpers.device_player import mood_bundle, player_launcher, rows_of
from tests.helpers.waiting import until


class World:
    "A repository of releases and a device that trusts it."

    def __init__(self, folder):
        self.folder, self.repo, self.keys = folder, folder / "releases", folder / "keys"
        self.device, self.models = folder / "device", folder / "device" / "models" / "line"
        self.settings = U.UpdateSettings(str(self.repo), "line", every_s=0.05, preflight=False)

    def release(self, version, mood="well", **how):
        path, _ = mood_bundle(self.folder, version, mood, **how)
        return T.sign_release(self.repo, self.keys, path)[0]

    def order(self, **more):
        settings = asdict(more.pop("settings", self.settings))
        base = {"settings": settings, "folder": str(self.models), "trust": str(self.device / "trust")}
        return base | {"wanted": None, "running": "", "blocked": []} | more

    def prepare(self, **more):
        return U.prepare(self.order(**more))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Made once, copied for each test: keys cost time."
    world = World(tmp_path_factory.mktemp("world"))
    T.new_repository(world.repo, world.keys)
    world.release("1.0")
    T.enrol(world.device / "trust", T.root_of(world.repo))
    return world


@pytest.fixture
def world(made, tmp_path):
    shutil.copytree(made.folder, tmp_path / "world")
    return World(tmp_path / "world")


def releases(world):
    return {r.version: r for r in T.TrustClient(world.device / "trust", world.repo).check().releases}


# --- which release


@pytest.mark.parametrize(
    ("versions", "newest"),
    [
        (["1.9", "1.10"], "1.10"),
        (["2.0-rc1", "1.9"], "2.0-rc1"),
        (["a", "b"], "b"),
        (["1", "1.0.1"], "1.0.1"),
    ],
)
def test_the_newest_version_is_what_people_read_as_newest(versions, newest):
    found = [T.Release("line", v, v * 8, "", 1) for v in versions]
    assert U.choose_release(found, "line", None).version == newest
    assert U.choose_release(found, "line", None, [newest * 8]).version != newest
    assert U.choose_release(found, "other", None) is None


def test_the_wanted_model_must_be_released_and_of_this_device():
    found = [T.Release("line", "1.0", "ab" * 32, "", 1)]
    assert U.choose_release(found, "line", "ab" * 32) == found[0]
    with pytest.raises(DataError, match="not among the signed releases"):
        U.choose_release(found, "line", "cd" * 32)
    with pytest.raises(DataError, match="is 'line', this device runs 'yard'"):
        U.choose_release(found, "yard", "ab" * 32)


# --- what is prepared


def test_a_release_is_fetched_and_installed(world):
    answer = world.prepare()
    assert answer["state"] == "ready" and answer["version"] == "1.0"
    place = version_folder(world.models, answer["digest"])
    assert (place / "mood.txt").read_text() == "well" and resolve_current(world.models) is None


def test_what_runs_already_is_nothing_new(world):
    digest = world.prepare()["digest"]
    assert world.prepare(running=digest)["state"] == "nothing"
    assert world.prepare(blocked=[digest])["state"] == "nothing"


def test_a_bundle_that_was_downloaded_is_not_downloaded_again(world):
    world.prepare()
    shutil.rmtree(world.models / "versions")
    shutil.rmtree(world.repo / "targets")
    assert world.prepare()["state"] == "ready"


def test_a_torn_bundle_in_the_inbox_is_downloaded_again(world):
    digest = world.prepare()["digest"]
    shutil.rmtree(world.models / "versions")
    bundle = world.models / "inbox" / f"{digest[:12]}.bundle"
    bundle.write_bytes(bundle.read_bytes()[:700])
    assert world.prepare()["state"] == "ready"


def replay(world):
    "An older state is offered again."
    shutil.copytree(world.repo, world.folder / "before")
    world.release("1.1")
    world.prepare()
    shutil.rmtree(world.repo)
    shutil.move(world.folder / "before", world.repo)


def change_a_byte(world):
    target = next((world.repo / "targets").rglob("*.bundle"))
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(data)


def strangers_key(world):
    other = World(world.folder / "other")
    T.new_repository(other.repo, other.keys)
    other.release("9.9")
    shutil.rmtree(world.repo)
    shutil.move(other.repo, world.repo)


def withdrawn(world):
    T.withdraw_release(world.repo, world.keys, releases(world)["1.0"].digest)


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (replay, "rollback: "),
        (change_a_byte, "changed: "),
        (strangers_key, "signature: |invalid: |rollback: "),
    ],
)
def test_an_attack_is_refused_with_its_reason(world, attack, reason):
    attack(world)
    answer = world.prepare()
    assert answer["state"] == "refused" and answer["reason"].startswith(tuple(reason.split("|")))


def test_what_was_withdrawn_is_not_installed(world):
    digest = releases(world)["1.0"].digest
    withdrawn(world)
    assert world.prepare()["state"] == "nothing"
    assert "not among the signed releases" in world.prepare(wanted=digest)["reason"]


def test_a_source_that_is_away_only_waits(world):
    answer = world.prepare(settings=replace(world.settings, source=str(world.folder / "stick")))
    assert answer["state"] == "waiting" and "not reachable" in answer["reason"]


def test_a_device_that_was_not_enrolled_says_so(world):
    assert "not enrolled" in world.prepare(trust=str(world.folder / "nobody"))["reason"]


def test_expired_metadata_only_waits(world):
    T.resign_timestamp(world.repo, world.keys, now=lambda: utc_now() - timedelta(days=60))
    answer = world.prepare()
    assert answer["state"] == "waiting" and answer["reason"].startswith(T.UNVERIFIED)


def test_a_clock_that_fell_back_is_reported_and_does_not_stop_updates(world):
    "The latest time that was seen is kept: after a battery failed, updates are judged by that."
    world.prepare()
    path = world.device / "trust" / "seen.json"
    later = (utc_now() + timedelta(days=10)).isoformat()
    path.write_text(json.dumps({"good": later, "latest": later}))
    answer = world.prepare()
    assert answer["state"] == "ready" and 9.9 * 86400 < answer["clock_behind_s"] < 10.1 * 86400


def test_a_clock_a_year_behind_cannot_hide_that_metadata_is_stale(world):
    path = world.device / "trust" / "seen.json"
    later = (utc_now() + timedelta(days=365)).isoformat()
    path.write_text(json.dumps({"good": later, "latest": later}))
    answer = world.prepare()
    assert answer["state"] == "waiting" and answer["clock_behind_s"] > 364 * 86400


def test_a_full_disk_is_a_refusal(world, monkeypatch):
    from cv_pipeline.release import bundles

    usage = SimpleNamespace(free=10)
    monkeypatch.setattr(bundles.shutil, "disk_usage", lambda path: usage)
    answer = world.prepare()
    assert answer["state"] == "refused" and "the disk has" in answer["reason"]


def test_settings_that_mean_nothing_are_refused():
    for wrong in ({"source": ""}, {"every_s": 0}, {"limit_s": -1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            U.UpdateSettings(**{"source": "x", "name": "line"} | wrong)


# --- beside the agent


QUICK = AgentSettings(probation_s=0.2, grace_s=2, poll_s=0.02, ready_s=5, unready_s=0.3)


@pytest.fixture
def beside(world):
    "A device with an agent; runs are played."
    with (
        Outbox(world.folder / "outbox", OutboxSettings(ballast_bytes=0)) as box,
        Slots(world.models) as slots,
    ):
        agent = Agent(slots, player_launcher(world.folder), box, QUICK)
        updates = U.Updates(world.settings, world.device / "trust")
        agent.listeners.append(updates)
        yield agent, updates, box
        updates.close()
        agent.stop()


def stepped(agent, happened, seconds=90.0):
    def look():
        agent.step()
        return happened()

    until(look, seconds)


def answering(monkeypatch, *answers):
    "The process that prepares answers with these, one after the other."
    code = "import json, sys; sys.stdin.read(); print(json.dumps({}))"
    commands = [("-c", code.format(repr(a))) for a in answers]
    asked = []

    class Popen(U.subprocess.Popen):
        def __init__(self, command, **how):
            asked.append(command)
            command = commands[min(len(asked), len(commands)) - 1]
            super().__init__([sys.executable, *command], **how)

    monkeypatch.setattr(U, "subprocess", SimpleNamespace(Popen=Popen, PIPE=U.subprocess.PIPE))
    return asked


@pytest.mark.slow
def test_the_whole_way_of_an_order(world, beside):
    agent, updates, box = beside
    release = world.release("1.1")
    stepped(agent, lambda: agent.status.state == "no model")
    updates.want(release.digest)
    stepped(agent, lambda: agent.slots.state.current == release.digest)
    stepped(agent, lambda: not (world.models / "inbox").exists())
    assert [e["what"] for e in rows_of(box, "event") if e["what"] != "hardware"] == ["committed"]
    assert agent.status.update == f"update: committed {release.digest[:12]}"
    bad = world.release("1.2", "crashes")
    updates.want(bad.digest)
    stepped(agent, lambda: bad.digest in agent.slots.state.blocked)
    stepped(agent, lambda: agent.status.update.startswith("update: refused — blocked"))
    assert agent.slots.state.current == release.digest


def test_what_was_downloaded_before_a_restart_is_kept(world, beside):
    world.prepare()
    agent, _, _ = beside
    for _ in range(5):
        agent.step()
    assert list((world.models / "inbox").glob("*.bundle")) and list((world.models / "versions").iterdir())


def test_without_a_wish_nothing_is_asked(beside, monkeypatch):
    agent, updates, _ = beside
    asked = answering(monkeypatch, {"state": "nothing"})
    for _ in range(20):
        agent.step()
    assert asked == [] and updates.process is None


def test_a_refusal_is_reported_once_and_asked_again_later_and_later(beside, monkeypatch):
    agent, updates, box = beside
    clock = SimpleNamespace(now=0.0)
    updates.clock = lambda: clock.now
    updates._due = 0.0
    asked = answering(monkeypatch, {"state": "refused", "reason": "changed: not the one that was signed"})
    updates.want("ab" * 32)
    times = []
    for number in range(1, 5):
        while len(asked) < number:
            clock.now += 0.01
            agent.step()
        times.append(clock.now)
        stepped(agent, lambda: updates.process is None)
    gaps = [b - a for a, b in zip(times, times[1:])]
    assert gaps[0] < gaps[1] < gaps[2]
    texts = [e["text"] for e in rows_of(box, "event") if e["what"] == "update"]
    assert texts == ["update: refused — changed: not the one that was signed"] == [agent.status.update]


def test_a_model_that_fails_its_preflight_is_blocked(beside, monkeypatch):
    agent, updates, box = beside
    digest = "ab" * 32
    answering(monkeypatch, {"state": "unfit", "digest": digest, "reason": "a picture takes 900 ms"})
    updates.want(digest)
    stepped(agent, lambda: digest in agent.slots.state.blocked)
    assert agent.slots.state.blocked[digest] == "a picture takes 900 ms"
    assert "a picture takes 900 ms" in agent.status.update


@pytest.mark.parametrize("text", ["", "nothing\n", "[]\n"])
def test_a_process_that_dies_is_a_refusal(beside, monkeypatch, text):
    agent, updates, _ = beside

    class Popen(U.subprocess.Popen):
        def __init__(self, command, **how):
            super().__init__(
                [sys.executable, "-c", f"import os; os.write(1, {text.encode()!r}); os._exit(7)"], **how
            )

    monkeypatch.setattr(U, "subprocess", SimpleNamespace(Popen=Popen, PIPE=U.subprocess.PIPE))
    updates.want("ab" * 32)
    stepped(agent, lambda: "ended with 7" in agent.status.update)


def test_a_process_that_hangs_is_ended_with_its_children(beside, monkeypatch, tmp_path):
    agent, updates, _ = beside
    updates.settings = replace(updates.settings, limit_s=0.5, every_s=600)
    note = tmp_path / "pid"
    code = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '600']); "
    code += f"open({str(note)!r}, 'w').write(str(p.pid)); time.sleep(600)"

    class Popen(U.subprocess.Popen):
        def __init__(self, command, **how):
            super().__init__([sys.executable, "-c", code], **how)

    monkeypatch.setattr(U, "subprocess", SimpleNamespace(Popen=Popen, PIPE=U.subprocess.PIPE))
    updates.want("ab" * 32)
    agent.step()
    until(lambda: note.exists() and note.read_text(), 60)
    stepped(agent, lambda: "not ready within 0.5 s" in agent.status.update)
    until(lambda: gone(int(note.read_text())), 30)


def gone(pid):
    "Whether a process has ended; a zombie of init counts."
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_nothing_is_begun_while_updates_are_paused(beside, monkeypatch):
    agent, updates, _ = beside
    asked = answering(monkeypatch, {"state": "nothing"})
    updates.paused = True
    updates.want("ab" * 32)
    for _ in range(20):
        agent.step()
    assert asked == []
    updates.paused = False
    stepped(agent, lambda: asked)


def test_nothing_is_asked_during_a_trial(world, beside, monkeypatch):
    agent, updates, _ = beside
    asked = answering(monkeypatch, {"state": "nothing"})
    bundle, digest = mood_bundle(world.folder, "3.0", "blind")
    install_version(world.models, bundle, digest)
    agent.switch(digest)
    updates.want("ab" * 32)
    for _ in range(20):
        agent.step()
    assert asked == [] and read_state(world.models).trying == digest


def test_a_refusal_that_has_passed_is_taken_back(beside, monkeypatch):
    agent, updates, _ = beside
    answering(monkeypatch, {"state": "waiting", "reason": "source not reachable"}, {"state": "nothing"})
    updates.want("ab" * 32)
    stepped(agent, lambda: agent.status.update.startswith("update: waiting"))
    stepped(agent, lambda: agent.status.update == "")


def test_a_ready_version_that_has_vanished_is_a_sentence(beside, monkeypatch):
    agent, updates, _ = beside
    answering(monkeypatch, {"state": "ready", "digest": "ab" * 32})
    updates.want("ab" * 32)
    stepped(agent, lambda: "not an installed version" in agent.status.update)
    assert agent.slots.state.trying == ""


@pytest.mark.slow
def test_a_model_that_was_put_back_is_not_tried_again_at_once(world, beside):
    "Its run ended because of a camera: it is not blocked, and the next trial is later than the last one."
    agent, updates, _ = beside
    stepped(agent, lambda: agent.status.state == "no model")
    release = world.release("1.1", "exit 3")
    updates.settings = replace(updates.settings, every_s=600)
    updates.want(release.digest)
    stepped(agent, lambda: agent.status.rolled_back)
    agent.step()
    assert agent.slots.state.blocked == {} and updates._refusals == 1
    assert updates._due > updates.clock() + 500


def ready(agent, updates, monkeypatch, world, tracks):
    "A version that may be switched to, beside a run whose cameras have tracks; the clock of the updates."
    now, bundle = [100.0], mood_bundle(world.folder, "3.0", "good")
    install_version(world.models, *bundle)
    answering(monkeypatch, {"state": "ready", "digest": bundle[1]})
    monkeypatch.setattr(agent, "tracks_now", lambda: tracks[0])
    updates.clock, updates._due = lambda: now[0], 0.0
    updates.want(bundle[1])
    stepped(agent, lambda: updates._ready is not None or agent.slots.state.trying)
    return now, bundle[1]


def test_a_switch_waits_until_no_camera_has_a_track(world, beside, monkeypatch):
    agent, updates, _ = beside
    tracks = [2]
    _, digest = ready(agent, updates, monkeypatch, world, tracks)
    for _ in range(5):
        agent.step()
    assert not agent.slots.state.trying and "waits until no camera has a track" in agent.status.update
    tracks[0] = 0
    stepped(agent, lambda: agent.slots.state.trying == digest)


def test_a_switch_does_not_wait_for_ever(world, beside, monkeypatch):
    agent, updates, _ = beside
    now, digest = ready(agent, updates, monkeypatch, world, [2])
    now[0] += 29.0
    agent.step()
    assert not agent.slots.state.trying
    now[0] += 1.5
    agent.step()
    assert agent.slots.state.trying == digest


def test_a_wish_that_has_changed_meanwhile_is_not_switched_to(world, beside, monkeypatch):
    agent, updates, _ = beside
    ready(agent, updates, monkeypatch, world, [2])
    updates.want(None)
    updates.paused = True
    agent.step()
    assert updates._ready is None and not agent.slots.state.trying


@pytest.mark.parametrize("tracks, waiting, may", [(0, 0, True), (1, 29.9, False), (1, 30, True)])
def test_no_switch_within_a_track(tracks, waiting, may):
    assert U.may_switch(tracks, waiting) is may
