"""Joules of the processor packages of this machine, where they can be read: RAPL's counters in powercap, or
`perf stat -e power/energy-pkg/`. Everything that runs meanwhile is counted: a figure is worth something on a
machine that does nothing else."""

import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

POWERCAP = Path("/sys/class/powercap")


class Package(NamedTuple):
    "A processor package's counter."

    file: Path
    most: int  # microjoules after which it begins at 0 again


class Joules(NamedTuple):
    "What was used; None with the reason where it cannot be read."

    value: float | None
    reason: str = ""


def packages(root: Path = POWERCAP) -> list[Package]:
    "Counters of the packages; OSError or ValueError where one cannot be read."
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):  # AMD's processors have the same name
        if not re.fullmatch(r"intel-rapl:\d+", folder.name):
            continue  # a part of a package (cores, memory) is in its sum already
        if not (folder / "name").read_text().startswith("package"):
            continue  # psys: the whole board, packages included
        (folder / "energy_uj").read_text()
        found.append(Package(folder / "energy_uj", int((folder / "max_energy_range_uj").read_text())))
    return found


def used(before: list[int], after: list[int], most: list[int]) -> float:
    "Joules between two readings, microjoules each; a counter may have begun again once."
    steps = zip(before, after, most, strict=True)
    return sum((b - a if b >= a else b + limit - a) for a, b, limit in steps) / 1e6


def joules_of_perf(text: str) -> float:
    "Joules in what `perf stat -x ,` wrote; ValueError where it counted nothing."
    for row in text.splitlines():
        value, unit, *_ = [*row.split(","), ""]
        if "energy-pkg" in row and unit.strip() == "Joules":
            return float(value)  # "<not supported>": ValueError
    raise ValueError("no energy in what perf wrote")


def measure(
    work: Callable[[], object],
    root: Path = POWERCAP,
    perf: str | None = None,  # the program; None: the one in PATH, "" none
) -> Joules:
    "Do the work, and say what the packages used meanwhile."
    try:
        counters = packages(root)
        before = [int(one.file.read_text()) for one in counters]
    except (OSError, ValueError) as e:
        counters, why = [], f"RAPL cannot be read ({getattr(e, 'strerror', None) or e})"
    else:
        why = f"no RAPL counters in {root}"
    if counters:
        work()
        try:
            after = [int(one.file.read_text()) for one in counters]
        except (OSError, ValueError) as e:
            return Joules(None, f"RAPL could not be read at the end ({e})")
        return Joules(used(before, after, [one.most for one in counters]))
    program = shutil.which("perf") if perf is None else perf
    if not program:
        work()
        return Joules(None, f"{why}, no perf")
    return _with_perf(work, program, why)


def _with_perf(work: Callable[[], object], program: str, why: str) -> Joules:
    "The same by `perf stat`, which counts until it is interrupted."
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "perf.csv"
        call = [program, "stat", "-a", "-x", ",", "-e", "power/energy-pkg/", "-o", str(out)]
        counting = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            work()
        finally:
            counting.send_signal(signal.SIGINT)
            try:
                counting.wait(10)
            except subprocess.TimeoutExpired:
                counting.kill()
                counting.wait()
        try:
            return Joules(joules_of_perf(out.read_text()))
        except OSError:
            return Joules(None, f"{why}, perf cannot measure it (it wrote nothing)")
        except ValueError as e:
            return Joules(None, f"{why}, perf cannot measure it ({e})")
