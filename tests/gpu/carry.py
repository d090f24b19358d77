"""A folder with everything that the checks need on a machine without a network: `python -m tests.gpu.carry`.

The wheels for its Python and this working tree, in one archive, cut into pieces that fit through any door.
There: `bash unpack.sh` joins them, checks the sum, makes an environment from the wheels alone and runs the
checks.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIGHT = """tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116 cuda-python>=13
nvidia-cuda-nvrtc nvidia-cuda-runtime faster-coco-eval onnx psutil scikit-learn setuptools wheel""".split()
PROVIDER = """onnxruntime-gpu==1.31.1 nvidia-cublas nvidia-cudnn-cu13 nvidia-cufft nvidia-curand""".split()
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)

UNPACK = """#!/usr/bin/env bash
# Join the pieces, check them, make .venv from the wheels alone, and run the checks.
set -euo pipefail
cd "$(dirname "$0")"
cat kit.tar.* > kit.tar
sha256sum --check kit.sha256
mkdir -p kit && tar -xf kit.tar -C kit && rm kit.tar
"${PYTHON:-python3}" -m venv kit/.venv
kit/.venv/bin/python -m pip install --quiet --no-index --find-links kit/wheels kit/wheels/*.whl
kit/.venv/bin/python -m pip install --quiet --no-index --no-deps --no-build-isolation --editable kit/project
cd kit/project && exec ../.venv/bin/python -m tests.gpu --out .. "$@"
"""


def cut(path: Path, out: Path, most: int) -> list[Path]:
    "A file in pieces of so many bytes at most, numbered."
    pieces = list[Path]()
    with open(path, "rb") as file:
        while part := file.read(most):
            pieces.append(out / f"{path.name}.{len(pieces):03d}")
            pieces[-1].write_bytes(part)
    return pieces


def sha256_of(path: Path) -> str:
    "Of a file of any size."
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tracked(root: Path) -> Iterable[Path]:
    "Files of the working tree that belong to it."
    said = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True).stdout
    return (root / name for name in said.decode().split("\0") if name and (root / name).is_file())


def pack(wheels: Path, files: Iterable[Path], root: Path, out: Path, piece_mb: float = 60) -> list[Path]:
    "Archive, sum, pieces and the script; the archive itself does not stay."
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "kit.tar"
        with tarfile.open(whole, "w") as archive:
            for wheel in sorted(wheels.glob("*.whl")):
                archive.add(wheel, f"wheels/{wheel.name}")
            for path in files:
                archive.add(path, f"project/{path.relative_to(root)}")
        (out / "kit.sha256").write_text(f"{sha256_of(whole)}  kit.tar\n")
        pieces = cut(whole, out, int(piece_mb * 1e6))
    (out / "unpack.sh").write_text(UNPACK)
    return pieces


def download(wheels: Path, python: str, names: Sequence[str]) -> None:
    "The wheels, and those they need, for a Python version."
    where = [word for p in PLATFORMS for word in ("--platform", p)]
    how = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", *where]
    asked = [sys.executable, "-m", "pip", "download", "--quiet", *how, "-d", str(wheels), *names]
    subprocess.run(asked, check=True)


def requirements(root: Path, light: bool) -> list[str]:
    """What has to be there. Wheels are compressed already, and the CUDA provider's are 1.5 of 1.9 GB: the
    light kit has ONNX Runtime for the processor instead, and everything else."""
    import configparser

    cfg = configparser.ConfigParser(delimiters=["="])
    cfg.read(root / "settings.ini", encoding="utf-8")
    names = cfg["DEFAULT"]["requirements"].split()
    own = [n for n in names if light or not n.startswith("onnxruntime")]
    return [*own, *LIGHT, *([] if light else PROVIDER)]


def main(argv: list[str] | None = None) -> int:
    "The command line."
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.carry", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("dist/gpu-kit"), help="folder for the pieces")
    parser.add_argument("--python", default="3.12", help="version on the other machine: 3.11 or 3.12")
    parser.add_argument("--piece-mb", type=float, default=60, help="most megabytes of a piece")
    parser.add_argument("--light", action="store_true", help="without ONNX Runtime's CUDA provider")
    args = parser.parse_args(argv)
    shutil.rmtree(args.out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        download(Path(folder), args.python, requirements(ROOT, args.light))
        pieces = pack(Path(folder), tracked(ROOT), ROOT, args.out, args.piece_mb)
    total = sum(p.stat().st_size for p in pieces) / 1e6
    print(f"{len(pieces)} pieces, {total:.0f} MB: {args.out}; there: bash unpack.sh")
    return 0


if __name__ == "__main__":
    sys.exit(main())
