"""A real Label Studio server on this machine: found, started on a free port with an empty database, stopped,
started again."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.helpers.services import absent, free_port

TOKEN = "0123456789abcdef0123456789abcdef01234567"


def find_label_studio() -> Path | None:
    """The command: named by CV_PIPELINE_LABEL_STUDIO, brought by `make test` into an environment of its own,
    or on the path."""
    places = [
        os.environ.get("CV_PIPELINE_LABEL_STUDIO"),
        Path(sys.prefix) / "labelstudio" / "bin" / "label-studio",
        shutil.which("label-studio"),
    ]
    return next((Path(p) for p in places if p and Path(p).exists()), None)


class LabelStudio:
    "A server that can be stopped and started again with the same data on the same port."

    def __init__(self, folder: Path):
        self.program = find_label_studio()
        if self.program is None:
            absent(
                "no Label Studio here: python -m venv DIR && DIR/bin/pip install label-studio==1.23.2, and "
                "set CV_PIPELINE_LABEL_STUDIO=DIR/bin/label-studio"
            )
        self.folder, self.port, self.process = folder, free_port(), None
        self.url, self.pictures = f"http://127.0.0.1:{self.port}", folder / "pictures"
        self.pictures.mkdir(parents=True)
        version = next(
            iter(self.program.parent.parent.glob("lib/python*/site-packages/label_studio-*.dist-info")),
            Path("unknown"),
        ).name
        self.kept = (
            self.program.parent.parent / f"migrated-{version}.sqlite3"
        )  # the first start makes 300 tables, 20 s; later ones take a copy
        if self.kept.exists():
            shutil.copy(self.kept, folder / "label_studio.sqlite3")
        self.start()
        if not self.kept.exists():
            self.stop()
            part = self.kept.with_suffix(f".{os.getpid()}")
            shutil.copy(folder / "label_studio.sqlite3", part)
            os.replace(part, self.kept)
            self.start()

    def start(self) -> None:
        "Up and healthy."
        settings = {
            "LABEL_STUDIO_BASE_DATA_DIR": str(self.folder),
            "DJANGO_DB": "sqlite",
            "COLLECT_ANALYTICS": "false",
            "LATEST_VERSION_CHECK": "false",
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "LABEL_STUDIO_USERNAME": "ana@line.co",
            "LABEL_STUDIO_PASSWORD": "pass-word-1",
            "LABEL_STUDIO_USER_TOKEN": TOKEN,
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(self.pictures),
        }
        command = [
            str(self.program),
            "start",
            "--no-browser",
            "--internal-host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--data-dir",
            str(self.folder),
        ]
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith(("LABEL_STUDIO", "DJANGO", "PYTHON"))
        }
        self.process = subprocess.Popen(
            command,
            env={**inherited, **settings},
            stdout=(self.folder / "server.log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        until = time.monotonic() + 180
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)  # a process of the operating system, no logic of ours
        self.stop()
        raise AssertionError(
            f"Label Studio did not come up:\n{(self.folder / 'server.log').read_text()[-2000:]}"
        )

    def stop(self) -> None:
        "The whole process group, for good."
        if self.process is None:
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, sign)
            except ProcessLookupError:
                break
            try:
                self.process.wait(10)
                break
            except subprocess.TimeoutExpired:
                continue
        self.process = None
