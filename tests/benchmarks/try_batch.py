"""A batch under kill −9 of workers and drivers, and its speed beside `run`; not asserted, printed.

python -m tests.benchmarks.try_batch [kills=50] [pictures=2000]
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cv_pipeline.core.config import load_config
from cv_pipeline.core.results import read_results
from cv_pipeline.core.viz import jpeg
from cv_pipeline.scale.batch import BatchSettings, LocalEngine, run_batch
from cv_pipeline.scale.units import find_work, has_part, plan_units
from cv_pipeline.service.assembly import UnitOpener, batch_config, run_config
from cv_pipeline.synthetic.line import open_line
from tests.helpers.batch_work import PlayedWork, archive
from tests.helpers.kill_loop import ROOT


def children(pid: int) -> list[int]:
    "Processes that a process has started and that live, by /proc."
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def killed(folder: Path, kills: int, seed: int = 0) -> None:
    "Drivers and workers killed at random moments until `kills` are spent; then to the end."
    rng, marks = random.Random(seed), folder / "marks"
    marks.mkdir()
    source = archive(folder / "photos", [f"{k}.jpg" for k in range(400)])
    units = plan_units(find_work([source]), "", 4)
    command = [sys.executable, "-m", "tests.helpers.batch_work"]
    words = [str(w) for w in (source, folder / "out", marks, "", 2)]
    counts = {"driver": 0, "worker": 0}
    pause, began = time.sleep, time.monotonic()
    while sum(counts.values()) < kills:
        driver = subprocess.Popen([*command, *words], cwd=ROOT)
        pause(rng.uniform(1.5, 3.5))
        while driver.poll() is None and sum(counts.values()) < kills and rng.random() < 0.7:
            workers = children(driver.pid)
            if workers:
                os.kill(rng.choice(workers), signal.SIGKILL)
                counts["worker"] += 1
            pause(rng.uniform(0.05, 0.6))
        if driver.poll() is None:
            driver.kill()
            counts["driver"] += 1
        driver.wait()
        if all(has_part(folder / "out", u) for u in units):  # done before the kills were spent: begin again
            for part in (folder / "out" / "parts").glob("part-*"):
                part.unlink(missing_ok=True)
    while subprocess.run([*command, *words], cwd=ROOT).returncode:
        print("driver ended with an error; again")
    report = run_batch(
        units, folder / "out", PlayedWork(), LocalEngine(BatchSettings(processes=1)), retry=True
    )
    calm = folder / "calm"
    run_batch(units, calm, PlayedWork(), LocalEngine(BatchSettings(processes=2)))
    same = (folder / "out" / "results.parquet").read_bytes() == (calm / "results.parquet").read_bytes()
    print(f"{counts} kill -9 in {time.monotonic() - began:.0f} s; {report.units} units, {report.left} left")
    print("rows equal to an undisturbed batch, byte for byte:", same)


def speed(folder: Path, pictures: int) -> None:
    "The same pictures by `run` and by two processes, in turns."
    (folder / "photos").mkdir()
    frames = [jpeg(f.image) for f in open_line("line:seed=5,frames=100", "line", False)]
    for k in range(pictures):
        (folder / "photos" / f"{k}.jpg").write_bytes(frames[k % 100])
    given = {"sources": [str(folder / "photos")], "tracker.name": "none"}
    for round_ in range(2):
        began = time.perf_counter()
        run_config(load_config(None, {**given, "delivery.out": str(folder / f"run-{round_}")}))
        run_s = time.perf_counter() - began
        worker, _, identity = batch_config(load_config(None, given), 1, pictures=True)
        units = plan_units(find_work([folder / "photos"]), identity)
        for processes in (1, 2):
            out = folder / f"batch-{round_}-{processes}"
            opener, settings = UnitOpener(worker.model_dump_json()), BatchSettings(processes=processes)
            report = run_batch(units, out, opener, LocalEngine(settings), settings=settings)
            print(
                f"round {round_}: run {run_s:.1f} s · batch of {processes} processes {report.seconds:.1f} s "
                f"({run_s / report.seconds:.2f} × run), {report.cpu_s:.1f} CPU s"
            )
    a, b = read_results(folder / "run-0"), read_results(folder / "batch-0-2")
    print("rows:", a.num_rows, b.num_rows)


if __name__ == "__main__":
    kills, pictures = (int(w) for w in (sys.argv[1:3] + ["50", "2000"][len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "kills").mkdir()
        killed(Path(place) / "kills", kills)
        (Path(place) / "speed").mkdir()
        speed(Path(place) / "speed", pictures)
