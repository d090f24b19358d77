"""`python -m tests.campaigns NAME …`: strike, and print what became of it; `table` prints what was
recorded last."""

import argparse
import importlib
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.campaigns import Outcome, kept, markdown, record, write_page


def shown(title: str, outcomes: list[Outcome]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("fault", "tried", "wrong", "seen"):
        table.add_column(name, justify="right" if name in ("tried", "wrong") else "left", overflow="fold")
    for o in outcomes:
        table.add_row(escape(o.what), f"{o.tried:,}", f"{o.wrong:,}", escape(o.seen))
    return table


def main() -> int:
    names = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True)
    commands.add_parser("table", help="the recorded outcomes of all campaigns")
    commands.add_parser("page", help="write the recorded outcomes into docs/reliability.md")
    modules = {name: importlib.import_module(f"tests.campaigns.{name}") for name in names}
    for name, module in modules.items():
        sub = commands.add_parser(
            name, help=(module.__doc__ or name).splitlines()[0], description=module.__doc__
        )
        sub.add_argument("--record", action="store_true", help="keep the outcomes for docs/reliability.md")
        getattr(module, "arguments", lambda _: None)(sub)
    options = parser.parse_args()
    if options.name == "table":
        print(markdown(kept()))
        return 0
    if options.name == "page":
        write_page()
        return 0
    began, outcomes = time.monotonic(), []
    for outcome in modules[options.name].run(options):
        outcomes.append(outcome)
        print(f"{outcome.wrong} of {outcome.tried} wrong: {outcome.what}", file=sys.stderr, flush=True)
    Console(width=170).print(shown(options.name, outcomes))
    if options.record:
        given = [a for a in sys.argv[2:] if a != "--record"]
        record(options.name, given, outcomes, time.monotonic() - began)
    return 1 if any(o.wrong for o in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
