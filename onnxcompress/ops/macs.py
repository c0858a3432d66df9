"""Formulas of the operator table: multiply-accumulates (MACs) of one node, from the shapes of its inputs and outputs.

Each takes the node, the shapes of its inputs and those of its outputs, None for one that is absent or unknown, and
returns None where a shape that it needs is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..graph import query

if TYPE_CHECKING:
    import onnx_ir as ir

Dims = tuple[int, ...]


def _at(shapes: Sequence[Dims | None], index: int) -> Dims | None:
    return shapes[index] if index < len(shapes) else None


def conv_macs(_node: ir.Node, inputs: Sequence[Dims | None], outputs: Sequence[Dims | None]) -> int | None:
    """Return the MACs of a convolution: each output element sums over one group's channels and the kernel."""
    weight, output = _at(inputs, 1), _at(outputs, 0)
    if weight is None or output is None:
        return None
    return math.prod(output) * math.prod(weight[1:])


def conv_transpose_macs(_node: ir.Node, inputs: Sequence[Dims | None], _out: Sequence[Dims | None]) -> int | None:
    """Return the MACs of a transposed convolution: each input element is added to one group's outputs."""
    data, weight = _at(inputs, 0), _at(inputs, 1)
    if data is None or weight is None:
        return None
    return math.prod(data) * math.prod(weight[1:])


def gemm_macs(node: ir.Node, inputs: Sequence[Dims | None], outputs: Sequence[Dims | None]) -> int | None:
    """Return the MACs of a Gemm."""
    left, output = _at(inputs, 0), _at(outputs, 0)
    if left is None or output is None or len(left) != 2:
        return None
    return math.prod(output) * left[0 if query.attribute(node, "transA", 0) else 1]


def _stretched(one: Dims, other: Dims) -> Dims:
    """Return the dimensions to which two operands that go together are stretched."""
    count = max(len(one), len(other))
    padded = [(1,) * (count - len(dims)) + dims for dims in (one, other)]
    return tuple(b if a == 1 else a for a, b in zip(*padded, strict=True))


def matmul_macs(node: ir.Node, inputs: Sequence[Dims | None], outputs: Sequence[Dims | None]) -> int | None:
    """Return the MACs of a product of matrices, batched or not."""
    left, right, output = _at(inputs, 0), _at(inputs, 1), _at(outputs, 0)
    if output is None and node.op_type == "MatMul" and left and right and len(left) > 1 and len(right) > 1:
        output = (*_stretched(left[:-2], right[:-2]), left[-2], right[-1])
    if not left or output is None:
        return None
    swapped = query.attribute(node, "transA", 0) and len(left) > 1
    return math.prod(output) * left[-2 if swapped else -1]


def matmul_nbits_macs(node: ir.Node, _in: Sequence[Dims | None], outputs: Sequence[Dims | None]) -> int | None:
    """Return the MACs of a product with a weight of few bits, packed in blocks."""
    output, depth = _at(outputs, 0), query.attribute(node, "K")
    return None if output is None or depth is None else math.prod(output) * int(depth)


def recurrent_macs(_node: ir.Node, inputs: Sequence[Dims | None], _out: Sequence[Dims | None]) -> int | None:
    """Return the MACs of an LSTM, GRU or RNN: both products at every step."""
    data, weight, recurrence = _at(inputs, 0), _at(inputs, 1), _at(inputs, 2)
    if data is None or weight is None or recurrence is None or len(data) != 3:
        return None
    return data[0] * data[1] * (math.prod(weight) + math.prod(recurrence))


def attention_macs(_node: ir.Node, inputs: Sequence[Dims | None], _out: Sequence[Dims | None]) -> int | None:
    """Return the MACs of com.microsoft's Attention: its projections, and its two products over the sequence."""
    data, weight = _at(inputs, 0), _at(inputs, 1)
    if data is None or weight is None or len(data) != 3:
        return None
    batch, sequence, _ = data
    return batch * sequence * math.prod(weight) + batch * sequence * sequence * (weight[1] // 3) * 2


def einsum_macs(node: ir.Node, inputs: Sequence[Dims | None], _out: Sequence[Dims | None]) -> int | None:
    """Count the product over all letters: what a direct evaluation of the sum costs."""
    sides = str(query.attribute(node, "equation", "")).replace(" ", "").split("->")[0].split(",")
    if len(sides) != len(inputs):
        return None
    sizes: dict[str, int] = {}
    for side, dims in zip(sides, inputs, strict=True):
        if dims is None or "." in side or len(side) != len(dims):
            return None
        for letter, size in zip(side, dims, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(list(sizes.values())) if len(sides) > 1 else 0
