"""Lives of a device that gets an update: killed at a step, by an exception or by SIGKILL, and begun again."""

import multiprocessing
import os
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path

from cv_pipeline.core.types import DataError
from cv_pipeline.edge.slots import Slots, install_version

FORK = multiprocessing.get_context("fork")
KINDS = ("good", "bad health", "damaged", "kills its agent")


class Killed(BaseException):
    "Everything ends where it stands."


def live(folder, bundle, digest, kind, step, started):
    "One life of a device: install, try, judge."
    with Slots(folder, step=step) as slots:
        new = digest != slots.state.current and digest not in slots.state.blocked
        if new and not slots.state.trying:
            with suppress(DataError):
                install_version(folder, bundle, digest, step)
                slots.begin(digest)
        place = slots.start()
        started(place.name)
        if kind == "kills its agent" and place.name == digest[:12]:
            if multiprocessing.parent_process() is not None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Killed
        if slots.state.trying:
            slots.rollback("not ready") if kind == "bad health" else slots.commit()


def _killed_life(folder, bundle, digest, kind, stop_at, counter):
    "In a process of its own, which SIGKILL ends at a step."

    def step(name):
        with counter.get_lock():
            counter.value += 1
            stop = counter.value == stop_at
        if stop:
            os.kill(os.getpid(), signal.SIGKILL)

    def started(name):
        with open(folder / "starts", "a") as file:
            file.write(name + "\n")

    live(folder, bundle, digest, kind, step, started)


def killed_lives(folder: Path, bundle, digest, kind, stop_at, lives=6) -> tuple[Counter, list[int], int]:
    "Starts of each version, exit codes of the lives, and the number of steps, of a device killed at a step."
    counter, ends = FORK.Value("i", 0), []
    for _ in range(lives):
        args = (folder, bundle, digest, kind, stop_at, counter)
        process = FORK.Process(target=_killed_life, args=args)
        process.start()
        process.join(60)
        ends.append(process.exitcode)
    starts = folder / "starts"
    found = Counter(starts.read_text().split() if starts.exists() else [])
    starts.unlink(missing_ok=True)
    return found, ends, counter.value
