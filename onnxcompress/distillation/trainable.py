"""Constants of a model that can be trained: weights of linear and recurrent layers, scales and slopes of channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from ..graph import constants as float_constants
from ..graph import edit, query
from ..ops import table as ops

_CHANNEL_PORTS: Mapping[str, tuple[int, ...]] = {
    "Add": (0, 1),
    "BatchNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "Mul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "Sub": (0, 1),
}
"""Operator -> inputs that hold a number for each channel: statistics of BatchNormalization are none of them."""
_RECURRENT = ("GRU", "LSTM", "RNN")
"""Operators whose weights and biases are inputs 1 to 3."""


def weights(model: ir.Model, selects: Callable[[ir.Node], bool] = lambda _: True) -> dict[str, np.ndarray]:
    """Return name -> float32 array of what can be trained: constants of the main graph that are stored as float32.

    Scales and shifts of one number are left out (they are parts of formulas), and so are tables that are looked up.

    Args:
        model: the model.
        selects: False for nodes whose constants are kept.
    """
    found: dict[str, np.ndarray] = {}
    for value in _candidates(model, selects):
        tensor = query.constant_tensor(value)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or not value.name or value.is_graph_output():
            continue
        maker = value.producer()
        if model.graph.initializers.get(value.name) is value or (maker is not None and maker.graph is model.graph):
            found[value.name] = np.array(float_constants.read(value), np.float32)
    return found


def _candidates(model: ir.Model, selects: Callable[[ir.Node], bool]) -> Iterator[ir.Value]:
    for body in query.graphs_outside_functions(model):
        for node in filter(selects, body):
            for port in sorted(_weight_ports(node)):
                value = node.inputs[port] if port < len(node.inputs) else None
                if value is not None and query.constant_tensor(value) is not None:
                    yield value
            ports = _CHANNEL_PORTS.get(node.op_type, ()) if node.domain in query.STANDARD_DOMAINS else ()
            for port in ports:
                value = node.inputs[port] if port < len(node.inputs) else None
                if value is not None and _is_per_channel(value):
                    yield value


def _weight_ports(node: ir.Node) -> set[int]:
    """Return the inputs that hold matrices and their biases; not the tables that are looked up."""
    if query.is_op(node, *_RECURRENT):
        return {1, 2, 3}
    if query.is_op(node, "Einsum"):
        return set(range(len(node.inputs)))
    found = [facts for facts in ops.spec(node).weights if facts.in_axis is not None]
    return {port for facts in found for port in (facts.port, facts.bias) if port is not None}


def _is_per_channel(value: ir.Value) -> bool:
    """Say whether a constant has several elements, all along one axis."""
    tensor = query.constant_tensor(value)
    if tensor is None:
        return False
    dims = query.dims(tensor)
    return math.prod(dims) > 1 and sum(n > 1 for n in dims) == 1


def write(model: ir.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays of `weights` back, in place, for all their readers.

    Args:
        model: the model that they came from.
        arrays: name -> float32 array.
    """
    made = {output.name: node for node in model.graph for output in node.outputs if output.name in arrays}
    for name, array in arrays.items():
        value = model.graph.initializers.get(name)
        if value is not None:
            edit.set_weight(value, array)
            continue
        node = made[name]
        node.attributes.clear()
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array, name=name))
