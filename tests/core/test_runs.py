"""A second start in a folder: what the first one left is set aside together, and nothing is mixed."""

import json
import os

import pytest

from cv_pipeline.core import runs
from cv_pipeline.core.results import read_jsonl
from cv_pipeline.core.runs import (
    RUNNING,
    begin_run,
    end_run,
    files_in_the_way,
    make_way,
    notes_of_run,
    runs_aside,
)
from cv_pipeline.core.types import SinkError


def put(folder, *names, content=b"{}\n"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def summary(folder, live, films=()):
    told = {"sources": {"gate": {"live": live}}, "sinks": {"video": {"files": list(films)}}}
    put(folder, "summary.json", content=json.dumps(told).encode())


ALL = (
    "results.parts/part-000000.parquet",
    "results/2026-11-28T10.parquet",
    "results.jsonl",
    "events.parts/part-000000.parquet",
    "video/2026-11-28T10/gate.mp4",
    "flags.jsonl",
    "gate.mp4",
    "deleted.jsonl",
)


def test_everything_of_a_killed_run_goes_into_one_folder(tmp_path, caplog):
    begin_run(tmp_path)
    put(tmp_path, *ALL, "log/frames/x.parquet", "collected/collected.jsonl", "notes of mine.txt")
    [note] = begin_run(tmp_path)
    assert sorted(names(tmp_path / "interrupted-1")) == sorted({name.split("/")[0] for name in ALL})
    assert names(tmp_path) == ["collected", "interrupted-1", "log", "notes of mine.txt", RUNNING]
    assert "interrupted-1" in note and str(os.getpid()) in note
    assert note in caplog.text and notes_of_run(tmp_path) == [note]


def test_it_is_said_once(tmp_path):
    begin_run(tmp_path)
    put(tmp_path, "results.jsonl")
    assert len(begin_run(tmp_path)) == 1
    end_run(tmp_path)
    assert begin_run(tmp_path) == []


def test_every_killed_run_gets_a_folder_of_its_own(tmp_path):
    for k in range(3):
        begin_run(tmp_path)
        put(tmp_path, "results.jsonl", content=f'{{"run": {k}}}\n'.encode())
    begin_run(tmp_path)
    assert [next(read_jsonl(folder))["run"] for folder in runs_aside(tmp_path)] == [0, 1, 2]


def test_runs_that_die_before_they_write_leave_no_folders(tmp_path):
    for _ in range(5):
        begin_run(tmp_path)
        put(tmp_path, "results.jsonl", content=b"")
        (tmp_path / "results.parts").mkdir(exist_ok=True)
    assert runs_aside(tmp_path) == []


def test_a_run_of_sinks_without_a_mark_is_known_by_its_parts(tmp_path):
    put(tmp_path, "results.parts/part-000000.parquet", "results.jsonl")
    assert len(make_way(tmp_path)) == 1 and names(tmp_path) == ["interrupted-1"]


def test_films_that_are_older_than_the_run_are_not_its_own(tmp_path):
    put(tmp_path, "holiday.mp4")
    os.utime(tmp_path / "holiday.mp4", (1e9, 1e9))
    begin_run(tmp_path)
    put(tmp_path, "gate.mp4", "results.jsonl")
    begin_run(tmp_path)
    assert names(tmp_path) == ["holiday.mp4", "interrupted-1", RUNNING]


def test_a_closed_run_over_files_gives_way_with_all_its_files(tmp_path):
    put(tmp_path, "results.jsonl", "events.parquet", "yard.mp4", "mine.mp4")
    summary(tmp_path, live=False, films=["yard.mp4"])
    assert make_way(tmp_path) == [] and names(tmp_path) == ["mine.mp4"]


@pytest.mark.parametrize("why", ["live", "hours", "flags"])
def test_what_cannot_be_made_again_is_kept(tmp_path, why):
    put(tmp_path, "results.jsonl")
    summary(tmp_path, live=why == "live")
    if why != "live":
        put(tmp_path, {"hours": "results/2026-11-28T10.jsonl", "flags": "flags.jsonl"}[why])
    if why == "hours":
        put(tmp_path, "results/2026-11-28T10.parquet")
    [note] = make_way(tmp_path)
    assert names(tmp_path) == ["earlier-1"] and "earlier-1" in note
    assert next(read_jsonl(tmp_path / "earlier-1")) == {}


def test_a_live_run_that_saw_nothing_leaves_no_folder(tmp_path):
    put(tmp_path, "results.jsonl", content=b"")
    summary(tmp_path, live=True)
    assert make_way(tmp_path) == [] and names(tmp_path) == []


@pytest.mark.parametrize("films", [["../mine.mp4"], [3], "mine.mp4", {"a": 1}, ["a"], [None, "a/b.mp4"]])
def test_a_foreign_summary_deletes_nothing_outside(tmp_path, films):
    put(tmp_path, "mine.mp4", "out/a/b.mp4", "out/mine.mp4", "out/results.jsonl")
    told = {"sources": {}, "sinks": {"video": {"files": films}}}
    put(tmp_path, "out/summary.json", content=json.dumps(told).encode())
    make_way(tmp_path / "out")
    assert (tmp_path / "mine.mp4").exists() and (tmp_path / "out/a/b.mp4").exists()
    assert (tmp_path / "out/mine.mp4").exists()


@pytest.mark.parametrize("text", [b"", b"[]", b'{"process"', b"\xff", b'{"sinks": 3, "sources": []}'])
def test_a_torn_mark_or_summary_is_no_obstacle(tmp_path, text):
    put(tmp_path, RUNNING, "summary.json", content=text)
    put(tmp_path, "results.jsonl")
    assert len(begin_run(tmp_path)) == 1 and "results.jsonl" in names(tmp_path / "interrupted-1")


@pytest.mark.parametrize(
    "told", [{"sources": []}, {"sources": {"a": 1}}, {"sinks": {"video": 3}}, {"sinks": []}]
)
def test_a_summary_of_another_kind_is_that_of_a_run_over_files(tmp_path, told):
    put(tmp_path, "results.jsonl")
    put(tmp_path, "summary.json", content=json.dumps(told).encode())
    assert make_way(tmp_path) == [] and names(tmp_path) == []


def test_killed_while_it_is_set_aside_the_next_start_goes_on(tmp_path, monkeypatch):
    begin_run(tmp_path)
    put(tmp_path, "flags.jsonl", "results.jsonl")
    real = runs.move_file

    def move(source, target):
        if source.name == "results.jsonl":
            raise KeyboardInterrupt
        return real(source, target)

    with monkeypatch.context() as m:
        m.setattr(runs, "move_file", move)
        with pytest.raises(KeyboardInterrupt):
            begin_run(tmp_path)
    begin_run(tmp_path)
    assert sorted(p.name for folder in runs_aside(tmp_path) for p in folder.iterdir()) == [
        "flags.jsonl",
        "results.jsonl",
    ]


def test_a_folder_that_cannot_be_moved_is_a_typed_error(tmp_path, monkeypatch):
    begin_run(tmp_path)
    put(tmp_path, "results.jsonl")
    (tmp_path / "interrupted-1").write_text("a file")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with pytest.raises(SinkError, match="read-only|Read-only"):
        begin_run(tmp_path)
    assert (tmp_path / "results.jsonl").exists()


def test_folders_of_other_people_stay(tmp_path):
    "A run into a working folder: a folder that holds more than parts and hours was not written by a run."
    for name in ("video", "results", "events"):
        put(tmp_path, f"{name}/holiday.mp4")
    summary(tmp_path, live=False)
    put(tmp_path, "results.jsonl")
    assert names_of(files_in_the_way(tmp_path)) == ["results.jsonl", "summary.json"]
    make_way(tmp_path)
    assert names(tmp_path) == ["events", "results", "video"]
    assert all((tmp_path / n / "holiday.mp4").exists() for n in names(tmp_path))


def names_of(paths):
    return sorted(p.name for p in paths)
