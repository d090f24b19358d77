"""What a run hands over to a centre: counted at both ends, through outages, and never a reason to stop."""

import gc
import hashlib
import json
import os
import weakref
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest

from cv_pipeline.core.config import ForwardConfig, load_config
from cv_pipeline.core.types import ConfigError, Detections, Frame, FrameResult, SinkError
from cv_pipeline.edge import delivery
from cv_pipeline.edge.delivery import DeliverySink, open_forward
from cv_pipeline.edge.forward import Inbox, InboxServer, answer_device, drain
from cv_pipeline.edge.outbox import Outbox, OutboxSettings, files_owed, outbox_status
from cv_pipeline.service.assembly import run_config
from tests.helpers.disks import fill, small_disk
from tests.helpers.services import absent, free_port

BARE = OutboxSettings(ballast_bytes=0)
ZONE = {"name": "belt", "polygon": [[0.1, 0.0], [0.9, 0.0], [0.9, 1.0], [0.1, 1.0]]}


@contextmanager
def centre(folder, port=0):
    "A centre that knows box-7."
    inbox = Inbox(folder)
    server = InboxServer(partial(answer_device, inbox, {"secret": "box-7"}.get), port)
    try:
        yield inbox, server
    finally:
        server.close()
        inbox.close()


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("CV_PIPELINE_DEVICE_TOKEN", "secret")


def configured(out, url, **more):
    "A run over the line, with zones and a log."
    return load_config(
        None,
        {
            "sources": ["line:frames=40,seed=5,fps=12"],
            "delivery.out": str(out),
            "forward": {"url": url, "device": "box-7"},
            "telemetry": True,
            "tracker.name": "bytetrack",
            "events": {"zones": [ZONE]},
            **more,
        },
    )


def counted(inbox):
    "Rows at the centre by kind."
    return {r["kind"]: r["n"] for r in inbox.query("SELECT kind, count(*) AS n FROM rows GROUP BY kind")}


def result(found=1):
    "One result of a frame."
    frame = Frame(np.zeros((48, 64, 3), np.uint8), "gate", 3, datetime.now(timezone.utc))
    boxes = np.tile(np.array([[1, 2, 9, 9]], np.float32), (found, 1))
    return FrameResult(frame, Detections(boxes, np.full(found, 0.9, np.float32), np.zeros(found)), ("gear",))


@pytest.mark.slow
def test_the_centre_has_what_the_run_has(tmp_path):
    with centre(tmp_path / "centre") as (inbox, server):
        summary = run_config(configured(tmp_path / "run", server.url))
        events = pq.read_table(tmp_path / "run" / "events.parquet").num_rows
        files = [p for p in (tmp_path / "run" / "log").rglob("*.parquet") if "upkeep" not in p.parts]
        there = counted(inbox)
        bodies = inbox.query("SELECT body FROM rows WHERE kind = 'result' ORDER BY seq")
        parts = {
            json.loads(r["body"])["sha256"] for r in inbox.query("SELECT body FROM rows WHERE kind = 'part'")
        }
        sent = [p.read_bytes() for p in (tmp_path / "centre").rglob("*") if p.is_file() and p.name in parts]
    assert events > 0 and there == {"result": 40, "event": events, "part": len(files)}
    assert [json.loads(r["body"])["frame_id"] for r in bodies] == list(range(40))
    assert {hashlib.sha256(p.read_bytes()).hexdigest() for p in files} == parts
    assert {hashlib.sha256(data).hexdigest() for data in sent} == parts
    assert summary["sinks"]["forward"]["state"] == "ok" and summary["sinks"]["forward"]["problems"] == {}


@pytest.mark.slow
def test_without_a_centre_the_run_ends_as_always_and_the_next_start_sends(tmp_path):
    port = free_port()
    alone = run_config(configured(tmp_path / "run", f"http://127.0.0.1:{port}"))
    assert alone["sinks"]["forward"]["state"] == "down" and alone["sinks"]["forward"]["confirmed"] == 0
    assert pq.read_table(tmp_path / "run" / "results.parquet")["frame_id"].to_numpy().max() > 30
    with centre(tmp_path / "centre", port) as (inbox, server):
        run_config(configured(tmp_path / "run", server.url, sources=["line:frames=3,seed=6"]))
        assert counted(inbox)["result"] == 43
        numbers = [r["seq"] for r in inbox.query("SELECT seq FROM rows ORDER BY id")]
    assert numbers == sorted(numbers) and len(set(numbers)) == len(numbers)


@pytest.mark.slow
def test_a_run_is_the_same_with_and_without_a_centre(tmp_path):
    with centre(tmp_path / "centre") as (_, server):
        run_config(configured(tmp_path / "with", server.url))
    run_config(configured(tmp_path / "without", "", forward=None))
    tables = [pq.read_table(tmp_path / way / "results.parquet") for way in ("with", "without")]
    times = [c for c in tables[0].column_names if c.endswith("_ms") or "captured" in c]
    assert tables[0].num_rows > 0 and tables[0].drop(times).equals(tables[1].drop(times))


@pytest.mark.parametrize(
    ("asked", "rows"), [("all", {"result": 2}), ("detections", {"result": 1}), ("none", {})]
)
def test_results_of_the_frames_that_are_wanted(tmp_path, asked, rows):
    with centre(tmp_path / "centre") as (inbox, server):
        sink = open_forward(ForwardConfig(url=server.url, device="box-7", results=asked), tmp_path)
        sink.write(result(1))
        sink.write(result(0))
        sink.close()
        assert counted(inbox) == rows


@pytest.mark.slow
def test_doors_that_are_not_wanted_are_closed(tmp_path):
    with centre(tmp_path / "centre") as (inbox, server):
        quiet = {"url": server.url, "device": "box-7", "events": False, "log": False}
        run_config(configured(tmp_path / "run", server.url, forward=quiet))
        assert counted(inbox) == {"result": 40}


@pytest.mark.slow
def test_a_row_that_waits_does_not_hold_its_picture(tmp_path):
    box = Outbox(tmp_path / "box", OutboxSettings(ballast_bytes=0, commit_s=60, commit_rows=10_000))
    sink, one = DeliverySink(box, None), result()
    picture = weakref.ref(one.frame.image)
    sink.write(one)
    del one
    gc.collect()
    assert picture() is None
    box.write([])
    body = json.loads(box._db.execute("SELECT body FROM outbox").fetchone()[0])
    sink.close()
    assert body["size"] == [64, 48] and len(body["detections"]) == 1


def test_a_part_that_is_gone_is_counted_and_nothing_else(tmp_path):
    sink = DeliverySink(Outbox(tmp_path / "box", BARE), None, log=tmp_path)
    sink.part(tmp_path / "gone.parquet")
    sink.write(result())
    assert sum(sink.problems.values()) == 1
    sink.box.write([])
    assert outbox_status(sink.box).waiting == 1
    sink.close()


def test_a_part_that_finds_a_full_disk_is_handed_over_with_the_next(tmp_path, monkeypatch):
    sink = DeliverySink(Outbox(tmp_path / "box", BARE), log=tmp_path)
    for name in ("a.parquet", "b.parquet", "c.parquet"):
        (tmp_path / name).write_bytes(name.encode())

    def full(*what):
        raise SinkError("the outbox cannot be written: disk full", "x", "free some space")

    monkeypatch.setattr(delivery, "put_file", full)
    sink.part_callback(tmp_path / "a.parquet")
    sink.part_callback(tmp_path / "b.parquet")
    assert [p.name for p in sink.late] == ["a.parquet", "b.parquet"]
    monkeypatch.undo()
    sink.part_callback(tmp_path / "c.parquet")
    assert [f.path.name for f in files_owed(sink.box)] == ["a.parquet", "b.parquet", "c.parquet"]
    assert not sink.late
    sink.close()


def test_a_full_disk_is_counted_and_the_run_goes_on(tmp_path):
    with small_disk(tmp_path / "disk", 4000) as disk:
        if disk is None:
            absent("mounting is not allowed here")
        sink = DeliverySink(Outbox(disk / "box", BARE), None)
        fill(disk)
        for _ in range(3000):
            sink.write(result())
        sink.close()
    assert sink.problems and all("disk" in p or "written" in p for p in sink.problems)


def test_draining_ends_when_the_link_is_down(tmp_path):
    settings = ForwardConfig(url=f"http://127.0.0.1:{free_port()}", device="box-7")
    sink = open_forward(settings, tmp_path)
    sink.write(result())
    assert drain(sink.box, sink.sender, seconds=60) == 1
    sink.close()


def test_what_waits_is_measured(tmp_path):
    sink = DeliverySink(Outbox(tmp_path / "box", BARE), None)
    for _ in range(3):
        sink.write(result())
    sink.box.write([])
    found = {s.name: s.value for f in sink.metric_families() for s in f.samples}
    sink.close()
    assert found["cv_pipeline_outbox_waiting_rows"] == 3 and found["cv_pipeline_outbox_bytes"] > 0


def test_a_forgotten_token_is_found_before_the_first_frame(tmp_path, monkeypatch):
    monkeypatch.delenv("CV_PIPELINE_DEVICE_TOKEN")
    with pytest.raises(ConfigError, match="CV_PIPELINE_DEVICE_TOKEN is not set"):
        run_config(configured(tmp_path, "https://centre.example"))
    assert not (tmp_path / "results.parquet").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"device": "box-7"}, "forward.url"),
        ({"url": "https://c", "device": "box 7"}, "forward.device"),
        ({"url": "https://c", "device": "b", "results": "some"}, "forward.results"),
        ({"url": "https://c", "device": "b", "max_gb": 0}, "forward.max_gb"),
        ({"url": "https://c", "device": "b", "tokn_env": "X"}, "did you mean 'token_env'"),
        ("yes", "forward"),
    ],
)
def test_settings_say_what_is_wrong(wrong, said):
    with pytest.raises(ConfigError) as e:
        load_config(None, {"sources": ["line:"], "forward": wrong})
    assert said in str(e.value)


@pytest.mark.parametrize("url", ["centre", "ftp://centre", "http://centre.example"])
def test_an_address_that_cannot_work_is_refused(tmp_path, url):
    with pytest.raises(ConfigError, match="not an address|plain text"):
        open_forward(ForwardConfig(url=url, device="box-7"), tmp_path)
    assert os.listdir(tmp_path) == []
