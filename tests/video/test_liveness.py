"""Whatever fails, and wherever: the run ends, its error is typed, its files are there, and /healthz knows."""

import json
import threading
import time
from argparse import Namespace
from contextlib import suppress
from unittest.mock import patch

import numpy as np
import pytest

from cv_pipeline.core.config import RuntimeConfig, load_config
from cv_pipeline.core.types import (
    BackendError,
    CVPipelineError,
    SinkError,
    SourceError,
    UnexpectedError,
    unexpected,
)
from cv_pipeline.inference.backends import Model
from cv_pipeline.inference.loading import load_model
from cv_pipeline.service import assembly
from cv_pipeline.synthetic.line import open_line
from cv_pipeline.video import pipeline as room
from cv_pipeline.video.health import healthz, readyz
from cv_pipeline.video.pipeline import Pipeline
from cv_pipeline.video.reconnect import Backoff, ReconnectingSource
from tests.campaigns import liveness
from tests.helpers.interrupted_runs import Endless, Remembers
from tests.helpers.waiting import until

LINE = "line:width=160,height=120,frames=12"


@pytest.fixture(scope="module")
def model():
    real = load_model("factory_line", threads=1)
    answer = real.backend.infer(real.preprocess.batch([next(iter(Endless())).image])[0])
    return Model(real.manifest, Remembers(answer), real.preprocess, real.postprocess)


class Counts:
    "A sink that counts, and may fail or wait."

    def __init__(self, fails=None, waits=None):
        self.fails, self.waits, self.frames, self.closed = fails, waits, 0, 0
        self.writing = threading.Event()

    def write(self, result):
        self.writing.set()
        if self.waits is not None:
            self.waits.wait()
        if self.fails is not None:
            raise self.fails
        self.frames += 1

    def close(self):
        self.closed += 1


# --- the campaign, in small


@pytest.fixture(scope="module")
def struck(tmp_path_factory):
    "Outcomes of eight points with three errors each, and what a run without one looks like."
    worker = liveness.Worker(tmp_path_factory.mktemp("liveness"))
    survey = worker.ask()
    asked = [s for s in liveness.strikes(survey, 24, seed=5) if s.error == liveness.ERRORS[s.point % 3]]
    outcomes = list(liveness.trials(worker, asked))
    threads = liveness.without_threads(worker)
    worker.close()
    return survey, outcomes, threads


@pytest.mark.slow
def test_a_run_that_nothing_strikes_is_as_promised(struck):
    assert struck[0]["wrong"] == []


@pytest.mark.slow
def test_there_are_enough_points_to_strike_at(struck):
    assert len(struck[0]["counts"]) >= 300


@pytest.mark.slow
def test_no_exception_at_a_call_breaks_a_promise(struck):
    assert {s.name: o for s, o in struck[1] if o["wrong"]} == {}


@pytest.mark.slow
def test_a_run_ends_when_any_of_its_threads_cannot_be_started(struck):
    assert (struck[2].tried >= 6, struck[2].wrong) == (True, 0)


@pytest.mark.slow
def test_most_of_the_exceptions_have_struck(struck):
    assert sum(o["struck"] is not None for _, o in struck[1]) >= len(struck[1]) / 2


def test_points_are_drawn_from_those_that_a_run_passes():
    survey = {"points": ["a: x()", "b: y()", "c: z()"], "counts": {"1": [4, ["_deliver"]]}}
    assert {(s.point, s.group) for s in liveness.strikes(survey, 9, 0)} == {
        (1, "delivering thread and its sinks")
    }


def test_the_campaign_refuses_a_run_that_is_wrong_by_itself():
    broken = {"ended": "done", "wrong": ["no summary"], "counts": {}, "points": []}
    options = Namespace(points=1, seed=0, only="", sizes=0)
    with (
        patch.object(liveness.Worker, "ask", lambda self: broken),
        pytest.raises(SystemExit, match="summary"),
    ):
        list(liveness.run(options))


# --- threads


@pytest.mark.parametrize("error", [MemoryError("no more"), OSError(5, "io"), RuntimeError("a bug")])
def test_what_is_unexpected_is_typed_and_has_an_exit_code_of_its_own(error):
    typed = unexpected(error, "closing")
    assert (type(typed), typed.exit_code) == (UnexpectedError, 70)


def test_a_typed_error_stays_what_it_is():
    error = SinkError("disk full")
    assert unexpected(error, "closing") is error


@pytest.mark.parametrize("where", ["_hand_out", "_ask", "_fill", "_next_items"])
def test_a_bug_in_any_stage_ends_the_run(model, monkeypatch, where):
    def bug(*_):
        raise MemoryError("struck")

    monkeypatch.setattr(room, where, bug)
    sink, pipeline = Counts(), Pipeline([Endless()], model, [])
    pipeline.attach([sink])
    with pytest.raises(UnexpectedError, match="struck"):
        pipeline.run()
    assert sink.closed == 1


def test_failing_that_fails_too_does_not_hang(model, monkeypatch):
    "No memory is left, in the body of a thread and where it would report that."

    def bug(*_):
        raise MemoryError("struck")

    reported, real = [], room._Run.fail

    def fail(run, error, stage=None):
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError("again")
        reported.append(str(error))
        real(run, error, stage)

    monkeypatch.setattr(room, "_hand_out", bug)
    monkeypatch.setattr(room._Run, "fail", fail)
    with pytest.raises(UnexpectedError, match="struck"):
        Pipeline([Endless()], model, [Counts()]).run()
    assert len(reported) == 1


@pytest.mark.parametrize("stage", ["deliver", "inference", "preprocess"])
def test_a_stage_that_cannot_let_go_is_spoken_for(model, monkeypatch, stage):
    def stuck(run):
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError("cannot let go")
        for name, _, let_go in before:
            if name == stage:
                let_go(run)

    before = room._THREADS
    changed = tuple((n, body, stuck if n == stage else let_go) for n, body, let_go in before)
    monkeypatch.setattr(room, "_THREADS", changed)
    sink = Counts()
    pipeline = Pipeline([open_line(LINE, "line")], model, [sink])
    with pytest.raises(UnexpectedError, match="cannot let go"):
        pipeline.run()
    assert sink.closed == 1


def test_a_reader_that_vanishes_ends_its_camera(model, monkeypatch):
    monkeypatch.setattr(room, "_read", lambda run, channel: None)
    summary = Pipeline([open_line(LINE, "line")], model, []).run()
    assert summary["sources"]["line"]["state"] == "failed"


@pytest.mark.parametrize("number", range(4))
def test_no_room_for_another_thread(model, number):
    "The k-th thread of the run cannot be started: a typed error, and everything is closed."
    real, begun = threading.Thread.start, []

    def start(thread):
        ours = thread.name.startswith(("_", "read "))  # not one of something else in this process
        begun.extend([thread] * ours)
        if ours and len(begun) == number + 1:
            raise RuntimeError("can't start new thread")
        real(thread)

    sink, source = Counts(), Endless()
    closed = []
    source.close = lambda: closed.append(1)
    with (
        patch.object(threading.Thread, "start", start),
        pytest.raises(UnexpectedError, match="ulimit -u"),
    ):
        Pipeline([source], model, [sink]).run()
    assert (sink.closed, bool(closed)) == (1, True)


def test_a_source_that_cannot_be_closed_has_been_read_all_the_same(model):
    source = open_line(LINE, "line")

    def close():
        raise OSError(5, "Input/output error")

    source.close = close
    assert Pipeline([source], model, []).run()["sources"]["line"]["state"] == "done"


def test_a_model_that_cannot_be_released_spoils_no_results(model):
    class Stuck(Remembers):
        def close(self):
            raise RuntimeError("device lost")

    stuck = Model(model.manifest, Stuck(model.backend.answer), model.preprocess, model.postprocess)
    pipeline = Pipeline([open_line(LINE, "line")], stuck, [])
    pipeline.run()
    assert pipeline.close() is None


# --- stuck


def test_a_stage_that_is_stuck_is_not_ready(model):
    disk = threading.Event()
    sink = Counts(waits=disk)
    pipeline = Pipeline([Endless()], model, [sink])
    thread = threading.Thread(target=lambda: suppress(CVPipelineError) and pipeline.run(), daemon=True)
    thread.start()
    until(sink.writing.is_set)
    status = lambda: readyz(pipeline.summary(), 0.05)[1]["reason"]
    until(lambda: "deliver has not finished a frame" in (status() or ""))
    alive = healthz(pipeline.summary())[0]
    pipeline.stop(discard=True)
    disk.set()
    thread.join(10)
    assert alive == 200  # it may pass: no reason to kill it


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_that_is_to_end_does_not_wait_for_a_dead_disk(model, monkeypatch, fails):
    monkeypatch.setattr(room, "_STALL_S", 0.3)
    monkeypatch.setattr(room, "_PATIENCE_S", 0.05)
    disk = threading.Event()
    sink = Counts(waits=disk)
    pipeline = Pipeline([Endless()], model, [sink])

    def tick(p):
        if sink.writing.is_set() and not p.interrupted and p.summary()["error"] is None:
            p._run.fail(BackendError("the model broke")) if fails else p.interrupt()

    with pytest.raises(BackendError if fails else SinkError):
        pipeline.run(tick)  # while the sink still waits for the disk
    assert pipeline.unfinished
    disk.set()
    until(lambda: not pipeline.unfinished)


def test_a_file_waits_for_a_sink_that_is_slow(model):
    "Nothing is lost when a sink blocks for a while."
    disk = threading.Event()
    sink = Counts(waits=disk)
    pipeline, ticks = Pipeline([open_line(LINE, "line")], model, [sink]), []

    def tick(p):
        ticks.append(1)
        if len(ticks) > 2:
            disk.set()

    pipeline.run(tick)
    assert sink.frames == 12


# --- health


HEALTHY = {
    "error": None,
    "warm": True,
    "model": {"state": "ready", "failed_batches": 0},
    "seconds": 60.0,
    "sources": {"gate": {"state": "running", "seconds_since_frame": 0.1, "error": None}},
    "stages": {"deliver": {"seconds_in_hand": None}, "inference": {"seconds_in_hand": 0.4}},
}


def test_a_healthy_run_is_ready():
    assert readyz(HEALTHY, 10)[0] == 200


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model": {"state": "ready", "failed_batches": 3}}, "failed for the last 3 batches"),
        ({"stages": {"deliver": {"seconds_in_hand": 12.0}}}, "deliver has not finished a frame for 12 s"),
        ({"stages": {"inference": {"seconds_in_hand": 61.2}}}, "inference has not finished a frame for 61 s"),
        ({"error": "disk full"}, "disk full"),
        ({"dead": ["deliver"]}, "the thread of deliver has ended"),
        ({"warm": False}, "warming up"),
    ],
)
def test_why_a_run_is_not_ready(change, words):
    status, body = readyz({**HEALTHY, **change}, 10)
    assert (status, words in body["reason"]) == (503, True)


@pytest.mark.parametrize("failed, status", [(0, 200), (2, 200), (3, 503)])
def test_three_failed_batches_are_too_many(failed, status):
    assert readyz({**HEALTHY, "model": {"state": "ready", "failed_batches": failed}}, 10)[0] == status


@pytest.mark.parametrize("change", [{"error": "disk full"}, {"dead": ["inference"]}])
def test_a_dead_run_is_not_alive(change):
    assert healthz({**HEALTHY, **change})[0] == 503


def test_a_model_that_answers_again_is_ready_again(model):
    class Sick(Remembers):
        calls = 0

        def infer(self, batch):
            self.calls += 1
            if 3 <= self.calls <= 12:  # five batches, each asked twice
                raise BackendError("device lost", self.name)
            return self.answer

    sick = Model(model.manifest, Sick(model.backend.answer), model.preprocess, model.postprocess)
    seen = []

    class Watches(Counts):
        def write(self, result):
            seen.append((result.status, readyz(pipeline.summary(), 60)[0]))

    runtime = RuntimeConfig(on_model_error="skip", max_batch=1, queue_size=1)
    pipeline = Pipeline([open_line(LINE, "line")], sick, [Watches()], runtime=runtime)
    pipeline.run()
    assert [s for s, _ in seen] == ["ok"] * 2 + ["model_error"] * 5 + ["ok"] * 5
    assert readyz(pipeline.summary(), 60)[1]["reason"] is None and 503 in {ready for _, ready in seen}


# --- the folder


def config(folder, **more):
    return load_config(None, {"sources": [LINE], "delivery.out": str(folder), "model.threads": 1, **more})


def test_a_start_that_fails_leaves_a_summary_and_closed_files(tmp_path):
    sink = Counts()

    def on_ready(url, pipeline):
        pipeline.attach([sink])
        raise OSError(28, "No space left on device")

    with pytest.raises(CVPipelineError):
        assembly.run_config(config(tmp_path), on_ready=on_ready)
    error = json.loads((tmp_path / "summary.json").read_text())["error"]
    assert (sink.closed, "No space left" in error) == (1, True)


def test_a_summary_that_cannot_be_described_is_at_least_its_counts(tmp_path, monkeypatch):
    def broken(*_):
        raise MemoryError("no more")

    monkeypatch.setattr(assembly, "environment", broken)
    with pytest.raises(UnexpectedError):
        assembly.run_config(config(tmp_path))
    assert json.loads((tmp_path / "summary.json").read_text())["frames_delivered"] == 12


def test_a_sink_that_has_no_summary_spoils_no_run(tmp_path, monkeypatch):
    def broken(self):
        raise RuntimeError("a bug")

    monkeypatch.setattr("cv_pipeline.monitoring.exporter.MonitoringSink.summary", broken)
    summary = assembly.run_config(config(tmp_path, telemetry={}))
    assert "a bug" in summary["sinks"]["telemetry"]["problem"]


def test_sources_and_model_of_a_run_that_is_not_built_are_closed(tmp_path, monkeypatch):
    closed = []

    def opened(configs, gates=None):
        source = open_line(LINE, "line")
        source.close = lambda: closed.append("source")
        return [source]

    def refuses(*_, **__):
        raise MemoryError("no more")

    monkeypatch.setattr(assembly, "open_configured", opened)
    monkeypatch.setattr(assembly, "Pipeline", refuses)
    with pytest.raises(MemoryError):
        assembly.build_pipeline(config(tmp_path))
    assert closed == ["source"]


# --- cameras


@pytest.mark.parametrize("error", [MemoryError("no more"), OSError(24, "fds"), RuntimeError("no thread")])
def test_a_camera_comes_back_after_the_machine_ran_out_of_something(error):
    tries, frames = [], [np.zeros((4, 4, 3), np.uint8)]

    class Wire:
        source_id, live = "gate", True

        def __iter__(self):
            yield from (room.Frame(f, "gate", k, START) for k, f in enumerate(frames))

        def close(self):
            pass

    def connect():
        tries.append(1)
        if len(tries) == 1:
            raise error
        return Wire()

    from tests.helpers.interrupted_runs import START

    camera = ReconnectingSource(connect, "gate", backoff=Backoff(0.001, 0.002))
    first = next(iter(camera))
    camera.close()
    assert (first.frame_id, len(tries)) == (0, 2)


def test_a_camera_that_no_thread_could_open_is_tried_again():
    def no_room(self):
        raise RuntimeError("can't start new thread")

    with patch.object(threading.Thread, "start", no_room):
        opening = assembly.Opening(lambda: "opened", "gate")
    with pytest.raises(SourceError, match="can't start new thread"):
        opening()
    assert opening() == "opened"


# --- memory


class Spins(Counts):
    "A sink in a library that burns time until it is told to stop, once."

    def __init__(self, until):
        super().__init__()
        self.until, self.longest = until, time.monotonic() + 300

    def write(self, result):
        while self.frames == 0 and not self.until():
            assert time.monotonic() < self.longest, "nothing told it to stop"
        super().write(result)


def test_a_run_that_spins_without_memory_fails(model, monkeypatch):
    monkeypatch.setattr(room, "_SPIN_S", 0.2)
    monkeypatch.setattr(room, "address_space_left", lambda: 1e6)
    sink = Spins(lambda: pipeline.summary()["error"])
    pipeline = Pipeline([Endless()], model, [sink])
    with pytest.raises(UnexpectedError, match="no memory is left"):
        pipeline.run()
    assert sink.closed == 1


def test_a_run_that_is_only_busy_goes_on(model, monkeypatch):
    monkeypatch.setattr(room, "_SPIN_S", 0.2)
    ticks = []
    sink = Spins(lambda: len(ticks) > 3)
    Pipeline([open_line(LINE, "line")], model, [sink]).run(lambda p: ticks.append(1))
    assert sink.frames == 12
