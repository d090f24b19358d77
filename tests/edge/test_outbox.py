"""The outbox under what the field does to it: kills, full disks, broken and copied cards, wrong clocks."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.owed import owed_files
from cv_pipeline.core.types import ConfigError, DataError, SinkError
from cv_pipeline.edge import outbox
from cv_pipeline.edge.outbox import (
    CLASSES,
    DeviceClock,
    Outbox,
    OutboxSettings,
    acknowledge,
    begin_spool,
    digest_of,
    file_done,
    files_owed,
    line_of,
    next_offer,
    outbox_status,
    put_file,
    refuse_row,
)
from tests.helpers.cut_processes import PowerCuts
from tests.helpers.disks import fill, small_disk
from tests.helpers.kill_loop import ROOT
from tests.helpers.services import absent
from tests.helpers.waiting import until

BARE = OutboxSettings(ballast_bytes=0)
SMALL = OutboxSettings(max_bytes=4_200_000, ballast_bytes=0)


def rows_of(n, kind="result", size=0, first=0):
    return [(kind, {"n": k, "text": "x" * size}) for k in range(first, first + n)]


def drained(box):
    "Everything that waits, as a centre would take it."
    rows = []
    while offer := next_offer(box):
        rows += offer.rows
        acknowledge(box, offer.rows[-1].seq)
    return rows


def bodies(rows):
    return [json.loads(r.body) for r in rows]


def test_numbers_are_never_given_again_after_everything_was_delivered(tmp_path):
    with Outbox(tmp_path, BARE) as box:
        box.write(rows_of(5))
        drained(box)
    with Outbox(tmp_path, BARE) as box:
        assert box.write(rows_of(1)) == 6
        assert next_offer(box).after == 5


def test_a_row_is_the_same_line_each_time(tmp_path):
    with Outbox(tmp_path, BARE) as box:
        box.write([("event", {"text": 'naïve "quoted"\n', "x": 1.1})])
        first = line_of(next_offer(box).rows[0])
    with Outbox(tmp_path, BARE) as box:
        again = line_of(next_offer(box).rows[0])
    assert first == again and b"\n" not in first
    assert json.loads(first)["body"] == {"text": 'naïve "quoted"\n', "x": 1.1}


@settings(max_examples=8)
@given(st.lists(st.tuples(st.sampled_from(CLASSES), st.integers(0, 2000)), min_size=1, max_size=60))
def test_order_and_content_are_kept(tmp_path_factory, wanted):
    with Outbox(tmp_path_factory.mktemp("box"), BARE) as box:
        for k, (kind, size) in enumerate(wanted):
            box.put(kind, {"n": k, "text": "x" * size})
        box.write([])
        rows = drained(box)
    assert [r.kind for r in rows] == [kind for kind, _ in wanted]
    assert [b["n"] for b in bodies(rows)] == list(range(len(wanted)))
    assert [r.seq for r in rows] == list(range(1, len(wanted) + 1))


def test_many_threads_lose_nothing(tmp_path):
    with Outbox(tmp_path, BARE) as box:
        threads = [
            threading.Thread(target=lambda t=t: [box.put("result", {"t": t, "n": k}) for k in range(300)])
            for t in range(6)
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        box.write([])
        found = bodies(drained(box))
    assert len(found) == 1800
    for t in range(6):
        assert [b["n"] for b in found if b["t"] == t] == list(range(300))


def test_rows_reach_the_disk_without_a_further_one(tmp_path):
    with Outbox(tmp_path, BARE) as box:
        woken = threading.Event()
        box.listener = lambda urgent: woken.set()
        box.put("result", {"n": 1})
        assert woken.wait(10)
        assert outbox_status(box).waiting == 1 and outbox_status(box).in_memory == 0


def test_an_alarm_is_urgent_and_takes_the_rows_before_it_along(tmp_path):
    with Outbox(tmp_path, OutboxSettings(ballast_bytes=0, commit_s=60)) as box:
        urgent = []
        box.listener = urgent.append
        box.put("result", {"n": 1})
        box.put("alarm", {"n": 2})
        assert urgent == [True] and outbox_status(box).waiting == 2 and box._synced


def test_a_body_may_be_made_later_and_what_it_raises_becomes_a_note(tmp_path):
    with Outbox(tmp_path, BARE) as box:
        box.put("result", lambda: {"n": 1})
        box.put("result", lambda: {"n": float("nan")})
        box.put("result", lambda: {"n": 3})
        box.write([])
        rows = drained(box)
    assert [b.get("n") for b in bodies(rows) if "why" not in b] == [1, 3]
    (note,) = [b for b in bodies(rows) if "why" in b]
    assert note["n"] == 1 and note["kind"] == "result" and "cannot be written as JSON" in note["why"]


@pytest.mark.parametrize(
    "kind, body, words",
    [
        ("alert", {}, "unknown class 'alert'.*one of alarm, event"),
        ("event", {"x": float("inf")}, "cannot be written as JSON.*finite"),
        ("event", {"x": {1, 2}}, "cannot be written as JSON"),
        ("event", {"x": "a" * 300_000}, "too large for a row.*put_file"),
    ],
)
def test_bad_rows_are_refused_where_they_are_made(tmp_path, kind, body, words):
    with Outbox(tmp_path, BARE) as box:
        with pytest.raises(DataError, match=words):
            box.put(kind, body)
        assert outbox_status(box).in_memory == 0


def test_bad_settings_are_listed_at_once():
    with pytest.raises(ConfigError, match="3 invalid settings of the outbox") as e:
        OutboxSettings(max_bytes=10, commit_rows=0, row_bytes=1)
    assert [p.split(":")[0] for p in e.value.problems] == ["max_bytes", "commit_rows", "row_bytes"]


def test_a_closed_outbox_says_so(tmp_path):
    box = Outbox(tmp_path, BARE)
    box.close()
    box.close()
    with pytest.raises(SinkError, match="the outbox is closed"):
        box.put("result", {})


def test_two_agents_in_one_folder_are_refused(tmp_path):
    with Outbox(tmp_path, BARE):
        with pytest.raises(
            ConfigError, match="another process has this outbox open.*one agent for each folder"
        ):
            Outbox(tmp_path, BARE)
    Outbox(tmp_path, BARE).close()


def test_a_killed_agent_leaves_no_lock(tmp_path):
    code = "import sys, os; from cv_pipeline.edge.outbox import *\n"
    code += "box = Outbox(sys.argv[1], OutboxSettings(ballast_bytes=0))\n"
    code += "box.write([('event', {'n': 1})])\nos.kill(os.getpid(), 9)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env).returncode == -9
    with Outbox(tmp_path, BARE) as box:
        assert bodies(drained(box)) == [{"n": 1}]


# -- offering


def test_what_is_offered_is_on_the_disk_first(tmp_path):
    seen = []
    with Outbox(tmp_path, BARE, step=seen.append) as box:
        box.write(rows_of(3))
        assert not box._synced
        next_offer(box)
        assert box._synced and seen[-1] == "outbox.offered"
        next_offer(box)
        assert seen.count("outbox.offered") == 1, "the same rows again cost no wait"


def test_an_offer_is_bounded_by_rows_and_bytes(tmp_path):
    with Outbox(tmp_path, BARE) as box:
        box.write(rows_of(50, size=1000))
        assert len(next_offer(box, most=7).rows) == 7
        assert len(next_offer(box, most_bytes=5000).rows) == 4
        assert len(next_offer(box, most_bytes=1).rows) == 1


def test_confirmations_that_cannot_be_true_delete_nothing(tmp_path):
    with Outbox(tmp_path, BARE) as box:
        box.write(rows_of(10))
        next_offer(box, most=5)
        with pytest.raises(DataError, match="confirms number 6, and 5 is the last"):
            acknowledge(box, 6)
        assert acknowledge(box, 5) == 5
        assert acknowledge(box, 3) == 0, "an older answer that was late"
        assert outbox_status(box).waiting == 5


def test_the_digest_of_the_last_confirmed_row_is_kept(tmp_path):
    with Outbox(tmp_path, BARE) as box:
        box.write(rows_of(4))
        rows = next_offer(box, most=3).rows
        acknowledge(box, 2)
        offer = next_offer(box)
    assert offer.after_digest == digest_of(line_of(rows[1]))
    assert [r.seq for r in offer.rows] == [3, 4] and offer.offered == 3


def test_a_kill_in_the_middle_of_deleting_offers_nothing_again(tmp_path):
    with Outbox(tmp_path, BARE) as box:
        box.write(rows_of(6))
        next_offer(box)
        with outbox.transaction(box._db, durable=True):
            outbox._set_facts(box._db, have=4)
    with Outbox(tmp_path, BARE) as box:
        assert [r.seq for r in next_offer(box).rows] == [5, 6]
        assert box._db.execute("SELECT min(seq) FROM outbox").fetchone() == (5,)


def test_another_spool_begins_where_the_centre_differs(tmp_path):
    with Outbox(tmp_path, BARE) as box:
        box.write(rows_of(10))
        old = next_offer(box).spool
        new = begin_spool(box, 4)
        offer = next_offer(box)
        assert new == offer.spool != old
        assert (offer.base, offer.after, offer.offered) == (3, 3, 3)
        assert [r.seq for r in offer.rows] == list(range(4, 11))
        assert box.write(rows_of(1)) == 11


def test_a_spool_that_begins_after_the_last_row_does_not_skip_numbers(tmp_path):
    with Outbox(tmp_path, BARE) as box:
        box.write(rows_of(3))
        begin_spool(box, 10)
        box.write(rows_of(1, first=9))
        offer = next_offer(box)
        assert (offer.base, offer.after, [r.seq for r in offer.rows]) == (3, 3, [4])


def test_a_row_that_is_refused_becomes_a_note(tmp_path):
    with Outbox(tmp_path, BARE) as box:
        box.write(rows_of(3))
        next_offer(box)
        refuse_row(box, 2, "too strange")
        rows = drained(box)
    assert [r.kind for r in rows] == ["result", "dropped", "result"]
    note = json.loads(rows[1].body)
    assert (note["kind"], note["n"], note["from"], note["to"], note["why"]) == (
        "result",
        1,
        2,
        2,
        "too strange",
    )


def test_the_file_shrinks_again_after_an_outage(tmp_path):
    with Outbox(tmp_path, BARE) as box:
        for k in range(8):
            box.write(rows_of(2000, size=800, first=2000 * k))
        full = box._db.execute("PRAGMA page_count").fetchone()[0]
        drained(box)
        assert box._db.execute("PRAGMA page_count").fetchone()[0] < full / 2
    assert box.path.stat().st_size < full * 4096 / 2


# -- the limit


def test_the_lowest_class_gives_way_and_the_notes_add_up(tmp_path):
    with Outbox(tmp_path, SMALL) as box:
        for k in range(12):
            box.write(rows_of(400, size=600, first=400 * k))
            box.write([("alarm", {"n": k}), ("event", {"n": k})])
            assert box.path.stat().st_size <= SMALL.max_bytes
        status, rows = outbox_status(box), drained(box)
    kinds, notes = Counter(r.kind for r in rows), [json.loads(r.body) for r in rows if r.kind == "dropped"]
    assert kinds["alarm"] == kinds["event"] == 12
    assert kinds["result"] + sum(n["n"] for n in notes) == 4800
    assert kinds["result"] > 1000
    assert {n["kind"] for n in notes} == {"result"} and status.dropped["result"] == sum(n["n"] for n in notes)
    kept = [b["n"] for r, b in zip(rows, bodies(rows)) if r.kind == "result"]
    assert kept == list(range(4800 - len(kept), 4800)), "the newest are kept"


def test_one_note_for_each_class_while_nothing_is_sent(tmp_path):
    with Outbox(tmp_path, SMALL) as box:
        for k in range(8):
            box.write(rows_of(700, size=600, first=700 * k))
        rows = drained(box)
    assert Counter(r.kind for r in rows)["dropped"] == 1


def test_rows_that_were_offered_do_not_give_way(tmp_path):
    with Outbox(tmp_path, SMALL) as box:
        box.write(rows_of(500, size=600))
        under_way = [r.seq for r in next_offer(box, most=500, most_bytes=10**7).rows]
        for k in range(1, 12):
            box.write(rows_of(500, size=600, first=500 * k))
        again = [r.seq for r in next_offer(box, most=500, most_bytes=10**7).rows]
    assert again == under_way and len(under_way) == 500


def test_alarms_alone_give_way_too_when_nothing_else_is_left(tmp_path):
    with Outbox(tmp_path, SMALL) as box:
        for k in range(10):
            box.write(rows_of(600, "alarm", size=600, first=600 * k))
        rows = drained(box)
    notes = [json.loads(r.body) for r in rows if r.kind == "dropped"]
    assert sum(n["n"] for n in notes) + sum(r.kind == "alarm" for r in rows) == 6000
    assert notes[0]["kind"] == "alarm"


# -- disks


def on_small_disk(tmp_path, kilobytes):
    return small_disk(tmp_path / "disk", kilobytes)


def test_a_full_disk_costs_the_ballast_then_rows_and_never_an_alarm(tmp_path):
    with on_small_disk(tmp_path, 9_000) as disk:
        if disk is None:
            absent("mounting is not allowed here")
        box = Outbox(disk / "box", OutboxSettings(max_bytes=100_000_000, ballast_bytes=2_200_000))
        assert (disk / "box" / "ballast.bin").exists()
        problems = 0
        for k in range(40):
            try:
                box.write(rows_of(200, size=900, first=200 * k))
            except SinkError:
                problems += 1
            box.put("alarm", {"n": k})
        status = outbox_status(box)
        assert not (disk / "box" / "ballast.bin").exists()
        assert sum(status.dropped.values()) > 0
        rows = drained(box)
        box.close()
    kinds = Counter(r.kind for r in rows)
    notes = [json.loads(r.body) for r in rows if r.kind == "dropped"]
    assert kinds["alarm"] == 40
    assert kinds["result"] + sum(n["n"] for n in notes) == 8000
    assert {n["kind"] for n in notes} == {"result"}


def test_a_disk_that_others_fill_keeps_rows_in_memory_and_the_run_goes_on(tmp_path):
    with on_small_disk(tmp_path, 6_000) as disk:
        if disk is None:
            absent("mounting is not allowed here")
        with Outbox(disk / "box", OutboxSettings(ballast_bytes=0, memory_bytes=400_000)) as box:
            box.write(rows_of(100))
            other = fill(disk)
            with pytest.raises(SinkError, match="cannot be written.*rows wait in memory"):
                for k in range(20):
                    box.write(rows_of(200, size=900, first=1000 + 200 * k))
            for k in range(1000):
                box.put("result", {"n": k, "text": "x" * 900})
            for k in range(3):
                box.put("alarm", {"n": k})
            status = outbox_status(box)
            assert status.state == "disk" and status.in_memory > 100
            assert status.dropped["result"] > 0, "memory is bounded too"
            other.unlink()
            box.write([])
            assert outbox_status(box).state == "ok" and outbox_status(box).in_memory == 0
            rows = drained(box)
    kinds = Counter(r.kind for r in rows)
    notes = [json.loads(r.body) for r in rows if r.kind == "dropped"]
    assert kinds["alarm"] == 3 and {n["why"] for n in notes} <= {"disk full"}
    assert sum(n["n"] for n in notes) > 0


def test_a_full_disk_can_be_drained(tmp_path):
    with on_small_disk(tmp_path, 9_000) as disk:
        if disk is None:
            absent("mounting is not allowed here")
        with Outbox(disk / "box", OutboxSettings(ballast_bytes=2_200_000)) as box:
            box.write(rows_of(1500, size=900), durable=True)
            fill(disk)
            assert len(drained(box)) == 1500, "also where deleting needs space that is not there"
            assert outbox_status(box).waiting == 0


def test_starting_on_a_full_disk_uses_the_ballast(tmp_path):
    with on_small_disk(tmp_path, 9_000) as disk:
        if disk is None:
            absent("mounting is not allowed here")
        ballast = OutboxSettings(ballast_bytes=2_200_000)
        with Outbox(disk / "box", ballast) as box:
            box.write(rows_of(10))
        fill(disk)
        with Outbox(disk / "box", ballast) as box:
            box.write(rows_of(10, first=10))
            assert [b["n"] for b in bodies(drained(box))] == list(range(20))


# -- broken files


def test_a_broken_file_is_set_aside_and_what_can_be_read_is_kept(tmp_path):
    with Outbox(tmp_path, BARE) as box:
        box.write(rows_of(2000, "event", size=400), durable=True)
        spool = next_offer(box, most=5).spool
        acknowledge(box, 5)
    with open(tmp_path / "outbox.sqlite", "r+b") as file:
        file.seek(80 * 4096)
        file.write(os.urandom(4 * 4096))
    with Outbox(tmp_path, BARE) as box:
        status, rows = outbox_status(box), drained(box)
    report = json.loads(rows[-1].body)
    assert status.renewed == 1 and status.spool != spool
    assert rows[-1].kind == "health" and report["outbox"] == "renewed" and report["old_spool"] == spool
    assert report["rows"] == len(rows) - 1 and report["rows"] + report["unreadable"] == 1995
    assert 0 < report["unreadable"] < 100
    assert rows[0].origin == f"{spool}:6", "the centre can recognise it"
    assert [b["n"] for b in bodies(rows[:-1])] == sorted(b["n"] for b in bodies(rows[:-1]))
    assert (tmp_path / report["aside"]).exists()


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 1000, os.urandom(50_000)])
def test_what_is_not_a_database_is_replaced(tmp_path, content):
    (tmp_path / "outbox.sqlite").write_bytes(content)
    with Outbox(tmp_path, BARE) as box:
        box.write(rows_of(3))
        assert [b["n"] for b in bodies(drained(box)) if "n" in b] == [0, 1, 2]


def test_broken_files_do_not_pile_up(tmp_path):
    for k in range(5):
        (tmp_path / "outbox.sqlite").write_bytes(b"broken %d" % k * 1000)
        Outbox(tmp_path, BARE).close()
    assert sorted(p.name for p in tmp_path.glob("*broken*")) == [
        "outbox.broken-4.sqlite",
        "outbox.broken-5.sqlite",
    ]


def test_a_file_that_breaks_while_it_is_open_is_renewed_and_deletes_nothing_by_its_old_numbers(tmp_path):
    with Outbox(tmp_path, BARE) as box:
        box.write(rows_of(1000, size=300), durable=True)
        last = next_offer(box, most=300).rows[-1].seq
        box._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        with open(tmp_path / "outbox.sqlite", "r+b") as file:
            file.seek(14 * 4096)
            file.write(os.urandom(20 * 4096))
        box._db.close()
        box._db = sqlite3.connect(box.path, isolation_level=None, check_same_thread=False)
        with pytest.raises(SinkError):
            acknowledge(box, last)
        kept = [json.loads(r.body) for r in drained(box)]
    report = kept[-1]
    assert report["outbox"] == "renewed" and len(kept) - 1 == report["rows"] > 300


def test_a_torn_write_ahead_log_costs_only_what_was_not_promised(tmp_path):
    box = Outbox(tmp_path / "a", BARE)
    box.write(rows_of(50), durable=True)
    box.write(rows_of(50, first=50))
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # as a kill leaves it: the log has not been taken over
    box.close()
    wal = tmp_path / "b" / "outbox.sqlite-wal"
    with open(wal, "r+b") as file:
        file.truncate(wal.stat().st_size - 3000)
    with Outbox(tmp_path / "b", BARE) as box:
        found = [b["n"] for b in bodies(drained(box))]
    assert found == list(range(len(found))) and 50 <= len(found) < 100


# -- clocks


def test_a_clock_that_is_set_back_does_not_change_the_order(tmp_path):
    times = iter([2e9, 1e9, 0.0, 1.5e9])
    clock = DeviceClock(now=lambda: next(times), mono=lambda: 5.0, boot="boot")
    with Outbox(tmp_path, BARE, clock=clock) as box:
        box.write(rows_of(4))
        rows = next_offer(box).rows
    assert [json.loads(r.body)["n"] for r in rows] == [0, 1, 2, 3]
    assert [r.at for r in rows] == [2e9, 1e9, 0.0, 1.5e9] and {r.boot for r in rows} == {"boot"}


def test_the_age_of_the_oldest_row_is_of_the_clock_that_is_not_set(tmp_path):
    seconds, wall = [100.0], [1.7e9]
    clock = DeviceClock(now=lambda: wall[0], mono=lambda: seconds[0], boot="boot")
    with Outbox(tmp_path, BARE, clock=clock) as box:
        box.write(rows_of(1))
        seconds[0], wall[0] = 160.0, 3.0  # a minute later, and the year 1970
        assert outbox_status(box).oldest_s == 60.0


# -- files


def test_a_file_is_owed_until_it_has_been_sent(tmp_path):
    log = tmp_path / "log"
    part = log / "frames" / "part.parquet"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"rows")
    with Outbox(tmp_path / "box", BARE) as box:
        sha = put_file(box, part, {"what": "log"}, log)
        (file,) = files_owed(box)
        assert file.sha256 == sha and owed_files(log) == {part}
        drained(box)
        assert owed_files(log) == {part}, "its row was delivered, its bytes were not"
        file_done(box, file)
        assert owed_files(log) == frozenset() and files_owed(box) == []


def test_what_nothing_owes_any_more_is_settled_at_the_next_start(tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    (log / "part.parquet").write_bytes(b"rows")
    with Outbox(tmp_path / "box", BARE) as box:
        put_file(box, log / "part.parquet", log=log)
        box._db.execute("DELETE FROM files")  # a kill before the list of the log was brought up to date
    Outbox(tmp_path / "box", BARE).close()
    assert owed_files(log) == frozenset()


def test_too_many_bytes_that_are_owed_give_the_oldest_file_up_with_a_note(tmp_path):
    with Outbox(tmp_path / "box", OutboxSettings(ballast_bytes=0, owed_bytes=2500)) as box:
        for k in range(4):
            (tmp_path / f"{k}.jpg").write_bytes(os.urandom(1000))
            put_file(box, tmp_path / f"{k}.jpg")
        left = [f.path.name for f in files_owed(box)]
        notes = [json.loads(r.body) for r in drained(box) if r.kind == "dropped"]
    assert left == ["2.jpg", "3.jpg"]
    assert sum(n["n"] for n in notes) == 2 and {n["why"] for n in notes} == {"too many bytes are owed"}


def test_a_missing_file_cannot_be_owed(tmp_path):
    with Outbox(tmp_path / "box", BARE) as box:
        with pytest.raises(DataError, match="cannot be read: No such file"):
            put_file(box, tmp_path / "none.jpg")


def test_files_of_rows_that_gave_way_are_owed_no_more(tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "part").write_bytes(b"rows")
    with Outbox(tmp_path / "box", SMALL) as box:
        put_file(box, tmp_path / "log" / "part", log=tmp_path / "log")
        for k in range(10):
            box.write(rows_of(500, "alarm", size=600, first=500 * k))
        assert files_owed(box) == [] and owed_files(tmp_path / "log") == frozenset()
        assert outbox_status(box).dropped["part"] == 1


# -- power


@pytest.mark.slow
def test_without_power_no_number_is_given_twice_and_no_promise_is_broken(tmp_path):
    found = PowerCuts(tmp_path, seed=5).run(2)
    assert (found["lost"], found["twice"], found["out of order"], found["holes"], found["findings"]) == (
        0,
    ) * 5
    assert found["rows"] > 100


def test_the_thread_ends_with_the_outbox(tmp_path):
    box = Outbox(tmp_path, BARE)
    thread = box._thread
    box.close()
    assert until(lambda: not thread.is_alive())
