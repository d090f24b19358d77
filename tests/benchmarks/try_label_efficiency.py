"""Labels: a detector trained on with what each strategy chose from a stream of rare events; AP against number
of labels.

The detector: the bundled one's layout, trained from nothing on 6,000 pictures of gears, bolts and nuts in
good light: it has never met a bracket, a defect, fog or a failing lamp, not in its first layer either. The
stream: 30,000 quarters (160x120) of frames of many other lines, everything in them labelled if it is chosen.
Four kinds of events, each in about 1 picture of 1,000: a bracket; a defect; thick fog; a lamp that fails.
Everything else is what the detector knows.
Choosing: random, diversity (k-centre), uncertainty and hybrid with the defaults of `annotation.select`; the
last two in rounds, as a team works: what the detector of one budget says decides what is added for the next.
Vectors: mean and spread of the maps of the detector's first block (what `DetectorFeatures` takes). "every
event" chooses by the truth, as nobody can: what there is to be had; "nothing new": only the old pictures once
more.
Training: the whole network, from where it was, the same 400 steps for everybody: half of each batch are old
pictures, half are chosen ones (those with rare classes repeated, the same rule for all). Test: other lines,
all parts equally frequent, half of the frames in good light, a quarter each in fog and with a failing lamp.

    python -m tests.benchmarks.try_label_efficiency --full FOLDER
        # two cores: about an hour and a half; goes on where it stopped; writes label_efficiency.csv beside
        # this file

Without `--full`: one seed, tiny, only to see that it runs.
"""

import argparse
import csv
import multiprocessing
import pickle
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import yaml

from cv_pipeline.annotation.select import STRATEGIES, Candidates, SelectSettings, candidates, select
from cv_pipeline.core.types import Detections, box_iou
from cv_pipeline.evaluation.calibration import fit_platt
from cv_pipeline.inference.calibrators import apply_curve
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig, Truth
from cv_pipeline.synthetic.conditions import Conditions
from cv_pipeline.synthetic.line import average_precision
from cv_pipeline.synthetic.parts import CLASS_NAMES, seeded

WIDTH, HEIGHT, SIDE = 160, 120, 128  # of a picture; rows that the network sees (8 of them grey)
RARE = (3, 4)  # bracket, defect
EVENTS = ("bracket", "defect", "fog", "lamp_failure")
WEATHER = ({"fog": 4.0}, {"lamp_failure": 4.0})
TABLE = Path(__file__).with_name("label_efficiency.csv")
LAYOUT = """nc: 5
scales: {n: [0.33, 0.125, 1024]}
backbone: [[-1,1,Conv,[64,3,2]],[-1,1,Conv,[128,3,2]],[-1,3,C2f,[128,True]],[-1,1,Conv,[256,3,2]],
  [-1,6,C2f,[256,True]],[-1,1,Conv,[512,3,2]],[-1,6,C2f,[512,True]],[-1,1,Conv,[1024,3,2]],
  [-1,3,C2f,[1024,True]],[-1,1,SPPF,[1024,5]]]
head: [[-1,1,nn.Upsample,[None,2,nearest]],[[-1,6],1,Concat,[1]],[-1,3,C2f,[512]],
  [-1,1,nn.Upsample,[None,2,nearest]],[[-1,4],1,Concat,[1]],[-1,3,C2f,[256]],[-1,1,Conv,[256,3,2]],
  [[-1,12],1,Concat,[1]],[-1,3,C2f,[512]],[-1,1,Conv,[512,3,2]],[[-1,9],1,Concat,[1]],[-1,3,C2f,[1024]],
  [[15,18,21],1,Detect,[nc]]]
"""
FULL = {"first": 6000, "held": 1000, "pool": 30_000, "test": 800, "base_steps": 4000, "steps": 400}
TINY = {"first": 64, "held": 32, "pool": 120, "test": 40, "base_steps": 3, "steps": 2}
PLAN = {
    "hybrid": [125, 250, 500, 1000],
    "random": [250, 500, 1000, 2000, 4000],
    "uncertainty": [125, 250, 500, 1000],
    "diversity": [250, 500, 1000],
    "every event": [0],
    "none": [0],
    "nothing new": [0],
}
ROUNDS = (
    "hybrid",
    "uncertainty",
)  # the detector of each budget looks again and chooses what is added for the next one
Picture = tuple[np.ndarray, Truth, str]  # (128, 160, 3) pixels, parts, weather


def quarters(seed: int, n: int, rare: float, weather: float) -> list[Picture]:
    """n quarters of frames; `rare`: how often a part is a bracket (or a defect), against 1 for a gear;
    `weather`: probability of each weather."""
    made = []
    for j in range(-(-n // 40)):
        rng = seeded(seed, "line", j)
        line = FactoryLine(
            LineConfig(
                size=(2 * WIDTH, 2 * HEIGHT),
                seed=seed * 100_000 + j,
                density=9,
                class_weights=(1, 1, 1, rare, rare),
            )
        )
        for k in range(10):  # 8 s apart: other parts
            lot, sun = rng.random(), float(rng.random() * 0.8)
            kind = int(lot // weather) if weather and lot < weather * len(WEATHER) else None
            line.conditions = {
                0: Conditions(time_of_day=sun) if kind is None else Conditions(**WEATHER[kind])
            }
            frame, truth = line.render(int(k * 200 + rng.integers(40)))
            for x, y in ((0, 0), (WIDTH, 0), (0, HEIGHT), (WIDTH, HEIGHT)):
                made.append(
                    (*cut(frame.image, truth, x, y), "" if kind is None else next(iter(WEATHER[kind])))
                )
    return made[:n]


def cut(image: np.ndarray, truth: Truth, x: int, y: int) -> tuple[np.ndarray, Truth]:
    "One quarter on grey; what is cut off is less visible."
    d, canvas = truth.detections, np.full((SIDE, WIDTH, 3), 114, np.uint8)
    canvas[:HEIGHT] = image[y : y + HEIGHT, x : x + WIDTH]
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
    return canvas, Truth(truth.camera, truth.frame_id, truth.t, seen)


def events(pictures: list[Picture]) -> np.ndarray:
    "(n, 4) bool, see EVENTS."
    classes = np.array([np.isin(RARE, t.labelled().class_id) for _, t, _ in pictures]).reshape(-1, len(RARE))
    return np.column_stack([classes, [[w == k for k in EVENTS[2:]] for _, _, w in pictures]])


class Detector:
    "The bundled detector's layout in torch, all of it learning."

    def __init__(self, weights: dict | None = None, seed: int = 0):
        import torch
        from ultralytics.cfg import get_cfg
        from ultralytics.nn.tasks import DetectionModel

        torch.set_num_threads(1)
        torch.manual_seed(seed)
        cv2.setNumThreads(1)
        self.torch, self.net = (
            torch,
            DetectionModel({**yaml.safe_load(LAYOUT), "scale": "n"}, ch=3, verbose=False).to(
                memory_format=torch.channels_last
            ),
        )
        self.net.args, self.pooled = get_cfg(overrides={"box": 7.5, "cls": 0.5, "dfl": 1.5}), None
        if weights is not None:
            self.net.load_state_dict(weights)
        self.net.model[2].register_forward_hook(
            lambda m, i, o: setattr(
                self,
                "pooled",
                torch.cat(
                    [o[:, :, : HEIGHT // 4].mean(dim=(2, 3)), o[:, :, : HEIGHT // 4].std(dim=(2, 3))], 1
                ),
            )
        )

    def tensor(self, images: np.ndarray):
        "(n, 3, 128, 160) RGB, 0..1."
        return (
            self.torch.from_numpy(np.ascontiguousarray(images[..., ::-1])).permute(0, 3, 1, 2).float() / 255
        )

    def train(self, draw, steps: int, lr: float) -> None:
        "`draw`: step → (images (n, 128, 160, 3), their labels)."
        torch = self.torch
        self.net.train()
        opt = torch.optim.AdamW(self.net.parameters(), lr, weight_decay=1e-3)
        plan = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=steps, pct_start=0.1)
        for k in range(steps):
            images, wanted = draw(k)
            table = np.concatenate(
                [
                    np.column_stack(
                        [
                            np.full(len(d), i),
                            d.class_id,
                            (d.xyxy[:, :2] + d.xyxy[:, 2:]) / 2 / [WIDTH, SIDE],
                            (d.xyxy[:, 2:] - d.xyxy[:, :2]) / [WIDTH, SIDE],
                        ]
                    )
                    for i, d in enumerate(wanted)
                ]
            )
            t, x = torch.from_numpy(table).float(), self.tensor(images)
            with torch.autocast("cpu", torch.bfloat16):
                said = self.net(x)
            said = {
                name: [f.float() for f in v] if isinstance(v, list) else v.float() for name, v in said.items()
            }
            loss = self.net.loss(
                {"img": x, "batch_idx": t[:, 0], "cls": t[:, 1:2], "bboxes": t[:, 2:]}, said
            )[0].sum()
            opt.zero_grad()
            loss.backward()
            opt.step()
            plan.step()
            if k % 200 == 0 and steps > 1000:
                print(f"step {k} loss {loss.item() / len(images):.2f}", flush=True)

    def look(self, images, conf: float, agnostic: bool = True) -> tuple[list[Detections], np.ndarray]:
        "What it finds in each picture, and one pooled vector each of length 1."
        from ultralytics.utils.nms import non_max_suppression

        found, vectors = [], []
        self.net.eval()
        with self.torch.no_grad():
            for i in range(0, len(images), 64):
                with self.torch.autocast("cpu", self.torch.bfloat16):
                    said = self.net(self.tensor(np.asarray(images[i : i + 64])))[0].float()
                vectors.append(self.pooled.float().numpy())
                found += [
                    Detections(r[:, :4], r[:, 4], r[:, 5])
                    for r in (
                        t.numpy()
                        for t in non_max_suppression(
                            said, conf, 0.5, agnostic=agnostic, max_det=60, max_time_img=5.0
                        )
                    )
                ]
        v = np.concatenate(vectors)
        return found, v / np.linalg.norm(v, axis=1, keepdims=True)


def flipped(image: np.ndarray, d: Detections, rng: np.random.Generator) -> tuple[np.ndarray, Detections]:
    "The picture or its mirror image, left to right; upside down inside its own 120 rows."
    box = d.xyxy.copy()
    if rng.random() < 0.5:
        image, box[:, [0, 2]] = image[:, ::-1], WIDTH - box[:, [2, 0]]
    if rng.random() < 0.5:
        image, box[:, [1, 3]] = (
            np.concatenate([image[:HEIGHT][::-1], image[HEIGHT:]]),
            HEIGHT - box[:, [3, 1]],
        )
    return image, Detections(box, None, d.class_id)


def repeats(wanted: list[Detections], often: float = 0.1) -> np.ndarray:
    """(n,) how often a picture is drawn: more for classes in fewer than a tenth of the pictures, by the
    square root (Gupta et al. 2019, LVIS)."""
    has = np.array([np.bincount(d.class_id, minlength=len(CLASS_NAMES)) > 0 for d in wanted])
    factor = np.maximum(1, np.sqrt(often / np.maximum(has.mean(axis=0), 1e-9)))
    return np.where(has, factor, 1).max(axis=1)


def batches(old: list[Picture], new: list[Picture], seed: int, size: int = 32):
    "step → batch: half old, half new; without new ones all old."
    rng, half = np.random.default_rng(seed), size // 2
    parts = [(old, np.ones(len(old)), size - half if new else size)] + (
        [(new, repeats([t.labelled() for _, t, _ in new]), half)] if new else []
    )

    def draw(step: int):
        made = [
            flipped(p[i][0], p[i][1].labelled(), rng)
            for p, w, n in parts
            for i in rng.choice(len(p), n, p=w / w.sum())
        ]
        return np.stack([m[0] for m in made]), [m[1] for m in made]

    return draw


def score(net: Detector, test: list[Picture]) -> dict[str, float]:
    """AP of all parts in all weathers, of the rare parts, of the known parts in fog and with a failing lamp,
    and of what was known before."""
    found, _ = net.look(np.stack([p for p, _, _ in test]), 0.01, agnostic=False)
    some = lambda keep: average_precision(
        [t for (_, t, w) in test if keep(w)], [d for d, (_, _, w) in zip(found, test) if keep(w)]
    )["AP_by_class"]
    mean = lambda by, classes: round(float(np.mean([by[CLASS_NAMES[k]] for k in classes])), 4)
    whole, known = some(lambda w: True), (0, 1, 2)
    return {
        "AP": mean(whole, range(5)),
        "AP_rare": mean(whole, RARE),
        "AP_weather": mean(some(bool), known),
        "AP_known": mean(some(lambda w: not w), known),
    }


def once(path: Path, make):
    "What `make` gives, or gave the last time."
    if not path.exists():
        made, part = make(), path.with_suffix(".part")
        with open(part, "wb") as f:
            pickle.dump(made, f)
        part.replace(path)
        return made
    with open(path, "rb") as f:
        return pickle.load(f)


def base(folder: Path, size: dict) -> tuple[dict, np.ndarray]:
    "The detector that knows three parts in good light, and its vectors of the pictures that it learnt from."
    old, net = once(folder / "old.pickle", lambda: quarters(3000, size["first"], 0, 0)), Detector()
    net.train(batches(old, [], 0), size["base_steps"], 2e-3)
    return net.net.state_dict(), net.look([p for p, _, _ in old], 0.05)[1]


def stream_of(folder: Path, seed: int, size: dict) -> list[Picture]:
    return once(folder / f"stream{seed}.pickle", lambda: quarters(1000 + seed, size["pool"], 0.0014, 0.001))


def looked_at(
    net: Detector, stream: list[Picture], held: list[Picture], vectors: np.ndarray | None = None
) -> Candidates:
    "The stream as a detector sees it; confidences calibrated on pictures of the old kind."
    found = net.look([p for p, _, _ in held], 0.05)[0]
    right = [
        ((box_iou(d.xyxy, t.labelled().xyxy) >= 0.5) & (d.class_id[:, None] == t.labelled().class_id)).any(
            axis=1
        )
        for d, (_, t, _) in zip(found, held)
    ]
    curve = fit_platt(
        np.concatenate([d.confidence for d in found]).astype(float), np.concatenate(right).astype(float)
    )
    found, own = net.look([p for p, _, _ in stream], 0.05)
    return candidates(
        [f"{i:05d}" for i in range(len(stream))],
        [Detections(d.xyxy, apply_curve(curve, d.confidence.astype(float)), d.class_id) for d in found],
        CLASS_NAMES,
        own if vectors is None else vectors,
    )


def labelled_so_far(
    old: list[Picture], vectors: np.ndarray, stream: list[Picture], c: Candidates, rows: list[int]
) -> Candidates:
    "Old pictures and those of the stream that are labelled by now."
    return candidates(
        [*(f"old-{i}" for i in range(len(old))), *(c.pictures[i] for i in rows)],
        [t.labelled() for _, t, _ in [*old, *(stream[i] for i in rows)]],
        CLASS_NAMES,
        np.concatenate([vectors, c.embedding[rows]]),
    )


def one_strategy(job: tuple[Path, int, str, list[int], dict]) -> list[dict]:
    "Rows of the table, a budget each: choose, train on, test."
    folder, seed, strategy, budgets, size = job
    (weights, vectors), old = (
        once(folder / "base.pickle", lambda: base(folder, size)),
        once(folder / "old.pickle", lambda: quarters(3000, size["first"], 0, 0)),
    )
    test, held, made = (
        once(folder / "test.pickle", lambda: quarters(900, size["test"], 1, 0.25)),
        quarters(5000 + seed, size["held"], 0, 0),
        [],
    )
    stream = stream_of(folder, seed, size)
    happens, rows, net = events(stream), [], Detector(weights, seed)
    c = once(folder / f"looks{seed}.pickle", lambda: looked_at(net, stream, held))
    for budget in budgets:
        begun = time.time()
        if strategy == "every event":
            rows = np.flatnonzero(happens.any(axis=1)).tolist()
        elif strategy in ROUNDS:
            if rows:
                c = looked_at(net, stream, held, c.embedding)
            rows += [
                i
                for i, _ in select(
                    c,
                    budget - len(rows),
                    SelectSettings(strategy, seed),
                    labelled_so_far(old, vectors, stream, c, rows),
                )
            ]
        elif strategy in STRATEGIES:
            rows = [
                i
                for i, _ in select(
                    c, budget, SelectSettings(strategy, seed), labelled_so_far(old, vectors, stream, c, [])
                )
            ]
        if strategy != "none":
            net = Detector(weights, seed)
            net.train(batches(old, [stream[i] for i in rows], seed), size["steps"], 1e-3)
        made.append(
            {
                "seed": seed,
                "strategy": strategy,
                "labels": len(rows),
                **score(net, test),
                **dict(zip(EVENTS, happens[rows].sum(axis=0).tolist())),
                "events_chosen": int(happens[rows].any(axis=1).sum()),
                "events_there": int(happens.any(axis=1).sum()),
            }
        )
        print(f"{time.time() - begun:.0f} s", made[-1], flush=True)
    return made


def run(
    quick: bool = False,
    seeds=(0, 1, 2),
    folder: Path | None = None,
    table: Path | None = None,
    workers: int = 1,
) -> list[dict]:
    """Rows: seed, strategy, labels, AP (see `score`), pictures with events chosen and there. `quick` only
    shows that it runs. Strategies that are in `table` already are not done again."""
    size, plan = (TINY, {s: [4, 8] for s in PLAN}) if quick else (FULL, PLAN)
    done = list(csv.DictReader(open(table))) if table and table.exists() else []
    there = {(int(r["seed"]), r["strategy"]) for r in done}
    with tempfile.TemporaryDirectory() as other:
        folder = Path(folder or other)
        folder.mkdir(parents=True, exist_ok=True)
        todo = [
            (folder, k, s, budgets, size)
            for k in (seeds[:1] if quick else seeds)
            for s, budgets in plan.items()
            if (k, s) not in there
        ]
        once(folder / "base.pickle", lambda: base(folder, size))
        with multiprocessing.get_context("spawn").Pool(workers) if workers > 1 else nullcontext() as pool:
            for rows in (pool.imap_unordered if pool else map)(one_strategy, todo):
                done += [{k: str(v) for k, v in row.items()} for row in rows]
                if table is None:
                    continue
                with open(table, "w", newline="") as f:
                    out = csv.DictWriter(f, list(done[0]))
                    out.writeheader()
                    out.writerows(
                        sorted(done, key=lambda r: (int(r["seed"]), int(r["labels"]), r["strategy"]))
                    )
    return done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--full",
        type=Path,
        metavar="FOLDER",
        help="the whole experiment; pictures and weights are kept there (8 GB)",
    )
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.full is None:
        run(quick=True)
    else:
        run(False, tuple(args.seeds), args.full, args.out, args.workers)


if __name__ == "__main__":
    main()
