"""Bring models of all exporters into one form, on which the other passes build.

Afterwards: constants are initializers, local functions are inlined, names are unique in all graphs of the model,
nodes are in order, and nothing is declared that inference contradicts. Nodes without a name get none:
names would make the file larger, and `query.label` names them by their type and first output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ...core import Change, Context, LosslessPass
from ...graph import edit, query
from ...ops.optional_inputs import listed_by_habit, optional_inputs
from ...shapes import infer as shapes
from .inline_functions import inline_functions


@dataclass(frozen=True, kw_only=True)
class Normalize(LosslessPass):
    """Constant nodes become initializers, local functions are inlined, no-op nodes are removed, names become unique."""

    name: ClassVar[str] = "normalize"

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Rewrite `model` in place."""
        steps: tuple[Callable[[ir.Model, Context], list[Change]], ...] = (
            lambda m, c: inline_functions(m, c, self.name),
            _sort,
            _freeze_inputs,
            _make_names_unique,
            _store_constants,
            _remove_copies,
            _forget_contradicted,
        )
        return [change for step in steps for change in step(model, context)]


def _applied(target: str, reason: str) -> Change:
    return Change.applied(Normalize.name, reason, target=target)


def _skipped(target: str, reason: str) -> Change:
    return Change.skipped(Normalize.name, reason, target=target)


def _admits(context: Context, target: str) -> bool:
    return context.gate.admits(Normalize.name, target)


def _sort(model: ir.Model, context: Context) -> list[Change]:
    """Put every node after those it reads from."""
    if not any(_unsorted(g) for g in query.graphs(model)) or not _admits(context, "node order"):
        return []
    try:
        model.graph.sort()
        for function in model.functions.values():
            function.sort()
    except ValueError as error:
        return [_skipped("node order", f"nodes can't be put in order: {error}")]
    return [_applied("node order", "nodes were not in order")]


def _unsorted(body: ir.Graph) -> bool:
    """Say whether a node, or a body inside of it, reads what a later node of this graph makes."""
    done: set[ir.Node] = set()
    for node in body:
        for reader in (node, *query.inner_nodes([node])):
            for value in reader.inputs:
                made_by = None if value is None else value.producer()
                if made_by is not None and made_by.graph is body and made_by not in done:
                    return True
        done.add(node)
    return False


def _freeze_inputs(model: ir.Model, context: Context) -> list[Change]:
    """Make optional inputs constants: those that the user wants frozen, or that are inputs by an exporter's habit."""
    frozen = listed_by_habit(model) if context.frozen_inputs is None else context.frozen_inputs
    changes: list[Change] = []
    removed: set[ir.Value] = set()
    for value in optional_inputs(model):
        name = value.name or ""
        if name not in frozen:
            changes.append(
                _skipped(name, "an input with a default stays an input; --freeze-inputs makes it a constant")
            )
        elif _admits(context, name):
            removed.add(value)
            changes.append(_applied(name, "was an input with a default; it can no longer be overridden at run time"))
    if removed:
        kept = [value for value in model.graph.inputs if value not in removed]
        model.graph.inputs.clear()
        model.graph.inputs.extend(kept)
    if not query.has_optional_inputs(model) and (removed or _admits(context, "ir_version")):
        changes.append(_applied("ir_version", f"raised from {model.ir_version}, which knows weights as inputs only"))
        model.ir_version = query.FIRST_IR_WITH_OPTIONAL_INPUTS
    return changes


def _make_names_unique(model: ir.Model, context: Context) -> list[Change]:
    """Make the names that nodes have, and value names over all graphs, unique."""
    changes: list[Change] = []
    nodes = query.repeated_nodes(model)
    if nodes and _admits(context, "repeated node names"):
        names = edit.Names(model)
        for node in nodes:
            node.name = names.fresh(node.name or node.op_type)
        changes.append(_applied("repeated node names", f"{len(nodes)} nodes had another node's name"))
    values = query.repeated_values(model)
    if values and _admits(context, "value names"):
        names = edit.Names(model)
        for value in values:
            value.name = names.fresh(value.name or "value")
        changes.append(_applied("value names", f"{len(values)} values in bodies had another value's name"))
    return changes


def _store_constants(model: ir.Model, context: Context) -> list[Change]:
    """Turn Constant nodes into initializers of the same graph."""
    if not any(query.is_op(node, "Constant") for node in query.nodes(model)):
        return []
    names = edit.Names(model)
    changes: list[Change] = []
    for body in query.graphs_outside_functions(model):
        for node in tuple(body):
            if not query.is_op(node, "Constant"):
                continue
            tensor = query.constant_tensor(node.outputs[0])
            if tensor is None:
                kind = ", ".join(node.attributes) or "nothing"
                reason = f"a Constant of {kind} has no form as an initializer"
                changes.append(_skipped(query.label(node), reason))
            elif _admits(context, query.label(node)):
                changes.append(_applied(query.label(node), "Constant node became an initializer"))
                edit.replace_by_constant(node, names, [tensor])
    return changes


def _remove_copies(model: ir.Model, context: Context) -> list[Change]:
    """Remove Identity, and Dropout that drops nothing; one that makes a graph output may have to be kept."""
    changes: list[Change] = []
    opset = query.opset(model)
    for body in query.graphs_outside_functions(model):
        for node in tuple(body):
            source = node.inputs[0] if node.inputs else None
            if source is None or not (query.is_op(node, "Identity") or _drops_nothing(node, opset)):
                continue
            target = query.label(node)
            if edit.can_replace(node.outputs[0], source) and _admits(context, target):
                edit.replace_value(node.outputs[0], source)
                edit.remove_node(node)
                changes.append(_applied(target, f"{node.op_type} passed its input on unchanged"))
    return changes


def _drops_nothing(node: ir.Node, opset: int) -> bool:
    """Say whether a Dropout is certain to be in inference mode, with nobody reading its mask."""
    if not query.is_op(node, "Dropout") or any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return False
    if opset < 7:
        return bool(query.attribute(node, "is_test", 0))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return query.scalar(node.inputs[2]) == 0
    return True


def _forget_contradicted(model: ir.Model, context: Context) -> list[Change]:
    """Drop declared shapes and types of intermediate values that inference contradicts."""
    declared = [
        value
        for body in query.graphs_outside_functions(model)
        for node in body
        for value in node.outputs
        if value.shape is not None and not value.is_graph_output()
    ]
    if not declared:
        return []
    known = shapes.inferred(model, context)
    changes: list[Change] = []
    for value in declared:
        dims = known.shape(value)
        if dims is None or value.shape is None or not _contradicts(value.shape, dims):
            continue
        if _admits(context, value.name or ""):
            reason = f"declared shape {value.shape} contradicts {list(dims)}, which follows from the inputs"
            value.shape = None
            changes.append(_applied(value.name or "", reason))
    return changes


def _contradicts(declared: ir.Shape, inferred: tuple[shapes.Dim, ...]) -> bool:
    if len(declared) != len(inferred):
        return True
    pairs = zip(declared, inferred, strict=True)
    return any(isinstance(one, int) and isinstance(other, int) and one != other for one, other in pairs)
