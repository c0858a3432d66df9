"""Replace two nodes in a row by one: reshapes, casts, slices, concatenations and reductions.

Both must be in the same graph, and the first one's result must have no other reader (so that it is removed).
Nothing here depends on sizes that only a run knows: a shape is rewritten only where it is right for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ...core import Change, Context, LosslessPass
from ...graph import edit, query
from ...ops import table as ops
from ..rewriting import Rewrite, RewriteContext, Rule, rewrite
from .chains_common import before, counted_from_front, merged
from .chains_reshape import merge_reshapes, moved_ones
from .chains_slice import adjacent_parts, listed_parts, merge_slices, nested_concat
from .noops import FAR, slice_parts

_REDUCTIONS = (
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare", "ArgMax", "ArgMin"),
)

_T = ir.DataType

_EXACT_IN: Mapping[ir.DataType, frozenset[ir.DataType]] = {
    _T.BOOL: frozenset({_T.UINT8, _T.INT8, _T.UINT16, _T.INT16, _T.INT32, _T.UINT32, _T.INT64, _T.UINT64})
    | {_T.FLOAT16, _T.BFLOAT16, _T.FLOAT, _T.DOUBLE},
    _T.UINT8: frozenset({_T.UINT16, _T.INT16, _T.UINT32, _T.INT32, _T.UINT64, _T.INT64})
    | {_T.FLOAT16, _T.BFLOAT16, _T.FLOAT, _T.DOUBLE},
    _T.INT8: frozenset({_T.INT16, _T.INT32, _T.INT64, _T.FLOAT16, _T.BFLOAT16, _T.FLOAT, _T.DOUBLE}),
    _T.UINT16: frozenset({_T.UINT32, _T.INT32, _T.UINT64, _T.INT64, _T.FLOAT, _T.DOUBLE}),
    _T.INT16: frozenset({_T.INT32, _T.INT64, _T.FLOAT, _T.DOUBLE}),
    _T.UINT32: frozenset({_T.UINT64, _T.INT64, _T.DOUBLE}),
    _T.INT32: frozenset({_T.INT64, _T.DOUBLE}),
    _T.FLOAT16: frozenset({_T.FLOAT, _T.DOUBLE}),
    _T.BFLOAT16: frozenset({_T.FLOAT, _T.DOUBLE}),
    _T.FLOAT: frozenset({_T.DOUBLE}),
}
"""Type -> types that hold every one of its values exactly."""

_FLOATS = (_T.FLOAT16, _T.BFLOAT16, _T.FLOAT, _T.DOUBLE)


@dataclass(frozen=True, kw_only=True)
class SimplifyChains(LosslessPass):
    """Merge two nodes in a row into one: reshapes, lossless casts, slices, concatenations, kept axes."""

    name: ClassVar[str] = "simplify-chains"

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Merge them in every graph of `model` but local functions, which can't hold weights."""
        rules: dict[str, list[Rule]] = {
            "Cast": [_casts],
            "Slice": [merge_slices],
            "Concat": [nested_concat, adjacent_parts],
            "ConcatFromSequence": [listed_parts],
            "Transpose": [moved_ones],
            "Squeeze": [merge_reshapes, _reduced, _picked],
            "Unsqueeze": [merge_reshapes, _reduced, _gathered],
            "Reshape": [merge_reshapes],
            "Flatten": [merge_reshapes],
            "Shape": [_shape_of],
            "Size": [_shape_of],
        }
        return rewrite(model, context, self.name, rules)


def _casts(node: ir.Node, ctx: RewriteContext) -> Rewrite | None:
    first = before(node, "Cast")
    x = None if first is None else first.inputs[0]
    source = ctx.shapes.dtype(x)
    if first is None or x is None or source is None:
        return None
    between, target = (ir.DataType(int(query.attribute(n, "to", 0))) for n in (first, node))
    if between not in _EXACT_IN.get(source, ()) or target in (_T.STRING, _T.UNDEFINED):
        return None
    if target != source and (target.itemsize < 1 or "FLOAT8" in target.name or "FLOAT4" in target.name):
        return None
    if target in (_T.FLOAT16, _T.BFLOAT16) and source not in _FLOATS and target not in _EXACT_IN.get(source, ()):
        return None  # rounded once or twice, depending on the runtime
    if target != source and source in _FLOATS and target not in (*_FLOATS, _T.BOOL):
        return None  # what a number out of an integer's range becomes depends on the float type
    return merged(node, first, lambda: edit.turn_into(node, "Cast", [x], {"to": int(target)}))


def _reduced(node: ir.Node, ctx: RewriteContext) -> Rewrite | None:
    """Find a reduction that keeps its axes before a Squeeze of them, or drops them before an Unsqueeze."""
    first = before(node, *_REDUCTIONS)
    kept = 1 if node.op_type == "Squeeze" else 0
    if first is None or int(query.attribute(first, "keepdims", 1)) != kept:
        return None
    single = first.op_type in ("ArgMax", "ArgMin")
    axes = query.integers(first, "axis", default=(0,)) if single else query.integers(first, "axes", 1)
    own = query.integers(node, "axes", 1)
    if not axes or not own:
        return None
    rank = ctx.shapes.rank(first.inputs[0])
    normal = counted_from_front(axes, rank)
    if sorted(axes) != sorted(own) and (normal is None or normal != counted_from_front(own, rank)):
        return None
    attributes = {a.name: a for a in first.attributes.values()}
    attributes["keepdims"] = ir.AttrInt64("keepdims", 1 - kept)
    inputs, op_type = list(first.inputs), first.op_type
    return merged(node, first, lambda: edit.turn_into(node, op_type, inputs, attributes))


def _gathered(node: ir.Node, ctx: RewriteContext) -> Rewrite | None:
    """Find one index taken out along an axis that comes back: Gather with a list of one index."""
    first = before(node, "Gather")
    if first is None or first.inputs[0] is None or query.is_op(first.inputs[0].producer(), "Shape"):
        return None  # onnxruntime knows Shape, Gather, Unsqueeze as a pattern
    index = query.small_constant(first.inputs[1], most=1)
    own = query.integers(node, "axes", 1)
    axis = int(query.attribute(first, "axis", 0))
    rank = ctx.shapes.rank(first.inputs[0])
    if index is None or index.shape != () or own is None or len(own) != 1:
        return None
    if own != [axis] and (rank is None or counted_from_front([axis], rank) != counted_from_front(own, rank)):
        return None
    x = first.inputs[0]

    def apply() -> None:
        one = ctx.add_constant(node, f"{node.outputs[0].name}_index", index.reshape(1))
        edit.turn_into(node, "Gather", [x, one], {"axis": axis})

    return merged(node, first, apply)


def _picked(node: ir.Node, ctx: RewriteContext) -> Rewrite | None:
    """Find a slice of length 1 whose axis is squeezed: Gather with one index."""
    first = before(node, "Slice")
    x, parts, own = (
        (None, None, None) if first is None else (first.inputs[0], slice_parts(first), query.integers(node, "axes", 1))
    )
    if first is None or x is None or parts is None or own is None or len(own) != 1 or len(parts[0]) != 1:
        return None
    start, end, axis, step = (p[0] for p in parts)
    rank = ctx.shapes.rank(x)
    if own != [axis] and (rank is None or counted_from_front([axis], rank) != counted_from_front(own, rank)):
        return None
    if step != 1 or not (end == start + 1 != 0 or (start == -1 and end >= FAR)) or ctx.opset < 11:
        return None

    def apply() -> None:
        index = ctx.add_constant(node, f"{node.outputs[0].name}_index", np.asarray(start, np.int64))
        edit.turn_into(node, "Gather", [x, index], {"axis": axis})

    return merged(node, first, apply)


def _shape_of(node: ir.Node, ctx: RewriteContext) -> Rewrite | None:  # noqa: ARG001
    """Read the shape of x for that of f(x); the size also where only the order changes."""
    also = (*ops.RESHAPES, "Transpose") if node.op_type == "Size" else ()
    first = before(node, *ops.SAME_SHAPE, *also)
    if first is None or first.inputs[0] is None:
        return None
    x, attributes = first.inputs[0], dict(node.attributes)
    return merged(node, first, lambda: edit.turn_into(node, node.op_type, [x], attributes))
