"""A plan's prediction beside what was measured: throughput, p50 and p99 of a pipeline, at three loads, with
two batch settings and three seeds of the cameras' phases.

    python -m tests.benchmarks.try_plan                     # about eight minutes; writes plan_check.csv
    python -m tests.benchmarks.try_plan --model FILE.onnx --seconds 60
    python -m tests.benchmarks.try_plan --quick             # one load, one seed, five seconds: that it runs

The plan knows raw times of calls from a benchmark of a second a case, made just before, and what a frame
costs besides its call from a run at leisure. Cameras offer pictures of the line by a timetable that was
fixed beforehand; latency counts from the due time. `M/G/k` is what the textbook says of the p99, for
arrivals that Poisson would draw, one picture a call. Says little where other work runs beside it.
"""

import argparse
import csv
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cv_pipeline.core.config import RunConfig, load_config
from cv_pipeline.optimization.benchmark import BenchmarkSettings, run_benchmark
from cv_pipeline.scale.capacity import Measured, measured_from, read_plan_config
from cv_pipeline.scale.loadtest import Load, LoadSettings, check_plan, pipeline_offer, run_loadtest
from cv_pipeline.service.assembly import pipeline_over, run_config
from cv_pipeline.synthetic.line import open_line

TABLE = Path(__file__).with_name("plan_check.csv")
CAMERAS = 6
LIMITS = {"answered_per_s": 0.15, "p50_ms": 0.15, "p99_ms": 0.25}  # largest error that is promised
BATCHES = {"one by one": (1, 0.0), "up to four": (4, 10.0)}  # pictures a call, ms that the first one waits


def configured(model: str, out: Path, batch: tuple[int, float]) -> RunConfig:
    given = {"sources": ["line:frames=120"], "model.path": model, "model.threads": 1, "tracker.name": "sort"}
    runtime = {"runtime.max_batch": batch[0], "runtime.max_wait_ms": batch[1]}
    return load_config(None, {**given, **runtime, "delivery.out": str(out)})


def known_of(model: str, folder: Path, seconds: float) -> tuple[Measured, float]:
    "What the plan knows, and milliseconds of a frame besides its call."
    how = BenchmarkSettings(
        ("onnxruntime",), (1, 2, 4), (1,), seconds, 4, latency_budget_ms=1000.0, fit=False
    )
    found = run_benchmark(model, folder / "benchmark", settings=how)
    summary = run_config(configured(model, folder / "run", (1, 0.0)))
    wishes = read_plan_config({"cameras": CAMERAS, "fps": 1, "latency_ms": 1000})
    stages = ("preprocess", "postprocess", "deliver")
    around = sum(summary["latency_ms"][k]["p50"] or 0.0 for k in stages)
    return measured_from(found, wishes, folder / "run", None), around


def measure(model: str, seconds: float, loads: list[float], seeds: list[int]) -> Iterator[dict[str, Any]]:
    pictures = [f.image for f in open_line("line:seed=1,frames=24", "line", False)]
    with tempfile.TemporaryDirectory() as place:
        known, around = known_of(model, Path(place), 1.0)
        for name, batch in BATCHES.items():
            advice = replace(known.advice, max_batch=batch[0], max_wait_ms=batch[1])
            mine = replace(known, advice=advice)
            rate = 1e3 * batch[0] / (known.calls.mean(batch[0]) + batch[0] * around)
            offer = pipeline_offer(
                pipeline_over(configured(model, Path(place) / "load", batch)), CAMERAS, pictures
            )
            settings = LoadSettings(
                1000.0, seconds=seconds, factors=tuple(loads), block_s=seconds / 10, late_ms=20.0
            )
            for seed in seeds:
                report = run_loadtest(offer, Load(CAMERAS, rate / CAMERAS, seed=seed), settings)
                for row in check_plan(report, mine, around_ms=around):
                    yield {"batch": name, "load": row["factor"], "seed": seed, **row}


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--model", default="factory_line")
    ask.add_argument("--seconds", type=float, default=20.0)
    ask.add_argument("--quick", action="store_true")
    a = ask.parse_args()
    loads, seeds, seconds = ([0.5], [0], 5.0) if a.quick else ([0.4, 0.7, 0.9], [0, 1, 2], a.seconds)
    rows = []
    for row in measure(a.model, seconds, loads, seeds):
        kept = {k: row[k] for k in ("batch", "load", "seed", "rate_per_s", "busy")}
        for key in LIMITS:
            kept |= {key: round(row[key], 2), f"{key} error": f"{row[f'{key} error']:+.1%}"}
        rows.append(kept | {"p99_ms M/G/k": row["p99_ms M/G/k"]})
        print(rows[-1], flush=True)
        rows[-1]["kept"] = all(abs(row[f"{key} error"]) <= limit for key, limit in LIMITS.items())
    print(f"{sum(r['kept'] for r in rows)} of {len(rows)} within {LIMITS}")
    for key in LIMITS:
        errors = np.array([float(r[f"{key} error"].rstrip("%")) for r in rows])
        print(f"{key}: median {np.median(errors):+.1f} %, from {errors.min():+.1f} to {errors.max():+.1f} %")
    if not a.quick:
        with open(TABLE, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
