"""The rows of an unfinished table go on in the lines of the same run, and in no others."""

import json
import os
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from cv_pipeline.core import results
from cv_pipeline.core.results import merge_results, read_results, results_schema
from cv_pipeline.core.types import Detections, Frame, FrameResult
from cv_pipeline.video.sinks import JsonlSink, ParquetSink

START = datetime(2026, 11, 28, 10, tzinfo=timezone.utc)


def result(k, boxes=3):
    rng = np.random.default_rng(k)
    corners = rng.uniform(0, 400, (boxes, 4)).astype(np.float32)
    found = Detections(corners, rng.uniform(0, 1, boxes), rng.integers(0, 2, boxes), np.arange(boxes))
    frame = Frame(np.zeros((8, 8, 3), np.uint8), "gate", k, START + timedelta(seconds=k, microseconds=k))
    return FrameResult(frame, found, ("nut", "bolt"), {}, True, "ok", "m")


def killed(folder, written=30, on_disk=20, first=0):
    "A run with lines of all frames and parts of some, as after kill −9."
    table, lines = ParquetSink(folder, clock=lambda: 0.0), JsonlSink(folder / "results.jsonl")
    for k in range(first, first + written):
        table.write(result(k))
        lines.write(result(k))
        if k == first + on_disk - 1:
            table.flush()
    lines.close()


def frames(folder):
    return read_results(folder)["frame_id"].to_pylist()


def thrice(*numbers):
    return [k for k in range(*numbers) for _ in range(3)]


@pytest.mark.parametrize("on_disk", [0, 1, 20, 30])
def test_frames_that_only_the_lines_have_are_rows_too(tmp_path, on_disk):
    killed(tmp_path, on_disk=on_disk)
    assert frames(tmp_path) == thrice(30) and read_results(tmp_path).schema == results_schema()


def test_they_are_the_same_rows(tmp_path):
    killed(tmp_path / "lines", on_disk=0)
    killed(tmp_path / "parts", on_disk=30)
    lines, parts = (read_results(tmp_path / name).to_pydict() for name in ("lines", "parts"))
    for name in ("x1", "y1", "x2", "y2"):
        np.testing.assert_allclose(lines.pop(name), parts.pop(name), atol=0.006)
    np.testing.assert_allclose(lines.pop("confidence"), parts.pop("confidence"), atol=1e-5)
    assert lines == parts


def test_finishing_keeps_them(tmp_path):
    killed(tmp_path)
    before = read_results(tmp_path)
    merge_results(tmp_path)
    assert read_results(tmp_path).equals(before) and not (tmp_path / "results.parts").exists()
    killed(tmp_path / "none", on_disk=0)
    merge_results(tmp_path / "none")
    (tmp_path / "none" / "results.jsonl").unlink()
    assert frames(tmp_path / "none") == thrice(30)


def test_lines_of_another_run_add_nothing(tmp_path):
    killed(tmp_path)
    (tmp_path / "results.jsonl").unlink()
    killed(tmp_path / "other", first=100)
    os.replace(tmp_path / "other" / "results.jsonl", tmp_path / "results.jsonl")
    assert frames(tmp_path) == thrice(20)


def test_lines_of_the_run_before_are_not_those_of_one_that_has_just_begun(tmp_path):
    killed(tmp_path)
    os.utime(tmp_path / "results.jsonl", (1e9, 1e9))
    ParquetSink(tmp_path)  # sets the parts aside; no row, no line of its own
    assert len(results.rows_after(tmp_path, [])) == 0


def test_a_closed_run_reads_no_lines(tmp_path):
    killed(tmp_path)
    merge_results(tmp_path)
    with open(tmp_path / "results.jsonl", "ab") as file:
        file.write((tmp_path / "results.jsonl").read_bytes().splitlines(keepends=True)[-1])
    assert frames(tmp_path) == thrice(30)


@pytest.mark.parametrize(
    "line",
    [
        b'{"source_id":"gate","frame_id":99,"captur',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"null",
        b'{"source_id":"gate","frame_id":99,"captured_at":"2026-11-28T11:00:00+00:00","detections":[{}]}',
        b'{"source_id":"gate","frame_id":99,"captured_at":7,"detections":[]}',
        b'{"source_id":"gate","frame_id":99,"captured_at":"2026-11-28T11:00:00+00:00","detections":3}',
    ],
)
def test_lines_that_are_no_results_are_left_out(tmp_path, line):
    killed(tmp_path)
    text = (tmp_path / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_bytes(b"".join([*text[:25], line + b"\n", *text[25:], line]))
    assert frames(tmp_path) == thrice(30)


def test_values_that_fit_no_column_add_nothing_instead_of_ending_the_reader(tmp_path):
    killed(tmp_path)
    row = json.loads((tmp_path / "results.jsonl").read_bytes().splitlines()[-1])
    row["detections"][0]["class_id"] = "nut"
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    assert frames(tmp_path) == thrice(20)


def test_the_last_row_is_found_far_from_the_end(tmp_path, monkeypatch):
    killed(tmp_path)
    whole = frames(tmp_path)
    text = (tmp_path / "results.jsonl").read_bytes().splitlines(keepends=True)
    pad = b'{"pad":"' + b"x" * 300_000 + b'"}\n'
    (tmp_path / "results.jsonl").write_bytes(b"".join([*text[:22], *[pad] * 20, *text[22:]]))  # 6 MB
    assert frames(tmp_path) == whole
    monkeypatch.setattr(results, "_AT_MOST", 1000)
    assert frames(tmp_path) == thrice(20)  # bounded


def test_a_period_is_read_from_both(tmp_path):
    killed(tmp_path)
    some = read_results(tmp_path, START + timedelta(seconds=15), START + timedelta(seconds=25))
    assert some["frame_id"].to_pylist() == thrice(15, 25)
