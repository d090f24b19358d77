"""Runs that take events, and the daemon that calls about them, are killed again and again while one call in
ten fails; what was promised is counted at the end.

    python -m tests.helpers.alert_lives ROLE BOOK … runs one of the processes
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from cv_pipeline.alerts.incidents import Happening, IncidentBook, take
from cv_pipeline.alerts.outbox_of_alerts import SendSettings
from cv_pipeline.alerts.policy import Subject, read_policy
from cv_pipeline.core.http_server import Answer
from cv_pipeline.edge.forward import InboxServer, Request

ROOT = Path(__file__).resolve().parents[2]
POINTS = {
    "run": [("intake.inserted", 30), ("intake.committed", 30)],
    "daemon": [
        ("ingest.applied", 6),
        ("ingest.committed", 6),
        ("fire.planned", 6),
        ("fire.committed", 6),
        ("notice.sent", 8),
        ("notice.noted", 8),
    ],
}
STEPS = ("0.0", "1.0", "2.0")
COUNTS: Counter[str] = Counter()


def crash_at(name: str) -> None:
    "kill −9 of this process at the n-th time that it comes to the step CRASH_AT names."
    point, _, nth = os.environ.get("CRASH_AT", "").partition(":")
    if name == point:
        COUNTS[name] += 1
        if COUNTS[name] == int(nth):
            os.kill(os.getpid(), signal.SIGKILL)


def policy_for(url: str):
    "Three levels within two seconds, and nothing that gives way."
    levels = [{"after_s": k, "channels": ["desk"]} for k in (0, 1, 2)]
    levels[-1]["repeat_s"] = "never"
    return read_policy(
        {
            "channels": {"desk": {"kind": "webhook", "url": f"{url}/hook", "timeout_s": 5}},
            "levels": levels,
            "late_s": 3600,
        }
    )


def run(path: str, life: str) -> None:
    "Takes events until it is killed; a line in a file after each promise."
    promises = os.open(f"{path}.promised-{life}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    with IncidentBook(path, step=crash_at) as book:
        Path(os.environ["READY"]).touch()
        n = 0
        while True:
            name = f"{life}-{n}"
            take(
                book,
                [
                    Happening(
                        name, Subject("here", f"camera-{life}-{n // 12}", "fence"), "enter", time.time(), n
                    )
                ],
            )
            os.write(promises, f"{name}\n".encode())
            n += 1
            time.sleep(0.02)


def daemon(path: str, url: str) -> None:
    from cv_pipeline.alerts.daemon import AlertDaemon, DaemonSettings

    sending = SendSettings(first_s=0.05, longest_s=0.5, pause_s=0.2)
    with AlertDaemon(
        path, policy_for(url), DaemonSettings(tick_s=0.02, sending=sending), step=crash_at
    ) as made:
        Path(os.environ["READY"]).touch()
        made.run(threading.Event())


class Receiver:
    "Takes calls by their key; one request in ten fails, half of them after the call was taken."

    def __init__(self, seed: int, failing: float = 0.1):
        self._draw, self._failing, self._lock = random.Random(seed), failing, threading.Lock()
        self.keys: Counter[str] = Counter()
        self.requests = self.failed = 0
        self.server = InboxServer(self.answer)

    def answer(self, request: Request) -> Answer:
        key = request.headers["idempotency-key"]
        with self._lock:
            self.requests += 1
            luck = self._draw.random()
            if luck >= self._failing / 2:
                self.keys[key] += 1
            if luck < self._failing:
                self.failed += 1
                return Answer(500, "text/plain", b"")
        assert json.loads(request.body)["key"] == key
        return Answer(204, "text/plain", b"")


class Lives:
    "The processes of a kill loop."

    def __init__(self, folder: Path, seed: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.book, self.draw, self.kills = folder / "book.sqlite", random.Random(seed), Counter()
        self.receiver, self.lives = Receiver(seed), Counter()
        self.running: dict[str, tuple[subprocess.Popen, str, float, Path]] = {}
        self.begun: dict[Path, float] = {}

    def spawn(self, role: str, fated: bool = True) -> None:
        self.lives[role] += 1
        life = self.lives[role]
        ready = self.book.with_name(f"ready-{role}-{life}")
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "READY": str(ready),
        }
        env.pop("CRASH_AT", None)
        fate = "time"
        if fated and self.draw.random() < 0.6:
            fate, most = self.draw.choice(POINTS[role])
            env["CRASH_AT"] = f"{fate}:{self.draw.randint(1, most)}"
        last = str(life) if role == "run" else self.receiver.server.url
        command = [sys.executable, "-m", "tests.helpers.alert_lives", role, str(self.book), last]
        made = subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE)
        self.running[role] = made, fate, self.draw.uniform(0.2, 1.5), ready

    def round(self) -> None:
        "Kill what is due, and start again what is dead."
        for role, (process, fate, seconds, ready) in list(self.running.items()):
            if ready not in self.begun and ready.exists():
                self.begun[ready] = time.monotonic()
            if process.poll() is None:
                begun = self.begun.get(ready)
                if begun is None or time.monotonic() - begun < (seconds if fate == "time" else seconds + 4):
                    continue
                process.kill()
                process.wait()
                self.kills[f"{role}: random moment"] += 1
            elif process.returncode == -signal.SIGKILL:
                self.kills[f"{role}: {fate}"] += 1
            else:
                raise AssertionError(process.stderr.read().decode()[-3000:])
            process.stderr.close()
            self.spawn(role)

    def finish(self, seconds: float) -> None:
        "A daemon without a fate, until everything is called."
        for process, *_ in self.running.values():
            process.kill()
            process.wait()
        self.spawn("daemon", fated=False)
        process, until = self.running["daemon"][0], time.monotonic() + seconds
        with IncidentBook(self.book) as book:
            while time.monotonic() < until:
                assert process.poll() is None, process.stderr.read().decode()[-3000:]
                waiting = book.value("SELECT count(*) FROM events WHERE incident IS NULL")
                waiting += book.value("SELECT count(*) FROM incidents WHERE level IS NULL OR level < 2")
                waiting += book.value("SELECT count(*) FROM notices WHERE state = 'waiting'")
                if not waiting:
                    break
                time.sleep(0.05)
        process.terminate()
        process.wait(60)


def judged(book: IncidentBook, receiver: Receiver) -> dict[str, int]:
    "What is lost, skipped and doubled."
    names = [p.read_text().split("\n")[:-1] for p in book.path.parent.glob("book.sqlite.promised-*")]
    promised = {name for one in names for name in one}
    events = {r["id"]: r["incident"] for r in book.query("SELECT id, incident FROM events")}
    incidents = book.query("SELECT * FROM incidents")
    steps: dict[int, list[str]] = {}
    for row in book.query("SELECT incident, step, state FROM notices ORDER BY id"):
        steps.setdefault(row["incident"], []).append(row["step"])
    planned = {
        f"{r['incident']}.{r['episode']}.{r['step']}-{r['channel']}"
        for r in book.query("SELECT * FROM notices")
    }
    got = {key.partition("-")[2]: n for key, n in receiver.keys.items()}
    return {
        "events promised": len(promised),
        "events lost": len(promised - set(events)),
        "events without an incident": sum(v is None for v in events.values()),
        "events counted wrongly": abs(sum(i["count"] for i in incidents) - len(events)),
        "incidents": len(incidents),
        "incidents doubled": len(incidents) - len({i["key"] for i in incidents}),
        "levels skipped": sum(len(set(STEPS) - set(steps.get(i["id"], ()))) for i in incidents),
        "levels doubled": sum(len(s) - len(set(s)) for s in steps.values()),
        "calls planned": len(planned),
        "calls lost": len(planned - set(got)),
        "calls of nobody": len(set(got) - planned),
        "requests": receiver.requests,
        "requests failed": receiver.failed,
        "repeats with the same key": sum(n - 1 for n in got.values()),
    }


def kill_loop(folder: Path, kills: int, seed: int = 0, seconds: float = 120.0) -> dict[str, int]:
    "At least so many kills, and what came of the events."
    lives, began = Lives(folder, seed), time.monotonic()
    try:
        lives.spawn("run")
        lives.spawn("daemon")
        while sum(lives.kills.values()) < kills:
            assert time.monotonic() < began + 60 + 20 * kills, f"only {lives.kills} in that time"
            lives.round()
            time.sleep(0.01)
        lives.finish(seconds)
        with IncidentBook(lives.book) as book:
            found = judged(book, lives.receiver)
    finally:
        for process, *_ in lives.running.values():
            process.kill()
            process.wait()
        lives.receiver.server.close()
    return {
        **dict(sorted(lives.kills.items())),
        "kills": sum(lives.kills.values()),
        "seconds": round(time.monotonic() - began, 1),
        **found,
    }


if __name__ == "__main__":
    {"run": run, "daemon": daemon}[sys.argv[1]](*sys.argv[2:])
