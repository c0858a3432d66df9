"""convert_opset: every operator whose signature changed between opset 9 and 25 is right at later ones, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.errors import ModelError
from onnxcompress.io import model_io

X = np.random.default_rng(0).random((2, 4, 6, 6)).astype(np.float32)
NEWER = (11, 13, 18, 21, 25)
REDUCTIONS = ("Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare", "Sum")
DOUBLED = np.array([1, 1, 2, 2], np.float32)

CHANGED: dict[str, tuple[int, str, dict[str, Any], dict[str, np.ndarray]]] = {
    **{f"Reduce{k}": (9, f"Reduce{k}", {"axes": [1, -1], "keepdims": 1}, {}) for k in REDUCTIONS},
    **{f"Reduce{k} of all": (9, f"Reduce{k}", {"keepdims": 0}, {}) for k in REDUCTIONS},
    "ReduceMean of 17": (17, "ReduceMean", {"axes": [-1]}, {}),
    "Unsqueeze": (9, "Unsqueeze", {"axes": [0]}, {}),
    "Clip": (9, "Clip", {"min": 0.2, "max": 0.5}, {}),
    "Clip below": (9, "Clip", {"min": 0.2}, {}),
    "Dropout": (9, "Dropout", {"ratio": 0.3}, {}),
    "Pad": (9, "Pad", {"pads": [0, 0, 0, 1, 0, 0, 0, 2], "value": 1.5}, {}),
    "Pad by reflection": (9, "Pad", {"mode": "reflect", "pads": [0, 0, 1, 1, 0, 0, 1, 1]}, {}),
    "Slice": (9, "Slice", {"axes": [1], "starts": [1], "ends": [3]}, {}),
    "TopK": (9, "TopK", {"k": 2}, {}),
    "TopK of 10": (10, "TopK", {}, {"k": np.array([2])}),
    "Upsample": (9, "Upsample", {"mode": "nearest"}, {"s": DOUBLED}),
    "Upsample between": (9, "Upsample", {"mode": "linear"}, {"s": DOUBLED}),
    "Resize": (10, "Resize", {"mode": "nearest"}, {"s": DOUBLED}),
    "Resize between": (10, "Resize", {"mode": "linear"}, {"s": DOUBLED}),
    "Softmax over several axes": (11, "Softmax", {"axis": 1}, {}),
    "Softmax over the last": (11, "Softmax", {"axis": -1}, {}),
    "Softmax by default": (11, "Softmax", {}, {}),
    "LogSoftmax": (11, "LogSoftmax", {"axis": 2}, {}),
    "Hardmax": (11, "Hardmax", {"axis": 1}, {}),
    "Hardmax over the last": (11, "Hardmax", {"axis": -1}, {}),
    "Split": (11, "Split", {"axis": 1, "split": [1, 3]}, {}),
    "Split in equal parts": (13, "Split", {"axis": 1}, {}),
    "BatchNormalization": (9, "BatchNormalization", {}, {n: np.ones(4, np.float32) for n in "abcd"}),
    "GroupNormalization": (18, "GroupNormalization", {"num_groups": 2}, {n: np.ones(2, np.float32) for n in "ab"}),
    "AveragePool": (10, "AveragePool", {"kernel_shape": [2, 2], "ceil_mode": 1}, {}),
    "DepthToSpace": (9, "DepthToSpace", {"blocksize": 2}, {}),
    "CumSum": (11, "CumSum", {}, {"axis": np.array(1)}),
    "Flatten": (9, "Flatten", {"axis": 2}, {}),
}
REFUSED = {"Hardmax": 13, "GroupNormalization": 21}
"""Operators that the converter gets wrong, and the opset from which on."""


def model_of(name: str, *, quantized: bool = False) -> onnx.ModelProto:
    """Return a model of one operator; `quantized` puts a product on integers before it."""
    opset, kind, attributes, constants = CHANGED[name]
    nodes, before = [], "x"
    if quantized:
        constants = {**constants, "w": np.diag([100] * 6).astype(np.int8), "ws": np.array([0.01], np.float32)}
        nodes.append(helper.make_node("DynamicQuantizeMatMul", ["x", "w", "ws"], ["before"], domain="com.microsoft"))
        before = "before"
    if quantized and opset > 10:
        nodes.append(helper.make_node("DynamicQuantizeLinear", [before], ["q", "qs", "qz"]))
        nodes.append(helper.make_node("DequantizeLinear", ["q", "qs", "qz"], ["after"]))
        before = "after"
    own = list(CHANGED[name][3])
    outputs = ["y", "z"] if kind in ("Split", "TopK") else ["y"]
    nodes.append(helper.make_node(kind, [before, *own], outputs, **attributes))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, key) for key, array in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports if quantized else imports[:1], ir_version=8)


def outputs_of(proto: onnx.ModelProto) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": X})[0])


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("name", CHANGED)
def test_what_is_converted_computes_the_same(name: str, quantized: bool) -> None:
    proto = model_of(name, quantized=quantized)
    now = proto.opset_import[0].version
    expected = outputs_of(proto)
    for version in (v for v in NEWER if v > now):
        model = ir.from_proto(proto)
        if name in REFUSED and version >= REFUSED[name]:
            with pytest.raises(ModelError, match=name):
                model_io.convert_opset(model, version)
            continue
        converted = model_io.convert_opset(model, version)
        assert converted.opset_imports[""] == version
        np.testing.assert_allclose(outputs_of(ir.to_proto(converted)), expected, atol=1e-6)


def test_a_local_function_with_operators_that_change_is_refused() -> None:
    body = [helper.make_node("ReduceMean", ["a"], ["b"], axes=[-1])]
    function = helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("", 13)])
    graph = helper.make_graph(
        [helper.make_node("F", ["x"], ["y"], domain="own")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    imports = [helper.make_opsetid("", 13), helper.make_opsetid("own", 1)]
    proto = helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=8)
    with pytest.raises(ModelError, match="local function F has operators of opset 13: ReduceMean"):
        model_io.convert_opset(ir.from_proto(proto), 18)
    same = model_io.convert_opset(ir.from_proto(proto), 17)
    np.testing.assert_allclose(outputs_of(ir.to_proto(same)), outputs_of(proto))
