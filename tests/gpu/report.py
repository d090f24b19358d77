"""What was seen on a card, for people and for programs."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cv_pipeline import __version__
from cv_pipeline.core.escaping import html_text
from cv_pipeline.core.files import make_folder, write_whole
from cv_pipeline.core.stamp import machine

MARKS = {"done": "✓", "failed": "✗", "not run": "–"}


def lines_of(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    "Figures as names and texts; a sweep over batches in one line."
    lines = []
    for name, value in figures.items():
        if name == "sweep":
            value = ", ".join(f"{r['batch']}: {r['pictures_per_s']:g}/s (× {r['gain']:g})" for r in value)
        elif isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        lines.append((name.replace("_", " "), str(value)))
    return lines


def headline(rows: Sequence[Mapping[str, Any]], stand_ins: bool) -> str:
    "How many checks ended how."
    count = {state: sum(r["state"] == state for r in rows) for state in MARKS}
    words = (
        f"{count['done']} of {len(rows)} checks done, {count['failed']} failed, {count['not run']} not run"
    )
    return words + (": on stand-ins, nothing is proven" if stand_ins else "")


def to_markdown(document: Mapping[str, Any]) -> str:
    "The report as text."
    rows, parts = document["checks"], [f"# {document['card']}", "", document["headline"], ""]
    parts += [
        f"{document['when']}, cv_pipeline {document['version']}, {document['machine']['processor']}",
        "",
    ]
    for row in rows:
        parts += [f"## {MARKS[row['state']]} {row['check']}", "", row["question"], ""]
        if row["state"] == "done":
            parts += ["| | |", "|---|---|"]
            parts += [f"| {k} | {v.replace('|', '/')} |" for k, v in lines_of(row["figures"])]
        else:
            parts.append(f"{row['state']}: {row['reason']}")
        parts.append("")
    return "\n".join(parts)


def _html_row(row: Mapping[str, Any]) -> str:
    "A section of the page."
    told = row.get("figures") or {row["state"]: row.get("reason", "")}
    cells = "".join(f"<tr><th>{html_text(k)}</th><td>{html_text(v)}</td></tr>" for k, v in lines_of(told))
    name = html_text(f"{MARKS[row['state']]} {row['check']}")
    return f"<h2>{name}</h2><p>{html_text(row['question'])}</p><table>{cells}</table>"


STYLE = "body{font:15px sans-serif;max-width:60rem;margin:2rem auto}th{text-align:left;padding-right:2rem}"


def to_html(document: Mapping[str, Any]) -> str:
    "The report as a page."
    title, line = html_text(document["card"]), html_text(document["headline"])
    body = "".join(_html_row(row) for row in document["checks"])
    head = f"<meta charset='utf-8'><title>{title}</title><style>{STYLE}</style>"
    body = f"<h1>{title}</h1><p>{line}</p>{body}"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{body}</body></html>"


def write_report(rows: Sequence[Mapping[str, Any]], out: Path, stand_ins: bool) -> Path:
    "gpu-CARD/ with report.md, report.html and report.json."
    known = next(
        (r["figures"].get("name") for r in rows if r["check"] == "card" and r["state"] == "done"), None
    )
    card = "stand-ins" if stand_ins else known or "no card"
    about = {
        "card": card,
        "headline": headline(rows, stand_ins),
        "version": __version__,
        "machine": machine(),
    }
    when = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M UTC}"
    document = {**about, "when": when, "stand_ins": stand_ins, "checks": list(rows)}
    folder = make_folder(Path(out) / f"gpu-{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}")
    write_whole(folder / "report.json", json.dumps(document, indent=1, default=str).encode())
    write_whole(folder / "report.md", to_markdown(document).encode())
    write_whole(folder / "report.html", to_html(document).encode())
    return folder
