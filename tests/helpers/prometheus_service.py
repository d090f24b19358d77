"""A real Prometheus for the tests of metrics and alert rules: started on a free port with short intervals,
asked by HTTP, stopped."""

import json
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.helpers.services import absent, free_port


def find(program: str) -> str:
    "prometheus or promtool; skip with the reason where it is absent, fail where services are promised."
    path = shutil.which(program)
    if path is None:
        absent(f"no {program} on this machine (Debian: apt-get install prometheus)")
    return path


class Prometheus:
    def __init__(self, url: str, process: subprocess.Popen, log: Path):
        self.url, self.process, self.log = url, process, log

    def ask(self, path: str, **query: str) -> dict:
        "The data of an answer of its HTTP interface."
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(query)}", timeout=10) as reply:
            return json.load(reply)["data"]

    def query(self, expression: str) -> dict[tuple, float]:
        "Labels (without instance and job) → value."
        rows = self.ask("query", query=expression)["result"]
        return {
            tuple(
                sorted((k, v) for k, v in r["metric"].items() if k not in ("instance", "job", "__name__"))
            ): float(r["value"][1])
            for r in rows
        }

    def alerts(self) -> dict[str, list[dict]]:
        "State → alerts."
        found: dict[str, list[dict]] = {}
        for a in self.ask("alerts")["alerts"]:
            found.setdefault(a["state"], []).append(a)
        return found

    def until(self, true, what: str, seconds: float = 60.0):
        "Poll until `true()` says something; its answer."
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if answer := true():
                    return answer
            except OSError:
                pass
            if self.process.poll() is not None:
                break
            time.sleep(0.1)  # a process of the operating system, no logic of ours
        raise AssertionError(
            f"Prometheus: {what} did not happen within {seconds} s:\n{self.log.read_text()[-2000:]}"
        )


@contextmanager
def prometheus(folder: Path, config: Path):
    "A server that scrapes what a prometheus.yml says."
    program, port, log = find("prometheus"), free_port(), folder / "prometheus.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        server = Prometheus(f"http://127.0.0.1:{port}", process, log)
        try:
            server.until(lambda: urlopen(f"{server.url}/-/ready", timeout=2).status == 200, "start")
            yield server
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
