"""Run every check in a process of its own, and write what was seen.

`python -m tests.gpu --out reports --minutes 8`. A check that crashes the driver, hangs or fills the memory
ends with its own process; what it would have said is "failed", and the next one begins. `--stand-ins` walks
the same way on the memory of the host, where nothing is proven.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tests.gpu.checks import CHECKS
from tests.gpu.ground import Ground, NotHere
from tests.gpu.report import write_report

ROOT = Path(__file__).resolve().parents[2]


def run_here(name: str, ground: Ground) -> dict[str, Any]:
    "One check: its state, figures and reason."
    try:
        return {"state": "done", "figures": CHECKS[name].work(ground)}
    except NotHere as e:
        return {"state": "not run", "reason": str(e)}
    except Exception as e:
        last = traceback.extract_tb(e.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return {"state": "failed", "reason": f"{type(e).__name__}: {e} ({where})"}


def run_apart(name: str, args: argparse.Namespace, folder: Path, left_s: float) -> dict[str, Any]:
    "The same in a process of its own, with its time."
    limit, began = min(CHECKS[name].limit_s, left_s), time.monotonic()
    answer = folder / f"{name}.json"
    command = [sys.executable, "-m", "tests.gpu", "--only", name, "--here", str(folder)]
    command += ["--device", str(args.device), "--seconds", str(args.seconds)]
    command += ["--stand-ins"] * args.stand_ins
    with open(folder / f"{name}.log", "wb") as log:
        try:
            code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, timeout=limit).returncode
            ended = f"its process ended with {code}"
        except subprocess.TimeoutExpired:
            ended = f"ended after {limit:.0f} s"
    try:
        found = json.loads(answer.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip()
        found = {"state": "failed", "reason": f"{ended}: {said[-300:]}"}
    return {
        "check": name,
        "question": CHECKS[name].question,
        **found,
        "seconds": round(time.monotonic() - began, 1),
    }


def main(argv: list[str] | None = None) -> int:
    "The command line; 0 when nothing failed."
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("reports"), help="folder for gpu-CARD/")
    parser.add_argument("--minutes", type=float, default=8, help="most time; what does not fit is named")
    parser.add_argument("--seconds", type=float, default=3, help="of one measurement")
    parser.add_argument("--device", type=int, default=0, help="number of the card")
    parser.add_argument("--stand-ins", action="store_true", help="without a card: the way, and no proof")
    parser.add_argument("--only", choices=list(CHECKS), action="append", help="a check; again for more")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.here is not None:
        ground = Ground(args.here, args.stand_ins, args.seconds, args.device)
        found = run_here(args.only[0], ground)
        (args.here / f"{args.only[0]}.json").write_text(json.dumps(found, default=str), encoding="utf-8")
        return 0
    rows, end = list[dict[str, Any]](), time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only or CHECKS:
            left = end - time.monotonic()
            if left < 5:
                late = {
                    "state": "not run",
                    "reason": f"the {args.minutes:g} minutes are over",
                    "seconds": 0.0,
                }
                rows.append({"check": name, "question": CHECKS[name].question, **late})
            else:
                rows.append(run_apart(name, args, Path(folder), left))
            print(
                f"{rows[-1]['state']:8} {rows[-1]['seconds']:6.1f} s  {name}  {rows[-1].get('reason', '')}",
                flush=True,
            )
    place = write_report(rows, args.out, args.stand_ins)
    print(f"written: {place}")
    return int(any(row["state"] == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
