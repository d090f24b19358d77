"""Draws which chapter imports which, from the package's code.

`python -m tests.import_map` writes docs/imports.svg. Chapters stand in reading order; an arc goes from a
chapter to one that it imports, the thicker the more often. Arcs on the right lead to earlier chapters. One on
the left, in red, would lead to a later one: tests/test_house.py fails before it is drawn.
"""

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "imports.svg"
ROW, LEFT, BOX = 44, 60, 210  # pixels: height of a row, room for arcs on the left, width of a box


def chapters() -> dict[str, list[str]]:
    "Chapter → its books, both in reading order; chapters without modules are left out."
    found: dict[str, list[str]] = {}
    for nb in sorted((ROOT / "nbs").glob("[0-9][0-9]_*/[0-9][0-9]_*.ipynb")):
        chapter, book = (re.sub(r"^\d\d_", "", part) for part in (nb.parent.name, nb.stem))
        if (ROOT / "cv_pipeline" / chapter / f"{book}.py").exists():
            found.setdefault(chapter, []).append(book)
    return found


def imported(module: Path) -> set[str]:
    "Modules of this package that a module imports, anywhere in it, as `chapter.book`."
    here, found = module.parent.name, set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level == 1:
            name = f"{here}.{node.module}"
        elif node.level == 2:
            name = node.module or ""
        elif (node.module or "").startswith("cv_pipeline."):
            name = node.module.removeprefix("cv_pipeline.")
        else:
            continue
        found |= {name} if "." in name else {f"{name}.{a.name}" for a in node.names}
    return found


def edges(books: dict[str, list[str]]) -> Counter:
    "(importing chapter, imported chapter) → how many books of the one import how many of the other, in all."
    count: Counter = Counter()
    for chapter, names in books.items():
        for book in names:
            for name in imported(ROOT / "cv_pipeline" / chapter / f"{book}.py"):
                if name.split(".")[0] in books and name.split(".")[0] != chapter:
                    count[chapter, name.split(".")[0]] += 1
    return count


def drawing() -> str:
    "The SVG."
    books = chapters()
    place, count = {name: i for i, name in enumerate(books)}, edges(books)
    height = ROW * len(books) + 20
    width = LEFT + BOX + round(0.75 * (30 + 22 * len(books))) + 20  # a curve reaches .75 of its bend
    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="13">',
        f'<title>Imports between the chapters of cv_pipeline</title><rect width="{width}" height="{height}" '
        'fill="white"/>',
    ]
    for (a, b), n in sorted(count.items(), key=lambda row: (row[1], row[0])):
        down = place[b] > place[a]  # to a later chapter: not allowed
        x, y1, y2 = (LEFT if down else LEFT + BOX), ROW * place[a] + 32, ROW * place[b] + 32
        bend = x + (-1 if down else 1) * (30 + 22 * abs(place[a] - place[b]))
        colour = "#c0392b" if down else "#4c78a8"
        rows.append(
            f'<path d="M{x} {y1} C{bend} {y1} {bend} {y2} {x} {y2}" fill="none" stroke="{colour}" '
            f'stroke-opacity="0.45" stroke-width="{1 + n**0.5:.1f}">'
            f"<title>{a} imports {b}: {n}</title></path>"
        )
    for name, names in books.items():
        y = ROW * place[name] + 14
        rows.append(
            f'<rect x="{LEFT}" y="{y}" width="{BOX}" height="36" rx="6" fill="#f3f6fa" stroke="#4c78a8"/>'
            f'<text x="{LEFT + 12}" y="{y + 23}">{name}</text><text x="{LEFT + BOX - 12}" y="{y + 23}" '
            f'text-anchor="end" fill="#666">{len(names)} books</text>'
        )
    return "\n".join([*rows, "</svg>", ""])


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(drawing(), encoding="utf-8")
    print(TARGET)
