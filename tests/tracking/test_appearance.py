"""Embedders: unit vectors that do not depend on company; a real network where its file is there."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import BackendError, ConfigError, DataError
from cv_pipeline.tracking.appearance import ColourHistogram, Embedder, OnnxEmbedder, free_batch, sample_boxes
from tests.helpers.services import require

onnx = require("onnx", reason="the package onnx makes the small networks of these tests")


def small_network(path, batch=1, dim=6, size=(32, 16), fixed_reshape=True, flat_input=False):
    "A convolution, its mean over the picture, and a Reshape that repeats the batch."
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).normal(0, 1, (dim, 3, 4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["c"], strides=[4, 4]),
        helper.make_node("GlobalAveragePool", ["c"], ["g"]),
        helper.make_node("Reshape", ["g", "s"], ["out"]),
    ]
    shape = [batch, 3, *size] if not flat_input else [batch, 12]
    graph = helper.make_graph(
        nodes if not flat_input else [helper.make_node("Relu", ["images"], ["out"])],
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, dim if not flat_input else 12])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.array([1 if fixed_reshape else 0, -1]), "s"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nets")
    fixed = small_network(folder / "fixed.onnx")
    return {
        "fixed": fixed,
        "any": small_network(folder / "any.onnx", "batch", fixed_reshape=False),
        "flat": small_network(folder / "flat.onnx", flat_input=True),
    }


PICTURE = cv2.resize(
    np.random.default_rng(3).integers(0, 255, (12, 16, 3), np.uint8),
    (320, 240),
    interpolation=cv2.INTER_CUBIC,
)
box = st.tuples(st.floats(-60, 330), st.floats(-60, 250), st.floats(0, 200), st.floats(0, 200)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@pytest.fixture(params=["colours", "stripes", "fixed", "any"])
def embedder(request, networks):
    if request.param == "colours":
        return ColourHistogram()
    if request.param == "stripes":
        return ColourHistogram((6, 3), (9, 7), 3)
    return OnnxEmbedder(networks[request.param], threads=1, max_batch=3)


def test_unit_vectors_that_do_not_depend_on_company(embedder):
    assert isinstance(embedder, Embedder)

    @settings(max_examples=40, deadline=None)
    @given(boxes=st.lists(box, max_size=8))
    def check(boxes):
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        vectors = embedder(PICTURE, boxes)
        assert vectors.shape == (len(boxes), embedder.dim) and vectors.dtype == np.float32
        length = np.linalg.norm(vectors, axis=1)
        assert (np.isclose(length, 1, atol=1e-4) | (length == 0)).all()
        for i in range(len(boxes)):
            assert np.allclose(embedder(PICTURE, boxes[[i]])[0], vectors[i], atol=1e-5)
        inside = (
            (boxes[:, :2] >= 0).all(1)
            & (boxes[:, 2] <= 320)
            & (boxes[:, 3] <= 240)
            & (boxes[:, 2:] - boxes[:, :2] >= 4).all(1)
        )
        assert (length[inside] > 0).all()

    check()


def test_nothing_of_the_picture_is_zero(embedder):
    outside = np.float32([[-90, -90, -20, -20], [400, 0, 450, 40], [0, 300, 30, 390]])
    assert not embedder(PICTURE, outside).any() and embedder(PICTURE, np.zeros((0, 4))).shape == (
        0,
        embedder.dim,
    )


def test_bad_input_is_named(embedder):
    with pytest.raises(DataError, match="uint8 image"):
        embedder(PICTURE.astype(np.float32), [[0, 0, 9, 9]])
    with pytest.raises(DataError, match="box 1 has NaN"):
        embedder(PICTURE, [[0, 0, 9, 9], [0, 0, np.nan, 9]])


def test_points_are_the_picture():
    values, inside = sample_boxes(PICTURE, np.float32([[10, 20, 14, 26]]), (6, 4))
    assert inside.all() and np.array_equal(values.reshape(6, 4, 3), PICTURE[20:26, 10:14])


@settings(max_examples=30, deadline=None)
@given(hue=st.integers(0, 179), light=st.floats(0.35, 1.0))
def test_the_lamp_changes_little_and_the_colour_much(hue, light):
    patch = np.full((60, 60, 3), (hue, 200, 200), np.uint8)
    one = cv2.cvtColor(patch, cv2.COLOR_HSV2BGR)
    dim = (one * light).astype(np.uint8)
    patch[..., 0] = (hue + 60) % 180
    other = cv2.cvtColor(patch, cv2.COLOR_HSV2BGR)
    whole, colours = np.float32([[0, 0, 60, 60]]), ColourHistogram((12, 1))
    a, b, c = (colours(im, whole)[0] for im in (one, dim, other))
    assert a @ c < 0.1
    edge = (
        min((hue * 12 / 180) % 1, 1 - (hue * 12 / 180) % 1) < 0.2
    )  # near the border of two bins a small change may switch
    assert edge or a @ b > 0.9


def test_histogram_settings_are_checked():
    for wrong in (dict(bins=(0, 4)), dict(grid=(2, 2), stripes=3), dict(bins=(999, 1))):
        with pytest.raises(ConfigError):
            ColourHistogram(**wrong)


# --- networks


def test_batches_and_sizes_come_from_the_graph(networks):
    fixed, free = OnnxEmbedder(networks["fixed"], threads=1), OnnxEmbedder(networks["any"], threads=1)
    assert (fixed.fixed_batch, fixed.size, fixed.dim) == (1, (32, 16), 6) and free.fixed_batch == 0
    boxes = np.float32([[0, 0, 50, 80], [100, 20, 180, 200], [300, 200, 340, 260]])
    assert np.allclose(fixed(PICTURE, boxes), free(PICTURE, boxes), atol=1e-5)


def test_one_call_for_all_boxes(networks, monkeypatch):
    free, calls = OnnxEmbedder(networks["any"], threads=1), []
    session = free._session

    class Watched:
        def run(self, names, feed):
            calls.append(next(iter(feed.values())).shape)
            return session.run(names, feed)

    free._session = Watched()
    free(PICTURE, np.tile(np.float32([[0, 0, 50, 80]]), (40, 1)))
    assert calls == [(40, 3, 32, 16)]


def test_threads_may_share_a_network(networks):
    shared, rng = OnnxEmbedder(networks["any"], threads=1), np.random.default_rng(0)
    boxes = [np.float32([[x, 10, x + 40, 90], [x, 50, x + 90, 150]]) for x in rng.uniform(0, 200, 64)]
    alone = [shared(PICTURE, b) for b in boxes]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda b: shared(PICTURE, b), boxes))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together))


def test_a_fixed_batch_is_freed_and_proven(networks, tmp_path):
    freed = OnnxEmbedder(free_batch(networks["fixed"]), threads=1)
    boxes = np.float32([[0, 0, 50, 80], [100, 20, 180, 200]])
    assert freed.fixed_batch == 0 and np.allclose(
        freed(PICTURE, boxes), OnnxEmbedder(networks["fixed"], threads=1)(PICTURE, boxes), atol=1e-5
    )
    with pytest.raises(BackendError, match="model file not found"):
        free_batch(tmp_path / "none.onnx")


def test_files_that_are_no_embedders_are_refused(networks, tmp_path):
    with pytest.raises(BackendError, match="model file not found"):
        OnnxEmbedder(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(BackendError, match="cannot open it"):
        OnnxEmbedder(tmp_path / "text.onnx")
    with pytest.raises(BackendError, match="gives"):
        OnnxEmbedder(networks["flat"])


@pytest.mark.real
def test_osnet_tells_people_apart(real_data):
    """A look at a photo, moved by four pixels or mirrored, stays closer to itself than to other parts of the
    photo; a freed batch gives the same vectors."""
    path = real_data / "models/osnet_x0_25_msmt17.onnx"
    network, batched = OnnxEmbedder(path, threads=1), OnnxEmbedder(free_batch(path), threads=1)
    assert (network.size, network.dim, network.fixed_batch, batched.fixed_batch) == ((256, 128), 512, 1, 0)
    rows = np.float32([[0, 0, 100, 200], [50, 20, 190, 300], [200, 100, 300, 350]])
    picture = cv2.imread(str(next((real_data / "coco8/images").rglob("*.jpg"))))
    assert np.allclose(network(picture, rows), batched(picture, rows), atol=1e-4)
    mirrored, shifted = (
        network(
            picture[:, ::-1].copy(), np.float32([[picture.shape[1] - 190, 20, picture.shape[1] - 50, 300]])
        ),
        network(picture, rows[[1]] + 4),
    )
    own, vectors = network(picture, rows[[1]])[0], network(picture, rows)
    assert (
        own @ shifted[0] > 0.9
        and own @ mirrored[0] > 0.8
        and own @ shifted[0] > max(own @ vectors[0], own @ vectors[2])
    )
