"""The gate after training: the decision of each slice, what is too thin, new and lost classes, what a
candidate folder carries, and that nothing else is ever written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.annotation.datasets import FrozenSetError, LeakError, freeze
from cv_pipeline.annotation.versions import MergeSettings, merge
from cv_pipeline.core.formats import read_dataset
from cv_pipeline.core.images import read_image
from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.evaluation.intervals import Verdict
from cv_pipeline.evaluation.records import EvalSet, box_table
from cv_pipeline.inference.calibrators import Calibrator
from cv_pipeline.inference.loading import load_model
from cv_pipeline.inference.manifest import load_manifest, save_manifest
from cv_pipeline.optimization.graphs import open_graph, save_graph
from cv_pipeline.optimization.optimize import accuracy_gate
from cv_pipeline.optimization.quantize import prune_channels
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.line import write_dataset
from cv_pipeline.training import gate as C
from tests.helpers.services import require

pytestmark = pytest.mark.slow

NAMES = ("nut", "bolt", "lid")
QUICK = C.GateSettings(draws=60)


def drawn(pictures: int, found: float, seed: int = 0, names=NAMES, each: int = 3, **columns) -> EvalSet:
    "Pictures with three objects each, of which a share is found exactly, the others not at all."
    rng = np.random.default_rng(99)  # the truth is the same for every model
    image = np.repeat(np.arange(pictures), each)
    at = rng.uniform(0, 60, (len(image), 2)) + np.tile(np.arange(each), pictures)[:, None] * 70
    truth = box_table(image, np.hstack([at, at + 40]), rng.integers(0, len(names), len(image)))
    share = np.broadcast_to(np.asarray(found, float), (pictures,))[image]
    hit = np.random.default_rng(seed).random(len(image)) < share
    said = truth[hit]
    return EvalSet(
        tuple(names),
        tuple(f"{i}.jpg" for i in range(pictures)),
        np.full((pictures, 2), 300),
        truth,
        replace(said, confidence=np.full(len(said), 0.9)),
        {k: np.array(v, object) for k, v in columns.items()},
    )


def verdicts(c: C.Comparison) -> dict[str, str]:
    return {s.what: s.verdict.value for s in c.slices}


# ---- decisions


@settings(max_examples=15, deadline=None)
@given(st.floats(0.3, 0.95), st.floats(0.3, 0.95), st.floats(0, 0.2))
def test_a_slice_passes_exactly_when_the_shared_gate_says_so(new, old, allowed):
    a, b = drawn(60, new, 1), drawn(60, old, 2)
    got, gate = C.judge_slice("overall", a, b, allowed, 60), accuracy_gate(a, b, allowed, True, 60)
    assert (got.verdict is Verdict.PASS) == gate.accepted == (
        got.change.low >= -allowed
    ) and got.verdict.value == gate.verdict
    assert C.judge_slice("itself", a, a, 0.0, 40).verdict is Verdict.PASS


def test_one_bad_slice_closes_the_gate_and_is_named():
    night = np.arange(120) % 3 == 0
    light = np.where(night, "night", "day").tolist()
    old = drawn(120, 0.6, 3, light=light)
    new = drawn(120, np.where(night, 0.25, 0.95), 4, light=light)
    c = C.compare(new, old, C.GateSettings(slice_loss=0.05, draws=200))
    assert (
        c.verdict is Verdict.FAIL
        and verdicts(c)["overall"] == "PASS"
        and verdicts(c)["light = night"] == "FAIL"
        and verdicts(c)["light = day"] == "PASS"
    )
    assert c.reasons()[0].startswith("FAIL light = night")
    assert (
        C.compare(new, old, C.GateSettings(protect=[], slice_loss=0.1, draws=200)).verdict is Verdict.PASS
    )  # averages alone would have let it in
    with pytest.raises(DataError, match="unknown column 'weather'"):
        C.compare(new, old, C.GateSettings(protect=["weather"], draws=20))


def test_a_lost_class_is_a_loss_and_a_new_one_is_told_apart():
    s = drawn(100, 0.9)
    known = C.among(s, ["nut", "bolt"])
    c = C.compare(s, known, QUICK)
    assert (
        c.verdict is Verdict.PASS
        and c.shared == ("nut", "bolt")
        and [r["class"] for r in c.added] == ["lid"]
        and c.added[0]["AP"] > 0.7
        and c.lost == ()
    )
    back = C.compare(known, s, QUICK)
    assert (
        back.verdict is Verdict.FAIL
        and "FAIL class lid: the new model does not know it any more" in back.reasons()
    )
    assert C.compare(known, s, C.GateSettings(forget=["lid"], draws=60)).verdict is Verdict.PASS
    few = replace(s, truth=s.truth[(s.truth.class_id != 2) | (s.truth.image < 5)])
    assert C.compare(few, C.among(few, ["nut", "bolt"]), QUICK).added[0]["AP"] is None
    with pytest.raises(DataError, match="no class in common"):
        C.compare(s, drawn(100, 0.9, names=("a", "b", "c")), QUICK)


def test_classes_in_another_order_are_the_same_classes():
    s = drawn(80, 0.8)
    order = [2, 0, 1]
    place = np.argsort(order).astype(np.int32)
    turn = lambda t: replace(t, class_id=place[t.class_id])
    other = replace(
        s, names=tuple(NAMES[k] for k in order), truth=turn(s.truth), predictions=turn(s.predictions)
    )
    c = C.compare(other, s, QUICK)
    assert c.verdict is Verdict.PASS and all(r.change.value == 0 for r in c.slices)


@pytest.mark.parametrize("thin, verdict", [("block", Verdict.INSUFFICIENT), ("report", Verdict.PASS)])
def test_thin_slices_are_said_to_be_insufficient_and_show_no_number(thin, verdict):
    light = ["night" if i < 12 else "day" for i in range(100)]
    new, old = drawn(100, 0.95, 1, light=light), drawn(100, 0.5, 2, light=light)
    c = C.compare(new, old, C.GateSettings(thin=thin, draws=60))
    row = next(s for s in c.slices if s.what == "light = night")
    assert (
        c.verdict is verdict
        and row.verdict is Verdict.INSUFFICIENT
        and row.thin
        and row.row()["AP new"] is None
        and "12 images and 36 objects are too few" in row.reason
    )
    assert any("light = night" in r for r in c.reasons())


def test_too_few_pictures_can_never_pass():
    few = drawn(20, 0.95)
    assert C.compare(few, few, C.GateSettings(thin="report", draws=40)).verdict is Verdict.INSUFFICIENT


@pytest.mark.parametrize(
    "wrong",
    [
        {"protect": "light"},
        {"thin": "maybe"},
        {"max_loss": 1.5},
        {"max_loss": float("nan")},
        {"max_loss": "much"},
        {"slice_loss": -1},
        {"slice_loss": True},
        {"forget": "lid"},
        {"draws": 19},
        {"draws": 100.5},
        {"seed": -1},
        {"seed": None},
    ],
)
def test_a_wrong_setting_of_the_gate_is_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)) + ": "):
        C.GateSettings(**wrong)


@pytest.mark.parametrize(
    "wrong, match",
    [
        ({"gate": {"draws": 60}}, "gate: "),
        ({"threads": -1}, "threads: "),
        ({"threads": 1.0}, "threads: "),
        ({"objective": "best"}, "unknown objective 'best'"),
    ],
)
def test_a_wrong_setting_of_the_candidate_is_named(wrong, match):
    with pytest.raises(ConfigError, match=match):
        C.CandidateSettings(**wrong)


# ---- the candidate


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    "A frozen test set, a version to train and validate on, the bundled model, and a weaker one as a folder."
    root = tmp_path_factory.mktemp("candidate")
    for name, seed, n in (("test", 5000, 40), ("data", 6000, 30)):
        line = FactoryLine(LineConfig(seed=seed, density=6))
        write_dataset(root / name, (line.render(k * 10) for k in range(n)), ["yolo"], split="all")
    freeze(root / "test", root / "test_set.json")
    merge([root / "data"], root / "v1", root / "test_set.json", MergeSettings(val=0.5, hamming=0), by="ana")
    bundled = load_model("factory_line", threads=1)
    (root / "weak").mkdir()
    save_graph(prune_channels(open_graph(bundled.path), 0.16), root / "weak" / "weak.onnx")
    save_manifest(
        replace(
            bundled.manifest,
            name="line",
            version="1.9",
            file="weak.onnx",
            sha256="",
            artefacts=(),
            metrics={},
        ),
        root / "weak",
    )
    return root


RULES = C.GateSettings(protect=[], thin="report", draws=60, slice_loss=0.05)


def gate(place: Path, out: Path, new="factory_line", old=None, train=None, val=None, by="", **more):
    data = C.GateData(place / "test_set.json", train, val)
    return C.make_candidate(
        new, old or place / "weak", data, out, C.CandidateSettings(RULES, by=by, threads=1), **more
    )


def test_a_candidate_carries_everything(place, tmp_path):
    done = gate(place, tmp_path / "c", train=place / "v1", val=place / "v1", by="ana")
    assert done.verdict is Verdict.PASS
    made, file = load_manifest(tmp_path / "c")
    bundled = load_model("factory_line", threads=1)
    assert (made.name, made.version, made.preprocess) == (
        "line",
        "1.10",
        bundled.manifest.preprocess,
    ) and file.read_bytes() == Path(bundled.path).read_bytes()
    book = json.loads((tmp_path / "c" / "gate.json").read_text())
    assert book["settings"] == {
        "protect": [],
        "max_loss": 0.01,
        "slice_loss": 0.05,
        "thin": "report",
        "forget": [],
        "draws": 60,
        "seed": 0,
    }
    assert (
        book["verdict"] == "PASS"
        and book["test set"]["digest"]
        and book["training data"]["digest"] == book["validation"]["digest"]
        and book["old"]["version"] == "1.9"
    )
    assert (
        made.training["parent"]["sha256"] == book["old"]["sha256"] != book["new"]["sha256"]
        and made.metrics["gate"]["verdict"] == "PASS"
    )
    assert (
        made.postprocess.conf == book["thresholds"]["conf"]
        and set(book["at the thresholds in use"]) == {"new", "old"}
        and "reason" in book["calibration"]
    )
    again = load_model(tmp_path / "c", threads=1)
    item = read_dataset(place / "test")[0]
    assert len(again.predict([read_image(item.path)])[0]) > 0


def test_a_refused_model_leaves_gate_json_and_a_second_try_may_use_the_folder(place, tmp_path):
    bad = gate(place, tmp_path / "c", new=place / "weak", old="factory_line", val=place / "v1")
    assert (
        bad.verdict is Verdict.FAIL
        and [p.name for p in (tmp_path / "c").iterdir()] == ["gate.json"]
        and bad.manifest is None
    )
    book = json.loads((tmp_path / "c" / "gate.json").read_text())
    assert (
        book["verdict"] == "FAIL"
        and any("overall" in r for r in book["reasons"])
        and "thresholds" not in book
    )
    good = gate(place, tmp_path / "c")
    assert (
        good.verdict is Verdict.PASS
        and load_manifest(tmp_path / "c")[0].version == "1.10"
        and good.manifest.postprocess == load_model("factory_line").manifest.postprocess
    )  # without validation pictures it keeps its own
    with pytest.raises(ConfigError, match="already exists"):
        gate(place, tmp_path / "c")


def test_thresholds_are_never_chosen_on_the_test_set(place, tmp_path):
    with pytest.raises(LeakError):
        gate(place, tmp_path / "c", val=read_dataset(place / "test"))
    with pytest.raises(LeakError):
        gate(place, tmp_path / "c", train=place / "test")
    few = gate(place, tmp_path / "d", val=read_dataset(place / "data")[:3])
    assert (
        "too few" in few.book["thresholds"]["kept"]
        and few.manifest.postprocess.conf == load_model("factory_line").manifest.postprocess.conf
    )
    assert not (tmp_path / "c").exists()


@pytest.fixture
def run(place, tmp_path):
    "The folder of a training, whose pictures lie beside its model."
    bundled = load_model("factory_line")
    (tmp_path / "run").mkdir()
    shutil.copyfile(bundled.path, tmp_path / "run" / "model.onnx")
    save_manifest(replace(bundled.manifest, file="model.onnx", sha256="", artefacts=()), tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{}")
    shutil.copytree(place / "data", tmp_path / "run" / "data")
    return tmp_path / "run"


@pytest.mark.parametrize("which", ["folder", "file", "weights", "open"])
def test_what_a_run_was_trained_on_is_looked_at_without_being_asked(place, run, tmp_path, which):
    test = read_dataset(place / "test")[0]
    (run / "training" / "weights").mkdir(parents=True)
    shutil.copyfile(run / "model.onnx", run / "training" / "weights" / "best.onnx")
    new = {
        "folder": run,
        "file": run / "model.onnx",
        "weights": run / "training" / "weights" / "best.onnx",
        "open": load_model(run, threads=1),
    }[which]
    assert C._staged(new) == run / "data"
    replayed = run / "data" / "images" / "all" / "old-1.png"
    replayed.write_bytes(test.path.read_bytes())
    (run / "data" / "labels" / "all" / "old-1.txt").write_text(test.label.read_text())
    with pytest.raises(LeakError):
        gate(place, tmp_path / "c", new=new)
    with pytest.raises(LeakError):
        gate(place, tmp_path / "c", new=new, train=place / "v1")  # what was said is not all that there was
    assert not (tmp_path / "c").exists()


def test_where_leaks_were_looked_for_is_written_down(place, run, tmp_path):
    said = []
    mine = gate(place, tmp_path / "a", new=run, progress=said.append)
    assert (
        mine.book["leaks"]
        == "none among the 30 pictures in the run of the new model"
        == load_manifest(tmp_path / "a")[0].metrics["gate"]["leaks"]
    )
    blind = gate(place, tmp_path / "b", progress=said.append)
    assert (
        json.loads((tmp_path / "b" / "gate.json").read_text())["leaks"].startswith("not checked")
        and blind.manifest.metrics["gate"]["leaks"] == blind.book["leaks"]
    )
    told = gate(place, tmp_path / "d", train=place / "v1")
    assert told.book["leaks"] == f"none among the {len(read_dataset(place / 'v1'))} pictures that were given"
    assert sum(t.startswith("leaks: ") for t in said) == 2


@pytest.mark.parametrize("accepted", [True, False])
def test_only_an_accepted_calibration_is_stored(place, tmp_path, monkeypatch, accepted):
    """The line's detector is calibrated well enough to be refused, so the curve is put in; everything after
    the fit is real."""
    curve = Calibrator({}, {"kind": "platt", "a": 0.5, "b": -0.3}, "precision") if accepted else None
    fit = C.calibrate
    monkeypatch.setattr(C, "calibrate", lambda s: replace(fit(s), calibrator=curve))
    gate(place, tmp_path / "c", val=place / "v1")
    made, image = load_model(tmp_path / "c", threads=1), read_image(read_dataset(place / "test")[0].path)
    found = made.predict([image])[0]
    assert (
        bool(made.manifest.calibration) == accepted == ("raw_confidence" in found.data)
        and json.loads((tmp_path / "c" / "gate.json").read_text())["calibration"]["accepted"] is accepted
    )
    assert not accepted or (found.confidence < found.data["raw_confidence"]).all()


def test_a_changed_test_set_is_no_judge(place, tmp_path):
    label = next((place / "test" / "labels").rglob("*.txt"))
    text = label.read_text()
    label.write_text("")
    try:
        with pytest.raises(FrozenSetError, match=label.stem):
            gate(place, tmp_path / "c")
    finally:
        label.write_text(text)
    assert not (tmp_path / "c").exists()


def test_a_crash_while_writing_leaves_nothing(place, tmp_path, monkeypatch):
    def broken(*a, **k):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(C, "save_manifest", broken)
    with pytest.raises(Exception, match="space"):
        gate(place, tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_slices_from_columns_and_the_version_of_the_next_model(place, tmp_path):
    items = read_dataset(place / "test")
    light = {"light": {str(i.path): ("a" if k % 2 else "b") for k, i in enumerate(items)}}
    how = C.CandidateSettings(
        C.GateSettings(thin="report", draws=40, slice_loss=0.1), name="night", version="7", threads=1
    )
    done = C.make_candidate(
        "factory_line", place / "weak", C.GateData(items, columns=light), tmp_path / "c", how
    )
    assert {"light = a", "light = b"} <= {s.what for s in done.comparison.slices} and (
        done.manifest.name,
        done.manifest.version,
    ) == ("night", "7")
    assert [C._next(v) for v in ("3", "1.9", "2.0.0", "beta")] == ["4", "1.10", "2.0.1", "beta.1"]


def test_a_checkpoint_is_exported_and_kept(place, tmp_path):
    torch = require("torch")
    require("ultralytics")
    from cv_pipeline.training.warm_start import warm_start

    net = warm_start("factory_line", pictures=[read_image(i.path) for i in read_dataset(place / "data")[:16]])
    torch.save(
        {"model": net, "train_args": {"imgsz": 320, "task": "detect", "model": "factory.yaml"}},
        tmp_path / "best.pt",
    )
    done = gate(place, tmp_path / "c", new=tmp_path / "best.pt")
    assert (
        done.verdict is Verdict.PASS
        and {p.suffix for p in (tmp_path / "c").iterdir()} == {".json", ".onnx", ".pt"}
        and done.manifest.names == load_model("factory_line").manifest.names
    )
    assert (
        done.manifest.preprocess.imgsz == (320, 320) and load_model(tmp_path / "c").manifest.version == "1.10"
    )
