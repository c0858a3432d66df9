"""Common sub-expression elimination: of nodes that compute the same from the same inputs, one is kept.

A body of If/Loop/Scan may read what an earlier node around it computes; nothing is moved out of a body.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Hashable
from typing import ClassVar

import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ...core import Change, Context, LosslessPass
from ...graph import edit, query
from ...ops import table as ops

_QUANTIZATION = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
"""Runtimes look for these next to the operator they quantize."""
_SMALL_BYTES = 1024
"""Largest tensors in attributes that are compared, in bytes. Chosen by judgement; not measured."""

_Seen = ChainMap[Hashable, ir.Node]


@dataclass(frozen=True, kw_only=True)
class ShareNodes(LosslessPass):
    """Compute equal expressions once: later equal nodes are removed and their readers read the first."""

    name: ClassVar[str] = "share-nodes"

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Merge equal nodes in every graph of `model`."""
        changes: list[Change] = []
        for body in (model.graph, *(function.graph for function in model.functions.values())):
            self._share(body, _Seen(), context, changes)
        return changes

    def _share(self, body: ir.Graph, seen: _Seen, context: Context, changes: list[Change]) -> None:
        for node in tuple(body):
            inner = query.bodies(node)
            for each in inner:
                self._share(each, seen.new_child(), context, changes)
            key = None if inner else _key(node)
            if key is None:
                continue
            first = seen.get(key)
            if first is None:
                seen[key] = node
                continue
            pairs = list(zip(node.outputs, first.outputs, strict=True))
            target = query.label(node)
            if not all(edit.can_replace(old, new) for old, new in pairs):
                continue
            if not context.gate.admits(self.name, target):
                continue
            reason = f"computes the same as {query.label(first)}"
            edit.replace_node(node, list(first.outputs))
            changes.append(Change.applied(self.name, reason, target=target))


def _key(node: ir.Node) -> Hashable | None:
    """Return a key that is equal for nodes that always compute the same, None for nodes that may not be shared."""
    if node.domain not in query.STANDARD_DOMAINS or query.is_op(node, *ops.STOCHASTIC, *_QUANTIZATION):
        return None
    attributes = []
    for attr in sorted(node.attributes.values(), key=lambda a: a.name):
        value = _attribute_key(attr)
        if value is None:
            return None
        attributes.append((attr.name, str(attr.type), value))
    outputs = tuple(bool(o.name) for o in node.outputs)
    inputs = tuple(None if v is None else id(v) for v in node.inputs)
    while inputs and inputs[-1] is None:
        inputs = inputs[:-1]
    return node.op_type, node.overload, tuple(attributes), inputs, outputs


def _attribute_key(attr: ir.Attr) -> Hashable | None:
    if attr.is_ref():
        return "reference", attr.ref_attr_name
    if attr.type == ir.AttributeType.TENSOR:
        tensor = attr.as_tensor()
        if tensor.nbytes > _SMALL_BYTES or tensor.dtype == ir.DataType.STRING:
            return None
        return str(tensor.dtype), query.dims(tensor), tensor.tobytes()
    if isinstance(attr.value, (int, str)):
        return attr.value
    if isinstance(attr.value, float):
        return repr(attr.value)  # tells -0.0 from 0.0
    if isinstance(attr.value, (list, tuple)) and all(isinstance(n, (int, float, str)) for n in attr.value):
        return tuple(repr(n) for n in attr.value)
    return None
