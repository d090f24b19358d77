"""Training: from an ONNX file, with replay, interrupted for real, and every way in which it must refuse."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.services import require

require("ultralytics", reason='Ultralytics is not installed: pip install "cv_pipeline[train]"')
os.environ.update(YOLO_OFFLINE="1", YOLO_AUTOINSTALL="false")

import torch

from cv_pipeline.annotation.datasets import LeakError, freeze
from cv_pipeline.annotation.versions import MergeSettings, merge, read_version
from cv_pipeline.core.formats import LabelledImage, read_dataset
from cv_pipeline.core.images import read_image
from cv_pipeline.core.types import BackendError, ConfigError, CVPipelineError, DataError, Detections, box_iou
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.line import domain_randomised, shrunk, write_dataset
from cv_pipeline.synthetic.parts import CLASS_NAMES
from cv_pipeline.training import samples as material
from cv_pipeline.training import train as training
from cv_pipeline.training.samples import Replay, all_names, complete_labels, grey_out, read_samples, stage
from cv_pipeline.training.train import TrainSettings, out_of_sample, read_card, train
from cv_pipeline.training.warm_start import warm_start, yolov8_layout

pytestmark = pytest.mark.slow

TINY = TrainSettings(epochs=1, imgsz=64, batch=8, augment=None, overrides={"mosaic": 0.0})


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def dataset(folder, seed=510, names=CLASS_NAMES, train_n=8, val_n=4, side=64):
    "A dataset of the line in which these classes are labelled."
    for s, k, n in (("train", 0, train_n), ("val", 50, val_n)):
        write_dataset(
            folder,
            (shrunk(*pair, side) for pair in domain_randomised(seed + k, n)),
            ["yolo"],
            s,
            suffix=".png",
        )
    number = {CLASS_NAMES.index(n): i for i, n in enumerate(names)}
    for file in (folder / "labels").rglob("*.txt"):
        rows = (line.split(" ", 1) for line in file.read_text().splitlines())
        file.write_text("".join(f"{number[int(c)]} {rest}\n" for c, rest in rows if int(c) in number))
    (folder / "data.yaml").write_text(f"names: {list(names)}\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("train") / "data")


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    "A finished run, with what it said."
    told = []
    return train(
        data,
        tmp_path_factory.mktemp("done") / "run",
        settings=replace(TINY, augment="strong"),
        progress=told.append,
    ), told


# ---- warm start


@pytest.fixture(scope="module")
def pictures():
    return [frame.image for frame, _ in (shrunk(*pair, 160) for pair in domain_randomised(77, 12))]


def answers(net, batch):
    with torch.no_grad():
        return net.eval()(torch.from_numpy(batch))[0].numpy()


def test_the_warm_started_net_says_what_the_onnx_file_says(pictures):
    model = load_model("factory_line", threads=1)
    batch = model.preprocess.batch(pictures[:4])[0]
    net = warm_start("factory_line", None, pictures)
    np.testing.assert_allclose(answers(net, batch), model.backend.infer(batch), atol=0.02)
    assert net.names == dict(enumerate(CLASS_NAMES))
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and any((m.running_mean.abs() > 0.1).any() for m in norms)  # they know what they normalise


def test_in_training_mode_it_still_knows_its_parts(pictures):
    "Without the statistics of real pictures the first training step would see noise."
    model = load_model("factory_line", threads=1)
    batch = torch.from_numpy(model.preprocess.batch(pictures)[0])
    net = warm_start("factory_line", None, pictures)
    with torch.no_grad():
        use, learn = (
            net.eval()(batch)[1]["scores"].sigmoid().numpy().ravel(),
            net.train()(batch)["scores"].sigmoid().numpy().ravel(),
        )
    assert np.corrcoef(use, learn)[0, 1] > 0.9
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            (
                m.bias.data.sub_(m.running_mean),
                m.weight.data.fill_(1),
                m.running_mean.zero_(),
                m.running_var.fill_(1),
            )  # folded as they were
    with torch.no_grad():
        naive = net.train()(batch)["scores"].sigmoid().numpy().ravel()
    assert not np.corrcoef(use, naive)[0, 1] > 0.6, np.corrcoef(use, naive)


def test_classes_are_taken_over_by_name(pictures):
    old, new = (
        warm_start("factory_line", None, pictures),
        warm_start("factory_line", ("washer", "nut", "gear", "screw", "disc", "ring", "cap"), pictures),
    )
    for one, two in zip(old.model[-1].cv3, new.model[-1].cv3):
        assert len(two[-1].weight) == 7
        for name, row in (("nut", 1), ("gear", 2)):
            torch.testing.assert_close(two[-1].weight[row], one[-1].weight[CLASS_NAMES.index(name)])
    batch = load_model("factory_line", threads=1).preprocess.batch(pictures[:2])[0]
    a, b = answers(old, batch), answers(new, batch)
    np.testing.assert_allclose(a[:, :4], b[:, :4], atol=0.02)  # boxes do not depend on the list of classes
    np.testing.assert_allclose(a[:, 4 + CLASS_NAMES.index("nut")], b[:, 5], atol=1e-3)


def test_what_cannot_be_started_from_says_so(pictures, data, tmp_path):
    from cv_pipeline.inference.manifest import save_manifest
    from tests.helpers.tiny_detectors import manifest, tiny

    tiny(tmp_path / "other" / "tiny.onnx") if (tmp_path / "other").mkdir() is None else None
    save_manifest(manifest(), tmp_path / "other")
    with pytest.raises(BackendError, match="not the weights of a YOLOv8"):
        warm_start(tmp_path / "other", None, pictures)
    with pytest.raises(DataError, match="no images to calibrate the batch norms"):
        warm_start("factory_line", None, [])
    with pytest.raises(BackendError, match="checkpoint not found"):
        train(data, tmp_path / "run", tmp_path / "nowhere.pt", settings=TINY)
    with pytest.raises(BackendError):
        train(data, tmp_path / "run2", tmp_path / "nowhere.onnx", settings=TINY)


# ---- a run


def test_a_finished_run_is_a_model_folder_with_a_history(done, data):
    run, told = done
    model = load_model(run.folder, threads=1)
    assert (
        model.manifest.names == CLASS_NAMES
        and model.manifest.preprocess.imgsz == (64, 64)
        and "AGPL" in model.manifest.license
    )
    assert len(model.predict([np.zeros((48, 64, 3), np.uint8)] * 3)) == 3  # any batch
    card = read_card(run.folder)
    assert (
        card["state"] == "finished"
        and [e["epoch"] for e in card["epochs"]] == [1]
        and {"AP", "AP50", "losses", "seconds"} <= set(card["epochs"][0])
    )
    assert card["data"]["sha256"] == training.data_digest(run.folder / "data") and card["data"][
        "pictures"
    ] == {
        "train new": 8,
        "val new": 4,
    }
    assert (
        card["parent"]["kind"] == "onnx"
        and len(card["parent"]["sha256"]) == 64
        and {"torch", "ultralytics", "albumentations", "cv_pipeline"} <= set(card["versions"])
    )
    assert (
        card["plan"]["augment"]["fog"] == [0.2, 0.9]
        and card["plan"]["seed"] == 0
        and card["model"]["sha256"] == model.manifest.sha256
    )
    assert model.manifest.training["run"] == card["run"] == model.manifest.version
    assert [p.what for p in told] == ["data", "epoch", "export"] and told[1].epoch == 1
    assert b"/tmp/" not in (run.folder / "model.onnx").read_bytes()  # no path of somebody's disk
    assert not list(data.rglob("*.cache"))  # the dataset itself is left alone


def test_the_augmentation_is_really_in_the_training_transform(done):
    import yaml

    (stored,) = yaml.safe_load((done[0].folder / "training" / "args.yaml").read_text())["augmentations"]
    assert stored["transform"]["__class_fullname__"].endswith("BadDay") and stored["transform"]["settings"][
        "lamp"
    ] == [0.3, 1.0]


def test_the_same_seed_gives_the_same_weights(data, done, tmp_path):
    weights = lambda folder: torch.load(folder / "model.pt", map_location="cpu", weights_only=False)[
        "model"
    ].state_dict()
    again, plain = (
        train(data, tmp_path / "same", settings=replace(TINY, augment="strong")),
        train(data, tmp_path / "plain", settings=TINY),
    )
    a, b, c = (weights(r.folder) for r in (done[0], again, plain))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)  # the augmentation makes a difference
    assert again.card["run"] == done[0].card["run"] != plain.card["run"]


def test_training_goes_on_from_a_trained_folder_and_from_nothing(done, data, tmp_path):
    further = train(data, tmp_path / "further", done[0].folder, settings=TINY)
    assert further.card["parent"]["kind"] == "pt" and further.card["parent"][
        "sha256"
    ] == training.file_sha256(done[0].folder / "model.pt")
    import yaml

    (tmp_path / "net.yaml").write_text(yaml.safe_dump(yolov8_layout(5, 0.0625)))
    fresh = train(data, tmp_path / "fresh", tmp_path / "net.yaml", settings=TINY)
    assert (
        fresh.card["parent"]["kind"] == "yaml"
        and load_model(fresh.folder, threads=1).manifest.names == CLASS_NAMES
    )


# ---- interrupted

CHILD = """
import os, signal, sys
os.environ.update(YOLO_OFFLINE="1", YOLO_AUTOINSTALL="false", OMP_NUM_THREADS="1")
from cv_pipeline.training.train import TrainSettings, train

def tell(p):
    print(p.what, p.epoch, flush=True)
    if p.epoch == 2: signal.pause()  # until somebody kills us

settings = TrainSettings(epochs=4, imgsz=64, batch=8, overrides={"mosaic": 0.0})
train(sys.argv[1], sys.argv[2], settings=settings, progress=tell)
"""


@pytest.fixture(scope="module")
def killed(data, tmp_path_factory):
    "A run that was really killed after its second epoch."
    out = tmp_path_factory.mktemp("killed") / "run"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(data), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = []
    for line in child.stdout:
        lines.append(line.split())
        if lines[-1] == ["epoch", "2"]:
            break
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL and lines[-1] == ["epoch", "2"], lines
    return out


def copied(killed, tmp_path):
    return shutil.copytree(killed, tmp_path / "run")


def test_a_killed_run_goes_on_at_the_right_epoch(killed, data, tmp_path):
    "Even where its folder was moved and its dataset is gone: it has all it needs."
    out, told = copied(killed, tmp_path), []
    assert read_card(out)["state"] == "training" and not (out / "model.onnx").exists()
    hidden = killed.rename(killed.with_name("hidden")), data.rename(data.with_name("gone"))
    try:
        run = train(data, out, resume=True, progress=told.append)
    finally:
        hidden[0].rename(killed), hidden[1].rename(data)
    assert [p.epoch for p in told if p.what == "epoch"] == [3, 4]
    assert [e["epoch"] for e in run.card["epochs"]] == [1, 2, 3, 4] and run.card["resumed"][0][
        "after_epoch"
    ] == 2
    assert run.card["epochs"][:2] == read_card(killed)["epochs"] and run.card["state"] == "finished"
    assert torch.load(out / "model.pt", map_location="cpu", weights_only=False)["train_args"]["epochs"] == 4
    assert load_model(out, threads=1).manifest.names == CLASS_NAMES


def test_a_checkpoint_that_was_cut_off_is_replaced_by_its_copy(killed, data, tmp_path):
    out, told = copied(killed, tmp_path), []
    last = out / "training" / "weights" / "last.pt"
    last.write_bytes(last.read_bytes()[:5000])
    train(data, out, resume=True, progress=told.append)
    assert any("last.pt is unreadable" in str(p) for p in told) and [
        p.epoch for p in told if p.what == "epoch"
    ] == [3, 4]


def test_what_cannot_be_resumed_says_why(killed, done, data, tmp_path):
    with pytest.raises(ConfigError, match="finished"):
        train(data, done[0].folder, resume=True)
    with pytest.raises(DataError, match="not a training run"):
        train(data, tmp_path / "nothing", resume=True)
    out = copied(killed, tmp_path)
    with pytest.raises(ConfigError, match="epochs: 4 stored, 9 given"):
        train(data, out, settings=TrainSettings(epochs=9), resume=True)
    with pytest.raises(ConfigError, match="another run"):
        train(data, out, settings=TrainSettings(overrides={"lr0": 0.5}), resume=True)
    with pytest.raises(ConfigError, match="not empty"):
        train(data, out, settings=TrainSettings(epochs=4))
    picture = next((out / "data" / "images" / "train").iterdir())
    gone = picture.rename(tmp_path / picture.name)
    with pytest.raises(DataError, match="have changed"):
        train(data, out, resume=True)
    gone.rename(picture)
    label = next((out / "data" / "labels" / "train").glob("*.txt"))
    text = label.read_text()
    label.write_text("0 .5 .5 .1 .1\n")
    with pytest.raises(DataError, match="have changed"):
        train(data, out, resume=True)
    label.write_text(text)
    for name in ("last.pt", "resume.pt"):
        (out / "training" / "weights" / name).write_bytes(b"no checkpoint")
    with pytest.raises(BackendError, match="no readable checkpoint in this run"):
        train(data, out, resume=True)
    (out / "run.json").write_text("{}")
    with pytest.raises(DataError, match="not a training run"):
        train(data, out, resume=True)


STAGING = """
import os, signal, sys
os.environ.update(YOLO_OFFLINE="1", YOLO_AUTOINSTALL="false", OMP_NUM_THREADS="1")
from cv_pipeline.training import samples as material
from cv_pipeline.training import train as training

def hang(folder):
    print("staged", flush=True)
    signal.pause()  # until somebody kills us

training.data_digest = hang
settings = training.TrainSettings(epochs=1, imgsz=64, batch=8, augment=None, overrides={"mosaic": 0.0})
training.train(sys.argv[1], sys.argv[2], settings=settings, frozen=sys.argv[3])
"""


def test_a_run_that_was_killed_before_its_first_epoch_begins_again(data, tmp_path):
    "Its pictures are there, what is known of them is not."
    other = dataset(tmp_path / "other", 990)
    freeze(other, tmp_path / "frozen.json", "val")
    child = subprocess.Popen(
        [sys.executable, "-c", STAGING, str(data), str(tmp_path / "run"), str(tmp_path / "frozen.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline().strip() == "staged"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    card = read_card(tmp_path / "run")
    assert (
        child.returncode == -signal.SIGKILL
        and card["state"] == "staging"
        and (tmp_path / "run" / "data" / "data.yaml").exists()
        and card["frozen"] == [str((tmp_path / "frozen.json").resolve())]
    )
    (tmp_path / "run" / "data" / "data.yaml").write_text("half of it")
    with pytest.raises(ConfigError, match="set resume=True to continue"):
        train(data, tmp_path / "run", settings=TINY)
    with pytest.raises(ConfigError, match="epochs: 1 stored, 7 given"):
        train(data, tmp_path / "run", settings=TrainSettings(epochs=7), resume=True)
    told = []
    run = train(data, tmp_path / "run", resume=True, progress=told.append)
    assert (
        "starting again" in str(told[0])
        and run.card["state"] == "finished"
        and run.card["plan"]["epochs"] == 1
        and run.card["plan"]["imgsz"] == 64
        and len(run.card["epochs"]) == 1
    )


def test_a_kill_while_pictures_are_put_together(data, tmp_path, monkeypatch):
    "With replay and a teacher that is trained on the way: the settings are those of the card."
    new = dataset(tmp_path / "new", 760, ("nut", "bracket"), 6, 3)
    rule = Replay(data, share=0.5, keeper="factory_line", teacher="factory_line")
    with monkeypatch.context() as m:
        m.setattr(material, "_finish_stage", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(new, tmp_path / "run", settings=replace(TINY, replay=rule))
    assert (
        not (tmp_path / "run" / "data").exists()
        and read_card(tmp_path / "run")["plan"]["replay"] == rule.to_dict()
    )
    with monkeypatch.context() as m:
        m.setattr(training, "_fit", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(new, tmp_path / "run", resume=True)
    card = read_card(tmp_path / "run")
    assert (
        card["state"] == "training"
        and card["plan"]["replay"] == rule.to_dict()
        and card["data"]["pictures"]["train old"] >= 1
        and card["data"]["names"] == list(CLASS_NAMES)
    )


def test_pictures_that_cannot_be_put_together_leave_nothing(data, tmp_path):
    bad = dataset(tmp_path / "bad", 777)
    next((bad / "images" / "train").iterdir()).write_bytes(b"no picture")
    with pytest.raises(CVPipelineError):
        train(bad, tmp_path / "run", settings=TINY)
    assert not (tmp_path / "run" / "run.json").exists()
    with pytest.raises(CVPipelineError):
        train(bad, tmp_path / "run", settings=TINY)  # and it is not called another run


def test_names_of_many_cameras_do_not_collide(tmp_path):
    made = material.Staged(("a",))
    shorts = ["cam/1.jpg", "cam_1.png", "CAM_1.bmp", "cam_1-1.jpg", "cam_1-2.jpg", "cam_1.jpg"]
    sample = lambda side: training.Sample(LabelledImage(Path("x.jpg"), ("a",)), side, ("a",))
    names = []
    for side in ("train", "val"):
        for short in shorts:
            names.append((side, material._free_name(made, sample(side), short, False)))
            made.rows.append({"picture": names[-1][1], "side": side})
    assert (
        len({(s, Path(n).stem.lower()) for s, n in names}) == len(names) and ("val", "new-cam_1.jpg") in names
    )


def test_a_run_that_died_in_the_export_only_exports(data, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(training, "save_manifest", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "run", settings=TINY)
    told = []
    assert read_card(tmp_path / "run")["state"] == "trained"
    run = train(data, tmp_path / "run", resume=True, progress=told.append)
    assert (
        [p.what for p in told if p.what != "note"] == ["export"]
        and run.card["state"] == "finished"
        and load_model(run.folder).manifest.names == CLASS_NAMES
    )


def test_two_processes_cannot_train_into_one_folder(data, tmp_path):
    from cv_pipeline.inference.engines import build_lock

    code = (
        "import sys\n"
        "from cv_pipeline.training.train import TrainSettings, train\n"
        "try: train(sys.argv[1], sys.argv[2], settings=TrainSettings(epochs=1))\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    with build_lock(tmp_path / "run"):
        told = subprocess.run(
            [sys.executable, "-c", code, str(data), str(tmp_path / "run")], capture_output=True, text=True
        ).stdout
    assert "BackendError" in told and not (tmp_path / "run").exists()


# ---- bad input


def test_data_that_cannot_be_trained_on(data, tmp_path):
    with pytest.raises(DataError, match="dataset not found"):
        train(tmp_path / "nowhere", tmp_path / "r", settings=TINY)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="contains no images"):
        train(tmp_path / "empty", tmp_path / "r", settings=TINY)
    one = shutil.copytree(data, tmp_path / "one_side")
    shutil.rmtree(one / "images" / "val")
    with pytest.raises(DataError, match="no images for val"):
        train(one, tmp_path / "r", settings=TINY)
    strange = shutil.copytree(data, tmp_path / "strange")
    next((strange / "labels" / "train").glob("*.txt")).write_text("7 .5 .5 .1 .1\n")
    with pytest.raises(DataError, match="class id"):
        train(strange, tmp_path / "r", settings=TINY)
    unreadable = shutil.copytree(data, tmp_path / "unreadable")
    next((unreadable / "images" / "train").iterdir()).write_bytes(b"not a picture")
    with pytest.raises(Exception, match="picture|image|decod") as e:
        train(unreadable, tmp_path / "r", settings=TINY)
    assert isinstance(e.value, (DataError, training.CVPipelineError))
    nameless = shutil.copytree(data, tmp_path / "nameless")
    (nameless / "data.yaml").write_text("train: images/train\n")
    with pytest.raises(DataError, match="class names"):
        train(nameless, tmp_path / "r", settings=TINY)
    assert not (tmp_path / "r" / "run.json").exists()


@pytest.mark.parametrize(
    "wrong, contains",
    [
        ({"epochs": 0}, "epochs: 0"),
        ({"batch": 1.5}, "batch: 1.5"),
        ({"imgsz": 8}, "imgsz: 8"),
        ({"seed": -1}, "seed: -1"),
        ({"overrides": {"project": "x"}}, "overrides: project"),
        ({"replay": "old"}, "replay"),
        ({"augment": "rainy"}, "rainy"),
    ],
)
def test_settings_that_make_no_sense(wrong, contains):
    with pytest.raises(ConfigError, match=contains):
        replace(TINY, **wrong)


@pytest.mark.parametrize("name, value", [("no_such_setting", 1), ("lr0", "fast")])
def test_overrides_that_ultralytics_refuses(data, tmp_path, name, value):
    with pytest.raises(ConfigError, match=name):
        train(data, tmp_path / "r", settings=replace(TINY, overrides={name: value}))


def test_the_test_set_is_not_trained_on(data, tmp_path):
    freeze(data, tmp_path / "frozen.json", "val")
    for manifests in (tmp_path / "frozen.json", [tmp_path / "frozen.json"]):
        with pytest.raises(LeakError, match="in the training data"):
            train(data, tmp_path / "r", settings=TINY, frozen=manifests)
    old = dataset(tmp_path / "old", 900)
    with pytest.raises(LeakError):
        train(
            old,
            tmp_path / "r",
            settings=replace(TINY, replay=Replay(data, teacher="factory_line")),
            frozen=tmp_path / "frozen.json",
        )  # in replayed pictures too
    assert not (tmp_path / "r").exists()


def test_without_the_extra_there_is_the_install_hint(data, tmp_path):
    code = (
        "import sys\n"
        "sys.modules['ultralytics'] = None\n"
        "import cv_pipeline.training.train as t\n"
        "assert 'torch' not in sys.modules and 'albumentations' not in sys.modules\n"
        "import numpy\n"
        "black = numpy.zeros((64, 64, 3), 'uint8')\n"
        f"train = lambda: t.train({str(data)!r}, {str(tmp_path / 'r')!r})\n"
        "for call in (train, lambda: t.warm_start('factory_line', None, [black])):\n"
        "    try: call()\n"
        "    except Exception as e: print(type(e).__name__, e)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert (
        told.count("MissingExtraError") == 2
        and told.count("'ultralytics'") == 2
        and told.count('pip install "cv_pipeline[train]"') == 2
    )
    assert not (tmp_path / "r").exists()


# ---- replay

boxes = st.lists(
    st.tuples(
        st.integers(0, 80),
        st.integers(0, 80),
        st.integers(4, 40),
        st.integers(4, 40),
        st.integers(0, 3),
        st.integers(1, 99),
    ),
    max_size=12,
)


def made(rows):
    return Detections(
        [[x, y, x + w, y + h] for x, y, w, h, _, _ in rows],
        [p / 100 for *_, p in rows],
        [c for *_, c, _ in rows],
    )


@settings(max_examples=150)
@given(boxes, boxes, st.integers(1, 99), st.sets(st.integers(0, 3)))
def test_a_persons_label_always_wins(people, machine, sure, missing):
    people, machine = made(people), made(machine)
    done = complete_labels(people, machine, missing, sure / 100)
    n = len(people)
    np.testing.assert_array_equal(done.boxes.xyxy[:n], people.xyxy)
    np.testing.assert_array_equal(done.boxes.class_id[:n], people.class_id)
    new = done.boxes[np.arange(n, len(done.boxes))]
    assert done.added == len(new) and set(new.class_id.tolist()) <= missing
    if n and len(new):
        assert box_iou(new.xyxy, people.xyxy).max() < 0.5
    strong = machine[
        np.isin(machine.class_id, list(missing)) & (machine.confidence >= np.float32(sure / 100))
    ]
    assert len(new) <= len(strong)
    if len(done.doubtful) and n:
        assert box_iou(done.doubtful, people.xyxy).max() < 0.5


@settings(max_examples=60)
@given(boxes, boxes)
def test_what_is_painted_grey_takes_its_labels_along(labels, places):
    labels, spots = made(labels), made(places).xyxy
    image = np.zeros((100, 100, 3), np.uint8)
    painted, kept = grey_out(image, labels, spots)
    assert image.max() == 0 and set(np.unique(painted)) <= {0, 114}
    for box in labels.xyxy:
        x1, y1, x2, y2 = np.clip(box, 0, 100).astype(int)
        share = (painted[y1:y2, x1:x2, 0] > 0).mean() if x2 > x1 and y2 > y1 else 0
        assert (kept.xyxy == box).all(axis=1).any() == (share <= 0.4)


def test_old_classes_keep_their_numbers():
    assert all_names(("gear", "bolt"), ("nut", "gear", "bracket")) == ("gear", "bolt", "nut", "bracket")


class Knows:
    "A model that sees what it is told."

    def __init__(self, names, found):
        self.manifest, self.found = type("M", (), {"names": names})(), found

    def with_postprocess(self, **_):
        return self

    def predict(self, images):
        return [self.found for _ in images]


def test_staged_labels_are_complete_and_in_the_numbers_of_the_new_list(tmp_path):
    folder = dataset(tmp_path / "d", 640, ("nut", "gear"), 2, 1, side=96)
    names, samples = read_samples(folder, "old")
    teacher = Knows(("bracket", "gear"), Detections([[1, 1, 12, 12], [60, 40, 80, 60]], [0.9, 0.95], [0, 1]))
    staged = stage(samples, ("gear", "bolt", "nut", "bracket"), tmp_path / "out", [teacher], Replay(folder))
    for row, before in zip(staged.rows, samples):
        after = next(i for i in read_dataset(tmp_path / "out") if i.path.stem == Path(row["picture"]).stem)
        size = read_image(after.path).shape[1::-1]
        ours, theirs = after.truth(size), before.item.truth(size)
        assert sorted(after.names[c] for c in ours.class_id) == sorted(
            [*(names[c] for c in theirs.class_id), *row["added"]]
        )
        assert set(row["added"]) <= {"bracket"}  # people were asked about gears: the teacher is not
    assert staged.summary()["pictures"] == {"train old": 2, "val old": 1}


def test_pictures_in_doubt_are_left_out_or_painted(tmp_path):
    _, samples = read_samples(dataset(tmp_path / "d", 640, ("nut",), 2, 1, side=96))
    teacher = Knows(("bracket",), Detections([[0, 0, 10, 8]], [0.3], [0]))
    grey = stage(samples, ("nut", "bracket"), tmp_path / "grey", [teacher], Replay())
    assert grey.summary()["places painted grey"] == 3
    assert all((read_image(i.path)[1:7, 1:9] == 114).all() for i in read_dataset(tmp_path / "grey"))
    with pytest.raises(DataError, match="left out as doubtful"):
        stage(samples, ("nut", "bracket"), tmp_path / "none", [teacher], Replay(doubt="picture"))
    assert not (tmp_path / "none").exists()


def test_replay_with_a_teacher_that_is_trained_on_the_way(tmp_path):
    old, new = (
        dataset(tmp_path / "old", 700, ("gear", "bolt"), 8, 3),
        dataset(tmp_path / "new", 760, ("nut", "bracket"), 6, 3),
    )
    before = train(old, tmp_path / "before", settings=TINY)
    told = []
    run = train(
        new,
        tmp_path / "run",
        before.folder,
        settings=replace(TINY, replay=Replay(old, share=0.5)),
        progress=told.append,
    )
    assert run.card["data"]["names"] == ["gear", "bolt", "nut", "bracket"] and load_model(
        run.folder
    ).manifest.names == ("gear", "bolt", "nut", "bracket")
    assert run.card["data"]["pictures"]["train old"] <= 3 and run.card["data"]["pictures"]["train new"] >= 1
    assert "a teacher for nut, bracket is trained first, on 9 images" in [str(p) for p in told] and read_card(
        tmp_path / "run" / "teacher"
    )["data"]["names"] == ["nut", "bracket"]
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "data" / "sources.jsonl").read_text().splitlines()
    ]
    for row in rows:
        assert not set(row["added"]) & set(row["asked"])


def test_nobody_who_knows_is_an_error(tmp_path, data):
    import yaml

    from cv_pipeline.inference.manifest import save_manifest
    from tests.helpers.tiny_detectors import manifest, tiny

    (tmp_path / "teacher").mkdir()
    tiny(tmp_path / "teacher" / "tiny.onnx")
    save_manifest(manifest(), tmp_path / "teacher")  # knows nuts and bolts
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(yolov8_layout(5, 0.0625)))
    narrow = dataset(tmp_path / "narrow", 800, ("nut",), 3, 2)
    with pytest.raises(ConfigError, match="no model knows bracket, defect, gear"):
        train(
            narrow,
            tmp_path / "run",
            tmp_path / "net.yaml",
            settings=replace(TINY, replay=Replay(data, teacher=tmp_path / "teacher")),
        )
    with pytest.raises(ConfigError, match="untrained network"):
        train(
            narrow,
            tmp_path / "run",
            tmp_path / "net.yaml",
            settings=replace(TINY, replay=Replay(data, teacher=tmp_path / "net.yaml")),
        )
    with pytest.raises(ConfigError, match="unknown class in `labelled`: 'cog'"):
        train(data, tmp_path / "x", settings=replace(TINY, replay=Replay(labelled=("cog",))))
    with pytest.raises(ConfigError, match="unsure"):
        Replay(sure=0.2, unsure=0.5)
    assert not (tmp_path / "run").exists() and not (tmp_path / "x").exists()


def test_a_version_says_what_was_asked_and_its_hash_is_in_the_card(data, tmp_path):
    first = merge([dataset(tmp_path / "a", 810, ("gear", "bolt"), 6, 2)], tmp_path / "v1")
    second = merge(
        [tmp_path / "v1", dataset(tmp_path / "b", 905, ("gear", "bolt", "nut"), 6, 1)],
        tmp_path / "v2",
        settings=MergeSettings(add_names=True, val=0.3),
    )
    names, samples = read_samples(tmp_path / "v2")
    assert names == ("gear", "bolt", "nut") and {s.asked for s in samples} == {
        ("gear", "bolt"),
        ("gear", "bolt", "nut"),
    }
    told = []
    run = train(tmp_path / "v2", tmp_path / "run", settings=TINY, progress=told.append)
    assert (
        run.card["data"]["version"]["digest"]
        == read_version(tmp_path / "v2").digest
        == second.digest
        != first.digest
    )
    assert any("labelled without class nut" in str(p) for p in told) and run.card["warnings"]
    next((tmp_path / "v2" / "images" / "train").iterdir()).unlink()
    with pytest.raises(DataError, match="1 missing"):
        train(tmp_path / "v2", tmp_path / "run2", settings=TINY)


def test_a_sheet_that_lies_elsewhere_or_has_moved(data, tmp_path):
    "data.yaml of another folder, a stale path, and the relative paths that labelling services write."
    sheet = lambda text: (tmp_path / "some.yaml").write_text(f"{text}\nnames: [a, b, c, d, e]\n")
    sheet(f"path: {data}\ntrain: images/train\nval: [images/val]")
    names, samples = read_samples(tmp_path / "some.yaml")
    assert names == tuple("abcde") and len(samples) == 12
    moved = shutil.copytree(data, tmp_path / "moved")
    (moved / "data.yaml").write_text(
        f"path: /nowhere/at/all\ntrain: ../images/train\nvalidation: images/val\nnames: {list(CLASS_NAMES)}\n"
    )
    assert sum(s.side == "train" for s in read_samples(moved)[1]) == 8
    (moved / "data.yaml").write_text("[1, 2]")
    with pytest.raises(DataError, match="not a data.yaml"):
        read_samples(moved)
    with pytest.raises(DataError, match="not a folder"):
        read_samples(next((data / "images" / "val").iterdir()))


def test_judges_have_not_seen_what_they_judge(data, tmp_path):
    items = [replace(i) for i in read_dataset(data)]
    groups = [k // 2 for k in range(len(items))]
    s = out_of_sample(items, tmp_path / "judges", groups=groups, settings=TINY)
    assert sorted(s.images) == sorted(i.path.name for i in items) and len(s.predictions)
    for k in (0, 1):
        taught = {
            Path(json.loads(line)["from"]).name
            for line in (tmp_path / "judges" / f"data{k}" / "sources.jsonl").read_text().splitlines()
        }
        judged = {i.path.name for i in items} - taught
        assert judged and not {groups[j] for j, i in enumerate(items) if i.path.name in taught} & {
            groups[j] for j, i in enumerate(items) if i.path.name in judged
        }
