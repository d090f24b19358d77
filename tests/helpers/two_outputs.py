"""Graphs with two outputs, boxes and logits, and their manifests."""

from pathlib import Path

import numpy as np

from cv_pipeline.inference.manifest import ModelManifest, PostprocessSpec, PreprocessSpec
from tests.helpers.services import require


def detr_manifest(nc: int = 3, **post) -> ModelManifest:
    return ModelManifest(
        "tiny",
        "m.onnx",
        tuple("abcdefgh"[:nc]),
        preprocess=PreprocessSpec(imgsz=64, letterbox="stretch"),
        postprocess=PostprocessSpec(head="detr", **post),
    )


def two_outputs(path: Path, names: tuple[str, str], nc: int = 3, queries: int = 6) -> Path:
    "A graph with two outputs as RF-DETR and transformers have: boxes, and logits from the picture's mean."
    onnx = require("onnx")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    box = np.concatenate([rng.uniform(0.3, 0.7, (queries, 2)), rng.uniform(0.1, 0.3, (queries, 2))], 1)
    weights = {"box": box.astype(np.float32), "logit": rng.normal(0, 2, (queries, nc)).astype(np.float32)}
    zero = numpy_helper.from_array(np.float32(0), "zero")
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Squeeze", ["mean", "axis"], ["flat"]),
        helper.make_node("Mul", ["flat", "zero"], ["nothing"]),
        helper.make_node("Add", ["flat", "logit"], [names[1]]),
        helper.make_node("Add", ["nothing", "box"], [names[0]]),
    ]
    value = lambda name, *shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    outputs = [value(names[1], "b", queries, nc), value(names[0], "b", queries, 4)]
    start = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    start += [zero, numpy_helper.from_array(np.int64([3]), "axis")]
    graph = helper.make_graph(nodes, "g", [value("images", "b", 3, 64, 64)], outputs, start)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path / "m.onnx")
    return path
