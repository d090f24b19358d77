"""`cv-pipeline threshold` and `report trust` as a user meets them: tables before anyone labels, a promise in
a manifest, its end, exit codes, and bad input."""

import json
import re
import shutil

import pytest

from cv_pipeline.inference.manifest import bundled_models
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.line import write_dataset
from tests.helpers.cli import called as cli

pytestmark = pytest.mark.slow


def words(result):
    return " ".join((result.stdout + result.stderr).split())


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, FactoryLine(LineConfig(seed=31)).frames(90), ["yolo", "coco"], split="val")
    return folder / "annotations" / "val.json"


@pytest.fixture(scope="module")
def proven(labelled, tmp_path_factory):
    "A model folder with a promise, and what the command printed."
    out = tmp_path_factory.mktemp("models") / "line"
    done = cli("threshold", "prove", "factory_line", labelled, "--promise", "recall>=0.85@95%", "--out", out)
    return out, done


def drift_report(root, verdict):
    book = {"verdict": verdict, "cause": "world changed", "families": [{"family": "image", "state": verdict}]}
    book["window"] = {"from": "2020-01-01T00:00:00+00:00", "to": "2020-01-02T00:00:00+00:00"}
    (root / "2020-01-02" / "drift").mkdir(parents=True)
    (root / "2020-01-02" / "drift" / "metrics.json").write_text(json.dumps(book))
    return root


def test_the_price_is_printed_before_anyone_labels():
    done = cli("threshold", "needed", "--rate", "0.99", "--true", "0.995")
    assert done.returncode == 0
    numbers = set(re.findall(r"\d+", words(done)))
    assert {"299", "473", "628", "1049", "1693", "1941"} <= numbers


@pytest.mark.parametrize(
    "args, text",
    [
        (["needed", "--rate", "1"], "can never be proven"),
        (["needed", "--rate", "0.95", "--true", "0.9"], "cannot prove"),
        (["needed", "--rate", "0.95", "--errors", "many"], "is not a whole number"),
        (["prove", "factory_line", "DATA", "--promise", "recall>0.9", "--dry-run"], "unknown promise"),
        (["prove", "factory_line", "DATA", "--class", "screw", "--dry-run"], "no class 'screw'"),
        (["prove", "factory_line", "DATA", "--unit", "track", "--dry-run"], "no column 'track'"),
        (["prove", "factory_line", "DATA", "--share", "2", "--dry-run"], "outside 0..1"),
        (["prove", "factory_line", "DATA"], "a bundled model is not changed"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(args, text, labelled):
    done = cli("threshold", *[labelled if a == "DATA" else a for a in args])
    assert done.returncode == 2, done.stderr
    assert text in words(done)


def test_a_promise_is_written_beside_the_threshold(proven):
    out, done = proven
    assert done.returncode == 0, done.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    (promise,) = manifest["metrics"]["promises"]
    assert promise["threshold"] == manifest["postprocess"]["conf"]
    assert promise["stamp"]["model"]["sha256"] == manifest["sha256"]
    assert len(promise["stamp"]["data"]) == 64
    assert promise["sentence"] in words(done)


def test_too_few_labels_end_with_1_and_say_how_many(labelled, tmp_path):
    done = cli(
        "threshold", "prove", "factory_line", labelled, "--promise", "recall>=0.99", "--out", tmp_path / "m"
    )
    assert done.returncode == 1
    assert re.search(r"INSUFFICIENT not proven: recall ≥ 0.99 .* \d+ more", words(done))
    assert not (tmp_path / "m" / "manifest.json").exists()


def test_tune_takes_a_promise(labelled, tmp_path):
    done = cli("tune", "factory_line", labelled, "--objective", "recall>=0.85@95%", "--out", tmp_path / "t")
    assert done.returncode == 0, done.stderr
    assert "promises" in json.loads((tmp_path / "t" / "manifest.json").read_text())["metrics"]


@pytest.mark.parametrize(
    "verdict, code, text",
    [("GREEN", 0, "valid"), ("RED", 1, "void since 2020-01-02"), ("GREY", 1, "not proven at present")],
)
def test_drift_decides_whether_it_stands(proven, tmp_path, verdict, code, text):
    reports = drift_report(tmp_path, verdict)
    done = cli("threshold", "check", proven[0], "--reports", reports, "--fresh-days", 100_000)
    assert done.returncode == code, done.stderr
    assert text in words(done)


def test_without_a_drift_report_nothing_is_proven(proven, tmp_path):
    done = cli("threshold", "check", proven[0], "--reports", tmp_path)
    assert done.returncode == 1
    assert "no drift report" in words(done)


def test_another_model_voids_it_where_models_are_shown(proven, tmp_path):
    shutil.copytree(proven[0], tmp_path / "m")
    manifest = json.loads((tmp_path / "m" / "manifest.json").read_text())
    manifest["metrics"]["promises"][0]["stamp"]["model"]["sha256"] = "0" * 64
    (tmp_path / "m" / "manifest.json").write_text(json.dumps(manifest))
    shown = json.loads(cli("models", tmp_path / "m").stdout)
    assert shown["metrics"]["promises"][0]["standing"].startswith("void: made for another model")
    mine = json.loads(cli("models", proven[0]).stdout)
    assert mine["metrics"]["promises"][0]["standing"] == "made for this model and threshold"


def test_an_unknown_model_ends_with_4(tmp_path):
    assert cli("threshold", "check", "no-such-model", "--reports", tmp_path).returncode == 4


def test_a_model_without_a_promise_says_how_to_get_one(tmp_path):
    done = cli("threshold", "check", bundled_models()["factory_line"], "--reports", tmp_path)
    assert done.returncode == 1
    assert "next: cv-pipeline threshold prove" in words(done)


def test_the_trust_report_runs_without_anything_and_closes_its_gate(tmp_path):
    done = cli("report", "trust", "--root", tmp_path, "--gate")
    assert done.returncode == 1, done.stderr
    metrics = json.loads(next(tmp_path.glob("*/trust/metrics.json")).read_text())
    assert {c: a["state"] for c, a in metrics["cameras"].items()} == {
        "belt": "UNKNOWN",
        "dock": "FALLING",
        "gate": "PROVEN",
    }
    assert "dock: FALLING" in (tmp_path / "index.html").read_text()
