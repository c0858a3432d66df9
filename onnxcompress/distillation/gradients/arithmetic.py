"""Derivatives of element-wise operators of several operands, which broadcast, and of matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .rule import Dims, NoRuleError, RuleNode


def unbroadcast(node: RuleNode, value: str, dims: Dims, target: Dims) -> str:
    """Sum a derivative of shape `dims` over the axes along which an operand of shape `target` was repeated."""
    if dims == target:
        return value
    lead = len(dims) - len(target)
    axes = [*range(lead), *(lead + at for at, n in enumerate(target) if n == 1 and dims[lead + at] != 1)]
    return node.reshape(node.total(value, axes) if axes else value, target)


def _each(node: RuleNode, derivatives: Sequence[str | None]) -> dict[int, str]:
    """Return derivatives of the output's shape, one for each input, as those of the inputs."""
    dims = node.dims(node.node.output[0])
    return {
        port: unbroadcast(node, value, dims, node.dims(node.node.input[port]))
        for port, value in enumerate(derivatives)
        if value is not None
    }


def add(node: RuleNode, dy: str) -> dict[int, str]:
    """Differentiate Add and Sum."""
    return _each(node, [dy if node.wants(port) else None for port in range(len(node.node.input))])


def sub(node: RuleNode, dy: str) -> dict[int, str]:
    """Differentiate Sub."""
    return _each(node, [dy if node.wants(0) else None, node.add("Neg", dy) if node.wants(1) else None])


def mul(node: RuleNode, dy: str) -> dict[int, str]:
    """Differentiate Mul."""
    a, b = node.node.input
    return _each(
        node, [node.add("Mul", dy, b) if node.wants(0) else None, node.add("Mul", dy, a) if node.wants(1) else None]
    )


def div(node: RuleNode, dy: str) -> dict[int, str]:
    """Differentiate Div: dy / b, and -dy y / b."""
    b, y = node.node.input[1], node.node.output[0]
    part = node.add("Div", dy, b)
    return _each(
        node,
        [
            part if node.wants(0) else None,
            node.add("Neg", node.add("Mul", part, y)) if node.wants(1) else None,
        ],
    )


def clip(node: RuleNode, dy: str) -> dict[int, str]:
    """Differentiate Clip by its data: elements pass that it did not change."""
    if node.wants(1) or node.wants(2):
        raise NoRuleError("its limits are not constant")
    same = node.add("Equal", node.node.input[0], node.node.output[0])
    return {0: node.add("Mul", dy, node.add("Cast", same, to=1))}


def matmul(node: RuleNode, dy: str) -> dict[int, str]:
    """Differentiate MatMul by a matrix on the right: one product over all rows; others are left to onnx-ad."""
    x, w = node.node.input
    x_dims, w_dims = node.dims(x), node.dims(w)
    if len(w_dims) != 2 or len(x_dims) < 2:
        raise NoRuleError("its right operand is no matrix")
    found = {}
    if node.wants(0):
        found[0] = node.add("MatMul", dy, node.add("Transpose", w, perm=[1, 0]))
    if node.wants(1):
        rows = math.prod(x_dims[:-1])
        flat = node.add("Transpose", node.reshape(x, [rows, x_dims[-1]]), perm=[1, 0])
        found[1] = node.add("MatMul", flat, node.reshape(dy, [rows, w_dims[1]]))
    return found


def softmax(node: RuleNode, dy: str) -> dict[int, str]:
    """Differentiate Softmax: y (dy - sum y dy)."""
    y = node.node.output[0]
    total = _along(node, node.add("Mul", dy, y))
    return {0: node.add("Mul", y, node.add("Sub", dy, total))}


def log_softmax(node: RuleNode, dy: str) -> dict[int, str]:
    """Differentiate LogSoftmax: dy - exp(y) sum dy."""
    y = node.node.output[0]
    return {0: node.add("Sub", dy, node.add("Mul", node.add("Exp", y), _along(node, dy)))}


def _along(node: RuleNode, value: str) -> str:
    """Sum along the axis of a Softmax, which stays."""
    return node.add("ReduceSum", value, node.ints([int(node.attribute("axis", -1))]), keepdims=1)
