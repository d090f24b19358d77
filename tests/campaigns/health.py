"""The health port under a crowd of idle connections, broken requests and scrapes: do the frames notice?"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

from cv_pipeline.core.config import load_config
from cv_pipeline.core.types import Detections, FrameResult
from cv_pipeline.service.assembly import run_config
from cv_pipeline.synthetic.line import open_line
from cv_pipeline.video.sinks import VideoSink
from tests.campaigns import Outcome

CROWD = """
import itertools, os, resource, socket, sys, time
from http.client import HTTPConnection
port, idle, rate = map(int, sys.argv[1:])
os.nice(10)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
guests = [socket.create_connection(("127.0.0.1", port)) for _ in range(idle)]
began = time.monotonic()
for k in itertools.count():
    try:
        guests.append(socket.create_connection(("127.0.0.1", port)))  # who was hung up on comes again
        guests.pop(0).close()
        if k % 3 == 0:
            guests[-1].sendall(b"GET /me")
        talk = HTTPConnection("127.0.0.1", port, timeout=10)
        talk.request("GET", ("/metrics", "/healthz", "/readyz")[k % 3])
        answer = talk.getresponse()
        answer.read()
        print(answer.status, flush=True)
        talk.close()
    except OSError as e:
        print(type(e).__name__, flush=True)
    time.sleep(max(0.0, began + k / rate - time.monotonic()))
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=4, help="runs with and without the crowd, in turn")
    parser.add_argument("--seconds", type=int, default=15, help="of each run")
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--rate", type=int, default=50, help="scrapes a second")


def belt_clip(path: Path, seconds: int) -> Path:
    "The synthetic line as a video of 10 frames a second."
    sink = VideoSink(path.parent, fps=10, draw=lambda result, trails: result.frame.image)
    for frame in open_line(f"line:width=320,height=240,frames={seconds * 10}", path.stem):
        sink.write(FrameResult(frame, Detections.empty(), (), {}, True, "ok", ""))
    sink.close()
    return sink.files[0]


def one_run(seconds: int, idle: int, rate: int) -> tuple[float, dict[str, int], int, int]:
    "p95 of a frame in ms, answers of the scrapes by kind, most descriptors, most threads."
    most, crowd = [0, 0], []

    def ready(url: str | None, pipeline: object) -> None:
        if idle and url:
            command = [sys.executable, "-c", CROWD, url.rpartition(":")[2], str(idle), str(rate)]
            crowd.append(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            )

    def tick(pipeline: object) -> None:
        most[:] = max(most[0], len(os.listdir("/proc/self/fd"))), max(most[1], threading.active_count())

    with tempfile.TemporaryDirectory() as out:
        clip = belt_clip(Path(out) / "belt.mp4", seconds)
        cameras = [{"uri": str(clip), "id": f"c{i}", "realtime": True} for i in range(2)]
        settings = {"sources": cameras, "delivery.out": out, "health.port": 0, "model.threads": 1}
        summary = run_config(load_config(None, settings), tick, ready)
    answers: dict[str, int] = {}
    for process in crowd:
        process.kill()
        words = (process.communicate()[0] or "").split()
        while words and words[-1] != "200":
            words.pop()  # the run was over
        for word in words:
            answers[word] = answers.get(word, 0) + 1
    return summary["latency_ms"]["total"]["p95"], answers, *most


def run(options: argparse.Namespace) -> Iterable[Outcome]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    quiet, loud, answers, most = [], [], {}, (0, 0)
    for _ in range(options.rounds):
        quiet.append(one_run(options.seconds, 0, 0)[0])
        p95, found, *seen = one_run(options.seconds, options.idle, options.rate)
        loud.append(p95)
        most = max(most[0], seen[0]), max(most[1], seen[1])
        answers = {word: answers.get(word, 0) + found.get(word, 0) for word in answers | found}
    ratio = sorted(loud)[len(loud) // 2] / sorted(quiet)[len(quiet) // 2]
    good, everything = answers.get("200", 0), sum(answers.values())
    wrong = everything - good
    yield Outcome(
        f"{options.idle:,} idle connections and {options.rate} scrapes a second on the health port",
        everything,
        wrong + (ratio > 1.1),
        f"{good:,} of {everything:,} scrapes answered 200; at most {most[0]} descriptors, {most[1]} threads; "
        f"p95 of a frame {ratio:.2f} × that without the crowd (median of {options.rounds} pairs of runs)",
    )
