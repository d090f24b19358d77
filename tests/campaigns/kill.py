"""kill -9 at a random moment: the result is absent, whole or continued by the same command."""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cv_pipeline.core.types import CVPipelineError, DataError
from tests.campaigns import Outcome
from tests.campaigns._forked import Changes, Child, outcome, quick_folder, run_command, start

VOLATILE = {"made_at", "started", "started_at", "finished", "finished_at", "resumed", "seconds", "created_at"}
PATIENCE_S = 240


def cleaned(value: Any) -> Any:
    "A JSON value without what differs from run to run."
    if isinstance(value, dict):
        return {k: cleaned(v) for k, v in value.items() if k not in VOLATILE}
    return [cleaned(v) for v in value] if isinstance(value, list) else value


def tree(folder: Path, but: Iterable[str] = ()) -> dict[str, str]:
    "Visible files below a folder and their hashes."
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(p.startswith(".") for p in name.split("/")) and path.name not in but:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def present(path: Path) -> Path:
    "DataError when nothing is there."
    if not path.exists():
        raise DataError("nothing is there", path)
    return path


@dataclass
class Job:
    "A command whose result can be looked at through what the package's readers say."

    name: str
    arguments: Callable[[Path], list[str]]  # the trial's folder → the command line
    read: Callable[[Path], Any]  # the trial's folder → the result; CVPipelineError when it is refused
    setup: Callable[[Path], Any] = lambda folder: None
    again: Callable[[Path], list[str]] | None = None  # the second start, where it differs
    partial: Callable[[Path, Any], str] = lambda folder, whole: ""  # what is wrong with a part, if anything
    seconds: float = 0.0  # of an undisturbed command
    whole: Any = None  # its result
    before: Any = None  # what is there before it
    untouched: dict[str, str] = field(default_factory=dict)  # the files that are there before it
    seen: Counter = field(default_factory=Counter)
    stop: Callable[[], Any] = lambda: None

    def found(self, folder: Path) -> Any:
        "The result, None where no reader takes it for one."
        try:
            return self.read(folder)
        except CVPipelineError:
            return None

    def command(self, folder: Path, again: bool = False) -> list[str]:
        return (self.again if again and self.again else self.arguments)(folder)


def fresh(job: Job, root: Path, name: str) -> Path:
    folder = root / job.name.replace(" ", "_") / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job.setup(folder)
    return folder


def measure(job: Job, root: Path) -> None:
    "The undisturbed command: its result, and how long it takes."
    folder = fresh(job, root, "whole")
    job.before, job.untouched, began = job.found(folder), tree(folder), time.monotonic()
    code = outcome(lambda: run_command(job.arguments(folder)), root / "log.txt", PATIENCE_S)
    job.seconds, job.whole = time.monotonic() - began, job.found(folder)
    if code != 0 or job.whole is None:
        raise AssertionError(f"{job.name}: exit code {code}\n{(root / 'log.txt').read_text()[-3000:]}")


class Real:
    "The command as its users start it, in the place of a forked child."

    def __init__(self, arguments: list[str], folder: Path):
        program = "from cv_pipeline.commands.main import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def poll(self) -> int | None:
        return self.process.poll()

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, 9)
        except ProcessLookupError:
            pass
        self.process.wait()


def strike(job: Job, folder: Path, log: Path, rng: random.Random, real: bool) -> None:
    "Start the command, and kill it at a moment by lot; half of the times just when a file changes."
    arguments = job.arguments(folder)
    child: Child | Real = Real(arguments, folder) if real else start(lambda: run_command(arguments), log)
    late = 1.5 if real else 0.0  # until it is imported
    by_change, began = rng.random() < 0.5, time.monotonic()
    until = began + late + rng.uniform(0, job.seconds) * (0.9 if by_change else 1.02)
    while child.poll() is None and time.monotonic() < until:
        time.sleep(0.0005)
    changes, deadline = Changes(folder), time.monotonic() + 2 * job.seconds + 1
    changes.any()
    while by_change and child.poll() is None and not changes.any() and time.monotonic() < deadline:
        pass
    child.kill()


def verdict(job: Job, folder: Path, log: Path) -> tuple[str, str]:
    "What the kill left, and what is wrong with that or with the second start; empty: nothing."
    found = job.found(folder)
    state = "whole" if found == job.whole else "half"
    if state == "half" and found == job.before:
        state = "as before" if tree(folder) == job.untouched else "unfinished"
    if state == "half":
        return state, "half of a result passes for a whole one"
    if state != "whole" and (problem := job.partial(folder, job.whole)):
        return state, problem
    log.unlink(missing_ok=True)
    code = outcome(lambda: run_command(job.command(folder, again=True)), log, PATIENCE_S)
    said = " ".join(log.read_text(errors="replace").split())[-300:]
    if code is None:
        return state, "the second start hangs"
    if state != "whole" and code != 0:
        return state, f"the second start fails with {code}: {said}"
    if "Traceback" in said:
        return state, f"the second start raises: {said}"
    if job.found(folder) != job.whole:
        return state, f"the second start ends with another result: {said}"
    return state, ""


def trials(job: Job, root: Path, times: int, real: int, rng: random.Random) -> Outcome:
    "So many kills of one command."
    problems: list[str] = []
    hidden = 0
    for k in range(times + real):
        folder, log = fresh(job, root, "trial"), root / "log.txt"
        strike(job, folder, log, rng, real=k >= times)
        state, problem = verdict(job, folder, log)
        hidden += sum(1 for p in folder.rglob(".*") if p.suffix in (".part", ".old", ".lock"))
        job.seen[state] += 1
        if problem:
            problems.append(f"{state}: {problem}")
            if len(problems) <= 5:
                print(f"  {job.name} {k}: {problems[-1]}", file=sys.stderr, flush=True)
    said = ", ".join(f"{n} {s}" for s, n in sorted(job.seen.items()))
    seen = f"after the kill {said}; every second start ends whole ({job.seconds:.1f} s undisturbed)"
    seen += f"; {hidden} hidden drafts or locks left at the end" if hidden else ""
    if problems:
        seen += "; wrong: " + "; ".join(f"{n} × {p[:160]}" for p, n in Counter(problems).most_common(3))
    return Outcome(f"kill -9 of `{job.name}`", times + real, len(problems), seen.replace("|", "/"))


def arguments(parser: argparse.ArgumentParser) -> None:
    from tests.campaigns._jobs import JOBS

    parser.add_argument("--times", type=int, default=100, help="kills of each command")
    parser.add_argument("--real", type=int, default=3, help="more of each, as processes of their own")
    parser.add_argument("--only", default="", help=f"commands, separated by commas, of: {', '.join(JOBS)}")
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> Iterator[Outcome]:
    from tests.campaigns._jobs import jobs

    only = [n.strip() for n in options.only.split(",") if n.strip()]
    with tempfile.TemporaryDirectory(prefix="kill-", dir=quick_folder()) as folder:
        root = Path(folder).resolve()
        for name, made in jobs(root, only):
            rng = random.Random(f"{options.seed} {name}")
            if isinstance(made, str):
                yield Outcome(f"kill -9 of `{name}`", 0, 0, f"not tried: {made}")
                continue
            measure(made, root)
            yield trials(made, root, options.times, options.real, rng)
