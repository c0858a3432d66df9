"""Merge a Pad of spatial axes into the pads of the operator after it.

Conv            pads with zeros itself
AveragePool     the same, and they count: count_include_pad=1
MaxPool         pads with minus infinity itself; any number that no x is below has the same effect, as 0 after Relu
ConvTranspose   crops its result by its pads: a zero before only moves the crop, by its stride
"""

from __future__ import annotations

import math

import onnx_ir as ir

from ...graph import edit, query
from ..rewriting import Refusal, Rewrite, RewriteContext
from .value_bounds import non_negative


def absorb_pad(node: ir.Node, ctx: RewriteContext) -> Rewrite | Refusal | None:
    """Merge the Pad before a node into its pads."""
    value = node.inputs[0]
    pad = None if value is None else value.producer()
    if value is None or pad is None or not query.is_op(pad, "Pad") or pad.graph is not node.graph:
        return None
    found = _pads(pad, ctx)
    if isinstance(found, str):
        return _refuse(node, found)
    added, fill = found
    if query.sole_consumer(value) is not node:
        return _refuse(node, f"{value.name} has other readers")
    pads = _together(node, pad.inputs[0], added, fill)
    if isinstance(pads, str):
        return _refuse(node, pads)

    def apply() -> None:
        node.attributes["pads"] = ir.AttrInt64s("pads", pads)
        node.attributes.pop("auto_pad", None)
        if node.op_type == "AveragePool":
            node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
        node.replace_input_with(0, pad.inputs[0])
        edit.remove_unread(value)

    return Rewrite(target=query.label(node), reason=f"{query.label(pad)} became its pads", apply=apply)


def _refuse(node: ir.Node, reason: str) -> Refusal:
    return Refusal(target=query.label(node), reason=f"the Pad before it stays: {reason}")


def _pads(pad: ir.Node, ctx: RewriteContext) -> tuple[list[int], float] | str:
    """Return the padding of the spatial axes (all begins, all ends) and its value, or why it can't be merged."""
    if query.attribute(pad, "mode", "constant") != "constant":
        return f"its mode is {query.attribute(pad, 'mode')}"
    amounts = query.integers(pad, "pads", 1)
    if amounts is None or (ctx.opset < 11 and "value" not in pad.attributes and len(pad.inputs) > 1):
        return "its amounts are computed"
    fill: float | None = float(query.attribute(pad, "value", 0.0))
    if len(pad.inputs) > 2 and pad.inputs[2] is not None:
        fill = query.scalar(pad.inputs[2])
    if fill is None:
        return "its number is computed"
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        axes, rank = query.integers(pad, "axes", 3), ctx.shapes.rank(pad.inputs[0])
        if axes is None or rank is None:
            return "its axes are not known"
        full = [0] * (2 * rank)
        for place, axis in enumerate(axes):
            full[axis % rank], full[axis % rank + rank] = amounts[place], amounts[place + len(axes)]
        amounts = full
    rank = len(amounts) // 2
    if any(amounts[i] for i in (0, 1, rank, rank + 1)):
        return "it pads the batch or the channels"
    if min(amounts) < 0:
        return "it crops"
    return amounts[2:rank] + amounts[rank + 2 :], fill


def _together(node: ir.Node, padded: ir.Value | None, added: list[int], fill: float) -> list[int] | str:
    """Return the pads of a node that takes over those of the Pad, or why it can't."""
    pool = node.op_type in ("AveragePool", "MaxPool")
    auto = query.attribute(node, "auto_pad", "NOTSET")
    own = list(query.attribute(node, "pads", ())) or [0] * len(added)
    if auto not in ("NOTSET", "VALID"):
        return f"auto_pad is {auto}"
    if len(own) != len(added):
        return "the ranks differ"
    if node.op_type == "MaxPool":
        if fill != -math.inf and not (fill <= 0 and non_negative(padded)):
            return f"it adds {fill:g}, MaxPool pads with minus infinity"
        if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
            return "the places of the maxima count its elements"
    elif fill != 0:
        return f"it adds {fill:g}, {node.op_type} pads with 0"
    if pool and query.attribute(node, "ceil_mode", 0):
        return "ceil_mode counts pads and sizes in another way"
    if node.op_type == "AveragePool" and any(own) and not query.attribute(node, "count_include_pad", 0):
        return "its own pads don't count and those of the Pad do"
    if node.op_type == "ConvTranspose":
        strides = list(query.attribute(node, "strides", ())) or [1] * (len(added) // 2)
        if query.attribute(node, "output_shape") is not None:
            return "output_shape decides its pads"
        pads = [o - a * s for o, a, s in zip(own, added, strides * 2, strict=True)]
        return pads if min(pads) >= 0 else "it pads by more than the result is cropped"
    pads = [o + a for o, a in zip(own, added, strict=True)]
    kernel = list(query.attribute(node, "kernel_shape", ())) if pool else [math.inf] * (len(pads) // 2)
    if any(p >= k for p, k in zip(pads, kernel * 2, strict=True)):
        return "a pool's pads must be smaller than its kernel"
    return pads
