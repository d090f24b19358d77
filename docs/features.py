"""The short table of features on the front page, from docs/comparison.md: `python docs/features.py`."""

import re
from pathlib import Path

PAGE = Path(__file__).with_name("comparison.md")
SHORT = (  # rows of the front page
    "many live cameras, each lost and found again",
    "zones, lines, rules on tracks",
    "decodes and infers on a graphics card",
    "metrics with intervals, and a gate on them",
    "drift by camera, hour and weekday",
    "what to label next, label errors, versions",
    "signed releases, canary, back by itself",
    "faces covered before a picture is written; erasure with proof",
    "a page to watch cameras live",
    "licence",
)


def rows() -> list[list[str]]:
    "Cells of the whole table, the head first."
    table = PAGE.read_text(encoding="utf-8").partition("<!-- features -->")[2].partition("<!-- end")[0]
    lines = [line for line in table.strip().splitlines() if not line.startswith("|---")]
    return [[c.strip() for c in line.strip().strip("|").split("|")] for line in lines]


def short() -> str:
    "The table of the front page, without links."
    plain = lambda cell: re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", cell)
    head, *body = rows()
    its = {plain(r[0]): r for r in body}
    cells = [[plain(c) for c in head], ["---"] * len(head)]
    for name in SHORT:
        words = [plain(c) for c in its[name][1:]]
        cells.append([name, *(words if name == "licence" else [w[0] for w in words])])
    return "\n".join("| " + " | ".join(row).strip() + " |" for row in cells)


if __name__ == "__main__":
    print(short())
