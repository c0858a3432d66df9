"""Ranges that activations have by their operators, whatever samples reach.

    Sigmoid, Softmax ... -> [0, 1]     Clip(0, 6) -> [0, 6]     Concat, Reshape, pools, Mul by 640 ... -> follow

A detector whose calibration pictures never scored over .5 would otherwise never score over .5 again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ...graph import query
from ...ops import table as ops
from ..fold.value_bounds import clip_limits

Range = tuple[float, float]


def known_ranges(model: ir.Model) -> dict[str, Range]:
    """Return value name -> the range that its operators give it, of the values that have one."""
    found: dict[str, Range] = {}
    for body in query.graphs(model):
        for node in body:
            known = _range(node, found)
            if known is not None:
                found.update({output.name: known for output in node.outputs if output.name})
    return found


def _range(node: ir.Node, found: Mapping[str, Range]) -> Range | None:
    if query.is_op(node, *ops.RANGES):
        return ops.RANGES[node.op_type]
    limits = clip_limits(node)
    if limits is not None and all(map(math.isfinite, limits)):
        return limits
    if query.is_op(node, "Concat"):
        parts = [_of(value, found) for value in node.inputs]
        ends = [end for part in parts if part is not None for end in part]
        return (min(ends), max(ends)) if ends and None not in parts else None
    if query.is_op(node, "AveragePool", *(ops.SELECT - {"Cast"})):
        known = _of(node.inputs[0], found) if node.inputs else None
        return None if known is None else (min(known[0], 0.0), max(known[1], 0.0))
    if query.is_op(node, "Mul"):
        one, other = node.inputs
        return _scaled(one, other, found) or _scaled(other, one, found)
    return None


def _scaled(value: ir.Value | None, factor: ir.Value | None, found: Mapping[str, Range]) -> Range | None:
    known, number = found.get(value.name or "") if value is not None else None, query.scalar(factor) if factor else None
    if known is None or number is None or not math.isfinite(number):
        return None
    ends = sorted(end * number for end in known)
    return ends[0], ends[1]


def _of(value: ir.Value | None, found: Mapping[str, Range]) -> Range | None:
    if value is None:
        return None
    constant = query.small_constant(value)
    if constant is not None and constant.size and np.isfinite(constant).all():
        return float(constant.min()), float(constant.max())
    return found.get(value.name or "")
