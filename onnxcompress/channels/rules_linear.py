"""Channel rules of layers and element-wise operators.

A rule takes a `NodeContext` and returns the axes of the node's outputs; `channels.rules` says whose it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .fixups import Count
from .relations import NodeContext
from .types import Axis, Ids, UnfollowedError

Outs = list[list[Axis]]
"""The axes of each output."""


def broadcast(
    step: NodeContext, dims: Sequence[int], operands: Iterable[tuple[Sequence[Axis], Sequence[int]]]
) -> list[Axis]:
    """Unite the axes of operands that are stretched to `dims`, numpy's way; each is (axes, sizes)."""
    found: list[Axis | None] = [None] * len(dims)
    for axes, sizes in operands:
        for place, (axis, n) in enumerate(zip(axes, sizes, strict=True), start=len(dims) - len(axes)):
            if n == dims[place] and n > 1:
                known = found[place]
                found[place] = axis if known is None else step.unite(known, axis)
    return [step.single() if axis is None else axis for axis in found]


def elementwise(step: NodeContext) -> Outs:
    """Unite the axes of all operands."""
    ports = [port for port in range(len(step.node.inputs)) if step.has(port)]
    return [broadcast(step, step.out_dims(), [(step.axes(p), step.dims(p)) for p in ports])]


def unary(step: NodeContext) -> Outs:
    """Hand the axes of the first input on; further inputs are numbers for the whole tensor."""
    return [step.axes(0)]


def batch_statistics(step: NodeContext) -> Outs:
    """BatchNormalization: scale, bias, mean and variance go with the channels."""
    if len([o for o in step.node.outputs if o.uses() or o.is_graph_output()]) > 1 or step.attribute("spatial", 1) == 0:
        raise UnfollowedError("it is in training mode, or normalises each position by itself")
    axes = step.axes(0)
    if len(axes) < 2:
        raise UnfollowedError("it has no axis of channels")
    for port in range(1, 5):
        step.unite(axes[1], step.ranked(port, 1)[0])
    return [axes]


# Layers.


def _kernel(step: NodeContext) -> tuple[tuple[int, ...], list[Axis], list[Axis], int]:
    """Pin the axes that a kernel slides over; return the weight's dims, both axes and the number of groups."""
    dims = step.dims(1)
    data, weight = step.ranked(0, len(dims)), step.axes(1)
    groups = int(step.attribute("group", 1))
    for axis in (*data[2:], *weight[2:]):
        step.pin(axis, "a kernel slides over it", by_nature=True)
    return dims, data, weight, groups


def conv(step: NodeContext) -> Outs:
    """Conv: new channels by axis 0 of the weight; depthwise and grouped ones tie blocks of both sides."""
    dims, data, weight, groups = _kernel(step)
    if groups == 1:
        step.read(0, 1, 1, 1)
        made = weight[0]
        step.unite(data[1], weight[1])
        step.cost(made, data[1])
    else:
        made = _grouped(step, data[1], weight[0], weight[1], (dims[0], dims[1], groups))
    step.made(1, made, 1, 0)
    if step.has(2):
        step.unite(made, step.ranked(2, 1)[0])
    return [[data[0], made, *_window(step, len(data) - 2)]]


def conv_transpose(step: NodeContext) -> Outs:
    """ConvTranspose: new channels by axis 1 of the weight, which numbers them within a group."""
    dims, data, weight, groups = _kernel(step)
    made: Axis
    if groups == 1:
        step.read(0, 1, 1, 0)
        made = weight[1]
        step.unite(data[1], weight[0])
        step.cost(made, data[1])
        step.made(1, made, 1, 1)
    else:
        step.unite(data[1], weight[0])
        inside = step.array(weight[0], dims[0]).reshape(groups, -1)
        if groups >= max(inside.shape[1], dims[1]):
            blocks = _tied(step, inside)
            step.pin(weight[1], "channels of a group stay together")
            step.fix(Count(step.node, "group", blocks))
            step.cost(blocks)
            made = np.repeat(blocks, dims[1])
        else:
            step.read(0, 1, 1, 0)
            _tied(step, inside.T)
            step.cost(weight[0], weight[1])
            made = np.tile(step.array(weight[1], dims[1]), groups)
            step.made(1, weight[1], 1, 1)
    if step.has(2):
        step.unite(made, step.ranked(2, 1)[0])
    return [[data[0], made, *_window(step, len(data) - 2)]]


def _window(step: NodeContext, count: int) -> list[Axis]:
    return [step.pinned("a kernel slides over it", by_nature=True)] * count


def _grouped(step: NodeContext, data: Axis, out: Axis, inside: Axis, sizes: tuple[int, int, int]) -> Axis:
    """Relate the sides of a grouped Conv and return the output's channels.

    Either whole groups go, and their number falls, or the same places within every group: what makes smaller units.
    """
    outs, per_group, groups = sizes
    made = step.array(out, outs).reshape(groups, -1)
    taken = step.array(data, groups * per_group).reshape(groups, -1)
    if groups >= max(per_group, made.shape[1]):
        blocks = _tied(step, made)
        step.unite(blocks, _tied(step, taken))
        step.pin(inside, "channels of a group stay together")
        step.fix(Count(step.node, "group", blocks))
        step.cost(blocks)
    else:
        step.read(0, 1, 1, 1)
        step.unite(inside, _tied(step, taken.T))
        _tied(step, made.T)
        step.cost(made.reshape(-1), inside)
    return made.reshape(-1)


def _tied(step: NodeContext, ids: Ids) -> Ids:
    """Unite the ids int64 [n, m] of each row and return one for each row."""
    for column in range(1, ids.shape[1]):
        step.unite(ids[:, 0], ids[:, column])
    return ids[:, 0]


def gemm(step: NodeContext) -> Outs:
    """Gemm: rows of the left matrix and columns of the right one, summed over what they share."""
    left = 0 if step.attribute("transA", 0) else 1
    right = 1 if step.attribute("transB", 0) else 0
    rows, columns = step.ranked(0, 2)[1 - left], step.ranked(1, 2)[1 - right]
    contract(step, (0, left), (1, right))
    step.cost(rows, columns, step.axes(0)[left])
    step.made(1, columns, 1, 1 - right)
    dims = step.out_dims()
    operands: list[tuple[Sequence[Axis], Sequence[int]]] = [([rows, columns], dims)]
    if step.has(2):
        operands.append((step.axes(2), step.dims(2)))
    return [broadcast(step, dims, operands)]


def matmul(step: NodeContext) -> Outs:
    """MatMul: batch axes united, the last axis of the left summed over with the last but one of the right."""
    return [_matmul(step, swap_left=False, swap_right=False)]


def fused_matmul(step: NodeContext) -> Outs:
    """com.microsoft's FusedMatMul: as `matmul`, either side transposed."""
    if step.attribute("transBatchA", 0) or step.attribute("transBatchB", 0):
        raise UnfollowedError("it transposes the batch")
    left, right = (bool(step.attribute(name, 0)) for name in ("transA", "transB"))
    return [_matmul(step, swap_left=left, swap_right=right)]


def _matmul(step: NodeContext, *, swap_left: bool, swap_right: bool) -> list[Axis]:
    a, b = step.axes(0), step.axes(1)
    row, left = _matrix_axes(len(a), swapped=swap_left)
    first, last = _matrix_axes(len(b), swapped=swap_right)
    right, column = (last, None) if first is None else (first, last)
    contract(step, (0, left), (1, right))
    kept = [a[row]] if row is not None else []
    made = [b[column]] if column is not None else []
    count = max(len(a), len(b), 2) - 2
    operands = [(axes[: max(len(axes) - 2, 0)], dims[: max(len(axes) - 2, 0)]) for axes, dims in _both(step)]
    batch = broadcast(step, step.out_dims()[:count], operands)
    step.cost(*batch, *kept, *made, a[left])
    if column is not None:
        step.made(count + len(kept), b[column], 1, column)
    if row is not None and step.constant(0) is not None:
        step.made(count, a[row], 0, row)
    return [*batch, *kept, *made]


def _both(step: NodeContext) -> list[tuple[list[Axis], tuple[int, ...]]]:
    return [(step.axes(port), step.dims(port)) for port in (0, 1)]


def _matrix_axes(rank: int, *, swapped: bool) -> tuple[int | None, int]:
    """Return the last two axes, in turn where they are swapped; (None, 0) for a vector."""
    if rank == 1:
        return None, 0
    return (rank - 1, rank - 2) if swapped else (rank - 2, rank - 1)


def contract(step: NodeContext, one: tuple[int, int], other: tuple[int, int]) -> None:
    """Sum over two axes, each (input, axis): what is removed from one is removed from the other."""
    if step.constant(one[0]) is not None and step.constant(other[0]) is None:
        one, other = other, one
    step.unite(step.axes(one[0])[one[1]], step.axes(other[0])[other[1]])
    step.read(*one, *other)
