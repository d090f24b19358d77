"""What pages read of an incident book, and an answer that is given there."""

import sqlite3
from datetime import datetime, timezone

import pytest

from cv_pipeline.alerts.incidents import (
    Happening,
    IncidentBook,
    fire,
    incidents,
    ingest,
    keep_fact,
    resolve,
    take,
)
from cv_pipeline.alerts.open_incidents import BookDesk, BookReader
from cv_pipeline.alerts.policy import Subject, read_policy
from cv_pipeline.alerts.sites import SiteState
from cv_pipeline.alerts.snapshots import OpenIncident
from cv_pipeline.core.types import ConfigError, DataError

POLICY = read_policy(
    {
        "channels": {"desk": {"kind": "webhook", "url": "http://127.0.0.1:9/"}},
        "levels": [{"after_s": 0, "channels": ["desk"], "repeat_s": 60}],
    }
)


@pytest.fixture
def path(tmp_path):
    "A book with two open incidents at Brno."
    made = tmp_path / "incidents.sqlite"
    with IncidentBook(made) as book:
        with book.changing() as db:
            keep_fact(db, "policy", POLICY.model_dump(mode="json", by_alias=True))
        for k, camera in enumerate(("gate", "gate", "yard")):
            what = Happening(
                f"e{k}", Subject("Brno", camera, "fence"), "zone_enter", 1e9 + k, k, "a <b>person</b>"
            )
            take(book, [what])
        ingest(book, POLICY)
        fire(book, POLICY)
    return made


def site(name):
    return SiteState(name, "ok", (), ())


def test_the_newest_stands_first_with_its_count_and_time(path):
    yard, gate = BookReader(path)()
    assert (yard.camera, gate.camera, gate.state, gate.severity) == ("yard", "gate", "open", "warning")
    assert gate.title == "fence: a <b>person</b> (2 ×)" and yard.title == "fence: a <b>person</b>"
    assert datetime.fromisoformat(gate.since) == datetime.fromtimestamp(1e9, timezone.utc)


def test_what_has_ended_is_not_shown(path):
    with IncidentBook(path) as book:
        resolve(book, POLICY, incidents(book)[0]["id"], "eva")
    assert [i.camera for i in BookReader(path)()] == ["gate"]


def test_reading_writes_nothing_and_does_not_wait_for_a_writer(path):
    with IncidentBook(path) as book, book.changing() as db:
        db.execute("UPDATE incidents SET text = 'under way'")
        shown = BookReader(path)()  # while a transaction is open
    assert all("under way" not in i.title for i in shown)


def test_a_book_that_is_not_there_yet_is_empty_and_a_damaged_one_an_error(tmp_path):
    assert BookReader(tmp_path / "none.sqlite")() == []
    (tmp_path / "torn.sqlite").write_bytes(b"not a database " * 400)
    with pytest.raises(DataError, match="cannot be read"):
        BookReader(tmp_path / "torn.sqlite")()
    sqlite3.connect(tmp_path / "empty.sqlite").close()
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(DataError, match="cannot be read"):
        BookReader(tmp_path / "empty.sqlite")()


def test_an_answer_from_the_page_is_in_the_book_with_its_name(path):
    shown = BookReader(path)()[0]
    assert "acknowledged until" in BookDesk(path)(site("Brno"), shown, "eva")
    with IncidentBook(path) as book:
        row = next(r for r in incidents(book) if str(r["id"]) == shown.id)
    assert row["state"] == "acknowledged" and (row["ack"]["who"], row["ack"]["via"]) == ("eva", "page")


@pytest.mark.parametrize(
    ("name", "number", "why"),
    [
        ("Lyon", None, "another site"),
        ("Brno", "99", "unknown"),
        ("Brno", "x'; --", "unknown"),
        ("Brno", "", "unknown"),
    ],
)
def test_what_this_book_does_not_hold_is_not_answered(path, name, number, why):
    shown = BookReader(path)()[0]
    asked = shown if number is None else OpenIncident(number, "?")
    with pytest.raises(DataError, match=why):
        BookDesk(path)(site(name), asked, "eva")
    assert {i.state for i in BookReader(path)()} == {"open"}


def test_what_has_ended_is_not_answered(path):
    shown = BookReader(path)()[0]
    with IncidentBook(path) as book:
        resolve(book, POLICY, int(shown.id), "jan")
    with pytest.raises(DataError, match="has ended|resolved"):
        BookDesk(path)(site("Brno"), shown, "eva")


def test_a_desk_without_a_book_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        BookDesk(tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()
