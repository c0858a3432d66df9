"""Refuse models that contradict themselves: values that nothing makes, circles, operators used otherwise than defined.

`onnx.checker` is not asked: it refuses deprecated operators and foreign domains, which runtimes run, and reads nodes
before `deserialize` has restored what onnx_ir can't express.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from ..errors import ModelError
from ..graph.query import bodies

if TYPE_CHECKING:
    from collections.abc import Iterator


_MANY = 1 << 30
"""Inputs or outputs from which on an operator takes any number: schemas say 2**31 - 1."""


_OF_TYPES = ("to", "dtype", "output_dtype")

_TYPES = frozenset(int(each) for each in ir.DataType)

_MOST_VERSION = (1 << 31) - 1
"""Opset versions are int32 in onnx's schemas."""


def check_versions(model: ir.Model, where: str) -> None:
    """Raise ModelError where a version of operators is no number that onnx counts with."""
    for imports in (model.opset_imports, *(each.opset_imports for each in model.functions.values())):
        for domain, version in imports.items():
            if not 0 <= version <= _MOST_VERSION:
                raise ModelError(f"imports version {version} of {domain or 'ai.onnx'!r}, which can't be", where=where)


def check_graph(graph: ir.Graph | ir.Function, model: ir.Model, where: str) -> None:
    """Raise ModelError where a graph of the model contradicts itself or its operators; `where` names the file."""
    _check_texts(graph, where)
    _check_values(graph, where)
    _check_order(graph, where)
    _check_nodes(graph, model, where)


def _check_values(graph: ir.Graph | ir.Function, where: str) -> None:
    """Raise ModelError where a node, or the graph as its output, uses a value that nothing makes."""
    for node in graph:
        for value in node.inputs:
            if value is not None and not _is_made(value):
                name = node.name or node.op_type
                raise ModelError(f"node {name!r} uses {value.name!r}, which nothing makes", where=where)
    for value in graph.outputs:
        if not _is_made(value):
            raise ModelError(f"output {value.name!r} is made by no node", where=where)


def _check_order(graph: ir.Graph | ir.Function, where: str) -> None:
    """Raise ModelError where nodes depend on each other in a circle; an order other than by dependence is fine."""
    waiting: dict[ir.Node, int] = {}
    readers: dict[ir.Node, list[ir.Node]] = {}
    for node in graph:
        makers = {maker for maker in _makers(node) if maker.graph is node.graph}
        waiting[node] = len(makers)
        for maker in makers:
            readers.setdefault(maker, []).append(node)
    ready = [node for node, count in waiting.items() if not count]
    while ready:
        for reader in readers.get(ready.pop(), ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    circle = [node.name or node.op_type for node, count in waiting.items() if count]
    if circle:
        named = ", ".join(repr(name) for name in circle[:3])
        raise ModelError(f"nodes that need each other's outputs, {named} among {len(circle)}", where=where)


def _makers(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the nodes that make what a node, or a node in its bodies, reads."""
    pending = [node]
    while pending:
        each = pending.pop()
        inside = bodies(each)
        pending += [inner for body in inside for inner in body]
        read = (*each.inputs, *(output for body in inside for output in body.outputs))
        makers = (value.producer() for value in read if value is not None)
        yield from (maker for maker in makers if maker is not None)


def _check_nodes(graph: ir.Graph | ir.Function, model: ir.Model, where: str) -> None:
    """Raise ModelError where inputs, outputs and attributes of a node are not those of its operator, as runtimes do."""
    opsets = graph.opset_imports or model.opset_imports
    schemas: dict[tuple[str, str], onnx.defs.OpSchema | None] = {}
    required: dict[tuple[str, str], list[str]] = {}
    for node in graph:
        kind = node.domain, node.op_type
        if kind not in schemas:
            schema = _schema(*kind, opsets.get(node.domain, model.opset_imports.get(node.domain)))
            schemas[kind] = schema
            required[kind] = [] if schema is None else [a.name for a in schema.attributes.values() if a.required]
        schema = schemas[kind]
        if any(each.configuration is None for each in getattr(node, "device_configurations", ())):
            raise ModelError(f"node {node.name or node.op_type!r} is configured for no device by name", where=where)
        for name, attribute in node.attributes.items():
            if not name or attribute.type == ir.AttributeType.UNDEFINED:
                raise ModelError(
                    f"node {node.name or node.op_type!r} has an attribute without name or type", where=where
                )
            wanted = schema.attributes.get(name) if schema is not None else None
            kind_wanted = None if wanted is None else _kind_name(wanted)
            if kind_wanted is not None and not attribute.is_ref() and kind_wanted != attribute.type.name:
                kinds = f"{attribute.type.name}; {node.op_type} has {kind_wanted} there"
                raise ModelError(f"node {node.name or node.op_type!r} has {name!r} as {kinds}", where=where)
            if name in _OF_TYPES and kind_wanted == "INT" and not attribute.is_ref() and attribute.value not in _TYPES:
                raise ModelError(
                    f"node {node.name or node.op_type!r} has {name!r} as {attribute.value}, which is no type",
                    where=where,
                )
        if schema is None or (node.domain, node.op_type, node.overload) in model.functions:
            continue
        for name in required[kind]:
            if name not in node.attributes:
                raise ModelError(f"node {node.name or node.op_type!r} has no {name!r}, which it needs", where=where)
        for what, count, least, most in (
            ("inputs", len(node.inputs), schema.min_input, schema.max_input),
            ("outputs", len(node.outputs), schema.min_output, schema.max_output),
        ):
            if not least <= count <= most:
                allowed = f"{least}" if least == most else f"{least} to {most}" if most < _MANY else f"{least} or more"
                name = node.name or node.op_type
                raise ModelError(f"node {name!r} has {count} {what}; {node.op_type} has {allowed}", where=where)


def _kind_name(attribute: onnx.defs.OpSchema.Attribute) -> str:
    """Return the type of an attribute as AttributeProto calls it."""
    name: str = onnx.AttributeProto.AttributeType.Name(int(attribute.type.value))  # type: ignore[attr-defined]
    return name


def _schema(domain: str, op_type: str, version: int | None) -> onnx.defs.OpSchema | None:
    """Return what onnx knows of an operator in a version, None where nothing."""
    is_default = domain in ("", "ai.onnx")
    if not is_default and (version is None or domain != "ai.onnx.ml"):
        return None
    newest = onnx.defs.onnx_opset_version()  # what runtimes take for the default domain where it isn't imported
    try:
        return onnx.defs.get_schema(op_type, newest if version is None else version, "" if is_default else domain)
    except onnx.defs.SchemaError:
        return None


def _is_made(value: ir.Value) -> bool:
    return value.producer() is not None or value.is_graph_input() or value.is_initializer()


def check_inputs(model: ir.Model, where: str) -> None:
    """Raise ModelError for an input of no type: nothing can be fed to it."""
    for value in model.graph.inputs:
        kind = value.type
        while isinstance(kind, ir.OptionalType | ir.SequenceType):
            kind = kind.elem_type
        if isinstance(kind, ir.TensorType | ir.SparseTensorType) and kind.dtype == ir.DataType.UNDEFINED:
            raise ModelError(f"input {value.name!r} has no type", where=where)


def _check_texts(graph: ir.Graph | ir.Function, where: str) -> None:
    """Raise ModelError for names and records that are not UTF-8, which protobuf gives as bytes."""
    holders: list[ir.Node | ir.Value] = list(graph.inputs)
    if isinstance(graph, ir.Graph):
        holders += graph.initializers.values()
    texts: list[object] = [graph.name, graph.doc_string]
    for node in graph:
        texts += (node.op_type, node.domain, node.overload, *node.attributes)
        holders.append(node)
        holders += node.outputs
    for holder in holders:
        texts += (holder.name, holder.doc_string)
        for pair in holder.metadata_props.items():
            texts += pair
    if any(isinstance(text, bytes) for text in texts):
        wrong = next(text for text in texts if isinstance(text, bytes))
        raise ModelError(f"a name or record that is not UTF-8: {wrong[:40]!r}", where=where)
