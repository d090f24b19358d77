"""How long the page of many sites takes: `python -m tests.benchmarks.try_sites [--sites 10 --cameras 50]`.

Writes sites as if they had run for some days, then reads and makes the page, several times; prints seconds of
the clock and of the processor. Asserts nothing.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from cv_pipeline.alerts.sites import example_sites, read_sites, read_trends
from cv_pipeline.alerts.sites_page import PageNotes, sites_page
from cv_pipeline.core.types import utc_now


def timed(name, make):
    "What `make` returns; seconds are printed."
    clock, cpu = time.perf_counter(), time.process_time()
    made = make()
    print(f"{name:28} {time.perf_counter() - clock:6.2f} s, {time.process_time() - cpu:6.2f} CPU s")
    return made


def main():
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--sites", type=int, default=10)
    asked.add_argument("--cameras", type=int, default=50)
    asked.add_argument("--days", type=int, default=30)
    asked.add_argument("--rounds", type=int, default=3)
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = [f"site-{k:02d}" for k in range(given.sites)]
        timed("write the sites", lambda: example_sites(folder, names, given.cameras, given.days))
        files = list(Path(folder).rglob("*.parquet"))
        size = sum(f.stat().st_size for f in files)
        print(f"{len(files)} files of counts, {size / 1e6:.1f} MB; load {os.getloadavg()[0]:.1f}")
        for k in range(given.rounds):
            print(f"round {k + 1}")
            sites = timed("  read states", lambda: read_sites(folder))
            trends = timed("  read counts", lambda: read_trends(folder, given.days))
            page = timed("  make the page", lambda: sites_page(sites, trends, PageNotes(utc_now())))  # noqa: B023
        print(f"{len(page) / 1e6:.1f} MB of HTML, {sum(len(s.cameras) for s in sites)} cameras")


if __name__ == "__main__":
    main()
