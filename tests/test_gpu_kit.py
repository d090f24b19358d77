"""The proof kit for graphics cards, walked on stand-ins: every check, what fails, hangs or is late, the
report, and the pieces that are carried."""

import hashlib
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.gpu import __main__ as kit
from tests.gpu import carry, checks
from tests.gpu.ground import Ground, NotHere, pace, sweep
from tests.gpu.report import headline, to_html, to_markdown, write_report

QUICK = {"card", "copies", "kernel", "onnx_runtime", "video"}


@pytest.mark.parametrize("name", sorted(QUICK))
@pytest.mark.slow
def test_a_check_runs_on_stand_ins(name, tmp_path):
    found = kit.run_here(name, Ground(tmp_path, stand_ins=True, seconds=0.01))
    assert found["state"] == "done", found
    assert found["figures"]


@pytest.mark.slow
def test_engines_are_built_once_compared_and_measured_on_stand_ins(tmp_path):
    ground = Ground(tmp_path, stand_ins=True, seconds=0.01)
    for name in ("tensorrt_fp32", "tensorrt_fp16", "out_of_memory", "accuracy"):
        found = kit.run_here(name, ground)
        assert found["state"] == "done", found
    assert set(found["figures"]) == {"pictures", "processor", "fp32", "fp16"}


def test_every_check_asks_something_and_ends():
    assert all(c.question.endswith("?") or c.question.startswith("TensorRT") for c in checks.CHECKS.values())
    assert sum(c.limit_s for c in checks.CHECKS.values()) > 8 * 60  # the limit of all of them is what counts
    assert all(5 < c.limit_s <= 150 for c in checks.CHECKS.values())


# --- what is wrong is seen


def test_one_wrong_bit_is_a_failure():
    ours = np.zeros(8, np.float32)
    theirs = ours.copy()
    theirs[3] = np.nextafter(np.float32(0), np.float32(1))
    with pytest.raises(ValueError, match="1 of 8 numbers differ"):
        checks.same("tensor", ours, theirs)
    with pytest.raises(ValueError, match="1 of 8 numbers differ"):
        checks.same("tensor", ours, np.where(np.arange(8) == 2, np.nan, ours), most=1)
    with pytest.raises(ValueError, match=r"the shape is \(8,\)"):
        checks.same("tensor", ours, theirs[:4])


def test_a_copy_that_loses_bytes_is_a_failure(tmp_path, monkeypatch):
    ground = Ground(tmp_path, stand_ins=True, seconds=0.01)
    device = ground.device()
    monkeypatch.setattr(device, "download", lambda array, memory: array.fill(1))
    monkeypatch.setattr(Ground, "device", lambda self: device)
    found = kit.run_here("copies", ground)
    assert found["state"] == "failed" and "copied bytes" in found["reason"]


def test_a_card_that_is_missing_is_named():
    found = kit.run_here("card", Ground(Path("."), stand_ins=False, index=9999))
    assert found["state"] == "failed" and "NoDevice" in found["reason"]


def test_what_cannot_run_says_why(monkeypatch, tmp_path):
    def absent(ground):
        raise NotHere("no provider")

    monkeypatch.setitem(checks.CHECKS, "card", checks.Check("?", absent, 9))
    assert kit.run_here("card", Ground(tmp_path)) == {"state": "not run", "reason": "no provider"}


# --- processes


class Asked:
    "The words of the command line."

    stand_ins, device, seconds = True, 0, 0.01


def test_a_check_in_its_own_process_hands_back_its_figures(tmp_path):
    row = kit.run_apart("card", Asked, tmp_path, 60)
    assert row["state"] == "done" and row["figures"]["name"] == "Stand-in"
    assert row["check"] == "card" and row["seconds"] > 0


def test_a_check_that_takes_too_long_is_ended_and_named(tmp_path):
    row = kit.run_apart("card", Asked, tmp_path, 0.05)
    assert row["state"] == "failed" and row["reason"].startswith("ended after 0 s")


def test_a_process_that_dies_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(kit.sys, "executable", "/bin/false")
    row = kit.run_apart("card", Asked, tmp_path, 60)
    assert row["state"] == "failed" and "its process ended with 1" in row["reason"]


def test_without_time_what_is_left_is_named_and_nothing_failed(tmp_path, capsys):
    assert kit.main(["--out", str(tmp_path), "--minutes", "0", "--stand-ins"]) == 0
    rows = json.loads((tmp_path / "gpu-stand-ins" / "report.json").read_text())["checks"]
    assert {row["check"] for row in rows} == set(checks.CHECKS)
    assert {row["reason"] for row in rows} == {"the 0 minutes are over"}


def test_a_machine_without_a_card_says_so_in_its_report(tmp_path):
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a card")
    assert kit.main(["--out", str(tmp_path), "--only", "card"]) == 1
    document = json.loads((tmp_path / "gpu-no-card" / "report.json").read_text())
    assert document["checks"][0]["state"] == "failed" and document["stand_ins"] is False


# --- the report

ROWS = [
    {"check": "card", "question": "Which?", "state": "done", "figures": {"name": "A <b>100|x"}, "seconds": 1},
    {"check": "video", "question": "Video?", "state": "not run", "reason": "no decoder", "seconds": 0.1},
    {"check": "kernel", "question": "Bits?", "state": "failed", "reason": "3 numbers differ", "seconds": 2},
]


def test_stand_ins_are_never_called_proof():
    assert headline(ROWS, True).endswith("on stand-ins, nothing is proven")
    assert headline(ROWS, False) == "1 of 3 checks done, 1 failed, 1 not run"


def test_the_report_shows_everything_and_escapes_names(tmp_path):
    place = write_report(ROWS, tmp_path, False)
    assert place.name == "gpu-a-b-100-x"
    page, text = (place / "report.html").read_text(), (place / "report.md").read_text()
    assert "A &lt;b&gt;100|x" in page and "<b>100" not in page
    assert (
        "| name | A <b>100/x |" in text
        and "not run: no decoder" in text
        and "failed: 3 numbers differ" in text
    )


def test_a_sweep_is_one_line():
    rows = sweep(lambda batch: batch.sum(), (3, 8, 8), (1, 4), 0.001)
    document = {"card": "c", "headline": "h", "when": "w", "version": "1", "machine": {"processor": "p"}}
    document["checks"] = [{**ROWS[0], "figures": {"sweep": rows}}]
    assert "| sweep | 1: " in to_markdown(document) and "(× 1), 4: " in to_markdown(document)
    assert "<th>sweep</th>" in to_html(document)


def test_pace_counts_at_least_so_many_calls():
    calls = []
    assert pace(lambda: calls.append(1), 0, fewest=4)["calls"] == 4
    assert len(calls) == 6


# --- what is carried


def test_pieces_are_small_and_join_to_what_was_packed(tmp_path):
    wheels, tree = tmp_path / "wheels", tmp_path / "tree"
    for folder in (wheels, tree / "a"):
        folder.mkdir(parents=True)
    noise = np.random.default_rng(0).bytes(300_000)
    (wheels / "thing-1-py3-none-any.whl").write_bytes(noise)
    (tree / "a" / "b.py").write_text("x = 1\n")
    pieces = carry.pack(wheels, [tree / "a" / "b.py"], tree, tmp_path / "kit", piece_mb=0.1)
    assert len(pieces) >= 3 and max(p.stat().st_size for p in pieces) <= 100_000
    whole = b"".join(p.read_bytes() for p in pieces)
    assert hashlib.sha256(whole).hexdigest() in (tmp_path / "kit" / "kit.sha256").read_text()
    joined = tmp_path / "joined.tar"
    joined.write_bytes(whole)
    with tarfile.open(joined) as archive:
        assert archive.extractfile("wheels/thing-1-py3-none-any.whl").read() == noise
        assert archive.extractfile("project/a/b.py").read() == b"x = 1\n"


def test_a_changed_piece_is_noticed_before_anything_is_unpacked(tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "thing-1-py3-none-any.whl").write_bytes(b"x" * 1000)
    (piece,) = carry.pack(tmp_path / "wheels", [], tmp_path, tmp_path / "kit")
    piece.write_bytes(piece.read_bytes()[:-1] + b"!")
    done = subprocess.run(
        ["bash", "unpack.sh"], cwd=tmp_path / "kit", capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0 and not (tmp_path / "kit" / "kit").exists()


@pytest.mark.parametrize(("light", "wanted"), [(True, ["onnxruntime"]), (False, ["onnxruntime-gpu"])])
def test_the_kit_takes_the_package_s_own_needs_and_one_onnx_runtime(root, light, wanted):
    names = [re.split("[<>=]", n)[0] for n in carry.requirements(root, light)]
    assert [n for n in names if n.startswith("onnxruntime")] == wanted
    assert {"numpy", "av", "tensorrt-rtx-cu13-libs", "setuptools"} <= set(names)
    assert ("nvidia-cudnn-cu13" in names) is not light


def test_the_working_tree_is_what_travels(root):
    if not (root / ".git").exists():
        pytest.skip("not a checkout")
    found = {str(p.relative_to(root)) for p in carry.tracked(root)}
    assert "settings.ini" in found and "tests/gpu/checks.py" in found and not any(".venv" in f for f in found)


def test_help_is_not_empty():
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=kit.ROOT,
    )
    assert done.returncode == 0 and "--stand-ins" in done.stdout
