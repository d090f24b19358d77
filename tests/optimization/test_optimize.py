"""From a model to a folder of files that passed: gate, artefacts, refusals that leave nothing, two at once,
repair of sensitive layers."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from cv_pipeline.core.stamp import instruction_set
from cv_pipeline.core.types import BackendError, ConfigError, DataError, ModelSpecMismatch
from cv_pipeline.evaluation.intervals import Interval, Verdict
from cv_pipeline.evaluation.records import box_table, predict_set
from cv_pipeline.evaluation.summary import line_pictures
from cv_pipeline.inference.loading import load_backend, load_model
from cv_pipeline.inference.manifest import (
    Artefact,
    artefact_sha256,
    find_artefact,
    load_manifest,
    save_manifest,
)
from cv_pipeline.optimization import optimize as room
from cv_pipeline.optimization.graphs import open_graph, save_graph
from cv_pipeline.optimization.optimize import (
    DEFAULT_STEPS,
    STEPS,
    OptimizeSettings,
    Step,
    _decide,
    accuracy_gate,
    export_pt,
    optimize,
    verify,
)
from cv_pipeline.optimization.parity import ParityError
from cv_pipeline.optimization.prune import PruneSettings
from cv_pipeline.optimization.quantize import CalibrationWarning, quantize_cpu
from tests.helpers.choosing import choose
from tests.helpers.services import require

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::cv_pipeline.optimization.quantize.CalibrationWarning"),
]
STEPS_HERE = (
    "fp16",
    "int8",
    "int8-7bit",
    "int8-openvino",
    "int8-tensorrt",
    "openvino",
    "openvino-bf16",
    "fp32-bytes",
)

FLOAT = OptimizeSettings(("fp32",), draws=10, threads=1)

require("openvino")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    "Labelled pictures to judge on, their columns, and paths of others to calibrate with."
    folder = tmp_path_factory.mktemp("line")
    items, columns = line_pictures(folder / "judge", 30)
    return items, columns, [i.path for i in line_pictures(folder / "calibrate", 9, seed=90)[0]]


@pytest.fixture(scope="module")
def made(pictures, tmp_path_factory):
    items, columns, calibration = pictures
    out = tmp_path_factory.mktemp("models") / "fast"
    said = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = optimize(
            "factory_line",
            out,
            items,
            calibration,
            OptimizeSettings(STEPS_HERE, max_loss=0.02, draws=200, threads=1),
            columns=columns,
            progress=said.append,
        )
    return out, report, said


def files(folder):
    return sorted(p.name for p in folder.iterdir())


def test_the_folder_is_a_model_with_its_artefacts(made, pictures):
    out, report, said = made
    manifest, file = load_manifest(out)
    original = load_manifest("factory_line")[0]
    assert (
        file.name == "model.onnx"
        and manifest.names == original.names
        and manifest.postprocess == original.postprocess
    )
    assert [s for s in said if s in STEPS] == [s for s in STEPS if s in {*STEPS_HERE, "fp32"}]
    assert all(a.gated and a.sha256 and find_artefact(out, a).is_file() for a in manifest.artefacts)
    assert {r.step for r in report.results if r.accepted} >= {
        "fp32",
        "fp16",
        "int8-7bit",
        "int8-tensorrt",
        "openvino",
        "fp32-bytes",
    }
    named = {a.file for a in manifest.artefacts} | {
        a.file.replace(".xml", ".bin") for a in manifest.artefacts if a.file.endswith(".xml")
    }
    assert set(files(out)) == named | {"manifest.json"}
    eight = next(
        a for a in manifest.artefacts if a.file == "model_int8_7bit.onnx" and a.backend == "onnxruntime"
    )
    assert (
        {a.gate["instruction set"] for a in manifest.artefacts}
        == {instruction_set()}
        == {report.header["instruction set"]}
    )
    assert (
        eight.made["calibration"]["pictures"] == 9
        and eight.gate["pictures"] == 30
        and len(eight.gate["interval"]) == 2
        and eight.gate["parity"]["matched"] > 0.9
    )
    assert json.loads(json.dumps(report.to_dict()))["steps"] and "| int8 |" in report.markdown()


def test_every_artefact_opens_and_sees_the_same(made, pictures):
    out, report, _ = made
    manifest, _ = load_manifest(out)
    reference, image = (
        load_model("factory_line", threads=1),
        __import__("cv2").imread(str(pictures[0][0].path)),
    )
    wanted = reference.predict([image])[0]
    for a in manifest.artefacts:
        alone = manifest.for_artefact(a)
        backend = load_backend(find_artefact(out, a), alone, threads=1, runtime=a.backend, **a.options)
        model = replace(
            reference,
            manifest=alone,
            backend=backend,
            preprocess=type(reference.preprocess)(alone.preprocess),
        )
        found = model.predict([image, image])
        assert len(found) == 2 and abs(len(found[0]) - len(wanted)) <= 2, a.label


FAR = "x86-64 of another house"


@pytest.fixture
def copied(made, tmp_path):
    "The folder as it comes from a machine with another instruction set."
    shutil.copytree(made[0], tmp_path / "m")
    manifest, _ = load_manifest(tmp_path / "m")
    save_manifest(
        replace(
            manifest,
            artefacts=tuple(replace(a, gate={**a.gate, "instruction set": FAR}) for a in manifest.artefacts),
        ),
        tmp_path / "m",
    )
    return tmp_path / "m"


def by_label(folder):
    return {a.label: a for a in load_manifest(folder)[0].artefacts}


def pretend(openers, batch):
    return {label: 5.0 if "int8" in label and "tensorrt" not in label else 20.0 for label in openers}


def test_a_folder_from_another_processor_is_judged_again_and_then_chosen_from(copied, pictures, tmp_path):
    before, kind = by_label(copied), instruction_set()
    eight = "model_int8_7bit.onnx on onnxruntime"
    first = choose(copied, cache=tmp_path / "c", timer=pretend)
    assert (
        {a.precision for a in first.order} <= {"fp32", "fp16"}
        and "left out: " in first.reason
        and "model_int8_7bit.onnx" in first.reason
    )
    report = verify(copied, pictures[0], 0.02, draws=200, columns=pictures[1], threads=1)
    after = by_label(copied)
    assert report.header["instruction set"] == kind and set(after) == set(before)
    assert [(a.file, a.sha256) for a in after.values()] == [(a.file, a.sha256) for a in before.values()]
    assert (
        after[eight].gate["instruction set"] == FAR and after[eight].gate["AP"] == before[eight].gate["AP"]
    ), "the first verdict stays"
    here = after[eight].verdict(kind)
    assert (
        here["accepted"] is True
        and here["pictures"] == 30
        and here["instruction set"] == kind
        and here["parity"]["matched"] > 0.75
    )
    assert report[eight].row()["result"] == "accepted" and "model.onnx on onnxruntime" not in {
        r.step for r in report.results
    }
    again = choose(copied, cache=tmp_path / "c", timer=pretend)
    assert again.artefact.precision == "int8" and "left out" not in again.reason
    assert files(copied.parent) == ["c", "m"] and not any(".part" in f or ".lock" in f for f in files(copied))


def test_a_file_that_fails_here_is_refused_here_and_keeps_its_verdict_of_there(
    copied, pictures, monkeypatch, tmp_path
):
    "Its products saturate, say: everything is half as large."
    real = room._open_step

    def dim(family, path, step, threads):
        model = real(family, path, step, threads)
        if step.file == "model_int8_7bit.onnx":
            answer = model.backend.infer
            monkeypatch.setattr(model.backend, "infer", lambda batch: answer(batch) * np.float32(0.5))
        return model

    monkeypatch.setattr(room, "_open_step", dim)
    keep_only(copied, "model_int8_7bit.onnx", "model_fp16.onnx")
    report = verify(copied, pictures[0], 0.02, draws=50, columns=pictures[1], threads=1)
    eight = by_label(copied)["model_int8_7bit.onnx on onnxruntime"]
    assert (
        eight.gated
        and eight.verdict(instruction_set())["accepted"] is False
        and "matched" in eight.verdict(instruction_set())["reason"]
    )
    assert report[eight.label].row()["result"] == "refused" and (copied / eight.file).is_file()
    c = choose(copied, cache=tmp_path / "c", timer=pretend)
    assert eight.label not in [a.label for a in c.order] and "matched" in next(
        r["state"] for r in c.table if r["artefact"] == eight.label
    )


def keep_only(folder, *names):
    "Take the other artefacts out of the manifest."
    manifest, _ = load_manifest(folder)
    save_manifest(
        replace(
            manifest, artefacts=tuple(a for a in manifest.artefacts if a.file in names and not a.options)
        ),
        folder,
    )


def test_what_cannot_be_opened_here_gets_no_verdict_and_an_engine_listed_meanwhile_stays(copied, pictures):
    keep_only(copied, "model_int8_7bit.onnx", "model_fp16.onnx")
    (copied / "model_int8_7bit.onnx").unlink()

    def meanwhile(text):
        if "fp16" not in text:
            return
        manifest, _ = load_manifest(copied)
        (copied / "gpu.engine").write_bytes(b"built by somebody")
        save_manifest(
            replace(
                manifest,
                artefacts=(
                    *manifest.artefacts,
                    Artefact("gpu.engine", "tensorrt", "fp16", gate={"accepted": True}),
                ),
            ),
            copied,
        )

    report = verify(copied, pictures[0], 0.02, draws=50, columns=pictures[1], threads=1, progress=meanwhile)
    rows, gone = by_label(copied), "model_int8_7bit.onnx on onnxruntime"
    assert (
        report[gone].skipped
        and "not found" in report[gone].problem
        and rows[gone].verdict(instruction_set()) == {}
    )
    assert (
        rows["gpu.engine on tensorrt"].gate == {"accepted": True}
        and rows["model_fp16.onnx on onnxruntime"].verdict(instruction_set())["pictures"] == 30
    )


def test_engines_are_nothing_for_this_judge(copied, pictures):
    (copied / "gpu.engine").write_bytes(b"an engine")
    manifest, _ = load_manifest(copied)
    engine = Artefact(
        "gpu.engine", "tensorrt", "int8", artefact_sha256(copied / "gpu.engine"), gate={"accepted": True}
    )
    save_manifest(replace(manifest, artefacts=(engine,)), copied)
    report = verify(copied, pictures[0], draws=10, columns=pictures[1], threads=1)
    assert report["gpu.engine on tensorrt"].skipped and by_label(copied)["gpu.engine on tensorrt"].gate == {
        "accepted": True
    }


def test_a_changed_file_is_not_laundered_by_judging_it_again(copied, pictures):
    before = (copied / "manifest.json").read_bytes()
    with open(copied / "model_fp16.onnx", "ab") as f:
        f.write(b"\x00")
    with pytest.raises(ModelSpecMismatch, match="is not the file that passed the gate"):
        verify(copied, pictures[0], draws=10, threads=1)
    assert (copied / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    "change, error, said",
    [
        ({"folder": "nowhere"}, ConfigError, "manifest.json not found in this folder"),
        ({"frozen": []}, DataError, "no labelled images to judge on"),
        ({"max_loss": 2}, ConfigError, "share of AP"),
        ({"frozen": 3}, DataError, "3 images with"),
    ],
)
def test_what_cannot_be_judged_again(copied, pictures, change, error, said):
    before = (copied / "manifest.json").read_bytes()
    if isinstance(count := change.get("frozen"), int):
        change = {"frozen": pictures[0][:count]}
    with pytest.raises(error) as e:
        verify(**{"folder": copied, "frozen": pictures[0], "draws": 10, "threads": 1, **change})
    assert (
        said in str(e.value)
        and (copied / "manifest.json").read_bytes() == before
        and not any(".lock" in f for f in files(copied.parent))
    )


def test_a_model_with_its_own_file_alone_has_nothing_to_judge(copied, pictures):
    manifest, _ = load_manifest(copied)
    save_manifest(replace(manifest, artefacts=()), copied)
    with pytest.raises(ConfigError, match="no optimised files"):
        verify(copied, pictures[0])


def test_nothing_is_left_beside_the_folder(made):
    assert files(made[0].parent) == ["fast"]


def broken_step(keep=()):
    return Step(
        "model_int8.onnx",
        "onnxruntime",
        "int8",
        lambda w, p: save_graph(quantize_cpu(w.graph, w.ranges, keep=keep), p),
    )


def test_a_broken_file_is_never_written(pictures, tmp_path, monkeypatch):
    "Everything quantised: parity refuses, the folder does not hold it, the report says why."
    monkeypatch.setitem(room.STEPS, "int8", broken_step())
    report = optimize(
        "factory_line",
        tmp_path / "m",
        pictures[0],
        pictures[2],
        OptimizeSettings(("int8",), draws=20, spare=(), threads=1),
    )
    assert not report["int8"].accepted and "scores are all the same" in report["int8"].problem
    assert files(tmp_path / "m") == ["manifest.json", "model.onnx"] and [
        a.file for a in load_manifest(tmp_path / "m")[0].artefacts
    ] == ["model.onnx"]


def test_a_failed_gate_writes_nothing_and_says_where(pictures, tmp_path):
    report = optimize(
        "factory_line",
        tmp_path / "m",
        pictures[0],
        None,
        OptimizeSettings(("pruned",), draws=50, prune=PruneSettings(0.3), threads=1),
    )
    failed = report["pruned"]
    assert not failed.accepted and failed.gate.verdict == "FAIL" and "proven" in failed.problem
    assert failed.gate.worst[0][2] < failed.gate.worst[0][1] and {"gear", "large objects"} & {
        w[0] for w in failed.gate.worst
    }
    assert (
        files(tmp_path / "m") == ["manifest.json", "model.onnx"]
        and "pruned loses most at" in report.markdown()
    )


def test_without_a_good_float_file_there_is_no_folder(pictures, tmp_path, monkeypatch):
    def spoilt(w, p):
        graph = open_graph(w.model.path)
        for t in graph.graph.initializer:
            if len(t.dims) == 4:
                t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t) * 0.5, t.name))
        return save_graph(graph, p)

    monkeypatch.setitem(room.STEPS, "fp32", replace(STEPS["fp32"], make=spoilt))
    with pytest.raises(ParityError, match="the simplified float file already differs"):
        optimize(
            "factory_line",
            tmp_path / "m",
            pictures[0],
            None,
            OptimizeSettings(("fp32",), draws=20, threads=1),
        )
    assert files(tmp_path) == []


def test_too_few_pictures_judge_nothing(pictures, tmp_path):
    "Same arithmetic passes by parity; whatever rounds is refused."
    report = optimize(
        "factory_line",
        tmp_path / "m",
        pictures[0][:6],
        pictures[2],
        OptimizeSettings(("fp16", "openvino"), draws=20, threads=1),
    )
    assert (
        report["fp32"].accepted
        and report["openvino"].accepted
        and not report["fp16"].accepted
        and "too few" in report["fp16"].problem
    )
    assert not (tmp_path / "m" / "model_fp16.onnx").exists()


def test_openvinos_own_eight_bits_are_made_and_judged(pictures, tmp_path):
    require("nncf")
    settings = OptimizeSettings(("openvino-int8",), draws=50, max_loss=0.5, spare=(), threads=1)
    report = optimize("factory_line", tmp_path / "m", pictures[0], pictures[2], settings)
    [artefact] = [
        a for a in load_manifest(tmp_path / "m")[0].artefacts if a.file == "model_openvino_int8.xml"
    ]
    assert report["openvino-int8"].accepted and report["openvino-int8"].gate.ap > 0.5
    assert (artefact.backend, artefact.precision) == ("openvino", "int8") and artefact.gated


def test_sensitive_layers_are_left_in_float(pictures, tmp_path, monkeypatch):
    "Eight bits fail as they are; with four layers spared they pass, and the manifest names them."
    real, asked = room.quantize_cpu, []

    def fussy(graph, ranges, limits, keep):
        asked.append(len(keep))
        return real(graph, ranges, limits, keep if len(asked) > 1 else ())

    monkeypatch.setattr(room, "quantize_cpu", fussy)
    monkeypatch.setattr(
        room,
        "sensitivity",
        lambda graph, *a, **k: [(n.name, 1.0) for n in graph.graph.node if n.op_type == "Conv"][:6],
    )
    report = optimize(
        "factory_line",
        tmp_path / "m",
        pictures[0],
        pictures[2],
        OptimizeSettings(("int8",), draws=50, max_loss=0.05, threads=1),
    )
    assert report["int8"].accepted and len(report["int8"].spared) == 4 and asked[1] == asked[0] + 4
    assert report["int8"].artefact.made["in float besides the head"] == list(report["int8"].spared)


def test_calibrating_with_the_pictures_of_the_gate_is_noted(pictures, tmp_path):
    report = optimize(
        "factory_line",
        tmp_path / "m",
        pictures[0],
        pictures[0],
        OptimizeSettings(("int8",), draws=20, spare=(), threads=1),
    )
    assert any("were also used for calibration" in n for n in report.notes) and "Note:" in report.markdown()


@pytest.mark.parametrize(
    "change, error, said",
    [
        ({"settings": {"steps": ("int4",)}}, ConfigError, "unknown step 'int4'"),
        ({"settings": {"max_loss": 1.5}}, ConfigError, "share of AP"),
        ({"frozen": []}, DataError, "no labelled images"),
        ({"calibration": "nowhere"}, DataError, "calibration folder not found"),
        ({"settings": {"keep": ("Conv_999",)}}, ConfigError, "unknown node 'Conv_999'"),
        ({"model": "nowhere.onnx"}, BackendError, "nowhere.onnx"),
        ({"model": "nowhere.pt"}, BackendError, "checkpoint not found"),
    ],
)
def test_wishes_that_cannot_be_granted(pictures, tmp_path, change, error, said):
    settings = {"steps": ("fp32",), "draws": 10, "threads": 1, **change.pop("settings", {})}
    wish = {"model": "factory_line", "out": tmp_path / "m", "frozen": pictures[0], **change}
    with pytest.raises(error) as e:
        optimize(**wish, settings=OptimizeSettings(**settings))
    assert said in str(e.value) and files(tmp_path) == []


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"steps": ("int8", "int4")}, "steps: unknown step 'int4'"),
        ({"max_loss": -0.1}, "max_loss: "),
        ({"max_loss": 1.0}, "max_loss: "),
        ({"draws": 0}, "draws: 0"),
        ({"pictures": 0}, "pictures: 0"),
        ({"spare": (4, 0)}, "spare: "),
        ({"threads": -1}, "threads: -1"),
    ],
)
def test_settings_that_are_wrong_name_the_field(wrong, said):
    with pytest.raises(ConfigError, match=said):
        OptimizeSettings(**wrong)


def test_models_that_cannot_be_started_from(pictures, tmp_path):
    manifest, file = load_manifest("factory_line")
    quantised = tmp_path / "q"
    quantised.mkdir()
    graph = open_graph(file)
    graph.graph.node.extend(
        [
            helper.make_node("QuantizeLinear", ["images", "s"], ["iq"]),
            helper.make_node("DequantizeLinear", ["iq", "s"], ["unused"]),
        ]
    )
    graph.graph.initializer.append(numpy_helper.from_array(np.float32(1), "s"))
    save_graph(graph, quantised / "model.onnx")
    save_manifest(replace(manifest, sha256=""), quantised)
    with pytest.raises(BackendError, match="already quantised"):
        optimize(quantised, tmp_path / "m", pictures[0], settings=FLOAT)
    graph = open_graph(file)
    graph.graph.initializer.extend(
        [
            numpy_helper.from_array(np.float32(np.zeros((1, 2, 4))), "nb"),
            numpy_helper.from_array(np.float32(np.zeros((1, 1, 2))), "ns"),
        ]
    )
    graph.graph.node.append(helper.make_node("NonMaxSuppression", ["nb", "ns"], ["rows"], name="nms"))
    save_graph(graph, quantised / "model.onnx")
    save_manifest(replace(manifest, sha256=""), quantised)
    with pytest.raises(BackendError, match="the graph contains NMS"):
        optimize(quantised, tmp_path / "m", pictures[0], settings=FLOAT)
    assert files(tmp_path) == ["q"]


def test_a_folder_that_is_there(pictures, tmp_path):
    run = lambda: optimize(
        "factory_line",
        tmp_path / "m",
        pictures[0][:3],
        settings=OptimizeSettings(("openvino",), draws=10, threads=1),
    )
    run()
    (tmp_path / "m" / "gpu.engine").write_bytes(b"somebody's own")
    with pytest.raises(ConfigError, match="this folder already contains a model"):
        run()
    optimize("factory_line", tmp_path / "m", pictures[0][:3], settings=replace(FLOAT, overwrite=True))
    assert files(tmp_path / "m") == ["gpu.engine", "manifest.json", "model.onnx"], (
        "files that the old manifest named went, others stayed"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; tested below by another way")
def test_a_folder_that_cannot_be_written(pictures, tmp_path):
    (tmp_path / "ro").mkdir(mode=0o555)
    with pytest.raises(ConfigError, match="cannot write the model folder"):
        optimize("factory_line", tmp_path / "ro" / "m", pictures[0], settings=FLOAT)


def test_a_folder_where_there_can_be_none(pictures, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot write the model folder"):
        optimize("factory_line", tmp_path / "file" / "m", pictures[0], settings=FLOAT)

    def refused(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(room, "_writable", refused)
    (tmp_path / "m").mkdir()
    with pytest.raises(ConfigError, match="cannot write the model folder: Permission denied"):
        optimize("factory_line", tmp_path / "m", pictures[0], settings=FLOAT)
    assert files(tmp_path / "m") == []


def test_two_processes_do_not_write_one_folder(pictures, tmp_path):
    "Another process holds the folder; this one says so at once and touches nothing."
    code = (
        "import sys, pathlib\nfrom cv_pipeline.optimization.optimize import _staging\nwith "
        "_staging(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    "
        "sys.stdin.readline()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "m")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline().strip() == "held"
        with pytest.raises(BackendError, match="is already building it"):
            optimize("factory_line", tmp_path / "m", pictures[0], settings=FLOAT)
        other.communicate("\n", timeout=30)
    finally:
        other.kill()
    assert files(tmp_path) == []
    optimize("factory_line", tmp_path / "m", pictures[0][:3], settings=FLOAT)


# the gate


@given(
    st.floats(-0.2, 0.2),
    st.floats(0, 0.1),
    st.floats(0, 0.1),
    st.floats(0.001, 0.1),
    st.integers(0, 200),
    st.integers(0, 400),
    st.booleans(),
)
def test_decisions_keep_to_their_rules(value, down, up, allowed, count, objects, strict):
    verdict, accepted, reason = _decide(
        Interval(value, value - down, value + up), allowed, count, objects, strict
    )
    few = count < 30 or objects < 50
    assert (verdict == Verdict.FAIL) == (not few and value + up < -allowed) and (verdict == Verdict.PASS) == (
        not few and value - down >= -allowed
    )
    assert accepted == (
        not few
        and (
            verdict == Verdict.PASS or (verdict == Verdict.INSUFFICIENT and not strict and value >= -allowed)
        )
    )
    assert f"{-allowed:g}"[1:] in reason


@pytest.mark.parametrize("clusters, proven", [(2, False), (7, False), (8, True), (0, True)])
@pytest.mark.parametrize("change", [(0.0, 0.0, 0.0), (-0.05, -0.06, -0.04)])
def test_files_judged_on_few_sequences_are_insufficient(clusters, proven, change):
    "Neither a proven loss nor a proven harmlessness; 0 clusters: not known."
    verdict, accepted, reason = _decide(Interval(*change, clusters=clusters), 0.01, 100, 400, False)
    assert (verdict == Verdict.INSUFFICIENT) == (not proven)
    assert accepted == (change[0] == 0)
    assert ("at least 8 are needed" in reason) == (not proven)


def test_the_gate_is_paired(pictures):
    """The same predictions in another order of confidence: no change, and an interval of nothing; boxes
    thrown away: a proven loss."""
    items, columns, _ = pictures
    old = predict_set(load_model("factory_line", threads=1), items, columns=columns)
    same = accuracy_gate(old, old, draws=100)
    assert (
        same.accepted
        and same.verdict == "PASS"
        and (same.change.low, same.change.value, same.change.high) == (0, 0, 0)
    )
    p = old.predictions
    fewer = replace(old, predictions=p[np.random.default_rng(0).random(len(p)) < 0.5])
    lost = accuracy_gate(fewer, old, draws=100)
    assert (
        not lost.accepted
        and lost.verdict == "FAIL"
        and lost.change.high < -0.005
        and lost.ap < lost.reference
    )
    assert lost.worst[0][1] - lost.worst[0][2] == max(a - b for _, a, b, _ in lost.worst)
    none = accuracy_gate(replace(old, predictions=box_table([], [], [])), old, draws=20)
    assert none.ap == 0 and not none.accepted
    one = old.select(np.array([0]))
    assert not accuracy_gate(one, one, draws=10).accepted
    for wrong in (-0.1, 1, 5):
        with pytest.raises(ConfigError, match="share of AP"):
            accuracy_gate(old, old, wrong)
    with pytest.raises(DataError):
        accuracy_gate(old.select(np.arange(5)), old)


def test_steps_are_consistent():
    assert set(DEFAULT_STEPS) <= set(STEPS) and len(
        {(s.file, s.runtime, tuple(s.options)) for s in STEPS.values()}
    ) == len(STEPS)
    for name, step in STEPS.items():
        assert ("bytes" in name) == (step.layout == "nhwc-uint8") and (step.precision == "int8") == (
            "int8" in name
        )


def test_few_calibration_pictures_warn(pictures, tmp_path):
    with pytest.warns(CalibrationWarning, match="only 9 calibration images"):
        report = optimize("factory_line", tmp_path / "m", pictures[0], pictures[2], FLOAT)
    assert any("only 9 calibration images" in n for n in report.notes)


def test_no_checkpoint(tmp_path):
    require("ultralytics")
    (tmp_path / "a.pt").write_bytes(b"no checkpoint")
    with pytest.raises(BackendError, match="not a readable checkpoint"):
        export_pt(tmp_path / "a.pt", tmp_path / "out")


def test_from_a_checkpoint(pictures, tmp_path):
    """A real checkpoint of an untrained network: exported, simplified, judged by parity; nothing is written
    beside the checkpoint."""
    require("ultralytics")
    from ultralytics import YOLO

    (tmp_path / "net").mkdir()
    net = YOLO("yolov8n.yaml")
    net.model.names = {i: n for i, n in enumerate(("gear", "bolt", "nut", "bracket", "defect"))} | {
        i: f"x{i}" for i in range(5, 80)
    }
    net.save(tmp_path / "net" / "net.pt")
    report = optimize(
        tmp_path / "net" / "net.pt", tmp_path / "m", pictures[0][:4], settings=replace(FLOAT, imgsz=64)
    )
    manifest, _ = load_manifest(tmp_path / "m")
    assert (
        report["fp32"].accepted
        and manifest.names[:2] == ("gear", "bolt")
        and manifest.preprocess.imgsz == (64, 64)
        and files(tmp_path / "net") == ["net.pt"]
    )
