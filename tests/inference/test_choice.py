"""Automatic choice: who may run, what is remembered, what is refused, and how a run survives a file that
fails."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_pipeline.core.stamp import instruction_set, machine, processor_name
from cv_pipeline.core.types import Backend, BackendError, ConfigError, ModelSpecMismatch
from cv_pipeline.inference import choice as room
from cv_pipeline.inference import loading
from cv_pipeline.inference.backends import InvalidOutput, OutOfMemory, SteadyBackend
from cv_pipeline.inference.choice import (
    MARGIN,
    FallbackBackend,
    Option,
    measure,
    rank,
    read_record,
    to_layout,
    write_record,
)
from cv_pipeline.inference.loading import load_backend, load_model, register_backend
from cv_pipeline.inference.manifest import (
    Artefact,
    PreprocessSpec,
    bundled_models,
    load_manifest,
    save_manifest,
)
from cv_pipeline.inference.preprocess import Preprocessor
from tests.helpers.choosing import choose, open_chosen
from tests.helpers.services import require

YES = {"accepted": True, "instruction set": instruction_set()}
NO = {"accepted": False, "reason": "AP loss is above 0.005"}


@pytest.fixture
def family(tmp_path):
    "The bundled model with three further files: two that the gate accepted, one that it refused."
    folder = tmp_path / "line"
    shutil.copytree(bundled_models()["factory_line"], folder)
    manifest, own = load_manifest(folder)
    for name in ("half.onnx", "eight.onnx", "bad.onnx"):
        shutil.copy(own, folder / name)
    rows = [
        Artefact("half.onnx", "onnxruntime", "fp16", gate=YES),
        Artefact("eight.onnx", "onnxruntime", "int8", gate=YES),
        Artefact("bad.onnx", "onnxruntime", "int8", gate=NO),
    ]
    save_manifest(replace(manifest, artefacts=tuple(rows)), folder)
    return folder


class Clockwork:
    "Pretends to measure; counts how often it was asked."

    def __init__(self, **milliseconds):
        self.milliseconds, self.asked = milliseconds, []

    def __call__(self, openers, batch):
        self.asked.append((sorted(openers), batch))
        return {label: self.milliseconds.get(label.split(".")[0], 50.0) for label in openers}


def test_the_fastest_gated_file_wins_and_the_refused_one_is_not_even_measured(family, tmp_path):
    timer = Clockwork(model=20.0, half=15.0, eight=9.0, bad=1.0)
    c = choose(family, cache=tmp_path / "c", timer=timer)
    assert [a.file for a in c.order] == ["eight.onnx", "half.onnx", "model.onnx"] and "2.22×" in c.reason
    assert timer.asked == [
        (["eight.onnx on onnxruntime", "half.onnx on onnxruntime", "model.onnx on onnxruntime"], 1)
    ]
    states = {r["artefact"].split()[0]: r["state"] for r in c.table}
    assert states == {
        "eight.onnx": "chosen",
        "half.onnx": "fallback number 1",
        "model.onnx": "fallback number 2",
        "bad.onnx": "AP loss is above 0.005",
    }


@pytest.mark.parametrize(
    "flags, kind",
    [
        ("flags\t\t: fpu sse2 ssse3 avx avx2 fma", "x86-64 avx2"),
        ("flags\t\t: sse2 avx2 avx512f avx512bw", "x86-64 avx512"),
        ("flags\t\t: sse2 avx2 avx_vnni", "x86-64 avx-vnni"),
        ("flags\t\t: avx2 avx512bw avx512_vnni avx512_bf16", "x86-64 avx512-vnni"),
        ("flags\t\t: avx2 avx512_vnni amx_tile amx_int8", "x86-64 amx-int8"),
        ("flags\t\t: sse sse2", "x86-64 sse"),
        ("Features\t: fp asimd asimddp i8mm", "arm64 i8mm"),
        ("Features\t: fp asimd asimddp", "arm64 dotprod"),
        ("Features\t: fp asimd", "arm64 neon"),
        ("flags : sse2 avx2 avx_vnni\nvmx flags : avx512_vnni\nflags : sse2 avx2", "x86-64 avx2"),
    ],
)
def test_the_instruction_set_is_what_all_cores_have(tmp_path, flags, kind):
    (tmp_path / "cpuinfo").write_text(
        f"processor\t: 0\nmodel name\t: avx512_vnni in a name says nothing\n{flags}\n"
    )
    assert instruction_set(tmp_path / "cpuinfo") == kind


@pytest.mark.parametrize("text", [None, "", "flags : \n", "flags : riscv64gc\n", "\xff\x00"])
def test_an_unknown_processor_is_named_itself_so_that_no_verdict_of_another_one_counts(tmp_path, text):
    if text is not None:
        (tmp_path / "cpuinfo").write_bytes(text.encode("latin-1"))
    assert instruction_set(tmp_path / "cpuinfo") == f"{platform.machine()} {processor_name()}"


def with_gate(family, **gates):
    "The family with these records, by the file's name."
    manifest, _ = load_manifest(family)
    save_manifest(
        replace(
            manifest,
            artefacts=tuple(
                replace(a, gate=gates.get(Path(a.file).stem, a.gate)) for a in manifest.artefacts
            ),
        ),
        family,
    )


FAR = {"accepted": True, "instruction set": "x86-64 of another house"}


@pytest.mark.parametrize(
    "gate, said",
    [
        (FAR, "verified on x86-64 of another house, not on "),
        ({"accepted": True}, "verified on an unrecorded instruction set, not on "),
        (
            {**FAR, "elsewhere": {instruction_set(): {"accepted": False, "reason": "AP changes by -0.08"}}},
            "AP changes by -0.08",
        ),
    ],
)
def test_eight_bits_judged_elsewhere_do_not_run_here(family, tmp_path, gate, said):
    with_gate(family, eight=gate)
    c = choose(family, cache=tmp_path / "c", timer=Clockwork(model=20.0, half=15.0, eight=9.0))
    assert [a.file for a in c.order] == ["half.onnx", "model.onnx"]
    state = next(r["state"] for r in c.table if r["artefact"].startswith("eight"))
    assert state.startswith(said)
    if "elsewhere" in gate:
        assert "left out" not in c.reason
    else:
        assert f"cv-pipeline optimize --verify {family} --data" in state
        assert f"not verified for this processor ({instruction_set()}) and left out: eight.onnx" in c.reason


def test_a_verdict_of_this_instruction_set_lets_it_run_whatever_the_other_said(family, tmp_path):
    with_gate(
        family,
        eight={
            **NO,
            "instruction set": "x86-64 of another house",
            "elsewhere": {instruction_set(): {"accepted": True}},
        },
    )
    assert choose(family, cache=tmp_path / "c", timer=Clockwork(eight=9.0)).artefact.file == "eight.onnx"


def test_half_precision_keeps_its_verdict_everywhere(family, tmp_path):
    with_gate(family, half=FAR, eight=NO)
    assert choose(family, cache=tmp_path / "c", timer=Clockwork(half=9.0)).artefact.file == "half.onnx"


def test_who_asks_by_name_is_told_that_it_was_not_judged_here(family, tmp_path):
    with_gate(family, eight=FAR)
    c = choose(family, "eight.onnx", cache=tmp_path / "c")
    assert (
        c.artefact.file == "eight.onnx"
        and f"not accepted by a gate on this processor ({instruction_set()})" in c.reason
    )


def test_a_slow_int8_file_is_never_the_choice(family, tmp_path):
    assert (
        choose(family, cache=tmp_path / "c", timer=Clockwork(model=25.5, half=26.0, eight=46.0)).artefact.file
        == "model.onnx"
    )


@given(st.lists(st.floats(0.01, 1e4), min_size=3, max_size=3))
def test_whatever_the_times_no_choice_is_noticeably_slower_than_the_best(ms):
    family = [Artefact(f"{p}.onnx", "onnxruntime", p) for p in ("fp32", "fp16", "int8")]
    times = dict(zip([a.label for a in family], ms))
    order = rank(family, times)
    assert sorted(a.precision for a in order) == sorted(a.precision for a in family)
    assert times[order[0].label] * (1 - MARGIN) <= min(ms) + 1e-9
    if order[0].precision == "int8":
        assert times[order[0].label] < times[family[0].label]


def test_what_was_measured_is_remembered_until_something_changes(family, tmp_path, monkeypatch):
    timer, cache = Clockwork(model=20.0, half=9.0), tmp_path / "c"
    ask = lambda **more: choose(family, cache=cache, timer=timer, **more)
    assert [ask().stored, ask().stored, ask(remeasure=True).stored, ask().stored] == [
        False,
        True,
        False,
        True,
    ] and len(timer.asked) == 2
    assert not ask(threads=1).stored and not ask(batch=4).stored and timer.asked[-1][1] == 4
    monkeypatch.setattr(room, "machine", lambda: {**machine(), "cores": 64.0})
    assert not ask().stored
    monkeypatch.undo()
    assert ask().stored
    with open(family / "half.onnx", "ab") as f:
        f.write(b"\x00")  # another file now: the manifest does not know it
    found = ask()
    assert not found.stored and "half.onnx" not in [a.file for a in found.order]
    assert "SHA-256 differs" in next(r["state"] for r in found.table if r["artefact"].startswith("half"))


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 2}',
        b"\xff\xfe",
        b'{"format": 1, "at": 0, "times": {"a": true}}',
        b'{"format": 1, "at": 0, "times": {"a": -1}}',
        b'{"format": 1, "at": 0, "times": {"a": NaN}}',
        b'{"format": 1, "at": 0, "times": {"b": 3.0}}',
        b'{"format": 1, "at": "x", "times": {"a": 3.0}}',
    ],
)
def test_a_damaged_record_is_no_record(tmp_path, damage):
    (tmp_path / "r.json").write_bytes(damage)
    assert read_record(tmp_path / "r.json", ["a"], 0.0) is None


def test_what_could_not_run_is_tried_again_a_day_later(tmp_path):
    file = tmp_path / "deep" / "r.json"
    assert write_record(file, {"a": 3.0, "b": "no driver"}, {}, 1000.0)
    assert read_record(file, ["a", "b"], 1000.0 + room.RETRY_S - 1) == {"a": 3.0, "b": "no driver"}
    assert (
        read_record(file, ["a", "b"], 1000.0 + room.RETRY_S) is None
        and read_record(file, ["a", "b"], 999.0) is None
    )
    assert [p.name for p in file.parent.iterdir()] == ["r.json"]


def test_a_cache_that_cannot_be_written_costs_time_not_the_run(family, tmp_path):
    (tmp_path / "file").write_text("in the way")
    timer = Clockwork(half=9.0)
    assert [choose(family, cache=tmp_path / "file", timer=timer).artefact.file for _ in range(2)] == [
        "half.onnx"
    ] * 2 and len(timer.asked) == 2


def test_a_model_with_one_file_is_not_measured(tmp_path):
    def never(*a, **k):
        raise AssertionError("measured")

    c = choose("factory_line", cache=tmp_path, timer=never)
    assert (
        c.artefact.file == "model.onnx"
        and c.reason == "the only file that can run here"
        and not list(tmp_path.iterdir())
    )


@pytest.mark.parametrize(
    ("wanted", "files"),
    [
        ("fp16", ["half.onnx"]),
        ("bad.onnx", ["bad.onnx"]),
        ("onnxruntime/int8", ["eight.onnx", "bad.onnx"]),
        (" ONNXRuntime ", None),
        ("eight.onnx on onnxruntime", ["eight.onnx"]),
    ],
)
def test_a_person_may_overrule(family, tmp_path, wanted, files):
    c = choose(family, wanted, cache=tmp_path / "c", timer=Clockwork(eight=9.0, bad=30.0))
    assert [a.file for a in c.order] == files if files else len(c.order) == 4
    assert wanted in c.reason and ("not accepted by a gate" in c.reason) == (c.artefact.file == "bad.onnx")


def test_wishes_that_cannot_be_met_are_typed_errors(family, tmp_path):
    with pytest.raises(ConfigError, match="no file 'tensorrt'.*half.onnx on onnxruntime"):
        choose(family, "tensorrt")
    (family / "half.onnx").unlink()
    with pytest.raises(BackendError, match="'half.onnx' not found"):
        choose(family, "fp16")
    with pytest.raises(BackendError, match="no file of this model can run on this machine.*no driver"):
        choose(family, cache=tmp_path / "c", timer=lambda openers, batch: dict.fromkeys(openers, "no driver"))
    with pytest.raises(BackendError, match="there is no runtime 'tflite'"):
        load_backend(family / "model.onnx", load_manifest(family)[0], runtime="tflite")


def test_a_file_that_cannot_be_opened_stays_in_the_table(family, tmp_path):
    (family / "eight.onnx").write_bytes(b"rubbish")
    manifest, _ = load_manifest(family)
    save_manifest(manifest, family)  # the gate judged this very rubbish
    c = choose(
        family,
        cache=tmp_path / "c",
        timer=lambda openers, batch: measure(openers, batch, budget_s=0.1, rounds=(2, 3)),
    )
    assert sorted(a.file for a in c.order) == ["half.onnx", "model.onnx"]
    assert "cannot open it" in next(r["state"] for r in c.table if r["artefact"].startswith("eight"))


def test_candidates_take_turns_and_all_are_closed():
    story, now = [], [0.0]

    class Told:
        name, provider, max_batch = "told", "x", 4

        def __init__(self, label, ms):
            self.label, self.ms = label, ms

        def warmup(self):
            story.append(f"warm {self.label}")

        def close(self):
            story.append(f"close {self.label}")

        def infer(self, batch):
            assert len(batch) == 3
            story.append(self.label)
            now[0] += self.ms * 3e-3
            if self.ms == 99:
                raise BackendError("lost")
            return batch

    pre = Preprocessor(PreprocessSpec(imgsz=(32, 32)))
    openers = {
        label: (lambda label=label, ms=ms: (pre, Told(label, ms)))
        for label, ms in (("a", 4), ("b", 2), ("c", 99))
    }
    assert measure(openers, 3, budget_s=0.0, rounds=(3, 9), clock=lambda: now[0]) == {
        "a": pytest.approx(4.0),
        "b": pytest.approx(2.0),
        "c": "lost",
    }
    assert story == [
        "warm a",
        "warm b",
        "warm c",
        "a",
        "b",
        "c",
        "a",
        "b",
        "a",
        "b",
        "close a",
        "close b",
        "close c",
    ]


# --- at run time


class Scripted:
    "Answers twice the batch, or does what its script says at each call."

    provider, max_batch, checks_output = "scripted", 8, True

    def __init__(self, name, script=()):
        self.name, self.script, self.closed = name, list(script), False

    def warmup(self):
        self.infer(np.zeros((1, 3), np.float32))

    def close(self):
        self.closed = True

    def infer(self, batch):
        assert not self.closed, "asked after it was closed"
        act = self.script.pop(0) if self.script else None
        if isinstance(act, Exception):
            raise act
        return batch * 2


STUMBLES = (
    None,
    BackendError("device lost"),
    RuntimeError("driver says 719"),
    InvalidOutput("NaN"),
    OutOfMemory("no room"),
)


@given(st.lists(st.sampled_from(STUMBLES), max_size=8), st.lists(st.sampled_from(STUMBLES), max_size=8))
def test_every_batch_is_answered_while_one_file_works(first, second):
    opened = Counter()

    def opener(name, script):
        def made():
            opened[name] += 1
            return Scripted(name, script if opened[name] == 1 else [])

        return made

    backend = FallbackBackend(
        [
            Option("a", "nchw-float", opener("a", first)),
            Option("b", "nchw-float", opener("b", second)),
            Option("c", "nchw-float", opener("c", ())),
        ],
        PreprocessSpec(),
    )
    assert isinstance(backend, Backend)
    for i in range(10):
        batch = np.full((1, 3), i, np.float32)
        np.testing.assert_array_equal(backend.infer(batch), batch * 2)
    assert (
        backend.state == ("ready" if backend.place == 0 else "fallback")
        and backend.place == backend.events["fallback"]
    )
    if all(x is None or type(x) in (BackendError, RuntimeError) for x in first):
        assert backend.place == 0  # one more try with the file opened anew was enough


def test_nothing_left_is_an_error_each_time_and_is_seen():
    backend = FallbackBackend(
        [Option("a", "nchw-float", lambda: Scripted("a", [BackendError("lost")] * 9))], PreprocessSpec()
    )
    for _ in range(2):
        with pytest.raises(BackendError, match="lost"):
            backend.infer(np.zeros((1, 3), np.float32))
    assert backend.state == "failed" and backend.events["exhausted"] == 2
    np.testing.assert_array_equal(
        SteadyBackend(backend, recover=lambda: Scripted("new")).infer(np.ones((1, 3), np.float32)), 2
    )
    with pytest.raises(BackendError, match="import"):
        FallbackBackend(
            [Option("a", "nchw-float", lambda: (_ for _ in ()).throw(ImportError("import")))],
            PreprocessSpec(),
        )
    with pytest.raises(ConfigError):
        FallbackBackend([], PreprocessSpec())


def test_the_pipelines_backend_shows_what_the_inner_one_counts():
    scripts = iter([[BackendError("lost")], [BackendError("lost")]])
    steady = SteadyBackend(
        FallbackBackend(
            [
                Option("a", "nchw-float", lambda: Scripted("a", next(scripts))),
                Option("b", "nchw-float", lambda: Scripted("b")),
            ],
            PreprocessSpec(),
        )
    )
    assert (steady.state, steady.provider) == ("ready", "scripted [a]")
    steady.infer(np.ones((1, 3), np.float32))
    assert (steady.state, steady.provider, steady.events) == (
        "fallback",
        "scripted [b]",
        {"reopened": 1, "fallback": 1},
    )


@given(
    st.sampled_from(["RGB", "BGR"]),
    st.sampled_from([1 / 255, 1.0, 0.017]),
    st.floats(-3, 300),
    st.floats(0.01, 100),
    st.integers(0, 99),
)
def test_layouts_turn_into_each_other_exactly(color, scale, mean, std, seed):
    spec = PreprocessSpec(
        imgsz=(32, 64), color=color, scale=scale, mean=(mean, 0.5, 0.0), std=(std, 1.0, 0.2)
    )
    image = np.random.default_rng(seed).integers(0, 256, (17, 23, 3), np.uint8)
    floats, bytes_ = (
        Preprocessor(replace(spec, layout=layout)).batch([image])[0]
        for layout in ("nchw-float", "nhwc-uint8")
    )
    np.testing.assert_array_equal(to_layout(bytes_, spec, "nchw-float"), floats)
    np.testing.assert_array_equal(to_layout(floats, spec, "nhwc-uint8"), bytes_)
    assert to_layout(floats, spec, "nchw-float") is floats


@pytest.mark.slow
def test_load_model_auto_finds_what_the_own_file_finds(family, tmp_path, monkeypatch):
    monkeypatch.setenv("CV_PIPELINE_CACHE", str(tmp_path / "cache"))
    auto, own = load_model(family, threads=1, backend="auto"), load_model(family, threads=1)
    assert (
        len(list((tmp_path / "cache" / "choice").iterdir())) == 1
        and auto.backend.choice.artefact.file == auto.path.name
    )
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    np.testing.assert_array_equal(auto.predict([image])[0].xyxy, own.predict([image])[0].xyxy)
    again = auto.with_postprocess(conf=0.5).reopen()
    assert isinstance(again, FallbackBackend) and again.state == "ready"
    assert type(own.reopen()) is type(own.backend)
    for m in (auto, own, again):
        m.close()
    assert load_model(family, backend="fp16").path.name == "half.onnx"


@pytest.mark.skipif(sys.platform != "linux", reason="affinity")
def test_fewer_cores_are_another_machine():
    ask = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from cv_pipeline.core.stamp import machine; print(machine()['cores'])"
    )
    assert (
        float(
            subprocess.run(
                [sys.executable, "-c", ask], capture_output=True, text=True, check=True, env=os.environ
            ).stdout
        )
        == 1.0
    )


@pytest.mark.slow
@pytest.mark.real
def test_auto_on_a_real_family_picks_nothing_slower_than_fp32(real_data, tmp_path):
    require("openvino", reason='pip install "cv_pipeline[openvino]"')
    folder = tmp_path / "y"
    folder.mkdir()
    shutil.copy(real_data / "models" / "yolov8n_fp32_reconstructed.onnx", folder / "model.onnx")
    names = [str(i) for i in range(80)]
    rows = [
        {
            "file": "model.onnx",
            "backend": "openvino",
            "precision": p,
            "options": {"precision": p},
            "gate": YES,
        }
        for p in ("fp32", "bf16")
    ]
    (folder / "manifest.json").write_text(
        json.dumps({"name": "y", "file": "model.onnx", "names": names, "artefacts": rows})
    )
    c = choose(folder, threads=2, cache=tmp_path / "c")
    ms = {r["artefact"]: r["ms"] for r in c.table}
    print(c)
    assert ms[c.artefact.label] * (1 - MARGIN) <= ms["model.onnx on onnxruntime"]
    model = open_chosen(folder, threads=2, cache=tmp_path / "c")
    assert model.backend.choice.stored and len(model.predict([np.full((200, 300, 3), 114, np.uint8)])) == 1
    model.close()
    assert Path(model.path) == folder / c.artefact.file


def test_a_model_with_one_file_of_somebody_elses_kind_opens_by_default(tmp_path, monkeypatch):
    "`auto` where there is nothing to choose: whoever is registered for the ending opens it, unmeasured."

    class Theirs:
        name, provider, max_batch = "theirs", "their runtime", 4

        def __init__(self, path, manifest, providers=None, threads=0):
            self.path = path

        def close(self):
            pass

    monkeypatch.setattr(loading, "_BY_ENDING", dict(loading._BY_ENDING))
    register_backend(".theirs", Theirs)
    (tmp_path / "net.theirs").write_bytes(b"weights")
    (tmp_path / "manifest.json").write_text(
        json.dumps({"name": "m", "file": "net.theirs", "names": ["part"]})
    )
    model = load_model(tmp_path, backend="auto")
    assert model.backend.provider == "their runtime" and model.reopen().path == tmp_path / "net.theirs"


def test_a_link_that_is_switched_while_the_model_runs_changes_nothing(tmp_path):
    "Opened once: after a runtime error the file that was opened comes back, not what the name means by now."
    for version in ("v1", "v2"):
        shutil.copytree(bundled_models()["factory_line"], tmp_path / version)
    save_manifest(
        replace(load_manifest(tmp_path / "v2")[0], version="2.0", names=tuple("abcde")), tmp_path / "v2"
    )
    (tmp_path / "current").symlink_to(tmp_path / "v1")
    model = load_model(tmp_path / "current", threads=1)
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to(tmp_path / "v2")
    assert model.path == tmp_path / "v1" / "model.onnx"
    assert model.reopen().name == model.backend.name
    assert load_model(tmp_path / "current", threads=1).manifest.version == "2.0"


@pytest.mark.parametrize("backend", [None, "onnxruntime"])
def test_a_file_whose_manifest_knows_no_checksum_is_not_opened_again_either(tmp_path, backend):
    "What was opened is what counts: the file under this name is another one by now."
    manifest, file = load_manifest(bundled_models()["factory_line"])
    shutil.copy(file, tmp_path / "bare.onnx")
    told = json.loads((file.parent / "manifest.json").read_text())
    spec = {key: told[key] for key in ("names", "preprocess", "postprocess") if key in told}
    (tmp_path / "bare.json").write_text(json.dumps(spec))
    model = load_model(tmp_path / "bare.onnx", threads=1, backend=backend)
    assert model.reopen().name == model.backend.name
    (tmp_path / "new.onnx").write_bytes(file.read_bytes() + b"\0")
    (tmp_path / "new.onnx").replace(tmp_path / "bare.onnx")
    with pytest.raises(ModelSpecMismatch, match="has changed since it was opened"):
        model.reopen()


def test_a_file_that_was_changed_is_not_opened_again(tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(bundled_models()["factory_line"], folder)
    model = load_model(folder, threads=1)
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b"\0")
    with pytest.raises(ModelSpecMismatch, match="does not match its manifest"):
        model.reopen()
    (folder / "model.onnx").unlink()
    with pytest.raises(ModelSpecMismatch, match="not found"):
        model.reopen()


def test_files_of_a_family_are_compared_again_when_they_take_over(family, tmp_path):
    model = open_chosen(family, cache=tmp_path / "c", timer=Clockwork(half=5.0))
    assert model.backend.provider.endswith("[half.onnx on onnxruntime]")
    (family / "half.onnx").write_bytes(b"something else")
    again = model.reopen()
    assert again.provider.endswith("[model.onnx on onnxruntime]") or again.provider.endswith(
        "[eight.onnx on onnxruntime]"
    )
    assert "is not the file that passed the gate" in " ".join(again.history)
