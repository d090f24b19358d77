"""Waiting for what other threads and processes do: on a condition, with a limit; the pace of a device that a
test plays; and work in a process of its own."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]


def until(
    happened: Callable[[], object], seconds: float = 15.0, process: subprocess.Popen | None = None
) -> bool:
    """Wait until it has happened. AssertionError when it does not in time, or when the process that should do
    it has ended."""
    end, pause = time.monotonic() + seconds, threading.Event()
    while not happened():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the process has ended: {process.communicate()}")
        if time.monotonic() > end:
            if process is not None:
                process.kill()  # nobody will end it after this test
            raise AssertionError(f"it did not happen within {seconds} s")
        pause.wait(0.01)
    return True


def paced(items: Iterable[T], seconds: float, gone: threading.Event | None = None) -> Iterator[T]:
    """Items at the pace of a device: one every so many seconds, by its own clock; it stops when nobody
    listens any more."""
    began, gone = time.monotonic(), gone or threading.Event()
    for k, item in enumerate(items):
        if gone.wait(max(0.0, began + k * seconds - time.monotonic())):
            return
        yield item


def apart(work: Callable[..., object], *words: str | Path, seconds: float = 300.0) -> None:
    """Call a function of a test file with these words in a process of its own: signals that it
    sends to itself meet no other test. AssertionError with what it printed when it fails."""
    code = f"import sys; from {work.__module__} import {work.__name__} as work; work(*sys.argv[1:])"
    command = [sys.executable, "-c", code, *map(str, words)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, said = process.communicate(timeout=seconds)
        except BaseException:
            process.kill()
            raise
    assert process.returncode == 0, f"it ended with {process.returncode}: {said[-4000:]}"
