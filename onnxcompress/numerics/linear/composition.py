"""Composition of linear operators in a row, and their sum side by side.

Weights are float [groups, out, in, *kernel], out and in counted in one group. Without a kernel they are matrices.

    second(first(x)) = W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2)
    one(x) + other(x) = (W1 + W2) x + (b1 + b2)

The first equation is exact for convolutions where one of the two sees a single position (a kernel of ones): the sum
over positions is then the other one's alone. The second one holds for kernels laid over each other at the same place.
A block of parallel convolutions, scales and the identity is one convolution: RepVGG (Ding et al.
2021, arXiv 2101.03697, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def regrouped(weight: np.ndarray, groups: int) -> np.ndarray:
    """Return the same operator in fewer groups: blocks on the diagonal, zeros beside them.

    Args:
        weight: [more groups, out, in, *kernel].
        groups: a divisor of these.
    """
    many, out, into, *kernel = weight.shape
    each = many // groups
    if each == 1:
        return weight
    found = np.zeros((groups, each, out, each, into, *kernel), weight.dtype)
    for block in range(each):
        found[:, block, :, block] = weight[block::each]
    return found.reshape(groups, each * out, each * into, *kernel)


def composed(first: np.ndarray, second: np.ndarray) -> np.ndarray | None:
    """Return the weight of the second operator after the first one, in float64.

    None where the groups of one are no union of the other's.

    Args:
        first: [groups, out, in, *kernel]; its outputs are the second one's inputs.
        second: the same; one of the kernels has one position only.
    """
    groups = min(first.shape[0], second.shape[0])
    if max(first.shape[0], second.shape[0]) % groups:
        return None
    one, two = (regrouped(each.astype(np.float64), groups) for each in (first, second))
    rank = max(one.ndim, two.ndim) - 3
    is_point = math.prod(two.shape[3:]) == 1
    kernel = (one if is_point else two).shape[3:]
    if is_point:
        found = np.matmul(two.reshape(*two.shape[:3]), one.reshape(*one.shape[:2], -1))
    else:
        across = np.moveaxis(two, 2, -1)  # [groups, out, *kernel, middle]
        product = np.matmul(across.reshape(groups, -1, two.shape[2]), one.reshape(*one.shape[:3]))
        found = np.moveaxis(product.reshape(*across.shape[:-1], one.shape[2]), -1, 2)
    assert len(kernel) == rank
    return np.ascontiguousarray(found.reshape(groups, two.shape[1], one.shape[2], *kernel))


def carried(second: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return the second operator's response to the first one's bias, without padding: float64 [channels].

    Args:
        second: [groups, out, in, *kernel].
        bias: [groups * in].
    """
    summed = second.astype(np.float64).reshape(*second.shape[:3], -1).sum(axis=-1)
    found: np.ndarray = np.einsum("goi,gi->go", summed, bias.astype(np.float64).reshape(summed.shape[0], -1))
    return found.reshape(-1)


def scaling(scale: np.ndarray, rank: int) -> np.ndarray:
    """Return the operator that multiplies each channel by a number: float64 [channels, 1, 1, *ones].

    Args:
        scale: [channels].
        rank: number of axes of the kernel.
    """
    return scale.astype(np.float64).reshape(-1, 1, 1, *[1] * rank)


def overlaid(weights: Sequence[np.ndarray], offsets: Sequence[tuple[int, ...]]) -> np.ndarray | None:
    """Return the sum of operators side by side, in float64; None where groups are no unions of each other.

    Args:
        weights: each [groups, out, in, *kernel]; the first has the largest kernel.
        offsets: start of each kernel in that of the first.
    """
    groups = min(weight.shape[0] for weight in weights)
    if any(weight.shape[0] % groups for weight in weights):
        return None
    parts = [regrouped(weight.astype(np.float64), groups) for weight in weights]
    found = np.zeros_like(parts[0])
    for part, offset in zip(parts, offsets, strict=True):
        place = tuple(slice(at, at + size) for at, size in zip(offset, part.shape[3:], strict=True))
        found[(slice(None), slice(None), slice(None), *place)] += part
    return found
