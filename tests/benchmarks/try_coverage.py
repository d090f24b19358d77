"""Do the 95 % intervals hold the truth? Simulated detectors whose quality is known, evaluated on few pictures
again and again: the textbook's percentile bootstrap beside the intervals of this package.

Clusters of six pictures on average, of equal size or of Zipf's; or single pictures. Sequences differ in how
hard they are (0.8 to 1.0 on the logit scale). Writes coverage_study.json beside itself.

    python -m tests.benchmarks.try_coverage [repeats] [first cells]
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cv_pipeline.evaluation.calibration import Claims, d_ece, error_bias
from cv_pipeline.evaluation.intervals import (
    RATES,
    APSampler,
    Interval,
    Verdict,
    draw_weights,
    interval_of,
    judge,
    rate_of,
)
from cv_pipeline.evaluation.metrics import Matches
from cv_pipeline.evaluation.records import EvalSet, box_table

# logit of being found, spread of sequences, spread of objects, false boxes a picture
QUALITY = {
    "usual": (1.2, 0.8, 1.0, 1.2),
    "good": (4.2, 1.0, 1.0, 0.08),
    "nearly perfect": (6.5, 1.0, 1.0, 0.02),
    "uneven": (1.8, 1.8, 0.5, 0.5),  # sequences from hopeless to perfect: a stress
}
METRICS = ("AP", "AP50", "precision", "recall", "F1", "ΔAP", "ΔF1", "D-ECE", "ΔD-ECE")
CONF, LEAST = 0.5, 0.05


@dataclass(frozen=True)
class Boxes:
    "Predictions of a model, by falling confidence: picture, confidence, hits at IoU 0.5 and 0.75."

    image: np.ndarray
    confidence: np.ndarray
    hit: np.ndarray  # (2, n)


@dataclass(frozen=True)
class Sample:
    "Labelled pictures and what two models make of them."

    pictures: int
    cluster: np.ndarray
    truth: np.ndarray  # picture of each object
    models: tuple[Boxes, Boxes]


def sizes_of(clusters: int, mean: int, kind: str) -> np.ndarray:
    "Pictures of each cluster."
    if kind == "equal":
        return np.full(clusters, mean)
    share = 1 / np.arange(1, clusters + 1)
    return np.maximum(1, np.round(share / share.sum() * mean * clusters)).astype(int)


def draw_sample(clusters: int, mean: int, kind: str, quality: str, rng: np.random.Generator) -> Sample:
    "Pictures with about four objects; the second model finds slightly more."
    base, between, within, false = QUALITY[quality]
    cluster = np.repeat(np.arange(clusters), rng.permutation(sizes_of(clusters, mean, kind)))
    k, hard = len(cluster), rng.normal(0, 1, clusters)[cluster]
    truth = np.repeat(np.arange(k), rng.poisson(4, k))
    n, models = len(truth), []
    noise = rng.normal(size=n)
    for better in (0, 0.25):
        own = 0.8 * noise + 0.6 * rng.normal(size=n)
        p = 1 / (1 + np.exp(-(base + better - between * hard[truth] + within * own)))
        found = rng.random(n) < p
        hit = np.stack([found, found & (rng.random(n) < 0.45 + 0.5 * p)])[:, found]
        sure = np.clip(p + rng.normal(0, 0.1, n), 0.01, 0.99)[found]
        wrong = np.repeat(np.arange(k), rng.poisson(false * np.exp(0.5 * hard - 0.125), k))
        image = np.r_[truth[found], wrong]
        confidence = np.r_[sure, np.clip(rng.beta(1.5, 3, len(wrong)), 0.01, 0.99)]
        order = np.argsort(-confidence, kind="stable")
        hits = np.concatenate([hit, np.zeros((2, len(wrong)), bool)], axis=1)
        models.append(Boxes(image[order], confidence[order], hits[:, order]))
    return Sample(k, cluster, truth, (models[0], models[1]))


def sampler_of(s: Sample, boxes: Boxes) -> APSampler:
    "The package's sampler, from hits instead of boxes."
    table = lambda image, *rest: box_table(
        image, np.tile([0, 0, 1, 1.0], (len(image), 1)), np.zeros(len(image), int), *rest
    )
    names = tuple(map(str, range(s.pictures)))
    size = np.full((s.pictures, 2), 64)
    made = EvalSet(("a",), names, size, table(s.truth), table(boxes.image, boxes.confidence))
    n = len(boxes.image)
    none, real = np.zeros((2, n), bool), np.ones(len(s.truth), bool)
    matches = Matches(
        np.arange(n), np.where(boxes.hit, 0, -1), none, real, np.zeros((2, n)), np.array([0.5, 0.75])
    )
    return APSampler(made, matches)


def counts_of(s: Sample, boxes: Boxes) -> np.ndarray:
    "(k, 3) hits, false alarms, misses at the threshold."
    shown, count = boxes.confidence >= CONF, lambda image: np.bincount(image, minlength=s.pictures)
    hits = count(boxes.image[shown & boxes.hit[0]])
    return np.stack([hits, count(boxes.image[shown & ~boxes.hit[0]]), count(s.truth) - hits], axis=1)


def claims_of_sample(boxes: Boxes) -> tuple[Claims, Claims]:
    "What is claimed by the first model, and with its confidences squared."
    use = boxes.confidence >= LEAST
    right, image = boxes.hit[0][use], boxes.image[use]
    make = lambda c: Claims(c, right, right.astype(float), np.zeros(len(c), int), image)
    return make(boxes.confidence[use]), make(boxes.confidence[use] ** 2)


class Numbers:
    "Every metric of a sample, for any weights of its pictures."

    def __init__(self, s: Sample):
        self.s, self.samplers = s, [sampler_of(s, m) for m in s.models]
        self.counts, self.claims = [counts_of(s, m) for m in s.models], claims_of_sample(s.models[0])

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        "(draws,) each, from (draws, k)."
        ap = [sampler(weights.astype(np.float32))[..., 0] for sampler in self.samplers]
        found = {"AP": ap[0].mean(axis=-1), "AP50": ap[0][:, 0]}
        found["ΔAP"] = ap[1].mean(axis=-1) - found["AP"]
        sums = [weights @ c for c in self.counts]
        found |= {name: rate_of(name, sums[0]) for name in RATES}
        found["ΔF1"] = rate_of("F1", sums[1]) - found["F1"]
        error = [d_ece(c, weights[:, c.image]) for c in self.claims]
        return found | {"D-ECE": error[0], "ΔD-ECE": error[1] - error[0]}


def ours(numbers: Numbers, draws: int, seed: int) -> dict[str, Interval]:
    "The intervals of this package."
    s = numbers.s
    weights, n = draw_weights(s.cluster, draws, seed), int(s.cluster.max()) + 1
    value, drawn = numbers(np.ones((1, s.pictures))), numbers(weights)
    counts = numbers.counts[0].sum(axis=0)
    units = {"AP": len(s.truth), "AP50": len(s.truth)} | {k: float(RATES[k](*counts)[1]) for k in RATES}
    found = {
        k: interval_of(float(value[k][0]), drawn[k], n_clusters=n, share=k in units, units=units.get(k, 0))
        for k in METRICS
    }
    bias = [error_bias(c, weights[:, c.image]) for c in numbers.claims]
    for k, added in (("D-ECE", bias[0]), ("ΔD-ECE", bias[1] - bias[0])):
        i = found[k]
        found[k] = Interval(i.value, i.low - max(added, 0), i.high - min(added, 0), clusters=n)
    return found


def textbook(numbers: Numbers, draws: int, seed: int) -> dict[str, Interval]:
    "As many clusters as there are, with replacement; the middle 95 % of the draws."
    cluster = numbers.s.cluster
    n = int(cluster.max()) + 1
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), draws)[:, cluster]
    value, drawn, found = numbers(np.ones((1, len(cluster)))), numbers(weights), {}
    for k in METRICS:
        low, high = np.nanquantile(drawn[k], [0.025, 0.975])
        found[k] = Interval(float(value[k][0]), float(low), float(high))
    return found


def truth_of(quality: str, clusters: int = 12_000) -> dict[str, float]:
    "Every metric of very many pictures."
    s = draw_sample(clusters, 6, "equal", quality, np.random.default_rng(99))
    return {k: float(v[0]) for k, v in Numbers(s)(np.ones((1, s.pictures))).items()}


METHODS = {"textbook": textbook, "ours": ours}
FLOORS = (-0.05, 0.0, 0.05)  # beside the truth


def study_cell(
    clusters: int, mean: int, kind: str, quality: str, repeats: int, draws: int = 250, seed: int = 0
) -> list[dict]:
    "A row for each method and metric: how often the truth lies below, inside, above; and verdicts."
    truth, rows = truth_of(quality), {}
    for i in range(repeats):
        rng = np.random.default_rng([seed, clusters, mean, i])
        numbers = Numbers(draw_sample(clusters, mean, kind, quality, rng))
        for name, method in METHODS.items():
            for k, found in method(numbers, draws, i).items():
                row = rows.setdefault((name, k), {"below": 0, "above": 0, "width": 0.0, "verdicts": {}})
                row["below"] += truth[k] < found.low - 1e-9
                row["above"] += truth[k] > found.high + 1e-9
                row["width"] += found.high - found.low
                if k not in ("AP", "recall", "precision"):
                    continue
                for d in FLOORS:
                    pictures, objects = max(numbers.s.pictures, 30), max(len(numbers.s.truth), 50)
                    verdict = judge(k, found, truth[k] + d, pictures, objects).verdict
                    kept = row["verdicts"].setdefault(f"{d:+g}", {v.value: 0 for v in Verdict})
                    kept[verdict.value] += 1
    head = {"clusters": clusters, "mean": mean, "sizes": kind, "quality": quality, "repeats": repeats}
    return [
        {
            **head,
            "method": m,
            "metric": k,
            "truth": round(truth[k], 5),
            **r,
            "width": round(r["width"] / repeats, 5),
        }
        for (m, k), r in rows.items()
    ]


def cells() -> list[tuple[int, int, str, str]]:
    "Clusters, pictures of each, sizes, quality."
    few = [(n, 6, kind, q) for n in (8, 10, 20) for kind in ("equal", "zipf") for q in ("usual", "good")]
    single = [(n, 1, "equal", q) for n in (30, 60, 200) for q in ("usual", "good")]
    near = [(8, 6, "equal", "nearly perfect"), (30, 1, "equal", "nearly perfect")]
    hard = [(n, 6, "equal", "uneven") for n in (8, 20)]
    many = [(50, 6, kind, q) for kind in ("equal", "zipf") for q in ("usual", "good")]
    return [(5, 6, "equal", "usual"), (6, 6, "equal", "usual"), *few, *single, *near, *hard, *many]


OUT = Path(__file__).with_name("coverage_study.json")


def main() -> None:
    "Cells that are there already with as many repeats are kept: a stopped run can be continued."
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    wanted = cells()[: int(sys.argv[2])] if len(sys.argv) > 2 else cells()
    kept = json.loads(OUT.read_text())["rows"] if OUT.exists() else []
    key = lambda r: (r["clusters"], r["mean"], r["sizes"], r["quality"])
    rows, began = [r for r in kept if r["repeats"] == repeats], time.process_time()
    for cell in (c for c in wanted if c not in {key(r) for r in rows}):
        rows += study_cell(*cell, repeats)
        OUT.write_text(json.dumps({"repeats": repeats, "rows": rows}, indent=0, ensure_ascii=False) + "\n")
        print(*cell, f"{time.process_time() - began:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
