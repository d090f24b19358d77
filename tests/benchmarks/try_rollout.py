"""The verdict of a rollout on streams of which the truth is known, and planted faults on the line.

    python -m tests.benchmarks.try_rollout --part null     # wrong decisions at the limit and at half of it
    python -m tests.benchmarks.try_rollout --part power    # minutes until the right decision
    python -m tests.benchmarks.try_rollout --part memory   # memories of minutes, at the limit
    python -m tests.benchmarks.try_rollout --part late     # a regression that begins after 12 of 24 hours
    python -m tests.benchmarks.try_rollout --part record   # the detector over the line (long), kept in ROWS
    python -m tests.benchmarks.try_rollout --part line     # rollouts with the recorded answers
    python -m tests.benchmarks.try_rollout --merge         # rollout_study.json

Streams are Beta numbers whose ranks follow an autoregression (a Gaussian copula), 5 rows a second. "5 of 20"
is the rule of delivery tools: one value a minute, above the limit is a failure, five failures among the last
twenty roll back. The z-test compares the mean of blocks of four autocorrelation times with the limit after
every block, from ten on, at 5 % a side; it is given the autocorrelation time of the whole stream.
"""

import argparse
import json
import math
import pickle
import tempfile
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
from scipy.signal import lfilter
from scipy.stats import beta, norm

from cv_pipeline.core.stamp import stamp
from cv_pipeline.core.types import Detections, Frame
from cv_pipeline.evaluation.pairs import TrackVotes, compare_frame
from cv_pipeline.inference.loading import load_backend, load_model
from cv_pipeline.monitoring.statistics import autocorrelation_time
from cv_pipeline.release.evidence import Column, Evidence, log_evidence
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.tracking.trackers import make_tracker

TABLE = Path(__file__).with_name("rollout_study.json")
ROWS = Path(__file__).with_name("rollout_rows")
ALPHA, FPS, HOURS, SPREAD = 0.05, 5, 2.0, 3.0
GUARDS = 16  # of the default policy with three classes: how many share α in the tables of power
NULL = [(m, rho, share) for m in (0.02, 0.10) for rho in (0.0, 0.9, 0.98) for share in (1.0, 0.5)]
POWER = [
    *((0.04, mean, rho) for mean in (0.06, 0.087, 0.2) for rho in (0.9, 0.98)),
    *((0.10, mean, rho) for mean in (0.2, 0.5) for rho in (0.9, 0.98)),
    *((0.02, mean, 0.9) for mean in (0.004, 0.01)),
    *((0.10, mean, rho) for mean in (0.02, 0.05) for rho in (0.9, 0.98)),
]
MEMORY = [(seconds, share) for share in (1.0, 0.5) for seconds in (20, 100, 400)]
LATE = [(0.04, 0.02, 0.08), (0.04, 0.02, 0.15), (0.10, 0.05, 0.15), (0.10, 0.05, 0.2), (0.10, 0.05, 0.3)]


def rate(hits, n):
    "Share and its exact 95 % interval (Clopper and Pearson 1934)."
    low = float(beta.ppf(0.025, hits, n - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0
    return [round(hits / n, 4), round(low, 4), round(high, 4)]


def streams(n, mean, rho, many, seed):
    "(n, many) Beta numbers of one mean, or of a mean for each row; a row resembles the row before it by rho."
    z = np.random.default_rng(seed).standard_normal((n, many), np.float32) * np.float32((1 - rho**2) ** 0.5)
    z[0] /= (1 - rho**2) ** 0.5
    z = lfilter(np.ones(1, np.float32), np.array([1, -rho], np.float32), z, axis=0)
    grid = np.linspace(-6, 6, 4001)
    made = np.empty((n, many), np.float32)
    for m in np.unique(mean):
        rows = np.broadcast_to(mean == m, n)
        values = beta.ppf(norm.cdf(grid), m * SPREAD, (1 - m) * SPREAD)
        made[rows] = np.interp(z[rows], grid, np.minimum(values, 1))
    return made


def decided(x, limit, alphas=(ALPHA,), fps=FPS, horizon_h=24.0, step_s=10.0):
    "[(many,) minutes until a rollback, (many,) until a promotion] for each α, as seen every ten seconds."
    n, many = x.shape
    e = Evidence([Column(f"stream {i}", limit) for i in range(many)], horizon_h * 3600)
    found = [np.full((2, many), np.inf) for _ in alphas]
    step = max(1, round(step_s * fps))
    for first in range(0, n, step):
        part = x[first : first + step].astype(float)
        e.add((first + np.arange(len(part))) / fps, part)
        beyond, within = log_evidence(e)
        for a, both in zip(alphas, found):
            # a promotion is of all columns together and always gets the whole of α
            for row, log_e, proof in ((0, beyond, math.log(1 / a)), (1, within, math.log(1 / ALPHA))):
                new = (log_e >= proof) & ~np.isfinite(both[row])
                both[row, new] = (first + len(part)) / fps / 60
    return found


def flagger(x, limit, fps=FPS):
    "(many,) bool: rolled back by five failures among the last twenty values of a minute."
    size = fps * 60
    values = x[: len(x) // size * size].reshape(-1, size, x.shape[1]).mean(axis=1) > limit
    failures = values.cumsum(axis=0)
    failures[20:] = failures[20:] - failures[:-20]
    return (failures >= 5).any(axis=0)


def z_test(x, limit):
    "(2, many) bool: rolled back, promoted, by a test of block means that is looked at all the time."
    made = np.zeros((2, x.shape[1]), bool)
    for i, tau in enumerate(autocorrelation_time(x)):
        size = max(1, math.ceil(4 * tau))
        blocks = x[: len(x) // size * size, i].reshape(-1, size).mean(axis=1).astype(float)
        k = np.arange(1, len(blocks) + 1)
        mean = blocks.cumsum() / k
        sd = np.sqrt(np.maximum((blocks**2).cumsum() / k - mean**2, 1e-18) * k / np.maximum(k - 1, 1))
        z = ((mean - limit) / (sd / np.sqrt(k)))[9:]
        made[:, i] = (z > norm.ppf(1 - ALPHA)).any(), (z < norm.ppf(ALPHA)).any()
    return made


def null_row(limit, rho, share, many=400, hours=HOURS, seed=1):
    "Decisions on streams whose mean is the limit, or a share of it."
    x = streams(int(hours * 3600 * FPS), limit * share, rho, many, seed)
    back, promoted = decided(x, limit)[0]
    z = z_test(x, limit)
    wrong = {"evidence": np.isfinite(back), "5 of 20": flagger(x, limit), "z-test, looked at always": z[0]}
    right = {"evidence": np.isfinite(promoted), "z-test, looked at always": z[1]}
    row = {"limit": limit, "mean": round(limit * share, 4), "ρ": rho, "streams": many, "hours": hours}
    row["rollback"] = {k: rate(int(v.sum()), many) for k, v in wrong.items()}
    return row | {"promote": {k: rate(int(v.sum()), many) for k, v in right.items()}}


def times(minutes):
    "Median and 90 % of minutes; None where so many did not decide."
    number = lambda q: float(np.quantile(minutes, q, method="higher"))
    tidy = lambda v: round(v, 2) if math.isfinite(v) else None
    return {"minutes, median": tidy(number(0.5)), "90 %": tidy(number(0.9))}


def power_row(limit, mean, rho, many=200, hours=HOURS, seed=2):
    "Minutes until the right decision, a guard with its share of α."
    x = streams(int(hours * 3600 * FPS), mean, rho, many, seed)
    back, promoted = decided(x, limit, (ALPHA / GUARDS,))[0]
    right, wrong = (back, promoted) if mean > limit else (promoted, back)
    row = {"limit": limit, "mean": mean, "ρ": rho, "streams": many}
    row |= {"right": rate(int(np.isfinite(right).sum()), many), **times(right)}
    return row | {"wrong": rate(int(np.isfinite(wrong).sum()), many)}


def memory_row(seconds, share, limit=0.1, many=200, hours=HOURS, seed=4):
    "Decisions at the limit where a share of the variance remembers so many seconds and the rest nothing."
    n, rho, rng = int(hours * 3600 * FPS), math.exp(-1 / (seconds * FPS)), np.random.default_rng(seed)
    slow = rng.standard_normal((n, many)) * math.sqrt(1 - rho**2)
    slow[0] /= math.sqrt(1 - rho**2)
    z = math.sqrt(share) * lfilter([1], [1, -rho], slow, axis=0)
    z += math.sqrt(1 - share) * rng.standard_normal((n, many))
    grid = np.linspace(-6, 6, 4001)
    values = np.minimum(beta.ppf(norm.cdf(grid), limit * SPREAD, (1 - limit) * SPREAD), 1)
    back, promoted = decided(np.interp(z, grid, values), limit)[0]
    row = {"memory, s": seconds, "share of the variance": share, "limit": limit, "streams": many}
    hits = {"rollback": np.isfinite(back), "promote": np.isfinite(promoted)}
    return row | {k: rate(int(v.sum()), many) for k, v in hits.items()}


def late_row(limit, before, after, many=200, hours=24.0, seed=3):
    "A regression in the middle; one row a second, ρ .9 to the fifth: the same memory in seconds."
    n = int(hours * 3600)
    mean = np.where(np.arange(n) < n // 2, before, after)
    x = streams(n, mean, 0.9**5, many, seed)
    back = decided(x, limit, (ALPHA / GUARDS,), fps=1, horizon_h=hours)[0][0] - n / 120
    seen = np.where(back > 0, back, np.inf)
    row = {"limit": limit, "from": before, "to": after, "streams": many}
    row |= {"seen": rate(int(np.isfinite(seen).sum()), many), **times(seen)}
    return row | {"before": rate(int((back <= 0).sum()), many)}


def noisy_model(share, seed=0):
    "The bundled detector with every weight of its convolutions changed by a share of its own size."
    import onnx
    from onnx import numpy_helper

    model, rng = load_model("factory_line"), np.random.default_rng(seed)
    graph = onnx.load(str(model.path))
    for weight in graph.graph.initializer:
        value = numpy_helper.to_array(weight)
        if value.dtype == np.float32 and value.ndim == 4 and len(value) > 1:  # not the constants of the head
            factor = (1 + share * rng.standard_normal(value.shape)).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(value * factor, weight.name))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(graph, str(file))
        return replace(model, backend=load_backend(file, model.manifest, None, 0))


def plain(d):
    "Arrays of detections, for a file."
    return d.xyxy, d.confidence, d.class_id


def record(stretch, minutes, noises, fps=FPS, models=None):
    "Answers of the detector, and of those with changed weights, on a stretch of the line, by candidate."
    models = models or {
        "itself": load_model("factory_line"),
        **{f"noise {s:.0%}": noisy_model(s) for s in noises},
    }
    line, made = FactoryLine(LineConfig(seed=100 + stretch, cameras=1)), {name: [] for name in models}
    for k in range(round(minutes * 60 * fps)):
        image = line.render(k * 25 // fps, 0)[0].image
        for name, model in models.items():
            made[name].append(plain(model.predict([image])[0]))
    return made


def planted(recorded, names):
    "Candidate → frames of detections: recorded ones, and faults made of the detector's own answers."
    base = [Detections(*d) for d in recorded["itself"]]
    a, b = names.index("gear"), names.index("bolt")
    swap = np.arange(len(names))
    swap[[a, b]] = b, a
    turned = lambda d: Detections(d.xyxy, d.confidence, swap[d.class_id])
    made = {name: [Detections(*d) for d in frames] for name, frames in recorded.items()}
    made |= {f"threshold {t}": [d[d.confidence >= t] for d in base] for t in (0.65, 0.75, 0.85)}
    made["gear ↔ bolt"] = [turned(d) for d in base]
    made["boxes 40 % too wide"] = [Detections(widened(d.xyxy, 0.4), d.confidence, d.class_id) for d in base]
    made["blind to nuts"] = [d[d.class_id != names.index("nut")] for d in base]
    return made


def widened(xyxy, share):
    "Boxes that are wider to the right."
    made = xyxy.copy()
    made[:, 2] += share * (made[:, 2] - made[:, 0])
    return made


def rollout_of(base, candidate, names, policy, fps=FPS):
    "Verdict, minutes until it and the first guard of a rollout of one camera; means of the numbers."
    from cv_pipeline.release.rollout import Circumstances, judge_rollout, policy_columns

    columns = policy_columns(policy, names)
    known = {c.name for c in columns}
    e, step, rows, verdicts = Evidence(columns, policy.hours * 3600), 10 * fps, [], []
    blank, began = np.zeros((480, 640, 3), np.uint8), datetime(2026, 1, 1, tzinfo=timezone.utc)
    trackers, votes = [make_tracker("bytetrack", fps) for _ in range(2)], TrackVotes()
    for k, (old, new) in enumerate(zip(base, candidate)):
        row = compare_frame(old, new, names) | {"errors": 0.0, "slow": 0.0, "dropped": 0.0}
        frame = Frame(blank, "camera-1", k, began + timedelta(seconds=k / fps), k / fps)
        finished = votes.update(*(t.update(d, frame) for t, d in zip(trackers, (old, new))), k / fps)
        rows.append(
            {n: v for n, v in row.items() if n in known} | ({"tracks": np.mean(finished)} if finished else {})
        )
        if (k + 1) % step == 0:
            e.add(np.arange(k + 1 - step, k + 1) / fps, rows[-step:])
            report = judge_rollout(policy, {"camera-1": e}, Circumstances(hours=(k + 1) / fps / 3600))
            verdicts.append(report.verdict.value)
            if report.verdict.value == "ROLLBACK":
                return report.verdict.value, (k + 1) / fps / 60, report.findings[0].what, rows, verdicts
    return verdicts[-1], math.inf, None, rows, verdicts


def mean_of(rows, name):
    "Mean of one number, of the frames that have it."
    return round(float(np.nanmean([r.get(name, np.nan) for r in rows])), 4)


def line_rows(recordings, names, policy=None, only=()):
    "A row a candidate."
    from cv_pipeline.release.rollout import Policy

    policy, made = policy or Policy(), []
    everything = [planted(r, names) for r in recordings]
    for candidate in only or dict.fromkeys(name for p in everything for name in p):
        runs = [rollout_of(p["itself"], p[candidate], names, policy) for p in everything if candidate in p]
        minutes, words = np.array([r[1] for r in runs]), [r[0] for r in runs]
        rows = [row for r in runs for row in r[3]]
        guards = [r[2] for r in runs if r[2]]
        made.append(
            {
                "candidate": candidate,
                "stretches": len(runs),
                "disagree": mean_of(rows, "disagree"),
                "lost": mean_of(rows, "lost"),
                "count": mean_of(rows, "count"),
                "moved": mean_of(rows, "moved"),
                "verdicts": ", ".join(f"{words.count(w)} {w}" for w in sorted(set(words))),
                **times(minutes),
                "first guard": max(set(guards), key=guards.count) if guards else None,
                "labels asked for": sum("NEEDS LABELS" in r[4] for r in runs),
            }
        )
    return made


CELLS = {
    "null": (null_row, NULL),
    "power": (power_row, POWER),
    "memory": (memory_row, MEMORY),
    "late": (late_row, LATE),
}


def run(args):
    "The rows of a part, written into ROWS."
    ROWS.mkdir(exist_ok=True)
    began, many = time.process_time(), {} if args.streams is None else {"many": args.streams}
    if args.part == "record":
        models = {
            "itself": load_model("factory_line"),
            **{f"noise {s:.0%}": noisy_model(s) for s in args.noise},
        }
        for stretch in range(args.stretches):
            file = ROWS / f"stretch{stretch}.pickle"
            if not file.exists():
                file.write_bytes(pickle.dumps(record(stretch, args.minutes, args.noise, models=models)))
                print(file.name, f"{time.process_time() - began:.0f} s CPU", flush=True)
        return
    if args.part == "line":
        recordings = [pickle.loads(f.read_bytes()) for f in sorted(ROWS.glob("stretch*.pickle"))]
        frames = len(recordings[0]["itself"])
        new = line_rows(recordings, load_model("factory_line").manifest.names, only=args.only)
        old = json.loads((ROWS / "line.json").read_text())["rows"] if args.only else []
        rows = {"rows": [r for r in old if r["candidate"] not in args.only] + new}
        rows |= {"fps": FPS, "minutes": round(frames / FPS / 60, 2)}
    else:
        row, cells = CELLS[args.part]
        rows = []
        for cell in cells:
            rows.append(row(*cell, **many))
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    (ROWS / f"{args.part}.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    print(f"{args.part}: {time.process_time() - began:.0f} s CPU")


def merged():
    "All parts that were run."
    read = lambda part: json.loads(f.read_text()) if (f := ROWS / f"{part}.json").exists() else None
    made = {"stamp": stamp(), "alpha": ALPHA, "guards": GUARDS, "power_hours": HOURS}
    return made | {part: read(part) for part in ("null", "power", "memory", "late", "line")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=["null", "power", "memory", "late", "record", "line"])
    parser.add_argument("--streams", type=int)
    parser.add_argument("--stretches", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--noise", type=float, nargs="*", default=[0.02, 0.06])
    parser.add_argument("--only", nargs="*", default=[], help="candidates of the line to run again")
    parser.add_argument("--merge", action="store_true")
    args = parser.parse_args()
    if args.part:
        run(args)
    if args.merge:
        TABLE.write_text(json.dumps(merged(), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
