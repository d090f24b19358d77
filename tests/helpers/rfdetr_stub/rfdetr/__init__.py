"""A stand-in for RF-DETR's package: same names, same files, no network. It learns nothing and finds the same
boxes in every picture, those of `detr.onnx`. RFDETR_STUB says how it fails."""

import json
import logging
import math
import os
import shutil
import signal
import zipfile
from pathlib import Path

from pytorch_lightning.callbacks import Checkpoint

from rfdetr import training as parts
from rfdetr.config import ModelConfig

HERE = Path(__file__).parent
KNOWN = json.loads((HERE / "detr.json").read_text())  # boxes and logits of detr.onnx
MODE = os.environ.get("RFDETR_STUB", "")


class Listed(list):
    def tolist(self):
        return list(self)


class Last(Checkpoint):
    "Writes last.ckpt."

    def __init__(self, out):
        self.path = Path(out) / "last.ckpt"

    def on_train_epoch_end(self, trainer, module):
        with zipfile.ZipFile(self.path, "w") as file:
            file.writestr("epoch", str(trainer.current_epoch + 1))


class Found:
    def __init__(self, rows):
        rows = sorted(rows, key=lambda r: -r[1])
        self.xyxy, self.confidence, self.class_id = (Listed(r[k] for r in rows) for k in range(3))


class RFDETR:
    def __init__(self, **settings):
        self.model_config, self.class_names, self.sizes = ModelConfig(**settings), [], {}
        start = settings.get("pretrain_weights")
        if start and not Path(start).read_bytes().startswith(b"{"):
            raise ValueError("invalid load key in these weights")
        if MODE == "partly":
            logging.getLogger("rf-detr").warning("Pretrained weights at %r loaded only partially", start)
        print("| a table | on stdout |")

    def train(self, **s):
        book = json.loads((Path(s["dataset_dir"]) / "train" / "_annotations.coco.json").read_text())
        valid = json.loads((Path(s["dataset_dir"]) / "valid" / "_annotations.coco.json").read_text())
        assert all((Path(s["dataset_dir"]) / "train" / i["file_name"]).is_file() for i in book["images"])
        self.class_names = [c["name"] for c in book["categories"]]
        self.sizes = {i["file_name"]: [i["width"], i["height"]] for i in valid["images"]}
        out, trainer, first = Path(s["output_dir"]), parts.build_trainer(Last(s["output_dir"])), 0
        if s["resume"]:
            with zipfile.ZipFile(s["resume"]) as file:
                first = json.loads(file.read("epoch"))
        for epoch in range(first, s["epochs"]):
            trainer.current_epoch = epoch
            trainer.callback_metrics = {
                "val/mAP_50_95": 0.1 * min(epoch + 1, 3),
                "val/mAP_50": 0.2,
                "train/loss": 9.0 - epoch,
            }
            print(f"Epoch {epoch}")
            if epoch == 1:
                self.fail()
            for late in (False, True):  # as Lightning does: checkpoints are written among the late ones
                for callback in (c for c in trainer.callbacks if isinstance(c, Checkpoint) == late):
                    callback.on_train_epoch_end(trainer, self)
        kept = {"names": self.class_names, "sizes": self.sizes, "imgsz": self.model_config.resolution}
        (out / "checkpoint_best_total.pth").write_text(json.dumps(kept))

    def fail(self):
        if MODE == "memory":
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        if MODE == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if MODE == "error":
            raise ValueError("a tensor has no values")
        if MODE == "pause":
            signal.pause()

    @classmethod
    def from_checkpoint(cls, path, **settings):
        kept = json.loads(Path(path).read_text())
        made = cls(resolution=kept["imgsz"], **settings)
        made.class_names, made.sizes = kept["names"], kept["sizes"]
        if MODE == "names":
            made.class_names = made.class_names[::-1]
        return made

    def export(self, output_dir, output_name, **_):
        target = Path(output_dir) / f"{output_name}.onnx"
        shutil.copy(HERE / "detr.onnx", target)
        return target

    def predict(self, path, threshold, include_source_image):
        width, height = self.sizes[Path(path).name]
        rows, shift = [], 0.3 if MODE == "other" else 0.0
        for (x, y, w, h), logits in zip(KNOWN["boxes"], KNOWN["logits"]):
            box = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
            rows += [[box, abs(1 / (1 + math.exp(-v)) - shift), k] for k, v in enumerate(logits)]
        return Found(sorted(rows, key=lambda r: -r[1])[: len(KNOWN["boxes"])])


class RFDETRNano(RFDETR):
    pass


class RFDETRSmall(RFDETR):
    pass
