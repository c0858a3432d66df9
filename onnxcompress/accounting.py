"""The account of a pass: each layer with weights that it said nothing about gets a reason, so that none is left silent.

A pass that claims to treat the weights of a model (`covers_layers = True`) reports what it did and what it refused;
what it never looked at (an operator that it has no form for, a weight in a local function) it can't report. After it
has run, the layers of the model before it are checked: one that no change names, by itself or by a weight, and
whose weights take as many bytes as before, is reported as skipped. A pass may know better why:
`why_left(layer, changes)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import onnx_ir as ir

from .core import DESELECTED, GRAPH, Action, Change, Context, Pass
from .graph import query
from .ops.weight_layers import WeightedLayer

LEFT_BY_CHOICE = "the passes of the candidate that was chosen have no form for it that pays"
"""Reason for a layer that a pass which chooses among candidates leaves, and of which none of their passes speaks."""


def covers_layers(one: Pass) -> bool:
    """Say whether a pass claims to treat the weights of every layer."""
    return bool(getattr(one, "covers_layers", False))


def unmentioned(
    one: Pass, layers: Sequence[WeightedLayer], after: ir.Model | None, changes: Sequence[Change], context: Context
) -> Iterator[Change]:
    """Yield a change, skipped and with the reason, for each layer that a pass neither changed nor mentioned.

    Args:
        one: a pass that covers layers.
        layers: of the model that it was given.
        after: the model as it is now; None where it is unchanged.
        changes: what the pass reported, and what was taken back.
        context: whose `selects` says which nodes it was allowed to touch.
    """
    named = {change.target for change in changes}
    left = None if after is None else _stored_bytes(after)
    lost = next((c for c in changes if c.target == GRAPH and c.action is Action.ROLLED_BACK), None)
    own: Callable[[WeightedLayer, Sequence[Change]], str | None] = getattr(one, "why_left", lambda *_: None)
    counted: set[str] = set()
    for layer in layers:
        if layer.label in named or any(weight.names & named for weight in layer.weights):
            continue
        if left is not None and any(left.get(w.name, 0) < w.bytes for w in layer.main if not w.is_attribute):
            continue
        why = None if lost is None else f"{one.name} was taken back: {lost.reason}"
        why = why or _plain_reason(layer, context) or own(layer, changes)
        why = why or (f"its weights are {layer.form} already" if layer.form else _small(layer, one))
        why = why or f"constants of {layer.node.op_type} are none that {one.name} changes"
        size = sum(weight.bytes for weight in layer.main if weight.is_attribute or weight.name not in counted)
        counted.update(weight.name for weight in layer.main)
        yield Change.skipped(one.name, why, target=layer.label, bytes_before=size)


def _stored_bytes(model: ir.Model) -> dict[str, int]:
    """Return the bytes of every constant by name."""
    found = {}
    for body in query.graphs(model):
        for value in body.initializers.values():
            if value.name and value.const_value is not None:
                found[value.name] = value.const_value.nbytes
        for node in body:
            tensor = query.constant_tensor(node.outputs[0]) if query.is_op(node, "Constant") else None
            if tensor is not None:
                found[node.outputs[0].name or ""] = tensor.nbytes
    return found


def _plain_reason(layer: WeightedLayer, context: Context) -> str | None:
    """Return a reason that holds for every pass, None where there is none."""
    if not context.selects(layer.node):
        return DESELECTED
    if layer.in_function:
        return "it is in a local function, which can't hold weights of other types"
    main = layer.main
    if all(weight.is_attribute for weight in main):
        return f"its numbers are attributes of {layer.node.op_type}, which takes them as floats only"
    if all(weight.is_input for weight in main):
        return "its weight is an input of the graph with a default, which callers may replace"
    return None


def _small(layer: WeightedLayer, one: Pass) -> str | None:
    """Return that a pass leaves such small weights alone, None where they are not small."""
    least = getattr(one, "min_elements", 0)
    return f"fewer than {least} elements" if all(weight.size < least for weight in layer.main) else None


def why_nothing(changes: Sequence[Change]) -> str | None:
    """Return why a pass that decides about the model as a whole did nothing, None where it did something."""
    if any(change.action is Action.APPLIED for change in changes):
        return None
    first = next((change for change in changes if change.target == GRAPH), None)
    return None if first is None else f"nothing was done: {first.reason}"
