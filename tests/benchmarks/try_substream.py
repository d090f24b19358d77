"""One stream a camera and two: processor time a second of video, events, and what is kept.

Each film is written twice, as a main stream (1920×1080) and as a small one (640×360), H.264, a key frame
every two seconds. `line`: the factory line, every frame and with adaptive selection. `person`: the real clip
of people, scaled, with YOLOv8n. A run is a process of its own; its processor time is user + system of the
whole process from the first frame to the last, the model's included. Both runs watch the same line across
the middle, collect a fiftieth of the frames at random, and copy a clip of every event. `decode only` is the
same without a model, tracker and sinks.

python -m tests.benchmarks.try_substream [--seconds 40] [--cases line,line-adaptive,person-adaptive]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np

from cv_pipeline.core.config import RunConfig
from cv_pipeline.core.images import read_image
from cv_pipeline.service.assembly import build_pipeline, open_configured, run_config
from cv_pipeline.synthetic.line import open_line
from cv_pipeline.video.decoding import decode_video

MAIN, SMALL = (1920, 1080), (640, 360)
REAL = Path(os.environ.get("CV_PIPELINE_REAL_DATA", "data"))
OFF = "a measurement without people to protect"


def write(paths: dict[Path, tuple[int, int]], images: Iterable[np.ndarray], rate: int) -> None:
    "The same pictures as films of different sizes."
    files = {path: av.open(str(path), "w") for path in paths}
    streams = {}
    for path, (w, h) in paths.items():
        options = {"g": str(2 * rate), "preset": "superfast", "threads": "1", "tune": "zerolatency"}
        streams[path] = files[path].add_stream("libx264", rate=rate, options=options)
        streams[path].width, streams[path].height, streams[path].pix_fmt = w, h, "yuv420p"
    for image in images:
        for path, size in paths.items():
            picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            files[path].mux(streams[path].encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
    for path, file in files.items():
        file.mux(streams[path].encode(None))
        file.close()


def pictures(what: str, seconds: float) -> tuple[Iterator[np.ndarray], int]:
    "Frames of a scene, and their rate."
    if what == "line":
        source = open_line(f"line:frames={int(15 * seconds)},seed=3,fps=15,width=1280,height=720")
        return (frame.image for frame in source), 15
    clip = decode_video(REAL / "videos/one-by-one-person-detection.mp4", threads=1)
    return (p.image for p in clip if (p.pts or 0) < seconds), 10


def config(case: str, main: str, small: str | None, out: str) -> RunConfig:
    "A run of a case: on the main stream alone, or on both."
    source = {"uri": main, "id": "camera", "hardware": "none", **({"substream": small} if small else {})}
    model = {} if case.startswith("line") else {"path": str(REAL / "models/yolov8n_fp32_reconstructed.onnx")}
    return RunConfig.model_validate(
        {
            "sources": [source],
            "model": {**model, "threads": 1},
            "postprocess": {} if case.startswith("line") else {"classes": [0], "conf": 0.35},
            "selection": {"adaptive": {}} if case.endswith("adaptive") else {},
            "privacy": {"off": OFF},
            "events": {"lines": [{"name": "middle", "start": [0.5, 1], "end": [0.5, 0]}]},
            "collect": {
                "random": 0.02,
                "low": None,
                "high": None,
                "none": None,
                "many": None,
                "flicker": False,
            },
            "delivery": {"out": out, "parquet": False, "clips": {"pre_s": 2, "post_s": 2}},
        }
    )


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def one(case: str, main: str, small: str, out: str) -> dict:
    "A run in this process, and what it took."
    given = config(case, main, small or None, out)
    if case == "decode only":
        began = cpu()
        (source,) = open_configured(given.sources)
        read = getattr(getattr(source, "main", None), "ring", None)
        for frame in source:
            if read is not None:
                read.read_to(frame.pts or 0.0)  # a camera's packets come whether anybody asks or not
        return {"cpu": cpu() - began}
    build_pipeline(given).close()  # imports and the model's file are in memory
    began = cpu()
    summary = run_config(given)
    spent, told = cpu() - began, summary["sources"]["camera"]
    rows = [json.loads(t) for t in (Path(out) / "collected/collected.jsonl").read_text().splitlines()]
    sizes = deque((read_image(Path(out) / "collected" / row["picture"]).shape[1] for row in rows), maxlen=1)
    return {
        "cpu": spent,
        "inferred": told["frames_inferred"],
        "tracks": told["tracks"],
        "events": summary["sinks"]["events"]["events"],
        "collected": len(rows),
        "width": sizes[0] if sizes else None,
        "clips": summary["sinks"]["clips"],
        "main": {k: (told.get("main") or {}).get(k) for k in ("offset_ms", "pictures", "slowest_ms")},
    }


def compare(case: str, seconds: float, folder: Path) -> None:
    what = "person" if case.startswith("person") else "line"
    main, small = folder / f"{what}-main.mp4", folder / f"{what}-small.mp4"
    if not main.exists():
        images, rate = pictures(what, seconds)
        write({main: MAIN, small: SMALL}, images, rate)
    with av.open(str(main)) as film:
        length = float(film.duration / 1e6)
    found = {}
    for name, sub in (("main alone", ""), ("two streams", str(small))):
        out = folder / f"{case}-{name}".replace(" ", "-")
        words = [
            sys.executable,
            "-m",
            "tests.benchmarks.try_substream",
            "--one",
            case,
            str(main),
            sub,
            str(out),
        ]
        done = subprocess.run(words, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr[-2000:]
        found[name] = json.loads(done.stdout.splitlines()[-1])
        spent = found[name].pop("cpu") / length
        found[name] = {"cpu": spent, **found[name]}
        print(f"{case:16} {name:12} {spent:.4f} CPU s a second of video  {found[name]}", flush=True)
    ratio = found["main alone"]["cpu"] / found["two streams"]["cpu"]
    print(f"{case:16} {ratio:.2f} times less, {length:.0f} s of video", flush=True)


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("--seconds", type=float, default=40.0)
    ask.add_argument("--cases", default="decode only,line,line-adaptive,person-adaptive")
    ask.add_argument("--one", nargs=4)
    a = ask.parse_args()
    if a.one:
        print(json.dumps(one(*a.one)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for case in a.cases.split(","):
            compare(case, a.seconds, Path(folder))


if __name__ == "__main__":
    main()
