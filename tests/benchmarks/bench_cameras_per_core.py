"""Cameras per core: processor seconds for a second of video, with the events kept; ours beside Ultralytics'
track(stream=True).

Every contestant is a process of its own on one core, from start to end: imports, decoding, model, tracking,
results. User and system time of it and its children are counted, so a loaded machine measures the same. An
event is a visit: of a person on the real clip (the tracks that every frame gives, as intervals), of a part on
a line (labelled in at least 13 frames). It is `seen` when any track is there, and `kept` when a track begins
in it: who takes the next visitor for the last one has no event. `in 1 s`: within a second (and two frames).
`best stride` is the cheapest of Ultralytics' strides that keeps 95 % of the events.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import av

REAL = Path(os.environ["CV_PIPELINE_REAL_DATA"]) if os.environ.get("CV_PIPELINE_REAL_DATA") else None
STRIDES = (1, 3, 5, 10, 15, 20)
OURS = {
    "every frame": {},
    "every 10": {"every": 10},
    "adaptive": {"adaptive": True},
    "gate + adaptive": {"gate": True},
    "gate, glances + adaptive": {"gate": {"blind": "glance"}},
}
TRAFFIC = {"1 %": 0.006, "5 %": 0.03, "20 %": 0.13}  # share of the time with a part in view → density


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


def ours(video: str, model: str, conf: float, selection: dict, names: list[str] | None, out: str) -> None:
    "In a process of its own: a run as `cv-pipeline run` does it."
    from cv_pipeline.core.config import RunConfig
    from cv_pipeline.service.assembly import run_config

    folder = Path(out).with_suffix("")
    config = {
        "sources": [{"uri": video, "id": "cam", "hardware": "none"}],
        "model": {"path": model, "threads": 1},
        "postprocess": {"conf": conf, **({"classes": names} if names else {})},
        "selection": selection,
        "delivery": {"out": str(folder), "jsonl": False},
        "privacy": {"off": "a benchmark"},
    }
    summary = run_config(RunConfig.model_validate(config))
    Path(out).write_text(json.dumps({"asked": summary["frames_inferred"], **_gate(summary)}))


def _gate(summary: dict) -> dict:
    gate = summary["sources"]["cam"].get("gate")
    return {"decoded": gate["decoded_share"] if gate else 1.0, "state": gate["state"] if gate else ""}


def contest(kind: str, *arguments: object) -> dict:
    "Run a contestant; its processor seconds, and what it wrote."
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        call = f"from tests.benchmarks.bench_cameras_per_core import {kind}; import sys, json; " + (
            f"{kind}(*json.loads(sys.argv[1]))"
        )
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-c", call, json.dumps([*arguments, str(out)])],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "false", "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]}),
            timeout=3600,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        told = json.loads(out.read_text())
        told["cpu"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if kind == "ours":
            told["rows"] = _tracks(out.with_suffix(""))
        return told


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


def kept(frames: list[int], visits: list[tuple[int, int]], within: float = 1e9) -> int:
    "Visits with one of the frames in them; at most so many frames after their beginning."
    return sum(any(b <= frame <= min(e, b + within) for frame in frames) for b, e in visits)


def person() -> tuple[str, str, float, list[tuple[int, int]], float]:
    visits = [(63, 196), (231, 448), (507, 698), (747, 867), (930, 1198), (1237, 1359)]
    model = str(REAL / "models/yolov8n_fp32_reconstructed.onnx")
    return str(REAL / "videos/one-by-one-person-detection.mp4"), model, 0.35, visits, 10.0


def line(folder: Path, traffic: str, seconds: float, seed: int) -> tuple[str, str, float, list, float]:
    "A film of a line with little traffic, and when its parts were there."
    from cv_pipeline.inference.loading import load_model
    from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
    from cv_pipeline.synthetic.line import VideoFile

    config = LineConfig(density=TRAFFIC[traffic], seed=seed, speed=150.0, hand_every=0.0, overlap=0.0)
    there: dict[int, list[int]] = {}
    path = folder / f"line-{traffic[:-2]}-{seed}.mp4"
    video = VideoFile(path)
    video.options |= {"g": "25", "sc_threshold": "0"}
    for frame, truth in FactoryLine(config).frames(int(25 * seconds)):
        video.add(frame.image)
        for i in truth.labelled().tracker_id.tolist():
            there.setdefault(i, []).append(frame.frame_id)
    video.close()
    visits = [(min(f), max(f)) for f in there.values() if len(f) >= 13]
    return str(path), str(load_model("factory_line").path), 0.25, visits, 25.0


def measure(what: str, case: tuple, people: bool, strides=STRIDES, contestants=tuple(OURS)) -> list[dict]:
    "A row for each contestant on one clip."
    video, model, conf, visits, fps = case
    with av.open(video) as container:
        frames = container.streams.video[0].frames
    seconds, rows = frames / fps, []

    def row(name: str, told: dict) -> dict:
        tracks = len({k for _, k in told["rows"]})
        found = {"clip": what, "contestant": name, "CPU s": told["cpu"], "CPU s / s": told["cpu"] / seconds}
        found |= {"cameras a core": seconds / told["cpu"], "model calls": told["asked"]}
        found |= {"decoded": told.get("decoded", 1.0), "events": len(visits)}
        seen, first = [frame for frame, _ in told["rows"]], begun(told["rows"])
        found |= {"seen": kept(seen, visits), "kept": kept(first, visits), "tracks": tracks}
        return found | {"in 1 s": kept(first, visits, fps + 2)}

    for stride in strides:
        told = contest("theirs", video, model, conf, stride, [0] if people else None)
        rows.append(row(f"Ultralytics, stride {stride}", told))
        print(rows[-1], flush=True)
    best = min((r for r in rows if r["kept"] >= 0.95 * len(visits)), key=lambda r: r["CPU s"], default=None)
    own = model if people else "factory_line"
    for name in contestants:
        told = contest("ours", video, own, conf, OURS[name], ["person"] if people else None)
        rows.append(row(f"ours, {name}", told))
        if strides and strides[0] == 1:
            rows[-1]["× stride 1"] = rows[0]["CPU s"] / told["cpu"]
        if best is not None:
            rows[-1]["× best stride"] = best["CPU s"] / told["cpu"]
        print(rows[-1], flush=True)
    return rows


def run(quick: bool = False) -> list[dict]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for traffic in ("5 %",) if quick else TRAFFIC:
            seconds = 60 if quick else {"1 %": 600, "5 %": 240, "20 %": 120}[traffic]
            case = line(Path(folder), traffic, seconds, 1)
            rows += measure(f"line, {traffic}", case, False, (1, 10) if quick else STRIDES)
    if REAL and not quick:
        rows += measure("person clip", person(), True)
    return rows


def main() -> None:
    for row in run("--quick" in sys.argv):
        print(row)


if __name__ == "__main__":
    main()
