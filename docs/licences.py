"""Writes docs/licences.md: every package that this one asks for, directly or not, with its licence.

`python docs/licences.py` reads what is installed, so it wants the environment of `make test`. Packages that
only install beside a graphics card are named by hand.
"""

import re
import sys
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
BY_HAND = {  # what their own pages say; not installed where this page is made
    "tensorrt": "NVIDIA Software License Agreement (proprietary)",
    "cuda-python": "NVIDIA Software License Agreement (proprietary)",
    "nvidia-ml-py": "BSD-3-Clause",
    "cuda-toolkit": "NVIDIA Software License Agreement (proprietary)",
    "faster-coco-eval": "Apache-2.0",  # the file LICENSE in its repository
}
KNOWN = {  # classifiers and long texts, as one name
    "MIT License": "MIT",
    "Apache Software License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "BSD License": "BSD",
    "Python Software Foundation License": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "GNU Affero General Public License v3 or later (AGPLv3+)": "AGPL-3.0-or-later",
    "ISC License (ISCL)": "ISC",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License v2": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "3-Clause BSD License": "BSD-3-Clause",
}


INTRODUCTION = """
Everything that `pip install cv_pipeline` and its extras bring along, directly or through others, with the
licence that each package states; made by `python docs/licences.py`. What only tests and this site need is
left out. **Copyleft that reaches over a network (AGPL) comes with the extra `train` alone: Ultralytics.**
It is used for training and export; nothing that runs a model imports it. The wheels of PyAV (`av`, BSD) carry
an FFmpeg that states LGPL-3.0-or-later, and with it x264 (GPL-2.0-or-later), which writes the annotated
videos: who hands these wheels on hands that on too. The package itself carries one file of others: the face
detector YuNet (`models/yunet`, Apache-2.0, with its LICENSE and NOTICE), trained on WIDER FACE.
"""


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(name: str) -> str:
    "The licence as the package states it, shortened."
    if name in BY_HAND:
        return BY_HAND[name]
    about = metadata.metadata(name)
    if about.get("License-Expression"):
        return about["License-Expression"]
    kinds = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier", []) if c.startswith("License ::")]
    kinds = [KNOWN.get(k, k) for k in kinds if k != "OSI Approved"]
    text = (about.get("License") or "").strip().split("\n")[0]
    text = KNOWN.get(text, text)
    if kinds:
        return " or ".join(dict.fromkeys(kinds))
    return text[:60] if text and text != "UNKNOWN" else "not stated"


def wanted(name: str, extras: frozenset[str], found: set[str]) -> None:
    "Add a package and all that it asks for here."
    if name in found:
        return
    try:
        requires = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        if name in BY_HAND:
            found.add(name)
        return
    found.add(name)
    for text in requires:
        r = Requirement(text)
        if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in (extras or {""})):
            wanted(plain(r.name), frozenset(r.extras), found)


def groups() -> dict[str, set[str]]:
    "Core and extras → packages, transitively."
    cfg = ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    rows = {"core": cfg["DEFAULT"]["requirements"]} | {
        key.removesuffix("_requirements"): value
        for key, value in cfg["DEFAULT"].items()
        if key.endswith("_requirements") and key not in ("dev_requirements", "docs_requirements")
    }
    made: dict[str, set[str]] = {}
    for group, text in rows.items():
        made[group] = set()
        for line in text.split():
            r = Requirement(line)
            wanted(plain(r.name), frozenset(r.extras), made[group])
    return made


def page() -> str:
    by_group = groups()
    rows = {}
    for group, names in by_group.items():
        for name in names:
            rows.setdefault(name, []).append(group)
    lines = [
        "# Licences",
        "",
        *INTRODUCTION.strip().split("\n"),
        "",
        "| package | licence | comes with |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {licence(name)} | {'core' if 'core' in where else ', '.join(sorted(where))} |"
        for name, where in sorted(rows.items())
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv:
        sys.exit(
            0 if PAGE.read_text(encoding="utf-8") == text else "docs/licences.md: run python docs/licences.py"
        )
    PAGE.write_text(text, encoding="utf-8")
