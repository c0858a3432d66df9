"""The edit verbs of the graph: every rewrite uses these, so that names, shapes and outputs are kept right."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .query import bodies, dims, graphs, label

_MOST_INPUTS = 4096
"""A node with more inputs is not worth replacing them one by one."""


class Names:
    """Unique names for one model: every value and node name in every graph counts as taken."""

    def __init__(self, model: ir.Model) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}
        for graph in graphs(model):
            self._taken.update(v.name for v in graph.inputs if v.name)
            self._taken.update(name for name in graph.initializers if name)
            for node in graph:
                if node.name:
                    self._taken.add(node.name)
                self._taken.update(o.name for o in node.outputs if o.name)

    def fresh(self, hint: str) -> str:
        """Return `hint`, or `hint_1`, `hint_2`, ... when it is taken, and take it."""
        if hint not in self._taken:
            self._taken.add(hint)
            return hint
        number = self._next.get(hint, 1)
        while f"{hint}_{number}" in self._taken:
            number += 1
        self._next[hint] = number + 1
        name = f"{hint}_{number}"
        self._taken.add(name)
        return name


def _tensor(array: np.ndarray | np.generic | ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
    """Return data as a tensor; what numpy made a number of (a product of scalars) is an array again."""
    return ir.tensor(np.asarray(array), name=name) if isinstance(array, np.ndarray | np.generic) else array


def add_initializer(graph: ir.Graph, names: Names, hint: str, array: np.ndarray | ir.TensorProtocol) -> ir.Value:
    """Store an array as a new initializer of `graph` under a fresh name and return its value."""
    name = names.fresh(hint)
    tensor = _tensor(array, name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(dims(tensor)), type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def set_weight(value: ir.Value, array: np.ndarray | ir.TensorProtocol) -> None:
    """Replace an initializer's data for all its readers; data, shape and type are kept in step."""
    tensor = _tensor(array, value.name)
    value.const_value = tensor
    value.shape = ir.Shape(dims(tensor))
    value.type = ir.TensorType(tensor.dtype)


def remove_initializer(value: ir.Value) -> None:
    """Drop an initializer that nothing reads any more; one that is still read or declared is kept."""
    graph = value.graph
    if graph is None or value.uses() or value.is_graph_output() or value.is_graph_input() or not value.name:
        return
    graph.initializers.pop(value.name, None)


def insert_before(
    anchor: ir.Node,
    names: Names,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    attributes: dict[str, Any] | None = None,
    domain: str = "",
    outputs: int = 1,
    hint: str = "",
) -> ir.Node:
    """Make a node, put it right before `anchor` in the same graph, and return it."""
    graph = anchor.graph
    if graph is None:
        raise ValueError(f"{label(anchor)} is in no graph")
    made = _made(anchor, names, op_type, inputs, attributes, domain, outputs, hint)
    graph.insert_before(anchor, made)
    return made


def put_after(
    anchor: ir.Node,
    names: Names,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    attributes: dict[str, Any] | None = None,
    hint: str = "",
) -> ir.Node:
    """Make a node with one output, put it right after `anchor` in the same graph, and return it."""
    graph = anchor.graph
    if graph is None:
        raise ValueError(f"{label(anchor)} is in no graph")
    made = _made(anchor, names, op_type, inputs, attributes, "", 1, hint)
    graph.insert_after(anchor, made)
    return made


def _made(
    anchor: ir.Node,
    names: Names,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: dict[str, Any] | None,
    domain: str,
    outputs: int,
    hint: str,
) -> ir.Node:
    """Make a node that is in no graph yet, named after `hint` or else its neighbour."""
    made = ir.node(op_type, list(inputs), attributes or {}, domain=domain, num_outputs=outputs)
    hint = hint or f"{anchor.name or anchor.op_type}_{op_type}"
    made.name = names.fresh(hint)
    for output in made.outputs:
        output.name = names.fresh(f"{hint}_out")
    return made


def insert_after(value: ir.Value, names: Names, op_type: str, *others: ir.Value) -> ir.Node:
    """Make a node that reads `value` and then `others`, and let it take over the value's name and all its readers.

    Raises:
        ValueError: no node of a graph makes the value.
    """
    maker = value.producer()
    graph = None if maker is None else maker.graph
    if maker is None or graph is None:
        raise ValueError(f"{value.name!r} is not made by a node")
    made = ir.node(op_type, [value, *others], name=names.fresh(f"{label(maker)}_{op_type}"))
    new = made.outputs[0]
    new.type, new.shape = value.type, value.shape
    graph.insert_after(maker, made)
    for use in tuple(value.uses()):
        if use.node is not made:
            use.node.replace_input_with(use.idx, new)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = new
    name, value.name = value.name, names.fresh(f"{value.name}_before_{op_type}")
    new.name = name
    return made


def move_readers(old: ir.Value, new: ir.Value, *, keep: Collection[ir.Node]) -> None:
    """Let every reader of `old` but the nodes of `keep` read `new`, graph outputs included.

    As a graph output, `new` takes over the name, and `old` must get another one.
    """
    for use in list(old.uses()):
        if use.node not in keep:
            use.node.replace_input_with(use.idx, new)
    if old.is_graph_output():
        owner = old.producer()
        assert owner is not None
        assert isinstance(owner.graph, ir.Graph)
        outputs = owner.graph.outputs
        for index, output in enumerate(outputs):
            if output is old:
                outputs[index] = new
        name, old.name = old.name, None
        new.name, new.type, new.shape = name, old.type, old.shape


def can_replace(old: ir.Value, new: ir.Value) -> bool:
    """Say whether every reader of `old`, graph outputs included, can read `new` instead, and it is worth the time.

    A reader with thousands of inputs is left as it is: each replacement there takes as long as it has inputs.
    """
    return _can_stand_for(old, new) and all(len(use.node.inputs) <= _MOST_INPUTS for use in old.uses())


def _can_stand_for(old: ir.Value, new: ir.Value) -> bool:
    """Say whether every reader of `old`, graph outputs included, can read `new` instead.

    A graph output must come from a node of its own graph, keep its name, and be listed once: then it can't
    become an input, an initializer, a value of another graph or one that is already an output.
    """
    if not old.is_graph_output():
        return True
    node, old_node = new.producer(), old.producer()
    return (
        node is not None
        and old_node is not None
        and node.graph is old_node.graph
        and not new.is_graph_output()
        and (new.dtype is None or old.dtype is None or new.dtype == old.dtype)
    )


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of `old` read `new`; as a graph output, `new` takes over name, type and shape.

    Raises:
        ValueError: `new` can't be what the graph outputs (see `can_replace`).
    """
    if not _can_stand_for(old, new):
        raise ValueError(f"output {old.name!r} needs a node of its own")
    was_output = old.is_graph_output()
    old.replace_all_uses_with(new, replace_graph_outputs=was_output)
    if was_output:
        name, old.name = old.name, None
        new.name, new.type, new.shape = name, old.type, old.shape


def remove_node(node: ir.Node) -> None:
    """Take a node out whose outputs nobody reads; initializers that only it read are removed too."""
    graph = node.graph
    if graph is None:
        return
    inputs = {v for v in node.inputs if v is not None}
    graph.remove(node, safe=True)
    for value in inputs:
        if value.is_initializer():
            remove_initializer(value)


def discard_bodies(node: ir.Node) -> None:
    """Empty the bodies of a node that is being removed, so that their nodes no longer count as readers."""
    for body in bodies(node):
        body.outputs.clear()
        for inner in body:
            discard_bodies(inner)
        body.remove(tuple(body), safe=True)


def without_outputs(node: ir.Node, unread: Sequence[int]) -> ir.Node:
    """Replace a node by one that lacks some outputs, which nobody may read; all else stays, bodies included."""
    graph = node.graph
    if graph is None:
        raise ValueError(f"{label(node)} is in no graph")
    kept = [output for index, output in enumerate(node.outputs) if index not in unread]
    made = ir.Node(
        node.domain,
        node.op_type,
        node.inputs,
        list(node.attributes.values()),
        overload=node.overload,
        num_outputs=len(kept),
        name=node.name,
        doc_string=node.doc_string,
        metadata_props=node.metadata_props,
    )
    for old, new in zip(kept, made.outputs, strict=True):
        new.type, new.shape = old.type, old.shape
    graph.insert_before(node, made)
    for old, new in zip(kept, made.outputs, strict=True):
        old.replace_all_uses_with(new, replace_graph_outputs=old.is_graph_output())
        new.name, old.name = old.name, None
    graph.remove(node, safe=True)
    return made


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of `old` read `new`, which takes its name too, and remove what nobody reads then.

    For a new value that means the same as the old one.

    Raises:
        ValueError: `new` can't be what the graph outputs (see `can_replace`).
    """
    replace_value(old, new)
    new.type, new.shape = new.type or old.type, new.shape or old.shape
    name, old.name = old.name, None
    remove_unread(old)
    if name:
        new.name = name


def remove_unread(value: ir.Value) -> None:
    """Remove a value that nobody reads: its initializer, or its node and what only that node read, and so on."""
    pending = [value]
    while pending:
        value = pending.pop()
        node = value.producer()
        if value.is_initializer():
            remove_initializer(value)
        elif (
            node is not None
            and node.graph is not None
            and not any(o.uses() or o.is_graph_output() for o in node.outputs)
        ):
            inputs = {v for v in node.inputs if v is not None}
            remove_node(node)
            pending += [v for v in inputs if not v.is_initializer()]


def copy_before(node: ir.Node, names: Names) -> ir.Node:
    """Make a node like `node`, with the same inputs, right before it."""
    return insert_before(
        node,
        names,
        node.op_type,
        node.inputs,
        attributes={a.name: a for a in node.attributes.values()},
        domain=node.domain,
        outputs=len(node.outputs),
    )


def replace_node(node: ir.Node, news: Sequence[ir.Value]) -> None:
    """Let the readers of each output of `node` read the value at the same place in `news`, and remove it."""
    for old, new in zip(node.outputs, news, strict=True):
        replace_value(old, new)
    remove_node(node)


def replace_by_constant(node: ir.Node, names: Names, arrays: Sequence[np.ndarray | ir.TensorProtocol | None]) -> None:
    """Store a node's outputs as initializers under their own names and remove it (None: nobody reads that one).

    An initializer may itself be a graph output.
    """
    graph = node.graph
    if graph is None:
        raise ValueError(f"{label(node)} is in no graph")
    for old, array in zip(node.outputs, arrays, strict=True):
        if array is None:
            continue
        tensor = _tensor(array, old.name)
        new = ir.Value(const_value=tensor, shape=ir.Shape(dims(tensor)), type=ir.TensorType(tensor.dtype))
        old.replace_all_uses_with(new, replace_graph_outputs=old.is_graph_output())
        new.name, old.name = old.name or names.fresh("constant"), None
        graph.register_initializer(new)
    remove_node(node)


def turn_into(
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: dict[str, Any] | None = None,
    *,
    domain: str = "",
) -> None:
    """Let a node compute the same value another way: its outputs keep their names, old inputs may go.

    Nodes and initializers that nothing reads any more because of it are taken out.
    """
    before = [v for v in dict.fromkeys(node.inputs) if v is not None]
    node.op_type, node.domain, node.version = op_type, domain, None
    node.resize_inputs(len(inputs))
    for port, value in enumerate(inputs):
        node.replace_input_with(port, value)
    node.attributes.clear()
    for attr in ir.convenience.convert_attributes(attributes or {}):
        node.attributes.add(attr)
    for value in before:
        remove_unread(value)


def become(model: ir.Model, other: ir.Model) -> None:
    """Turn `model` in place into `other`, which must not be used any more: graph, functions, versions, metadata."""
    model.graph = other.graph
    model.ir_version = other.ir_version
    model.functions.clear()
    model.functions.update(other.functions)
    model.metadata_props.clear()
    model.metadata_props.update(other.metadata_props)
    model.meta.update(other.meta)
