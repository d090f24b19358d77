"""A benchmark whose numbers can be followed: a call of B images takes 4 + 2·B ms, more or less."""

import numpy as np

from cv_pipeline.optimization.benchmark import Benchmark


def row(batch, artefact="model.onnx", factor=1.0, threads=1):
    rng = np.random.default_rng(batch)
    raw = factor * (4 + 2 * batch) * rng.lognormal(0, 0.08, 400)
    numbers = {"p50_ms": np.median(raw), "p99_ms": np.percentile(raw, 99), "mean_ms": raw.mean()}
    found = {"artefact": artefact, "threads": threads, "batch": batch, "error": "", "provider": "CPU"}
    found |= {"raw_ms": raw.tolist(), "host_mib": 180.0, "gated": factor < 1}
    return found | numbers | {"images_per_s": 1e3 * batch / numbers["p50_ms"]}


def benchmark(*more, load=0.1, sha256="0" * 64, **changes):
    machine = {"processor": "Made Up", "cores": 8.0, "gpus": []}
    rows = [row(b) | changes for b in (1, 2, 4, 8)]
    return Benchmark(
        "made up 1.0", machine, "2026-06-01", (load, load), {"sha256": sha256}, [*rows, *more], format=2
    )
