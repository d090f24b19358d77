"""Rows reach the disk in silence, hours are finished in the background, and nothing is lost or counted
twice on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core import results, tables
from cv_pipeline.core.background import Background
from cv_pipeline.core.results import RUN_KEY, hours_of, merge_parts, parts_in, read_table, table_files
from cv_pipeline.core.tables import FAN, Hours, PartedTable, keep_hours_within
from cv_pipeline.core.types import SinkError
from tests.helpers.waiting import until

START = datetime(2026, 11, 28, 22, 59, 30, tzinfo=timezone.utc)


class Numbers:
    "Rows of a table of numbers."

    def __init__(self):
        self.found = []

    @property
    def count(self):
        return len(self.found)

    def add(self, number):
        self.found.append(number)

    def extend(self, later):
        self.found += later.found


def as_table(rows, run):
    return pa.table({"number": rows.found}, schema=pa.schema([("number", pa.int64())], {RUN_KEY: run}))


class Clock:
    "A clock on the wall and a steady one; only the first can be set."

    def __init__(self):
        self.steady, self.wall = 0.0, START

    def ahead(self, seconds, wall=None):
        self.steady += seconds
        self.wall += timedelta(seconds=seconds if wall is None else wall)

    def hours(self, folder, **limits):
        return Hours(folder, now=lambda: self.wall, clock=lambda: self.steady, **limits)


def table_of(folder, clock, hours=None, **kinds):
    table = PartedTable(folder, "numbers", Numbers, as_table, clock=lambda: clock.steady, **kinds)
    table.roll(hours)
    return table


def numbers(folder):
    return read_table(folder, "numbers")["number"].to_pylist()


# --- the background thread


class Member:
    def __init__(self, error=None):
        self.error, self.kept, self.ticks = error, None, 0

    def tick(self):
        self.ticks += 1
        if self.error is not None:
            raise self.error

    def fail(self, error):
        self.kept = error


@pytest.mark.parametrize("error", [OSError("full"), MemoryError(), RuntimeError("odd"), SystemExit(1)])
def test_an_error_goes_to_its_member_and_the_others_are_ticked_on(error):
    background, broken, sound = Background(0.001), Member(error), Member()
    background.add(broken)
    background.add(sound)
    until(lambda: sound.ticks > 3 and broken.ticks > 3)
    background.remove(broken)
    background.remove(sound)
    assert broken.kept is error and sound.kept is None


def test_the_thread_ends_with_the_last_member_and_begins_again():
    background, member = Background(0.001), Member()
    for _ in range(3):
        background.add(member)
        until(lambda: member.ticks)
        background.remove(member)
        until(lambda: not background.alive)
        member.ticks = 0
    assert sum(t.name == background.name for t in threading.enumerate()) == 0


def test_one_thread_for_all_tables(tmp_path):
    before = threading.active_count()
    opened = [PartedTable(tmp_path / str(k), "numbers", Numbers, as_table) for k in range(20)]
    assert threading.active_count() <= before + 1
    for table in opened:
        table.close()


# --- silence


SILENT = """
import os, sys, time, numpy as np
from datetime import datetime, timezone
from pathlib import Path
from cv_pipeline.core.types import Detections, Frame, FrameResult
from cv_pipeline.monitoring.telemetry import LogSettings, TelemetrySink
from cv_pipeline.tracking.zones import read_rules
from cv_pipeline.video.events import EventSink
from cv_pipeline.video.sinks import ParquetSink
out = Path(sys.argv[1])
rules = read_rules({"zones": [{"name": "a", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}]})
sinks = [ParquetSink(out, part_seconds=0.3), EventSink(out, rules, part_seconds=0.3),
         TelemetrySink(out / "log", LogSettings(part_seconds=0.3))]
for k in range(3):
    found = Detections([[1, 1, 9, 9]], [.9], [0], [1])
    frame = Frame(np.zeros((48, 64, 3), np.uint8), "gate", k, datetime.now(timezone.utc))
    result = FrameResult(frame, found, ("a",))
    for sink in sinks: sink.write(result)
print("written", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_rows_before_a_silence_survive_kill_9(tmp_path):
    "Read by this process after the other one, which says nothing more, was killed."
    from cv_pipeline.core.results import read_results
    from cv_pipeline.monitoring.prediction_log import read_log
    from cv_pipeline.video.events import read_events

    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SILENT, tmp_path], **pipes) as process:
        assert process.stdout.readline() == "written\n"
        kinds = ("results.parts/*", "events.parts/*", "log/detections/*/*/*", "log/frames/*/*/*")
        whole = lambda: all([p for p in tmp_path.glob(kind) if p.name.startswith("part-")] for kind in kinds)
        until(whole, 20, process)  # nobody writes a row
        process.send_signal(signal.SIGKILL)
    assert [len(read_results(tmp_path)), len(read_log(tmp_path / "log"))] == [3, 3]
    assert len(read_events(tmp_path)) == 1


def test_no_frame_waits_while_the_timer_waits_for_the_disk(tmp_path, monkeypatch):
    table = PartedTable(tmp_path, "numbers", Numbers, as_table, part_seconds=0.05)
    stuck, go, real, written = threading.Event(), threading.Event(), os.fsync, []

    def fsync(number):
        stuck.set()
        go.wait(60)
        real(number)
        written.append(number)

    monkeypatch.setattr(os, "fsync", fsync)
    table.add(0)
    assert stuck.wait(10)
    for k in range(1, 200):
        table.add(k)
    assert written == []  # all rows were taken while the disk stood still
    go.set()
    table.close()
    assert numbers(tmp_path) == list(range(200))


def test_an_error_in_the_background_is_raised_once_and_costs_no_row(tmp_path, monkeypatch):
    table = PartedTable(tmp_path, "numbers", Numbers, as_table, part_seconds=0.02)
    with monkeypatch.context() as m:
        m.setattr(tables, "write_whole", lambda *_, **__: (_ for _ in ()).throw(SinkError("no space left")))
        table.add(0)
        until(lambda: table._problem is not None)
    with pytest.raises(SinkError, match="no space left"):
        table.add(1)
    until(lambda: not table._rows.count)  # the next try went well
    table.close()
    assert numbers(tmp_path) == [0, 1]


def test_an_error_in_the_background_that_nobody_foresaw_is_raised_by_close(tmp_path, monkeypatch):
    table = PartedTable(tmp_path, "numbers", Numbers, as_table, part_seconds=0.02)
    with monkeypatch.context() as m:
        m.setattr(table, "_to_table", lambda *_: 1 / 0)
        table.add(0)
        until(lambda: table._problem is not None)
    with pytest.raises(SinkError, match="the background thread raised ZeroDivisionError"):
        table.close()
    assert numbers(tmp_path) == [0]


# --- parts


@settings(max_examples=20, deadline=None)
@given(parts=st.integers(1, 80), known=st.integers(0, 5))
@pytest.mark.slow
def test_parts_merge_into_few_and_none_twice(tmp_path_factory, parts, known):
    with patch.object(tables, "FAN", 4):
        merged_by(tmp_path_factory.mktemp("parts"), Clock(), parts, known)


def merged_by(folder, clock, parts, known):
    table = table_of(folder, clock, part_rows=1)
    for k in range(parts):
        table.add(k)
        if k % (known + 1) == 0:
            table.tick()
    assert numbers(folder) == list(range(parts))
    table.tick()
    assert len(list((folder / "numbers.parts").iterdir())) < 4 * 4  # three each of 1, 4, 16, 64
    table.close()
    assert numbers(folder) == list(range(parts))


def test_killed_between_a_merge_and_the_removal_of_its_parts_counts_nothing_twice(tmp_path, monkeypatch):
    table = table_of(tmp_path, Clock(), part_rows=1)
    for k in range(10):
        table.add(k)
    with monkeypatch.context() as m:
        m.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        merge_parts(parts_in(tmp_path / "numbers.parts")[2:6])
    assert len(list((tmp_path / "numbers.parts").iterdir())) == 11 and numbers(tmp_path) == list(range(10))
    table.close()
    assert numbers(tmp_path) == list(range(10))


def test_a_broken_part_stops_no_run_and_is_named_when_closing(tmp_path):
    table = table_of(tmp_path, Clock(), part_rows=1)
    for k in range(FAN):
        table.add(k)
    (tmp_path / "numbers.parts" / "part-000003.parquet").write_bytes(b"PAR1 torn")
    table.tick()
    assert table.untidied == 1
    table.add(FAN)
    with pytest.raises(SinkError, match="part-000003.parquet"):
        table.close()


# --- hours


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.floats(0, 4000), st.floats(-9000, 9000)), max_size=40))
def test_hours_never_turn_back_whatever_the_clock_on_the_wall_does(tmp_path_factory, steps):
    clock = Clock()
    hours = clock.hours("nowhere")
    seen = [hours.label()]
    for steady, wall in steps:
        clock.ahead(steady, wall)
        seen.append(hours.label())
    assert seen == sorted(seen)
    latest = max(
        [START] + [START + timedelta(seconds=sum(w for _, w in steps[: k + 1])) for k in range(len(steps))]
    )
    assert seen[-1][:13] == f"{latest:%Y-%m-%dT%H}"


def test_a_clock_that_was_set_back_for_good_still_rolls(tmp_path):
    clock = Clock()
    hours = clock.hours(tmp_path)
    labels = {hours.label()}
    clock.ahead(0, -86400)
    for _ in range(5):
        clock.ahead(3600)
        labels.add(hours.label())
    assert len(labels) == 6


def test_every_row_is_there_once_over_hours_and_each_file_holds_its_own(tmp_path):
    clock = Clock()
    table = table_of(tmp_path, clock, clock.hours(tmp_path))
    for k in range(0, 3 * 3600, 30):
        clock.ahead(30)
        table.add(k)
        table.tick()
        if k % 1500 == 0:
            table.flush()
            assert numbers(tmp_path) == list(range(0, k + 1, 30))
    table.close()
    assert numbers(tmp_path) == list(range(0, 3 * 3600, 30))
    assert hours_of(tmp_path, "numbers") == ["2026-11-28T23", "2026-11-29T00", "2026-11-29T01"]
    assert not (tmp_path / "numbers.parts").exists() and not (tmp_path / "numbers.parquet").exists()


def test_an_hour_is_finished_in_silence(tmp_path):
    clock = Clock()
    table = table_of(tmp_path, clock, clock.hours(tmp_path))
    table.add(1)
    clock.ahead(3600)
    table.tick()  # the row is due, the hour is over; nobody adds anything
    table.tick()
    assert [p.name for p in table_files(tmp_path, "numbers")] in (
        ["2026-11-28T22.parquet"],
        ["part-000000.parquet"],
    )
    clock.ahead(3600)
    table.tick()
    assert [p.name for p in table_files(tmp_path, "numbers")] == ["2026-11-28T23.parquet"]
    table.close()


def test_a_busy_hour_is_several_files(tmp_path):
    clock = Clock()
    table = table_of(tmp_path, clock, clock.hours(tmp_path, max_rows=100), part_rows=10)
    for k in range(1000):
        table.add(k)
        table.tick()
    table.close()
    assert numbers(tmp_path) == list(range(1000))
    assert max(pq.read_metadata(p).num_rows for p in table_files(tmp_path, "numbers")) == 100


def test_a_run_of_one_hour_leaves_one_file(tmp_path):
    clock = Clock()
    table = table_of(tmp_path, clock, clock.hours(tmp_path))
    table.add(1)
    table.close()
    assert [p.name for p in tmp_path.iterdir()] == ["numbers.parquet"]


@pytest.mark.parametrize("finished", [False, True])
def test_a_killed_run_with_hours_is_read_whole(tmp_path, finished):
    clock = Clock()
    table = table_of(tmp_path, clock, clock.hours(tmp_path), part_rows=1)
    for k in range(5):
        table.add(k)
        clock.ahead(1800)
        if finished:
            table.tick()
    assert numbers(tmp_path) == list(range(5))  # never closed


@pytest.mark.slow
def test_a_reader_that_reads_while_hours_are_finished_sees_every_row_once(tmp_path):
    "A second thread reads without a pause while parts are merged, rolled and closed."
    clock = Clock()
    table = table_of(tmp_path, clock, clock.hours(tmp_path), part_rows=1)
    wrong, written, reads, done = [], [0], [0], threading.Event()

    def read():
        while not done.is_set():
            least = written[0]
            try:
                found = numbers(tmp_path) if least else []
            except Exception as e:
                wrong.append(repr(e))
                continue
            reads[0] += 1
            if found != list(range(len(found))) or len(found) < least:
                wrong.append((least, found[:5], len(found)))

    reader = threading.Thread(target=read)
    reader.start()
    for k in range(300):
        table.add(k)
        written[0] = k + 1
        clock.ahead(60)
        table.tick()
    table.close()
    until(lambda: reads[0] > 3)
    done.set()
    reader.join()
    assert wrong == [] and numbers(tmp_path) == list(range(300))


def test_an_hour_that_is_finished_between_two_looks_is_seen(tmp_path, monkeypatch):
    hours = tmp_path / "numbers"
    (hours / "2026-11-28T10.parts").mkdir(parents=True)
    real = Path.glob

    def glob(self, pattern):
        found = list(real(self, pattern))
        if (hours / "2026-11-28T10.parts").is_dir():  # finished after the first look
            (hours / "2026-11-28T10.parquet").touch()
            (hours / "2026-11-28T10.parts").rmdir()
        return iter(found)

    monkeypatch.setattr(Path, "glob", glob)
    assert hours_of(tmp_path, "numbers") == ["2026-11-28T10"]


def test_nothing_is_believed_only_when_it_was_seen_twice(tmp_path, monkeypatch):
    answers = iter([[], [tmp_path / "a.parquet"], [tmp_path / "a.parquet"]])
    monkeypatch.setattr(results, "_listed", lambda folder, name: next(answers))
    assert table_files(tmp_path, "numbers") == [tmp_path / "a.parquet"]


# --- the limit


def test_the_oldest_hours_go_with_all_that_belongs_to_them(tmp_path):
    for hour in ("2026-11-28T09", "2026-11-28T10", "2026-11-28T11"):
        for name in (
            f"results/{hour}.parquet",
            f"results/{hour}.jsonl",
            f"events/{hour}.parquet",
            f"video/{hour}/a.mp4",
        ):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * 1000)
    assert keep_hours_within(tmp_path, 12_000) == {}
    assert keep_hours_within(tmp_path, 11_999) == {"2026-11-28T09": 4000}
    assert not list(tmp_path.glob("*/*T09*")) and len(list(tmp_path.glob("*/*T10*"))) == 4
    row = json.loads((tmp_path / "deleted.jsonl").read_text())
    assert (row["what"], row["bytes"]) == ("2026-11-28T09", 4000)
    assert keep_hours_within(tmp_path, 0) == {"2026-11-28T10": 4000}  # the last one stays
    assert len(list(tmp_path.glob("*/*T11*"))) == 4


def test_a_table_that_rolls_stays_within_its_limit(tmp_path):
    clock = Clock()
    hours = clock.hours(tmp_path, max_bytes=3_000)
    table = PartedTable(tmp_path, "results", Numbers, as_table, clock=lambda: clock.steady)
    table.roll(hours)
    for k in range(20):
        table.add(k)
        clock.ahead(3600)
        table.tick()
        table.tick()
    table.close()
    left = list((tmp_path / "results").iterdir())
    assert sum(p.stat().st_size for p in left) <= 3_000 + 1_000 and len(left) > 1
    assert hours.deleted_hours == len((tmp_path / "deleted.jsonl").read_text().splitlines()) > 10


def test_a_limit_that_cannot_be_kept_stops_no_run(tmp_path, monkeypatch):
    clock = Clock()
    table = table_of(tmp_path, clock, clock.hours(tmp_path, max_bytes=1))
    error = SinkError("cannot delete the oldest results", tmp_path)
    monkeypatch.setattr(tables, "keep_hours_within", lambda *_: (_ for _ in ()).throw(error))
    for k in range(3):
        table.add(k)
        clock.ahead(3600)
        table.tick()
        table.tick()
    assert table.untidied > 0 and numbers(tmp_path) == [0, 1, 2]
