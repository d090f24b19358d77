"""The command as a process of its own, in a tenth of a second: a child of this process, which has imported
the package, becomes the leader of its own group and runs the command with its arguments."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path


def run_command(arguments: Sequence[str]) -> None:
    "What `cv-pipeline ARGUMENTS` does."
    from cv_pipeline.commands.main import main

    sys.argv = ["cv-pipeline", *arguments]
    try:
        main()
    except SystemExit as e:
        if e.code:
            raise


@dataclass
class Child:
    "A process and all that it starts."

    pid: int
    code: int | None = None

    def poll(self) -> int | None:
        "Its exit code once it has ended."
        if self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
        return self.code

    def wait(self, seconds: float) -> int | None:
        "Its exit code; None when it has not ended within these seconds, then it is killed."
        until = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        if self.code is None:
            self.kill()
            return None
        return self.code

    def kill(self) -> None:
        "SIGKILL for the group."
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def quick_folder() -> str | None:
    "A folder in memory, where there is one: a kill is the same there, and a busy disk does not count."
    place = Path("/dev/shm")
    return str(place) if place.is_dir() and os.access(place, os.W_OK) else None


def start(work: Callable[[], object], log: Path, folder: Path | None = None) -> Child:
    "Begin some work in a child, which ends with this process; what it prints goes into the log."
    sys.stdout.flush(), sys.stderr.flush()
    parent, pid = os.getpid(), os.fork()
    if pid:
        with suppress(OSError):
            os.setpgid(pid, pid)  # here too: whoever kills the group at once must find it
        return Child(pid)
    code = 1
    try:
        os.setpgid(0, 0)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(9)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(folder or log.parent)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))
        random.seed(os.getpid())
        work()
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def outcome(work: Callable[[], object], log: Path, seconds: float = 300) -> int | None:
    "The exit code of some work in a child."
    return start(work, log).wait(seconds)


@dataclass
class Changes:
    "Tells whether files have appeared, grown or gone below a folder since it was asked last."

    folder: Path
    before: dict[str, tuple[int, int]] = field(default_factory=dict)

    def any(self) -> bool:
        now: dict[str, tuple[int, int]] = {}
        todo = [str(self.folder)]
        while todo:
            with suppress(OSError), os.scandir(todo.pop()) as entries:
                for entry in entries:
                    with suppress(OSError):
                        about = entry.stat(follow_symlinks=False)
                        now[entry.path] = about.st_size, about.st_mtime_ns
                        if entry.is_dir(follow_symlinks=False):
                            todo.append(entry.path)
        changed, self.before = now != self.before, now
        return changed
