"""Signed releases: each attack refused with its reason, wrong clocks as a state, keys exchanged, and a
repository that is whole after a kill at any step."""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from tuf.ngclient import Updater

from cv_pipeline.core.files import Busy, locked
from cv_pipeline.core.types import ConfigError, DataError, MissingExtraError, SinkError, SourceError
from cv_pipeline.inference.manifest import ModelManifest, save_manifest
from cv_pipeline.release import trust as T
from cv_pipeline.release.bundles import BundleError, make_bundle
from tests.helpers.power_cut import Disk

START = datetime(2026, 6, 1, tzinfo=timezone.utc)
LONG_AGO = datetime(1970, 1, 1, tzinfo=timezone.utc)


class World:
    "A repository with its keys, a device, and a clock that stands until it is moved."

    def __init__(self, folder):
        self.folder, self.repo, self.keys, self.at = folder, folder / "repo", folder / "keys", START

    def now(self):
        return self.at

    def bundle(self, version, weights=b"weights"):
        place = self.folder / "models" / f"{version}-{len(weights)}"
        if not place.exists():
            place.mkdir(parents=True)
            (place / "net.bin").write_bytes(weights)
            save_manifest(ModelManifest("line", "net.bin", ("part",), version=version), place)
            make_bundle(place, place.with_suffix(".bundle"))
        return place.with_suffix(".bundle")

    def release(self, version, **how):
        return T.sign_release(self.repo, self.keys, self.bundle(version, **how), now=self.now)[0]

    def stamp(self):
        return T.resign_timestamp(self.repo, self.keys, now=self.now)

    def device(self, name="device", source=None):
        client = T.TrustClient(self.folder / name, str(source or self.repo), now=self.now)
        T.enrol(client.folder, T.root_of(self.repo))
        return client


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Made once, copied for each test: keys cost time."
    world = World(tmp_path_factory.mktemp("world"))
    T.new_repository(world.repo, world.keys, now=world.now)
    world.release("1.0")
    world.device().check()
    return world


@pytest.fixture
def world(made, tmp_path):
    shutil.copytree(made.folder, tmp_path / "world", symlinks=True)
    return World(tmp_path / "world")


def versions(client):
    return [r.version for r in client.check().releases]


def test_a_release_arrives_and_is_the_bundle_that_was_signed(world):
    client, release = world.device(), world.release("1.1")
    assert versions(client) == ["1.0", "1.1"]
    index = client.fetch(release, world.folder / "inbox" / "b")
    assert (index.digest, index.version) == (release.digest, "1.1")
    assert (world.folder / "inbox" / "b").read_bytes() == world.bundle("1.1").read_bytes()


def test_a_device_needs_the_root_that_it_was_given(world):
    with pytest.raises(T.TrustError, match="not the given one"):
        T.enrol(world.folder / "new", T.root_of(world.repo), "0" * 64)
    other = World(world.folder / "other")
    T.new_repository(other.repo, other.keys, now=other.now)
    with pytest.raises(ConfigError, match="enrolled with another root"):
        T.enrol(world.device().folder, T.root_of(other.repo))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff" * 50, b'{"signed": {"_type": "root"}}'])
def test_what_is_not_a_root_is_refused(world, data):
    (world.folder / "root.json").write_bytes(data)
    with pytest.raises(DataError, match="not signed metadata|not a root"):
        T.enrol(world.folder / "new", world.folder / "root.json")
    assert not (world.folder / "new" / "root.json").exists()


def test_other_metadata_is_not_a_root(world):
    with pytest.raises(DataError, match="not a root of releases"):
        T.enrol(world.folder / "new", world.repo / "metadata" / "1.targets.json")


def test_a_device_that_is_not_enrolled_says_so(world):
    with pytest.raises(ConfigError, match="not enrolled"):
        T.TrustClient(world.folder / "nobody", str(world.repo)).check()


# --- attacks


def metadata(world, role):
    "The newest file of a role."
    found = (world.repo / "metadata").glob(f"*.{role}.json")
    return max(found, key=lambda p: int(p.name.split(".")[0]))


def replay(world, client):
    old = (world.repo / "metadata" / "timestamp.json").read_bytes()
    world.release("1.1")
    client.check()
    (world.repo / "metadata" / "timestamp.json").write_bytes(old)


def mix_and_match(world, client):
    old = metadata(world, "targets").read_bytes()
    world.release("1.1")
    metadata(world, "targets").write_bytes(old)


def old_snapshot(world, client):
    old = metadata(world, "snapshot").read_bytes()
    world.release("1.1")
    metadata(world, "snapshot").write_bytes(old)


def change_a_byte(world, client):
    world.release("1.1")
    path = metadata(world, "targets")
    path.write_bytes(path.read_bytes().replace(b'"line"', b'"lime"', 1))


def change_a_signature(world, client):
    world.stamp()
    path = world.repo / "metadata" / "timestamp.json"
    book = json.loads(path.read_text())
    sig = book["signatures"][0]["sig"]
    book["signatures"][0]["sig"] = ("0" if sig[0] != "0" else "1") + sig[1:]
    path.write_text(json.dumps(book))


def strangers_key(world, client):
    other = World(world.folder / "stranger")
    T.new_repository(other.repo, other.keys, now=other.now)
    for _ in range(3):
        other.stamp()
    shutil.copy(other.repo / "metadata" / "timestamp.json", world.repo / "metadata")


def revoked_key(world, client):
    kept = world.folder / "stolen"
    shutil.copytree(world.keys, kept)
    old_root = T._root(world.repo).signed
    T.rotate_key(world.repo, world.keys, "timestamp", now=world.now)
    client.check()
    md = T._load(world.repo / "metadata" / "timestamp.json")
    md.signed.version += 1
    T._save(world.repo, "timestamp", md.signed, T._signer(kept, old_root, "timestamp"))


def revoked_targets_key(world, client):
    kept = world.folder / "stolen"
    shutil.copytree(world.keys, kept)
    old_root = T._root(world.repo).signed
    T.rotate_key(world.repo, world.keys, "targets", now=world.now)
    thief = T._signer(kept, old_root, "targets")
    targets, snapshot = T._lists(world.repo, T._root(world.repo))
    targets.signed.version += 1
    data = T._publish_targets(
        world.repo, targets.signed, thief, snapshot.signed.version + 1, T.Lifetimes(), START
    )
    stamp = T._load(world.repo / "metadata" / "timestamp.json").signed
    signer = T._signer(world.keys, T._root(world.repo).signed, "timestamp")
    T._publish_timestamp(
        world.repo, stamp.version + 1, data, snapshot.signed.version + 1, signer, T.Lifetimes(), START
    )


def root_of_a_stranger(world, client):
    other = World(world.folder / "stranger")
    T.new_repository(other.repo, other.keys, now=other.now)
    T.rotate_key(other.repo, other.keys, "root", now=other.now)
    shutil.copy(other.repo / "metadata" / "2.root.json", world.repo / "metadata")


def garbage(world, client):
    (world.repo / "metadata" / "timestamp.json").write_bytes(b"\xff" * 200)


def endless(world, client):
    (world.repo / "metadata" / "timestamp.json").write_bytes(b"x" * 20_000)


@pytest.mark.parametrize(
    "attack, reason",
    [
        (replay, "rollback"),
        (mix_and_match, "changed"),
        (old_snapshot, "changed"),
        (change_a_byte, "changed"),
        (change_a_signature, "signature"),
        (strangers_key, "signature"),
        (revoked_key, "signature"),
        (revoked_targets_key, "signature"),
        (root_of_a_stranger, "signature"),
        (garbage, "invalid"),
        (endless, "changed"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_attack_is_refused_with_its_reason_and_leaves_no_trace(world, attack, reason):
    client = world.device()
    attack(world, client)
    with pytest.raises(T.TrustError) as e:
        client.check()
    assert e.value.reason == reason
    assert e.value.what.partition(": ")[2] and e.value.hint
    assert not (client.folder / ".update.lock").exists()


def test_after_an_attack_the_real_source_is_believed(world):
    client = world.device()
    shutil.copytree(world.repo, world.folder / "bad")
    (world.folder / "bad" / "metadata" / "timestamp.json").write_bytes(b"{}")
    with pytest.raises(T.TrustError):
        replace(client, source=str(world.folder / "bad")).check()
    assert versions(client) == ["1.0"]


@pytest.mark.parametrize("where", [0, 700, -1])
def test_a_changed_byte_in_a_bundle_is_refused(world, where):
    client, release = world.device(), world.release("1.1")
    path = next((world.repo / "targets" / "line").glob("*1.1-*"))
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    with pytest.raises(T.TrustError, match="not the one that was signed") as e:
        client.fetch(release, world.folder / "b")
    assert e.value.reason == "changed" and not (world.folder / "b").exists()


def test_a_longer_bundle_is_refused_and_a_shorter_one_too(world):
    client, release = world.device(), world.release("1.1")
    path = next((world.repo / "targets" / "line").glob("*1.1-*"))
    whole = path.read_bytes()
    for data in (whole + b"x", whole[:-1], b""):
        path.write_bytes(data)
        with pytest.raises(T.TrustError) as e:
            client.fetch(release, world.folder / "b")
        assert e.value.reason == "changed"


def test_a_bundle_that_is_not_the_signed_model_is_refused(world):
    "Signed as another digest than the one inside: whoever signs it by other means."
    client, bundle = world.device(), world.bundle("1.1")
    about = {"custom": {"name": "line", "version": "1.1", "digest": "f" * 64}}
    line = T._tuf().api.TargetFile(
        bundle.stat().st_size, {"sha256": T.file_sha256(bundle)}, "line/x.bundle", about
    )
    shutil.copy(bundle, world.repo / "targets" / "line" / f"{T.file_sha256(bundle)}.x.bundle")
    T._changed_targets(
        world.repo, world.keys, lambda t: t.update({"line/x.bundle": line}), T.Lifetimes(), START
    )
    with pytest.raises(T.TrustError, match="another model than was signed") as e:
        client.fetch(client.check().releases[-1], world.folder / "in" / "b")
    assert e.value.reason == "changed" and list((world.folder / "in").iterdir()) == []


def test_what_is_fetched_is_there_whole_or_not_at_all(world, monkeypatch):
    client, release = world.device(), world.release("1.1")
    (world.folder / "b").write_bytes(b"an older one")

    def full(self, target, filepath):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(Updater, "download_target", full)
        with pytest.raises(SinkError, match="No space left"):
            client.fetch(release, world.folder / "b")
    assert (world.folder / "b").read_bytes() == b"an older one"
    client.fetch(release, world.folder / "b")
    assert (world.folder / "b").read_bytes() == world.bundle("1.1").read_bytes()
    assert list(world.folder.glob(".b*")) == []


def test_fetching_without_a_source_is_a_source_error(world):
    client, release = world.device(), world.release("1.1")
    with pytest.raises(SourceError, match="cannot be reached"):
        replace(client, source="/nowhere").fetch(release, world.folder / "b")


def test_a_bundle_that_is_missing_is_a_source_error(world):
    client, release = world.device(), world.release("1.1")
    next((world.repo / "targets" / "line").glob("*1.1-*")).unlink()
    with pytest.raises(SourceError, match="cannot be downloaded"):
        client.fetch(release, world.folder / "b")


def test_a_release_that_was_withdrawn_is_not_fetched(world):
    client, release = world.device(), world.release("1.1")
    assert T.withdraw_release(world.repo, world.keys, release.digest[:12], now=world.now) is True
    assert versions(client) == ["1.0"]
    with pytest.raises(T.TrustError, match="was withdrawn") as e:
        client.fetch(release, world.folder / "b")
    assert e.value.reason == "missing"


@pytest.mark.parametrize("digest", ["", "ffffffff"])
def test_withdrawing_needs_one_release(world, digest):
    with pytest.raises(ConfigError, match="0 releases have the digest"):
        T.withdraw_release(world.repo, world.keys, digest, now=world.now)


# --- clocks


def test_the_time_of_judging_can_be_set_in_this_version_of_tuf(world):
    "The attribute is not public: this test is why the version is pinned."
    client = world.device()
    with client._updating() as updater:
        assert isinstance(updater, Updater)
        assert isinstance(updater._trusted_set.reference_time, datetime)
        updater._trusted_set.reference_time = START + timedelta(days=400)
        with pytest.raises(T._tuf().errors.ExpiredMetadataError):
            updater.refresh()


def shown(client, when):
    return replace(client, now=lambda: when).check()


def test_a_clock_at_1970_is_noticed_and_a_good_source_is_still_believed(world):
    state = shown(world.device(), LONG_AGO)
    assert state.state == T.CURRENT
    assert state.clock_behind_s == pytest.approx((START - LONG_AGO).total_seconds())


def test_a_clock_a_year_ahead_is_a_state_and_does_no_harm_for_ever(world):
    client = world.device()
    state = shown(client, START + timedelta(days=366))
    assert (state.state, state.releases) == (T.UNVERIFIED, ())
    assert "expired" in state.reason
    assert shown(client, START + timedelta(hours=1)).state == T.CURRENT


def test_a_source_that_stands_still_is_noticed_also_with_a_clock_at_1970(world):
    client = world.device()
    assert shown(client, START + timedelta(days=29)).state == T.CURRENT
    assert shown(client, START + timedelta(days=31)).state == T.UNVERIFIED
    assert shown(client, LONG_AGO).state == T.UNVERIFIED
    world.at += timedelta(days=31)
    world.stamp()
    assert shown(client, LONG_AGO).state == T.CURRENT
    assert client.check().state == T.CURRENT


def test_a_clock_set_back_behind_the_last_good_check_does_not_make_old_news_fresh(world):
    client = world.device()
    assert shown(client, START + timedelta(days=20)).state == T.CURRENT
    assert shown(client, START + timedelta(days=40)).state == T.UNVERIFIED
    assert shown(client, START + timedelta(days=10)).state == T.UNVERIFIED


def test_a_new_device_with_a_clock_at_1970_takes_the_time_of_its_root(world):
    client = replace(world.device("fresh"), now=lambda: LONG_AGO)
    assert client.check().clock_behind_s > 50 * 365 * 86400


def test_nothing_is_fetched_while_freshness_cannot_be_verified(world):
    client, release = world.device(), world.release("1.1")
    late = replace(client, now=lambda: START + timedelta(days=31))
    with pytest.raises(T.TrustError, match="expired") as e:
        late.fetch(release, world.folder / "b")
    assert e.value.reason == "expired" and not (world.folder / "b").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"good": 3}', '{"good": "yesterday", "latest": "x"}'])
def test_damaged_times_do_not_stop_a_device(world, text):
    client = world.device()
    (client.folder / "seen.json").write_text(text)
    assert client.check().state == T.CURRENT
    assert "2026-06-01" in (client.folder / "seen.json").read_text()


# --- keys


@pytest.mark.parametrize("role", T.ROLES)
def test_an_exchanged_key_is_followed_and_the_old_one_is_not_needed(world, role):
    client, old = world.device(), {p.name for p in world.keys.iterdir()}
    new = T.rotate_key(world.repo, world.keys, role, now=world.now)
    assert new.name not in old and new.stat().st_mode & 0o777 == 0o600
    for path in world.keys.glob(f"{role}-*"):
        if path != new:
            path.unlink()
    world.release("1.1")
    assert versions(client) == ["1.0", "1.1"]
    T.rotate_key(world.repo, world.keys, role, now=world.now)
    assert versions(client) == ["1.0", "1.1"]
    assert versions(world.device("new")) == ["1.0", "1.1"]  # from the first root on


def test_the_server_needs_the_timestamp_key_only(world):
    client = world.device()
    server = world.folder / "server"
    server.mkdir()
    for path in world.keys.glob("timestamp-*"):
        path.rename(server / path.name)
    release, public = T.sign_release(world.repo, world.keys, world.bundle("1.1"), now=world.now)
    assert public is False and versions(client) == ["1.0"]
    T.resign_timestamp(world.repo, server, now=world.now)
    assert versions(client) == ["1.0", "1.1"]
    with pytest.raises(ConfigError, match="key of 'targets' is not in this folder"):
        T.sign_release(world.repo, server, world.bundle("1.2"), now=world.now)
    with pytest.raises(ConfigError, match="key of 'root' is not in this folder"):
        T.rotate_key(world.repo, server, "timestamp", now=world.now)


def test_keys_with_a_passphrase(tmp_path, monkeypatch):
    world = World(tmp_path)
    monkeypatch.setenv(T.PASSPHRASE, "sesame")
    T.new_repository(world.repo, world.keys, now=world.now)
    assert all(b"ENCRYPTED" in p.read_bytes() for p in world.keys.iterdir())
    world.release("1.0")
    for word in ("wrong", ""):
        monkeypatch.setenv(T.PASSPHRASE, word)
        with pytest.raises(ConfigError, match="key cannot be opened"):
            world.stamp()


def test_a_damaged_key_is_a_typed_error(world):
    next(world.keys.glob("timestamp-*")).write_bytes(b"-----BEGIN")
    with pytest.raises(ConfigError, match="key cannot be opened"):
        world.stamp()


def test_an_unknown_role_and_odd_lifetimes_are_refused(world):
    with pytest.raises(ConfigError, match="unknown role 'snapshot'"):
        T.rotate_key(world.repo, world.keys, "snapshot")
    with pytest.raises(ConfigError, match="above 0 days"):
        T.Lifetimes(timestamp=0)


@pytest.mark.parametrize("which", ["repo", "keys"])
def test_nothing_is_overwritten_by_a_new_repository(tmp_path, which):
    (tmp_path / which).mkdir()
    (tmp_path / which / "x").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        T.new_repository(tmp_path / "repo", tmp_path / "keys")
    (tmp_path / "a file").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        T.new_repository(tmp_path / "a file", tmp_path / "k")


def test_private_keys_never_lie_where_devices_read(tmp_path):
    with pytest.raises(ConfigError, match="private keys inside"):
        T.new_repository(tmp_path / "repo", tmp_path / "repo" / "keys")


def test_a_version_is_released_once(world):
    world.release("1.0")  # the same bundle: nothing changes for devices
    with pytest.raises(ConfigError, match="released with another digest"):
        world.release("1.0", weights=b"others")


def test_only_whole_bundles_are_signed(world):
    bad = world.folder / "bad.bundle"
    bad.write_bytes(world.bundle("1.1").read_bytes()[:-100])
    with pytest.raises(BundleError, match="cut off"):
        T.sign_release(world.repo, world.keys, bad, now=world.now)
    with pytest.raises(ConfigError, match="not a repository"):
        T.sign_release(world.folder / "none", world.keys, world.bundle("1.1"), now=world.now)


# --- killed, busy, full


class Killed(BaseException):
    pass


ACTIONS = {
    "release": lambda w: w.release("1.1"),
    "stamp": lambda w: w.stamp(),
    "withdraw": lambda w: T.withdraw_release(w.repo, w.keys, w.release("1.0").digest, now=w.now),
    **{f"rotate {r}": (lambda w, r=r: T.rotate_key(w.repo, w.keys, r, now=w.now)) for r in T.ROLES},
}


@pytest.mark.parametrize("name", ACTIONS)
def test_a_kill_before_any_write_leaves_a_repository_that_works(made, tmp_path, monkeypatch, name):
    for step in range(8):
        folder = tmp_path / f"step{step}"
        shutil.copytree(made.folder, folder, symlinks=True)
        world, left, real = World(folder), [step], T.write_whole

        def dies(*args, left=left, real=real, **how):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*args, **how)

        with monkeypatch.context() as m:
            m.setattr(T, "write_whole", dies)
            try:
                ACTIONS[name](world)
                finished = True
            except Killed:
                finished = False
        world.stamp()  # what the server does anyway
        assert world.device().check().state == T.CURRENT
        ACTIONS[name](world)  # and again, this time whole
        assert world.device().check().state == T.CURRENT
        assert world.device("new").check().state == T.CURRENT
        if finished:
            break
    assert finished and step >= 1


def test_one_updater_at_a_time(world):
    client = world.device()
    with locked(client.folder / "update"):
        with pytest.raises(Busy, match="another process is updating"):
            client.check()
    assert client.check().state == T.CURRENT


def test_a_full_disk_on_the_device_is_a_typed_error(world, monkeypatch):
    client = world.device()
    world.release("1.1")

    def full(self, filename, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Updater, "_persist_file", full)
    with pytest.raises(SinkError, match="No space left"):
        client.check()


def test_without_the_extra_the_error_names_it(world, monkeypatch):
    client = world.device()
    monkeypatch.setitem(sys.modules, "tuf.ngclient", None)
    with pytest.raises(MissingExtraError, match=r"cv_pipeline\[edge\]"):
        client.check()


@pytest.mark.slow
def test_importing_the_book_does_not_import_tuf():
    code = "import sys, cv_pipeline.release.trust; print({'tuf', 'cryptography'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- sources


class Quiet(SimpleHTTPRequestHandler):
    seen: list = []

    def do_GET(self):
        self.seen.append(self.headers.get("Authorization"))
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def served(world):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(world.repo)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("slash", ["", "/"])
def test_an_address_serves_what_a_folder_does(world, served, slash):
    release = world.release("1.1")
    client = replace(world.device(), source=served + slash, headers={"Authorization": "Bearer t"})
    assert client.check().releases == world.device("second").check().releases
    assert client.fetch(release, world.folder / "b").digest == release.digest
    assert set(Quiet.seen) == {"Bearer t"}
    Quiet.seen.clear()


def answering(status, location=None, body=b"", length=None):
    "A server that always answers the same."

    class Always(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Always)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.parametrize("status", [302, 401, 404, 500, 503])
def test_a_server_that_does_not_serve_is_a_state(world, served, status):
    server = answering(status, location=served)
    client = replace(world.device(), source=f"http://127.0.0.1:{server.server_port}")
    state = client.check()
    server.shutdown()
    server.server_close()
    assert state.state == T.UNREACHABLE
    assert (str(status) in state.reason) or status == 404


def test_a_download_that_is_cut_is_a_state(world):
    whole = (world.repo / "metadata" / "timestamp.json").read_bytes()
    server = answering(200, body=whole[:50], length=len(whole))
    client = replace(world.device(), source=f"http://127.0.0.1:{server.server_port}", timeout_s=2)
    try:
        assert client.check().state == T.UNREACHABLE
    except T.TrustError as e:
        assert e.reason == "invalid"
    finally:
        server.shutdown()
        server.server_close()


def test_a_source_that_sends_a_byte_now_and_then_is_given_up(world, monkeypatch):
    server = answering(200, body=b"x" * 200)
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(T, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    state = replace(world.device(), source=f"http://127.0.0.1:{server.server_port}").check()
    server.shutdown()
    server.server_close()
    assert state.state == T.UNREACHABLE and "only 200 bytes in 40 s" in state.reason


@pytest.mark.parametrize(
    "source",
    ["http://127.0.0.1:9", "/nowhere/at/all", "http://[::1", "ftp://x/y", "https://user:secret@127.0.0.1:9"],
)
def test_a_source_that_is_not_there_is_a_state_without_secrets(world, source):
    state = replace(world.device(), source=source, timeout_s=2).check()
    assert state.state == T.UNREACHABLE
    assert "secret" not in state.reason


def test_a_stick_that_was_pulled_out_half_way(world):
    release = world.release("1.1")
    shutil.copytree(world.repo, world.folder / "stick")
    client = replace(world.device(), source=world.folder / "stick")
    assert client.check().state == T.CURRENT
    shutil.rmtree(world.folder / "stick" / "targets")
    with pytest.raises(SourceError, match="cannot be downloaded"):
        client.fetch(release, world.folder / "b")
    shutil.rmtree(world.folder / "stick")
    assert client.check().state == T.UNREACHABLE


def test_names_in_a_repository_do_not_lead_out_of_it(world):
    reader = T._fetcher(str(world.repo), world.folder, {}, 1)
    with pytest.raises(T._tuf().errors.DownloadError, match="leads out"):
        reader.download_bytes("source:/../../etc/passwd", 100)


def test_downloads_do_not_fill_the_folder_for_temporary_files(world, monkeypatch):
    "On a box that is a small memory disk."
    client, release = world.device(), world.release("1.1")
    places, real = [], T.tempfile.TemporaryFile
    monkeypatch.setattr(T.tempfile, "TemporaryFile", lambda dir=None: (places.append(dir), real(dir=dir))[1])
    client.fetch(release, world.folder / "b")
    assert set(places) == {client.folder}


def test_the_state_survives_a_power_cut(world, monkeypatch, tmp_path):
    client = world.device()
    disk = Disk(client.folder, monkeypatch)
    world.release("1.1")
    client.check()
    saved = disk.after_cut(tmp_path / "after") / "metadata" / "timestamp.json"
    disk.close()
    assert saved.read_bytes() == (world.repo / "metadata" / "timestamp.json").read_bytes()
    assert os.path.exists(tmp_path / "after" / "seen.json")
