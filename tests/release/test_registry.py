"""The registry: tickets, states, a log that shows every edit, and folders that are whole whoever writes and
whatever is killed."""

import json
import multiprocessing
import os
import shutil
from dataclasses import asdict, replace
from datetime import datetime, timezone
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.files import read_json, write_json
from cv_pipeline.core.types import ConfigError, CVPipelineError
from cv_pipeline.inference.manifest import ModelManifest, load_manifest, save_manifest
from cv_pipeline.release import registry as R
from cv_pipeline.release.bundles import BundleError, contents_of, read_bundle
from tests.helpers.power_cut import Disk

FORK = multiprocessing.get_context("fork")


def now():
    return datetime(2026, 6, 1, 8, tzinfo=timezone.utc)


def candidate(folder, version="1.0", name="line", weights=b"weights", gate="PASS"):
    "A model folder as the gate leaves it."
    folder.mkdir(parents=True)
    (folder / "net.bin").write_bytes(weights)
    save_manifest(ModelManifest(name, "net.bin", ("part",), version=version), folder)
    sha256 = load_manifest(folder)[0].sha256
    slices = [{"slice": "overall", "new": 0.9, "old": 0.8}]
    book = {
        "verdict": gate,
        "new": {"sha256": sha256},
        "old": {"name": name, "version": "0"},
        "slices": slices,
    }
    if gate:
        write_json(folder / "gate.json", book)
    return folder


@pytest.fixture
def registry(tmp_path):
    return R.Registry.init(tmp_path / "registry", by="ann", now=now)


@pytest.fixture
def add(registry, tmp_path):
    "Adds a version, and moves it along the states."

    def added(version="1.0", *states, name="line", **how):
        registry.add(
            candidate(tmp_path / f"{name}-{version}", version, name, weights=version.encode()), **how
        )
        for state in states:
            registry.move(f"{name}@{version}", state)
        return registry.find(f"{name}@{version}")

    return added


def test_a_version_is_the_folder_that_was_given(registry, add, tmp_path):
    v = add()
    given = {p.name: p.read_bytes() for p in (tmp_path / "line-1.0").iterdir()}
    kept = {p.name: p.read_bytes() for p in v.folder.iterdir()}
    assert kept.pop("bundle.json") and kept == given
    assert (v.digest, v.state) == (contents_of(tmp_path / "line-1.0").index.digest, "candidate")
    assert v.added.ticket["verdict"] == "PASS" and v.added.forced is False


def test_what_was_given_may_change_afterwards(registry, add, tmp_path):
    v = add()
    (tmp_path / "line-1.0" / "net.bin").write_bytes(b"other")
    assert R.verify_registry(registry) == []
    assert (v.folder / "net.bin").read_bytes() == b"1.0"


# --- tickets


def without_gate(folder):
    (folder / "gate.json").unlink()


def edit_gate(folder, **fields):
    write_json(folder / "gate.json", {**read_json(folder / "gate.json"), **fields})


@pytest.mark.parametrize(
    "spoil, text",
    [
        (without_gate, "no gate.json"),
        (lambda f: edit_gate(f, verdict="FAIL"), "its gate says FAIL"),
        (lambda f: edit_gate(f, verdict="INSUFFICIENT"), "its gate says INSUFFICIENT"),
        (lambda f: edit_gate(f, verdict="pass"), "its gate says pass"),
        (lambda f: edit_gate(f, new={"sha256": "f" * 64}), "judged a model with the SHA-256 ffff"),
        (lambda f: edit_gate(f, new=None), "not the result of a gate"),
        (lambda f: edit_gate(f, old=3), "not the result of a gate"),
        (lambda f: (f / "gate.json").write_text("{"), "not the result of a gate: invalid JSON"),
        (lambda f: (f / "gate.json").write_text("[]"), "not the result of a gate"),
    ],
)
def test_only_a_pass_of_this_model_is_a_ticket(registry, tmp_path, spoil, text):
    folder = candidate(tmp_path / "m")
    spoil(folder)
    with pytest.raises(ConfigError, match=text) as e:
        registry.add(folder)
    assert "force" in str(e.value.hint)
    assert registry.versions() == [] and registry.entries() == []
    v = registry.add(folder, force=True, reason=" for the bench ")
    assert (v.added.forced, v.added.reason, v.added.ticket) == (True, "for the bench", {})
    assert registry.find("line@1.0").row()["gate"] == "FORCED: for the bench"


@pytest.mark.parametrize("reason", ["", "  "])
def test_force_wants_a_reason(registry, tmp_path, reason):
    with pytest.raises(ConfigError, match="force without a reason"):
        registry.add(candidate(tmp_path / "m", gate=""), force=True, reason=reason)
    assert registry.versions() == []


def test_force_that_was_not_needed_is_not_recorded_as_force(registry, add):
    assert add("1.0", force=True, reason="just in case").added.forced is False


def test_a_version_is_added_once(registry, add, tmp_path):
    add()
    with pytest.raises(ConfigError, match="line@1.0 is registered"):
        registry.add(tmp_path / "line-1.0")
    with pytest.raises(ConfigError, match="registered with the digest .* new version"):
        registry.add(candidate(tmp_path / "other", weights=b"others"))
    assert len(registry.entries()) == 1


# --- states


@pytest.mark.parametrize(
    "before, after, needs",
    [
        ("candidate", "shadow", ""),
        ("shadow", "canary", ""),
        ("canary", "production", ""),
        ("candidate", "retired", ""),
        ("shadow", "retired", ""),
        ("canary", "retired", ""),
        ("production", "retired", ""),
        ("shadow", "candidate", "reason"),
        ("canary", "shadow", "reason"),
        ("canary", "candidate", "reason"),
        ("retired", "production", "reason"),
        ("candidate", "production", "force"),
        ("candidate", "canary", "force"),
        ("shadow", "production", "force"),
        ("production", "canary", "force"),
        ("retired", "candidate", "force"),
    ],
)
def test_which_steps_need_what(before, after, needs):
    if needs:
        with pytest.raises(ConfigError):
            R.check_move(before, after)
        with pytest.raises(ConfigError, match="without a reason"):
            R.check_move(before, after, force=True)
    if needs == "force":
        with pytest.raises(ConfigError, match="is not a step"):
            R.check_move(before, after, reason="because")
    assert R.check_move(before, after, reason="because", force=True) is (needs == "force")


@pytest.mark.parametrize("after, text", [("live", "unknown state 'live'"), ("shadow", "is shadow already")])
def test_states_that_are_none(after, text):
    with pytest.raises(ConfigError, match=text):
        R.check_move("shadow", after, reason="x", force=True)


@settings(max_examples=60, deadline=None)
@given(
    moves=st.lists(st.tuples(st.sampled_from(["1.0", "1.1", "1.2"]), st.sampled_from(R.STATES)), max_size=15)
)
@pytest.mark.slow
def test_there_is_never_more_than_one_in_production(tmp_path_factory, moves):
    with patch("os.fsync", lambda handle: None):  # many lines, and no power cut
        folder = tmp_path_factory.mktemp("r")
        registry = R.Registry.init(folder / "registry", by="ann", now=now)
        for version in ("1.0", "1.1", "1.2"):
            registry.add(candidate(folder / version, version, weights=version.encode()))
        for version, state in moves:
            try:
                registry.move(f"line@{version}", state, force=True, reason="x")
            except ConfigError:
                continue
            live = [v.version for v in registry.versions() if v.state == "production"]
            assert len(live) <= 1
            if state == "production":
                assert live == [version]
        assert R.read_log(registry.log)[1] == registry.head


def test_the_successor_retires_the_former_one_with_one_line(registry, add):
    add("1.0", "shadow", "canary", "production")
    before = len(registry.entries())
    add("1.1", "shadow", "canary", "production")
    assert len(registry.entries()) == before + 4
    assert registry.find("line").version == "1.1"
    assert registry.find("line@1.0").row()["reason"] == "replaced by 1.1"
    assert [e.version for e in R.lines_about(registry.entries(), registry.find("line@1.0"))][-1] == "1.1"


def test_models_of_other_names_have_their_own_production_version(registry, add):
    add("1.0", "shadow", "canary", "production")
    add("1.0", "shadow", "canary", "production", name="gate")
    assert {v.ref for v in registry.versions() if v.state == "production"} == {"line@1.0", "gate@1.0"}


# --- names


def test_a_version_is_found_by_name_digest_and_production(registry, add):
    v = add("1.0", "shadow", "canary", "production")
    for ref in ("line@1.0", v.digest, v.digest[:8].upper(), "line"):
        assert registry.find(ref).digest == v.digest


@pytest.mark.parametrize("ref", ["", "line", "line@2", "@", "1.0", "abcdef", "../..", "a\0b"])
def test_an_unknown_version_is_an_error_that_lists_what_is_known(registry, add, ref):
    add()
    with pytest.raises(ConfigError, match="unknown version") as e:
        registry.find(ref)
    assert "line@1.0" in str(e.value)


@pytest.mark.parametrize("name, version", [("../../etc", "1"), ("a/b", "1/2"), ("ü x", "1 0"), ("CON", "..")])
def test_odd_names_stay_inside(registry, add, name, version):
    (registry.folder.parent / "in").mkdir()
    folder = candidate(registry.folder.parent / "in" / "m", version, name)
    v = registry.add(folder)
    assert v.folder.resolve().is_relative_to(registry.place.resolve())
    assert registry.find(f"{name}@{version}").digest == v.digest
    assert R.verify_registry(registry) == []


# --- the log


def test_every_edit_of_a_line_is_noticed(registry, add):
    add("1.0", "shadow")
    add("1.1")
    lines = registry.log.read_bytes().splitlines(keepends=True)
    for k in range(len(lines) - 1):
        changed = lines[k].replace(b'"ann"', b'"bob"')
        registry.log.write_bytes(b"".join([*lines[:k], changed, *lines[k + 1 :]]))
        assert "line before it was changed" in R.verify_registry(registry)[0]
        registry.log.write_bytes(b"".join(lines[:k] + lines[k + 1 :]))
        assert R.verify_registry(registry)
    registry.log.write_bytes(b"".join(lines[::-1]))
    assert R.verify_registry(registry)


def test_a_shortened_log_is_noticed_with_the_noted_head(registry, add):
    add("1.0")
    early = registry.head
    add("1.1")
    noted = registry.head
    assert R.verify_registry(registry, noted) == R.verify_registry(registry, early[:16]) == []
    registry.log.write_bytes(registry.log.read_bytes().splitlines(keepends=True)[0])
    found = R.verify_registry(registry, noted)
    assert any("does not contain the head" in p for p in found)
    assert any(p.startswith("note: line/") for p in found)


@pytest.mark.parametrize("head", ["", "abc", "g" * 64])
def test_a_head_that_is_none_proves_nothing(registry, add, head):
    add()
    assert any("does not contain the head" in p for p in R.verify_registry(registry, head))


@pytest.mark.parametrize("left", [1, 20, -1])
def test_a_torn_last_line_does_not_count_and_is_cut_off(registry, add, left):
    add("1.0")
    whole = registry.log.read_bytes()
    add("1.1")
    line = registry.log.read_bytes()[len(whole) :]
    torn = whole + (line[:left] if left > 0 else line[:-10])
    registry.log.write_bytes(torn)
    assert [v.version for v in registry.versions()] == ["1.0"]
    registry.move("line@1.0", "shadow")
    assert registry.find("line@1.0").state == "shadow"
    assert registry.log.read_bytes().startswith(whole)


def test_a_last_line_that_lacks_its_end_only_counts(registry, add):
    add("1.0")
    registry.log.write_bytes(registry.log.read_bytes().rstrip(b"\n"))
    registry.move("line@1.0", "shadow")
    assert [e.state for e in registry.entries()] == ["candidate", "shadow"]


@pytest.mark.parametrize(
    "line", [b"x\n", b"[]\n", b"{}\n", b'{"number": 1}\n', b"\xff\xfe\n", b"\n", b"null\n"]
)
def test_a_line_that_is_none_is_a_typed_error(registry, add, line):
    registry.log.write_bytes(line)
    with pytest.raises(R.RegistryError, match="line 1 of the log is invalid"):
        registry.entries()


def test_unknown_fields_are_refused(registry, add):
    add()
    row = json.loads(registry.log.read_bytes())
    registry.log.write_text(json.dumps({**row, "more": 1}) + "\n")
    with pytest.raises(R.RegistryError, match="line 1"):
        registry.versions()


# --- verify, diff, export


@pytest.mark.parametrize(
    "spoil, text",
    [
        (lambda f: (f / "net.bin").write_bytes(b"x"), "'net.bin' was changed"),
        (lambda f: (f / "gate.json").unlink(), "'gate.json' is missing"),
        (lambda f: (f / "x").write_text(""), "'x' does not belong to it"),
        (lambda f: shutil.rmtree(f), "file not found"),
        (lambda f: os.symlink("/etc", f / "y"), "symbolic link"),
    ],
)
def test_a_changed_version_is_noticed_and_not_exported(registry, add, tmp_path, spoil, text):
    v = add()
    add("1.1")
    spoil(v.folder)
    found = R.verify_registry(registry)
    assert len(found) == 1 and text in found[0] and found[0].startswith("line@1.0: ")
    with pytest.raises(BundleError, match=text):
        R.export_version(registry, "line@1.0", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_version_replaced_with_its_list_is_noticed(registry, add, tmp_path):
    v, other = add(), add("1.1")
    shutil.rmtree(v.folder)
    shutil.copytree(other.folder, v.folder)
    assert "the log says" in R.verify_registry(registry)[0]
    with pytest.raises(R.RegistryError, match="the log says"):
        R.export_version(registry, "line@1.0", tmp_path / "b")


def test_an_export_is_the_bundle_of_the_version(registry, add, tmp_path):
    v = add()
    R.export_version(registry, "line@1.0", tmp_path / "b")
    assert read_bundle(tmp_path / "b").digest == v.digest


def test_a_difference_names_fields_gate_and_files(registry, tmp_path):
    registry.add(candidate(tmp_path / "a", "1.0"))
    other = candidate(tmp_path / "b", "1.1")
    manifest = load_manifest(other)[0]
    save_manifest(replace(manifest, postprocess=replace(manifest.postprocess, conf=0.85)), other)
    edit_gate(other, slices=[{"slice": "overall", "new": 0.95}])
    (other / "more.csv").write_text("x")
    registry.add(other)
    rows = {r["what"]: (r["1.0"], r["1.1"]) for r in R.diff_versions(*registry.versions())}
    assert rows["manifest.postprocess.conf"] == (0.25, 0.85)
    assert rows["gate.overall"] == (0.9, 0.95)
    assert rows["file.more.csv"][0] == "–"
    assert "file.net.bin" not in rows and "manifest.name" not in rows


def test_equal_versions_do_not_differ(registry, add):
    v = add()
    assert R.diff_versions(v, v) == []


@pytest.mark.parametrize(
    "spoil", [lambda f: (f / "gate.json").write_text("{"), lambda f: (f / "bundle.json").unlink()]
)
def test_a_difference_of_damaged_versions_is_a_typed_error(registry, add, spoil):
    v, other = add(), add("1.1")
    spoil(v.folder)
    with pytest.raises(CVPipelineError):
        R.diff_versions(v, other)


# --- several writers, kills, power cuts


def test_eight_processes_add_at_once(registry, tmp_path):
    folders = [candidate(tmp_path / f"m{k}", f"1.{k}", weights=b"%d" % k) for k in range(8)]
    jobs = [FORK.Process(target=registry.add, args=(f,)) for f in folders]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert sorted(v.version for v in registry.versions()) == [f"1.{k}" for k in range(8)]
    assert R.verify_registry(registry) == [] and [j.exitcode for j in jobs] == [0] * 8


def test_the_same_version_by_four_processes_is_added_once(registry, tmp_path):
    def tries(k):
        try:
            registry.add(candidate(tmp_path / f"m{k}", "1.0", weights=b"%d" % k))
        except ConfigError:
            os._exit(7)

    jobs = [FORK.Process(target=tries, args=(k,)) for k in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert sorted(j.exitcode for j in jobs) == [0, 7, 7, 7]
    assert len(registry.versions()) == 1 and R.verify_registry(registry) == []


CALLS = ("fsync", "replace", "rename", "write", "mkdir", "unlink", "open", "scandir")


def killed_at(step, what):
    "Run in a child that dies before its n-th call into the operating system; whether it died."

    def child():
        left = [step]

        def dies(real):
            def call(*args, **how):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
                return real(*args, **how)

            return call

        for name in CALLS:
            setattr(os, name, dies(getattr(os, name)))
        what()
        os._exit(0)

    job = FORK.Process(target=child)
    job.start()
    job.join(120)
    assert job.exitcode is not None, f"the child hangs at its call {step}"
    return job.exitcode == 9


@pytest.mark.parametrize("action", ["add", "move"])
@pytest.mark.slow
def test_a_kill_at_any_step_leaves_a_whole_registry(registry, add, tmp_path, action):
    add("1.0", "shadow", "canary", "production")
    add("1.1", "shadow", "canary")
    folder = candidate(tmp_path / "new", "2.0")
    what = {"add": lambda: registry.add(folder), "move": lambda: registry.move("line@1.1", "production")}[
        action
    ]
    before = {v.ref: v.state for v in registry.versions()}
    after = {
        "add": {**before, "line@2.0": "candidate"},
        "move": {"line@1.0": "retired", "line@1.1": "production"},
    }[action]
    saved, step, seen = tmp_path / "saved", 0, []
    shutil.copytree(registry.folder, saved)
    while killed_at(step, what):
        states = {v.ref: v.state for v in registry.versions()}
        assert states in (before, after)
        assert [p for p in R.verify_registry(registry) if not p.startswith("note: ")] == []
        seen.append(states == after)
        if states == before:  # the same again, to its end
            what()
            assert {v.ref: v.state for v in registry.versions()} == after
            assert R.verify_registry(registry) == []
        shutil.rmtree(registry.folder)
        shutil.copytree(saved, registry.folder)
        step += 1
    assert step >= (8 if action == "add" else 3)


def test_a_power_cut_takes_nothing_back_that_was_acknowledged(registry, add, tmp_path, monkeypatch):
    disk = Disk(registry.folder, monkeypatch)
    add("1.0", "shadow")
    for k in range(len(disk.moments)):
        place = disk.after_cut(tmp_path / f"cut{k}", k)
        then = R.Registry(place)
        assert [p for p in R.verify_registry(then) if not p.startswith("note: ")] == []
    states = {v.ref: v.state for v in R.Registry(disk.after_cut(tmp_path / "after")).versions()}
    disk.close()
    assert states == {"line@1.0": "shadow"}


def test_what_an_interrupted_add_left_is_replaced(registry, add, tmp_path):
    (registry.place / "line" / "1.0").mkdir(parents=True)
    (registry.place / "line" / "1.0" / "half").write_text("x")
    assert R.verify_registry(registry) == ["note: line/1.0 is not in the log: an interrupted add"]
    add()
    assert R.verify_registry(registry) == []


# --- folders that are none


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda f: None, "not a registry"),
        (lambda f: f.mkdir(), "not a registry"),
        (lambda f: f.write_text("x"), "not a registry"),
        (lambda f: (f.mkdir(), (f / "registry.json").write_text("{")), "not a registry: invalid JSON"),
        (lambda f: (f.mkdir(), (f / "registry.json").write_text('{"format": "x"}')), "another format"),
    ],
)
def test_what_is_not_a_registry_is_refused(tmp_path, make, text):
    make(tmp_path / "r")
    with pytest.raises(ConfigError, match=text):
        R.Registry(tmp_path / "r")


def test_a_registry_is_made_once(registry, tmp_path):
    with pytest.raises(ConfigError, match="not an empty folder"):
        R.Registry.init(registry.folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="not an empty folder"):
        R.Registry.init(tmp_path / "file")


def test_the_user_is_recorded_without_being_named(tmp_path, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: (_ for _ in ()).throw(KeyError("uid")))
    assert R.Registry.init(tmp_path / "r").by == "unknown"


def test_a_line_holds_all_that_was_decided(registry, add):
    add("1.0", "shadow")
    row = asdict(registry.entries()[0])
    assert {row["at"], row["by"]} == {"2026-06-01T08:00:00+00:00", "ann"}
    assert set(row["ticket"]) == {"verdict", "against", "gate_sha256"}
