"""Channel rules of recurrent layers and attention: hidden units, heads, and the dimensions within heads."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .fixups import Attribute, Count, Default
from .relations import NodeContext
from .rules_linear import Outs, broadcast, conv
from .types import Axis, Pin, UnfollowedError


def recurrent(gates: int) -> Callable[[NodeContext], Outs]:
    """Return the links of LSTM, GRU or RNN: a unit is removed from every gate, every direction, state and bias."""

    def links(step: NodeContext) -> Outs:
        if step.attribute("layout", 0):
            raise UnfollowedError("its batch comes first")
        data, weight, recurrence = (step.ranked(port, 3) for port in range(3))
        hidden = step.dims(2)[2]
        step.pin(data[0], "it runs along this axis")
        units = step.array(recurrence[2], hidden)
        step.read(0, 2, 1, 2)
        step.unite(data[2], weight[2])
        step.read_itself(2, 2)
        stacked = [(1, 1, gates), (2, 1, gates), (3, 1, 2 * gates), (5, 2, 1), (6, 2, 1), (7, 1, gates - 1)]
        for port, axis, times in stacked:
            if step.has(port):
                axes = step.ranked(port, 2 if port in (3, 7) else 3)
                step.unite(np.tile(units, times), axes[axis])
                step.pin(axes[0], "one for each direction", by_nature=True)
                if port in (5, 6):
                    step.unite(data[1], axes[1])
        step.fix(Count(step.node, "hidden_size", units))
        inside, around = math.prod(step.dims(1)), math.prod(step.dims(2))
        step.cost(units, data[2], share=inside / (inside + around))
        step.cost(units, units, share=around / (inside + around))
        state = [step.pinned("one for each direction"), data[1], units]
        return [[data[0], *state[:1], data[1], units], state, state]

    return links


def fused_conv(step: NodeContext) -> Outs:
    """com.microsoft's FusedConv: a Conv, what is added to it, and an activation."""
    [out] = conv(step)
    if step.has(3):
        dims = step.out_dims()
        out = broadcast(step, dims, [(out, dims), (step.axes(3), step.dims(3))])
    return [out]


class _Heads:
    """Queries, keys and values cut up into heads: whole heads go from all three, and dimensions from two at a time."""

    def __init__(self, step: NodeContext, heads: int, shared: int) -> None:
        self.step = step
        self.sizes = (shared, heads // shared)

    def queries(self, axis: Axis, size: int) -> tuple[Axis, Axis, Axis]:
        shared, each, inner = self.step.split(axis, (*self.sizes, size))
        return shared, each, inner

    def others(self, axis: Axis, size: int) -> tuple[Axis, Axis]:
        shared, inner = self.step.split(axis, (self.sizes[0], size))
        return shared, inner

    def count(self, name: str, axis: Axis) -> None:
        if not isinstance(axis, Pin):
            self.step.fix(Count(self.step.node, name, axis))


def attention(step: NodeContext) -> Outs:
    """Attention: heads go from queries, keys and values; queries that share keys go with them."""
    node = step.node
    if step.has(4) or step.has(5) or any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        raise UnfollowedError("it keeps keys and values of the past, or gives its scores away")
    q = step.axes(0)
    k, v = step.ranked(1, len(q)), step.ranked(2, len(q))
    sizes = [step.dims(port) for port in range(3)]
    flat = len(q) == 3
    heads = int(step.attribute("q_num_heads", 0)) if flat else sizes[0][1]
    shared = int(step.attribute("kv_num_heads", 0)) if flat else sizes[1][1]
    cut = _Heads(step, heads, shared)
    if flat:
        depth, width = sizes[0][2] // heads, sizes[2][2] // shared
        of_q, each, q_inner = cut.queries(q[2], depth)
        of_k, k_inner = cut.others(k[2], depth)
        of_v, v_inner = cut.others(v[2], width)
    else:
        depth, width = sizes[0][3], sizes[2][3]
        of_q, each = step.split(q[1], cut.sizes)
        of_k, of_v, q_inner, k_inner, v_inner = k[1], v[1], q[3], k[3], v[3]
    for one, other in ((of_q, of_k), (of_q, of_v), (q_inner, k_inner)):
        step.unite(one, other)
    for axes in (q, k, v):
        step.pin(axes[1 if flat else 2], "positions are compared")
    head = step.merged([of_q, each], cut.sizes)
    if step.has(3):
        mask, dims = step.axes(3), step.dims(3)
        for axis in mask[-2:]:
            step.pin(axis, "positions are compared")
        if len(mask) > 2 and dims[-3] > 1:
            step.unite(mask[-3], head)
    step.read(0, len(q) - 1)
    cut.count("q_num_heads", head) if flat else None
    cut.count("kv_num_heads", of_k) if flat else None
    _keep_scale(step, q_inner, depth)
    step.cost(head, q_inner)
    if flat:
        return [[q[0], q[1], step.merged([of_q, each, v_inner], (*cut.sizes, width))]]
    return [[q[0], head, q[2], v_inner]]


def _keep_scale(step: NodeContext, inner: Axis, depth: int) -> None:
    if not isinstance(inner, Pin) and not step.attribute("scale", 0.0):
        step.fix(Default(step.node, "scale", 1.0 / math.sqrt(depth), inner))


def multi_head_attention(step: NodeContext) -> Outs:
    """com.microsoft's MultiHeadAttention, with queries, keys and values [batch, sequence, channels] of their own."""
    if not step.has(2) or step.has(6) or step.has(7) or len(step.node.outputs) > 1:
        raise UnfollowedError("it packs keys and values, or keeps those of the past")
    q, k, v = (step.ranked(port, 3) for port in range(3))
    widths = [step.dims(port)[2] for port in range(3)]
    if step.has(3):
        bias, start = step.axes(3)[0], 0
        step.read_itself(3, 0)
        for axes, width in zip((q, k, v), widths, strict=True):
            step.unite(bias if isinstance(bias, Pin) else bias[start : start + width], axes[2])
            start += width
    heads = int(step.attribute("num_heads", 1))
    flat = _own_heads(step, heads, (q[2], k[2], v[2]), widths)
    if step.has(5) and step.dims(5)[1] > 1:
        step.unite(step.axes(5)[1], flat[0])
    for axes in (q, k, v):
        step.pin(axes[1], "positions are compared")
    step.read(0, 2)
    step.cost(flat[0], flat[1])
    return [[q[0], q[1], flat[2]]]


def _own_heads(
    step: NodeContext, heads: int, axes: tuple[Axis, Axis, Axis], widths: list[int]
) -> tuple[Axis, Axis, Axis]:
    """Relate queries, keys and values where each head has its own; return heads, dimensions, and the output."""
    cut = _Heads(step, heads, heads)
    of_q, q_inner = cut.others(axes[0], widths[0] // heads)
    of_k, k_inner = cut.others(axes[1], widths[1] // heads)
    of_v, v_inner = cut.others(axes[2], widths[2] // heads)
    for one, other in ((of_q, of_k), (of_q, of_v), (q_inner, k_inner)):
        step.unite(one, other)
    cut.count("num_heads", of_q)
    _keep_scale(step, q_inner, widths[0] // heads)
    return of_q, q_inner, step.merged([of_q, v_inner], (heads, widths[2] // heads))


def packed_attention(step: NodeContext) -> Outs:
    """com.microsoft's Attention, whose weight makes queries, keys and values at once."""
    if step.has(4) or len(step.node.outputs) > 1 or step.attribute("do_rotary", 0):
        raise UnfollowedError("it keeps keys and values of the past, or rotates")
    data, weight = step.ranked(0, 3), step.ranked(1, 2)
    total = step.dims(1)[1]
    widths = [int(n) for n in step.attribute("qkv_hidden_sizes", [])] or [total // 3] * 3
    step.unite(data[2], weight[0])
    step.read(0, 2, 1, 0)
    step.read_itself(1, 1)
    packed = step.array(weight[1], total)
    ends = np.cumsum(widths)
    parts = [packed[end - width : end] for end, width in zip(ends, widths, strict=True)]
    if step.has(2):
        step.unite(packed, step.axes(2)[0])
        step.read_itself(2, 0)
    heads = int(step.attribute("num_heads", 1))
    of_q, _, made = _own_heads(step, heads, (parts[0], parts[1], parts[2]), widths)
    step.fix(Attribute(step.node, "qkv_hidden_sizes", parts, list))
    if step.has(5) and step.dims(5)[1] > 1:
        step.unite(step.axes(5)[1], of_q)
    step.pin(data[1], "positions are compared")
    step.cost(packed, data[2])
    return [[data[0], data[1], made]]


def rotary(step: NodeContext) -> Outs:
    """RotaryEmbedding: heads pass, the dimensions within them are turned in pairs and kept."""
    axes, dims = list(step.axes(0)), step.dims(0)
    if len(axes) == 4:
        axes[3] = step.pin(axes[3], "it is turned in pairs")
        return [axes]
    heads = int(step.attribute("num_heads", 0))
    if not heads:
        raise UnfollowedError("the number of its heads is not stated")
    head, inner = step.split(axes[2], (heads, dims[2] // heads))
    if not isinstance(head, Pin):
        step.fix(Count(step.node, "num_heads", head))
    step.pin(inner, "it is turned in pairs")
    return [axes]
