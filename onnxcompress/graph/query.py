"""Queries on the graph: its bodies, nodes, attributes, constants and readers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from ..errors import ModelError

STANDARD_DOMAINS = ("", "ai.onnx")
_GRAPH_TYPES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


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


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield the main graph, every body of If/Loop/Scan in it, and those of local functions, outermost first."""
    yield from graphs_outside_functions(model)
    yield from function_graphs(model)


def graphs_outside_functions(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield the main graph and every body of If/Loop/Scan in it: where initializers are allowed."""
    yield model.graph
    yield from inner_graphs(model.graph)


def function_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield the graphs of local functions, each before the bodies of If/Loop/Scan in it."""
    for function in model.functions.values():
        yield function.graph
        yield from inner_graphs(function)


def inner_graphs(graph: Iterable[ir.Node]) -> list[ir.Graph]:
    """Return the bodies of If/Loop/Scan of some nodes, at any depth, each before those inside it."""
    found: list[ir.Graph] = []
    for node in graph:
        for body in bodies(node):
            found.append(body)
            found += inner_graphs(body)
    return found


def inner_nodes(graph: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """Yield the nodes in the bodies of some nodes, at any depth."""
    for body in inner_graphs(graph):
        yield from body


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield every node of every graph of the model."""
    for graph in graphs(model):
        yield from graph


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Say whether `node` is one of these operators of the standard domain."""
    return node is not None and node.op_type in op_types and node.domain in STANDARD_DOMAINS


def label(node: ir.Node) -> str:
    """Return the name by which reports speak of a node: its own, or the type and first output."""
    if node.name:
        return node.name
    return f"{node.op_type}:{next((o.name for o in node.outputs if o.name), '?')}"


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Return an attribute's value, `default` where it is absent or refers to a function's parameter."""
    attr = node.attributes.get(name)
    if attr is None or attr.is_ref():
        return default
    return attr.value


def bodies(node: ir.Node) -> list[ir.Graph]:
    """Return the graphs that a control-flow node carries in its attributes."""
    found: list[ir.Graph] = []
    for attr in node.attributes.data.values():  # past the mapping's own iterator: this is asked very often
        if attr.type in _GRAPH_TYPES:
            found += attribute_graphs(attr)
    return found


def attribute_graphs(attr: ir.Attr) -> Sequence[ir.Graph]:
    """Return the graphs in an attribute; a reference to a function's parameter has none."""
    if attr.type not in _GRAPH_TYPES or attr.is_ref():
        return ()
    return [attr.as_graph()] if attr.type == ir.AttributeType.GRAPH else attr.as_graphs()


def reads(node: ir.Node) -> list[ir.Value]:
    """Return the values of its own graph that a node reads, those captured by its bodies included."""
    found = [value for value in node.inputs if value is not None]
    for body in bodies(node):
        inside: set[ir.Value] = {*body.inputs, *body.initializers.values()}
        for inner in body:  # in any order: not every exporter sorts them
            inside.update(inner.outputs)
        for inner in body:
            found += [value for value in reads(inner) if value not in inside]
        found += [value for value in body.outputs if value not in inside]
    return found


FIRST_IR_WITH_OPTIONAL_INPUTS = 4
"""IR version: before it every initializer had to be an input too, and runtimes take none of them from a feed."""


def has_optional_inputs(model: ir.Model) -> bool:
    """Say whether a caller may override initializers that are inputs too; in older files they are plain constants."""
    return model.ir_version is None or model.ir_version >= FIRST_IR_WITH_OPTIONAL_INPUTS


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor behind a value that no run can change, None for all others.

    Covers initializers (unless the graph lets callers override them) and Constant nodes with tensor or
    number attributes. The data is not read.
    """
    if value is None:
        return None
    if value.is_initializer():
        return None if value.is_graph_input() else value.const_value
    node = value.producer()
    if node is None or not is_op(node, "Constant") or len(node.attributes) != 1:
        return None
    attr = next(iter(node.attributes.values()))
    if attr.is_ref():
        return None
    if attr.name == "value" and attr.type == ir.AttributeType.TENSOR:
        return attr.value  # type: ignore[no-any-return]  # as_tensor() checks the protocol: slow, and asked often
    kinds: dict[str, Any] = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    if attr.name in kinds:
        return ir.tensor(np.asarray(attr.value, dtype=kinds[attr.name]), name=value.name)
    if attr.name in ("value_string", "value_strings"):
        many = attr.name == "value_strings"
        strings = [s.encode() if isinstance(s, str) else s for s in (attr.value if many else [attr.value])]
        return ir.StringTensor(strings, shape=ir.Shape([len(strings)] if many else []), name=value.name)
    return None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Return the array behind a constant value (read from disk where it lies there), None for all others."""
    tensor = constant_tensor(value)
    return None if tensor is None else tensor.numpy()


def dims(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """Return the shape of a tensor as numbers."""
    return tuple(int(d) for d in tensor.shape.numpy())


def small_constant(value: ir.Value | None, most: int = 1024) -> np.ndarray | None:
    """Return the array behind a constant of at most `most` elements, None for all others."""
    tensor = constant_tensor(value)
    return None if tensor is None or tensor.size > most else tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """Return the number behind a constant that holds exactly one element, None for all others."""
    array = small_constant(value, most=1)
    if array is None or array.size != 1 or array.dtype.kind not in "fiub":
        return None
    return float(array.reshape(())[()])


def integers(
    node: ir.Node, name: str, port: int | None = None, *, default: Sequence[int] | None = None
) -> list[int] | None:
    """Return whole numbers that a node takes as attribute `name` or as constant input `port`, by opset.

    `default` replaces an attribute and input that are both absent; None also where only a run decides.
    """
    attr = node.attributes.get(name)
    if attr is not None:
        if attr.is_ref():
            return None
        return [int(attr.value)] if attr.type == ir.AttributeType.INT else [int(n) for n in attr.value]
    if port is None or port >= len(node.inputs) or node.inputs[port] is None:
        return None if default is None else list(default)
    array = small_constant(node.inputs[port])
    return None if array is None or array.dtype.kind not in "iu" else [int(n) for n in array.reshape(-1)]


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads a value through one port; None when others, or an output, read it."""
    if value.is_graph_output() or len(value.uses()) != 1:
        return None
    return next(iter(value.uses())).node


def home(node: ir.Node) -> ir.Graph:
    """Return the graph that a node is in.

    Raises:
        TypeError: it is in none, or in a local function's, which can't hold weights.
    """
    if not isinstance(node.graph, ir.Graph):
        raise TypeError(f"{label(node)} is in no graph that holds weights")
    return node.graph


def repeated_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the nodes whose name an earlier node has, in any graph."""
    seen: set[str] = set()
    found: list[ir.Node] = []
    for node in nodes(model):
        if node.name and node.name in seen:
            found.append(node)
        elif node.name:
            seen.add(node.name)
    return found


def repeated_values(model: ir.Model) -> list[ir.Value]:
    """Return the values of bodies whose name a value of another graph has; the outermost keeps it.

    A local function is a world of its own: its names are not compared with others.
    """
    seen: set[str] = set()
    found: list[ir.Value] = []
    for graph in graphs_outside_functions(model):
        mine = dict.fromkeys([*graph.inputs, *graph.initializers.values()])
        mine.update(dict.fromkeys(output for node in graph for output in node.outputs))
        for value in mine:
            if value.name and value.name in seen:
                found.append(value)
            elif value.name:
                seen.add(value.name)
    return found


def tensor_bytes(values: Iterable[ir.Value | None]) -> int:
    """Return the bytes that constant values take in the file, each counted once."""
    seen = {id(v): t.nbytes for v in values if v is not None and (t := constant_tensor(v)) is not None}
    return sum(seen.values())


def opset(model: ir.Model, domain: str = "") -> int:
    """Return the opset version that the model imports for a domain (0 where it imports none)."""
    names = STANDARD_DOMAINS if domain in STANDARD_DOMAINS else (domain,)
    return max((model.opset_imports.get(name, 0) for name in names), default=0)


def topological(body: ir.Graph) -> list[ir.Node]:
    """Return the nodes of a graph so that each follows what it reads, near the order in which they stand.

    Raises:
        ModelError: they need each other in a circle.
    """
    done: set[ir.Node] = set()
    entered: set[ir.Node] = set()
    order: list[ir.Node] = []
    for root in body:
        pending = [root]
        while pending:
            node = pending[-1]
            if node in done:
                pending.pop()
                continue
            missing = [
                producer
                for value in reads(node)
                if (producer := value.producer()) is not None and producer.graph is body and producer not in done
            ]
            if missing and node in entered:
                raise ModelError("needs its own result", where=f"node {label(node)!r}")
            entered.add(node)
            if not missing:
                pending.pop()
                done.add(node)
                order.append(node)
            pending += missing
    return order


def node_count(model: ir.Model) -> int:
    """Return the number of nodes in all graphs, bodies and local functions included, Constant nodes left out."""
    return sum(not is_op(node, "Constant") for node in nodes(model))
