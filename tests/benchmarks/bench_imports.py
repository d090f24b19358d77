"""Start-up: importing the package and asking for help, median of fresh processes."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = {
    "python -c pass (the floor)": [sys.executable, "-c", "pass"],
    "import numpy (the floor of everything below)": [sys.executable, "-c", "import numpy"],
    "import cv_pipeline": [sys.executable, "-c", "import cv_pipeline"],
    "import cv_pipeline.core.types": [sys.executable, "-c", "import cv_pipeline.core.types"],
    "cv-pipeline --help": [str(Path(sys.executable).with_name("cv-pipeline")), "--help"],
}


def run(quick: bool = False) -> list[dict]:
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(5 if quick else 15):
        for name, command in CASES.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append((time.perf_counter() - started) * 1e3)
    target = {"import cv_pipeline": 150, "cv-pipeline --help": 500}
    return [
        {"case": name, "ms": statistics.median(t), "target ms": target.get(name)} for name, t in times.items()
    ]
