"Signals that end a service: heard whatever the main thread does, and given back afterwards."

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cv_pipeline.core.background import stopped_by_signals

ROOT = Path(__file__).resolve().parents[2]
BETWEEN = """
import os, signal, threading
from cv_pipeline.core.background import stopped_by_signals
stop, again = threading.Event(), threading.Event()
with stopped_by_signals(stop, again):
    for event, number in ((again, signal.SIGHUP), (stop, {last})):
        with event._cond:  # where a main thread is for a moment of each `event.wait`
            os.kill(os.getpid(), number)
        assert event.wait(20)
print("ended")
"""


@pytest.mark.parametrize("last", ["signal.SIGTERM", "signal.SIGINT"])
def test_a_signal_that_comes_while_the_main_thread_holds_the_lock_is_heard(last):
    done = subprocess.run(
        [sys.executable, "-c", BETWEEN.format(last=last)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


def test_handlers_and_threads_are_as_before_when_the_block_ends():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before, threads = [signal.getsignal(n) for n in numbers], threading.active_count()
    with stopped_by_signals(threading.Event(), threading.Event()):
        assert [signal.getsignal(n) for n in numbers] != before
    assert [signal.getsignal(n) for n in numbers] == before
    assert threading.active_count() == threads


def test_without_a_second_event_a_hangup_does_what_it_did():
    before = signal.getsignal(signal.SIGHUP)
    with stopped_by_signals(threading.Event()):
        assert signal.getsignal(signal.SIGHUP) == before


def test_in_another_thread_nothing_changes():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with stopped_by_signals(threading.Event()):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert seen == [before]
