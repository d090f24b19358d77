"A run under a supervisor that listens as systemd does."

import json
import os
import signal
import socket
import subprocess

import pytest

from tests.helpers.cli import CLI, hears_ctrl_c
from tests.helpers.waiting import until

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="sd_notify needs Unix sockets")


class Systemd:
    "A socket for messages, and what came through it."

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self.heard: list[dict[str, str]] = []

    def hears(self, key: str) -> bool:
        "Whether some message had this key."
        try:
            while True:
                text = self.socket.recv(4096).decode()
                self.heard.append(dict(line.partition("=")[::2] for line in text.split("\n")))
        except BlockingIOError:
            return any(key in message for message in self.heard)


@pytest.mark.slow
def test_a_run_says_that_it_is_ready_and_lives_and_stops_in_order(tmp_path):
    systemd = Systemd(tmp_path / "notify")
    told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
    run = subprocess.Popen(
        [CLI, "run", "line:width=160,height=120", "--out", str(tmp_path / "out")],
        env={**os.environ, **told},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hears_ctrl_c,
    )
    try:
        until(lambda: systemd.hears("READY"), 60, run)
        until(lambda: sum("WATCHDOG" in m for m in systemd.heard if systemd.hears("WATCHDOG")) >= 3, 60, run)
        running = lambda: [m for m in systemd.heard if "1 of 1 sources running" in m.get("STATUS", "")]
        until(lambda: systemd.hears("WATCHDOG") and running(), 60, run)
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 143
    ready = next(m for m in systemd.heard if "READY" in m)
    assert "of 1 sources running, model ready" in ready["STATUS"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["frames_delivered"] > 0


def test_a_supervisor_that_is_gone_does_not_matter(tmp_path):
    from cv_pipeline.core.config import load_config
    from cv_pipeline.service.assembly import run_config

    settings = {"sources": ["line:width=160,height=120,frames=5"], "delivery.out": str(tmp_path)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
        summary = run_config(load_config(None, settings))
    assert summary["frames_delivered"] == 5
