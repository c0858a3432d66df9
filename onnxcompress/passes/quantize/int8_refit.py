"""Weights that make good what integers do to activations: a float model is refitted as if it ran on integers.

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
"""Of all samples together."""
_LEAST_FEEDS = 8
"""Fewer samples say too little about what a layer's inputs have in common."""


def refitted(model: ir.Model, quantized: ir.Model, labels: Collection[str], context: Context) -> ir.Model | None:
    """Return a copy of a float model with layers refitted for running on integers; None where none gains by it.

    Models whose samples take long to run are left alone: layer by layer it would take minutes.

    Args:
        model: the float model.
        quantized: the same with integers, whose nodes have kept their names; used up.
        labels: the layers that run on integers in it.
        context: its feeds are what is refitted on.

    Raises:
        ModelError: the runtime can't run one of the two.
    """
    if len(context.feeds) < _LEAST_FEEDS or context.state:
        return None
    macs = counting.count(model, context.feeds[0]).macs
    if macs is None or macs * len(context.feeds) > _MOST_MACS:
        return None
    wanted = set(labels)
    originals = {query.label(node): node for node in model.graph if query.label(node) in wanted}
    names = edit.Names(quantized)
    freed: list[ir.Node] = []
    for node in quantized.graph:
        original = originals.get(query.label(node))
        layer = None if original is None else linear_layer(original)
        if isinstance(layer, LinearLayer) and node.op_type == layer.node.op_type:
            array = float_constants.read(layer.weight)
            port = layer.facts.port
            node.replace_input_with(port, edit.add_initializer(quantized.graph, names, f"{layer.label}_free", array))
            freed.append(node)
    if not freed:
        return None
    free = set(freed)
    changes = reconstruct.refit(
        quantized,
        model,
        context.feeds,
        selects=lambda node: node in free,
        seed=context.seed,
        progress=context.progress,
    )
    gained = {change.layer for change in changes if change.is_applied}
    if not gained:
        return None
    result = model_io.clone(model)
    own = edit.Names(result)
    found = {query.label(node): linear_layer(node) for node in result.graph if query.label(node) in gained}
    for node in quantized.graph:
        fitted, layer = (linear_layer(node), found.get(query.label(node)))
        if isinstance(fitted, LinearLayer) and isinstance(layer, LinearLayer):
            layer.with_weights(fitted.matrix(), fitted.bias(), own)
    return result
