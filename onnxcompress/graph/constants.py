"""Constants as floats, however they are stored: as floats, floats of another type, or integers with a scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from . import edit, query

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def _quantized(value: ir.Value) -> ir.Node | None:
    """Return the DequantizeLinear of constants that makes a value, None where there is none."""
    node = value.producer()
    if node is None or not query.is_op(node, "DequantizeLinear"):
        return None
    return node if all(v is None or query.constant_tensor(v) is not None for v in node.inputs) else None


def is_cast(value: ir.Value | None) -> bool:
    """Say whether a value is a constant of one float type that a Cast turns into another one."""
    node = None if value is None else value.producer()
    if node is None or not query.is_op(node, "Cast") or ir.DataType(query.attribute(node, "to", 0)) not in _FLOATS:
        return False
    stored = query.constant_tensor(node.inputs[0])
    return stored is not None and stored.dtype in _FLOATS


def tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor behind a constant, or behind a Cast of one (`is_cast`), whose data is cast when it is read.

    None for all other values.
    """
    if value is None or not is_cast(value):
        return query.constant_tensor(value)
    node = value.producer()
    assert node is not None
    stored, dtype = query.constant_tensor(node.inputs[0]), ir.DataType(query.attribute(node, "to", 0))
    assert stored is not None

    def read() -> ir.TensorProtocol:
        with np.errstate(over="ignore"):  # infinities are found by who reads them
            return ir.tensor(stored.numpy().astype(dtype.numpy()), dtype)

    return ir.LazyTensor(read, dtype, ir.Shape(query.dims(stored)), name=value.name)


def stored_bytes(value: ir.Value) -> int:
    """Return the bytes that such a constant takes in the file, 0 where it is none."""
    node = value.producer()
    return query.tensor_bytes(node.inputs[:1] if node is not None and is_cast(value) else [value])


def is_float(value: ir.Value | None) -> bool:
    """Say whether a value is a constant that can be read as floats."""
    stored = tensor(value)
    if stored is not None:
        return stored.dtype in _FLOATS
    return value is not None and _quantized(value) is not None


def dims(value: ir.Value) -> tuple[int, ...]:
    """Return the shape of such a constant."""
    stored = tensor(value)
    if stored is None:
        node = _quantized(value)
        assert node is not None
        stored = query.constant_tensor(node.inputs[0])
    assert stored is not None
    return query.dims(stored)


def read(value: ir.Value) -> np.ndarray:
    """Return the numbers of a constant, or of a Cast or a DequantizeLinear of constants.

    They are float32 for all but float64.
    """
    stored = tensor(value)
    if stored is not None:
        array = stored.numpy()
        return array if array.dtype == np.float64 else array.astype(np.float32)
    integers, scale, zero = _quantization(value)
    return np.asarray((integers.astype(np.float32) - zero) * scale, np.float32)


def _quantization(value: ir.Value) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the integers behind a DequantizeLinear, and scale and zero point as float32 that broadcast to them."""
    node = _quantized(value)
    assert node is not None
    integers, scale, zero = (None if v is None else query.constant(v) for v in (*node.inputs, None)[:3])
    assert integers is not None
    assert scale is not None
    axis = int(query.attribute(node, "axis", 1))
    block = int(query.attribute(node, "block_size", 0))

    def spread(each: np.ndarray) -> np.ndarray:
        each = each.astype(np.float32)
        if block:
            return np.repeat(each, block, axis=axis).take(np.arange(integers.shape[axis]), axis=axis)
        if each.size == 1:
            return each.reshape(())
        return each.reshape([-1 if i == axis % integers.ndim else 1 for i in range(integers.ndim)])

    return integers, spread(scale), np.zeros((), np.float32) if zero is None else spread(zero)


def cast(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Return an array in another type.

    Raises:
        ValueError: the type can't hold a number of it.
    """
    with np.errstate(over="ignore"):
        stored = array.astype(dtype)
    if not np.isfinite(stored.astype(np.float64)).all():
        raise ValueError(f"a number is beyond {np.dtype(dtype).name}")
    return stored


def write(node: ir.Node, port: int, array: np.ndarray, names: edit.Names) -> None:
    """Replace the constant that a node reads through a port, for this reader alone, stored as it was.

    Integers behind a DequantizeLinear keep their scale and zero point, what is behind a Cast its type.

    Raises:
        ValueError: the stored type can't hold a number of it.
    """
    value = node.inputs[port]
    assert value is not None
    if is_cast(value):
        converts = value.producer()
        assert converts is not None
        if len(value.uses()) > 1 or value.is_graph_output():
            converts = edit.copy_before(converts, names)
            node.replace_input_with(port, converts.outputs[0])
        write(converts, 0, array, names)
        return
    if query.constant_tensor(value) is None:
        dequantize = _quantized(value)
        assert dequantize is not None
        integers, scale, zero = _quantization(value)
        wanted = np.rint(array.astype(np.float64) / scale + zero)
        limits = np.iinfo(integers.dtype)
        if wanted.size and (wanted.min() < limits.min or wanted.max() > limits.max):
            raise ValueError(f"a number is beyond the {integers.dtype.name} it is stored as")
        if len(value.uses()) > 1 or value.is_graph_output():
            dequantize = edit.copy_before(dequantize, names)
            node.replace_input_with(port, dequantize.outputs[0])
        write(dequantize, 0, wanted.astype(integers.dtype), names)
        return
    tensor = query.constant_tensor(value)
    assert tensor is not None
    stored = cast(array, tensor.dtype.numpy())
    if value.is_initializer() and len(value.uses()) == 1 and not value.is_graph_output():
        edit.set_weight(value, stored)
        return
    made = edit.add_initializer(query.home(node), names, value.name or f"{query.label(node)}_weight", stored)
    node.replace_input_with(port, made)
    edit.remove_unread(value)
