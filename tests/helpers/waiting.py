"""Waiting for what other threads and processes do: on a condition, with a limit; the pace of a device that a
test plays; and signals that do not end the tests themselves."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


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


@contextmanager
def harmless(number: int) -> Iterator[object]:
    """A signal that a test sends to its own process ends it in no case: it would take the other tests of the
    worker along. Gives the handler that does nothing."""
    before = signal.signal(number, lambda *_: None)
    try:
        yield signal.getsignal(number)
    finally:
        signal.signal(number, before)
