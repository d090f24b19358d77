"""The commands of the pages in docs and of the how-to notebooks exist, with every option that they name."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cv_pipeline.commands.main import app

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```bash\n(.*?)^```", re.M | re.S)


def lines(page):
    "Commands of a page: words without comments, one command each."
    text = (ROOT / ("nbs/how_to" if page.endswith(".ipynb") else "docs") / page).read_text(encoding="utf-8")
    if page.endswith(".ipynb"):
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "markdown"]
        text = "\n".join("".join(c["source"]) for c in cells)
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|", re.sub(r"\s#.*", "", line)):
                words = shlex.split(part)
                while words[:1] and (words[0] == "sudo" or "=" in words[0]):
                    words = words[1:]
                if words and words[0].rpartition("/")[2] == "cv-pipeline":
                    yield " ".join(words[1:]), words[1:]


def help_of(words):
    "The command that these words call, and its help."
    here, path = typer.main.get_command(app), []
    while hasattr(here, "get_command"):
        path.append(words[len(path)])
        here = here.get_command(None, path[-1])
        assert here is not None, f"unknown command {' '.join(path)!r}"
    env = {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}
    return len(path), CliRunner().invoke(app, [*path, "--help"], env=env).output


PAGES = sorted(
    p.name for d in ("docs", "nbs/how_to") for p in (ROOT / d).glob("*") if p.suffix in (".md", ".ipynb")
)
CASES = [(page, *case) for page in PAGES for case in lines(page)]


def test_the_pages_have_commands():
    assert sum(page == "fleet.md" for page, *_ in CASES) >= 25 and len(CASES) >= 40
    assert len({page for page, *_ in CASES if page.endswith(".ipynb")}) >= 10


@pytest.mark.parametrize(("page", "text", "words"), CASES, ids=[f"{p}: {t[:60]}" for p, t, _ in CASES])
def test_a_command_of_a_page_exists_with_its_options(page, text, words):
    depth, text_of_help = help_of(words)
    given = {w.partition("=")[0] for w in words[depth:] if re.match(r"--?[a-z]", w)}
    assert not [o for o in given if not re.search(rf"(?<![\w-]){re.escape(o)}(?![\w-])", text_of_help)]
