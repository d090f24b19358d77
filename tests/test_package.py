"""The wheel: light, complete, and running away from the source tree."""

import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


def settings() -> dict[str, str]:
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini")
    return dict(parser["DEFAULT"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
        timeout=600,
    )  # as a release: the source archive, and the wheel from it
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_module_and_the_bundled_model_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "cv_pipeline").rglob("*.py")}
    assert modules <= set(names)
    assert {
        "cv_pipeline/models/factory_line/model.onnx",
        "cv_pipeline/models/factory_line/manifest.json",
        "cv_pipeline/models/yunet/yunet_n.onnx",
        "cv_pipeline/models/yunet/LICENSE",
        "cv_pipeline/models/yunet/NOTICE",
    } <= set(names)
    for folder, place in (("reports", "templates"), ("how_to", "how_to")):
        notebooks = {p.name for p in (ROOT / "nbs" / folder).glob("*.ipynb")}
        assert {f"cv_pipeline/{place}/{name}" for name in notebooks} <= set(names)
    assert "cv_pipeline/how_to/cv-pipeline@.service" in names
    assert all(name.startswith(("cv_pipeline/", "cv_pipeline-")) for name in names)
    assert zipfile.ZipFile(wheel).getinfo("cv_pipeline/models/factory_line/model.onnx").file_size <= 4 * 2**20


def test_the_core_requirements_are_light_and_extras_are_generic(wheel):
    archive = zipfile.ZipFile(wheel)
    meta = Parser().parsestr(
        archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
    )
    requires = meta.get_all("Requires-Dist")
    core = [r for r in requires if "extra ==" not in r]
    assert len(core) == len(shlex.split(settings()["requirements"]))
    assert not [
        r
        for r in core
        if r.split(">")[0] in ("torch", "ultralytics", "jupyterlab", "nbdev", "matplotlib", "fastcore")
    ]
    wanted = {key.removesuffix("_requirements") for key in settings() if key.endswith("_requirements")}
    assert wanted | {"all"} == set(meta.get_all("Provides-Extra"))
    assert not any("License ::" in c for c in meta.get_all("Classifier"))


def test_the_installed_wheel_runs_the_demo_away_from_the_source(wheel, tmp_path):
    target = tmp_path / "site"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            target,
            wheel,
        ],
        check=True,
    )
    code = (
        "import sys, pathlib, cv_pipeline.commands.main as c; assert "
        "pathlib.Path(c.__file__).is_relative_to(sys.argv[1]), c.__file__; "
        "sys.argv[1:] = ['demo', '--seconds', '1', '--out', 'out']; c.main()"
    )
    env = {**os.environ, "PYTHONPATH": str(target)}
    result = subprocess.run(
        [sys.executable, "-c", code, target],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out/index.html").exists() and "camera-1" in result.stdout


def test_a_run_loads_nothing_that_takes_long_before_its_first_result(tmp_path):
    code = f"""
import sys
sys.argv = ["cv-pipeline", "run", "line:frames=1", "--out", {str(tmp_path / "out")!r}]
from cv_pipeline.commands.main import main
try:
    main()
finally:
    slow = {{"scipy.stats", "scipy.optimize", "scipy.sparse", "matplotlib", "torch"}}
    print(sorted(slow & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "out" / "results.parquet").exists()


def test_a_project_of_the_installed_wheel_stands_on_its_own(wheel, tmp_path):
    "Away from the source: made, checked, run, reported, two notebooks executed; a second init refuses."
    site, place = tmp_path / "site", tmp_path / "my line"
    words = ["install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=300)
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def done(*command, cwd=place):
        how = {"cwd": cwd, "env": env, "capture_output": True, "text": True, "timeout": 300}
        return subprocess.run([sys.executable, *map(str, command)], **how)

    cli = site / "bin" / "cv-pipeline"
    onnx = shutil.copy(ROOT / "cv_pipeline/models/factory_line/model.onnx", tmp_path / "my yolo.onnx")
    words = ("--source", "line:frames=60", "--model", onnx, "--yes")
    made = done(cli, "init", place, *words, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    where = done("-c", "import cv_pipeline.readiness.init as m; print(m.__file__, m.how_to_folder())")
    assert where.stdout.count(str(site)) == 2, where.stdout + where.stderr
    for command in (("check", "cameras.yaml"), ("run", "cameras.yaml")):
        result = done(cli, *command)
        assert result.returncode == 0, result.stderr
    assert (place / "runs/latest/results.parquet").is_file()
    reported = done(cli, "report", "traffic", "-p", "results=runs/latest")
    assert reported.returncode == 0, reported.stderr
    assert list((place / "reports").glob("*/traffic-*/report.html"))
    for name in ("03_cameras.ipynb", "08_canary.ipynb"):
        run = done("-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", name, cwd=place / "nbs")
        assert run.returncode == 0, run.stderr
    assert (place / "runs/how_to/03/run/results.parquet").is_file()
    again = done(cli, "init", place, "--yes", cwd=tmp_path)
    assert again.returncode == 2 and "not empty" in again.stderr
