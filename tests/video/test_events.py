"""The event sink: rows and callbacks, broken callbacks, killed runs, full disks, frames that nobody looked
at, pictures."""

import errno
import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow.parquet as pq
import pytest

import cv_pipeline.video.sinks as sinks
from cv_pipeline.core.results import merge_results, read_results
from cv_pipeline.core.types import ConfigError, Detections, Frame, FrameResult, Sink, SinkError
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.line import LineSource
from cv_pipeline.tracking.sort import SortTracker
from cv_pipeline.tracking.zones import Event, LineRule, Rules, ZoneConfig
from cv_pipeline.video.adaptive import AdaptiveSelector
from cv_pipeline.video.events import EventSink, draw_rules, events_schema, read_events
from cv_pipeline.video.pipeline import Pipeline
from tests.helpers.services import require

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
BLANK = np.zeros((48, 64, 3), np.uint8)
RULES = Rules(
    [ZoneConfig("yard", [[20, 0], [50, 0], [50, 48], [20, 48]], dwell_s=1, anchor="center")],
    [LineRule("gate", (32, 48), (32, 0), anchor="center")],
    looks=1,
)


def result(t, x=None, source="cam", status="ok", inferred=True, ids=(1,), y=20.0):
    frame = Frame(BLANK, source, int(round(t * 1000)), NOON + timedelta(seconds=float(t)))
    found = (
        Detections.empty()
        if x is None
        else Detections([[x - 4, y - 4, x + 4, y + 4]] * len(ids), None, [1] * len(ids), list(ids))
    )
    return FrameResult(frame, found, ("car", "person"), inferred=inferred, status=status)


def cross(sink, source="cam", begin=0.0):
    for i in range(30):
        sink.write(result(begin + i / 10, 5 + 2 * i, source))


def test_rows_are_the_events_that_callbacks_heard(tmp_path):
    heard = []
    sink = EventSink(tmp_path, RULES, [heard.append])
    assert isinstance(sink, Sink)
    cross(sink, "a")
    cross(sink, "b", 100)
    sink.close()
    table = read_events(tmp_path)
    assert (
        table.schema == events_schema()
        and pq.read_table(tmp_path / "events.parquet").num_rows == sink.events == len(heard) == 8
    )
    assert set(table["site"].to_pylist()) == {""}
    rows = table.drop_columns(["site"]).to_pylist()
    assert [Event(**row) for row in rows] == [
        Event(
            **{
                **{f: getattr(e, f) for f in Event.__slots__},
                "x": float(np.float32(e.x)),
                "y": float(np.float32(e.y)),
            }
        )
        for e in heard
    ]
    assert [(e.source_id, e.rule, e.kind, e.class_name) for e in heard[:4]] == [
        ("a", "yard", "zone_enter", "person"),
        ("a", "gate", "line_cross", "person"),
        ("a", "yard", "dwell", "person"),
        ("a", "yard", "zone_leave", "person"),
    ]
    assert sink.counts["b"]["yard"]["person"] == {"in": 1, "out": 1, "now": 0, "total": 1} and sorted(
        p.name for p in tmp_path.iterdir()
    ) == ["events.parquet"]


def test_events_of_an_earlier_version_are_read_with_the_ids_of_this_one(tmp_path):
    heard = []
    sink = EventSink(tmp_path, RULES, [heard.append])
    cross(sink)
    sink.close()
    table = pq.read_table(tmp_path / "events.parquet")
    pq.write_table(table.drop_columns(["event_id"]), tmp_path / "events.parquet")
    again = read_events(tmp_path)
    assert again["event_id"].to_pylist() == [e.event_id for e in heard] and len(heard) == 4
    assert again.schema == events_schema()


def test_two_runs_over_the_same_frames_have_different_ids(tmp_path):
    ids = []
    for name in "ab":
        sink = EventSink(tmp_path / name, RULES, [lambda e: ids.append(e.event_id)])
        cross(sink)
        sink.close()
    assert len(ids) == len(set(ids)) == 8


def test_a_broken_callback_harms_nobody(tmp_path):
    heard, calls = [], []

    def broken(event):
        calls.append(event)
        raise RuntimeError(f"no {len(calls)}")

    sink = EventSink(tmp_path, RULES, [broken, heard.append])
    cross(sink)
    sink.close()
    ((name, (times, last)),) = sink.callback_errors.items()
    assert name.endswith("broken") and times == len(calls) == len(heard) == 4 and last == "RuntimeError: no 4"


def test_frames_that_nobody_looked_at_are_no_evidence(tmp_path):
    sink = EventSink(tmp_path, RULES)
    for i in range(5):
        sink.write(result(i / 10, 40))
    for i in range(5, 300):
        sink.write(result(i / 10, status="model_error") if i % 2 else result(i / 10, inferred=False))
    for i in range(300, 305):
        sink.write(result(i / 10, 40))
    sink.close()
    assert [(e["kind"], e["direction"]) for e in read_events(tmp_path).to_pylist()] == [
        ("zone_enter", "in"),
        ("dwell", "in"),
    ]
    for i in range(305, 340):
        sink.watches["cam"].update(Detections.empty(), result(i / 10).frame, ("car", "person"))
    assert sink.counts["cam"]["yard"]["person"]["now"] == 0


def test_crossings_that_are_nearly_sure_come_with_close_and_nothing_leaves_a_schema(tmp_path):
    sink = EventSink(tmp_path / "a", Rules(lines=RULES.lines, looks=3))
    for t, x in ((0, 20), (1, 25), (2, 40), (3, 42)):
        sink.write(result(t, x))
    assert sink.events == 0
    sink.close()
    assert read_events(tmp_path / "a")["kind"].to_pylist() == ["line_cross"]
    EventSink(tmp_path / "b", RULES).close()
    assert read_events(tmp_path / "b").schema == events_schema() and len(read_events(tmp_path / "b")) == 0


def test_events_are_on_disk_after_seconds_even_when_nothing_more_happens(tmp_path):
    now = [0.0]
    sink = EventSink(tmp_path, RULES, part_seconds=5.0, clock=lambda: now[0])
    sink.write(result(0, 40))
    with pytest.raises(SinkError):
        read_events(tmp_path)
    now[0] = 5.1
    sink.write(result(1, inferred=False))
    assert read_events(tmp_path)["kind"].to_pylist() == ["zone_enter"]
    sink.close()


def test_beside_results_in_one_folder(tmp_path):
    both = sinks.ParquetSink(tmp_path), EventSink(tmp_path, RULES)
    for i in range(30):
        for sink in both:
            sink.write(result(i / 10, 5 + 2 * i))
    for sink in both:
        sink.close()
    assert len(read_results(tmp_path)) == 30 and len(read_events(tmp_path)) == 4


def test_a_full_disk_is_an_error_but_callbacks_hear_and_nothing_is_lost(tmp_path, monkeypatch):
    full, real, now, heard = [True], os.fsync, [0.0], []

    def fsync(fd):
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    sink, errors = EventSink(tmp_path, RULES, [heard.append], part_seconds=0.5, clock=lambda: now[0]), 0
    for i in range(30):
        now[0] = i / 10
        try:
            sink.write(result(i / 10, 5 + 2 * i))
        except SinkError:
            errors += 1
    assert errors >= 1 and len(heard) == 4
    full[0] = False
    sink.close()
    assert len(read_events(tmp_path)) == 4


WRITER = """
import sys
from tests.video.test_events import *
now = [0.0]
sink = EventSink({folder!r}, RULES, part_seconds=1.0, clock=lambda: now[0])
k = 0
while True:
    now[0] += 0.5
    for x in (40, 5):
        sink.write(result(k, x, ids=(k // 2,)))
        k += 1
    print(sink.events, flush=True)
"""


@pytest.mark.slow
def test_kill_minus_nine_keeps_what_was_written(tmp_path):
    code = WRITER.format(folder=str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))},
    )
    try:
        made = 0
        while made < 200:
            made = int(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    table = read_events(tmp_path)
    assert len(table) >= 150 and table["kind"].to_pylist()[:3] == ["zone_enter", "zone_leave", "line_cross"]
    assert merge_results(tmp_path, name="events") == tmp_path / "events.parquet" and pq.read_table(
        tmp_path / "events.parquet"
    ).num_rows == len(table)
    again = EventSink(tmp_path, RULES)
    cross(again)
    again.close()
    assert len(read_events(tmp_path)) == 4


def test_an_unclosed_run_is_set_aside(tmp_path):
    killed = EventSink(tmp_path, RULES)
    cross(killed)
    killed._table.flush()
    EventSink(tmp_path, RULES).close()
    assert len(read_events(tmp_path)) == 0 and len(read_events(tmp_path / "events.interrupted-1")) == 4


def test_a_camera_that_does_not_fit_a_rule_loses_that_rule_and_nobody_else_anything(tmp_path):
    "Another size from the beginning, and another size after a reconnect; the run goes on."
    sink = EventSink(
        tmp_path,
        Rules(RULES.zones, [*RULES.lines, LineRule("wide", (0, 30), (60, 30), anchor="center")], looks=1),
    )
    small, half = np.zeros((24, 40, 3), np.uint8), np.zeros((24, 32, 3), np.uint8)
    for i in range(30):
        for source in ("a", "small", "shrinks"):
            one = result(i / 10, 5 + 2 * i, source, y=20 + i / 2)
            if source == "small":
                one.frame.image = small
            if source == "shrinks" and i >= 12:
                one.frame.image, one.detections = half, Detections(one.detections.xyxy / 2, None, [1], [1])
            sink.write(one)
    sink.close()
    events = {
        s: [(r["rule"], r["kind"]) for r in read_events(tmp_path).to_pylist() if r["source_id"] == s]
        for s in ("a", "small", "shrinks")
    }
    assert len(events["a"]) == 5 and events["shrinks"] == events["a"] and events["small"] == []
    assert list(sink.problems) == ["small"] and all(
        f"'{name}' extends to" in sink.problems["small"] for name in ("yard", "gate", "wide")
    )


@pytest.mark.slow
def test_a_pixel_rule_that_fits_one_of_two_cameras_does_not_end_the_run(tmp_path):
    line = FactoryLine(LineConfig(cameras=2, density=0.8, seed=9))  # 640 × 480
    rules = Rules(
        [
            ZoneConfig("far", [[0, 0], [900, 0], [900, 90]], sources=["line-1", "camera-1", "1"]),
            ZoneConfig("beyond", [[0, 0], [900, 0], [900, 90]]),
            ZoneConfig("all", [[0, 0], [1, 0], [1, 1], [0, 1]]),
        ]
    )
    sink = EventSink(tmp_path, rules)
    summary = Pipeline(
        [LineSource(line, c, 40) for c in (0, 1)],
        load_model("factory_line"),
        [sink],
        trackers=lambda s: SortTracker(frame_rate=25),
    ).run()
    assert (
        summary["frames_inferred"] == 80
        and len(sink.problems) == 2
        and all("beyond" in text for text in sink.problems.values())
        and sink.events > 0
    )


def test_bad_rules_are_refused(tmp_path):
    with pytest.raises(ConfigError):
        EventSink(tmp_path, Rules())
    with pytest.raises(ConfigError):
        EventSink(tmp_path, Rules(lines=[LineRule("l", (0, 0), (50, 0), ["cat"])])).write(result(0, 20))


@pytest.mark.slow
def test_in_the_pipeline_with_adaptive_selection_two_cameras_and_the_bundled_model(tmp_path):
    "Real parts from end to end; the run is the same every time, and its crossings are those of every frame."
    rules = Rules(
        [ZoneConfig("table", [[0.3, 0.1], [0.7, 0.1], [0.7, 0.9], [0.3, 0.9]], anchor="center")],
        [LineRule("out", (0.75, 1), (0.75, 0), anchor="center")],
    )
    line, found = FactoryLine(LineConfig(cameras=2, density=0.8, seed=9, overlap=0, speed=150.0)), {}
    for name, selector in (("every", None), ("adaptive", AdaptiveSelector), ("again", AdaptiveSelector)):
        sink = EventSink(tmp_path / name, rules)
        pipeline = Pipeline(
            [LineSource(line, c, 280) for c in (0, 1)],
            load_model("factory_line"),
            [sink],
            trackers=lambda s: SortTracker(
                track_activation_threshold=0.5, lost_track_buffer=50, frame_rate=25
            ),
            selectors=selector and (lambda s, make=selector: make()),
        )
        summary = pipeline.run()
        rows = [
            r
            for r in read_events(tmp_path / name).to_pylist()
            if r["at"] < line.config.start + timedelta(seconds=9)
        ]  # the last ones are not sure yet
        found[name] = (
            sorted((r["source_id"], r["rule"], r["kind"], r["direction"], r["class_name"]) for r in rows),
            summary["frames_inferred"],
            sorted(r["at"] for r in rows),
        )
    assert found["adaptive"] == found["again"]
    assert found["adaptive"][0] == found["every"][0] and len(found["every"][0]) >= 6
    assert found["adaptive"][1] * 6 <= found["every"][1] == 560
    assert max(abs((a - b).total_seconds()) for a, b in zip(found["adaptive"][2], found["every"][2])) < 0.2


def test_pictures_show_zones_lines_and_counts():
    require("supervision")
    image = np.full((240, 320, 3), 90, np.uint8)
    rules = Rules(
        [ZoneConfig("yard", [[0.2, 0.2], [0.6, 0.2], [0.6, 0.8], [0.2, 0.8]], sources=["a"])],
        [LineRule("gate", (250, 20), (250, 220))],
    )
    drawn = draw_rules(
        image, rules, {"yard": {"person": {"in": 3, "out": 1, "now": 2, "total": 3}}, "gate": {}}, "a"
    )
    assert drawn.shape == image.shape and (image == 90).all()
    changed = (drawn != 90).any(axis=2)
    assert (
        changed[60:180, 70:185].mean() > 0.9
        and changed[30:210, 249:252].mean() > 0.9
        and changed[:, :60].mean() < 0.05
    )
    other = (draw_rules(image, rules, None, "b") != 90).any(axis=2)
    assert other[60:180, 70:185].mean() < 0.3 and other[30:210, 249:252].mean() > 0.9
    assert not np.array_equal(
        drawn,
        draw_rules(
            image, rules, {"yard": {"person": {"in": 3, "out": 1, "now": 1, "total": 3}}, "gate": {}}, "a"
        ),
    )
