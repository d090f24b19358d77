"""ONNX networks that are no detectors."""

import json
from pathlib import Path

import numpy as np

from tests.helpers.services import require


def plain_onnx(path, shape=("n", 3, 32, 48), kind=None, more_inputs=(), rank=2):
    """A network that is no detector: a 1 × 1 convolution and what is asked of its output. No manifest lies
    beside it."""
    onnx = require("onnx")
    from onnx import TensorProto, helper, numpy_helper

    kind = kind or TensorProto.FLOAT
    dtype = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    weight = np.random.default_rng(0).normal(size=(5, 3, 1, 1)).astype(dtype)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["map"]),
        helper.make_node("GlobalAveragePool", ["map"], ["p"]),
        helper.make_node("Flatten", ["p"], ["vector"]),
        helper.make_node("Reshape", ["map", "to"], ["tokens"]),
    ]
    out = {
        2: ("vector", [shape[0], 5]),
        3: ("tokens", [shape[0], 5, -1]),
        4: ("map", [shape[0], 5, *shape[2:]]),
    }
    info = lambda name, s, k=kind: helper.make_tensor_value_info(name, k, [None if v == -1 else v for v in s])
    order = [out[rank], *(v for k, v in out.items() if k != rank)]
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", shape), *(info(n, s) for n, s in more_inputs)],
        [info(*o) for o in order],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([0, 5, -1], np.int64), "to")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path, weight[:, :, 0, 0].astype(np.float32)


MEAN_COLOUR = [("GlobalAveragePool", ["images"], "mean", {}), ("Flatten", ["mean"], "out", {})]
BRIGHTNESS = [("ReduceMean", ["images"], "out", {"axes": [1], "keepdims": 1})]


def node_model(folder: Path, task: str, head: str, nodes: list, **post) -> Path:
    """A model folder whose graph is these nodes, from `images` to `out`: red, green and blue as labels or
    vector, or a map of the input's size."""
    require("onnx")
    from onnx import TensorProto, helper, save

    value = lambda name, dims: helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
    made = [helper.make_node(kind, inputs, [output], **how) for kind, inputs, output, how in nodes]
    shape = ["b", 1, 32, 32] if task == "anomaly" else ["b", 3]
    graph = helper.make_graph(made, "g", [value("images", ["b", 3, 32, 32])], [value("out", shape)])
    folder.mkdir(parents=True, exist_ok=True)
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "m.onnx"
    )
    preprocess = {"imgsz": 32, "stride": 1, "letterbox": "center" if task == "anomaly" else "crop"}
    table = {"name": "m", "file": "m.onnx", "task": task, "names": ["red", "green", "blue"]}
    table |= {"preprocess": preprocess, "postprocess": {"head": head, **post}}
    (folder / "manifest.json").write_text(json.dumps(table))
    return folder
