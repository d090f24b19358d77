"""RF-DETR as the trainer: the protocol with a stand-in for its package, every way in which the other process
can fail, and the real package where there is one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path

import pytest

from cv_pipeline.annotation.datasets import LeakError, freeze
from cv_pipeline.core.formats import read_dataset
from cv_pipeline.core.images import read_image
from cv_pipeline.core.types import BackendError, ConfigError, CVPipelineError, Detections
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.line import domain_randomised, shrunk, write_dataset
from cv_pipeline.synthetic.parts import CLASS_NAMES
from cv_pipeline.training import rfdetr as R
from cv_pipeline.training.gate import CandidateSettings, GateData, GateSettings, make_candidate
from cv_pipeline.training.samples import Replay
from cv_pipeline.training.train import TrainSettings, read_card, train
from tests.helpers.waiting import until

STUB = Path(__file__).parents[1] / "helpers" / "rfdetr_stub"
QUICK = TrainSettings(epochs=3, imgsz=96, batch=4, augment="none")


def environment(place, *packages):
    "An environment that sees these folders; its Python."
    venv.create(place, with_pip=False)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "stub.pth").write_text("".join(f"{p}\n" for p in packages))
    return place / "bin" / "python"


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return environment(tmp_path_factory.mktemp("rfdetr") / "env", STUB)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "data"
    for side, seed, n in (("train", 510, 6), ("val", 560, 3)):
        write_dataset(folder, (shrunk(*p, 96) for p in domain_randomised(seed, n)), ["yolo"], side)
    return folder


def fit(data, out, model="factory_line", settings=None, *, trainer, **how):
    return train(data, out, model, replace(settings or TrainSettings(), trainer=trainer), **how)


@pytest.fixture
def rf(python):
    return R.Rfdetr(python=python)


@pytest.fixture(scope="module")
def done(data, python, tmp_path_factory):
    "A finished run, and what it reported."
    heard, out = [], tmp_path_factory.mktemp("done") / "run"
    trainer = R.Rfdetr(python=python)
    return fit(data, out, "scratch", QUICK, trainer=trainer, progress=heard.append), heard


def test_a_finished_run_is_a_model_folder_with_a_history(done, data):
    run, heard = done
    model, card = load_model(run.folder, threads=1), read_card(run.folder)
    assert model.manifest.names == CLASS_NAMES and model.manifest.postprocess.head == "detr"
    assert model.manifest.preprocess.letterbox == "stretch" and model.manifest.preprocess.imgsz == (96, 96)
    assert "Apache-2.0" in model.manifest.license and "AGPL" not in model.manifest.license
    assert model.manifest.training["run"] == card["run"] and model.manifest.training["with"] == "rfdetr"
    assert card["state"] == "finished" and card["plan"]["with"] == "rfdetr" and card["best_epoch"] == 3
    assert [e["epoch"] for e in card["epochs"]] == [1, 2, 3] and card["epochs"][0]["losses"] == {"loss": 9.0}
    assert card["data"]["pictures"] == {"train new": 6, "val new": 3}
    assert card["versions"]["rfdetr"] == "not installed" and "python" in card["versions"]  # the stub has none
    assert [p.what for p in heard] == ["data", "epoch", "epoch", "epoch", "export"]
    assert not list(run.folder.rglob("*.ckpt")) and (run.folder / "model.pth").is_file()
    assert len(model.predict([read_image(i.path) for i in read_dataset(data)][:3])) == 3


def test_the_package_gets_every_box_in_the_order_of_the_classes(data, tmp_path):
    made = R.coco_folders(data, tmp_path / "coco")
    for side, name in (("train", "train"), ("val", "valid")):
        before = {i.path.name: i for i in read_dataset(data) if side in i.splits}
        after = read_dataset(made / name / "_annotations.coco.json")
        assert {i.path.name for i in after} == set(before)
        for item in after:
            size = read_image(item.path).shape[1::-1]
            a, b = item.truth(size), before[item.path.name].truth(size)
            assert a.class_id.tolist() == b.class_id.tolist()
            assert abs(a.xyxy - b.xyxy).max(initial=0) < 1e-3
    R.coco_folders(data, tmp_path / "coco")  # what is there is replaced


def test_a_run_starts_from_another_one(done, data, rf, tmp_path):
    run = fit(data, tmp_path / "run", done[0].folder, replace(QUICK, imgsz=None), trainer=rf)
    assert run.card["parent"]["kind"] == "pth" and len(run.card["parent"]["sha256"]) == 64
    assert run.card["plan"]["imgsz"] == 96 and (tmp_path / "run" / "start.pth").is_file()


def test_old_pictures_are_replayed_and_the_test_set_is_kept_out(data, rf, tmp_path):
    old = tmp_path / "old"
    for side, seed, n in (("train", 700, 4), ("val", 760, 2)):
        write_dataset(old, (shrunk(*p, 96) for p in domain_randomised(seed, n)), ["yolo"], side)
    how = replace(QUICK, replay=Replay(old, share=0.5))
    run = fit(data, tmp_path / "run", "scratch", how, trainer=rf)
    assert run.card["data"]["pictures"]["train old"] == 3
    freeze(old, tmp_path / "frozen.json", "val")
    with pytest.raises(LeakError, match="in the training data"):
        fit(data, tmp_path / "leak", "scratch", how, trainer=rf, frozen=tmp_path / "frozen.json")
    assert not (tmp_path / "leak").exists()


def test_the_gate_judges_it_like_any_other(done, tmp_path):
    test = tmp_path / "test"
    write_dataset(test, (shrunk(*p, 96) for p in domain_randomised(880, 12)), ["yolo"], "val")
    freeze(test, tmp_path / "frozen.json", "val")
    how = CandidateSettings(gate=GateSettings(draws=40), threads=1)
    made = make_candidate(
        done[0].folder, "factory_line", GateData(tmp_path / "frozen.json"), tmp_path / "c", how
    )
    assert made.verdict.value != "PASS" and made.manifest is None
    assert (
        "none among the 9 pictures in the run of the new model" in (tmp_path / "c" / "gate.json").read_text()
    )


# ---- the other process fails


@pytest.mark.parametrize(
    "mode, what",
    [
        ("memory", "out of memory: RuntimeError: CUDA out of memory.*smaller batch"),
        ("killed", "the system ended the trainer .signal 9.*smaller batch"),
        ("error", "the training failed: ValueError: a tensor has no values.*continue with resume=True"),
    ],
)
def test_a_failure_says_what_to_do_and_the_run_goes_on(mode, what, data, rf, tmp_path, monkeypatch):
    monkeypatch.setenv("RFDETR_STUB", mode)
    with pytest.raises(BackendError, match=what):
        fit(data, tmp_path / "run", "scratch", QUICK, trainer=rf)
    card = read_card(tmp_path / "run")
    assert card["state"] == "training" and [e["epoch"] for e in card["epochs"]] == [1]
    monkeypatch.delenv("RFDETR_STUB")
    run = fit(data, tmp_path / "run", resume=True, trainer=rf)
    assert [e["epoch"] for e in run.card["epochs"]] == [1, 2, 3] and run.card["state"] == "finished"
    assert run.card["resumed"][0]["after_epoch"] == 1


def test_a_checkpoint_that_was_cut_off_is_not_continued_from(data, rf, tmp_path, monkeypatch):
    monkeypatch.setenv("RFDETR_STUB", "error")
    with pytest.raises(BackendError):
        fit(data, tmp_path / "run", "scratch", QUICK, trainer=rf)
    monkeypatch.delenv("RFDETR_STUB")
    (tmp_path / "run" / "training" / "last.ckpt").write_bytes(b"half of it")
    heard = []
    run = fit(data, tmp_path / "run", resume=True, trainer=rf, progress=heard.append)
    assert any("last.ckpt is unreadable" in str(p) for p in heard)
    assert [e["epoch"] for e in run.card["epochs"]] == [1, 2, 3]


@pytest.mark.parametrize("mode, what", [("names", "the export has classes"), ("other", "rfdetr disagree")])
def test_an_export_that_is_not_what_was_trained_is_refused(mode, what, data, rf, tmp_path, monkeypatch):
    monkeypatch.setenv("RFDETR_STUB", mode)
    with pytest.raises(BackendError, match=what):
        fit(data, tmp_path / "run", "scratch", QUICK, trainer=rf)
    assert read_card(tmp_path / "run")["state"] == "trained"
    monkeypatch.delenv("RFDETR_STUB")
    heard = []
    run = fit(data, tmp_path / "run", resume=True, trainer=rf, progress=heard.append)
    assert run.card["state"] == "finished" and [p.what for p in heard] == ["note", "export"]


def test_an_interrupt_leaves_no_process_behind(data, rf, tmp_path, monkeypatch):
    started, real = [], subprocess.Popen
    monkeypatch.setattr(R.subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[-1])

    def interrupt(p):
        if p.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(data, tmp_path / "run", "scratch", QUICK, trainer=rf, progress=interrupt)
    jobs = [child for child in started if child.args[0] == str(rf.python)]
    assert len(jobs) == 2 and all(child.returncode is not None for child in jobs)
    assert [e["epoch"] for e in read_card(tmp_path / "run")["epochs"]] == [1, 2]
    run = fit(data, tmp_path / "run", resume=True, trainer=rf)
    assert [e["epoch"] for e in run.card["epochs"]] == [1, 2, 3]


PARENT = """
import sys
from cv_pipeline.training.rfdetr import Rfdetr
from cv_pipeline.training.train import TrainSettings, train
tell = lambda p: print(p.what, p.epoch, flush=True)
trainer = Rfdetr(python=sys.argv[3])
how = TrainSettings(epochs=3, imgsz=96, batch=4, augment="none", trainer=trainer)
train(sys.argv[1], sys.argv[2], "scratch", how, progress=tell)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_a_killed_parent_takes_the_trainer_along(data, python, tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(data), str(tmp_path / "run"), str(python)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "RFDETR_STUB": "pause"},
    )
    for line in parent.stdout:
        if line.split() == ["epoch", "1"]:
            break
    children = [
        int(c)
        for t in Path(f"/proc/{parent.pid}/task").iterdir()
        for c in (t / "children").read_text().split()
    ]
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert len(children) == 1
    until(lambda: not Path(f"/proc/{children[0]}").exists())
    run = fit(data, tmp_path / "run", resume=True, trainer=R.Rfdetr(python=python))
    assert [e["epoch"] for e in run.card["epochs"]] == [1, 2, 3]


# ---- bad input


def test_an_interpreter_that_cannot_train(data, tmp_path, monkeypatch):
    monkeypatch.delenv("CV_PIPELINE_RFDETR_PYTHON", raising=False)
    empty = environment(tmp_path / "empty")
    for given, what in (
        (None, "CV_PIPELINE_RFDETR_PYTHON"),
        (tmp_path / "nowhere", "there is no interpreter here"),
        ("/bin/echo", "does not run the trainer"),
        ("/bin/false", "ended without a result"),
        (empty, r'rfdetr cannot be imported.*pip install "rfdetr\[train,onnx\]"'),
    ):
        with pytest.raises((ConfigError, BackendError), match=what):
            fit(data, tmp_path / "run", "scratch", QUICK, trainer=R.Rfdetr(python=given))
    script = tmp_path / "script"
    script.write_text("no program")
    script.chmod(0o755)
    with pytest.raises(ConfigError, match="this interpreter does not start"):
        fit(data, tmp_path / "run", "scratch", QUICK, trainer=R.Rfdetr(python=script))
    assert not (tmp_path / "run").exists()


def test_the_environment_variable_names_the_interpreter(data, python, tmp_path, monkeypatch):
    monkeypatch.setenv("CV_PIPELINE_RFDETR_PYTHON", str(python))
    assert fit(data, tmp_path / "run", "scratch", QUICK, trainer=R.Rfdetr()).card["state"] == "finished"


@pytest.mark.parametrize(
    "how, what",
    [
        ({"overrides": {"speed": 1}}, "rfdetr has no setting 'speed'"),
        ({"overrides": {"lr": "fast"}}, "lr: Input should be a valid number"),
        ({"overrides": {"resolution": 64}}, "resolution are set by this package"),
        ({"imgsz": 100}, "100 is not a multiple of 32"),
        ({"augment": "strong"}, "RF-DETR has its own augmentation"),
        ({"device": "0"}, "no CUDA card"),
        ({"overrides": {"batch_size": 2, "device": "cuda"}}, "batch_size, device are set by this package"),
    ],
)
def test_settings_that_make_no_sense(how, what, data, rf, tmp_path):
    with pytest.raises(ConfigError, match=what):
        fit(data, tmp_path / "run", "scratch", replace(QUICK, **how), trainer=rf)
    assert not (tmp_path / "run").exists()


def test_a_start_that_makes_no_sense(data, rf, tmp_path):
    with pytest.raises(ConfigError, match="RF-DETR cannot start from 'factory_line'"):
        fit(data, tmp_path / "run", settings=QUICK, trainer=rf)
    with pytest.raises(BackendError, match="nothing is downloaded"):
        fit(data, tmp_path / "run", tmp_path / "rf-detr-nano.pth", QUICK, trainer=rf)
    assert not (tmp_path / "run").exists()
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(BackendError, match="unusable weights.*belongs to this size"):
        fit(data, tmp_path / "run", tmp_path / "bad.pth", QUICK, trainer=rf)
    with pytest.raises(ConfigError, match="size: 'huge' is unknown"):
        R.Rfdetr("huge")
    with pytest.raises(ConfigError, match="trainer: 'rfdetr' is not a Trainer"):
        TrainSettings(trainer="rfdetr")


def test_weights_that_fit_in_part_are_refused(done, data, rf, python, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="this run has size nano, not small"):
        fit(data, tmp_path / "no", done[0].folder, QUICK, trainer=R.Rfdetr("small", python))
    assert not (tmp_path / "no").exists()
    monkeypatch.setenv("RFDETR_STUB", "partly")
    with pytest.raises(BackendError, match="unusable weights.*loaded only partially"):
        fit(data, tmp_path / "run", done[0].folder, QUICK, trainer=rf)


def test_a_run_belongs_to_its_trainer_and_size(data, rf, python, tmp_path, monkeypatch):
    monkeypatch.setenv("RFDETR_STUB", "error")
    with pytest.raises(BackendError):
        fit(data, tmp_path / "run", "scratch", QUICK, trainer=R.Rfdetr("small", python))
    monkeypatch.delenv("RFDETR_STUB")
    with pytest.raises(ConfigError, match="epochs: 3 stored, 9 given"):
        fit(data, tmp_path / "run", settings=replace(QUICK, epochs=9), resume=True, trainer=rf)
    other = shutil.copytree(tmp_path / "run", tmp_path / "other")
    card = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**card, "plan": {**card["plan"], "size": "medium"}}))
    with pytest.raises(ConfigError, match="size: 'medium' stored, 'small' given"):
        fit(data, other, resume=True, trainer=R.Rfdetr("small", python))
    run = fit(data, tmp_path / "run", resume=True, trainer=rf)  # the default size is no other wish
    assert run.card["plan"]["size"] == "small"


# ---- agreement


def test_two_readers_agree_or_not():
    box, found = [10, 10, 30, 30], Detections([[10, 10, 30, 30]], [0.8], [2])
    assert R.agreement([[box, 0.8, 2]], found)[1:] == (1, 1)
    for other in ([[box, 0.8, 1]], [[box, 0.5, 2]], [[[40, 40, 60, 60], 0.8, 2]]):
        assert R.agreement(other, found)[1:] == (1, 0)
    assert R.agreement([[box, 0.2, 2]], found) == (pytest.approx(0.6), 0, 0)
    assert R.agreement([], found) == (0.0, 0, 0)


# ---- the command, and the real package


def ask(*words, code=0):
    from typer.testing import CliRunner

    from cv_pipeline.commands.main import app

    plain = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}
    done = CliRunner().invoke(app, list(map(str, words)), env=plain)
    if isinstance(done.exception, CVPipelineError):
        raise done.exception
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def test_the_command(data, python, tmp_path):
    words = ["train", data, "--with", "rfdetr", "--python", python, "--model", "scratch", "--out"]
    text = ask(*words, tmp_path / "run", "--epochs", "2", "--imgsz", "96", "--augment", "none")
    assert "epoch 2 of 2" in text and "gate" in text
    assert read_card(tmp_path / "run")["plan"]["with"] == "rfdetr"
    with pytest.raises(ConfigError, match="multiple of 32"):
        ask(*words, tmp_path / "no", "--imgsz", "100")
    ask(*words, tmp_path / "no", "--size", "huge", code=2)
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_the_real_package_trains_exports_and_agrees(data, tmp_path):
    python = os.environ.get("CV_PIPELINE_RFDETR_PYTHON")
    if not python:
        pytest.skip("CV_PIPELINE_RFDETR_PYTHON does not name a Python that has rfdetr")
    how = {"num_queries": 30, "num_select": 30, "group_detr": 2}

    def interrupt(p):
        if p.epoch == 1:
            raise KeyboardInterrupt

    settings, trainer = replace(QUICK, epochs=2, overrides=how), R.Rfdetr(python=python)
    with pytest.raises(KeyboardInterrupt):
        fit(data, tmp_path / "run", "scratch", settings, trainer=trainer, progress=interrupt)
    run = fit(data, tmp_path / "run", resume=True, trainer=trainer)
    assert run.card["state"] == "finished" and run.card["resumed"][0]["after_epoch"] == 1
    assert [e["epoch"] for e in run.card["epochs"]] == [1, 2]
    assert run.card["model"]["agreement with rfdetr"]["pictures"] == 3
    assert run.card["versions"]["rfdetr"] != "not installed"
    model = load_model(run.folder, threads=1)
    image = read_image(read_dataset(data)[0].path)
    assert model.manifest.names == CLASS_NAMES and len(model.predict([image])) == 1
