"""What optimising buys and costs: every file of a model beside ONNX Runtime in float, the same picture, in
alternating rounds; AP with its paired interval.

A row a file: milliseconds of the model call alone (median; the tensor is ready), how many times as fast as
the first row, size, AP and its change on labelled photos with the 95 % interval, and what the gate said.
yolov8n and yolox_nano on 100 photos (VOC; its names that COCO spells otherwise are mapped), calibrated on
frames of another film; the bundled model on 60 pictures of the line, calibrated on others. A file that the
gate refused is not timed: it does not exist. Nothing here needs a GPU, and nothing here says anything about
one.

Run: python tests/benchmarks/bench_optimize.py [--quick]
(CV_PIPELINE_REAL_DATA for the photos; without it, the bundled model alone). Some minutes: every file is
judged on every photo, and the ones that fail are made again with layers spared.
"""

import os
import sys
import tempfile
import warnings
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter

import cv2
import numpy as np

SAME = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


def frames_of(video: Path, every: int, folder: Path) -> Path:
    "Every n-th frame of a film as files."
    folder.mkdir()
    film, number = cv2.VideoCapture(str(video)), 0
    while (shown := film.read())[0]:
        if number % every == 0:
            cv2.imwrite(str(folder / f"{number:05d}.jpg"), shown[1])
        number += 1
    return folder


def coco_spec(folder: Path) -> Path:
    "YOLOX's conventions and COCO's names (those of the other model) as a spec file."
    import yaml

    from cv_pipeline.inference.loading import load_model

    names = list(load_model(folder / "models/yolov8n_fp32_reconstructed.onnx").manifest.names)
    path = Path(tempfile.mkdtemp()) / "yolox.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "names": names,
                "preprocess": {"imgsz": [416, 416], "letterbox": "top-left", "color": "BGR", "scale": 1.0},
                "postprocess": {"head": "yolox", "iou": 0.65},
            }
        )
    )
    return path


def timed(out: Path, report, rounds: int) -> dict[str, float]:
    "Median milliseconds of one picture for every file that was written, in turn."
    from cv_pipeline.inference.loading import load_backend
    from cv_pipeline.inference.manifest import load_manifest

    manifest, _ = load_manifest(out)
    rng, runs = np.random.default_rng(0), {}
    for r in report.results:
        if not r.accepted:
            continue
        alone = manifest.for_artefact(r.artefact)
        backend = load_backend(out / r.artefact.file, alone, runtime=r.artefact.backend, **r.artefact.options)
        picture = rng.integers(0, 256, (1, *alone.preprocess.imgsz, 3), dtype=np.uint8)
        runs[r.step] = (
            backend,
            picture
            if alone.preprocess.layout == "nhwc-uint8"
            else np.ascontiguousarray(picture.transpose(0, 3, 1, 2)).astype(np.float32) / 255,
        )
    taken = {name: [] for name in runs}
    for _ in range(rounds + 3):
        for name, (backend, feed) in runs.items():
            start = perf_counter()
            backend.infer(feed)
            taken[name].append(perf_counter() - start)
    return {name: 1e3 * median(t[3:]) for name, t in taken.items()}


def one(name: str, model, items, calibration, folder: Path, quick: bool, **how) -> list[dict]:
    "All files of one model."
    from cv_pipeline.optimization.optimize import OptimizeSettings, optimize

    settings = OptimizeSettings(draws=200 if quick else 500, pictures=60 if quick else 300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = optimize(model, folder / name, items, calibration, settings, **how)
    ms = timed(folder / name, report, 10 if quick else 40)
    rows = []
    for r in report.results:
        gate = r.gate
        rows.append(
            {
                "model": name,
                "file": r.step,
                "ms": round(ms[r.step], 2) if r.step in ms else None,
                "times as fast": round(ms["fp32"] / ms[r.step], 2) if r.step in ms else None,
                "MB": round(r.size_mb, 1),
                "AP": gate and round(gate.ap, 4),
                "AP change": gate
                and f"{100 * gate.change.value:+.2f} [{100 * gate.change.low:+.2f}, "
                f"{100 * gate.change.high:+.2f}] points",
                "gate": (gate.verdict if gate else "–") + (", written" if r.accepted else ", refused"),
                "note": f"{len(r.spared)} layers spared"
                if r.spared
                else ""
                if r.accepted
                else r.problem[:160],
            }
        )
    return rows


def document(folder: Path, name: str, items, quick: bool) -> None:
    "The benchmark document of a model's files, under reports/."
    from cv_pipeline.optimization.benchmark import BenchmarkSettings, run_benchmark

    where = Path("reports") / date.today().isoformat() / f"benchmark-{name}"
    settings = BenchmarkSettings(batches=(1, 2, 4), seconds=0.5 if quick else 2.0, latency_budget_ms=50)
    run_benchmark(folder / name, where, None if quick else items, settings)
    print(f"document: {where}")


def run(quick: bool = False) -> list[dict]:
    "Rows of all models that are there."
    from cv_pipeline.core.formats import read_dataset
    from cv_pipeline.evaluation.summary import line_pictures

    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if real := os.environ.get("CV_PIPELINE_REAL_DATA"):
            real = Path(real)
            voc = [
                replace(i, names=tuple(SAME.get(n, n) for n in i.names))
                for i in read_dataset(real / "voc100/coco_format_v1/instances_default.json")
            ]
            calibration = frames_of(
                real / "videos/one-by-one-person-detection.mp4", 12 if quick else 4, folder / "film"
            )
            rows += one(
                "yolov8n", real / "models/yolov8n_fp32_reconstructed.onnx", voc, calibration, folder, quick
            )
            document(folder, "yolov8n", voc, quick)
            if not quick:
                rows += one(
                    "yolox_nano",
                    real / "models/yolox_nano.onnx",
                    voc,
                    calibration,
                    folder,
                    quick,
                    spec=coco_spec(real),
                )
                document(folder, "yolox_nano", voc, quick)
        items, columns = line_pictures(folder / "judge", 30 if quick else 60)
        calibration = [i.path for i in line_pictures(folder / "calibrate", 30 if quick else 300, seed=90)[0]]
        rows += one("factory_line", "factory_line", items, calibration, folder, quick, columns=columns)
        document(folder, "factory_line", items, quick)
    return rows


def main() -> None:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    rows = run("--quick" in sys.argv)
    width = {k: max(len(k), *(len(str(r[k])) for r in rows)) for k in rows[0]}
    print("  ".join(k.ljust(width[k]) for k in rows[0]))
    for r in rows:
        print("  ".join(str("–" if v is None else v).ljust(width[k]) for k, v in r.items()))
    print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
