"""The front page: what it shows is what a reader gets who types it."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
sys.path.insert(0, str(ROOT / "docs"))

import features  # noqa: E402

BLOCKS = {  # `cv-pipeline run …` → the lines below it
    first.partition("#")[0].strip(): rest.splitlines()
    for first, _, rest in (
        b.partition("\n") for b in re.findall(r"^```text\n\$ (.*?)^```", TEXT, re.M | re.S)
    )
}


def table_of(text: str, first: str) -> list[dict[str, str]]:
    "The rows below a head that begins with a word, of a page or of a terminal: name of the column → cell."
    lines = [re.split(r"\s{2,}|[│┃]", line.strip("│┃ \n")) for line in text.splitlines()]
    lines = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    at = next(k for k, line in enumerate(lines) if line[:1] == [first])
    rows = [line for line in lines[at + 1 :] if len(line) == len(lines[at])]
    return [dict(zip(lines[at], row)) for row in rows]


def typed(command: str, out: Path) -> str:
    "What a command of the page prints; its files go to a folder of the test."
    words = shlex.split(command)[1:]
    words = [str(out) if before == "--out" else w for before, w in zip(["", *words], words)]
    words += [] if "--out" in words else ["--out", str(out)]
    program = [sys.executable, "-c", "from cv_pipeline.commands.main import main; main()"]
    done = subprocess.run(
        [*program, *words],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=out.parent,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def command(name: str) -> str:
    return next(c for c in BLOCKS if c.startswith(f"cv-pipeline {name}"))


@pytest.mark.slow
def test_run_prints_what_the_page_shows(tmp_path):
    text = "\n".join(BLOCKS[command("run")])
    printed = typed(command("run"), tmp_path / "out")
    (shown,), (real,) = table_of(text, "source"), table_of(printed, "source")
    assert list(shown) == list(real)
    counts = ("boxes", "unsure", "tracks")  # kernels of another processor move a box across a threshold
    assert {k: v for k, v in shown.items() if k not in counts} == {
        k: v for k, v in real.items() if k not in counts
    }
    for name, slack in zip(counts, (0.02, 0.25, 0.1)):
        assert abs(int(shown[name]) - int(real[name])) <= slack * int(shown[name]), name
    line = re.compile(r"[\d.]+ frames/s in [\d.]+ s · factory_line 1\.0 on \w+")
    assert line.search(text) and line.search(printed)
    assert list((tmp_path / "out").rglob("*.mp4"))


@pytest.mark.slow
def test_optimize_prints_what_the_page_shows(tmp_path):
    shown = table_of("\n".join(BLOCKS[command("optimize")]), "step")
    real = table_of(typed(command("optimize"), tmp_path / "out"), "step")
    assert [list(row) for row in shown] == [list(row) for row in real]
    for a, b in zip(shown, real, strict=True):
        assert [a[k] for k in ("step", "MB", "gate", "result")] == [
            b[k] for k in ("step", "MB", "gate", "result")
        ]
        assert abs(float(a["AP"]) - float(b["AP"])) < 0.01
    assert (tmp_path / "out" / "manifest.json").exists()


def test_the_verdict_is_the_one_of_the_example():
    kept = json.loads((ROOT / "reports" / "example-evaluation" / "metrics.json").read_text(encoding="utf-8"))
    lines = BLOCKS[command("report evaluation")]
    for finding in kept["findings"]:
        line = f"{finding['verdict']} {finding['what']}: {finding['reason']}"
        assert line in [" ".join(row.split()) for row in lines]
    assert f"verdict: {kept['verdict']}" in lines


def test_the_lines_of_python_run(tmp_path, monkeypatch):
    from cv_pipeline.synthetic.line import open_line

    code = re.search(r"^```python\n(.*?)^```", TEXT, re.M | re.S)[1]
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("part.jpg", next(iter(open_line("line:frames=1"))).image)
    found: dict = {}
    exec(code, found)
    assert len(found["detections"]) > 0 and found["detections"].xyxy.shape[1] == 4


def test_the_table_of_features_is_the_one_of_its_page():
    assert features.short() in TEXT, "python docs/features.py prints it"


def test_every_cell_of_the_features_has_a_source_or_a_test():
    head, *body = features.rows()
    assert len(head) == 8 and len(body) > 12 and all(len(row) == len(head) for row in body)
    for name, ours, *others in body:
        assert name == "licence" or ours[0] in "●◐", name
        for link in re.findall(r"\]\((?!https)([^)]+)\)", ours):
            assert (ROOT / "docs" / link).exists(), link
        assert name == "licence" or re.search(r"\]\((\.\./tests/|\w+\.md)", ours), name
        for cell in others:
            assert cell == "–" or re.search(r"\]\(https://", cell), (name, cell)
