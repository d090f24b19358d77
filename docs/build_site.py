"""Builds the site: `make docs`, or `python docs/build_site.py [--out _docs/site] [--serve]`.

Needs `cv_pipeline[docs]`, no network. Four parts: what to do (tour, how-to notebooks and pages), reference
(docs/reference.py makes it from the package), the books, and operations. Notebooks are turned into Markdown
in one process (nbconvert), with their pictures beside them; MkDocs makes a site with search of all that,
and ends with an error at a broken link. The Markdown of every page lies beside it, and llms.txt lists them,
for people who work with assistants.
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
import reference
import yaml
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
NBS, PAGES = ROOT / "nbs", ROOT / "docs"
USE = (
    "install project walks workbench checklist comparison labels models applications rules alerts sites "
    "fleet scale privacy gpu"
).split()
REFERENCE = "files what_is_read glossary licences".split()
RUN = "operations reliability benchmarks model_card".split()
HAND = (*USE, *REFERENCE, *RUN)  # pages written by hand, in the order of the site
TWIN = """{% extends "base.html" %}
{% block extrahead %}{{ super() }}
{% if page %}<link rel="alternate" type="text/markdown" href="{{ page.file.src_uri | url }}">{% endif %}
{% endblock %}
"""  # the Markdown of a page lies beside it
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


def read_book(path: Path) -> Book:
    "A notebook with its title and its sentence."
    notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    first = notebook.cells[0].source
    title = re.search(r"^#\s+(.+)$", first, re.M)
    sentence = re.search(r"^>\s*(.+)$", first, re.M)
    words = (title[1] if title else path.stem, sentence[1] if sentence else "")
    return Book(path.relative_to(NBS), *words, notebook)


def read_books() -> list[Book]:
    "Every notebook except index, in reading order."
    skipped = (".ipynb_checkpoints", "index.ipynb")
    return [read_book(p) for p in sorted(NBS.rglob("*.ipynb")) if not {*skipped} & {*p.parts}]


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
        names = ", ".join(b.title.partition(":")[0] for b in its)
        own = [
            f"# {chapter}",
            "",
            f"In reading order: {names}.",
            "",
            *head,
            *(row.format("../../") for row in table),
            "",
        ]
        if chapter != "tour":  # one page, no chapter
            write(src, f"books/{chapter}/index.md", "\n".join(own))
    write(src, "map.md", "\n".join(lines))
    return chapters


def title_of(text: str, default: str) -> str:
    "The first heading of a page."
    found = re.search(r"^#\s+(.+)$", text, re.M)
    return found[1].strip() if found else default


def navigation(src: Path, chapters: dict[str, list[Book]]) -> list[dict]:
    "Four parts."
    named = lambda page: {title_of((src / page).read_text(encoding="utf-8"), page): page}
    hand = lambda pages: [named(f"{page}.md") for page in pages]
    first = {c: books for c, books in chapters.items() if c in ("tour", "how_to")}
    its = lambda books: [{b.title.split(":")[0]: b.page} for b in books]
    use = its(first.get("tour", []))
    if how_to := first.get("how_to"):
        use.append({"How to": ["books/how_to/index.md", *its(how_to)]})
    made = list(reference.pages())  # in the order of the work
    part = lambda head: [named(f"reference/{n}") for n in made if n.startswith(f"{head}_")]
    group = lambda head: {head.capitalize(): [f"reference/{head}.md", *part(head)]}
    alone = [named(f"reference/{n}.md") for n in ("metrics", "columns", "exit_codes", "environment")]
    books = [{c: [f"books/{c}/index.md", *its(b)]} for c, b in chapters.items() if c not in first]
    return [
        {"Start": ["index.md", *use, *hand(USE)]},
        {"Reference": [group("commands"), group("settings"), *alone, *hand(REFERENCE), group("names")]},
        {"Books": [{"Map": "map.md"}, *books]},
        {"Operations": [*hand(RUN), named("security.md"), named("contributing.md"), named("changes.md")]},
    ]


def write_config(work: Path, src: Path, nav: list[dict]) -> Path:
    "mkdocs.yml with this navigation."
    base = yaml.safe_load((PAGES / "mkdocs.yml").read_text(encoding="utf-8"))
    base |= {"docs_dir": str(src), "nav": nav, "repo_url": REPOSITORY}
    (work / "theme").mkdir(exist_ok=True)
    (work / "theme" / "main.html").write_text(TWIN, encoding="utf-8")
    base["theme"]["custom_dir"] = str(work / "theme")
    path = work / "mkdocs.yml"
    path.write_text(yaml.safe_dump(base, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def summary_of(text: str) -> str:
    "The first sentence of a page: after its heading, without links."
    for part in re.split(r"\n\s*\n", text):
        part = re.sub(r"^>\s*", "", part.strip(), flags=re.M)
        if not part or part.startswith(("#", "|", "```", "!", "[", "<", "- ")):
            continue
        plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(part.split()))
        return re.split(r"(?<=\.)\s", plain)[0].rstrip(":")[:240]
    return ""


def write_llms(src: Path, nav: list[dict]) -> None:
    "llms.txt: every page with its first sentence; llms-full.txt: all pages but the books."
    lines = ["# cv_pipeline", "", f"> {summary_of((src / 'index.md').read_text(encoding='utf-8'))}", ""]
    whole: list[str] = []

    def add(entry: object, books: bool) -> None:
        for title, at in entry.items() if isinstance(entry, dict) else [("", entry)]:
            if isinstance(at, list):
                for inner in at:
                    add(inner, books)
                continue
            text = (src / at).read_text(encoding="utf-8")
            lines.append(f"- [{title or title_of(text, at)}]({at}): {summary_of(text)}")
            if not books and not at.startswith("reference/names"):
                whole.append(text)

    for part in nav:
        for name, entries in part.items():
            lines += ["", f"## {name}", ""]
            for entry in entries:
                add(entry, name == "Books")
    write(src, "llms.txt", "\n".join(lines) + "\n")
    write(src, "llms-full.txt", "\n\n".join(whole))


def write_pages(src: Path, books: list[Book]) -> dict[str, list[Book]]:
    "All Markdown of the site; its chapters."
    places = {(NBS / b.path).resolve(): b.page for b in books}
    places |= {(PAGES / f"{page}.md").resolve(): f"{page}.md" for page in HAND}
    files = {"index.md": "README.md", "security.md": "SECURITY.md", "contributing.md": "CONTRIBUTING.md"}
    files |= {"changes.md": "CHANGELOG.md"}
    places |= {(ROOT / file).resolve(): page for page, file in files.items()}
    made = reference.pages()
    places |= {(PAGES / "reference" / name).resolve(): f"reference/{name}" for name in made}
    pictures = [
        PAGES / "imports.svg",
        PAGES / "looks.css",
        ROOT / "data" / "demo.webp",
        *sorted((PAGES / "pictures").glob("*")),
    ]
    base = lambda path: ROOT if path.is_relative_to(ROOT / "data") else PAGES
    places |= {path.resolve(): str(path.relative_to(base(path))) for path in pictures}
    write_books(src, books, places)
    for page in HAND:
        text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
        write(src, f"{page}.md", linked(text, PAGES, places, f"{page}.md"))
    for page, file in files.items():
        write(src, page, linked((ROOT / file).read_text(encoding="utf-8"), ROOT, places, page))
    for name, text in made.items():
        write(src, f"reference/{name}", linked(text, PAGES / "reference", places, f"reference/{name}"))
    for path in pictures:
        file = src / places[path.resolve()]
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, file)
    return write_chapters(src, books)


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
    nav = navigation(src, write_pages(src, books))
    config = write_config(work, src, nav)
    write_llms(src, nav)
    command = (
        ["serve"]
        if options.serve
        else ["build", "--strict", "--quiet", "--site-dir", str(options.out.resolve())]
    )
    code = subprocess.run([sys.executable, "-m", "mkdocs", *command, "--config-file", config]).returncode
    if code == 0 and not options.serve:
        for path in src.rglob("*.md"):  # a twin of every page
            shutil.copy(path, options.out / path.relative_to(src))
        print(f"{len(books)} books; open {options.out / 'index.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
