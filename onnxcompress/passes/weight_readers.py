"""Which nodes read a constant as their weight, and how they see it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from .. import graph, ops


@dataclass(frozen=True)
class Reader:
    """One port through which a node reads a weight, directly or through a Transpose of a matrix."""

    node: ir.Node
    port: int
    weight: ops.Weight
    via: ir.Node | None = None

    @property
    def transposed(self) -> bool:
        """Whether the node sees the transpose of what is stored."""
        return self.via is not None

    def out_axis(self, rank: int) -> int:
        """Return the axis of the stored weight that numbers the node's output channels (rows of a table)."""
        axis = self.weight.out_axis(self.node, rank)
        return 1 - axis if self.transposed else axis

    @property
    def is_product(self) -> bool:
        """Whether the node is a matrix product that takes its weight as a matrix on the right."""
        return self.weight.is_matrix

    @property
    def wants_transpose(self) -> bool:
        """Whether the stored matrix had to be transposed to have the output channels of a product last."""
        return self.out_axis(2) == 0


def readers(value: ir.Value) -> tuple[list[Reader], list[str]]:
    """Return who reads a constant as a weight, and labels of all other readers, which need it as it is."""
    tensor = graph.constant_tensor(value)
    rank = 0 if tensor is None else len(graph.dims(tensor))
    found: list[Reader] = []
    others = ["a graph output"] if value.is_graph_output() else []
    for use in value.uses():
        direct = ops.spec(use.node).weight(use.idx)
        turned = _through_transpose(use.node) if rank == 2 else None
        if direct is not None and rank >= 2:
            found.append(Reader(use.node, use.idx, direct))
        elif turned:
            found += turned
        else:
            others.append(graph.label(use.node))
    return found, others


def _through_transpose(node: ir.Node) -> list[Reader] | None:
    """Return the weight ports behind a Transpose of a matrix, None where anything else reads it too."""
    if not graph.is_op(node, "Transpose") or list(graph.attribute(node, "perm", (1, 0))) != [1, 0]:
        return None
    output = node.outputs[0]
    if output.is_graph_output():
        return None
    found = []
    for use in output.uses():
        weight = ops.spec(use.node).weight(use.idx)
        if weight is None:
            return None
        found.append(Reader(use.node, use.idx, weight, via=node))
    return found
