"""What tests need from this machine: optional packages, programs, ports. Skipped where it is missing, failed
where it is promised."""

import importlib
import os
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest


def promised() -> bool:
    "Whether everything has been installed here (CI): what is missing is a failure and no skip."
    return bool(os.environ.get("CV_PIPELINE_REQUIRE_SERVICES"))


def absent(what: str) -> None:
    "Skip with the reason; fail where services are promised."
    if promised():
        pytest.fail(what)
    pytest.skip(what, allow_module_level=True)


def require(name: str, reason: str = "") -> ModuleType:
    """An optional package. Unlike `pytest.importorskip` a package that is promised and cannot be imported is
    an error."""
    try:
        return importlib.import_module(name)
    except ImportError as e:
        if promised():
            raise
        pytest.skip(reason or f"{name} cannot be imported: {e}", allow_module_level=True)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def place(name: str) -> Path:
    """Where bindings lie that were installed beside the environment; skips where they do not, fails where
    they must."""
    for folder in (Path(sys.prefix) / name, Path(os.environ.get("CV_PIPELINE_TRT", "/nowhere")) / name):
        if folder.is_dir():
            return folder
    message = (
        f"{name} is not installed: pip install --no-deps --target {Path(sys.prefix) / name} … (see "
        "the "
        "Makefile)"
    )
    absent(message)
