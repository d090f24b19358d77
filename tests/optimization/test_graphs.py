"""Graph surgery: every step keeps the answer, and every file that cannot be worked on is refused with its
reason."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from cv_pipeline.core.types import BackendError
from cv_pipeline.inference.manifest import PreprocessSpec, load_manifest
from cv_pipeline.inference.preprocess import Preprocessor
from cv_pipeline.optimization.graphs import (
    TOO_BIG,
    bytes_input,
    dynamic_batch,
    half_precision,
    head_nodes,
    inspect_graph,
    name_nodes,
    open_graph,
    opset_of,
    run_once,
    save_graph,
    simplify,
    sort_nodes,
    upgrade_opset,
)


@pytest.fixture(scope="module")
def line():
    manifest, file = load_manifest("factory_line")
    return manifest, simplify(open_graph(file))


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def tiny(opset=17, domain="", op="Relu", nodes=None, shape=(1, 3, 32, 32), weights=(), out=None):
    "A graph of a few nodes from 'images' to 'y'."
    nodes = nodes or [helper.make_node(op, ["images"], ["y"], name="only", domain=domain)]
    graph = helper.make_graph(nodes, "tiny", [value("images", shape)], [value("y", out)], list(weights))
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])],
        ir_version=8,
    )


def stored(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


@pytest.mark.parametrize("content", [b"", b"\x00", b"not a model at all", b"\x08\x07\x12", b"\xff" * 500])
def test_files_that_are_no_graph(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(BackendError, match="not an ONNX file|contains no graph"):
        open_graph(tmp_path / "m.onnx")


@pytest.mark.slow
def test_half_a_file(tmp_path, line):
    data = line[1].SerializeToString()
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "m.onnx").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(BackendError, match="not an ONNX file|contains no graph"):
            open_graph(tmp_path / "m.onnx")
    with pytest.raises(BackendError, match="model file not found"):
        open_graph(tmp_path / "other.onnx")


def test_weights_in_another_file(tmp_path):
    model = tiny(
        nodes=[helper.make_node("Add", ["images", "w"], ["y"])],
        weights=[stored("w", np.ones((1, 3, 32, 32), np.float32) * 2)],
    )
    onnx.save_model(
        model,
        str(tmp_path / "m.onnx"),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="m.data",
        size_threshold=0,
    )
    assert (tmp_path / "m.data").is_file()
    feed = np.zeros((1, 3, 32, 32), np.float32)
    assert run_once(open_graph(tmp_path / "m.onnx"), feed).max() == 2, "weights beside it are read in"
    (tmp_path / "m.data").unlink()
    with pytest.raises(BackendError, match="external weight files are missing: m.data"):
        open_graph(tmp_path / "m.onnx")
    with open(tmp_path / "m.data", "wb") as f:
        f.truncate(4 * 1024**3)  # a file with a hole: 4 GB that take no room
    with pytest.raises(BackendError, match=r"4\.3 GB exceed the 2 GB limit of an ONNX file"):
        open_graph(tmp_path / "m.onnx")


def test_weights_outside_of_the_folder(tmp_path):
    tensor = stored("w", np.ones(3, np.float32))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    save_graph(
        tiny(nodes=[helper.make_node("Add", ["images", "w"], ["y"])], weights=[tensor]), tmp_path / "m.onnx"
    )
    with pytest.raises(BackendError, match="outside of its folder"):
        open_graph(tmp_path / "m.onnx")


def test_four_gigabytes(tmp_path):
    with open(tmp_path / "m.onnx", "wb") as f:
        f.truncate(4 * 1024**3)
    with pytest.raises(BackendError, match="2 GB limit"):
        open_graph(tmp_path / "m.onnx")
    assert TOO_BIG < 2**31


@pytest.mark.parametrize(
    "model, said",
    [
        (tiny(opset=7), "operator set 7 is older"),
        (tiny(opset=99), "operator set 99 is newer"),
        (tiny(domain="my.company", op="Sparkle"), "my.company:Sparkle"),
        (tiny(domain="TRT", op="EfficientNMS_TRT"), "NMS in the graph, nms=False"),
    ],
)
def test_operators_that_cannot_be_worked_with(tmp_path, model, said):
    with pytest.raises(BackendError) as e:
        open_graph(save_graph(model, tmp_path / "m.onnx"))
    assert said in str(e.value) and "m.onnx" in str(e.value)


def test_suppression_inside_is_recognised():
    constants = [
        stored("n", np.int64([10])),
        stored("iou", np.float32([0.5])),
        stored("score", np.float32([0.1])),
    ]
    graph = helper.make_graph(
        [helper.make_node("NonMaxSuppression", ["boxes", "scores", "n", "iou", "score"], ["y"], name="nms")],
        "g",
        [value("boxes", [1, 9, 4]), value("scores", [1, 2, 9])],
        [value("y", None, TensorProto.INT64)],
        constants,
    )
    facts = inspect_graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert facts.suppression == ("nms",) and not facts.quantised


def test_facts(line):
    facts = inspect_graph(line[1])
    assert (
        facts.batch is None
        and facts.input == ("batch", 3, 320, 320)
        and facts.outputs == (("batch", 9, 2100),)
        and facts.parameters > 900_000
    )
    assert inspect_graph(tiny()).batch == 1


def test_the_head_of_the_bundled_model(line):
    """Six last convolutions and the decoding one; nothing of the backbone; all paths to the output lead
    through it."""
    graph = line[1].graph
    kinds, head = {n.name: n.op_type for n in graph.node}, head_nodes(line[1])
    convolutions = sorted(n for n in head if kinds[n] == "Conv")
    assert convolutions == sorted(
        [f"/model.22/cv{b}.{i}/cv{b}.{i}.2/Conv" for b in (2, 3) for i in range(3)]
        + ["/model.22/dfl/conv/Conv"]
    )
    assert all(n.startswith("/model.22/") for n in head) and graph.node[-1].name in head
    assert {"Softmax", "Concat", "Sigmoid"} <= {kinds[n] for n in head}


@pytest.mark.slow
@pytest.mark.real
def test_heads_of_other_peoples_models(real_data):
    for name, count in (("yolov8n_fp32_reconstructed", 7), ("yolox_nano", 9)):
        model = simplify(open_graph(real_data / f"models/{name}.onnx"))
        kinds, head = {n.name: n.op_type for n in model.graph.node}, head_nodes(model)
        assert sum(kinds[n] == "Conv" for n in head) == count and len(head) < 60, name
        assert opset_of(model) == 17


@settings(max_examples=25)
@given(st.randoms(use_true_random=False))
def test_any_order_of_nodes_is_sorted_back(line, random):
    shuffled = onnx.ModelProto.FromString(line[1].SerializeToString())
    nodes = list(shuffled.graph.node)
    random.shuffle(nodes)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(nodes)
    made = set()
    produced = {o for n in nodes for o in n.output}
    for node in sort_nodes(shuffled).graph.node:
        assert all(i in made or i not in produced for i in node.input)
        made.update(node.output)
    assert made == produced


def test_a_circle_is_an_error():
    model = tiny(
        nodes=[
            helper.make_node("Add", ["images", "b"], ["a"], name="first"),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Relu", ["b"], ["y"]),
        ]
    )
    with pytest.raises(BackendError, match="has a cycle at first"):
        sort_nodes(model)


def test_names_become_unique():
    model = tiny(
        nodes=[
            helper.make_node("Relu", ["images"], ["a"], name="x"),
            helper.make_node("Relu", ["a"], ["b"], name="x"),
            helper.make_node("Relu", ["b"], ["y"]),
        ]
    )
    names = [n.name for n in name_nodes(model).graph.node]
    assert len(set(names)) == 3 and all(names)


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 16])
def test_older_operator_sets_are_lifted(opset):
    weights = [stored("w", np.random.default_rng(0).random((4, 3, 3, 3), np.float32))]
    model = tiny(
        opset,
        nodes=[helper.make_node("Conv", ["images", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])],
        weights=weights,
    )
    model.metadata_props.add(key="names", value="{0: 'a'}")
    feed = np.random.default_rng(1).random((1, 3, 32, 32), np.float32)
    lifted, slim = upgrade_opset(model), simplify(model)
    assert opset_of(lifted) == opset_of(slim) == 17 and {p.key: p.value for p in slim.metadata_props} == {
        "names": "{0: 'a'}"
    }
    for m in (lifted, slim):
        np.testing.assert_allclose(run_once(m, feed), run_once(model, feed), atol=1e-5)


def static(model):
    one = onnx.ModelProto.FromString(model.SerializeToString())
    for v in (one.graph.input[0], one.graph.output[0]):
        v.type.tensor_type.shape.dim[0].dim_value = 1
    return one


def test_any_batch(line):
    feed = np.random.default_rng(0).random((5, 3, 320, 320), np.float32)
    free = dynamic_batch(static(line[1]))
    assert inspect_graph(free).batch is None and inspect_graph(static(line[1])).batch == 1
    np.testing.assert_allclose(run_once(free, feed), run_once(line[1], feed), atol=1e-3)
    assert dynamic_batch(free) is free


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", ["yolov8n_fp32_reconstructed", "yolox_nano"])
def test_other_peoples_models_take_any_batch(real_data, name):
    model = simplify(open_graph(real_data / f"models/{name}.onnx"))
    free = dynamic_batch(model)
    size = inspect_graph(model).input[2]
    feed = np.random.default_rng(0).random((2, 3, size, size), np.float32)
    np.testing.assert_allclose(
        run_once(free, feed), np.concatenate([run_once(model, f[None]) for f in feed]), atol=1e-2
    )


def test_batches_that_would_mix_are_refused():
    mixing = tiny(
        nodes=[
            helper.make_node("ReduceMean", ["images"], ["m"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["images", "m"], ["y"]),
        ],
        opset=17,
        out=[1, 3, 32, 32],
    )
    with pytest.raises(BackendError, match="affect each other's results"):
        dynamic_batch(mixing)
    stuck = tiny(
        nodes=[
            helper.make_node("Reshape", ["images", "s"], ["a"]),
            helper.make_node("Softmax", ["a"], ["b"]),
            helper.make_node("Reshape", ["b", "t"], ["y"]),
        ],
        weights=[stored("s", np.int64([3, 32, 32])), stored("t", np.int64([1, 3, 32, 32]))],
        out=[1, 3, 32, 32],
    )
    with pytest.raises(BackendError, match="cannot be made dynamic"):
        dynamic_batch(stuck)
    with pytest.raises(BackendError, match="has a fixed batch of 4"):
        dynamic_batch(tiny(shape=(4, 3, 32, 32), out=[4, 3, 32, 32]))


def test_half_precision_keeps_its_ends(line):
    feed = np.random.default_rng(0).random((2, 3, 320, 320), np.float32)
    half = half_precision(line[1])
    got, wanted = run_once(half, feed), run_once(line[1], feed)
    assert got.dtype == np.float32 and len(half.SerializeToString()) < 0.6 * len(line[1].SerializeToString())
    assert np.abs(got - wanted)[:, 4:].max() < 0.01 and np.abs(got - wanted).max() > 0
    large = tiny(
        nodes=[helper.make_node("Mul", ["images", "w"], ["y"])], weights=[stored("w", np.float32([1e6]))]
    )
    with pytest.raises(BackendError, match="half precision ends at 65504"):
        half_precision(large)
    with pytest.raises(BackendError, match="half precision"):
        half_precision(
            tiny(
                nodes=[helper.make_node("Mul", ["images", "w"], ["y"])],
                weights=[stored("w", np.float32([np.nan]))],
            )
        )


SPECS = st.builds(
    PreprocessSpec,
    imgsz=st.just((64, 96)),
    letterbox=st.sampled_from(["center", "top-left", "stretch"]),
    color=st.sampled_from(["RGB", "BGR"]),
    scale=st.sampled_from([1 / 255, 1.0, 1 / 128]),
    mean=st.sampled_from([(0, 0, 0), (0.485, 0.456, 0.406)]),
    std=st.sampled_from([(1, 1, 1), (0.229, 0.224, 0.225)]),
)


@settings(max_examples=30)
@given(SPECS, st.integers(1, 200), st.integers(1, 200), st.booleans())
def test_bytes_give_the_answer_of_floats(spec, width, height, half):
    "Any preprocessing, any size of picture, folded into the weights or not, in a float or a halved graph."
    weights = [stored("w", np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32))]
    model = tiny(
        nodes=[helper.make_node("Conv", ["images", "w"], ["y"], pads=[1, 1, 1, 1])],
        weights=weights,
        shape=("n", 3, 64, 96),
    )
    if half:
        model = half_precision(model)
    fed, told = bytes_input(model, spec)
    picture = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), np.uint8)
    wanted, got = (
        run_once(model, Preprocessor(spec).batch([picture])[0]),
        run_once(fed, Preprocessor(told).batch([picture])[0]),
    )
    assert told.layout == "nhwc-uint8" and inspect_graph(fed).input == ("n", 64, 96, 3)
    np.testing.assert_allclose(
        got,
        wanted,
        atol=1e-4 * max(1, np.abs(wanted).max()) if not half else 5e-3 * max(1, np.abs(wanted).max()),
    )
    folded = not half and not any(spec.mean)
    assert [n.op_type for n in fed.graph.node if n.name.startswith("bytes_")][:2] == ["Cast", "Transpose"]
    assert ("Mul" in {n.op_type for n in fed.graph.node if n.name.startswith("bytes_")}) == (
        not folded and (spec.scale != 1 or spec.std != (1, 1, 1))
    )


def test_bytes_where_the_input_is_read_twice(line):
    "A graph that slices its input first (as YOLOX does) keeps explicit nodes."
    cut = [stored(n, np.int64([v])) for n, v in (("s", 0), ("e", 32), ("a", 3))]
    model = tiny(
        nodes=[
            helper.make_node("Slice", ["images", "s", "e", "a"], ["b"]),
            helper.make_node("Add", ["b", "images"], ["y"]),
        ],
        weights=cut,
    )
    spec = PreprocessSpec(imgsz=32)
    fed, told = bytes_input(model, spec)
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    np.testing.assert_allclose(
        run_once(fed, Preprocessor(told).batch([picture])[0]),
        run_once(model, Preprocessor(spec).batch([picture])[0]),
        atol=1e-5,
    )
    with pytest.raises(BackendError, match="already takes bytes"):
        bytes_input(fed, told)
    with pytest.raises(BackendError, match="instead of a float image"):
        bytes_input(fed, replace(told, layout="nchw-float"))


def test_writing(tmp_path, line):
    path = save_graph(line[1], tmp_path / "deep" / "m.onnx")
    assert open_graph(path).SerializeToString() == line[1].SerializeToString() and [
        p.name for p in path.parent.iterdir()
    ] == ["m.onnx"]
    with pytest.raises(BackendError, match="cannot write the file"):
        save_graph(line[1], path / "x.onnx")


def test_graphs_that_take_nothing_or_do_not_run():
    empty = helper.make_model(
        helper.make_graph(
            [helper.make_node("Constant", [], ["y"], value=stored("v", np.float32([1])))],
            "none",
            [],
            [value("y", [1])],
        )
    )
    with pytest.raises(BackendError, match="has no input"):
        inspect_graph(empty)
    with pytest.raises(BackendError, match="cannot run"):
        run_once(tiny(), np.zeros((1, 3, 9), np.float32))


def test_without_onnx_the_extra_is_named():
    code = (
        "import sys; sys.modules['onnx'] = None\nfrom cv_pipeline.optimization.graphs import "
        "open_graph\ntry: open_graph('x.onnx')\nexcept Exception as e: print(type(e).__name__, e)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout
    assert said.startswith("BackendError") and "cv_pipeline[openvino]" in said
