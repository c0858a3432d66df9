"""Derivatives of all other operators that networks train through equal differences."""

import math

import numpy as np
import pytest
from onnx import helper

from .differences import check, normal, scalar_loss, spaced


def one(op_type, *shapes, constants=(), opset=18, outputs=1, tolerance=2e-2, **attributes):
    """Check a node of float operands of these shapes, then constants."""
    feed = {
        f"x{n}": spaced(*shape, seed=n) if math.prod(shape) < 200 else normal(*shape, seed=n)
        for n, shape in enumerate(shapes)
    }
    given = {f"c{n}": array for n, array in enumerate(constants) if array is not None}
    names = [*feed, *(f"c{n}" if array is not None else "" for n, array in enumerate(constants))]
    made = [f"y{n}" for n in range(outputs)]
    node = helper.make_node(op_type, names, made, **attributes)
    check(scalar_loss([node], feed, made, constants=given, opset=opset), feed, tolerance=tolerance)


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        *((name, {}) for name in ["Abs", "Celu", "Elu", "Erf", "Exp", "HardSwish", "Identity", "Mish", "Neg", "Relu"]),
        *((name, {}) for name in ["Selu", "Sigmoid", "Sin"]),
        *((name, {}) for name in ["Dropout", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "LpNormalization"]),
        *((name, {}) for name in ["Softplus", "Softsign", "Tanh"]),
        ("HardSigmoid", {"alpha": 0.3}), ("LeakyRelu", {"alpha": 0.2}), ("LogSoftmax", {"axis": -1}),
        ("MeanVarianceNormalization", {"axes": [1, 2]}), ("Shrink", {"lambd": 0.33}), ("Softmax", {"axis": 1}),
        ("ThresholdedRelu", {"alpha": 0.33}),
    ],
)  # fmt: skip
def test_operators_of_one_operand(op_type, attributes):
    one(op_type, (2, 3, 4), **attributes)


@pytest.mark.parametrize(("op_type", "attributes"), [("Gelu", {}), ("Gelu", {"approximate": "tanh"})])
def test_gelu(op_type, attributes):
    one(op_type, (2, 3, 4), opset=20, **attributes)


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum", "PRelu"])
@pytest.mark.parametrize("other", [(2, 3, 4), (3, 1), (1,), (4,)])
def test_operators_of_two_operands(op_type, other):
    if op_type in ("Max", "Min"):
        feed = {"x0": spaced(2, 3, 4), "x1": spaced(*other, seed=3) + np.float32(0.02)}
        node = helper.make_node(op_type, ["x0", "x1"], ["y"])
        check(scalar_loss([node], feed), feed)
    else:
        one(op_type, (2, 3, 4), other)


def test_division_powers_and_roots():
    feed = {"x": np.abs(spaced(2, 3)) + 1, "d": np.abs(spaced(3, seed=1)) + 1}
    nodes = [
        helper.make_node("Div", ["x", "d"], ["h"]),
        helper.make_node("Pow", ["h", "three"], ["p"]),
        helper.make_node("Sqrt", ["p"], ["q"]),
        helper.make_node("Log", ["q"], ["l"]),
        helper.make_node("Reciprocal", ["d"], ["r"]),
        helper.make_node("Add", ["l", "r"], ["y"]),
    ]
    check(scalar_loss(nodes, feed, constants={"three": np.float32(3)}), feed)


@pytest.mark.parametrize(
    ("op_type", "shapes", "constants", "attributes"),
    [
        ("BatchNormalization", [(2, 3, 4), (3,), (3,)], [normal(3, seed=5), np.float32([0.5, 1, 2])], {}),
        ("BatchNormalization", [(2, 3, 2, 2), (3,), (3,)], [normal(3), np.float32([0.5, 1, 2])], {"epsilon": 0.1}),
        ("InstanceNormalization", [(2, 3, 4), (3,), (3,)], [], {}),
        ("InstanceNormalization", [(2, 3, 4, 3), (3,), (3,)], [], {}),
        ("LayerNormalization", [(2, 3, 4), (4,), (4,)], [], {}),
        ("LayerNormalization", [(2, 3, 4), (3, 4), (3, 4)], [], {"axis": 1}),
        ("LayerNormalization", [(2, 3, 4), (4,)], [], {}),
        ("Gemm", [(2, 3), (4, 3), (4,)], [], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
        ("Gemm", [(3, 2), (3, 4), (2, 1)], [], {"transA": 1}),
        ("MatMul", [(2, 1, 3, 4), (2, 4, 3)], [], {}),
        ("MatMul", [(3, 4), (4,)], [], {}),
        ("Einsum", [(2, 3, 4), (4, 5)], [], {"equation": "bij,jk->bik"}),
        ("Einsum", [(2, 3, 4), (2, 5, 4)], [], {"equation": "bid,bjd->bij"}),
        ("Concat", [(2, 3), (2, 2)], [], {"axis": 1}),
        ("Transpose", [(2, 3, 4)], [], {"perm": [2, 0, 1]}),
        ("Reshape", [(2, 3, 4)], [np.asarray([0, -1])], {}),
        ("Squeeze", [(2, 1, 3)], [np.asarray([1])], {}),
        ("Unsqueeze", [(2, 3)], [np.asarray([0, 3])], {}),
        ("Expand", [(3, 1)], [np.asarray([2, 3, 4])], {}),
        ("Tile", [(2, 3)], [np.asarray([2, 1])], {}),
        ("Gather", [(4, 3)], [np.asarray([[1, -1], [1, 0]])], {"axis": 0}),
        ("Gather", [(4, 3)], [np.asarray(1)], {"axis": 1}),
        ("ReduceMean", [(2, 3, 4)], [np.asarray([-1])], {}),
        ("ReduceSum", [(2, 3, 4)], [], {"keepdims": 0}),
        ("ReduceMax", [(2, 3, 4)], [np.asarray([1, 2])], {"keepdims": 0}),
        ("ReduceL2", [(2, 3, 4)], [np.asarray([1])], {}),
        ("ReduceLogSumExp", [(2, 3, 4)], [np.asarray([1])], {}),
        ("CumSum", [(2, 3)], [np.asarray(1)], {}),
        ("DepthToSpace", [(1, 8, 2, 3)], [], {"blocksize": 2}),
        ("DepthToSpace", [(1, 8, 2, 3)], [], {"blocksize": 2, "mode": "CRD"}),
        ("SpaceToDepth", [(1, 2, 4, 2)], [], {"blocksize": 2}),
        ("Clip", [(2, 3, 4)], [np.float32(-0.31), np.float32(0.31)], {}),
        ("LRN", [(1, 4, 2, 2)], [], {"size": 3}),
        ("LpPool", [(1, 2, 6)], [], {"kernel_shape": [2], "strides": [2]}),
        ("GridSample", [(1, 2, 4, 4)], [normal(1, 3, 3, 2, scale=0.4)], {}),
    ],
    ids=str,
)  # fmt: skip
def test_operators_of_several_operands(op_type, shapes, constants, attributes):
    one(op_type, *shapes, constants=constants, **attributes)


def test_several_outputs_and_a_condition():
    one("Split", (2, 6), constants=[np.asarray([2, 3, 1])], outputs=3, axis=1)
    feed = {"a": spaced(2, 3), "b": spaced(2, 3, seed=1)}
    node = helper.make_node("Where", ["c", "a", "b"], ["y"])
    check(scalar_loss([node], feed, constants={"c": np.arange(6).reshape(2, 3) % 2 == 0}), feed)


@pytest.mark.parametrize(
    ("op_type", "shapes", "attributes", "opset"),
    [
        ("GroupNormalization", [(2, 4, 3), (4,), (4,)], {"num_groups": 2}, 21),
        ("RMSNormalization", [(2, 3, 4), (4,)], {}, 23),
        ("Swish", [(2, 3)], {"alpha": 0.5}, 24),
    ],
)
def test_operators_of_newer_opsets(op_type, shapes, attributes, opset):
    one(op_type, *shapes, opset=opset, **attributes)


RESIZES = [
    {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"},
    {"mode": "nearest"},
    {"mode": "linear"},
    {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    {"mode": "cubic"},
    {"mode": "linear", "antialias": 1},
]


@pytest.mark.parametrize("by", ["scales", "sizes"])
@pytest.mark.parametrize("attributes", RESIZES, ids=str)
def test_resizing(attributes, by):
    down = attributes.get("antialias")
    scales, sizes = (
        np.float32([1, 1, 0.5, 0.5] if down else [1, 1, 2, 1.5]),
        np.asarray([1, 2, 2, 2] if down else [1, 2, 8, 6]),
    )
    one("Resize", (1, 2, 4, 4), constants=[None, scales] if by == "scales" else [None, None, sizes], **attributes)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize(("op_type", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers(op_type, gates, direction):
    ways = 2 if direction == "bidirectional" else 1
    shapes = [(3, 2, 2), (ways, gates * 2, 2), (ways, gates * 2, 2), (ways, gates * 4)]
    extra = {"linear_before_reset": 1} if op_type == "GRU" else {}
    feed = {f"x{n}": normal(*shape, seed=n) for n, shape in enumerate(shapes)}
    node = helper.make_node(op_type, list(feed), ["y", "h"], hidden_size=2, direction=direction, **extra)
    check(scalar_loss([node], feed, ["y", "h"]), feed)
