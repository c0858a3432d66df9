"""Slices of slices, concatenations of concatenations, and of the parts that something was cut into."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx_ir as ir

from ...graph import edit, query
from ...shapes.infer import Dim
from ..rewriting import Rewrite, RewriteContext
from .chains_common import before, counted_from_front, merged
from .noops import FAR, slice_parts


def merge_slices(node: ir.Node, ctx: RewriteContext) -> Rewrite | None:
    """Take a range of a range by one Slice."""
    first = before(node, "Slice")
    x = None if first is None else first.inputs[0]
    if first is None or x is None:
        return None
    one, two, dims = slice_parts(first), slice_parts(node), ctx.shapes.shape(x)
    if one is None or two is None:
        return None
    rank = None if dims is None else len(dims)
    parts: dict[int, tuple[int, int, int]] = {}
    for starts, ends, axes, steps in (one, two):
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            at = counted_from_front([axis], rank)
            if at is None or step < 1:
                return None
            size = dims[at[0]] if dims is not None else None
            new = (start, end, step)
            joined = _range_of_range(parts[at[0]], new, size) if at[0] in parts else new
            if joined is None:
                return None
            parts[at[0]] = joined
    if ctx.opset < 10 and any(step != 1 for _, _, step in parts.values()):
        return None
    return merged(node, first, lambda: _set_slice(node, x, parts, ctx))


def _range_of_range(one: tuple[int, int, int], two: tuple[int, int, int], size: Dim) -> tuple[int, int, int] | None:
    """Return start, end and step of x[one][two], right for every size of the axis."""
    if isinstance(size, int):
        both = range(size)[slice(*one)][slice(*two)]
        return both.start, max(both.start, both.stop), both.step
    (start, end, step), (start2, end2, step2) = one, two
    if start < 0 or start2 < 0:
        return None
    if end2 >= FAR:
        stop = end
    elif end2 >= 0 and end >= 0:
        stop = min(end, start + end2 * step)
    elif end2 < 0 and end >= FAR and step == 1:
        stop = end2
    else:
        return None
    return start + start2 * step, stop, step * step2


def _set_slice(node: ir.Node, x: ir.Value, parts: Mapping[int, tuple[int, int, int]], ctx: RewriteContext) -> None:
    axes = sorted(parts)
    starts, ends, steps = ([parts[axis][n] for axis in axes] for n in range(3))
    if ctx.opset < 10:
        edit.turn_into(node, "Slice", [x], {"starts": starts, "ends": ends, "axes": axes})
        return
    numbers = {"starts": starts, "ends": ends, "axes": axes}
    if any(step != 1 for step in steps):
        numbers["steps"] = steps
    values = [
        ctx.add_constant(node, f"{node.outputs[0].name}_{name}", np.asarray(array, np.int64))
        for name, array in numbers.items()
    ]
    edit.turn_into(node, "Slice", [x, *values])


def listed_parts(node: ir.Node, _ctx: RewriteContext) -> Rewrite | None:
    """Join the parts of a sequence that is made on the spot without making it."""
    listed = node.inputs[0]
    first = None if listed is None else listed.producer()
    axis, new_axis = query.integers(node, "axis"), query.integers(node, "new_axis", default=[0])
    if first is None or not query.is_op(first, "SequenceConstruct") or first.graph is not node.graph:
        return None
    if not axis or new_axis != [0]:
        return None
    return Rewrite(
        target=query.label(node),
        reason=f"the sequence is made of values that Concat can join ({query.label(first)})",
        apply=lambda: edit.turn_into(node, "Concat", first.inputs, {"axis": axis[0]}),
    )


def _axis(node: ir.Node, ctx: RewriteContext, rank_of: ir.Value | None, default: int) -> int | None:
    axis = int(query.attribute(node, "axis", default))
    rank = ctx.shapes.rank(rank_of)
    return axis if axis >= 0 else None if rank is None else axis + rank


def _same_axis(one: ir.Node, other: ir.Node, ctx: RewriteContext) -> bool:
    if {query.attribute(n, "axis") for n in (one, other)} == {query.attribute(one, "axis")}:
        return True
    axes = {_axis(n, ctx, n.outputs[0], 1) for n in (one, other)}
    return len(axes) == 1 and None not in axes


def nested_concat(node: ir.Node, ctx: RewriteContext) -> Rewrite | None:
    """Join the parts of a concatenation where its result is joined along the same axis."""
    for port, value in enumerate(node.inputs):
        inner = None if value is None else value.producer()
        if value is None or inner is None or inner.graph is not node.graph or not query.is_op(inner, "Concat"):
            continue
        if query.sole_consumer(value) is not node or not _same_axis(node, inner, ctx):
            continue
        inputs = [*node.inputs[:port], *inner.inputs, *node.inputs[port + 1 :]]
        axis = int(query.attribute(node, "axis", 1))
        return merged(node, inner, partial(edit.turn_into, node, "Concat", inputs, {"axis": axis}))
    return None


def adjacent_parts(node: ir.Node, ctx: RewriteContext) -> Rewrite | None:
    """Put together again what one Split, or Slices that touch, cut apart on the same axis."""
    axis = _axis(node, ctx, node.inputs[0], 1)
    for port, value in enumerate(node.inputs):
        maker = None if value is None else value.producer()
        if axis is None or maker is None or not query.is_op(maker, "Split", "Slice"):
            continue
        if maker.inputs[0] is None:
            continue
        x = maker.inputs[0]
        whole = list(maker.outputs)
        if (
            query.is_op(maker, "Split")
            and list(node.inputs[port : port + len(whole)]) == whole
            and (_axis(maker, ctx, x, 0) == axis)
        ):
            inputs = [*node.inputs[:port], x, *node.inputs[port + len(whole) :]]
            return merged(node, maker, partial(_rejoin, node, inputs, x))
        found = _touching_slices(node, port, axis, ctx)
        if found is not None:
            return found
    return None


def _rejoin(node: ir.Node, inputs: list[ir.Value | None], x: ir.Value) -> None:
    """Concatenate `inputs`; a single one needs no node (unless it can't be the output)."""
    if inputs == [x] and edit.can_replace(node.outputs[0], x):
        parts = [v for v in dict.fromkeys(node.inputs) if v is not None]
        edit.replace_node(node, [x])
        for part in parts:
            edit.remove_unread(part)
    else:
        edit.turn_into(node, "Concat", inputs, {"axis": int(query.attribute(node, "axis", 1))})


def _touching_slices(node: ir.Node, port: int, axis: int, ctx: RewriteContext) -> Rewrite | None:
    pair = node.inputs[port : port + 2]
    makers = [None if v is None else v.producer() for v in pair]
    if len(pair) < 2 or not all(query.is_op(m, "Slice") and m is not None and m.graph is node.graph for m in makers):
        return None
    first, second = (m for m in makers if m is not None)
    x, one, two = first.inputs[0], slice_parts(first), slice_parts(second)
    alone = all(v is not None and query.sole_consumer(v) is node for v in pair)
    if x is None or x is not second.inputs[0] or first is second or one is None or two is None or not alone:
        return None
    if any(len(p[0]) != 1 or p[3] != [1] or counted_from_front(p[2], ctx.shapes.rank(x)) != [axis] for p in (one, two)):
        return None
    start, end, end2 = one[0][0], one[1][0], two[1][0]
    joined = {axis: (start, end2, 1)}
    touching = two[0][0] == end and start >= 0 and (start <= end <= end2 or (start == 0 and end < 0 and end2 >= FAR))
    if not touching:
        return None
    after = node.inputs[port + 2 :]
    if start == 0 and end2 >= FAR:
        inputs = [*node.inputs[:port], x, *after]
        return merged(node, first, lambda: _rejoin(node, inputs, x))

    def apply() -> None:
        if len(node.inputs) == 2:
            _set_slice(node, x, joined, ctx)
            return
        _set_slice(second, x, joined, ctx)
        second.outputs[0].name, second.outputs[0].shape = (ctx.names.fresh(f"{second.outputs[0].name}_joined"), None)
        _rejoin(node, [*node.inputs[:port], second.outputs[0], *after], x)

    return merged(node, first, apply)
