"""Work of a batch that costs nothing, in processes that are killed: `python -m tests.helpers.batch_work`
drives a batch until it is done or killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from cv_pipeline.core.types import DataError, Detections, Frame, FrameResult
from cv_pipeline.scale import batch
from cv_pipeline.scale.batch import BatchSettings, LocalEngine, run_batch
from cv_pipeline.scale.units import Unit, Write, find_work, plan_units, run_unit

PAUSE = threading.Event()  # never set
BLACK = np.zeros((8, 12, 3), np.uint8)
START = datetime(2026, 6, 1, tzinfo=timezone.utc)


def made_up_result(unit: Unit, number: int, path: str) -> FrameResult:
    "As many boxes as the file has bytes, modulo 4."
    boxes = os.stat(path).st_size % 4
    xyxy = np.tile(np.array([1, 2, 3 + boxes, 4], np.float32), (boxes, 1))
    frame = Frame(BLACK, unit.source, number, START, None, {"path": path})
    return FrameResult(frame, Detections(xyxy), ("nut",))


def once(marks: str, name: str) -> bool:
    "True for the first process that asks."
    try:
        os.close(os.open(Path(marks) / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class PlayedWork:
    "Opens work that fails as the names of files say: poison, odd, fatal; each unit kills once per point."

    marks: str = ""  # folder in which deaths are noted; empty: nobody dies
    points: tuple[str, ...] = ()  # begin, middle, end: where a process is killed, the first time each

    def __call__(self):
        if os.environ.get("NO_MODEL"):
            raise DataError("the model is gone", "model")
        done = run_unit

        def killed_at_the_end(unit, folder, work):
            outcome = done(unit, folder, work)
            self._perhaps("end", unit)
            return outcome

        batch.run_unit = killed_at_the_end
        return self.work

    def _perhaps(self, point: str, unit: Unit) -> None:
        if point in self.points and once(self.marks, f"{point}-{unit.id}"):
            die()

    def _hold(self) -> None:
        "Where `hold` names a number of parts, wait at that many until the file is gone."
        hold = Path(self.marks) / "hold"
        while self.marks and hold.exists():
            out, count = hold.read_text().split("\n")
            if len(list((Path(out) / "parts").glob("part-*.parquet"))) < int(count):
                return
            (Path(self.marks) / "held").touch()
            PAUSE.wait(0.01)

    def work(self, unit: Unit, write: Write) -> list[tuple[str, str]]:
        self._hold()
        self._perhaps("begin", unit)
        if "poison" in os.path.basename(unit.paths[0]):
            die()
        if "odd" in os.path.basename(unit.paths[0]):
            raise ValueError("what is this?")
        for number, path in enumerate(unit.paths):
            write(made_up_result(unit, number, path))
        self._perhaps("middle", unit)
        return []


def archive(folder: Path, names: list[str]) -> Path:
    "Files of different sizes: none is ever decoded."
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        (folder / name).write_bytes(b"x" * (k + 1))
    return folder


def drive(source: str, out: str, marks: str, points: str, processes: str) -> None:
    "A batch from its beginning to its end, or until it is killed."
    units = plan_units(find_work([source]), "", pictures=4)
    settings = BatchSettings(processes=int(processes), tries=4)
    opener = PlayedWork(marks, tuple(filter(None, points.split(","))))
    run_batch(units, out, opener, LocalEngine(settings), settings=settings)


if __name__ == "__main__":
    from tests.helpers.batch_work import drive as driven  # as other processes know it

    driven(*sys.argv[1:])
