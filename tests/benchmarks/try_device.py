"""What an update of a device survives, and how long a bad one lasts: SIGKILL at every step with four kinds of
bundles, the time from a failed check to the previous model, and the memory of the agent.

    python -m tests.benchmarks.try_device            # everything, into device_study.json: three minutes
    python -m tests.benchmarks.try_device kills      # a part of it: kills, rollback, memory

Times are by the wall, of one run each, on whatever else the machine does.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from cv_pipeline.core.stamp import stamp
from cv_pipeline.edge.agent import Agent, AgentSettings
from cv_pipeline.edge.box import DeviceConfig, launch_run
from cv_pipeline.edge.slots import Slots, check_version, install_version, read_state, resolve_current
from cv_pipeline.inference.manifest import find_model
from cv_pipeline.release.bundles import make_bundle
from tests.helpers.cli import CLI
from tests.helpers.device_lives import KINDS, killed_lives
from tests.helpers.device_player import mood_bundle, player_launcher, write_player
from tests.helpers.waiting import until

TABLE = Path(__file__).with_name("device_study.json")


def device_with(folder: Path, bundle: Path, digest: str) -> Path:
    "A device with one good model."
    install_version(folder, bundle, digest)
    with Slots(folder) as slots:
        slots.begin(digest)
        slots.commit()
    return folder


def kills(root: Path) -> list[dict]:
    "SIGKILL at every step of an update, and once not at all."
    old, new = mood_bundle(root, "1.0"), mood_bundle(root, "1.1")
    data = bytearray(new[0].read_bytes())
    data[-1100] ^= 1
    (root / "damaged.bundle").write_bytes(data)
    first, rows = device_with(root / "first", *old), []
    for kind in KINDS:
        bundle = root / "damaged.bundle" if kind == "damaged" else new[0]
        ends, most, unwhole, differ, stop_at, steps = Counter(), 0, 0, 0, 0, 1
        while stop_at <= steps:
            folder = root / f"{kind} {stop_at}"
            shutil.copytree(first, folder, symlinks=True)
            starts, _, made = killed_lives(folder, bundle, new[1], kind, stop_at)
            steps = made if stop_at == 0 else steps
            place, state = resolve_current(folder), read_state(folder)
            try:
                check_version(place)
            except Exception:
                unwhole += 1
            differ += place is None or place.name != state.current[:12]
            ends["new" if state.current == new[1] else "old"] += 1
            most = max(most, starts[new[1][:12]]) if kind != "good" else 0
            stop_at += 1
            shutil.rmtree(folder)
        row = {"bundle": kind, "points": steps + 1, "new": ends["new"], "old": ends["old"]}
        rows.append(row | {"starts of a bad one": most, "not whole": unwhole, "link differs": differ})
    return rows


def judged(agent: Agent, digest: str) -> dict:
    "Seconds from a switch to the end of a trial, and from there to the previous model that delivers."
    began = time.monotonic()
    agent.switch(digest)

    def look(happened):
        agent.step()
        return happened()

    until(lambda: look(lambda: not agent.slots.state.trying), 300)
    failed = time.monotonic()
    until(lambda: look(lambda: agent.status.state == "running"), 300)
    why = agent.slots.state.blocked.get(digest, "")
    return {
        "judged after s": round(failed - began, 2),
        "back after s": round(time.monotonic() - failed, 2),
        "why": why,
    }


def rollback(root: Path) -> list[dict]:
    "Played runs of each mood, and the real one with a file that cannot be loaded."
    rows = []
    quick = AgentSettings(probation_s=1, ready_s=5, unready_s=1, watchdog_s=3, poll_s=0.1)
    with Slots(device_with(root / "played", *mood_bundle(root, "1.0"))) as slots:
        agent = Agent(slots, player_launcher(root), None, quick)
        for k, mood in enumerate(("crashes", "exit 4", "sick", "hangs", "stuck")):
            bundle, digest = mood_bundle(root, f"2.{k}", mood)
            install_version(slots.folder, bundle, digest)
            rows.append({"run": "played", "fault": mood, **judged(agent, digest)})
        agent.stop()
    bundles = {}
    for version in ("1.0", "1.1"):
        place = root / "real" / version
        shutil.copytree(find_model("factory_line"), place)
        book = json.loads((place / "manifest.json").read_text()) | {"name": "line", "version": version}
        if version == "1.1":
            book.pop("sha256", None)
            (place / "model.onnx").write_bytes(b"this opens nowhere")
        (place / "manifest.json").write_text(json.dumps(book))
        path = root / f"real-{version}.bundle"
        bundles[version] = path, make_bundle(place, path).index.digest
    (root / "line.yaml").write_text(
        f"sources: ['line:']\ndelivery: {{out: '{root / 'out'}', jsonl: false}}\n"
    )
    config = DeviceConfig("box-1", root / "line.yaml", "line", root / "device")
    with Slots(device_with(root / "device" / "models" / "line", *bundles["1.0"])) as slots:
        agent = Agent(slots, lambda place: launch_run(config, place), None, quick)
        install_version(slots.folder, *bundles["1.1"])
        rows.append({"run": "real", "fault": "cannot be loaded", **judged(agent, bundles["1.1"][1])})
        agent.stop()
    return rows


def memory(root: Path) -> list[dict]:
    "MB of the process of `cv-pipeline device run`, with a played run."
    (root / "line.yaml").write_text("sources: ['line:']\n")
    text = "device: box-1\nrun: line.yaml\nmodel: line\nfirst_model: factory_line\nbeat_s: 0.1\n"
    text += f"centre: {{url: 'http://127.0.0.1:9'}}\nprogram: {write_player(root)}\nagent: {{poll_s: 0.05}}\n"
    (root / "device.yaml").write_text(text)
    agent = subprocess.Popen([CLI, "device", "run", "--config", str(root / "device.yaml")])
    until(lambda: (root / "device" / "beat.json").exists(), 60, agent)
    until(lambda: "running" in (root / "device" / "beat.json").read_text(), 60, agent)
    status = Path(f"/proc/{agent.pid}/status").read_text()
    agent.send_signal(signal.SIGTERM)
    agent.wait(60)
    figure = lambda name: round(int(status.partition(f"{name}:")[2].split()[0]) / 1024, 1)
    return [{"resident MB": figure("VmRSS"), "peak MB": figure("VmHWM"), "limit MB": 60}]


PARTS = {"kills": kills, "rollback": rollback, "memory": memory}


def main(parts: list[str]) -> None:
    found = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    for name in parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="device-") as folder:
            found[name] = PARTS[name](Path(folder))
        for row in found[name]:
            print(name, row)
    found["stamp"] = stamp()
    TABLE.write_text(json.dumps(found, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
