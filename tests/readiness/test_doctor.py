"""The examination of an installation: what is well is said to be, and each fault is seen where it lies."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from cv_pipeline.inference.manifest import bundled_models
from cv_pipeline.readiness import doctor as D
from tests.helpers.cli import CLI


def only(found, name):
    "The one finding of that name."
    (one,) = [f for f in found if f.name == name]
    return one


def versions(**known):
    "Installed packages."

    def version(name):
        if name.replace("-", "_") in known:
            return known[name.replace("-", "_")]
        raise metadata.PackageNotFoundError(name)

    return version


# --- packages


def test_requirements_are_read_as_packaging_reads_them():
    for text in metadata.requires("cv_pipeline"):
        theirs = Requirement(text)
        name, low = D._wanted(text)
        lows = [s.version for s in theirs.specifier if s.operator == ">="]
        assert (name, low) == (theirs.name, lows[0] if lows else ""), text


@pytest.mark.parametrize(
    ("here", "low"), [("1.9", "1.10"), ("1.10", "1.9"), ("2.0.0", "2"), ("0.9.9", "1"), ("4.12.0.88", "4.12")]
)
def test_versions_are_compared_as_packaging_compares_them(here, low):
    problem = D.package_problem(f"thing>={low}", versions(thing=here))
    assert (problem is None) == (Version(here) >= Version(low))


def test_a_core_package_that_is_too_old_is_broken_and_an_extra_is_not():
    needs = ["numpy>=1.26", 'papermill>=2.6; extra == "report"', 'thing>=1; extra == "unknown"']
    found = list(D.examine_packages(needs, versions(numpy="1.20")))
    assert [(f.name, f.state) for f in found] == [("core", "broken"), ("[report]", "optional")]
    assert "numpy 1.20 is older than 1.26" in found[0].found
    assert found[1].mend == 'pip install "cv_pipeline[report]"'


def test_every_purpose_is_an_extra_of_this_package():
    extras = set(metadata.metadata("cv_pipeline").get_all("Provides-Extra"))
    assert set(D.PURPOSES) <= extras


@pytest.mark.parametrize(
    ("known", "state"),
    [
        ({"opencv_python_headless": "4.12.0.88"}, "well"),
        ({"opencv_python_headless": "4.12.0.88", "opencv_python": "4.12.0.88"}, "well"),
        ({"opencv_python_headless": "4.12.0.88", "opencv_python": "4.12.0.90"}, "broken"),
        ({}, "broken"),
    ],
)
def test_two_builds_of_one_folder(known, state):
    first = next(iter(D.examine_twins(versions(**known))))
    assert first.state == state
    assert bool(first.mend) == (state == "broken")


def test_two_runtimes_that_hide_each_other_are_named_with_the_way_out():
    found = list(D.examine_twins(versions(opencv_python="4", onnxruntime="1.20", onnxruntime_gpu="1.19")))[1]
    assert found.state == "broken"
    assert found.mend == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime"


# --- the machine


def test_more_threads_than_cores_are_slow(monkeypatch, tmp_path):
    monkeypatch.setattr(D, "usable_cores", lambda: 2.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    found = only(D.examine_machine(tmp_path), "threads")
    assert found.state == "slow" and found.mend == "export OMP_NUM_THREADS=2"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert "threads" not in {f.name for f in D.examine_machine(tmp_path)}


def test_a_folder_that_takes_nothing_is_broken(tmp_path):
    (tmp_path / "file").write_text("")
    found = only(D.examine_machine(tmp_path / "file"), "results")
    assert found.state == "broken" and found.mend == "choose another folder"


def test_a_disk_that_is_nearly_full_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(D.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**12, 10**12 - 5, 5))
    assert only(D.examine_machine(tmp_path), "results").state == "slow"


def test_nothing_is_left_behind(tmp_path):
    list(D.examine_machine(tmp_path))
    assert list(tmp_path.iterdir()) == []


# --- the model


def test_the_bundled_model_answers():
    assert only(D.examine_model(), "answer").state in ("well", "slow")


def test_a_changed_model_file_is_seen(monkeypatch, tmp_path):
    folder = shutil.copytree(bundled_models()["factory_line"], tmp_path / "factory_line")
    file = next(folder.glob("*.onnx"))
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    monkeypatch.setattr(D, "bundled_models", lambda: {"factory_line": folder})
    (found,) = D.examine_model()
    assert found.state == "broken" and "SHA-256 differs" in found.found


def test_a_model_that_finds_nothing_is_broken_whatever_the_versions_say(monkeypatch):
    real = D.load_model
    monkeypatch.setattr(D, "load_model", lambda name: real(name).with_postprocess(conf=0.999))
    found = only(D.examine_model(), "answer")
    assert found.state == "broken" and found.found.startswith("0 parts found")


def test_a_slow_answer_is_slow():
    assert only(D.examine_model(most_ms=0.0), "answer").state == "slow"


# --- Jupyter


def test_a_kernel_of_another_environment_is_not_ours():
    other = {"python3": {"spec": {"argv": ["/opt/other/bin/python"]}}}
    (found,) = D.examine_jupyter(other)
    assert found.state == "slow" and found.mend.startswith(sys.executable)
    (found,) = D.examine_jupyter({"mine": {"spec": {"argv": [sys.executable]}}})
    assert found.state == "well"


# --- all of it


def test_a_part_that_raises_is_a_finding():
    def breaks():
        yield D.Finding("video", "decoders", "well", "fine")
        raise ImportError("libGL.so.1: cannot open shared object file")

    found = D.examine(parts={"video": breaks, "none": lambda: iter(())})
    assert found[0].state == "broken" and "libGL.so.1" in found[0].found


def test_the_worst_comes_first(tmp_path):
    states = [D.STATES.index(f.state) for f in D.examine(tmp_path)]
    assert states == sorted(states) and len(states) > 20


def run(*words, **env):
    return subprocess.run(
        [CLI, "doctor", *words], capture_output=True, text=True, timeout=300, env={**os.environ, **env}
    )


@pytest.mark.slow
def test_the_command_says_it_as_json(tmp_path):
    done = run("--json", "--folder", str(tmp_path))
    found = json.loads(done.stdout)
    assert done.returncode == int(any(f["state"] == "broken" for f in found))
    assert {f["area"] for f in found} == {"packages", "machine", "video", "runtimes", "model", "jupyter"}


@pytest.mark.slow
def test_a_broken_package_is_named_and_the_command_ends_with_one(tmp_path):
    (tmp_path / "jupyter_client").mkdir()
    (tmp_path / "jupyter_client" / "__init__.py").write_text("raise RuntimeError('half an installation')\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run("--json", "--folder", str(tmp_path), PYTHONPATH=path)
    assert done.returncode == 1, done.stderr
    worst = json.loads(done.stdout)[0]
    assert (worst["area"], worst["state"]) == ("jupyter", "broken") and "half an installation" in worst[
        "found"
    ]


@pytest.mark.slow
def test_a_missing_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("--folder", str(Path(tmp_path) / "file"))
    assert done.returncode == 1 and "choose another folder" in done.stdout
