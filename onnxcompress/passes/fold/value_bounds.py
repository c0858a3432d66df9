"""Bounds of a value's elements, as far as the nodes that compute it show."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...graph import query
from ...ops import table as ops

_DEPTH = 8
"""Nodes that are followed back from a value, at most. Chosen by judgement; not measured."""
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def clip_limits(node: ir.Node) -> tuple[float, float] | None:
    """Return the limits of a Clip in every opset's form, infinite where absent.

    None where only a run decides them, or one is not a number.
    """
    if not query.is_op(node, "Clip"):
        return None
    limits: list[float] = []
    for port, (name, absent) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        given = node.inputs[port] if len(node.inputs) > port else None
        limit = query.attribute(node, name, absent) if given is None else query.scalar(given)
        if limit is None or np.isnan(limit):
            return None
        limits.append(float(limit))
    return limits[0], limits[1]


def non_negative(value: ir.Value | None, depth: int = _DEPTH) -> bool:
    """Say whether no element of a value is below zero (a not-a-number is not below)."""
    node = None if value is None else value.producer()
    if node is None or depth == 0:
        return False
    if query.is_op(node, *ops.NON_NEGATIVE):
        return True
    if query.is_op(node, "Clip"):
        return (clip_limits(node) or (-np.inf, np.inf))[0] >= 0
    if query.is_op(node, "Cast") and query.attribute(node, "to") not in {int(f) for f in _FLOATS}:
        return False
    if not query.is_op(node, *ops.SELECT):
        return False
    read = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return all(non_negative(v, depth - 1) for v in read)
