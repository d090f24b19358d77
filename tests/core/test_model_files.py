"Models from strangers: weights in other files count, and a checkpoint that is a program is not run."

import os
import pickle
import zipfile

import pytest

from cv_pipeline.core.model_files import (
    TRUST,
    artefact_sha256,
    check_checkpoint,
    model_parts,
    read_checkpoint,
    weights_outside,
)
from cv_pipeline.core.types import BackendError, ModelSpecMismatch
from tests.helpers.services import require
from tests.helpers.tiny_detectors import manifest, tiny


class Evil:
    "Runs a command when it is unpickled."

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def large(tmp_path):
    "A model folder whose weights lie in other files."
    import onnx

    from cv_pipeline.inference.manifest import save_manifest

    folder = tmp_path / "large"
    folder.mkdir()
    graph = onnx.load(tiny(tmp_path / "tiny.onnx"))
    onnx.save(graph, folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=100)
    save_manifest(manifest("m.onnx"), folder)
    return folder


def swap(path):
    "Other weights of the same size."
    data = bytearray(path.read_bytes())
    data[10] ^= 0xFF
    path.write_bytes(data)


def test_swapped_weights_are_seen(large):
    from cv_pipeline.inference.loading import load_model

    assert [p.name for p in model_parts(large / "m.onnx")] == ["m.onnx", "w.bin"]
    load_model(large)
    swap(large / "w.bin")
    with pytest.raises(ModelSpecMismatch, match="SHA-256 differs"):
        load_model(large)


def test_swapped_weights_of_a_bare_file_are_another_model(large):
    before = artefact_sha256(large / "m.onnx")
    swap(large / "w.bin")
    assert artefact_sha256(large / "m.onnx") != before


def test_a_copied_model_folder_has_its_weights(large, tmp_path):
    from cv_pipeline.commands.thresholds import manifest_target
    from cv_pipeline.inference.loading import load_model

    model = load_model(large)
    manifest_target(str(large), model, tmp_path / "copy")
    assert artefact_sha256(tmp_path / "copy" / "m.onnx") == model.manifest.sha256


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../tiny.onnx", "a/../../tiny.onnx", "..\\tiny.onnx", "C:\\windows\\x", ""]
)
def test_weights_outside_of_the_folder_are_not_read(tmp_path, name):
    import onnx

    graph = onnx.load(tiny(tmp_path / "tiny.onnx"))
    for tensor in graph.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=name)
    (tmp_path / "m").mkdir()
    path = tmp_path / "m" / "bad.onnx"
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(ModelSpecMismatch, match="outside of its folder"):
        weights_outside(path)


def test_a_missing_weight_file_is_named(large):
    (large / "w.bin").unlink()
    with pytest.raises(ModelSpecMismatch, match="'w.bin', is missing"):
        weights_outside(large / "m.onnx")


def test_every_place_where_onnx_can_name_a_file_is_found(tmp_path):
    "Built with the onnx package: initialisers, constants, sub-graphs, functions, sparse tensors."
    import onnx
    from onnx import helper

    def tensor(name):
        made = onnx.TensorProto(name=name, data_type=1, dims=[1], data_location=1)
        made.external_data.add(key="offset", value="0")
        made.external_data.add(key="location", value=name)
        return made

    sparse = onnx.SparseTensorProto(values=tensor("values"), indices=tensor("indices"), dims=[4])
    inner = onnx.GraphProto(initializer=[tensor("inner")])
    node = onnx.NodeProto(op_type="If")
    node.attribute.append(helper.make_attribute("then_branch", inner))
    node.attribute.append(onnx.AttributeProto(name="value", t=tensor("constant"), type=4))
    node.attribute.append(onnx.AttributeProto(name="values", tensors=[tensor("many")], type=9))
    node.attribute.append(onnx.AttributeProto(name="graphs", graphs=[onnx.GraphProto(node=[node])], type=10))
    function = onnx.FunctionProto(name="f", node=[node])
    graph = onnx.GraphProto(initializer=[tensor("outer")], node=[node], sparse_initializer=[sparse])
    model = onnx.ModelProto(graph=graph, functions=[function])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    names = ["constant", "indices", "inner", "many", "outer", "values"]
    for name in names:
        (tmp_path / name).write_bytes(b"0000")
    assert [p.name for p in weights_outside(tmp_path / "m.onnx")] == names


def checkpoint(path, value):
    "As torch.save writes it, without torch."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=2))
    return path


def test_a_checkpoint_that_runs_a_command_is_refused_and_not_run(tmp_path):
    evil = checkpoint(tmp_path / "evil.pt", {"epoch": 3, "model": Evil(f"touch {tmp_path}/PWNED")})
    with pytest.raises(BackendError, match=r"would run (posix|nt)\.system"):
        check_checkpoint(evil)
    assert read_checkpoint(evil)[0]["epoch"] == 3
    assert not (tmp_path / "PWNED").exists()


def test_every_way_to_open_a_checkpoint_asks_first(tmp_path):
    "What the library offers for .pt files: export, pruning, training, going on with a training."
    from cv_pipeline.optimization import optimize, prune
    from cv_pipeline.training import train

    evil = checkpoint(tmp_path / "evil.pt", {"epoch": 3, "train_args": Evil(f"touch {tmp_path}/PWNED")})
    weights = tmp_path / "run" / "training" / "weights"
    weights.mkdir(parents=True)
    (weights / "last.pt").write_bytes(evil.read_bytes())
    ways = [
        lambda: optimize.export_pt(evil, tmp_path / "out"),
        lambda: prune._checkpoint(evil),
        lambda: train._start_of(evil),
        lambda: train._last_checkpoint(tmp_path / "run", lambda progress: None),
    ]
    for way in ways:
        with pytest.raises(BackendError, match="not part of a model"):
            way()
    assert not (tmp_path / "PWNED").exists()


def test_who_trusts_a_checkpoint_may_say_so(tmp_path, monkeypatch):
    odd = checkpoint(tmp_path / "odd.pt", {"model": zipfile.ZipInfo})
    with pytest.raises(BackendError, match="ZipInfo"):
        check_checkpoint(odd)
    monkeypatch.setenv(TRUST, "1")
    assert check_checkpoint(odd) == odd


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04", b"\x80\x02.", pickle.dumps({"epoch": 1}), b"\0" * 100], ids=range(5)
)
def test_what_is_no_checkpoint_is_a_typed_error(tmp_path, data):
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(BackendError, match="not a readable checkpoint"):
        check_checkpoint(tmp_path / "x.pt")


def test_a_bomb_in_a_checkpoint_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"N" * (65 << 20))
    with pytest.raises(BackendError, match="more than 64 MiB"):
        check_checkpoint(tmp_path / "bomb.pt")


@pytest.mark.slow
def test_a_real_checkpoint_is_a_model_and_nothing_else(tmp_path):
    torch = require("torch")
    tasks = require("ultralytics.nn.tasks")
    net = tasks.DetectionModel("yolov8n.yaml", nc=2, verbose=False)
    optimizer = torch.optim.AdamW(net.parameters()).state_dict()
    kept = {"epoch": 4, "model": net, "optimizer": optimizer, "train_args": {"imgsz": 320}, "ema": net}
    torch.save(kept, tmp_path / "real.pt")
    data, foreign = read_checkpoint(check_checkpoint(tmp_path / "real.pt"))
    assert foreign == [] and data["epoch"] == 4 and data["train_args"]["imgsz"] == 320
    torch.save({**kept, "hook": os.getcwd}, tmp_path / "hook.pt")
    with pytest.raises(BackendError, match="getcwd"):
        check_checkpoint(tmp_path / "hook.pt")
