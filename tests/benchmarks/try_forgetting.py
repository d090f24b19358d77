"""Forgetting: a detector that knows gears and bolts learns nuts and brackets; AP of old and new parts with
and without replay of old pictures.

Pictures: quarters (160x120) of frames of many factory lines, a third of them undisturbed; all four parts are
in all of them. In the old pictures people labelled gears and bolts only, in the new ones nuts and brackets
only. The old detector is the bundled one, trained on for a while on old pictures with its other classes cut
off; what lies below its last layer has seen all parts before, and stands for a pretrained backbone. From
there, the same number of epochs: new pictures alone; old and new mixed, each with the labels that it has; the
same mix, completed by a teacher of the new parts and the old detector (`Replay`). Beside them what could be
had if people had labelled all parts in both. Test: pictures of other lines, all labelled. `--full` writes
forgetting.csv beside this file. Quick: one seed, tiny, only to see that it runs.
"""

import argparse
import csv
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

from cv_pipeline.core.formats import read_dataset
from cv_pipeline.core.types import Detections
from cv_pipeline.evaluation.intervals import ap_interval, clusters, draw_weights, picture_counts
from cv_pipeline.evaluation.metrics import match_set
from cv_pipeline.evaluation.records import predict_set
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.conditions import Conditions, random_conditions
from cv_pipeline.synthetic.line import write_dataset
from cv_pipeline.synthetic.parts import CLASS_NAMES, seeded
from cv_pipeline.training.gate import among
from cv_pipeline.training.samples import Replay
from cv_pipeline.training.train import TrainSettings, train

WIDTH, HEIGHT = 160, 120
OLD, NEW = ("gear", "bolt"), ("nut", "bracket")
TABLE = Path(__file__).with_name("forgetting.csv")


def quarters(seed: int, n: int):
    "(frame, truth) of n quarters of frames of many lines."
    for j in range(-(-n // 8)):
        rng = seeded(seed, "line", j)
        line = FactoryLine(
            LineConfig(
                size=(2 * WIDTH, 2 * HEIGHT), seed=seed * 10_000 + j, density=9, class_weights=(1, 1, 1, 1, 0)
            )
        )
        for k in range(2):
            line.conditions = {0: Conditions() if rng.random() < 0.3 else random_conditions(rng)}
            frame, truth = line.render(int(k * 75 + rng.integers(40)))
            for q, (x, y) in enumerate(((0, 0), (WIDTH, 0), (0, HEIGHT), (WIDTH, HEIGHT))):
                if j * 8 + k * 4 + q < n:
                    yield cut(frame, truth, x, y, f"line{j:04d}-{q}")


def cut(frame, truth, x: int, y: int, name: str):
    "One quarter; what is cut off is less visible."
    d = truth.detections
    box = np.clip(d.xyxy - np.float32([x, y, x, y]), 0, [WIDTH, HEIGHT] * 2)
    share = np.prod(box[:, 2:] - box[:, :2], axis=1) / np.maximum(d.area, 1)
    rows = share > 0
    seen = Detections(
        box[rows],
        None,
        d.class_id[rows],
        d.tracker_id[rows],
        {"visibility": (d.data["visibility"] * share)[rows].astype(np.float32)},
    )
    part = replace(
        frame, image=np.ascontiguousarray(frame.image[y : y + HEIGHT, x : x + WIDTH]), source_id=name
    )
    return part, replace(truth, detections=seen)


def written(folder: Path, seed: int, n: int, names=CLASS_NAMES) -> Path:
    "A dataset with these classes labelled; a fifth of the pictures for validation."
    for k, (side, count) in enumerate((("train", n), ("val", n // 5))):
        write_dataset(folder, quarters(seed + k, count), ["yolo"], side, suffix=".png")
    number = {CLASS_NAMES.index(name): i for i, name in enumerate(names)}
    for file in (folder / "labels").rglob("*.txt"):
        rows = (line.split(" ", 1) for line in file.read_text().splitlines())
        file.write_text("".join(f"{number[int(c)]} {rest}\n" for c, rest in rows if int(c) in number))
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {list(names)}\n")
    return folder


def score(folder: Path, items) -> dict[str, float]:
    """AP of old and of new parts with intervals, and precision and recall at confidence .35; NaN for what the
    model does not know."""
    model = load_model(folder, threads=1)
    s, found = predict_set(model, items), {}
    model.close()
    for what, names in (("old", OLD), ("new", NEW)):
        if not set(names) <= set(s.names):
            found |= {f"{k} {what}": float("nan") for k in ("AP", "AP low", "AP high", "precision", "recall")}
            continue
        part = among(s, names)
        matches, weights = match_set(part), draw_weights(clusters(part), 400)
        ap, counts = ap_interval(part, matches, weights), picture_counts(part, matches, 0.35).sum(axis=0)
        found |= {
            f"AP {what}": ap.value,
            f"AP low {what}": ap.low,
            f"AP high {what}": ap.high,
            f"precision {what}": counts[0] / max(counts[0] + counts[1], 1),
            f"recall {what}": counts[0] / (counts[0] + counts[2]),
        }
    return found


def one_seed(seed: int, work: Path, n: int, epochs: int, test, first: int):
    "Rows of the table."
    how = TrainSettings(epochs, WIDTH, augment=None, seed=seed, overrides={"mosaic": 0.0, "lr0": 0.002})
    old, new = written(work / "old", 100 * seed + 1, n, OLD), written(work / "new", 100 * seed + 11, n, NEW)
    yield "old detector", train(old, work / "before", settings=replace(how, epochs=first))
    start = work / "before"
    yield "new pictures alone", train(as_all(new, work / "new-all"), work / "alone", start, how)
    yield (
        "old and new mixed",
        train(as_all(old, work / "mixed", as_all(new, work / "new-all-2")), work / "mix", start, how),
    )
    yield (
        "replay, completed",
        train(new, work / "replay", start, replace(how, replay=Replay(old, keeper=start))),
    )
    yield "all labelled by people", train(both(work / "both", 100 * seed, n), work / "best", start, how)


def as_all(source: Path, folder: Path, more: Path | None = None) -> Path:
    "The same pictures with the list of all four classes: what nobody labelled is background."
    names = OLD + NEW
    for origin in (source, more) if more else (source,):
        for item in read_dataset(origin):
            side = item.path.parent.name
            for kind in ("images", "labels"):
                (folder / kind / side).mkdir(parents=True, exist_ok=True)
            image = folder / "images" / side / f"{origin.name}-{item.path.name}"
            image.hardlink_to(item.path)
            rows = (line.split(" ", 1) for line in item.label.read_text().splitlines())
            (folder / "labels" / side / image.with_suffix(".txt").name).write_text(
                "".join(f"{names.index(item.names[int(c)])} {rest}\n" for c, rest in rows)
            )
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {list(names)}\n")
    return folder


def both(folder: Path, seed: int, n: int) -> Path:
    "Old and new pictures with all labels."
    return as_all(
        written(folder / "a", seed + 1, n, OLD + NEW),
        folder / "all",
        written(folder / "b", seed + 11, n, OLD + NEW),
    )


def run(quick: bool = False, seeds=(0, 1, 2), table: Path | None = None) -> list[dict]:
    """Rows: seed, what was trained on, AP of old and new parts with bounds, precision and recall at .35,
    labels, seconds."""
    rows, size = [], {"n": 16, "epochs": 1, "first": 1} if quick else {"n": 240, "epochs": 12, "first": 4}
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(
            Path(folder) / "test", quarters(999, 40 if quick else 400), ["yolo"], "test", suffix=".png"
        )
        items = read_dataset(Path(folder) / "test")
        for seed in seeds[:1] if quick else seeds:
            for what, done in one_seed(seed, Path(folder) / f"seed{seed}", test=items, **size):
                said = score(done.folder, items)
                pseudo = done.card["data"]["labels by a model"]
                rows.append(
                    {
                        "seed": seed,
                        "training": what,
                        **{k: f"{v:.3f}" for k, v in said.items()},
                        "labels by people": done.card["data"]["labels by people"],
                        "labels by models": sum(pseudo.values()),
                        "painted grey": done.card["data"]["places painted grey"],
                        "seconds": done.card["seconds"],
                    }
                )
                print(rows[-1], flush=True)
                if table is None:
                    continue
                with open(table, "w", newline="") as f:
                    out = csv.DictWriter(f, list(rows[0]))
                    out.writeheader()
                    out.writerows(rows)
    return rows


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="the whole experiment; writes forgetting.csv")
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = perf_counter()
    run(not args.full, tuple(args.seeds), args.out if args.full else None)
    print(f"{perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
