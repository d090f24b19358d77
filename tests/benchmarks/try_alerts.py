"""Runs and the daemon of alerts are killed two hundred times while one receiver in ten fails; how many
durable events a second; how soon a call comes after it is due, and an answer stops it; what Alertmanager
keeps of an alert and a silence under the same kill, where it is installed.

    python -m tests.benchmarks.try_alerts [PARTS] [--kills 200]
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cv_pipeline.alerts.daemon import AlertDaemon, DaemonSettings
from cv_pipeline.alerts.incidents import Happening, IncidentBook, take
from cv_pipeline.alerts.outbox_of_alerts import SendSettings
from cv_pipeline.alerts.policy import Subject, read_policy
from cv_pipeline.core.http_server import Answer
from cv_pipeline.edge.forward import InboxServer, Link, LinkSettings
from tests.helpers.alert_lives import kill_loop
from tests.helpers.services import free_port


def show(title: str, rows: dict) -> None:
    print(f"\n{title}")
    for name, value in rows.items():
        print(f"  {name:36} {value}")


def kills(folder: Path, count: int) -> None:
    show(f"{count} kills", kill_loop(folder, count, seed=11, seconds=300))


def durable(folder: Path, count: int) -> None:
    "One insert and one fsync an event; in one transaction for many."
    with IncidentBook(folder / "book.sqlite") as book:
        made = lambda k: Happening(f"e{k}", Subject("here", "gate", "fence"), "enter", 1.78e9, k)
        times = []
        for k in range(1000):
            began = time.perf_counter()
            take(book, [made(k)])
            times.append(time.perf_counter() - began)
        began = time.perf_counter()
        take(book, [made(k) for k in range(10_000, 20_000)])
        many = time.perf_counter() - began
    times.sort()
    rows = {
        "events a second, one by one": round(1000 / sum(times)),
        "median ms": round(1e3 * statistics.median(times), 2),
        "p99 ms": round(1e3 * times[990], 2),
        "events a second, 10,000 at once": round(10_000 / many),
        "load of the machine": os.getloadavg()[0],
    }
    show("durable events", rows)


class Receiver:
    def __init__(self):
        self.got = []
        self.server = InboxServer(self.answer)

    def answer(self, request):
        self.got.append((time.monotonic(), json.loads(request.body)))
        return Answer(204, "text/plain", b"")


def punctual(folder: Path, count: int) -> None:
    "Fifty incidents with levels at 0, 2 and 4 s: how late each call arrives; then an answer by link."
    receiver = Receiver()
    channels = {"desk": {"kind": "webhook", "url": f"{receiver.server.url}/hook"}}
    levels = [{"after_s": k, "channels": ["desk"]} for k in (0, 2, 4)]
    policy = read_policy({"channels": channels, "levels": [*levels[:2], {**levels[2], "repeat_s": 3600}]})
    began = {}
    with AlertDaemon(folder / "book.sqlite", policy, DaemonSettings(sending=SendSettings())) as daemon:
        stop = threading.Event()
        loop = threading.Thread(target=daemon.run, args=(stop,))
        loop.start()
        with IncidentBook(folder / "book.sqlite") as run:
            for k in range(50):
                began[f"c{k}"] = time.monotonic()
                take(run, [Happening(f"e{k}", Subject("here", f"c{k}", "fence"), "enter", time.time(), k)])
                time.sleep(0.05)
            while len(receiver.got) < 150:
                time.sleep(0.05)
            late = sorted(at - began[c["camera"]] - 2 * (c["level"] - 1) for at, c in receiver.got)
            call = receiver.got[-1][1]
            page = Link(LinkSettings(call["link"].rpartition("/a/")[0]))
            asked = time.monotonic()
            page.ask("POST", "/a/" + call["link"].rpartition("/")[2], b"who=Petra", {})
            state = lambda: run.value("SELECT state FROM incidents WHERE id = ?", call["incident"])
            while state() != "acknowledged":
                time.sleep(0.001)
            stopped = time.monotonic() - asked
        stop.set()
        loop.join()
    receiver.server.close()
    rows = {"calls": len(late), "median s late": round(statistics.median(late), 3)}
    rows |= {"p99 s late": round(late[int(0.99 * len(late))], 3), "most s late": round(late[-1], 3)}
    show("punctual", {**rows, "earliest": round(late[0], 3), "answer stops after s": round(stopped, 3)})


def alertmanager(folder: Path, count: int) -> None:
    "An alert and a silence, kill −9, and what is left."
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if program is None:
        return print("\nalertmanager: not installed here, not measured")
    receiver, port = Receiver(), free_port()
    (folder / "am.yml").write_text(
        f"route: {{receiver: w, group_wait: 1s, group_interval: 1s, repeat_interval: 4h}}\n"
        f"receivers: [{{name: w, webhook_configs: [{{url: '{receiver.server.url}/x'}}]}}]\n"
    )
    command = [program, f"--config.file={folder}/am.yml", f"--storage.path={folder}/am"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="]

    def ask(path: str, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=5) as found:
            return json.loads(found.read() or b"null")

    def start():
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(400):
            try:
                ask("/api/v2/status")
                return process
            except OSError:
                time.sleep(0.05)
        raise AssertionError("Alertmanager did not start")

    def counts():
        return len(ask("/api/v2/alerts")), len(
            [s for s in ask("/api/v2/silences") if s["status"]["state"] == "active"]
        )

    now = datetime.now(timezone.utc)
    process = start()
    ask(
        "/api/v2/alerts",
        [{"labels": {"alertname": "intruder"}, "endsAt": (now + timedelta(hours=4)).isoformat()}],
    )
    matcher = {"name": "alertname", "value": "other", "isRegex": False, "isEqual": True}
    silence = {
        "matchers": [matcher],
        "startsAt": now.isoformat(),
        "endsAt": (now + timedelta(hours=2)).isoformat(),
    }
    ask("/api/v2/silences", {**silence, "createdBy": "x", "comment": "x"})
    time.sleep(3)
    before, calls = counts(), len(receiver.got)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = start()
    time.sleep(3)
    after = counts()
    process.kill()
    process.wait()
    receiver.server.close()
    rows = {"alerts, silences before": before, "alerts, silences after kill −9": after, "calls": calls}
    show("Alertmanager beside it", rows)


PARTS = {"durable": durable, "punctual": punctual, "alertmanager": alertmanager, "kills": kills}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--kills", type=int, default=200)
    asked = parser.parse_args()
    for name in asked.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](Path(folder), asked.kills)
    return 0


if __name__ == "__main__":
    sys.exit(main())
