"""Every file that holds numbers says where they come from: the stamp holds the full hash of the model and of
the data."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cv_pipeline.commands import main
from cv_pipeline.core.formats import read_dataset
from cv_pipeline.core.stamp import config_hash, describe_stamp, stamp
from cv_pipeline.evaluation.records import data_hash, predict_set
from cv_pipeline.evaluation.robustness import RobustnessSettings
from cv_pipeline.evaluation.summary import evaluate_model, line_pictures
from cv_pipeline.inference.loading import load_model
from cv_pipeline.inference.manifest import load_manifest
from cv_pipeline.optimization.tuning import TuningSettings, tune_model
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.line import write_dataset


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    return line_pictures(tmp_path_factory.mktemp("line"), 9, 900)


@pytest.fixture(scope="module")
def model():
    made = load_model("factory_line", threads=1)
    yield made
    made.close()


def is_full(text) -> bool:
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


@pytest.mark.slow
def test_an_evaluation_is_stamped(line, model):
    items, columns = line
    e = evaluate_model(model, items, columns, draws=20)
    made = json.loads(json.dumps(e.metrics(), default=str))["stamp"]
    assert made["model"]["sha256"] == load_manifest("factory_line")[0].sha256
    assert made["data"] == data_hash(e.set)
    assert is_full(made["data"])
    assert is_full(made["config"])


def test_other_pictures_and_other_thresholds_make_another_stamp(line, model):
    items, columns = line
    first = evaluate_model(model, items, columns, draws=20).stamp
    fewer = evaluate_model(model, items[:6], columns, draws=20).stamp
    stricter = evaluate_model(model.with_postprocess(conf=0.7), items, columns, draws=20).stamp
    assert first["data"] != fewer["data"]
    assert first["config"] != stricter["config"]
    assert first["data"] == stricter["data"]


@pytest.mark.slow
def test_an_inspection_keeps_its_stamp_on_disk(tmp_path):
    from cv_pipeline.annotation.inspection import InspectionSettings, look_into, read_inspection

    found = look_into(
        "line", "factory_line", settings=InspectionSettings(pictures=12, threads=1), scratch=tmp_path / "line"
    )
    found.save(tmp_path / "qa")
    kept = json.loads((tmp_path / "qa" / "qa.json").read_text())["stamp"]
    assert kept["model"]["sha256"] == load_manifest("factory_line")[0].sha256
    assert is_full(kept["data"])
    assert read_inspection(tmp_path / "qa").stamp == kept


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    "A YOLO folder of line pictures."
    folder = tmp_path_factory.mktemp("dataset")
    write_dataset(folder, FactoryLine(LineConfig(seed=31)).frames(8), ["yolo"], split="val")
    return folder


@pytest.fixture(scope="module")
def truth(dataset, model):
    "Hash of the truth that an evaluation on that dataset would be measured against."
    return data_hash(predict_set(model, read_dataset(dataset)))


def test_a_tuned_model_keeps_its_stamp_in_the_manifest(dataset, truth, tmp_path):
    main.tune("factory_line", dataset, out=tmp_path / "tuned", settings=TuningSettings())
    kept = load_manifest(tmp_path / "tuned")[0].metrics["tuning"]["stamp"]
    assert kept["model"]["sha256"] == load_manifest("factory_line")[0].sha256
    assert kept["data"] == truth
    assert is_full(kept["config"])


def test_other_settings_of_the_tuning_make_another_stamp(line, model):
    first, other = (
        tune_model(model, line[0], TuningSettings(objective)).stamp for objective in ("f1", "fbeta=2")
    )
    assert first["config"] != other["config"]
    assert first["data"] == other["data"]


def test_the_file_of_the_robustness_command_is_stamped_with_its_pictures(dataset, truth, tmp_path):
    settings = RobustnessSettings(conditions=("fog",), severities=(3,), seed=5)
    main.robustness(data=dataset, settings=settings, out=tmp_path)
    kept = json.loads((tmp_path / "metrics.json").read_text())["stamp"]
    assert kept["model"]["sha256"] == load_manifest("factory_line")[0].sha256
    assert kept["data"] == truth
    assert is_full(kept["config"])


def test_a_model_without_a_manifest_of_its_own_is_hashed(tmp_path, model):
    bare = replace(model, manifest=replace(model.manifest, sha256=""))
    assert bare.identity["sha256"] == load_manifest("factory_line")[0].sha256


@pytest.mark.parametrize("value", [0.25, np.float32(0.25), True, None, [1, 2], {"a": {"b": 1}}])
def test_any_setting_changes_the_hash(value):
    assert config_hash({"conf": value}) != config_hash({"conf": "other"})
    assert config_hash({"conf": value, "iou": 1}) == config_hash({"iou": 1, "conf": value})


def test_no_password_takes_part():
    hashes = {
        config_hash({"source": f"rtsp://admin:{word}@10.0.0.7/live", "token": word})
        for word in ("one", "two")
    }
    assert len(hashes) == 1


def test_a_stamp_reads_as_one_line():
    assert "\n" not in describe_stamp(stamp({"name": "m", "sha256": "0" * 64}, "1" * 64, {"a": 1}))


@pytest.fixture(scope="module")
def week(tmp_path_factory):
    "Two days of a camera of the line, sixteen frames a day."
    from cv_pipeline.monitoring.prediction_log import read_log
    from cv_pipeline.monitoring.season_line import write_weeks

    return read_log(write_weeks(tmp_path_factory.mktemp("week"), 16, days=2, cameras=1, fails=None))


@pytest.mark.slow
def test_a_drift_report_is_stamped_with_the_models_of_the_log(week):
    from cv_pipeline.monitoring.drift_report import drift_of_log, log_hash
    from cv_pipeline.monitoring.observed import DriftSettings

    days = ["2026-06-01", "2026-06-02"], ["2026-06-02", "2026-06-03"]
    made = json.loads(
        json.dumps(
            drift_of_log(week, *days, DriftSettings(permutations=699, least=10), with_before=False).stamp
        )
    )
    assert [m["sha256"] for m in made["model"]] == [load_manifest("factory_line")[0].sha256]
    assert made["data"] == log_hash(week)
    assert is_full(made["config"])
    other = drift_of_log(
        week, *days, DriftSettings(permutations=699, least=10, seed=1), with_before=False
    ).stamp
    assert other["config"] != made["config"]


@pytest.mark.slow
def test_the_hash_of_a_log_follows_its_rows(week):
    from cv_pipeline.monitoring.drift_report import log_hash

    moved = dict(week.frames, brightness=week.frames["brightness"] + np.float32(1))
    assert log_hash(replace(week, frames=moved)) != log_hash(week)
    assert is_full(log_hash(week))


def test_a_merged_log_names_the_models_of_all_its_parts(tmp_path):
    from datetime import datetime, timedelta, timezone

    from cv_pipeline.core.types import Detections, Frame, FrameResult
    from cv_pipeline.monitoring.prediction_log import read_log
    from cv_pipeline.monitoring.telemetry import TelemetrySink, compact_log

    monday = datetime(2026, 6, 1, tzinfo=timezone.utc)
    image = np.zeros((48, 64, 3), np.uint8)
    for k, sha256 in enumerate(("a" * 64, "b" * 64)):
        sink = TelemetrySink(tmp_path)
        for i in range(3):
            frame = Frame(image, "gate", i, monday + timedelta(hours=k, seconds=i))
            sink.write(FrameResult(frame, Detections.empty(), model="net 1", model_sha256=sha256))
        sink.close()
    named = (("net 1", "a" * 64), ("net 1", "b" * 64))
    assert read_log(tmp_path).model_files == named
    assert compact_log(tmp_path, before="2026-06-02") == 2
    assert read_log(tmp_path).model_files == named


def test_a_stamp_of_two_models_names_both_in_its_line():
    made = stamp([{"name": "old", "sha256": "a" * 64}, {"name": "new", "sha256": "b" * 64}], None)
    assert [m["name"] for m in made["model"]] == ["old", "new"]
    assert "old  aaaaaaaaaaaa, new  bbbbbbbbbbbb" in describe_stamp(made)
