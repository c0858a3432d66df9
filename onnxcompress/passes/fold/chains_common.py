"""Helpers of rules that replace two nodes in a row by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from ...graph import edit, query
from ..rewriting import Rewrite


def before(node: ir.Node, *op_types: str) -> ir.Node | None:
    """Return the node in the same graph that makes the first input for this node alone."""
    value = node.inputs[0]
    first = None if value is None else value.producer()
    if value is None or first is None or first.graph is not node.graph or not query.is_op(first, *op_types):
        return None
    alone = query.sole_consumer(value) is node and value is first.outputs[0]
    return first if alone and not any(o.uses() or o.is_graph_output() for o in first.outputs[1:]) else None


def merged(node: ir.Node, first: ir.Node, apply: Callable[[], None]) -> Rewrite:
    """Return the rewrite that makes one node of two."""
    reason = f"{first.op_type} and {node.op_type} in a row are one node ({query.label(first)})"
    return Rewrite(target=query.label(node), reason=reason, apply=apply)


def undone(node: ir.Node, first: ir.Node, x: ir.Value) -> Rewrite:
    """Return the rewrite that removes a node whose output is the input `x` of the node before it."""
    out, middle = node.outputs[0], first.outputs[0]

    def apply() -> None:
        edit.replace_value(out, x)
        edit.remove_node(node)
        edit.remove_unread(middle)

    return Rewrite(target=query.label(node), reason=f"undoes {query.label(first)}", apply=apply)


def counted_from_front(axes: Sequence[int], rank: int | None) -> list[int] | None:
    """Return axes counted from the front, sorted; None where a negative one needs a rank that is unknown."""
    if rank is None:
        return sorted(axes) if all(a >= 0 for a in axes) else None
    return sorted(a % rank for a in axes) if all(-rank <= a < rank for a in axes) else None
