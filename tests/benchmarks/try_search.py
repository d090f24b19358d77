"""Search: recall, speed and size of each kind of index over 200,000 vectors of 512 dimensions, on one core.

The vectors lie in 2,000 heaps of unequal size whose spread is nearly as large as their distance; the queries
are vectors of the index. Real vectors may be harder: `cv-pipeline search measure` tells it of an index.

    python -m tests.benchmarks.try_search --full        # some minutes; writes search.csv beside this file

Without `--full`: 3,000 vectors, only to see that it runs.
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np

from cv_pipeline.apps.neighbours import SearchSettings
from cv_pipeline.apps.search import Index, measure
from cv_pipeline.core.vectors import unit_vectors

TABLE = Path(__file__).with_name("search.csv")
KINDS = {
    "exact": SearchSettings(),
    "ivf": SearchSettings("ivf"),
    "ivfpq": SearchSettings("ivfpq"),
    "hnsw": SearchSettings("hnsw"),
}


def heaps(n: int, dim: int, seed: int = 0, spread: float = 0.8) -> np.ndarray:
    "(n, dim) float32 of length 1, made piece by piece."
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 1, (2000, dim)).astype(np.float32)
    share = rng.dirichlet(np.full(len(centres), 0.7))
    rng, made = np.random.default_rng([seed, 1]), []
    for first in range(0, n, 20_000):
        m = min(20_000, n - first)
        noise = spread * rng.normal(0, 1, (m, dim)).astype(np.float32)
        made.append(unit_vectors(centres[rng.choice(len(centres), m, p=share)] + noise))
    return np.concatenate(made)


def run(n: int, dim: int, kinds: list[str], queries: int = 200) -> list[dict]:
    "A row for each kind of index."
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "index"
        index = Index.create(place, {"name": "heaps", "sha256": "00" * 32}, dim)
        began = time.perf_counter()
        for first in range(0, n, 20_000):
            part = heaps(n, dim)[first : first + 20_000] if n <= 20_000 else heaps(20_000, dim, first)
            index.add(part, [{"picture": f"{first + i}.jpg"} for i in range(len(part))])
        print(f"{n} vectors written in {time.perf_counter() - began:.0f} s", flush=True)
        for kind in kinds:
            made = measure(Index(place, KINDS[kind]), queries)
            rows.append({"dim": dim, **made.to_dict()})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--kinds", nargs="+", default=["exact", "ivf", "ivfpq"], choices=list(KINDS))
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    rows = run(200_000, 512, args.kinds) if args.full else run(3000, 64, args.kinds, 20)
    if args.full:
        with open(args.out, "w", newline="") as f:
            out = csv.DictWriter(f, list(rows[0]))
            out.writeheader()
            out.writerows(rows)


if __name__ == "__main__":
    main()
