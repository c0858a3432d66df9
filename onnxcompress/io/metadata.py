"""Records that exporters leave at every node: stack traces, module names, their authors' paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..graph.query import graphs, graphs_outside_functions
from . import wire
from .serialize import to_proto

if TYPE_CHECKING:
    from collections.abc import Iterator


_STANDARD_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Dropped:
    """Count and size of the records that were removed.

    Args:
        count: metadata entries and doc strings.
        bytes: by how much the saved model shrinks.

    """

    count: int
    bytes: int


def has_records(model: ir.Model) -> bool:
    """Say whether there is anything to drop for `drop_node_records` or `drop_declared_shapes`."""
    return bool(_declared(model)) or any(holder.metadata_props or holder.doc_string for holder in _holders(model))


def drop_node_records(model: ir.Model, *, size_bytes: int | None = None) -> Dropped:
    """Remove metadata_props and doc_strings of nodes and values, in sub-graphs and functions too.

    Those of the model, of graphs and functions, and of the main graph's inputs and outputs, which describe
    how to use the model, stay.

    Args:
        model: edited in place.
        size_bytes: of the model, where the caller knows it already.
    """
    holders = [holder for holder in _holders(model) if holder.metadata_props or holder.doc_string]
    if not holders:
        return Dropped(0, 0)
    before = _size(model) if size_bytes is None else size_bytes
    count = 0
    for holder in holders:
        count += len(holder.metadata_props) + bool(holder.doc_string)
        holder.metadata_props.clear()
        holder.doc_string = None
    return Dropped(count, before - _size(model))


def drop_declared_shapes(model: ir.Model, *, size_bytes: int | None = None) -> Dropped:
    """Remove what is declared of the types and shapes of values between the graph's inputs and outputs.

    Exporters get it wrong, rewrites make it stale, and whoever wants it can infer it. What operators of other
    domains make keeps it: nobody else knows. Those of graph inputs, outputs and local functions stay.

    Args:
        model: edited in place.
        size_bytes: of the model, where the caller knows it already.
    """
    told = _declared(model)
    if not told:
        return Dropped(0, 0)
    before = _size(model) if size_bytes is None else size_bytes
    for value in told:
        value.type = value.shape = None
    return Dropped(len(told), before - _size(model))


def _declared(model: ir.Model) -> list[ir.Value]:
    return [
        value
        for body in graphs_outside_functions(model)
        for node in body
        if node.domain in _STANDARD_DOMAINS
        for value in node.outputs
        if (value.type is not None or value.shape is not None) and not value.is_graph_output()
    ]


def copy_records(source: ir.Model, target: ir.Model) -> None:
    """Give `target` the names, doc strings and metadata of `source` that it lacks, matched by value name.

    Converters keep the names of values and drop most else. A node is matched by its first named output.
    """
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(target, name, getattr(target, name) or getattr(source, name))
    target.metadata_props.update({**source.metadata_props, **target.metadata_props})
    target.device_configurations = source.device_configurations
    target.graph.name = target.graph.name or source.graph.name
    target.graph.doc_string = target.graph.doc_string or source.graph.doc_string
    target.graph.metadata_props.update(source.graph.metadata_props)
    target.graph.meta.update(source.graph.meta)
    values, nodes = _by_name(source)
    for graph in graphs(target):
        for value in _values(graph):
            original = values.get(value.name or "")
            if original is not None:
                _copy_value(original, value)
        for node in graph:
            twin = nodes.get(_first_name(node))
            if twin is not None and twin.op_type == node.op_type:
                node.name = node.name or twin.name
                node.doc_string = node.doc_string or twin.doc_string
                node.metadata_props.update(twin.metadata_props)


def _by_name(model: ir.Model) -> tuple[dict[str, ir.Value], dict[str, ir.Node]]:
    values = {value.name: value for graph in graphs(model) for value in _values(graph) if value.name}
    nodes = {_first_name(node): node for graph in graphs(model) for node in graph}
    return values, nodes


def _first_name(node: ir.Node) -> str:
    return next((value.name for value in node.outputs if value.name), "")


def _copy_value(source: ir.Value, target: ir.Value) -> None:
    target.doc_string = target.doc_string or source.doc_string
    target.metadata_props.update(source.metadata_props)
    if source.meta:
        target.meta.update(source.meta)


def _values(graph: ir.Graph | ir.Function) -> list[ir.Value]:
    values = list(graph.inputs)
    if isinstance(graph, ir.Graph):
        values += graph.initializers.values()
    return [*values, *(value for node in graph for value in node.outputs)]


def _holders(model: ir.Model) -> Iterator[ir.Node | ir.Value]:
    interface = {*model.graph.inputs, *model.graph.outputs}
    for graph in graphs(model):
        yield from graph
        yield from (value for value in dict.fromkeys(_values(graph)) if value not in interface)


def _size(model: ir.Model) -> int:
    return wire.plan(to_proto(model).serialize()).size
