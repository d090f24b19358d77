"""The benchmark document: workers that fail are rows, numbers are what was timed, advice keeps its
promise."""

import json
import os
import signal
import sys
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import BackendError, ConfigError, DataError, SinkError
from cv_pipeline.inference.manifest import Artefact, ModelManifest, load_manifest, open_model_folder
from cv_pipeline.inference.openvino import default_precision
from cv_pipeline.optimization import benchmark as room
from cv_pipeline.optimization.batch_advice import knee, recommend, simulate_batching
from cv_pipeline.optimization.benchmark import (
    Benchmark,
    BenchmarkSettings,
    Worker,
    accuracy,
    chosen_variants,
    compare,
    comparison_markdown,
    differences,
    fit_check,
    read_benchmark,
    run_benchmark,
    spent,
    to_html,
    to_markdown,
    variants,
    write_benchmark,
)
from tests.helpers.services import require

SHORT = BenchmarkSettings(
    backends=("onnxruntime",), batches=(1,), threads=(1,), seconds=0.05, rounds=2, fit=False
)


def table(call, batches=(1, 2, 4, 8, 16, 32), artefact="x", threads=1):
    return [
        {
            "artefact": artefact,
            "threads": threads,
            "batch": b,
            "p50_ms": call(b),
            "p99_ms": call(b),
            "images_per_s": 1e3 * b / call(b),
            "error": "",
        }
        for b in batches
    ]


# --- batching


@given(
    st.floats(0.1, 20),
    st.floats(0.01, 5),
    st.integers(1, 12),
    st.floats(0, 60),
    st.lists(st.floats(0, 8), min_size=1, max_size=120),
)
@settings(max_examples=200)
def test_no_picture_is_later_than_the_promise(fixed, each, max_batch, wait, gaps):
    "latency ≤ s(B) + max(s(B), max_wait) for any arrivals of which no more than B fall into one call's time."
    call, arrivals = (lambda n: fixed + each * n), []
    for gap in gaps:
        earliest = arrivals[-max_batch] + call(max_batch) + 1e-6 if len(arrivals) >= max_batch else 0.0
        arrivals.append(max(earliest, (arrivals[-1] if arrivals else 0.0) + gap))
    latency, sizes = simulate_batching(arrivals, call, max_batch, wait)
    assert sizes.sum() == len(arrivals) and sizes.max() <= max_batch
    assert latency.max() <= call(max_batch) + max(call(max_batch), wait) + 1e-6
    assert latency.min() >= call(1) - 1e-6


def test_the_promise_is_tight_and_breaks_when_the_model_is_too_slow():
    call = lambda n: 10.0 + n
    together = np.repeat(np.arange(0, 3000, 14.001), 4)  # 4 at once, just as many as a batch of 4 takes away
    assert simulate_batching(together, call, 4, 0.0)[0].max() == pytest.approx(14, abs=0.1)
    late = np.array([0.0, 0.001, 0.002, 0.003, 0.004])  # the fifth comes when the batch of four has just left
    assert simulate_batching(late, call, 4, 14.0)[0][4] == pytest.approx(14.0 + 11.0, abs=0.1)
    assert (
        simulate_batching(np.arange(0, 3000, 2.0), call, 4, 0.0)[0].max() > 500
    )  # 500 a second arrive, 286 are answered


@given(st.floats(0.5, 30), st.floats(0.05, 5), st.floats(3, 400))
def test_advice_keeps_the_budget_in_the_simulation(fixed, each, budget):
    call = lambda n: fixed + each * n
    try:
        advice = recommend(table(call), budget)
    except ConfigError:
        assert 2 * call(1) > budget
        return
    assert advice.worst_ms <= budget + 1e-6 and advice.max_wait_ms <= advice.longest_wait_ms + 1e-6
    step = call(advice.max_batch) / advice.max_batch * 1.01
    latency, _ = simulate_batching(np.arange(500) * step, call, advice.max_batch, advice.max_wait_ms)
    assert latency.max() <= advice.worst_ms + 1e-6


def test_advice_takes_the_fastest_way_that_keeps_the_budget():
    rows = table(lambda n: 5 + n, artefact="quick") + table(
        lambda n: 2.0 * n, artefact="lean", batches=(1, 2)
    )
    assert recommend(rows, 5).artefact == "lean" and recommend(rows, 100).artefact == "quick"
    assert (
        recommend(rows, 100, artefact="lean").max_batch == 1
    )  # a second picture costs as much as the first: no batch is worth a wait
    with pytest.raises(ConfigError, match="no configuration meets 3 ms.*at least 4.0 ms"):
        recommend(rows, 3)
    with pytest.raises(DataError, match="no measured row"):
        recommend([{"error": "x"}], 3)
    for nonsense in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="above 0"):
            recommend(rows, nonsense)


def test_the_knee_is_the_smallest_batch_near_the_best():
    assert knee(table(lambda n: 10.0 * n)) == 1
    assert knee(table(lambda n: 10.0)) == 32
    assert knee(table(lambda n: 10.0 if n <= 8 else 10.0 * n / 8)) == 8
    with pytest.raises(DataError, match="no row of y"):
        knee(table(lambda n: n), artefact="y")


# --- workers


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL, probably out of memory"),
        ("import os; os.abort()", "SIGABRT"),
        ("import sys; sys.exit(7)", "exit code 7"),
        ("print('hello', flush=True); import time; time.sleep(60)", None),
        ("import time; time.sleep(60)", "no response within 0.5 s"),
    ],
)
def test_a_worker_that_fails_is_an_answer(program, said):
    worker = Worker(("-c", program))
    if said is None:
        os.kill(worker.process.pid, signal.SIGKILL)
        said = "SIGKILL"
    assert said in worker.ask(0.5 if "60" in program and "hello" not in program else 20, do="open")["error"]
    assert "error" in worker.ask(0.5, do="open")
    worker.close()
    assert worker.process.poll() is not None


@pytest.mark.slow
def test_what_a_library_prints_is_no_answer():
    program = """
import os
from cv_pipeline.optimization import benchmark as b
b._Seat.open = lambda self, **k: os.write(1, b'noise') and print('more') or {'fine': 1}
b.work()
"""
    worker = Worker(("-c", program))
    assert worker.ask(60, do="open", model="x") == {"fine": 1}
    worker.close()


@given(st.floats(0, 99), st.floats(0, 99))
def test_energy_over_the_wrap_of_a_counter(start, used):
    assert spent({"p": (start, 100.0)}, {"p": ((start + used) % 100.0, 100.0)}) == pytest.approx(
        used, abs=1e-6
    )


# --- the run


@pytest.fixture(scope="module")
def bundled(tmp_path_factory) -> tuple[Benchmark, object]:
    out = tmp_path_factory.mktemp("benchmark") / "deep" / "er"
    stories = []
    quick = BenchmarkSettings(batches=(1, 4), threads=(1,), seconds=0.6, rounds=3, latency_budget_ms=400)
    b = run_benchmark("factory_line", out, _line(out.parent / "line", 18), quick, tell=stories.append)
    assert any("round 3 of 3" in s for s in stories)
    return b, out


@pytest.mark.slow
def test_the_run_measures_what_it_says(bundled):
    b, out = bundled
    assert [(r["threads"], r["batch"]) for r in b.rows if r["artefact"] == "model.onnx on onnxruntime"] == [
        (1, 1),
        (1, 4),
    ]
    for r in b.rows:
        assert not r["error"], r
        assert 0 < r["p50_ms"] <= r["p95_ms"] <= r["p99_ms"] and len(r["rounds"]) == 3 and r["calls"] >= 6
        assert r["images_per_s"] == pytest.approx(1e3 * r["batch"] / r["p50_ms"], rel=0.01)
        assert 10 < r["host_mib"] < 2000 and r["first_ms"] >= r["load_ms"] > 0
        assert r["gpu_mib"] is None or b.machine["gpus"]
    own = b.accuracy["model.onnx on onnxruntime"]
    assert own["pictures"] == 18 and own["AP_low"] < own["AP"] < own["AP_high"] and own["AP"] > 0.7
    assert b.batching["advice"]["max_batch"] in (1, 4) and b.fit["largest"] == 64
    assert b.relative(b.rows[0]) == 1.0 and 0.1 < b.start_s < 60
    assert any("18 images" in n and "too few" in n for n in b.notes)
    assert read_benchmark(out) == read_benchmark(out / "benchmark.json") == b
    assert sorted(p.name for p in out.iterdir()) == ["benchmark.html", "benchmark.json", "benchmark.md"]


class Strict(HTMLParser):
    "Tags must close in order."

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.open += [tag] if tag not in ("meta", "rect") else []

    def handle_endtag(self, tag):
        assert tag == "rect" or self.open.pop() == tag


def test_the_documents_say_the_same_and_hold_no_surprises(bundled):
    b, _ = bundled
    evil = replace(
        b, model="<script>|x", rows=[{**b.rows[0], "error": "bad | pipe\nand <b>line</b>"}, *b.rows[1:]]
    )
    text, page = to_markdown(evil), to_html(evil)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    heads = [i for i, line in enumerate(tables) if i + 1 < len(tables) and tables[i + 1].startswith("| ---")]
    for start, end in zip(heads, [*heads[1:], len(tables)]):
        assert len({line.replace("\\|", "").count("|") for line in tables[start:end]}) == 1
    parser = Strict()
    parser.feed(page)
    assert (
        not parser.open
        and parser.seen.count("table") == 2
        and "<script>" not in page
        and "<b>line" not in page
    )
    for title in ("Result", "Machine", "Speed and memory", "Accuracy", "Batches", "Not measured"):
        assert f"## {title}" in text and f"<h2>{title}</h2>" in page
    if not b.machine["gpus"]:
        assert "no GPU found" in text


def test_a_p99_of_few_calls_is_not_shown(bundled):
    b, _ = bundled
    shown = {
        n: room.speed_table(replace(b, rows=[{**b.rows[0], "calls": n}]))[0]["p99 ms"] for n in (99, 100)
    }
    assert shown[99] == "–" and float(shown[100]) > 0


def test_two_runs_are_compared_with_their_own_variation(bundled):
    b, _ = bundled
    steady = replace(
        b, load=(0.0, 0.0), rows=[{**r, "rounds": [10.0, 10.1, 9.9, 10.0, 10.05]} for r in b.rows]
    )
    faster = replace(steady, rows=[{**r, "rounds": [x / 2 for x in r["rounds"]]} for r in steady.rows])
    noisy = replace(steady, rows=[{**r, "rounds": [6.0, 14.0, 9.0, 18.0, 11.0]} for r in steady.rows])
    assert {r["verdict"] for r in compare(faster, steady)} == {"faster"} and {
        r["verdict"] for r in compare(steady, faster)
    } == {"slower"}
    assert (
        {r["verdict"] for r in compare(noisy, steady)}
        == {r["verdict"] for r in compare(steady, steady)}
        == {"no significant difference"}
    )
    assert (
        compare(faster, steady)[0]["ratio"] == pytest.approx(0.5)
        and compare(steady, steady)[0]["AP_change"] == 0
    )
    fewer = replace(b, rows=b.rows[1:], machine={**b.machine, "cores": 64}, load=(99.0, 0.0))
    said = "\n".join(differences(fewer, b))
    assert (
        "cores" in said
        and "other processes ran" in said
        and "only in the old run: model.onnx on onnxruntime" in said
    )
    assert len(compare(fewer, b)) == len(b.rows) - 1
    assert (
        "faster" in comparison_markdown(faster, steady)
        and "- nothing" in comparison_markdown(steady, steady)
        and "other processes ran" in comparison_markdown(fewer, b)
    )
    assert "No case is in both runs" in comparison_markdown(replace(b, rows=[]), b)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"batches": (4, 0)}, "batches: "),
        ({"batches": ()}, "batches: "),
        ({"threads": ()}, "threads: "),
        ({"threads": (-1,)}, "threads: "),
        ({"seconds": 0}, "seconds: 0"),
        ({"rounds": 1}, "rounds: 1"),
    ],
)
def test_settings_that_are_wrong_name_the_field(wrong, said):
    with pytest.raises(ConfigError, match=said):
        BenchmarkSettings(**wrong)


def test_a_number_of_threads_is_measured_once():
    assert BenchmarkSettings(threads=(2, 1, 2)).thread_counts() == (2, 1)


def test_bad_settings_and_files_are_typed_errors(tmp_path, bundled):
    b, _ = bundled
    with pytest.raises(ConfigError, match="4 problems|batches.*\n.*threads.*\n.*seconds.*\n.*rounds"):
        BenchmarkSettings(batches=(), threads=(-1,), seconds=0, rounds=1)
    with pytest.raises(ConfigError, match="no file 'int4'"):
        run_benchmark("factory_line", settings=BenchmarkSettings(backends=("int4",)))
    with pytest.raises(BackendError, match="model not found"):
        run_benchmark(tmp_path / "nothing.onnx")
    with pytest.raises(DataError, match="dataset not found"):
        run_benchmark("factory_line", data=tmp_path / "no", settings=replace(SHORT, seconds=0.01))
    (tmp_path / "file").write_text("x")
    with pytest.raises(SinkError, match="cannot write the benchmark"):
        write_benchmark(b, tmp_path / "file" / "out")
    for text in ("", "{", "[]", '{"format": 3, "rows": []}', '{"format": 1, "rows": []}'):
        (tmp_path / "benchmark.json").write_text(text)
        with pytest.raises(DataError):
            read_benchmark(tmp_path)


@pytest.mark.slow
def test_files_that_cannot_run_stay_in_the_table_with_their_reason(tmp_path):
    manifest, own = load_manifest("factory_line")
    (tmp_path / "model.onnx").write_bytes(own.read_bytes())
    (tmp_path / "broken.onnx").write_bytes(b"rubbish")
    rows = [
        asdict(Artefact("broken.onnx", "onnxruntime", "int8")),
        asdict(Artefact("x.engine", "tensorrt", "fp16")),
    ]
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest.to_dict(), "artefacts": rows}))
    b = run_benchmark(tmp_path, settings=replace(SHORT, backends=("onnxruntime", "tensorrt")))
    errors = {r["artefact"]: r["error"] for r in b.rows}
    assert (
        errors["model.onnx on onnxruntime"] == ""
        and "cannot open it" in errors["broken.onnx on onnxruntime"]
        and "'x.engine' not found" in errors["x.engine on tensorrt"]
    )
    assert (
        "not measured: ONNX Runtime cannot open it" in to_markdown(b)
        and sum("broken.onnx" in n for n in b.notes) == 1
    )
    found = accuracy(
        open_model_folder(tmp_path),
        [a for a in variants(load_manifest(tmp_path)[0]) if a.backend != "openvino"],
        _line(tmp_path / "line"),
        threads=1,
        draws=20,
    )
    assert "AP" in found["model.onnx on onnxruntime"] and "error" in found["broken.onnx on onnxruntime"]


def _line(folder, pictures=6):
    from cv_pipeline.evaluation.summary import line_pictures

    return line_pictures(folder, pictures)[0]


def test_a_plain_file_is_also_given_to_openvino_but_a_judged_family_is_left_alone():
    require("openvino")
    plain = ModelManifest("m", "m.onnx", ("a",))
    native = [
        p for p in ("bf16", "fp16") if p == default_precision()
    ]  # what the processor can compute in besides float
    assert [a.label for a in variants(plain)] == [
        "m.onnx on onnxruntime",
        *(f"m.onnx on openvino ({p})" for p in ("fp32", *native)),
    ]
    assert not any(a.gated for a in variants(plain)[1:])
    family = replace(plain, artefacts=(Artefact("m.xml", "openvino", "int8"),))
    assert [a.label for a in variants(family)] == ["m.onnx on onnxruntime", "m.xml on openvino"]
    assert [a.label for a in chosen_variants(family, ["int8"])] == ["m.xml on openvino"]


# --- the fit


class Growing:
    "A worker whose memory grows by 50 MiB a picture, and which dies above a size."

    def __init__(self, dies=10**9, fixed=None):
        self.dies, self.fixed, self.asked, self.closed = dies, fixed, [], False

    def close(self):
        self.closed = True

    def ask(self, timeout_s, do, batch=0, **order):
        if do == "open":
            return {"fixed_batch": self.fixed}
        self.asked.append(batch)
        return (
            {"error": "the process ended with SIGKILL, probably out of memory"}
            if batch > self.dies
            else {"host_mib": 100.0 + 50 * batch}
        )


@pytest.mark.parametrize(
    ("limit", "dies", "fixed", "most", "largest", "why"),
    [
        (1e6, 10**9, None, 16, 16, "16 is the largest requested size"),
        (520, 10**9, None, 64, 8, "twice as many would need about 900 of 520 MiB"),
        (1e6, 4, None, 64, 4, "SIGKILL"),
        (1e6, 10**9, 1, 64, 1, "fixed batch"),
        (120, 10**9, None, 64, 0, "above the limit of 120 MiB"),
    ],
)
def test_the_largest_batch_that_fits(limit, dies, fixed, most, largest, why):
    worker = Growing(dies, fixed)
    found = fit_check("factory_line", limit_mib=limit, most=most, worker=lambda: worker)
    assert found["largest"] == largest and why in found["why"] and worker.closed
    if len(found["mib"]) > 1:
        assert found["mib_per_picture"] == 50.0


# --- real models


@pytest.mark.slow
@pytest.mark.real
def test_a_fixed_batch_and_another_preprocessing_are_measured_as_they_are(real_data, tmp_path):
    from tests.helpers.manifests import YOLOX

    (tmp_path / "yolox.yaml").write_text(YOLOX)
    b = run_benchmark(
        real_data / "models" / "yolox_nano.onnx",
        spec=tmp_path / "yolox.yaml",
        settings=replace(SHORT, batches=(1, 4), seconds=0.3, fit=True),
    )
    assert [r["batch"] for r in b.rows] == [1] and b.fit["largest"] == 1
    assert any("takes exactly 1" in n for n in b.notes)


@pytest.mark.gpu
def test_gpu_memory_is_read():
    require("pynvml")
    if not room.machine()["gpus"]:
        pytest.skip("no GPU here: not measured")
    b = run_benchmark(
        "factory_line", settings=replace(SHORT, backends=(), providers=["CUDAExecutionProvider"], seconds=0.2)
    )
    assert b.rows[0]["gpu_mib"] > 0


def test_python_used_by_workers_is_this_one():
    assert Worker(("-c", "")).process.args[0] == sys.executable
