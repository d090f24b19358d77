"""Packaging, driven by settings.ini: the core from `requirements`, one extra for each `<name>_requirements` key."""
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).resolve().parent


def read_settings() -> dict[str, str]:
    parser = ConfigParser(delimiters=["="], inline_comment_prefixes=None)
    parser.read(HERE / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def extras(settings: dict[str, str]) -> dict[str, list[str]]:
    suffix = "_requirements"
    found = {key[: -len(suffix)]: shlex.split(value) for key, value in settings.items() if key.endswith(suffix)}
    return {**found, "all": sorted({req for reqs in found.values() for req in reqs})}


cfg = read_settings()
readme = HERE / "README.md"
setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    author=cfg["author"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    # the folders of bundled models hold data only; as namespace packages they are installed without a warning
    packages=find_namespace_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"], exclude=["*.__pycache__"]),
    package_data={"": ["*.onnx", "*.json", "py.typed"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=shlex.split(cfg["requirements"]),
    extras_require=extras(cfg),
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    classifiers=["Programming Language :: Python :: 3", "Topic :: Scientific/Engineering :: Image Recognition"],
    zip_safe=False,
)
