"""Kills and several writers at once: a collection goes on where it was, everybody's answers are kept, folders
are there whole or not at all."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pytest

from cv_pipeline.annotation import annotations as A
from cv_pipeline.annotation import collect as C
from cv_pipeline.annotation import datasets as D
from cv_pipeline.annotation.cases import REASON_BIT, CollectPolicy
from cv_pipeline.annotation.select import candidates_of, select_collected, write_selected
from cv_pipeline.core.files import Busy, locked
from cv_pipeline.core.types import ConfigError, CVPipelineError, DataError, Detections, SourceStatus
from cv_pipeline.video.sinks import JsonlSink
from tests.campaigns import kill, writers
from tests.helpers.exports import EXPORTS
from tests.helpers.made_up_camera import fill, picture, result, stream

ROOT = Path(__file__).parents[2]
POLICY = CollectPolicy(random=0.3, quota=6, hamming=26, learn=20, quality=20)


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    "A run's log of two cameras, and their frames."
    folder = tmp_path_factory.mktemp("log")
    frames = [*stream(60, 3), *stream(60, 4, "yard")]
    fill(JsonlSink(folder / "results.jsonl"), frames)
    for r in frames:
        place = folder / "frames" / r.frame.source_id / f"{r.frame.frame_id:08d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), r.frame.image)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def killed(log: Path, out: Path, after: int, monkeypatch, what: str = "append") -> None:
    "Collect until the n-th use of a part of the shelf, where the process ends."
    use, calls = getattr(C._Resumable, what), []

    def dies(self, *values):
        calls.append(values)
        if len(calls) > after:
            raise KeyboardInterrupt
        return use(self, *values)

    with monkeypatch.context() as m:
        m.setattr(C._Resumable, what, dies)
        with pytest.raises(KeyboardInterrupt):
            C.collect(log, out, POLICY)


@pytest.mark.parametrize("after", [0, 1, 7, 40, 90, 150])
def test_a_collection_goes_on_where_it_was_killed(log, tmp_path, monkeypatch, after):
    whole = C.collect(log, tmp_path / "whole", POLICY)
    killed(log, tmp_path / "killed", after, monkeypatch)
    again = C.collect(log, tmp_path / "killed", POLICY)
    assert again.rows == whole.rows
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_collection_can_be_killed_again_and_again(log, tmp_path, monkeypatch):
    C.collect(log, tmp_path / "whole", POLICY)
    for after in (20, 15, 25, 45, 70):
        killed(log, tmp_path / "killed", after, monkeypatch, "hashes")
    again = C.collect(log, tmp_path / "killed", POLICY)
    assert any("continued after" in n for n in again.notes)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_killed_collection_keeps_what_it_read(log, tmp_path, monkeypatch):
    "The second start reads the pictures that are left, not all."
    killed(log, tmp_path / "c", 25, monkeypatch, "offer")
    read, asked = C.read_image, []
    monkeypatch.setattr(C, "read_image", lambda path: (asked.append(path), read(path))[1])
    C.collect(log, tmp_path / "c", POLICY)
    again = len(asked)
    asked.clear()
    C.collect(log, tmp_path / "other", POLICY)
    assert again == len(asked) - 25


READERS = [
    C.read_collected,
    lambda folder: C.read_collected(folder, check=False),
    C.read_books,
    C.audited,
    lambda folder: select_collected(folder, folder.with_name("s"), 3),
]


@pytest.mark.parametrize("read", READERS)
def test_an_unfinished_collection_is_refused_by_every_reader(log, tmp_path, monkeypatch, read):
    killed(log, tmp_path / "c", 60, monkeypatch)
    with pytest.raises(DataError, match="unfinished.*repeat the same"):
        read(tmp_path / "c")


@pytest.mark.parametrize("other", [{"policy": replace(POLICY, seed=5)}, {"flags": [C.Flag("cam", 3)]}])
def test_another_collection_does_not_continue_it(log, tmp_path, monkeypatch, other):
    killed(log, tmp_path / "c", 60, monkeypatch)
    before = content(tmp_path / "c")
    with pytest.raises(ConfigError, match="unfinished collection of another log or policy"):
        C.collect(log, tmp_path / "c", **{"policy": POLICY, **other})
    assert content(tmp_path / "c") == before


@pytest.mark.parametrize("damage", [b'{"request": ', b"[1, 2]\n", b"\xff\xfe\n", b'{"request": "x"}\n[1]\n'])
def test_a_damaged_journal_is_a_typed_error(log, tmp_path, damage):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "offered.jsonl").write_bytes(damage)
    try:
        C.collect(log, tmp_path / "c", POLICY)
    except CVPipelineError as e:
        assert str(tmp_path / "c") in str(e)
    else:
        C.read_collected(tmp_path / "c")  # nothing was in it: begun anew, and finished


class Full:
    "A camera's frames, on a disk that is full after some."

    source_id, live = "cam", False

    def __iter__(self):
        yield from (r.frame for r in stream(60, 3))

    def status(self):
        return SourceStatus(decoder="a test")

    def close(self):
        pass


def test_a_full_disk_leaves_an_unfinished_collection(log, tmp_path, monkeypatch):
    replaced, calls = os.replace, []

    def full(*names):
        calls.append(names)
        if len(calls) > 8:
            raise OSError(28, "No space left on device")
        return replaced(*names)

    with monkeypatch.context() as m:
        m.setattr("os.replace", full)
        with pytest.raises(CVPipelineError, match="free some space"):
            C.collect(log, tmp_path / "c", POLICY, {"cam": Full()})
    with pytest.raises(DataError, match="unfinished"):
        C.read_collected(tmp_path / "c")


def test_two_runs_do_not_fill_one_folder(tmp_path):
    first = C.LiveCollection(tmp_path / "c", POLICY)
    with pytest.raises(ConfigError, match="another run is collecting into this folder"):
        C.LiveCollection(tmp_path / "c", POLICY)
    first.close()
    C.LiveCollection(tmp_path / "c", POLICY).close()


def test_a_log_is_not_collected_into_the_folder_of_a_run(log, tmp_path):
    first = C.LiveCollection(tmp_path / "c", POLICY)
    with pytest.raises(Busy, match=f"process {os.getpid()}"):
        C.collect(log, tmp_path / "c", POLICY)
    first.close()


def test_a_picture_goes_after_its_line(tmp_path, monkeypatch):
    "Killed in between, a collection has a picture too much, not a line whose picture is missing."
    shelf, there = C.Shelf(tmp_path, CollectPolicy(random=0, quota=1, hamming=-1)), []
    append = shelf.append

    def seen(line, file=None):
        if isinstance(line, dict) and line.get("dropped"):
            there.append((tmp_path / line["picture"]).exists())
        append(line, file)

    monkeypatch.setattr(shelf, "append", seen)
    for k in range(12):
        shelf.offer(result(k, image=picture(k)).frame, REASON_BIT["low"], [])
    shelf.close()
    assert there and all(there)


def test_a_run_that_was_killed_is_said_to_the_reader(tmp_path):
    sink = C.CollectSink(tmp_path, CollectPolicy(random=1))
    for k in range(4):
        sink.write(result(k))
    assert "not closed" in C.unclosed(tmp_path)[0]
    sink.close()
    assert C.unclosed(tmp_path) == []


def test_a_selection_that_fails_leaves_nothing(log, tmp_path):
    C.collect(log, tmp_path / "c", POLICY)
    found = candidates_of(tmp_path / "c", None, None, None, ["a", "b", "c"])
    (tmp_path / "c" / found.rows[1].picture).unlink()
    with pytest.raises(CVPipelineError):
        write_selected(tmp_path / "s", tmp_path / "c", found, [(0, "a"), (1, "b")])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]


def test_a_batch_that_fails_leaves_nothing(tmp_path):
    rows = []
    for name, size in (("a.png", (64, 48)), ("b.png", (32, 24))):
        cv2.imwrite(str(tmp_path / name), np.zeros((*size[::-1], 3), np.uint8))
        boxes = Detections([[1, 1, 9, 9]], class_id=[0])
        rows.append(A.Annotation(name, "ana", (64, 48), ("disc",), boxes))
    with pytest.raises(DataError, match="resized copy"):
        A.write_labelled(rows, tmp_path, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_test_set_is_frozen_by_one_only(tmp_path, monkeypatch):
    "Somebody else is quicker while the pictures are hashed."
    data, sums = EXPORTS["cvat_coco"](tmp_path / "set"), D._sums

    def slow(*values):
        (tmp_path / "m.json").write_text('{"format": "cv_pipeline frozen set 1", "by": "another"}')
        return sums(*values)

    monkeypatch.setattr(D, "_sums", slow)
    with pytest.raises(ConfigError, match="already exists"):
        D.freeze(data, tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text())["by"] == "another"


def test_pictures_are_pushed_by_one_only(tmp_path, monkeypatch):
    from cv_pipeline.annotation import label_studio as L

    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((48, 64, 3), np.uint8))
    draft = A.Draft("a.png", path, (64, 48), ("disc",))
    monkeypatch.setattr(L, "locked", lambda book, wait_s, *told: locked(book, 0.0, *told))
    with locked(tmp_path / "book.json"), pytest.raises(Busy, match="sending these pictures"):
        L.push(None, [draft], "a title", book=tmp_path / "book.json")


# the campaigns in small, and that they find something


@pytest.mark.slow
@pytest.mark.parametrize("name", ["annotations.jsonl", "flags.jsonl", "drafts", "replaced"])
def test_writers_at_once_lose_nothing(tmp_path, name):
    [writer] = writers.chosen(name)
    outcome = writers.stress(writer, tmp_path, 4, 10 * writer.share)
    assert outcome.wrong == 0, outcome.seen


def test_the_campaign_sees_what_a_writer_without_a_lock_loses(tmp_path):
    together = get_context("fork").Barrier(4)

    def naive(folder, who, k):
        path = folder / "annotations.jsonl"
        before = path.read_text() if path.exists() else ""
        row = json.dumps(writers.one_answer(f"person {who}", f"{k:04d}.jpg").to_dict())
        together.wait(60)  # all have read before one of them writes
        path.write_text(before + row + "\n")

    [writer] = writers.chosen("annotations.jsonl")
    assert writers.stress(replace(writer, write=naive), tmp_path, 4, 20).wrong > 0


def test_the_campaign_sees_half_a_result_and_another_one(tmp_path):
    half = kill.Job("half", lambda f: [], lambda f: "half", whole="whole")
    assert kill.verdict(half, tmp_path, tmp_path / "log")[0] == "half"


@pytest.mark.slow
def test_killed_commands_leave_nothing_half(tmp_path):
    "In a process of its own: this one has threads of libraries, which do not survive a fork."
    words = ["kill", "--times", "2", "--real", "0", "--only", "collect,merge,freeze"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaigns", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
