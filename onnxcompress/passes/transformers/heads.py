"""Ways in which exporters cut activations into heads, join them again, repeat shared ones and turn keys around.

    x [B, S, H D] -> Reshape -> rows [B, S, H, D] -> Transpose -> heads [B, H, S, D]

Nothing is taken from how a Reshape says its shape: only from the dimensions before and after it, as far as they
are proven equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ...graph import edit, query
from ..rewriting import RewriteContext
from .scene import Dims, Scene, is_one, maker, operand, perm

_HEADS_FIRST = (0, 2, 1, 3)
"""Order of axes from rows to heads and back; a definition."""
_KEY_ROWS = (0, 2, 3, 1)
"""Order of axes from rows to turned keys; a definition."""


@dataclass(frozen=True)
class HeadedValue:
    """Activations in heads, as one value or two that are the same elements.

    Args:
        split: [B, H, S, D], or [B, S, D] where there is one head; None where no value is so.
        rows: [B, S, H, D], None where it is not made of that.
        joined: [B, S, H D], None where it is not made of that.
    """

    split: ir.Value | None
    rows: ir.Value | None = None
    joined: ir.Value | None = None

    def in_heads(self, anchor: ir.Node, ctx: RewriteContext) -> ir.Value:
        """Return the value in heads, made before a node where there is none."""
        if self.split is not None:
            return self.split
        assert self.rows is not None
        turned = edit.insert_before(anchor, ctx.names, "Transpose", [self.rows], attributes={"perm": _HEADS_FIRST})
        return turned.outputs[0]


def heads_of(value: ir.Value, scene: Scene, ctx: RewriteContext) -> HeadedValue:
    """Return a value in heads with what it is made of."""
    node = maker(value, "Transpose")
    if node is None or perm(node) != _HEADS_FIRST:
        return HeadedValue(value)
    rows = operand(node, 0)
    return HeadedValue(value, rows, _joined(rows, scene, ctx))


def _joined(rows: ir.Value, scene: Scene, ctx: RewriteContext) -> ir.Value | None:
    """Return x [B, S, H D] of which a value is the Reshape [B, S, H, D]."""
    node = maker(rows, "Reshape", "Unsqueeze")
    source = None if node is None else operand(node, 0)
    whole, cut = scene.dims(source, ctx), scene.dims(rows, ctx)
    if whole is None or cut is None or len(whole) != 3 or len(cut) != 4:
        return None
    is_cut = whole[:2] == cut[:2] and whole[2] == cut[2] * cut[3] and cut[2].as_int() and cut[3].as_int()
    return source if is_cut else None


def end_of_join(value: ir.Value, scene: Scene, ctx: RewriteContext) -> ir.Value | None:
    """Return [B, S, H D] that is all that is made of heads [B, H, S, D], None where that is something else."""
    turned = query.sole_consumer(value)
    if not query.is_op(turned, "Transpose") or turned is None or perm(turned) != _HEADS_FIRST:
        return None
    shaped = query.sole_consumer(turned.outputs[0])
    if shaped is None or not query.is_op(shaped, "Reshape") or shaped.inputs[0] is not turned.outputs[0]:
        return None
    before, after = scene.dims(turned.outputs[0], ctx), scene.dims(shaped.outputs[0], ctx)
    if before is None or after is None or len(before) != 4 or len(after) != 3:
        return None
    is_joined = after[:2] == before[:2] and after[2] == before[2] * before[3]
    return shaped.outputs[0] if is_joined else None


def turned_key(value: ir.Value, scene: Scene, ctx: RewriteContext) -> HeadedValue | None:
    """Return the keys [B, H, S, D] (or [B, S, D]) of which a value is the transpose, None where it is none."""
    node = maker(value, "Transpose")
    if node is not None and perm(node) in ((0, 1, 3, 2), (0, 2, 1)):
        return heads_of(operand(node, 0), scene, ctx)
    if node is not None and perm(node) == _KEY_ROWS:
        rows = operand(node, 0)
        return HeadedValue(None, rows, _joined(rows, scene, ctx))
    return _turned_in_three_axes(value, scene, ctx)


def _turned_in_three_axes(value: ir.Value, scene: Scene, ctx: RewriteContext) -> HeadedValue | None:
    """Return k of Reshape(Transpose(Reshape(k))), the way round of torch's exporters for an unknown rank."""
    shaped = maker(value, "Reshape")
    turned = None if shaped is None else maker(operand(shaped, 0), "Transpose")
    merged = None if turned is None else maker(operand(turned, 0), "Reshape")
    if turned is None or merged is None or perm(turned) != (0, 2, 1):
        return None
    source = operand(merged, 0)
    before, inside, after = (scene.dims(v, ctx) for v in (source, merged.outputs[0], value))
    if before is None or inside is None or after is None or len(before) != 4 or len(after) != 4:
        return None
    is_turn = after == (before[0], before[1], before[3], before[2]) and len(inside) == 3
    return heads_of(source, scene, ctx) if is_turn and inside[1:] == before[2:] else None


def unrepeated(value: ir.Value, scene: Scene, ctx: RewriteContext) -> ir.Value | None:
    """Return heads [B, K, S, D] of which a value [B, K G, S, D] repeats each G times in a row."""
    shaped = maker(value, "Reshape")
    spread = None if shaped is None else maker(operand(shaped, 0), "Expand", "Tile")
    parted = None if spread is None else maker(operand(spread, 0), "Unsqueeze", "Reshape")
    if spread is None or parted is None:
        return None
    source = operand(parted, 0)
    few, thin, wide, many = (scene.dims(v, ctx) for v in (source, parted.outputs[0], spread.outputs[0], value))
    if few is None or thin is None or wide is None or many is None:
        return None
    return source if _repeats(few, thin, wide, many) else None


def _repeats(few: Dims, thin: Dims, wide: Dims, many: Dims) -> bool:
    if [len(few), len(thin), len(wide), len(many)] != [4, 5, 5, 4] or not is_one(thin[2]):
        return False
    inserted = (*thin[:2], *thin[3:]) == few and (*wide[:2], *wide[3:]) == few
    return inserted and many == (few[0], few[1] * wide[2], *few[2:])
