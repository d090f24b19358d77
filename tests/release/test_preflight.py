"""The preflight: what is right, fast and small enough passes; everything else has its reason in words, and
nothing that a model does hurts the process that asks."""

import json
import shutil
from pathlib import Path

import pytest

from cv_pipeline.core.types import ConfigError
from cv_pipeline.inference.loading import load_model
from cv_pipeline.inference.manifest import find_model, load_manifest, save_manifest
from cv_pipeline.optimization.benchmark import Worker
from cv_pipeline.release import preflight as P
from cv_pipeline.release.bundles import GOLDEN, write_golden
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig

QUICK = P.PreflightLimits(seconds=0.2, slower=50, larger=3)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    "The bundled detector with eight golden pictures."
    place = tmp_path_factory.mktemp("models") / "good"
    shutil.copytree(find_model("factory_line"), place)
    line = FactoryLine(LineConfig(seed=5))
    pictures = [line.render(8 * k)[0].image for k in range(9)]
    write_golden(load_model(place, threads=1), pictures, place, 8)
    return place


@pytest.fixture
def copy(good, tmp_path):
    shutil.copytree(good, tmp_path / "copy")
    return tmp_path / "copy"


def children():
    "Processes that this one has started."
    return {pid for p in Path("/proc/self/task").glob("*/children") for pid in p.read_text().split()}


def changed(place, **fields):
    "Other fields in a manifest; the files stay."
    path = place / "manifest.json"
    book = json.loads(path.read_text())
    for dotted, value in fields.items():
        part, _, key = dotted.partition("__")
        (book[part] if key else book)[key or part] = value
    path.write_text(json.dumps(book))
    return place


@pytest.mark.slow
def test_a_good_model_passes_beside_the_one_that_runs(good):
    before = children()
    found = P.preflight(good, good, QUICK, threads=1)
    assert children() <= before
    assert found.passed and found.reasons == () and found.notes == ()
    assert found.file == "model.onnx" and found.golden["pictures"] == 8
    assert min(found.p95_ms, found.baseline_p95_ms, found.memory_mb, found.baseline_memory_mb) > 0
    assert json.loads(json.dumps(found.to_dict()))["passed"] is True


@pytest.mark.slow
def test_swapped_classes_are_found_by_the_golden_pictures(copy):
    names = list(load_manifest(copy)[0].names)
    found = P.preflight(changed(copy, names=[*names[1:], names[0]]), None, QUICK, threads=1)
    assert any("classes" in r for r in found.reasons)


@pytest.mark.slow
def test_a_damaged_file_is_a_reason(copy):
    weights = next(copy.glob("*.onnx"))
    weights.write_bytes(weights.read_bytes()[:5000])
    save_manifest(load_manifest_without_sum(copy), copy)
    found = P.preflight(copy, None, QUICK, threads=1)
    assert "it cannot be opened and run" in found.reasons[0]


def load_manifest_without_sum(place):
    "So that the runtime, and not the checksum, finds the damage."
    from dataclasses import replace

    path = place / "manifest.json"
    book = json.loads(path.read_text())
    book.pop("sha256", None)
    path.write_text(json.dumps(book))
    return replace(load_manifest(place)[0], sha256="")


@pytest.mark.slow
def test_damaged_golden_pictures_are_a_reason(copy):
    next((copy / GOLDEN).glob("*.jpg")).write_bytes(b"nothing")
    assert "was changed" in P.preflight(copy, None, QUICK, threads=1).reasons[0]


@pytest.mark.slow
def test_a_folder_that_is_missing_is_a_reason(tmp_path):
    assert not P.preflight(tmp_path / "nothing", None, QUICK).passed


def test_a_baseline_that_cannot_be_opened_is_a_note(monkeypatch):
    "Two workers are asked to open a model; the second one cannot."
    answers = [{"file": "f", "golden": {"pictures": 8}, "reasons": []}, {"error": "file not found"}]
    monkeypatch.setattr(P, "_opened", lambda *a: answers.pop(0))
    monkeypatch.setattr(
        P, "_COMMAND", ("-c", 'for line in open(0): print(\'{"ms": [1.0], "memory_mb": 1}\', flush=True)')
    )
    found = P.preflight("new", "old", QUICK)
    assert found.passed and found.notes == ("the model that runs now cannot be measured: file not found",)


def judged(new, old, limits):
    "The judgement of made-up figures."
    rows = {name: [{"ms": ms, "memory_mb": mb}] for name, (ms, mb) in (("new", new), ("old", old))}
    opened = {"file": "f", "golden": {"pictures": 8}, "reasons": []}
    return P._judged(opened, rows, limits, [])


@pytest.mark.parametrize(
    ("new", "old", "word"),
    [
        (([10.0] * 40, 100), ([9.0] * 40, 100), ""),
        (([20.0] * 40, 100), ([9.0] * 40, 100), "2.2 times the model that runs now"),
        (([9.0] * 35 + [90.0] * 5, 100), ([9.0] * 40, 100), ""),  # a busy moment: only the p95 is slower
        (([9.0] * 40, 140), ([9.0] * 40, 100), "1.4 times the model that runs now"),
        (([9.0], 100), ([9.0], 100), ""),
    ],
)
def test_limits_in_relation_to_the_model_that_runs(new, old, word):
    reasons = judged(new, old, P.PreflightLimits()).reasons
    assert (word in reasons[0]) if word else reasons == ()


def test_absolute_limits():
    limits = P.PreflightLimits(p95_ms=5, memory_mb=50, slower=None, larger=None)
    reasons = judged(([10.0] * 40, 100), ([1.0], 1), limits).reasons
    assert reasons == (
        "a picture takes 10.0 ms; at most 5.0 are allowed",
        "it needs 100.0 MB of memory; at most 50.0 are allowed",
    )


def test_limits_that_are_off_do_not_count():
    assert judged(([90.0], 900), ([1.0], 1), P.PreflightLimits(slower=None, larger=None)).passed


def test_a_model_without_golden_pictures_is_refused_unless_that_is_allowed():
    opened, rows = (
        {"file": "f", "golden": {}, "reasons": []},
        {"new": [{"ms": [1.0], "memory_mb": 1}], "old": []},
    )
    assert "no golden pictures" in P._judged(opened, rows, P.PreflightLimits(), []).reasons[0]
    free = P._judged(opened, rows, P.PreflightLimits(golden=False), [])
    assert free.passed and "no golden pictures" in free.notes[0]


def test_a_model_that_fails_while_it_is_measured_is_refused():
    opened = {"file": "f", "golden": {}, "reasons": []}
    rows = {"new": [{"error": "the process ended with SIGSEGV"}], "old": []}
    assert P._judged(opened, rows, QUICK, []).reasons == (
        "it fails when it runs: the process ended with SIGSEGV",
    )


@pytest.mark.slow
def test_no_response_in_time_is_a_reason_and_the_process_is_ended(good):
    found = P.preflight(good, None, P.PreflightLimits(answer_s=0.01))
    assert "no response within 0.01 s" in found.reasons[0]


def test_a_crash_is_a_reason(good, monkeypatch):
    monkeypatch.setattr(P, "_COMMAND", ("-c", "import os; input(); os.abort()"))
    assert "SIGABRT" in P.preflight(good, None, QUICK).reasons[0]


@pytest.mark.slow
def test_two_gigabytes_are_not_to_be_had_under_the_cap(monkeypatch, good):
    code = "from cv_pipeline.release import preflight as P\n"
    code += "def load(*a, **k):\n    return bytearray(2 << 30)\nP.load_model = load\nP.work()"
    monkeypatch.setattr(P, "_COMMAND", ("-c", code))
    found = P.preflight(good, None, P.PreflightLimits(cap_mb=1000))
    assert "it needs more memory than the limit allows" in found.reasons[0]


@pytest.mark.slow
def test_what_libraries_print_is_not_an_answer():
    code = "from cv_pipeline.release import preflight as P\n"
    code += (
        "class Loud:\n    def open(self): print('loading'); return {'file': 'f'}\nP._Bench = Loud\nP.work()"
    )
    worker = Worker(("-c", code))
    assert worker.ask(60, do="open") == {"file": "f"}
    assert "AttributeError" in worker.ask(60, do="nothing")["error"]
    worker.close()


@pytest.mark.parametrize(
    "wrong", [{"p95_ms": 0}, {"slower": -1}, {"seconds": None}, {"cap_mb": float("nan")}]
)
def test_limits_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        P.PreflightLimits(**wrong)
