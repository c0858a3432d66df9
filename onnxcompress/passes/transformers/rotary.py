"""Recognise rotary embeddings, x cos + turned(x) sin, and write them as RotaryEmbedding.

`turned` changes the halves of the last axis and the sign of the one that comes first then:

    turned(x) = Concat(-x[D/2:], x[:D/2])

The operator takes half of cos and sin. Both halves are the same where they are made of one tensor joined to itself;
what is made of the joined tensor is then made of that one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...graph import edit, query
from ..rewriting import Refusal, Rewrite, RewriteContext
from .heads import HeadedValue, heads_of
from .scene import Dims, Scene, maker, operand

_BY_ELEMENT = ("Cos", "Sin", "Mul", "Div", "Cast", "Identity")
_MOST_STEPS = 8
"""Nodes between the factors and the angles joined to themselves; exporters write up to four."""


@dataclass(frozen=True)
class Rotary:
    """A rotary embedding of x [B, H, S, D] by cos and sin [B, S, D], halves of which are equal."""

    x: HeadedValue
    cos: ir.Value
    sin: ir.Value


def rotary_rule(node: ir.Node, scene: Scene, ctx: RewriteContext) -> Rewrite | Refusal | None:
    """Look for a rotary embedding that ends at an Add."""
    found = _recognise(node, scene, ctx)
    if found is None or isinstance(found, str):
        return None if found is None else Refusal(target=query.label(node), reason=f"no RotaryEmbedding: {found}")
    return Rewrite(
        target=query.label(node),
        reason="a spelled RotaryEmbedding",
        apply=lambda: _write(found, node, scene, ctx),
    )


def _recognise(node: ir.Node, scene: Scene, ctx: RewriteContext) -> Rotary | str | None:
    products = [maker(value, "Mul") for value in node.inputs]
    if len(products) != 2 or None in products:
        return None
    for straight, turned in (products, products[::-1]):
        assert straight is not None
        assert turned is not None
        for port in (0, 1):
            x = _unturned(operand(turned, port), scene, ctx)
            if x is not None and x in straight.inputs:
                cos = operand(straight, 1 - list(straight.inputs).index(x))
                return _checked(node, x, cos, operand(turned, 1 - port), scene, ctx)
    return None


def _unturned(value: ir.Value, scene: Scene, ctx: RewriteContext) -> ir.Value | None:
    """Return x of turned(x)."""
    joined = maker(value, "Concat")
    dims = scene.dims(value, ctx)
    size = None if dims is None or len(dims) != 4 else dims[-1].as_int()
    if joined is None or size is None or len(joined.inputs) != 2 or query.attribute(joined, "axis", 0) not in (-1, 3):
        return None
    negated = maker(joined.inputs[0], "Neg")
    if negated is None or query.sole_consumer(value) is None:
        return None
    back, front = operand(negated, 0), operand(joined, 1)
    halves = _part(front, 0, size // 2, ctx), _part(back, size // 2, size, ctx)
    return halves[0] if halves[0] is not None and halves[0] is halves[1] else None


def _part(value: ir.Value, start: int, end: int, ctx: RewriteContext) -> ir.Value | None:
    """Return x of which a value is x[..., start:end]."""
    node = maker(value, "Split", "Slice")
    if node is None or query.sole_consumer(value) is None:
        return None
    source = operand(node, 0)
    if node.op_type == "Split":
        if query.attribute(node, "axis", 0) not in (-1, 3) or len(node.outputs) != 2:
            return None
        parts = query.integers(node, "split", 1)
        is_even = parts is None or parts[0] == parts[1]
        return source if is_even and node.outputs[0 if start == 0 else 1] is value else None
    limits = [query.integers(node, name, port) for name, port in (("starts", 1), ("ends", 2), ("axes", 3))]
    steps = query.integers(node, "steps", 4, default=[1])
    if any(limit is None or len(limit) != 1 for limit in limits) or steps != [1] or limits[2] not in ([-1], [3]):
        return None
    whole = ctx.shapes.shape(source)
    size = whole[-1] if whole else None
    if not isinstance(size, int):
        return None
    first, last = (limit[0] for limit in limits[:2] if limit)
    first, last = (place + size if place < 0 else min(place, size) for place in (first, last))
    return source if (first, last) == (start, end) else None


def _checked(
    node: ir.Node, x: ir.Value, cos: ir.Value, sin: ir.Value, scene: Scene, ctx: RewriteContext
) -> Rotary | str:
    dims, after = scene.dims(x, ctx), scene.dims(node.outputs[0], ctx)
    if dims is None or len(dims) != 4 or after != dims or dims[1].as_int() is None:
        return "its size changes, or the number of heads is not known"
    if ctx.shapes.dtype(x) != ir.DataType.FLOAT:
        return "its type is not float32"
    factors = []
    for factor in (cos, sin):
        plain = _without_heads(factor, dims, scene, ctx)
        if plain is None:
            return "cos and sin are not known to have a row for every position of every sample, and no heads"
        if _source_of_half(plain, scene, ctx) is None:
            return "the halves of cos and sin are not known to be equal"
        factors.append(plain)
    return Rotary(heads_of(x, scene, ctx), factors[0], factors[1])


def _without_heads(factor: ir.Value, x: Dims, scene: Scene, ctx: RewriteContext) -> ir.Value | None:
    """Return cos or sin [B, S, D] of [B, 1, S, D]."""
    node = maker(factor, "Unsqueeze")
    plain = None if node is None else operand(node, 0)
    dims, wide = scene.dims(plain, ctx), scene.dims(factor, ctx)
    if dims is None or wide is None or len(dims) != 3 or len(wide) != 4 or wide[1].as_int() != 1:
        return None
    return plain if (dims[0], *dims[1:]) == (x[0], *x[2:]) and wide[0] == x[0] else None


def _chain(value: ir.Value) -> tuple[list[ir.Node], ir.Value]:
    """Return the nodes by element that make a value, last first, and what the first of them reads."""
    nodes: list[ir.Node] = []
    while len(nodes) < _MOST_STEPS:
        node = maker(value, *_BY_ELEMENT)
        if node is None or any(query.scalar(other) is None for other in node.inputs[1:]):
            break
        nodes.append(node)
        value = operand(node, 0)
    return nodes, value


def _source_of_half(value: ir.Value, scene: Scene, ctx: RewriteContext) -> ir.Value | None:
    """Return the tensor that was joined to itself to make a value's angles, or a table of equal halves."""
    source = _chain(value)[1]
    joined = maker(source, "Concat")
    rank = len(scene.dims(source, ctx) or ())
    if joined is not None and len(joined.inputs) == 2 and joined.inputs[0] is joined.inputs[1]:
        return joined.inputs[0] if query.attribute(joined, "axis", 0) in (-1, rank - 1) else None
    table = _table(source)
    if table is not None:
        front, back = np.split(table, 2, axis=-1) if table.shape[-1] % 2 == 0 else (table[:0], table)
        return source if np.array_equal(front, back) else None
    return None


def _table(value: ir.Value) -> np.ndarray | None:
    """Return the matrix whose rows a value looks up."""
    node = maker(value, "Gather")
    table = None if node is None or query.attribute(node, "axis", 0) != 0 else query.constant(node.inputs[0])
    return table if table is not None and table.ndim == 2 else None


def _half(value: ir.Value, anchor: ir.Node, ctx: RewriteContext) -> ir.Value:
    """Make half of cos or sin."""
    nodes, source = _chain(value)
    table = _table(source)
    if table is None:
        joined = source.producer()
        assert joined is not None
        made = operand(joined, 0)
    else:
        gather = source.producer()
        assert gather is not None
        rows = ctx.add_constant(anchor, f"{gather.name}_half", np.ascontiguousarray(table[:, : table.shape[1] // 2]))
        made = edit.insert_before(anchor, ctx.names, "Gather", [rows, gather.inputs[1]]).outputs[0]
    for node in reversed(nodes):
        attributes = dict(node.attributes)
        made = edit.insert_before(
            anchor, ctx.names, node.op_type, [made, *node.inputs[1:]], attributes=attributes
        ).outputs[0]
    return made


def _write(found: Rotary, node: ir.Node, scene: Scene, ctx: RewriteContext) -> None:
    factors = [
        scene.shared(node, ("half", value), lambda value=value: _half(value, node, ctx))  # type: ignore[misc]
        for value in (found.cos, found.sin)
    ]
    x = found.x
    assert x.split is not None
    if x.joined is None or x.rows is None:
        made = edit.insert_before(node, ctx.names, "RotaryEmbedding", [x.split, *factors])
        edit.take_over(node.outputs[0], made.outputs[0])
        return
    cut, turn = x.rows.producer(), x.split.producer()
    assert cut is not None
    assert turn is not None
    heads = (ctx.shapes.shape(x.split) or ())[1]
    made = edit.insert_before(node, ctx.names, "RotaryEmbedding", [x.joined, *factors], attributes={"num_heads": heads})
    rows = edit.insert_before(
        node, ctx.names, "Reshape", [made.outputs[0], *cut.inputs[1:]], attributes=dict(cut.attributes)
    )
    turned = edit.insert_before(node, ctx.names, "Transpose", rows.outputs[:1], attributes=dict(turn.attributes))
    edit.take_over(node.outputs[0], turned.outputs[0])
