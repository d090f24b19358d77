"""Tiles against whole frames, SAHI and supervision's slicer: objects found, calls and processor time a frame.

    python -m tests.benchmarks.try_tiles table              # our rows, on the bundled detector
    python -m tests.benchmarks.try_tiles photos DATA MODEL  # on real photos, with a COCO detector
    ORACLE/bin/python tests/benchmarks/try_tiles.py record  # in an environment with sahi and supervision

`record` writes tests/core/tile_oracles.npz: what the mergers of sahi and supervision keep of random sets of
boxes, so that the comparison runs without them. Nothing here asserts a speed.
"""

import sys
from pathlib import Path

import numpy as np

ORACLES = Path(__file__).parents[1] / "core" / "tile_oracles.npz"
SIZE, TILE, OVERLAP = (1000, 760), 320, 0.2


def starts(length):
    "As in core.tiles, written again: the oracles' environment has no cv_pipeline."
    count = int(np.ceil((length - TILE) / (TILE * (1 - OVERLAP)))) + 1
    return np.rint(np.linspace(0, length - TILE, count)).astype(int)


def tiles():
    "(k, 4) of the frame, row by row."
    left, top = (axis.ravel() for axis in np.meshgrid(starts(SIZE[0]), starts(SIZE[1])))
    return np.stack([left, top, left + TILE, top + TILE], 1)


def layout(seed):
    """Objects (n, 4) of 8 to 400 pixels that do not touch, and what a detector with errors of half a pixel or
    2 % finds of them in each tile: boxes, confidences, tiles."""
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(np.log(8), np.log(60), (14, 2)))
    if seed % 2:
        sides[:2] = rng.uniform(150, 400, (2, 2))
    corner = rng.uniform(0, 1, (14, 2)) * (np.array(SIZE) - sides)
    objects = np.concatenate([corner, corner + sides], 1)
    keep = [0]
    for i in range(1, len(objects)):
        o, k = objects[i], objects[keep]
        apart = (np.minimum(o[2:], k[:, 2:]) + 4 < np.maximum(o[:2], k[:, :2])).any(1)
        keep += [i] if apart.all() else []
    objects, rows = objects[keep], []
    for tile, edges in enumerate(tiles()):
        for o in objects:
            cut = np.concatenate([np.maximum(o[:2], edges[:2]), np.minimum(o[2:], edges[2:])])
            side, full = cut[2:] - cut[:2], o[2:] - o[:2]
            if (side < 6).any() or side.prod() < 0.15 * full.prod():
                continue
            noise = rng.normal(0, 1, 4) * np.maximum(0.5, 0.02 * np.tile(side, 2))
            inner = np.abs(cut - edges) < 1  # at the border of a tile a detector's box ends at the border
            cut = np.where(inner, cut, cut + noise)
            cut = np.concatenate([np.maximum(cut[:2], edges[:2]), np.minimum(cut[2:], edges[2:])])
            rows.append([*cut.round(1), round(float(rng.uniform(0.4, 0.95)), 3), tile])
    return objects, np.array(rows)


def record(count=105):
    "What each merger keeps of the same sets; corners rounded to whole pixels."
    import supervision as sv
    from sahi.postprocess.combine import GreedyNMMPostprocess, NMMPostprocess, NMSPostprocess
    from sahi.prediction import ObjectPrediction

    mergers = {
        "sahi GREEDYNMM IOS": GreedyNMMPostprocess(0.5, "IOS"),
        "sahi NMM IOS": NMMPostprocess(0.5, "IOS"),
        "sahi NMS IOU": NMSPostprocess(0.5, "IOU"),
    }
    kept = {name: [] for name in (*mergers, "supervision NMS IOU", "supervision NMM IOS")}
    for seed in range(count):
        _, rows = layout(seed)
        for name, merge in mergers.items():
            given = [
                ObjectPrediction([*map(float, r[:4])], 0, score=float(r[4]), full_shape=[SIZE[1], SIZE[0]])
                for r in rows
            ]
            kept[name].append(sorted([round(v) for v in p.bbox.to_xyxy()] for p in merge(given)))
        d = sv.Detections(
            rows[:, :4].astype(np.float32), confidence=rows[:, 4], class_id=np.zeros(len(rows), int)
        )
        merged = d.with_nmm(0.5, overlap_metric=sv.OverlapMetric.IOS)
        for name, found in (("supervision NMS IOU", d.with_nms(0.5)), ("supervision NMM IOS", merged)):
            kept[name].append(sorted(np.rint(found.xyxy).astype(int).tolist()))
    packed = {}
    for name, sets in kept.items():
        packed[f"{name}|count"] = np.array([len(boxes) for boxes in sets], np.uint8)
        packed[f"{name}|boxes"] = np.concatenate([np.reshape(boxes, (-1, 4)) for boxes in sets]).astype(
            np.int16
        )
    np.savez_compressed(ORACLES, **packed)
    print(f"{ORACLES.name}: {ORACLES.stat().st_size / 1000:.0f} kB")


def hall(size, frames, scales, seed=0, still=0.5):
    """A large hall with small belts (frames, truth): the first half of them stand still. What a camera under
    the roof sees; parts of 15 to 35 pixels."""
    import cv2

    from cv_pipeline.core.types import Detections
    from cv_pipeline.synthetic.belt import FactoryLine, LineConfig

    rng, (w, h) = np.random.default_rng(seed), size
    floor = rng.integers(90, 150, (h // 40, w // 40, 3)).astype(np.uint8)
    floor = cv2.resize(floor, size, interpolation=cv2.INTER_CUBIC)
    cells = [(x, y) for y in range(0, h - 239, 240) for x in range(0, w - 319, 320)]
    places = [cells[k] for k in rng.permutation(len(cells))[: len(scales)]]
    how = {"size": (320, 240), "density": 4, "hand_every": 0, "speed": 60}
    belts = [
        list(FactoryLine(LineConfig(seed=seed * 100 + k, **how)).frames(frames)) for k in range(len(scales))
    ]
    for i in range(frames):
        image, boxes, classes = floor.copy(), [], []
        for k, ((x, y), scale) in enumerate(zip(places, scales)):
            frame, truth = belts[k][0 if k < still * len(scales) else i]
            small = cv2.resize(frame.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            image[y : y + small.shape[0], x : x + small.shape[1]] = small
            parts = truth.labelled(0.6)
            boxes.append(parts.xyxy * np.float32(scale) + np.array([x, y, x, y], np.float32))
            classes.append(parts.class_id)
        noise = rng.normal(0, 2, (h, w, 1)).astype(np.float32)
        yield (
            np.clip(image + noise, 0, 255).astype(np.uint8),
            Detections(np.concatenate(boxes), None, np.concatenate(classes)),
        )


class Counted:
    "A backend that counts what the network is given."

    def __init__(self, inner):
        self.inner, self.inputs = inner, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def infer(self, batch):
        self.inputs += len(batch)
        return self.inner.infer(batch)


def by_motion(model):
    "A function of one camera's frames: tiles that changed, as the pipeline selects them."
    from datetime import datetime, timedelta, timezone

    from cv_pipeline.core.types import Frame
    from cv_pipeline.tracking.sort import SortTracker
    from cv_pipeline.tracking.tile_selection import TileSelector

    selector, tracker, plain = (
        TileSelector(model.tiles, model),
        SortTracker(frame_rate=25),
        model.with_tiles(),
    )
    plain.tiles, start, count = None, datetime(2026, 6, 1, tzinfo=timezone.utc), iter(range(10**6))

    def find(image):
        number = next(count)
        frame = Frame(image, "hall", number, start + timedelta(seconds=number / 25))
        look = selector.select(frame)
        parts = plain.predict([look.plan.view(image, t) for t in look.tiles])
        found = tracker.update(selector.join(look, parts, model.manifest.postprocess), frame)
        selector.observe(frame, found, tracker)
        return found

    return find


def by_sahi(model, side):
    "SAHI's sliced prediction with the same network, and the whole frame as one more slice."
    from sahi.models.base import DetectionModel
    from sahi.predict import get_sliced_prediction
    from sahi.prediction import ObjectPrediction

    from cv_pipeline.core.types import Detections

    class Ours(DetectionModel):
        def __init__(self):
            super().__init__(model_path="", load_at_init=False, device="cpu")
            self.category_mapping = {str(i): name for i, name in enumerate(model.manifest.names)}

        def check_dependencies(self, *args):
            pass

        def load_model(self):
            pass

        def perform_inference(self, image):
            images = image if isinstance(image, list) else [image]
            self.found = model.predict([np.ascontiguousarray(i[..., ::-1]) for i in images])  # it gives RGB

        def _create_object_prediction_list_from_original_predictions(
            self, shift_amount_list=None, full_shape_list=None
        ):
            many = lambda given, usual: given if given and isinstance(given[0], list) else [given or usual]
            moves, shapes = many(shift_amount_list, [0, 0]), many(full_shape_list, None)
            self._object_prediction_list_per_image = [
                [
                    ObjectPrediction(
                        b, int(c), str(int(c)), score=float(s), shift_amount=move, full_shape=shape
                    )
                    for b, s, c in zip(d.xyxy.tolist(), d.confidence, d.class_id)
                ]
                for d, move, shape in zip(self.found, moves, shapes)
            ]

    asked = Ours()

    def find(image):
        made = get_sliced_prediction(
            np.ascontiguousarray(image[..., ::-1]),
            asked,
            slice_height=side,
            slice_width=side,
            overlap_height_ratio=0.2,
            overlap_width_ratio=0.2,
            verbose=0,
        ).object_prediction_list
        boxes = [p.bbox.to_xyxy() for p in made]
        return Detections(boxes, [p.score.value for p in made], [p.category.id for p in made])

    return find


def by_supervision(model, side):
    "supervision's slicer with the same network."
    import supervision as sv

    def one(image):
        d = model.predict([image])[0]
        return sv.Detections(d.xyxy, confidence=d.confidence, class_id=d.class_id.astype(int))

    slicer = sv.InferenceSlicer(one, slice_wh=(side, side), overlap_wh=(side // 5, side // 5))
    return lambda image: slicer(image)


BINS = (0, 20, 26, 1000)  # pixels: square root of a box's area


def judged(rows):
    "Recall by size and over all, and precision, of (truth, found) of several frames."
    from cv_pipeline.core.types import box_iou

    hits, counts, right, boxes = np.zeros(len(BINS) - 1), np.zeros(len(BINS) - 1), 0, 0
    for truth, found in rows:
        over = box_iou(truth.xyxy, np.asarray(found.xyxy, np.float32).reshape(-1, 4)) > 0.5
        over &= truth.class_id[:, None] == np.asarray(found.class_id)
        side = np.sqrt((truth.xyxy[:, 2:] - truth.xyxy[:, :2]).prod(axis=1))
        kind = np.searchsorted(BINS, side, "right") - 1
        np.add.at(counts, kind, 1)
        np.add.at(hits, kind[over.any(axis=1)], 1)
        right, boxes = (
            right + min(int(over.any(axis=1).sum()), int(over.any(axis=0).sum())),
            boxes + over.shape[1],
        )
    return [*(hits / np.maximum(counts, 1)), hits.sum() / counts.sum(), right / max(boxes, 1)], counts


def ways_of(model, side, motion=None):
    "Name → function of a picture; what is not installed is left out, and reported."
    always = model.with_tiles(side)
    ways = {"whole frame": lambda image: model.predict([image])[0]}
    ways["tiles, always"] = lambda image: always.predict([image])[0]
    if motion is not None:
        ways["tiles, motion"] = motion(model.with_tiles(side, when="motion"))
    for name, maker in (("SAHI", by_sahi), ("supervision's slicer", by_supervision)):
        try:
            ways[name] = maker(model, side)
        except ImportError as e:
            print(f"{name}: not measured, {e}")
    return ways


def table(frames=8, size=(3840, 2160), belts=16):
    "Rows of the table in docs/benchmarks.md; the first frame, in which everything is new, is not counted."
    from dataclasses import replace
    from time import process_time

    from cv_pipeline.inference.loading import load_model

    opened = load_model("factory_line", threads=1).with_postprocess(conf=0.5, max_det=3000)
    model = replace(opened, backend=Counted(opened.backend))
    scales = np.random.default_rng(0).uniform(0.5, 0.75, belts)
    ways = ways_of(model, 320, by_motion)
    results = {name: [] for name in ways}
    spent, inputs = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0)
    for i, (image, truth) in enumerate(hall(size, frames + 1, scales)):
        for name, find in ways.items():
            before, began = model.backend.inputs, process_time()
            found = find(image)
            if i:
                spent[name] += process_time() - began
                inputs[name] += model.backend.inputs - before
                results[name].append((truth, found))
    for name, rows in results.items():
        numbers, counts = judged(rows)
        text = " | ".join(f"{v:.3f}" for v in numbers)
        print(f"| {name} | {inputs[name] / frames:.1f} | {text} | {spent[name] / frames:.2f} |", flush=True)
    print("objects by size", counts.astype(int).tolist(), "in", frames, "frames")


def photos(folder, path):
    "How many objects of each kind are found in aerial photos without truth."
    from collections import Counter
    from dataclasses import replace
    from time import process_time

    from cv_pipeline.core.images import read_image
    from cv_pipeline.inference.loading import load_model

    opened = load_model(path, threads=1)
    for photo in sorted(p for p in Path(folder).iterdir() if p.suffix in (".jpg", ".jpeg", ".png")):
        image, model = read_image(photo), replace(opened, backend=Counted(opened.backend))
        for name, find in ways_of(model, 320).items():
            before, began = model.backend.inputs, process_time()
            found = find(image)
            kinds = Counter(model.manifest.names[int(c)] for c in found.class_id).most_common(4)
            spent = process_time() - began
            print(
                f"{photo.name} {name}: {model.backend.inputs - before} calls, {spent:.2f} s, {dict(kinds)}",
                flush=True,
            )


if __name__ == "__main__":
    command = sys.argv[1] if len(sys.argv) > 1 else "table"
    {"record": record, "table": table, "photos": photos}[command](*sys.argv[2:])
