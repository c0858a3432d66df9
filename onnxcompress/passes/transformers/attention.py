"""Recognise attention: softmax(c q k' + masks) v, in the spellings of exporters.

The factor may be on the queries, on the keys, on both or on their products. Masks are added, or chosen by a Where
with a number so low that nothing is left of what it replaces. Rows that are masked out as a whole may be set to zero
behind the Softmax. Keys and values may come out of a cache, and fewer of them may be repeated for groups of queries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from ...graph import query
from ..rewriting import RewriteContext
from .heads import HeadedValue, end_of_join, heads_of, turned_key, unrepeated
from .scene import Dims, Scene, maker, operand, unscaled

_LOWEST = -1e8
"""Scores that a Where replaces by this or less have no effect: float32 has 24 bits, so that a sum with it rounds to it
for any scores below 4, and their exponential is 0 beside any other. Chosen by the format."""


@dataclass(frozen=True)
class Mask:
    """Term added to scores: a value, or where a `fill` is given, that number where a condition is `when`."""

    value: ir.Value
    fill: float | None = None
    when: bool = True


@dataclass(frozen=True)
class Cached:
    """Keys or values [B, H, S, D] that follow those of a cache: `whole` is past and `new` joined along S."""

    past: ir.Value
    new: ir.Value
    whole: ir.Value


@dataclass(frozen=True)
class Attention:
    """One attention block.

    Args:
        query, key, value: in heads; keys and values without what a cache adds, and not repeated.
        scale: factor of the scores.
        masks: added to the scores.
        cache: of keys and of values, None where there is none (or it is read elsewhere, too).
        result: [B, H, S, D].
        joined: [B, S, H D], None where the result is used in heads.
        heads: number of heads of the queries, and of keys and values; None where there is but one, and no axis for it.
    """

    query: HeadedValue
    key: HeadedValue
    value: HeadedValue
    scale: float
    masks: tuple[Mask, ...]
    result: ir.Value
    joined: ir.Value | None
    heads: tuple[int, int] | None
    cache: tuple[Cached, Cached] | None = None
    repeats: int = 1


@dataclass(frozen=True)
class _Scores:
    query: ir.Value
    key: HeadedValue
    scale: float = 1.0
    masks: tuple[Mask, ...] = ()


def recognise(softmax: ir.Node, scene: Scene, ctx: RewriteContext) -> Attention | str | None:
    """Return the attention whose weights a Softmax makes, None where there is none, a reason where it does not suit."""
    dims = scene.dims(softmax.inputs[0], ctx)
    if dims is None or len(dims) not in (3, 4):
        return None
    default = 1 if ctx.opset < 13 else -1
    if query.attribute(softmax, "axis", default) not in (-1, len(dims) - 1):
        return None
    product = _product_of(softmax.outputs[0])
    if product is None or product.graph is not softmax.graph:
        return None
    scores = _scores(operand(softmax, 0), scene, ctx)
    if scores is None:
        return None
    if ctx.shapes.dtype(softmax.outputs[0]) != ir.DataType.FLOAT:
        return "its type is not float32"
    return _checked(scores, product, scene, ctx)


def recognise_operator(node: ir.Node, scene: Scene, ctx: RewriteContext) -> Attention | None:
    """Return the block of an Attention whose heads, cache or shared keys are still spelled out, None for others."""
    known = {"scale", "is_causal", "softcap", "qk_matmul_output_mode", "softmax_precision"}
    inputs = [*node.inputs, *[None] * (7 - len(node.inputs))]
    is_plain = not any(query.attribute(node, name, 0) for name in ("is_causal", "softcap"))
    if not is_plain or set(node.attributes) - known or len(node.outputs) != 1 or any(inputs[4:]):
        return None
    dims = [scene.dims(value, ctx) for value in inputs[:3]]
    size = dims[0][-1].as_int() if dims[0] is not None else None
    masked = inputs[3] is None or ctx.shapes.dtype(inputs[3]) == ir.DataType.FLOAT
    if any(d is None or len(d) != 4 for d in dims) or not size or not masked:
        return None
    masks = () if inputs[3] is None else (Mask(inputs[3]),)
    scale = query.attribute(node, "scale", size**-0.5)
    queries, keys = operand(node, 0), operand(node, 1)
    scores = _Scores(queries, heads_of(keys, scene, ctx), scale, masks)
    found = _checked(scores, node, scene, ctx, port=2)
    if not isinstance(found, Attention):
        return None
    return found if found.repeats > 1 or found.cache is not None or _is_joined(found) else None


def _is_joined(found: Attention) -> bool:
    return found.joined is not None and None not in (found.query.joined, found.key.joined, found.value.joined)


def _product_of(weights: ir.Value) -> ir.Node | None:
    """Return the MatMul that weighs values; a Where in front may turn NaN, where all is masked, into 0."""
    readers = [use.node for use in weights.uses()]
    if len(readers) == 2 and not weights.is_graph_output():
        test = next((node for node in readers if query.is_op(node, "IsNaN")), None)
        choice = next((node for node in readers if query.is_op(node, "Where")), None)
        if test is None or choice is None or query.sole_consumer(test.outputs[0]) is not choice:
            return None
        if choice.inputs[0] is not test.outputs[0] or choice.inputs[2] is not weights:
            return None
        if query.scalar(choice.inputs[1]) != 0:
            return None
        weights = choice.outputs[0]
    node = query.sole_consumer(weights)
    return node if node is not None and query.is_op(node, "MatMul") and node.inputs[0] is weights else None


def _scores(value: ir.Value, scene: Scene, ctx: RewriteContext) -> _Scores | None:
    """Return how scores come from queries and keys."""
    if query.sole_consumer(value) is None:
        return None
    product = maker(value, "MatMul")
    if product is not None:
        return _product(product, scene, ctx)
    scaled = unscaled(value)
    if scaled is not None:
        found = _scores(scaled[0], scene, ctx)
        return None if found is None or found.masks else replace(found, scale=found.scale * scaled[1])
    added = maker(value, "Add")
    if added is not None:
        for port in (0, 1):
            found = _scores(operand(added, port), scene, ctx)
            if found is not None:
                return replace(found, masks=(*found.masks, Mask(operand(added, 1 - port))))
        return None
    chosen = maker(value, "Where")
    return None if chosen is None else _chosen(chosen, scene, ctx)


def _chosen(node: ir.Node, scene: Scene, ctx: RewriteContext) -> _Scores | None:
    """Return scores some of which a Where replaces by a very low number."""
    for port in (1, 2):
        fill = query.scalar(node.inputs[port])
        if fill is None or fill > _LOWEST:
            continue
        found = _scores(operand(node, 3 - port), scene, ctx)
        if found is not None:
            return replace(found, masks=(*found.masks, Mask(operand(node, 0), fill, when=port == 1)))
    return None


def _product(node: ir.Node, scene: Scene, ctx: RewriteContext) -> _Scores | None:
    """Return queries, keys and factor of a product of both."""
    queries, scale = operand(node, 0), 1.0
    keys = operand(node, 1)
    while (found := unscaled(queries)) is not None:
        queries, scale = found[0], scale * found[1]
    while (found := unscaled(keys)) is not None:
        keys, scale = found[0], scale * found[1]
    turned = turned_key(keys, scene, ctx)
    if turned is None:
        return None
    if turned.split is None:
        return _Scores(queries, turned, scale)
    plain = turned.split
    while (found := unscaled(plain)) is not None:
        plain, scale = found[0], scale * found[1]
    return _Scores(queries, heads_of(plain, scene, ctx), scale)


def _checked(scores: _Scores, product: ir.Node, scene: Scene, ctx: RewriteContext, port: int = 1) -> Attention | str:
    """Return the block, if its sizes suit; values are the input `port` of the last node."""
    values = operand(product, port)
    result = product.outputs[0]
    ranks = [None if d is None else len(d) for d in (scene.dims(scores.query, ctx), scene.dims(values, ctx))]
    if ranks[0] != ranks[1] or ranks[0] not in (3, 4):
        return "the ranks of queries and values are not known, or not 3 or 4"
    if ranks[0] == 3:
        if scores.key.split is None or not _same_batch((scores.query, scores.key.split, values), scene, ctx):
            return "queries, keys and values are not known to be as many"
        key, value = scores.key, HeadedValue(values)
        return Attention(HeadedValue(scores.query), key, value, scores.scale, scores.masks, result, None, None)
    key_heads, value_heads, repeats = scores.key, values, 1
    keys = scores.key.split
    if keys is not None:
        few = unrepeated(keys, scene, ctx), unrepeated(values, scene, ctx)
        if few[0] is not None and few[1] is not None:
            key_heads, value_heads, keys = heads_of(few[0], scene, ctx), few[1], few[0]
    counts = [
        _count(scores.query, 1, scene, ctx),
        _key_count(key_heads, scene, ctx),
        _count(value_heads, 1, scene, ctx),
    ]
    if None in counts or not counts[0] or not counts[1] or counts[1] != counts[2] or counts[0] % counts[1]:
        return "the numbers of heads are not known, or don't suit"
    repeats = counts[0] // counts[1]
    if keys is scores.key.split and repeats != 1:
        return "keys are shared in a way that is not known"
    sources = (scores.query, key_heads.split or key_heads.rows or values, value_heads)
    if not _same_batch(sources, scene, ctx):
        return "queries, keys and values are not known to be as many"
    found = Attention(
        heads_of(scores.query, scene, ctx),
        key_heads,
        heads_of(value_heads, scene, ctx),
        scores.scale,
        scores.masks,
        result,
        end_of_join(result, scene, ctx),
        (counts[0], counts[1]),
        repeats=repeats,
    )
    return _with_cache(found, product, scene, ctx)


def _count(value: ir.Value, axis: int, scene: Scene, ctx: RewriteContext) -> int | None:
    dims = scene.dims(value, ctx)
    return None if dims is None or len(dims) != 4 else dims[axis].as_int()


def _key_count(key: HeadedValue, scene: Scene, ctx: RewriteContext) -> int | None:
    if key.split is not None:
        return _count(key.split, 1, scene, ctx)
    return None if key.rows is None else _count(key.rows, 2, scene, ctx)


def _same_batch(values: tuple[ir.Value, ...], scene: Scene, ctx: RewriteContext) -> bool:
    """Say whether the first sizes are equal: a MatMul would repeat one of size 1, attention does not.

    A Concat of a cache and new rows has the size of both.
    """
    known = []
    for value in values:
        joined = maker(value, "Concat")
        sources = [value, *([] if joined is None else joined.inputs)]
        found: list[Dims | None] = [scene.dims(source, ctx) for source in sources]
        known.append({dims[0] for dims in found if dims})
    return bool(set.intersection(*known))


def _with_cache(found: Attention, product: ir.Node, scene: Scene, ctx: RewriteContext) -> Attention:
    """Return the block with its cache, where it alone reads what the cache and the new rows make together."""
    parts = []
    for heads in (found.key, found.value):
        whole = heads.split
        node = maker(whole, "Concat")
        if whole is None or node is None or len(node.inputs) != 2 or node.graph is not product.graph:
            return found
        if query.attribute(node, "axis", 0) not in (2, -2) or len(whole.uses()) != 1:
            return found
        parts.append(Cached(operand(node, 0), operand(node, 1), whole))
    key, value = (heads_of(part.new, scene, ctx) for part in parts)
    return replace(found, key=key, value=value, cache=(parts[0], parts[1]))
