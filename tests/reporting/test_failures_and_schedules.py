"""A report that dies is seen, two at once both stay, and a printed schedule does what was asked."""

import json
import os
import subprocess
from datetime import date
from pathlib import Path

import nbformat
import pytest
import yaml
from typer.testing import CliRunner

from cv_pipeline.commands.main import app
from cv_pipeline.core.types import ConfigError, SinkError
from cv_pipeline.reporting.history import list_reports, write_index
from cv_pipeline.reporting.runner import (
    ReportFailed,
    checked_cron,
    cron_line,
    default_name,
    github_workflow,
    run_report,
)

DAY = date(2026, 6, 1)
HEAD = 'log: str = "none"  # which\noutput: str = "out"  # folder'
WRITE = (
    "import json, pathlib\n"
    "pathlib.Path(output).mkdir(exist_ok=True)\n"
    "(pathlib.Path(output) / 'metrics.json').write_text(json.dumps({'verdict': 'PASS', 'log': log}))"
)
KILL = "import os\nos.kill(os.getpid(), 9)"


def template(folder: Path, *sources: str, name: str = "small") -> Path:
    cells = [nbformat.v4.new_code_cell(s) for s in (HEAD, *sources)]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(book, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def entries(root: Path) -> list[tuple[str, str]]:
    return [(e.name, e.verdict) for e in list_reports(root)]


# ---- what dies


@pytest.mark.slow
def test_a_killed_kernel_leaves_a_page_an_entry_and_exit_code_1(tmp_path):
    path, root = template(tmp_path, "print('before the accident')", KILL, "print(1)"), tmp_path / "r"
    with pytest.raises(ReportFailed, match="kernel died") as e:
        run_report(path, {}, root=root, today=DAY)
    page = Path(e.value.where).read_text()
    assert e.value.exit_code == 1 and "kernel died" in page and "before the accident" in page
    [entry] = list_reports(root)
    assert (entry.name, entry.verdict, entry.note) == (
        "small",
        "FAILED",
        "the kernel died: killed, or out of memory",
    )
    assert json.loads((entry.folder / "report.json").read_text())["status"] == "failed"
    assert nbformat.read(entry.folder / "report.ipynb", 4).metadata.papermill.exception
    assert "kernel died" in write_index(root).read_text()
    assert [p.name for p in (root / "2026-06-01").iterdir()] == ["small"]


@pytest.mark.slow
def test_the_command_ends_with_1_and_the_index_shows_it(tmp_path):
    result = CliRunner().invoke(app, ["report", str(template(tmp_path, KILL)), "--root", str(tmp_path / "r")])
    assert isinstance(result.exception, ReportFailed) and result.exception.exit_code == 1
    assert "FAILED" in (tmp_path / "r" / "index.html").read_text()


@pytest.mark.slow
def test_a_cell_that_fails_after_the_verdict_is_no_pass(tmp_path):
    with pytest.raises(ReportFailed):
        run_report(template(tmp_path, WRITE, "1 / 0"), {}, root=tmp_path / "r", today=DAY)
    [entry] = list_reports(tmp_path / "r")
    assert entry.verdict == "FAILED" and "ZeroDivisionError" in entry.note


def executed(monkeypatch, act):
    "papermill replaced by a function of the output file and the parameters."
    import papermill

    def run(source, out, values, **how):
        nbformat.write(nbformat.read(source, 4), out)
        act(Path(out), values)

    monkeypatch.setattr(papermill, "execute_notebook", run)


@pytest.mark.parametrize("error", [RuntimeError("no kernel"), MemoryError(), OSError(28, "No space left")])
def test_whatever_papermill_raises_leaves_a_page(tmp_path, monkeypatch, error):
    def act(out, values):
        out.write_text('{"cells": [')  # half a file
        raise error

    executed(monkeypatch, act)
    with pytest.raises(ReportFailed, match=type(error).__name__) as e:
        run_report(template(tmp_path), {}, root=tmp_path / "r", today=DAY)
    assert type(error).__name__ in Path(e.value.where).read_text()
    assert entries(tmp_path / "r") == [("small", "FAILED")]


def test_an_error_on_the_page_is_text_and_not_html(tmp_path, monkeypatch):
    def act(out, values):
        raise RuntimeError("<script>alert(1)</script>")

    executed(monkeypatch, act)
    with pytest.raises(ReportFailed) as e:
        run_report(template(tmp_path), {}, root=tmp_path / "r", today=DAY)
    assert "<script>alert" not in Path(e.value.where).read_text()
    assert "<script>alert" not in write_index(tmp_path / "r").read_text()


def passing(out, values):
    metrics = {"verdict": "PASS", "log": values.get("log")}
    (Path(values["output"]) / "metrics.json").write_text(json.dumps(metrics))


@pytest.mark.slow
def test_a_failed_run_does_not_take_the_place_of_a_good_one(tmp_path, monkeypatch):
    path, root = template(tmp_path), tmp_path / "r"
    executed(monkeypatch, passing)
    good = run_report(path, {}, root=root, today=DAY)

    def act(out, values):
        raise RuntimeError("the disk")

    for _ in range(2):  # the second failure replaces the first
        executed(monkeypatch, act)
        with pytest.raises(ReportFailed):
            run_report(path, {}, root=root, today=DAY)
        assert sorted(entries(root)) == [("small", "FAILED"), ("small", "PASS")]
    assert json.loads((good.folder / "metrics.json").read_text())["verdict"] == "PASS"
    executed(monkeypatch, passing)
    assert run_report(path, {}, root=root, today=DAY).folder == good.folder  # a good one replaces a good one


# ---- two at once, two logs


def test_two_reports_of_one_name_at_once_both_stay(tmp_path, monkeypatch):
    path, root, inner = template(tmp_path), tmp_path / "r", []

    def act(out, values):
        if not inner:  # while the first one runs, a second one begins and ends
            inner.append(None)
            inner[0] = run_report(path, {"log": "second"}, name="same", root=root, today=DAY)
        passing(out, values)

    executed(monkeypatch, act)
    first = run_report(path, {"log": "first"}, name="same", root=root, today=DAY)
    assert first.folder != inner[0].folder and first.metrics["log"] == "first"
    assert json.loads((inner[0].folder / "metrics.json").read_text())["log"] == "second"
    assert entries(root) == [("same", "PASS")] * 2
    assert not [p for p in (root / "2026-06-01").iterdir() if p.name.startswith(".")]


def test_two_logs_of_one_day_are_two_reports(tmp_path, monkeypatch):
    executed(monkeypatch, passing)
    path, root = template(tmp_path), tmp_path / "r"
    logs = [str(tmp_path / site / "log") for site in ("north", "south")]
    made = [run_report(path, {"log": log}, root=root, today=DAY) for log in logs]
    assert [json.loads((m.folder / "metrics.json").read_text())["log"] for m in made] == logs
    assert made[0].folder != made[1].folder


@pytest.mark.parametrize(
    "a, b",
    [
        ({"log": "a/log"}, {"log": "b/log"}),
        ({"model": "a/best.onnx"}, {"model": "b/best.onnx"}),
        ({"model": "yolo.onnx", "data": "one.json"}, {"model": "yolo.onnx", "data": "two.json"}),
        ({"truth": "x/gt.txt", "result": "y/a.txt"}, {"truth": "x/gt.txt", "result": "z/a.txt"}),
        ({"frozen": "a/test_set.json"}, {"frozen": "b/test_set.json"}),
    ],
)
def test_default_names_tell_inputs_apart_and_stay_the_same(a, b):
    assert default_name("drift", a) != default_name("drift", b)
    assert default_name("drift", a) == default_name("drift", {**a, "seed": 3})


def test_a_path_has_one_name_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_name("drift", {"log": "./a/log"}) == default_name(
        "drift", {"log": str(tmp_path / "a" / "log")}
    )
    assert default_name("evaluation", {"model": "factory_line"}) == "evaluation-factory_line"


def test_a_report_that_cannot_be_put_away_says_so(tmp_path, monkeypatch):
    from cv_pipeline.reporting import runner

    executed(monkeypatch, passing)

    def full(*a, **k):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner, "take_place", full)
    with pytest.raises(SinkError, match="No space left"):
        run_report(template(tmp_path), {}, root=tmp_path / "r", today=DAY)


# ---- schedules

RECORDS = """#!/bin/sh
exec {python} -c 'import json, sys; open({log!r}, "a").write(json.dumps(sys.argv[1:]) + "\\n")' "$@"
"""


@pytest.fixture
def recorder(tmp_path, monkeypatch):
    "A `cv-pipeline` on PATH that writes down what it is asked."
    import sys

    tools, log = tmp_path / "tools", tmp_path / "argv"
    tools.mkdir()
    script = RECORDS.format(python=sys.executable, log=str(log)).replace(
        "'" + str(log) + "'", json.dumps(str(log))
    )
    (tools / "cv-pipeline").write_text(script)
    (tools / "cv-pipeline").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return log


def asked(log: Path) -> list[list[str]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def as_cron_does(line: str) -> str:
    "What cron hands to the shell: without the five fields, up to the first % that is not escaped."
    command, out, escaped = line.split(None, 5)[5], "", False
    for letter in command:
        if escaped:
            out = out[:-1] + "%" if letter == "%" else out + letter
            escaped = False
        elif letter == "%":
            return out
        else:
            out, escaped = out + letter, letter == "\\"
    return out


def scheduled(*arguments: str) -> tuple[str, dict]:
    "The cron line and the workflow that the command prints."
    result = CliRunner().invoke(app, ["report", *arguments, "--schedule"])
    assert result.exit_code == 0, result.output
    line = next(x for x in result.output.splitlines() if x and not x.startswith("#"))
    return line, yaml.safe_load(result.output.split("\n# .github", 1)[1].split("\n", 1)[1])


ASKED = [
    ["evaluation"],
    ["evaluation", "-p", "floors={AP: 0.5}", "--gate"],
    ["evaluation", "--gate", "--root", "kept here", "--name", "a b"],
    ["evaluation", "-p", "model=it's 50% $HOME `id`; rm -rf x.onnx", "-p", "data=a\\b & c.json"],
    ["evaluation", "--name", "-x", "-p", 'slices=[a, "b c"]', "-p", "split=ünit"],
]


def words_of(arguments: list[str]) -> dict:
    "A command line as what it means."
    found = {"-p": []}
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word == "-p":
            found["-p"].append(words.pop(0))
        elif word in ("--root", "--name"):
            found[word] = words.pop(0)
        elif word.startswith("--name="):
            found["--name"] = word.removeprefix("--name=")
        else:
            found[word] = True
    return found


@pytest.mark.parametrize("arguments", ASKED, ids=range(len(ASKED)))
def test_cron_runs_in_a_fresh_folder_what_was_asked(tmp_path, monkeypatch, recorder, arguments):
    fresh = tmp_path / "a fresh 5% folder"
    fresh.mkdir()
    monkeypatch.chdir(fresh)
    given = list(arguments)
    if "-x" in given:
        given[given.index("--name") : given.index("--name") + 2] = ["--name=-x"]
    line, _ = scheduled(*given)
    monkeypatch.chdir("/")
    done = subprocess.run(["/bin/sh", "-c", as_cron_does(line)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [words_of(a) for a in asked(recorder)] == [{"report": True, **words_of(given)}]
    root = words_of(given).get("--root", "reports")
    assert (fresh / root / "cron.log").exists()


@pytest.mark.parametrize("arguments", ASKED, ids=range(len(ASKED)))
def test_the_workflow_runs_what_was_asked(tmp_path, monkeypatch, recorder, arguments):
    monkeypatch.chdir(tmp_path)
    given = list(arguments)
    if "-x" in given:
        given[given.index("--name") : given.index("--name") + 2] = ["--name=-x"]
    _, flow = scheduled(*given)
    step = next(s["run"] for s in flow["jobs"]["report"]["steps"] if "report" in s.get("run", "")[:20])
    subprocess.run(["/bin/sh", "-c", step], check=True)
    assert [words_of(a) for a in asked(recorder)] == [{"report": True, **words_of(given)}]
    kept = flow["jobs"]["report"]["steps"][-1]["with"]["path"]
    assert kept == f"{words_of(given).get('--root', 'reports')}/"


@pytest.mark.parametrize(
    "values, options, words",
    [
        ({"model": "a\nrm -rf /"}, (), "line break"),
        ({"model": "a\rb"}, (), "line break"),
        ({"model": "a\u2028b"}, (), "line break"),
        ({"model": "a\x1bb"}, (), "control character"),
        ({}, ("--name", "a\nb"), "line break"),
        ({"model": "${{ secrets.TOKEN }}"}, (), "expression"),
        ({}, ("--root", "${{ github.token }}"), "expression"),
    ],
)
def test_what_would_be_read_as_something_else_is_refused(values, options, words):
    for make in (cron_line, github_workflow):
        with pytest.raises(ConfigError, match=words):
            make("evaluation", values, options=options)


@pytest.mark.parametrize("backslashes", [1, 2, 3])
def test_a_backslash_before_a_percent_sign_is_refused_in_a_crontab(backslashes):
    with pytest.raises(ConfigError, match="backslash before a %"):
        cron_line("evaluation", {"model": "a" + "\\" * backslashes + "%"})


def test_a_folder_with_a_line_break_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="line break"):
        cron_line("evaluation", {}, folder=tmp_path / "a\nb")
    with pytest.raises(ConfigError, match="line break"):
        cron_line("evaluation", {}, program="/opt/a\nb")


@pytest.mark.parametrize(
    "when",
    [
        "0 6 * *",
        "0 6 * * 1 2",
        "60 6 * * 1",
        "0 24 * * 1",
        "0 6 0 * 1",
        "0 6 * 13 1",
        "0 6 * * 8",
        "a 6 * * 1",
    ]
    + ["*/0 6 * * 1", "5-1 6 * * 1", "0 6 * * mon-", ", 6 * * 1", "0 6 * * 1\n* * * * * x", "sometimes", ""],
)
def test_a_schedule_that_never_runs_is_refused(when):
    with pytest.raises(ConfigError, match="not a cron schedule"):
        checked_cron(when)


def test_a_schedule_on_two_lines_becomes_one():
    assert checked_cron("0 6 *\n*  1") == "0 6 * * 1"
    assert len(cron_line("evaluation", {}, "0 6 *\n* 1").splitlines()) == 1


def test_a_bad_floor_is_refused_before_a_kernel_starts_and_before_a_schedule_is_printed(
    tmp_path, monkeypatch
):
    import papermill

    monkeypatch.setattr(papermill, "execute_notebook", lambda *a, **k: pytest.fail("the kernel was started"))
    with pytest.raises(ConfigError, match="AP: 50 is outside 0..1"):
        run_report("evaluation", {"floors": "{AP: 50}"}, root=tmp_path / "r")
    for more in ([], ["--schedule"], ["--gate"]):
        for floors in ("{AP: 0,5}", "{AP: 50}", "{AP: '0.5'}", "{AP: null}"):
            result = CliRunner().invoke(app, ["report", "evaluation", "-p", f"floors={floors}", *more])
            assert isinstance(result.exception, ConfigError) and "floor" in str(result.exception)
    assert not (tmp_path / "r").exists()
