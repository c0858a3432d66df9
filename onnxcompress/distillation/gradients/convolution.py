"""Derivatives of Conv and ConvTranspose by data, weight and bias, for any groups, padding and number of axes.

    y = Conv(x, w):            dx = ConvTranspose(dy, w)     dw = correlation of x with dy
    y = ConvTranspose(x, w):   dx = Conv(dy, w)              dw = correlation of dy with x

The correlation is one matrix product for each element of the kernel, or, where there are groups or very many elements,
one convolution with the samples as input channels, strides and dilations exchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .rule import Dims, NoRuleError, RuleNode

_MOST_PRODUCTS = 64
"""Most elements of a kernel for which matrix products are written one by one. Chosen by judgement, for the size of the
graph; of kernels of 1 and 9 elements they took 0.30 to 0.63 of the time of the convolution (64 samples, 64 to 128
channels, 14 x 14)."""


@dataclass(frozen=True)
class Geometry:
    """Way in which a kernel moves: one number for each spatial axis, the larger side's padding included.

    Args:
        kernel: elements.
        strides: steps.
        dilations: distances of elements.
        begin: padding before the larger side.
        end: padding after it.
        groups: groups of channels.
    """

    kernel: Dims
    strides: Dims
    dilations: Dims
    begin: Dims
    end: Dims
    groups: int

    @property
    def pads(self) -> list[int]:
        """The padding as the attribute `pads` holds it."""
        return [*self.begin, *self.end]

    def reach(self, axis: int) -> int:
        """Return the extent of the dilated kernel along an axis."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1


def geometry(node: RuleNode, kernel: Dims, large: Dims, small: Dims) -> Geometry:
    """Return how a kernel moves over the larger side of a convolution or pooling.

    Args:
        node: the node.
        kernel: elements of the kernel.
        large: spatial extents of the side that is padded.
        small: spatial extents of the other side.

    Raises:
        NoRuleError: the kind of padding is unknown.
    """
    rank = len(kernel)
    ones = (1,) * rank
    strides = tuple(node.attribute("strides", ones))
    dilations = tuple(node.attribute("dilations", ones))
    auto = node.attribute("auto_pad", "NOTSET")
    pads = tuple(node.attribute("pads", (0,) * (2 * rank)))
    begin, end = pads[:rank], pads[rank:]
    if auto == "VALID":
        begin = end = (0,) * rank
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((small[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - large[i], 0) for i in range(rank)
        ]
        less, more = tuple(n // 2 for n in totals), tuple(n - n // 2 for n in totals)
        begin, end = (less, more) if auto == "SAME_UPPER" else (more, less)
    elif auto != "NOTSET":
        raise NoRuleError(f"auto_pad {auto!r} is unknown")
    return Geometry(kernel, strides, dilations, begin, end, int(node.attribute("group", 1)))


def conv(node: RuleNode, dy: str) -> dict[int, str]:
    """Differentiate Conv."""
    x, w, y = node.node.input[0], node.node.input[1], node.node.output[0]
    x_dims, w_dims, y_dims = node.dims(x), node.dims(w), node.dims(y)
    way = geometry(node, w_dims[2:], x_dims[2:], y_dims[2:])
    found = {}
    if node.wants(0):
        found[0] = spread(node, dy, w, way, y_dims[2:], x_dims[2:])
    if node.wants(1):
        found[1] = correlation(node, x, dy, way, x_dims, y_dims)
    if node.wants(2):
        found[2] = node.total(dy, [0, *range(2, len(y_dims))])
    return found


def conv_transpose(node: RuleNode, dy: str) -> dict[int, str]:
    """Differentiate ConvTranspose."""
    x, w, y = node.node.input[0], node.node.input[1], node.node.output[0]
    x_dims, w_dims, y_dims = node.dims(x), node.dims(w), node.dims(y)
    way = _transposed(node, w_dims[2:], x_dims[2:], y_dims[2:])
    found = {}
    if node.wants(0):
        run = node.add("Conv", dy, w, strides=way.strides, dilations=way.dilations, pads=way.pads, group=way.groups)
        axes = range(2, len(x_dims))
        found[0] = node.slice(run, [0 for _ in axes], x_dims[2:], axes)
    if node.wants(1):
        found[1] = correlation(node, dy, x, way, y_dims, x_dims)
    if node.wants(2):
        found[2] = node.total(dy, [0, *range(2, len(y_dims))])
    return found


def _transposed(node: RuleNode, kernel: Dims, small: Dims, large: Dims) -> Geometry:
    """Return how the kernel of a ConvTranspose moves over its output: the padding follows from its shape."""
    rank = len(kernel)
    way = geometry(node, kernel, large, small)
    auto = node.attribute("auto_pad", "NOTSET")
    if auto != "NOTSET" or node.attribute("output_shape") is not None:
        extra = node.attribute("output_padding", (0,) * rank)
        totals = [way.strides[i] * (small[i] - 1) + extra[i] + way.reach(i) - large[i] for i in range(rank)]
        if min(totals) < 0:
            raise NoRuleError("its output is larger than what its kernel reaches")
        less, more = tuple(n // 2 for n in totals), tuple(n - n // 2 for n in totals)
        begin, end = (less, more) if auto == "SAME_UPPER" else (more, less)
        way = Geometry(way.kernel, way.strides, way.dilations, begin, end, way.groups)
    return way


def spread(node: RuleNode, dy: str, w: str, way: Geometry, small: Dims, large: Dims) -> str:
    """Return the transposed convolution of a derivative: [N, C, *large] from [N, M, *small].

    Args:
        node: the node.
        dy: the derivative by the smaller side.
        w: the weight, [M, C / groups, *kernel].
        way: how the kernel moves.
        small: spatial extents of the smaller side.
        large: those of the larger side.
    """
    rank = len(small)
    whole = [way.strides[i] * (small[i] - 1) + way.reach(i) for i in range(rank)]
    rest = [large[i] + way.begin[i] + way.end[i] - whole[i] for i in range(rank)]
    attributes = {"strides": way.strides, "dilations": way.dilations, "group": way.groups}
    if all(0 <= rest[i] < max(way.strides[i], 1) for i in range(rank)) and min(way.pads) >= 0:
        return node.add("ConvTranspose", dy, w, pads=way.pads, output_padding=rest, **attributes)
    run = node.add("ConvTranspose", dy, w, pads=[0] * (2 * rank), **attributes)
    return crop(node, run, way.begin, whole, large)


def crop(node: RuleNode, value: str, begin: Dims, whole: list[int], large: Dims) -> str:
    """Take `large` elements from `begin` on along the spatial axes; what is beyond the `whole` is zero."""
    before = [max(-n, 0) for n in begin]
    after = [max(n + size - end, 0) for n, size, end in zip(begin, large, whole, strict=True)]
    padded = node.pad(value, [0, 0, *before], [0, 0, *after])
    starts = [max(n, 0) for n in begin]
    ends = [start + size for start, size in zip(starts, large, strict=True)]
    return node.slice(padded, starts, ends, range(2, 2 + len(large)))


def correlation(node: RuleNode, x: str, dy: str, way: Geometry, x_dims: Dims, y_dims: Dims) -> str:
    """Return the derivative by the weight of a convolution: [M, C / groups, *kernel].

    Args:
        node: the node.
        x: the larger side, [N, C, *large].
        dy: derivative by the smaller side, [N, M, *small].
        way: how the kernel moves.
        x_dims: shape of x.
        y_dims: shape of dy.
    """
    if way.groups == 1 and math.prod(way.kernel) <= _MOST_PRODUCTS:
        return _by_products(node, x, dy, way, x_dims, y_dims)
    return _by_convolution(node, x, dy, way, x_dims, y_dims)


def _by_products(node: RuleNode, x: str, dy: str, way: Geometry, x_dims: Dims, y_dims: Dims) -> str:
    rank, (samples, channels), outs = len(way.kernel), x_dims[:2], y_dims[1]
    last = [int(strides * (n - 1) + 1) for strides, n in zip(way.strides, y_dims[2:], strict=True)]
    overhang = [max(way.reach(i) - 1 + last[i] - x_dims[2 + i] - way.begin[i] - way.end[i], 0) for i in range(rank)]
    end = [max(n, 0) + more for n, more in zip(way.end, overhang, strict=True)]
    moved = node.add("Transpose", node.pad(x, [0, 0, *way.begin], [0, 0, *end]), perm=[0, *range(2, rank + 2), 1])
    flat = node.reshape(node.add("Transpose", dy, perm=[1, 0, *range(2, rank + 2)]), [outs, -1])
    rows = samples * math.prod(y_dims[2:])
    found = []
    for at in np.ndindex(*way.kernel):
        starts = [i * dilation for i, dilation in zip(at, way.dilations, strict=True)]
        ends = [start + n for start, n in zip(starts, last, strict=True)]
        part = node.slice(moved, starts, ends, range(1, rank + 1), way.strides)
        found.append(node.add("MatMul", flat, node.reshape(part, [rows, channels])))
    if len(found) == 1:
        return node.reshape(found[0], [outs, channels, *way.kernel])
    stacked = node.add("Concat", *(node.reshape(each, [outs, channels, 1]) for each in found), axis=2)
    return node.reshape(stacked, [outs, channels, *way.kernel])


def _by_convolution(node: RuleNode, x: str, dy: str, way: Geometry, x_dims: Dims, y_dims: Dims) -> str:
    rank, groups = len(way.kernel), way.groups
    (samples, channels), outs = x_dims[:2], y_dims[1]
    per_in, per_out = channels // groups, outs // groups
    axes = range(3, rank + 3)
    data = node.reshape(x, [samples, groups, per_in, *x_dims[2:]])
    data = node.reshape(node.add("Transpose", data, perm=[2, 1, 0, *axes]), [per_in, groups * samples, *x_dims[2:]])
    filters = node.reshape(dy, [samples, groups, per_out, *y_dims[2:]])
    filters = node.add("Transpose", filters, perm=[1, 2, 0, *axes])
    run = node.add(
        "Conv",
        data,
        node.reshape(filters, [outs, samples, *y_dims[2:]]),
        pads=way.pads,
        strides=way.dilations,
        dilations=way.strides,
        group=groups,
    )
    cut = node.slice(run, [0] * rank, way.kernel, range(2, rank + 2))
    return node.add("Transpose", cut, perm=[1, 0, *range(2, rank + 2)])
