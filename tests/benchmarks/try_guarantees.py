"""Guarantees: how often a threshold that was proven breaks its promise in truth, beside a threshold that only
looks good on the same draws.

    python -m tests.benchmarks.try_guarantees
        # 2,000 draws a setting; writes guarantees_study.json beside this file

Scores come from distributions whose true recall or precision above any threshold is known exactly (sums over
a fine grid of scores). A promise is broken when the chosen threshold's true rate is below the promised one;
where nothing is proven, nothing is broken.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from scipy.stats import beta

from cv_pipeline.evaluation.guarantees import prove_threshold, read_promise, route, units_alerted, units_found

TABLE = Path(__file__).with_name("guarantees_study.json")
FINE = (np.arange(200_000) + 0.5) / 200_000  # scores at which densities are summed
CHOICES = np.arange(1, 200) / 200  # thresholds of the point estimate: those of the promise


class Shape:
    "Scores between 0 and 1, on steps of `ties` where given, and how often one of them is right."

    def __init__(self, density, right=lambda s: np.ones_like(s), ties=None, lost=0.0):
        weight, self.right, self.ties = density(FINE), right, ties
        self.cumulative = np.cumsum(weight) / weight.sum()
        self.lost = lost  # share of objects that are never found
        self.value = np.float32(FINE) if ties is None else np.float32(np.round(FINE / ties) * ties)
        share = weight / weight.sum() * (1 - lost)
        tail = lambda x: np.append(np.cumsum(x[::-1])[::-1], 0.0)  # of what lies at or above each score
        self.tail, self.good_tail = tail(share), tail(share * right(self.value.astype(float)))

    def draw(self, rng, n):
        score = self.value[np.searchsorted(self.cumulative, rng.random(n))].copy()
        score[rng.random(n) < self.lost] = 0
        return score

    def recall(self, threshold):
        return self.tail[np.searchsorted(self.value, np.float32(threshold), side="right")]

    def precision(self, threshold):
        place = np.searchsorted(self.value, np.float32(threshold), side="right")
        return self.good_tail[place] / max(self.tail[place], 1e-300)


def of_beta(a, b):
    return lambda s: beta.pdf(s, a, b)


def two_kinds(s):
    return 0.9 * beta.pdf(s, 20, 3) + 0.1 * beta.pdf(s, 2, 8)


def rising(s):
    return 1 / (1 + np.exp(-14 * (s - 0.3)))


FOUND = {
    "one hump": Shape(of_beta(5, 2)),
    "flat": Shape(of_beta(1, 1)),
    "easy and hard ones": Shape(two_kinds),
    "steps of .05 (ties)": Shape(of_beta(5, 2), ties=0.05),
    "2 % never found": Shape(of_beta(8, 2), lost=0.02),
    "5.2 % never found": Shape(of_beta(8, 2), lost=0.052),
}
ALERTS = {
    "rises with the score": Shape(of_beta(1, 1), rising),
    "just too low everywhere": Shape(of_beta(1, 1), lambda s: np.full_like(s, 0.9499)),
    "most confident are worst": Shape(of_beta(2, 1), lambda s: np.where(s > 0.95, 0.9, 0.97)),
    "bad band in the middle": Shape(of_beta(1, 1), lambda s: np.where((s > 0.5) & (s < 0.8), 0.85, 0.99)),
    "alternating bands": Shape(of_beta(1, 1), lambda s: np.where((s * 20).astype(int) % 2 > 0, 0.9, 0.99)),
    "steps of .05 (ties)": Shape(of_beta(1, 1), rising, ties=0.05),
}


def summary(shape, n, rows):
    "What became of all draws: (threshold or nan, true rate, naive threshold or nan, its true rate)."
    t, kept, naive_t, naive = np.array(rows, float).T
    median = lambda x: round(float(np.nanmedian(x)), 3) if np.isfinite(x).any() else None
    return {
        "shape": shape,
        "n": n,
        "broken": float(np.mean(kept < 0)),
        "naive broken": float(np.mean(naive < 0)),
        "proven": float(np.isfinite(t).mean()),
        "threshold": median(t),
        "naive threshold": median(naive_t),
    }


def recall_draw(shape, n, promise, rng):
    "Threshold and margin of its true recall, proven and by point estimate."
    score = shape.draw(rng, n)
    found = prove_threshold(promise, units_found(range(n), score, 0)).threshold
    looks = (score[:, None] > CHOICES.astype(np.float32)).mean(axis=0) >= promise.rate
    naive = CHOICES[np.flatnonzero(looks)[-1]] if looks.any() else None
    return outcome(found, shape.recall, promise) + outcome(naive, shape.recall, promise)


def precision_draw(shape, n, promise, rng):
    "The same for a precision: n alerts."
    score = shape.draw(rng, n)
    right = rng.random(n) < shape.right(score.astype(float))
    found = prove_threshold(promise, units_alerted(range(n), score, right)).threshold
    above = score[:, None] > CHOICES.astype(np.float32)
    rate = (above & right[:, None]).sum(axis=0) / np.maximum(above.sum(axis=0), 1)
    looks = np.flatnonzero(rate >= promise.rate)
    naive = CHOICES[looks[0]] if len(looks) else None
    return outcome(found, shape.precision, promise) + outcome(naive, shape.precision, promise)


def outcome(threshold, truth, promise):
    "Threshold and margin to the promise; nothing chosen breaks nothing."
    return (np.nan, 0.0) if threshold is None else (threshold, truth(threshold) - promise.rate)


def route_draw(shapes, n, limits, rng):
    "Items of which a third is bad: both promises together, margin of the worse one."
    bad, good = shapes
    truth = rng.random(n) < 1 / 3
    score = np.where(truth, bad.draw(rng, n), good.draw(rng, n))
    block, miss = limits

    def precision(t):
        a, b = bad.recall(t), good.recall(t)
        return a / (a + 2 * b)

    made = route(score, truth, block, miss)
    margin = [0.0 if made.block.threshold is None else precision(made.block.threshold) - block]
    margin += [0.0 if made.clear.threshold is None else bad.recall(made.clear.threshold) - (1 - miss)]
    above = score[:, None] > CHOICES.astype(np.float32)
    rate = (above & truth[:, None]).sum(axis=0) / np.maximum(above.sum(axis=0), 1)
    high = CHOICES[np.argmax(rate >= block)] if (rate >= block).any() else 1.0
    low = CHOICES[np.flatnonzero(above[truth].mean(axis=0) >= 1 - miss)[-1]]
    naive = min(precision(high) - block if high < 1 else 0.0, bad.recall(low) - (1 - miss))
    t = made.clear.threshold if made.block.threshold is not None else None
    return (np.nan if t is None else t), min(margin), low, naive


def frames_draw(tracks, frames, promise, as_frames, rng):
    "Tracks whose frames resemble each other; recall is that of a frame. Truth by calculation."
    hard = rng.normal(0.6, 0.15, tracks)
    score = np.clip(hard[:, None] + rng.normal(0, 0.03, (tracks, frames)), 0, 1)
    key = np.arange(tracks * frames) if as_frames else np.repeat(np.arange(tracks), frames)
    found = prove_threshold(promise, units_found(key, score.ravel(), None)).threshold
    from scipy.stats import norm

    truth = lambda t: norm.sf((t - 0.6) / np.hypot(0.15, 0.03))
    return outcome(found, truth, promise) + (np.nan, 0.0)


def study(draws=2000, recalls=(60, 100, 200, 500), alerts=(100, 300, 1000, 3000), routes=(300, 3000)):
    "All tables."
    recall, precision, limits = (
        read_promise("recall>=0.95@95%"),
        read_promise("precision>=0.95@95%"),
        (0.95, 0.05),
    )
    kinds = FOUND["one hump"], Shape(of_beta(1.5, 7))
    each = lambda draw, *how: [draw(*how, np.random.default_rng(k)) for k in range(draws)]
    tables = {
        "promises": {
            "recall": recall.text,
            "precision": precision.text,
            "route": f"precision>={limits[0]} and miss<={limits[1]}, both together @95%",
        },
        "draws": draws,
        "recall": [summary(k, n, each(recall_draw, s, n, recall)) for k, s in FOUND.items() for n in recalls],
        "precision": [
            summary(k, n, each(precision_draw, s, n, precision)) for k, s in ALERTS.items() for n in alerts
        ],
        "route": [summary("block, ask, pass", n, each(route_draw, kinds, n, limits)) for n in routes],
    }
    tables["frames"] = [
        {"unit": unit} | summary("alike", n, each(frames_draw, 100, 40, recall, unit == "frame"))
        for unit, n in (("track", 100), ("frame", 4000))
    ]
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    began = time.process_time()
    tables = study(args.draws)
    args.out.write_text(json.dumps(tables, indent=1) + "\n")
    for name in ("recall", "precision", "route", "frames"):
        print(name)
        for r in tables[name]:
            print("  ", r)
    print(f"{time.process_time() - began:.0f} CPU-seconds")


if __name__ == "__main__":
    main()
