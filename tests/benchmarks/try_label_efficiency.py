"""Labels: a detector retrained on what each strategy chose from a stream in which two of its five parts are rare; AP against number of labels.

The stream: quarters (160x120) of frames of many factory lines, half of them in some bad condition; a rare part (bracket or defect) is in about 1 picture of 100 (15 to 26 of 2,500 in the kept table).
The detector: the bundled one, made to forget brackets and defects (their rows of the last layer are erased), all but the last layer of its
class branch frozen; that layer is trained on 400 pictures of the first days, then anew on those and the chosen ones, as many times through all for everybody. What is frozen has seen such parts before: it stands for a pretrained backbone. In the kept
table no choice of labels makes this detector better, so it shows what was found, not how many labels are saved. Test: unseen lines, all parts equally frequent. `--full` writes
label_efficiency.csv beside this file. Quick: one seed, tiny, only to see that it runs.
"""
import argparse
import csv
from pathlib import Path

import numpy as np

from cv_pipeline.annotation.select import STRATEGIES, SelectSettings, candidates, select
from cv_pipeline.conditions import Conditions, random_conditions
from cv_pipeline.evaluation.calibration import fit_platt
from cv_pipeline.inference.backends import load_model
from cv_pipeline.inference.calibrators import apply_curve
from cv_pipeline.line import average_precision
from cv_pipeline.parts import CLASS_NAMES, seeded
from cv_pipeline.synthetic import FactoryLine, LineConfig, Truth
from cv_pipeline.types import Detections, box_iou

WIDTH, HEIGHT, SIDE = 160, 120, 128  # of a picture; rows that the network sees (8 of them grey)
RARE = (3, 4)                        # bracket, defect
TABLE = Path(__file__).with_name("label_efficiency.csv")
LAYOUT = """nc: 5
scales: {n: [0.33, 0.125, 1024]}
backbone: [[-1,1,Conv,[64,3,2]],[-1,1,Conv,[128,3,2]],[-1,3,C2f,[128,True]],[-1,1,Conv,[256,3,2]],[-1,6,C2f,[256,True]],[-1,1,Conv,[512,3,2]],
  [-1,6,C2f,[512,True]],[-1,1,Conv,[1024,3,2]],[-1,3,C2f,[1024,True]],[-1,1,SPPF,[1024,5]]]
head: [[-1,1,nn.Upsample,[None,2,nearest]],[[-1,6],1,Concat,[1]],[-1,3,C2f,[512]],[-1,1,nn.Upsample,[None,2,nearest]],[[-1,4],1,Concat,[1]],[-1,3,C2f,[256]],
  [-1,1,Conv,[256,3,2]],[[-1,12],1,Concat,[1]],[-1,3,C2f,[512]],[-1,1,Conv,[512,3,2]],[[-1,9],1,Concat,[1]],[-1,3,C2f,[1024]],[[15,18,21],1,Detect,[nc]]]
"""


def quarters(seed: int, n: int, rare: float) -> list[tuple[np.ndarray, Truth]]:
    "(128x160 pixels, truth) of n quarters of frames; `rare`: weight of brackets and defects against 1."
    made = []
    for j in range(-(-n // 40)):
        rng = seeded(seed, "line", j)
        line = FactoryLine(LineConfig(size=(2 * WIDTH, 2 * HEIGHT), seed=seed * 100_000 + j, density=9, class_weights=(1, 1, 1, rare, rare)))
        for k in range(10):
            line.conditions = {0: random_conditions(rng) if rng.random() < .5 else Conditions()}
            frame, truth = line.render(int(k * 75 + rng.integers(40)))
            for x, y in ((0, 0), (WIDTH, 0), (0, HEIGHT), (WIDTH, HEIGHT)): made.append(cut(frame.image, truth, x, y))
    return made[:n]


def cut(image: np.ndarray, truth: Truth, x: int, y: int) -> tuple[np.ndarray, Truth]:
    "One quarter on grey; what is cut off is less visible."
    d, canvas = truth.detections, np.full((SIDE, WIDTH, 3), 114, np.uint8)
    canvas[:HEIGHT] = image[y:y + HEIGHT, x:x + WIDTH]
    box = np.clip(d.xyxy - np.float32([x, y, x, y]), 0, [WIDTH, HEIGHT] * 2)
    share = np.prod(box[:, 2:] - box[:, :2], axis=1) / np.maximum(d.area, 1)
    rows = share > 0
    seen = Detections(box[rows], None, d.class_id[rows], d.tracker_id[rows], {"visibility": (d.data["visibility"] * share)[rows].astype(np.float32)})
    return canvas, Truth(truth.camera, truth.frame_id, truth.t, seen)


class Detector:
    "The bundled detector in torch; only the last layer of its class branch learns, from what the frozen rest makes of each picture, computed once."

    def __init__(self):
        import onnx
        import torch
        import yaml
        from ultralytics.cfg import get_cfg
        from ultralytics.nn.tasks import DetectionModel

        torch.set_num_threads(1)
        self.torch, self.net = torch, DetectionModel({**yaml.safe_load(LAYOUT), "scale": "n"}, ch=3, verbose=False).fuse(verbose=False)
        bundled = load_model("factory_line", threads=1)
        weights = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(str(bundled.path)).graph.initializer}
        self.net.load_state_dict({k: torch.from_numpy(weights[k].copy()) for k in self.net.state_dict()})
        self.net.args, self.head, self.inner, self.caught = get_cfg(overrides={"box": 7.5, "cls": .5, "dfl": 1.5}), self.net.model[-1], [], []
        self.net.requires_grad_(False)
        self.last = torch.nn.ModuleList(branch[-1] for branch in self.head.cv3)
        for layer in self.last: layer.weight[list(RARE)], layer.bias[list(RARE)] = 0, -6.0
        self.first = {k: v.clone() for k, v in self.last.state_dict().items()}
        self.last.requires_grad_(True)
        self.net.model[9].register_forward_hook(lambda m, i, o: self.inner.append(o.mean(dim=(2, 3)).numpy()))
        self.head.register_forward_pre_hook(lambda m, i: self.caught.append(self._frozen(i[0])))

    def _frozen(self, feats):
        "Boxes (n, 64, cells), and for each level what the last layer of the class branch sees."
        hidden = [branch[1](branch[0](f)) for branch, f in zip(self.head.cv3, feats)]
        boxes = self.torch.cat([branch(f).flatten(2) for branch, f in zip(self.head.cv2, feats)], 2)
        return [t.half() for t in (boxes, *hidden)]

    def features(self, pictures):
        "What the frozen part makes of pictures, and one pooled vector each."
        self.caught, self.inner = [], []
        self.net.eval()
        with self.torch.no_grad():
            for i in range(0, len(pictures), 64):
                batch = np.ascontiguousarray(np.stack(pictures[i:i + 64])[..., ::-1].transpose(0, 3, 1, 2))
                self.net(self.torch.from_numpy(batch).float() / 255)
        vectors = np.concatenate(self.inner)
        return [self.torch.cat([part[k] for part in self.caught]) for k in range(4)], vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def said(self, maps, rows):
        hidden = [m[rows].float() for m in maps[1:]]
        return {"boxes": maps[0][rows].float(), "scores": self.torch.cat([layer(h).flatten(2) for layer, h in zip(self.last, hidden)], 2), "feats": hidden}

    def train(self, maps, truths, rows, epochs: int, seed: int, batch: int = 32, lr: float = 1e-2):
        "The last layer, from its first state; so many times through all pictures."
        torch, rng = self.torch, np.random.default_rng(seed)
        self.last.load_state_dict(self.first)
        self.net.train()
        steps = max(2, epochs * len(rows) // batch)
        opt = torch.optim.AdamW(self.last.parameters(), lr, weight_decay=1e-3)
        plan = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=steps, pct_start=.1)
        order = np.concatenate([rng.permutation(rows) for _ in range(epochs + 1)])
        for k in range(steps):
            part = order[k * batch:(k + 1) * batch]
            wanted = [truths[i].labelled() for i in part]
            table = np.concatenate([np.column_stack([np.full(len(d), i), d.class_id, (d.xyxy[:, :2] + d.xyxy[:, 2:]) / 2 / [WIDTH, SIDE], (d.xyxy[:, 2:] - d.xyxy[:, :2]) / [WIDTH, SIDE]]) for i, d in enumerate(wanted)])
            t = torch.from_numpy(table).float()
            loss = self.net.loss({"img": torch.zeros(1, 3, SIDE, WIDTH), "batch_idx": t[:, 0], "cls": t[:, 1:2], "bboxes": t[:, 2:]}, self.said(maps, part))[0].sum()
            opt.zero_grad(); loss.backward(); opt.step(); plan.step()

    def look(self, maps, conf: float, agnostic: bool = True) -> list[Detections]:
        from ultralytics.utils.nms import non_max_suppression

        found = []
        self.net.eval()
        with self.torch.no_grad():
            for i in range(0, len(maps[0]), 256):
                said = self.head._inference(self.said(maps, slice(i, i + 256)))
                found += [Detections(r[:, :4], r[:, 4], r[:, 5]) for r in (t.numpy() for t in non_max_suppression(said, conf, .5, agnostic=agnostic, max_det=60, max_time_img=5.0))]
        return found


def calibrated(found: list[Detections], truths) -> dict:
    "Platt's line for all classes together: is a box right (overlap .5, same class)?"
    wanted = [t.labelled() for t in truths]
    right = [((box_iou(d.xyxy, w.xyxy) >= .5) & (d.class_id[:, None] == w.class_id)).any(axis=1) for d, w in zip(found, wanted)]
    return fit_platt(np.concatenate([d.confidence for d in found]).astype(float), np.concatenate(right).astype(float))


def score(net: Detector, maps, truths) -> dict[str, float]:
    "AP of all five parts, and of the two rare ones."
    said = average_precision(truths, net.look(maps, .01, agnostic=False))
    return {"AP": said["AP"], "AP_rare": round(sum(said["AP_by_class"][CLASS_NAMES[k]] for k in RARE) / len(RARE), 4)}


def one_seed(seed: int, plan: dict[str, list[int]], pool: int, first: int, epochs: int, rare: tuple[float, float], test):
    "Rows of the table for one stream and one lot."
    old, held, stream = quarters(3000 + seed, first, rare[0]), quarters(5000 + seed, first // 2, rare[0]), quarters(1000 + seed, pool, rare[1])
    net, pairs = Detector(), old + stream
    truths = [t for _, t in pairs]
    maps, vectors = net.features([p for p, _ in pairs])
    net.train(maps, truths, np.arange(len(old)), epochs, seed)  # the detector that looks at the stream
    begin = score(net, *test(net))
    curve = calibrated(net.look(net.features([p for p, _ in held])[0], .05), [t for _, t in held])
    found = [Detections(d.xyxy, apply_curve(curve, d.confidence.astype(float)), d.class_id) for d in net.look([m[len(old):] for m in maps], .05)]
    c = candidates([f"{i:05d}" for i in range(pool)], found, CLASS_NAMES, vectors[len(old):])
    labelled = candidates([f"old-{i}" for i in range(len(old))], [t.labelled() for _, t in old], CLASS_NAMES, vectors[:len(old)])
    odd = np.array([np.isin(t.labelled().class_id, RARE).any() for _, t in stream])
    yield {"seed": seed, "strategy": "none", "labels": 0, **begin, "rare_chosen": 0, "rare_there": int(odd.sum())}
    print(len(old), "first pictures,", sum(np.isin(t.labelled().class_id, RARE).any() for _, t in old), "with rare parts; curve", curve, flush=True)
    for budget, strategy in sorted((b, s) for s, budgets in plan.items() for b in budgets):
        rows = np.array([i for i, _ in select(c, budget, strategy, SelectSettings(seed=seed), labelled)])
        net.train(maps, truths, np.concatenate([np.arange(len(old)), len(old) + rows]), epochs, seed)
        yield {"seed": seed, "strategy": strategy, "labels": budget, **score(net, *test(net)), "rare_chosen": int(odd[rows].sum()), "rare_there": int(odd.sum())}


def run(quick: bool = False, seeds=(0, 1, 2), table: Path | None = None) -> list[dict]:
    "Rows: seed, strategy, labels, AP of everything and of the rare parts, pictures with rare parts chosen and there. `quick` only shows that it runs."
    plan = {s: [8] for s in STRATEGIES} if quick else {"random": [50, 100, 200, 400], "hybrid": [50, 100, 200], "uncertainty": [100], "diversity": [100]}
    size = {"pool": 80, "first": 40, "epochs": 2, "rare": (.1, .05)} if quick else {"pool": 2500, "first": 400, "epochs": 20, "rare": (.02, .006)}
    pairs, kept, rows = quarters(900, 40 if quick else 320, 1), {}, []

    def test(net):
        if "maps" not in kept: kept["maps"] = net.features([p for p, _ in pairs])[0]
        return kept["maps"], [t for _, t in pairs]

    for seed in seeds[:1] if quick else seeds:
        for row in one_seed(seed, plan, test=test, **size):
            rows.append(row)
            if table is None: continue
            with open(table, "w", newline="") as f:
                out = csv.DictWriter(f, list(rows[0]))
                out.writeheader(); out.writerows(rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="the whole experiment; writes label_efficiency.csv")
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    for row in run(not args.full, tuple(args.seeds), args.out if args.full else None): print(row)


if __name__ == "__main__": main()
