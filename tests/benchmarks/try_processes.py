"""Many cameras in one process and in several: speed where the decoder is the limit, and memory a camera.

    python -m tests.benchmarks.try_processes            # both parts, some minutes on two idle cores
    python -m tests.benchmarks.try_processes 20         # memory with 20 cameras instead of 200

Speed: eight files of 1280×720 in H.264, every 500th frame inferred, a thread for each decoder; one
process, then two, three rounds in turn. Memory: file-backed cameras at their own speed, the model asked
once in ten seconds; resident memory of all processes of the run after 40 s, and the same with one camera.
"""

import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import av
import psutil

from cv_pipeline.core.config import load_config
from cv_pipeline.core.files import write_json
from cv_pipeline.service.assembly import run_config
from cv_pipeline.service.processes import ProcessSettings, run_processes
from cv_pipeline.synthetic.line import open_line

FILES, FRAMES = 8, 400


def film(path: Path, seed: int, frames: int, size=(1280, 720)) -> Path:
    "A file of the line."
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"preset": "ultrafast", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        uri = f"line:seed={seed},frames={frames},width={size[0]},height={size[1]}"
        for frame in open_line(uri, "line", False):
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame.image, "bgr24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    return path


def config_of(folder: Path, files, **more):
    sources = [{"uri": str(path), "id": f"camera-{k}"} for k, path in enumerate(files)]
    given = {"sources": sources, "model.threads": 1, "tracker.name": "none", "delivery.out": str(folder)}
    return load_config(None, given | more)


def speed(folder: Path) -> None:
    "Frames a second of one process and of two."
    files = [film(folder / f"{k}.mp4", k, FRAMES) for k in range(FILES)]
    rates = {1: [], 2: []}
    for k in range(3):
        for processes in rates:
            config = config_of(folder / f"out-{processes}-{k}", files, **{"selection.every": 500})
            if processes == 1:
                summary = run_config(config)
            else:
                summary = run_processes(config, str(processes), settings=ProcessSettings(poll_s=0.1))
            rates[processes].append(FILES * FRAMES / summary["seconds"])
    one, two = (statistics.median(rates[n]) for n in rates)
    print(f"decoder is the limit: one process {one:.0f} frames/s, two {two:.0f}: {two / one:.2f} ×")


def resident(folder: Path, path: Path, cameras: int, processes: str) -> float:
    "MiB of all processes of a run after 40 s."
    more = {"selection.max_fps": 0.1}
    config = config_of(folder, [path] * cameras, **more)
    config.sources = [s.model_copy(update={"realtime": True}) for s in config.sources]
    stop, found = time.monotonic() + 3600, []

    def look(group) -> None:
        nonlocal stop
        if all(s.state == "running" for s in group.seats) and not found:
            stop = min(stop, time.monotonic() + 40)
        if time.monotonic() >= stop:
            pids = [s.child.process.pid for s in group.seats if s.child is not None]
            if pids:
                found.append(sum(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20)
            stop = float("inf")
            threading.Thread(target=group.stop, daemon=True).start()

    run_processes(config, processes, look, settings=ProcessSettings(poll_s=0.5))
    return max(found, default=float("nan"))


def main(cameras: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        speed(folder)
        slow = film(folder / "slow.mp4", 3, 1500, (640, 360))
        one = resident(folder / "one", slow, 1, "1")
        many = resident(folder / "many", slow, cameras, "2")
        each = (many - 2 * one) / max(1, cameras - 2)
        print(f"{cameras} cameras in 2 processes: {many:.0f} MiB, one: {one:.0f}; {each:.1f} MiB a camera")
        write_json(
            Path("reports/processes.json"),
            {"cameras": cameras, "mib": many, "one_mib": one, "each_mib": each},
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
