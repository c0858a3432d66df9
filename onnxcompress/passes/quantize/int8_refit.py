"""Weights that compensate the rounding of activations: a float model is refitted as if it ran on int8.

    float model --quantize--> copy --weights back to float--> student --refit to the float model--> weights, biases
    float model with these weights and biases --quantize--> the recovered model

The student's activations are rounded as they will be, its weights are not: they are free for the least squares, and
rounded afterwards.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from ...core import Context
from ...distillation import reconstruct
from ...graph import constants as float_constants
from ...graph import edit, query
from ...io import model_io
from ...ops.linear import LinearLayer, linear_layer
from ...shapes import count as counting

_MOST_MACS = 5_000_000_000
"""Multiply-accumulates of all samples together: larger models are skipped, for they would take minutes. Chosen by
judgement; not measured."""
_LEAST_FEEDS = 8
"""Samples: fewer say too little about the correlations of a layer's inputs. Chosen by judgement; not measured."""


def can_refit(model: ir.Model, context: Context) -> bool:
    """Return whether there are samples enough to refit a model, and not so many that it would take minutes.

    Raises:
        ModelError: the runtime can't run the model.
    """
    if len(context.feeds) < _LEAST_FEEDS or context.state:
        return False
    macs = counting.count(model, context.feeds[0]).macs
    return macs is not None and macs * len(context.feeds) <= _MOST_MACS


def refitted(model: ir.Model, quantized: ir.Model, labels: Collection[str], context: Context) -> ir.Model | None:
    """Return a copy of a float model with layers refitted for running on int8; None where none gains by it.

    Args:
        model: the float model.
        quantized: the same quantized, whose nodes have kept their names; edited, and of no use afterwards.
        labels: the layers that run on int8 in it.
        context: its feeds are what is refitted on.

    Raises:
        ModelError: the runtime can't run one of the two.
    """
    if not can_refit(model, context):
        return None
    free = _free_weights(quantized, _layers(model, labels))
    if not free:
        return None
    changes = reconstruct.refit(
        quantized,
        model,
        context.feeds,
        selects=lambda node: node in free,
        seed=context.seed,
        progress=context.while_time,
    )
    gained = {change.layer for change in changes if change.is_applied}
    if not gained:
        return None
    result = model_io.clone(model)
    names = edit.Names(result)
    targets = _layers(result, gained)
    for label, fitted in _layers(quantized, targets).items():
        targets[label].with_weights(fitted.matrix(), fitted.bias(), names)
    return result


def _layers(model: ir.Model, labels: Collection[str]) -> dict[str, LinearLayer]:
    """Return label -> linear layer, of those of the main graph that have one of some labels."""
    found = {query.label(node): linear_layer(node) for node in model.graph if query.label(node) in labels}
    return {label: layer for label, layer in found.items() if isinstance(layer, LinearLayer)}


def _free_weights(quantized: ir.Model, originals: dict[str, LinearLayer]) -> set[ir.Node]:
    """Give layers of a quantized model their float weights again, and return these layers' nodes."""
    names = edit.Names(quantized)
    freed = set()
    for node in quantized.graph:
        layer = originals.get(query.label(node))
        if layer is not None and node.op_type == layer.node.op_type:
            weight = float_constants.read(layer.weight)
            free = edit.add_initializer(quantized.graph, names, f"{layer.label}_free", weight)
            node.replace_input_with(layer.facts.port, free)
            freed.add(node)
    return freed
