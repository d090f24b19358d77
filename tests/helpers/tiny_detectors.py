"""ONNX detectors of a few nodes: (B, 3, 32, 32) → (B, 4 + 2 classes, 16), one convolution, in any precision
and with any defect."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cv_pipeline.inference.manifest import ModelManifest, PreprocessSpec

NAMES = ("nut", "bolt")


def manifest(file: str = "tiny.onnx", layout: str = "nchw-float", **more) -> ModelManifest:
    return ModelManifest(
        name="tiny",
        version="1",
        file=file,
        names=NAMES,
        preprocess=PreprocessSpec(imgsz=(32, 32), layout=layout),
        **more,
    )


def tiny(
    path: Path,
    kind: str = "fp32",
    batch: object = "batch",
    opset: int = 17,
    custom: bool = False,
    cells: object = 16,
    rows: int = 6,
) -> Path:
    """kind: fp32 | fp16 (float outside) | int8 (symmetric QDQ around the convolution) | half (float16 outside
    too) | bytes (uint8 NHWC outside)."""
    rng = np.random.default_rng(0)
    weight, bias = (rng.normal(size=(rows, 3, 8, 8)) / 14).astype(np.float32), rng.random(rows, np.float32)
    half = kind in ("fp16", "half")
    inside = np.float16 if half else np.float32
    outside = {"half": TensorProto.FLOAT16, "bytes": TensorProto.UINT8}.get(kind, TensorProto.FLOAT)
    out_type = TensorProto.FLOAT16 if kind == "half" else TensorProto.FLOAT
    node, given = (
        helper.make_node,
        [
            numpy_helper.from_array(np.array([0, rows, -1], np.int64), "shape"),
            numpy_helper.from_array(bias.astype(inside), "b"),
        ],
    )
    nodes, x = [], "images"
    if kind == "bytes":
        given.append(numpy_helper.from_array(np.float32(255), "255"))
        nodes += [
            node("Cast", [x], ["c"], to=TensorProto.FLOAT),
            node("Transpose", ["c"], ["t"], perm=[0, 3, 1, 2]),
            node("Div", ["t", "255"], ["x0"]),
        ]
        x = "x0"
    if kind == "fp16":
        nodes, x = [node("Cast", [x], ["x0"], to=TensorProto.FLOAT16)], "x0"
    if kind == "int8":
        scale = np.abs(weight).max(axis=(1, 2, 3)) / 127
        quantised = np.clip(np.round(weight / scale[:, None, None, None]), -127, 127).astype(np.int8)
        given += [
            numpy_helper.from_array(a, n)
            for n, a in {
                "wq": quantised,
                "ws": scale.astype(np.float32),
                "wz": np.zeros(rows, np.int8),
                "xs": np.float32(1 / 127),
                "xz": np.int8(0),
            }.items()
        ]
        nodes += [
            node("QuantizeLinear", [x, "xs", "xz"], ["xq"]),
            node("DequantizeLinear", ["xq", "xs", "xz"], ["x0"]),
            node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], axis=0),
        ]
        x = "x0"
    else:
        given.append(numpy_helper.from_array(weight.astype(inside), "w"))
    if custom:
        nodes.append(node("Sparkle", [x], ["shiny"], domain="com.example"))
        x = "shiny"
    nodes += [
        node("Conv", [x, "w", "b"], ["maps"], kernel_shape=[8, 8], strides=[8, 8]),
        node("Sigmoid", ["maps"], ["scores"]),
    ]
    last = "flat" if kind == "fp16" else "output0"
    nodes.append(node("Reshape", ["scores", "shape"], [last]))
    if kind == "fp16":
        nodes.append(node("Cast", ["flat"], ["output0"], to=TensorProto.FLOAT))
    shape = [batch, 32, 32, 3] if kind == "bytes" else [batch, 3, 32, 32]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", outside, shape)],
        [helper.make_tensor_value_info("output0", out_type, [batch, rows, cells])],
        given,
    )
    domains = [helper.make_opsetid("", opset)] + ([helper.make_opsetid("com.example", 1)] if custom else [])
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), path)
    return path


def with_suppression(path: Path) -> Path:
    """A detector that answers (n, 3) indices of what its own NonMaxSuppression kept: n is known only when it
    runs."""
    node, value = helper.make_node, lambda n, v, t: helper.make_tensor(n, t, [len(v)], v)
    nodes = [
        node("Slice", ["images", "zero", "four", "three"], ["strip"]),
        node("Reshape", ["strip", "boxshape"], ["boxes"]),
        node("Slice", ["boxes", "zero", "one", "two"], ["column"]),
        node("Transpose", ["column"], ["scores"], perm=[0, 2, 1]),
        node("NonMaxSuppression", ["boxes", "scores", "few", "iou"], ["kept"]),
        node("Cast", ["kept"], ["flat"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["flat", "zero"], ["output0"]),
    ]
    given = [
        value("zero", [0], TensorProto.INT64),
        value("one", [1], TensorProto.INT64),
        value("two", [2], TensorProto.INT64),
        value("three", [3], TensorProto.INT64),
        value("four", [4], TensorProto.INT64),
        value("boxshape", [1, -1, 4], TensorProto.INT64),
        value("few", [50], TensorProto.INT64),
        value("iou", [0.5], TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, "n", 3])],
        given,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path
