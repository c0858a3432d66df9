"""Sensible values for the inputs of a model, read from what its graph does with them.

Token ids must lie within the table that they index, a sampling rate must be one that the model compares with,
a mask should let everything through, a shape must fit. Each input is followed through the operators that only
move or convert its elements, into sub-graphs and local functions, to those that give it a meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..graph import query
from ..ops import table as ops

_UNKNOWN_TABLE = 2
"""Rows taken for granted in a table whose size can't be read from the graph."""

_INDEX_PORTS: Mapping[str, tuple[int, int]] = {
    "Gather": (1, 0),
    "GatherElements": (1, 0),
    "GatherND": (1, 0),
    "ScatterElements": (1, 0),
    "ScatterND": (1, 0),
    "Scatter": (1, 0),
    "GatherBlockQuantized": (1, 0),
}
"""Operator -> (port of the indices, port of the table)."""

_EMBEDDING_PORTS: Mapping[int, int] = {0: 2, 1: 4}
"""EmbedLayerNormalization (com.microsoft): port of ids -> port of their table."""

_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})

_REDUCTIONS = frozenset({"Squeeze", "Unsqueeze", "CumSum", "CumProd"})

_POSITIVE_PORTS: Mapping[str, frozenset[int]] = {
    "BatchNormalization": frozenset({4}),
    "QuantizeLinear": frozenset({1}),
    "DequantizeLinear": frozenset({1}),
    "Resize": frozenset({2}),
    "Log": frozenset({0}),
    "Sqrt": frozenset({0}),
}

_FEW_NUMBERS = 16
"""Elements: a larger constant holds data, no sizes. Chosen by judgement; not measured."""

_LEAST_NAMED, _MOST_NAMED = 1, 20_000
"""Sizes between these are tried as those of an input. Chosen by judgement; not measured."""

_MOST_SIZES = 60
"""Sizes that are tried. Chosen by judgement; not measured."""

_LARGE = np.iinfo(np.int32).max


@dataclass
class Role:
    """Known properties of the sensible values of one input.

    Attributes:
        limit: values must be in [0, limit); None where the input is no index.
        compared: constants that the model compares the input with, in graph order.
        mask: a one lets the element through.
        positive: must be above zero.
        value: int64 or float64 array that the operator behind needs, as far as the graph tells.
        branches: If nodes take their branch by this input.

    """

    limit: int | None = None
    compared: list[float] = field(default_factory=list)
    mask: bool = False
    positive: bool = False
    value: np.ndarray | None = None
    branches: bool = False


def roles(model: ir.Model) -> dict[str, Role]:
    """Return what each graph input is used for, by its name."""
    return {value.name or "": _role(model, value) for value in model.graph.inputs}


def named_sizes(model: ir.Model) -> list[int]:
    """Return sizes that the model's own whole numbers name, smallest first.

    A constant length of a recurrent layer, the target of a Reshape, an index that is picked (its axis has one more).
    """
    found: set[int] = set()
    for node in query.nodes(model):
        for value in node.inputs:
            array = query.small_constant(value, most=_FEW_NUMBERS)
            if array is not None and array.dtype.kind in "iu":
                step = 1 if node.op_type in _INDEX_PORTS else 0
                found.update(int(n) + step for n in array.reshape(-1) if _LEAST_NAMED < n < _MOST_NAMED)
    return sorted(found)[:_MOST_SIZES]


def _role(model: ir.Model, value: ir.Value) -> Role:
    role = Role(mask="mask" in (value.name or "").lower())
    for node, port in _meanings(model, value):
        _learn(role, node, port)
    return role


def _meanings(model: ir.Model, start: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Yield every (node, port) that the elements of `start` reach unchanged."""
    queue, seen = [start], {id(start)}
    while queue:
        for node, port in queue.pop(0).uses():
            yield node, port
            for value in _carried(model, node, port):
                if id(value) not in seen:
                    seen.add(id(value))
                    queue.append(value)


def _carried(model: ir.Model, node: ir.Node, port: int) -> list[ir.Value]:
    """Return the values that hold the elements of input `port` after `node`."""
    function = model.functions.get(node.op_identifier())
    if function is not None:
        return [function.inputs[port]] if port < len(function.inputs) else []
    if query.is_op(node, "Loop", "Scan") and (port >= 2 or node.op_type == "Scan"):
        return [body.inputs[port] for body in query.bodies(node) if port < len(body.inputs)]
    return list(node.outputs) if ops.carries(node, port) else []


def _learn(role: Role, node: ir.Node, port: int) -> None:
    """Add what use as input `port` of `node` tells."""
    if port in _POSITIVE_PORTS.get(node.op_type, ()):
        role.positive = True
    table = _table(node, port)
    if table is not None:
        limit = _axis_length(*table) or _UNKNOWN_TABLE
        role.limit = limit if role.limit is None else min(role.limit, limit)
    elif node.op_type in _COMPARISONS and len(node.inputs) == 2:
        constant = query.scalar(node.inputs[1 - port])
        if constant is not None:
            role.compared.append(constant)
            role.branches = True
    elif node.op_type == "Sub" and port == 1 and query.scalar(node.inputs[0]) == 1:
        role.mask = True
    elif node.op_type == "If":
        role.branches = True
    elif role.value is None:
        role.value = _needed(node, port)


def _table(node: ir.Node, port: int) -> tuple[ir.Value | None, int] | None:
    """Return (table, axis) that input `port` of `node` indexes, None where it is no index."""
    if node.op_type == "EmbedLayerNormalization" and port in _EMBEDDING_PORTS:
        return node.inputs[_EMBEDDING_PORTS[port]], 0
    if node.op_type not in _INDEX_PORTS or port != _INDEX_PORTS[node.op_type][0]:
        return None
    axis = query.attribute(node, "axis", query.attribute(node, "gather_axis", 0))
    return node.inputs[_INDEX_PORTS[node.op_type][1]], int(axis)


def _axis_length(value: ir.Value | None, axis: int) -> int | None:
    """Return the size of a table along `axis`: of a constant, also behind DequantizeLinear and its like."""
    while value is not None:
        tensor = query.constant_tensor(value)
        if tensor is not None:
            return query.dims(tensor)[axis] if tensor.shape.rank() else None
        node = value.producer()
        if node is None:
            dims = _declared(value)
            return dims[axis] if dims and -len(dims) <= axis < len(dims) else None
        if query.is_op(node, "Transpose"):
            perm = query.attribute(node, "perm")
            axis = perm[axis] if perm else -1 - axis
        elif not query.is_op(node, "DequantizeLinear", "Cast", "Identity"):
            return None
        value = node.inputs[0]
    return None


def _declared(value: ir.Value | None) -> list[int] | None:
    """Return a declared shape where it is all numbers; a guess to be tried, for it may be wrong."""
    if value is None or value.shape is None:
        return None
    dims = [dim for dim in value.shape if isinstance(dim, int)]
    return dims if len(dims) == value.shape.rank() else None


def _needed(node: ir.Node, port: int) -> np.ndarray | None:
    """Return the value that `node` needs at a port that takes a shape, axes, a count or a bound."""
    needed = _NEEDS.get((node.op_type, port))
    if needed is None and port == 1 and (node.op_type in _REDUCTIONS or node.op_type.startswith("Reduce")):
        needed = _axes
    return None if needed is None else needed(node)


def _output_shape(node: ir.Node) -> np.ndarray | None:
    dims = _declared(node.outputs[0])
    return None if dims is None else np.array(dims, np.int64)


def _output_axis(node: ir.Node) -> np.ndarray | None:
    dims = _declared(node.outputs[0])
    axis = int(query.attribute(node, "axis", -1))
    return np.array(dims[axis] if dims and -len(dims) <= axis < len(dims) else 1, np.int64)


def _splits(node: ir.Node) -> np.ndarray | None:
    axis = int(query.attribute(node, "axis", 0))
    shapes = [_declared(output) for output in node.outputs]
    known = [dims for dims in shapes if dims and -len(dims) <= axis < len(dims)]
    return np.array([dims[axis] for dims in known], np.int64) if len(known) == len(shapes) else None


_MOST_AXES = 64
"""No tensor has more."""


def _repeats(node: ir.Node) -> np.ndarray | None:
    before, after = _declared(node.inputs[0]), _declared(node.outputs[0])
    if not before or not after or len(before) != len(after):
        return np.array(1, np.int64)
    return np.array([b // max(a, 1) for a, b in zip(before, after, strict=True)], np.int64)


def _sequence_length(node: ir.Node) -> np.ndarray | None:
    dims = _declared(node.inputs[0])
    return np.array(dims[0] if dims else 1, np.int64)


def _axes(node: ir.Node) -> np.ndarray | None:
    axes = _declared(node.inputs[1])
    return np.arange(min(axes[0], _MOST_AXES), dtype=np.int64) if axes else np.array(0, np.int64)


def _always(value: float) -> Callable[[ir.Node], np.ndarray | None]:
    return lambda _: np.array(value)


_NEEDS: Mapping[tuple[str, int], Callable[[ir.Node], np.ndarray | None]] = {
    ("Reshape", 1): _output_shape,
    ("Expand", 1): _output_shape,
    ("ConstantOfShape", 0): _output_shape,
    ("CenterCropPad", 1): _output_shape,
    ("AffineGrid", 1): _output_shape,
    ("Resize", 3): _output_shape,
    ("Resize", 2): _always(1.0),
    ("Upsample", 1): _always(1.0),
    ("Tile", 1): _repeats,
    ("TopK", 1): _output_axis,
    ("OneHot", 1): _output_axis,
    ("Split", 1): _splits,
    ("SplitToSequence", 1): _always(1),
    ("Slice", 1): _always(0),
    ("Slice", 2): _always(_LARGE),
    ("Slice", 3): lambda node: _axes_at(node, 3),
    ("Slice", 4): _always(1),
    ("Pad", 1): _always(1),
    ("Pad", 3): lambda node: _axes_at(node, 3),
    ("Trilu", 1): _always(0),
    ("Range", 0): _always(0),
    ("Range", 1): _always(5),
    ("Range", 2): _always(1),
    ("Loop", 0): _always(3),
    ("LSTM", 4): _sequence_length,
    ("GRU", 4): _sequence_length,
    ("RNN", 4): _sequence_length,
    ("Dropout", 1): _always(0.25),
    ("Dropout", 2): _always(0),
    ("Clip", 1): _always(-1),
    ("Clip", 2): _always(1),
    ("NonMaxSuppression", 2): _always(3),
}
"""(operator, port) -> the value to try there."""


def _axes_at(node: ir.Node, port: int) -> np.ndarray | None:
    axes = _declared(node.inputs[port])
    return np.arange(axes[0], dtype=np.int64) if axes else None
