"""Cuts the making of a value with huge weights into slices, each of which makes a part of it and reads a part of them.

    h --MatMul(w [k, n])--Add(b [n])--> y [.., n]        h --MatMul(w[:, i:j])--Add(b[i:j])--> y[.., i:j]

For each operator a rule says of which parts of its inputs a part of its output is made. Where there is no rule, or a
value is wanted both whole and in part, there are no slices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

from ..graph import edit, query
from ..io.tensors import cut
from ..ops import table as ops

Dims = tuple[int, ...]
DimsOf = Callable[[ir.Value], Dims | None]


@dataclass(frozen=True)
class Making:
    """Computation of a value: nodes in topological order, the value, and the dimensions of all that they touch."""

    nodes: Sequence[ir.Node]
    output: ir.Value
    dims_of: DimsOf

    def dims(self, value: ir.Value | None) -> Dims:
        """Return the dimensions of a value.

        Raises:
            _UncutError: they are not known.
        """
        tensor = query.constant_tensor(value)
        found = query.dims(tensor) if tensor is not None else None if value is None else self.dims_of(value)
        if found is None:
            raise _UncutError
        return found


@dataclass(frozen=True)
class ValuePart:
    """A part of an output along an axis, and the axes along which inputs and constants are cut for it, by name."""

    axis: int
    where: slice
    cuts: Mapping[str, int]

    def of_dims(self, name: str, dims: Dims) -> Dims:
        """Return what is left of the dimensions of an input."""
        axis = self.cuts.get(name)
        if axis is None:
            return dims
        return (*dims[:axis], self.where.stop - self.where.start, *dims[axis + 1 :])

    def index(self, name: str) -> tuple[slice, ...]:
        """Return the index that cuts an input."""
        axis = self.cuts.get(name)
        return () if axis is None else (*(slice(None),) * axis, self.where)

    def narrow(self, piece: ir.Model) -> None:
        """Cut the constants of a piece that makes the output, and what it declares."""
        body = piece.graph
        for node in list(body):
            for value in node.outputs:
                value.shape = None
            if query.is_op(node, "Constant") and node.outputs[0].name in self.cuts:
                edit.replace_by_constant(node, edit.Names(piece), [query.constant_tensor(node.outputs[0])])
        for value in body.initializers.values():
            axis = self.cuts.get(value.name or "")
            if axis is not None and value.const_value is not None:
                edit.set_weight(value, cut(value.const_value, axis, self.where))
        for value in body.inputs:
            if value.name in self.cuts:
                value.shape = None


class _UncutError(Exception):
    """There is no way to make a part of the output alone."""


def parts(before: Making, after: Making, *, most_bytes: int) -> list[ValuePart]:
    """Return the parts in which a value can be made in either of two ways, the inputs of both cut in the same way.

    Args:
        before: one way.
        after: another, of a value of the same name and dimensions.
        most_bytes: of constants that a part may read in either way.

    Returns:
        Nothing where no axis of the value can be cut, or where parts would not be small enough.
    """
    try:
        dims = before.dims(before.output)
        if dims != after.dims(after.output):
            return []
    except _UncutError:
        return []
    for axis in reversed(range(len(dims))):
        try:
            found = [_wanted(making, axis) for making in (before, after)]
        except _UncutError:
            continue
        sizes = [_constant_bytes(each) for each in found]
        whole = max(uncut for uncut, _ in sizes)
        count = math.ceil(max(cut_bytes for _, cut_bytes in sizes) / max(1, most_bytes - whole))
        axes = [{str(value.name): place for value, place in each.items()} for each in found]
        if whole >= most_bytes or count > dims[axis] or not _agree(*axes):
            continue
        cuts = {name: place for each in axes for name, place in each.items() if place is not None}
        step = -(-dims[axis] // count)
        return [ValuePart(axis, slice(i, min(dims[axis], i + step)), cuts) for i in range(0, dims[axis], step)]
    return []


def _agree(one: Mapping[str, int | None], other: Mapping[str, int | None]) -> bool:
    return all(other[name] == axis for name, axis in one.items() if name in other)


def _constant_bytes(wanted: Mapping[ir.Value, int | None]) -> tuple[int, int]:
    """Return the bytes of the constants that are wanted whole, and of those that are cut."""
    sizes = [0, 0]
    for value, axis in wanted.items():
        tensor = query.constant_tensor(value)
        if tensor is not None:
            sizes[axis is not None] += tensor.nbytes
    return sizes[0], sizes[1]


def _wanted(making: Making, axis: int) -> dict[ir.Value, int | None]:
    """Return along which axis each input and constant is cut, None for those that are wanted whole."""
    made = {value for node in making.nodes for value in node.outputs}
    axes: dict[ir.Value, int | None] = {making.output: axis}
    sources: dict[ir.Value, int | None] = {}
    for node in reversed(making.nodes):
        own = [axes[value] for value in node.outputs if value in axes]
        if query.is_op(node, "Constant") or not own:
            continue
        if own == [None] * len(own):
            given: list[tuple[ir.Value, int | None]] = [(value, None) for value in query.reads(node)]
        else:
            rule = _rule(node)
            if len(own) > 1 or query.bodies(node) or own[0] is None or rule is None:
                raise _UncutError
            places = rule(node, own[0], making)
            given = [(value, place) for value, place in zip(node.inputs, places, strict=True) if value is not None]
        for value, place in given:
            if axes.setdefault(value, place) != place:
                raise _UncutError
            if value not in made or query.constant_tensor(value) is not None:
                sources[value] = place
                tensor = query.constant_tensor(value)
                if tensor is not None and place is not None and tensor.dtype.bitwidth % 8:
                    raise _UncutError
    return sources


_Rule = Callable[[ir.Node, int, Making], list[int | None]]
"""node, the axis of its output, how things are made -> the axis of each input, None for those that stay whole."""


def _rule(node: ir.Node) -> _Rule | None:
    if node.domain not in query.STANDARD_DOMAINS:
        return None
    if node.op_type in ops.ELEMENTWISE:
        return _each
    return _broadcast if node.op_type in ops.BROADCASTING else _RULES.get(node.op_type)


def _each(node: ir.Node, axis: int, making: Making) -> list[int | None]:  # noqa: ARG001 - a rule's signature
    return [axis, *[None] * (len(node.inputs) - 1)]


def _broadcast(node: ir.Node, axis: int, making: Making) -> list[int | None]:
    rank = len(making.dims(node.outputs[0]))
    return [_aligned(making.dims(value), rank, axis) for value in node.inputs]


def _aligned(dims: Dims, rank: int, axis: int) -> int | None:
    place = axis - (rank - len(dims))
    return place if place >= 0 and dims[place] != 1 else None


def _matmul(node: ir.Node, axis: int, making: Making) -> list[int | None]:
    right = len(making.dims(node.inputs[1]))
    if axis != len(making.dims(node.outputs[0])) - 1 or right < 2:
        raise _UncutError
    return [None, right - 1]


def _gemm(node: ir.Node, axis: int, making: Making) -> list[int | None]:
    if axis != 1:
        raise _UncutError
    bias = [None if value is None else _aligned(making.dims(value), 2, 1) for value in node.inputs[2:]]
    return [None, 0 if query.attribute(node, "transB", 0) else 1, *bias]


def _conv(node: ir.Node, axis: int, making: Making) -> list[int | None]:  # noqa: ARG001 - a rule's signature
    if axis != 1 or query.attribute(node, "group", 1) != 1:
        raise _UncutError
    return [None, *[0] * (len(node.inputs) - 1)]


def _gather(node: ir.Node, axis: int, making: Making) -> list[int | None]:
    rank, looked_up = len(making.dims(node.inputs[0])), len(making.dims(node.inputs[1]))
    place = query.attribute(node, "axis", 0) % rank
    if axis < place:
        return [axis, None]
    if axis < place + looked_up:
        raise _UncutError
    return [axis - looked_up + 1, None]


def _transpose(node: ir.Node, axis: int, making: Making) -> list[int | None]:
    rank = len(making.dims(node.outputs[0]))
    order = query.attribute(node, "perm", None) or list(reversed(range(rank)))
    return [int(order[axis])]


def _scaled(node: ir.Node, axis: int, making: Making) -> list[int | None]:
    rank = len(making.dims(node.inputs[0]))
    own = query.attribute(node, "axis", 1) % rank if rank else 0
    found: list[int | None] = [axis]
    for value in node.inputs[1:]:
        dims = () if value is None else making.dims(value)
        if len(dims) == rank > 1:
            if own == axis:
                raise _UncutError
            found.append(axis)
        else:
            found.append(0 if own == axis and math.prod(dims) > 1 else None)
    return found


_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        "MatMul": _matmul,
        "Gemm": _gemm,
        "Conv": _conv,
        "Gather": _gather,
        "Transpose": _transpose,
        "DequantizeLinear": _scaled,
        "QuantizeLinear": _scaled,
    }
)
