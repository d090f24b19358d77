"""Reports: parameters are refused before a kernel starts, a failing cell leaves a page, numbers equal the
oracle's."""

import json
import re
from datetime import date
from pathlib import Path

import nbformat
import pytest

from cv_pipeline.core.stamp import stamp
from cv_pipeline.core.types import ConfigError
from cv_pipeline.privacy.access import access_head, note_access, verify_access
from cv_pipeline.reporting import runner as reports
from cv_pipeline.reporting.runner import (
    ReportFailed,
    check_parameters,
    cron_line,
    find_template,
    github_workflow,
    read_parameters,
    run_report,
)
from tests.helpers.cli import called

pytestmark = pytest.mark.slow


def template(folder: Path, *sources: str, name: str = "small") -> Path:
    cells = [nbformat.v4.new_code_cell(s) for s in sources]
    cells[0].metadata["tags"] = ["parameters"]
    path = folder / f"{name}.ipynb"
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=cells,
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        ),
        path,
    )
    return path


PARAMETERS = (
    'model: str = "m"  # which\nfloor: float = 0.5\nslices: list = []\nn: "Optional[int]" = '
    'None\noutput: str = "out"'
)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"flor": 1}, "did you mean 'floor'"),
        ({"floor": "high"}, "valid number"),
        ({"slices": "camera"}, "valid list"),
        ({"n": "2.5"}, "int"),
        ({"floor": "nan"}, "finite"),
    ],
)
def test_wrong_parameters_are_refused_before_a_kernel_starts(tmp_path, given, words, monkeypatch):
    import papermill

    monkeypatch.setattr(papermill, "execute_notebook", lambda *a, **k: pytest.fail("the kernel was started"))
    with pytest.raises(ConfigError, match=words):
        run_report(template(tmp_path, PARAMETERS), given, root=tmp_path / "reports")
    assert not (tmp_path / "reports").exists()


def test_values_from_a_command_line_become_their_types(tmp_path):
    known = read_parameters(template(tmp_path, PARAMETERS))
    assert known["model"].help == "which" and known["n"].annotation == "Optional[int]"
    assert check_parameters(known, {"floor": "0.25", "slices": "[a, b]", "n": "3", "model": "12"}) == {
        "floor": 0.25,
        "slices": ["a", "b"],
        "n": 3,
        "model": "12",
    }
    assert check_parameters(known, {"n": "null"}) == {"n": None}


@pytest.mark.parametrize(
    "cells, words",
    [(["x = 1"], "not `name: type = value`"), (["x: int = 1 + 1"], "line 1"), (["x: weird = 1"], None)],
)
def test_a_parameters_cell_that_cannot_be_read_is_refused(tmp_path, cells, words):
    path = template(tmp_path, *cells)
    with pytest.raises(ConfigError, match=words or "unsupported parameter type"):
        check_parameters(read_parameters(path), {"x": 1})
    with pytest.raises(ConfigError, match="unknown report 'weather'"):
        find_template("weather")
    (tmp_path / "two.ipynb").write_text("{}")
    with pytest.raises((ConfigError, KeyError)):
        read_parameters(tmp_path / "two.ipynb")


def test_a_failing_cell_leaves_a_readable_page_and_exit_code_1(tmp_path):
    path = template(
        tmp_path,
        PARAMETERS,
        "print('before the accident')",
        "raise RuntimeError('lens cap on')",
        "print('never')",
    )
    with pytest.raises(ReportFailed, match="lens cap on") as e:
        run_report(path, {}, root=tmp_path / "r", today=date(2026, 6, 1))
    folder = tmp_path / "r" / "2026-06-01" / "small"
    page = (folder / "report.html").read_text()
    assert (
        e.value.exit_code == 1
        and "before the accident" in page
        and "lens cap on" in page
        and "never" not in re.sub("print.*never", "", page)
    )
    assert nbformat.read(folder / "report.ipynb", 4).metadata.papermill.exception
    result = called("report", str(path), "--root", str(tmp_path / "cli"))
    assert result.returncode == 1 and "lens cap on" in result.stderr and "Traceback" not in result.stderr
    again = run_report(
        template(tmp_path, PARAMETERS, "pass"), {}, root=tmp_path / "r", today=date(2026, 6, 1)
    )  # the next run of the day replaces it
    assert (
        again.metrics == {}
        and again.verdict is None
        and [p.name for p in (tmp_path / "r" / "2026-06-01").iterdir()] == ["small"]
    )


def test_the_schedule_lines_are_complete_and_quoted():
    line = cron_line(
        "evaluation",
        {"model": "a b.onnx", "floors": {"AP": 0.5}},
        "30 5 * * 1-5",
        Path("/srv/x"),
        "/opt/cv-pipeline",
    )
    assert line.startswith(
        "30 5 * * 1-5 cd /srv/x && mkdir -p -- reports && /opt/cv-pipeline report evaluation "
        "-p 'model=a b.onnx' -p 'floors={\"AP\": 0.5}'"
    )
    import yaml

    flow = yaml.safe_load(github_workflow("evaluation", {"model": "a b.onnx"}))
    assert flow[True if True in flow else "on"]["schedule"] == [{"cron": "0 6 * * 1"}]
    assert cron_line("drift", {}, folder=Path("/srv")).startswith("0 6 * * * ") and cron_line(
        "nbs/evaluation.ipynb", {}, folder=Path("/srv")
    ).startswith("0 6 * * 1 ")
    assert any(
        "cv-pipeline report evaluation -p 'model=a b.onnx'" in s.get("run", "")
        for s in flow["jobs"]["report"]["steps"]
    )
    with pytest.raises(ConfigError, match="cron schedule"):
        github_workflow("evaluation", {}, "sometimes")


def test_the_evaluation_report_of_the_line_says_pass_and_its_page_needs_no_network(tmp_path):
    result = called(
        "report",
        "evaluation",
        "-p",
        "pictures=60",
        "-p",
        "draws=200",
        "-p",
        "floors={AP: 0.5, 'AP, light = good': 0.5}",
        "--gate",
        "--root",
        str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    folder = next(tmp_path.glob("*/evaluation-factory_line"))
    metrics, page = json.loads((folder / "metrics.json").read_text()), (folder / "report.html").read_text()
    assert (
        metrics["verdict"] == "PASS"
        and {f["what"] for f in metrics["findings"]} == {"AP", "AP, light = good"}
        and metrics["header"]["pictures"] == 60
    )
    assert metrics["intervals"]["AP"]["low"] < metrics["coco"]["AP"] < metrics["intervals"]["AP"]["high"]
    assert not [
        u
        for u in re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="([^"]*)"', page)
        if u.startswith("http")
    ]
    assert "PASS" in page and "data:image" in page
    closed = called(
        "report",
        "evaluation",
        "-p",
        "pictures=60",
        "-p",
        "draws=100",
        "-p",
        "floors={AP: 0.99}",
        "--gate",
        "--root",
        str(tmp_path / "b"),
    )
    assert closed.returncode == 1 and "FAIL" in closed.stderr


def test_a_frozen_set_is_what_the_report_evaluates_and_a_changed_or_leaked_one_ends_it(tmp_path):
    from cv_pipeline.annotation.datasets import freeze
    from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
    from cv_pipeline.synthetic.line import write_dataset

    for split, seed in (("test", 5), ("train", 6)):
        write_dataset(
            tmp_path / "set", FactoryLine(LineConfig(seed=seed)).frames(8, 0), ["yolo"], split=split
        )
    frozen, asked = tmp_path / "test_set.json", {"draws": 20, "frozen": str(tmp_path / "test_set.json")}
    freeze(tmp_path / "set", frozen, "test")
    done = run_report("evaluation", asked, root=tmp_path / "r")
    assert done.metrics["header"]["pictures"] == 8  # the frozen half, not the line and not all of the folder
    with pytest.raises(ReportFailed, match="defines its own split"):
        run_report(
            "evaluation", {**asked, "data": str(tmp_path / "set"), "split": "train"}, root=tmp_path / "s"
        )
    seen = next((tmp_path / "set/images/test").iterdir())
    (tmp_path / "set/images/train/copy.jpg").write_bytes(seen.read_bytes())
    with pytest.raises(ReportFailed, match=f"(?s)in the training data.*{seen.name}"):
        run_report("evaluation", {**asked, "train": str(tmp_path / "set/images/train")}, root=tmp_path / "l")
    label = tmp_path / "set/labels/test" / f"{seen.stem}.txt"
    label.write_text("0 .5 .5 .1 .1\n")
    with pytest.raises(ReportFailed, match=f"(?s)1 changed.*{seen.name}"):
        run_report("evaluation", asked, root=tmp_path / "c")


@pytest.mark.real
def test_metrics_of_the_report_on_real_photos_equal_pycocotools(real_data, tmp_path):
    from cv_pipeline.core.formats import read_dataset
    from cv_pipeline.evaluation.metrics import COCO_NAMES
    from cv_pipeline.evaluation.records import predict_set
    from cv_pipeline.inference.loading import load_model
    from tests.helpers.eval_sets import pycocotools_numbers

    data, model = (
        real_data / "voc100/coco_format_v1/instances_default.json",
        real_data / "models/yolov8n_fp32_reconstructed.onnx",
    )
    done = run_report("evaluation", {"model": str(model), "data": str(data), "draws": 100}, root=tmp_path)
    theirs = pycocotools_numbers(predict_set(load_model(model), read_dataset(data)))
    for name, value in zip(COCO_NAMES, theirs.stats):
        assert done.metrics["coco"][name] == pytest.approx(None if value < 0 else value, abs=1e-6)
    assert done.metrics["header"]["objects"] > 100


def test_templates_that_are_shipped_have_typed_parameters():
    for name in ("evaluation", "tracking"):
        assert read_parameters(reports.find_template(name))


@pytest.mark.real
def test_baseline_answers_on_real_photos(real_data):
    def ask(*more):
        return called(
            "baseline",
            "--model",
            str(real_data / "models/yolov8n_fp32_reconstructed.onnx"),
            "--data",
            str(real_data / "coco8"),
            *more,
        )

    few = ask("--floor", "AP=0.3")
    assert few.returncode == 0 and "label more" in few.stderr, few.stderr  # eight photos decide nothing
    answer = json.loads(ask("--floor", "AP=0.3", "--max-ms", "1000", "--json").stdout)
    assert (
        answer["custom training"] == "label more"
        and answer["latency_ms"]["p95"] > 0
        and answer["intervals"]["AP"][1] <= answer["intervals"]["AP"][0]
    )
    assert ask("--floor", "AP=high").returncode == 2 and "not a number" in ask("--floor", "AP=high").stderr
    assert "unknown metric" in ask("--floor", "mAP=0.3").stderr


@pytest.mark.slow
def test_a_secret_that_a_cell_printed_is_not_published(tmp_path):
    source = "print('opened', 'rtsp://admin:' + 'Kl9-really' + '@10.0.0.7/live')"
    write = (
        "import json, pathlib\n"
        "pathlib.Path(output, 'metrics.json').write_text(json.dumps({'api_key': 'Zk3v99xQ11pa'}))"
    )
    report = run_report(template(tmp_path, PARAMETERS, source, write), {}, root=tmp_path / "reports")
    texts = {
        p.name: p.read_text() for p in report.folder.iterdir() if p.suffix in (".ipynb", ".html", ".json")
    }
    assert not [name for name, text in texts.items() if "Kl9-really@" in text or "Zk3v99xQ11pa" in text]
    assert "***@10.0.0.7/live" in texts["report.html"] and "opened" in texts["report.ipynb"]
    assert json.loads(texts["report.json"])["secrets masked"] >= 3


@pytest.mark.slow
def test_a_page_ends_with_the_head_of_the_access_log_and_says_what_is_not_covered(tmp_path, monkeypatch):
    log = tmp_path / "access.jsonl"
    monkeypatch.setenv("CV_PIPELINE_ACCESS_LOG", str(log))
    monkeypatch.setenv("CV_PIPELINE_PRIVACY_OFF", "a belt <without> people")
    for what in ("gate", "door"):
        note_access("view", what, path=log)
    report = run_report(template(tmp_path, PARAMETERS, "print(1)"), {}, root=tmp_path / "reports")
    card = json.loads((report.folder / "report.json").read_text())
    assert card["access log up to"] == access_head(log) and len(access_head(log)) == 12
    page = (report.folder / "report.html").read_text()
    assert f"access log up to: {access_head(log)}" in page and "a belt &lt;without&gt; people" in page
    assert verify_access(log, card["access log up to"]) == []
    assert stamp()["pictures not covered"] == "a belt <without> people"
    log.write_text(log.read_text().replace("gate", "yard"))
    report = run_report(template(tmp_path, PARAMETERS, "print(1)"), {}, root=tmp_path / "reports")
    assert "cannot be read" in json.loads((report.folder / "report.json").read_text())["access log up to"]
