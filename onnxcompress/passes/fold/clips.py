"""Merge chains of Clip, Relu, Max and Min with a number, which keep x within an interval.

clip(clip(x, a, b), c, d) = clip(x, clip(a, c, d), clip(b, c, d))        for a <= b, c <= d
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ...graph import edit, query
from ..rewriting import Refusal, Rewrite, RewriteContext
from .value_bounds import clip_limits


def merge_clips(node: ir.Node, ctx: RewriteContext) -> Rewrite | Refusal | None:
    """Write a node that bounds x, and the one before it where that does too, as one Clip or Relu."""
    last = _bounds(node, ctx)
    if last is None:
        return None
    data, low, high = last
    before = data.producer()
    first = None if before is None or before.graph is not node.graph else _bounds(before, ctx)
    if first is not None and query.sole_consumer(data) is node:
        data, low, high = first[0], min(max(first[1], low), high), min(max(first[2], low), high)
        reason = f"bounds the same values as {query.label(before)}" if before is not None else ""
    elif query.is_op(node, "Max", "Min"):
        reason = f"{node.op_type} with a number is {'Relu' if (low, high) == (0.0, math.inf) else 'Clip'}"
    elif first is not None:
        return Refusal(target=query.label(node), reason=f"not one Clip: {data.name} has other readers")
    else:
        return None
    return Rewrite(target=query.label(node), reason=reason, apply=lambda: _replace(node, data, low, high, ctx))


def _bounds(node: ir.Node, ctx: RewriteContext) -> tuple[ir.Value, float, float] | None:
    """Return (x, low, high) of a node that keeps a float32 x between two numbers, None for all others."""
    x, low, high = node.inputs[0], -math.inf, math.inf
    if query.is_op(node, "Relu"):
        low = 0.0
    elif query.is_op(node, "Clip"):
        limits = clip_limits(node)
        if limits is None:
            return None
        low, high = limits
    elif query.is_op(node, "Max", "Min") and len(node.inputs) == 2 and ctx.opset >= 8:
        place = next((p for p in (1, 0) if query.scalar(node.inputs[p]) is not None), None)
        number = None if place is None else query.scalar(node.inputs[place])
        if place is None or number is None:
            return None
        x, limit = node.inputs[1 - place], query.constant_tensor(node.inputs[place])
        rank = ctx.shapes.rank(x)
        if limit is None or len(query.dims(limit)) > (rank or 0):
            return None  # the number's axes would be the result's
        low, high = (number, high) if node.op_type == "Max" else (low, number)
    else:
        return None
    if x is None or not low <= high or ctx.shapes.dtype(x) != ir.DataType.FLOAT:
        return None
    return x, low, high


def _replace(node: ir.Node, data: ir.Value, low: float, high: float, ctx: RewriteContext) -> None:
    names = ctx.names
    limits: list[ir.Value | None] = []
    attributes: dict[str, float] = {}
    kind = "Relu" if (low, high) == (0.0, math.inf) else "Clip"
    for name, limit in (("min", low), ("max", high)) if kind == "Clip" else ():
        if ctx.opset < 11:
            attributes.update({name: limit} if math.isfinite(limit) else {})
        elif math.isfinite(limit):
            number = np.array(limit, dtype=np.float32)
            limits.append(edit.add_initializer(query.home(node), names, f"{node.outputs[0].name}_{name}", number))
        else:
            limits.append(None)
    while limits and limits[-1] is None:
        limits.pop()
    bounded = edit.insert_before(node, names, kind, [data, *limits], attributes=attributes)
    edit.take_over(node.outputs[0], bounded.outputs[0])
