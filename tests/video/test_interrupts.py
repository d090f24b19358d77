"""Ctrl-C at any moment: the run ends, its files are whole, and what is not whole is reported."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import av
import pytest

from cv_pipeline.core.results import read_results
from cv_pipeline.inference.backends import Model
from cv_pipeline.inference.loading import load_model
from cv_pipeline.video import pipeline as room
from cv_pipeline.video.pipeline import Pipeline, interruptible
from tests.helpers.cli import hears_ctrl_c, lines_in, start_endless
from tests.helpers.interrupted_runs import Endless, Remembers
from tests.helpers.waiting import until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model():
    real = load_model("factory_line", threads=1)
    answer = real.backend.infer(real.preprocess.batch([next(iter(Endless())).image])[0])
    return Model(real.manifest, Remembers(answer), real.preprocess, real.postprocess)


@pytest.fixture(scope="module", params=["pipeline", "config"])
def hundred(request, tmp_path_factory):
    "A hundred runs, each interrupted once, twice or three times at moments that are drawn by lot."
    command = [
        sys.executable,
        "-m",
        "tests.helpers.interrupted_runs",
        tmp_path_factory.mktemp("runs"),
        "100",
        "0",
        request.param,
    ]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]  # a deadlock shows the stacks of all threads
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_hundred_random_moments_leave_whole_files(hundred):
    assert [r for r in hundred if r["problems"]] == []


def test_the_moments_fall_into_the_run(hundred):
    assert (
        sum(r["frames"] > 0 for r in hundred) >= 50
    )  # every second run is interrupted after its first frame


class Hangs:
    "A sink on a disk that does not answer."

    def __init__(self):
        self.writing, self.disk, self.closed = threading.Event(), threading.Event(), 0

    def write(self, result):
        self.writing.set()
        self.disk.wait()

    def close(self):
        self.closed += 1


@pytest.fixture
def given_up(model, monkeypatch):
    "A run whose sink hangs, after the third interrupt."
    monkeypatch.setattr(room, "_PATIENCE_S", 0.05)
    sink = Hangs()
    pipeline = Pipeline([Endless()], model, [sink])
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(lambda p: p.interrupt() if sink.writing.is_set() else None)
    yield pipeline, sink
    sink.disk.set()


def test_a_sink_that_hangs_is_left_alone(given_up):
    assert given_up[1].closed == 0


def test_that_results_are_missing_is_reported(given_up):
    assert "the results are incomplete" in given_up[0].summary()["error"]


def test_a_model_that_may_be_in_use_is_not_closed(given_up, monkeypatch):
    closed = []
    monkeypatch.setattr(given_up[0]._run.backend, "close", lambda: closed.append(1))
    given_up[0].close()
    assert closed == []


def test_a_sink_that_answers_after_all_is_closed_by_its_writer(given_up):
    given_up[1].disk.set()
    until(lambda: not given_up[0].unfinished)
    assert given_up[1].closed == 1


def test_an_interrupt_before_the_run_ends_it_at_once(model):
    pipeline = Pipeline([Endless()], model, [])
    pipeline.interrupt()
    assert pipeline.run()["interrupted"]


def test_a_warm_up_that_hangs_can_be_interrupted(model, monkeypatch):
    monkeypatch.setattr(room, "_PATIENCE_S", 0.05)
    driver = threading.Event()
    monkeypatch.setattr(Remembers, "warmup", lambda self: driver.wait())
    pipeline = Pipeline([Endless()], model, [])
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(lambda p: p.interrupt())
    driver.set()
    until(lambda: not pipeline.unfinished)
    assert pipeline.summary()["frames_delivered"] == 0


# --- handlers: asked in a process of its own, whose main thread is ours

HANDLERS = """
import json, signal, sys
import numpy as np
from cv_pipeline.inference.backends import Model
from cv_pipeline.inference.loading import load_model
from cv_pipeline.video.pipeline import Pipeline, interruptible
from tests.helpers.interrupted_runs import Endless, Remembers
{code}
"""


def in_main_thread(code: str):
    "What a program prints, as JSON."
    done = subprocess.run(
        [sys.executable, "-c", HANDLERS.format(code=code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=hears_ctrl_c,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_handlers_come_back():
    code = """
numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
before = [signal.getsignal(n) for n in numbers]
with interruptible(None): inside = [signal.getsignal(n) for n in numbers]
after = [signal.getsignal(n) for n in numbers]
print(json.dumps([after == before, [i != b for i, b in zip(inside, before)]]))
"""
    assert in_main_thread(code) == [True, [True, True, True]]


@pytest.mark.slow
def test_handlers_of_the_program_and_ignored_signals_stay():
    code = """
mine = lambda *_: None
signal.signal(signal.SIGTERM, mine); signal.signal(signal.SIGHUP, signal.SIG_IGN)
with interruptible(None):
    kept = signal.getsignal(signal.SIGTERM) is mine
    print(json.dumps([kept, signal.getsignal(signal.SIGHUP) == signal.SIG_IGN]))
"""
    assert in_main_thread(code) == [True, True]


@pytest.mark.slow
def test_runs_follow_each_other_in_one_process():
    code = """
real = load_model("factory_line", threads=1)
answer = real.backend.infer(real.preprocess.batch([next(iter(Endless())).image])[0])
model, ends = Model(real.manifest, Remembers(answer), real.preprocess, real.postprocess), []
def press(p):
    if p.summary()["frames_delivered"] and not p.interrupted: signal.raise_signal(signal.SIGINT)
for k in range(5): ends.append(Pipeline([Endless()], model, []).run(press)["interrupted"])
print(json.dumps(ends))
"""
    assert in_main_thread(code) == [True] * 5


def test_outside_of_the_main_thread_nothing_changes():
    found = []

    def look():
        before = signal.getsignal(signal.SIGTERM)
        with interruptible(None):
            found.append(signal.getsignal(signal.SIGTERM) == before)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [True]


# --- the command


@pytest.mark.slow
@pytest.mark.parametrize(
    "signals",
    [[signal.SIGHUP], [signal.SIGTERM, signal.SIGTERM], [signal.SIGINT] * 3],
    ids=["SIGHUP", "SIGTERM twice", "Ctrl-C three times"],
)
def test_the_command_finishes_its_files(tmp_path, signals):
    process = start_endless(tmp_path, "--save-video")
    assert until(lambda: lines_in(tmp_path / "results.jsonl") > 10, 60, process)
    for number in signals:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signals[0], err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["interrupted"] and summary["error"] is None
    assert summary["signal"] == signals[0].name
    assert summary["frames_delivered"] == lines_in(tmp_path / "results.jsonl")
    assert summary["detections"] == read_results(tmp_path).num_rows
    with av.open(str(next(tmp_path.glob("*.mp4")))) as film:
        assert sum(1 for _ in film.decode(video=0)) == summary["frames_delivered"]


@pytest.mark.slow
def test_the_command_says_when_it_did_not_wait(tmp_path):
    "Three interrupts while a sink hangs: the process ends, and says what is missing."
    code = f"""
import os, sys, threading
from cv_pipeline.commands.main import main
from cv_pipeline.service import assembly as run
from tests.video.test_interrupts import Hangs
sink = Hangs()
run.open_sinks = lambda config, heard=(): [sink]
threading.Thread(target=lambda: (sink.writing.wait(), print("writing", flush=True)), daemon=True).start()
sys.argv = ["cv-pipeline", "run", "line:", "--out", {str(tmp_path)!r}]
main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,
    )
    assert process.stdout.readline() == "writing\n", process.communicate()
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        threading.Event().wait(0.3)  # two signals that come at once are one
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err and "Traceback" not in err
    assert "incomplete" in json.loads((tmp_path / "summary.json").read_text())["error"]
