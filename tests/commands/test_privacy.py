"""`cv-pipeline privacy` as a user meets it."""

import numpy as np
import pytest
from typer.testing import CliRunner

from cv_pipeline.commands import privacy
from cv_pipeline.commands.main import app
from cv_pipeline.core.types import CVPipelineError
from cv_pipeline.privacy.access import VARIABLE, access_head, note_access
from cv_pipeline.synthetic.passers import Passers, PassersConfig
from cv_pipeline.video.cover import encoded

PLAIN = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
LINE = "opened rtsp://admin:Kl9-really@10.0.0.7/live\n"


def ask(*words):
    "Exit code (None: a typed error) and all text."
    done = CliRunner().invoke(app, ["privacy", *map(str, words)], env=PLAIN)
    if isinstance(done.exception, CVPipelineError):
        return None, str(done.exception)
    return done.exit_code, " ".join(done.output.split())


def test_a_finding_ends_with_exit_code_1_and_is_not_shown(tmp_path, capsys, monkeypatch):
    tables = {}
    monkeypatch.setattr(privacy, "records", tables.__setitem__)
    (tmp_path / "run.log").write_text(LINE)
    code, text = ask("secrets", tmp_path)
    assert code == 1 and "1 secrets in 1 files" in text
    (row,) = tables["Secrets"]
    assert row["file"].endswith("run.log") and row["place"] == "line 1"
    assert "Kl9-really" not in text + capsys.readouterr().out + str(tables)


def test_masking_leaves_nothing_and_is_in_the_log_of_accesses(tmp_path, monkeypatch):
    log = tmp_path / "log" / "access.jsonl"
    monkeypatch.setenv(VARIABLE, str(log))
    (tmp_path / "run.log").write_text(LINE)
    assert ask("secrets", tmp_path / "run.log", "--mask")[0] == 0
    assert (tmp_path / "run.log").read_text() == "opened rtsp://admin:***@10.0.0.7/live\n"
    assert ask("secrets", tmp_path / "run.log")[0] == 0
    assert "masked" in log.read_text() and "Kl9" not in log.read_text()


def test_examples_are_allowed_in_the_present_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manual.md").write_text(LINE)
    assert ask("secrets", "manual.md", "--allow")[0] == 0
    assert "Kl9" not in (tmp_path / ".secrets-allowed").read_text()
    assert ask("secrets", "manual.md")[0] == 0
    assert ask("secrets", "manual.md", "--allow")[0] == 0
    assert len((tmp_path / ".secrets-allowed").read_text().splitlines()) == 2


def test_accesses_are_shown_and_verified(tmp_path, monkeypatch):
    tables = {}
    monkeypatch.setattr(privacy, "records", tables.__setitem__)
    log = tmp_path / "access.jsonl"
    for k in range(3):
        note_access("view", f"gate-{k}", path=log)
    head = access_head(log)
    code, text = ask("access", "show", "--log", log, "--what", "gate-1")
    assert code == 0 and [row["what"] for row in tables["Accesses"]] == ["gate-1"]
    assert ask("access", "verify", "--log", log, "--head", head)[0] == 0
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]))
    assert ask("access", "verify", "--log", log)[0] == 0
    assert ask("access", "verify", "--log", log, "--head", head)[0] == 1


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("secrets", "gone"), "does not exist"),
        (("secrets", ".", "--mask", "--allow"), "contradict"),
        (("access", "show"), "no log of accesses is kept here"),
        (("access", "verify", "--log", "gone"), "does not exist"),
    ],
)
def test_bad_input_is_a_sentence_with_what_to_do(words, part, monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    code, text = ask(*words)
    assert code in (None, 2) and part in text


@pytest.fixture
def photos(tmp_path):
    frame, truth = Passers(PassersConfig(frames=60, plates=0, seed=3)).frame(20)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "hall.jpg").write_bytes(encoded(frame.image))
    return tmp_path / "photos"


def test_pictures_are_covered_into_another_folder_and_the_export_is_in_the_log(photos, tmp_path, monkeypatch):
    tables, log = {}, tmp_path / "access.jsonl"
    monkeypatch.setattr(privacy, "records", tables.__setitem__)
    monkeypatch.setenv(VARIABLE, str(log))
    before = (photos / "hall.jpg").read_bytes()
    code, text = ask("blur", photos, "--out", tmp_path / "covered")
    assert code == 0
    assert "1 files" in text
    assert tables["Covered"][0]["parts"] == 1
    assert (photos / "hall.jpg").read_bytes() == before
    assert "export" in log.read_text()


def test_a_file_that_cannot_be_covered_is_named_and_ends_with_exit_code_1(photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"no picture")
    code, text = ask("blur", photos, "--out", tmp_path / "covered")
    assert code == 1
    assert "broken.jpg" in text
    assert "1 could not be checked" in text


def test_a_folder_with_faces_does_not_pass_and_they_are_listed(photos, monkeypatch):
    tables = {}
    monkeypatch.setattr(privacy, "records", tables.__setitem__)
    code, text = ask("check", photos, "--limit", "0.01")
    assert code == 1
    assert tables["Faces"][0]["file"].endswith("hall.jpg")
    assert "FAIL" in text


def test_a_folder_is_proven_only_by_enough_pictures(tmp_path):
    blank = encoded(np.full((40, 60, 3), 90, np.uint8), ".png")
    (tmp_path / "few").mkdir()
    for k in range(30):
        (tmp_path / "few" / f"{k}.png").write_bytes(blank)
    assert ask("check", tmp_path / "few", "--limit", "0.01")[0] == 1
    code, text = ask("check", tmp_path / "few", "--limit", "0.1")
    assert code == 0
    assert "PASS" in text


def test_an_empty_folder_is_an_error_and_not_a_pass(tmp_path):
    code, text = ask("check", tmp_path)
    assert code is None
    assert "no pictures and no films" in text
