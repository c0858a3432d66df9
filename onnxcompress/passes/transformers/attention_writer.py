"""Write a recognised attention block as an operator: the standard one, or onnxruntime's MultiHeadAttention."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from ...graph import edit
from ...ops.table import MICROSOFT
from ..rewriting import RewriteContext
from .attention import Attention
from .heads import HeadedValue
from .masks import MaskWriter
from .scene import Scene

AttentionForm = Literal["standard", "microsoft"]

STANDARD_OPSET = 23
"""The opset that brought Attention and RotaryEmbedding."""


def form_problem(found: Attention, form: AttentionForm) -> str | None:
    """Return why a form can't express a block, None where it can."""
    if form == "standard":
        return None
    if found.heads is None or found.query.joined is None or found.joined is None:
        return "MultiHeadAttention takes queries that are not cut into heads"
    if found.repeats != 1:
        return "MultiHeadAttention has no shared keys"
    if (found.key.joined is None) != (found.value.joined is None) or (found.cache and found.key.joined is None):
        return "MultiHeadAttention takes keys and values in one form"
    return None


def write(found: Attention, form: AttentionForm, scene: Scene, ctx: RewriteContext) -> None:
    """Put the operator in the place of the block."""
    parts = (found.query, found.key, found.value)
    flat = found.heads is not None and found.joined is not None and all(part.joined is not None for part in parts)
    result = found.joined if found.joined is not None and (flat or form == "microsoft") else found.result
    anchor = result.producer()
    assert anchor is not None
    if form == "microsoft":
        operands, attributes = _microsoft(found, anchor, ctx)
    else:
        operands, attributes = _standard(found, anchor, ctx, flat=flat)
    mask = MaskWriter(found, anchor, scene, ctx, four=form == "microsoft").written()
    caches = [None, None] if found.cache is None else [part.past for part in found.cache]
    inputs = [*operands, *([None, None] if form == "microsoft" else []), mask, *caches]
    while inputs[-1] is None:
        inputs.pop()
    made = edit.insert_before(
        anchor,
        ctx.names,
        "Attention" if form == "standard" else "MultiHeadAttention",
        inputs,
        attributes={"scale": float(found.scale), **attributes},
        domain="" if form == "standard" else MICROSOFT,
        outputs=1 if found.cache is None else 3,
    )
    for part, present in zip(found.cache or (), made.outputs[1:], strict=True):
        edit.take_over(part.whole, present)
    edit.take_over(result, made.outputs[0])


def _standard(
    found: Attention, anchor: ir.Node, ctx: RewriteContext, *, flat: bool
) -> tuple[list[ir.Value | None], dict[str, int]]:
    parts = (found.query, found.key, found.value)
    if flat and found.heads is not None:
        return [part.joined for part in parts], {"q_num_heads": found.heads[0], "kv_num_heads": found.heads[1]}
    attributes = {} if found.heads is not None else {"q_num_heads": 1, "kv_num_heads": 1}
    return [part.in_heads(anchor, ctx) for part in parts], attributes


def _microsoft(found: Attention, anchor: ir.Node, ctx: RewriteContext) -> tuple[list[ir.Value | None], dict[str, int]]:
    assert found.heads is not None
    ctx.model.opset_imports.setdefault(MICROSOFT, 1)
    together: list[ir.Value | None] = [_memory(part, anchor, ctx) for part in (found.key, found.value)]
    return [found.query.joined, *together], {"num_heads": found.heads[0]}


def _memory(part: HeadedValue, anchor: ir.Node, ctx: RewriteContext) -> ir.Value:
    return part.in_heads(anchor, ctx) if part.joined is None else part.joined
