"""How well video.cover hides faces and plates, and what it costs; nothing here is asserted.

`python -m tests.benchmarks.try_cover [PARTS]` prints a table a part:

planted   drawn faces (YuNet) and plates (a stand-in detector that finds 90 % with 4 % error) of known places
film      the real person clip (CV_PIPELINE_REAL_DATA): faces on which two detectors agree
speed     CPU seconds of one process a 1080p frame, YuNet and CenterFace in turn
run       a run with a cover and the same run without: two cameras, 10 frames per second
attack    after the cover: does the detector fire, is the face matched again

`--deface PYTHON` names an interpreter with `deface` installed, which runs on the same frames; without it its
columns are empty. Times are CPU seconds of one process: a busy machine makes them longer, and both alike.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from cv_pipeline.core.types import Detections, Frame, FrameResult
from cv_pipeline.evaluation.guarantees import lower
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.passers import Passers, PassersConfig
from cv_pipeline.video.cover import (
    CoverGate,
    CoverSettings,
    Privacy,
    cover,
    grown,
)
from cv_pipeline.video.decoding import decode_video
from cv_pipeline.video.faces import YuNet
from cv_pipeline.video.pipeline import Pipeline
from cv_pipeline.video.sinks import VideoSink

ON = Privacy(True, "measured")
PARTS = ("planted", "film", "speed", "run", "attack")
PEER = """
import json, sys, time, numpy as np, cv2
cv2.setNumThreads(1)
from deface.centerface import CenterFace
net, out = CenterFace(backend="opencv"), []
for name in json.load(sys.stdin):
    image, began = cv2.imread(name)[:, :, ::-1], time.process_time()
    found, _ = net(np.ascontiguousarray(image), threshold=.2)
    out.append([time.process_time() - began, found[:, :5].tolist()])
print(json.dumps(out))
"""  # deface reads frames with imageio: RGB


def peer(python: str | None, images: list[np.ndarray]) -> list[tuple[float, np.ndarray]] | None:
    "CenterFace at deface's own threshold .2: seconds and (n, 5) boxes with scores of each picture."
    if not python:
        return None
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for k, image in enumerate(images):
            names.append(f"{folder}/{k:05d}.png")
            cv2.imwrite(names[-1], image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [python, "-c", PEER], input=json.dumps(names), capture_output=True, text=True, env=env
        )
    if done.returncode:
        print("deface failed:", done.stderr[-400:])
        return None
    return [(s, np.array(rows, float).reshape(-1, 5)) for s, rows in json.loads(done.stdout)]


def share(box: np.ndarray, covers: np.ndarray) -> float:
    "Share of a box that rectangles cover."
    x1, y1, x2, y2 = np.round(box).astype(int)
    mask = np.zeros((max(y2 - y1, 1), max(x2 - x1, 1)), bool)
    for a, b, c, d in np.asarray(covers).tolist():
        mask[max(b - y1, 0) : max(d - y1, 0), max(a - x1, 0) : max(c - x1, 0)] = True
    return float(mask.mean())


def gate_boxes(frames: list[Frame], gate: CoverGate, found=None) -> list[np.ndarray]:
    "The rectangles that the gate covers in each frame, read off the pictures: grey where it was not."
    import cv_pipeline.video.cover as module

    kept: dict[int, np.ndarray] = {}
    original = module.cover

    def spy(image, boxes, how="solid"):
        kept[id(image)] = np.asarray(boxes)
        return original(image, boxes, how)

    module.cover = spy
    try:
        out: list[np.ndarray] = []
        boxes_of = lambda p: kept.pop(id(p.result.frame.image), np.zeros((0, 4), int))
        for k, frame in enumerate(frames):
            detections = Detections.empty() if found is None else found[k]
            out += map(boxes_of, gate.take(FrameResult(frame, detections, gate._names)))
        return out + list(map(boxes_of, gate.drain()))
    finally:
        module.cover = original


def row(name: str, leaks: int, n: int, area: float) -> str:
    low = lower(n - leaks, n) if n else float("nan")
    return f"| {name} | {n} | {leaks} | {1 - leaks / max(n, 1):.4f} | {low:.4f} | {area:.2%} |"


HEAD = "| way | faces | leaks | covered ≥ 80 % | lower 95 % bound | area |\n|---|---|---|---|---|---|"


def area_of(boxes: list[np.ndarray], size: tuple[int, int]) -> float:
    w, h = size
    return float(np.mean([share(np.array([0, 0, w, h]), b) for b in boxes]))


def planted(python: str | None, films: int = 12) -> None:
    "Drawn faces and plates: frame by frame, through the gate, and deface."
    ways: dict[str, list[int]] = {}
    areas: dict[str, list[float]] = {}
    thirty = []
    for seed in range(films):
        film = Passers(PassersConfig(frames=100, faces=6, plates=2, seed=seed))
        frames, truths = zip(*(film.frame(n) for n in range(100)))
        yunet, rng = YuNet(), np.random.default_rng(seed)
        single = [grown(yunet.find([f.image])[0].xyxy, 0.3, film.config.size) for f in frames]
        rows = {"frame by frame, .3": single, "through the gate": gate_boxes(list(frames), CoverGate(ON))}
        others = peer(python, [f.image for f in frames])
        if others is not None:
            rows["deface .2, 1.3"] = [grown(b[:, :4], 0.3, film.config.size) for _, b in others]
        found = [_stand_in(t, rng) for t in truths]
        plates = Privacy(True, "measured", CoverSettings(regions=("vehicles",)))
        gate = CoverGate(plates, ("car",))
        rows["plates, through the gate"] = gate_boxes(list(frames), gate, found)
        rows["plates, frame by frame"] = [grown(d.xyxy, 0.3, film.config.size) for d in found]
        for name, boxes in rows.items():
            areas.setdefault(name, []).append(area_of(boxes, film.config.size))
            for k, truth in enumerate(truths):
                wanted = truth.plate if name.startswith("plates") else ~truth.plate
                for box, seen in zip(truth.xyxy[wanted], truth.visible[wanted]):
                    if seen >= 1 / 3:
                        leak = share(box, boxes[k]) < 0.8
                        ways.setdefault(name, []).append(leak)
                        if leak and name == "through the gate":
                            thirty.append((seed, k, round(float(box[2] - box[0])), round(float(seen), 2)))
    print(HEAD)
    for name, leaks in ways.items():
        print(row(name, sum(leaks), len(leaks), float(np.mean(areas[name]))))
    print("leaks of the gate (film, frame, width, visible):", thirty[:40])


def _stand_in(truth, rng) -> Detections:
    "A detector of plates that misses one in ten, errs by 4 %, and misses what is half hidden."
    rows = truth.plate & (truth.visible > 0.5)
    rows[rows] &= rng.random(rows.sum()) > 0.1
    boxes = truth.xyxy[rows]
    side = (boxes[:, 2:] - boxes[:, :2]).repeat(2, 0).reshape(-1, 4) if len(boxes) else boxes
    boxes = boxes + rng.normal(0, 0.04, boxes.shape) * side
    return Detections(boxes, np.ones(len(boxes)), np.zeros(len(boxes)))


def film(python: str | None, first: int = 0, last: int = 10_000) -> None:
    "The real clip: faces that YuNet at 1.5 times the size (.5) and CenterFace (.5) agree on."
    root = os.environ.get("CV_PIPELINE_REAL_DATA")
    if not root:
        return print("CV_PIPELINE_REAL_DATA is not set: not measured")
    path = Path(root) / "videos/one-by-one-person-detection.mp4"
    images = [p.image for n, p in enumerate(decode_video(path, threads=1)) if first <= n < last]
    from datetime import datetime, timedelta, timezone

    noon = datetime(2026, 1, 1, tzinfo=timezone.utc)
    frames = [Frame(i, "clip", n, noon + timedelta(seconds=n / 10)) for n, i in enumerate(images)]
    size, strict, yunet = frames[0].size, YuNet(conf=0.5, side=2000), YuNet()
    large = lambda image: cv2.resize(image, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC)
    first_found = [strict.find([large(i)])[0].xyxy / 1.5 for i in images]
    others = peer(python, images)
    reference = []
    for k in range(len(images)):
        mine = first_found[k]
        if others is not None:
            theirs = others[k][1][others[k][1][:, 4] >= 0.5][:, :4]
            mine = np.array([b for b in mine if any(_overlap(b, t) > 0.3 for t in theirs)]).reshape(-1, 4)
        reference.append(np.clip(mine, 0, [*size, *size]))
    began = time.process_time()
    rows = {"through the gate": gate_boxes(frames, CoverGate(ON))}
    spent = time.process_time() - began
    usual = YuNet(conf=0.7)
    for way, finder in (("frame by frame, .3", yunet), ("frame by frame, .7", usual)):
        rows[way] = [grown(finder.find([i])[0].xyxy, 0.3, size) for i in images]
    if others is not None:
        rows["deface .2, 1.3"] = [grown(b[:, :4], 0.3, size) for _, b in others]
    who = "two detectors" if others is not None else "YuNet alone (deface was not there)"
    print(
        f"{len(images)} frames, faces by {who}; gate {spent / len(images) * 1e3:.1f} CPU ms a frame\n{HEAD}"
    )
    for name, boxes in rows.items():
        leaks = [share(b, boxes[k]) < 0.8 for k in range(len(images)) for b in reference[k]]
        print(row(name, sum(leaks), len(leaks), area_of(boxes, size)))


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:4], b[2:4])
    both = float(np.prod(np.maximum(high - low, 0)))
    return both / (float(np.prod(a[2:4] - a[:2]) + np.prod(b[2:4] - b[:2])) - both)


def speed(python: str | None, frames: int = 12) -> None:
    "CPU seconds a 1080p frame."
    cv2.setNumThreads(1)
    film_ = Passers(PassersConfig(frames=frames, size=(1920, 1080), seed=1))
    images, finder = [film_.frame(n)[0].image for n in range(frames)], YuNet()
    finder.find(images[:1])
    mine = []
    for image in images:
        began = time.process_time()
        finder.find([image])
        mine.append(time.process_time() - began)
    others = peer(python, images)
    print(f"YuNet at 640: {np.median(mine) * 1e3:.1f} CPU ms a 1080p frame")
    if others is not None:
        theirs = np.median([s for s, _ in others[1:]])
        print(
            f"CenterFace as deface runs it: {theirs * 1e3:.1f} CPU ms, ratio {theirs / np.median(mine):.1f}"
        )
    boxes = grown(np.random.default_rng(0).uniform(0, 900, (300, 1)) + [[0, 0, 60, 60]], 0.3, (1920, 1080))
    for how in ("solid", "blur", "pixelate"):
        began = time.process_time()
        cover(images[0].copy(), boxes, how)
        print(f"{how}: {(time.process_time() - began) / len(boxes) * 1e3:.4f} CPU ms a face")


def run(rounds: int = 3, frames: int = 100) -> None:
    "CPU seconds of a whole run with film, two cameras, with and without a cover; in turn."
    cv2.setNumThreads(1)
    spent: dict[bool, list[float]] = {True: [], False: []}
    for k in range(2 * rounds):
        on = k % 2 == 0
        with tempfile.TemporaryDirectory() as folder:
            model = load_model("factory_line", threads=1)
            sources = [Passers(PassersConfig(frames=frames, seed=s), f"camera-{s}") for s in range(2)]
            for s in sources:  # drawing the film is not part of the run
                s._frames = [s.frame(n)[0] for n in range(frames)]
                s.__class__ = Drawn
            pipeline = Pipeline(sources, model)
            pipeline.privacy = replace(ON, on=on)
            pipeline.attach([VideoSink(folder, threads=1)])
            began = time.process_time()
            pipeline.run()
            spent[on].append(time.process_time() - began)
            model.close()
    with_, without = (float(np.median(spent[on])) for on in (True, False))
    print(f"without {without:.2f} CPU s, with {with_:.2f} CPU s for {2 * frames} frames of 640 × 360")
    print(f"speed with a cover: {without / with_:.2f} of the speed without")
    cores = [f"{t / frames * 10:.2f} cores {word}" for t, word in ((with_, "with"), (without, "without"))]
    print(f"two cameras at 10 frames per second need {', '.join(cores)} a cover")


class Drawn(Passers):
    "A film whose frames are drawn already."

    def __iter__(self):
        return iter(self._frames)


def attack(python: str | None) -> None:
    "Real faces of the clip where it is there: fires again, and matched by the nearest of the covered ones."
    root = os.environ.get("CV_PIPELINE_REAL_DATA")
    if not root:
        return print("CV_PIPELINE_REAL_DATA is not set: not measured")
    finder, faces = YuNet(conf=0.7), []
    sources = sorted((Path(root) / "voc100").rglob("*.jpg"))
    for path in sources:
        image = cv2.imread(str(path))
        for box in finder.find([image])[0].xyxy:
            if box[2] - box[0] >= 24 and (box > 0).all():
                faces.append((image, box))
    rng, weak = np.random.default_rng(0), YuNet(conf=0.3)
    print(f"{len(faces)} real faces, chance {1 / max(len(faces), 1):.3f}")
    print("| cover | fires | matched |\n|---|---|---|")
    for how in (None, "blur", "pixelate", "solid"):
        first, again, fires = [], [], []
        for image, box in faces:
            made = []
            for other in (False, True):
                shown = _other(image, rng) if other else image
                rows = grown(box[None], 0.3, (image.shape[1], image.shape[0]))
                shown = shown.copy() if how is None else cover(shown.copy(), rows, how)
                x1, y1, x2, y2 = rows[0]
                made.append(_vector(shown[y1:y2, x1:x2]))
                if other:
                    found = weak.find([shown])[0].xyxy
                    fires.append(any(_overlap(b, box) > 0.3 for b in found))
            first.append(made[0])
            again.append(made[1])
        likeness = np.array(again) @ np.array(first).T + rng.normal(0, 1e-6, (len(faces), len(faces)))
        matched = float((likeness.argmax(axis=1) == np.arange(len(faces))).mean())
        print(f"| {how or 'nothing'} | {np.mean(fires):.3f} | {matched:.3f} |")


def _other(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    "The same scene again: moved by a pixel, lit differently, JPEG."
    dx, dy = rng.integers(-2, 3, 2)
    moved = cv2.warpAffine(image, np.float32([[1, 0, dx], [0, 1, dy]]), image.shape[1::-1], borderMode=1)
    lit = np.clip(moved * rng.uniform(0.85, 1.15) + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
    return cv2.imdecode(cv2.imencode(".jpg", lit, [cv2.IMWRITE_JPEG_QUALITY, 75])[1], cv2.IMREAD_COLOR)


def _vector(part: np.ndarray) -> np.ndarray:
    small = cv2.resize(part, (32, 32), interpolation=cv2.INTER_AREA).astype(float).ravel()
    return (small - small.mean()) / max(float(small.std()), 1e-6)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("parts", nargs="*", default=list(PARTS))
    asked.add_argument("--deface", help="a Python with deface installed")
    options = asked.parse_args()
    for part in options.parts:
        print(f"\n## {part}")
        run() if part == "run" else globals()[part](options.deface)


if __name__ == "__main__":
    main()
