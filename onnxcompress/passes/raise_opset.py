"""Raise the opset of the model that a pass edits, where the operators that it writes need it."""

from __future__ import annotations

import onnx_ir as ir

from ..core import Change, Context
from ..errors import ModelError
from ..graph import edit, query
from ..io import model_io


def raise_opset(model: ir.Model, context: Context, pass_name: str, needed: int, why: str) -> list[Change]:
    """Raise the default opset to `needed` in place; where that fails it is kept, and the change says why.

    Args:
        model: edited in place; one that has the opset, or none at all, is not changed.
        context: its gate is asked.
        pass_name: name of the pass in the change.
        needed: the opset.
        why: operators that need it, for the reason.
    """
    now, target = query.opset(model), f"opset {needed}"
    if now >= needed or not now or not context.gate.admits(pass_name, target):
        return []
    try:
        converted = model_io.convert_opset(model, needed)
        model_io.drop_declared_shapes(converted, size_bytes=0)  # what the converter inferred
        for old, new in zip(model.graph.outputs, converted.graph.outputs, strict=True):
            new.type, new.shape = old.type, old.shape
        edit.become(model, converted)
    except ModelError as error:
        return [Change.skipped(pass_name, f"stays at {now}: {error.message}", target=target)]
    return [Change.applied(pass_name, f"raised from {now}: {why}", target=target)]
