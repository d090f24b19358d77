"""The page of all reports, what is listed, what may go; and the commands that do it."""

import json
import re
from datetime import date
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from cv_pipeline.commands.main import app
from cv_pipeline.commands.monitoring import monitoring_commands
from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.reporting.history import list_reports, prune_reports, timeline, write_index
from tests.helpers.services import require


def made(root, day, name, metrics=None, page="<p>hello</p>"):
    folder = root / day / name if day else root / name
    folder.mkdir(parents=True)
    if page is not None:
        (folder / "report.html").write_text(page)
    if metrics is not None:
        (folder / "metrics.json").write_text(metrics if isinstance(metrics, str) else json.dumps(metrics))
    return folder


@pytest.fixture
def reports(tmp_path):
    for k in range(1, 11):
        made(
            tmp_path,
            f"2026-06-{k:02d}",
            "drift",
            {
                "verdict": "RED" if k == 4 else "GREEN",
                "cause": "device fault" if k == 4 else "none",
                "devices": ["gate"] if k == 4 else [],
            },
        )
    made(
        tmp_path,
        "2025-01-01",
        "evaluation",
        {"verdict": "PASS", "intervals": {"AP": {"value": 0.8}}, "latency_ms": {"p95": 4.0}},
    )
    made(tmp_path, "", "example-evaluation", {"verdict": "PASS"})
    return tmp_path


def test_reports_are_listed_newest_first_with_what_they_say(reports):
    made(reports, "2026-06-10", "failed")
    made(reports, "2026-06-10", "torn", '{"verdict":')
    made(reports, "2026-06-10", "list", "[1]")
    made(reports, "2026-06-99", "no-day", {})
    (reports / "2026-06-10" / ".drift.part").mkdir()
    found = list_reports(reports)
    assert [(e.name, e.verdict) for e in found[:4]] == [
        ("drift", "GREEN"),
        ("failed", "FAILED"),
        ("list", ""),
        ("torn", "UNREADABLE"),
    ]
    assert (
        found[-1].name == "example-evaluation"
        and found[-1].day is None
        and "no-day" not in [e.name for e in found]
    )
    old = next(e for e in found if e.name == "evaluation")
    assert (
        old.numbers == {"AP": 0.8, "p95": 4.0}
        and next(e for e in found if e.verdict == "RED").note == "device fault: gate"
    )


def test_the_page_links_what_is_there_and_asks_nobody(reports):
    page = write_index(reports).read_text()
    for link in re.findall(r'href="([^"]+)"', page):
        assert (reports / link).is_file()
    assert len(re.findall(r"<a href", page)) >= 12
    assert not re.search(r"(src|href)=\"?(https?:)?//", page) and "<script" not in page
    ElementTree.fromstring(timeline(list_reports(reports)))


def test_what_reports_say_cannot_break_the_page(reports):
    made(
        reports,
        "2026-06-11",
        "x<y",
        {"verdict": "<script>alert(1)</script>", "cause": '"><img src=x onerror=alert(1)>'},
    )
    page = write_index(reports).read_text()
    assert "<script>" not in page and "<img" not in page
    ElementTree.fromstring(timeline(list_reports(reports)))


def test_retention_keeps_the_young_the_newest_and_the_examples(reports):
    today = date(2026, 6, 10)
    would = prune_reports(reports, keep_days=3, keep_last=2, today=today, dry_run=True)
    assert [e.day.day for e in would] == [7, 6, 5, 4, 3, 2, 1] and len(list_reports(reports)) == 12
    assert prune_reports(reports, keep_days=3, keep_last=2, today=today) == would
    assert [e.name for e in list_reports(reports)] == ["drift"] * 3 + [
        "evaluation",
        "example-evaluation",
    ]  # the old evaluation is the newest of its name
    assert not (reports / "2026-06-07").exists() and (reports / "index.html").exists()
    assert prune_reports(reports, keep_days=3, keep_last=2, today=today) == []
    assert (
        len(prune_reports(reports, keep_days=None, keep_last=0, today=today)) == 4
        and (reports / "example-evaluation").is_dir()
    )
    with pytest.raises(ConfigError):
        prune_reports(reports, keep_last=-1)


def test_an_empty_folder_and_none(tmp_path):
    assert list_reports(tmp_path) == [] and "0 reports" in write_index(tmp_path).read_text()
    with pytest.raises(DataError, match="report folder not found"):
        list_reports(tmp_path / "none")


def test_commands(reports, monkeypatch):
    run = lambda *args: CliRunner().invoke(app, ["report", *args, "--root", str(reports)])
    listed = run("list")
    assert listed.exit_code == 0 and "12 reports" in listed.output and "RED" in listed.output
    assert (
        "would go" in run("prune", "--keep-days", "0", "--keep-last", "1", "--dry-run").output
        and len(list_reports(reports)) == 12
    )
    assert (
        run("prune", "--keep-days", "0", "--keep-last", "1").exit_code == 0
        and len(list_reports(reports)) == 3
    )
    (reports / "index.html").unlink()
    assert run("index").exit_code == 0 and (reports / "index.html").exists()


@pytest.mark.slow
def test_the_index_is_written_after_a_report_also_when_it_failed(tmp_path, monkeypatch):
    require("papermill", reason='papermill runs the reports: pip install "cv_pipeline[report]"')
    book = {
        "cells": [
            {
                "cell_type": "code",
                "id": "a",
                "metadata": {"tags": ["parameters"]},
                "source": "n: int = 1  # a number",
                "outputs": [],
                "execution_count": None,
            },
            {
                "cell_type": "code",
                "id": "b",
                "metadata": {},
                "source": "1 / (n - 1)",
                "outputs": [],
                "execution_count": None,
            },
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "p"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (tmp_path / "small.ipynb").write_text(json.dumps(book))
    failed = CliRunner().invoke(
        app, ["report", str(tmp_path / "small.ipynb"), "--root", str(tmp_path / "reports")]
    )
    assert failed.exit_code != 0 and "FAILED" in (tmp_path / "reports" / "index.html").read_text()


def test_retrain_check_as_a_command(tmp_path, monkeypatch):
    from datetime import date, timedelta

    monkeypatch.chdir(tmp_path)
    day = lambda k: (date.today() - timedelta(days=k)).isoformat()
    drift = lambda k: {
        "verdict": "AMBER",
        "cause": "world changed",
        "families": [{"family": "image", "state": "AMBER"}],
        "window": {"from": day(k + 1), "to": day(k)},
    }
    for k in (2, 1):
        made(tmp_path / "reports", day(k), "drift", drift(k))
    made(tmp_path / "reports", day(1), "evaluation", {"verdict": "PASS"})
    run = lambda *args: CliRunner().invoke(monitoring_commands, ["retrain-check", *args])
    first = run("--gate")
    assert first.exit_code == 1 and "AUDIT" in first.output and "cv-pipeline audit draw" in first.output
    assert json.loads((tmp_path / "runs/retraining/recommendation.json").read_text())["action"] == "AUDIT"
    assert (
        "WAIT" in run("--persistence", "3", "--state", "other").output
        and run("--persistence", "3", "--state", "other", "--gate").exit_code == 1
    )
    assert isinstance(run("--audit", "nothing.json").exception, DataError) and isinstance(
        run("--trained", "soon").exception, ConfigError
    )
    assert isinstance(run("--trained", "2062-05-01").exception, ConfigError)
    (tmp_path / "reports" / day(1) / "drift" / "metrics.json").write_text(
        '{"verdict": "AM'
    )  # torn: named, and the other one still counts
    torn = run("--state", "third")
    assert (
        torn.exit_code == 0
        and "left out" in torn.output
        and "cannot be read" in " ".join(torn.output.split())
    )


@pytest.mark.parametrize(
    "what, text, said",
    [
        ("--flags", "{}", "no count of flags"),
        ("--flags", "[]", "no count of flags"),
        ("--flags", '{"state": "raised", "flags": "many", "looks": 3}', "no count of flags"),
        ("--audit", '{"against": {"state": "below"}, "window": []}', "no audit's result"),
        (
            "--audit",
            '{"against": {"state": "below", "change": 0.1, "low": 0}, '
            '"window": ["2026-06-01", "2026-06-02"]}',
            "no audit's result",
        ),
        ("--audit", '{"against": null, "window": ["2026-06-01", "2026-06-02"]}', "without a reference"),
        ("--audit", "[1", "cannot be read"),
    ],
)
def test_evidence_that_is_none_is_refused_by_name(tmp_path, monkeypatch, what, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.json").write_text(text)
    with pytest.raises(DataError, match=said):
        raise CliRunner().invoke(monitoring_commands, ["retrain-check", what, "e.json"]).exception
    assert not (tmp_path / "runs/retraining").exists()
