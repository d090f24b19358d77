"""Real time: `run` as a process of its own with cameras that play at their own speed, scraped while it runs.
Memory, descriptors, threads and unfinished files must stay flat; what it wrote is read back whole."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av

from cv_pipeline.annotation.collect import read_collected
from cv_pipeline.core.files import write_json
from cv_pipeline.core.results import read_jsonl, read_results, read_table
from cv_pipeline.monitoring.prediction_log import read_log
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.line import VideoFile
from tests.campaigns import Outcome
from tests.helpers.cli import hears_ctrl_c
from tests.helpers.growth import Held, growing, held, slope

ROOT = Path(__file__).parents[2]
RULES = {"zones": [{"name": "belt", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}]}


def long_film(path: Path, camera: int, minutes: float, fps: int) -> Path:
    "A film of the line, drawn for half a minute and repeated without encoding it again."
    short, line = path.with_suffix(".short.mp4"), FactoryLine(LineConfig(cameras=camera + 1, size=(320, 240)))
    film = VideoFile(short, fps)
    for k in range(30 * fps):
        film.add(line.render(k * 25 // fps, camera)[0].image)
    film.close()
    with av.open(str(path), "w") as out:
        with av.open(str(short)) as origin:
            stream = out.add_stream_from_template(origin.streams.video[0])
        for turn in range(max(1, round(minutes * 2))):
            with av.open(str(short)) as origin:
                for packet in origin.demux(video=0):
                    if packet.dts is None:
                        continue
                    shift = round(turn * 30 / packet.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                    out.mux(packet)
    short.unlink()
    return path


def started(folder: Path, films: list[Path], port: int) -> subprocess.Popen:
    "The command, with everything switched on."
    config = {
        "sources": [{"uri": str(film), "realtime": True} for film in films],
        "model": {"threads": 1},
        "delivery": {"out": str(folder / "out"), "video": True},
        "events": RULES,
        "telemetry": {"part_seconds": 10},
        "collect": True,
        "health": {"port": port},
    }
    write_json(folder / "soak.json", config)
    (folder / "soak.yaml").write_text(json.dumps(config))
    main = "from cv_pipeline.commands.main import main; main()"
    command = [sys.executable, "-c", main, "run", "--config", str(folder / "soak.yaml")]
    heard = open(folder / "heard.txt", "wb")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, stdout=heard, stderr=heard, env=env, preexec_fn=hears_ctrl_c)


def scraped(port: int) -> bool:
    "Whether the health endpoints answer."
    try:
        for path in ("healthz", "metrics"):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
                answer.read()
        return True
    except OSError:
        return False


def watched(
    process: subprocess.Popen, out: Path, minutes: float, port: int, every_s: float
) -> tuple[list[Held], int, int]:  # samples, scrapes, scrapes without an answer
    "Sample and scrape until the time is over or the process has ended."
    samples, scrapes, lost = [], 0, 0
    began = time.monotonic()
    while process.poll() is None and (passed := time.monotonic() - began) < minutes * 60:
        try:
            process.wait(every_s)
        except subprocess.TimeoutExpired:
            if (out / "results.jsonl").exists():
                scrapes, lost = scrapes + 1, lost + (not scraped(port))
                samples.append(held(process.pid, passed / 3600, out))
                s = samples[-1]
                print(
                    f"{passed / 60:5.1f} min: {s.rss_mb:6.1f} MB, {s.descriptors} descriptors, "
                    f"{s.threads} threads, {s.files} unfinished files",
                    file=sys.stderr,
                    flush=True,
                )
    return samples, scrapes, lost


def stopped(process: subprocess.Popen) -> tuple[int, float, float]:
    "Exit code, seconds and processor seconds that closing takes after SIGINT."
    proc = Path("/proc", str(process.pid), "stat")
    used = lambda: (
        sum(map(int, proc.read_text().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")
    )
    before, began = used(), time.monotonic()
    process.send_signal(signal.SIGINT)
    last = before
    while process.poll() is None and time.monotonic() - began < 60:
        try:
            last = max(last, used())
        except (OSError, IndexError, ValueError):
            break
        time.sleep(0.02)
    return process.wait(60), time.monotonic() - began, last - before


def read_back(out: Path) -> tuple[list[str], dict[str, Any]]:
    "What is not whole, and the figures."
    summary = json.loads((out / "summary.json").read_text())
    lines = sum(1 for _ in read_jsonl(out))
    log = read_log(out / "log")
    figures = {
        "frames": summary["frames_delivered"],
        "dropped": summary["frames_dropped"],
        "lines": lines,
        "rows": len(read_results(out)),
        "events": len(read_table(out, "events")),
        "log": len(log),
        "pictures": len(read_collected(out / "collected")),
    }
    wrong = {
        "lines": lines != summary["frames_delivered"],
        "rows": figures["rows"] != summary["detections"],
        "events": figures["events"] != summary["sinks"]["events"]["events"],
        "error": bool(summary["error"]),
        "log": figures["log"] != summary["sinks"]["telemetry"]["frames"],
    }
    return [name for name, bad in wrong.items() if bad], figures


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=60, help="of real time")
    parser.add_argument("--cameras", type=int, default=3)
    parser.add_argument("--fps", type=int, default=5)
    parser.add_argument("--port", type=int, default=18743)


def run(options: argparse.Namespace) -> Iterable[Outcome]:
    with tempfile.TemporaryDirectory() as where:
        folder, out = Path(where), Path(where) / "out"
        films = [
            long_film(folder / f"camera {k}.mp4", k, options.minutes + 5, options.fps)
            for k in range(options.cameras)
        ]
        process = started(folder, films, options.port)
        try:
            every_s = min(15.0, options.minutes * 60 / 20)
            samples, scrapes, lost = watched(process, out, options.minutes, options.port, every_s)
            code, seconds, cpu = (
                stopped(process) if process.poll() is None else (process.returncode, 0.0, 0.0)
            )
        finally:
            process.kill()
        heard = (folder / "heard.txt").read_text(errors="replace")
        if not (out / "summary.json").exists():
            yield Outcome("it runs to its end", 1, 1, f"exit code {code}: {heard[-500:]}")
            return
        after = samples[len(samples) // 6 :]  # the beginning is warming up
        limits = {"rss_mb": 30.0, "descriptors": 4, "threads": 2, "files": 128 + 128 * options.cameras}
        for name, more in limits.items() if after else ():
            values = [getattr(sample, name) for sample in after]
            seen = f"{values[0]:.4g} after warming up, {max(values):.4g} at most, trend {slope(values):+.3g}"
            yield Outcome(
                f"{name}: flat over {options.minutes:g} minutes",
                len(values),
                int(growing(values, more)),
                seen,
            )
        yield Outcome("/healthz and /metrics answer", scrapes, lost, f"{scrapes} scrapes")
        clean = code in (0, 130, 143) and "Traceback" not in heard
        seen = f"exit code {code}, {seconds:.1f} s, {cpu:.2f} CPU s"
        yield Outcome("stopped by SIGINT within 5 s", 1, int(not clean or seconds > 5), seen)
        wrong, figures = read_back(out)
        seen = ", ".join(f"{n:,} {name}" for name, n in figures.items())
        yield Outcome("read back whole", 5, len(wrong), "; ".join([seen, *wrong]))
