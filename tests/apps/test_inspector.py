"""An inspection as a model: verdicts as classes, what is not judged, files, a run that keeps all of it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from cv_pipeline.apps.anomaly import AnomalySettings
from cv_pipeline.apps.anomaly_model import fit_model, load_anomaly
from cv_pipeline.apps.inspector import ODD, inspected_names, judged, picture_area, save_inspection
from cv_pipeline.core.formats import read_dataset
from cv_pipeline.core.images import decode_mask
from cv_pipeline.core.model_files import model_parts
from cv_pipeline.core.results import detections_of, read_jsonl, read_results
from cv_pipeline.core.types import ConfigError, CVPipelineError, ModelSpecMismatch
from cv_pipeline.evaluation.records import predict_set
from cv_pipeline.inference.loading import load_model
from cv_pipeline.inference.manifest import load_manifest
from cv_pipeline.release.registry import Registry
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.flaws import part_crops
from cv_pipeline.synthetic.line import write_dataset

CONFIG = LineConfig(seed=3, hand_every=0, density=6, class_weights=(1, 0, 2, 0, 0))


@pytest.fixture(scope="module")
def detector():
    return load_model("factory_line", threads=1)


@pytest.fixture(scope="module")
def model(detector):
    "Good nuts, with a threshold under which no part falls."
    made = fit_model({"nut": part_crops(2, range(1, 5), 8)}, detector, AnomalySettings(patches=300, flaws=1))
    return replace(made, thresholds={"nut": -1.0})


@pytest.fixture(scope="module")
def folder(model, detector, tmp_path_factory):
    return save_inspection(model, detector, tmp_path_factory.mktemp("models") / "inspection")


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def shot(k=60):
    return np.ascontiguousarray(FactoryLine(CONFIG).render(k)[0].image)


def test_the_score_is_that_of_the_anomaly_model_and_other_classes_have_none(model, detector):
    image, names = shot(), detector.manifest.names
    [found] = detector.predict([image])
    score, _, _ = judged(image, found, names, model)
    nut = np.array([names[c] == "nut" for c in found.class_id])
    assert nut.any() and (score[~nut] == -1).all()
    assert (score[nut] >= 0).any()


def test_the_verdict_is_the_class_and_carries_a_mask(folder):
    whole = load_model(folder, threads=1)
    [found] = whole.predict([shot()])
    named = np.array([whole.manifest.names[c] for c in found.class_id])
    scored = found.data["anomaly"] >= 0
    assert scored.any() and (named[scored] == ODD + "nut").all()
    assert not any(n.startswith(ODD) for n in named[~scored])
    assert all(decode_mask(m).shape == (480, 640) for m in found.data["mask"])


def test_boxes_are_those_of_the_detector(folder, detector):
    [found], [plain] = load_model(folder, threads=1).predict([shot()]), detector.predict([shot()])
    assert len(found) == len(plain) > 0
    assert np.abs(np.sort(found.xyxy, 0) - np.sort(plain.xyxy, 0)).max() < 1.5


def test_good_parts_keep_their_class_and_have_an_empty_mask(model, detector, tmp_path):
    lenient = replace(model, thresholds={"nut": 2.0})
    whole = load_model(save_inspection(lenient, detector, tmp_path / "m"), threads=1)
    [found] = whole.predict([shot()])
    assert not any(whole.manifest.names[c].startswith(ODD) for c in found.class_id)
    assert not any(decode_mask(m).any() for m in found.data["mask"])


def test_parts_at_the_edge_of_the_picture_are_not_judged(folder, detector):
    image = shot()
    [plain] = detector.predict([image])
    nut = next(
        b for b, c in zip(plain.xyxy, plain.class_id) if detector.manifest.names[c] == "nut" and b[0] > 60
    )
    cut = np.ascontiguousarray(image[:, int((nut[0] + nut[2]) / 2 - 0.15 * (nut[2] - nut[0])) :])
    [found] = load_model(folder, threads=1).predict([cut])
    left = found.xyxy[:, 0] < 2
    assert left.any() and (found.data["anomaly"][left] == -1).all()


def test_the_area_of_a_letterboxed_picture():
    image = np.full((40, 40, 3), 114, np.uint8)
    image[10:30] = 7
    assert picture_area(image) == (0, 10, 40, 30)


def test_many_pictures_of_different_sizes_in_one_call(folder):
    whole = load_model(folder, threads=1)
    small, none = np.ascontiguousarray(shot()[:360, :480]), np.full((240, 320, 3), 90, np.uint8)
    one, two, three = whole.predict([shot(), small, none])
    assert len(one) and len(two) and not len(three)
    assert three.data["anomaly"].shape == (0,)


def test_a_run_keeps_score_mask_and_verdict(folder, tmp_path):
    from cv_pipeline.core.config import load_config
    from cv_pipeline.monitoring.prediction_log import read_log
    from cv_pipeline.service.assembly import run_config

    out = tmp_path / "run"
    where = {"model.path": str(folder), "model.threads": 1, "delivery.out": str(out), "delivery.video": True}
    run_config(load_config(None, {"sources": ["line:frames=6,seed=3"], "telemetry": True, **where}))
    table = read_results(out)
    rows, odd = detections_of(table), [n.startswith(ODD) for n in table["class_name"].to_pylist()]
    assert any(odd) and np.array_equal(rows.data["anomaly"] >= 0, odd)
    assert decode_mask(rows.data["mask"][odd.index(True)]).any()
    said = [d["anomaly"] for r in read_jsonl(out) for d in r["detections"]]
    assert np.allclose(said, rows.data["anomaly"], atol=1e-5)
    log = read_log(out / "log")
    assert ODD + "nut" in log.names


def test_all_files_are_parts_of_the_model(folder):
    named = {str(p.relative_to(folder)) for p in model_parts(folder / "parts.inspection")}
    assert named == {
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p != folder / "manifest.json"
    }


def test_good_parts_are_read_from_an_inspection(folder):
    assert list(load_anomaly(folder).classes) == ["nut"]


def test_a_detector_of_other_things():
    with pytest.raises(ConfigError, match="a detector of cat"):
        inspected_names(("cat",), ("nut",))


def test_a_detector_without_a_file(model, detector, tmp_path):
    with pytest.raises(ConfigError, match="not a file here"):
        save_inspection(model, replace(detector, path=None), tmp_path / "m")


@pytest.mark.parametrize("name", ["good/class-0.npz", "detector/manifest.json", "good/first_layers.onnx"])
def test_a_changed_or_missing_file_is_found(copy, name):
    (copy / name).write_bytes(b"{}")
    with pytest.raises(CVPipelineError):
        load_model(copy, threads=1)
    (copy / name).unlink()
    with pytest.raises(CVPipelineError, match=name.split("/")[-1]):
        load_model(copy, threads=1)


@pytest.mark.parametrize(
    "more, what",
    [({"format": "x 9"}, "is expected"), ({"detector": "0" * 64}, "another one"), ({"files": None}, "lists")],
)
def test_a_file_that_is_no_inspection(copy, more, what):
    book = json.loads((copy / "parts.inspection").read_text())
    (copy / "parts.inspection").write_text(json.dumps({**book, **more}))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "sha256": ""}))
    with pytest.raises(ModelSpecMismatch, match=what):
        load_model(copy, threads=1)


@pytest.mark.parametrize("how", [{"layout": "nchw-float"}, {"head": "end2end"}])
def test_a_manifest_that_does_not_fit(copy, how):
    from cv_pipeline.apps.inspector import InspectionBackend
    from cv_pipeline.inference.manifest import open_model_folder

    m = open_model_folder(copy).manifest
    pre, post = ({"layout": how["layout"]}, {}) if "layout" in how else ({}, how)
    other = replace(m, preprocess=replace(m.preprocess, **pre), postprocess=replace(m.postprocess, **post))
    with pytest.raises(ModelSpecMismatch, match="takes pictures as bytes"):
        InspectionBackend(copy / "parts.inspection", other)


def test_it_is_evaluated_as_a_detector_of_all_its_classes(folder, tmp_path):
    drawn = FactoryLine(LineConfig(seed=5, density=5))
    write_dataset(tmp_path / "d", [drawn.render(i) for i in (0, 20, 40)], ["yolo", "coco"], split="val")
    items = read_dataset(tmp_path / "d" / "annotations" / "val.json")
    found = predict_set(load_model(folder, threads=1), items)
    named = {found.names[c] for c in found.truth.class_id}
    assert named and not any(name.startswith(ODD) for name in named)
    assert tuple(found.names) == load_manifest(folder)[0].names
    assert len(found.predictions) > 0


def test_the_registry_keeps_all_its_files_and_gives_them_back(folder, tmp_path):
    registry = Registry.init(tmp_path / "registry")
    there = registry.add(folder, force=True, reason="the first one").folder
    assert {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()} <= {
        p.relative_to(there) for p in there.rglob("*") if p.is_file()
    }
    assert len(load_model(there, threads=1).predict([shot()])[0]) > 0
