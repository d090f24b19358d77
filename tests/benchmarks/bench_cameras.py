"""Many cameras in one process: latency from capture to delivery, what is dropped, where the time goes, and
whether memory stays flat.

File-backed cameras (five clips of the factory line, 640×480, played at their own speed as if they were
cameras), the bundled model, SORT, Parquet. A camera's picture that is not taken in time is lost and counted.
`--soak SECONDS` runs 16 cameras for so long and prints the memory as it goes.
"""

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import psutil

from cv_pipeline.core.config import RunConfig
from cv_pipeline.service.assembly import run_config
from cv_pipeline.synthetic.line import open_line, write_video

CLIPS = 5


def clips(folder: Path, fps: int, seconds: float) -> list[Path]:
    "Clips of the line at the cameras' frame rate."
    made = []
    for seed in range(CLIPS):
        path = folder / f"clip{seed}.mp4"
        write_video(
            path,
            (f.image for f in open_line(f"line:frames={int(fps * seconds)},seed={seed},fps={fps}", "x")),
            fps=fps,
        )
        made.append(path)
    return made


def fleet(files: list[Path], cameras: int, out: Path, **sections) -> RunConfig:
    sources = [
        {"uri": str(files[i % len(files)]), "id": f"cam{i:02d}", "realtime": True} for i in range(cameras)
    ]
    return RunConfig.model_validate(
        {"sources": sources, "delivery": {"out": str(out), "jsonl": False}, **sections}
    )


def measure(name: str, config: RunConfig) -> dict:
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    summary = run_config(config)
    after, took = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - began
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    late, model = summary["latency_ms"]["end_to_end"], summary["latency_ms"]["inference"]
    return {
        "what": name,
        "cameras": len(config.sources),
        "frames/s in": round(summary["frames_read"] / summary["seconds"], 1),
        "asked/s": round(summary["frames_inferred"] / summary["seconds"], 1),
        "dropped": f"{summary['frames_dropped'] / summary['frames_read']:.1%}",
        **{f"{k} ms": round(v, 1) for k, v in late.items() if v is not None},
        "model ms": round(model["p50"], 1),
        "cores busy": round(cpu / took, 2),
        "failed": sum(s["state"] == "failed" for s in summary["sources"].values()),
    }


def run(quick: bool = False) -> list[dict]:
    seconds, fps, rows = (6, 5, []) if quick else (30, 5, [])
    with tempfile.TemporaryDirectory() as folder:
        files = clips(Path(folder), fps, seconds)
        for cameras in (16, 50) if quick else (10, 20, 30, 40, 50):
            rows.append(
                measure(
                    f"every frame at {fps}/s",
                    fleet(files, cameras, Path(folder) / f"out{cameras}", model={"threads": 1}),
                )
            )
        rows.append(
            measure(
                "every second frame",
                fleet(files, 50, Path(folder) / "every", model={"threads": 1}, selection={"every": 2}),
            )
        )
        rows.append(
            measure(
                "adaptive selection",
                fleet(
                    files, 50, Path(folder) / "adaptive", model={"threads": 1}, selection={"adaptive": True}
                ),
            )
        )
    return rows


def soak(seconds: float) -> None:
    "16 cameras for so long; resident memory every half minute."
    process, seen, began = psutil.Process(), [], []

    def tick(pipeline):
        if not began:
            began.append(time.monotonic())
        at = time.monotonic() - began[0]
        if at >= len(seen) * 30:
            s = pipeline.summary()
            seen.append(process.memory_info().rss / 2**20)
            print(
                f"{at:6.0f} s  {seen[-1]:7.1f} MiB  {s['frames_delivered']:7d} delivered  "
                f"{s['frames_dropped']:6d} dropped  "
                f"{threading_count(process):3d} threads",
                flush=True,
            )

    with tempfile.TemporaryDirectory() as folder:
        files = clips(Path(folder), 5, seconds)
        run_config(fleet(files, 16, Path(folder) / "out", model={"threads": 1}), tick)
    half = seen[len(seen) // 2 :]
    print(f"second half: {min(half):.1f} to {max(half):.1f} MiB")


def threading_count(process: psutil.Process) -> int:
    return process.num_threads()


def main() -> None:
    if "--soak" in sys.argv:
        return soak(float(sys.argv[sys.argv.index("--soak") + 1]))
    print(__doc__, f"{os.cpu_count()} cores", sep="\n")
    rows = run("--quick" in sys.argv)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print(" ".join(f"{c:>20s}" if c == "what" else f"{c:>12s}" for c in columns))
    for row in rows:
        print(
            " ".join(
                f"{str(row.get(c, '–')):>20s}" if c == "what" else f"{str(row.get(c, '–')):>12s}"
                for c in columns
            )
        )


if __name__ == "__main__":
    main()
