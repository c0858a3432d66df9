"""Nodes that read a constant as their weight, and how they see it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ...graph import constants as float_constants
from ...graph import query
from ...ops import table as ops

_MOST_MOVES = 64
"""Nodes that are followed between a weight and those that compute with it. Chosen by judgement; not measured."""

_MOVED = ops.Weight(port=0, out_axis=lambda _node, _rank: 0, in_axis=lambda _node, rank: rank - 1)
_POSITIONS = ops.Weight(port=0, out_axis=lambda _node, rank: rank - 2, in_axis=lambda _node, rank: rank - 1)


@dataclass(frozen=True)
class WeightUse:
    """One port through which a weight is read.

    Args:
        node: the node that computes with the weight; that which reads the constant where `users` differ from it.
        port: the input's index.
        weight: what the operator table says of the port.
        via: the Transpose of a matrix between the constant and the node, which then sees the transpose.
        users: the nodes that compute with the weight.
    """

    node: ir.Node
    port: int
    weight: ops.Weight
    users: tuple[ir.Node, ...]
    via: ir.Node | None = None

    @property
    def transposed(self) -> bool:
        """True where the node sees the transpose of what is stored."""
        return self.via is not None

    def out_axis(self, rank: int) -> int:
        """Return the axis of the stored weight that numbers the node's output channels (rows of a table)."""
        axis = self.weight.out_axis(self.node, rank)
        return 1 - axis if self.transposed else axis

    @property
    def is_product(self) -> bool:
        """True where the node is a matrix product that takes its weight as a matrix on the right."""
        return self.weight.is_matrix

    @property
    def wants_transpose(self) -> bool:
        """True where the stored matrix had to be transposed to have the output channels of a product last."""
        return self.out_axis(2) == 0


def readers(value: ir.Value) -> tuple[list[WeightUse], list[str]]:
    """Return who reads a constant as a weight, and labels of all other readers, which need it as it is.

    A weight may be cut and joined on its way (gates of an LSTM in another order): then only its first axis is
    taken for output channels. Of constants that are added to activations, a position embedding counts as a weight:
    one whose sum is normalised over the last axis. Others may be coordinates, for which 8 bits are too few.
    """
    tensor = float_constants.tensor(value)
    rank = 0 if tensor is None else len(query.dims(tensor))
    found: list[WeightUse] = []
    others = ["a graph output"] if value.is_graph_output() else []
    for use in value.uses():
        node, port = use.node, use.idx
        direct = ops.spec(node).weight(port) if rank >= 2 else None
        turned = _through_transpose(node) if rank == 2 else None
        moved = _moved_to(node, port) if rank >= 2 and not direct and not turned else None
        if direct is not None:
            found.append(WeightUse(node, port, direct, (node,)))
        elif turned:
            found += turned
        elif moved:
            found.append(WeightUse(node, port, _MOVED, tuple(moved)))
        elif rank >= 2 and _adds_positions(node):
            found.append(WeightUse(node, port, _POSITIONS, (node,)))
        else:
            others.append(query.label(node))
    return found, others


def _through_transpose(node: ir.Node) -> list[WeightUse] | None:
    """Return the weight ports behind a Transpose of a matrix, None where anything else reads it too."""
    if not query.is_op(node, "Transpose") or list(query.attribute(node, "perm", (1, 0))) != [1, 0]:
        return None
    output = node.outputs[0]
    if output.is_graph_output():
        return None
    found = []
    for use in output.uses():
        weight = ops.spec(use.node).weight(use.idx)
        if weight is None:
            return None
        found.append(WeightUse(use.node, use.idx, weight, (use.node,), via=node))
    return found


def _moved_to(node: ir.Node, port: int) -> list[ir.Node] | None:
    """Return the nodes that compute with what a data movement outputs, None unless all take it as a weight."""
    users: dict[int, ir.Node] = {}
    pending, seen = [(node, port)], {id(node)}
    while pending:
        node, port = pending.pop()
        weight = ops.spec(node).weight(port)
        if weight is not None and not weight.is_table:
            users[id(node)] = node
            continue
        if not ops.moves_data(node, port) or len(seen) > _MOST_MOVES:
            return None
        for output in node.outputs:
            if output.is_graph_output():
                return None
            for use in output.uses():
                if ops.moves_data(use.node, use.idx) and id(use.node) in seen:
                    continue
                seen.add(id(use.node))
                pending.append((use.node, use.idx))
    return list(users.values())


def _adds_positions(node: ir.Node) -> bool:
    """Return True where a node is an Add whose sum is read by a LayerNormalization over the last axis."""
    return query.is_op(node, "Add") and any(
        use.idx == 0 and query.is_op(use.node, "LayerNormalization") and query.attribute(use.node, "axis", -1) == -1
        for use in node.outputs[0].uses()
    )
