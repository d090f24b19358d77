"""Packaging from settings.ini: `requirements` is the core, each `<name>_requirements` key an extra."""

import json
import shlex
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


def read_settings() -> dict[str, str]:
    parser = ConfigParser(delimiters=["="], inline_comment_prefixes=None)
    parser.read(HERE / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def extras(settings: dict[str, str]) -> dict[str, list[str]]:
    suffix = "_requirements"
    found = {
        key[: -len(suffix)]: shlex.split(value) for key, value in settings.items() if key.endswith(suffix)
    }
    return {**found, "all": sorted({req for reqs in found.values() for req in reqs})}


CARRIED = {
    "templates": "nbs/reports",
    "how_to": "nbs/how_to",
}  # folder of the wheel: folder of the repository


class WithTemplates(build_py):
    "Report templates and how-to notebooks are notebooks of the repository; a wheel carries copies of them."

    def run(self):
        super().run()
        if self.editable_mode:
            return  # they are found where they are edited
        for name, folder in CARRIED.items():
            target = Path(self.build_lib) / "cv_pipeline" / name
            target.mkdir(parents=True, exist_ok=True)
            for notebook in sorted((HERE / folder).glob("*.ipynb")):
                book = json.loads(notebook.read_text(encoding="utf-8"))
                for cell in book["cells"]:
                    if cell["cell_type"] == "code":
                        cell["outputs"] = []
                text = json.dumps(book, indent=1, ensure_ascii=False) + "\n"
                (target / notebook.name).write_text(text, encoding="utf-8")
        unit = "cv-pipeline@.service"
        shutil.copy(HERE / "deploy" / unit, Path(self.build_lib) / "cv_pipeline" / "how_to" / unit)


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
    packages=find_namespace_packages(
        include=[cfg["lib_path"], cfg["lib_path"] + ".*"], exclude=["*.__pycache__"]
    ),
    package_data={"": ["*.onnx", "*.json", "LICENSE", "NOTICE", "py.typed"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=shlex.split(cfg["requirements"]),
    extras_require=extras(cfg),
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    cmdclass={"build_py": WithTemplates},
    zip_safe=False,
)
