"""Bypasses of parts of a model: an earlier value that can replace a later one of the same shape.

    x --branch--> Add(x, branch(x)) --> y         y := Add(x, ...) := x            a residual branch is removed
    x --block--> p --block--> q                   q := p                           a block of a chain is removed

A residual stream is found by its sums: nodes that add two values that are not constant. The blocks are between two
sums, down to the last node that keeps the sum's shape. Others measure the cost of a bypass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ...core import Feed
from ...graph import query
from ...ops import table as ops
from ...ops.linear import LinearLayer, linear_layer
from ...shapes import resolve

_LONGEST = 2
"""Most blocks that one shortcut bypasses: attention and its feed-forward block make one layer of a transformer."""
_IDEMPOTENT = ("Relu", "Clip", "Identity")
"""Operators that return their own results unchanged."""


@dataclass(frozen=True, eq=False)
class Shortcut:
    """A value that an earlier one can replace.

    Args:
        out: the value that is replaced.
        through: the earlier value of the same shape.
        nodes: the nodes that nothing needs then.
        macs: their multiplications.
        axis: the axis of both values that numbers channels.
        shape: their shape.
    """

    out: ir.Value
    through: ir.Value
    nodes: tuple[ir.Node, ...]
    macs: int
    axis: int
    shape: tuple[int, ...]

    @property
    def label(self) -> str:
        """Name in reports."""
        maker = self.out.producer()
        return (self.out.name or "") if maker is None else query.label(maker)


def main_shapes(model: ir.Model, feed: Feed) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the values of the main graph at a feed; empty ones are left out.

    Raises:
        ModelError: shape inference leaves one open, and the runtime can't run the model.
    """
    names = [v.name for node in model.graph for v in node.outputs if v.name and query.constant_tensor(v) is None]
    return resolve.resolve(model, feed, names)


def find_shortcuts(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> list[Shortcut]:
    """Return the shortcuts of the main graph past nodes that multiply, in its order, the shorter first.

    Args:
        model: its nodes in topological order.
        shapes: shape of each value at which values are compared and multiplications counted; see `main_shapes`.
    """
    macs = {n: count or 0 for n, count in ops.node_macs(model, resolve.shape_lookup(shapes)) if n.graph is model.graph}
    found: list[Shortcut] = []
    for out, through in _pairs(model, shapes):
        dead = _dead(out, through)
        cost = sum(macs.get(node, 0) for node in dead)
        if cost:
            found.append(Shortcut(out, through, dead, cost, _channel_axis(dead), shapes[out.name or ""]))
    return found


def _pairs(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield (value, earlier value of its shape)."""

    def alike(one: ir.Value, other: ir.Value) -> bool:
        dims = shapes.get(one.name or "")
        return dims is not None and len(dims) > 1 and dims == shapes.get(other.name or "")

    points: list[ir.Value] = []
    for node in model.graph:
        if not query.is_op(node, "Add") or any(_is_fixed(v) for v in node.inputs):
            continue
        total = node.outputs[0]
        operands = [v for v in dict.fromkeys(node.inputs) if v is not None]
        for operand in operands:
            if len(operands) > 1 and alike(operand, total):
                yield total, operand
        skips = [v for v in operands if alike(v, total) and len(v.uses()) > 1]
        points += [v for v in skips if v not in points]
        end, changes = _end(total, alike)
        for start in reversed(points[-_LONGEST:]):
            if (changes or start not in operands) and alike(start, end) and _depends(end, start):
                yield end, start
        if end not in points:
            points.append(end)


def _end(value: ir.Value, alike: Callable[[ir.Value, ir.Value], bool]) -> tuple[ir.Value, bool]:
    """Follow a sum through nodes that alone read it and keep its shape; say whether they do more than clip."""
    changes = False
    while (node := query.sole_consumer(value)) is not None and len(node.outputs) == 1 and not query.bodies(node):
        others = [v for v in node.inputs if v is not None and v is not value]
        if linear_layer(node) is not None or not all(_is_fixed(v) for v in others):
            break
        if not alike(value, node.outputs[0]):
            break
        value = node.outputs[0]
        changes = changes or not query.is_op(node, *_IDEMPOTENT)
    return value, changes


def _is_fixed(value: ir.Value | None) -> bool:
    """Say whether a value is a constant, stored as it is or as integers."""
    if value is None or query.constant_tensor(value) is not None:
        return True
    node = value.producer()
    return query.is_op(node, "DequantizeLinear") and node is not None and _is_fixed(node.inputs[0])


def _depends(value: ir.Value, on: ir.Value) -> bool:
    seen: set[ir.Value] = set()
    pending = [value]
    while pending:
        one = pending.pop()
        if one is on:
            return True
        node = one.producer()
        if node is not None and one not in seen:
            seen.add(one)
            pending += query.reads(node)
    return False


def _dead(out: ir.Value, through: ir.Value) -> tuple[ir.Node, ...]:
    """Return the nodes that nobody needs once the readers of `out` read `through`, the last first."""
    dead: dict[ir.Node, None] = {}
    pending = [out]
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is None or node in dead or value is through:
            continue
        needed = any(
            output.is_graph_output() or any(use.node not in dead for use in output.uses())
            for output in node.outputs
            if output is not out
        )
        if not needed:
            dead[node] = None
            pending += query.reads(node)
    return tuple(dead)


def _channel_axis(nodes: Iterable[ir.Node]) -> int:
    """Return the channel axis of the last linear layer of nodes, the last first; -1 without one."""
    for node in nodes:
        layer = linear_layer(node)
        if isinstance(layer, LinearLayer):
            return layer.channel_axis
    return -1
