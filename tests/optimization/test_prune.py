"""Pruning with training: what is taken out, that nothing else changes, and bad input."""

import copy
import os

import numpy as np
import pytest

from tests.helpers.services import require

require("ultralytics", reason='Ultralytics is not installed: pip install "cv_pipeline[train]"')
os.environ.update(YOLO_OFFLINE="1", YOLO_AUTOINSTALL="false")

import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

from cv_pipeline.core.types import BackendError, ConfigError, DataError
from cv_pipeline.inference.loading import load_model
from cv_pipeline.optimization.optimize import OptimizeSettings, optimize
from cv_pipeline.optimization.prune import (
    PruneSettings,
    _trainer_options,
    channel_worth,
    prunable_layers,
    prune_and_train,
    take_channels,
)
from cv_pipeline.synthetic.parts import CLASS_NAMES

pytestmark = pytest.mark.slow


def network(name="yolov8n.yaml", nc=5):
    torch.manual_seed(0)
    return DetectionModel(name, nc=nc, verbose=False).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A checkpoint that has learnt nothing, and two dozen labelled pictures."
    from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
    from cv_pipeline.synthetic.line import write_dataset

    folder = tmp_path_factory.mktemp("prune")
    for split, seed, n in (("train", 1, 12), ("val", 2, 6)):
        write_dataset(
            folder / "data", FactoryLine(LineConfig(seed=seed, density=6)).frames(n, 0), ["yolo"], split=split
        )
    shell = YOLO("yolov8n.yaml")
    shell.model = network()
    shell.model.names, shell.model.args = dict(enumerate(CLASS_NAMES)), {"imgsz": 64, "task": "detect"}
    shell.save(folder / "fresh.pt")
    return folder, next((folder / "data").glob("*.yaml"))


@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolo11n.yaml"])
def test_silent_channels_go_and_the_answer_stays(name):
    net, picture = network(name), torch.rand(2, 3, 96, 96)
    pairs = prunable_layers(net)
    assert len(pairs) > 5
    with torch.no_grad():
        for block, _ in pairs:
            half = block.conv.out_channels // 2 // 8 * 8
            for p in (block.conv.weight, block.bn.weight, block.bn.bias):
                p[:half] = 0
    lean = copy.deepcopy(net)
    taken = take_channels(lean, 0.5)
    assert taken > 100 and all(
        block.conv.out_channels % 8 == 0 or block.conv.out_channels < 8 for block, _ in prunable_layers(lean)
    )
    with torch.no_grad():
        np.testing.assert_allclose(net(picture)[0], lean(picture)[0], atol=1e-4)


def test_the_loudest_channels_stay():
    net = network()
    block, reader = prunable_layers(net)[3]
    worth, width = channel_worth(block), block.conv.out_channels
    kept = worth.topk(width // 2 // 8 * 8).indices.sort().values
    weights = block.conv.weight.detach()[kept].clone()
    take_channels(net, 0.5)
    assert torch.equal(block.conv.weight.detach(), weights) and reader.weight.shape[1] == len(kept)


def test_training_keeps_the_narrow_network_and_the_gate_judges_it(trained, tmp_path):
    folder, data = trained
    said = []
    made = prune_and_train(
        folder / "fresh.pt",
        data,
        tmp_path / "lean.pt",
        PruneSettings(0.5, epochs=1, imgsz=64, batch=6),
        progress=said.append,
    )
    count = lambda path: sum(p.numel() for p in YOLO(path).model.parameters())
    assert (
        count(made) < 0.8 * count(folder / "fresh.pt")
        and "channels removed" in said[0]
        and sum("epoch" in s for s in said[1:]) == 1
    )
    report = optimize(
        folder / "fresh.pt",
        tmp_path / "m",
        data.parent,
        settings=OptimizeSettings(
            ("pruned",), draws=20, prune=PruneSettings(0.5, epochs=1), retrain=data, imgsz=64
        ),
    )
    pruned = report["pruned"]
    assert (
        not pruned.accepted and not (tmp_path / "m" / "model_pruned.onnx").exists()
    )  # nothing was learnt, and so few pictures prove nothing
    assert load_model(tmp_path / "m").manifest.names == tuple(CLASS_NAMES)


@pytest.mark.parametrize("share", [1.0, -0.1, True, "half"])
def test_shares_that_are_none(share):
    with pytest.raises(ConfigError, match="share to prune"):
        take_channels(network(), share)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"share": 1.0}, "share to prune"),
        ({"epochs": 0}, "epochs: 0 is below 1: at least one epoch"),
        ({"imgsz": 0}, "imgsz: 0"),
        ({"batch": 0}, "batch: 0"),
    ],
)
def test_settings_of_pruning_that_are_wrong(wrong, said):
    with pytest.raises(ConfigError, match=said):
        PruneSettings(**wrong)


def test_options_of_the_trainer_come_last():
    assert _trainer_options(PruneSettings(epochs=4, trainer={"lr0": 0.1}))["lr0"] == 0.1


def test_bad_input_is_named_before_any_training(trained, tmp_path):
    folder, data = trained
    with pytest.raises(BackendError, match="checkpoint not found"):
        prune_and_train(tmp_path / "nowhere.pt", data, tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"not a data.yaml"):
        prune_and_train(folder / "fresh.pt", tmp_path / "nowhere.yaml", tmp_path / "x.pt")
    other = tmp_path / "other.yaml"
    other.write_text(data.read_text().replace("gear", "cog"))
    with pytest.raises(DataError, match="differ from the checkpoint"):
        prune_and_train(folder / "fresh.pt", other, tmp_path / "x.pt")
    (tmp_path / "broken.pt").write_bytes(b"no")
    with pytest.raises(BackendError, match="not a readable checkpoint"):
        prune_and_train(tmp_path / "broken.pt", data, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="only an Ultralytics checkpoint"):
        optimize("factory_line", tmp_path / "m", data.parent, settings=OptimizeSettings(retrain=data))
    assert not (tmp_path / "x.pt").exists()
