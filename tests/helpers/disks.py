"""Small file systems that really run full, are read-only, or have no descriptor left."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _mount(*args: object) -> bool:
    return subprocess.run(["mount", *map(str, args)], capture_output=True).returncode == 0


def can_mount(folder: Path) -> bool:
    "Whether this user may mount here: root may, most others not."
    with small_disk(folder / "probe", 64) as disk:
        return disk is not None


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path | None]:
    "A tmpfs of this size; None where mounting is not allowed."
    folder.mkdir(parents=True, exist_ok=True)
    if not _mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder):
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    "A mounted folder that cannot be written to; root is not stopped by permissions."
    assert _mount("-o", "remount,ro", folder)
    try:
        yield
    finally:
        assert _mount("-o", "remount,rw", folder)


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    "No more than so many files can be opened."
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as probe:
        lowest = probe.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def fill(folder: Path, leave: int = 0) -> Path:
    "Fill a file system up to some bytes; the file that takes the room."
    ballast = folder / "ballast.bin"
    with open(ballast, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 16, 1 << 12, 1):
            try:
                while size > 1 or file.tell() % 4096:
                    file.write(b"\0" * size)
            except OSError:
                continue
        file.truncate(max(0, file.tell() - leave))
    return ballast
