"""The prediction log: whole files after a crash, nothing lost, nothing twice, and a reader that refuses what cannot be compared."""
import errno
import json
import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.conditions import Conditions
from cv_pipeline.config import load_config
from cv_pipeline.monitoring import telemetry
from cv_pipeline.monitoring.telemetry import CELLS, Descriptor, TelemetrySink, camera_folder, frame_statistics, instant, log_bytes, read_log
from cv_pipeline.synthetic import FactoryLine, LineConfig
from cv_pipeline.types import ConfigError, DataError, Detections, Frame, FrameResult, SinkError
from cv_pipeline.video.run import run_config

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
IMAGE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)


def looked(number=0, camera="gate", boxes=2, at=None, asked=True, status="ok", model="m 1", unsure=0):
    "A result of the pipeline."
    xyxy = np.tile(np.float32([2, 3, 20, 30]), (boxes, 1)) + np.arange(boxes)[:, None]
    decision = np.zeros(boxes, np.int8)
    decision[:unsure] = 1
    found = Detections(xyxy, np.linspace(0.3, 0.9, boxes) if boxes else [], np.arange(boxes) % 3, np.arange(boxes), {"decision": decision}) if boxes else Detections.empty()
    frame = Frame(IMAGE, camera, number, at or NOON + timedelta(milliseconds=40 * number))
    return FrameResult(frame, found if asked else Detections.empty(), ("bolt", "nut", "gear"), {"inference": 5.0, "preprocess": 1.0, "ingest": 99.0}, asked, status, model)


def written(folder, results, **options):
    sink = TelemetrySink(folder, **options)
    for r in results:
        sink.write(r)
    sink.close()
    return sink


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(["gate", "rtsp://10.0.0.7:554/a b", "Tor 3"]), st.integers(0, 4), st.booleans(), st.integers(0, 200_000)), min_size=1, max_size=40), st.integers(1, 9))
def test_what_is_written_is_read_back(tmp_path_factory, rows, part_rows):
    folder = tmp_path_factory.mktemp("log")
    results = [looked(k, camera, boxes, NOON + timedelta(seconds=k * 1000 + s % 1000), asked) for k, (camera, boxes, asked, s) in enumerate(rows)]
    written(folder, results, part_rows=part_rows, unasked_fps=None)
    log = read_log(folder)
    assert len(log) == len(results)
    assert log.cameras == tuple(sorted({r.frame.source_id for r in results}))
    for r in results:
        mine = log.select((log.frames["camera"] == log.cameras.index(r.frame.source_id)) & (log.frames["frame_id"] == r.frame.frame_id))
        f, d = mine.frames, mine.detections
        assert f["detections"][0] == (len(r.detections) if r.inferred else -1) and len(d["frame"]) == len(r.detections)
        assert datetime.fromtimestamp(f["captured_at"][0] / 1e6, timezone.utc) == r.frame.captured_at
        assert np.allclose(d["xyxy"], r.detections.xyxy) and np.allclose(d["confidence"], r.detections.confidence)
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
    values = [np.mean([frame_statistics(f.image)[column] for f, _ in FactoryLine(LineConfig(density=6), Conditions(**{name: s})).frames(3)]) for s in (0, 2, 4)]
    assert np.all(np.diff(values) > 0) or np.all(np.diff(values) < 0)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3000), (9, 9), (47, 63)])
@pytest.mark.parametrize("fill", [0, 128, 255])
def test_a_picture_without_content_gives_finite_numbers(shape, fill):
    statistics = frame_statistics(np.full((*shape, 3), fill, np.uint8))
    assert np.isfinite(statistics).all() and statistics.blur == 1.0 and statistics.noise == 0.0


def test_a_killed_run_leaves_whole_files_and_what_was_flushed(tmp_path):
    code = ("import sys, os\nsys.path.insert(0, os.getcwd())\nfrom tests.test_telemetry import *\nsink = TelemetrySink(sys.argv[1], part_rows=10)\n"
            "for k in range(10**9):\n    sink.write(looked(k))\n    if k == 200: sink._writer.settle(0); print('go', flush=True)\n")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
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
    (parts[2].parent / ".part-x-000001.parquet.tmp").write_bytes(b"PAR1")
    log = read_log(tmp_path)
    assert len(log) == 10 and log.counts["broken"] == 3 and "3 half-written files were skipped" in log.notes
    parts[2].write_bytes(b"PAR1")
    with pytest.raises(DataError, match="3 broken files were skipped"):
        read_log(tmp_path)


def test_lost_boxes_are_said(tmp_path):
    written(tmp_path, [looked(k) for k in range(20)], part_rows=10)
    next(tmp_path.glob("detections/*/*/part-*.parquet")).unlink()
    log = read_log(tmp_path)
    assert len(log.detections["frame"]) == 20 and any("20 boxes that the frames count are not there" in n for n in log.notes)


class FullDisk:
    "Lets some files through, then has no room, until it is told that there is."

    def __init__(self, monkeypatch, after):
        self.left, real = after, os.fsync

        def fsync(number):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(number)

        monkeypatch.setattr(telemetry.os, "fsync", fsync)


def test_a_full_disk_is_an_error_and_nothing_is_lost_when_there_is_room_again(tmp_path, monkeypatch):
    disk = FullDisk(monkeypatch, 2)
    sink = TelemetrySink(tmp_path, part_rows=10)
    with pytest.raises(SinkError, match="the disk is full"):
        for k in range(200):
            sink.write(looked(k))
            sink._writer.settle(0)
    reached = k + 1
    assert not list(tmp_path.rglob("*.tmp"))
    disk.left = 10**6
    sink.close()
    log = read_log(tmp_path)
    assert log.frames["frame_id"].tolist() == list(range(reached)) and len(log.detections["frame"]) == 2 * reached


def test_a_disk_that_stays_full_is_an_error_when_closing(tmp_path, monkeypatch):
    FullDisk(monkeypatch, 0)
    sink = TelemetrySink(tmp_path, part_rows=1000)
    sink.write(looked(0))
    with pytest.raises(SinkError, match="the disk is full"):
        sink.close()


def test_a_full_disk_ends_the_run_as_with_other_sinks(tmp_path, monkeypatch):
    FullDisk(monkeypatch, 0)
    config = load_config(None, {"sources": ["line:frames=30"], "delivery.out": str(tmp_path), "delivery.parquet": False, "delivery.jsonl": False, "telemetry": True, "model.threads": 1})
    with pytest.raises(SinkError, match="the disk is full"):
        run_config(config)
    assert "the disk is full" in json.loads((tmp_path / "summary.json").read_text())["error"]


def test_parts_roll_by_time_also_for_a_camera_that_fell_silent(tmp_path):
    clock = iter([0.0, 1.0, 60.5]).__next__
    sink = TelemetrySink(tmp_path, part_rows=1000, part_seconds=60, clock=clock)
    sink.write(looked(0, "silent"))
    sink.write(looked(0, "busy"))
    sink.write(looked(1, "busy"))
    sink._writer.settle(0)
    assert [p.parent.name for p in tmp_path.glob("frames/*/*/*.parquet")] == ["camera=silent"]
    sink.close()
    assert len(read_log(tmp_path)) == 3


def test_frames_that_nobody_was_asked_about_are_thinned_and_counted(tmp_path):
    sink = written(tmp_path, [looked(k, asked=False) for k in range(250)] + [looked(300), looked(301, asked=False, status="model_error")], unasked_fps=2.0)
    log = read_log(tmp_path)
    assert len(log) == 20 + 2 and sink.tally["left_out"] == 230
    assert sorted(log.statuses) == ["model_error", "ok"]


def test_embeddings_only_now_and_then(tmp_path):
    written(tmp_path, [looked(k) for k in range(10)], embed_every=4)
    assert np.isfinite(read_log(tmp_path).frames["embedding"][:, 0]).tolist() == [True, False, False, False] * 2 + [True, False]
    written(tmp_path / "none", [looked(0)], descriptor=None)
    assert read_log(tmp_path / "none").embedding == ""


def test_other_embeddings_are_refused_unless_one_is_asked_for(tmp_path):
    written(tmp_path, [looked(k) for k in range(5)])
    written(tmp_path, [looked(k) for k in range(5, 8)], descriptor=Descriptor("detector p5", lambda image: np.ones(64)))
    with pytest.raises(DataError, match="embeddings of 2 descriptors: cells-4x4x4 \\(5 frames\\), detector p5 \\(3 frames\\)|detector p5 \\(3 frames\\), cells-4x4x4 \\(5 frames\\)"):
        read_log(tmp_path)
    log = read_log(tmp_path, embedding="detector p5")
    assert len(log) == 8 and np.isfinite(log.frames["embedding"][:, 0]).sum() == 3


def rewritten(folder, change):
    path = next(folder.glob("frames/*/*/part-*.parquet"))
    pq.write_table(change(pq.ParquetFile(path).read()), path)
    return folder


def test_another_schema_is_refused_by_name(tmp_path):
    written(tmp_path, [looked(0)])
    later = lambda t: t.replace_schema_metadata({**t.schema.metadata, b"cv_pipeline.schema": b"2"})
    with pytest.raises(DataError, match="schema 2 of the prediction log; this package knows up to 1"):
        read_log(rewritten(tmp_path, later))


def test_missing_columns_are_named(tmp_path):
    written(tmp_path / "a", [looked(0)])
    with pytest.raises(DataError, match="columns frame_id, selected are missing"):
        read_log(rewritten(tmp_path / "a", lambda t: t.drop_columns(["frame_id", "selected"])))
    written(tmp_path / "b", [looked(0)])
    log = read_log(rewritten(tmp_path / "b", lambda t: t.drop_columns(["noise", "embedding"])))
    assert np.isnan(log.frames["noise"]).all() and "frames.embedding, frames.noise" in log.notes[0]


def test_a_clock_that_runs_backwards_is_said_and_sorted(tmp_path):
    times = [0, 1, 2, -3600, -3599, 5]
    written(tmp_path, [looked(k, at=NOON + timedelta(seconds=s)) for k, s in enumerate(times)], part_rows=2)
    log = read_log(tmp_path)
    assert (np.diff(log.frames["captured_at"]) > 0).all()
    assert log.notes == ("gate: the clock ran backwards 1 times, by up to 3602.0 s; rows are in the order of the clock",)


def test_time_zones(tmp_path):
    east = timezone(timedelta(hours=9))
    written(tmp_path, [looked(0, at=NOON), looked(1, at=(NOON + timedelta(seconds=1)).astimezone(east))])
    assert np.diff(read_log(tmp_path).frames["captured_at"]).tolist() == [1_000_000]
    naive = lambda t: t.set_column(2, "captured_at", t["captured_at"].cast(pa.timestamp("us")))
    log = read_log(rewritten(tmp_path, naive))
    assert log.notes == ("times without a zone were taken as UTC",) and log.frames["captured_at"][0] == instant(NOON)
    assert instant("2026-06-01T14:00+02:00") == instant("2026-06-01T12:00:00Z") == instant(NOON)
    for bad, what in (("2026-06-01T12:00", "has no time zone"), (datetime(2026, 6, 1), "has no time zone"), ("yesterday", "is not a time")):
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
    with pytest.raises(DataError, match="no frames of this period and these cameras"):
        read_log(tmp_path, cameras=["attic"])
    with pytest.raises(DataError, match="the log has no camera 'attic'"):
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
        sink = written(tmp_path, [looked(k, at=NOON + timedelta(days=day, seconds=k)) for k in range(100)], max_bytes=60_000, part_rows=20)
    assert sum(log_bytes(tmp_path).values()) <= 60_000 and "2026-06-06" in log_bytes(tmp_path) and "2026-06-01" not in log_bytes(tmp_path)
    assert sink.tally["deleted_bytes"] > 0
    assert "deleted to keep the log within its limit: 2026-06-01" in read_log(tmp_path).notes[0]
    sink = written(tmp_path / "tiny", [looked(k) for k in range(60)], max_bytes=1, part_rows=20)
    log = read_log(tmp_path / "tiny")
    assert log.frames["frame_id"].tolist() == list(range(40, 60)) and "2026-06-01 in part" in log.notes[0]


def test_no_log_and_wrong_settings():
    with pytest.raises(DataError, match="no prediction log here"):
        read_log("/nonexistent")
    with pytest.raises(ConfigError, match="embed_every 0"):
        TelemetrySink("/tmp/never", embed_every=0)


def test_duckdb_reads_the_folders(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    written(tmp_path, [looked(k, unsure=1) for k in range(10)])
    query = f"select camera, count(*), sum(detections), sum(uncertain), len(first(embedding)) from read_parquet('{tmp_path}/frames/*/*/*.parquet', hive_partitioning = false) group by camera"
    assert duckdb.sql(query).fetchall() == [("gate", 10, 20, 10, 64)]


def test_a_configured_run_writes_log_and_collection(tmp_path):
    (tmp_path / "cameras.yaml").write_text(f"sources: [{{uri: 'line:frames=40,density=6', id: gate}}, {{uri: 'line:frames=40,camera=1', id: exit}}]\nmodel: {{threads: 1}}\ndelivery: {{out: {tmp_path / 'run'}}}\n"
                                           "telemetry: {embed_every: 2}\ncollect: {random: 0.5, none: null, many: null, high: null, flicker: false, low: null}\n")
    summary = run_config(load_config(tmp_path / "cameras.yaml"))
    log = read_log(tmp_path / "run" / "log")
    assert len(log) == 80 and log.cameras == ("exit", "gate") and log.frames["selected"].all()
    assert summary["sinks"]["MonitoringSink"]["frames"] == 80 and summary["sinks"]["LiveCollection"]["looks"] == 80
    assert 10 < summary["sinks"]["LiveCollection"]["pictures"] < 70
    assert len(log.detections["frame"]) == summary["detections"]
    assert load_config(None, {"sources": ["a"]}).telemetry is None


def test_days_that_are_over_become_one_file_and_nothing_else_changes(tmp_path):
    for run in range(2):  # frame numbers begin anew with every run
        written(tmp_path, [looked(k, at=NOON + timedelta(hours=7 * run, seconds=k), boxes=k % 3) for k in range(60)], part_rows=7)
    written(tmp_path, [looked(k, boxes=1) for k in range(100, 105)], descriptor=None)
    next(tmp_path.glob("detections/*/*/part-*.parquet")).unlink()
    before = read_log(tmp_path)
    assert telemetry.compact_log(tmp_path) == 0  # the newest day is not over
    broken = next(tmp_path.glob("frames/*/*")) / "part-broken-000000.parquet"
    broken.write_bytes(b"PAR1")
    assert telemetry.compact_log(tmp_path, "2026-06-02") == 18
    assert len(list(tmp_path.glob("frames/*/*/part-*.parquet"))) == 3 and broken.exists()
    after = read_log(tmp_path)
    for name in ("captured_at", "frame_id", "detections"): assert (after.frames[name] == before.frames[name]).all()
    for name in ("frame", "xyxy", "confidence"): assert (after.detections[name] == before.detections[name]).all()


def test_a_crash_between_merging_and_deleting_leaves_nothing_twice(tmp_path, monkeypatch):
    written(tmp_path, [looked(k) for k in range(30)], part_rows=10)
    with monkeypatch.context() as m:
        m.setattr(Path, "unlink", lambda self, missing_ok=False: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt): telemetry.compact_log(tmp_path, "2026-06-02")
    log = read_log(tmp_path)
    assert len(log) == 30 and len(log.detections["frame"]) == 60 and log.counts["twice"] == 30
    telemetry.compact_log(tmp_path, "2026-06-02")
    assert len(read_log(tmp_path)) == 30 and len(read_log(tmp_path).detections["frame"]) == 60


def test_a_new_day_merges_the_day_before(tmp_path):
    sink = written(tmp_path, [looked(k, at=NOON + timedelta(hours=k)) for k in range(40)], part_rows=4)
    assert [len(list(p.glob("*/*"))) for p in sorted(tmp_path.glob("frames/*"))][0] == 1 and sink.tally["merged"] > 1
    assert len(read_log(tmp_path)) == 40
