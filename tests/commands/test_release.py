"""`cv-pipeline registry` and `keys` as a user meets them: from a candidate to a signed bundle on a device,
exit codes, and bad input as a sentence with what to do."""

import re
import shutil
import subprocess

import pytest
from typer.testing import CliRunner

from cv_pipeline.commands.main import app
from cv_pipeline.core.config import load_config
from cv_pipeline.core.files import read_json, write_json
from cv_pipeline.core.types import CVPipelineError, MissingExtraError
from cv_pipeline.inference.manifest import ModelManifest, load_manifest, save_manifest
from cv_pipeline.release.bundles import read_bundle
from cv_pipeline.release.registry import Registry
from cv_pipeline.release.rollout import Policy
from cv_pipeline.release.trial import Drawn, drawn_run, read_trial, small_registry, start_trial
from cv_pipeline.release.trust import CURRENT, TrustClient, enrol, root_of
from cv_pipeline.service.assembly import run_config
from tests.helpers.cli import CLI

PLAIN = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


def ask(*words):
    "Exit code (None: a typed error) and all text."
    done = CliRunner().invoke(app, list(map(str, words)), env=PLAIN)
    if isinstance(done.exception, MissingExtraError):
        raise done.exception  # where the core is tested alone
    if isinstance(done.exception, CVPipelineError):
        return None, str(done.exception)
    return done.exit_code, " ".join(done.output.split())


def shown(capsys, *words):
    "The same for what goes past the runner: tables."
    code, text = ask(*words)
    return code, text + " ".join(capsys.readouterr().out.split())


def candidate(folder, version="1.0", conf=0.25):
    folder.mkdir(parents=True)
    (folder / "net.bin").write_bytes(b"weights")
    save_manifest(ModelManifest("line", "net.bin", ("part",), version, postprocess={"conf": conf}), folder)
    sha256 = load_manifest(folder)[0].sha256
    book = {
        "verdict": "PASS",
        "new": {"sha256": sha256},
        "old": {"name": "line", "version": "0"},
        "slices": [],
    }
    write_json(folder / "gate.json", book)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder with a registry and two candidates; commands use their defaults in it."
    monkeypatch.chdir(tmp_path)
    candidate(tmp_path / "a", "1.0")
    candidate(tmp_path / "b", "1.1", conf=0.85)
    assert ask("registry", "init")[0] == 0
    return tmp_path


def test_from_a_candidate_to_a_device(place, capsys):
    assert ask("registry", "add", "a")[0] == 0
    for state in ("shadow", "canary", "production"):
        assert ask("registry", "move", "line@1.0", state)[0] == 0
    assert ask("registry", "export", "line", "--out", "line.bundle")[0] == 0
    assert ask("keys", "new")[0] == 0
    assert ask("keys", "sign", "line.bundle")[0] == 0
    assert ask("keys", "rotate", "targets")[0] == 0
    assert ask("keys", "stamp")[0] == 0
    enrol(place / "device", root_of(place / "releases"))
    client = TrustClient(place / "device", place / "releases")
    state = client.check()
    digest = Registry(place / "registry").find("line").digest
    assert (state.state, [r.digest for r in state.releases]) == (CURRENT, [digest])
    assert client.fetch(state.releases[0], place / "inbox.bundle") == read_bundle(place / "line.bundle")
    assert ask("keys", "withdraw", digest[:12])[0] == 0
    assert client.check().releases == ()


def test_what_is_printed_says_what_comes_next(place, capsys):
    code, text = shown(capsys, "registry", "add", "a")
    assert code == 0
    assert "registered: line@1.0, candidate" in text
    assert "next: cv-pipeline registry move line@1.0 shadow" in text
    assert "no golden pictures" in text


def test_lists_and_histories(place, capsys):
    ask("registry", "add", "a")
    ask("registry", "add", "b", "--force", "--reason", "both are fine")
    ask("registry", "move", "line@1.1", "production", "--force", "--reason", "it is urgent")
    code, text = shown(capsys, "registry", "list")
    assert code == 0 and "2 versions" in text and "line@1.0" in text and "line@1.1" in text
    code, text = shown(capsys, "registry", "list", "--state", "production")
    assert "1 versions" in text and "line@1.0" not in text
    code, text = shown(capsys, "registry", "show", "line")
    assert code == 0
    for word in ("gate.json", "net.bin", "it is urgent", "PASS", Registry("registry").find("line").digest):
        assert word in text


def test_a_difference_is_printed(place, capsys):
    ask("registry", "add", "a")
    ask("registry", "add", "b")
    code, text = shown(capsys, "registry", "diff", "line@1.0", "line@1.1")
    assert code == 0
    assert re.search(r"manifest.postprocess.conf\W+0.25\W+0.85", text)
    code, text = shown(capsys, "registry", "diff", "line@1.0", "line@1.0")
    assert code == 0 and "they do not differ" in text


def test_verify_is_an_exit_code(place, capsys):
    ask("registry", "add", "a")
    code, text = shown(capsys, "registry", "verify")
    head = re.search(r"head: ([0-9a-f]{64})", text)[1]
    assert code == 0 and "1 versions, 1 lines: as recorded" in text
    assert ask("registry", "verify", "--head", head[:12])[0] == 0
    assert ask("registry", "verify", "--head", "f" * 12)[0] == 1
    (place / "registry" / "versions" / "line" / "1.0" / "net.bin").write_bytes(b"x")
    code, text = shown(capsys, "registry", "verify")
    assert code == 1 and "'net.bin' was changed" in text


def test_what_an_interrupted_add_left_is_a_note(place, capsys):
    ask("registry", "add", "a")
    (place / "registry" / "versions" / "line" / "9").mkdir()
    code, text = shown(capsys, "registry", "verify")
    assert code == 0 and "line/9 is not in the log" in text


@pytest.mark.parametrize(
    "words, text",
    [
        (["registry", "init"], "not an empty folder"),
        (["registry", "list", "--registry", "none"], "not a registry"),
        (["registry", "list", "--state", "live"], "known: candidate, shadow"),
        (["registry", "add", "none"], "model not found"),
        (["registry", "add", "factory_line"], "no gate.json"),
        (["registry", "add", "factory_line", "--force"], "force without a reason"),
        (["registry", "add", "a/manifest.json"], "made of a model folder"),
        (["registry", "move", "line@1.0", "canary"], "from candidate to canary is not a step"),
        (["registry", "move", "line@1.0", "live"], "unknown state 'live'"),
        (["registry", "move", "line@7", "shadow"], "known: line@1.0"),
        (["registry", "show", "line"], "a name alone means its production version"),
        (["registry", "diff", "line@1.0", "x"], "unknown version 'x'"),
        (["registry", "export", "x", "--out", "b"], "unknown version 'x'"),
        (["registry", "golden", "a", "a"], "no runtime opens"),
        (["keys", "new", "--keys", "releases/keys"], "private keys inside"),
        (["keys", "rotate", "snapshot"], "unknown role 'snapshot'"),
        (["keys", "rotate", "root", "--repo", "none"], "make one with `cv-pipeline keys new`"),
        (["keys", "sign", "none"], "cannot be read"),
        (["keys", "sign", "a/net.bin"], "not a bundle"),
        (["keys", "stamp"], "make one with `cv-pipeline keys new`"),
    ],
)
def test_bad_input_is_a_sentence_with_what_to_do(place, words, text):
    ask("registry", "add", "a")
    code, found = ask(*words)
    assert code is None and text in found and "—" in found


def test_a_server_without_the_other_keys_is_told_what_is_missing(place):
    ask("registry", "add", "a")
    ask("registry", "export", "line@1.0", "--out", "b1")
    ask("keys", "new")
    (place / "server").mkdir()
    for path in (place / "keys").glob("timestamp-*"):
        shutil.move(path, place / "server")
    code, text = ask("keys", "sign", "b1")
    assert (
        code == 0 and read_json(place / "releases" / "metadata" / "timestamp.json")["signed"]["version"] == 1
    )
    code, text = ask("keys", "stamp")
    assert code is None and "key of 'timestamp' is not in this folder" in text
    assert ask("keys", "stamp", "--keys", "server")[0] == 0
    assert read_json(place / "releases" / "metadata" / "timestamp.json")["signed"]["version"] == 2


@pytest.mark.parametrize("words", [("registry",), ("keys",), ("rollout",)])
def test_help_lists_every_command(words):
    text = ask(*words, "--help")[1]
    wanted = {
        "registry": "init add move list show verify diff export golden",
        "keys": "new rotate sign withdraw stamp",
        "rollout": "start status advance promote abort report",
    }[words[0]]
    assert [w for w in wanted.split() if not re.search(rf"\b{w}\b", text)] == []


@pytest.mark.parametrize(
    "words",
    [
        "registry add",
        "registry verify",
        "keys rotate",
        "keys new",
        "shadow",
        "rollout start",
        "rollout advance",
    ],
)
def test_help_shows_an_example(words):
    code, text = ask(*words.split(), "--help")
    assert code == 0 and f"cv-pipeline {words}" in text


@pytest.mark.slow
def test_golden_pictures_from_a_folder(place, capsys):
    import cv2

    from cv_pipeline.inference.manifest import bundled_models
    from cv_pipeline.synthetic.belt import FactoryLine, LineConfig

    (place / "photos").mkdir()
    for n, (frame, _) in enumerate(FactoryLine(LineConfig(seed=4)).frames(150, every=15)):
        cv2.imwrite(str(place / "photos" / f"{n}.png"), frame.image)
    shutil.copytree(bundled_models()["factory_line"], place / "model")
    code, text = shown(capsys, "registry", "golden", "model", "photos", "--pictures", "8")
    assert code == 0 and "8 pictures with" in text
    assert len(read_json(place / "model" / "golden" / "golden.json")["pictures"]) == 8


@pytest.mark.slow
def test_a_process_ends_with_the_exit_codes_of_the_page(place):
    run = lambda *words: subprocess.run([CLI, *words], capture_output=True, text=True, timeout=120)
    bad = run("registry", "move", "line@1.0", "shadow")
    assert bad.returncode == 2 and "unknown version" in bad.stderr + bad.stdout
    assert run("registry", "add", "a").returncode == 0
    (place / "registry" / "versions" / "line" / "1.0" / "net.bin").write_bytes(b"x")
    assert run("registry", "verify").returncode == 1


# a rollout


HARMLESS = {"disagree": 0.002}
WORSE = {"disagree": 0.5, "lost": 0.5, "count": -0.5}


@pytest.fixture
def rollout(tmp_path, monkeypatch):
    "A rollout of two cameras in its shadow; commands use their defaults in the folder."
    monkeypatch.chdir(tmp_path)
    small_registry("registry")
    off = dict.fromkeys(
        ("empty", "moved", "confidence", "slow", "dropped", "tracks", "class_disagree", "class_count")
    )
    policy = Policy(
        hours=0,
        deadline_hours=9,
        loss=0.05,
        errors=0.05,
        count=0.05,
        lost=0.1,
        added=0.1,
        steps=(0.5, 1),
        **off,
    )
    start_trial("rollout", "registry", "line@1.1", {"gate": "north", "dock": "south"}, policy)
    return tmp_path


def run_with(means, name="run.json", **how):
    "Evidence of a run with both cameras."
    cameras = {"gate": {}, "dock": {}}
    return drawn_run(name, read_trial("rollout"), cameras, Drawn(means, 4.0, 0.2, **how))


def test_start_names_what_comes_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small_registry("registry")
    (tmp_path / "cameras.yaml").write_text("sources: [{uri: 'line:', id: gate}, {uri: 'line:', id: dock}]")
    words = (
        "rollout",
        "start",
        "line@1.1",
        "--config",
        "cameras.yaml",
        "--camera",
        "door=south",
        "--steps",
        "0.5,1",
    )
    code, text = shown(capsys, *words)
    state = read_trial("rollout").state
    assert code == 0 and "shadow, 3 cameras" in text and "cv-pipeline rollout advance rollout" in text
    assert set(state.order) == {"site", "south"} and state.policy.steps == (0.5, 1.0)


def test_advance_does_what_is_proven_and_status_changes_nothing(rollout, capsys):
    code, text = shown(capsys, "rollout", "status", "rollout")
    assert code == 0 and "INSUFFICIENT" in text and "no frames of" in text
    code, text = shown(capsys, "rollout", "advance", "rollout", run_with(HARMLESS))
    assert code == 0 and "canary" in text and Registry("registry").find("line@1.1").state == "canary"
    before = (rollout / "rollout" / "rollout.jsonl").read_bytes()
    assert shown(capsys, "rollout", "status", "rollout")[0] == 0
    assert (rollout / "rollout" / "rollout.jsonl").read_bytes() == before


def test_a_rollback_is_exit_code_1(rollout, capsys):
    code, text = shown(capsys, "rollout", "advance", "rollout", run_with(WORSE))
    assert code == 1 and "rolled back" in text and "BEYOND" in text
    assert Registry("registry").find("line@1.1").state == "candidate"


def test_by_hand_only_with_force_and_a_reason(rollout, capsys):
    assert "needs --force" in ask("rollout", "promote", "rollout", "--reason", "hurry")[1]
    assert ask("rollout", "promote", "rollout", "--force")[0] == 2
    assert "no reason" in ask("rollout", "promote", "rollout", "--force", "--reason", " ")[1]
    code, text = ask("rollout", "promote", "rollout", "--force", "--reason", "hurry")
    assert code == 0 and "canary, FORCED: 2 cameras" in text
    assert ask("rollout", "abort", "rollout", "--reason", "rain")[0] == 0
    code, text = shown(capsys, "rollout", "status", "rollout")
    assert code == 0 and "aborted, FORCED (rain)" in text
    assert shown(capsys, "rollout", "advance", "rollout")[0] == 1


@pytest.mark.parametrize(
    "words, text",
    [
        (["shadow", "--candidate", "a"], "name recordings or cameras"),
        (["shadow", "line:frames=3", "--candidate", "none"], "none"),
        (["shadow", "line:frames=3", "--candidate", "factory_line", "--share", "2"], "shadow.share"),
        (["shadow", "line:frames=3", "--candidate", "factory_line", "--rollout", "x"], "no trial was begun"),
        (["rollout", "start", "line@1.1", "--folder", "b"], "give --camera NAME=SITE"),
        (["rollout", "start", "line@7", "--folder", "b", "--camera", "a"], "unknown version"),
        (["rollout", "start", "line@1.1", "--folder", "b", "--camera", "a", "--loss", "2"], "loss: 2"),
        (["rollout", "status", "none"], "no trial was begun"),
        (["rollout", "advance", "rollout", "none"], "no evidence of a shadow"),
        (["rollout", "advance", "rollout", "--answers", "rollout/trial.json"], "line 1"),
        (["rollout", "abort", "none", "--reason", "x"], "no trial was begun"),
    ],
)
def test_a_mistake_in_a_rollout_is_a_sentence(rollout, words, text):
    code, found = ask(*words)
    assert code is None and text in found and ("—" in found or "[" in found)


@pytest.mark.slow
def test_from_a_recording_through_answers_into_the_canary(tmp_path, monkeypatch, capsys):
    "With two real models: evidence of a run, answers about what differs, and the old one in the shadow."
    from cv_pipeline.inference.manifest import bundled_models

    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundled_models()["factory_line"], "stricter")
    book = read_json("stricter/manifest.json", dict)
    book["postprocess"] |= {"conf": 0.85, "class_conf": {}}
    write_json("stricter/manifest.json", book | {"version": "1.1"})
    code, text = shown(capsys, "shadow", "line:seed=5,frames=64", "--candidate", "stricter", "--out", "run")
    assert code == 0 and "INSUFFICIENT" in text and "14 frames compared, 0 skipped" in text
    for words in (["init"], ["add", "factory_line"], ["add", "stricter"]):
        force = ["--force", "--reason", "a test"] if words[0] == "add" else []
        assert ask("registry", *words, *force)[0] == 0
    ask("registry", "move", "factory_line@1.0", "production", "--force", "--reason", "a test")
    assert ask("rollout", "start", "factory_line@1.1", "--camera", "line")[0] == 0
    code, text = shown(capsys, "rollout", "advance", "rollout", "run")
    assert code == 0 and "1 cameras, 14 frames" in text and "INSUFFICIENT" in text
    drafts = ("label", "files", "run/shadow/disagree", "--out", "drafts", "--model", "factory_line")
    assert ask(*drafts)[0] == 0
    back = (
        "label",
        "files",
        "drafts",
        "--annotator",
        "ana",
        "--out",
        "answers.jsonl",
        "--unchanged",
        "accept",
    )
    assert ask(*back)[0] == 0  # the drafts hold what both have found: a vote for the one that finds less
    code, text = shown(capsys, "rollout", "advance", "rollout", "--answers", "answers.jsonl")
    assert code == 0 and "labels: 1 for the new model, 0 for the old one" in text and "NEEDS LABELS" in text
    assert ask("rollout", "promote", "rollout", "--force", "--reason", "a test")[0] == 0
    section = {"model": "factory_line", "role": "previous", "rollout": "rollout", "wait": True, "share": 0.5}
    given = {"sources": ["line:seed=6,frames=24"], "model.path": "stricter", "delivery.out": "canary"}
    summary = run_config(load_config(None, {**given, "shadow": section}))
    assert summary["sinks"]["shadow"]["compared"] == 12
    code, text = shown(capsys, "rollout", "advance", "rollout", "canary")
    assert code == 0 and "1 cameras, 12 frames" in text and "canary 10%, FORCED" in text


@pytest.mark.slow
def test_the_page_of_a_rollout(rollout, capsys):
    code, text = shown(capsys, "rollout", "report")
    assert code == 0 and "verdict: NEEDS LABELS" in text
    assert ask("rollout", "promote", "rollout", "--force", "--reason", "hurry")[0] == 0
    assert shown(capsys, "rollout", "report", "rollout")[0] == 0
    pages = {p.parent.name: p.read_text(encoding="utf-8") for p in rollout.rglob("report.html")}
    assert len(pages) == 2 and any("FORCED: a person has overruled" in page for page in pages.values())
    assert any("by class" in page or "image/png" in page for page in pages.values())
