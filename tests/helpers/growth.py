"""What a process holds, read from /proc, and whether it grows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Held:
    "What a process holds at a moment."

    hour: float
    rss_mb: float
    descriptors: int
    threads: int
    files: int  # that are not finished: parts, drafts, what is being written
    close_s: float = 0.0  # processor time to finish the tables if the run ended now


def held(pid: int, hour: float, folder: Path, close_s: float = 0.0) -> Held:
    "Of a process that may be another one."
    proc = Path("/proc", str(pid))
    resident = int((proc / "statm").read_text().split()[1]) * PAGE / 2**20
    threads = len(list((proc / "task").iterdir()))
    descriptors = len(list((proc / "fd").iterdir()))
    return Held(hour, resident, descriptors, threads, len(unfinished(folder)), close_s)


def unfinished(folder: Path) -> list[Path]:
    "Files of a run that are no finished hours, and no pictures."
    done = ("results", "events", "video", "collected")
    files = (p for p in folder.rglob("*") if p.is_file())
    return [p for p in files if p.relative_to(folder).parts[0] not in done or ".parts" in str(p.parent)]


def slope(values: Sequence[float]) -> float:
    "Least squares growth from the first to the last of equally spaced values."
    if len(values) < 3:
        return 0.0
    return float(np.polyfit(np.arange(len(values)), values, 1)[0]) * (len(values) - 1)


def growing(
    values: Sequence[float],  # one a sample, the warm-up left out
    more: float,  # how much more than the first is no growth
) -> bool:
    "Whether values grow: a trend, or one far above the first."
    return slope(values) > more or max(values) > values[0] + 2 * more
