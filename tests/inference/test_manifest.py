"""A model's manifest: round trips, every way to be wrong, and the comparison with the graph."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.files import file_sha256
from cv_pipeline.core.types import BackendError, ConfigError, ModelSpecMismatch
from cv_pipeline.inference.manifest import (
    Artefact,
    ModelManifest,
    PostprocessSpec,
    PreprocessSpec,
    artefact_sha256,
    check_graph,
    find_artefact,
    find_model,
    from_ultralytics_metadata,
    load_manifest,
    save_manifest,
)
from tests.helpers.services import require

unit = st.floats(0, 1)
pre = st.builds(
    PreprocessSpec,
    imgsz=st.tuples(st.integers(1, 40), st.integers(1, 40)).map(lambda s: (s[0] * 32, s[1] * 32)),
    letterbox=st.sampled_from(["center", "top-left", "stretch"]),
    color=st.sampled_from(["RGB", "BGR"]),
    scale=st.sampled_from([1 / 255, 1.0, 0.5]),
    mean=st.tuples(unit, unit, unit),
    std=st.tuples(*[st.floats(0.01, 2)] * 3),
    pad_value=st.integers(0, 255),
    clahe=st.floats(0, 40),
)
post = st.builds(
    PostprocessSpec,
    head=st.sampled_from(["yolov8", "yolox", "end2end"]),
    conf=unit,
    iou=unit,
    max_det=st.integers(1, 1000),
    agnostic_nms=st.booleans(),
    classes=st.none() | st.lists(st.integers(0, 2)).map(tuple),
    class_conf=st.dictionaries(st.sampled_from(["ä", "b"]), unit),
    accept_conf=unit,
    policy=st.sampled_from(["accept", "review", "drop"]),
    class_policy=st.dictionaries(st.just("c"), st.just("drop")),
)
manifests = st.builds(
    ModelManifest,
    name=st.text(max_size=9),
    file=st.just("m.onnx"),
    names=st.just(("ä", "b", "c")),
    preprocess=pre,
    postprocess=post,
    metrics=st.dictionaries(st.text(max_size=4), st.floats(0, 1)),
    version=st.text("0123456789.", max_size=6),
)


@pytest.mark.slow
@settings(deadline=None)
@given(manifests)
def test_json_and_yaml_round_trip(manifest):
    assert ModelManifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
    with TemporaryDirectory() as folder:
        (Path(folder) / "m.onnx").write_bytes(b"x")
        for suffix in ("json", "yaml"):
            written = save_manifest(manifest, Path(folder) / f"spec.{suffix}")
            assert replace(load_manifest(written)[0], sha256="") == manifest


def test_small_numbers_survive(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"x")
    for suffix in ("json", "yaml"):
        spec = tmp_path / f"m.{suffix}"
        save_manifest(ModelManifest("m", "m.onnx", ("a",), postprocess=PostprocessSpec(conf=1e-5)), spec)
        assert load_manifest(spec)[0].postprocess.conf == 1e-5
    spec.write_text(
        "names: [a]\npostprocess: {conf: 1e-3}\npreprocess: {scale: 1/255}\n"
    )  # YAML reads 1e-3 as text
    (tmp_path / "m.json").unlink()
    loaded, _ = load_manifest(tmp_path / "m.onnx")
    assert (loaded.postprocess.conf, loaded.preprocess) == (1e-3, PreprocessSpec())


def model(folder, **more):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.onnx").write_bytes(b"weights")
    manifest = ModelManifest("m", "m.onnx", ("a", "b"), **more)
    save_manifest(manifest, folder)
    return manifest


def test_folder_round_trip_with_checksum(tmp_path):
    manifest = model(tmp_path / "m", metrics={"AP50": 0.9})
    loaded, file = load_manifest(tmp_path / "m")
    assert file == tmp_path / "m" / "m.onnx" and loaded.sha256 == file_sha256(file)
    assert ModelManifest.from_dict({**loaded.to_dict(), "sha256": ""}) == manifest
    assert [p.name for p in (tmp_path / "m").iterdir() if p.suffix == ".part"] == []
    file.write_bytes(b"weightz")
    with pytest.raises(ModelSpecMismatch, match="SHA-256"):
        load_manifest(tmp_path / "m")


def test_all_problems_are_listed_at_once(tmp_path):
    (tmp_path / "manifest.json").write_text(
        json.dumps(
            {
                "name": 3,
                "names": [],
                "colour": 1,
                "file": "/etc/passwd",
                "preprocess": {"imgsz": [640, 641], "color": "GRAY", "scale": "fast", "std": [1, 1]},
                "postprocess": {
                    "conf": 2,
                    "iou": "x",
                    "max_det": 0,
                    "policy": "ask",
                    "classes": [-1],
                    "agnostic_nms": 1,
                },
            }
        )
    )
    with pytest.raises(ConfigError) as e:
        load_manifest(tmp_path)
    text = str(e.value)
    wanted = [
        "name:",
        "names:",
        "colour: unknown",
        "file:",
        "preprocess.color",
        "preprocess.scale",
        "preprocess.std",
        *(f"postprocess.{key}" for key in ("conf", "iou", "max_det", "policy", "classes", "agnostic_nms")),
        "manifest.json",
    ]
    assert [w for w in wanted if w not in text] == []
    assert len(e.value.problems) == 13


@pytest.mark.parametrize(
    "key, value",
    [
        ("imgsz", True),
        ("imgsz", "640"),
        ("imgsz", [640.5, 640]),
        ("imgsz", -32),
        ("stride", 0),
        ("pad_value", 256),
        ("mean", None),
        ("std", [0, 1, 1]),
        ("scale", 0),
        ("scale", float("inf")),
        ("scale", True),
        ("letterbox", "middle"),
        ("clahe", -1),
        ("clahe", float("nan")),
    ],
)
def test_preprocess_refuses(key, value):
    with pytest.raises(ConfigError) as e:
        PreprocessSpec(**{key: value})
    assert key in str(e.value)


@pytest.mark.parametrize(
    "key, value",
    [
        ("head", "yolo9000"),
        ("conf", float("nan")),
        ("conf", "0.5"),
        ("iou", -0.1),
        ("max_det", 1.5),
        ("classes", "person"),
        ("class_conf", [0.5]),
        ("class_conf", {"a": 7}),
        ("class_policy", {"a": "maybe"}),
        ("accept_conf", 1.01),
        ("policy", None),
    ],
)
def test_postprocess_refuses(key, value):
    with pytest.raises(ConfigError) as e:
        PostprocessSpec(**{key: value})
    assert key in str(e.value)


def test_setting_for_a_class_that_is_not_there():
    with pytest.raises(ConfigError, match="did you mean 'crack'"):
        ModelManifest(
            "m", "m.onnx", ("crack",), postprocess=PostprocessSpec(class_accept_conf={"cracks": 0.4})
        )


def test_broken_files(tmp_path):
    for text in (b"\xff\xfe\x00", b"{", b"- 1", b"", b"42"):
        (tmp_path / "manifest.json").write_bytes(text)
        with pytest.raises(ConfigError):
            load_manifest(tmp_path)


META = {
    "task": "detect",
    "imgsz": "[320, 416]",
    "stride": "32",
    "names": "{0: 'gear', 1: 'bolt'}",
    "args": "{'nms': False}",
}


def test_bare_file_sources_are_laid_over_each_other(tmp_path):
    bare = tmp_path / "best.onnx"
    bare.write_bytes(b"x")
    with pytest.raises(ModelSpecMismatch, match="best.yaml"):
        load_manifest(bare)
    from_file, _ = load_manifest(bare, metadata=META)
    assert (from_file.names, from_file.preprocess.imgsz, from_file.postprocess.head) == (
        ("gear", "bolt"),
        (320, 416),
        "yolov8",
    )
    (tmp_path / "best.json").write_text('{"postprocess": {"conf": 0.6, "iou": 0.5}}')
    (tmp_path / "spec.yaml").write_text("postprocess: {conf: 0.3}\npreprocess: {color: BGR}\n")
    both, _ = load_manifest(bare, tmp_path / "spec.yaml", lambda: META)
    assert (both.postprocess.conf, both.postprocess.iou, both.preprocess.color, both.preprocess.imgsz) == (
        0.3,
        0.5,
        "BGR",
        (320, 416),
    )
    with pytest.raises(ConfigError, match="names: missing"):
        load_manifest(bare, tmp_path / "spec.yaml")
    with pytest.raises(ConfigError, match="file not found"):
        load_manifest(bare, tmp_path / "nowhere.yaml")


def test_metadata_is_asked_for_only_when_needed(tmp_path):
    model(tmp_path / "m")
    load_manifest(tmp_path / "m", metadata=lambda: pytest.fail("a folder with a manifest needs no metadata"))


def test_metadata_of_other_tasks_and_heads():
    assert from_ultralytics_metadata({"author": "someone"}, "x.onnx") is None
    assert (
        from_ultralytics_metadata({**META, "args": "{'nms': True}"}, "x.onnx")["postprocess"]["head"]
        == "end2end"
    )
    assert (
        from_ultralytics_metadata({**META, "end2end": "True"}, "x.onnx")["postprocess"]["head"] == "end2end"
    )
    for task in ("segment", "classify", "pose", "obb"):
        known = from_ultralytics_metadata({**META, "task": task, "kpt_shape": "[17, 3]"}, "x.onnx")
        assert ModelManifest.from_dict({**known, "names": known["names"]}).task == task
        if task != "classify":
            with pytest.raises(ModelSpecMismatch, match=f"task '{task}' with the suppression inside"):
                from_ultralytics_metadata({**META, "task": task, "end2end": "True"}, "x.onnx")
    with pytest.raises(ModelSpecMismatch, match="task 'semantic' cannot be read"):
        from_ultralytics_metadata({**META, "task": "semantic"}, "x.onnx")
    for broken in ({"names": "{0: "}, {"args": "3"}, {"stride": "'a'"}):
        with pytest.raises(ModelSpecMismatch, match="invalid embedded metadata"):
            from_ultralytics_metadata({**META, **broken}, "x.onnx")


def test_no_such_model_lists_what_there_is():
    with pytest.raises(BackendError, match="model not found"):
        find_model("nowhere/at/all.onnx")


def manifest(nc=80, **post):
    return ModelManifest(
        "m", "m.onnx", tuple(f"c{i}" for i in range(nc)), postprocess=PostprocessSpec(**post)
    )


@pytest.mark.parametrize(
    "given_in, given_out",
    [
        ((1, 3, 640, 640), (1, 84, 8400)),
        (("b", 3, "h", "w"), ("b", 84, "n")),
        ((-1, 3, None, 640), (None, None, None)),
        ((1, 3, 640, 640), [(1, 84, 8400)]),
    ],
)
def test_graph_agrees(given_in, given_out):
    check_graph(manifest(), given_in, given_out)


@pytest.mark.parametrize(
    "given_in, given_out, said",
    [
        ((1, 3, 320, 320), (1, 84, 2100), "640, 640"),
        ((1, 1, 640, 640), (1, 84, 8400), "(1, 1, 640, 640)"),
        ((1, 640, 640, 3), (1, 84, 8400), "(1, 640, 640, 3)"),
        ((1, 3, 640, 640), (1, 20, 8400), "16 classes"),
        ((1, 3, 640, 640), (1, 116, 8400), "masks or keypoints"),
        ((1, 3, 640, 640), (1, 1000), "classifier"),
        ((1, 3, 640, 640), (1, 300, 6), "end2end"),
        ((1, 3, 640, 640), (1, 25200, 85), "yolox"),
        ((1, 3, 640, 640), [(1, 116, 8400), (1, 32, 160, 160)], "2 outputs"),
        ((1, 3, 640, 640), [], "expects"),
    ],
)
def test_graph_disagrees_and_both_sides_are_named(given_in, given_out, said):
    with pytest.raises(ModelSpecMismatch) as e:
        check_graph(manifest(), given_in, given_out, "m.onnx")
    assert said in str(e.value) and "m.onnx" in str(e.value)


@pytest.mark.real
def test_real_metadata(real_data):
    ort = require("onnxruntime")
    file = real_data / "models" / "yolov8n_fp32_reconstructed.onnx"
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    manifest, _ = load_manifest(file, metadata=lambda: session.get_modelmeta().custom_metadata_map)
    assert len(manifest.names) == 80 and manifest.names[0] == "person"
    check_graph(manifest, session.get_inputs()[0].shape, [o.shape for o in session.get_outputs()])


def artefact(folder, name="m_int8.onnx", **more):
    (folder / name).write_bytes(b"int8")
    return Artefact(name, "onnxruntime", "int8", **more)


def test_artefacts_round_trip_and_are_checked(tmp_path):
    manifest = model(tmp_path)
    good = artefact(
        tmp_path, gate={"accepted": True, "AP loss": 0.001}, options={"threads": 2}, layout="nhwc-uint8"
    )
    for suffix in ("json", "yaml"):
        written = save_manifest(replace(manifest, artefacts=(good,)), tmp_path / f"manifest.{suffix}")
        found = load_manifest(written)[0].artefacts[0]
        assert (
            replace(found, sha256="") == good
            and found.gated
            and find_artefact(tmp_path, found).name == "m_int8.onnx"
        )
    alone = load_manifest(written)[0].for_artefact(found)
    assert (alone.file, alone.preprocess.layout, alone.sha256, alone.artefacts) == (
        "m_int8.onnx",
        "nhwc-uint8",
        found.sha256,
        (),
    )
    (tmp_path / "m_int8.onnx").write_bytes(b"other")
    with pytest.raises(ModelSpecMismatch, match="passed the gate"):
        find_artefact(tmp_path, found)
    (tmp_path / "m_int8.onnx").unlink()
    with pytest.raises(ModelSpecMismatch, match="not found"):
        find_artefact(tmp_path, found)


def test_the_weights_of_an_openvino_pair_count(tmp_path):
    (tmp_path / "m.xml").write_text("<net/>")
    alone = artefact_sha256(tmp_path / "m.xml")
    (tmp_path / "m.bin").write_bytes(b"1")
    first = artefact_sha256(tmp_path / "m.xml")
    (tmp_path / "m.bin").write_bytes(b"2")
    assert len({alone, first, artefact_sha256(tmp_path / "m.xml")}) == 3


@pytest.mark.parametrize(
    "change, said",
    [
        ({"file": "../m.onnx"}, "file: must be a file inside"),
        ({"backend": "torch"}, "backend: must be one of"),
        ({"precision": "int4"}, "precision: must be one of"),
        ({"layout": "nchw"}, "layout: must be one of"),
        ({"gate": {"accepted": 1}}, "accepted must be true or false"),
        (
            {"gate": {"elsewhere": {"x86-64 avx2": {"accepted": "no"}}}},
            "accepted must be true or false, not 'no'",
        ),
        ({"gate": {"elsewhere": ["x86-64 avx2"]}}, "must be a table of instruction set"),
        ({"gate": {"elsewhere": {"x86-64 avx2": True}}}, "gate: must be a table"),
        ({"gate": {"instruction set": 2}}, "the instruction set must be a name"),
        ({"options": []}, "options: must be a table"),
        ({"colour": 1}, "colour: unknown setting"),
    ],
)
def test_an_artefact_refuses(tmp_path, change, said):
    row = {"file": "m.onnx", "backend": "onnxruntime", "precision": "fp32", **change}
    with pytest.raises(ConfigError) as e:
        ModelManifest("m", "m.onnx", ("a",), artefacts=(row,))
    assert said in str(e.value)


@pytest.mark.parametrize(
    "backend, precision, bound",
    [
        ("onnxruntime", "int8", True),
        ("openvino", "int8", True),
        ("openvino", "bf16", True),
        ("tensorrt", "int8", False),
        ("onnxruntime", "fp32", False),
        ("onnxruntime", "fp16", False),
        ("openvino", "fp32", False),
    ],
)
def test_eight_bits_and_bfloat16_are_held_to_a_verdict_of_the_same_instruction_set(backend, precision, bound):
    here = Artefact(
        "m.onnx", backend, precision, gate={"accepted": True, "instruction set": "x86-64 avx512-vnni"}
    )
    assert here.bound == bound and here.verdict("x86-64 avx512-vnni") == here.gate
    assert here.verdict("x86-64 avx2") == ({} if bound else here.gate)
    assert replace(here, gate={"accepted": True}).verdict("x86-64 avx2") == (
        {} if bound else {"accepted": True}
    ), "a record from before verdicts named a processor"


def test_verdicts_of_several_instruction_sets_stand_beside_each_other(tmp_path):
    first = artefact(tmp_path).judged("x86-64 avx512-vnni", {"accepted": True, "AP": 0.6})
    assert first.gated and first.gate == {
        "accepted": True,
        "AP": 0.6,
        "instruction set": "x86-64 avx512-vnni",
    }
    both = first.judged("x86-64 avx2", {"accepted": False, "AP": 0.4}).judged(
        "arm64 neon", {"accepted": True, "AP": 0.59}
    )
    written = save_manifest(replace(model(tmp_path), artefacts=(both,)), tmp_path)
    found = load_manifest(written)[0].artefacts[0]
    assert [
        found.verdict(k).get("AP") for k in ("x86-64 avx512-vnni", "x86-64 avx2", "arm64 neon", "x86-64 sse")
    ] == [0.6, 0.4, 0.59, None]
    assert found.gated and found.verdict("x86-64 avx2")["accepted"] is False
    again = found.judged("x86-64 avx512-vnni", {"accepted": False, "AP": 0.3}).judged(
        "x86-64 avx2", {"accepted": True, "AP": 0.61}
    )
    assert [again.verdict(k)["AP"] for k in ("x86-64 avx512-vnni", "x86-64 avx2", "arm64 neon")] == [
        0.3,
        0.61,
        0.59,
    ] and not again.gated
    unnamed = artefact(tmp_path, gate={"accepted": True, "AP": 0.6}).judged(
        "x86-64 avx2", {"accepted": True, "AP": 0.5}
    )
    assert unnamed.gate["AP"] == 0.6 and unnamed.verdict("x86-64 avx2")["AP"] == 0.5


def test_the_same_artefact_twice_and_an_artefact_that_is_none():
    row = {"file": "m.onnx", "backend": "openvino", "precision": "fp32"}
    ModelManifest("m", "m.onnx", ("a",), artefacts=(row, {**row, "options": {"precision": "bf16"}}))
    for wrong in ((row, row), row, "m.onnx", (3,)):
        with pytest.raises(ConfigError, match="artefacts"):
            ModelManifest("m", "m.onnx", ("a",), artefacts=wrong)


def test_manifests_without_artefacts_read_and_hash_as_before():
    "What was written before there were artefacts and layouts comes out byte for byte."
    old = {
        "imgsz": [640, 640],
        "letterbox": "center",
        "color": "RGB",
        "scale": 1 / 255,
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "pad_value": 114,
        "stride": 32,
        "clahe": 0.0,
    }
    assert json.dumps(PreprocessSpec().to_dict()) == json.dumps(old)
    data = ModelManifest("m", "m.onnx", ("a",)).to_dict()
    assert data["preprocess"] == old and list(data) == [
        "name",
        "file",
        "names",
        "version",
        "sha256",
        "preprocess",
        "postprocess",
        "task",
        "license",
        "metrics",
        "training",
        "calibration",
        "format_version",
    ]


def test_the_graph_of_a_bytes_file_is_checked_as_one():
    spec = ModelManifest("m", "m.onnx", ("a",), preprocess=PreprocessSpec(layout="nhwc-uint8"))
    check_graph(spec, ("b", 640, 640, 3), ("b", 5, 8400))
    for shape in (("b", 3, 640, 640), ("b", 640, 640, 4), (1, 320, 640, 3)):
        with pytest.raises(ModelSpecMismatch, match="B, H, W, 3"):
            check_graph(spec, shape, ("b", 5, 8400))
