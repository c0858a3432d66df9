"""Every graph of a model, and every tensor of a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def graphs(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """Yield the main graph, the functions, and the sub-graphs of both."""
    waiting: list[ir.Graph | ir.Function] = [*reversed(model.functions.values()), model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.GRAPH:
                    waiting.append(attribute.as_graph())
                elif attribute.type == ir.AttributeType.GRAPHS:
                    waiting.extend(attribute.as_graphs())


def replace_tensors(graph: ir.Graph | ir.Function, replace: Callable[[ir.TensorProtocol], ir.TensorProtocol]) -> None:
    """Put `replace(tensor)` in the place of every tensor of one graph: initializers and attributes."""
    if isinstance(graph, ir.Graph):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = replace(value.const_value)
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.is_ref() or isinstance(attribute.value, onnx.AttributeProto):
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                tensor = replace(attribute.value)
                if tensor is not attribute.value:
                    node.attributes[name] = ir.AttrTensor(name, tensor, doc_string=attribute.doc_string)
            elif attribute.type == ir.AttributeType.TENSORS:
                tensors = [replace(tensor) for tensor in attribute.value]
                node.attributes[name] = ir.AttrTensors(name, tensors, doc_string=attribute.doc_string)
