"""The command `cv-pipeline`, as a process and in this one."""

import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

CLI = str(Path(sys.executable).with_name("cv-pipeline"))
STARTED: list[subprocess.Popen] = []


def as_process(*args: object, timeout: float = 120) -> subprocess.CompletedProcess:
    "In a process of its own: for a run, a lock or a disk that another process is the point of."
    return subprocess.run([CLI, *map(str, args)], capture_output=True, text=True, timeout=timeout)


def called(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """The same entry point, called here: exit code and texts of a process, without the second that its
    imports take."""
    from cv_pipeline.commands.main import main

    out, err, before = StringIO(), StringIO(), os.getcwd()
    words = ["cv-pipeline", *map(str, args)]
    os.chdir(cwd or before)
    try:
        with patch.object(sys, "argv", words), redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as e:
        return subprocess.CompletedProcess(words, e.code or 0, out.getvalue(), err.getvalue())
    finally:
        os.chdir(before)
    raise AssertionError("the entry point has returned without an exit code")


def hears_ctrl_c() -> None:
    """A shell starts background jobs deaf to Ctrl-C, `nohup` deaf to a hang-up, and a test run may be one;
    the program under test is not."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def start_endless(out: Path, *args: str) -> subprocess.Popen:
    "A run over a source that never ends; whatever becomes of the test, the process ends with it."
    STARTED.append(
        subprocess.Popen(
            [CLI, "run", "line:", "--out", str(out), *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=hears_ctrl_c,
        )
    )
    return STARTED[-1]


def end_started() -> None:
    "Kill what a failed test has left running."
    while STARTED:
        STARTED.pop().kill()


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
