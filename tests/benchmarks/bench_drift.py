"""Drift of 50,000 frames with 64 numbers each, 999 shuffles in blocks: seconds and memory beside a loop over
permutations.

The peer does what is usually written: for every shuffle of the blocks Kolmogorov-Smirnov by SciPy on each of
the same 16 components, one shuffle timed five times and multiplied; all other families, the kernel and the
cameras are left out, so it does less.
"""

import resource
import time

import numpy as np
from scipy.signal import lfilter
from scipy.stats import ks_2samp

from cv_pipeline.monitoring.drift import compare
from cv_pipeline.monitoring.observed import DriftSettings, Observed, components_of


def period(seed: int, n: int, start: float, cameras: int = 5, rho: float = 0.5) -> Observed:
    "n frames with autocorrelated columns and about five boxes each."
    rng = np.random.default_rng(seed)
    ar = lambda k: lfilter([1], [1, -rho], rng.standard_normal((n, k)), axis=0).astype(np.float32)
    count = rng.poisson(5, n)
    frame = np.repeat(np.arange(n), count)
    image = dict(zip(("brightness", "contrast", "blur", "noise", "saturation"), ar(5).T.copy()))
    mixed = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    return Observed(
        tuple(f"camera {c}" for c in range(cameras)),
        np.arange(n) % cameras,
        start + np.arange(n),
        image,
        ar(64) @ mixed,
        None,
        frame,
        rng.integers(0, 5, len(frame)),
        rng.beta(5, 2, len(frame)).astype(np.float32),
        rng.gamma(4, 0.01, len(frame)).astype(np.float32),
        tuple("abcde"),
        "x",
    )


def run(quick: bool = False) -> list[dict]:
    rows = []
    for n in (5_000, 50_000) if not quick else (5_000,):
        a, b = period(1, n * 4 // 5, 0), period(2, n // 5, 1e6)
        begun = time.perf_counter()
        found = compare(a, b, DriftSettings(permutations=999))
        ours = time.perf_counter() - begun
        x = components_of(np.concatenate([a.embedding, b.embedding]))
        rng, taken = np.random.default_rng(0), []
        block = np.arange(n) // 50
        for _ in range(2 if quick else 5):
            chosen = np.isin(block, rng.permutation(block[-1] + 1)[: (block[-1] + 1) // 5])
            begun = time.perf_counter()
            for column in x.T:
                ks_2samp(column[chosen], column[~chosen])
            taken.append(time.perf_counter() - begun)
        rows.append(
            {
                "frames": n,
                "numbers": 64,
                "shuffles": 999,
                "ours, s": ours,
                "loop of KS, s": 1000 * float(np.median(taken)),
                "ratio": 1000 * float(np.median(taken)) / ours,
                "peak MB of the process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
                "verdict": found.verdict,
            }
        )
    return rows


if __name__ == "__main__":
    for row in run():
        print(row)
