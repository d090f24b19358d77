"""From the raw output of a detection head to boxes: this package beside Ultralytics, on the same arrays, in
one process, in alternating rounds.

Three comparisons a row:
  suppression   raw (1, 84, 8400) → boxes, scores, classes in network pixels: `non_max_suppression` against
                `yolov8_candidates` + `nms`
  whole way     raw → a result object in picture pixels: + `scale_boxes` + `Results` against
                `Postprocessor.one` (with its decisions)
  fused         Ultralytics as above against `Postprocessor.one` on the 300 best rows, which a file of
                `optimize --steps fused` answers with; what choosing them costs in the graph is printed last

torchvision is loaded, as it is after any Ultralytics prediction. The two sides take turns, so each call meets
caches and a branch predictor that the other has just used, much as it would after a network's run; the same
call repeated alone takes a quarter to a third less on both sides. torch gets one thread, or all with
--threads (on an idle machine only: its threads wait for each other, which on a busy one takes milliseconds
and says nothing); this package uses one in either case.
Run: python tests/benchmarks/bench_nms.py [--quick] [--threads]
"""

import os
import sys
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np


def dense(seed: int = 0) -> np.ndarray:
    "8,400 boxes all over the place, every one above the threshold: many survive, `max_det` ends it."
    rng = np.random.default_rng(seed)
    raw = np.empty((84, 8400), np.float32)
    raw[:2], raw[2:4], raw[4:] = (
        rng.uniform(0, 640, (2, 8400)),
        rng.uniform(8, 120, (2, 8400)),
        rng.uniform(0, 1, (80, 8400)) ** 8,
    )
    return raw


def crowd(objects: int, seed: int = 0) -> np.ndarray:
    "8,400 boxes around a few objects, 3 of 80 classes, all scores equally likely: most are duplicates."
    rng = np.random.default_rng(seed)
    raw, of, label = (
        np.zeros((84, 8400), np.float32),
        rng.integers(0, objects, 8400),
        rng.integers(0, 3, objects),
    )
    raw[:2] = rng.uniform(50, 590, (2, objects))[:, of] + rng.normal(0, 4, (2, 8400))
    raw[2:4] = rng.uniform(20, 150, (2, objects))[:, of] * np.exp(rng.normal(0, 0.1, (2, 8400)))
    raw[4:] = rng.uniform(0, 0.002, (80, 8400))
    raw[4 + label[of], np.arange(8400)] = rng.uniform(0, 1, 8400)
    return raw


def photos(folder: Path, limit: int) -> dict[str, np.ndarray]:
    "Raw outputs of YOLOv8n on real pictures: photos of two public sets, frames of a video with people."
    import cv2
    import onnxruntime as ort

    from cv_pipeline.inference.manifest import PreprocessSpec
    from cv_pipeline.inference.preprocess import Preprocessor

    net = ort.InferenceSession(
        str(folder / "models" / "yolov8n_fp32_reconstructed.onnx"), providers=["CPUExecutionProvider"]
    )
    prepare = Preprocessor(PreprocessSpec())
    files = sorted((folder / "coco8").rglob("*.jpg")) + sorted((folder / "voc100").rglob("*.jpg"))[::20]
    try:
        from ultralytics.utils import ASSETS

        files = [ASSETS / "bus.jpg", ASSETS / "zidane.jpg", *files]
    except ImportError:
        pass
    images, video = (
        {f.name: cv2.imread(str(f)) for f in files},
        cv2.VideoCapture(str(folder / "videos" / "one-by-one-person-detection.mp4")),
    )
    for number in (100, 300, 500):
        video.set(cv2.CAP_PROP_POS_FRAMES, number)
        good, frame = video.read()
        if good:
            images[f"video {number}.jpg"] = frame
    return {
        name: net.run(None, {"images": prepare.batch([image])[0]})[0][0]
        for name, image in list(images.items())[:limit]
    }


def alternate(calls: list, rounds: int, seconds: float) -> list[float]:
    "Median microseconds of each call; the calls take turns."
    for call in calls:
        call()
    times, began = [[] for _ in calls], perf_counter()
    while len(times[0]) < 5 or (len(times[0]) < rounds and perf_counter() - began < seconds):
        for call, spent in zip(calls, times):
            start = perf_counter()
            call()
            spent.append(perf_counter() - start)
    return [1e6 * median(spent) for spent in times]


def compare(name: str, raw: np.ndarray, conf: float, iou: float, rounds: int, seconds: float) -> dict:
    import torch
    import torchvision  # noqa: F401
    from ultralytics.engine.results import Results
    from ultralytics.utils import ops
    from ultralytics.utils.nms import non_max_suppression

    from cv_pipeline.inference.manifest import PostprocessSpec
    from cv_pipeline.inference.postprocess import Postprocessor, answer_as, nms, yolov8_candidates
    from cv_pipeline.inference.preprocess import fit

    tensor, image, labels = (
        torch.from_numpy(raw[None]),
        np.zeros((720, 1280, 3), np.uint8),
        {i: str(i) for i in range(80)},
    )
    geometry = fit(1280, 720, (640, 640))
    post = Postprocessor(PostprocessSpec(conf=conf, iou=iou), tuple(labels.values()), (640, 640))
    short = answer_as(raw[None], "yolov8", "topk", 80, (640, 640))[0]
    rows = Postprocessor(PostprocessSpec(head="topk", conf=conf, iou=iou), post.names, (640, 640))

    def their_whole():
        found = non_max_suppression(tensor, conf, iou)[0]
        found[:, :4] = ops.scale_boxes((640, 640), found[:, :4], image.shape)
        return Results(image, path="", names=labels, boxes=found[:, :6]).boxes.data.numpy()

    def our_nms():
        found = yolov8_candidates(raw, conf)
        kept = nms(found.xyxy, found.confidence, found.class_id, iou)
        return found.xyxy[kept], found.confidence[kept], found.class_id[kept]

    ours, theirs = post.one(raw, geometry), their_whole()
    same = (
        len(ours) == len(theirs)
        and np.abs(ours.xyxy - theirs[:, :4]).max(initial=0) < 0.5
        and np.abs(ours.confidence - theirs[:, 4]).max(initial=0) < 1e-3
    )
    calls = [
        lambda: non_max_suppression(tensor, conf, iou),
        our_nms,
        their_whole,
        lambda: post.one(raw, geometry),
        lambda: rows.one(short, geometry),
    ]
    a, b, c, d, e = alternate(calls, rounds, seconds)
    return {
        "input": name,
        "conf": conf,
        "iou": iou,
        "candidates": int((raw[4:].max(0) > conf).sum()),
        "kept": len(ours),
        "same": bool(same),
        "ultralytics_us": a,
        "ours_us": b,
        "ratio": a / b,
        "ultralytics_whole_us": c,
        "ours_whole_us": d,
        "ratio_whole": c / d,
        "fused_us": e,
        "ratio_fused": c / e,
        "fused_cut": bool(rows.full),
        "threads": torch.get_num_threads(),
    }


def run(quick: bool = False, threads: int = 1) -> list[dict]:
    "One row for each input and threshold; `threads` for torch."
    import torch

    torch.set_num_threads(threads)
    inputs = {"dense": dense(), "crowd of 300": crowd(300), "crowd of 50": crowd(50), "crowd of 5": crowd(5)}
    folder = os.environ.get("CV_PIPELINE_REAL_DATA")
    if folder:
        inputs = {**photos(Path(folder), 3 if quick else 99), **inputs}
    return [
        compare(name, raw, conf, 0.7, 40 if quick else 400, 0.3 if quick else 2.0)
        for name, raw in inputs.items()
        for conf in (0.25, 0.001)
    ]


def in_the_graph(folder: Path, rounds: int = 20) -> tuple[float, float]:
    "CPU milliseconds a picture of YOLOv8n as it is, and ending in its best rows; one thread, turn by turn."
    import onnxruntime as ort

    from cv_pipeline.optimization.graphs import best_rows, open_graph, simplify

    whole = simplify(open_graph(folder / "models" / "yolov8n_fp32_reconstructed.onnx"))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    graphs = [whole, best_rows(whole, "yolov8", 80, (640, 640))]
    sessions = [ort.InferenceSession(g.SerializeToString(), options) for g in graphs]
    picture, spent = np.zeros((1, 3, 640, 640), np.float32), [[], []]
    for _ in range(rounds):
        for session, times in zip(sessions, spent):
            start = process_time()
            for _ in range(3):
                session.run(None, {"images": picture})
            times.append((process_time() - start) / 3)
    return 1e3 * median(spent[0]), 1e3 * median(spent[1])


def main() -> None:
    rows = run("--quick" in sys.argv, os.cpu_count() or 1 if "--threads" in sys.argv else 1)
    print(
        f"torch: {rows[0]['threads']} thread(s), medians of alternating rounds, microseconds; iou "
        f"{rows[0]['iou']}, max_det 300"
    )
    print(
        f"{'input':18} {'conf':>6} {'above':>6} {'kept':>5} same | suppression: Ultralytics    ours  ratio | "
        "whole way: Ultralytics    ours  ratio | fused  ratio"
    )
    for r in rows:
        print(
            f"{r['input']:18} {r['conf']:6} {r['candidates']:6} {r['kept']:5} "
            f"{'yes' if r['same'] else 'NO':4} | {r['ultralytics_us']:24.0f} {r['ours_us']:7.0f} "
            f"{r['ratio']:5.1f}x"
            f" | {r['ultralytics_whole_us']:22.0f} {r['ours_whole_us']:7.0f} {r['ratio_whole']:5.1f}x"
            f" | {r['fused_us']:5.0f} {r['ratio_fused']:5.1f}x{' cut to 300' * r['fused_cut']}"
        )
    for conf in (0.25, 0.001):
        for kind, some in (
            ("photos", [r for r in rows if r["input"].endswith(".jpg")]),
            ("synthetic", [r for r in rows if not r["input"].endswith(".jpg")]),
        ):
            some = [r for r in some if r["conf"] == conf]
            if not some:
                continue
            spread = [
                (min(ratios), median(ratios), max(ratios))
                for ratios in ([r[key] for r in some] for key in ("ratio", "ratio_whole", "ratio_fused"))
            ]
            print(
                f"conf {conf}, {kind}: "
                + ", ".join(
                    f"{m:.1f}x {what} ({a:.1f} to {b:.1f})"
                    for (a, m, b), what in zip(spread, ("suppression", "whole way", "whole way fused"))
                )
            )
    if folder := os.environ.get("CV_PIPELINE_REAL_DATA"):
        whole, short = in_the_graph(Path(folder))
        print(f"YOLOv8n, CPU ms a picture: {whole:.2f} as it is, {short:.2f} ending in its best rows")


if __name__ == "__main__":
    main()
