"""Devices, senders and the centre are killed again and again while rows are under way; what `write` returned
for is counted at the end.

    python -m tests.helpers.kill_loop ROLE FOLDER … runs one of the processes
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path

from cv_pipeline.edge import outbox
from cv_pipeline.edge.forward import (
    Forwarder,
    ForwardSettings,
    Inbox,
    InboxServer,
    Link,
    LinkSettings,
    answer_device,
)
from cv_pipeline.edge.outbox import Outbox, OutboxSettings
from tests.helpers.cut_link import CutLink
from tests.helpers.services import free_port

ROOT = Path(__file__).resolve().parents[2]
POINTS = {  # role → steps, and how often a process comes to each of them before it is killed, at most
    "device": [
        ("outbox.inserted", 20),
        ("outbox.committed", 20),
        ("outbox.offered", 5),
        ("outbox.deleted", 4),
        ("forward.before", 5),
        ("forward.after", 4),
    ],
    "sender": [("outbox.deleted", 1), ("forward.before", 2), ("forward.after", 2)],
    "receiver": [("inbox.inserted", 12), ("inbox.committed", 12)],
}


def crash_at(name: str) -> None:
    "kill −9 of this process at the n-th time that it comes to the step CRASH_AT names: `outbox.committed:7`."
    point, _, nth = os.environ.get("CRASH_AT", "").partition(":")
    if name == point:
        COUNTS[name] += 1
        if COUNTS[name] == int(nth):
            os.kill(os.getpid(), signal.SIGKILL)


COUNTS: Counter[str] = Counter()


def ready() -> None:
    "Tell the loop that the work begins now: a busy machine takes seconds to start a process."
    if path := os.environ.get("READY"):
        Path(path).touch()


def receiver(folder: str, port: str) -> None:
    inbox = Inbox(folder, step=crash_at)
    with InboxServer(partial(answer_device, inbox, lambda token: token), int(port)):
        ready()
        signal.pause()


def sender_of(box: Outbox, name: str, url: str) -> Forwarder:
    settings = ForwardSettings(name, gather_s=0.02, first_s=0.02, longest_s=0.3, probe_s=0.1)
    return Forwarder(box, Link(LinkSettings(url, read_s=5)), lambda: name, settings)


def device(folder: str, name: str, url: str, life: str, seed: str) -> None:
    "Writes and sends until it is killed; a line in a file after each promise."
    draw = random.Random(int(seed))
    promises = os.open(
        Path(folder).parent / f"promised-{name}-{life}", os.O_CREAT | os.O_WRONLY | os.O_APPEND
    )
    if os.environ.get("NAIVE"):  # offer without waiting for the disk
        outbox._offering = offering_without_sync
    box = Outbox(folder, OutboxSettings(ballast_bytes=0), step=crash_at)
    sender = sender_of(box, name, url).start()
    ready()
    row = lambda stream, n: {"life": life, "stream": stream, "n": n}
    written, put, alarms, synced = count(), count(), count(), count()
    while sender:
        rows = [("result", row("write", next(written))) for _ in range(draw.randint(1, 30))]
        box.write(rows)
        os.write(promises, b"write %d\n" % rows[-1][1]["n"])
        for _ in range(draw.randint(0, 3)):
            n = next(put)
            box.put("event", row("put", n))
            os.write(promises, b"put %d\n" % n)
        if draw.random() < 0.1:
            rows = [("result", row("durable", next(synced))) for _ in range(draw.randint(1, 30))]
            box.write(rows, durable=True)
            os.write(promises, b"durable %d\n" % rows[-1][1]["n"])
        if draw.random() < 0.1:
            n = next(alarms)
            box.put("alarm", row("alarm", n))
            os.write(promises, b"alarm %d\n" % n)
        time.sleep(0.004)


def offering_without_sync(box: Outbox, last: int) -> None:
    "What the outbox must not do."
    with outbox.transaction(box._db, durable=False):
        outbox._set_facts(box._db, offered=last)


def sender(folder: str, name: str, url: str) -> None:
    "Sends what is there, and ends."
    with Outbox(folder, OutboxSettings(ballast_bytes=0), step=crash_at) as box:
        f = sender_of(box, name, url)
        ready()
        while (delay := f.step()) != float("inf"):
            time.sleep(delay)


class Loop:
    "The processes of a kill loop."

    def __init__(self, folder: Path, seed: int, devices: int, cut: float):
        self.folder, self.draw, self.kills = folder, random.Random(seed), Counter()
        self.port = free_port()
        self.link = CutLink(self.port, cut, seed)
        self.names = [f"box-{k + 1}" for k in range(devices)]
        self.lives: Counter[str] = Counter()
        self.running: dict[str, tuple[subprocess.Popen, str, str, float, Path]] = {}
        self.begun: dict[Path, float] = {}  # when a process was ready

    def spawn(self, who: str, role: str, fated: bool = True) -> subprocess.Popen:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        env.pop("CRASH_AT", None)
        fate = "time"
        if fated and self.draw.random() < 0.75:
            fate, most = self.draw.choice(POINTS[role])
            env["CRASH_AT"] = f"{fate}:{self.draw.randint(1, most)}"
        self.lives[who] += 1
        life, seed = str(self.lives[who]), str(self.draw.randrange(1 << 30))
        args = {
            "receiver": [str(self.folder / "centre"), str(self.port)],
            "device": [str(self.folder / who), who, self.link.url, life, seed],
            "sender": [str(self.folder / who), who, self.link.url],
        }[role]
        command = [sys.executable, "-m", "tests.helpers.kill_loop", role, *args]
        path = self.folder / f"ready-{who}-{life}"
        made = subprocess.Popen(command, env={**env, "READY": str(path)}, cwd=ROOT, stderr=subprocess.PIPE)
        seconds = 4.0 if fate != "time" else self.draw.uniform(0.1, 1.0)
        self.running[who] = made, role, fate, seconds, path
        return made

    def due(self, seconds: float, path: Path) -> bool:
        "Whether a process has worked for as long as it may."
        if path not in self.begun and path.exists():
            self.begun[path] = time.monotonic()
        return path in self.begun and time.monotonic() - self.begun[path] > seconds

    def next_role(self, who: str) -> str:
        return "receiver" if who == "centre" else "sender" if self.draw.random() < 0.3 else "device"

    def kill(self, who: str, what: str) -> None:
        process, role, *_ = self.running[who]
        process.kill()
        process.wait()
        self.kills.update([f"{role}: {what}"])

    def round(self) -> None:
        "Kill what is due, and start again what is dead."
        for who, (_, _, _, seconds, path) in list(self.running.items()):
            process, role, fate, *_ = self.running[who]  # not the one that was killed together with another
            if process.poll() is None and (path != self.running[who][4] or not self.due(seconds, path)):
                continue
            if process.poll() is None:
                self.kill(who, "random moment")
                if self.draw.random() < 0.15 and who != "centre" and self.running["centre"][0].poll() is None:
                    self.kill("centre", "together with a device")
                    self.spawn("centre", "receiver")
            elif process.returncode == -signal.SIGKILL:
                self.kills.update([f"{role}: {fate}"])
            elif process.returncode:
                raise AssertionError(process.stderr.read().decode()[-3000:])
            self.spawn(who, self.next_role(who))

    def finish(self) -> None:
        "The centre without a fate, and a sender for each device until nothing waits."
        for process, *_ in self.running.values():
            process.kill()
            process.wait()
        self.spawn("centre", "receiver", fated=False)
        for name in self.names:
            done = self.spawn(name, "sender", fated=False)
            assert done.wait(120) == 0, done.stderr.read().decode()[-3000:]
        self.running["centre"][0].kill()
        self.running["centre"][0].wait()
        self.link.close()


def judged(folder: Path, names: list[str]) -> dict[str, int]:
    "What is missing, twice and out of order at the centre, for what was promised."
    with closing(Inbox(folder / "centre")) as inbox:
        rows = inbox.query(
            "SELECT device, spools.id AS spool, seq, body FROM rows JOIN spools ON rows.spool = spools.id "
            "WHERE kind != 'dropped' ORDER BY rows.id"
        )
        findings = inbox.query("SELECT * FROM findings")
    arrived: dict[tuple, list[int]] = {}
    numbers: dict[int, list[int]] = {}
    for r in rows:
        numbers.setdefault(r["spool"], []).append(r["seq"])
        body = json.loads(r["body"])
        arrived.setdefault((r["device"], body["life"], body["stream"]), []).append(body["n"])
    promised: dict[tuple, int] = {}
    for name in names:
        for path in folder.glob(f"promised-{name}-*"):
            for line in path.read_bytes().split(b"\n")[:-1]:
                stream, n = line.decode().split()
                promised[name, path.name.rpartition("-")[2], stream] = int(n)
    kept = {k: set(v) for k, v in arrived.items()}
    lost = Counter({s: 0 for s in ("write", "alarm", "durable", "put")})
    worst_put = 0
    for (name, life, stream), last in promised.items():
        missing = last + 1 - len([n for n in kept.get((name, life, stream), ()) if n <= last])
        lost[stream] += missing
        worst_put = max(worst_put, missing if stream == "put" else 0)
    return {
        "rows": len(rows),
        "promised": sum(n + 1 for (_, _, s), n in promised.items() if s not in ("put", "write")),
        "written": sum(n + 1 for (_, _, s), n in promised.items() if s == "write"),
        "lost": lost["alarm"] + lost["durable"],
        "written and lost": lost["write"],
        "twice": sum(len(v) - len(set(v)) for v in arrived.values()),
        "out of order": sum(a >= b for v in [*arrived.values(), *numbers.values()] for a, b in zip(v, v[1:])),
        "holes": sum(max(v) + 1 - len(set(v)) for v in arrived.values()),
        "put and not committed": lost["put"],
        "most of one kill": worst_put,
        "findings": len(findings),
    }


def kill_loop(
    folder: Path, kills: int, devices: int = 2, cut: float = 0.3, seed: int = 0, cuts: int = 0
) -> dict:
    "At least so many kills, and exchanges that were cut, and what came of the rows."
    folder.mkdir(parents=True, exist_ok=True)
    loop, began = Loop(folder, seed, devices, cut), time.monotonic()
    try:
        loop.spawn("centre", "receiver")
        for name in loop.names:
            loop.spawn(name, "device")
        while sum(loop.kills.values()) < kills or loop.link.tally["cut"] < cuts:
            loop.round()
            time.sleep(0.01)
        loop.finish()
    finally:
        for process, *_ in loop.running.values():
            process.kill()
            process.wait()
    found = judged(folder, loop.names)
    exchanges = loop.link.tally
    return {
        "kills": dict(sorted(loop.kills.items())),
        "kills in all": sum(loop.kills.values()),
        "seconds": round(time.monotonic() - began, 1),
        "exchanges": exchanges["cut"] + exchanges["whole"],
        "cut": {mode: exchanges[mode] for mode in ("before", "after", "half")},
        **found,
    }


if __name__ == "__main__":
    {"receiver": receiver, "device": device, "sender": sender}[sys.argv[1]](*sys.argv[2:])
