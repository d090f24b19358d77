"""`make bench`: every benchmark in this folder, one after the other, as tables of ratios. `--quick` for a
look, names for a choice."""

import argparse
import importlib
import json
import platform
from pathlib import Path

from rich.console import Console
from rich.table import Table


def table(title: str, rows: list[dict]) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    found = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        found.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        found.add_row(
            *(
                f"{v:.3g}" if isinstance(v, float) else str(v if v is not None else "–")
                for v in (row.get(c) for c in columns)
            )
        )
    return found


def main() -> None:
    names = sorted(p.stem.removeprefix("bench_") for p in Path(__file__).parent.glob("bench_*.py"))
    names.sort(key=lambda name: name != "cameras_per_core")  # what a user pays for comes first
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*names, []], help="which benchmarks (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    console, everything = Console(width=170), {}
    console.print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    for name in args.names or names:
        module = importlib.import_module(f"tests.benchmarks.bench_{name}")
        everything[name] = module.run(quick=args.quick)
        title, rows = (module.__doc__ or name).strip().splitlines()[0], everything[name]
        for keys in dict.fromkeys(tuple(row) for row in rows):  # rows with other columns are another table
            console.print(table(title, [row for row in rows if tuple(row) == keys]))
            title = ""
    if args.json:
        args.json.write_text(json.dumps(everything, indent=2) + "\n")


if __name__ == "__main__":
    main()
