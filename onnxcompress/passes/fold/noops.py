"""Remove nodes that return their input unchanged for every input the graph accepts.

x + 0 counts although it turns -0.0 into 0.0; not-a-numbers pass all of these unchanged. A node is kept where its
output is a graph output that nothing else can replace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ...core import Change, Context, LosslessPass
from ...graph import edit, query
from ...shapes.infer import Dim
from ..rewriting import Rewrite, RewriteContext, Rule, rewrite
from .value_bounds import clip_limits, non_negative

FAR = 2**31 - 1
"""Exporters write a slice's open end as the largest int32 or int64."""
_Same = Callable[[ir.Node, RewriteContext], ir.Value | None]
"""Returns the value that the node's first output always equals, None where there is none."""
_NEUTRAL: Mapping[str, tuple[float, bool]] = {
    "Add": (0.0, True),
    "Sub": (0.0, False),
    "Mul": (1.0, True),
    "Div": (1.0, False),
    "Pow": (1.0, False),
    "And": (1.0, True),
    "Or": (0.0, True),
}
"""Operator -> its neutral operand, and True where that may be the left operand too."""


@dataclass(frozen=True, kw_only=True)
class RemoveNoops(LosslessPass):
    """Remove nodes whose output always equals their input: x + 0, full slices, casts to the same type."""

    name: ClassVar[str] = "remove-noops"

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Remove them in every graph of `model` but local functions, whose names may mislead."""
        present = {node.op_type for node in query.nodes(model)} & _TESTS.keys()
        return rewrite(model, context, self.name, {op: [_rule(_TESTS[op])] for op in present})


def _rule(test: _Same) -> Rule:
    def rule(node: ir.Node, ctx: RewriteContext) -> Rewrite | None:
        same = test(node, ctx)
        if same is None or any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
            return None
        if not edit.can_replace(node.outputs[0], same):
            return None

        def apply() -> None:
            edit.replace_value(node.outputs[0], same)
            edit.remove_node(node)

        return Rewrite(target=query.label(node), reason=f"{node.op_type} returns its input", apply=apply)

    return rule


def same_shape(one: Sequence[Dim] | None, other: Sequence[Dim] | None) -> bool:
    """Say whether two shapes are provably equal: numbers and named dimensions, none unknown."""
    return one is not None and other is not None and None not in one and tuple(one) == tuple(other)


def _source(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if node.inputs else None


def _transpose(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:
    x = _source(node)
    perm = query.integers(node, "perm")
    if perm is not None:
        return x if perm == sorted(perm) else None
    rank = ctx.shapes.rank(x)
    return x if "perm" not in node.attributes and rank is not None and rank < 2 else None


def _shape_of(value: ir.Value | None, source: ir.Value | None) -> bool:
    """Say whether `value` is the whole shape of `source`."""
    node = None if value is None else value.producer()
    return node is not None and query.is_op(node, "Shape") and not node.attributes and node.inputs[0] is source


def _reshape(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:
    x = _source(node)
    if len(node.inputs) > 1 and _shape_of(node.inputs[1], x):
        return x
    dims = ctx.shapes.shape(x)
    if same_shape(dims, ctx.shapes.shape(node.outputs[0])):
        return x
    target = query.integers(node, "shape", 1)
    if target is None or dims is None or len(target) != len(dims):
        return None
    copies = not query.attribute(node, "allowzero", 0)
    open_at = [i for i, (g, d) in enumerate(zip(target, dims, strict=True)) if not ((g == 0 and copies) or g == d)]
    return x if not open_at or (len(open_at) == 1 and target[open_at[0]] == -1) else None


def _flatten(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:
    two = ctx.shapes.rank(_source(node)) == 2
    return _source(node) if two and query.attribute(node, "axis", 1) in (1, -1) else None


def _squeeze(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:
    axes = query.integers(node, "axes", 1, default=())
    dims = ctx.shapes.static(_source(node))
    return _source(node) if axes == [] and dims is not None and 1 not in dims else None


def _unsqueeze(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:  # noqa: ARG001
    return _source(node) if query.integers(node, "axes", 1) == [] else None


def _cast(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:
    x = _source(node)
    dtype = ctx.shapes.dtype(x)
    target = query.attribute(node, "to") if node.op_type == "Cast" else ctx.shapes.dtype(node.inputs[1])
    return x if dtype is not None and target is not None and int(target) == int(dtype) else None


def slice_parts(node: ir.Node) -> tuple[list[int], list[int], list[int], list[int]] | None:
    """Return starts, ends, axes and steps of a Slice whose numbers are all constant, in each opset's form."""
    starts = query.integers(node, "starts", 1)
    ends = query.integers(node, "ends", 2)
    if starts is None or ends is None or len(starts) != len(ends):
        return None
    axes = query.integers(node, "axes", 3, default=range(len(starts)))
    steps = query.integers(node, "steps", 4, default=[1] * len(starts))
    if axes is None or steps is None or len(axes) != len(starts) or len(steps) != len(starts):
        return None
    return starts, ends, axes, steps


def _slice(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:
    x, parts = _source(node), slice_parts(node)
    if parts is None:
        return None
    dims = ctx.shapes.shape(x)
    for start, end, axis, step in zip(*parts, strict=True):
        known = None if dims is None or not -len(dims) <= axis < len(dims) else dims[axis]
        size = known if isinstance(known, int) else FAR
        if step != 1 or not (start == 0 or start <= -size) or end < size:
            return None
    return x


def _pad(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:
    pads = query.integers(node, "pads" if ctx.opset > 1 else "paddings", 1)
    return _source(node) if pads is not None and not any(pads) else None


def _expand(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:
    x = _source(node)
    dims = ctx.shapes.shape(x)
    if _shape_of(node.inputs[1], x) or same_shape(dims, ctx.shapes.shape(node.outputs[0])):
        return x
    target = query.integers(node, "shape", 1)
    return x if target is not None and _dominates(dims, target) else None


def _dominates(dims: Sequence[Dim] | None, other: Sequence[int]) -> bool:
    """Say whether broadcasting a shape with `other` leaves it as it is, whatever its dynamic sizes."""
    if not other:
        return True
    if dims is None or len(other) > len(dims):
        return False
    return all(o in (1, d) for o, d in zip(reversed(other), reversed(dims), strict=False))


def _tile(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:
    repeats = query.integers(node, "repeats", 1) if ctx.opset >= 6 else None
    return _source(node) if repeats and set(repeats) == {1} else None


def _resize(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:
    """Identity at scale 1 where each coordinate maps onto itself (not in a cropped region of interest)."""
    x = _source(node)
    at_itself = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
    if (
        query.attribute(node, "coordinate_transformation_mode", "half_pixel") not in at_itself
        or query.attribute(node, "mode", "nearest") not in ("nearest", "linear")
        or query.attribute(node, "antialias", 0)
    ):
        return None
    port = {"Upsample": 1, "Resize": 2 if ctx.opset >= 11 else 1}[node.op_type]
    scales = query.attribute(node, "scales")
    if scales is None:
        array = query.small_constant(node.inputs[port]) if len(node.inputs) > port else None
        scales = None if array is None else array.reshape(-1).tolist()
    if scales:
        return x if all(s == 1 for s in scales) else None
    sizes = query.small_constant(node.inputs[3]) if len(node.inputs) > 3 and ctx.opset >= 11 else None
    plain = "axes" not in node.attributes and "keep_aspect_ratio_policy" not in node.attributes
    return x if sizes is not None and plain and ctx.shapes.static(x) == tuple(sizes.tolist()) else None


def _single(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:  # noqa: ARG001
    return node.inputs[0] if len(node.inputs) == 1 else None


def _split(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:  # noqa: ARG001
    return _source(node) if len(node.outputs) == 1 else None


def _neutral(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:
    neutral, commutes = _NEUTRAL[node.op_type]
    if ctx.opset < 7:
        return None
    for port in (1, 0) if commutes else (1,):
        x = node.inputs[1 - port]
        tensor = query.constant_tensor(node.inputs[port])
        if tensor is None or not _dominates(ctx.shapes.shape(x), query.dims(tensor)):
            continue
        array = query.small_constant(node.inputs[port], most=65536)
        if array is not None and array.size and array.dtype.kind in "fiub" and bool(np.all(array == neutral)):
            return x
    return None


def _reduce(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:
    """Find a reduction over no axis, or over axes of size 1 that are kept."""
    axes = query.integers(node, "axes", 1, default=())
    if axes is None:
        return None
    if not axes and query.attribute(node, "noop_with_empty_axes", 0):
        return _source(node)
    dims = ctx.shapes.shape(_source(node))
    if dims is None or not query.attribute(node, "keepdims", 1):
        return None
    reduced = [dims[a] for a in axes if -len(dims) <= a < len(dims)] if axes else list(dims)
    return _source(node) if reduced and all(d == 1 for d in reduced) else None


def _again(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:  # noqa: ARG001
    """Find f in f(f(x)) = f(x)."""
    x = _source(node)
    return x if x is not None and query.is_op(x.producer(), node.op_type) else None


def _undo(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:  # noqa: ARG001
    """Find x in f(f(x)) = x."""
    inner = None if node.inputs[0] is None else node.inputs[0].producer()
    return inner.inputs[0] if inner is not None and query.is_op(inner, node.op_type) else None


def _relu(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:  # noqa: ARG001
    x = _source(node)
    return x if non_negative(x) else None


def _clip(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:
    x, bounds = _source(node), clip_limits(node)
    if bounds is None:
        return None
    low, high = bounds
    if ctx.opset < 11:  # absent limits are the ends of float32 there, so infinity is clipped
        return None
    return x if high == np.inf and (low == -np.inf or (low <= 0 and non_negative(x))) else None


def _pool(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:  # noqa: ARG001
    """Find a window of one element, moved by one, without padding."""
    kernel = query.integers(node, "kernel_shape")
    strides, pads = query.integers(node, "strides", default=()), query.integers(node, "pads", default=())
    ones = kernel and set(kernel) == {1} and strides is not None and set(strides) <= {1}
    return _source(node) if ones and pads is not None and not any(pads) else None


_TESTS: Mapping[str, _Same] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Cast": _cast,
    "CastLike": _cast,
    "Slice": _slice,
    "Pad": _pad,
    "Expand": _expand,
    "Tile": _tile,
    "Resize": _resize,
    "Upsample": _resize,
    "Split": _split,
    "Relu": _relu,
    "Clip": _clip,
    "MaxPool": _pool,
    "AveragePool": _pool,
    **dict.fromkeys(("Concat", "Sum", "Max", "Min", "Mean"), _single),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"), _reduce),
    **dict.fromkeys(("Abs", "Ceil", "Floor", "Round", "Sign"), _again),
    **dict.fromkeys(("Neg", "Not"), _undo),
    **dict.fromkeys(_NEUTRAL, _neutral),
}
"""Operator -> the test that finds the input it returns."""
