"""Facts that matchers of transformer blocks ask for, and nodes that several blocks share."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import onnx_ir as ir

from ...graph import query
from ...numerics.polynomials import Size
from ...shapes import infer as shapes
from ...shapes import symbolic
from ...shapes.facts import Facts
from ..rewriting import RewriteContext

Dims = tuple[Size, ...]


class Scene:
    """Symbolic dimensions of a model while it is rewritten, and what was made once for all blocks."""

    def __init__(self) -> None:
        self._inferred: shapes.Shapes | None = None
        self._facts: Facts | None = None
        self._shared: dict[Hashable, ir.Value] = {}

    def dims(self, value: ir.Value | None, ctx: RewriteContext) -> Dims | None:
        """Return the dimensions of a value, known or symbolic, None where not even the rank is known."""
        if self._facts is None or self._inferred is not ctx.shapes:
            self._inferred = ctx.shapes
            self._facts = symbolic.interpret(ctx.model, ctx.shapes)
        return self._facts.dims(value)

    def shared(self, anchor: ir.Node, key: Hashable, make: Callable[[], ir.Value]) -> ir.Value:
        """Return what was made under a key in the graph of a node, or make it.

        Blocks are rewritten in the order of the graph, so that the first one's node precedes the others.
        """
        place = (id(anchor.graph), key)
        found = self._shared.get(place)
        producer = None if found is None else found.producer()
        if found is None or producer is None or producer.graph is None:
            found = self._shared[place] = make()
        return found


def is_one(size: Size) -> bool:
    """Say whether a size is always 1."""
    return size.as_int() == 1


def maker(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """Return the node of one of these operators that makes a value, None where another or none does."""
    node = None if value is None else value.producer()
    return node if query.is_op(node, *op_types) else None


def operand(node: ir.Node, port: int) -> ir.Value:
    """Return an input of a node that is known to have it."""
    value = node.inputs[port]
    assert value is not None
    return value


def perm(node: ir.Node) -> tuple[int, ...]:
    """Return the order of axes of a Transpose, () where it is the default one."""
    return tuple(int(axis) for axis in query.attribute(node, "perm", ()))


def unscaled(value: ir.Value) -> tuple[ir.Value, float] | None:
    """Return x and c of c x or x / (1 / c), None where a value is no product with one constant number."""
    node = maker(value, "Mul", "Div")
    if node is None:
        return None
    for port in (1, 0) if node.op_type == "Mul" else (1,):
        number, tensor = query.scalar(node.inputs[port]), query.constant_tensor(node.inputs[port])
        if number is None or tensor is None or len(query.dims(tensor)) > 1 or not tensor.dtype.is_floating_point():
            continue
        if node.op_type == "Div" and number == 0:
            return None
        return operand(node, 1 - port), number if node.op_type == "Mul" else 1 / number
    return None
