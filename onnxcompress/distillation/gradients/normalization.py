"""Derivatives of normalisations: by data, scale and bias."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .arithmetic import unbroadcast
from .rule import Dims, NoRuleError, RuleNode


def batch_normalization(node: RuleNode, dy: str) -> dict[int, str]:
    """Differentiate BatchNormalization with fixed statistics."""
    if node.attribute("training_mode", 0) or node.wants(3) or node.wants(4):
        raise NoRuleError("its statistics are not constant")
    x, scale, _, mean, variance = node.node.input
    rank = len(node.dims(x))

    def wide(value: str) -> str:
        return node.reshape(value, [1, -1, *[1] * (rank - 2)])

    epsilon = node.constant(np.asarray(node.attribute("epsilon", 1e-5), np.float32))
    inverse = node.add("Reciprocal", node.add("Sqrt", node.add("Add", variance, epsilon)))
    axes = [0, *range(2, rank)]
    found = {}
    if node.wants(0):
        found[0] = node.add("Mul", dy, wide(node.add("Mul", scale, inverse)))
    if node.wants(1):
        standard = node.add("Mul", node.add("Sub", x, wide(mean)), wide(inverse))
        found[1] = node.total(node.add("Mul", dy, standard), axes)
    if node.wants(2):
        found[2] = node.total(dy, axes)
    return found


def layer_normalization(node: RuleNode, dy: str) -> dict[int, str]:
    """Differentiate LayerNormalization."""
    dims = node.dims(node.node.input[0])
    axis = int(node.attribute("axis", -1)) % len(dims)
    scale = node.node.input[1] if node.has(1) else None
    standard, data = _standardized(node, dy, dims, range(axis, len(dims)), scale)
    found = {0: data} if node.wants(0) else {}
    if node.wants(1):
        found[1] = unbroadcast(node, node.add("Mul", dy, standard), dims, node.dims(node.node.input[1]))
    if node.wants(2):
        found[2] = unbroadcast(node, dy, dims, node.dims(node.node.input[2]))
    return found


def instance_normalization(node: RuleNode, dy: str) -> dict[int, str]:
    """Differentiate InstanceNormalization."""
    dims = node.dims(node.node.input[0])
    rank = len(dims)
    scale = node.reshape(node.node.input[1], [-1, *[1] * (rank - 2)])
    standard, data = _standardized(node, dy, dims, range(2, rank), scale)
    axes = [0, *range(2, rank)]
    found = {0: data} if node.wants(0) else {}
    if node.wants(1):
        found[1] = node.total(node.add("Mul", dy, standard), axes)
    if node.wants(2):
        found[2] = node.total(dy, axes)
    return found


def _standardized(node: RuleNode, dy: str, dims: Dims, axes: Sequence[int], scale: str | None) -> tuple[str, str]:
    """Return the data with mean 0 and variance 1 over axes, and the derivative by the data.

    Args:
        node: the node.
        dy: derivative by the output.
        dims: shape of the data.
        axes: axes of mean and variance.
        scale: what the standardized data is multiplied by, None for nothing.
    """
    x = node.node.input[0]
    share = node.constant(np.asarray(1 / math.prod(dims[axis] for axis in axes), np.float32))
    epsilon = node.constant(np.asarray(node.attribute("epsilon", 1e-5), np.float32))

    def mean(value: str) -> str:
        return node.add("Mul", node.add("ReduceSum", value, node.ints(list(axes)), keepdims=1), share)

    centred = node.add("Sub", x, mean(x))
    variance = mean(node.add("Mul", centred, centred))
    inverse = node.add("Reciprocal", node.add("Sqrt", node.add("Add", variance, epsilon)))
    standard = node.add("Mul", centred, inverse)
    scaled = dy if scale is None else node.add("Mul", dy, scale)
    projected = node.add("Mul", standard, mean(node.add("Mul", standard, scaled)))
    middle = node.add("Sub", scaled, mean(scaled))
    return standard, node.add("Mul", inverse, node.add("Sub", middle, projected))
