"""The prediction log: whole files after a crash, nothing lost, nothing twice, and a reader that refuses what
cannot be compared."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core import files
from cv_pipeline.core.background import BACKGROUND
from cv_pipeline.core.config import load_config
from cv_pipeline.core.owed import owe, settle
from cv_pipeline.core.tables import FAN
from cv_pipeline.core.types import ConfigError, DataError, Detections, Frame, FrameResult, SinkError
from cv_pipeline.monitoring import frame_statistics as statistics
from cv_pipeline.monitoring import telemetry
from cv_pipeline.monitoring.frame_statistics import CELLS, Descriptor, frame_statistics
from cv_pipeline.monitoring.prediction_log import instant, read_log
from cv_pipeline.monitoring.telemetry import LogSettings, TelemetrySink, camera_folder, log_bytes
from cv_pipeline.service.assembly import run_config
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.conditions import Conditions
from tests.helpers.services import require
from tests.helpers.waiting import until

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
IMAGE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)


def looked(number=0, camera="gate", boxes=2, at=None, asked=True, status="ok", model="m 1", unsure=0):
    "A result of the pipeline."
    xyxy = np.tile(np.float32([2, 3, 20, 30]), (boxes, 1)) + np.arange(boxes)[:, None]
    decision = np.zeros(boxes, np.int8)
    decision[:unsure] = 1
    found = (
        Detections(
            xyxy,
            np.linspace(0.3, 0.9, boxes) if boxes else [],
            np.arange(boxes) % 3,
            np.arange(boxes),
            {"decision": decision},
        )
        if boxes
        else Detections.empty()
    )
    frame = Frame(IMAGE, camera, number, at or NOON + timedelta(milliseconds=40 * number))
    return FrameResult(
        frame,
        found if asked else Detections.empty(),
        ("bolt", "nut", "gear"),
        {"inference": 5.0, "preprocess": 1.0, "ingest": 99.0},
        asked,
        status,
        model,
    )


def written(folder, results, **options):
    how = {name: options.pop(name) for name in ("listeners", "clock", "now", "written") if name in options}
    sink = TelemetrySink(folder, LogSettings(**options), **how)
    for r in results:
        sink.write(r)
    sink.close()
    return sink


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["gate", "rtsp://10.0.0.7:554/a b", "Tor 3"]),
            st.integers(0, 4),
            st.booleans(),
            st.integers(0, 200_000),
        ),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 9),
)
def test_what_is_written_is_read_back(tmp_path_factory, rows, part_rows):
    folder = tmp_path_factory.mktemp("log")
    results = [
        looked(k, camera, boxes, NOON + timedelta(seconds=k * 1000 + s % 1000), asked)
        for k, (camera, boxes, asked, s) in enumerate(rows)
    ]
    written(folder, results, part_rows=part_rows, unasked_fps=None)
    log = read_log(folder)
    assert len(log) == len(results)
    assert log.cameras == tuple(sorted({r.frame.source_id for r in results}))
    for r in results:
        mine = log.select(
            (log.frames["camera"] == log.cameras.index(r.frame.source_id))
            & (log.frames["frame_id"] == r.frame.frame_id)
        )
        f, d = mine.frames, mine.detections
        assert f["detections"][0] == (len(r.detections) if r.inferred else -1) and len(d["frame"]) == len(
            r.detections
        )
        assert datetime.fromtimestamp(f["captured_at"][0] / 1e6, timezone.utc) == r.frame.captured_at
        assert np.allclose(d["xyxy"], r.detections.xyxy) and np.allclose(
            d["confidence"], r.detections.confidence
        )
        assert [mine.names[c] for c in d["class_id"]] == [r.class_name(c) for c in r.detections.class_id]
        assert f["latency_ms"][0] == 6.0 if r.inferred else np.isnan(f["latency_ms"][0])
        assert np.allclose(f["embedding"][0], CELLS(IMAGE), atol=1e-3)


def test_statistics_do_not_depend_on_light_or_camera_size_more_than_they_should():
    frames = [f.image for f, _ in FactoryLine(LineConfig(density=6)).frames(8)]
    value = lambda images: np.mean([frame_statistics(i) for i in images], axis=0)
    plain, darker = value(frames), value([cv2.convertScaleAbs(i, alpha=0.5) for i in frames])
    assert abs(darker[2] - plain[2]) < 0.05 and darker[0] < 0.6 * plain[0]  # blur is no matter of light
    soft = value([cv2.GaussianBlur(i, (0, 0), 3) for i in frames])
    assert soft[2] > plain[2] + 0.1
    grain = np.random.default_rng(1).normal(0, 12, frames[0].shape)
    noisy = value([np.clip(i + grain, 0, 255).astype(np.uint8) for i in frames])
    assert 6 < noisy[3] < 10 and plain[3] < 1


@pytest.mark.parametrize("name, column", [("time_of_day", 0), ("fog", 1), ("vibration", 2), ("noise", 3)])
def test_a_condition_moves_its_statistic_further_with_every_severity(name, column):
    values = [
        np.mean(
            [
                frame_statistics(f.image)[column]
                for f, _ in FactoryLine(LineConfig(density=6), Conditions(**{name: s})).frames(3)
            ]
        )
        for s in (0, 2, 4)
    ]
    assert np.all(np.diff(values) > 0) or np.all(np.diff(values) < 0)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3000), (9, 9), (47, 63)])
@pytest.mark.parametrize("fill", [0, 128, 255])
def test_a_picture_without_content_gives_finite_numbers(shape, fill):
    statistics = frame_statistics(np.full((*shape, 3), fill, np.uint8))
    assert np.isfinite(statistics).all() and statistics.blur == 1.0 and statistics.noise == 0.0


@pytest.mark.parametrize(
    "h, w",
    [
        (1, 9),
        (24, 24),
        (95, 191),
        (480, 640),
        (1079, 1081),
        (1080, 1920),
        (1700, 1650),
        (2160, 3840),
        (3800, 3790),
    ],
)
def test_the_fast_way_to_blur_and_noise_gives_the_same_numbers(h, w):
    "Pieces by slices and the whole kernel, as it is explained: not one bit differs, at any step."
    image = np.random.default_rng(h).integers(0, 256, (h, w, 3), np.uint8)
    step = max(1, min(h, w) // 540)
    ph, pw = min(32, h // step // 3), min(64, w // step // 3)
    cut = lambda i, n, size, p: slice(a := (2 * i + 1) * size // (2 * n) - p * step // 2, a + p * step, step)
    pieces = (
        image
        if min(ph, pw) < 8
        else np.vstack(
            [np.hstack([image[cut(i, 3, h, ph), cut(j, 3, w, pw)] for j in range(3)]) for i in range(3)]
        )
    )
    assert (statistics._pieces(image) == pieces).all()
    grey = cv2.cvtColor(pieces, cv2.COLOR_BGR2GRAY)
    curved = (
        np.abs(cv2.filter2D(grey.astype(np.float64), -1, np.float64([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])))
        .clip(0, 255)
        .astype(int)
    )
    assert frame_statistics(image).noise == statistics._median(
        np.bincount(curved.ravel(), minlength=256).astype(np.float32)
    ) / (0.6745 * 6)


@pytest.mark.slow
def test_a_killed_run_leaves_whole_files_and_what_was_flushed(tmp_path):
    code = (
        "import sys, os\nsys.path.insert(0, os.getcwd())\nfrom tests.monitoring.test_telemetry import "
        "*\nsink = TelemetrySink(sys.argv[1], LogSettings(part_rows=10))\n"
        "for k in range(10**9):\n    sink.write(looked(k))\n    if k == 200: sink._writer.settle(0); "
        "print('go', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout.readline() == b"go\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    log = read_log(tmp_path)
    assert len(log) >= 200 and (np.diff(log.frames["frame_id"]) == 1).all()
    assert len(log.detections["frame"]) == 2 * len(log)


def test_half_written_files_are_skipped_and_counted(tmp_path):
    written(tmp_path, [looked(k) for k in range(30)], part_rows=10)
    parts = sorted(tmp_path.glob("frames/*/*/part-*.parquet"))
    parts[0].write_bytes(parts[0].read_bytes()[:-200])
    parts[1].write_bytes(b"")
    (parts[2].parent / ".part-x-000001.parquet.77-1a2b3c4d.part").write_bytes(b"PAR1")
    log = read_log(tmp_path)
    assert len(log) == 10 and log.counts["broken"] == 3 and "3 half-written files were skipped" in log.notes
    parts[2].write_bytes(b"PAR1")
    with pytest.raises(DataError, match="3 broken files were skipped"):
        read_log(tmp_path)


def test_lost_boxes_are_said(tmp_path):
    written(tmp_path, [looked(k) for k in range(20)], part_rows=10)
    next(tmp_path.glob("detections/*/*/part-*.parquet")).unlink()
    log = read_log(tmp_path)
    assert len(log.detections["frame"]) == 20 and any("20 boxes are missing" in n for n in log.notes)


class FullDisk:
    "Lets some files through, then has no room, until it is told that there is."

    def __init__(self, monkeypatch, after):
        self.left, real = after, os.fsync

        def fsync(number):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(number)

        monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_is_an_error_and_nothing_is_lost_when_there_is_room_again(tmp_path, monkeypatch):
    disk = FullDisk(monkeypatch, 2)
    sink = TelemetrySink(tmp_path, LogSettings(part_rows=10))
    with pytest.raises(SinkError, match="the disk is full"):
        for k in range(200):
            sink.write(looked(k))
            sink._writer.settle(0)
    reached = k + 1
    assert not list(tmp_path.rglob("*.tmp"))
    disk.left = 10**6
    sink.close()
    log = read_log(tmp_path)
    assert (
        log.frames["frame_id"].tolist() == list(range(reached))
        and len(log.detections["frame"]) == 2 * reached
    )


def test_a_disk_that_stays_full_is_an_error_when_closing(tmp_path, monkeypatch):
    FullDisk(monkeypatch, 0)
    sink = TelemetrySink(tmp_path, LogSettings(part_rows=1000))
    sink.write(looked(0))
    with pytest.raises(SinkError, match="the disk is full"):
        sink.close()


@pytest.mark.slow
def test_a_full_disk_ends_the_run_as_with_other_sinks(tmp_path, monkeypatch):
    FullDisk(monkeypatch, 0)
    config = load_config(
        None,
        {
            "sources": ["line:frames=30"],
            "delivery.out": str(tmp_path),
            "delivery.parquet": False,
            "delivery.jsonl": False,
            "telemetry": True,
            "model.threads": 1,
        },
    )
    with pytest.raises(SinkError, match="the disk is full"):
        run_config(config)
    assert "the disk is full" in json.loads((tmp_path / "summary.json").read_text())["error"]


def test_parts_roll_by_time_also_for_a_camera_that_fell_silent(tmp_path):
    clock = iter([0.0, 1.0, 60.5]).__next__
    sink = TelemetrySink(tmp_path, LogSettings(part_rows=1000, part_seconds=60), clock=clock)
    sink.write(looked(0, "silent"))
    sink.write(looked(0, "busy"))
    sink.write(looked(1, "busy"))
    sink._writer.settle(0)
    assert [p.parent.name for p in tmp_path.glob("frames/*/*/*.parquet")] == ["camera=silent"]
    sink.close()
    assert len(read_log(tmp_path)) == 3


def test_frames_that_nobody_was_asked_about_are_thinned_and_counted(tmp_path):
    sink = written(
        tmp_path,
        [looked(k, asked=False) for k in range(250)]
        + [looked(300), looked(301, asked=False, status="model_error")],
        unasked_fps=2.0,
    )
    log = read_log(tmp_path)
    assert len(log) == 20 + 2 and sink.tally["left_out"] == 230
    assert sorted(log.statuses) == ["model_error", "ok"]


def test_embeddings_only_now_and_then(tmp_path):
    written(tmp_path, [looked(k) for k in range(10)], embed_every=4)
    assert np.isfinite(read_log(tmp_path).frames["embedding"][:, 0]).tolist() == [
        True,
        False,
        False,
        False,
    ] * 2 + [True, False]
    written(tmp_path / "none", [looked(0)], descriptor=None)
    assert read_log(tmp_path / "none").embedding == ""


def rewritten(folder, change):
    path = next(folder.glob("frames/*/*/part-*.parquet"))
    pq.write_table(change(pq.ParquetFile(path).read()), path)
    return folder


def test_vectors_that_were_written_as_lists_of_fixed_size_are_read(tmp_path):
    def fixed(table):
        flat = table["embedding"].combine_chunks().flatten()
        place = table.schema.get_field_index("embedding")
        return table.set_column(place, "embedding", pa.FixedSizeListArray.from_arrays(flat, 64))

    written(tmp_path, [looked(k) for k in range(3)])
    before = read_log(tmp_path).frames["embedding"]
    assert np.array_equal(read_log(rewritten(tmp_path, fixed)).frames["embedding"], before)


def test_other_embeddings_are_refused_unless_one_is_asked_for(tmp_path):
    written(tmp_path, [looked(k) for k in range(5)])
    written(
        tmp_path,
        [looked(k) for k in range(5, 8)],
        descriptor=Descriptor("detector p5", lambda image: np.ones(64)),
    )
    with pytest.raises(
        DataError,
        match="embeddings of 2 descriptors: cells-4x4x4 \\(5 frames\\), detector p5 \\(3 frames\\)|detector "
        "p5 \\(3 frames\\), cells-4x4x4 \\(5 frames\\)",
    ):
        read_log(tmp_path)
    log = read_log(tmp_path, embedding="detector p5")
    assert len(log) == 8 and np.isfinite(log.frames["embedding"][:, 0]).sum() == 3


def test_another_schema_is_refused_by_name(tmp_path):
    written(tmp_path, [looked(0)])
    later = lambda t: t.replace_schema_metadata({**t.schema.metadata, b"cv_pipeline.schema": b"2"})
    with pytest.raises(
        DataError, match="unsupported schema 2 of the prediction log; this version supports up to 1"
    ):
        read_log(rewritten(tmp_path, later))


def test_missing_columns_are_named(tmp_path):
    written(tmp_path / "a", [looked(0)])
    with pytest.raises(DataError, match="missing columns frame_id, selected"):
        read_log(rewritten(tmp_path / "a", lambda t: t.drop_columns(["frame_id", "selected"])))
    written(tmp_path / "b", [looked(0)])
    log = read_log(rewritten(tmp_path / "b", lambda t: t.drop_columns(["noise", "embedding"])))
    assert np.isnan(log.frames["noise"]).all() and "frames.embedding, frames.noise" in log.notes[0]


def test_a_clock_that_runs_backwards_is_said_and_sorted(tmp_path):
    times = [0, 1, 2, -3600, -3599, 5]
    written(tmp_path, [looked(k, at=NOON + timedelta(seconds=s)) for k, s in enumerate(times)], part_rows=2)
    log = read_log(tmp_path)
    assert (np.diff(log.frames["captured_at"]) > 0).all()
    assert log.notes == (
        "gate: the clock ran backwards 1 times, by up to 3602.0 s; rows are in the order of the clock",
    )


def test_time_zones(tmp_path):
    east = timezone(timedelta(hours=9))
    written(tmp_path, [looked(0, at=NOON), looked(1, at=(NOON + timedelta(seconds=1)).astimezone(east))])
    assert np.diff(read_log(tmp_path).frames["captured_at"]).tolist() == [1_000_000]
    naive = lambda t: t.set_column(2, "captured_at", t["captured_at"].cast(pa.timestamp("us")))
    log = read_log(rewritten(tmp_path, naive))
    assert log.notes == ("times without a zone were taken as UTC",) and log.frames["captured_at"][
        0
    ] == instant(NOON)
    assert instant("2026-06-01T14:00+02:00") == instant("2026-06-01T12:00:00Z") == instant(NOON)
    for bad, what in (
        ("2026-06-01T12:00", "has no time zone"),
        (datetime(2026, 6, 1), "has no time zone"),
        ("yesterday", "is not a time"),
    ):
        with pytest.raises(ConfigError, match=what):
            read_log(tmp_path, since=bad)


def test_a_period_is_cut_exactly_and_over_midnight(tmp_path):
    results = [looked(k, at=NOON + timedelta(hours=k)) for k in range(48)]
    written(tmp_path, results, part_rows=7)
    log = read_log(tmp_path, "2026-06-01T20:00Z", NOON + timedelta(hours=20))
    assert log.frames["frame_id"].tolist() == list(range(8, 20))
    assert len(log_bytes(tmp_path)) == 3
    with pytest.raises(ConfigError, match="is not before"):
        read_log(tmp_path, "2026-06-02", "2026-06-01")
    with pytest.raises(DataError, match="the log has 2026-06-01 to 2026-06-03"):
        read_log(tmp_path, "2027-01-01")


def test_cameras_are_chosen_and_names_that_look_alike_stay_apart(tmp_path):
    written(tmp_path, [looked(0, "a/b"), looked(0, "a_b"), looked(0, "a b")])
    assert len({camera_folder(c) for c in ("a/b", "a_b", "a b")}) == 3
    assert read_log(tmp_path, cameras=["a_b", "a b"]).cameras == ("a b", "a_b")
    with pytest.raises(DataError, match="no frames in this period for these cameras"):
        read_log(tmp_path, cameras=["attic"])
    with pytest.raises(DataError, match="unknown camera 'attic'"):
        read_log(tmp_path).of("attic")


def test_a_file_that_was_copied_counts_once(tmp_path):
    written(tmp_path, [looked(k) for k in range(5)])
    for kind in ("frames", "detections"):
        path = next(tmp_path.glob(f"{kind}/*/*/part-*.parquet"))
        path.with_name("part-copy-000000.parquet").write_bytes(path.read_bytes())
    log = read_log(tmp_path)
    assert len(log) == 5 and len(log.detections["frame"]) == 10 and log.counts["twice"] == 5


def test_the_oldest_days_go_when_the_log_is_full_and_the_newest_part_stays(tmp_path):
    for day in range(6):
        sink = written(
            tmp_path,
            [looked(k, at=NOON + timedelta(days=day, seconds=k)) for k in range(100)],
            max_bytes=60_000,
            part_rows=20,
        )
    assert (
        sum(log_bytes(tmp_path).values()) <= 60_000
        and "2026-06-06" in log_bytes(tmp_path)
        and "2026-06-01" not in log_bytes(tmp_path)
    )
    assert sink.tally["deleted_bytes"] > 0
    assert "deleted to keep the log within its limit: 2026-06-01" in read_log(tmp_path).notes[0]
    sink = written(tmp_path / "tiny", [looked(k) for k in range(60)], max_bytes=1, part_rows=20)
    log = read_log(tmp_path / "tiny")
    assert log.frames["frame_id"].tolist() == list(range(40, 60)) and "2026-06-01 in part" in log.notes[0]


def test_no_log():
    with pytest.raises(DataError, match="no prediction log found"):
        read_log("/nonexistent")


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"embed_every": 0}, "embed_every: 0"),
        ({"part_rows": 0}, "part_rows: 0"),
        ({"unasked_fps": 0}, "unasked_fps: 0"),
        ({"part_seconds": -1}, "part_seconds: -1"),
        ({"max_bytes": 0}, "max_bytes: 0"),
    ],
)
def test_settings_that_are_wrong_name_the_field(wrong, said):
    with pytest.raises(ConfigError, match=said):
        LogSettings(**wrong)


def test_duckdb_reads_the_folders(tmp_path):
    duckdb = require("duckdb")
    written(tmp_path, [looked(k, unsure=1) for k in range(10)])
    query = (
        "select camera, count(*), sum(detections), sum(uncertain), len(first(embedding)) from "
        f"read_parquet('{tmp_path}/frames/*/*/*.parquet', hive_partitioning = false) group by "
        "camera"
    )
    assert duckdb.sql(query).fetchall() == [("gate", 10, 20, 10, 64)]


@pytest.mark.slow
def test_a_configured_run_writes_log_and_collection(tmp_path):
    (tmp_path / "cameras.yaml").write_text(
        "sources: [{uri: 'line:frames=40,density=6', id: gate}, {uri: 'line:frames=40,camera=1', id: "
        f"exit}}]\nmodel: {{threads: 1}}\ndelivery: {{out: {tmp_path / 'run'}}}\n"
        "telemetry: {embed_every: 2}\ncollect: {random: 0.5, none: null, many: null, high: null, flicker: "
        "false, low: null}\n"
    )
    summary = run_config(load_config(tmp_path / "cameras.yaml"))
    log = read_log(tmp_path / "run" / "log")
    assert len(log) == 80 and log.cameras == ("exit", "gate") and log.frames["selected"].all()
    assert summary["sinks"]["telemetry"]["frames"] == 80 and summary["sinks"]["collect"]["looks"] == 80
    assert 10 < summary["sinks"]["collect"]["pictures"] < 70
    assert len(log.detections["frame"]) == summary["detections"]
    assert load_config(None, {"sources": ["a"]}).telemetry is None


def test_days_that_are_over_become_one_file_and_nothing_else_changes(tmp_path):
    for run in range(2):  # frame numbers begin anew with every run
        written(
            tmp_path,
            [looked(k, at=NOON + timedelta(hours=7 * run, seconds=k), boxes=k % 3) for k in range(60)],
            part_rows=7,
        )
    written(tmp_path, [looked(k, boxes=1) for k in range(100, 105)], descriptor=None)
    next(tmp_path.glob("detections/*/*/part-*.parquet")).unlink()
    before = read_log(tmp_path)
    assert telemetry.compact_log(tmp_path) == 0  # the newest day is not over
    broken = next(tmp_path.glob("frames/*/*")) / "part-broken-000000.parquet"
    broken.write_bytes(b"PAR1")
    assert telemetry.compact_log(tmp_path, "2026-06-02") == 18
    assert len(list(tmp_path.glob("frames/*/*/part-*.parquet"))) == 3 and broken.exists()
    after = read_log(tmp_path)
    for name in ("captured_at", "frame_id", "detections"):
        assert (after.frames[name] == before.frames[name]).all()
    for name in ("frame", "xyxy", "confidence"):
        assert (after.detections[name] == before.detections[name]).all()


def test_a_crash_between_merging_and_deleting_leaves_nothing_twice(tmp_path, monkeypatch):
    written(tmp_path, [looked(k) for k in range(30)], part_rows=10)
    with monkeypatch.context() as m:
        m.setattr(Path, "unlink", lambda self, missing_ok=False: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            telemetry.compact_log(tmp_path, "2026-06-02")
    log = read_log(tmp_path)
    assert len(log) == 30 and len(log.detections["frame"]) == 60 and log.counts["twice"] == 30
    telemetry.compact_log(tmp_path, "2026-06-02")
    assert len(read_log(tmp_path)) == 30 and len(read_log(tmp_path).detections["frame"]) == 60


def test_a_new_day_merges_the_day_before(tmp_path):
    sink = written(tmp_path, [looked(k, at=NOON + timedelta(hours=k)) for k in range(40)], part_rows=4)
    assert [len(list(p.glob("*/*"))) for p in sorted(tmp_path.glob("frames/*"))][0] == 1 and sink.tally[
        "merged"
    ] > 1
    assert len(read_log(tmp_path)) == 40


def test_a_full_disk_with_many_cameras_loses_no_camera(tmp_path, monkeypatch):
    disk = FullDisk(monkeypatch, 0)
    sink = TelemetrySink(tmp_path, LogSettings(part_rows=10), clock=lambda: 0.0)  # no timer beside it
    for k in range(9):
        for camera in "bcdef":
            sink.write(looked(k, camera))
    for k in range(10):
        sink.write(looked(k, "a"))  # full: it goes to the writer, and fails there
    while not sink._writer._under_way[0][0].done():
        pass
    disk.left = 10**6
    sink.close()
    log = read_log(tmp_path)
    assert len(log) == 55 and log.cameras == tuple("abcdef") and sink.tally["frames"] == 55


def test_a_disk_that_is_full_again_and_again_keeps_every_buffer(tmp_path, monkeypatch):
    disk = FullDisk(monkeypatch, 0)
    sink = TelemetrySink(tmp_path, LogSettings(part_rows=1000))
    for k in range(6):
        sink.write(looked(k, f"camera {k}"))
    with pytest.raises(SinkError, match="the disk is full"):
        sink.flush()
    disk.left = 5  # room for two cameras and the boxes of a third
    with pytest.raises(SinkError, match="the disk is full"):
        sink.flush()
    disk.left = 10**6
    sink.flush()
    assert len(read_log(tmp_path)) == 6 and sink._writer._failed == []


def test_errors_that_nobody_foresaw_keep_the_buffer_too(tmp_path, monkeypatch):
    sink = TelemetrySink(tmp_path)
    sink.write(looked(0))
    sink.write(looked(0, "exit"))
    with monkeypatch.context() as m:
        m.setattr(telemetry, "_frames_table", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sink.flush()
        m.setattr(telemetry, "_frames_table", lambda *_: (_ for _ in ()).throw(pa.ArrowInvalid("a column")))
        with pytest.raises(pa.ArrowInvalid):
            sink.flush()
    monkeypatch.setattr(pq, "write_table", lambda *_, **__: (_ for _ in ()).throw(pa.ArrowInvalid("a page")))
    with pytest.raises(SinkError, match="cannot write a part of the prediction log"):
        sink.flush()
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.undo()
    sink.close()
    assert len(read_log(tmp_path)) == 2


def days_of(folder, days, parts=2, **options):
    return written(
        folder,
        [looked(k, at=NOON + timedelta(days=d, seconds=k)) for d in range(days) for k in range(10 * parts)],
        part_rows=10,
        **options,
    )


def test_a_broken_pair_does_not_stop_merging_nor_the_run(tmp_path):
    days_of(tmp_path, 1, parts=4)
    twins = sorted(tmp_path.glob("detections/*/*/*.parquet"))
    twins[1].write_bytes(twins[1].read_bytes()[:-100])
    sink = written(
        tmp_path, [looked(k, at=NOON + timedelta(days=1, seconds=k)) for k in range(20)], part_rows=10
    )
    assert (
        sink.tally["merged"] == 3
        and sink.tally["untidied"] == 0
        and twins[1].exists()
        and telemetry.twin_of(tmp_path / "frames" / twins[1].relative_to(tmp_path / "detections")) == twins[1]
    )
    log = read_log(tmp_path)
    assert len(log) == 60 and len(log.detections["frame"]) == 100 and log.counts["broken"] == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        pa.ArrowInvalid("a page"),
        MemoryError(),
        SinkError("the disk is full"),
    ],
)
@pytest.mark.parametrize("what", ["compact_log", "keep_within"])
def test_what_keeps_the_log_tidy_may_fail_and_the_part_counts(tmp_path, monkeypatch, what, error):
    days_of(tmp_path, 2)
    with monkeypatch.context() as m:
        m.setattr(telemetry, what, lambda *_, **__: (_ for _ in ()).throw(error))
        sink = days_of(tmp_path, 1, max_bytes=1)
    assert (
        sink.tally["frames"] == 20
        and sink.tally["untidied"] > 0
        and sink.summary()["problem"] == (str(error) or "MemoryError()")
    )


def test_a_full_disk_while_a_deletion_is_written_down(tmp_path, monkeypatch):
    days_of(tmp_path, 3)
    limit, real, tries = sum(log_bytes(tmp_path).values()), open, Counter()

    def full(path, mode="r", *args, **options):
        tries[str(path)] += (deletes := str(path).endswith("deleted.jsonl"))
        if deletes and tries[str(path)] < 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, mode, *args, **options)

    monkeypatch.setattr(files, "open", full, raising=False)
    sink = written(tmp_path, [looked(0, at=NOON + timedelta(days=3))], max_bytes=limit)
    assert tries[str(tmp_path / "deleted.jsonl")] >= 2, "the disk was full once, and it was tried again"
    assert sink.tally["untidied"] == 0, sink._writer.problem
    assert sink.tally["deleted_bytes"] > 0
    assert "2026-06-01" in read_log(tmp_path).notes[0]


def test_a_torn_line_of_deletions_is_counted_and_the_next_one_is_whole(tmp_path):
    days_of(tmp_path, 3)
    (tmp_path / "deleted.jsonl").write_text(
        '{"what": "2026-05-01", "bytes": 3}\n["no row"]\n{"what": "2026-0'
    )
    notes = read_log(tmp_path).notes
    assert notes[0] == "deleted to keep the log within its limit: 2026-05-01" and notes[1].startswith(
        "2 lines of deleted.jsonl are unreadable"
    )
    telemetry.keep_within(tmp_path, sum(log_bytes(tmp_path).values()) - 1)
    assert json.loads((tmp_path / "deleted.jsonl").read_text().splitlines()[-1])["what"].startswith(
        "2026-06-01"
    )
    assert "2026-05-01, 2026-06-01" in read_log(tmp_path).notes[0]


@pytest.mark.slow
def test_no_more_is_deleted_than_must_be(tmp_path):
    rng = np.random.default_rng(0)
    options = {"part_rows": 100, "descriptor": Descriptor("noise", lambda image: rng.random(64))}
    written(tmp_path, [looked(k, at=NOON + timedelta(seconds=k)) for k in range(3000)], **options)
    telemetry.compact_log(tmp_path, "2026-06-02", largest=60_000)
    limit = sum(log_bytes(tmp_path).values())
    sink = written(
        tmp_path, [looked(0, at=NOON + timedelta(hours=12))], max_bytes=limit, **options
    )  # one frame after midnight
    left = log_bytes(tmp_path)
    assert 0.85 * limit < sum(left.values()) <= limit and 0 < sink.tally["deleted_bytes"] < limit / 8
    log = read_log(tmp_path)
    assert (
        log.frames["frame_id"][-2] == 2999
        and log.frames["frame_id"][0] > 0
        and (np.diff(log.frames["captured_at"]) > 0).all()
    )
    assert log.notes == ("deleted to keep the log within its limit: 2026-06-01 in part",)


def test_the_oldest_goes_by_the_time_it_was_captured(tmp_path):
    for hour in (5, 1, 3):
        written(
            tmp_path,
            [looked(k, f"camera {hour}", at=NOON + timedelta(hours=hour, seconds=k)) for k in range(20)],
        )
    sizes = {
        p.parent.name: sum(f.stat().st_size for f in tmp_path.glob(f"*/*/{p.parent.name}/*.parquet"))
        for p in tmp_path.glob("frames/*/*/*.parquet")
    }
    total = sum(sizes.values())
    assert telemetry.keep_within(tmp_path, total) == {} and not (tmp_path / "deleted.jsonl").exists()
    telemetry.keep_within(tmp_path, total - 1)
    assert (
        read_log(tmp_path).cameras == ("camera 3", "camera 5")
        and sum(log_bytes(tmp_path).values()) == total - sizes[camera_folder("camera 1")]
    )
    telemetry.keep_within(tmp_path, 0)
    assert read_log(tmp_path).cameras == ("camera 5",)
    assert read_log(tmp_path, cameras=["camera 5"]).notes == ()  # of this one nothing is gone
    with pytest.raises(DataError, match="deleted to keep the log within its limit: 2026-06-01"):
        read_log(tmp_path, cameras=["camera 1"])


def test_a_clock_of_the_next_century_neither_deletes_today_nor_stops_merging(tmp_path):
    now = NOON + timedelta(days=2)
    days_of(tmp_path, 1, parts=6, now=lambda: now)
    wrong = [looked(0, "wrong", at=datetime(2099, 1, 1, tzinfo=timezone.utc))]
    limit = sum(log_bytes(tmp_path).values())
    written(tmp_path, wrong, max_bytes=limit, now=lambda: now)
    days = log_bytes(tmp_path)
    assert set(days) == {"2026-06-01", "2099-01-01"} and sum(days.values()) <= limit
    sink = days_of(tmp_path, 3, now=lambda: now)
    assert (
        sink.tally["merged"] > 0
        and telemetry.compact_log(tmp_path, now=now) == 0
        and len(list(tmp_path.glob("frames/date=2026-06-03/*/*"))) == 2
    )
    for path in tmp_path.glob("*/date=2099*/*/*"):
        os.utime(
            path, ((NOON - timedelta(days=9)).timestamp(),) * 2
        )  # it was written long ago: it goes first
    telemetry.keep_within(tmp_path, sum(log_bytes(tmp_path).values()) - 1, now)
    assert "2099-01-01" not in log_bytes(tmp_path)


def test_runs_that_share_a_folder_share_its_limit(tmp_path):
    sinks, top = [TelemetrySink(tmp_path, LogSettings(part_rows=10, max_bytes=100_000)) for _ in range(3)], 0
    for k in range(150):
        for c, sink in enumerate(sinks):
            sink.write(looked(k, f"camera {c}", at=NOON + timedelta(seconds=k)))
        if k % 10 == 9:
            for sink in sinks:
                sink._writer.settle(0)
            top = max(top, sum(log_bytes(tmp_path).values()))
    for sink in sinks:
        sink.close()
    assert sum(s.tally["files"] for s in sinks) == 90 and 80_000 < top <= 102_000
    assert len(read_log(tmp_path)) < 450


def test_boxes_without_frames_are_deleted_too(tmp_path):
    days_of(tmp_path, 2)
    for path in tmp_path.glob("frames/date=2026-06-01/*/*"):
        path.unlink()
    gone = telemetry.keep_within(tmp_path, 1)
    assert (
        "2026-06-01" in gone and set(log_bytes(tmp_path)) == {"2026-06-02"} and len(read_log(tmp_path)) == 10
    )


def test_merging_does_not_make_clocks_run_backwards(tmp_path):
    for run in range(5):
        written(
            tmp_path, [looked(k, at=NOON + timedelta(hours=run, seconds=k)) for k in range(20)], part_rows=10
        )
    first, second = (
        TelemetrySink(tmp_path, LogSettings(part_rows=10)),
        TelemetrySink(tmp_path, LogSettings(part_rows=10)),
    )
    for k in range(40):  # two that run at the same time
        first.write(looked(2 * k, at=NOON + timedelta(hours=6, seconds=2 * k)))
        second.write(looked(2 * k + 1, at=NOON + timedelta(hours=6, seconds=2 * k + 1)))
    first.close()
    second.close()
    before = read_log(tmp_path)
    assert (
        telemetry.compact_log(tmp_path, "2026-06-02") == 18 and len(list(tmp_path.glob("frames/*/*/*"))) == 2
    )
    after = read_log(tmp_path)
    assert (
        before.notes == after.notes == ()
        and (before.frames["captured_at"] == after.frames["captured_at"]).all()
        and (before.detections["frame"] == after.detections["frame"]).all()
    )


def test_a_clock_that_did_run_backwards_is_said_after_merging_as_before(tmp_path):
    written(
        tmp_path,
        [looked(k, at=NOON + timedelta(seconds=s)) for k, s in enumerate([0, 1, 2, -3600, -3599, 5])],
        part_rows=2,
    )
    before = read_log(tmp_path).notes
    assert (
        telemetry.compact_log(tmp_path, "2026-06-02") == 3
        and read_log(tmp_path).notes == before
        and "3602.0 s" in before[0]
    )


def test_large_days_become_several_files(tmp_path):
    days_of(tmp_path, 1, parts=12)
    size = sum(log_bytes(tmp_path).values()) // 12 + 500
    assert telemetry.compact_log(tmp_path, "2026-06-02", largest=4 * size) == 12 and len(
        list(tmp_path.glob("frames/*/*/*"))
    ) in (3, 4)
    assert read_log(tmp_path).frames["frame_id"].tolist() == list(range(120))


def test_drafts_of_killed_runs_are_said_where_they_matter_and_go_in_the_end(tmp_path):
    days_of(tmp_path, 3)
    draft = next(tmp_path.glob("frames/date=2026-06-01/*")) / ".part-x-000000.parquet.77-1a2b3c4d.part"
    draft.write_bytes(b"PAR1")
    assert (
        read_log(tmp_path, "2026-06-02").notes == ()
        and read_log(tmp_path, until="2026-06-02").counts["broken"] == 1
    )
    telemetry.compact_log(tmp_path)
    assert draft.exists()  # somebody may be writing it
    os.utime(draft, (0, 0))
    telemetry.compact_log(tmp_path)
    assert not draft.exists() and read_log(tmp_path).notes == ()


def other(name, values, kind="frames"):
    def change(table):
        return table.set_column(table.schema.get_field_index(name), name, values(len(table)))

    return kind, change


@pytest.mark.parametrize(
    "kind, change, said",
    [
        (
            *other(
                "embedding",
                lambda n: pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(n * 32, np.float16)), 32),
            ),
            r"embedding is fixed_size_list<.*\[32\]",
        ),
        (*other("embedding", lambda n: pa.array([[1.0] * 3] * n)), "embedding is list<"),
        (
            *other("captured_at", lambda n: pa.array(["2026-06-01T12:00"] * n)),
            "captured_at is string, not timestamp",
        ),
        (
            *other("captured_at", lambda n: pa.array([None] * n, pa.timestamp("us", tz="UTC"))),
            "captured_at is empty in 8 rows",
        ),
        (*other("frame_id", lambda n: pa.array(["x"] * n)), "frame_id is string, not int64"),
        (*other("frame_id", lambda n: pa.array([None] * n, pa.int64())), "frame_id is empty in 8 rows"),
        (*other("brightness", lambda n: pa.array(["x"] * n)), "brightness is string, not float"),
        (*other("selected", lambda n: pa.array([1] * n)), "selected is int64, not bool"),
        (*other("camera", lambda n: pa.array([None] * n, pa.string())), "camera is empty in 8 rows"),
        (
            *other("confidence", lambda n: pa.array(["x"] * n), "detections"),
            "confidence is string, not float",
        ),
        (*other("frame_id", lambda n: pa.array([1.5] * n), "detections"), "frame_id is double, not int64"),
        ("frames", lambda t: t.append_column("camera", t["camera"]), "camera is string, string"),
    ],
)
def test_columns_of_another_type_are_refused_with_file_and_column(tmp_path, kind, change, said):
    written(tmp_path, [looked(k) for k in range(8)])
    path = next(tmp_path.glob(f"{kind}/*/*/*.parquet"))
    pq.write_table(change(pq.ParquetFile(path).read()), path)
    with pytest.raises(DataError, match=f"not the columns of a prediction log: {said}") as e:
        read_log(tmp_path)
    assert path.name in str(e.value)


def test_wider_types_and_empty_parts_are_fine(tmp_path):
    written(tmp_path, [looked(k) for k in range(20)], part_rows=10)
    wide = lambda t: (
        t.set_column(1, "frame_id", t["frame_id"].cast(pa.int32()))
        .set_column(0, "camera", t["camera"].dictionary_encode())
        .set_column(11, "brightness", t["brightness"].cast(pa.float64()))
    )
    log = read_log(rewritten(tmp_path, wide))
    assert log.frames["frame_id"].tolist() == list(range(20)) and log.cameras == ("gate",)
    rewritten(tmp_path, lambda t: t.slice(0, 0))
    assert len(read_log(tmp_path)) == 10
    for path in tmp_path.glob("frames/*/*/*.parquet"):
        pq.write_table(pq.ParquetFile(path).read().slice(0, 0), path)
    with pytest.raises(DataError, match="no frames in this period"):
        read_log(tmp_path)


@pytest.mark.parametrize("cameras", [[1, 2], "north", [None], ["north", ""], [["north"]]])
def test_cameras_that_are_no_list_of_names_are_refused(tmp_path, cameras):
    (tmp_path / "frames").mkdir()
    with pytest.raises(ConfigError, match="cameras must be a list of names"):
        read_log(tmp_path, cameras=cameras)


# --- days of running


def test_rows_before_a_silence_are_on_disk_in_time_and_the_timer_ends_with_the_sink(tmp_path):
    sink = TelemetrySink(tmp_path, LogSettings(part_seconds=0.1))
    sink.write(looked(0))
    sink.write(looked(0, "exit"))
    until(lambda: len(list(tmp_path.glob("frames/*/*/part-*.parquet"))) == 2)  # nobody writes a row
    until(lambda: len(read_log(tmp_path)) == 2)
    sink.close()
    assert sink not in BACKGROUND._members


def test_an_error_of_the_timer_is_raised_by_the_next_frame_and_no_row_is_lost(tmp_path, monkeypatch):
    disk = FullDisk(monkeypatch, 0)
    sink = TelemetrySink(tmp_path, LogSettings(part_seconds=0.05))
    sink.write(looked(0))
    until(lambda: sink._problem is not None)
    with pytest.raises(SinkError, match="the disk is full"):
        sink.write(looked(1))
    disk.left = 10**6
    sink.close()
    assert len(read_log(tmp_path)) == 2


@pytest.mark.slow
def test_parts_of_a_day_do_not_pile_up_and_nothing_is_lost_by_merging_them(tmp_path):
    sink, most = TelemetrySink(tmp_path, LogSettings(part_rows=1)), 0
    for k in range(200):
        sink.write(looked(k, at=NOON + timedelta(seconds=k)))
        if k % 20 == 0:
            sink.flush()
            sink._writer._merging.submit(int).result()  # what was handed to it is done
            most = max(most, len(list(tmp_path.glob("frames/*/*/*.parquet"))))
    sink.close()
    log = read_log(tmp_path)
    assert most < 2 * FAN and sink.tally["merged"] >= 2 * FAN and sink.tally["untidied"] == 0
    assert log.frames["frame_id"].tolist() == list(range(200)) and len(log.detections["frame"]) == 400
    assert log.notes == ()


@pytest.mark.slow
def test_a_reader_that_reads_while_parts_are_merged_sees_all_of_them(tmp_path):
    sink, wrong, done = TelemetrySink(tmp_path, LogSettings(part_rows=1)), [], threading.Event()
    for k in range(10):
        sink.write(looked(k, at=NOON + timedelta(seconds=k)))
    sink.flush()

    def read():
        while not done.is_set():
            log = read_log(tmp_path)
            numbers = log.frames["frame_id"].tolist()
            if numbers != list(range(len(numbers))) or len(log.detections["frame"]) != 2 * len(numbers):
                wrong.append((len(numbers), log.notes))

    reader = threading.Thread(target=read)
    reader.start()
    for k in range(10, 150):
        sink.write(looked(k, at=NOON + timedelta(seconds=k)))
    sink.close()
    done.set()
    reader.join()
    assert wrong == [] and len(read_log(tmp_path)) == 150


def test_closing_does_not_wait_for_days_to_be_merged(tmp_path, monkeypatch):
    days_of(tmp_path, 4)
    sink = TelemetrySink(tmp_path, LogSettings(part_rows=10))
    asked, merge = [], telemetry._merge

    def slow(paths):
        asked.append(len(paths))
        sink._writer._until = 0.0  # closing has begun, its patience is over
        return merge(paths)

    monkeypatch.setattr(telemetry, "_merge", slow)
    for k in range(10):
        sink.write(looked(k, at=NOON + timedelta(days=5, seconds=k)))
    sink.close()
    assert len(asked) == 1 and len(read_log(tmp_path)) == 90  # the other days have time until the next run


def test_merging_holds_one_pair_of_parts_in_memory(tmp_path, monkeypatch):
    written(tmp_path, [looked(k) for k in range(30)], part_rows=1)
    largest, real = [0], pq.ParquetWriter.write_table

    def write_table(writer, table, *args, **options):
        largest[0] = max(largest[0], len(table))
        return real(writer, table, *args, **options)

    monkeypatch.setattr(telemetry, "_GROUP_ROWS", 5)
    monkeypatch.setattr(pq.ParquetWriter, "write_table", write_table)
    assert telemetry.compact_log(tmp_path, "2026-06-02") == 30
    assert 0 < largest[0] <= 7 and len(read_log(tmp_path)) == 30


def test_parts_that_have_still_to_be_sent_are_neither_merged_nor_deleted(tmp_path):
    days_of(tmp_path, 3)
    owed = sorted(tmp_path.glob("*/date=2026-06-01/*/*.parquet"))
    owe(tmp_path, owed)
    assert telemetry.compact_log(tmp_path, "2026-06-02") == 0
    gone = telemetry.keep_within(tmp_path, 1)
    assert all(path.exists() for path in owed) and list(gone) == ["2026-06-02", "2026-06-03 in part"]
    settle(tmp_path, owed)
    assert list(telemetry.keep_within(tmp_path, 1)) == ["2026-06-01"]
    assert not any(path.exists() for path in owed)


def test_boxes_that_are_owed_keep_their_frames_from_being_merged(tmp_path):
    for run in range(3):
        written(tmp_path, [looked(k, at=NOON + timedelta(minutes=run, seconds=k)) for k in range(5)])
    boxes = sorted(tmp_path.glob("detections/*/*/*.parquet"))
    owe(tmp_path, boxes[:1])
    assert telemetry.compact_log(tmp_path, "2026-06-02") == 2
    assert boxes[0].exists()
    assert len(list(tmp_path.glob("frames/*/*/*.parquet"))) == 2


def test_each_part_is_handed_over_before_anything_tidies_it(tmp_path):
    seen = []

    def sends(path):
        assert path.exists()
        owe(tmp_path, [path])
        seen.append(path)

    sink = written(
        tmp_path, [looked(k, at=NOON + timedelta(seconds=k)) for k in range(200)], part_rows=5, written=sends
    )
    assert sorted(seen) == sorted(tmp_path.glob("*/*/*/part-*.parquet")) and len(seen) >= 40
    assert sink.tally["merged"] == 0 and sink.tally["untidied"] == 0


def test_a_log_is_written_although_handing_over_fails(tmp_path):
    def full(path):
        raise SinkError("the outbox cannot be written", path, "free some space")

    sink = written(tmp_path, [looked(k, at=NOON + timedelta(seconds=k)) for k in range(5)], written=full)
    assert sink.tally["untidied"] == 1 and "outbox" in sink._writer.problem
    assert len(read_log(tmp_path)) == 5
