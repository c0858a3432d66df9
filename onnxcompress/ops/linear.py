"""One view on linear layers: a matrix and a bias, rows in and rows out, whatever the operator.

    rows(x) @ matrix' + bias = targets(y)        for each group of channels

x is what a node reads, y what it gives before any activation: behind the bias, which may be an Add of its own. The
layer writes a new matrix and bias back to where they came from. The operators are those of `ops.table`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import constants as float_constants
from ..graph import edit, query
from ..numerics.linear.patches import Window, patches
from . import table as ops


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A node that multiplies what it reads by a constant matrix; made by `linear_layer`.

    Args:
        node: the node that multiplies.
        facts: its weight's row in the operator table.
        groups: equal parts of the input channels, each of which makes its own part of the output channels.
        window: how the matrix moves over the input; None where each row of the input is one row.
        addition: the Add of a constant that follows as the layer's bias, for operators without a bias of their own.
    """

    node: ir.Node
    facts: ops.Weight
    groups: int
    window: Window | None
    addition: ir.Node | None

    @property
    def label(self) -> str:
        """The name by which reports speak of the layer: its node's."""
        return query.label(self.node)

    @property
    def x(self) -> ir.Value:
        """The value that is multiplied."""
        return _present(self.node.inputs[self.facts.data])

    @property
    def y(self) -> ir.Value:
        """The result before any activation, bias included."""
        return (self.node if self.addition is None else self.addition).outputs[0]

    @property
    def weight(self) -> ir.Value:
        """The constant that holds the matrix as float, or the output of a Cast or (`is_fixed`) a DequantizeLinear."""
        return _present(self.node.inputs[self.facts.port])

    @property
    def bias_value(self) -> ir.Value | None:
        """The constant that is added, None where the layer has none."""
        if self.addition is not None:
            return next(v for v in self.addition.inputs if v is not None and v is not self.node.outputs[0])
        port = self.facts.bias
        return self.node.inputs[port] if port is not None and port < len(self.node.inputs) else None

    @property
    def is_fixed(self) -> bool:
        """True where the matrix is stored as integers, so that only the bias can be written."""
        return float_constants.tensor(self.weight) is None

    @property
    def has_bias(self) -> bool:
        """True where the layer has a bias, or can have one without a further node."""
        return self.bias_value is not None or self.facts.bias is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, output channels of each group, columns: the matrix's shape, without reading it."""
        dims = float_constants.dims(self.weight)
        channels = dims[self._axes(len(dims))[0]]
        return self.groups, channels // self.groups, math.prod(dims) // channels

    @property
    def channel_axis(self) -> int:
        """The axis of `y` that numbers output channels."""
        return {ops.Sums.WINDOWS: 1, ops.Sums.LAST: -1, ops.Sums.SECOND_LAST: -2}[self._sums]

    @property
    def input_axis(self) -> int:
        """The axis of `x` that numbers input channels."""
        return {ops.Sums.WINDOWS: 1, ops.Sums.LAST: -1, ops.Sums.SECOND_LAST: -2}[self._sums]

    def matrix(self) -> np.ndarray:
        """Read the weight: float32 [groups, out, columns], Gemm's alpha included."""
        stored = float_constants.read(self.weight)
        return (self.flat(stored) * np.float32(query.attribute(self.node, "alpha", 1.0))).astype(np.float32)

    def bias(self) -> np.ndarray | None:
        """Read the bias: float32 [groups * out], Gemm's beta included; None where there is none."""
        value = self.bias_value
        if value is None:
            return None
        groups, out, _ = self.shape
        beta = 1.0 if self.addition is not None else float(query.attribute(self.node, "beta", 1.0))
        stored = float_constants.read(value).astype(np.float32).reshape(-1) * np.float32(beta)
        return np.array(np.broadcast_to(stored, groups * out))

    def flat(self, stored: np.ndarray) -> np.ndarray:
        """Return a weight as it is stored as a matrix: [groups, out, columns], of its type."""
        moved = np.moveaxis(stored, self._axes(stored.ndim), (0, 1))
        return moved.reshape(self.groups, moved.shape[0] // self.groups, -1)

    def stored(self, weight: np.ndarray) -> np.ndarray:
        """Return a weight [groups, out, in, *kernel] of any sizes as this layer's operator stores it, without alpha."""
        alpha = float(query.attribute(self.node, "alpha", 1.0))
        return self._laid_out(weight / alpha if alpha != 1 else weight, weight.shape[3:])

    def count(self, x_shape: Sequence[int]) -> int:
        """Return how many rows an input of this shape has in each group."""
        if self.window is not None:
            return int(x_shape[0]) * math.prod(self.window.positions(x_shape[2:]))
        return math.prod(x_shape) // self.shape[2]

    def rows(self, x: np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
        """Return what the matrix is multiplied by: [groups, n, columns], of x's type.

        Args:
            x: an array of the value `x`.
            at: int [n], the rows wanted; None for all. `numerics.patches.choose` picks some of `count(x.shape)`.
        """
        if self.window is not None:
            return patches(x, self.window, groups=self.groups, at=at)
        if self._sums is ops.Sums.SECOND_LAST:
            x = np.swapaxes(x, -1, -2)
        flat = x.reshape(-1, x.shape[-1])
        return (flat if at is None else flat[at])[None]

    def targets(self, y: np.ndarray, at: np.ndarray | None = None, *, keep: np.ndarray | None = None) -> np.ndarray:
        """Return the same rows of an output: [groups, n, out], of y's type.

        Args:
            y: an array of the value `y`, or what should have been there.
            at: int [n], the rows wanted; None for all.
            keep: which of y's channels are this layer's, where `y` has more of them; None for all.
        """
        last = np.moveaxis(y, self.channel_axis, -1)
        flat = last.reshape(-1, last.shape[-1]) if at is None else last[np.unravel_index(at, last.shape[:-1])]
        if keep is not None:
            flat = flat[:, keep]
        return np.ascontiguousarray(flat.reshape(len(flat), self.groups, -1).transpose(1, 0, 2))

    def with_weights(self, matrix: np.ndarray | None, bias: np.ndarray | None, names: edit.Names) -> LinearLayer:
        """Write a matrix and a bias into the model and return the layer as it is then.

        A constant that others read too is left to them. A bias where there was none takes the free port, or a new
        Add, whose output takes over the name of `y`. A matrix that `is_fixed` stays as it is.

        Args:
            matrix: [groups, out, columns], as `matrix()` gives it; None to keep it.
            bias: [groups * out]; None to keep it, or to have none.
            names: the names taken in the model.

        Raises:
            ValueError: a number is beyond the stored type, or the bias is stored as integers and is beyond these.
        """
        if matrix is not None and not self.is_fixed:
            alpha = float(query.attribute(self.node, "alpha", 1.0))
            stored = self._laid_out(matrix / np.float32(alpha), self._kernel)
            float_constants.write(self.node, self.facts.port, stored, names)
        if bias is None:
            return self
        return self._with_bias(bias, names)

    def _with_bias(self, bias: np.ndarray, names: edit.Names) -> LinearLayer:
        holder, port, value = self.node, self.facts.bias, self.bias_value
        if self.addition is not None:
            holder, port = self.addition, list(self.addition.inputs).index(value)
        elif "beta" in self.node.attributes:
            self.node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
        if value is not None:
            assert port is not None
            dims = float_constants.dims(value)
            fits = math.prod(dims) == bias.size
            float_constants.write(holder, port, bias.reshape(dims if fits else self._bias_shape(bias)), names)
            return self
        tensor = float_constants.tensor(self.weight)
        dtype = np.dtype(np.float32) if tensor is None else tensor.dtype.numpy()
        made = edit.add_initializer(
            query.home(self.node),
            names,
            f"{self.label}_bias",
            float_constants.cast(bias.reshape(self._bias_shape(bias)), dtype),
        )
        if port is not None:
            self.node.resize_inputs(max(port + 1, len(self.node.inputs)))
            self.node.replace_input_with(port, made)
            return self
        return LinearLayer(
            self.node, self.facts, self.groups, self.window, edit.insert_after(self.node.outputs[0], names, "Add", made)
        )

    def _bias_shape(self, bias: np.ndarray) -> tuple[int, ...]:
        return (bias.size, 1) if self._sums is ops.Sums.SECOND_LAST else (bias.size,)

    @property
    def _sums(self) -> ops.Sums:
        assert self.facts.sums is not None
        return self.facts.sums

    def _axes(self, rank: int) -> tuple[int, int]:
        assert self.facts.in_axis is not None
        return self.facts.out_axis(self.node, rank), self.facts.in_axis(self.node, rank)

    @property
    def _kernel(self) -> tuple[int, ...]:
        return () if self.window is None else self.window.kernel

    def _laid_out(self, matrix: np.ndarray, kernel: tuple[int, ...]) -> np.ndarray:
        moved = matrix.reshape(matrix.shape[0] * matrix.shape[1], -1, *kernel)
        return np.ascontiguousarray(np.moveaxis(moved, (0, 1), self._axes(moved.ndim)))


def linear_layers(model: ir.Model) -> list[LinearLayer]:
    """Return the linear layers of the model, bodies of If/Loop/Scan included, in the order of its nodes."""
    found = (linear_layer(node) for body in query.graphs_outside_functions(model) for node in body)
    return [layer for layer in found if isinstance(layer, LinearLayer)]


def linear_layer(node: ir.Node) -> LinearLayer | str | None:
    """Return the node as a linear layer, why it can't be seen as one, or None where it has no weights to multiply."""
    fault: str | None = None
    for facts in ops.spec(node).weights:
        if facts.in_axis is None or facts.port >= len(node.inputs) or node.inputs[facts.port] is None:
            continue
        found = _read_layer(node, facts)
        if isinstance(found, LinearLayer):
            return found
        fault = fault or found
    return fault


def why_not_linear(node: ir.Node) -> str | None:
    """Return why passes over linear layers leave a node with weights alone, None where it is such a layer."""
    found = linear_layer(node)
    if isinstance(found, LinearLayer):
        return None
    return found or f"{node.op_type} is no product of its input with a matrix"


def _read_layer(node: ir.Node, facts: ops.Weight) -> LinearLayer | str:
    if facts.sums is None:
        return f"{node.op_type} is not one plain matrix product"
    if query.attribute(node, "activation"):
        return "an activation is fused into it"
    if query.attribute(node, "transA", 0) or query.attribute(node, "alpha", 1.0) == 0:
        return "its input is transposed" if query.attribute(node, "transA", 0) else "its alpha is 0"
    weight = node.inputs[facts.port]
    if weight is None or not float_constants.is_float(weight):
        return "its weight is not constant"
    dims = float_constants.dims(weight)
    is_window = facts.sums is ops.Sums.WINDOWS
    if (len(dims) < 3) if is_window else (len(dims) != 2):
        return f"its weight of shape {list(dims)} is not one matrix"
    groups = int(query.attribute(node, "group", 1)) if is_window else 1
    if facts.bias is not None and facts.bias < len(node.inputs) and node.inputs[facts.bias] is not None:
        bias, channels = node.inputs[facts.bias], dims[facts.out_axis(node, len(dims))]
        if bias is None or not float_constants.is_float(bias) or not _is_bias(float_constants.dims(bias), channels, -1):
            return "its bias is not one constant number per output channel"
    window = _window(node, dims[2:]) if is_window else None
    return LinearLayer(node, facts, groups, window, None if facts.bias is not None else _addition(node, facts, dims))


def _window(node: ir.Node, kernel: tuple[int, ...]) -> Window:
    ones = (1,) * len(kernel)
    auto = query.attribute(node, "auto_pad", "NOTSET")
    flat = [int(n) for n in query.attribute(node, "pads", (0, 0) * len(kernel))]
    pairs = tuple(zip(flat[: len(kernel)], flat[len(kernel) :], strict=True))
    return Window(
        kernel=kernel,
        strides=tuple(int(n) for n in query.attribute(node, "strides", ones)),
        dilations=tuple(int(n) for n in query.attribute(node, "dilations", ones)),
        pads={"NOTSET": pairs, "VALID": ((0, 0),) * len(kernel)}.get(auto),
        is_upper=auto != "SAME_LOWER",
    )


def _addition(node: ir.Node, facts: ops.Weight, dims: tuple[int, ...]) -> ir.Node | None:
    """Return the Add of a constant per output channel that alone reads the node, None where there is none."""
    consumer = query.sole_consumer(node.outputs[0])
    if consumer is None or not query.is_op(consumer, "Add") or consumer.graph is not node.graph:
        return None
    other = next((v for v in consumer.inputs if v is not node.outputs[0]), None)
    axis = -1 if facts.sums is ops.Sums.LAST else -2
    if other is None or not float_constants.is_float(other):
        return None
    return consumer if _is_bias(float_constants.dims(other), dims[facts.out_axis(node, len(dims))], axis) else None


def _is_bias(dims: tuple[int, ...], channels: int, axis: int) -> bool:
    """Say whether a constant of this shape adds one number per channel, or one to all."""
    size = math.prod(dims)
    return size == 1 or (size == channels and -axis <= len(dims) and dims[axis] == channels)


def _present(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value
