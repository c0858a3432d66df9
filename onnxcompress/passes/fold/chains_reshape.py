"""Reshape, Flatten, Squeeze, Unsqueeze in a row: the elements stay in order, so only the last shape counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...graph import edit, query
from ...ops import table as ops
from ...shapes.infer import Dim
from ..rewriting import Rewrite, RewriteContext
from .chains_common import before, counted_from_front, merged, undone
from .noops import same_shape


def merge_reshapes(node: ir.Node, ctx: RewriteContext) -> Rewrite | None:
    """Write two nodes that change the shape as the last shape alone."""
    middle = node.inputs[0]
    first = None if middle is None else middle.producer()
    if first is None or middle is None or not query.is_op(first, *ops.RESHAPES) or first.graph is not node.graph:
        return None
    x, out = first.inputs[0], node.outputs[0]
    if x is None:
        return None
    keeps_shape = _undoes(first, node) or same_shape(ctx.shapes.shape(x), ctx.shapes.shape(out))
    if keeps_shape and edit.can_replace(out, x):
        return undone(node, first, x)
    if query.sole_consumer(middle) is not node:
        return None
    axes = _all_axes(first, node, x, ctx)
    if axes is not None:
        return merged(node, first, lambda: _set_axes(node, x, axes, ctx))
    target = _reshape_target(first, node, x, ctx) if ctx.opset >= 5 else None
    if target is None:
        return None
    keeps_zero = node.op_type == "Reshape" and bool(query.attribute(node, "allowzero", 0))

    def reshape() -> None:
        shape = ctx.add_constant(node, f"{out.name}_shape", np.asarray(target, np.int64))
        edit.turn_into(node, "Reshape", [x, shape], {"allowzero": 1} if keeps_zero else None)

    return merged(node, first, reshape)


def moved_ones(node: ir.Node, ctx: RewriteContext) -> Rewrite | None:
    """Replace a Transpose that moves only axes of size 1 by a Reshape where it is next to a node of that family."""
    x, out = node.inputs[0], node.outputs[0]
    dims = ctx.shapes.shape(x)
    after = query.sole_consumer(out)
    beside = before(node, *ops.RESHAPES) or after
    if x is None or dims is None or 0 in dims or ctx.opset < 5:
        return None
    perm = query.integers(node, "perm", default=range(len(dims))[::-1])
    if perm is None or beside is None or not query.is_op(beside, *ops.RESHAPES) or beside.graph is not node.graph:
        return None
    kept = [axis for axis in perm if dims[axis] != 1]
    if kept != sorted(kept):
        return None
    target = [_size(dims[axis], copied=axis == place) for place, axis in enumerate(perm)]
    if -1 in target and (target.count(-1) > 1 or 0 in target):  # a copied size of 0 leaves the rest undecided
        return None

    def reshape() -> None:
        shape = ctx.add_constant(node, f"{out.name}_shape", np.asarray(target, np.int64))
        edit.turn_into(node, "Reshape", [x, shape])

    reason = f"it moves axes of size 1 only, as the {beside.op_type} beside it can ({query.label(beside)})"
    return Rewrite(target=query.label(node), reason=reason, apply=reshape)


def _size(dim: Dim, *, copied: bool) -> int:
    """Return the entry of a Reshape's target for an axis: a size, 0 for that of the input, -1 for the rest."""
    return dim if isinstance(dim, int) else 0 if copied else -1


def _undoes(first: ir.Node, node: ir.Node) -> bool:
    """Say whether one squeezes what the other unsqueezed; both count axes of the same, larger rank."""
    if {first.op_type, node.op_type} != {"Squeeze", "Unsqueeze"}:
        return False
    one, other = query.integers(first, "axes", 1), query.integers(node, "axes", 1)
    return bool(one) and other is not None and sorted(one or []) == sorted(other)


def _all_axes(first: ir.Node, node: ir.Node, x: ir.Value, ctx: RewriteContext) -> list[int] | None:
    """Return the axes with which one Squeeze or Unsqueeze does the work of two."""
    if first.op_type != node.op_type or node.op_type not in ("Squeeze", "Unsqueeze"):
        return None
    one, two = query.integers(first, "axes", 1), query.integers(node, "axes", 1)
    if not one or not two:
        return None
    rank, sign = ctx.shapes.rank(x), 1 if node.op_type == "Unsqueeze" else -1
    ranks = (None, None) if rank is None else (rank + sign * len(one), rank + sign * (len(one) + len(two)))
    if sign > 0:
        inner, outer = counted_from_front(one, ranks[0]), counted_from_front(two, ranks[1])
    else:
        outer, inner = counted_from_front(one, rank), counted_from_front(two, ranks[0])
    if inner is None or outer is None:
        return None
    span = len(one) + len(two) + max(inner + outer) + 1
    free = [axis for axis in range(span) if axis not in outer]
    return sorted([*outer, *(free[axis] for axis in inner)])


def _set_axes(node: ir.Node, x: ir.Value, axes: list[int], ctx: RewriteContext) -> None:
    if ctx.opset < 13:
        edit.turn_into(node, node.op_type, [x], {"axes": axes})
        return
    value = ctx.add_constant(node, f"{node.outputs[0].name}_axes", np.asarray(axes, np.int64))
    edit.turn_into(node, node.op_type, [x, value])


def _reshape_target(first: ir.Node, node: ir.Node, x: ir.Value, ctx: RewriteContext) -> list[int] | None:
    """Return the shape input of a Reshape of x that gives the node's output, None if there is none."""
    source, middle = ctx.shapes.shape(x), ctx.shapes.shape(node.inputs[0])
    copied = _copied(first) | _copied(node)
    if node.op_type != "Reshape":
        return _written(ctx.shapes.shape(node.outputs[0]), source, copied=copied)
    target = query.integers(node, "shape", 1)
    if target is None or query.attribute(node, "allowzero", 0) or 0 not in target:
        return target
    wanted: list[Dim] = []
    for axis, size in enumerate(target):
        if size != 0:
            wanted.append(size)
        elif middle is None or axis >= len(middle):
            wanted.append(None)
        else:
            wanted.append(middle[axis])
    return _written(wanted, source, copied=copied)


def _copied(node: ir.Node) -> set[int]:
    """Return the axes that a Reshape copies while it infers another size: it fails where one is 0."""
    if node.op_type != "Reshape" or query.attribute(node, "allowzero", 0):
        return set()
    target = query.integers(node, "shape", 1) or []
    return {axis for axis, size in enumerate(target) if size == 0} if -1 in target else set()


def _written(wanted: Sequence[Dim] | None, source: Sequence[Dim] | None, *, copied: set[int]) -> list[int] | None:
    """Write dimensions as a Reshape's input: numbers, 0 for a size kept in its place, -1 for one other.

    0 beside -1 fails on an empty tensor, so only `copied` axes, where that was so before, are.
    """
    if wanted is None:
        return None
    target: list[int] = []
    for axis, dim in enumerate(wanted):
        if isinstance(dim, int):
            target.append(dim)
        elif dim is not None and source is not None and axis < len(source) and source[axis] == dim:
            target.append(0)
        else:
            target.append(-1)
    if any(dim == 0 for dim in wanted) or target.count(-1) > 1:
        return None
    if target.count(0) == 1 and -1 not in target:
        return [-1 if size == 0 else size for size in target]
    kept = {axis for axis, size in enumerate(target) if size == 0}
    return target if -1 not in target or kept <= copied else None
