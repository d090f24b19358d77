"""Fixtures shared by all tests."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cv_pipeline import __version__
from tests.helpers.cameras import Server, why_no_server
from tests.helpers.fiftyone_service import open_fiftyone
from tests.helpers.services import absent

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def origin_of_results(record_testsuite_property) -> None:
    "A JUnit file says of which version and commit its results are: `cv-pipeline checklist` asks for that."
    record_testsuite_property("cv_pipeline", __version__)
    if git := shutil.which("git"):
        head = subprocess.run(
            [git, "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=30
        )
        record_testsuite_property("commit", head.stdout.strip() or "unknown")


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = os.environ.get("CV_PIPELINE_REAL_DATA")
    if not folder:
        pytest.skip("CV_PIPELINE_REAL_DATA is not set: the real data is not on this machine")
    path = Path(folder)
    assert path.is_dir(), f"CV_PIPELINE_REAL_DATA={folder} is not a folder"
    return path


@pytest.fixture(scope="session")
def fo(tmp_path_factory):
    "A real FiftyOne with its database."
    return open_fiftyone(tmp_path_factory.mktemp("fiftyone"))


@pytest.fixture(scope="session")
def gstreamer():
    if reason := why_no_server():
        absent(reason)


@pytest.fixture
def serve(gstreamer):
    started = []

    def start(*args, port=0):
        started.append(Server(*args, port=port))
        return started[-1]

    yield start
    for server in started:
        server.kill()


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    "A project of three cameras with marked pictures and rows in every store; tests copy it."
    from tests.helpers.watched_project import watched_project

    return watched_project(tmp_path_factory.mktemp("made") / "project")


@pytest.fixture
def project(made, tmp_path):
    "A copy of it to erase from."
    shutil.copytree(made, tmp_path / "project")
    return tmp_path / "project"
