"""What the live page costs a run: `python -m tests.benchmarks.try_live [--frames 600 --rounds 3]`.

CPU seconds of the process for the same frames, in alternating rounds: without a health port, with the page
and nobody who watches, with a viewer of the live picture (a process of its own). Asserts nothing.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

from cv_pipeline.core.config import load_config
from cv_pipeline.service.assembly import run_config

VIEWER = """
import sys, urllib.request
with urllib.request.urlopen(sys.argv[1] + "/live/stream?camera=line&zones=1", timeout=60) as found:
    while found.read(65536):
        pass
"""
KINDS = ("no health port", "page, nobody watches", "page, one viewer")


def one(kind, frames, fps):
    "CPU seconds of a run, and pictures that its viewer could have seen."
    zone = {"name": "press", "polygon": [[0.3, 0.1], [0.7, 0.1], [0.7, 0.9], [0.3, 0.9]]}
    with tempfile.TemporaryDirectory() as out:
        source = {
            "uri": f"line:width=640,height=360,fps={fps},frames={frames}",
            "id": "line",
            "realtime": True,
        }
        settings = {"sources": [source], "model.threads": 1, "delivery.out": out, "events.zones": [zone]}
        settings |= {} if kind == KINDS[0] else {"health.port": 0}
        viewers = []

        def ready(url, pipeline):
            if kind == KINDS[2]:
                viewers.append(
                    subprocess.Popen([sys.executable, "-c", VIEWER, url], stderr=subprocess.DEVNULL)
                )

        began = time.process_time()
        run_config(load_config(None, settings), on_ready=ready)
        spent = time.process_time() - began
        for viewer in viewers:
            viewer.kill()
            viewer.wait()
        return spent


def main():
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--frames", type=int, default=300)
    asked.add_argument("--fps", type=int, default=15)
    asked.add_argument("--rounds", type=int, default=3)
    given = asked.parse_args()
    found = {kind: [] for kind in KINDS}
    for _ in range(given.rounds):
        for kind in KINDS:
            found[kind].append(one(kind, given.frames, given.fps))
    print(f"{given.frames} frames of 640 x 360 at {given.fps}/s, CPU seconds; load {os.getloadavg()[0]:.1f}")
    for kind, seconds in found.items():
        print(f"{kind:22} median {statistics.median(seconds):6.2f}   all {[round(s, 2) for s in seconds]}")


if __name__ == "__main__":
    main()
