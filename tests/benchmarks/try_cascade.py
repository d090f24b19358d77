"""Cascades on the line: fitted on lines of one seed, run on lines of another beside the large model alone.

python -m tests.benchmarks.try_cascade      # a minute or two; writes cascade.csv beside this file
"""

import csv
import tempfile
import time
from pathlib import Path

import numpy as np

from cv_pipeline.apps.cascade import Example, fit_cascade, save_cascade
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.parts import CLASS_NAMES
from cv_pipeline.training.feature_head import HeadSettings, fit_head

OUT = Path(__file__).with_name("cascade.csv")


def quiet(seeds, frames, density, every=50):
    for seed in seeds:
        line = FactoryLine(LineConfig(seed=seed, hand_every=0, density=density, size=(400, 300)))
        for frame, truth in line.frames(frames * every, every=every):
            d = truth.detections[truth.detections.data["visibility"] > 0.1]
            names = [CLASS_NAMES[c] for c in d.class_id]
            yield Example(frame.image, d.xyxy, names, [(seed, int(t)) for t in d.tracker_id])


def spent(call):
    began = time.process_time()
    return call(), time.process_time() - began


def one(seed, folder, large):
    learn = list(quiet(range(seed, seed + 12), 30, 0.5))
    y = np.array([[len(e.boxes) > 0] for e in learn])
    fit_head(large, [e.image for e in learn], y, ["part"], folder / "s", HeadSettings(stride=8, imgsz=96))
    proof = list(quiet(range(seed + 100, seed + 125), 45, 0.8))
    made = fit_cascade(load_model(folder / "s", threads=1), large, proof)
    model = load_model(save_cascade(made, folder / "c"), threads=1)
    unseen = list(quiet(range(seed + 300, seed + 340), 40, 0.08))
    images, there = [e.image for e in unseen], np.array([len(e.boxes) > 0 for e in unseen])
    theirs, alone = spent(lambda: large.predict(images))
    ours, cascaded = spent(lambda: model.predict(images))
    tracks = {t for e in unseen for t in e.tracks}
    kept = lambda found: {t for e, d in zip(unseen, found) if len(d) for t in e.tracks}
    return {
        "seed": seed,
        "proof": f"{made.promises[0].good} of {made.promises[0].n} tracks",
        "limit": made.stages.limits["first"],
        "prevalence": f"{there.mean():.1%}",
        "frames": len(images),
        "tracks": len(tracks),
        "found by large": len(kept(theirs)),
        "found by cascade": len(kept(ours)),
        "CPU s large": round(alone, 2),
        "CPU s cascade": round(cascaded, 2),
        "ratio": round(alone / cascaded, 1),
        "break-even": f"{made.costs.break_even:.0%}",
    }


def main():
    large, rows = load_model("factory_line", threads=1), []
    for seed in (1000, 2000, 3000):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(one(seed, Path(folder), large))
        print(rows[-1], flush=True)
        with open(OUT, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
