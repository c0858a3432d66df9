"""An Einsum of an activation and a constant matrix is a product of matrices, for which runtimes have more kernels.

    Einsum("btd,de->bte", x, w)    ->  MatMul(x, w)
    Einsum("...d,ed->...e", x, w)  ->  MatMul(x, w')             w' has the axes in the order that the product needs
    Einsum("ut,btd->bud", w, x)    ->  MatMul(w, x)
    Einsum("bthd,hde->bte", x, w)  ->  MatMul(Reshape(x), w')    axes that are summed together become one
    Einsum("btd,dhe->bthe", x, w)  ->  Reshape(MatMul(x, w'))    so do those that the weight gives to the result

Those that need a Transpose of the activation, or have an axis that both operands and the result share, stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...graph import edit, query
from ...ops.equations import REST, equation
from ..rewriting import Rewrite, RewriteContext


@dataclass(frozen=True, kw_only=True)
class _EinsumProduct:
    """A product of matrices in place of an Einsum.

    Args:
        is_left: the constant is the left operand.
        perm: the order of the constant's axes as a matrix.
        kept: leading axes of the activation that the result has too; 0 where an ellipsis leaves their number open.
        summed, made: the number of axes of the constant that are summed over, and that the result gets.
    """

    is_left: bool
    perm: tuple[int, ...]
    kept: int
    summed: int
    made: int


def as_product(node: ir.Node, ctx: RewriteContext) -> Rewrite | None:
    """Propose a MatMul in place of an Einsum with one constant operand."""
    if len(node.inputs) != 2 or any(value is None for value in node.inputs):
        return None
    constants = [port for port, value in enumerate(node.inputs) if query.constant_tensor(value) is not None]
    if len(constants) != 1:
        return None
    port = constants[0]
    weight, data = node.inputs[port], node.inputs[1 - port]
    tensor = query.constant_tensor(weight)
    assert weight is not None
    assert data is not None
    assert tensor is not None
    found = _product(node, port)
    dims = query.dims(tensor)
    if found is None or len(dims) != len(found.perm) or not tensor.dtype.is_floating_point():
        return None
    if not _agree(found, dims, ctx.shapes.shape(data)):
        return None
    changes = found.perm != tuple(range(len(dims))) or found.summed > 1 or found.made > 1
    if changes and len(weight.uses()) > 1:
        return None  # it would be stored twice

    def apply() -> None:
        _write(node, data, weight, found, ctx)

    return Rewrite(
        target=query.label(node),
        reason="an Einsum with a constant matrix is a MatMul",
        apply=apply,
        bytes_before=tensor.nbytes,
        bytes_after=tensor.nbytes,
    )


def _agree(found: _EinsumProduct, dims: tuple[int, ...], data: Sequence[int | str | None] | None) -> bool:
    """Say whether both operands are known to have as many indices to sum over: an Einsum would repeat a single one."""
    if data is None:
        return False
    if found.is_left:
        return len(data) > 1 and data[-2] == dims[found.perm[1]]
    wanted = [dims[axis] for axis in found.perm[: found.summed]]
    return list(data[len(data) - found.summed :]) == wanted


def _product(node: ir.Node, port: int) -> _EinsumProduct | None:
    """Return the product that an Einsum is, None where it is none or needs its activation transposed."""
    found = equation(node)
    if found is None:
        return None
    weight, data, result = found.terms[port], found.terms[1 - port], found.result
    if REST in weight or any(len(set(term)) < len(term) for term in (weight, data, result)):
        return None
    summed = [letter for letter in data if letter in weight and letter not in result]
    made = [letter for letter in result if letter not in data]
    if not summed or set(weight) != {*summed, *made} or not made:
        return None  # an axis that both and the result have is a batch; one that only one operand has is a plain sum
    kept = [letter for letter in data if letter not in summed]
    if any(letter not in result for letter in kept):
        return None
    if data == "".join([*kept, *summed]) and result == "".join([*kept, *made]):
        perm = tuple(weight.index(letter) for letter in (*summed, *made))
        is_plain = len(summed) == len(made) == 1
        if REST in kept and not is_plain:
            return None
        return _EinsumProduct(is_left=False, perm=perm, kept=len(kept), summed=len(summed), made=len(made))
    is_matrix = len(summed) == len(made) == 1 and len(data) > 1
    if not is_matrix or data[-2] != summed[0] or data[-1] == REST or result != data.replace(summed[0], made[0]):
        return None
    perm = tuple(weight.index(letter) for letter in (made[0], summed[0]))
    return _EinsumProduct(is_left=True, perm=perm, kept=0, summed=1, made=1)


def _write(node: ir.Node, data: ir.Value, weight: ir.Value, found: _EinsumProduct, ctx: RewriteContext) -> None:
    tensor = query.constant_tensor(weight)
    assert tensor is not None
    dims = [query.dims(tensor)[axis] for axis in found.perm]
    matrix = weight
    if found.perm != tuple(range(len(dims))) or len(dims) > 2:
        array = np.transpose(tensor.numpy(), found.perm)
        if not found.is_left:
            array = array.reshape(int(np.prod(dims[: found.summed])), -1)
        matrix = ctx.add_constant(node, f"{weight.name}_matrix", np.ascontiguousarray(array))
    name = node.name
    if found.is_left:
        product = result = _inserted(node, "MatMul", [matrix, data], ctx)
    else:
        if found.summed > 1:
            data = _reshaped(node, data, [0] * found.kept + [int(np.prod(dims[: found.summed]))], ctx)
        product = result = _inserted(node, "MatMul", [data, matrix], ctx)
        if found.made > 1:
            result = _reshaped(node, result, [0] * found.kept + dims[found.summed :], ctx)
    edit.take_over(node.outputs[0], result)
    edit.remove_unread(weight)
    maker = product.producer()
    if name and maker is not None:
        maker.name = name  # by which --only and --skip know the layer


def _inserted(node: ir.Node, op_type: str, inputs: list[ir.Value | None], ctx: RewriteContext) -> ir.Value:
    return edit.insert_before(node, ctx.names, op_type, inputs).outputs[0]


def _reshaped(node: ir.Node, value: ir.Value, dims: list[int], ctx: RewriteContext) -> ir.Value:
    shape = ctx.add_constant(node, f"{value.name}_shape", np.asarray(dims, np.int64))
    return _inserted(node, "Reshape", [value, shape], ctx)
