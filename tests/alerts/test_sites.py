"""What sites write, where, and what is made of it: torn, late, double, hostile, refused, killed."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.alerts.site_stores import (
    BucketStore,
    CentreStore,
    FolderStore,
    OutboxStore,
    SiteStoreError,
    check_snapshot,
    collect_sites,
    is_ours,
    open_site,
    open_site_store,
)
from cv_pipeline.alerts.sites import example_counts, example_sites, judge_box, read_sites, read_trends
from cv_pipeline.alerts.snapshots import (
    SUMS_KEY,
    CameraState,
    HourlyCounts,
    OpenIncident,
    SiteFacts,
    SiteReaders,
    SiteReporter,
    Snapshot,
    counts_path,
    make_snapshot,
    pack_sums,
    read_snapshot,
    snapshot_bytes,
    state_path,
    unpack_sums,
)
from cv_pipeline.core.config import SnapshotConfig, load_config
from cv_pipeline.core.types import ConfigError, CVPipelineError, DataError
from cv_pipeline.edge.forward import (
    Forwarder,
    ForwardSettings,
    Inbox,
    InboxServer,
    Link,
    LinkSettings,
    answer_device,
    drain,
)
from cv_pipeline.edge.outbox import Outbox
from cv_pipeline.service.assembly import check_run, run_config
from cv_pipeline.tracking.zones import Event
from tests.helpers.services import require
from tests.helpers.waiting import until

AT = datetime(2026, 11, 29, 18, 0, tzinfo=timezone.utc)
STORED = AT.timestamp()
FINE = Snapshot(
    "Brno",
    "box-1",
    "a1",
    AT.isoformat(),
    cameras=(CameraState("gate", "running", 0.2, 10.0),),
    model_state="ready",
)


def put(folder, snapshot, age=0.0):
    "A state that the store got so many seconds ago."
    store, name = FolderStore(folder), state_path(snapshot.site, snapshot.box)
    store.put(name, snapshot_bytes(snapshot))
    os.utime(folder / name, (STORED - age, STORED - age))
    return folder / name


def states(folder):
    return {s.name: s.state for s in read_sites(folder, lambda: STORED)}


# one file


@given(st.integers(0, 5000))
@settings(max_examples=60, deadline=None)
def test_a_torn_state_is_an_error_and_never_half_a_site(size):
    data = snapshot_bytes(replace(FINE, cameras=(FINE.cameras[0],) * 20))
    if size < len(data.rstrip()):
        with pytest.raises(DataError):
            read_snapshot(data[:size])


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(json.loads(snapshot_bytes(FINE)))), JUNK)
@settings(max_examples=300, deadline=None)
def test_whatever_stands_in_a_field_it_is_a_snapshot_or_a_data_error(name, value):
    book = {**json.loads(snapshot_bytes(FINE)), name: value}
    try:
        found = read_snapshot(json.dumps(book).encode())
    except DataError:
        return
    judge_box(found, STORED, STORED)
    assert len(found.site) <= 300 and all(len(c.name) <= 300 for c in found.cameras)


def test_a_state_of_another_version_is_named():
    with pytest.raises(DataError, match="format 7 .* use one version"):
        read_snapshot(snapshot_bytes(FINE).replace(b'"format": 1', b'"format": 7'))


# states


@pytest.mark.parametrize(("age", "state"), [(0, "ok"), (59, "ok"), (61, "stale"), (1e7, "stale")])
def test_a_dead_site_is_stale_after_two_periods_and_never_ok(age, state):
    assert judge_box(FINE, STORED, STORED + age).state == state


@pytest.mark.parametrize("ahead", [-7200, -61, 61, 86_400 * 365])
def test_a_clock_that_is_off_is_shown_and_never_ok(ahead):
    moved = replace(FINE, at=(AT + timedelta(seconds=ahead)).isoformat())
    made = judge_box(moved, STORED, STORED)
    assert made.state == "clock off" and made.skew_s == pytest.approx(ahead)
    assert "clock" in made.reasons[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cameras": ()}, "no cameras"),
        ({"cameras": (CameraState("gate", "lost"),)}, "1 of 1 cameras are down: gate"),
        ({"cameras": (CameraState("gate", "running", upkeep=("dirt",)),)}, "maintenance: gate: dirt"),
        ({"incidents": (OpenIncident("1", "fire"),)}, "1 open incident"),
        ({"drift": "RED", "drift_day": "2026-11-28"}, "drift RED"),
        ({"model_state": "suspicious"}, "the model is suspicious"),
        ({"incidents_problem": "the book is locked"}, "incidents unknown"),
    ],
)
def test_what_needs_a_person_is_said_and_not_ok(change, words):
    made = judge_box(replace(FINE, **change), STORED, STORED)
    assert made.state == "attention" and words in " ".join(made.reasons)


def test_a_half_written_file_is_a_state_of_its_own_site_only(tmp_path):
    put(tmp_path, FINE)
    broken = put(tmp_path, replace(FINE, site="Como"))
    broken.write_bytes(broken.read_bytes()[:90])
    os.utime(broken, (STORED, STORED))
    assert states(tmp_path) == {"Como": "unreadable", "Brno": "ok"}


def test_two_sites_of_one_name_are_said_to_be(tmp_path):
    put(tmp_path, FINE)
    put(tmp_path, replace(FINE, box="box-2"))
    (site,) = read_sites(tmp_path, lambda: STORED)
    assert site.state == "attention" and "two sites of one name" in site.reasons[0]
    put(tmp_path, replace(FINE, box="box-2", cameras=(CameraState("dock", "running"),)))
    (site,) = read_sites(tmp_path, lambda: STORED)
    assert site.state == "ok" and len(site.cameras) == 2, "two boxes of one site are fine"


def test_a_camera_of_a_stale_site_is_unknown_and_its_age_grows(tmp_path):
    put(tmp_path, FINE, age=600)
    (site,) = read_sites(tmp_path, lambda: STORED)
    assert [(c.state, c.age_s) for c in site.cameras] == [("unknown", pytest.approx(600.2))]
    assert site.up == 0


# counts


def test_late_and_double_days_change_nothing(tmp_path):
    example_sites(tmp_path, ("Aachen",), cameras=2, days=3, now=AT)
    before = read_trends(tmp_path, 3, lambda: STORED)
    name = counts_path("Aachen", "2026-11-28", "box-1", "a1")
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    assert read_trends(tmp_path, 3, lambda: STORED).events("Aachen")[1] == 0
    FolderStore(tmp_path).put(name, data)  # late
    FolderStore(tmp_path).put(name, data)  # twice
    FolderStore(tmp_path).put(name.replace(".parquet", " (1).parquet"), data)  # a copy
    after = read_trends(tmp_path, 3, lambda: STORED)
    assert after.events("Aachen").tolist() == before.events("Aachen").tolist()
    assert len(after.broken) == 1 and "copy" in after.broken[0]


def test_a_day_of_another_site_under_this_ones_name_is_left_out(tmp_path):
    data = example_counts("Brno", ["gate"], AT.replace(hour=0))
    FolderStore(tmp_path).put(counts_path("Aachen", "2026-11-29", "box-1", "a1"), data)
    found = read_trends(tmp_path, 3, lambda: STORED)
    assert not found.n and len(found.broken) == 1


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_sums_that_are_junk_are_an_error(data):
    for junk in (data, base64.b64encode(data), base64.b64encode(zlib.compress(data))):
        with suppress(DataError):
            assert isinstance(unpack_sums(junk, "x"), dict)


OWN = {"site": "Aachen", "box": "box-1", "run": "a1"}


@pytest.mark.parametrize(
    "sums",
    [
        {},
        {**OWN, "rows": [["gate", "", "frames", "", "many"]], "tenths": [0] * 10},
        {**OWN, "rows": 5, "tenths": [0] * 10},
        {**OWN, "rows": [], "tenths": [1, 2]},
    ],
)
def test_sums_of_another_shape_are_left_out_and_named(tmp_path, sums):
    import pyarrow as pa

    path = tmp_path / counts_path("Aachen", "2026-11-29", "box-1", "a1")
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"n": [1]}).replace_schema_metadata({SUMS_KEY: pack_sums(sums)}), path)
    found = read_trends(tmp_path, 3, lambda: STORED)
    assert not found.n and len(found.broken) == 1


def test_sums_in_the_metadata_are_those_of_the_rows():
    data = example_counts("Aachen", ["gate", "dock"], AT.replace(hour=0))
    table = pq.read_table(io.BytesIO(data))
    sums = unpack_sums(table.schema.metadata[SUMS_KEY.encode()], "x")
    rows = {tuple(key): n for *key, n in sums["rows"]}
    found = table.group_by(["camera", "rule", "kind", "class_name"]).aggregate([("n", "sum")]).to_pylist()
    assert rows == {(r["camera"], r["rule"], r["kind"], r["class_name"]): r["n_sum"] for r in found}
    assert sums["tenths"] == [sum(table[f"c{k}"].to_pylist()) for k in range(10)]


def test_counts_of_a_restart_within_the_hour_add_up(tmp_path):
    data = example_counts("Aachen", ["gate"], AT.replace(hour=0))
    store = FolderStore(tmp_path)
    store.put(counts_path("Aachen", "2026-11-29", "box-1", "a1"), data)
    once = read_trends(tmp_path, 2, lambda: STORED).total("Aachen", ["frames"])[-1]
    counts = HourlyCounts("Aachen", "box-1", "b2", lambda: AT)
    counts.row("gate", AT.replace(minute=0), "", "frames", "")[0] = 7
    from cv_pipeline.alerts.snapshots import counts_bytes

    store.put(counts_path("Aachen", "2026-11-29", "box-1", "b2"), counts_bytes(counts, "2026-11-29"))
    assert read_trends(tmp_path, 2, lambda: STORED).total("Aachen", ["frames"])[-1] == once + 7


def test_a_recording_of_many_days_keeps_eight_in_memory_and_loses_no_written_one():
    counts = HourlyCounts("Aachen", "box-1", "a1", lambda: AT)
    written = {}
    for k in range(20):
        counts.event(event(AT - timedelta(days=19 - k)))
        for day in counts.changed():
            written[day] = len(counts.rows(day))
    assert len(written) == 20 and set(written.values()) == {1}
    assert len({key[1].date() for day in written for key, _ in counts.rows(day)}) == 8
    counts.event(event(AT - timedelta(days=19)))
    counts.event(event(AT + timedelta(days=2)))
    assert counts.late == 2 and counts.changed() == set(), "what was written is not replaced by less"


def event(at):
    return Event("zone_enter", "gate", "press", 1, 0, "part", at, 5, "in", None, 1.0, 1.0)


# stores


def test_names_that_lead_out_of_a_store_are_not_ours():
    for name in (
        "../x",
        "site=a/box=b/../site.json",
        "/etc/passwd",
        "agg/site=a/date=2026-11-29/../x.parquet",
    ):
        assert not is_ours(name)


def test_a_store_that_refuses_costs_the_others_nothing(tmp_path):
    put(tmp_path / "good", FINE)

    class Bad(FolderStore):
        def entries(self):
            raise SiteStoreError("access denied", "s3://x", "ask")

    done = collect_sites([("bad", Bad("x")), ("good", FolderStore(tmp_path / "good"))], tmp_path / "all")
    assert done.copied == 1 and done.problems == ("bad: access denied [s3://x] — ask",)
    assert states(tmp_path / "all") == {"Brno": "ok"}, "the copy keeps the time at which the store got it"


@pytest.mark.parametrize("at", [1795975200.123456789, 1795975200.9999999, 1795975200.0])
def test_what_is_there_is_not_copied_again_whatever_the_clock_of_a_store_resolves(tmp_path, at):
    class Fine(FolderStore):
        def entries(self):
            return [e._replace(at=at) for e in super().entries()]

    put(tmp_path / "a", FINE)
    store = [("a", Fine(tmp_path / "a"))]
    assert [collect_sites(store, tmp_path / "all").copied for _ in range(3)] == [1, 0, 0]


def test_an_older_copy_from_a_second_store_does_not_win(tmp_path):
    put(tmp_path / "a", FINE, age=10)
    put(tmp_path / "b", replace(FINE, version="old"), age=500)
    collect_sites([(k, FolderStore(tmp_path / k)) for k in "ab"], tmp_path / "all")
    (site,) = read_sites(tmp_path / "all", lambda: STORED)
    assert site.state == "ok" and site.of("version") == []


@pytest.fixture(scope="module")
def bucket():
    "A bucket of a server that speaks S3."
    server = require("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "x")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store = open_site_store("s3://plants/sites", f"http://{host}:{port}")
        store.client.create_bucket(Bucket="plants")
        yield store
    server.stop()


def test_a_bucket_holds_what_a_folder_holds(bucket, tmp_path):
    assert isinstance(bucket, BucketStore)
    bucket.put(
        state_path("Brno", "box-1"), snapshot_bytes(replace(FINE, at=datetime.now(timezone.utc).isoformat()))
    )
    bucket.put(
        counts_path("Brno", "2026-11-29", "box-1", "a1"), example_counts("Brno", ["gate"], AT.replace(hour=0))
    )
    bucket.client.put_object(Bucket="plants", Key="sites/other.txt", Body=b"x")
    assert collect_sites([("s3", bucket)], tmp_path)[:2] == (2, 2)
    assert collect_sites([("s3", bucket)], tmp_path).copied == 0
    assert [s.state for s in read_sites(tmp_path)] == ["ok"]


def test_a_bucket_that_refuses_is_a_sentence(bucket):
    gone = BucketStore(bucket.client, "no-such-bucket")
    for ask in (gone.entries, lambda: gone.put(state_path("a", "b"), b"")):
        with pytest.raises(SiteStoreError, match="the bucket refused"):
            ask()


def test_a_device_reports_by_its_outbox_and_what_is_old_stays_old(tmp_path):
    inbox = Inbox(tmp_path / "centre" / "inbox")
    name, files = state_path("Brno", "box-1"), tmp_path / "box" / "files"
    with Outbox(tmp_path / "box") as box:
        store = OutboxStore(box, files)
        for k in range(3):
            store.put(name, snapshot_bytes(replace(FINE, run=f"r{k}")))
            store.put(counts_path("Brno", "2026-11-29", "box-1", "a1"), f"PAR{k}".encode())
        answer = lambda request: answer_device(inbox, {"secret": "box-1"}.get, request)
        with InboxServer(answer) as server:
            settings = ForwardSettings("box-1", "run")
            sender = Forwarder(box, Link(LinkSettings(server.url)), lambda: "secret", settings).start()
            assert drain(box, sender, 30.0) == 0
            sender.close()
        store.put(counts_path("Brno", "2026-11-29", "box-1", "a1"), b"PAR9")
        assert len(list(files.iterdir())) == 1, "what was sent goes, when its successor is there"
    centre = CentreStore(tmp_path / "centre")
    found = {e.name: centre.get(e) for e in centre.entries()}
    inbox.close()
    assert read_snapshot(found[name]).run == "r2"
    assert found[counts_path("Brno", "2026-11-29", "box-1", "a1")] == b"PAR2"
    with pytest.raises(SiteStoreError):
        centre.put(name, b"")


# a run


NO_READERS = SiteReaders()


def reporter(store, readers=NO_READERS):
    summary = {"error": None, "model": {"name": "m", "sha256": "", "state": "ready"}, "sources": {}}
    made = SiteReporter(
        SiteFacts("Brno", "box-1", "a1", 0.01), store, HourlyCounts("Brno", "box-1", "a1"), readers
    )
    return made, lambda: summary


def test_a_store_that_refuses_never_ends_the_run_and_gets_everything_later(tmp_path):
    class Store(FolderStore):
        refuses = True

        def put(self, name, data):
            if self.refuses:
                raise SiteStoreError("no space left", self.folder, "free some")
            super().put(name, data)

    store = Store(tmp_path)
    made, summary = reporter(store)
    made.start(summary)
    until(lambda: made.failures >= 3)
    assert "no space left" in made.problem
    store.refuses = False
    until(lambda: made.written >= 2)
    made.close()
    (site,) = read_sites(tmp_path)
    assert site.boxes[0].snapshot.state == "ended" and made.problem == ""


def test_closing_does_not_wait_for_a_store_that_hangs(tmp_path):
    held, began, ended = threading.Event(), threading.Event(), []

    class Store(FolderStore):
        def put(self, name, data):
            began.set()
            held.wait(60)
            ended.append(name)

    made, summary = reporter(Store(tmp_path))
    made.start(summary)
    assert began.wait(20)
    made.close(0.2)
    assert ended == []
    held.set()


def test_a_book_of_incidents_that_cannot_be_read_costs_its_own_line(tmp_path):
    def broken():
        raise DataError("the book is locked", "incidents.sqlite", "wait")

    made, summary = reporter(FolderStore(tmp_path), SiteReaders(incidents=broken))
    made.start(summary)
    until(lambda: made.written)
    made.close()
    (site,) = read_sites(tmp_path)
    assert "incidents unknown: the book is locked" in " ".join(site.reasons)


SETTINGS = {"sources": ["line:width=160,height=120,frames=40"], "model.threads": 1, "site": "Brno"}


def test_a_run_writes_its_state_and_counts_what_it_delivers(tmp_path):
    zone = {"name": "belt", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}
    more = {
        "delivery.out": str(tmp_path / "out"),
        "snapshot": True,
        "events.zones": [zone],
        "telemetry": True,
    }
    summary = run_config(load_config(None, {**SETTINGS, **more}))
    (site,) = read_sites(tmp_path / "out" / "sites")
    assert (site.name, site.state, site.boxes[0].snapshot.model_sha256) == (
        "Brno",
        "ended",
        summary["model"]["sha256"],
    )
    trends = read_trends(tmp_path / "out" / "sites", 400)  # the line has times of its own
    assert trends.total("Brno", ["frames"]).sum() == summary["frames_delivered"] == 40
    assert trends.total("Brno", ["detection"]).sum() == summary["detections"]
    assert trends.events("Brno").sum() == summary["sinks"]["events"]["events"]
    assert summary["sinks"]["site"]["failures"] == 0


def test_a_run_whose_store_is_a_file_ends_well_and_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    more = {"delivery.out": str(tmp_path / "out"), "snapshot.store": str(tmp_path / "file")}
    summary = run_config(load_config(None, {**SETTINGS, **more}))
    assert summary["frames_delivered"] == 40 and summary["error"] is None
    assert "takes nothing" in summary["sinks"]["site"]["problem"]


def test_a_run_that_fails_reports_that_it_failed(tmp_path):
    more = {"delivery.out": str(tmp_path / "out"), "snapshot": True}

    def tick(pipeline):
        raise RuntimeError("pulled the plug")

    with pytest.raises(CVPipelineError):
        run_config(
            load_config(None, {**SETTINGS, **more, "sources": ["line:width=160,height=120,frames=400"]}), tick
        )
    (site,) = read_sites(tmp_path / "out" / "sites")
    assert site.state == "failed" and "pulled the plug" in site.reasons[0]


@pytest.mark.slow
def test_kill_minus_nine_leaves_a_whole_state_that_becomes_stale(tmp_path):
    code = (
        "from cv_pipeline.core.config import load_config\n"
        "from cv_pipeline.service.assembly import run_config\n"
        f"run_config(load_config(None, {{'sources': [{{'uri': 'line:width=160,height=120,frames=100000', "
        f"'realtime': True}}], 'site': 'Brno', 'model.threads': 1, 'snapshot.every_s': 1, "
        f"'delivery.out': {str(tmp_path / 'out')!r}}}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    sites = tmp_path / "out" / "sites"
    until(lambda: list(sites.glob("site=*/box=*/site.json")), 60.0, process)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    (site,) = read_sites(sites)
    assert site.boxes[0].snapshot is not None and site.boxes[0].snapshot.state == "running"
    (later,) = read_sites(sites, lambda: time.time() + 2.1)
    assert later.state == "stale"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"snapshot.store": "forward"}, "sends nothing to a centre"),
        ({"snapshot.store": "gopher://x"}, "not a store of sites"),
        ({"snapshot.places": {"dock": [0, 0]}}, "unknown sources on the plan: dock"),
        ({"snapshot.plan": "nothing.png"}, "not a picture of a plan"),
    ],
)
def test_a_snapshot_that_cannot_work_is_refused_before_the_run(change, words):
    with pytest.raises(ConfigError, match=words):
        check_run(load_config(None, {**SETTINGS, **change}))


def test_the_sink_is_a_sink_of_this_package(tmp_path):
    check_snapshot(SnapshotConfig(), [], False)
    sink = open_site(SnapshotConfig(), tmp_path, "Brno")
    assert sink.name == "site" and sink.summary() == {"written": 0, "failures": 0, "late": 0}
    sink.close()
    assert make_snapshot(sink.reporter.facts, reporter(None)[1]()).cameras == ()
