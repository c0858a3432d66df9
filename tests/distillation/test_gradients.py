"""Derivatives equal differences of the loss, for every operator that networks train through and every way of padding."""

import math

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcompress.distillation.gradients.reverse import RULES, NoDerivativeError, reverse
from onnxcompress.io import model_io
from onnxcompress.runtime import session as runtime

STEP = 1e-2
"""Distance of the two losses of a difference; elements whose order matters differ by more."""


def spaced(*shape, seed=0, scale=1.0):
    """Return numbers in random order that differ by more than the step and are not near zero."""
    size = math.prod(shape)
    grid = (np.arange(size) - size / 2 + 0.5) * max(4 * STEP, 2 / size)
    return (scale * np.random.default_rng(seed).permutation(grid)).reshape(shape).astype(np.float32)


def normal(*shape, seed=0, scale=0.5):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def scalar_loss(nodes, weights, outputs=("y",), constants=None, opset=18):
    """Return a model whose loss is a fixed random combination of outputs, at the shapes that a run shows."""
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    inputs = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in weights.items()]

    def made(nodes, initializers, outputs):
        graph = helper.make_graph(list(nodes), "g", inputs, outputs, list(initializers))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = 9
        return model

    plain = made(nodes, initializers, [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs])
    plain = onnx.shape_inference.infer_shapes(plain)
    found = runtime.open_session(plain.SerializeToString(), optimize=False).run(weights)
    nodes, parts = list(nodes), []
    for number, name in enumerate(outputs):
        shares = np.random.default_rng(7 + number).standard_normal(found[name].shape).astype(np.float32)
        axes = np.arange(shares.ndim)
        initializers += [numpy_helper.from_array(shares, f"shares{number}"), numpy_helper.from_array(axes, f"axes{number}")]
        nodes.append(helper.make_node("Mul", [name, f"shares{number}"], [f"part{number}"]))
        nodes.append(helper.make_node("ReduceSum", [f"part{number}", f"axes{number}"], [f"sum{number}"], keepdims=0))
        parts.append(f"sum{number}")
    nodes.append(helper.make_node("Sum", parts, ["loss"]))
    return onnx.shape_inference.infer_shapes(
        made(nodes, initializers, [helper.make_tensor_value_info("loss", onnx.TensorProto.FLOAT, [])])
    )


def differences(proto, feed, name):
    session = runtime.open_session(proto.SerializeToString(), optimize=False)
    found = np.zeros(feed[name].size)
    for at in range(feed[name].size):
        losses = []
        for step in (STEP, -STEP):
            moved = feed[name].copy().reshape(-1)
            moved[at] += step
            losses.append(float(session.run({**feed, name: moved.reshape(feed[name].shape)})["loss"]))
        found[at] = (losses[0] - losses[1]) / (2 * STEP)
    return found.reshape(feed[name].shape)


def check(proto, feed, names=None, tolerance=2e-2):
    names = [name for name, array in feed.items() if array.dtype == np.float32] if names is None else names
    found = reverse(proto, [feed], names, "loss")
    assert found.blocked == []
    session = runtime.open_session(found.model.SerializeToString(), optimize=True)
    gradients = session.run(feed)
    assert set(found.outputs) == set(names)
    for name in names:
        expected = differences(proto, feed, name)
        scale = max(1e-3, float(np.abs(expected).max()))
        got = gradients[found.outputs[name]]
        assert got.shape == feed[name].shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale, err_msg=name)
    return found


CONV = [
    {},
    {"pads": [1, 1], "strides": [2]},
    {"pads": [2, 0], "dilations": [2]},
    {"auto_pad": "SAME_UPPER", "strides": [2]},
    {"auto_pad": "SAME_LOWER", "strides": [3]},
    {"auto_pad": "VALID", "strides": [2]},
    {"pads": [4, 3]},
]


def widened(attributes, rank):
    """Return the attributes of one axis for several, one of them changed."""
    found = {}
    for name, value in attributes.items():
        if name == "pads":
            found[name] = [value[0]] * rank + [value[1]] * rank
        elif name in ("strides", "dilations", "kernel_shape", "output_padding", "output_shape"):
            found[name] = value * rank
        else:
            found[name] = value
    return found


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("attributes", CONV, ids=str)
def test_convolutions(attributes, rank, groups):
    size = [8, 5, 3][: rank] if rank < 3 else [4, 5, 4]
    if rank == 3 and attributes.get("dilations"):
        size = [5, 5, 5]
    kernel = [3] * rank if rank < 3 else [2, 3, 2]
    feed = {"x": normal(2, 4, *size), "w": normal(4, 4 // groups, *kernel, seed=1), "b": normal(4, seed=2)}
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], group=groups, **widened(attributes, rank))
    check(scalar_loss([node], feed), feed)


TRANSPOSED = [
    {},
    {"strides": [2], "pads": [1, 0]},
    {"strides": [2], "output_padding": [1], "pads": [1, 1]},
    {"dilations": [2], "pads": [1, 1]},
    {"strides": [2], "output_shape": [9]},
    {"strides": [2], "auto_pad": "SAME_UPPER"},
    {"strides": [3], "auto_pad": "SAME_LOWER"},
]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("attributes", TRANSPOSED, ids=str)
def test_transposed_convolutions(attributes, rank, groups):
    size = [4, 4, 2][:rank] if "output_shape" not in attributes else [4] * rank
    feed = {"x": normal(2, 4, *size), "w": normal(4, 4 // groups, *[3, 3, 3][:rank], seed=1), "b": normal(4, seed=2)}
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], group=groups, **widened(attributes, rank))
    check(scalar_loss([node], feed), feed, ["x", "w", "b"] if rank < 3 else ["w", "b"])


def test_one_large_kernel_is_correlated_by_a_convolution():
    feed = {"x": normal(2, 2, 40), "w": normal(3, 2, 16, seed=1), "v": normal(2, 3, 70, seed=2)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], strides=[4]),
        helper.make_node("Conv", ["h", "v"], ["y"], pads=[40, 40]),
    ]
    check(scalar_loss(nodes, feed), feed)


def test_outputs_of_other_channel_counts_per_group():
    feed = {"x": normal(2, 4, 5, 5), "w": normal(6, 2, 3, 1, seed=1)}
    check(scalar_loss([helper.make_node("Conv", ["x", "w"], ["y"], group=2, strides=[1, 2])], feed), feed)
    feed = {"x": normal(2, 4, 5, 5), "w": normal(4, 3, 3, 1, seed=1)}
    check(scalar_loss([helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=2, strides=[1, 2])], feed), feed)


POOLS = [
    {"kernel_shape": [3]},
    {"kernel_shape": [3], "strides": [2], "pads": [1, 1]},
    {"kernel_shape": [2], "strides": [2], "ceil_mode": 1},
    {"kernel_shape": [3], "strides": [2], "ceil_mode": 1, "pads": [0, 1]},
    {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [2], "strides": [1], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [3], "auto_pad": "VALID"},
    {"kernel_shape": [2], "strides": [3]},
    {"kernel_shape": [2], "dilations": [2], "pads": [1, 1]},
]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("attributes", POOLS, ids=str)
@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool", "AveragePool with padding"])
def test_pools(kind, attributes, rank):
    if kind == "MaxPool" and "dilations" in attributes and rank != 2:
        attributes = attributes | {"pads": [0, 0]}
    extra = {"count_include_pad": 1} if "with" in kind else {}
    feed = {"x": spaced(1, 2, *[7, 5, 4][:rank])}
    opset = 19 if "dilations" in attributes else 18
    node = helper.make_node(kind.split()[0], ["x"], ["y"], **widened(attributes, rank), **extra)
    check(scalar_loss([node], feed, opset=opset), feed)


@pytest.mark.parametrize("order", [0, 1])
def test_a_pool_whose_positions_are_read(order):
    feed = {"x": spaced(2, 2, 6, 6)}
    nodes = [
        helper.make_node("MaxPool", ["x"], ["h", "i"], kernel_shape=[2, 2], strides=[2, 2], storage_order=order),
        helper.make_node("Cast", ["i"], ["f"], to=1),
        helper.make_node("Add", ["h", "f"], ["y"]),
    ]
    check(scalar_loss(nodes, feed), feed)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", [[0, 0, 1, 2, 0, 0, 2, 1], [0, 0, 3, 0, 0, 0, 0, 3], [0, 0, -1, 0, 0, 0, 0, -2]], ids=str)
def test_paddings(mode, pads):
    feed = {"x": normal(1, 2, 4, 5)}
    node = helper.make_node("Pad", ["x", "p"], ["y"], mode=mode)
    check(scalar_loss([node], feed, constants={"p": np.asarray(pads)}, opset=19), feed)


def test_a_padding_of_chosen_axes():
    feed = {"x": normal(1, 2, 4, 5)}
    node = helper.make_node("Pad", ["x", "p", "", "a"], ["y"], mode="reflect")
    check(scalar_loss([node], feed, constants={"p": np.asarray([2, 1]), "a": np.asarray([-1])}), feed)


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([1], [4], [1], [1]),
        ([-3], [2**62], [2], None),
        ([0, 1], [4, 6], [1, 2], [2, 3]),
        ([-1], [-(2**62)], [2], [-1]),
        ([5], [0], [-1], [-2]),
        ([2], [3], None, None),
        ([4, 0], [9, 0], [2, 1], [1, 1]),
    ],
)
def test_slices(starts, ends, axes, steps):
    feed = {"x": normal(3, 4, 6)}
    given = {"s": starts, "e": ends} | ({} if axes is None else {"a": axes}) | ({} if steps is None else {"t": steps})
    node = helper.make_node("Slice", ["x", *(name if name in given else "" for name in "seat" if name in "".join(given) or name == "a")], ["y"])
    check(scalar_loss([node], feed, constants={name: np.asarray(value) for name, value in given.items()}), feed)




def one(op_type, *shapes, constants=(), opset=18, outputs=1, tolerance=2e-2, **attributes):
    """Check a node of float operands of these shapes, then constants."""
    feed = {f"x{n}": spaced(*shape, seed=n) if math.prod(shape) < 200 else normal(*shape, seed=n) for n, shape in enumerate(shapes)}
    given = {f"c{n}": array for n, array in enumerate(constants) if array is not None}
    names = [*feed, *(f"c{n}" if array is not None else "" for n, array in enumerate(constants))]
    made = [f"y{n}" for n in range(outputs)]
    node = helper.make_node(op_type, names, made, **attributes)
    check(scalar_loss([node], feed, made, constants=given, opset=opset), feed, tolerance=tolerance)


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("Relu", {}), ("LeakyRelu", {"alpha": 0.2}), ("Elu", {}), ("Selu", {}), ("Celu", {}), ("Sigmoid", {}), ("Tanh", {}),
        ("Softplus", {}), ("Softsign", {}), ("Mish", {}), ("Erf", {}), ("HardSwish", {}), ("HardSigmoid", {"alpha": 0.3}),
        ("Exp", {}), ("Sin", {}), ("Abs", {}), ("Neg", {}), ("Identity", {}), ("ThresholdedRelu", {"alpha": 0.33}),
        ("Softmax", {"axis": 1}), ("LogSoftmax", {"axis": -1}), ("LpNormalization", {}),
        ("MeanVarianceNormalization", {"axes": [1, 2]}), ("Shrink", {"lambd": 0.33}), ("Flatten", {}), ("GlobalAveragePool", {}),
        ("GlobalMaxPool", {}), ("Dropout", {}),
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
        ("BatchNormalization", [(2, 3, 4, 2), (3,), (3,)], [normal(3, seed=5), np.float32([0.5, 1, 2])], {"epsilon": 0.1}),
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
    scales, sizes = np.float32([1, 1, 0.5, 0.5] if down else [1, 1, 2, 1.5]), np.asarray([1, 2, 2, 2] if down else [1, 2, 8, 6])
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
