"""A project of one's own: its files are valid for the programs that read them, no password is in any of them,
and it is written whole or not at all."""

import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cv_pipeline.commands.main import PANELS, app
from cv_pipeline.core.config import load_config
from cv_pipeline.core.types import ConfigError, CVPipelineError
from cv_pipeline.inference.loading import load_model
from cv_pipeline.inference.manifest import bundled_models
from cv_pipeline.readiness import init
from cv_pipeline.readiness.init import (
    PASSWORD,
    ProjectAnswers,
    camera_of,
    how_to_folder,
    init_project,
    with_values,
)
from cv_pipeline.reporting.runner import checked_cron, read_parameters, template_folders
from tests.helpers.cli import CLI, called

FACTORY = bundled_models()["factory_line"]
PANEL_COMMANDS = {name for names in PANELS.values() for name in names.split()}
SECRET = "rtsp://viewer:hunter2@10.0.0.7/stream"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "With a model of its own, a camera with a password, and a name that is not plain."
    place = tmp_path_factory.mktemp("projects")
    onnx = shutil.copy(FACTORY / "model.onnx", place / "my yolo.onnx")
    init_project(place / "línea 1", ProjectAnswers(SECRET, str(onnx), readers="ana@example.org"))
    return place / "línea 1"


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("projects") / "line"
    init_project(folder)
    return folder


def texts(folder):
    return {
        p: p.read_text(encoding="utf-8") for p in folder.rglob("*") if p.is_file() and p.suffix != ".onnx"
    }


def test_the_configuration_is_one_of_a_run(project):
    config = load_config(project / "cameras.yaml")
    assert (config.sources[0].uri, config.sources[0].user) == ("rtsp://10.0.0.7/stream", "viewer")
    assert config.sources[0].password_env == PASSWORD
    assert config.site == "línea 1"
    assert config.model.path == "models/my_yolo"
    assert config.telemetry is not None and config.collect is not None


def test_no_password_is_in_any_file(project):
    assert [p for p, text in texts(project).items() if "hunter2" in text] == []


def test_the_model_is_copied_with_its_manifest(project):
    model = load_model(project / "models" / "my_yolo", threads=1)
    assert model.manifest.names == load_model("factory_line", threads=1).manifest.names
    assert model.identity["sha256"] == load_model("factory_line", threads=1).identity["sha256"]


def test_a_bundled_model_goes_by_its_name(bundled):
    assert load_config(bundled / "cameras.yaml").model.path == "factory_line"
    assert [p.name for p in (bundled / "models").iterdir()] == ["README.md"]


def test_every_how_to_notebook_is_copied_with_the_values_of_the_project(project):
    copies = {p.name: p for p in (project / "nbs").glob("*.ipynb")}
    assert set(copies) == {p.name for p in how_to_folder().glob("*.ipynb")}
    for name, path in copies.items():
        values = {k: p.default for k, p in read_parameters(path).items()}
        assert values["out"] == f"../runs/how_to/{name[:2]}"
        assert values.get("model", "../models/my_yolo") == "../models/my_yolo"
        assert values.get("cameras", "../cameras.yaml") == "../cameras.yaml"
        assert values.get("collection", "../runs/latest/collected") == "../runs/latest/collected"
        kinds = {k: type(p.default) for k, p in read_parameters(how_to_folder() / name).items()}
        assert {k: type(v) for k, v in values.items()} == kinds, "a value has another type than the default"
        assert values.get("source", "") == "", "an address that needs a password stands in cameras.yaml only"


def test_a_copied_notebook_holds_no_outputs_and_no_link_into_the_repository(project):
    for path in (project / "nbs").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert [c for c in cells if c.get("outputs")] == []
        links = re.findall(r"\]\(([^)\s]+)\)", "".join("".join(c["source"]) for c in cells))
        broken = [x for x in links if not x.startswith("http") and not (path.parent / x).exists()]
        assert broken == []


def test_a_clip_is_named_in_the_notebooks(tmp_path):
    (tmp_path / "a clip.mp4").write_bytes(b"x")
    init_project(tmp_path / "made", ProjectAnswers(str(tmp_path / "a clip.mp4")))
    values = read_parameters(tmp_path / "made/nbs/01_own_yolo.ipynb")
    assert values["source"].default == str(tmp_path / "a clip.mp4")


def test_the_workflow_is_valid_and_uses_known_actions_only(project):
    flow = yaml.safe_load((project / ".github/workflows/reports.yml").read_text(encoding="utf-8"))
    steps = flow["jobs"]["report"]["steps"]
    used = {s["uses"].partition("@")[0] for s in steps if "uses" in s}
    assert used <= {"actions/checkout", "actions/setup-python", "actions/upload-artifact"}
    assert flow["permissions"] == {"contents": "read"}
    assert checked_cron(flow[True]["schedule"][0]["cron"]) == "0 6 * * 1"
    assert any("cv_pipeline[report]==" in s.get("run", "") for s in steps)
    assert not any('".[report]"' in s.get("run", "") for s in steps)


def test_the_crontab_has_valid_times_and_mails_to_the_readers(project):
    lines = (project / "deploy/crontab").read_text(encoding="utf-8").splitlines()
    assert 'MAILTO="ana@example.org"' in lines
    jobs = [line for line in lines if line[:1].isdigit()]
    assert len(jobs) == 3
    for job in jobs:
        checked_cron(" ".join(job.split()[:5]))
        assert subprocess.run(["sh", "-n", "-c", job.split(maxsplit=5)[5]], timeout=60).returncode == 0


def test_a_reader_that_is_a_name_gets_no_mail(tmp_path):
    init_project(tmp_path / "made", ProjectAnswers(readers="the shift leader"))
    assert 'MAILTO=""' in (tmp_path / "made/deploy/crontab").read_text(encoding="utf-8")
    assert "the shift leader" in (tmp_path / "made/README.md").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize(
    "target", ["run", "report", "traffic", "drift", "check", "checklist", "doctor", "lab"]
)
def test_a_target_of_the_makefile_calls_its_command(project, target):
    made = subprocess.run(["make", "-n", target], cwd=project, capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    word = {"traffic": "report", "drift": "report", "lab": "lab"}.get(target, target)
    assert word in made.stdout.split()


def commands_of(folder):
    "Every cv-pipeline command in files of a project: its words after the program."
    names = (
        "Makefile",
        "deploy/crontab",
        ".github/workflows/reports.yml",
        "deploy/project.conf",
        "README.md",
    )
    for name in names:
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            for found in re.findall(r"(?:\$\(CV\)|run: cv-pipeline|bin/cv-pipeline\"?) ([^>`|&]+)", line):
                yield name, shlex.split(found)


def test_every_command_of_the_files_exists_with_its_options(project):
    env = {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}
    found = list(commands_of(project))
    assert len(found) >= 12
    for name, words in found:
        assert words[0] in PANEL_COMMANDS, f"{name}: unknown command {words[0]}"
        shown = CliRunner().invoke(app, [words[0], "--help"], env=env).output
        given = {w.partition("=")[0] for w in words[1:] if re.match(r"--?[a-z]", w)}
        assert [o for o in given if o not in shown] == [], name
        if words[0] == "report":
            known = {p.stem for folder in template_folders() for p in folder.glob("*.ipynb")}
            assert words[1] in known | {"index", "list", "prune"}, name


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_alone_lists_the_targets(project):
    made = subprocess.run(["make"], cwd=project, capture_output=True, text=True, timeout=60)
    assert {"make run", "make check", "make lab"} <= {
        line.strip().split("\t")[0] for line in made.stdout.splitlines()
    }


@pytest.mark.slow
def test_the_checklist_reads_a_new_project_and_finds_nothing_proven(project, tmp_path):
    words = [CLI, "checklist", str(project), "--json", str(tmp_path / "found.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["findings"]
    assert {f["state"] for f in found} == {"not proven"}


def test_the_service_leads_to_the_project(project):
    text = (project / "deploy/project.conf").read_text(encoding="utf-8")
    assert f"WorkingDirectory={project}" in text
    assert "ExecStart=\nExecStart=" in text, "a drop-in must empty the list first"
    assert (project / "deploy/cv-pipeline@.service").is_file()


def test_what_is_large_or_private_is_not_kept_by_git(project):
    if shutil.which("git") is None:
        pytest.skip("no git here")
    subprocess.run(["git", "init", "-q"], cwd=project, check=True, timeout=60)
    files = "runs/x reports/2026-01-01/x reports/README.md data/a.jpg data/test/data.yaml cameras.yaml .env"
    words = ["git", "check-ignore", *files.split()]
    found = subprocess.run(words, cwd=project, capture_output=True, text=True, timeout=60).stdout.split()
    assert found == ["runs/x", "reports/2026-01-01/x", "data/a.jpg", ".env"]


def test_a_camera_with_a_key_in_its_address_is_not_kept_by_git(tmp_path):
    made = init_project(tmp_path / "made", ProjectAnswers("https://10.0.0.8/live?token=abcdef123456"))
    assert "cameras.yaml" in (tmp_path / "made/.gitignore").read_text().splitlines()
    assert any("holds a key" in note for note in made.notes)
    assert "abcdef123456" not in "".join(
        t for p, t in texts(tmp_path / "made").items() if p.name != "cameras.yaml"
    )


def test_missing_extras_are_named_with_their_command(tmp_path, monkeypatch):
    monkeypatch.setattr(init, "find_spec", lambda name: None if name == "papermill" else object())
    notes = init_project(tmp_path / "made").notes
    assert notes == ('for reports and notebooks: pip install "cv_pipeline[report]"',)


def test_a_full_folder_is_refused_with_what_is_in_it(bundled):
    before = {p: p.read_bytes() for p in bundled.rglob("*") if p.is_file()}
    with pytest.raises(
        ConfigError, match="not empty: .github, .gitignore, Makefile, README.md, cameras.yaml and"
    ):
        init_project(bundled)
    assert {p: p.read_bytes() for p in bundled.rglob("*") if p.is_file()} == before


def test_into_adds_what_is_missing_and_changes_nothing(tmp_path):
    (tmp_path / "Makefile").write_text("mine")
    (tmp_path / "nbs").mkdir()
    made = init_project(tmp_path, into=True)
    assert made.kept == ("Makefile",)
    assert (tmp_path / "Makefile").read_text() == "mine"
    assert (tmp_path / "cameras.yaml").is_file() and (tmp_path / "nbs/01_own_yolo.ipynb").is_file()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".") and "git" not in p.name] == []


def test_into_leaves_a_model_folder_that_exists_alone(tmp_path):
    onnx = shutil.copy(FACTORY / "model.onnx", tmp_path / "yolo.onnx")
    (tmp_path / "made/models/yolo").mkdir(parents=True)
    (tmp_path / "made/models/yolo/manifest.json").write_text("{}")
    made = init_project(tmp_path / "made", ProjectAnswers(model=str(onnx)), into=True)
    assert [p.name for p in (tmp_path / "made/models/yolo").iterdir()] == ["manifest.json"]
    assert set(made.kept) == {"models/yolo/manifest.json", "models/yolo/yolo.onnx"}


@pytest.mark.parametrize("name", ["50% $HOME 'x' \"y\" #1", "- a: b", "*", "日本", "a" * 120])
def test_an_odd_name_is_a_name(tmp_path, name):
    init_project(tmp_path / name)
    assert load_config(tmp_path / name / "cameras.yaml").site == name[:64]
    job = [x for x in (tmp_path / name / "deploy/crontab").read_text().splitlines() if x[:1].isdigit()][0]
    line = job.split(maxsplit=5)[5].replace("\\%", "%").partition(" && mkdir")[0]
    where = subprocess.run(["sh", "-c", line + " && pwd"], capture_output=True, text=True, timeout=60).stdout
    assert where.rstrip("\n") == str(tmp_path / name)


def test_a_name_with_a_line_break_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError, match="line break or control character"):
        init_project(tmp_path / "a\nExecStartPre=x")
    assert list(tmp_path.iterdir()) == []


def test_a_name_outside_unicode_is_no_traceback(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/a\xff")
    try:
        init_project(folder)
    except CVPipelineError:
        assert list(tmp_path.iterdir()) == []
    else:
        assert load_config(Path(folder) / "cameras.yaml").sources


def test_an_empty_folder_and_the_current_one_are_filled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    init_project(".")
    assert load_config(tmp_path / "cameras.yaml").site == tmp_path.name


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"model": "missing.onnx"}, "missing.onnx"),
        ({"source": "missing.mp4"}, "the source does not exist"),
        ({"source": "a\nb"}, "not a source"),
        ({"source": ""}, "not a source"),
        ({"source": "rtsp:/10.0.0.7/one-slash"}, "the source does not exist"),
    ],
)
def test_a_wrong_answer_leaves_nothing_behind(tmp_path, answers, message):
    with pytest.raises(CVPipelineError, match=re.escape(message)):
        init_project(tmp_path / "made", ProjectAnswers(**answers))
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_one_leaves_nothing_behind(tmp_path):
    (tmp_path / "words.onnx").write_text("not a model")
    with pytest.raises(CVPipelineError, match=r"words\.onnx"):
        init_project(tmp_path / "made", ProjectAnswers(model=str(tmp_path / "words.onnx")))
    assert [p.name for p in tmp_path.iterdir()] == ["words.onnx"]


@pytest.mark.parametrize("reader", ["a\nMAILTO=b", 'x"; rm', "a\x1b[0m"])
def test_a_reader_that_would_end_its_line_is_refused(reader):
    with pytest.raises(ConfigError, match="not a name or address"):
        ProjectAnswers(readers=reader)


def test_a_parent_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot write"):
        init_project(tmp_path / "file" / "made")
    with pytest.raises(ConfigError, match="not a folder"):
        init_project(tmp_path / "file")


def test_a_failure_half_way_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(init, "copy_model", full)
    onnx = shutil.copy(FACTORY / "model.onnx", tmp_path / "yolo.onnx")
    with pytest.raises(CVPipelineError, match="No space left"):
        init_project(tmp_path / "made", ProjectAnswers(model=str(onnx)))
    assert [p.name for p in tmp_path.iterdir()] == ["yolo.onnx"]


@pytest.mark.parametrize(
    ("source", "uri", "user"),
    [
        (SECRET, "rtsp://10.0.0.7/stream", "viewer"),
        ("rtsp://viewer@10.0.0.7/stream", "rtsp://10.0.0.7/stream", "viewer"),
        ("rtsp://a:p@ss@host/x", "rtsp://host/x", "a"),
        ("0", "0", None),
        ("line:frames=5", "line:frames=5", None),
    ],
)
def test_a_source_is_written_without_its_password(source, uri, user):
    assert (camera_of(source).uri, camera_of(source).user) == (uri, user)


def test_values_take_the_place_of_the_old_ones():
    cell = 'a: str = "é"  # ä, "x"\nb: dict = {\n    "AP": 1\n}\nc: int = 3'
    assert with_values(cell, {"a": "ü # z", "b": {}, "c": 4, "d": 1}) == (
        'a: str = \'ü # z\'  # ä, "x"\nb: dict = {\n    "AP": 1\n}\nc: int = 4'
    )


def command(*words, **how):
    return called("init", *words, **how)


@pytest.mark.slow
def test_the_command_writes_a_project_and_refuses_a_second_one(tmp_path):
    first = command("my line", "--yes", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "next: cd 'my line' && make check" in " ".join(first.stderr.split())
    second = command("my line", "--yes", cwd=tmp_path)
    assert second.returncode == 2
    assert "not empty" in second.stderr and "--into" in second.stderr
    assert command("my line", "--yes", "--into", cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_three_questions_are_asked_at_a_terminal(tmp_path):
    main, worker = pty.openpty()
    process = subprocess.Popen(
        [CLI, "init", "asked"],
        stdin=worker,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    os.close(worker)
    os.write(main, b"line:frames=40\n\nana@example.org\n")
    try:
        _, told = process.communicate(timeout=300)
    finally:
        process.kill()
        os.close(main)
    assert process.returncode == 0, told
    assert [told.count(q) for q in ("Camera, clip or folder", "Model: a file", "Who reads the reports")] == [
        1,
        1,
        1,
    ]
    assert load_config(tmp_path / "asked/cameras.yaml").sources[0].uri == "line:frames=40"
    assert "ana@example.org" in (tmp_path / "asked/README.md").read_text(encoding="utf-8")


def test_the_installed_program_is_named_in_the_schedule(project):
    text = (project / "deploy/crontab").read_text(encoding="utf-8")
    assert str(Path(sys.executable).parent) in text
