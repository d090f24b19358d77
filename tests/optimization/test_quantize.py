"""Calibration pictures, eight bits for three runtimes, pruning: properties, parity, and what must be
refused."""

import os
import subprocess
import sys
import tracemalloc
import warnings
from functools import cache

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from cv_pipeline.core.stamp import instruction_set
from cv_pipeline.core.types import BackendError, ConfigError, DataError
from cv_pipeline.inference.manifest import PreprocessSpec, load_manifest
from cv_pipeline.inference.preprocess import Preprocessor
from cv_pipeline.optimization.graphs import head_nodes, inspect_graph, open_graph, run_once, simplify
from cv_pipeline.optimization.quantize import (
    CalibrationWarning,
    Ranges,
    activation_ranges,
    choose_calibration,
    describe_picture,
    lint_qdq,
    picture_paths,
    prunable_pairs,
    prune_channels,
    prune_weights,
    quantize_cpu,
    quantize_openvino,
    quantize_tensorrt,
    sensitivity,
    spread_out,
    unlike,
)
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from tests.helpers.services import require

pytestmark = pytest.mark.slow


def ones_conv(channels=16):
    "A convolution that adds up its channels: 8-bit weights are all 127, 7-bit ones 64 or 63."
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="only", kernel_shape=[1, 1])
    ends = [
        helper.make_tensor_value_info(k, TensorProto.FLOAT, ["n", c, "h", "v"])
        for k, c in (("x", channels), ("y", 8))
    ]
    weights = numpy_helper.from_array(np.ones((8, channels, 1, 1), np.float32), "w")
    return helper.make_model(
        helper.make_graph([node], "ones", ends[:1], ends[1:], [weights]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def grey_levels(channels=16):
    "All 256 values of a byte, the same in every channel, as a picture of 16 x 16."
    return np.broadcast_to(
        (np.arange(256, dtype=np.float32) / 255).reshape(1, 1, 16, 16), (1, channels, 16, 16)
    ).copy()


def summed(bits):
    "What ONNX Runtime answers to the grey levels, (256,)."
    graph = ones_conv()
    return run_once(
        quantize_cpu(graph, activation_ranges(graph, [grey_levels()], threads=1), keep=(), bits=bits),
        grey_levels(),
    )[0, 0].ravel()


def added_in_16_bits(activations, weights):
    """The sum of products as vpmaddubsw makes it: pairs are added in 16 bits, and what does not fit is cut
    off."""
    pairs = (activations.astype(np.int64) * weights).reshape(len(activations), -1, 2).sum(axis=2)
    return np.clip(pairs, -32768, 32767).sum(axis=1)


@cache
def saturates():
    "Whether this processor's kernel does so; measured, not looked up."
    return bool(abs(summed(8)[-1] - 16) > 1)


def for_this_cpu(*args, **more):
    "Eight bits where they are exact, else seven."
    return quantize_cpu(*args, bits=7 if saturates() else 8, **more)


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Manifest, simplified graph, calibration pictures, their ranges, and a tensor of a picture that is none
    of them."""
    manifest, file = load_manifest("factory_line")
    folder = tmp_path_factory.mktemp("calibration")
    shown = [f.image for f, _ in FactoryLine(LineConfig(seed=21, density=5)).frames(61)][::3]
    for i, image in enumerate(shown[:-1]):
        cv2.imwrite(str(folder / f"{i:03d}.png"), image)
    graph, prepare = simplify(open_graph(file)), Preprocessor(manifest.preprocess)
    with pytest.warns(CalibrationWarning, match="only 12 calibration images"):
        chosen = choose_calibration(folder, 12)
    return (
        manifest,
        graph,
        chosen,
        activation_ranges(graph, chosen.batches(prepare), threads=1),
        prepare.batch([shown[-1]])[0],
    )


def scores(model, feed):
    return run_once(model, feed)[:, 4:]


# calibration pictures


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(DataError, match="calibration folder not found"):
        choose_calibration(tmp_path / "no")
    with pytest.raises(DataError, match="no calibration images"):
        choose_calibration(tmp_path)
    with pytest.raises(DataError, match="no calibration images"):
        choose_calibration([])
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="no calibration images"):
        choose_calibration(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match="broken"):
        choose_calibration(tmp_path)
    with pytest.raises(ConfigError, match="at least one image"):
        choose_calibration(tmp_path, 0)


def photo(k, colour):
    return np.clip(np.random.default_rng(k).normal(colour, 20, (60, 80, 3)), 0, 255).astype(np.uint8)


def test_a_folder_unlike_the_test_set_is_noticed(tmp_path):
    for name, colours in {
        "known": [(90, 90, 90), (120, 110, 100)],
        "same": [(90, 90, 90), (120, 110, 100)],
        "other": [(250, 20, 20), (10, 250, 10)],
    }.items():
        (tmp_path / name).mkdir()
        for k in range(24):
            cv2.imwrite(str(tmp_path / name / f"{k}.png"), photo(k + 100 * len(name), colours[k % 2]))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        good = choose_calibration(tmp_path / "same", 20, known=tmp_path / "known")
        bad = choose_calibration(tmp_path / "other", 20, known=sorted((tmp_path / "known").iterdir()))
    assert [("unlike" in n) for n in good.notes] == [False] and any(
        "100% of the evaluation images are unlike" in n for n in bad.notes
    )
    assert sum(issubclass(w.category, CalibrationWarning) for w in said) == 3
    assert good.digest != bad.digest and good.found == 24 and len(good.paths) == 20


@pytest.mark.real
def test_blood_cells_are_no_street(real_data):
    photos, cells = (
        sorted((real_data / "voc100/images").glob("*.jpg")),
        sorted((real_data / "bccd").rglob("*.jpg"))[:60],
    )
    known = np.stack([describe_picture(cv2.imread(str(p))) for p in photos[:60]])
    others = {
        n: np.stack([describe_picture(cv2.imread(str(p))) for p in files])
        for n, files in (("photos", photos[60:]), ("cells", cells))
    }
    assert unlike(others["photos"], known) < 0.3 < 0.5 < unlike(others["cells"], known)


def test_rare_conditions_are_chosen():
    """Five night pictures among two hundred: the first or any twenty would hold none or half of one; chosen
    ones hold some, for every seed."""
    features = np.stack(
        [describe_picture(photo(k, (20, 20, 20) if k >= 200 else (120, 115, 110))) for k in range(205)]
    )
    assert all((spread_out(features, 20, seed) >= 200).any() for seed in range(10))


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 5), st.booleans())
def test_chosen_pictures_are_different_and_reproducible(n, total, seed, copies):
    features = np.zeros((total, 4)) if copies else np.random.default_rng(seed).normal(size=(total, 4))
    rows = spread_out(features, n, seed)
    assert (
        len(rows) == min(n, total) == len(set(rows.tolist()))
        and (np.diff(rows) > 0).all()
        and rows.max() < total
    )
    assert np.array_equal(rows, spread_out(features, n, seed))


def test_paths_of_anything(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), photo(0, (9, 9, 9)))

    class Item:
        path = tmp_path / "a.png"

    assert (
        picture_paths(tmp_path)
        == picture_paths([Item()])
        == picture_paths([str(tmp_path / "a.png")])
        == [tmp_path / "a.png"]
    )


# ranges


def test_ranges_are_the_extremes_of_the_activations(line):
    "Against the activations themselves, for a tensor in the middle and for the input."
    _, graph, chosen, ranges, _ = line
    prepare = Preprocessor(line[0].preprocess)
    name = graph.graph.node[10].output[0]
    asked = onnx.ModelProto.FromString(graph.SerializeToString())
    asked.graph.output.insert(0, helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    seen = np.concatenate([run_once(asked, b) for b in chosen.batches(prepare)])
    column = ranges.names.index(name)
    assert np.allclose(ranges.low[:, column], seen.min(axis=(1, 2, 3)), atol=1e-4) and np.allclose(
        ranges.high[:, column], seen.max(axis=(1, 2, 3)), atol=1e-4
    )
    first = ranges.names.index("images")
    assert ranges.low[:, first].min() >= 0 and ranges.high[:, first].max() <= 1


def test_limits_hold_zero_and_nest():
    ranges = Ranges(("a", "b"), np.float32([[1, -3], [2, -1], [3, -2]]), np.float32([[5, 1], [9, 2], [7, 3]]))
    for how, wanted in {
        "max": ([0, -3], [9, 3]),
        "mean": ([0, -2], [7, 2]),
        1.0: ([0, -3], [9, 3]),
        0.5: ([0, -2], [7, 2]),
    }.items():
        low, high = ranges.limits(how)
        assert low.tolist() == wanted[0] and high.tolist() == wanted[1], how
    for wrong in ("widest", 0.2, 2.0, None, True):
        with pytest.raises(ConfigError, match="unknown calibration method"):
            ranges.limits(wrong)


def test_memory_does_not_grow_with_pictures(line):
    "Three hundred pictures, one in memory: what is kept of each is two numbers a tensor."
    graph, alive = helper_graph(), []

    def batches(count):
        for k in range(count):
            alive.append(k)
            yield np.full((1, 3, 256, 256), k % 7, np.float32)

    tracemalloc.start()
    peaks = []
    for count in (20, 300):
        tracemalloc.reset_peak()
        activation_ranges(graph, batches(count), threads=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert len(alive) == 320 and peaks[1] - peaks[0] < 1e6, (
        f"{peaks} bytes; a picture has {3 * 256 * 256 * 4}"
    )


def helper_graph(weights=None):
    w = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32) if weights is None else weights
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["a"], name="c1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="r"),
        helper.make_node("Conv", ["b", "v"], ["y"], name="c2"),
    ]
    v = np.random.default_rng(1).normal(size=(4, 8, 1, 1)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 256, 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_no_pictures_and_a_broken_model(line):
    with pytest.raises(DataError, match="no calibration images"):
        activation_ranges(line[1], [])
    with pytest.raises(BackendError, match="NaN or infinity at a"):
        activation_ranges(
            helper_graph(np.full((8, 3, 3, 3), np.nan, np.float32)), [np.ones((1, 3, 256, 256), np.float32)]
        )


# eight bits


def test_a_cpu_file_answers_like_the_float_one(line):
    _, graph, _, ranges, feed = line
    made, wanted = quantize_cpu(graph, ranges), scores(graph, feed)
    got = scores(made, feed)
    assert wanted.max() > 0.5, "the picture shows something"
    assert np.abs(got - wanted).max() < 0.15 and 0.8 < got.std() / wanted.std() < 1.2
    assert (
        len(made.SerializeToString()) < 0.45 * len(graph.SerializeToString())
        and inspect_graph(made).quantised
    )


def test_everything_quantised_has_one_score(line):
    "The known broken file exists, and the head left in float is what mends it."
    _, graph, _, ranges, feed = line
    broken = scores(quantize_cpu(graph, ranges, keep=()), feed)
    assert len(np.unique(broken.max(axis=1))) <= 2 and scores(graph, feed).max() > 0.5


def test_the_tensorrt_file_is_what_tensorrt_wants(line):
    _, graph, _, ranges, feed = line
    made, head = quantize_tensorrt(graph, ranges), head_nodes(graph)
    assert lint_qdq(made, head) == ()
    gap = np.abs(scores(made, feed) - scores(graph, feed))
    assert gap.max() < 0.3 and gap.mean() < 0.001
    convolutions = [n for n in made.graph.node if n.op_type == "Conv"]
    quantised = [n for n in convolutions if n.input[1] not in {t.name for t in made.graph.initializer}]
    assert len(convolutions) - len(quantised) == sum(
        1 for n in graph.graph.node if n.op_type == "Conv" and n.name in head
    )
    floats = {t.name for t in made.graph.initializer if t.data_type == TensorProto.FLOAT}
    assert all(n.input[2] in floats for n in quantised if len(n.input) > 2), "biases stay in float"


def test_the_lint_sees_each_fault(line):
    _, graph, _, ranges, _ = line
    head = head_nodes(graph)
    good = quantize_tensorrt(graph, ranges)
    assert any("not int8" in p for p in lint_qdq(quantize_cpu(graph, ranges))) and any(
        "integer bias" in p for p in lint_qdq(quantize_cpu(graph, ranges))
    )
    assert lint_qdq(graph) == ("the graph has no Q or DQ node",)
    quantiser = next(n for n in good.graph.node if n.op_type == "QuantizeLinear")

    def changed(name, value):
        other = onnx.ModelProto.FromString(good.SerializeToString())
        tensor = next(t for t in other.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(value, name))
        return lint_qdq(other, head)

    assert any("zero point that is not 0" in p for p in changed(quantiser.input[2], np.int8(3)))
    assert any("scale that is not above 0" in p for p in changed(quantiser.input[1], np.float32(0)))
    assert any("in the head" in p for p in lint_qdq(quantize_tensorrt(graph, ranges, keep=()), head))
    single = onnx.ModelProto.FromString(good.SerializeToString())
    weights = next(
        n
        for n in single.graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in {t.name for t in single.graph.initializer}
    )
    scale = next(t for t in single.graph.initializer if t.name == weights.input[1])
    scale.CopyFrom(numpy_helper.from_array(np.float32(0.1), scale.name))
    assert any("one scale for" in p for p in lint_qdq(single, head))


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.sampled_from(["max", "mean", 0.9]))
def test_quantised_convolutions_are_close_for_any_weights(seed, how):
    rng = np.random.default_rng(seed)
    graph, feeds = (
        helper_graph(rng.normal(size=(8, 3, 3, 3)).astype(np.float32)),
        [rng.random((1, 3, 256, 256), np.float32) for _ in range(3)],
    )
    ranges = activation_ranges(graph, feeds, threads=1)
    wanted = run_once(graph, feeds[0])
    for make in (for_this_cpu, quantize_tensorrt):  # an engine adds in 32 bits: its file is run so
        got = run_once(make(graph, ranges, how, keep=()), feeds[0], exact=make is quantize_tensorrt)
        assert np.abs(got - wanted).mean() < 0.06 * wanted.std()


def test_eight_bit_weights_saturate_exactly_where_pairs_are_added_in_16_bits():
    levels, step = np.arange(256), 16 / 255  # the answer is rounded to a byte of its own
    activations, weights = np.repeat(levels[:, None], 16, axis=1).astype(np.uint8), np.full(16, 127, np.int8)
    exact, cut = (
        (activations.astype(np.int64) @ weights.astype(np.int64)) / (255 * 127),
        added_in_16_bits(activations, weights) / (255 * 127),
    )
    assert exact[255] == 16 and 8 < cut[255] < 8.1 and (cut[:129] == exact[:129]).all(), (
        "half of the levels are cut off"
    )
    np.testing.assert_allclose(summed(8), cut if saturates() else exact, atol=step)


def test_seven_bit_weights_are_right_on_every_processor():
    np.testing.assert_allclose(summed(7), 16 * np.arange(256) / 255, atol=2 * 16 / 255)
    worst = np.full((1, 16), 255, np.uint8)
    assert added_in_16_bits(worst, np.full(16, 64, np.int8))[0] == 16 * 255 * 64, "the largest pair fits"


def test_the_instruction_set_says_whether_eight_bits_saturate():
    kind = instruction_set()
    if kind in ("x86-64 avx2", "x86-64 avx512"):
        assert saturates()
    elif any(word in kind for word in ("vnni", "amx")):
        assert not saturates()
    else:
        pytest.skip(f"{kind}: not measured")


def test_between_float_q_and_dq_nothing_saturates():
    graph = ones_conv()
    made = quantize_cpu(graph, activation_ranges(graph, [grey_levels()], threads=1), keep=())
    answer = run_once(made, grey_levels(), exact=True)[0, 0].ravel()
    np.testing.assert_allclose(answer, 16 * np.arange(256) / 255, atol=16 / 255)


@pytest.mark.parametrize("bits", [6, 9, "8", None])
def test_weights_have_seven_or_eight_bits(line, bits):
    with pytest.raises(ConfigError, match="bits must be 7 or 8"):
        quantize_cpu(line[1], line[3], bits=bits)


def test_openvino_int8(line, tmp_path):
    require("nncf")
    from cv_pipeline.inference.openvino import OpenVINOBackend

    manifest, graph, chosen, _, feed = line
    xml = quantize_openvino(
        graph, chosen.batches(Preprocessor(manifest.preprocess)), tmp_path / "m.xml", n=12
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin", "m.xml"] and xml.with_suffix(
        ".bin"
    ).stat().st_size < 0.6 * len(graph.SerializeToString())
    got, wanted = OpenVINOBackend(xml, manifest, threads=1).infer(feed)[:, 4:], scores(graph, feed)
    assert np.abs(got - wanted).max() < 0.2 and wanted.max() > 0.5 and "FakeQuantize" in xml.read_text()


def test_what_cannot_be_quantised(line):
    _, graph, _, ranges, _ = line
    made = quantize_cpu(graph, ranges)
    for make in (quantize_cpu, quantize_tensorrt):
        with pytest.raises(BackendError, match="already quantised"):
            make(made, ranges)
        with pytest.raises(BackendError, match="ranges belong to another graph"):
            make(helper_graph(), ranges)
    old = helper_graph()
    old.opset_import[0].version = 12
    with pytest.raises(BackendError, match="does not support per-channel scales"):
        quantize_cpu(old, ranges)
    none = helper.make_model(
        helper.make_graph(
            [helper.make_node("Neg", ["images"], ["y"], name="n")],
            "g",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    with pytest.raises(BackendError, match="no node of this graph could be quantised"):
        quantize_tensorrt(none, activation_ranges(none, [np.ones((1, 3, 8, 8), np.float32)], 1))


def test_the_sensitive_layer_is_found(line):
    """One channel a thousand times as large as the rest makes a layer that eight bits cannot hold: it comes
    first."""
    weights = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    weights[0] *= 1000
    graph, feed = helper_graph(weights), np.random.default_rng(2).random((1, 3, 256, 256), np.float32)
    rows = sensitivity(graph, activation_ranges(graph, [feed], 1), [feed], keep=())
    assert [r[0] for r in rows] == ["c2", "c1"] and rows[0][1] > 2 * rows[1][1] > 0
    named = sensitivity(
        line[1], line[3], [line[4]], nodes=["/model.1/conv/Conv", "/model.22/cv3.0/cv3.0.1/conv/Conv"]
    )
    assert len(named) == 2 and named[0][1] >= named[1][1] > 0


# pruning


@settings(max_examples=20)
@given(st.floats(0, 0.99))
def test_pruned_weights_are_the_smallest(share):
    before = helper_graph()
    made = prune_weights(before, share)
    for a, b in zip(before.graph.initializer, made.graph.initializer):
        a, b = numpy_helper.to_array(a), numpy_helper.to_array(b)
        gone = b == 0
        assert abs(gone.mean() - share) <= 1 / a.size + 0.01 and (
            not gone.any() or gone.all() or np.abs(a[gone]).max() <= np.abs(a[~gone]).min()
        )


def test_pruned_channels(line):
    _, graph, _, _, feed = line
    assert len(prunable_pairs(graph)) > 20
    made = prune_channels(graph, 0.4)
    assert inspect_graph(made).parameters < 0.9 * inspect_graph(graph).parameters
    assert (
        run_once(made, feed).shape == run_once(graph, feed).shape
        and run_once(prune_channels(graph, 0), feed).tobytes() == run_once(graph, feed).tobytes()
    )
    assert onnx.checker.check_model(made, full_check=True) is None


def test_dead_channels_leave_without_a_trace():
    "Channels that are zero are the first to go, and the answer stays what it was."
    weights = np.random.default_rng(0).normal(size=(16, 3, 3, 3)).astype(np.float32)
    weights[[1, 3, 4, 7, 9, 11, 12, 15]] = 0
    graph = helper_graph(weights)
    v = numpy_helper.from_array(np.random.default_rng(1).normal(size=(4, 16, 1, 1)).astype(np.float32), "v")
    graph.graph.initializer[1].CopyFrom(v)
    feed = np.random.default_rng(2).random((1, 3, 256, 256), np.float32)
    made = prune_channels(graph, 0.5)
    assert [list(t.dims) for t in made.graph.initializer] == [[8, 3, 3, 3], [4, 8, 1, 1]]
    np.testing.assert_allclose(run_once(made, feed), run_once(graph, feed), atol=1e-4)


def test_channels_that_others_read_stay():
    graph = helper_graph()
    graph.graph.node.append(helper.make_node("ReduceMean", ["b"], ["z"], axes=[1]))
    graph.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    assert prunable_pairs(graph) == []
    for wrong in (-0.1, 1, 2.0, "half", True, None):
        with pytest.raises(ConfigError, match=r"must be in 0\.\.1"):
            prune_channels(graph, wrong)


def best(model, feed, exact=False):
    "The best score of an answer of either kind."
    raw = run_once(model, feed, exact)
    return float((raw[:, :, 4:5] * raw[:, :, 5:]).max()) if raw.shape[2] == 85 else float(raw[:, 4:].max())


@pytest.mark.real
def test_yolov8n_bears_eight_bits_and_yolox_nano_does_not(real_data):
    """YOLOX-nano is made of depthwise convolutions: three of them alone ruin it. Found by `sensitivity`, left
    in float, it lives."""
    pre = {
        "yolov8n_fp32_reconstructed": PreprocessSpec(),
        "yolox_nano": PreprocessSpec(imgsz=416, letterbox="top-left", color="BGR", scale=1),
    }
    photos = [cv2.imread(str(p)) for p in sorted((real_data / "coco8/images").rglob("*.jpg"))]
    for name, spec in pre.items():
        graph, prepare = simplify(open_graph(real_data / f"models/{name}.onnx")), Preprocessor(spec)
        ranges, feed = (
            activation_ranges(graph, (prepare.batch([p])[0] for p in photos), 1),
            prepare.batch([photos[0]])[0],
        )
        if name != "yolox_nano":
            for make in (for_this_cpu, quantize_tensorrt):
                answer = best(make(graph, ranges), feed, exact=make is quantize_tensorrt)
                assert abs(answer - best(graph, feed)) < 0.12, make.__name__
            assert (abs(best(quantize_cpu(graph, ranges), feed) - best(graph, feed)) > 0.2) == saturates()
            continue
        assert best(quantize_cpu(graph, ranges), feed) < best(graph, feed) - 0.2
        worst = [n for n, _ in sensitivity(graph, ranges, [feed])[:16]]
        assert {"Conv_44", "Conv_41", "Conv_47"} <= set(worst[:5])
        assert (
            best(quantize_cpu(graph, ranges, keep=[*head_nodes(graph), *worst]), feed)
            > best(graph, feed) - 0.15
        )


def test_without_nncf_the_extra_is_named():
    code = (
        "import sys; sys.modules['nncf'] = None\nfrom cv_pipeline.optimization.quantize import "
        "quantize_openvino\ntry: quantize_openvino(None, [], 'x.xml')\nexcept Exception as e: "
        "print(type(e).__name__, e)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ}
    ).stdout
    assert said.startswith("BackendError") and "cv_pipeline[openvino]" in said
