"The tour: nine cells that a person reads in two minutes; `make notebooks` runs them."

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOUR = ROOT / "nbs" / "tour.ipynb"
CELLS = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
CODE = [c for c in CELLS if c["cell_type"] == "code"]


def test_it_is_short():
    assert len(CODE) <= 10
    assert TOUR.stat().st_size <= 300 * 1024


def test_every_cell_shows_something_to_who_only_reads():
    assert all(any("text/html" in o.get("data", {}) for o in c["outputs"]) for c in CODE)


def test_what_is_stored_needs_no_kernel():
    kinds = {kind for c in CODE for o in c["outputs"] for kind in o.get("data", {})}
    assert kinds <= {"text/html", "text/plain"}


def test_no_path_of_a_machine_is_in_it():
    assert not re.search(r"/tmp/|/home/|/root/", json.dumps([c.get("outputs") for c in CODE]))


def test_make_lab_opens_there():
    assert "--LabApp.default_url=/lab/tree/tour.ipynb" in (ROOT / "Makefile").read_text(encoding="utf-8")
