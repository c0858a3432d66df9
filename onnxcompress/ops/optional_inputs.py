"""Inputs that have a default: initializers that are inputs too, which callers may override.

An exporter that lists every initializer among the inputs says nothing by it (torch before 1.2, MXNet, many
converters): then weights are weights. Listed apart, an initializer is part of the interface: a threshold, an initial
state, a table that users replace.
"""

from __future__ import annotations

import onnx_ir as ir

from ..graph import query
from .table import weight_reads

_LEAST_LAYERS = 2
"""Layers: one weight that is an input too may be a filter that users replace. Chosen by judgement; not measured."""


def optional_inputs(model: ir.Model) -> list[ir.Value]:
    """Return the inputs that have a default, also those of old files, which no caller can override."""
    return [value for value in model.graph.inputs if value.is_initializer()]


def listed_by_habit(model: ir.Model) -> frozenset[str]:
    """Return the names of the optional inputs that are none to any user.

    All of them in files of an IR version before 4. In newer ones, where the weights of all layers are inputs (of two
    layers or more): every initializer of more than one element. Single numbers, thresholds for one, are left out.
    """
    found = optional_inputs(model)
    if not query.has_optional_inputs(model):
        return frozenset(value.name or "" for value in found)
    weights = {value for _, _, value in weight_reads(model) if value.is_initializer()}
    if len(weights) < _LEAST_LAYERS or not all(value.is_graph_input() for value in weights):
        return frozenset()
    tensors = ((value, value.const_value) for value in found)
    return frozenset(value.name or "" for value, t in tensors if value in weights or (t is not None and t.size > 1))
