"""A model in the shadow of a run: it may crash, hang, eat memory and answer nonsense, and the run has the
same bytes as without it; what it finds is evidence that is kept, continued and bounded."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow.parquet as pq
import pytest

from cv_pipeline.annotation.collect import read_collected
from cv_pipeline.core.config import load_config
from cv_pipeline.core.files import read_json, read_json_lines
from cv_pipeline.core.types import ConfigError, CVPipelineError, Frame, FrameResult
from cv_pipeline.release.evidence import Column, readings_of
from cv_pipeline.release.shadow import (
    FrameSlots,
    Limits,
    ShadowFault,
    ShadowProcess,
    ShadowSettings,
    ShadowSink,
    model_digest,
)
from cv_pipeline.service.assembly import run_config
from tests.helpers.bad_shadow import NAMES, OPENER, boxes
from tests.helpers.waiting import until

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
COLUMNS = ("disagree", "count", "errors", "slow", "dropped", "tracks")


def columns(names):
    return [Column(c, 0.1, c == "count") for c in COLUMNS]


LIMITS = Limits(columns, p95_ms=1e6)  # nothing is slow, nothing is learnt


def result(number, count=3, camera="gate", **more):
    "One result of a frame whose first pixel says how many boxes there are, five frames a second."
    image = np.zeros((48, 64, 3), np.uint8)
    image[0, 0, 0] = count
    frame = Frame(image, camera, number, START + timedelta(seconds=number / 5))
    return FrameResult(frame, boxes(count), NAMES, **more)


@pytest.fixture
def shadow(tmp_path):
    "Starts a sink whose model does what a word says; ended after the test."
    sinks = []

    def made(kind, limits=LIMITS, folder="shadow", **settings):
        for name in ("current", kind):
            (tmp_path / f"{name}.txt").write_text("good" if name == "current" else kind)
        given = {"opener": OPENER, "wait": True, "learn": 0, "tracker": "none", "hang_s": 60.0, **settings}
        how = ShadowSettings(str(tmp_path / f"{kind}.txt"), str(tmp_path / "current.txt"), **given)
        sinks.append(ShadowSink(tmp_path / folder, how, limits))
        return sinks[-1]

    yield made
    for sink in sinks:
        if sink._thread.is_alive():
            sink.close()


def fed(sink, results):
    "A sink that was given results and closed."
    for r in results:
        sink.write(r)
    sink.close()
    return sink


def mean(sink, column, camera="gate"):
    return {r.column.name: r.mean for r in readings_of(sink.evidence[camera])}[column]


@pytest.mark.parametrize(
    ("kind", "settings", "fault"),
    [
        ("crash at 2", {}, "crash"),
        ("hungry at 2", {"memory_mb": 300}, "memory"),
        ("nan at 2", {}, "NaN"),
        ("failing at 2", {}, "error"),
        ("hang at 2", {"hang_s": 3.0}, "hang"),
    ],
)
def test_whatever_it_does_it_is_started_again_and_then_has_failed(shadow, kind, settings, fault):
    results = [result(n) for n in range(9)]
    sink = fed(shadow(kind, restarts=1, **settings), results)
    known = sink.summary()
    assert known["state"] == "failed" and known["restarts"] == 1
    assert [f["kind"] for f in known["faults"]] == [fault] * 2
    assert known["compared"] == 4 and "problems" not in known
    assert all((r.detections.xyxy == boxes(3).xyxy).all() for r in results)
    assert math.isclose(mean(sink, "errors"), 0 if fault == "hang" else 2 / 6)


def test_one_that_cannot_be_opened_is_not_ready(shadow):
    sink = fed(shadow("good", restarts=0, opener="json:loads"), [result(n) for n in range(3)])
    assert sink.summary()["faults"][0]["kind"] == "not ready" and sink.state == "failed"


def test_killed_from_outside_it_comes_back_and_says_nothing_about_the_model(shadow):
    sink = shadow("good")
    for n in range(6):
        if n == 3:
            until(lambda: sink.counts["compared"] == 3)
            os.kill(sink._process.process.pid, signal.SIGKILL)
        sink.write(result(n))
    sink.close()
    known = sink.summary()
    assert (known["state"], known["compared"], known["faults"][0]["kind"]) == ("comparing", 5, "killed")
    assert mean(sink, "errors") == 0


def test_it_is_the_least_important_process_with_a_limit(shadow, tmp_path):
    sink = shadow("who", wait=False)
    sink.write(result(0))
    until(lambda: sink.counts["compared"] == 1, 240)
    sink.close()
    known = read_json(tmp_path / "who.who", dict)
    assert known["nice"] == 19 and known["idle"] and known["threads"] == "1" and 0 < known["limit"] < 64e9


@pytest.mark.slow
def test_a_live_run_has_a_pause_before_each_new_start_which_doubles(shadow):
    now, starts = [0.0], []
    sink = shadow("crash at 0", wait=False, pause_s=8.0, restarts=9)
    sink.clock = lambda: now[0]
    for second in range(40):
        now[0], faults = float(second), len(sink.faults)
        sink.write(result(second))
        until(lambda n=second + 1: sink.counts["skipped"] + len(sink.faults) == n, 240)
        if len(sink.faults) > faults:
            starts.append(second)
            until(lambda: sink._free.qsize() == sink.slots.count, 60)
    sink.close()
    assert starts == [0, 8, 24] and sink.counts["skipped"] == 37


def test_a_frame_is_skipped_and_counted_when_both_slots_are_taken(shadow):
    sink = shadow("hang", wait=False)
    for n in range(10):
        sink.write(result(n))
    assert sink.counts["skipped"] == 8
    until(lambda: sink._process is not None, 60)
    sink._process.process.kill()
    sink.close()
    assert sink.summary()["compared"] == 0


def test_a_run_that_ends_while_the_model_is_opened_does_not_wait(shadow, tmp_path):
    sink = shadow("unopened", wait=False)
    sink.write(result(0))
    until(lambda: sink._process is not None, 60)
    sink.close()
    assert not sink._thread.is_alive() and read_json(tmp_path / "shadow" / "evidence.json")["faults"] == []


def test_a_share_of_the_frames_of_some_cameras(shadow):
    sink = shadow("good", share=0.25, cameras=("gate",))
    fed(sink, [result(n, camera=c) for n in range(20) for c in ("gate", "dock")])
    assert sink.counts["compared"] == 5 and list(sink.evidence) == ["gate"]


def test_the_same_class_is_the_same_name(shadow):
    sink = fed(shadow("reversed"), [result(n) for n in range(4)])
    assert mean(sink, "disagree") == 0


def test_a_model_that_finds_less_differs_by_as_much(shadow):
    sink = fed(shadow("fewer"), [result(n) for n in range(4)])
    assert math.isclose(mean(sink, "disagree"), 1 / 5) and math.isclose(mean(sink, "count"), -1 / 5)


def test_in_a_canary_the_run_has_the_new_model(shadow):
    "Its failures, its calls and its drops are the new model's; boxes that only it has are more, not fewer."
    limits = replace(LIMITS, p95_ms=10.0)
    slow = [{"timings_ms": {"inference": 30.0 if n == 1 else 3.0}} for n in range(4)]
    live = [result(n * 2, **slow[n]) for n in range(4)]  # every second frame was dropped
    lost = result(8, status="model_error", inferred=False)
    sink = fed(shadow("fewer", limits, role="previous"), [*live, lost])
    assert math.isclose(mean(sink, "count"), 1 / 5) and math.isclose(mean(sink, "errors"), 1 / 5)
    assert mean(sink, "slow") == 0.25 and 0.3 < mean(sink, "dropped") < 0.6


def test_the_runs_own_model_is_timed_first_and_compared_with_itself(shadow, tmp_path):
    sink = shadow("fewer", Limits(columns), learn=6)
    (tmp_path / "current.txt").write_text("fewer at 4")  # it answers differently here than in the run
    fed(sink, [result(n) for n in range(10)])
    assert sink.counts["compared"] == 4 and sink.counts["unlike itself"] == 2
    assert sink.rows.limits.p95_ms > 0 and sink.rows.limits.memory_mb > 20
    assert mean(sink, "slow") in (0, 0.25, 0.5, 0.75, 1)


def test_a_frame_under_an_upkeep_signal_is_left_out_and_counted(shadow):
    sink = shadow("fewer")
    sink.raised = lambda camera: ("dirt",) if sink.counts["frames"] > 2 else ()
    fed(sink, [result(n) for n in range(5)])
    assert sink.summary()["left_out"] == {"dirt": 3} and sink.excused == {"gate": ("dirt",)}
    assert readings_of(sink.evidence["gate"])[0].rows == 2


def test_disagreements_are_kept_apart_and_bounded_with_both_answers(shadow, tmp_path):
    sink = fed(shadow("fewer", pictures=3, apart_s=1.0), [result(n) for n in range(30)])
    kept = read_collected(tmp_path / "shadow" / "disagree")
    rows = [r for _, r in read_json_lines(tmp_path / "shadow" / "disagreements.jsonl")]
    assert sink.summary()["pictures"] == 3 and [r.frame_id for r in kept] == [0, 5, 10]
    assert {r.reasons for r in kept} == {("disagree",)}
    assert [(len(r["old"]), len(r["new"])) for r in rows] == [(3, 2)] * 3
    assert [len(r.detections) for r in kept] == [2] * 3  # only what both have is a draft


def test_a_second_run_continues_and_another_comparison_is_put_aside(shadow, tmp_path):
    first = fed(shadow("good"), [result(n) for n in range(4)])
    second = fed(shadow("good"), [result(n) for n in range(1000, 1004)])
    assert second.run == first.run and readings_of(second.evidence["gate"])[0].rows == 8
    other = shadow("good", replace(LIMITS, known={"loss": 0.1}))
    assert other.run != first.run and not other.evidence
    assert (tmp_path / "shadow" / "evidence-1.json").is_file()


@pytest.mark.parametrize(
    "text", ["{}", "[1", '{"format": "cv_pipeline shadow 1", "about": null, "cameras": 3}']
)
def test_evidence_that_cannot_be_read_is_put_aside(shadow, tmp_path, text):
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / "evidence.json").write_text(text)
    sink = fed(shadow("good"), [])
    assert (tmp_path / "shadow" / "evidence-1.json").read_text() == text and sink.problems


def test_nothing_of_it_reaches_the_run(shadow, tmp_path):
    "Also its own mistakes: a frame that is too large, a folder that goes away."
    sink = shadow("good")
    big = Frame(np.zeros((4000, 8000, 3), np.uint8), "gate", 0, START)
    sink.write(replace(result(0), frame=big))
    sink.raised = lambda camera: 1 / 0
    sink.write(result(1))
    (tmp_path / "file").write_text("")
    sink.folder = tmp_path / "file" / "away"
    sink.close()
    assert sink.summary()["too large"] == 1 and len(sink.summary()["problems"]) == 2


def test_it_dies_with_its_parent(tmp_path):
    (tmp_path / "model.txt").write_text("good")
    code = (
        "import sys; from cv_pipeline.release.shadow import *\n"
        f"s = ShadowSettings({str(tmp_path / 'model.txt')!r}, opener={OPENER!r})\n"
        "p = ShadowProcess(s, s.model, FrameSlots()).open(); print(p.process.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pid = int(parent.stdout.readline())
    os.kill(pid, 0)
    parent.kill()
    parent.communicate()

    def ended():
        try:
            with open(f"/proc/{pid}/stat") as f:
                return f.read().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    assert until(ended, 60)


def test_an_answer_that_is_late_is_a_hang(tmp_path):
    (tmp_path / "model.txt").write_text("hang")
    how, slots = ShadowSettings(str(tmp_path / "model.txt"), opener=OPENER, hang_s=0.2), FrameSlots()
    process = ShadowProcess(how, how.model, slots).open()
    try:
        with pytest.raises(ShadowFault, match="hang: no response within 0.2 s"):
            process.ask(0, (4, 4, 3))
    finally:
        process.close()
    assert process.process.returncode == -signal.SIGKILL


def test_one_that_runs_in_vain_hangs_too_and_one_that_may_not_run_has_more_time(tmp_path, monkeypatch):
    (tmp_path / "model.txt").write_text("spin")
    how, slots = ShadowSettings(str(tmp_path / "model.txt"), opener=OPENER, hang_s=0.3), FrameSlots()
    process = ShadowProcess(how, how.model, slots).open()
    try:
        with pytest.raises(ShadowFault, match="hang"):
            process.ask(0, (4, 4, 3))
        states = iter([("R", 0.0)] * 3 + [("R", 5.0)])  # the machine lets it run after a while
        monkeypatch.setattr("cv_pipeline.release.shadow._cpu_of", lambda pid: next(states))
        with pytest.raises(ShadowFault, match="hang"):
            process.ask(0, (4, 4, 3))
        assert next(states, None) is None
    finally:
        process.close()


def test_metrics_have_every_outcome(shadow):
    sink = fed(shadow("good"), [result(n) for n in range(2)])
    found = {f.name: {tuple(s.labels.values()): s.value for s in f.samples} for f in sink.metric_families()}
    assert found["cv_pipeline_shadow_frames"][("compared",)] == 2
    assert found["cv_pipeline_shadow_failed"][()] == 0


@pytest.mark.parametrize(
    "wrong", [{"share": 1.5}, {"role": "twin"}, {"restarts": -1}, {"opener": "json"}, {"hang_s": 0}]
)
def test_settings_that_cannot_work(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ShadowSettings("model", **wrong)


def test_thresholds_are_part_of_the_digest(tmp_path):
    with pytest.raises(CVPipelineError):
        model_digest(str(tmp_path / "none"))
    assert len(model_digest("factory_line")) == 64


# a real run, with and without


def configured(out, **more):
    given = {"sources": ["line:frames=120,seed=5"], "delivery.out": str(out), "selection.every": 2}
    return load_config(None, {**given, "tracker.name": "bytetrack", **more})


def table(out):
    found = pq.read_table(out / "results.parquet")
    return found.drop([c for c in found.column_names if c.endswith("_ms") or "captured" in c])


def lines(out):
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("timings_ms", "captured_at")} for r in rows]


@pytest.mark.slow
def test_a_run_has_the_same_bytes_with_and_without_a_shadow_that_is_killed(tmp_path):
    killed = []

    def ready(url, pipeline):
        sink = next(s for s in pipeline.sinks if isinstance(s, ShadowSink))
        write = sink.write

        def kill(result):
            write(result)
            process = sink._process
            if len(sink.times) > 2 and process is not None and not killed:
                killed.append(process.process.pid)
                os.kill(process.process.pid, signal.SIGKILL)

        sink.write = kill

    with_it = {"shadow": {"model": "factory_line", "wait": True}, "postprocess.conf": 0.6}
    summary = run_config(configured(tmp_path / "with", **with_it), on_ready=ready)
    run_config(configured(tmp_path / "without", **{"postprocess.conf": 0.6}))
    assert table(tmp_path / "with").num_rows > 0
    assert table(tmp_path / "with").equals(table(tmp_path / "without"))
    assert lines(tmp_path / "with") == lines(tmp_path / "without")
    assert len(lines(tmp_path / "with")) == 120
    known = summary["sinks"]["shadow"]
    assert known["restarts"] == len(killed) == 1 and known["skipped"] == 0
    assert known["state"] == "comparing" and known["disagree"] == 0
    assert "unlike itself" not in known
