"""One run in many processes: who goes where, who is started again, and that the result is that of one run."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from cv_pipeline.core.config import load_config
from cv_pipeline.core.results import (
    jsonl_files,
    process_folders,
    read_jsonl,
    read_results,
    table_files,
)
from cv_pipeline.core.types import ConfigError, SourceError
from cv_pipeline.edge.agent import Health
from cv_pipeline.service.assembly import run_config
from cv_pipeline.service.processes import (
    CameraCost,
    Processes,
    ProcessSettings,
    Seat,
    asked_share,
    joined_health,
    joined_metrics,
    measure_cameras,
    processes_for,
    run_processes,
    share_of,
    split_costs,
    write_machines,
)
from cv_pipeline.video.events import read_events
from tests.helpers.waiting import apart

COSTS = st.lists(st.floats(0.001, 4, allow_subnormal=False), min_size=1, max_size=8)


def config_of(out, sources, **more):
    return load_config(None, {"sources": sources, "delivery.out": str(out), "model.threads": 1, **more})


def lines(n, frames=20, **more):
    return [{"uri": f"line:frames={frames},seed={k}", "id": f"camera-{k}", **more} for k in range(n)]


# --- who goes where ---------------------------------------------------------------------------------------


@given(COSTS, st.integers(1, 4))
@pytest.mark.slow
def test_every_camera_is_in_one_group_and_no_split_is_much_better(costs, groups):
    made = split_costs(costs, groups)
    assert sorted(sum(made, [])) == list(range(len(costs))) and all(made)
    n = min(groups, len(costs))
    best = min(
        max(sum(c for c, w in zip(costs, where) if w == g) for g in range(n))
        for where in itertools.product(range(n), repeat=len(costs))
    )
    assert max(sum(costs[k] for k in group) for group in made) <= 4 / 3 * best + 1e-9


@pytest.mark.parametrize(("costs", "groups"), [([], 2), ([1.0], 0), ([1.0], -3)])
def test_nothing_cannot_be_split(costs, groups):
    with pytest.raises(ConfigError, match="cannot be split"):
        split_costs(costs, groups)


@pytest.mark.parametrize(
    ("each", "count", "cores", "wanted"), [(0.1, 4, 8, 1), (0.3, 10, 8, 4), (2.0, 3, 8, 3), (1.0, 99, 8, 8)]
)
def test_as_many_processes_as_the_cameras_are_worth(each, count, cores, wanted):
    costs = [CameraCost(str(k), 10.0, 100 * each, 0.0, 5.0) for k in range(count)]
    assert costs[0].cores == pytest.approx(each) and processes_for(costs, cores) == wanted


@pytest.mark.slow
def test_a_dear_camera_is_measured_as_dearer(tmp_path):
    config = config_of(tmp_path, [{"uri": "line:fps=25", "id": "fast"}, {"uri": "line:fps=2", "id": "slow"}])
    fast, slow = measure_cameras(config)
    assert (round(fast.fps), round(slow.fps)) == (25, 2)
    assert fast.model_ms == slow.model_ms > 0 and fast.cores > 2 * slow.cores


@pytest.mark.slow
def test_a_camera_that_cannot_be_opened_costs_as_much_as_the_others(tmp_path):
    config = config_of(tmp_path, [*lines(2), {"uri": str(tmp_path / "missing.mp4"), "id": "gone"}])
    *good, gone = measure_cameras(config)
    assert "missing.mp4" in gone.note and "median" in gone.note and not good[0].note
    assert min(c.decode_ms for c in good) <= gone.decode_ms <= max(c.decode_ms for c in good)


def test_without_any_frame_nothing_is_measured(tmp_path):
    config = config_of(tmp_path, [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")])
    with pytest.raises(SourceError, match="none of the 2 cameras"):
        measure_cameras(config)


@pytest.mark.parametrize(
    ("selection", "before", "share", "note"),
    [
        ({"selection.every": 4}, None, 0.25, ""),
        ({"selection.max_fps": 5.0}, None, 0.2, ""),
        ({"selection.motion": 0.01}, None, 0.2, "assumed"),
        ({"selection.motion": 0.01}, {"frames_read": 100, "frames_inferred": 7}, 0.07, ""),
        ({}, {"frames_read": 0, "frames_inferred": 0}, 1.0, ""),
    ],
)
def test_the_share_of_frames_is_that_of_the_run_before(tmp_path, selection, before, share, note):
    found = asked_share(config_of(tmp_path, lines(1), **selection), 25.0, before)
    assert found[0] == pytest.approx(share) and note in found[1] and bool(found[1]) == bool(note)


# --- a share ----------------------------------------------------------------------------------------------


def test_rules_and_masks_go_where_their_cameras_are(tmp_path):
    square = [[0, 0], [1, 0], [1, 1]]
    config = config_of(
        tmp_path,
        lines(3),
        **{
            "events.zones": [
                {"name": "all", "polygon": square},
                {"name": "two", "polygon": square, "sources": ["camera-0", "camera-2"]},
                {"name": "one", "polygon": square, "sources": ["camera-1"]},
            ],
            "privacy.masks": [{"polygon": square, "sources": ["camera-1"]}],
            "telemetry": True,
        },
    )
    share = share_of(config, [0, 2], 1, 7001)
    assert [(z.name, z.sources) for z in share.events.zones] == [
        ("all", []),
        ("two", ["camera-0", "camera-2"]),
    ]
    assert share.privacy.masks == [] and share.telemetry.folder == tmp_path / "log"
    other = share_of(config, [1], 0, 7000)
    assert [z.name for z in other.events.zones] == ["all", "one"] and len(other.privacy.masks) == 1
    assert (share.delivery.out, share.health.port, share.health.host) == (
        tmp_path / "process-01",
        7001,
        "127.0.0.1",
    )


def test_names_are_those_of_the_whole_list(tmp_path):
    "Sources without an id get theirs from the whole list: line-2 stays line-2 in a process of its own."
    config = config_of(tmp_path, ["line:seed=1", "line:seed=2", "line:seed=3"])
    names = [s.id for k in range(3) for s in share_of(config, [k], k, 0).sources]
    assert len(set(names)) == 3


# --- in virtual time --------------------------------------------------------------------------------------


class Played:
    "A child that ends with a code after so many seconds."

    def __init__(self, clock, life=1e9, code=-9):
        self.port, self.clock, self.began, self.life, self.code, self.stopped = (
            1,
            clock,
            clock(),
            life,
            code,
            None,
        )

    def ended(self):
        return self.code if self.clock() - self.began >= self.life else None

    def stop(self, grace_s):
        self.stopped = grace_s
        return -15


READY = Health(True, "", 0.0, {})


def played(script, health=READY, **settings):
    "Processes that play a script: for each process, what its starts are like."
    now = [0.0]
    clock = lambda: now[0]
    made = {k: [] for k in range(len(script))}

    def launch(k):
        made[k].append(Played(clock, **script[k][min(len(made[k]), len(script[k]) - 1)]))
        return made[k][-1]

    seats = [Seat(k, (f"camera-{k}",), lambda k=k: launch(k)) for k in made]
    ask = health if callable(health) else lambda port: health
    return Processes(seats, ProcessSettings(**settings), clock, ask), now, made


def test_pauses_double_and_a_minute_of_health_forgives():
    group, now, made = played([[{"life": 0.5}]], most=99, longest_s=8)
    starts = []
    for t in range(60):
        now[0] = float(t)
        group.step()
        if len(made[0]) > len(starts):
            starts.append(t)
    assert np.diff(starts).tolist()[:6] == [2, 3, 5, 9, 9, 9]  # 1, 2, 4, 8, 8, 8 s and the second it is found
    group, now, made = played([[{"life": 100.0}]], most=2)
    for t in range(1000):
        now[0] = float(t)
        group.step()
    assert group.seats[0].state != "failed" and len(made[0]) > 8


@pytest.mark.parametrize("code", [1, 3, 4, 5, -9, -11])
def test_a_process_that_cannot_live_fails_alone(code):
    group, now, made = played([[{"life": 0.5, "code": code}], [{}]], most=3)
    for t in range(200):
        now[0] = float(t)
        group.step()
    assert (group.seats[0].state, len(made[0])) == ("failed", 4)
    assert (group.seats[1].state, len(made[1])) == ("running", 1) and not group.finished
    status, body = joined_health(group.seats)
    assert status == 503 and body["reason"].startswith("process 0 failed")


def test_one_that_hangs_is_ended_at_once():
    answers = iter([Health(True, "", 0.0, {})] * 3 + [None] * 99)
    group, now, made = played([[{}]], lambda port: next(answers), quiet_s=10)
    for t in range(20):
        now[0] = float(t)
        group.step()
    assert made[0][0].stopped == 0.0 and len(made[0]) == group.seats[0].starts == 2
    assert group.seats[0].reason == "it hangs: no answer for 11 s"


def test_one_that_holds_a_frame_is_ended():
    group, now, made = played([[{}]], Health(False, "inference has not finished a frame for 31 s", 31.0, {}))
    for t in range(3):
        now[0] = float(t)
        group.step()
    assert made[0][0].stopped == 0.0


def test_an_end_in_order_is_an_end_and_a_refused_configuration_ends_everything():
    group, now, _ = played([[{"life": 1, "code": 0}], [{"life": 2, "code": 2}]])
    for t in range(4):
        now[0] = float(t)
        group.step()
    assert group.seats[0].state == "ended" and "refused" in group.refused


def test_joined_pages_hold_every_camera_and_every_number():
    page = "\n".join(
        [
            "# HELP n_total Frames",
            "# TYPE n_total counter",
            'n_total{source="a\\"b"} 3',
            "# HELP h Time",
            "# TYPE h histogram",
            *('h_bucket{le="1"} 2', 'h_bucket{le="+Inf"} 2', "h_sum 1.5", "h_count 2", ""),
        ]
    )
    families = {f.name: f for f in text_string_to_metric_families(joined_metrics({0: page, 7: page}))}
    assert [(s.labels, s.value) for s in families["n"].samples] == [
        ({"source": 'a"b', "process": "0"}, 3.0),
        ({"source": 'a"b', "process": "7"}, 3.0),
    ]
    assert families["h"].type == "histogram" and len(families["h"].samples) == 8
    seats = [
        Seat(k, (f"c{k}",), None, "running", health=Health(True, "", 0.0, {f"c{k}": "running"}))
        for k in range(2)
    ]
    status, body = joined_health(seats)
    assert status == 200 and body["sources"] == {"c0": {"state": "running"}, "c1": {"state": "running"}}


# --- real processes ---------------------------------------------------------------------------------------


def rows_of(folder):
    columns = ["source_id", "frame_id", "x1", "y1", "x2", "y2", "confidence", "class_id", "tracker_id"]
    rows = read_results(folder).select(columns).to_pylist()
    return sorted((tuple(r.values()) for r in rows), key=lambda r: r[:6])


@pytest.mark.slow
def test_the_rows_are_those_of_one_run(tmp_path):
    zone = [{"name": "gate", "polygon": [[0.3, 0], [0.7, 0], [0.7, 1], [0.3, 1]]}]
    more = {"tracker.name": "sort", "events.zones": zone, "telemetry": True}
    run_config(config_of(tmp_path / "one", lines(3, 40), **more))
    summary = run_processes(
        config_of(tmp_path / "two", lines(3, 40), **more), "2", settings=ProcessSettings(poll_s=0.1)
    )
    assert rows_of(tmp_path / "two") == rows_of(tmp_path / "one") and len(rows_of(tmp_path / "one")) > 100
    assert [len(row["cameras"]) for row in summary["processes"]] in ([1, 2], [2, 1])
    assert len(process_folders(tmp_path / "two")) == len(table_files(tmp_path / "two")) == 2
    assert len(jsonl_files(tmp_path / "two")) == 2
    both = [read_events(tmp_path / name) for name in ("one", "two")]
    keyed = [
        sorted(zip(t["source_id"].to_pylist(), t["tracker_id"].to_pylist(), t["kind"].to_pylist()))
        for t in both
    ]
    assert keyed[0] == keyed[1] and keyed[0]
    assert {
        p.name for p in (tmp_path / "two" / "log" / "frames").rglob("*") if p.name.startswith("camera=")
    } == {f"camera=camera-{k}" for k in range(3)}
    whole = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert whole["frames_delivered"] == 120 and set(whole["sources"]) == {f"camera-{k}" for k in range(3)}
    assert not (tmp_path / "two" / "running.json").exists()
    assert (tmp_path / "two" / "processes").stat().st_mode & 0o077 == 0


def killed_and_back(folder):
    """In a process of its own, which is ended as systemd ends a service: one process of a run is killed and
    comes back, and the other notices nothing."""
    out, found, killed = Path(folder), {}, []

    def tick(group):
        if all(s.state == "running" for s in group.seats) and not killed:
            with urllib.request.urlopen(found["url"] + "/metrics", timeout=10) as page:
                found["metrics"] = page.read().decode()
            killed.append(group.seats[0].child.process.pid)
            os.kill(killed[0], signal.SIGKILL)
        seen = {row["source_id"] for row in read_jsonl(out)} if killed else set()
        if len(seen) == 2 and group.seats[0].starts == 2 and group.seats[0].state == "running":
            found["again"] = True
            os.kill(os.getpid(), signal.SIGTERM)

    config = config_of(out, lines(2, 100_000, realtime=True), **{"health.port": 0, "selection.max_fps": 2.0})
    limit = threading.Timer(120, lambda: os.kill(os.getpid(), signal.SIGTERM))
    limit.start()
    settings = ProcessSettings(poll_s=0.1, first_s=0.1)
    summary = run_processes(config, "2", tick, lambda url: found.update(url=url), settings)
    limit.cancel()
    assert found.get("again") and [row["starts"] for row in summary["processes"]] == [2, 1]
    labels = [s.labels for f in text_string_to_metric_families(found["metrics"]) for s in f.samples]
    assert {line["process"] for line in labels} == {"0", "1"}
    assert {line["source"] for line in labels if "source" in line} == {"camera-0", "camera-1"}
    assert {row["source_id"] for row in read_jsonl(out)} == {"camera-0", "camera-1"}
    assert [s["state"] for s in summary["processes"]] == ["ended", "ended"]


@pytest.mark.slow
def test_a_process_that_is_killed_comes_back_and_the_other_notices_nothing(tmp_path):
    apart(killed_and_back, tmp_path)


@pytest.mark.slow
def test_what_a_killed_run_left_behind_is_ended_by_the_next_one(tmp_path):
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    note = tmp_path / "processes" / "07.pid.json"
    born = Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[19]
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"pid": sleeper.pid, "birth": born}))
    try:
        run_processes(config_of(tmp_path, lines(2, 3)), "2", settings=ProcessSettings(poll_s=0.1))
        assert sleeper.wait(10) == -signal.SIGTERM
    finally:
        sleeper.kill()


@pytest.mark.slow
def test_long_measuring_says_how_far_it_is(tmp_path):
    heard = []
    measure_cameras(config_of(tmp_path, lines(20, 2)), tell=heard.append)
    assert heard == ["10 of 20 cameras measured", "20 of 20 cameras measured"]


@pytest.mark.parametrize("wanted", ["0", "-2", "many", "1.5", "²", "99999"])
def test_a_number_that_makes_no_sense_is_refused(tmp_path, wanted):
    with pytest.raises(ConfigError, match="invalid number of processes"):
        run_processes(config_of(tmp_path, lines(2)), wanted)


def test_an_outbox_is_not_shared(tmp_path):
    away = {"forward.url": "https://centre.example", "forward.device": "box"}
    with pytest.raises(ConfigError, match="cannot be shared"):
        run_processes(config_of(tmp_path, lines(2, 3), **away), "2")


def test_a_wrong_rule_is_refused_before_anything_is_started(tmp_path):
    zone = [{"name": "gate", "polygon": [[0, 0], [1, 1], [1, 0]], "sources": ["nobody"]}]
    with pytest.raises(ConfigError, match="unknown sources"):
        run_processes(config_of(tmp_path, lines(2, 3), **{"events.zones": zone}), "2")
    assert process_folders(tmp_path) == []


def test_machines_get_files_that_hold_every_camera_once(tmp_path):
    config = config_of(tmp_path / "out", lines(5, 5), **{"health.port": 8080})
    costs = [CameraCost(f"camera-{k}", 10, 10.0 * (k + 1), 0.0, 5.0) for k in range(5)]
    files = write_machines(config, costs, 2, tmp_path / "machines")
    loaded = [load_config(path) for path in files]
    assert sorted(s.id for c in loaded for s in c.sources) == [f"camera-{k}" for k in range(5)]
    assert {(c.delivery.out, c.health.port) for c in loaded} == {(tmp_path / "out", 8080)}
    assert (tmp_path / "machines").stat().st_mode & 0o077 == 0
