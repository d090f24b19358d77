"""Slots of a device: killed at every step with four kinds of bundles, by an exception and by SIGKILL, and one
whole model is what is left."""

import shutil
import signal
import threading
from collections import Counter
from contextlib import suppress

import pytest

from cv_pipeline.core.files import Busy
from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.edge import slots as S
from tests.helpers.device_lives import KINDS, Killed, killed_lives, live
from tests.helpers.device_player import mood_bundle
from tests.helpers.power_cut import Disk


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Two bundles, and a damaged one."
    folder = tmp_path_factory.mktemp("bundles")
    old, new = mood_bundle(folder, "1.0"), mood_bundle(folder, "1.1")
    damaged = folder / "damaged.bundle"
    data = bytearray(new[0].read_bytes())
    data[-1100] ^= 1  # in the last file
    damaged.write_bytes(data)
    return {"old": old, "new": new, "damaged": (damaged, new[1])}


def installed(folder, bundle, digest):
    "A device with one good model."
    S.install_version(folder, bundle, digest)
    with S.Slots(folder) as slots:
        slots.begin(digest)
        slots.commit()
    return folder


@pytest.fixture
def device(tmp_path, made):
    return installed(tmp_path / "models" / "line", *made["old"])


def verdict(folder, made, kind, starts):
    "What must hold after any kill."
    place = S.resolve_current(folder)
    S.check_version(place)
    state = S.read_state(folder)
    assert state.trying == "" and place.name == state.current[:12]
    good = kind == "good"
    assert state.current == made["new" if good else "old"][1]
    assert good or starts[made["new"][1][:12]] <= 2
    assert (made["new"][1] in state.blocked) == (kind in ("bad health", "kills its agent"))
    assert not list(folder.glob(".current.*"))


def steps_of(folder, made, kind, stop_at):
    "Lives of a device that is killed at its n-th step by an exception; starts, and the steps it made."
    bundle, digest = made["damaged" if kind == "damaged" else "new"]
    seen, starts = [], Counter()

    def step(name):
        seen.append(name)
        if len(seen) == stop_at:
            raise Killed

    for _ in range(6):
        with suppress(Killed):
            live(folder, bundle, digest, kind, step, lambda name: starts.update([name]))
    return starts, seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_every_step_leaves_one_whole_model(kind, made, device, tmp_path):
    shutil.copytree(device, tmp_path / "all", symlinks=True)
    count = len(steps_of(tmp_path / "all", made, kind, 0)[1])
    assert count >= {"good": 7, "bad health": 9, "damaged": 0, "kills its agent": 9}[kind]
    for stop_at in range(count + 1):
        folder = tmp_path / str(stop_at)
        shutil.copytree(device, folder, symlinks=True)
        starts, _ = steps_of(folder, made, kind, stop_at)
        verdict(folder, made, kind, starts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_sigkill_at_some_steps(kind, made, device, tmp_path):
    bundle, digest = made["damaged" if kind == "damaged" else "new"]
    for stop_at in (1, 3, 4, 5, 6, 8):
        folder = tmp_path / f"k{stop_at}"
        shutil.copytree(device, folder, symlinks=True)
        starts, ends, steps = killed_lives(folder, bundle, digest, kind, stop_at)
        assert ends[-1] == 0
        assert -signal.SIGKILL in ends or steps < stop_at
        verdict(folder, made, kind, starts)


def test_after_a_power_cut_at_any_moment_the_state_names_whole_models(made, device, tmp_path, monkeypatch):
    "What was not flushed is lost; a state that is found never names a version that is not whole."
    bundle, digest = made["new"]
    disk, named = Disk(device.parent, monkeypatch), []
    S.install_version(device, bundle, digest)
    with S.Slots(device) as slots:
        slots.begin(digest)
        slots.start()
        slots.commit()
    for moment in range(len(disk.moments)):
        folder = disk.after_cut(tmp_path / f"cut{moment}", moment) / device.name
        state = S.read_state(folder)
        for known in filter(None, (state.current, state.trying)):
            S.check_version(S.version_folder(folder, known))
        named.append((state.current, state.trying))
    disk.close()
    assert list(dict.fromkeys(named)) == [(made["old"][1], ""), (made["old"][1], digest), (digest, "")]


def test_two_agents_in_one_folder(device):
    with S.Slots(device):
        with pytest.raises(Busy, match="another agent has this folder open"):
            S.Slots(device)
    S.Slots(device).close()


def test_readers_never_see_two_versions(made, device):
    "A reader that resolves the link once finds files of one version, while the link is switched."
    S.install_version(device, *made["new"])
    stop, problems = threading.Event(), []

    def read():
        while not stop.is_set():
            place = S.resolve_current(device)
            try:
                S.check_version(place)
            except Exception as e:
                problems.append(e)

    reader = threading.Thread(target=read)
    reader.start()
    with S.Slots(device) as slots:
        for _ in range(20):
            slots.begin(made["new"][1])
            slots.rollback("again", block=False)
    stop.set()
    reader.join()
    assert problems == []


def test_a_blocked_model_is_refused_until_it_is_allowed(made, device):
    S.install_version(device, *made["new"])
    with S.Slots(device) as slots:
        slots.begin(made["new"][1])
        slots.rollback("too many false alarms")
        with pytest.raises(ConfigError, match="blocked: too many false alarms"):
            slots.begin(made["new"][1])
        assert slots.unblock(made["new"][1][:6].upper()) == made["new"][1]
        slots.begin(made["new"][1])


def test_what_was_put_back_is_not_blocked(made, device):
    S.install_version(device, *made["new"])
    with S.Slots(device) as slots:
        slots.begin(made["new"][1])
        slots.rollback("no camera", block=False)
        assert slots.state.blocked == {} and slots.state.current == made["old"][1]


def test_the_first_model_can_be_rolled_back_to_none(tmp_path, made):
    S.install_version(tmp_path / "m", *made["new"])
    with S.Slots(tmp_path / "m") as slots:
        slots.begin(made["new"][1])
        slots.rollback("bad")
        assert slots.start() is None and S.resolve_current(tmp_path / "m") is None


def test_nothing_to_roll_back_to_is_an_error_and_changes_nothing(device, made):
    with S.Slots(device) as slots:
        with pytest.raises(ConfigError, match="no previous model"):
            slots.rollback("why not")
        assert S.resolve_current(device).name == made["old"][1][:12]
        with pytest.raises(ConfigError, match="no model is on trial"):
            slots.commit()
        with pytest.raises(ConfigError, match="runs already"):
            slots.begin(made["old"][1])
        with pytest.raises(ConfigError, match="this model runs"):
            slots.block(made["old"][1], "x")


def test_a_rollback_by_hand_goes_to_the_one_before(device, made):
    S.install_version(device, *made["new"])
    with S.Slots(device) as slots:
        slots.begin(made["new"][1])
        slots.commit()
        slots.rollback("misses bolts")
        assert (slots.state.current, slots.state.previous) == (made["old"][1], "")
        assert S.resolve_current(device).name == made["old"][1][:12]


def test_a_trial_needs_a_whole_version(device, made):
    place = S.install_version(device, *made["new"])
    (place / "net.bin").unlink()
    with S.Slots(device) as slots:
        with pytest.raises(DataError, match="not an installed version"):
            slots.begin(made["new"][1])
        with pytest.raises(DataError):
            slots.begin("ab" * 32)
        assert slots.state.trying == ""


def test_a_damaged_version_is_made_again(device, made):
    place = S.install_version(device, *made["new"])
    (place / "net.bin").write_bytes(b"other")
    S.check_version(S.install_version(device, *made["new"]))


def test_the_running_version_is_not_made_again_under_the_run(device, made):
    (S.version_folder(device, made["old"][1]) / "net.bin").write_bytes(b"other")
    with pytest.raises(DataError, match="the running model is damaged"):
        S.install_version(device, *made["old"])


def test_a_version_that_vanished_gives_way_to_the_one_before(device, made):
    S.install_version(device, *made["new"])
    with S.Slots(device) as slots:
        slots.begin(made["new"][1])
        slots.commit()
    shutil.rmtree(S.version_folder(device, made["new"][1]))
    with S.Slots(device) as slots:
        assert slots.start().name == made["old"][1][:12]
    shutil.rmtree(S.version_folder(device, made["old"][1]))
    with S.Slots(device) as slots:
        assert slots.start() is None and slots.state.current == ""


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "other"}', "\xff"])
def test_a_damaged_state_says_what_to_do(device, text):
    (device / "state.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match="not the state of a device.*remove state.json"):
        S.Slots(device)


def test_a_full_journal_is_no_reason_to_stop(device, made):
    (device / "journal.jsonl").unlink()
    (device / "journal.jsonl").mkdir()
    S.install_version(device, *made["new"])
    with S.Slots(device) as slots:
        slots.begin(made["new"][1])
        slots.rollback("bad")
    assert S.read_state(device).current == made["old"][1]


def test_the_journal_tells_what_happened(device, made):
    S.install_version(device, *made["new"])
    with S.Slots(device) as slots:
        slots.begin(made["new"][1])
        slots.rollback("it was not ready")
    with open(device / "journal.jsonl", "a") as file:
        file.write('{"torn')
    rows = S.read_journal(device)
    assert [r["what"] for r in rows] == ["trying", "committed", "trying", "rolled back"]
    assert rows[-1]["why"] == "it was not ready"


def test_tidying_keeps_what_may_be_needed(device, made, tmp_path):
    third = mood_bundle(tmp_path, "1.2")
    with S.Slots(device) as slots:
        for bundle, digest in (made["new"], third):
            S.install_version(device, bundle, digest)
            slots.begin(digest)
            slots.commit()
        (device / "inbox").mkdir()
        assert S.tidy(slots) == [made["old"][1][:12]]
        kept = {p.name for p in (device / "versions").iterdir()}
    assert kept == {made["new"][1][:12], third[1][:12]} and not (device / "inbox").exists()
