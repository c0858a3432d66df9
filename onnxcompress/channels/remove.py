"""Take groups of channels out of a model, wherever a constant carries them; or zero them, to prove the former.

The exact test of a cut, apart from accuracy: one copy after `cut`, another after `mask`, give the same outputs.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from ..errors import OnnxCompressError
from ..graph import edit, query
from .fixups import Edits, Keeps
from .groups import Channels
from .types import Axis, Pin, Read


def cut(channels: Channels, removed: Collection[int]) -> None:
    """Take groups out of the model that they were found in; `channels` does not hold any more afterwards.

    Weights lose rows, columns and slices, each once however many read it; attributes and small inputs that hold
    sizes, counts or positions follow. Declared shapes of what has changed are dropped.

    Raises:
        OnnxCompressError: nothing would be left of an axis. The model is as it was.
    """
    empty = channels.empties(removed)
    if empty:
        raise OnnxCompressError(
            f"these {len(removed)} groups leave nothing of an axis of {', '.join(empty[:3])}",
            hint="Ask Tally.allows before each group",
        )
    keeps = channels.keeps(removed)
    edits = Edits(keeps, edit.Names(channels.model))
    for value, axes in channels.flow.axes.items():
        if query.constant_tensor(value) is None and not value.is_graph_input() and _is_cut(axes, keeps):
            value.shape = None
    for value, axes in channels.constants.items():
        _compress(value, axes, keeps)
    for fix in channels.flow.fixes:
        fix.apply(edits)


def mask(channels: Channels, removed: Collection[int]) -> None:
    """Zero groups wherever they are summed over, in the model that they were found in, and take nothing out.

    Where a group's `inexact` is empty, the outputs are those of the model after `cut`.
    """
    keeps = channels.keeps(removed)
    edits = Edits(keeps, edit.Names(channels.model))
    inputs = [None if read.weight is not None else read.node.inputs[read.port] for read in channels.flow.reads]
    for read, value in zip(channels.flow.reads, inputs, strict=True):
        if read.weight is not None:
            axis = channels.constants[read.weight][read.weight_axis]
            if not isinstance(axis, Pin) and edits.is_cut(axis):
                _zero(read.weight, read.weight_axis, keeps(axis))
        elif value is not None and edits.is_cut(read.ids):
            _insert_mask(read, value, channels, edits)


def _is_cut(axes: list[Axis], keeps: Keeps) -> bool:
    return any(not isinstance(axis, Pin) and not keeps(axis).all() for axis in axes)


def _compress(value: ir.Value, axes: list[Axis], keeps: Keeps) -> None:
    """Remove indices of a constant along each of its axes."""
    stays = {place: keeps(axis) for place, axis in enumerate(axes) if not isinstance(axis, Pin)}
    array = None if all(mask.all() for mask in stays.values()) else query.constant(value)
    if array is None:
        return
    for place, mask in stays.items():
        array = np.compress(mask, array, axis=place)
    _store(value, np.ascontiguousarray(array))


def _zero(value: ir.Value, axis: int, stays: np.ndarray) -> None:
    array = query.constant(value)
    if array is None:
        return
    shape = [1] * array.ndim
    shape[axis] = -1
    _store(value, np.where(stays.reshape(shape), array, np.zeros((), array.dtype)))


def _store(value: ir.Value, array: np.ndarray) -> None:
    """Replace the data of a constant, whether an initializer or the output of a Constant node."""
    node = value.producer()
    if node is None:
        edit.set_weight(value, array)
        return
    tensor = ir.tensor(array, name=value.name)
    node.attributes.clear()
    node.attributes.add(ir.AttrTensor("value", tensor))
    value.shape = ir.Shape(array.shape)


def _insert_mask(read: Read, value: ir.Value, channels: Channels, edits: Edits) -> None:
    """Multiply an input, originally `value`, by one for what is kept and by zero for what is removed along an axis."""
    rank, dtype = channels.flow.rank(value), channels.flow.dtype(value)
    if rank is None or dtype is None:
        raise OnnxCompressError(f"the type of {value.name} is not known", where=query.label(read.node))
    shape = [1] * rank
    shape[read.axis] = -1
    factor = edits.keeps(read.ids).astype(dtype).reshape(shape)
    hint = f"{query.label(read.node)}_mask"
    made = edit.add_initializer(query.home(read.node), edits.names, hint, factor)
    product = edit.insert_before(read.node, edits.names, "Mul", [read.node.inputs[read.port], made], hint=hint)
    read.node.replace_input_with(read.port, product.outputs[0])
