"""Errors, help texts, reports and the documentation of public names use the field's words: the table in
docs/glossary.md lists those that are not used, and by which regular expression they are found."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    p for p in (ROOT / "cv_pipeline").rglob("*.py") if p.name not in ("__init__.py", "_modidx.py")
)
NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def banned(text):
    "Word that is not used → its regular expression, from the last table of the glossary."
    rows = text.split("## Words that are not used")[1].split("|---|---|---|\n")[1].strip().split("\n")
    cells = [[c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", r)[1:-1]] for r in rows]
    return {word: re.compile(pattern.strip("`"), re.IGNORECASE) for word, _, pattern in cells}


WORDS = banned((ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"))


def documented(node):
    "The module, its public classes and functions, and their public methods."
    if isinstance(node, NAMED) and node.name.startswith("_") and node.name != "__init__":
        return
    yield node
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        for child in node.body:
            if isinstance(child, (*NAMED, ast.Module)):
                yield from documented(child)


def docstring(node):
    "The constant that holds a docstring, None without one."
    first = node.body[0] if node.body else None
    value = first.value if isinstance(first, ast.Expr) else None
    return value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def docment_lines(node):
    "Lines of a signature, or of the fields of a class: their comments document parameters."
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return range(node.lineno, node.body[0].lineno)
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    return [line for n in fields for line in range(n.lineno, n.end_lineno + 1)]


def texts(source):
    "(line, text) of what a person reads: sentences in the code, public docstrings, docments."
    tree = ast.parse(source)
    every = [n for n in ast.walk(tree) if isinstance(n, (*NAMED, ast.Module))]
    public = list(documented(tree))
    hidden = {id(docstring(n)) for n in every if n not in public}
    lines = {line for n in public for line in docment_lines(n)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in hidden:
            if node.value.strip().count(" ") > 1:
                yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.start[0] in lines:
            yield token.start[0], token.string


def found(source):
    "(line, word, text) of every banned word."
    return [
        (line, word, " ".join(text.split()))
        for line, text in texts(source)
        for word, pattern in WORDS.items()
        if pattern.search(" ".join(text.split()))
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_banned_word(path):
    hits = found(path.read_text(encoding="utf-8"))
    assert not hits, "\n".join(
        f"{path.relative_to(ROOT).as_posix()}:{line}: {word}: {text[:120]}" for line, word, text in hits
    )


@pytest.mark.parametrize(
    "source, word",
    [
        ("raise ValueError(f'{n} is no number')", "is no X"),
        ("'One module.'\nhelp = 'Share of all looks, by lot.'", "lot, lots"),
        ("def f(x):\n    'Its answer is of no use.'", "of no use"),
        ("def f(\n    x,  # cameras that need a hand\n): pass", "needs a hand"),
        ("class A:\n    x: int  # looks a second", "looks a second"),
    ],
)
def test_a_banned_word_is_found(source, word):
    assert word in [w for _, w, _ in found(source)]


def test_private_docstrings_are_not_read():
    assert found("def _f():\n    'It is no number.'") == []


@pytest.mark.parametrize("text", ["there is no longer a file", "it looks like a cat", "allotment of a plot"])
def test_innocent_words_are_not_found(text):
    assert found(f"x = {text!r}") == []
