"""What an outbox costs and what it keeps: rows a second that the disk has, the time of the thread that
delivers frames, the drain of a backlog, the first batch after an outage, kills and power cuts.

    python -m tests.benchmarks.try_outbox                # everything, into outbox_study.json: ten minutes
    python -m tests.benchmarks.try_outbox speed drain    # parts of it; the others stay as they are
    unshare -n -m python -m tests.benchmarks.try_outbox cable   # as root: a cable is pulled

Speeds are seconds of the processor of this process and by the wall, each the median of five runs.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

from cv_pipeline.core.stamp import stamp
from cv_pipeline.edge.forward import (
    Forwarder,
    ForwardSettings,
    Inbox,
    InboxServer,
    Link,
    LinkSettings,
    answer_device,
)
from cv_pipeline.edge.outbox import Outbox, OutboxSettings, outbox_status
from tests.helpers.cut_link import CutLink
from tests.helpers.cut_processes import PowerCuts
from tests.helpers.kill_loop import kill_loop
from tests.helpers.services import free_port

TABLE = Path(__file__).with_name("outbox_study.json")
BODY = {  # 857 bytes as JSON: a frame with six boxes
    "source_id": "gate",
    "detections": [
        {"class_id": k % 3, "confidence": 0.91, "xyxy": [12.5 * k, 40.25, 80.5, 99.75]} for k in range(6)
    ],
    "text": "x" * 400,
}
SETTINGS = OutboxSettings(ballast_bytes=0)


def fresh() -> Path:
    return Path(tempfile.mkdtemp(prefix="outbox-"))


def fsync_ms(n: int = 100) -> float:
    "The median of an fsync after 4 kB on this disk, ms."
    took = []
    with open(fresh() / "probe", "wb", buffering=0) as file:
        for _ in range(n):
            file.write(bytes(4096))
            began = time.perf_counter()
            os.fsync(file.fileno())
            took.append((time.perf_counter() - began) * 1e3)
    return statistics.median(took)


def rows_a_second(by: int, durable: bool, rows: int) -> dict:
    "Rows a second that `write` returned for."
    walls, cpus = [], []
    for _ in range(5):
        with Outbox(fresh(), SETTINGS) as box:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(rows // by):
                box.write([("result", BODY)] * by, durable=durable)
            walls.append(rows / (time.perf_counter() - wall))
            cpus.append(rows / (time.process_time() - cpu))
    wall, cpu = round(statistics.median(walls)), round(statistics.median(cpus))
    return {"by": by, "on the disk": durable, "rows/s by the wall": wall, "rows/s of processor": cpu}


def delivering(made: bool, seconds: float = 20.0, a_second: int = 80) -> dict:
    "What `put` takes of the thread that delivers frames: sixteen cameras at five frames a second."
    body = BODY if made else lambda: BODY
    took, cpus = [], []
    with Outbox(fresh(), SETTINGS) as box:
        for _ in range(int(seconds * a_second)):
            began, cpu = time.perf_counter(), time.thread_time()
            box.put("result", body)
            cpus.append((time.thread_time() - cpu) * 1e3)
            took.append((time.perf_counter() - began) * 1e3)
            time.sleep(1 / a_second)
    at = lambda values, q: round(sorted(values)[int(q * (len(values) - 1))], 4)
    found = {
        "body": "mapping" if made else "function",
        "rows": len(took),
        "processor, median ms": at(cpus, 0.5),
        "processor, mean ms": round(sum(cpus) / len(cpus), 4),
    }
    return {
        **found,
        "wall, median ms": at(took, 0.5),
        "wall, 99 % ms": at(took, 0.99),
        "wall, most ms": at(took, 1),
    }


def part_speed() -> dict:
    kinds = [(1, True, 300), (100, True, 5000), (1000, True, 20000), (1, False, 3000), (100, False, 10000)]
    return {
        "bytes of a row": len(json.dumps(BODY, separators=(",", ":"))),
        "fsync, median ms": round(fsync_ms(), 2),
        "rows": [rows_a_second(*kind) for kind in kinds],
        "delivering": [delivering(made=False), delivering(made=True)],
    }


def centre_process(folder: Path, port: int) -> subprocess.Popen:
    made = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.kill_loop", "receiver", str(folder), str(port)]
    )
    link = Link(LinkSettings(f"http://127.0.0.1:{port}"))
    while not link.reachable():
        time.sleep(0.05)
    return made


def part_drain(rows: int = 100_000) -> dict:
    "A backlog goes to a centre in another process, on this machine."
    home, port, before = fresh(), free_port(), resource.getrusage(resource.RUSAGE_CHILDREN)
    centre = centre_process(home / "centre", port)
    try:
        with Outbox(home / "box", SETTINGS) as box:
            for _ in range(rows // 1000):
                box.write([("result", BODY)] * 1000)
            full = outbox_status(box)
            sender = Forwarder(
                box, Link(LinkSettings(f"http://127.0.0.1:{port}")), lambda: "box-1", ForwardSettings("box-1")
            )
            wall, cpu = time.perf_counter(), time.process_time()
            while sender.step() != float("inf"):
                pass
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            left = outbox_status(box)
            size = box.path.stat().st_size
        with_rows = Inbox(home / "centre").query("SELECT count(*) AS n FROM rows")[0]["n"]
    finally:
        centre.kill()
        centre.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    theirs = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return {
        "rows": rows,
        "at the centre": with_rows,
        "seconds": round(wall, 1),
        "rows/s by the wall": round(rows / wall),
        "rows/s of the device's processor": round(rows / cpu),
        "rows/s of the centre's processor": round(rows / theirs),
        "batches": sender.status.batches,
        "file before, MB": round(full.bytes / 1e6, 1),
        "file after, MB": round(size / 1e6, 1),
        "left": left.waiting,
    }


def waits_after(devices: int, down, up, url: str, outage_s: float) -> list[float]:
    "Seconds from the end of an outage to the first batch, of each device."
    boxes, senders, first = [], [], {}
    for k in range(devices):
        box = Outbox(fresh(), SETTINGS)
        settings = ForwardSettings("box-1", lane=f"lane-{k}")
        sender = Forwarder(box, Link(LinkSettings(url, insecure=True)), lambda: "box-1", settings)
        sender.listen = lambda answer, k=k: first.setdefault(k, time.perf_counter())
        boxes.append(box)
        senders.append(sender.start())
    for box in boxes:
        box.put("event", {"n": 0})
    while len(first) < devices:
        time.sleep(0.05)
    down()
    end = time.perf_counter() + outage_s
    while time.perf_counter() < end:
        for box in boxes:
            box.put("result", BODY)
        time.sleep(0.25)
    first.clear()
    up()
    back = time.perf_counter()
    while len(first) < devices and time.perf_counter() < back + 120:
        time.sleep(0.02)
    for sender, box in zip(senders, boxes):
        sender.close()
        box.close()
    return sorted(round(t - back, 2) for t in first.values())


def summary_of(waits: list[float], devices: int, outage_s: float) -> dict:
    median = round(statistics.median(waits), 2) if waits else None
    return {
        "devices": devices,
        "outage, s": outage_s,
        "median, s": median,
        "most, s": max(waits, default=None),
        "never": devices - len(waits),
    }


def part_link(devices: int = 8, outage_s: float = 90.0) -> dict:
    "Three ways in which a link is away; the settings are the defaults."
    found = {}
    for how in ("refused", "closed at once"):
        inbox = Inbox(fresh())
        with InboxServer(partial(answer_device, inbox, lambda token: token)) as server:
            link = CutLink(int(server.url.rpartition(":")[2]))
            down = link.refuse if how == "refused" else link.cut
            found[how] = summary_of(
                waits_after(devices, down, link.heal, link.url, outage_s), devices, outage_s
            )
            link.close()
    return found


def part_cable(devices: int = 8, outage_s: float = 90.0) -> dict:
    "Two networks on this machine, and the cable between them is pulled: packets vanish."
    sh = lambda *commands: [subprocess.run(c.split(), check=True) for c in commands]
    sh("mount -t tmpfs t /run", "mkdir -p /run/netns", "ip netns add hall", "ip link set lo up")
    sh("ip link add va type veth peer name vb", "ip link set vb netns hall", "ip link set va up")
    sh("ip addr add 10.9.0.1/24 dev va", "ip netns exec hall ip addr add 10.9.0.2/24 dev vb")
    sh("ip netns exec hall ip link set vb up")
    home = fresh()
    made = subprocess.Popen(
        [
            "ip",
            "netns",
            "exec",
            "hall",
            sys.executable,
            "-m",
            "tests.benchmarks.try_outbox",
            "--serve",
            str(home),
        ]
    )
    try:
        link = Link(LinkSettings("http://10.9.0.2:8080", insecure=True))
        while not link.reachable():
            time.sleep(0.1)
        pull = partial(sh, "ip netns exec hall ip link set vb down")
        plug = partial(sh, "ip netns exec hall ip link set vb up")
        waits = waits_after(devices, pull, plug, link.settings.url, outage_s)
    finally:
        made.kill()
    return summary_of(waits, devices, outage_s)


def serve(folder: str) -> None:
    from cv_pipeline.core.http_server import Guard

    inbox = Inbox(folder)
    InboxServer(partial(answer_device, inbox, lambda token: token), 8080, "10.9.0.2", Guard(insecure=True))
    threading.Event().wait()


def part_kills(kills: int = 220) -> dict:
    return kill_loop(fresh(), kills, devices=3, seed=2026)


def part_power(cuts: int = 20) -> dict:
    return {
        "fsync before offering": PowerCuts(fresh(), 2026).run(cuts),
        "naive: offered without": PowerCuts(fresh(), 2026, naive=True).run(cuts),
    }


PARTS = {
    "speed": part_speed,
    "drain": part_drain,
    "link": part_link,
    "cable": part_cable,
    "kills": part_kills,
    "power": part_power,
}


def main(names: list[str]) -> None:
    if names[:1] == ["--serve"]:
        return serve(names[1])
    for name in names or [n for n in PARTS if n != "cable"]:
        began = time.monotonic()
        part = PARTS[name]()
        print(name, round(time.monotonic() - began), "s", json.dumps(part, indent=1), flush=True)
        found = json.loads(TABLE.read_text()) if TABLE.exists() else {}  # other parts may be under way
        found[name] = part
        found["made"] = time.strftime("%Y-%m-%d", time.gmtime())
        found["stamp"] = stamp()
        TABLE.write_text(json.dumps(found, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
