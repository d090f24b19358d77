"""`make wheelhouse` and deploy/install.sh: a folder that installs without a network, beside what runs."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "deploy" / "install.sh"
DOCTOR = """import sys
def main():
    if "doctor" in sys.argv and {broken}:
        print("something is broken: no codec")
        sys.exit(1)
    print("cv-pipeline {version}")
"""


def a_wheel(folder: Path, version: str, broken: bool = False) -> None:
    "A package of our name that only has the command."
    name = f"cv_pipeline-{version}"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as z:
        z.writestr("cv_pipeline/__init__.py", DOCTOR.format(version=version, broken=broken))
        z.writestr(
            f"{name}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: cv_pipeline\nVersion: {version}\n"
        )
        z.writestr(
            f"{name}.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        z.writestr(
            f"{name}.dist-info/entry_points.txt", "[console_scripts]\ncv-pipeline = cv_pipeline:main\n"
        )
        z.writestr(f"{name}.dist-info/RECORD", "")


def a_stick(folder: Path, version: str, **how) -> Path:
    "A wheelhouse as the Makefile writes it, with nothing but our package."
    folder.mkdir()
    a_wheel(folder, version, **how)
    shutil.copy(SCRIPT, folder)
    (folder / "requirements.lock").write_text("")
    (folder / "MADE_FOR").write_text(
        f"{sys.version_info[0]}.{sys.version_info[1]} {platform.machine()}\n", encoding="utf-8"
    )
    sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    return folder


def install(stick: Path, root: Path, *words: str, **more: str):
    "Exit code and everything that was printed."
    env = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, **more}
    done = subprocess.run(
        ["sh", str(stick / "install.sh"), "--root", str(root), *words],
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout + done.stderr


def runs(root: Path) -> str:
    "What a service would start."
    words, env = [root / "bin" / "cv-pipeline", "--version"], {"PATH": os.environ["PATH"]}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "Two versions, installed one after the other."
    base = tmp_path_factory.mktemp("two")
    root = base / "opt with a space"
    for version in ("1.0.0", "1.1.0"):
        code, text = install(a_stick(base / version, version), root)
        assert code == 0, text
    return base, root


@pytest.mark.slow
def test_the_new_version_runs_and_the_old_one_stays(two):
    base, root = two
    assert runs(root) == "cv-pipeline 1.1.0"
    assert install(base / "1.0.0", root, "--list") == (0, "  1.0.0\n* 1.1.0\n")


def test_back_to_a_version_that_is_there_and_forward_again(two):
    base, root = two
    assert install(base / "1.0.0", root, "--back", "1.0.0")[0] == 0
    assert runs(root) == "cv-pipeline 1.0.0"
    code, text = install(base / "1.1.0", root)
    assert code == 2 and "--back 1.1.0" in text
    assert install(base / "1.0.0", root, "--back", "1.1.0")[0] == 0
    assert runs(root) == "cv-pipeline 1.1.0"


def test_a_version_that_was_never_there(two):
    code, text = install(two[0] / "1.0.0", two[1], "--back", "0.9")
    assert code == 2 and "0.9 is not in" in text and runs(two[1]) == "cv-pipeline 1.1.0"


@pytest.mark.slow
def test_a_version_that_is_broken_is_removed_and_the_one_before_runs(two):
    base, root = two
    code, text = install(a_stick(base / "bad", "1.2.0", broken=True), root)
    assert code != 0 and "no codec" in text and "1.2.0 was not installed; 1.1.0 runs as before" in text
    assert not (root / "versions" / "1.2.0").exists() and runs(root) == "cv-pipeline 1.1.0"


@pytest.mark.parametrize("name", ["cv_pipeline-2.0-py3-none-any.whl", "requirements.lock", "install.sh"])
def test_a_changed_file_is_refused_before_anything_is_written(tmp_path, name):
    stick = a_stick(tmp_path / "stick", "2.0")
    with open(stick / name, "a", encoding="utf-8") as f:
        f.write("\n")
    code, text = install(stick, tmp_path / "opt")
    assert code == 2 and "not the one that was packed" in text and not (tmp_path / "opt").exists()


def test_a_folder_of_another_installation_is_left_alone(tmp_path):
    (tmp_path / "opt" / "bin").mkdir(parents=True)
    code, text = install(a_stick(tmp_path / "stick", "2.0"), tmp_path / "opt")
    assert code == 2 and "another installation" in text
    assert not list((tmp_path / "opt" / "versions").iterdir())


def test_another_python_than_the_one_it_was_packed_for(tmp_path):
    stick = a_stick(tmp_path / "stick", "2.0")
    (stick / "MADE_FOR").write_text("3.9 sparc\n", encoding="utf-8")
    code, text = install(stick, tmp_path / "opt")
    assert code == 2 and "packed for Python 3.9 sparc" in text and not (tmp_path / "opt").exists()


@pytest.mark.parametrize(
    "words, told",
    [(("--fast",), "unknown: --fast"), ((), "no cv_pipeline-*.whl beside this script")],
)
def test_bad_usage(tmp_path, words, told):
    stick = a_stick(tmp_path / "stick", "2.0")
    if not words:
        next(stick.glob("*.whl")).unlink()
    code, text = install(stick, tmp_path / "opt", *words)
    assert code == 2 and told in text


def test_no_python(tmp_path):
    code, text = install(a_stick(tmp_path / "stick", "2.0"), tmp_path / "opt", PYTHON="/bin/false")
    assert code == 2 and "needs Python 3.10" in text


@pytest.mark.slow
def test_the_real_folder_installs_without_a_network_and_detects(tmp_path):
    tree = tmp_path / "tree"
    listed = subprocess.run(
        ["git", "ls-files", "-zco", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=60,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if name.startswith(
            ("cv_pipeline/", "deploy/", "setup.py", "settings.ini", "README", "Makefile", "LICENSE")
        ):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    done = subprocess.run(
        ["make", "wheelhouse", f"PYTHON={sys.executable}"],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=900,
    )
    away = (
        "Temporary failure in name resolution",
        "Failed to establish a new connection",
        "Network is unreachable",
    )
    if done.returncode and any(words in done.stderr for words in away):
        pytest.skip("no package index can be reached from here")
    if done.returncode and sys.version_info[:2] != (3, 11):
        pytest.skip("deploy/core.lock is for Python 3.11")
    assert done.returncode == 0, done.stderr[-2000:]
    cut = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*cut, "true"], capture_output=True, timeout=30).returncode:
        pytest.skip("this machine lets no process leave its network")
    env = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "HOME": str(tmp_path)}
    root = tmp_path / "opt"
    words = ["sh", str(tree / "dist" / "wheelhouse" / "install.sh"), "--root", str(root)]
    done = subprocess.run([*cut, *words], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    words = [str(root / "bin" / "cv-pipeline"), "demo", "--out", str(tmp_path / "demo"), "--seconds", "1"]
    done = subprocess.run([*cut, *words], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "demo" / "index.html").exists()
