"""Random networks of the operators in the operator table, each right by construction: a model is its seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Rng = np.random.Generator
Value = tuple[str, tuple[int, ...]]
OPSETS = (13, 15, 17, 18, 20, 21)


def model(seed: int, unary: list[str], *, nodes: int = 12) -> onnx.ModelProto:
    """Return a network.

    Args:
        seed: decides everything.
        unary: operators of one float input that keep its shape, from the operator table.
        nodes: steps of its construction, each a few nodes.
    """
    rng = np.random.default_rng(seed)
    at = _Net(rng, int(rng.choice(OPSETS)), unary)
    shape = ((1, 4, 6, 6), (2, 5, 8), (3, 8), (1, 3, 8, 8))[int(rng.integers(4))]
    at.values.append(("x", shape))
    for _ in range(int(rng.integers(2, nodes + 1))):
        value = at.values[int(rng.integers(max(0, len(at.values) - 4), len(at.values)))]
        step = STEPS[int(rng.integers(len(STEPS)))]
        step(at, value)
    return at.finish(shape)


class _Net:
    """A graph under construction."""

    def __init__(self, rng: Rng, opset: int, unary: list[str]) -> None:
        self.rng, self.opset = rng, opset
        self.unary = [name for name in unary if onnx.defs.has(name) and _is_of_floats(name, opset)]
        self.values: list[Value] = []
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[TensorProto] = []

    def weight(self, *shape: int, scale: float = 0.5) -> str:
        """Add a weight."""
        return self.constant(np.asarray(self.rng.standard_normal(shape) * scale, np.float32))

    def constant(self, array: np.ndarray) -> str:
        """Add a constant, in a node now and then."""
        name = f"w{len(self._weights) + len(self._nodes)}"
        if self.rng.random() < 0.2:
            self._nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        else:
            self._weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op_type: str, inputs: list[str], outputs: int = 1, **attributes: object) -> list[str]:
        """Add a node and return its outputs; some nodes have no name."""
        count = len(self._nodes)
        names = [f"v{count}_{index}" for index in range(outputs)]
        name = f"n{count}" if self.rng.random() < 0.8 else ""
        self._nodes.append(helper.make_node(op_type, inputs, names, name=name, **attributes))
        return names

    def put(self, op_type: str, inputs: list[str], shape: tuple[int, ...], **attributes: object) -> str:
        """Add a node of one output that others may read."""
        (name,) = self.node(op_type, inputs, **attributes)
        self.values.append((name, shape))
        return name

    def finish(self, shape: tuple[int, ...]) -> onnx.ModelProto:
        """Return the model: what nobody reads is an output."""
        read = {name for node in self._nodes for name in node.input}
        ends = [(name, dims) for name, dims in self.values[1:] if name not in read] or [self.values[-1]]
        if ends[0][0] == "x":
            ends = [(self.node("Identity", ["x"])[0], shape)]
        if self.rng.random() < 0.3 and len(self.values) > 3:
            ends = list(dict.fromkeys([*ends, self.values[len(self.values) // 2]]))
            ends = [end for end in ends if end[0] != "x"]
        graph = helper.make_graph(
            self._nodes,
            "generated",
            [helper.make_tensor_value_info("x", 1, shape)],
            [helper.make_tensor_value_info(name, 1, found) for name, found in ends],
            self._weights,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8 if self.opset < 19 else 10)


def _is_of_floats(name: str, opset: int) -> bool:
    try:
        schema = onnx.defs.get_schema(name, opset)
    except onnx.defs.SchemaError:
        return False
    needs = any(attribute.required for attribute in schema.attributes.values())
    one = schema.min_input == 1 and schema.inputs[0].types >= {"tensor(float)"} and not needs
    return one and schema.outputs[0].type_str == schema.inputs[0].type_str


def _unary(net: _Net, value: Value) -> None:
    name, shape = value
    net.put(net.unary[int(net.rng.integers(len(net.unary)))], [name], shape)


def _scaled(net: _Net, value: Value) -> None:
    name, shape = value
    other = net.weight(*(shape[-1:] if net.rng.random() < 0.5 else ()), scale=1.0)
    inputs = [name, other] if net.rng.random() < 0.7 else [other, name]
    net.put(("Add", "Mul", "Sub", "Max", "Min")[int(net.rng.integers(5))], inputs, shape)


def _joined(net: _Net, value: Value) -> None:
    name, shape = value
    same = [other for other, dims in net.values if dims == shape]
    other = same[int(net.rng.integers(len(same)))]
    if net.rng.random() < 0.3:
        axis = int(net.rng.integers(len(shape)))
        dims = tuple(size * (1 + (index == axis)) for index, size in enumerate(shape))
        net.put("Concat", [name, other], dims, axis=axis)
    else:
        net.put(("Add", "Mul")[int(net.rng.integers(2))], [name, other], shape)


def _conv(net: _Net, value: Value) -> None:
    name, shape = value
    if len(shape) < 3:
        return
    channels, spatial = shape[1], len(shape) - 2
    groups = channels if net.rng.random() < 0.3 else 1
    out = channels if groups > 1 else int(net.rng.integers(2, 9))
    kernel = 1 if min(shape[2:]) < 3 or net.rng.random() < 0.4 else 3
    weights = [net.weight(out, channels // groups, *[kernel] * spatial, scale=0.3)]
    weights += [net.weight(out)] if net.rng.random() < 0.6 else []
    pads = [kernel // 2] * 2 * spatial
    made = net.put("Conv", [name, *weights], (shape[0], out, *shape[2:]), group=groups, pads=pads)
    if net.rng.random() < 0.4:
        statistics = [net.weight(out), net.weight(out), net.weight(out)]
        variance = net.constant(net.rng.uniform(0.3, 2.0, out).astype(np.float32))
        net.put("BatchNormalization", [made, *statistics, variance], (shape[0], out, *shape[2:]))


def _product(net: _Net, value: Value) -> None:
    name, shape = value
    out = int(net.rng.integers(2, 12))
    if len(shape) == 2 and net.rng.random() < 0.5:
        turned = int(net.rng.integers(2))
        weight = net.weight(*((out, shape[1]) if turned else (shape[1], out)))
        net.put("Gemm", [name, weight, net.weight(out)], (shape[0], out), transB=turned)
        return
    made = net.node("MatMul", [name, net.weight(shape[-1], out)])[0]
    net.put("Add", [made, net.weight(out)], (*shape[:-1], out))


def _pooled(net: _Net, value: Value) -> None:
    name, shape = value
    if len(shape) < 3:
        return
    if net.rng.random() < 0.3:
        kind = ("GlobalAveragePool", "GlobalMaxPool")[int(net.rng.integers(2))]
        net.put(kind, [name], (*shape[:2], *[1] * (len(shape) - 2)))
    elif min(shape[2:]) >= 2:
        sizes = tuple((size - 2) // 2 + 1 for size in shape[2:])
        kind = ("MaxPool", "AveragePool")[int(net.rng.integers(2))]
        net.put(kind, [name], (*shape[:2], *sizes), kernel_shape=[2] * len(sizes), strides=[2] * len(sizes))


def _moved(net: _Net, value: Value) -> None:
    name, shape = value
    order = net.rng.permutation(len(shape))
    turned = tuple(shape[axis] for axis in order)
    made = net.put("Transpose", [name], turned, perm=[int(axis) for axis in order])
    if net.rng.random() < 0.4:
        net.put("Transpose", [made], shape, perm=[int(axis) for axis in np.argsort(order)])


def _reshaped(net: _Net, value: Value) -> None:
    name, shape = value
    kind = int(net.rng.integers(4))
    if kind == 0:
        net.put("Flatten", [name], (shape[0], int(np.prod(shape[1:]))), axis=1)
    elif kind == 1:
        net.put("Reshape", [name, net.constant(np.array([0, -1]))], (shape[0], int(np.prod(shape[1:]))))
    elif kind == 2:
        (made,) = net.node("Unsqueeze", [name, net.constant(np.array([1]))])
        net.put("Squeeze", [made, net.constant(np.array([1]))], shape)
    else:
        (sizes,) = net.node("Shape", [name])
        net.put("Reshape", [net.node("Reshape", [name, net.constant(np.array([-1]))])[0], sizes], shape)


def _cut(net: _Net, value: Value) -> None:
    name, shape = value
    axis = int(net.rng.integers(len(shape)))
    size = shape[axis]
    if size < 2:
        return

    def with_size(new: int) -> tuple[int, ...]:
        return (*shape[:axis], new, *shape[axis + 1 :])

    kind = int(net.rng.integers(4))
    if kind == 0:
        bounds = [net.constant(np.array([number])) for number in (1, size, axis)]
        net.put("Slice", [name, *bounds], with_size(size - 1))
    elif kind == 1:
        picked = net.constant(net.rng.integers(0, size, 3))
        net.put("Gather", [name, picked], with_size(3), axis=axis)
    elif kind == 2 and net.opset >= 13:
        first, second = net.node("Split", [name, net.constant(np.array([1, size - 1]))], 2, axis=axis)
        net.values += [(first, with_size(1)), (second, with_size(size - 1))]
    else:
        pads = np.zeros(2 * len(shape), np.int64)
        pads[axis] = 1
        net.put("Pad", [name, net.constant(pads)], with_size(size + 1))


def _normed(net: _Net, value: Value) -> None:
    name, shape = value
    kind = int(net.rng.integers(3))
    if kind == 0 and net.opset >= 17:
        net.put("LayerNormalization", [name, net.weight(shape[-1]), net.weight(shape[-1])], shape, axis=-1)
    elif kind == 1:
        net.put("Softmax", [name], shape, axis=-1)
    else:
        keep = {"axes": [-1]} if net.opset < 18 else {}
        inputs = [name] if keep else [name, net.constant(np.array([-1]))]
        (mean,) = net.node("ReduceMean", inputs, **keep)
        net.put("Sub", [name, mean], shape)


def _cast(net: _Net, value: Value) -> None:
    name, shape = value
    (half,) = net.node("Cast", [name], to=TensorProto.FLOAT16)
    net.put("Cast", [half], shape, to=TensorProto.FLOAT)


def _branched(net: _Net, value: Value) -> None:
    name, shape = value
    (positive,) = net.node("Greater", [net.node("ReduceMax", [name], keepdims=0)[0], net.constant(np.float32(0.0))])
    end = helper.make_tensor_value_info("b", 1, shape)
    bodies = [
        helper.make_graph([helper.make_node(op, [name], ["b"], name=op)], op.lower(), [], [end])
        for op in ("Neg", "Identity")
    ]
    net.put("If", [positive], shape, then_branch=bodies[0], else_branch=bodies[1])


STEPS: tuple[Callable[[_Net, Value], None], ...] = (
    *(_unary, _unary, _scaled, _scaled, _joined, _joined, _conv, _conv, _conv, _product, _product, _product),
    *(_pooled, _moved, _reshaped, _cut, _normed, _cast, _branched),
)
