"""Anomaly: AUROC of scratches, spots and chips on parts of lines that were in no fit, a row for each class.

    python -m tests.benchmarks.try_anomaly --full      # some minutes; writes anomaly.csv beside this file

Without `--full`: one class, few parts, only to see that it runs.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from cv_pipeline.apps.anomaly import CHANNELS, AnomalySettings
from cv_pipeline.apps.anomaly_model import fit_model
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.flaws import FLAWS, part_crops
from cv_pipeline.synthetic.parts import CLASS_NAMES

TABLE = Path(__file__).with_name("anomaly.csv")


def auroc(bad: np.ndarray, good: np.ndarray) -> float:
    "Share of pairs in which the bad part has the higher score."
    rank = rankdata(np.r_[bad, good])
    return float((rank[: len(bad)].sum() - len(bad) * (len(bad) + 1) / 2) / (len(bad) * len(good)))


def one(class_id: int, seed: int, lines: int, per: int, tests: int) -> dict:
    "A row of the table."
    name, first = CLASS_NAMES[class_id], 1000 * (seed + 1)
    good = part_crops(class_id, range(first, first + lines), per)
    model = fit_model({name: good}, load_model("factory_line", threads=1), AnomalySettings(seed=seed))
    seen = {}
    for kind in ("", *FLAWS):
        crops = part_crops(class_id, range(first + 500, first + 500 + tests), 10, kind)
        seen[kind] = [model.judge(c, name) for c in crops]
    scores = {k: np.array([v.score for v in found]) for k, found in seen.items()}
    row = {"class": name, "seed": seed, "good": len(good)}
    row |= {k: round(auroc(scores[k], scores[""]), 3) for k in FLAWS}
    row["false alarms"] = round(float(np.mean([v.anomalous for v in seen[""]])), 3)
    row |= {f"{k} found": round(float(np.mean([v.anomalous for v in seen[k]])), 3) for k in FLAWS}
    for c in CHANNELS:
        part = {k: np.array([v.channels[c] for v in found]) for k, found in seen.items()}
        row[c] = " ".join(f"{auroc(part[k], part['']):.2f}" for k in FLAWS)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    if not args.full:
        print(one(2, 0, 4, 6, 1))
        return
    rows = []
    for seed in args.seeds:
        for class_id in range(4):
            rows.append(one(class_id, seed, 16, 15, 6))
            print(rows[-1], flush=True)
            with open(args.out, "w", newline="") as f:
                out = csv.DictWriter(f, list(rows[0]))
                out.writeheader()
                out.writerows(rows)


if __name__ == "__main__":
    main()
