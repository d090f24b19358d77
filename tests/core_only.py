"""A pytest plugin for environments that hold the core alone: `pytest -p tests.core_only --at-least N`.

A test that wants a package of an extra is skipped; a package of the core that is missing or broken is still
an error.
`python -m tests.core_only floors` prints the declared minimums of the core as pins, `newest` its names.
"""

import ast
import configparser
import importlib.util
import re
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = {
    "cv_pipeline",
    "numpy",
    "cv2",
    "onnxruntime",
    "av",
    "scipy",
    "pydantic",
    "yaml",
    "typer",
    "rich",
    "prometheus_client",
    "pyarrow",
    "simplejpeg",
    "pytest",
    "hypothesis",
}


def requirements(which: str) -> list[str]:
    "What pip installs: `name==minimum` of everything that the core declares, or the names."
    cfg = configparser.ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    pairs = [re.split(r"[<>=!~]+", text)[:2] for text in cfg["DEFAULT"]["requirements"].split()]
    return [f"{name}=={low}" if which == "floors" else name for name, low in pairs]


@cache
def missing(top: str) -> bool:
    "Whether a module is of an extra and not here."
    return top not in CORE | {"tests"} and importlib.util.find_spec(top) is None


@cache
def wants(path: Path) -> frozenset[str]:
    "Modules that a test file, or a helper it imports, asks for at its beginning and that are not here."
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        for name in filter(None, names):
            helper, top = ROOT.joinpath(*name.split(".")).with_suffix(".py"), name.split(".")[0]
            if top == "tests" and helper.exists():
                found |= wants(helper)
            elif missing(top):
                found.add(top)
    return frozenset(found)


def pytest_addoption(parser):
    parser.addoption(
        "--at-least",
        type=int,
        default=0,
        help="fewer passed tests are a failure: skips must not hide everything",
    )


TEXTS = {  # they read the project's own text, which is the same with every version of a dependency
    "test_house.py",
    "test_words.py",
    "test_names.py",
    "test_operations.py",
    "test_deploy.py",
}


def pytest_ignore_collect(collection_path):
    "A file that cannot be imported without an extra is left out, and what no dependency can change."
    name = collection_path.name
    if name in TEXTS or (name.startswith("test_") and name.endswith(".py") and wants(collection_path)):
        return True
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    "A fixture that wants an extra."
    return (yield from skipping())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    "A test that wants an extra."
    return (yield from skipping())


def skipping():
    "A module that is not in the core, and the project's own advice to install an extra, are a skip."
    try:
        return (yield)
    except ModuleNotFoundError as e:
        if not missing((e.name or "").split(".")[0] or "cv_pipeline"):
            raise
        pytest.skip(f"{e.name} is not in the core")
    except Exception as e:
        if 'pip install "cv_pipeline[' not in f"{e} {getattr(e, 'hint', '')}":
            raise
        pytest.skip(str(e))


def pytest_sessionfinish(session):
    "Enough passed?"
    reporter, least = (
        session.config.pluginmanager.get_plugin("terminalreporter"),
        session.config.getoption("--at-least"),
    )
    if reporter and len(reporter.stats.get("passed", [])) < least:
        reporter.write_line(
            f"only {len(reporter.stats.get('passed', []))} passed, at least {least} were expected", red=True
        )
        session.exitstatus = 1


if __name__ == "__main__":
    print(*requirements(sys.argv[1]), sep="\n")
