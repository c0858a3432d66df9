"""Raise the opset of the model that a pass edits, where the operators that it writes need it."""

from __future__ import annotations

import onnx_ir as ir

from ..core import Action, Change, Context
from ..errors import ModelError
from ..graph import edit, query
from ..io import model_io


def raise_opset(model: ir.Model, context: Context, pass_name: str, needed: int, why: str) -> list[Change]:
    """Raise the default opset to `needed` in place; where that fails it stays, and the change says why.

    Args:
        model: edited in place; one that has the opset, or none at all, is left alone.
        context: its gate is asked.
        pass_name: stands in the change.
        needed: the opset.
        why: what needs it, for the reason.
    """
    now, target = query.opset(model), f"opset {needed}"
    if now >= needed or not now or not context.gate.admits(pass_name, target):
        return []
    action, reason = Action.APPLIED, f"raised from {now}: {why}"
    try:
        converted = model_io.convert_opset(model, needed)
        model_io.drop_declared_shapes(converted, size_bytes=0)  # what the converter inferred
        for old, new in zip(model.graph.outputs, converted.graph.outputs, strict=True):
            new.type, new.shape = old.type, old.shape
        edit.become(model, converted)
    except ModelError as error:
        action, reason = Action.SKIPPED, f"stays at {now}: {error.message}"
    return [Change(pass_name=pass_name, target=target, action=action, reason=reason)]
