"""Drift in days, weeks and batches: false alarms on weeks in which nothing drifts, and what is seen, after
how many hours and with which cause, where something does; textbook tests on the same frames.

    python -m tests.benchmarks.try_seasons --part null --reference 14 --workers 8   # one part of the grid
    python -m tests.benchmarks.try_seasons --part planted few --streams 200         # others
    python -m tests.benchmarks.try_seasons --evidently PYTHON                       # a peer
    python -m tests.benchmarks.try_seasons --merge                                  # season_study.json

Parts write rows into ROWS (default: the folder season_rows here), a file a cell; rows that exist are not run
again, so a part can be stopped and continued. Weeks come from `synthetic.calendar`: columns drawn from
formulas, or, for dirt, fog and blur, frames from a bank that is rendered once (a minute) and kept in ROWS. A
stream begins on another weekday, and its window ends at another hour, than the stream before it.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import cv2
import numpy as np
from scipy.stats import beta, ks_2samp

from cv_pipeline.core.stamp import stamp
from cv_pipeline.monitoring.drift import Drift, compare
from cv_pipeline.monitoring.observed import DriftSettings, Observed
from cv_pipeline.monitoring.season_line import measured_bank
from cv_pipeline.synthetic.calendar import Bank, Calendar, Event, drawn_weeks

TABLE = Path(__file__).with_name("season_study.json")
BASE = Calendar()  # day and night, three shifts
WEEK = (1.0, 1.0, 1.0, 1.0, 0.9, 0.3, 0.1)
ALL = replace(BASE, weekdays=WEEK, batch=0.3, batch_mix=0.3, weather=0.7, weather_hours=6)
CALENDARS = {
    "day and night": BASE,
    "weekday pattern": replace(BASE, weekdays=WEEK),
    "batch a day, .3 sd": replace(BASE, batch=0.3, batch_mix=0.3),
    "batch a day, .7 sd": replace(BASE, batch=0.7, batch_mix=0.7),
    "weather of 1 h": replace(BASE, weather=0.7, weather_hours=1),
    "weather of 6 h": replace(BASE, weather=0.7, weather_hours=6),
    "weather of 36 h": replace(BASE, weather=0.7, weather_hours=36),
    "all together": ALL,
}
ONE, EVERY = (1,), ()  # cameras
PLANTED: dict[str, tuple[dict, str, bool]] = {  # name → event, the right cause, from the bank
    "all cameras: brightness × .5": (
        {"what": "brightness", "factor": 0.5, "cameras": EVERY},
        "world changed",
        False,
    ),
    "all cameras: noise × 2": ({"what": "noise", "factor": 2.0, "cameras": EVERY}, "world changed", False),
    "all cameras: class mix × 4": (
        {"what": "class mix", "factor": 4.0, "cameras": EVERY},
        "world changed",
        False,
    ),
    "camera-2: dark (brightness × .5)": (
        {"what": "brightness", "factor": 0.5, "cameras": ONE},
        "device fault",
        False,
    ),
    "camera-2: noise × 2": ({"what": "noise", "factor": 2.0, "cameras": ONE}, "device fault", False),
    "camera-2: lamp failure 4": (
        {"what": "lamp_failure", "severity": 4.0, "cameras": ONE},
        "device fault",
        True,
    ),
    "camera-2: fog 3": ({"what": "fog", "severity": 3.0, "cameras": ONE}, "device fault", True),
    "camera-2: blur (vibration 3)": (
        {"what": "vibration", "severity": 3.0, "cameras": ONE},
        "device fault",
        True,
    ),
    "camera-2: dirt 3": ({"what": "dirt", "severity": 3.0, "cameras": ONE}, "device fault", True),
    "a new camera": ({"what": "absent", "cameras": ONE}, "mix shift", False),
}
HOURS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24)  # after a step, at which a window of 24 hours ends
STEP = {2: 240.0, 3: 240.0, 40: 600.0}  # seconds between frames, by cameras
BANKED = 600.0  # seconds between frames of the bank: their embeddings are many numbers
LIGHTS = tuple(np.arange(0.0, 3.6, 0.5).tolist())
DAY = 86_400.0


def moved(calendar: Calendar, seed: int) -> Calendar:
    "The calendar from another weekday on."
    return replace(calendar, start=date(2026, 6, 1) + timedelta(days=seed % 7), seed=seed)


def observed(calendar: Calendar, days: int, cameras: int, bank: Bank | None = None) -> Observed:
    "Weeks as columns of monitoring."
    step = STEP[cameras] if bank is None else BANKED
    return Observed(**drawn_weeks(calendar, days, step, cameras, bank=bank).columns(), where="drawn")


def periods(seen: Observed, end: float, reference: float, window: float) -> tuple[Observed, Observed]:
    "So many days before `end`, and so many before these."
    begin = end - window * DAY
    return seen.between(begin - reference * DAY, begin), seen.between(begin, end)


def textbook(a: Observed, b: Observed) -> dict[str, bool]:
    "KS with Bonferroni at 5 %, PSI over .2 with ten bins, any column; frames taken for independent."
    count = [np.bincount(o.box_frame, minlength=len(o)).astype(float) for o in (a, b)]
    columns = [
        *((a.image[n], b.image[n]) for n in a.image),
        count,
        (a.confidence, b.confidence),
        (a.size, b.size),
    ]
    pairs = [(np.asarray(x, float), np.asarray(y, float)) for x, y in columns if len(x) and len(y)]
    p = min(ks_2samp(x, y, method="asymp").pvalue for x, y in pairs) * len(pairs)
    return {"KS, Bonferroni": bool(p < 0.05), "PSI > .2": bool(max(psi(x, y) for x, y in pairs) > 0.2)}


def psi(x: np.ndarray, y: np.ndarray) -> float:
    "Population stability index, ten bins of the reference."
    edges = np.unique(np.quantile(x, np.linspace(0, 1, 11)))
    edges[0], edges[-1] = -np.inf, np.inf
    p, q = (np.maximum(np.histogram(v, edges)[0] / len(v), 1e-4) for v in (x, y))
    return float(((p - q) * np.log(p / q)).sum())


def judged(drift: Drift) -> dict:
    "What a comparison found, as numbers."
    p = [f.p_adjusted for f in drift.families if np.isfinite(f.p_adjusted)]
    return {
        "p": min(p) if p else None,
        "verdict": drift.verdict,
        "cause": drift.cause,
        "devices": list(drift.devices),
        "alarms": [f.family for f in drift.families if f.alarm],
        "grey": [f.family for f in drift.families if f.state == "GREY"],
    }


def null_row(job: tuple) -> dict:
    "One stream in which nothing drifts."
    calendar, reference, window, cameras, seed = job
    calendar = moved(CALENDARS[calendar], seed)
    seen = observed(calendar, reference + window + 1, cameras)
    end = calendar.when(reference + window).timestamp() + 3600 * (5 * seed % 24)
    a, b = periods(seen, end, reference, window)
    begun = time.process_time()
    found = judged(compare(a, b, DriftSettings(seed=seed)))
    return {"seed": seed, **found, "s": round(time.process_time() - begun, 3), "textbook": textbook(a, b)}


def planted_row(job: tuple) -> dict:
    "One stream with a step at 10:40: the verdict a day later, and after how many hours it was first seen."
    name, reference, seed, folder, hours = job
    event, _, banked = PLANTED[name]
    calendar = moved(ALL, 100_000 + seed)
    since = calendar.when(reference + 2, "10:40")
    times = {"until": since} if event["what"] == "absent" else {"since": since}
    calendar = replace(calendar, events=(Event(**event, **times),))
    seen, step = observed(calendar, reference + 4, 3, bank_of(folder) if banked else None), since.timestamp()
    found: dict[int, Drift] = {}
    for h in hours:
        a, b = periods(seen, step + 3600 * h, reference, 1)
        found[h] = compare(a, b, DriftSettings(seed=seed))
        if found[h].verdict in ("AMBER", "RED") and h != hours[-1]:
            break
    first = next((h for h, d in found.items() if d.verdict in ("AMBER", "RED")), None)
    a, b = periods(seen, step + DAY, reference, 1)
    last = found.get(24) or compare(a, b, DriftSettings(seed=seed))
    return {"seed": seed, "hours": first, **judged(last), "textbook": textbook(a, b)}


_BANK: dict[str, Bank] = {}


def bank_of(folder: Path) -> Bank:
    "The bank of rendered frames; rendered when it is first needed."
    path = Path(folder) / "bank.npz"
    if str(path) in _BANK:
        return _BANK[str(path)]
    arrays = ("camera", "light", "kind", "box_frame", "box_class", "confidence", "size", "embedding")
    if not path.exists():
        cv2.setNumThreads(1)
        kinds = [(e["what"], e["severity"]) for e, _, banked in PLANTED.values() if banked]
        made = measured_bank(kinds, LIGHTS, each=16, cameras=3)
        columns = {k: getattr(made, k) for k in arrays} | {f"image {k}": v for k, v in made.image.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, kinds=np.array(made.kinds), embedder=np.array(made.embedder), **columns)
    with np.load(path) as kept:
        rest = {k: kept[k] for k in arrays}
        image = {k.removeprefix("image "): kept[k] for k in kept.files if k.startswith("image ")}
        made = Bank(**rest, kinds=tuple(kept["kinds"].tolist()), embedder=str(kept["embedder"]), image=image)
    _BANK[str(path)] = made
    return made


def cells(args: argparse.Namespace) -> dict[str, list[tuple]]:
    "File → jobs of the parts that are asked for."
    made: dict[str, list[tuple]] = {}
    seeds = range(args.first, args.first + args.streams)
    wanted = lambda value, asked: not asked or value in asked
    for name in CALENDARS:
        for cameras in (2, 40) if name == "all together" else (2,):
            for reference in (7, 14, 28):
                for window in (1, 7):
                    key = f"null|{name}|{reference}|{window}|{cameras}"
                    chosen = wanted(reference, args.reference) and wanted(window, args.window)
                    if (
                        "null" in args.part
                        and chosen
                        and wanted(cameras, args.cameras)
                        and wanted(name, args.only)
                    ):
                        made[key] = [(name, reference, window, cameras, s) for s in seeds]
    for reference in (1, 2, 3, 5):
        if "few" in args.part and wanted(reference, args.reference):
            made[f"few|all together|{reference}|1|2"] = [("all together", reference, 1, 2, s) for s in seeds]
            for name in ("all cameras: brightness × .5", "camera-2: noise × 2"):
                made[f"few planted|{name}|{reference}"] = [
                    (name, reference, s, args.rows, (24,)) for s in seeds
                ]
    for name in PLANTED:
        for reference in (7, 14):
            if "planted" in args.part and wanted(reference, args.reference) and wanted(name, args.only):
                made[f"planted|{name}|{reference}"] = [(name, reference, s, args.rows, HOURS) for s in seeds]
    return made


def one(job: tuple) -> dict:
    "Row of a job."
    return null_row(job) if job[0] in CALENDARS else planted_row(job)


def file_of(folder: Path, key: str) -> Path:
    "Where the rows of a cell lie."
    return folder / (key.replace("|", "__").replace(" ", "_").replace(":", "") + ".json")


def run(args: argparse.Namespace) -> None:
    "Every cell, what is missing of it."
    args.rows.mkdir(parents=True, exist_ok=True)
    todo = cells(args)
    if any(key.startswith("planted") and PLANTED[key.split("|")[1]][2] for key in todo):
        bank_of(args.rows)
    with multiprocessing.get_context("fork").Pool(args.workers, initializer=os.nice, initargs=(5,)) as pool:
        for key, jobs in todo.items():
            path = file_of(args.rows, key)
            kept = json.loads(path.read_text())["rows"] if path.exists() else []
            seed = 2 if "planted" in key else 4  # its place in a job
            jobs = [j for j in jobs if j[seed] not in {r["seed"] for r in kept}]
            begun = time.time()
            for n, row in enumerate(pool.imap_unordered(one, jobs), 1):
                kept.append(row)
                if n % 20 == 0 or n == len(jobs):
                    path.write_text(json.dumps({"key": key, "rows": kept}))
            verdicts = dict(Counter(r["verdict"] for r in kept))
            print(f"{key}: {len(kept)} streams, {verdicts}, {time.time() - begun:.0f} s", flush=True)


def rate(hits: int, n: int) -> list[float | None]:
    "Share, and its exact interval of 95 % (Clopper and Pearson, 1934)."
    if not n:
        return [None, None, None]
    low = 0.0 if hits == 0 else float(beta.ppf(0.025, hits, n - hits + 1))
    high = 1.0 if hits == n else float(beta.ppf(0.975, hits + 1, n - hits))
    return [round(hits / n, 4), round(low, 4), round(high, 4)]


def shares(rows: list[dict]) -> dict:
    "Rates that null and planted streams have in common."
    n, of = len(rows), lambda test: rate(sum(map(bool, map(test, rows))), len(rows))
    names = rows[0]["textbook"] if n else {}
    return {
        "streams": n,
        "AMBER or RED": of(lambda r: r["verdict"] in ("AMBER", "RED")),
        "GREY": of(lambda r: r["verdict"] == "GREY"),
        **{name: of(lambda r, name=name: r["textbook"][name]) for name in names},
    }


def null_table(kind: str, cell: list[str], rows: list[dict]) -> dict:
    "A row of the table of streams without drift."
    name, reference, window, cameras = cell
    able = [r for r in rows if r["p"] is not None]
    return {
        "calendar": name,
        "reference, days": int(reference),
        "window, days": int(window),
        "cameras": int(cameras),
        "any family, adjusted p < .05": rate(sum(r["p"] < 0.05 for r in able), len(rows)),
        **shares(rows),
        "causes": dict(Counter(r["cause"] for r in rows)),
        "seconds a comparison": round(float(np.median([r["s"] for r in rows])), 2),
    }


def planted_table(cell: list[str], rows: list[dict]) -> dict:
    "A row of the table of planted changes."
    name, reference = cell
    event, right, _ = PLANTED[name]
    device = right != "device fault"
    good = lambda r: r["cause"] == right and (device or r["devices"] == ["camera-2"])
    seen = [r for r in rows if r["verdict"] in ("AMBER", "RED")]
    hours = sorted(r["hours"] for r in rows if r["hours"])
    at = lambda q: hours[min(int(q * len(hours)), len(hours) - 1)] if hours else None
    return {
        "planted": name,
        "reference, days": int(reference),
        "seen within 24 h": rate(sum(r["hours"] is not None for r in rows), len(rows)),
        "hours until seen, median": at(0.5),
        "90 %": at(0.9),
        "right cause": right,
        "cause right, of those in alarm after 24 h": rate(sum(map(good, seen)), len(seen)),
        **shares(rows),
        "causes": dict(Counter(r["cause"] for r in rows)),
    }


def merged(folder: Path) -> dict:
    "All rows as tables."
    tables: dict[str, list] = {"null": [], "planted": [], "few": [], "few planted": []}
    for path in sorted(folder.glob("*__*.json")):
        found = json.loads(path.read_text())
        kind, *cell = found["key"].split("|")
        rows = sorted(found["rows"], key=lambda r: r["seed"])
        if rows:
            row = planted_table(cell, rows) if "planted" in kind else null_table(kind, cell, rows)
            tables[kind].append(row)
    order = [*CALENDARS, *PLANTED]
    for rows in tables.values():
        place = lambda r: (r.get("cameras", 0), order.index(r.get("calendar") or r.get("planted")))
        rows.sort(key=lambda r: (*place(r), r["reference, days"], r.get("window, days", 0)))
    peer = folder / "evidently.json"
    tables["evidently"] = json.loads(peer.read_text()) if peer.exists() else None
    return {**tables, "made": datetime.now(timezone.utc).isoformat(timespec="minutes"), "stamp": stamp()}


PEER = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import pandas as pd, evidently
from evidently import Dataset, DataDefinition, Report
from evidently.presets import DataDriftPreset
made = []
for line in open(sys.argv[1]):
    name, seed, a, b = json.loads(line)
    a, b = pd.read_parquet(a), pd.read_parquet(b)
    what = DataDefinition(numerical_columns=list(a.columns))
    sets = [Dataset.from_pandas(table, what) for table in (b, a)]
    metrics = Report([DataDriftPreset()]).run(*sets).dict()["metrics"]
    count = [m["value"]["count"] for m in metrics if "DriftedColumnsCount" in json.dumps(m, default=str)]
    made.append({"name": name, "seed": seed, "drifted": count[0], "columns": len(a.columns)})
json.dump({"version": evidently.__version__, "rows": made}, open(sys.argv[2], "w"))
"""


def peer_pairs(streams: int, folder: Path) -> list[tuple[str, int, Observed, Observed]]:
    "Streams of the study for a peer: fourteen days against one."
    made = []
    for seed in range(streams):
        for name in ("day and night", "all together", *[k for k, v in PLANTED.items() if not v[2]][:4]):
            calendar = moved(CALENDARS.get(name, ALL), seed)
            if name in PLANTED:
                event = Event(**PLANTED[name][0], since=calendar.when(14))
                calendar = replace(calendar, events=(event,))
            seen = observed(calendar, 15, 3)
            made.append((name, seed, *periods(seen, calendar.when(15).timestamp(), 14, 1)))
    return made


def evidently(python: str, streams: int, folder: Path) -> None:
    "Evidently's default drift report, run by another Python on the same frames; writes ROWS/evidently.json."
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as place:
        lines, ours = [], []
        for i, (name, seed, a, b) in enumerate(peer_pairs(streams, folder)):
            files = [f"{place}/{i}{side}.parquet" for side in "ab"]
            for o, file in zip((a, b), files):
                count = np.bincount(o.box_frame, minlength=len(o)).astype(float)
                pq.write_table(pa.table({**o.image, "count": count}), file)
            lines.append(json.dumps([name, seed, *files]))
            ours.append({"name": name, "seed": seed, **judged(compare(a, b))})
        (Path(place) / "pairs").write_text("\n".join(lines))
        (Path(place) / "peer.py").write_text(PEER)
        apart = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        subprocess.run([python, f"{place}/peer.py", f"{place}/pairs", f"{place}/out"], check=True, env=apart)
        theirs = json.loads((Path(place) / "out").read_text())
    rows = []
    for name in dict.fromkeys(r["name"] for r in ours):
        mine = [r for r in ours if r["name"] == name]
        other = [r for r in theirs["rows"] if r["name"] == name]
        rows.append(
            {
                "stream": name,
                "streams": len(mine),
                "AMBER or RED": rate(sum(r["verdict"] in ("AMBER", "RED") for r in mine), len(mine)),
                "Evidently: any column": rate(sum(r["drifted"] > 0 for r in other), len(other)),
                "Evidently: half of the columns": rate(
                    sum(2 * r["drifted"] >= r["columns"] for r in other), len(other)
                ),
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evidently.json").write_text(json.dumps({"version": theirs["version"], "rows": rows}, indent=1))
    print(theirs["version"], *rows, sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", default=[], choices=("null", "planted", "few"))
    parser.add_argument("--reference", nargs="+", type=int, default=[], help="days; default: all of the part")
    parser.add_argument("--window", nargs="+", type=int, default=[])
    parser.add_argument("--cameras", nargs="+", type=int, default=[])
    parser.add_argument("--only", nargs="+", default=[], help="names of calendars or of what is planted")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first stream's number")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--rows", type=Path, default=Path("season_rows"))
    parser.add_argument("--evidently", metavar="PYTHON", help="python of an environment with Evidently")
    parser.add_argument("--merge", action="store_true")
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    if args.part:
        run(args)
    if args.evidently:
        evidently(args.evidently, min(args.streams, 20), args.rows)
    if args.merge:
        args.out.write_text(json.dumps(merged(args.rows), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
