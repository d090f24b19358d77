"""Guards of the notebook house: the exported package is what the notebooks say, and only that."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_map import chapters, drawing, edges

ROOT = Path(__file__).resolve().parents[1]
NBS, LIB = ROOT / "nbs", ROOT / "cv_pipeline"
DIRECTIVES = {
    "default_exp",
    "export",
    "exporti",
    "exports",
    "hide",
    "hide_input",
    "hide_output",
    "eval:",
    "notest",
    "echo:",
    "code-fold:",
}


def source(cell) -> str:
    return "".join(cell["source"])


def notebooks() -> dict[Path, list[dict]]:
    books = (nb for nb in sorted(NBS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in nb.parts)
    return {nb: json.loads(nb.read_text(encoding="utf-8"))["cells"] for nb in books}


BOOKS = notebooks()


def code_cells(cells) -> list[str]:
    return [source(c) for c in cells if c["cell_type"] == "code"]


def module_of(cells) -> str | None:
    found = [
        m[1] for text in code_cells(cells) for m in re.finditer(r"^#\|\s*default_exp\s+(\S+)", text, re.M)
    ]
    assert len(found) <= 1, "two default_exp in one notebook"
    return found[0] if found else None


def order_of(nb: Path) -> tuple[int, ...]:
    """Numbers of chapter and book: books are read, and may import, in this order. What carries no number
    comes last."""
    numbers = [re.match(r"(\d\d)_", part) for part in nb.relative_to(NBS).parts]
    return tuple(int(m[1]) for m in numbers) if all(numbers) else (100,)


def plain(part: str) -> str:
    return re.sub(r"^\d\d_", "", part)


def exported(cells) -> list[str]:
    return [text for text in code_cells(cells) if re.search(r"^#\|\s*exporti?s?\s*$", text, re.M)]


OWNERS = {nb: module_of(cells) for nb, cells in BOOKS.items()}


def test_every_module_is_authored_by_exactly_one_notebook():
    wanted = sorted(name for name in OWNERS.values() if name)
    assert len(wanted) == len(set(wanted)), "two notebooks export one module: the last would silently win"
    files = {p.relative_to(LIB).with_suffix("").as_posix().replace("/", ".") for p in LIB.rglob("*.py")}
    assert {f for f in files if not f.endswith(".__init__") and f != "_modidx"} == set(wanted)


@pytest.mark.parametrize("nb", [nb for nb, name in OWNERS.items() if name], ids=lambda nb: nb.stem)
def test_path_and_module_have_the_same_name(nb):
    assert OWNERS[nb] == ".".join(map(plain, nb.relative_to(NBS).with_suffix("").parts))


def test_every_book_has_a_place_of_its_own():
    places = [order_of(nb) for nb in BOOKS if len(order_of(nb)) == 2]
    assert len(places) == len(set(places)), "two books of one chapter carry one number"


@pytest.mark.parametrize("nb", list(BOOKS), ids=lambda nb: nb.stem)
def test_only_earlier_books_are_imported(nb):
    "In exported and in shown cells alike: who reads in order has met everything that a cell uses."
    places = {name: order_of(other) for other, name in OWNERS.items() if name}
    pattern = r"^\s*(?:from\s+cv_pipeline\.([\w.]+)\s+import\s+(\w+)|import\s+cv_pipeline\.([\w.]+))"
    for text in code_cells(BOOKS[nb]):
        assert not re.search(r"^\s*from\s+\.", text, re.M), "relative imports hide the order of the books"
        for match in re.finditer(pattern, text, re.M):
            name = match[3] or (match[1] if match[1] in places else f"{match[1]}.{match[2]}")
            assert name in places, f"{nb.name} imports {name}, which no notebook exports"
            assert places[name] < order_of(nb) or name == OWNERS[nb], (
                f"{nb.name} imports the later book {name}"
            )


def test_export_is_reproducible_byte_for_byte(tmp_path):
    "clean + export in a copy of the tree: notebooks and modules come out as they are committed."
    import nbdev  # noqa: F401  the core's environment has none: a skip there

    copy = tmp_path / "copy"
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "models")
    for name in ("nbs", "cv_pipeline"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("settings.ini", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    for old in copy.joinpath("cv_pipeline").rglob("*.py"):
        old.unlink()
    for command in ("nbdev_clean", "nbdev_export"):
        subprocess.run([Path(sys.executable).parent / command], cwd=copy, check=True, capture_output=True)
    for folder, pattern in (("nbs", "*.ipynb"), ("cv_pipeline", "*.py")):
        before = {
            p.relative_to(ROOT): p.read_bytes()
            for p in (ROOT / folder).rglob(pattern)
            if ".ipynb_checkpoints" not in p.parts
        }
        after = {p.relative_to(copy): p.read_bytes() for p in (copy / folder).rglob(pattern)}
        assert set(before) == set(after)
        assert [str(p) for p in sorted(before) if before[p] != after[p]] == [], (
            "run `make sync` and commit what it changes"
        )
    assert (ROOT / "pyproject.toml").read_bytes() == (copy / "pyproject.toml").read_bytes()


@pytest.mark.parametrize(
    "nb", [nb for nb in BOOKS if nb.parent.name in ("reports", "how_to")], ids=lambda nb: nb.stem
)
def test_a_template_has_exactly_one_parameters_cell(nb):
    tagged = [c for c in BOOKS[nb] if "parameters" in c.get("metadata", {}).get("tags", [])]
    assert len(tagged) == 1 and tagged[0]["cell_type"] == "code"
    assert OWNERS[nb] is None, "templates and how-tos export nothing"


@pytest.mark.parametrize("nb", list(BOOKS), ids=lambda nb: nb.stem)
def test_cells_keep_the_house_rules(nb):
    cells = BOOKS[nb]
    assert len(cells) <= 80, "split the book"
    assert nb.stat().st_size <= 400 * 1024, "shrink the pictures"
    outputs = json.dumps([c.get("outputs") for c in cells])
    assert '"name": "stderr"' not in outputs and "site-packages" not in outputs, (
        "warnings with paths of one machine: run the notebook again"
    )
    for text in code_cells(cells):
        for directive in re.findall(r"^#\|\s*(\S+)", text, re.M):
            assert directive in DIRECTIVES, f"nbdev would silently ignore '#| {directive}'"
    for text in exported(cells):
        lines = [line for line in text.splitlines() if line.strip()]
        assert len(lines) <= 50, f"an exported cell has {len(lines)} lines: {lines[1][:60]}"
        assert not re.search(r"^\s*[%!]", text, re.M), "a magic in an exported cell breaks __all__"
        assert not re.search(r"^\s*from\s+\S+\s+import\s+\*", text, re.M), "star import"
        assert not re.search(r"^#\|\s*(notest|eval:\s*false)", text, re.M), (
            "a skipped exported cell is not defined in tests"
        )


def test_readme_is_the_rendered_index():
    index = next(cells for nb, cells in BOOKS.items() if nb.name == "index.ipynb")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for cell in index:
        if cell["cell_type"] == "markdown":
            seen_from_root = re.sub(
                r"\]\(([^):]*\.ipynb)\)", r"](nbs/\1)", source(cell).replace("](../", "](")
            )
            assert seen_from_root.strip() in text, "README.md is stale: run `make sync`"
    chapters = {nb.relative_to(NBS).parts[0] for nb in BOOKS if nb.parent != NBS}
    assert [c for c in sorted(chapters) if f"`{c}`" not in text] == [], "the front page names every chapter"
    assert len(text.splitlines()) <= 120, "the front page is short; the rest belongs on a page of docs/"
    for link in re.findall(r"\]\(([^):#]+)\)", text):
        assert (ROOT / link).exists(), f"README.md links to {link}, which is not there"


TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def calls(file: Path) -> set[str]:
    "Names of the functions that a file calls, as they are written."
    return {
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    }


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_no_test_file_imports_another(file):
    others = [
        name
        for name in re.findall(
            r"^\s*(?:from|import)\s+(?:tests\.)?(?:\w+\.)?(test_\w+)", file.read_text(encoding="utf-8"), re.M
        )
        if name != file.stem
    ]
    assert others == [], "what tests share lies in tests/helpers/"


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_no_test_sleeps(file):
    assert not calls(file) & {"time.sleep", "sleep"}, "wait for a condition: tests.helpers.waiting.until"


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_what_is_promised_is_not_skipped(file):
    assert "pytest.importorskip" not in calls(file), (
        "tests.helpers.services.require fails where everything is installed"
    )


def test_chapters_import_earlier_chapters_only_and_the_drawing_is_current():
    books = chapters()
    place = {name: i for i, name in enumerate(books)}
    assert [f"{a} → {b}" for a, b in edges(books) if place[b] > place[a]] == []
    assert (ROOT / "docs" / "imports.svg").read_text(encoding="utf-8") == drawing(), (
        "run `python -m tests.import_map`"
    )


@pytest.mark.parametrize(
    "nb", [nb for nb, name in OWNERS.items() if name and name != "__init__"], ids=lambda nb: nb.stem
)
def test_strings_name_no_later_book(nb):
    '`import_module("cv_pipeline.x.y")` is an import, too.'
    places = {name: order_of(other) for other, name in OWNERS.items() if name}
    for text in exported(BOOKS[nb]):
        for name in re.findall(r"[\"']cv_pipeline\.([a-z_]+\.[a-z_]+)", text):
            assert name not in places or places[name] < order_of(nb) or name == OWNERS[nb], (
                f"{nb.name} names the later book {name} in a string"
            )


@pytest.mark.parametrize("nb", [nb for nb, name in OWNERS.items() if name], ids=lambda nb: nb.stem)
def test_no_private_names_of_other_books(nb):
    for text in exported(BOOKS[nb]):
        for names in re.findall(r"^\s*from\s+cv_pipeline\.[\w.]+\s+import\s+([^\n#]+)", text, re.M):
            private = [
                n.split(" as ")[0].strip()
                for n in names.split(",")
                if n.strip().startswith("_") and not n.strip().startswith("__")
            ]
            assert private == [], f"{nb.name} takes private names: make them public, or find another way"


@pytest.mark.parametrize("nb", list(BOOKS), ids=lambda nb: nb.stem)
def test_links_between_notebooks_lead_somewhere(nb):
    for cell in BOOKS[nb]:
        if cell["cell_type"] == "markdown":
            broken = [
                link
                for link in re.findall(r"\]\(([^):#\s]+\.(?:ipynb|jpg|png|svg))\)", source(cell))
                if not (nb.parent / link).exists()
            ]
            assert broken == [], f"{nb.name} links to {broken}"


FILES = (
    "core.files"  # the one book that names, locks, copies and takes apart files; others import what it offers
)
GUARDED = {
    "a rename or a link of one's own": (
        r"os\.(replace|rename|link)\(|.*\.(rename|hardlink_to)\([^,]*\)$|.*\.replace\([^,=]+\)$",
        {
            "core.results": "a finished part becomes the table: nothing is written",
            "video.sinks": "the parts of an older run are put aside",
        },
    ),
    "a copy that may overwrite": (r"shutil\.(copy|copy2|copyfile|move)\(", {}),
    "JSON of a file without typed errors": (
        r"json\.load\(|json\.loads\(.*\bread(_text|_bytes)?\(",
        {
            "inference.engines": "the header inside an engine file",
            "training.rfdetr_process": "runs in an environment that has no cv_pipeline",
        },
    ),
    "YAML without typed errors": (
        r"yaml\.(safe_load|load|full_load|unsafe_load)(_all)?\(|yaml\.\w*Loader\(",
        {},
    ),
    "Parquet without typed errors": (r"(pq|pyarrow\.parquet)\.(ParquetFile|ParquetDataset|read_\w+)\(", {}),
    "a checksum of a file": (r"hashlib\.file_digest\(|hashlib\.sha256\(.*\bread(_bytes)?\(", {}),
    "a lock": (r"fcntl\.(flock|lockf)\(|msvcrt\.locking\(", {}),
    "a draft": (
        r"'[^']*\.(part|tmp)'$|f['\"].*\.(part|tmp)['\"]$",
        {"monitoring.telemetry": "looks for drafts of killed writers, makes none"},
    ),
}


def phrases(file: Path) -> list[str]:
    "Calls and texts of a module, as one writes them."
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return [
        ast.unparse(n)
        for n in nodes
        if isinstance(n, (ast.Call, ast.JoinedStr))
        or (isinstance(n, ast.Constant) and isinstance(n.value, str))
    ]


PHRASES = {
    f.relative_to(LIB).with_suffix("").as_posix().replace("/", "."): phrases(f)
    for f in sorted(LIB.rglob("*.py"))
    if f.name != "_modidx.py"
}


@pytest.mark.parametrize("what", GUARDED)
def test_files_are_handled_by_one_book(what):
    pattern, allowed = GUARDED[what]
    others = [m for m in PHRASES if m != FILES and m not in allowed]
    found = [f"{m}: {text[:100]}" for m in others for text in PHRASES[m] if re.match(pattern, text, re.S)]
    assert found == [], f"{what}: core.files has a function for it"


@pytest.mark.parametrize("what", GUARDED)
def test_the_guard_of_files_finds_what_it_looks_for(what):
    assert any(re.match(GUARDED[what][0], text, re.S) for text in PHRASES[FILES]) or what in FOREIGN
    assert all(re.match(GUARDED[what][0], text, re.S) for text in FOREIGN.get(what, ()))


FOREIGN = {
    "a rename or a link of one's own": [
        "os.replace(part, path)",
        "draft.replace(path)",
        "draft.replace(self.folder / name)",
        "made.rename(target)",
    ],
    "a copy that may overwrite": ["shutil.copy2(source, target)"],
    "JSON of a file without typed errors": [
        "json.load(file)",
        "json.loads(path.read_text(encoding='utf-8'))",
        "json.loads(Path(path).read_bytes())",
    ],
    "YAML without typed errors": ["yaml.safe_load(text)"],
    "a checksum of a file": ["hashlib.sha256(p.read_bytes())", "hashlib.file_digest(f, 'sha256')"],
    "a draft": ["f'.{path.name}.part'", "'.start.part'", "'.json.tmp'"],
}


# more belong into a dataclass of settings that checks itself; options of the command line are the options'
# list
MOST_PARAMETERS = 8
OPTIONS = (
    "its keyword arguments are the options of the configuration, under the names of the reference "
    "implementation"
)
MANY_PARAMETERS = {  # file and function → why it may have more
    "tracking/deepsort.py __init__": OPTIONS,
    "tracking/ocsort.py __init__": OPTIONS,
}


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    "Names of a function's parameters, *args and **kwargs with them; without self and cls."
    a = function.args
    rest = [x for x in (a.vararg, a.kwarg) if x is not None]
    return [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, *rest) if x.arg not in ("self", "cls")]


def crowded(text: str) -> dict[str, list[str]]:
    "Function → its parameters, for those of a module that have too many."
    functions = (
        n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    return {f.name: names for f in functions if len(names := parameters(f)) > MOST_PARAMETERS}


def test_functions_have_eight_parameters_at_most():
    files = [f for f in sorted(LIB.rglob("*.py")) if f.relative_to(LIB).parts[0] != "commands"]
    found = {
        f"{f.relative_to(LIB).as_posix()} {name}": names
        for f in files
        for name, names in crowded(f.read_text(encoding="utf-8")).items()
    }
    others = [
        f"{where}: {len(names)} ({', '.join(names)})"
        for where, names in found.items()
        if where not in MANY_PARAMETERS
    ]
    assert others == [], "put what belongs together into a frozen dataclass of settings"
    assert sorted(set(MANY_PARAMETERS) - set(found)) == [], "an exception that nothing needs any more"


def test_the_guard_of_parameters_counts_every_kind():
    nine = "def f(self, a, b, /, c, d=1, *more, e, g=2, h=3, **rest): ..."
    assert crowded(nine) == {"f": ["a", "b", "c", "d", "e", "g", "h", "more", "rest"]}
    assert crowded("def f(cls, a, b, c, d, e, g, h, i): ...") == {}
    assert list(crowded("class A:\n    async def f(self, a, b, c, d, e, g, h, i, j): ...")) == ["f"]
