"""Writes the table of extras, with what each brings along, into docs/install.md: `python docs/extras.py`.

Sizes are those of this environment's files, for the extras that are installed in it; the others stay as they
are in the table. Packages of the core are not counted again.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement

PAGE = Path(__file__).with_name("install.md")
BEGIN, END = "<!-- extras -->", "<!-- end of extras -->"


def needed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> set[str]:
    "A package and everything it brings along; LookupError where one is not installed."
    if (name, extras) in seen:
        return set()
    seen.add((name, extras))
    try:
        found = distribution(name)
    except PackageNotFoundError:
        raise LookupError(name) from None
    mine = {found.metadata["Name"].lower().replace("_", "-")}
    for text in requires(name) or []:
        r = Requirement(text)
        if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras or {""}):
            mine |= needed(r.name, frozenset(r.extras), seen)
    return mine


def size(names: set[str]) -> int:
    "Bytes of the files of these packages."
    files = {f.locate() for n in names if n != "cv-pipeline" for f in distribution(n).files or []}
    return sum(f.stat().st_size for f in files if f.is_file())


def rows() -> dict[str, str]:
    "Extra → packages and megabytes, beyond the core."
    core = needed("cv_pipeline", frozenset(), set())
    made = {"": f"{len(core) - 1} packages, {size(core) / 1e6:.0f} MB"}
    for extra in distribution("cv_pipeline").metadata.get_all("Provides-Extra") or []:
        try:
            more = needed("cv_pipeline", frozenset({extra}), set()) - core
        except LookupError:
            continue
        made[extra] = f"{len(more)} package{'s' * (len(more) != 1)}, {size(more) / 1e6:.0f} MB"
    return made


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    body, _, tail = rest.partition(END)
    made = rows()
    for extra, words in made.items():
        label = f"`[{extra}]`" if extra else "core"
        body = re.sub(rf"^(\| {re.escape(label)} \|[^|]*\|)[^|]*\|$", rf"\1 {words} |", body, flags=re.M)
    PAGE.write_text(head + BEGIN + body + END + tail, encoding="utf-8")
    print(f"{len(made)} rows measured in {sys.prefix}")


if __name__ == "__main__":
    main()
