"""mypy with a budget of errors a chapter.

`python -m tests.typecheck [CHAPTERS]` compares what mypy finds with the table
`[tool.cv_pipeline.type-budget]` of pyproject.toml. A chapter that is not listed has no error to spend. It
fails when a chapter has more than its budget, and asks for a lower budget when it has less. With chapters it
lists all their errors.
"""

import argparse
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ERROR = re.compile(r"cv_pipeline[\\/](?:(\w+)[\\/])?\w+\.py:\d+: error: ")
PACKAGE = "cv_pipeline"  # what errors outside of all chapters are counted under


class Row(NamedTuple):
    "One line of the table."

    chapter: str
    errors: int
    budget: int

    @property
    def advice(self) -> str:
        if self.errors > self.budget:
            return f"ABOVE ITS BUDGET by {self.errors - self.budget}"
        return f"lower the budget to {self.errors}" if self.errors < self.budget else ""


def chapter_of(line: str) -> str | None:
    "The chapter of a line that mypy prints; None for a line that is no error."
    match = ERROR.match(line)
    return None if match is None else match[1] or PACKAGE


def count_errors(lines: Iterable[str]) -> Counter[str]:
    "Errors by chapter."
    return Counter(chapter for line in lines if (chapter := chapter_of(line)) is not None)


def judge(found: Mapping[str, int], budget: Mapping[str, int], chapters: Iterable[str] = ()) -> list[Row]:
    "A row for each chapter that exists, has errors or has a budget."
    names = sorted({*chapters, *found, *budget})
    return [Row(name, found.get(name, 0), budget.get(name, 0)) for name in names]


def all_chapters() -> list[str]:
    "Names of the chapters, from the package."
    return [folder.name for folder in sorted((ROOT / PACKAGE).iterdir()) if (folder / "__init__.py").exists()]


def read_budget(path: Path = ROOT / "pyproject.toml") -> dict[str, int]:
    "The table in pyproject.toml."
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10: mypy brings it
        import tomli as tomllib
    return tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["cv_pipeline"]["type-budget"]


def run_mypy() -> list[str]:
    "Lines that mypy prints; SystemExit when it could not check."
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--no-color-output",
        "--no-error-summary",
        "--hide-error-context",
    ]
    done = subprocess.run([*command, PACKAGE], cwd=ROOT, capture_output=True, text=True)
    if done.returncode > 1 or done.stderr:
        sys.exit(f"mypy did not run (code {done.returncode}):\n{done.stdout}{done.stderr}")
    return done.stdout.splitlines()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("chapters", nargs="*", help="list all errors of these, e.g. annotation")
    asked = parser.parse_args(argv).chapters
    lines = run_mypy()
    rows = judge(count_errors(lines), read_budget(), all_chapters())
    above = [row.chapter for row in rows if row.errors > row.budget]
    for line in lines:
        if chapter_of(line) in {*asked, *above}:
            print(line)
    print(f"{'chapter':<14} {'errors':>6} {'budget':>6}")
    for row in rows:
        print(f"{row.chapter:<14} {row.errors:6d} {row.budget:6d}  {row.advice}".rstrip())
    print(f"{'all':<14} {sum(r.errors for r in rows):6d} {sum(r.budget for r in rows):6d}")
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())
