"""Sinks: what is written can be read at every moment; kill -9 and full disks included."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.files import safe_name
from cv_pipeline.core.results import merge_results, read_jsonl, read_results, results_schema
from cv_pipeline.core.tables import Hours
from cv_pipeline.core.types import Detections, Frame, FrameResult, Sink, SinkError
from cv_pipeline.video.decoding import decode_video
from cv_pipeline.video.sinks import CallbackSink, JsonlSink, ParquetSink, VideoSink
from cv_pipeline.video.sources import FolderSource

ROOT = Path(__file__).resolve().parents[2]
NOON = datetime(2026, 6, 1, 12, 0, 0, 123457, tzinfo=timezone.utc)
NAMES = ("gear", "bolt", "Müller's «nut»\n")
COLUMNS = (
    "source_id frame_id captured_at class_id class_name confidence x1 y1 x2 y2 tracker_id decision".split()
)


def result(i, n=3, source="cam", names=NAMES, size=(64, 48), decided=True, **fields):
    rng = np.random.default_rng(i)
    data = {"decision": rng.integers(0, 2, n).astype(np.int8)} if decided else {}
    found = Detections(
        rng.uniform(0, 60, (n, 4)), rng.uniform(0, 1, n), rng.integers(0, 3, n), rng.integers(-1, 9, n), data
    )
    image = np.full((size[1], size[0], 3), i % 200, np.uint8)
    return FrameResult(Frame(image, source, i, NOON + timedelta(milliseconds=40 * i)), found, names, **fields)


# --- JSON lines


def test_jsonl_has_a_line_for_every_frame_also_empty_and_left_out(tmp_path):
    sink = JsonlSink(tmp_path / "deep/r.jsonl")
    assert isinstance(sink, Sink)
    given_ = [
        result(0),
        result(1, 0),
        result(2, 0, inferred=False),
        result(3, 0, status="model_error"),
        result(4, names=(), timings_ms={"inference": 1.23456}),
    ]
    for i, r in enumerate(given_):
        sink.write(r)
        assert len(list(read_jsonl(sink.path))) == i + 1  # readable before close
    sink.close()
    records = list(read_jsonl(sink.path))
    assert [len(r["detections"]) for r in records] == [3, 0, 0, 0, 3]
    assert [r["inferred"] for r in records] == [True, True, False, True, True] and records[3][
        "status"
    ] == "model_error"
    assert datetime.fromisoformat(records[4]["captured_at"]) == given_[4].frame.captured_at
    d, r = given_[0].detections, records[0]["detections"]
    assert np.allclose([x["xyxy"] for x in r], d.xyxy, atol=0.006) and np.allclose(
        [x["confidence"] for x in r], d.confidence, atol=1e-5
    )
    assert [x["decision"] for x in r] == [["accept", "review"][k] for k in d.data["decision"]]
    assert {x["class_name"] for x in r} <= set(NAMES) and records[4]["detections"][0]["class_name"].isdigit()
    assert records[4]["timings_ms"] == {"inference": 1.235}


def test_jsonl_replaces_or_appends_and_mends_a_torn_end(tmp_path):
    path = tmp_path / "r.jsonl"
    for append, expected in ((False, 2), (False, 2), (True, 4)):
        sink = JsonlSink(path, append=append)
        sink.write(result(0))
        sink.write(result(1))
        sink.close()
        assert len(list(read_jsonl(path))) == expected
    path.write_bytes(path.read_bytes()[:-20])
    sink = JsonlSink(path, append=True)
    sink.write(result(9))
    sink.close()
    assert [r["frame_id"] for r in read_jsonl(path)] == [0, 1, 0, 9]


# --- Parquet


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(0, 6), max_size=30), part_rows=st.integers(1, 40), seed=st.integers(0, 999)
)
def test_every_row_arrives_once_in_order_whatever_the_parts(tmp_path_factory, counts, part_rows, seed):
    folder, sink_names = tmp_path_factory.mktemp("p"), [NAMES, (), ("only",)]
    sink, expected = ParquetSink(folder, part_rows=part_rows, clock=lambda: 0.0), []
    for i, n in enumerate(counts):
        r = result(seed + i, n, source=f"cam{i % 2}", names=sink_names[i % 3], decided=i % 2 == 0)
        d = r.detections
        sink.write(r)
        decision = d.data.get("decision", np.zeros(n, int))
        expected += [
            (
                f"cam{i % 2}",
                seed + i,
                r.frame.captured_at,
                int(d.class_id[k]),
                r.class_name(int(d.class_id[k])),
                float(d.confidence[k]),
                *map(float, d.xyxy[k]),
                int(d.tracker_id[k]),
                ["accept", "review"][decision[k]],
            )
            for k in range(n)
        ]
        d.xyxy[:] = -1  # a caller may reuse its buffers
    sink.close()
    table = pq.read_table(folder / "results.parquet")
    assert table.column_names == COLUMNS and table.schema.remove_metadata() == results_schema()
    assert list(zip(*(table[c].to_pylist() for c in COLUMNS))) == expected
    assert sorted(p.name for p in folder.iterdir()) == ["results.parquet"]


def test_parts_come_by_rows_and_by_seconds(tmp_path):
    now = [0.0]
    sink = ParquetSink(tmp_path, part_rows=10, part_seconds=5, clock=lambda: now[0])
    parts = lambda: len(list((tmp_path / "results.parts").glob("part-*")))
    sink.write(result(0))
    sink.write(result(1))
    assert parts() == 0
    now[0] = 5.1
    sink.write(result(2, 0))  # even an empty frame brings what waits to disk
    assert parts() == 1 and len(read_results(tmp_path)) == 6
    for i in range(4):
        sink.write(result(3 + i))
    assert parts() == 2 and sink.rows_written == 18
    now[0] = 100.0
    sink.write(result(8, 0))
    assert parts() == 2  # nothing waits, nothing is written
    sink.close()
    assert len(read_results(tmp_path)) == 18


def test_a_run_without_detections_leaves_an_empty_table(tmp_path):
    sink = ParquetSink(tmp_path)
    sink.write(result(0, 0))
    sink.close()
    assert (
        pq.read_table(tmp_path / "results.parquet").num_rows == 0
        and read_results(tmp_path).schema == results_schema()
    )


def test_an_unclosed_run_is_readable_can_be_finished_and_is_never_overwritten(tmp_path):
    first = ParquetSink(tmp_path, part_rows=3)
    first.write(result(0))
    first.close()
    killed = ParquetSink(tmp_path, part_rows=3)
    for i in range(10, 14):
        killed.write(result(i))  # never closed
    assert set(read_results(tmp_path)["frame_id"].to_pylist()) == {10, 11, 12, 13}
    third = ParquetSink(tmp_path, part_rows=3)  # set aside
    third.write(result(20))
    third.close()
    assert set(read_results(tmp_path)["frame_id"].to_pylist()) == {20}
    aside = tmp_path / "results.interrupted-1"
    assert set(read_results(aside)["frame_id"].to_pylist()) == {10, 11, 12, 13}
    merge_results(aside)
    assert pq.read_table(aside / "results.parquet").num_rows == 12 and not (aside / "results.parts").exists()


def test_killed_between_the_rename_and_the_removal_counts_nothing_twice(tmp_path, monkeypatch):
    sink = ParquetSink(tmp_path, part_rows=3)
    for i in range(3):
        sink.write(result(i))
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: None)  # "killed" before the parts are removed
    sink.close()
    monkeypatch.undo()
    assert (tmp_path / "results.parts").exists() and len(read_results(tmp_path)) == 9
    sink = ParquetSink(tmp_path)
    sink.close()
    assert not (tmp_path / "results.interrupted-1").exists()


def test_a_full_disk_keeps_rows_until_there_is_space_and_bounds_memory(tmp_path, monkeypatch):
    full, real = [True], os.fsync

    def fsync(fd):
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    sink, taken, refused = ParquetSink(tmp_path, part_rows=6, max_pending=12, clock=lambda: 0.0), 0, 0
    for i in range(10):
        try:
            sink.write(result(i))
        except SinkError as e:
            refused += 1
            assert "No space left" in str(e) and "free some space" in e.hint
        taken = sink._rows.count
    assert refused > 3 and 12 <= taken < 16
    assert list((tmp_path / "results.parts").iterdir()) == []  # no half-written draft
    full[0] = False
    sink.write(result(50))
    sink.close()
    ids = read_results(tmp_path)["frame_id"].to_pylist()
    assert len(ids) == taken + 3 and ids[-1] == 50 and ids == sorted(ids)


@pytest.mark.slow
def test_many_parts_are_merged_into_few_row_groups(tmp_path):
    sink = ParquetSink(tmp_path, part_rows=3)
    for i in range(200):
        sink.write(result(i))
    sink.close()
    assert (
        pq.ParquetFile(tmp_path / "results.parquet").num_row_groups == 1
        and len(read_results(tmp_path)) == 600
    )


# --- video


def test_video_has_the_frames_at_their_times(tmp_path):
    sink = VideoSink(tmp_path)
    times = [0, 40, 80, 1200, 1240, 60, 1300]  # milliseconds; a hole, and a clock that jumps back once
    for i, ms in enumerate(times):
        r = result(i, 1)
        r.frame.captured_at = NOON + timedelta(milliseconds=ms)
        sink.write(r)
    sink.close()
    pts = [p.pts * 1000 for p in decode_video(tmp_path / "cam.mp4")]
    assert (
        len(pts) == 7
        and (np.diff(pts) > 0).all()
        and np.allclose(pts[:5], times[:5], atol=1)
        and pts[6] == pytest.approx(1300, abs=2)
    )
    steady = VideoSink(tmp_path / "steady", fps=10)
    for i in range(5):
        steady.write(result(i))
    steady.close()
    assert np.allclose([p.pts for p in decode_video(steady.files[0])], np.arange(5) / 10, atol=1e-3)


def test_sources_and_sizes_get_files_of_their_own(tmp_path):
    sink = VideoSink(tmp_path, draw=lambda r, trails: r.frame.image)
    for i in range(4):
        sink.write(result(i, source="a/b"))
        sink.write(result(i, source="a b", size=(33, 47) if i < 2 else (20, 20)))
    sink.close()
    sizes = {p.name: [q.image.shape[:2] for q in decode_video(p)] for p in sink.files}
    assert sorted(sizes.values()) == [[(20, 20)] * 2, [(48, 34)] * 2, [(48, 64)] * 4]


def test_one_pixel_and_drawing_by_default(tmp_path):
    sink = VideoSink(tmp_path)
    sink.write(result(0, 0, size=(1, 1)))
    sink.write(result(1, 3, source="drawn", size=(128, 96)))
    sink.close()
    drawn = next(decode_video(tmp_path / "drawn.mp4")).image
    assert (
        next(decode_video(tmp_path / "cam.mp4")).image.shape == (2, 2, 3) and drawn.std() > 5
    )  # the frame itself is one colour


@pytest.fixture
def photos(tmp_path):
    "Four pictures of three sizes; two files a month apart, two of the same second, and one of before."
    folder = tmp_path / "photos"
    folder.mkdir()
    for k, (size, when) in enumerate(
        [
            ((64, 48), 1.75e9),
            ((40, 80), 1.75e9 + 30 * 86400),
            ((200, 30), 1.75e9 + 30 * 86400),
            ((64, 48), 1e9),
        ]
    ):
        cv2.imwrite(str(folder / f"{k}.png"), np.full((size[1], size[0], 3), 100 + 40 * k, np.uint8))
        os.utime(folder / f"{k}.png", (when, when))
    return folder


@pytest.mark.parametrize(
    "source_fps, sink_fps, step", [(None, None, 0.5), (None, 4, 0.25), (10, None, 0.1), (10, 5, 0.2)]
)
def test_a_folder_of_photographs_is_one_steady_film(tmp_path, photos, source_fps, sink_fps, step):
    sink = VideoSink(tmp_path / "out", fps=sink_fps)
    for frame in FolderSource(photos, fps=source_fps):
        sink.write(FrameResult(frame, Detections.empty(), NAMES))
    sink.close()
    assert [p.name for p in sink.files] == ["photos.mp4"]
    film = list(decode_video(sink.files[0]))
    assert np.allclose([p.pts for p in film], np.arange(4) * step, atol=1e-3)
    assert {p.image.shape for p in film} == {(48, 64, 3)}
    tall, wide = film[1].image, film[2].image
    assert (
        np.abs(tall[24, [21, 32, 42]].astype(int) - 140).max() < 10 and tall[24, [5, 15, 48, 60]].max() < 60
    )  # 40×80 stands between dark borders
    assert (
        np.abs(wide[[21, 24, 26], 32].astype(int) - 180).max() < 10 and wide[[5, 17, 31, 45], 32].max() < 60
    )  # 200×30 lies between them


def test_a_camera_or_a_video_that_changes_its_size_still_gets_a_new_file(tmp_path):
    sink = VideoSink(tmp_path)
    for i in range(4):
        r = result(i, 0, size=(64, 48) if i < 2 else (32, 32))
        r.frame.pts = i / 25
        sink.write(r)
    sink.close()
    assert [len(list(decode_video(p))) for p in sink.files] == [2, 2]


def boxed(i, seconds=None, inferred=True, status="ok", source="cam", size=(96, 96), meta=None):
    "Frame i of a grey source; the model sees one box where it is asked."
    seen = inferred and status == "ok"
    found = Detections([[20, 30, 70, 80]], [0.9], [0], [4]) if seen else Detections.empty()
    image = np.full((size[1], size[0], 3), 128, np.uint8)
    seconds = i / 10 if seconds is None else seconds
    return FrameResult(
        Frame(image, source, i, NOON + timedelta(seconds=seconds), None if meta else seconds, meta or {}),
        found,
        NAMES,
        inferred=seen,
        status=status,
    )


def strength(sink, results):
    "How strongly the box's lower edge stands out in every frame of the first file."
    for r in results:
        sink.write(r)
    sink.close()
    return np.array(
        [np.abs(p.image[79, 30:60].astype(int) - 128).max(axis=1).mean() for p in decode_video(sink.files[0])]
    )


def test_between_the_frames_that_the_model_saw_the_last_boxes_stay_pale(tmp_path):
    full = strength(VideoSink(tmp_path, crf=4), [boxed(i, inferred=i % 4 == 0) for i in range(12)])
    asked = np.arange(12) % 4 == 0
    assert full[asked].min() > 40
    assert (full[~asked] > 0.25 * full[asked].mean()).all() and (
        full[~asked] < 0.7 * full[asked].mean()
    ).all()


@pytest.mark.parametrize(
    "rest, why",
    [
        ([boxed(1, status="model_error"), boxed(2, inferred=False)], "the model failed since"),
        ([boxed(1, seconds=2.1, inferred=False), boxed(2, seconds=60, inferred=False)], "too old"),
        (
            [boxed(1, seconds=-1, inferred=False), boxed(2, seconds=-0.5, inferred=False)],
            "the clock jumped back",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_old_boxes_are_not_shown(tmp_path, rest, why):
    seen = strength(VideoSink(tmp_path, crf=4), [boxed(0), *rest])
    assert seen[0] > 40 and (seen[1:] < 8).all(), why


def test_boxes_stay_with_their_source_their_size_and_their_picture(tmp_path):
    sink = VideoSink(tmp_path / "a", crf=4)
    sink.write(boxed(0, source="other"))
    assert strength_of(sink, boxed(1, inferred=False)) < 8  # another source knows of no box
    sink = VideoSink(tmp_path / "b", crf=4)
    sink.write(boxed(0))
    assert strength_of(sink, boxed(1, inferred=False, size=(98, 98))) < 8  # a picture of another size
    stills = [boxed(i, seconds=0, inferred=i == 0, meta={"path": f"{i}.png"}) for i in range(3)]
    assert (strength(VideoSink(tmp_path / "c", crf=4), stills) > 8).tolist() == [True, False, False]


def strength_of(sink, last):
    sink.write(last)
    sink.close()
    image = list(decode_video(sink.files[-1]))[-1].image
    return np.abs(image[79, 30:60].astype(int) - 128).max(axis=1).mean()


def test_drawing_of_ones_own_is_left_alone(tmp_path):
    seen = strength(
        VideoSink(tmp_path, crf=4, draw=lambda r, trails: r.frame.image), [boxed(0), boxed(1, inferred=False)]
    )
    assert (seen < 8).all()


def test_known_boxes_do_not_follow_a_callers_buffers(tmp_path):
    first, sink = boxed(0), VideoSink(tmp_path, crf=4)
    sink.write(first)
    first.detections.xyxy[:] = 0
    assert 12 < strength_of(sink, boxed(1, inferred=False)) < 35


@settings(deadline=None)
@given(st.text(max_size=120), st.sets(st.sampled_from(["source", "a", "a-2"])))
def test_safe_names_stay_in_the_folder(text, taken):
    name = safe_name(text, taken)
    assert (
        name
        and name not in taken
        and "/" not in name
        and not name.startswith(".")
        and len(name) <= 90
        and name.isprintable()
    )


# --- callback


def test_callback_errors_are_sink_errors(tmp_path):
    seen, closed = [], []
    sink = CallbackSink(seen.append, lambda: closed.append(True))
    sink.write(result(0))
    sink.close()
    assert len(seen) == 1 and closed == [True]

    def broken(r):
        raise KeyError("oven")

    with pytest.raises(SinkError, match="broken raised KeyError: 'oven'"):
        CallbackSink(broken).write(result(0))


# --- where nothing can be written


@pytest.mark.parametrize(
    "make", [lambda p: JsonlSink(p / "r.jsonl"), ParquetSink, VideoSink], ids=["jsonl", "parquet", "video"]
)
def test_an_unwritable_folder_is_found_at_construction(tmp_path, make):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/nowhere")):
        with pytest.raises(SinkError) as caught:
            make(place)
        assert caught.value.hint and str(place).split("/")[-1] in str(caught.value)
    (tmp_path / "r.jsonl").mkdir()
    with pytest.raises(SinkError, match="cannot open"):
        JsonlSink(tmp_path / "r.jsonl")


@pytest.fixture
def locked():
    """A folder in which this process may not write. Permissions do not bind root, so as root the test runs as
    nobody meanwhile."""
    outer = Path(tempfile.mkdtemp())  # not tmp_path: nobody may not even look into that
    outer.chmod(0o755)
    (outer / "locked").mkdir(mode=0o555)
    as_root = os.geteuid() == 0
    if as_root:
        try:
            os.seteuid(65534)
        except OSError as e:
            shutil.rmtree(outer)
            pytest.skip(f"root here cannot become another user, and permissions do not bind it: {e}")
    yield outer / "locked"
    if as_root:
        os.seteuid(0)
    shutil.rmtree(outer)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="POSIX permissions")
@pytest.mark.parametrize(
    "make", [lambda p: JsonlSink(p / "r.jsonl"), ParquetSink, VideoSink], ids=["jsonl", "parquet", "video"]
)
@pytest.mark.parametrize("below", ["", "new/deep"])
def test_a_folder_without_permission_is_found_at_construction(locked, make, below):
    with pytest.raises(SinkError, match="Permission denied") as caught:
        make(locked / below)
    assert (
        "permission denied" in caught.value.hint
        and "locked" in str(caught.value)
        and not list(locked.iterdir())
    )


# --- kill -9 and a full disk, with real processes

WRITER = """
import resource, signal, sys
from tests.video.test_sinks import result
from cv_pipeline.core.types import SinkError
from cv_pipeline.video.sinks import JsonlSink, ParquetSink, VideoSink
out, limit = sys.argv[1], int(sys.argv[2])
table = ParquetSink(out, part_rows=sys.maxsize if limit else 30, part_seconds=1e9)
sinks = {{"jsonl": JsonlSink(out + "/r.jsonl"), "parquet": table, "video": VideoSink(out)}}
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for i in range(100_000):
    for name, sink in list(sinks.items()):
        try:
            sink.write(result(i, 5, size=(160, 120)))
            if limit and name == "parquet" and i in (99, 2999): sink.flush()
        except SinkError as e:
            print("failed", name, i, e.where, e.hint, flush=True)
            del sinks[name]
    if not sinks: break
    if not limit: print(i, sinks["parquet"].rows_written, flush=True)
"""


@pytest.fixture
def writer(tmp_path):
    def start(limit):
        code = WRITER.format()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(limit)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    return start


@pytest.mark.slow
@pytest.mark.parametrize("after", [40, 211])
def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path, writer, after):
    process = writer(0)
    for text in process.stdout:
        number, rows = map(int, text.split())
        if number >= after:
            break
    process.kill()
    process.wait()
    last = [tuple(map(int, text.split())) for text in process.stdout if text.endswith("\n")]
    process.stdout.close()
    process.stderr.close()
    number, rows = last[-1] if last else (number, rows)
    records = list(read_jsonl(tmp_path / "r.jsonl"))
    assert len(records) >= number + 1 and [r["frame_id"] for r in records] == list(range(len(records)))
    table = read_results(tmp_path)
    assert len(table) >= rows >= (number + 1) * 5 - 35 and table["frame_id"].to_pylist() == [
        i for i in range(len(table) // 5) for _ in range(5)
    ]
    frames = list(decode_video(tmp_path / "cam.mp4"))
    assert len(frames) >= number + 1 - 60  # all but the last two seconds
    merge_results(tmp_path)
    assert pq.read_table(tmp_path / "results.parquet").equals(table)


@pytest.mark.slow
def test_full_disk_is_an_error_and_what_was_written_stays(tmp_path, writer):
    process = writer(60_000)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-2000:]
    failed = {text.split()[1]: text for text in out.splitlines() if text.startswith("failed")}
    assert set(failed) == {"jsonl", "parquet", "video"}, out
    assert all("data written before is intact" in text for text in failed.values())
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert [json.loads(text)["frame_id"] for text in lines] == list(range(int(failed["jsonl"].split()[2])))
    table = read_results(tmp_path)
    assert (
        table["frame_id"].to_pylist() == [i for i in range(len(table) // 5) for _ in range(5)]
        and len(table) == 500
    )
    assert len(list(decode_video(tmp_path / "cam.mp4"))) > 10


def test_parquet_table_types_are_the_documented_ones():
    assert results_schema().field("captured_at").type == pa.timestamp("us", tz="UTC")
    assert [results_schema().field(c).type for c in ("class_id", "tracker_id")] == [pa.int32()] * 2
    assert {results_schema().field(c).type for c in ("confidence", "x1", "y1", "x2", "y2")} == {pa.float32()}


# --- hours


class Steps:
    "A clock on the wall that is told."

    def __init__(self):
        self.at = datetime(2026, 11, 28, 10, 30, tzinfo=timezone.utc)

    def hours(self, folder):
        return Hours(folder, now=lambda: self.at, clock=lambda: 0.0)


def test_lines_and_films_roll_with_the_table_and_are_read_as_one(tmp_path):
    steps = Steps()
    hours = steps.hours(tmp_path)
    sinks = [
        ParquetSink(tmp_path, part_rows=1, hours=hours),
        JsonlSink(tmp_path / "results.jsonl", hours=hours),
        VideoSink(tmp_path, fps=10, hours=hours),
    ]
    for k in range(9):
        for sink in sinks:
            sink.write(result(k))
        if k % 3 == 2:
            steps.at += timedelta(hours=1)
    for sink in sinks:
        sink.close()
    stems = ["2026-11-28T10", "2026-11-28T11", "2026-11-28T12"]
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == [
        f"{stem}.{end}" for stem in stems for end in ("jsonl", "parquet")
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results", "video"]
    assert [r["frame_id"] for r in read_jsonl(tmp_path)] == list(range(9))
    assert read_results(tmp_path)["frame_id"].to_pylist() == [k for k in range(9) for _ in range(3)]
    films = [len(list(decode_video(p))) for p in sorted(tmp_path.glob("video/*/*.mp4"))]
    assert films == [3, 3, 3] and sinks[2].files == sorted(tmp_path.glob("video/*/*.mp4"))


def test_a_run_within_an_hour_leaves_what_it_always_did(tmp_path):
    hours = Steps().hours(tmp_path)
    sinks = [
        ParquetSink(tmp_path, hours=hours),
        JsonlSink(tmp_path / "results.jsonl", hours=hours),
        VideoSink(tmp_path, hours=hours),
    ]
    for sink in sinks:
        sink.write(result(0))
        sink.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cam.mp4", "results.jsonl", "results.parquet"]
    assert [sinks[0].summary(), sinks[2].summary()] == [None, {"files": ["cam.mp4"]}]


def test_a_killed_run_with_hours_is_whole_up_to_the_last_line(tmp_path):
    steps = Steps()
    hours = steps.hours(tmp_path)
    table = ParquetSink(tmp_path, part_rows=12, hours=hours, clock=lambda: 0.0)
    lines = JsonlSink(tmp_path / "results.jsonl", hours=hours)
    for k in range(10):
        table.write(result(k))
        lines.write(result(k))
        if k == 4:
            steps.at += timedelta(hours=1)
    assert read_results(tmp_path)["frame_id"].to_pylist() == [k for k in range(10) for _ in range(3)]


def test_films_of_several_sizes_stay_with_their_hour(tmp_path):
    steps = Steps()
    sink = VideoSink(tmp_path, fps=10, hours=steps.hours(tmp_path))
    for size in ((64, 48), (32, 32)):
        for k in range(3):
            at = steps.at + timedelta(seconds=k)
            frame = Frame(np.zeros((size[1], size[0], 3), np.uint8), "cam", k, at)
            sink.write(FrameResult(frame, Detections.empty()))
    steps.at += timedelta(hours=1)
    sink.write(FrameResult(frame, Detections.empty()))
    sink.close()
    films = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.mp4"))
    assert films == [f"video/2026-11-28T{name}.mp4" for name in ("10/cam-2", "10/cam", "11/cam")]


def test_an_hour_that_cannot_be_put_away_is_a_typed_error_and_its_lines_stay(tmp_path):
    steps = Steps()
    sink = JsonlSink(tmp_path / "results.jsonl", hours=steps.hours(tmp_path))
    sink.write(result(0))
    (tmp_path / "results").write_text("no folder")
    steps.at += timedelta(hours=1)
    with pytest.raises(SinkError, match="results"):
        sink.write(result(1))
    sink.close()
    assert [r["frame_id"] for r in read_jsonl(tmp_path / "results.jsonl")] == [0]
