"""Fixtures shared by all tests."""
import importlib
import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a busy machine is no failed property
settings.load_profile("any machine")

if os.environ.get("CV_PIPELINE_REQUIRE_SERVICES"):  # where everything has been installed, what cannot be imported is a failure and no skip
    pytest.importorskip = lambda name, *args, **kwargs: importlib.import_module(name)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = os.environ.get("CV_PIPELINE_REAL_DATA")
    if not folder:
        pytest.skip("CV_PIPELINE_REAL_DATA is not set: the real data is not on this machine")
    path = Path(folder)
    assert path.is_dir(), f"CV_PIPELINE_REAL_DATA={folder} is not a folder"
    return path
