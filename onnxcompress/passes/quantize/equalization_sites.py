"""Places where channels can be scaled without changing what a model computes.

    maker  ->  activations and pools that let positive factors through  ->  linear layers

A maker is a linear layer, a normalisation with a scale and shift, or a constant that multiplies. Divided there and
multiplied in every layer that reads the channels, a factor cancels. Where others read them too, as with residual
connections, or nothing before can take factors, a Mul can be put in front of the layers (`find_unmade`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...graph import constants as float_constants
from ...graph import edit, query
from ...numerics.quantization import float16
from ...ops import linear as layers
from ...ops import table as ops

_FIRST_SPATIAL = 2
"""Axis of a feature map [n, channels, ...] behind its channels."""


@dataclass(frozen=True, eq=False)
class ScalingSite:
    """Channels that one maker gives and only linear layers read, or that a Mul is to be put behind.

    Args:
        value: what the maker gives.
        channels: how many.
        parts: (node, port) of the constants that make the channels and no linear layer holds.
        maker: the linear layer that makes them, None where another node does.
        readers: all layers that read them, whatever is in between; for a Mul those that read it.
        takes_node: a Mul is put between the value and the readers, which are all in one graph.
    """

    value: ir.Value
    channels: int
    parts: tuple[tuple[ir.Node, int], ...]
    maker: layers.LinearLayer | None
    readers: tuple[layers.LinearLayer, ...]
    takes_node: bool = False

    @property
    def label(self) -> str:
        """The name by which reports speak of the place: its maker's."""
        node = self.value.producer()
        return self.value.name or "?" if node is None else query.label(node)

    def holds(self, scale: np.ndarray) -> bool:
        """Say whether what is stored in 16 bits, behind a Cast, can hold its numbers once they are scaled."""
        spread, by = scale.max(), scale.min()
        made = [] if self.maker is None else [self.maker.weight, self.maker.bias_value]
        made += [node.inputs[port] for node, port in self.parts]
        return all(_holds(value, 1 / spread, 1 / by) for value in made) and all(
            _holds(layer.weight, by, spread) for layer in self.readers
        )

    def apply(self, scale: np.ndarray, names: edit.Names) -> None:
        """Divide the channels by `scale`, float32 [channels], and multiply what the layers read with by it."""
        if self.takes_node:
            self._divide(scale, names)
        if self.maker is not None:
            groups, out, _ = self.maker.shape
            bias = self.maker.bias()
            self.maker.with_weights(
                self.maker.matrix() / scale.reshape(groups, out, 1), None if bias is None else bias / scale, names
            )
        for node, port in self.parts:
            value = node.inputs[port]
            assert value is not None
            stored = float_constants.read(value)
            axis = -1 if not query.is_op(node, "BatchNormalization") else 0
            spread = [1] * max(stored.ndim, 1)
            spread[axis] = self.channels
            float_constants.write(node, port, (stored / scale.reshape(spread)).astype(stored.dtype), names)
        for layer in self.readers:
            groups, _, columns = layer.shape
            factors = np.repeat(scale, groups * columns // self.channels).reshape(groups, 1, columns)
            layer.with_weights(layer.matrix() * factors, None, names)

    def _divide(self, scale: np.ndarray, names: edit.Names) -> None:
        """Put a Mul by 1 / scale before the first reader, and let all of them read it."""
        first = self.readers[0].node
        hint = f"{self.label}_scaled"
        factors = edit.add_initializer(query.home(first), names, f"{hint}_by", 1 / scale)
        made = edit.insert_before(first, names, "Mul", [self.value, factors], hint=hint)
        for layer in self.readers:
            layer.node.replace_input_with(layer.facts.data, made.outputs[0])


def _holds(value: ir.Value | None, least: float, most: float) -> bool:
    """Say whether a constant behind a Cast keeps its numbers if all of them are scaled by both factors."""
    if value is None or not float_constants.is_cast(value):
        return True
    cast = value.producer()
    stored = None if cast is None else query.constant_tensor(cast.inputs[0])
    assert stored is not None
    rows = float_constants.read(value).astype(np.float32).reshape(1, -1)
    for factor in (least, most):
        signal, noise = float16.row_losses(rows * np.float32(factor), stored.dtype.numpy())
        if np.isfinite(float16.worst_db(signal, noise)):
            return False
    return True


def find_unmade(model: ir.Model, made: Sequence[ScalingSite]) -> list[ScalingSite]:
    """Return the places before matrix products that none of the sites `made` is about, where a Mul can divide channels.

    Layers that read one value in one graph share the Mul.
    """
    known = {id(layer.node) for site in made for layer in site.readers}
    found: dict[tuple[ir.Value, ir.Graph], list[layers.LinearLayer]] = {}
    for layer in layers.linear_layers(model):
        if id(layer.node) not in known and _is_plain(layer) and layer.window is None and layer.input_axis == -1:
            found.setdefault((layer.x, query.home(layer.node)), []).append(layer)
    return [
        ScalingSite(value, readers[0].shape[2], (), None, tuple(readers), takes_node=True)
        for (value, _), readers in found.items()
    ]


def find(model: ir.Model) -> list[ScalingSite]:
    """Return the places of a model, in the order of its nodes; each weight may be in several."""
    linear = {id(layer.node): layer for layer in layers.linear_layers(model) if _is_plain(layer)}
    found = []
    for body in query.graphs_outside_functions(model):
        for node in body:
            site = _site(node, linear)
            if site is not None:
                found.append(site)
    return found


def _is_plain(layer: layers.LinearLayer) -> bool:
    tensor = float_constants.tensor(layer.weight)
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT


@dataclass(frozen=True)
class _ScaledLine:
    """Axis of a value that carries the channels: 1 behind a window (with the rank it has), or the last."""

    axis: int
    rank: int | None = None


def _site(node: ir.Node, linear: dict[int, layers.LinearLayer]) -> ScalingSite | None:
    layer = linear.get(id(node))
    if layer is not None:
        groups, out, _ = layer.shape
        value, channels = layer.y, groups * out
        parts: tuple[tuple[ir.Node, int], ...] = ()
        if layer.channel_axis == -2:
            return None
        line = _ScaledLine(1, len(layer.window.kernel) + 2) if layer.window is not None else _ScaledLine(-1)
    else:
        made = _constants(node)
        if made is None:
            return None
        parts, channels, line = made
        value = node.outputs[0]
    readers: list[layers.LinearLayer] = []
    if not _follow(value, line, channels, linear, readers) or not readers:
        return None
    return ScalingSite(value, channels, parts, layer, tuple(readers))


def _constants(node: ir.Node) -> tuple[tuple[tuple[ir.Node, int], ...], int, _ScaledLine] | None:
    """Return the constants by which a node makes channels, how many and where; None where it does not."""
    if query.is_op(node, "LayerNormalization"):
        if int(query.attribute(node, "axis", -1)) != -1 or len(node.outputs) > 1:
            return None
        ports, line = [1, *([2] if len(node.inputs) > 2 and node.inputs[2] is not None else [])], _ScaledLine(-1)
    elif query.is_op(node, "BatchNormalization"):
        if len(node.outputs) > 1 or query.attribute(node, "training_mode", 0):
            return None
        ports, line = [1, 2], _ScaledLine(1)
    else:
        return _scaled(node)
    sizes = {_channels(node.inputs[port]) for port in ports}
    if len(sizes) != 1 or None in sizes:
        return None
    (channels,) = sizes
    assert channels is not None
    return tuple((node, port) for port in ports), channels, line


def _scaled(node: ir.Node) -> tuple[tuple[tuple[ir.Node, int], ...], int, _ScaledLine] | None:
    """Read x * scale, and x * scale + shift, with one number for each place of the last axis."""
    parts: list[tuple[ir.Node, int]] = []
    channels: int | None = None
    while query.is_op(node, "Add", "Mul") and len(node.inputs) == 2:
        port = next((p for p in (1, 0) if _channels(node.inputs[p]) is not None), None)
        other = None if port is None else node.inputs[1 - port]
        if port is None or other is None or channels not in (None, _channels(node.inputs[port])):
            return None
        channels = _channels(node.inputs[port])
        parts.append((node, port))
        if query.is_op(node, "Mul"):
            return tuple(parts), channels or 0, _ScaledLine(-1)
        before = other.producer()
        if before is None or query.sole_consumer(other) is not node or before.graph is not node.graph:
            return None
        node = before
    return None


def _channels(value: ir.Value | None) -> int | None:
    """Return the size of a constant vector of more than one float32, whose other axes are 1; None for all else."""
    tensor = float_constants.tensor(value)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    dims = query.dims(tensor)
    return dims[-1] if dims and dims[-1] > 1 and tensor.size == dims[-1] else None


def _follow(
    value: ir.Value,
    line: _ScaledLine,
    channels: int,
    linear: dict[int, layers.LinearLayer],
    readers: list[layers.LinearLayer],
) -> bool:
    """Gather the linear layers that read the channels; False where something else does."""
    if value.is_graph_output() or not value.uses():
        return False
    for node, port in value.uses():
        layer = linear.get(id(node))
        if layer is not None and layer.x is value and port == layer.facts.data:
            groups, _, columns = layer.shape
            wanted = 1 if layer.window is not None else -1
            if layer.channel_axis == -2 or line.axis != wanted or (groups * columns) % channels:
                return False
            if layer.window is not None and groups * columns != channels * int(np.prod(layer.window.kernel)):
                return False
            readers.append(layer)
            continue
        after = _through(node, line) if port == 0 else None
        if after is None or not _follow(node.outputs[0], after, channels, linear, readers):
            return False
    return True


def _through(node: ir.Node, line: _ScaledLine) -> _ScaledLine | None:
    """Return where the channels are behind a node that lets positive factors through; None for all other nodes."""
    if query.is_op(node, *ops.HOMOGENEOUS):
        return line
    if query.is_op(node, *ops.HOMOGENEOUS_POOLS) and line.axis == 1 and len(node.outputs) == 1:
        return line
    if query.is_op(node, "ReduceMean", "ReduceMax", "ReduceMin") and line.axis == 1 and line.rank is not None:
        axes = query.integers(node, "axes", 1)
        if axes is None or {a % line.rank for a in axes} != set(range(_FIRST_SPATIAL, line.rank)):
            return None
        return line if query.attribute(node, "keepdims", 1) else _ScaledLine(-1)
    if query.is_op(node, "Flatten") and line.axis == 1 and int(query.attribute(node, "axis", 1)) == 1:
        return _ScaledLine(-1)
    return None


def reads(sites: list[ScalingSite]) -> Iterator[str]:
    """Yield the names of the values whose numbers decide about scales: what makers and readers read."""
    for site in sites:
        for layer in (*(() if site.maker is None else (site.maker,)), *site.readers):
            if layer.x.name:
                yield layer.x.name
