"""ONNX networks that are no detectors."""

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
