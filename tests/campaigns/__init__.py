"""Faults on purpose: what was done to the project, how often, and what became of it.

`python -m tests.campaigns NAME` runs one campaign and prints its table; `--record` keeps it for
docs/reliability.md. A campaign is a module here with `run(options) -> Iterable[Outcome]`, and
`arguments(parser)` where it takes some.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).parents[2]
KEPT = Path(__file__).with_name("results.json")  # of the last campaigns that were recorded
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- campaigns: begin -->", "<!-- campaigns: end -->"


@dataclass(frozen=True)
class Outcome:
    "One kind of fault at one place."

    what: str  # the fault and where it strikes
    tried: int
    wrong: int  # how often something else happened than what is promised
    seen: str  # what is promised and was seen, with figures


class Campaign(Protocol):
    "A module of this folder."

    def run(self, options: argparse.Namespace) -> Iterable[Outcome]: ...


def markdown(kept: dict[str, Any]) -> str:
    "The table of everything that was recorded."
    lines = ["| campaign | fault | tried | wrong | seen |", "|---|---|---|---|---|"]
    for name, entry in sorted(kept.items()):
        lines += [
            f"| {name} | {o['what']} | {o['tried']:,} | {o['wrong']:,} | {o['seen']} |"
            for o in entry["outcomes"]
        ]
    lines += ["", "| campaign | command | date | machine | minutes |", "|---|---|---|---|---|"]
    for name, entry in sorted(kept.items()):
        minutes, command = entry["seconds"] / 60, f"python -m tests.campaigns {entry['command']}"
        lines.append(f"| {name} | `{command}` | {entry['date']} | {entry['machine']} | {minutes:.1f} |")
    return "\n".join(lines)


def kept() -> dict[str, Any]:
    "What was recorded, by campaign."
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}


def record(name: str, command: Sequence[str], outcomes: Sequence[Outcome], seconds: float) -> None:
    "Keep a campaign's outcomes, and write the page's table again."
    from datetime import date

    from cv_pipeline.core.stamp import instruction_set, processor_name, usable_cores

    entry = {
        "date": date.today().isoformat(),
        "machine": f"{processor_name()}, {instruction_set()}, {usable_cores():g} cores",
        "command": " ".join([name, *command]),
        "seconds": round(seconds, 1),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    everything = kept() | {name: entry}
    KEPT.write_text(
        json.dumps(everything, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
    )
    write_page()


def write_page() -> None:
    "Put the recorded table into the page."
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{markdown(kept())}\n{END}{after}", encoding="utf-8")
