"""Replace control flow with a known outcome.

An If with a constant condition becomes the nodes of its branch, a Loop without iterations its initial values,
a Where that always takes one side that side.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ...core import Change, Context, LosslessPass
from ...graph import edit, query
from ...shapes import infer as shapes


@dataclass(frozen=True, kw_only=True)
class FoldBranches(LosslessPass):
    """If with a constant condition becomes its branch; Loops without an iteration and one-sided Wheres are removed."""

    name: ClassVar[str] = "fold-branches"

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Rewrite `model` in place, inner bodies before the nodes that hold them."""
        if not any(query.is_op(node, "If", "Loop", "Where") for node in query.nodes(model)):
            return []
        names = edit.Names(model)
        changes: list[Change] = []
        known: shapes.Shapes | None = None
        ready = False
        for body in reversed(list(query.graphs_outside_functions(model))):
            for node in tuple(body):
                if query.is_op(node, "Where") and query.constant_tensor(node.inputs[0]) is not None:
                    known = shapes.inferred(model, context) if known is None else known
                if not (reason := _outcome(node, known)) or not context.gate.admits(self.name, query.label(node)):
                    continue
                if query.bodies(node) and not ready:
                    _make_names_unique(model, names)
                    ready = True
                changes.append(Change.applied(self.name, reason, target=query.label(node)))
                _inline(node, names)
        return changes


def _outcome(node: ir.Node, known: shapes.Shapes | None) -> str | None:
    """Return why the outcome of a node is the same at every run, None where it is not known to be."""
    if query.is_op(node, "If") and (taken := query.scalar(node.inputs[0])) is not None:
        return f"its condition is always {bool(taken)}"
    if query.is_op(node, "Loop") and _never_runs(node):
        return "it makes no iteration"
    if query.is_op(node, "Where") and known is not None and (side := _side(node)):
        dims = known.shape(node.inputs[side])
        if dims is not None and None not in dims and dims == known.shape(node.outputs[0]):
            return f"its condition is always {side == 1}"
    return None


def _never_runs(node: ir.Node) -> bool:
    """Say whether a Loop is certain to output its initial values, with nobody reading what iterations would collect."""
    trip_count, condition = (query.scalar(v) for v in node.inputs[:2])
    collected = node.outputs[len(node.inputs) - 2 :]
    unread = not any(o.uses() or o.is_graph_output() for o in collected)
    return unread and (condition == 0 or (trip_count is not None and trip_count <= 0))


def _side(node: ir.Node) -> int:
    """Return the port that a Where always takes, 0 where its condition is not constant or not uniform."""
    condition = query.constant(node.inputs[0])
    if condition is None or condition.size == 0:
        return 0
    return 1 if bool(np.all(condition)) else 0 if bool(np.any(condition)) else 2


def _inline(node: ir.Node, names: edit.Names) -> None:
    """Replace a node by its outcome."""
    inputs = [v for v in dict.fromkeys(node.inputs) if v is not None]
    if query.is_op(node, "If"):
        branch = "then_branch" if query.scalar(node.inputs[0]) else "else_branch"
        results = _splice(node, node.attributes[branch].as_graph())
    elif query.is_op(node, "Loop"):
        results = [v for v in node.inputs[2:] if v is not None]
    else:
        side = node.inputs[_side(node)]
        results = [] if side is None else [side]
    for old, new in zip(node.outputs, results, strict=False):
        _replace_output(old, new, node, names)
    captured = [v for body in query.bodies(node) for v in _captured(body)]
    edit.discard_bodies(node)
    edit.remove_node(node)
    for value in (*inputs, *captured):
        edit.remove_unread(value)


def _splice(node: ir.Node, body: ir.Graph) -> list[ir.Value]:
    """Move a body's nodes and initializers in front of the node that holds it and return the body's outputs."""
    parent = query.home(node)
    results = list(body.outputs)
    body.outputs.clear()
    for name, value in tuple(body.initializers.items()):
        del body.initializers[name]
        parent.register_initializer(value)
    moved = tuple(body)
    body.remove(moved)
    parent.insert_before(node, moved)
    return results


def _replace_output(old: ir.Value, new: ir.Value, node: ir.Node, names: edit.Names) -> None:
    """Let readers of `old` read `new`; what can't be a graph output itself is copied."""
    if old.is_graph_output() and (not edit.can_replace(old, new) or new.producer() is None):
        new = edit.insert_before(node, names, "Identity", [new]).outputs[0]
    if not old.uses() and not old.is_graph_output():
        return
    edit.replace_value(old, new)


def _captured(body: ir.Graph) -> list[ir.Value]:
    """Return the values that nodes of a body, or of bodies inside it, read."""
    found = [v for node in body for v in node.inputs if v is not None]
    return found + [v for node in body for inner in query.bodies(node) for v in _captured(inner)]


def _make_names_unique(model: ir.Model, names: edit.Names) -> None:
    """Rename values and nodes of a body whose names another graph uses too: moved out, they would clash."""
    for value in query.repeated_values(model):
        value.name = names.fresh(value.name or "value")
    for node in query.repeated_nodes(model):
        node.name = names.fresh(node.name or node.op_type)
