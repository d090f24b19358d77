"""Builds the site: `make docs`, or `python docs/build_site.py [--out _docs/site] [--serve]`.

Needs `cv_pipeline[docs]`, no network. The books are turned into Markdown in one process (nbconvert), with
their pictures beside them; the pages of this folder and README.md are taken as they are; MkDocs makes a site
with search of it, and ends with an error at a broken link.
"""

import argparse
import configparser
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
NBS, PAGES = ROOT / "nbs", ROOT / "docs"
HAND = (
    "project",
    "operations",
    "alerts",
    "fleet",
    "privacy",
    "scale",
    "rules",
    "sites",
    "reliability",
    "models",
    "applications",
    "gpu",
    "what_is_read",
    "labels",
    "benchmarks",
    "model_card",
    "glossary",
    "licences",
)  # pages written by hand, in this order
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")
CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.M | re.S)


@dataclass(frozen=True)
class Book:
    "One notebook."

    path: Path  # below nbs/
    title: str
    sentence: str  # its docstring: one sentence
    notebook: nbformat.NotebookNode

    @property
    def page(self) -> str:
        return str(Path("books") / self.path.with_suffix(".md"))


def read_books() -> list[Book]:
    "Every notebook except index, in reading order."
    books = []
    for path in sorted(NBS.rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts or path.name == "index.ipynb":
            continue
        book = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        first = book.cells[0].source
        title = re.search(r"^#\s+(.+)$", first, re.M)
        sentence = re.search(r"^>\s*(.+)$", first, re.M)
        books.append(
            Book(
                path.relative_to(NBS), title[1] if title else path.stem, sentence[1] if sentence else "", book
            )
        )
    return books


def chapter_of(book: Book) -> str:
    "Folder of a book: `02_inference`; of the one beside the folders: its own name."
    return Path(book.path.parts[0]).stem


def without_directives(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "A notebook without hidden cells and lines that speak to nbdev."
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if re.search(r"^#\|\s*(hide|default_exp)\b", cell.source, re.M):
                continue
            cell.source = "\n".join(
                line for line in cell.source.splitlines() if not line.startswith("#|")
            ).strip("\n")
            if not cell.source:
                continue
        cells.append(cell)
    notebook.cells = cells
    return notebook


def linked(text: str, here: Path, places: dict[Path, str], page: str) -> str:
    """Markdown whose links to files of the project lead to pages of the site, or to the file in the
    repository."""

    def link(match: re.Match) -> str:
        label, target = match[1], match[2]
        if re.match(r"[a-z]+:|#|data:", target):
            return match[0]
        path, _, anchor = target.partition("#")
        file = (here / path).resolve()
        if file in places:
            up = "../" * page.count("/")
            return f"{label}({up}{places[file]}{'#' + anchor if anchor else ''})"
        if not file.exists():
            return match[0]  # MkDocs names it, and the build fails
        relative = file.relative_to(ROOT)
        return (
            f"{label}({REPOSITORY}/blob/main/{relative})"
            if file.is_file()
            else f"{label}({REPOSITORY}/tree/main/{relative})"
        )

    parts = CODE.split(text)  # links inside of code are no links
    return "".join(part if k % 2 else LINK.sub(link, part) for k, part in enumerate(parts))


def settings() -> dict[str, str]:
    cfg = configparser.ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(cfg["DEFAULT"])


REPOSITORY = settings()["git_url"]


def write(src: Path, page: str, text: str) -> None:
    "One page."
    path = src / page
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_books(src: Path, books: list[Book], places: dict[Path, str]) -> None:
    "A page a book, its pictures beside it."
    exporter = MarkdownExporter()
    for book in books:
        resources = {"output_files_dir": book.path.stem + "_files", "unique_key": book.path.stem}
        body, kept = exporter.from_notebook_node(without_directives(book.notebook), resources)
        body = re.sub(r"\x1b\[[0-9;]*m", "", body)  # colours of a terminal
        body = re.sub(r"^```\n(?=\S)(.*?^```$)", r"```python\n\1", body, flags=re.M | re.S)
        head = f"[notebook]({REPOSITORY}/blob/main/nbs/{book.path})\n\n"
        write(
            src,
            book.page,
            linked(body, (NBS / book.path).parent, places, book.page).replace("\n\n", "\n\n" + head, 1),
        )
        for name, data in kept.get("outputs", {}).items():
            file = (src / book.page).parent / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)


def write_chapters(src: Path, books: list[Book]) -> dict[str, list[Book]]:
    "A page a chapter, and the map of all."
    chapters: dict[str, list[Book]] = {}
    for book in books:
        chapters.setdefault(chapter_of(book), []).append(book)
    lines = [
        "# Map",
        "",
        "A chapter is a folder of `nbs/`, a book a notebook in it; read in order, they are the system. "
        "A book imports only books before it:",
        "",
        "![Which chapter imports which](imports.svg)",
        "",
    ]
    for chapter, its in chapters.items():
        table = [f"| [{b.path.stem}]({{}}{b.page}) | {b.sentence} |" for b in its]
        head = ["| book | what it is about |", "|---|---|"]
        lines += [f"## {chapter}", "", *head, *(row.format("") for row in table), ""]
        own = [f"# {chapter}", "", *head, *(row.format("../../") for row in table), ""]
        write(src, f"books/{chapter}/index.md", "\n".join(own))
    write(src, "map.md", "\n".join(lines))
    return chapters


def write_config(work: Path, chapters: dict[str, list[Book]]) -> Path:
    "mkdocs.yml with the navigation of these books."
    base = yaml.safe_load((PAGES / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = [{page.replace("_", " ").capitalize(): f"{page}.md"} for page in HAND]
    its = [
        {c: [f"books/{c}/index.md", *({b.title.split(":")[0]: b.page} for b in books)]}
        for c, books in chapters.items()
    ]
    nav = [{"Start": "index.md"}, *pages, {"Books": [{"Map": "map.md"}, *its]}]
    base |= {"docs_dir": str(work / "src"), "nav": nav, "repo_url": REPOSITORY}
    path = work / "mkdocs.yml"
    path.write_text(yaml.safe_dump(base, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "_docs" / "site", help="folder of the site")
    parser.add_argument(
        "--serve", action="store_true", help="serve the site on http://127.0.0.1:8000 instead"
    )
    options = parser.parse_args()
    work = ROOT / "_docs" / "work"
    shutil.rmtree(work, ignore_errors=True)
    src = work / "src"
    src.mkdir(parents=True)
    books = read_books()
    places = {(NBS / b.path).resolve(): b.page for b in books}
    places |= {(PAGES / f"{page}.md").resolve(): f"{page}.md" for page in HAND}
    places |= {(PAGES / "imports.svg").resolve(): "imports.svg", (ROOT / "README.md").resolve(): "index.md"}
    places |= {(ROOT / "data" / "demo.webp").resolve(): "data/demo.webp"}
    write_books(src, books, places)
    chapters = write_chapters(src, books)
    for page in HAND:
        write(
            src,
            f"{page}.md",
            linked((PAGES / f"{page}.md").read_text(encoding="utf-8"), PAGES, places, f"{page}.md"),
        )
    write(src, "index.md", linked((ROOT / "README.md").read_text(encoding="utf-8"), ROOT, places, "index.md"))
    shutil.copy(PAGES / "imports.svg", src / "imports.svg")
    (src / "data").mkdir()
    shutil.copy(ROOT / "data" / "demo.webp", src / "data" / "demo.webp")
    command = (
        ["serve"]
        if options.serve
        else ["build", "--strict", "--quiet", "--site-dir", str(options.out.resolve())]
    )
    code = subprocess.run(
        [sys.executable, "-m", "mkdocs", *command, "--config-file", write_config(work, chapters)]
    ).returncode
    if code == 0 and not options.serve:
        print(f"{len(books)} books; open {options.out / 'index.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
