"""What release, edge and fleet promise, as one table: eleven points, their targets, and what was measured.

    python -m tests.benchmarks.try_acceptance                 # everything that takes minutes, then the table
    python -m tests.benchmarks.try_acceptance shadow demo     # parts of it; the others stay as they are
    python -m tests.benchmarks.try_acceptance --table         # the table of what was measured before

Points 1 to 4 and 7 come from outbox_study.json and rollout_study.json (`try_outbox`, `try_rollout`: hours).
Nothing is asserted: a target that is missed stands in the table as missed.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from cv_pipeline.core.stamp import stamp

HERE = Path(__file__).parent
ROOT, TABLE = HERE.parents[1], HERE / "acceptance.json"


def tests_of(*words):
    "Tests that ran, and that failed."
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    count = {k: int(n) for n, k in re.findall(r"(\d+) (passed|failed|skipped|error)", text.splitlines()[-1])}
    return {"passed": 0, "failed": 0, "skipped": 0, **count}


def part_updates():
    "Kills at each step of an update."
    steps = tests_of("tests/edge/test_slots.py", "-k", "kill or power_cut or two_versions")
    return {
        "switching": steps,
        "updates and agent": tests_of("tests/edge/test_updates.py", "tests/edge/test_agent.py"),
    }


def part_trust():
    "Attacks on releases, and wrong clocks."
    return tests_of("tests/release/test_trust.py")


def part_shadow(rounds=8, seconds=12.0):
    "p95 of a frame with and without a shadow, and with one that crashes, hangs, or wants 2 GB."
    from tests.benchmarks.try_shadow import measured

    return {
        "rounds": rounds,
        "seconds": seconds,
        "cases": {case: found for case, found, _ in measured(rounds, seconds)},
        "equal": tests_of("tests/release/test_shadow.py", "-k", "same_bytes"),
    }


def part_centre():
    "1,000 devices on one core."
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.try_central"], cwd=ROOT, capture_output=True, text=True
    )
    number = lambda form: float(re.search(form, done.stdout)[1])
    return {
        "heartbeats": int(number(r"devices, (\d+) heartbeats")),
        "p50, ms": number(r"p50 ([\d.]+)"),
        "p99, ms": number(r"p99 ([\d.]+)"),
        "page, median ms": number(r"median ([\d.]+)"),
        "page, longest ms": number(r"median [\d.]+, longest ([\d.]+)"),
        "peak, MB": number(r"peak ([\d.]+)"),
        "cores": number(r"MB, ([\d.]+) of a core"),
    }


def size_of(name):
    "Bytes that a distribution has installed."
    files = metadata.distribution(name).files or []
    return sum(p.stat().st_size for f in files if (p := Path(f.locate())).is_file())


def part_install():
    "What signed releases add to the core, and how large an agent is."
    names = ("tuf", "securesystemslib", "cryptography", "cffi", "pycparser", "urllib3")
    sizes = {n: round(size_of(n) / 1e6, 2) for n in names}
    code = (
        "import cv_pipeline.edge.box, sys; from cv_pipeline.core.stamp import process_memory_mib as m; "
        "print(m('VmRSS'), 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    words = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    return {
        "MB": sizes,
        "sum, MB": round(sum(sizes.values()), 1),
        "agent imported, MB": float(words[0]),
        "torch": words[1],
    }


def part_demo():
    "The demo, once."
    from cv_pipeline.service.fleet_demo import run_fleet_demo

    with tempfile.TemporaryDirectory() as folder:
        story, counts, _ = run_fleet_demo(Path(folder) / "demo", print)
    names = ("shadow", "trial", "promoted", "changed", "crash", "worse", "healed")
    missing = sum(c["numbered"] - c["at the centre"] for c in counts)
    return {
        "seconds": round(story.seconds),
        "facts": {n: story.value(n) for n in names},
        "rows missing": missing,
    }


PARTS = {
    "updates": part_updates,
    "trust": part_trust,
    "shadow": part_shadow,
    "centre": part_centre,
    "install": part_install,
    "demo": part_demo,
}


def words_of(t):
    "passed and failed tests, in words."
    return f"{t['passed']} tests passed, {t['failed']} failed"


def good_tests(t):
    "Whether tests ran, and none failed."
    return bool(t["passed"]) and not t["failed"]


def recorded():
    "Points of the studies that take hours."
    outbox, verdict = (json.loads((HERE / f"{n}_study.json").read_text()) for n in ("outbox", "rollout"))
    kills, power = outbox["kills"], outbox["power"]["fsync before offering"]
    bad = {k: kills[k] for k in ("lost", "twice", "out of order")}
    words = ", ".join(f"{n} {k}" for k, n in bad.items())
    yield (
        "1 kill -9, 30 % of exchanges cut",
        "200 kills: 0 lost, 0 twice, in order",
        f"{kills['kills in all']} kills, {kills['rows']:,} rows: {words}",
        kills["kills in all"] >= 200 and not sum(bad.values()),
    )
    yield (
        "2 power cut",
        "0 confirmed rows lost, 0 numbers twice",
        f"{power['cuts']} cuts: {power['lost']} lost, {power['twice']} twice",
        not power["lost"] + power["twice"],
    )
    rows = {r["by"]: r["rows/s by the wall"] for r in outbox["speed"]["rows"] if r["on the disk"]}
    frame = outbox["speed"]["delivering"][0]["processor, median ms"]
    drain = outbox["drain"]["rows/s by the wall"]
    yield (
        "3 speed of the outbox",
        "≥ 5,000 durable rows/s by 100; ≤ .1 ms a frame; backlog ≥ 2,000 rows/s",
        f"{rows[100]:,} rows/s; {frame:.3f} ms; {drain:,} rows/s",
        rows[100] >= 5000 and frame <= 0.1 and drain >= 2000,
    )
    link = max(outbox["cable"]["most, s"], *(v["most, s"] for v in outbox["link"].values()))
    yield "4 link back", "first batch ≤ 2 s", f"{link:.2f} s at most", link <= 2
    at_limit = [r for r in verdict["null"] if r["mean"] == r["limit"]]
    back, promote = (max(r[k]["evidence"][0] for r in at_limit) for k in ("rollback", "promote"))
    upper = max(r[k]["evidence"][2] for r in at_limit for k in ("rollback", "promote"))
    minutes = [r["minutes, median"] for r in verdict["line"]["rows"] if r["minutes, median"]]
    rates = f"rollback {back:.1%}, promotion {promote:.1%}, upper bound {upper:.1%}"
    yield (
        "7 verdict",
        "false at the limit ≤ 5 % (upper bound ≤ 7.5 %); faults in ≤ 5 min (median)",
        f"{rates}; planted faults in {min(minutes)} – {max(minutes)} min",
        max(back, promote) <= 0.05 and upper <= 0.075 and max(minutes) <= 5,
    )


def measured(kept):
    "Points of this script."
    if t := kept.get("updates"):
        both = {k: t["switching"][k] + t["updates and agent"][k] for k in t["switching"]}
        target = "one whole model, right end state, ≤ 2 starts"
        yield "5 kill at each step of an update × 4 bundles", target, words_of(both), good_tests(both)
    if t := kept.get("trust"):
        yield "6 attacks on releases, wrong clocks", "refused or reported", words_of(t), good_tests(t)
    if t := kept.get("shadow"):
        cases = t["cases"]
        lost = sum(v["lost"] for v in cases.values())
        text = ", ".join(f"{c} {v['ratio']} [{v['from']}, {v['to']}]" for c, v in cases.items())
        good = max(v["ratio"] for v in cases.values()) <= 1.1 and not lost and good_tests(t["equal"])
        target = "p95 ≤ 1.1 ×, 0 frames lost, results equal"
        yield "8 shadow", target, f"{text}; {lost} lost; {words_of(t['equal'])}", good
    if t := kept.get("centre"):
        page, longest, p99, peak = (
            t[k] for k in ("page, median ms", "page, longest ms", "p99, ms", "peak, MB")
        )
        text = f"p99 {p99} ms, page {page:.0f} (longest {longest:.0f}) ms, {peak:.0f} MB"
        good = p99 <= 100 and longest <= 300 and peak <= 150
        yield "9 centre, 1,000 devices", "p99 ≤ 100 ms, page ≤ 300 ms, ≤ 150 MB", text, good
    if t := kept.get("install"):
        size, agent = t["sum, MB"], t["agent imported, MB"]
        good = size <= 25 and agent <= 60 and t["torch"] == "False"
        target = "≤ 25 MB beyond the core, no torch, agent ≤ 60 MB"
        yield "10 install", target, f"{size} MB; agent {agent:.0f} MB", good
    if t := kept.get("demo"):
        text = f"{t['seconds']} s, {t['rows missing']} rows missing"
        good = t["seconds"] <= 180 and not t["rows missing"]
        yield "11 demo", "≤ 180 s, every number tested", text, good


def table(kept):
    "Eleven rows: point, target, measured, kept."
    return sorted([*recorded(), *measured(kept)], key=lambda r: int(r[0].split()[0]))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    kept = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    for name in [] if args.table else args.parts or PARTS:
        print(f"{name} …", flush=True)
        kept[name] = PARTS[name]()
        kept["stamp"] = stamp()
        TABLE.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    print("| point | target | measured | kept |\n|---|---|---|---|")
    for point, target, measured, good in table(kept):
        print(f"| {point} | {target} | {measured} | {'yes' if good else 'NO'} |")


if __name__ == "__main__":
    main()
