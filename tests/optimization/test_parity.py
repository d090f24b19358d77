"""The parity check: what is intact passes, what is broken is caught, whatever the way it was broken."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import BackendError, ConfigError, Detections
from cv_pipeline.inference.loading import load_model
from cv_pipeline.inference.manifest import PreprocessSpec
from cv_pipeline.inference.preprocess import Preprocessor
from cv_pipeline.optimization.graphs import bytes_input, half_precision, open_graph, save_graph, simplify
from cv_pipeline.optimization.parity import (
    LIMITS,
    Limits,
    ParityError,
    check_parity,
    match_detections,
    scores_of,
)
from cv_pipeline.optimization.quantize import activation_ranges, quantize_cpu, quantize_tensorrt
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig


@pytest.fixture(scope="module")
def line():
    model = load_model("factory_line", threads=1)
    pictures = [f.image for f, _ in FactoryLine(LineConfig(seed=31, density=5)).frames(31)][::3]
    graph = simplify(open_graph(model.path))
    return (
        model,
        pictures,
        graph,
        activation_ranges(graph, (model.preprocess.batch([p])[0] for p in pictures), threads=1),
    )


def opened(model, graph, folder, spec=None):
    "A graph as a model, through a file and ONNX Runtime."
    from cv_pipeline.inference.onnx import OnnxBackend

    manifest = replace(model.manifest, preprocess=spec or model.manifest.preprocess, sha256="")
    return replace(
        model,
        manifest=manifest,
        backend=OnnxBackend(save_graph(graph, folder / "m.onnx"), manifest, threads=1),
        preprocess=Preprocessor(manifest.preprocess),
    )


class Changed:
    "A backend whose answer is changed on the way."

    def __init__(self, inner, change):
        self.inner, self.change, self.name, self.provider, self.max_batch = (
            inner,
            change,
            "changed",
            inner.provider,
            inner.max_batch,
        )

    def infer(self, batch):
        return self.change(self.inner.infer(batch).copy())

    def warmup(self): ...
    def close(self): ...


@pytest.mark.slow
def test_intact_conversions_pass(line, tmp_path):
    model, pictures, graph, ranges = line
    fed, spec = bytes_input(graph, model.manifest.preprocess)
    for precision, made, own in (
        ("fp32", graph, None),
        ("fp32", fed, spec),
        ("fp16", half_precision(graph), None),
        ("int8", quantize_cpu(graph, ranges), None),
        ("int8", quantize_tensorrt(graph, ranges), None),
    ):
        p = check_parity(model, opened(model, made, tmp_path, own), pictures, precision)
        assert (
            p.problems == ()
            and p.images == len(pictures)
            and p.reference_detections > 10
            and p.matched >= LIMITS[precision].matched
        )
    assert check_parity(model, model, iter(pictures)).max_difference == 0


@pytest.mark.slow
def test_everything_quantised_is_caught(line, tmp_path):
    """The known broken quantisation, made by quantising everything: with objects, and on empty pictures where
    neither shows anything."""
    model, pictures, graph, ranges = line
    broken = opened(model, quantize_cpu(graph, ranges, keep=()), tmp_path)
    with pytest.raises(ParityError, match="scores are all the same") as e:
        check_parity(model, broken, pictures, "int8")
    assert isinstance(e.value, BackendError) and e.value.parity.values <= 2 and e.value.parity.spread < 0.01
    empty = [np.full((90, 160, 3), grey, np.uint8) for grey in (60, 110)]
    with pytest.raises(ParityError, match="scores are all the same"):
        check_parity(model, broken, empty, "int8")


@pytest.mark.parametrize("precision", list(LIMITS))
@pytest.mark.parametrize("constant", [0.0, 0.3, 1.0])
def test_constant_scores_are_caught_in_every_precision(line, precision, constant):
    model, pictures, *_ = line

    def dead(raw):
        raw[:, 4:] = constant
        return raw

    with pytest.raises(ParityError, match="all the same"):
        check_parity(model, replace(model, backend=Changed(model.backend, dead)), pictures[:3], precision)


def scaled(raw):
    raw[:, 4:] *= 0.5
    return raw


def moved(raw):
    raw[:, :2] += 25
    return raw


def swapped(raw):
    raw[:, 4:] = raw[:, 4:][:, ::-1]
    return raw


def wide(raw):
    raw[:, 2:4] *= 1.4
    return raw


def noisy(raw):
    raw[:, 4:] = np.clip(raw[:, 4:] + np.random.default_rng(0).normal(0, 0.2, raw[:, 4:].shape), 0, 1)
    return raw


@pytest.mark.slow
@pytest.mark.parametrize("damage", [scaled, moved, swapped, wide, noisy], ids=lambda f: f.__name__)
@pytest.mark.parametrize("precision", list(LIMITS))
def test_damage_is_caught_in_every_precision(line, damage, precision):
    model, pictures, *_ = line
    with pytest.raises(ParityError):
        check_parity(model, replace(model, backend=Changed(model.backend, damage)), pictures, precision)


def test_the_order_of_candidates_is_no_damage(line):
    model, pictures, *_ = line
    p = check_parity(
        model, replace(model, backend=Changed(model.backend, lambda raw: raw[..., ::-1].copy())), pictures
    )
    assert p.problems == () and p.max_difference > 100, "the raw difference alone would have refused it"


def test_preprocessing_that_is_not_the_models_own_is_caught(line):
    model, pictures, *_ = line
    for spec in (
        PreprocessSpec(imgsz=320, scale=1.0),
        PreprocessSpec(imgsz=320, letterbox="stretch"),
        PreprocessSpec(imgsz=320, color="BGR"),
    ):
        p = check_parity(model, replace(model, preprocess=Preprocessor(spec)), pictures, fail=False)
        assert p.problems, spec


def test_nothing_to_compare_and_wishes_that_are_none(line):
    model, pictures, *_ = line
    with pytest.raises(BackendError, match="no images to compare on"):
        check_parity(model, model, [])
    with pytest.raises(ConfigError, match="unknown precision 'int4'"):
        check_parity(model, model, pictures, "int4")
    with pytest.raises(ParityError, match="different shapes"):
        check_parity(
            model, replace(model, backend=Changed(model.backend, lambda raw: raw[..., :-1])), pictures
        )
    own = check_parity(
        model, replace(model, backend=Changed(model.backend, scaled)), pictures, limits=Limits(0, 1, 0, 0.01)
    )
    assert own.problems == () and own.to_dict()["images"] == len(pictures)


boxes = st.lists(
    st.tuples(
        st.integers(0, 80),
        st.integers(0, 80),
        st.integers(5, 40),
        st.integers(5, 40),
        st.integers(0, 2),
        st.floats(0.3, 1),
    ),
    max_size=8,
)


def some(rows):
    a = np.array(rows, float).reshape(-1, 6)
    return Detections(np.hstack([a[:, :2], a[:, :2] + a[:, 2:4]]), a[:, 5], a[:, 4])


@settings(max_examples=150)
@given(boxes, boxes)
def test_matches_are_one_to_one_of_one_class_and_symmetric(first, second):
    a, b = some(first), some(second)
    rows, columns, overlap = match_detections(a, b)
    assert len(set(rows.tolist())) == len(rows) == len(set(columns.tolist())) and (overlap >= 0.5).all()
    assert (a.class_id[rows] == b.class_id[columns]).all()
    assert len(match_detections(b, a)[0]) == len(rows)
    if len(a):
        assert len(match_detections(a, a)[0]) == len(a)


def test_scores_of_every_head():
    raw = np.random.default_rng(0).random((2, 7, 9), np.float32)
    assert np.array_equal(scores_of(raw, "yolov8"), raw[:, 4:].max(1)) and np.array_equal(
        scores_of(raw.transpose(0, 2, 1)[..., :6], "end2end"), raw[:, 4]
    )
    assert np.array_equal(scores_of(raw.transpose(0, 2, 1), "yolox"), raw[:, 4] * raw[:, 5:].max(1))


@pytest.mark.slow
@pytest.mark.real
def test_openvino_and_a_file_made_for_tensorrt(real_data, tmp_path):
    """A trap of this runtime: the S8S8 file is right in ONNX Runtime; whatever OpenVINO makes of it, parity
    says."""
    import cv2

    from cv_pipeline.inference.openvino import OpenVINOBackend

    model = load_model(real_data / "models/yolov8n_fp32_reconstructed.onnx", threads=1)
    photos = [cv2.imread(str(p)) for p in sorted((real_data / "coco8/images").rglob("*.jpg"))]
    graph = simplify(open_graph(model.path))
    made = quantize_tensorrt(
        graph, activation_ranges(graph, (model.preprocess.batch([p])[0] for p in photos), threads=1)
    )
    assert check_parity(model, opened(model, made, tmp_path), photos, "int8").problems == ()
    manifest = replace(model.manifest, sha256="")
    there = replace(model, backend=OpenVINOBackend(tmp_path / "m.onnx", manifest, threads=1))
    p = check_parity(model, there, photos, "int8", fail=False)
    assert p.problems == () or p.matched < 0.75
