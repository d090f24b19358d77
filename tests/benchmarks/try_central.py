"""A centre under the heartbeats of many devices: how long each waits, the page takes, and how much memory.

`python -m tests.benchmarks.try_central [--devices 1000] [--seconds 30] [--every 10]` starts a centre in a
process of its own on the loopback address, enrols the devices, lets each send a heartbeat every so many
seconds over a connection that stays open (as `edge.forward.Link` does), and asks for the page meanwhile.
Nothing is asserted; the target is p99 ≤ 100 ms, a page ≤ 300 ms, ≤ 150 MB with 1,000 devices on one core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from cv_pipeline.edge.central import CentreStore, changing, hashed
from tests.helpers.services import free_port

CENTRE = """
import sys, threading
from pathlib import Path
from cv_pipeline.edge.central import Centre, CentreServer
from cv_pipeline.edge.central_page import FleetPage, fleet_duty, page_routes
sys.setswitchinterval(0.001)  # as `cv-pipeline central serve` does
centre = Centre(Path(sys.argv[1]))
fleet_duty(centre)
with CentreServer(centre, int(sys.argv[2]), more=page_routes(FleetPage(centre))) as server:
    print("ready", flush=True)
    sys.stdin.read()
"""


def body_of(k: int) -> bytes:
    "About what an agent reports."
    beat = {
        "state": "running",
        "reason": "",
        "model": {"name": "line", "version": "1.0", "digest": "a1" * 32},
        "cameras": {"up": 4, "of": 4, "down": []},
        "upkeep": {"camera-1": ["dark"]} if k % 9 == 0 else {},
        "hardware": {"temperature_c": 55.0, "disk_free": 0.4, "memory_free": 0.5, "load": 0.7},
        "outbox": {"waiting": k % 50, "oldest_s": k % 7, "bytes": 400_000, "state": "ok"},
        "at": time.time(),
    }
    return json.dumps(beat).encode()


async def asked(line, head: str, body: bytes) -> float:
    "One request on an open connection; seconds until the whole answer."
    reader, writer = line
    began = time.perf_counter()
    writer.write(f"{head}Host: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    top = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    if " 200 " not in top.splitlines()[0]:
        raise RuntimeError(top.splitlines()[0])
    await reader.readexactly(int(top.split("content-length: ")[1].split("\r\n")[0]))
    return time.perf_counter() - began


async def device(port: int, k: int, token: str, args: argparse.Namespace, waits: list[float]) -> None:
    await asyncio.sleep(args.every * k / args.devices)
    line = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /beat HTTP/1.1\r\nAuthorization: Bearer {token}\r\n"
    until = time.monotonic() + args.seconds
    while time.monotonic() < until:
        began = time.monotonic()
        waits.append(await asked(line, head, body_of(k)))
        await asyncio.sleep(max(0.0, args.every - (time.monotonic() - began)))
    line[1].close()


async def reader(port: int, args: argparse.Namespace, pages: list[float]) -> None:
    line = await asyncio.open_connection("127.0.0.1", port)
    until = time.monotonic() + args.seconds
    while time.monotonic() < until:
        pages.append(await asked(line, "GET /fragment HTTP/1.1\r\n", b""))
        await asyncio.sleep(1.5)
    line[1].close()


def memory_mb(pid: int) -> float:
    "Peak of the resident memory, where the system reports it."
    for row in Path(f"/proc/{pid}/status").read_text().splitlines():
        if row.startswith("VmHWM"):
            return int(row.split()[1]) / 1024
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=10.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokens = [secrets.token_hex(32) for _ in range(args.devices)]
        with closing(CentreStore(folder)) as store, changing(store) as db:
            rows = [(f"box-{k:04d}", hashed(t), f"site {k % 20}") for k, t in enumerate(tokens)]
            db.executemany("INSERT INTO devices VALUES (?, ?, ?, 0, NULL)", rows)
        port = free_port()
        command = [sys.executable, "-c", CENTRE, folder, str(port)]
        centre = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(centre.pid, {0})
            centre.stdout.readline()
            waits, pages = [], []

            async def everything() -> None:
                jobs = [device(port, k, t, args, waits) for k, t in enumerate(tokens)]
                await asyncio.gather(*jobs, reader(port, args, pages))

            began, cpu = time.monotonic(), os.times()
            asyncio.run(everything())
            took, peak = time.monotonic() - began, memory_mb(centre.pid)
        finally:
            centre.stdin.close()
            centre.wait(20)
        used = os.times().children_user + os.times().children_system - cpu.children_user - cpu.children_system
    p = np.percentile(np.array(waits) * 1e3, [50, 95, 99, 100])
    print(f"{args.devices} devices, {len(waits)} heartbeats in {took:.0f} s: {len(waits) / took:.0f}/s")
    print(f"heartbeat: p50 {p[0]:.1f}, p95 {p[1]:.1f}, p99 {p[2]:.1f}, longest {p[3]:.1f} ms")
    page = np.array(pages) * 1e3
    print(f"page of {args.devices} devices: median {np.median(page):.0f}, longest {page.max():.0f} ms")
    print(f"centre: peak {peak:.0f} MB, {used / took:.2f} of a core, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
