"""Drift: false alarms on streams in which nothing drifts, power and delay where something does, and whether
the cause is named right; textbook tests on the same streams.

    python -m tests.benchmarks.try_drift --bank FOLDER
        # draws and measures the streams (16 cores: about six minutes); --streams 2 --seconds 60 for a look
    python -m tests.benchmarks.try_drift FOLDER
        # the study from those streams; writes drift_study.json beside this file

A stream: three cameras over one factory line of its own (256x192, a look every three seconds), the light
always in slow, harmless motion, seen by the bundled detector. 220 looks a camera are the reference, then two
windows of 170 (510 frames) each. What is planted begins with the second window: on camera 2, or on all
cameras. Everything else of a planted stream is the stream without it.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from scipy.stats import ks_2samp

from cv_pipeline.inference.loading import load_model
from cv_pipeline.monitoring.drift import compare
from cv_pipeline.monitoring.frame_statistics import cell_descriptor, frame_statistics
from cv_pipeline.monitoring.observed import DriftSettings, Observed
from cv_pipeline.monitoring.telemetry import STATISTICS
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.conditions import Changing, Conditions
from cv_pipeline.synthetic.parts import CLASS_NAMES, seeded

SIZE, CAMERAS, REFERENCE, WINDOW, STEP = (256, 192), 3, 220, 170, 75
DEVICE = {
    f"{name} {s}": {name: s}
    for name in ("lamp_failure", "fog", "noise", "dirt", "vibration", "resolution")
    for s in (2, 4)
}
WORLD = {f"all cameras: time_of_day {s}": {"time_of_day": s} for s in (2, 4)} | {
    f"all cameras: fog {s}": {"fog": s} for s in (2, 4)
}
MIX = {"all cameras: parts x2": (1, 1, 1, 2, 2), "all cameras: parts x4": (1, 1, 1, 4, 4)}
PLANTED = 20  # streams that get everything planted
TABLE = Path(__file__).with_name("drift_study.json")


def clouds(seed: int, camera: int) -> np.ndarray:
    "(looks,) severity of 'time of day', 0 … 0.8: correlated from look to look."
    rng, n = seeded(seed, "clouds", camera), REFERENCE + 2 * WINDOW
    noise, x = rng.standard_normal(n), np.zeros(n)
    for i in range(1, n):
        x[i] = 0.6 * x[i - 1] + 0.8 * noise[i]
    return np.clip(0.3 + 0.2 * x, 0, 0.8).round(2)


def looks(
    seed: int, camera: int, first: int, last: int, model, planted: dict | None = None, weights=(1,) * 5
) -> dict[str, np.ndarray]:
    "Measured looks of one camera: statistics, embedding as bytes, detections."
    sky = clouds(seed, camera)
    change = lambda t: Conditions(
        **({"time_of_day": float(sky[min(int(round(t * 25)) // STEP, len(sky) - 1)])} | (planted or {}))
    )
    line = FactoryLine(
        LineConfig(size=SIZE, cameras=CAMERAS, seed=seed, density=5, class_weights=weights),
        {k: Changing(change) for k in range(CAMERAS)},
    )
    stats, vectors, count, boxes = [], [], [], []
    for i in range(first, last):
        image = line.render(i * STEP, camera)[0].image
        (d,) = model.predict([image])
        stats.append(frame_statistics(image))
        vectors.append(np.round(cell_descriptor(image) * 255))
        count.append(len(d))
        boxes.append(np.column_stack([d.class_id, d.confidence, d.area / (SIZE[0] * SIZE[1])]))
    b = np.concatenate(boxes) if boxes else np.zeros((0, 3))
    return {
        "stats": np.array(stats, np.float32),
        "vectors": np.array(vectors, np.uint8),
        "count": np.array(count, np.int16),
        "class": b[:, 0].astype(np.int8),
        "confidence": b[:, 1].astype(np.float16),
        "size": b[:, 2].astype(np.float16),
    }


_MODEL = None


def one_stream(k: int) -> tuple[int, dict]:
    "Everything of stream k, keyed by what was planted and the camera."
    global _MODEL
    cv2.setNumThreads(1)
    if _MODEL is None:
        _MODEL = load_model("factory_line", threads=1)
    seed, end, made = 70_000 + k, REFERENCE + 2 * WINDOW, {}
    for c in range(CAMERAS):
        made["", c] = looks(seed, c, 0, end, _MODEL)
    if k < PLANTED:
        for name, planted in DEVICE.items():
            made[name, 1] = looks(seed, 1, end - WINDOW, end, _MODEL, planted)
        for c in range(CAMERAS):
            for name, planted in WORLD.items():
                made[name, c] = looks(seed, c, end - WINDOW, end, _MODEL, planted)
            for name, weights in MIX.items():
                made[name, c] = looks(seed, c, end - WINDOW, end, _MODEL, None, weights)
    return k, made


def draw(folder: Path, streams: range, seconds: float, workers: int, files: int = 7) -> None:
    "Streams into the bank: a few files, each with some of them; those that are done when time is up."
    begun, shards = time.time(), [{} for _ in range(files)]
    folder.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("fork").Pool(workers, initializer=os.nice, initargs=(15,)) as pool:
        found, done = pool.imap_unordered(one_stream, streams), 0
        while done < len(streams):
            try:
                k, made = found.next(timeout=max(begun + seconds - time.time(), 0.01))
            except multiprocessing.TimeoutError:
                break
            done += 1
            for (name, c), columns in made.items():
                for key, v in columns.items():
                    shards[k % files][f"{k}|{name}|{c}|{key}"] = v
            if done % 20 == 0:
                print(f"{time.time() - begun:.0f} s, {done} streams", flush=True)
        pool.terminate()
    for i, shard in enumerate(shards):
        if shard:
            np.savez_compressed(folder / f"bank{streams.start}-{i}.npz", **shard)
    print(f"{done} streams in {time.time() - begun:.0f} s", flush=True)


class Bank:
    "The streams of a folder."

    def __init__(self, folder: Path):
        self.files = [np.load(f) for f in sorted(folder.glob("bank*.npz"))]
        self.place = {name: f for f in self.files for name in f.files}
        self.streams = sorted({int(n.split("|")[0]) for n in self.place if n.split("|")[1] == ""})
        self.planted = {
            k: sorted({n.split("|")[1] for n in self.place if n.startswith(f"{k}|")} - {""})
            for k in self.streams
        }

    def camera(self, k: int, c: int, name: str = "") -> dict[str, np.ndarray]:
        "Looks of one camera; with `name` only those of the second window."
        keys = ("stats", "vectors", "count", "class", "confidence", "size")
        return {key: self.place[f"{k}|{name}|{c}|{key}"][f"{k}|{name}|{c}|{key}"] for key in keys}

    def has(self, k: int, c: int, name: str) -> bool:
        return f"{k}|{name}|{c}|stats" in self.place


def cut(looks: dict[str, np.ndarray], low: int, high: int, every: int = 1) -> dict[str, np.ndarray]:
    "Some looks with their boxes."
    frame = np.repeat(np.arange(len(looks["count"])), looks["count"])
    keep = (
        (np.arange(len(looks["count"])) >= low)
        & (np.arange(len(looks["count"])) < high)
        & ((np.arange(len(looks["count"])) - low) % every == 0)
    )
    return {
        k: v[keep] if k in ("stats", "vectors", "count") else v[keep[frame]] for k, v in looks.items()
    } | {"at": np.flatnonzero(keep) * 3.0}


def observed(cameras: dict[int, dict[str, np.ndarray]], start: float = 0.0) -> Observed:
    "Cameras as one period."
    join = lambda key: np.concatenate([c[key] for c in cameras.values()])
    count = join("count").astype(int)
    stats = join("stats")
    return Observed(
        tuple(f"camera {c + 1}" for c in range(CAMERAS)),
        np.repeat(list(cameras), [len(c["count"]) for c in cameras.values()]),
        join("at") + start,
        {n: stats[:, i] for i, n in enumerate(STATISTICS)},
        join("vectors").astype(np.float32) / 255,
        None,
        np.repeat(np.arange(len(count)), count),
        join("class").astype(int),
        join("confidence").astype(np.float32),
        join("size").astype(np.float32),
        CLASS_NAMES,
        "cells",
    )


def periods(
    bank: Bank, k: int, planted: str = "", looks: int = WINDOW
) -> tuple[Observed, Observed, Observed]:
    "Reference, first and second window of a stream; the second with what is planted."
    whole = {c: bank.camera(k, c) for c in range(CAMERAS)}
    reference = observed({c: cut(v, 0, REFERENCE) for c, v in whole.items()})
    first = observed({c: cut(v, REFERENCE, REFERENCE + WINDOW) for c, v in whole.items()})
    start, second = REFERENCE + WINDOW, {}
    for c, v in whole.items():
        if planted and bank.has(k, c, planted):
            second[c] = cut(bank.camera(k, c, planted), 0, looks)
        elif planted == "mix: one camera six times as often" and c:
            second[c] = cut(v, start, start + looks, 6)
        else:
            second[c] = cut(v, start, start + looks)
        if second[c]["at"].min() < start * 3.0:
            second[c]["at"] = second[c]["at"] + start * 3.0
    if planted == "mix: a new camera":
        reference = reference.rows(reference.camera != 2)
    return reference, first, observed(second)


def textbook(a: Observed, b: Observed) -> dict[str, bool]:
    """Alarms of the usual tests on numbers a frame: KS with Bonferroni at 5 %, PSI over .1 and .2 with ten
    bins, any column."""
    columns = {n: (a.image[n], b.image[n]) for n in STATISTICS} | {
        "count": tuple(np.bincount(o.box_frame, minlength=len(o)) for o in (a, b)),
        "confidence": (a.confidence, b.confidence),
        "size": (a.size, b.size),
    }
    p = min(ks_2samp(x, y).pvalue for x, y in columns.values()) * len(columns)
    psi = max(_psi(x, y) for x, y in columns.values())
    return {"KS, 5 %": bool(p < 0.05), "PSI > .1": psi > 0.1, "PSI > .2": psi > 0.2}


def _psi(x: np.ndarray, y: np.ndarray) -> float:
    edges = np.unique(np.quantile(x, np.linspace(0, 1, 11)))
    edges[0], edges[-1] = -np.inf, np.inf
    p, q = (np.maximum(np.histogram(v, edges)[0] / len(v), 1e-4) for v in (x, y))
    return float(((p - q) * np.log(p / q)).sum())


EXPECTED = {"all cameras": "world changed", "mix": "mix shift", "nothing": "none"}
TUNED = {
    *range(16),
    *range(20, 72),
    *range(164, 200),
    # streams that were there when a block was first made 10 autocorrelation times long; the others of 200
    # were
    # drawn afterwards
}
DELAYS = (34, 68, 102, 136, 170)  # looks a camera


def quiet_row(bank: Bank, k: int) -> dict:
    "One stream without drift."
    reference, first, second = periods(bank, k)
    one = compare(reference, first)
    two = compare(reference, second, before=one.families)
    worst = lambda d: min(
        (f.p_adjusted for f in d.families if np.isfinite(f.p_adjusted)), default=float("nan")
    )  # NaN: too little to judge, no alarm
    return {
        "stream": k,
        "p": [worst(one), worst(two)],
        "families": [{f.family: f.p for f in d.families} for d in (one, two)],
        "verdict": [one.verdict, two.verdict],
        "tau": [c["frames that count as one"] for c in one.cameras],
        "effect": [{f.family: f.effect for f in d.families} for d in (one, two)],
        "textbook": [textbook(reference, first), textbook(reference, second)],
    }


def planted_row(bank: Bank, job: tuple[int, str]) -> dict:
    "One stream with something planted: verdict, cause, and after how many frames it is seen."
    k, name = job
    reference, _, window = periods(bank, k, name)
    d = compare(reference, window)
    seen = None
    for n in DELAYS:
        part = (
            d
            if n == WINDOW
            else compare(reference, periods(bank, k, name, n)[2], DriftSettings(least=50, least_device=20))
        )
        if part.verdict in ("AMBER", "RED"):
            seen = n * CAMERAS
            break
    families = [f.family for f in d.families if f.alarm]
    return {
        "stream": k,
        "planted": name,
        "verdict": d.verdict,
        "cause": d.cause,
        "devices": list(d.devices),
        "families": families,
        "frames until seen": seen,
        "expected": EXPECTED.get(name.split(":")[0], "device fault"),
        "effect": {f.family: f.effect for f in d.families},
        "textbook": textbook(reference, window),
    }


_BANK = None


def _open(folder: Path) -> None:
    "Each worker has files of its own."
    global _BANK
    _BANK = Bank(folder)


def _quiet(k: int) -> dict:
    return quiet_row(_BANK, k)


def _planted(job: tuple[int, str]) -> dict:
    return planted_row(_BANK, job)


def study(folder: Path, workers: int) -> dict:
    "All streams of a bank."
    bank = Bank(folder)
    jobs = [
        (k, n)
        for k in bank.streams
        if bank.planted[k]
        for n in (*bank.planted[k], "mix: one camera six times as often", "mix: a new camera")
    ]
    begun = time.time()
    if workers < 2:
        quiet, planted = [quiet_row(bank, k) for k in bank.streams], [planted_row(bank, j) for j in jobs]
    else:
        with multiprocessing.get_context("fork").Pool(workers, initializer=_open, initargs=(folder,)) as pool:
            quiet, planted = pool.map(_quiet, bank.streams), pool.map(_planted, jobs, chunksize=8)
    print(f"{len(quiet)} streams without and {len(planted)} with drift in {time.time() - begun:.0f} s")
    return {"quiet": quiet, "planted": planted}


def quiet_rates(quiet: list[dict]) -> dict:
    "How often something alarms where nothing drifts."
    windows = [(p, v, t) for r in quiet for p, v, t in zip(r["p"], r["verdict"], r["textbook"])]
    share = lambda values: round(float(np.mean(values)), 4)
    return {
        "streams": len(quiet),
        "windows": len(windows),
        "grey": share([v == "GREY" for _, v, _ in windows]),
        "any family, adjusted p < .05": share([p < 0.05 for p, _, _ in windows]),
        "any family, adjusted p < .01": share([p < 0.01 for p, _, _ in windows]),
        "AMBER or RED": share([v in ("AMBER", "RED") for _, v, _ in windows]),
        "RED": share([r["verdict"][1] == "RED" for r in quiet]),
        **{k: share([t[k] for _, _, t in windows]) for k in windows[0][2]},
    }


def tables(found: dict) -> dict:
    "Rates, as the notebook shows them."
    quiet, planted = found["quiet"], found["planted"]
    share = lambda values: round(float(np.mean(values)), 4)
    fresh = [r for r in quiet if r["stream"] not in TUNED]
    per_family = {
        f: share([d[f] < 0.05 for r in quiet for d in r["families"] if f in d and np.isfinite(d[f])])
        for f in quiet[0]["families"][0]
    }
    rows = []
    for name in dict.fromkeys(r["planted"] for r in planted):
        mine = [r for r in planted if r["planted"] == name]
        seen = [r["frames until seen"] for r in mine if r["frames until seen"]]
        rows.append(
            {
                "planted": name,
                "streams": len(mine),
                "seen within 510 frames": share([r["verdict"] in ("AMBER", "RED") for r in mine]),
                "frames until seen, median": float(np.median(seen)) if seen else None,
                "expected cause": mine[0]["expected"],
                "cause right": share(
                    [
                        r["cause"] == r["expected"]
                        and (r["expected"] != "device fault" or r["devices"] == ["camera 2"])
                        for r in mine
                        if r["verdict"] in ("AMBER", "RED")
                    ]
                    or [np.nan]
                ),
                "causes": dict(Counter(r["cause"] for r in mine)),
                **{k: share([r["textbook"][k] for r in mine]) for k in mine[0]["textbook"]},
            }
        )
    return {
        "no drift": quiet_rates(quiet),
        "no drift, held out": quiet_rates(fresh) if fresh else None,
        "false alarms by family at 5 %": per_family,
        "planted": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bank", action="store_true", help="draw the streams")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="go on from this stream")
    parser.add_argument("--seconds", type=float, default=1e6)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    if args.bank:
        draw(args.folder, range(args.first, args.streams), args.seconds, args.workers)
        return
    found = study(args.folder, args.workers)
    said = tables(found)
    args.out.write_text(json.dumps(said, indent=1) + "\n")
    args.out.with_suffix(".rows.json").write_text(json.dumps(found) + "\n") if args.out != TABLE else None
    for k, v in said["no drift"].items():
        held = said["no drift, held out"]
        print(f"{k:32s} {v}{'' if held is None else f'   held out {held[k]}'}")
    print(said["false alarms by family at 5 %"])
    for r in said["planted"]:
        print(r)


if __name__ == "__main__":
    main()
