"""The command `cv-pipeline` as a process."""

import signal
import subprocess
import sys
from pathlib import Path

CLI = str(Path(sys.executable).with_name("cv-pipeline"))
STARTED: list[subprocess.Popen] = []


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
