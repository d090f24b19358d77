"""`cv-pipeline privacy erase, verify, retain` as a user meets them."""

import shutil

import pytest
from typer.testing import CliRunner

from cv_pipeline.commands import erasure
from cv_pipeline.commands.main import app
from cv_pipeline.core.types import CVPipelineError
from cv_pipeline.privacy.access import read_access
from cv_pipeline.reporting.history import list_reports, write_index
from tests.helpers.watched_project import FRAMES, content, found_markers

PLAIN = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


@pytest.fixture
def tables(monkeypatch):
    shown = {}
    monkeypatch.setattr(erasure, "records", lambda title, rows, *more: shown.__setitem__(title, rows))
    return shown


def ask(*words):
    "Exit code (None: a typed error) and all text."
    done = CliRunner().invoke(app, ["privacy", *map(str, words)], env=PLAIN)
    if isinstance(done.exception, CVPipelineError):
        return None, str(done.exception)
    return done.exit_code, " ".join(done.output.split())


def test_without_yes_nothing_is_changed(project, tables):
    before = content(project)
    code, text = ask("erase", "--camera", "gate", "--root", project)
    assert code == 0 and "add --yes" in text and content(project) == before
    rows = {(r["store"].split()[0], r["what"]): r for r in tables["Would be erased: gate"]}
    assert rows["collection", "picture"]["files"] == FRAMES and rows["log", "rows"]["rows"] == 2 * FRAMES


def test_with_yes_it_goes_and_the_certificate_verifies(project, tables):
    log = project / "access.jsonl"
    code, text = ask(
        "erase", "--camera", "gate", "--root", project, "--log", log, "--why", "request 14", "--yes"
    )
    assert code == 0 and "certificate" in text and found_markers(project, "gate") == set()
    (path,) = (project / "privacy" / "certificates").glob("*.json")
    assert ask("verify", path, "--root", project, "--log", log)[0] == 0
    assert [a.action for a in read_access(log)] == ["erase", "erase", "verify"]


def test_the_page_of_all_reports_is_made_again(project, tables):
    reports = project / "reports"
    before = {entry.folder.name for entry in list_reports(reports)}
    write_index(reports)
    ask("erase", "--camera", "gate", "--root", project, "--yes")
    left = {entry.folder.name for entry in list_reports(reports)}
    page = (reports / "index.html").read_text()
    assert left < before and not [name for name in before - left if name in page]


def test_what_came_back_ends_with_1(project, made, tables):
    ask("erase", "--camera", "gate", "--root", project, "--yes")
    (path,) = (project / "privacy" / "certificates").glob("*.json")
    shutil.copy(next((made / "collected" / "frames" / "gate").glob("*.jpg")), project / "again.bin")
    code, text = ask("verify", path, "--root", project)
    assert code == 1 and "still there: again.bin" in text


def test_a_place_out_of_reach_ends_with_1(project, tables):
    (project / "stores.yaml").write_text("stores: [{kind: run, path: /mnt/nas/run}]\n")
    code, text = ask("erase", "--camera", "gate", "--root", project, "--yes")
    assert code == 1 and "not reached: run /mnt/nas/run" in text


@pytest.mark.parametrize(
    "words, text",
    [
        ((), "a camera or a track is needed"),
        (("--camera", "gate", "--track", "gate:1"), "a camera or a track is needed"),
        (("--track", "17"), "not a track"),
        (("--camera", "*"), "'*' is not a camera"),
        (("--camera", "gate", "--from", "yesterday"), "not a time"),
        (("--camera", "gate", "--from", "2026-06-01T08:00"), "has no zone"),
        (("--camera", "gate", "--from", "2026-06-02", "--to", "2026-06-01"), "is not before"),
        (("--track", "gate:99"), "no box of track 99"),
        (("--camera", "gate", "--root", "/no/project"), "does not exist"),
    ],
)
def test_what_cannot_be_meant_is_refused(project, words, text):
    where = () if "--root" in words else ("--root", project)
    code, said = ask("erase", *words, *where)
    assert code is None and text in said


def test_a_track_of_a_camera_with_a_colon(project):
    assert erasure.read_subject(None, "hall:north:17", None, None).camera == "hall:north"


def test_old_pictures_are_shown_and_then_deleted(project, tables):
    config = project / "line.yaml"
    config.write_text("privacy: {retain: {pictures: 1d, results: 900d}}\n")
    before = content(project)
    assert ask("retain", config, "--root", project)[0] == 0 and content(project) == before
    assert {r["kind"] for r in tables["Would be deleted"]} == {"pictures"}
    assert ask("retain", config, "--root", project, "--yes")[0] == 0
    assert not list((project / "collected").rglob("*.jpg")) and list((project / "data").rglob("*.jpg"))


def test_a_policy_with_an_unknown_kind_is_refused(project):
    (project / "line.yaml").write_text("privacy: {retain: {photos: 30d}}\n")
    assert "unknown kind: photos" in ask("retain", project / "line.yaml", "--root", project)[1]


@pytest.mark.parametrize(
    "words, action, what",
    [
        (
            ("label", "files", "collected", "--out", "drafts", "--names", "part"),
            "export",
            "collected to drafts",
        ),
        (("label", "push", "collected", "--title", "Line", "--names", "part"), "label", "collected to http"),
        (
            ("label", "pull", "--title", "Line", "--out", "a.jsonl"),
            "label",
            "http://127.0.0.1:8080 to a.jsonl",
        ),
        (("collect", "run", "--out", "more"), "export", "collect from run to more"),
    ],
)
def test_who_takes_pictures_away_is_recorded_before_it_happens(
    made, tmp_path, monkeypatch, words, action, what
):
    "Also when it fails afterwards: here without a token, or without the film."
    log = tmp_path / "access.jsonl"
    monkeypatch.setenv("CV_PIPELINE_ACCESS_LOG", str(log))
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    for name in ("collected", "run"):
        shutil.copytree(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(app, list(words), env=PLAIN)
    (row,) = read_access(log)
    assert row.action == action and row.what.startswith(what)
