"""Novelty of crops: are unknown parts found by how unlike known crops they are?

Known: 6,000 quarters of frames with gears, bolts and nuts in good light. The stream: 10,000 quarters of
other lines with four kinds of events in about 3 pictures of 1,000 each: a bracket, a defect, thick fog, a
lamp that fails (as in `try_label_efficiency`, three times as dense, so that a third of the pictures holds
twenty of each). Boxes are those of the truth, as a detector that finds every part and knows no kind of it
would give them. A picture counts as its most
novel box that the edge does not cut; the table tells which share of the first twenty
pictures of each event is among the 125 most novel ones. By lot it is .0125.

    python -m tests.benchmarks.try_novelty --full --seeds 0  # a quarter of an hour a seed; writes novelty.csv

Without `--full`: a few pictures, only to see that it runs.
"""

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from cv_pipeline.annotation.select import light_descriptor
from cv_pipeline.evaluation.patch_bank import EarlyMaps, first_layers
from cv_pipeline.inference.loading import load_model
from tests.benchmarks.try_label_efficiency import EVENTS, HEIGHT, WIDTH, Picture, events, quarters

TABLE = Path(__file__).with_name("novelty.csv")


def described(pictures: Iterable[Picture], early: EarlyMaps) -> dict[str, np.ndarray]:
    "Boxes of pictures: number of the picture, whether it is whole, and two kinds of vectors."
    rows, crops = [], []
    for i, (image, truth, _) in enumerate(pictures):
        d = truth.detections[truth.detections.data["visibility"] >= 0.35]
        for x1, y1, x2, y2 in d.xyxy.tolist():
            dx, dy = 0.1 * (x2 - x1), 0.1 * (y2 - y1)
            left, top = int(max(x1 - dx, 0)), int(max(y1 - dy, 0))
            right, low = int(min(x2 + dx + 1, WIDTH)), int(min(y2 + dy + 1, HEIGHT))
            crop = image[top : max(low, top + 2), left : max(right, left + 2)]
            crops.append(cv2.resize(crop, (64, 64), interpolation=cv2.INTER_AREA))
            rows.append((i, x1 > 1 and y1 > 1 and x2 < WIDTH - 1 and y2 < HEIGHT - 1))
    light = np.stack([light_descriptor(c) for c in crops])
    maps = [early(np.stack(crops[k : k + 256])) for k in range(0, len(crops), 256)]
    first = np.concatenate([np.concatenate([m.mean((1, 2)), m.std((1, 2)), m.max((1, 2))], 1) for m in maps])
    return {"rows": np.array(rows, int), "light": light, "early": first}


def distance(x: np.ndarray, bank: np.ndarray, neighbour: int) -> np.ndarray:
    "Squared distance of each row to its nearest, or fifth nearest, of the bank."
    out, square = np.empty(len(x), np.float32), np.einsum("ij,ij->i", bank, bank)
    for k in range(0, len(x), 2048):
        part = x[k : k + 2048]
        d = np.einsum("ij,ij->i", part, part)[:, None] - 2 * part @ bank.T + square
        out[k : k + 2048] = np.partition(d, neighbour - 1, axis=1)[:, neighbour - 1]
    return out


def table(old: dict, stream: dict, happens: np.ndarray, budget: int, seed: int) -> list[dict]:
    "A row for each way to compare."
    made, rng = [], np.random.default_rng(seed)
    join = lambda z, names: np.hstack([z[n] for n in names]).astype(np.float32)
    for names in (("light",), ("early",), ("light", "early")):
        b, x = join(old, names), join(stream, names)
        middle, spread = b.mean(axis=0), np.maximum(b.std(axis=0), 1e-3)
        value, axes = np.linalg.eigh(np.cov(((b - middle) / spread).T))
        white = (axes / np.sqrt(value + 0.005 * value.mean())).astype(np.float32)
        for how, turn, neighbour in (("scaled", None, 1), ("whitened", white, 5)):
            known, asked = ((v - middle) / spread for v in (b, x))
            known, asked = (v if turn is None else v @ turn for v in (known, asked))
            bank = known[rng.permutation(len(known))[:6000]]
            far, rows = distance(asked, bank, neighbour), stream["rows"]
            best = np.full(len(happens), -1.0)
            whole = rows[:, 1] > 0
            np.maximum.at(best, rows[whole, 0], far[whole])
            chosen = np.zeros(len(happens), bool)
            chosen[np.argsort(-best)[:budget]] = True
            first = [np.flatnonzero(happens[:, k])[:20] for k in range(len(EVENTS))]
            shares = {e: round(float(chosen[f].mean()), 3) if len(f) else "" for e, f in zip(EVENTS, first)}
            row = {"seed": seed, "vectors": " + ".join(names), "compared": how, "labels": budget, **shares}
            made.append({**row, "events": int(happens[chosen].any(axis=1).sum())})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    graph, _ = first_layers(load_model("factory_line", threads=1).path)
    early, rows = EarlyMaps(graph), []
    first, pool, budget = (6000, 10_000, 125) if args.full else (80, 160, 20)
    old = described(quarters(3000, first, 0, 0), early)
    for seed in args.seeds if args.full else [0]:
        pictures = quarters(1000 + seed, pool, 0.0042, 0.003)
        rows += table(old, described(pictures, early), events(pictures), budget, seed)
        print(*rows[-6:], sep="\n", flush=True)
    if args.full:
        with open(args.out, "w", newline="") as f:
            out = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
            out.writeheader()
            out.writerows(rows)


if __name__ == "__main__":
    main()
