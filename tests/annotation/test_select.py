"""Selecting: entropy and k-centre against plain definitions, strategies under permutation, budgets, features
of a real detector, folders."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.annotation.cases import CollectPolicy
from cv_pipeline.annotation.collect import CollectSink, read_collected
from cv_pipeline.annotation.select import (
    STRATEGIES as ALL_STRATEGIES,
)
from cv_pipeline.annotation.select import (
    Candidates,
    DetectorFeatures,
    OnnxFeatures,
    SelectSettings,
    box_entropy,
    candidates,
    candidates_of,
    k_centre,
    labels_needed,
    light_descriptor,
    light_features,
    select,
    select_collected,
    uncovered,
    unsure,
    write_selected,
)
from cv_pipeline.core.types import BackendError, ConfigError, DataError, Detections, Frame, FrameResult
from cv_pipeline.inference.calibrators import Calibrator
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.conditions import Conditions
from tests.helpers.plain_networks import plain_onnx
from tests.helpers.services import require

NAMES = ("a", "b", "c", "d")

STRATEGIES = {k: v for k, v in ALL_STRATEGIES.items() if k != "novelty"}  # it compares boxes: see the end


def made(n, seed=0, dims=6, most=6, names=NAMES):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, most, n)
    found = [Detections([[0, 0, 9, 9]] * k, rng.random(k), rng.integers(0, len(names), k)) for k in counts]
    return candidates([f"p{i:04d}" for i in rng.permutation(n)], found, names, rng.normal(size=(n, dims)))


def shuffled(c, order):
    start = np.cumsum(c.count) - c.count
    found = [
        Detections(
            [[0, 0, 9, 9]] * c.count[i],
            c.confidence[start[i] : start[i] + c.count[i]],
            c.class_id[start[i] : start[i] + c.count[i]],
        )
        for i in order
    ]
    return candidates([c.pictures[i] for i in order], found, c.names, c.embedding[order])


# ---- scores ----


def test_entropy_is_that_of_a_coin():
    assert box_entropy(np.array([0.5]))[0] == pytest.approx(1) and box_entropy(
        np.array([0.0, 1.0])
    ) == pytest.approx(0, abs=1e-7)
    p = np.linspace(0.01, 0.99, 99)
    whole = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    assert np.allclose(box_entropy(p), np.where((p >= 0.3) & (p <= 0.6), whole, whole / 2)) and np.allclose(
        box_entropy(p, (0, 1)), whole
    )


@settings(max_examples=50)
@given(st.lists(st.lists(st.floats(0, 1), max_size=7), min_size=1, max_size=8), st.integers(1, 5))
def test_a_picture_is_as_unsure_as_its_worst_few(confidences, top):
    c = candidates(
        list(map(str, range(len(confidences)))), [Detections([[0, 0, 1, 1]] * len(p), p) for p in confidences]
    )
    plain = [np.mean(sorted(box_entropy(np.float32(p)), reverse=True)[:top]) if p else 0 for p in confidences]
    assert np.allclose(unsure(c, top=top), plain, atol=1e-6)


def test_a_crowd_of_sure_boxes_is_not_unsure():
    c = candidates(
        ["crowd", "one question"],
        [Detections([[0, 0, 1, 1]] * 30, [0.95] * 30), Detections([[0, 0, 1, 1]], [0.5])],
    )
    assert unsure(c)[0] < 0.2 < unsure(c)[1]


# ---- k-centre ----


def plain_k_centre(x, k, first, chosen):
    have, rows = list(chosen), []
    for _ in range(k):
        if not have:
            rows.append(first)
        else:
            reach = [-1 if i in rows else min(np.linalg.norm(v - h) for h in have) for i, v in enumerate(x)]
            rows.append(int(np.argmax(reach)))
        have.append(x[rows[-1]])
    return rows


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(0, 3))
def test_k_centre_is_the_plain_greedy_one(seed, k, labelled):
    rng = np.random.default_rng(seed)
    x, have = rng.normal(size=(15, 4)).astype(np.float32), rng.normal(size=(labelled, 4)).astype(np.float32)
    assert k_centre(x, k, 3, have) == plain_k_centre(x, k, 3, have)


def test_k_centre_is_within_twice_the_best():
    from itertools import combinations

    x = np.random.default_rng(1).normal(size=(14, 2))
    radius = lambda rows: max(min(np.linalg.norm(v - x[r]) for r in rows) for v in x)
    best = min(radius(rows) for rows in combinations(range(14), 3))
    assert all(radius(k_centre(x, 3, first)) <= 2 * best + 1e-6 for first in range(14))


def test_k_centre_takes_equal_points_once_each():
    assert (
        sorted(k_centre(np.ones((5, 3)), 5, 2)) == list(range(5))
        and len(k_centre(np.ones((3, 2)), 9, 0)) == 3
    )


# ---- strategies ----


@settings(max_examples=30)
@given(
    st.integers(0, 1000), st.sampled_from(sorted(STRATEGIES)), st.integers(1, 40), st.permutations(range(30))
)
def test_order_of_candidates_changes_nothing(seed, strategy, budget, order):
    c, s = made(30, seed), SelectSettings(strategy, seed)
    mixed = shuffled(c, order)
    one, two = select(c, budget, s), select(mixed, budget, s)
    assert [c.pictures[i] for i, _ in one] == [mixed.pictures[i] for i, _ in two]
    assert len({i for i, _ in one}) == len(one) == min(budget, 30) and all(why for _, why in one)


@pytest.mark.parametrize("strategy", ["random", "uncertainty", "diversity"])
def test_a_smaller_budget_is_a_beginning(strategy):
    c = made(60)
    how = SelectSettings(strategy)
    assert select(c, 40, how)[:15] == select(c, 15, how)


def test_seeds_give_other_lots_and_the_same_seed_the_same():
    c = made(200)
    rows = lambda s: {i for i, _ in select(c, 20, SelectSettings("random", s))}
    assert rows(1) == rows(1) != rows(2)
    often = np.zeros(200)
    for s in range(300):
        often[list(rows(s))] += 1
    assert abs(often.mean() - 30) < 1e-9 and often.max() < 60 and often.min() > 8, (
        "every picture is equally likely: 30 ± 5"
    )


def test_the_hybrid_is_made_of_its_parts():
    c, s = made(400, 3), SelectSettings(seed=4, share=0.2, pool=3, novel=0)
    with_new = select(c, 50, replace(s, novel=0.25))
    lot, new = ([i for i, why in with_new if why.startswith(w)] for w in ("random", "unlike"))
    others = np.setdiff1d(np.arange(400), lot)
    assert len(new) == 12 and new == others[uncovered(c.embedding[others], 12, c.embedding[lot])].tolist()
    chosen = select(c, 50, s)
    lucky = [i for i, why in chosen if why == "random"]
    rest = [i for i, why in chosen if why != "random"]
    assert len(lucky) == 10 and len(rest) == 40
    score = unsure(c)
    others = np.setdiff1d(np.arange(400), lucky)
    assert set(rest) <= set(others[np.argsort(-score[others], kind="stable")][: 3 * 40 + 5].tolist()), (
        "from the most unsure, three times as many as wanted"
    )
    spread = lambda rows: np.mean(
        [np.sort(np.linalg.norm(c.embedding[r] - c.embedding[rows], axis=1))[1] for r in rows]
    )
    assert spread(rest) > spread([i for i, _ in select(c, 40, SelectSettings("uncertainty"))]), (
        "more different than the most unsure ones"
    )
    assert all(why == "random" for _, why in select(c, 10, replace(s, share=1.0)))


def test_classes_that_are_short_are_preferred():
    n, rng = 300, np.random.default_rng(0)
    klass = np.where(np.arange(n) % 20 == 0, 3, np.arange(n) % 3)
    c = candidates(
        [f"{i:03d}" for i in range(n)],
        [Detections([[0, 0, 1, 1]], [0.5], [k]) for k in klass],
        NAMES,
        rng.normal(size=(n, 4)),
    )
    share = lambda balance, **kw: np.mean(
        [
            klass[i] == 3
            for i, _ in select(c, 30, SelectSettings(pool=10, share=0, novel=0, balance=balance), **kw)
        ]
    )
    assert share(2.0) > share(0.0) + 0.1
    plenty = candidates(
        [f"old{i}" for i in range(90)],
        [Detections([[0, 0, 1, 1]], None, [3])] * 90,
        NAMES,
        rng.normal(size=(90, 4)) * 1e-3,
    )
    assert share(2.0, labelled=plenty) < share(2.0), "not where they are labelled in plenty already"


def test_what_is_labelled_is_not_chosen_and_not_approached():
    c = made(100, 5)
    done = shuffled(c, list(range(50)))
    for strategy in STRATEGIES:
        assert not {c.pictures[i] for i, _ in select(c, 80, SelectSettings(strategy), done)} & set(
            done.pictures
        )
    near = candidates(["x", "y", "old"], [Detections.empty()] * 3, (), [[0, 0], [9, 9], [0.1, 0]])
    old = candidates(["old"], [Detections.empty()], (), [[0.1, 0]])
    assert near.pictures[select(near, 1, SelectSettings("diversity"), old)[0][0]] == "y"


def test_rare_scenes_are_found():
    "The whole point: twelve odd ones among 600, of which the model is unsure."
    rng, odd = np.random.default_rng(2), set(range(0, 600, 50))
    found = [
        Detections([[0, 0, 1, 1]] * 3, [0.45 if i in odd else 0.93, 0.9, 0.95], [0, 1, 3 if i in odd else 2])
        for i in range(600)
    ]
    c = candidates(
        [f"{i:03d}" for i in range(600)],
        found,
        NAMES,
        rng.normal(size=(600, 8)) + np.array([[4 * (i in odd)] * 8 for i in range(600)]),
    )
    hits = {
        s: np.mean([len({i for i, _ in select(c, 30, SelectSettings(s, seed))} & odd) for seed in range(5)])
        for s in STRATEGIES
    }
    assert hits["hybrid"] >= 8 and hits["uncertainty"] == 12 and hits["random"] < 3


# ---- bad input ----


def test_bad_requests_are_typed():
    c = made(5)
    for budget in (0, -1, 1.5, True):
        with pytest.raises(ConfigError, match="invalid budget"):
            select(c, budget)
    with pytest.raises(DataError, match="no candidates"):
        select(candidates([], []), 3)
    bare = replace(c, embedding=None)
    for strategy in ("hybrid", "diversity"):
        with pytest.raises(ConfigError, match="no embeddings"):
            select(bare, 3, SelectSettings(strategy))
    assert len(select(bare, 3, SelectSettings("uncertainty"))) == 3 and len(select(c, 99)) == 5
    with pytest.raises(DataError, match="embeddings of different sizes: 2 and 6"):
        select(c, 3, labelled=candidates(["o"], [Detections.empty()], (), [[0, 0]]))


def test_bad_candidates_are_typed():
    d = [Detections([[0, 0, 1, 1]], [0.5])]
    with pytest.raises(DataError, match="listed twice: a"):
        candidates(["a", "a"], d * 2)
    with pytest.raises(DataError, match="NaN or outside"):
        candidates(["a"], [Detections([[0, 0, 1, 1]], [np.nan])])
    with pytest.raises(DataError, match="NaN or infinity"):
        candidates(["a"], d, (), [[np.inf]])
    with pytest.raises(DataError, match="embeddings are .3, 1. for 1"):
        candidates(["a"], d, (), np.zeros((3, 1)))
    with pytest.raises(DataError, match="1 results for 2"):
        candidates(["a", "b"], d)
    with pytest.raises(DataError, match="counts of"):
        Candidates(("a",), np.array([2]), np.array([0.5]), np.array([0]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"strategy": "best"},
        {"band": (0.6, 0.3)},
        {"top": 0},
        {"pool": 0.5},
        {"share": 1.2},
        {"novel": -0.1},
        {"balance": -1},
        {"features": "deep"},
        {"features": None},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)) + ": "):
        SelectSettings(**wrong)


def test_an_unknown_strategy_is_told_which_there_are():
    with pytest.raises(ConfigError, match="unknown 'best'; known: hybrid, random, uncertainty, diversity"):
        SelectSettings("best")


# ---- vectors ----


def test_light_descriptor_tells_light_from_dark_and_ignores_size():
    line = FactoryLine(LineConfig(size=(320, 240), seed=1))
    image = line.render(30)[0].image
    far = lambda a, b: float(np.linalg.norm(light_descriptor(a) - light_descriptor(b)))
    again, bigger, dark = (
        line.render(31)[0].image,
        cv2.resize(image, (640, 480)),
        (image * 0.3).astype(np.uint8),
    )
    assert (
        far(image, bigger) < far(image, again) * 2 < far(image, dark)
        and light_descriptor(image).dtype == np.float32
        and np.isfinite(light_descriptor(np.zeros((1, 1, 3), np.uint8))).all()
    )
    assert light_features([]).shape == (0, 323) == (0, len(light_descriptor(image)))


@given(st.integers(1, 40), st.integers(0, 12), st.integers(1, 6), st.integers(0, 99))
def test_uncovered_is_what_brute_force_says(n, labelled, neighbours, seed):
    rng = np.random.default_rng(seed)
    x, points = rng.normal(size=(n, 3)).astype(np.float32), rng.normal(size=(labelled, 3)).astype(np.float32)
    rows, there = uncovered(x, n + 3, points, neighbours), list(points)
    assert sorted(rows) == list(range(n))
    for k, row in enumerate(rows):
        m = min(neighbours, max(labelled, 1))
        reach = [
            np.sort(np.linalg.norm(np.array(there) - v, axis=1))[m - 1] if len(there) >= m else np.inf
            for v in x
        ]
        left = [reach[i] for i in range(n) if i not in rows[:k]]
        assert reach[row] == pytest.approx(max(left), abs=1e-3)
        there.append(x[row])


def test_a_rare_condition_comes_in_a_handful_not_as_one_picture():
    rng = np.random.default_rng(0)
    usual, fog = rng.normal(0, 0.1, (500, 4)), rng.normal(0, 0.02, (20, 4)) + [3, 0, 0, 0]
    x, old = np.concatenate([usual, fog]).astype(np.float32), rng.normal(0, 0.1, (50, 4)).astype(np.float32)
    assert (
        sum(i >= 500 for i in k_centre(x, 12, 0, old)) == 1
        and sum(i >= 500 for i in uncovered(x, 12, old)) >= 5
    )
    c = candidates(
        [f"{i:03d}" for i in range(520)], [Detections([[0, 0, 9, 9]], [0.98], [0])] * 520, ("part",), x
    )  # a model that is sure of everything
    before = candidates(
        [f"old-{i}" for i in range(50)], [Detections([[0, 0, 9, 9]], [1.0], [0])] * 50, ("part",), old
    )
    found = lambda novel: sum(i >= 500 for i, _ in select(c, 40, SelectSettings(novel=novel), before))
    assert found(0.25) >= 5 > found(0) + 1
    with pytest.raises(ConfigError, match="novel: 1.5 is outside 0..1"):
        SelectSettings(novel=1.5)


def test_features_of_the_bundled_detector(tmp_path):
    model = load_model("factory_line", threads=1)
    features, early = DetectorFeatures(model, threads=1, depth="deep"), DetectorFeatures(model, threads=1)
    good, fog = (
        np.stack(
            [
                FactoryLine(LineConfig(size=(320, 240), seed=s), {0: Conditions(fog=f)}).render(40)[0].image
                for s in range(4)
            ]
        )
        for f in (0, 5)
    )
    v = features([*good, *fog])
    assert (
        v.shape == (8, 512)
        and np.allclose(np.linalg.norm(v, axis=1), 1, atol=1e-5)
        and np.allclose(features([fog[0]]), v[4:5], atol=1e-5)
    ), "independent of the batch"
    apart = lambda v: (
        np.linalg.norm(v[:4, None] - v[4:], axis=2).min() / np.linalg.norm(v[:4, None] - v[:4], axis=2).max()
    )  # of good from fog, against good from good
    assert (
        apart(v) > 1
        and apart(e := early([*good, *fog])) > 1
        and e.shape == (8, 32)
        and early.layer.startswith("/model.2/")
    )
    inner = DetectorFeatures(model, features.layer.replace("Concat", "cv1/conv/Conv"), threads=1)
    assert inner([good[0]]).shape[1] == 128
    with pytest.raises(ConfigError, match="depth 'middle'"):
        DetectorFeatures(model, depth="middle")
    with pytest.raises(BackendError, match="unknown layer 'nowhere'"):
        DetectorFeatures(model, "nowhere")
    with pytest.raises(BackendError, match="need an ONNX file"):
        DetectorFeatures(replace(model, path=tmp_path / "model.engine"))


def test_embedding_networks_of_other_people_work_too(tmp_path):
    "A graph whose inner layer is a vector: flattened, not averaged."
    onnx = require("onnx")
    from onnx import TensorProto, helper

    node = [
        helper.make_node("GlobalAveragePool", ["images"], ["p"]),
        helper.make_node("Flatten", ["p"], ["v"]),
        helper.make_node("Identity", ["v"], ["out"]),
    ]
    graph = helper.make_graph(
        node,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 320, 320])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        str(tmp_path / "m.onnx"),
    )
    model = replace(load_model("factory_line", threads=1), path=tmp_path / "m.onnx")
    red = np.zeros((320, 320, 3), np.uint8)
    red[..., 2] = 200
    assert np.allclose(DetectorFeatures(model, "v")([red]), [[1, 0, 0]], atol=1e-5)
    with pytest.raises(BackendError, match="no layer of this graph is a feature map"):
        DetectorFeatures(model)


def plain_features(images, weight, h, w, mean, spread):
    rgb = np.stack(
        [
            cv2.resize(i, (w, h), interpolation=cv2.INTER_AREA)[..., ::-1].mean(axis=(0, 1)) / 255
            for i in images
        ]
    )
    v = (rgb - mean) / spread @ weight.T
    return v / np.linalg.norm(v, axis=1, keepdims=True)


@pytest.mark.parametrize("batch", ["n", 1, 4])
@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("pixels", ["unit", "imagenet"])
def test_any_onnx_gives_vectors(tmp_path, batch, rank, pixels):
    rng = np.random.default_rng(1)
    images = [
        rng.integers(0, 255, (int(h), int(w), 3), dtype=np.uint8) for h, w in rng.integers(20, 90, (21, 2))
    ]
    file, weight = plain_onnx(tmp_path / "m.onnx", (batch, 3, 32, 48), rank=rank)
    mean, spread = (
        ([0, 0, 0], [1, 1, 1]) if pixels == "unit" else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    got = OnnxFeatures(file, pixels=pixels, threads=1)(images)
    assert got.dtype == np.float32 and np.allclose(
        got, plain_features(images, weight, 32, 48, mean, spread), atol=1e-4
    )
    assert OnnxFeatures(file, pixels=pixels)([]).shape[0] == 0


def test_the_size_is_that_of_the_graph_or_of_the_caller(tmp_path):
    from onnx import TensorProto

    image = np.random.default_rng(2).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    free, weight = plain_onnx(tmp_path / "free.onnx", ("n", 3, "h", "w"))
    with pytest.raises(ConfigError, match="dynamic image size"):
        OnnxFeatures(free)
    assert np.allclose(
        OnnxFeatures(free, (24, 16), "unit")([image]),
        plain_features([image], weight, 24, 16, 0, 1),
        atol=1e-4,
    )
    fixed, _ = plain_onnx(tmp_path / "fixed.onnx")
    with pytest.raises(ConfigError, match="but the graph takes"):
        OnnxFeatures(fixed, (64, 64))
    with pytest.raises(ConfigError, match="pixels='bgr'"):
        OnnxFeatures(fixed, pixels="bgr")
    half, weight = plain_onnx(tmp_path / "half.onnx", kind=TensorProto.FLOAT16)
    assert np.allclose(
        OnnxFeatures(half, pixels="unit")([image]), plain_features([image], weight, 32, 48, 0, 1), atol=1e-2
    )


def test_graphs_that_take_no_pictures_are_typed(tmp_path):
    from onnx import TensorProto

    for name, how in {
        "nhwc": {"shape": ("n", 32, 48, 3)},
        "grey": {"shape": ("n", 1, 32, 48)},
        "flat": {"shape": ("n", 3)},
        "bytes": {"kind": TensorProto.DOUBLE},
        "two": {"more_inputs": [("mask", (1, 1))]},
    }.items():
        try:
            file, _ = plain_onnx(tmp_path / f"{name}.onnx", **how)
        except Exception as e:
            raise AssertionError(name) from e
        with pytest.raises(BackendError, match="does not take images|cannot be opened|cannot open"):
            OnnxFeatures(file, (32, 48))
    with pytest.raises(BackendError, match="does not take images.*mask"):
        OnnxFeatures(tmp_path / "two.onnx")
    tokens, _ = plain_onnx(tmp_path / "tokens.onnx", rank=3)
    with pytest.raises(BackendError, match="'tokens' has the shape .1, 5, 1536."):
        OnnxFeatures(tokens)([np.zeros((9, 9, 3), np.uint8)])
    assert OnnxFeatures(tokens, output="vector")([np.full((9, 9, 3), 9, np.uint8)]).shape == (1, 5)
    with pytest.raises(BackendError, match="unknown output 'w'"):
        OnnxFeatures(tokens, output="w")
    with pytest.raises(BackendError, match="ONNX file not found"):
        OnnxFeatures(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(BackendError, match="cannot open"):
        OnnxFeatures(tmp_path / "text.onnx")


# ---- folders ----


def collection(folder, n=30, day=0):
    rng, noon = np.random.default_rng(day), datetime(2026, 6, 1 + day, 12, tzinfo=timezone.utc)
    sink = CollectSink(folder, CollectPolicy(random=1, hamming=-1))
    for i in range(n):
        d = Detections([[0, 0, 9, 9]] * 2, [0.45 if i % 10 == 0 else 0.95, 0.9], [i % 3, 0])
        sink.write(
            FrameResult(
                Frame(
                    rng.integers(0, 255, (48, 64, 3), dtype=np.uint8), "cam", i, noon + timedelta(seconds=i)
                ),
                d,
                NAMES,
                model="m",
            )
        )
    sink.close()
    return folder


def test_from_a_collection_into_a_collection(tmp_path):
    folder = collection(tmp_path / "all")
    c = candidates_of(folder)
    assert len(c) == 30 and c.embedding.shape == (30, 323) and c.names == ("a", "b", "c")
    chosen = select(c, 3, SelectSettings("uncertainty"))
    rows = write_selected(tmp_path / "few", folder, c, chosen)
    assert {r.frame_id for r in rows} == {0, 10, 20} and {
        r.picture for r in read_collected(tmp_path / "few")
    } == {r.picture for r in rows}
    assert all(
        r.note.startswith("selected: unsure") and r.model == "m" and r.detections
        for r in read_collected(tmp_path / "few")
    )
    for r in rows:
        assert (tmp_path / "few" / r.picture).read_bytes() == (folder / r.picture).read_bytes()
    with pytest.raises(ConfigError, match="not empty"):
        write_selected(tmp_path / "few", folder, c, chosen)
    with pytest.raises(DataError, match="do not come from a collection"):
        write_selected(tmp_path / "x", folder, made(3), [(0, "why")])
    (folder / rows[0].picture).unlink()
    with pytest.raises(DataError, match="1 of 30 images are missing"):
        candidates_of(folder)


def test_every_week_other_pictures(tmp_path):
    folder = collection(tmp_path / "all", 40)
    first = select_collected(folder, tmp_path / "week 1", 10)
    second = select_collected(folder, tmp_path / "week 2", 10, labelled=[tmp_path / "week 1"])
    third = select_collected(
        folder,
        tmp_path / "week 3",
        99,
        labelled=[tmp_path / "week 1", tmp_path / "week 2", tmp_path / "week 1"],
    )
    numbers = [{r.frame_id for r in rows} for rows in (first, second, third)]
    assert [len(n) for n in numbers] == [10, 10, 20] and set.union(*numbers) == set(range(40))
    for strategy in STRATEGIES:
        with pytest.raises(DataError, match="all 40 images were selected before"):
            select_collected(
                folder,
                tmp_path / "week 4",
                5,
                SelectSettings(strategy),
                labelled=[tmp_path / f"week {k}" for k in (1, 2, 3)],
            )
    assert not (tmp_path / "week 4").exists()
    with pytest.raises(ConfigError, match="need a model"):
        select_collected(folder, tmp_path / "x", 3, SelectSettings(features="model"))


def test_a_selection_by_any_onnx(tmp_path):
    folder, (file, _) = collection(tmp_path / "all", 12), plain_onnx(tmp_path / "m.onnx")
    by_name, by_hand = (
        select_collected(folder, tmp_path / str(k), 6, SelectSettings("diversity", features=f))
        for k, f in enumerate((str(file), OnnxFeatures(file)))
    )
    assert [r.picture for r in by_name] == [r.picture for r in by_hand] and len(by_name) == 6
    seen = select_collected(
        folder,
        tmp_path / "unit",
        6,
        SelectSettings("diversity", features=OnnxFeatures(file, pixels="unit")),
        labelled=[tmp_path / "0"],
    )
    assert not {r.picture for r in seen} & {r.picture for r in by_name}
    with pytest.raises(BackendError, match="ONNX file not found"):
        select_collected(folder, tmp_path / "x", 6, SelectSettings(features="none.onnx"))


def test_two_collections_with_the_same_numbers_are_not_mixed_up(tmp_path):
    a, b = collection(tmp_path / "monday", 5), collection(tmp_path / "tuesday", 5, day=1)
    assert {r.picture for r in read_collected(a)} == {r.picture for r in read_collected(b)}
    assert len(select_collected(b, tmp_path / "out", 5, SelectSettings("random"), labelled=[a])) == 5


def test_confidences_are_calibrated_on_the_way(tmp_path):
    folder = collection(tmp_path)
    half = Calibrator(default={"kind": "isotonic", "x": [0.0, 1.0], "y": [0.0, 0.5]})
    assert (
        np.allclose(candidates_of(folder, None, half).confidence, candidates_of(folder, None).confidence / 2)
        and candidates_of(folder, None).embedding is None
    )


def test_a_model_can_look_again(tmp_path):
    model = load_model("factory_line", threads=1)
    c = candidates_of(collection(tmp_path, 3), None, model=model)
    assert c.names == model.manifest.names and len(c) == 3


# ---- what labels are worth ----


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0, 1))
def test_labels_needed_reads_the_curve(score, target):
    x = np.arange(len(score)) * 10.0
    need = labels_needed(x, score, target)
    if need == float("inf"):
        assert max(score) < target
    else:
        assert np.interp(need, x, score) >= target - 1e-9 and all(
            s < target for s in np.array(score)[x < need]
        )


def test_labels_needed_refuses_nonsense():
    for args in (([1, 1], [0, 0], 0.5), ([], [], 0.5), ([1], [0, 1], 0.5)):
        with pytest.raises(DataError):
            labels_needed(*args)


def test_what_the_model_has_learnt_from_is_not_new(tmp_path):
    """A dataset of dark pictures is known: the few bright ones are chosen; without it the dark ones are as
    new."""
    rng = np.random.default_rng(0)
    picture = lambda level: np.clip(rng.normal(level, 6, (48, 64, 3)), 0, 255).astype(np.uint8)
    write = lambda folder, n: [cv2.imwrite(str(folder / f"{i}.png"), picture(60)) for i in range(n)]
    (tmp_path / "known/images").mkdir(parents=True)
    (tmp_path / "known/labels").mkdir()
    write(tmp_path / "known/images", 30)
    for i in range(30):
        (tmp_path / f"known/labels/{i}.txt").write_text("1 .5 .5 .2 .2\n")
    (tmp_path / "known/data.yaml").write_text(
        "train: images\nnames: [b, zebra]\n"
    )  # another order, and a class that the log does not have
    sink = CollectSink(tmp_path / "c", CollectPolicy(random=1.0))
    for i in range(60):
        frame = Frame(
            picture(170 if i % 10 == 0 else 60),
            "cam",
            i,
            datetime(2026, 6, 1, tzinfo=timezone.utc) + timedelta(minutes=i),
        )
        sink.write(FrameResult(frame, Detections([[0, 0, 9, 9]], [0.97], [0]), ("a", "b")))
    sink.close()
    rows = select_collected(
        tmp_path / "c", tmp_path / "s", 20, SelectSettings(novel=0.25, share=0), known=[tmp_path / "known"]
    )
    assert sum(r.frame_id % 10 == 0 for r in rows if "unlike all labelled images" in r.note) == 5
    with pytest.raises(DataError, match="dataset not found"):
        select_collected(tmp_path / "c", tmp_path / "t", 5, known=[tmp_path / "nowhere"])
    assert not (tmp_path / "t").exists()


def with_parts(n, odd=()):
    "Candidates with two boxes each, of one kind but for the odd pictures."
    rng = np.random.default_rng(0)
    parts = rng.normal(0, 0.2, (2 * n, 4))
    parts[[2 * i for i in odd]] += 5
    found = [Detections([[0, 0, 9, 9]] * 2, [0.9] * 2, [0] * 2) for _ in range(n)]
    return candidates([f"{i:03d}" for i in range(n)], found, ["gear"], parts=parts)


def test_novelty_takes_the_boxes_unlike_labelled_ones_first():
    c, odd = with_parts(60, (7, 20, 41)), {7, 20, 41}
    labelled = candidates(["old"], [Detections([[0, 0, 9, 9]] * 40)], ["gear"], parts=with_parts(20).parts)
    chosen = select(c, 5, SelectSettings("novelty"), labelled)
    assert {i for i, _ in chosen[:3]} == odd and len(chosen) == 5


def test_novelty_needs_vectors_of_boxes():
    c = candidates(["a"], [Detections([[0, 0, 9, 9]])], ["gear"])
    with pytest.raises(ConfigError, match="the boxes have no vectors"):
        select(c, 1, SelectSettings("novelty"))


def test_novelty_fills_up_with_pictures_without_boxes():
    c = candidates(["a", "b"], [Detections.empty()] * 2, ["gear"], parts=np.zeros((0, 3)))
    assert len(select(c, 2, SelectSettings("novelty"))) == 2
