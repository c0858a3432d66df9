"""Equations of Einsum: the letters of each operand and of the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..graph import query

if TYPE_CHECKING:
    import onnx_ir as ir

REST = "."
"""Represents the axes that an ellipsis covers."""


@dataclass(frozen=True)
class Equation:
    """An equation: one string of letters for each operand, and one for the result; `REST` for an ellipsis."""

    terms: tuple[str, ...]
    result: str

    def others(self, port: int) -> str:
        """Return the letters of all operands but one."""
        return "".join(term for index, term in enumerate(self.terms) if index != port)


def equation(node: ir.Node) -> Equation | None:
    """Return the equation of an Einsum; None where it is malformed or does not fit the node's inputs.

    Without an arrow the result has the letters that occur once, sorted, behind those of the ellipsis, as ONNX says.
    """
    text = str(query.attribute(node, "equation", "")).replace(" ", "").replace("...", REST)
    left, arrow, right = text.partition("->")
    terms = tuple(left.split(","))
    letters = left.replace(",", "").replace(REST, "")
    if len(terms) != len(node.inputs) or not all(letter.isalpha() for letter in letters):
        return None
    if not arrow:
        right = (REST if REST in left else "") + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    if any(term.count(REST) > 1 for term in (*terms, right)) or not set(right) <= set(left):
        return None
    return Equation(terms, right)


def result_axis(node: ir.Node, port: int, rank: int) -> int:
    """Return the axis of an operand that numbers channels of the result: its last letter that no other operand has.

    Where each is shared with another operand, the last that the result has; the last axis where there is none.
    """
    found = equation(node)
    term = "" if found is None else found.terms[port]
    if found is None or len(term) != rank or REST in term:
        return rank - 1
    kept = [axis for axis, letter in enumerate(term) if letter in found.result]
    own = [axis for axis in kept if term[axis] not in found.others(port)]
    return (own or kept or [rank - 1])[-1]


def summed_axis(node: ir.Node, port: int, rank: int) -> int:
    """Return the axis of an operand that is summed over: the first that the result has not, else another one."""
    found = equation(node)
    term = "" if found is None else found.terms[port]
    if found is not None and len(term) == rank:
        summed = [axis for axis, letter in enumerate(term) if letter not in found.result]
        if summed:
            return summed[0]
    return 0 if result_axis(node, port, rank) else rank - 1
