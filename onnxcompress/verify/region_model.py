"""One of the two models of a proof by regions: its values by name, how each is made, and the pieces that make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..core import Feed
from ..data import feeds as feed_facts
from ..graph import query
from ..graph.extract import extract
from ..graph.query import topological
from ..io.stored_lists import StoredList
from ..shapes import infer as shapes
from .region_worker import Leaf
from .slices import ValuePart

_SMALL_BYTES = 1024
"""Constants up to this size are compared by their bytes, larger ones by identity; chosen by judgement."""
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


class Side:
    """One of the two models: its values by name, how each is made, and the shapes at the feed's sizes."""

    def __init__(self, model: ir.Model, feed: Feed) -> None:
        self.model = model
        self.shapes = shapes.infer_at(model, feed_facts.dims(feed))
        self.inputs = frozenset(v.name or "" for v in model.graph.inputs if not v.is_initializer())
        self.outputs = frozenset(v.name or "" for v in model.graph.outputs)
        self.values = {v.name or "": v for v in model.graph.inputs}
        self.values |= {v.name or "": v for v in model.graph.initializers.values()}
        self.made: dict[str, ir.Value] = {}
        self.position: dict[ir.Node, int] = {}
        for index, node in enumerate(topological(model.graph)):
            self.position[node] = index
            self.made.update({o.name: o for o in node.outputs if o.name})
        self.values |= self.made

    def is_float(self, name: str) -> bool:
        """Say whether a value can be drawn at random: floating point, of a known shape."""
        value = self.values[name]
        return self.shapes.dtype(value) in FLOATS and self.shapes.static(value) is not None

    def key(self, name: str) -> tuple[Any, ...]:
        """Return how a value is made, by its node, the names it reads, and the constants themselves."""
        value = self.made[name]
        node = value.producer()
        assert node is not None
        return (_node_key(node), value.index())

    def cone(self, output: str, cuts: frozenset[str]) -> tuple[list[ir.Node], list[str]]:
        """Return the nodes that make a value from cut values and inputs, in order, and the names of these."""
        found: set[ir.Node] = set()
        leaves: dict[str, None] = {}
        pending = [self.values[output]]
        while pending:
            value = pending.pop()
            name = value.name or ""
            if name != output and (name in cuts or name in self.inputs):
                leaves[name] = None
                continue
            node = value.producer()
            if node is None or node in found:
                continue
            found.add(node)
            pending += query.reads(node)
        return sorted(found, key=self.position.__getitem__), sorted(leaves)

    def dims(self, value: ir.Value) -> tuple[int, ...] | None:
        """Return the dimensions of a value, None where they are not known."""
        return self.shapes.static(value)

    def leaf(self, name: str, feed: Feed, part: ValuePart | None) -> Leaf:
        """Return what to feed for a value, or for the part of it that a part of the output depends on."""
        if name in self.inputs:
            given = np.asarray(feed[name]) if feed_facts.is_array(feed[name]) else feed[name]
            return Leaf(name, "", (), given if part is None else given[part.index(name)])
        dtype, dims = self.shapes.dtype(self.values[name]), self.shapes.static(self.values[name])
        assert dtype is not None
        assert dims is not None
        return Leaf(name, dtype.numpy().name, dims if part is None else part.of_dims(name, dims), None)

    def piece(self, output: str, nodes: Sequence[ir.Node], leaves: Sequence[str]) -> ir.Model:
        """Return a model of these nodes, its weights shared with the whole model and still on disk."""
        values = self.values

        def typed(value: ir.Value) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
            dtype, dims = self.shapes.dtype(value), self.shapes.shape(value)
            return value.type if dtype is None else ir.TensorType(dtype), None if dims is None else ir.Shape(dims)

        return extract(self.model, nodes, [values[name] for name in leaves], [values[output]], typed=typed)


def _node_key(node: ir.Node) -> tuple[Any, ...]:
    inputs = tuple(None if value is None else _value_key(value) for value in node.inputs)
    attributes = tuple(sorted((name, _attribute_key(attr)) for name, attr in node.attributes.items()))
    return (node.domain, node.op_type, node.overload, inputs, attributes)


def _value_key(value: ir.Value) -> tuple[Any, ...]:
    node = value.producer()
    while node is not None and query.is_op(node, "Identity") and node.inputs[0] is not None:
        value = node.inputs[0]  # the same under another name
        node = value.producer()
    tensor = query.constant_tensor(value)
    return ("value", value.name) if tensor is None else _tensor_key(tensor)


def _tensor_key(tensor: ir.TensorProtocol) -> tuple[Any, ...]:
    small = tensor.nbytes <= _SMALL_BYTES and tensor.dtype != ir.DataType.STRING
    return ("constant", tensor.dtype.name, query.dims(tensor), tensor.tobytes() if small else id(tensor))


def _attribute_key(attr: ir.Attr) -> str:
    """Return a text that is equal for equal attributes; bodies are described node by node."""
    if attr.is_ref():
        return f"@{attr.ref_attr_name}"
    bodies = query.attribute_graphs(attr)
    if bodies:
        return repr([([_node_key(n) for n in b], [_value_key(o) for o in b.outputs]) for b in bodies])
    if attr.type == ir.AttributeType.TENSOR:
        return repr(_tensor_key(attr.as_tensor()))
    if isinstance(attr, StoredList):
        return f"{attr.type}:{attr.stored.stored!r}"
    return f"{attr.type}:{attr.value!r}"


def kind_of(node: ir.Node) -> tuple[Any, ...]:
    """Return what decides whether the runtime can load a node: all but its names and the numbers in its weights."""
    inputs = tuple(
        None if value is None else (value.dtype, query.constant_tensor(value) is None) for value in node.inputs
    )
    attributes = tuple(sorted((name, _attribute_key(attr)) for name, attr in node.attributes.items()))
    return (node.domain, node.op_type, node.overload, inputs, attributes)
