"""An exception at every call in the threads of a run: does it end, with what, and what is left of it?

The points are the calls that a run with every sink really makes, found in the code of the modules. Each
trial is a run of its own with MemoryError, OSError or RuntimeError at one of them.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.campaigns import ROOT, Outcome

FRAMES = 30  # of the command that runs short of memory
PROMISED = (0, 2, 3, 4, 5, 70)  # exit codes
ERRORS = ("MemoryError", "OSError", "RuntimeError")
GROUPS = {  # thread → what the table calls it
    "_deliver": "delivering thread and its sinks",
    "_infer": "model thread",
    "_prepare": "preparing thread",
    "read": "reader threads and reconnection",
    "telemetry": "telemetry's writing thread",
    "health": "health server",
    "MainThread": "main thread, from the folder to the summary",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--points", type=int, default=400, help="calls that are drawn, each with three errors"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", type=int, default=16, help="limits of the address space that are tried")
    parser.add_argument("--only", default="", help="points whose text contains this")


@dataclass(frozen=True)
class Strike:
    "One trial that is asked for."

    point: int
    nth: int
    error: str
    name: str  # the point, as text
    group: str


class Worker:
    "The process in which runs follow each other; another one when it had to be ended."

    def __init__(self, folder: Path):
        self.folder, self.number, self.process = folder, 0, None

    def ask(self, **trial: Any) -> dict[str, Any]:
        "What became of a trial."
        if self.process is None:
            self.errors = (self.folder / f"stderr-{self.number}.txt").open("w+")
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.campaigns._liveness", str(self.folder)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                text=True,
            )
        self.number += 1
        try:
            print(json.dumps({"number": self.number, **trial}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        self.process.wait()
        self.process = None
        self.errors.seek(0)
        return {"ended": "hangs", "wrong": ["hangs\n" + self.errors.read()[-6000:]], "struck": "?"}

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()


def group_of(threads: Iterable[str]) -> str:
    "The first group that one of the threads belongs to."
    for prefix, name in GROUPS.items():
        if any(thread.startswith(prefix) for thread in threads):
            return name
    return GROUPS["health"]  # its request threads have numbers


def strikes(survey: dict[str, Any], points: int, seed: int, only: str = "") -> list[Strike]:
    "Every error at points drawn from those that a run has passed, at a call that is drawn too."
    rng, found = random.Random(seed), []
    passed = [k for k in survey["counts"] if only in survey["points"][int(k)]]
    for k in rng.sample(passed, min(points, len(passed))):
        count, threads = survey["counts"][k]
        found += [
            Strike(int(k), rng.randint(1, count), error, survey["points"][int(k)], group_of(threads))
            for error in ERRORS
        ]
    return found


def trials(worker: Worker, asked: Sequence[Strike]) -> Iterator[tuple[Strike, dict[str, Any]]]:
    for strike in asked:
        yield strike, worker.ask(point=strike.point, nth=strike.nth, error=strike.error)


def without_threads(worker: Worker, most: int = 20) -> Outcome:
    "A run whose k-th thread cannot be started, for every k until none is refused."
    tried, wrong, ends = 0, 0, Counter[str]()
    for number in range(1, most + 1):
        outcome = worker.ask(thread=number)
        if outcome["struck"] is None:
            break
        tried, wrong = tried + 1, wrong + bool(outcome["wrong"])
        ends[kind(outcome["ended"])] += 1
        if outcome["wrong"]:
            print(f"WRONG thread {number}: {outcome}", file=sys.stderr)
    return Outcome("no room for the k-th thread of a run", tried, wrong, shown(ends))


def short_of_memory(folder: Path, sizes: Sequence[int], patience_s: float = 150.0) -> Outcome:
    "The command under `ulimit -v`, at many sizes (MB): it ends, with an exit code and a sentence."
    import resource

    wrong, ends = 0, Counter[str]()
    for size in sizes:
        limit = lambda size=size: resource.setrlimit(resource.RLIMIT_AS, (size << 20, size << 20))
        code = "from cv_pipeline.commands.main import main; main()"
        args = ["run", f"line:frames={FRAMES}", "--save-video", "--out", str(folder / f"limit-{size}")]
        try:
            done = subprocess.run(
                [sys.executable, "-c", code, *args],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=patience_s,
                preexec_fn=limit,
            )
            said = done.stderr.strip().splitlines()
            ended = f"exit code {done.returncode}"
            good = done.returncode in PROMISED and said and "Traceback" not in done.stderr
        except subprocess.TimeoutExpired:
            ended, good, said = "hangs", False, []
        ends[ended] += 1
        wrong += not good
        if not good:
            print(f"WRONG at {size} MB: {ended}: {said[-3:]}", file=sys.stderr)
    return Outcome(f"ulimit -v, {sizes[0]} to {sizes[-1]} MB", len(sizes), wrong, shown(ends))


def shown(ends: Counter[str]) -> str:
    "How often it ended how."
    return ", ".join(f"{n} × {what}" for what, n in ends.most_common())


def run(options: argparse.Namespace) -> Iterable[Outcome]:
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(Path(folder))
        survey = worker.ask()
        if survey["wrong"]:
            raise SystemExit(f"a run that nothing strikes is wrong: {survey}")
        asked = strikes(survey, options.points, options.seed, options.only)
        tried, wrong, ends = Counter(), Counter(), defaultdict(Counter)
        for strike, outcome in trials(worker, asked):
            if outcome["struck"] is None:
                ends[strike.group]["did not come to it"] += 1
                continue
            tried[strike.group] += 1
            ends[strike.group][kind(outcome["ended"])] += 1
            if outcome["wrong"]:
                wrong[strike.group] += 1
                print(f"WRONG {strike.error} at {strike.name}, call {strike.nth}:", file=sys.stderr)
                print("   ", "; ".join(outcome["wrong"])[:4000], "|", outcome["ended"][:200], file=sys.stderr)
        yield without_threads(worker)
        worker.close()
        if options.sizes:
            yield short_of_memory(Path(folder), range(300, 300 + 150 * options.sizes, 150))
    for group in GROUPS.values():
        if tried[group]:
            what = f"an exception in the {group}"
            yield Outcome(what, tried[group], wrong[group], shown(ends[group]))


def kind(ended: str) -> str:
    "How a trial ended, in a word."
    word = ended.partition(":")[0]
    return word if word in ("done", "hangs", "a source failed") else f"{word} raised"
