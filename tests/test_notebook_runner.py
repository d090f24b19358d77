"""The runner of the notebooks: failures are failures, flags are nbdev's, what a notebook used is measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import notebooks as runner
from tests.helpers.services import require

require("nbdev", reason='nbdev runs the notebooks: pip install "cv_pipeline[lab]"')
ROOT = Path(__file__).resolve().parents[1]


def book(folder: Path, name: str, *cells: str) -> Path:
    code = [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": f"{i:08x}",
            "metadata": {},
            "outputs": [],
            "source": text,
        }
        for i, text in enumerate(cells)
    ]
    path = folder / f"{name}.ipynb"
    path.write_text(
        json.dumps(
            {
                "cells": code,
                "metadata": {
                    "kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}
                },
                "nbformat": 4,
                "nbformat_minor": 5,
            }
        )
    )
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "One run of three notebooks."
    folder = tmp_path_factory.mktemp("books")
    books = [
        book(
            folder,
            "good",
            "x = 1\nimport time\nwhile time.process_time() < 0.3:\n    pass",  # also on a fast processor
            "assert x == 1",
            f"import tempfile\nassert tempfile.mkdtemp().startswith({str(folder)!r})",
            "#| eval: false\nraise RuntimeError('not to be run')",
            "#| notest\nraise RuntimeError('nor this')",
        ),
        book(folder, "bad", "x = 1", "assert x == 2, 'two it is not'"),
        book(folder, "dead", "import os, tempfile\ntempfile.mkdtemp()\nos._exit(7)"),
    ]
    (folder / "temporary").mkdir()
    return subprocess.run(
        [sys.executable, "-m", "tests.notebooks", *map(str, books)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder / "temporary")},
        capture_output=True,
        text=True,
        timeout=300,
    )


def line_of(done, name):
    return next(
        line for line in done.stdout.splitlines() if line.split("  FAILED")[0].endswith(f"{name}.ipynb")
    )


@pytest.mark.slow
def test_a_failure_is_the_exit_code(done):
    assert done.returncode == 1, done.stdout + done.stderr


def test_cells_that_nbdev_skips_are_skipped(done):
    assert not line_of(done, "good").endswith("FAILED")


def test_the_traceback_of_the_failing_cell_is_printed(done):
    assert "While Executing Cell #2" in done.stdout and "two it is not" in done.stdout


def test_a_process_that_dies_has_failed(done):
    assert line_of(done, "dead").endswith("FAILED")


def test_failed_ones_are_named_last(done):
    assert done.stdout.strip().splitlines()[-1].removeprefix("failed: ").split(", ") == [
        "bad.ipynb",
        "dead.ipynb",
    ]


def test_time_and_memory_are_measured(done):
    seconds, memory = (
        float(line_of(done, "good").split(" s CPU")[0]),
        int(line_of(done, "good").split(" MB")[0].split()[-1]),
    )
    assert seconds >= 0.2
    assert memory > 20


def test_temporary_files_of_a_notebook_go_with_it(done, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "books0" / "temporary"
    assert folder.is_dir()
    assert not [p for p in folder.iterdir() if p.name.startswith("nb-")]


@pytest.mark.slow
def test_nothing_to_run_is_an_error(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.notebooks", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2 and "no notebook found" in done.stderr


def test_the_modules_that_a_notebook_imports_first_are_found(tmp_path):
    path = book(
        tmp_path,
        "mine",
        "import numpy\nfrom cv_pipeline.core.files import write_json\nfrom cv_pipeline import __version__",
        "def later():\n    from cv_pipeline.core.runs import read_run",
        "%time x = 1",
        "from cv_pipeline.core.types import Frame",
    )
    assert runner.imports(path) == ["cv_pipeline.core.files", "cv_pipeline.core.types"]


def test_what_cannot_be_imported_is_left_to_the_notebook(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LEFT", {"onnxruntime"})
    path = book(tmp_path, "mine", "from cv_pipeline.core.absent import x")
    finders = list(sys.meta_path)
    runner.warm(path)
    assert runner.LEFT == {"onnxruntime", "cv_pipeline.core.absent"} and sys.meta_path == finders
    with pytest.raises(runner.Refused, match="absent"):
        runner.Refuse.find_spec("cv_pipeline.core.absent")
    assert runner.Refuse.find_spec("cv_pipeline.core.files") is None


@pytest.mark.slow
def test_no_notebook_begins_with_its_own_module_or_beside_a_thread():
    code = """
import os, sys
from tests import notebooks as runner
os.environ.update(dict.fromkeys(runner.THREADS, "1"))
runner.preload()
for path in runner.found([]):
    runner.warm(path)
    own = f"cv_pipeline.{path.parent.name[3:]}.{path.stem[3:]}"
    assert own not in sys.modules, own
    if os.path.isdir("/proc/self/task"):
        assert len(os.listdir("/proc/self/task")) == 1, path
print(sum(name.startswith("cv_pipeline.") for name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 100
