"""Cameras per core: processor seconds for a second of video, with the events kept; ours beside Ultralytics'
track(stream=True).

Every contestant is a process of its own on one core, from start to end: imports, decoding, model, tracking,
results. User and system time of it and its children are counted, so a loaded machine measures the same. An
event is a visit: of a person on the real clip (the tracks that every frame gives, as intervals), of a part on
a line (labelled in at least 13 frames). It is `seen` when any track is there, and `kept` when a track begins
in it, or half a second before: who takes the next visitor for the last one has no event. `in 1 s`: within a
second (and two frames). `best stride` is the cheapest of Ultralytics' strides that keeps 95 % of the events.
Joules a camera-hour are those of the processor packages, where they can be read (RAPL or perf), with all
else that ran meanwhile.

All of it takes about an hour, in parts where need be: a row that is in the file is not measured again.

python -m tests.benchmarks.bench_cameras_per_core [--rows FILE] [--only CLIP]... [--contestant NAME]...
    [--processor avx2] [--table [docs/benchmarks.md]] [--quick] [--cache FOLDER]

Films of the line, and the INT8 file of YOLOv8n (`cv-pipeline optimize`, calibrated on one half of VOC's
photos and judged on the other), are made once and kept in the cache folder. `--processor avx2` hides wider
instructions from oneDNN, OpenVINO, NumPy, OpenCV and PyTorch; ONNX Runtime's own kernels (MLAS) have no such
switch, so that its rows are those of the processor itself.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks import energy
from tests.benchmarks.bench_optimize import SAME
from tests.benchmarks.headline import Rows, compared, markdown, write_table

REAL = Path(os.environ["CV_PIPELINE_REAL_DATA"]) if os.environ.get("CV_PIPELINE_REAL_DATA") else None
STRIDES = (1, 3, 5, 10, 15, 20)
THEIRS = {f"Ultralytics, stride {stride}": stride for stride in STRIDES}
OURS = {  # selection, and whether the model is the INT8 file
    "ours, every frame": ({}, False),
    "ours, every 10": ({"every": 10}, False),
    "ours, adaptive": ({"adaptive": True}, False),
    "ours, gate + adaptive": ({"gate": True}, False),
    "ours, gate, glances + adaptive": ({"gate": {"blind": "glance"}}, False),
    "ours, gate + adaptive + INT8": ({"gate": True}, True),
}
TRAFFIC = {"1 %": 0.006, "5 %": 0.03, "20 %": 0.13}  # share of the time with a part in view → density
SECONDS = {"1 %": 600, "5 %": 240, "20 %": 120}
PERSON = "person clip"
CLIPS = (*(f"line, {traffic}" for traffic in TRAFFIC), PERSON)
MASKS = {  # what hides instructions from a contestant; MLAS of ONNX Runtime has no switch
    "own": {},
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",  # oneDNN, and OpenVINO's copy of it
        "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL",
        "OPENCV_CPU_DISABLE": "AVX512_SKX,AVX512_CLX,AVX512_CNL,AVX512_ICL",
        "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch
    },
}


def theirs(video: str, model: str, conf: float, stride: int, names: list[int] | None, out: str) -> None:
    "In a process of its own: Ultralytics, its default tracker."
    from ultralytics import YOLO

    rows, yolo = [], YOLO(model, task="detect")
    imgsz = _imgsz(model)
    for i, result in enumerate(
        yolo.track(
            video,
            stream=True,
            vid_stride=stride,
            tracker="bytetrack.yaml",
            rect=False,
            conf=conf,
            classes=names,
            imgsz=imgsz,
            verbose=False,
        )
    ):
        ids = result.boxes.id
        rows += [[i * stride, int(k)] for k in (() if ids is None else ids.tolist())]
    Path(out).write_text(json.dumps({"rows": rows, "asked": i + 1}))


def _imgsz(model: str) -> list[int]:
    import onnxruntime

    return onnxruntime.InferenceSession(model).get_inputs()[0].shape[2:]


def ours(
    video: str, model: str, backend: str, conf: float, selection: dict, names: list[str] | None, out: str
) -> None:
    "In a process of its own: a run as `cv-pipeline run` does it."
    from cv_pipeline.core.config import RunConfig
    from cv_pipeline.service.assembly import run_config

    folder = Path(out).with_suffix("")
    config = {
        "sources": [{"uri": video, "id": "cam", "hardware": "none"}],
        "model": {"path": model, "backend": backend, "threads": 1},
        "postprocess": {"conf": conf, **({"classes": names} if names else {})},
        "selection": selection,
        "delivery": {"out": str(folder), "jsonl": False},
        "privacy": {"off": "a benchmark"},
    }
    summary = run_config(RunConfig.model_validate(config))
    gate = summary["sources"]["cam"].get("gate") or {}
    Path(out).write_text(json.dumps({"asked": summary["frames_inferred"], "gate": gate}))


def contest(kind: str, *arguments: object, processor: str = "own") -> dict:
    "Run a contestant; its processor seconds, and what it wrote."
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        call = f"from tests.benchmarks.bench_cameras_per_core import {kind}; import sys, json; " + (
            f"{kind}(*json.loads(sys.argv[1]))"
        )
        arguments = [sys.executable, "-c", call, json.dumps([*arguments, str(out)])]
        ended = dict[str, Any]()
        joules = energy.measure(lambda: ended.update(_ended(arguments, MASKS[processor])))
        if ended["code"]:
            raise RuntimeError(f"{kind} failed: {ended['errors'][-1000:]}")
        found = json.loads(out.read_text()) | {"cpu": ended["cpu"], "joules": joules}
        if kind == "ours":
            found["rows"] = _tracks(out.with_suffix(""))
        return found


def _ended(call: list[str], mask: dict[str, str]) -> dict:
    "Run a process on one core: exit code, what it wrote to stderr, its processor seconds."
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        call,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **ENVIRONMENT, **mask},
        preexec_fn=lambda: os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]}),
        timeout=3600,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"code": ended.returncode, "errors": ended.stderr.decode(errors="replace"), "cpu": cpu}


ENVIRONMENT = {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "false", "OMP_NUM_THREADS": "1"}


def _tracks(folder: Path) -> list[list[int]]:
    from cv_pipeline.core.results import read_results

    rows = read_results(folder).select(["frame_id", "tracker_id"]).to_pylist()
    return [[r["frame_id"], r["tracker_id"]] for r in rows if r["tracker_id"] >= 0]


def begun(rows: list[list[int]]) -> list[int]:
    "Frames in which a track is there for the first time."
    first: dict[int, int] = {}
    for frame, track in sorted(rows):
        first.setdefault(track, frame)
    return sorted(first.values())


def kept(frames: list[int], visits: list[tuple[int, int]], early: float, within: float = 1e9) -> int:
    """Visits with one of the frames in them; at most so many frames after their beginning. Or `early` frames
    before it, as long as the visit before has ended: where a visit begins is only known to some frames, since
    a tracker takes one, two or three to believe in a track."""
    ends = [-1, *(max(e for _, e in visits[: k + 1]) for k in range(len(visits)))]
    begins = [b if last >= b else max(b - early, last + 1) for (b, _), last in zip(visits, ends)]
    return sum(
        any(early_b <= frame <= min(e, b + within) for frame in frames)
        for early_b, (b, e) in zip(begins, visits)
    )


def person(cache: Path) -> dict:
    visits = [(63, 196), (231, 448), (507, 698), (747, 867), (930, 1198), (1237, 1359)]
    assert REAL is not None
    return {
        "video": str(REAL / "videos/one-by-one-person-detection.mp4"),
        "models": (str(REAL / YOLO_FILE), str(REAL / YOLO_FILE), lambda: str(int8_of_yolo(cache))),
        "conf": 0.35,
        "visits": visits,
        "fps": 10.0,
        "frames": 1394,
        "classes": ([0], ["person"]),
    }


YOLO_FILE = "models/yolov8n_fp32_reconstructed.onnx"


def line(cache: Path, traffic: str, seconds: float, seed: int = 1) -> dict:
    "A film of a line with little traffic, and when its parts were there; drawn once."
    from cv_pipeline.inference.loading import load_model

    path = cache / f"line-{traffic[:-2]}-{seconds:g}-{seed}.mp4"
    if not path.with_suffix(".json").exists():
        _draw(path, traffic, seconds, seed)
    return {
        "video": str(path),
        "models": (str(load_model("factory_line").path), "factory_line", None),
        "conf": 0.25,
        "visits": sorted(tuple(visit) for visit in json.loads(path.with_suffix(".json").read_text())),
        "fps": 25.0,
        "frames": int(25 * seconds),
        "classes": (None, None),
    }


def _draw(path: Path, traffic: str, seconds: float, seed: int) -> None:
    "Film and visits; the visits last, so that they are there when both are."
    from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
    from cv_pipeline.synthetic.line import VideoFile

    config = LineConfig(density=TRAFFIC[traffic], seed=seed, speed=150.0, hand_every=0.0, overlap=0.0)
    there: dict[int, list[int]] = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    video = VideoFile(path)
    video.options |= {"g": "25", "sc_threshold": "0"}
    for frame, truth in FactoryLine(config).frames(int(25 * seconds)):
        video.add(frame.image)
        for i in truth.labelled().tracker_id.tolist():
            there.setdefault(i, []).append(frame.frame_id)
    video.close()
    visits = [(min(f), max(f)) for f in there.values() if len(f) >= 13]
    path.with_suffix(".json").write_text(json.dumps(visits))


def int8_of_yolo(cache: Path) -> Path:
    "YOLOv8n's OpenVINO INT8 file, calibrated on one half of VOC's photos and judged on the other; made once."
    from dataclasses import replace

    from cv_pipeline.core.formats import read_dataset
    from cv_pipeline.optimization.optimize import OptimizeSettings, optimize

    assert REAL is not None
    folder = cache / "yolov8n-int8"
    if not (folder / "manifest.json").exists():
        items = [
            replace(item, names=tuple(SAME.get(name, name) for name in item.names))
            for item in read_dataset(REAL / "voc100/coco_format_v1/instances_default.json")
        ]
        settings = OptimizeSettings(steps=("openvino-int8",), threads=1)
        report = optimize(REAL / YOLO_FILE, folder, items[1::2], [i.path for i in items[::2]], settings)
        (folder / "optimise.md").write_text(report.markdown())
        if not report["openvino-int8"].accepted:
            shutil.rmtree(folder)
            raise RuntimeError(f"the gate refused the INT8 file: {report['openvino-int8'].problem}")
    return folder


def measure(clip: str, case: dict, name: str, processor: str) -> dict:
    "The row of one contestant on one clip."
    classes, names = case["classes"]
    plain, own, eight = case["models"]
    if name in THEIRS:
        found = contest(
            "theirs", case["video"], plain, case["conf"], THEIRS[name], classes, processor=processor
        )
    else:
        selection, small = OURS[name]
        model, backend = (eight(), "openvino/int8") if small else (own, "auto")
        found = contest(
            "ours", case["video"], model, backend, case["conf"], selection, names, processor=processor
        )
    visits, seconds = case["visits"], case["frames"] / case["fps"]
    seen, first = [frame for frame, _ in found["rows"]], begun(found["rows"])
    early = EARLY_S * case["fps"]
    gate, joules = found.get("gate") or {}, found["joules"]
    return {
        "clip": clip,
        "contestant": name,
        "processor": processor,
        "CPU s": found["cpu"],
        "CPU s / s": found["cpu"] / seconds,
        "cameras a core": seconds / found["cpu"],
        "model calls": found["asked"],
        "decoded": gate.get("decoded_share", 1.0),
        "events": len(visits),
        "seen": kept(seen, visits, early),
        "kept": kept(first, visits, early),
        "in 1 s": kept(first, visits, early, case["fps"] + 2),
        "tracks": len({k for _, k in found["rows"]}),
        "J a camera-hour": None if joules.value is None else joules.value / seconds * 3600,
        "energy": joules.reason,
        "begins": first,
        "gate": gate,
    }


EARLY_S = 0.5  # so much before a visit a track of it may begin


def planned(clips: list[str], contestants: list[str] | None, quick: bool) -> list[tuple[str, str]]:
    "Clip and contestant of every row that is asked for, in order."
    names = contestants or [*THEIRS, *OURS]
    if quick and not contestants:
        names = [name for name in names if THEIRS.get(name, 1) in (1, 10)]
    rows = [(clip, name) for clip in clips for name in names]
    # the bundled model's INT8 file does not pass the accuracy gate
    return [(clip, name) for clip, name in rows if clip == PERSON or name in THEIRS or not OURS[name][1]]


def default_clips(quick: bool) -> list[str]:
    return ["line, 5 %"] if quick else [clip for clip in CLIPS if REAL or clip != PERSON]


def run(
    quick: bool = False,
    rows: Rows | None = None,  # rows that are there are not measured again; None: nothing is kept
    clips: list[str] | None = None,
    contestants: list[str] | None = None,
    processor: str = "own",
    cache: Path | None = None,
    tell: Callable[[object], None] = lambda row: None,
) -> list[dict]:
    "Every row that is asked for, with its ratios."
    from cv_pipeline.inference.choice import cache_folder

    rows, cases = rows or Rows(None), dict[str, dict]()
    cache = cache or cache_folder() / "benchmarks"
    for clip, name in planned(clips or default_clips(quick), contestants, quick):
        if rows.has(clip, name, processor):
            continue
        if clip not in cases:
            seconds = 60 if quick else SECONDS.get(clip.removeprefix("line, "), 0)
            cases[clip] = (
                person(cache) if clip == PERSON else line(cache, clip.removeprefix("line, "), seconds)
            )
        row = measure(clip, cases[clip], name, processor)
        rows.add(row)
        tell(row)
    return compared(rows.found)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--quick", action="store_true", help="a minute of one line, two strides")
    ask.add_argument("--rows", type=Path, help="append each row here, and skip those that are there")
    ask.add_argument("--only", action="append", choices=CLIPS, help="this clip; more than once for more")
    ask.add_argument("--contestant", action="append", choices=[*THEIRS, *OURS], help="this contestant")
    ask.add_argument("--processor", choices=[*MASKS], default="own", help="hide wider instructions")
    ask.add_argument("--cache", type=Path, help="folder for films and the INT8 file")
    ask.add_argument(
        "--table",
        type=Path,
        nargs="?",
        const=Path("-"),
        help="only write the table of --rows into this document, or print it",
    )
    given = ask.parse_args()
    if given.only and PERSON in given.only and REAL is None:
        ask.error(f"{PERSON}: set CV_PIPELINE_REAL_DATA")
    if given.quick and given.rows:
        ask.error("--quick measures other films: it goes without --rows")
    rows = Rows(given.rows)
    if given.table is not None:
        text = markdown(rows.found)
        return print(text) if str(given.table) == "-" else write_table(given.table, text)
    tell = lambda row: print(row, flush=True)
    run(given.quick, rows, given.only, given.contestant, given.processor, given.cache, tell)
    print(markdown(rows.found))


if __name__ == "__main__":
    main()
