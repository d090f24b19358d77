"One way to open a database: what survives, what is refused, and what a person reads."

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cv_pipeline.core.databases import Database, DatabaseKind, database_trouble, open_database, transaction
from cv_pipeline.core.types import DataError, SinkError
from tests.helpers.disks import fill, small_disk
from tests.helpers.services import absent
from tests.helpers.waiting import until

SCHEMA = "CREATE TABLE IF NOT EXISTS rows(n INTEGER PRIMARY KEY, pad TEXT)"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def base(tmp_path):
    made = Database(tmp_path / "x.sqlite", SCHEMA)
    yield made
    made.close()


def put(base, *numbers):
    with base.changing() as db:
        db.executemany("INSERT INTO rows(n) VALUES (?)", [(n,) for n in numbers])


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("database or disk is full", "disk"),
        ("disk I/O error", "disk"),
        ("attempt to write a readonly database", "disk"),
        ("unable to open database file", "disk"),
        ("database disk image is malformed", "corrupt"),
        ("file is not a database", "corrupt"),
        ("database is locked", "busy"),
        ("UNIQUE constraint failed", "other"),
    ],
)
def test_an_error_is_one_of_four(text, trouble):
    assert database_trouble(sqlite3.OperationalError(text)) == trouble


def test_it_is_durable_and_in_wal(base):
    assert base.value("PRAGMA journal_mode") == "wal"
    assert base.value("PRAGMA synchronous") == 2


def test_a_kind_may_leave_rows_to_the_system(tmp_path):
    kind = DatabaseKind(durable=False)
    made = Database(tmp_path / "x.sqlite", SCHEMA, kind)
    put(made, 1)
    assert made.value("PRAGMA synchronous") == 1
    made.close()


def test_a_failed_block_leaves_nothing(base):
    with pytest.raises(ValueError), base.changing() as db:
        db.execute("INSERT INTO rows(n) VALUES (1)")
        raise ValueError
    assert base.query("SELECT * FROM rows") == []


def test_a_block_inside_another_ends_with_it(base):
    with pytest.raises(ValueError), base.changing():
        put(base, 1)
        raise ValueError
    assert base.value("SELECT count(*) FROM rows") == 0


def test_a_damaged_file_says_what_to_do(tmp_path):
    (tmp_path / "x.sqlite").write_bytes(os.urandom(8192))
    with pytest.raises(SinkError, match="the shelf is corrupt.*move it away"):
        open_database(tmp_path / "x.sqlite", SCHEMA, DatabaseKind("shelf"))


def test_damage_that_is_met_later_is_a_sentence(tmp_path):
    made = Database(tmp_path / "x.sqlite", SCHEMA)
    put(made, *range(5000))
    made.close()
    data = bytearray((tmp_path / "x.sqlite").read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    (tmp_path / "x.sqlite").write_bytes(data)
    again = Database(tmp_path / "x.sqlite", SCHEMA)
    with pytest.raises(SinkError, match="cannot be read.*move it away"):
        again.query("SELECT * FROM rows")
    again.close()


def test_a_newer_schema_is_refused_and_not_touched(tmp_path):
    open_database(tmp_path / "x.sqlite", SCHEMA, DatabaseKind(version=9)).close()
    with pytest.raises(DataError, match="schema 9.*up to 1.*update the package"):
        open_database(tmp_path / "x.sqlite", SCHEMA)
    db = sqlite3.connect(tmp_path / "x.sqlite")
    assert db.execute("PRAGMA user_version").fetchone() == (9,)
    db.close()


def test_a_file_without_a_version_gets_one(tmp_path):
    db = sqlite3.connect(tmp_path / "x.sqlite")
    db.executescript(SCHEMA + "; INSERT INTO rows(n) VALUES (5)")
    db.close()
    made = Database(tmp_path / "x.sqlite", SCHEMA)
    assert (made.value("SELECT n FROM rows"), made.value("PRAGMA user_version")) == (5, 1)
    made.close()


def test_changed_is_about_other_connections(base, tmp_path):
    other = Database(tmp_path / "x.sqlite", SCHEMA)
    assert [base.changed(), base.changed()] == [True, False]
    put(base, 1)
    assert not base.changed()
    put(other, 2)
    assert base.changed()
    other.close()


def test_threads_take_turns(base):
    workers = [threading.Thread(target=put, args=(base, *range(k * 100, k * 100 + 100))) for k in range(6)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert base.value("SELECT count(*) FROM rows") == 600


def test_a_full_disk_is_a_sentence_and_what_was_written_stays(tmp_path):
    with small_disk(tmp_path / "disk", 400) as disk:
        if disk is None:
            absent("mounting is not allowed here")
        made = Database(disk / "x.sqlite", SCHEMA)
        put(made, 1)
        ballast = fill(disk)
        with pytest.raises(SinkError, match="cannot be written.*free some space"):
            with made.changing() as db:
                db.executemany("INSERT INTO rows VALUES (?, ?)", [(n, "x" * 900) for n in range(2, 400)])
        ballast.unlink()
        assert made.query("SELECT n FROM rows") == [{"n": 1}]
        put(made, 2)
        assert made.value("SELECT count(*) FROM rows") == 2
        made.close()


def test_what_a_block_ended_with_survives_kill_9(tmp_path):
    code = (
        "import sys, itertools\nfrom cv_pipeline.core.databases import Database\n"
        f"base = Database(sys.argv[1], {SCHEMA!r})\n"
        "for n in itertools.count():\n"
        "    with base.changing() as db: db.execute('INSERT INTO rows(n) VALUES (?)', (n,))\n"
        "    print(n, flush=True)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = tmp_path / "out"
    with open(out, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "x.sqlite")], stdout=file, env=env
        )
    until(lambda: out.read_bytes().count(b"\n") > 20, 60, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    said = int(out.read_bytes().split(b"\n")[-2])
    with open_database(tmp_path / "x.sqlite", SCHEMA) as db:
        (kept,) = db.execute("SELECT max(n) FROM rows").fetchone()
    db.close()
    assert kept >= said


def test_another_process_waits_for_the_writer(base, tmp_path):
    other = open_database(tmp_path / "x.sqlite", SCHEMA)
    other.execute("PRAGMA busy_timeout=50")
    with base.changing() as db:
        db.execute("INSERT INTO rows(n) VALUES (1)")
        with pytest.raises(sqlite3.OperationalError, match="locked"), transaction(other):
            pass
    with transaction(other):
        other.execute("INSERT INTO rows(n) VALUES (2)")
    other.close()
    assert base.value("SELECT count(*) FROM rows") == 2
