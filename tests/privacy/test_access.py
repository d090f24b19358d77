"""Who looked at what: recorded before it happens, found when it is edited."""

from datetime import datetime, timezone

import pytest

from cv_pipeline.core.chain import ChainError, append_chain
from cv_pipeline.core.types import ConfigError, SinkError
from cv_pipeline.privacy.access import (
    ACTIONS,
    VARIABLE,
    access_head,
    chosen,
    note_access,
    read_access,
    verify_access,
)


def now():
    return datetime(2026, 6, 1, 8, tzinfo=timezone.utc)


@pytest.fixture
def log(tmp_path, monkeypatch):
    "A log that the environment names, with a line of each action."
    path = tmp_path / "logs" / "access.jsonl"
    monkeypatch.setenv(VARIABLE, str(path))
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    for k, action in enumerate(ACTIONS):
        note_access(action, f"camera-{k}", " because ", k, now=now)
    return path


def test_a_line_says_who_when_what_and_why(log):
    row = read_access(log)[1]
    assert (row.number, row.at, row.by) == (2, "2026-06-01T08:00:00+00:00", "ann")
    assert (row.action, row.what, row.why, row.pictures) == (ACTIONS[1], "camera-1", "because", 1)
    assert row.machine


def test_nothing_is_kept_where_no_log_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert note_access("view", "gate") is None and access_head() == ""


def test_an_address_is_recorded_without_its_password(log):
    note_access("view", "rtsp://admin:Kl9-really@cam/1")
    assert "Kl9" not in log.read_text() and read_access(log)[-1].what == "rtsp://***@cam/1"


def test_a_log_that_cannot_be_written_is_an_error_before_anything_is_shown(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((SinkError, ConfigError, OSError)):
        note_access("view", "gate", path=tmp_path / "file" / "access.jsonl")


@pytest.mark.parametrize("line", range(len(ACTIONS) - 1))
def test_every_removed_line_is_found(log, line):
    lines = log.read_bytes().splitlines(keepends=True)
    head = access_head(log)
    log.write_bytes(b"".join(lines[:line] + lines[line + 1 :]))
    assert verify_access(log) and verify_access(log, head)


def test_a_cut_end_is_found_with_the_head_only(log):
    head = access_head()
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-2]))
    assert verify_access(log) == []
    assert "does not contain the head" in verify_access(log, head)[0]


def test_lines_are_chosen_newest_first(log):
    rows = read_access(log)
    assert [r["number"] for r in chosen(rows, by="ann")] == list(range(len(ACTIONS), 0, -1))
    assert [r["action"] for r in chosen(rows, action="erase")] == ["erase"]
    assert chosen(rows, by="bob") == [] and len(chosen(rows, what="camera-3")) == 1


def test_another_log_is_not_one_of_accesses(tmp_path):
    append_chain(tmp_path / "other.jsonl", {"state": "shadow"})
    with pytest.raises(ChainError, match="line 1 is not an access"):
        read_access(tmp_path / "other.jsonl")


def test_bad_input_is_a_typed_error(log, tmp_path):
    with pytest.raises(ConfigError, match="unknown action"):
        note_access("peek", "gate")
    with pytest.raises(ConfigError, match="unknown action"):
        chosen([], action="peek")
    with pytest.raises(ConfigError, match="this log does not exist"):
        verify_access(tmp_path / "gone")
