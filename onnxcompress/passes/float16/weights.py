"""Round weights to 16 bits, read from their file a few MB at a time and never held as a whole in float32."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ...graph import query
from ...io.tensors import StoredTensor, parked
from ...numerics.quantization import float16

PIECE_BYTES = 8 << 20
"""Bytes of a weight that are read at a time. Chosen by judgement, for memory; not measured."""
LAZY_BYTES = 16 << 20
"""Least size of weights that are rounded only when the result is read. Chosen by judgement; not measured."""
_NODE_BYTES = 100
"""Bytes of a Cast in the file besides its names, at least. Estimated; not measured."""


def cast_bytes(name: str) -> int:
    """Return the bytes that a Cast of a weight of this name takes in the file."""
    return _NODE_BYTES + 3 * len(name)


def loss_db(tensor: ir.TensorProtocol, dtype: ir.DataType) -> float:
    """Return the signal-to-noise ratio of the row that loses most when a float32 tensor is stored as `dtype`.

    A row is one index of the first axis; a tensor with one axis is one row.

    Raises:
        ValueError: it holds NaN or infinities, or numbers that become infinite.
    """
    signals, noises = [], []
    for piece in _pieces(tensor):
        if not np.isfinite(piece).all():
            raise ValueError("it holds NaN or infinities")
        signal, noise = float16.row_losses(piece, dtype.numpy())
        if not np.isfinite(noise).all():
            largest = float(np.abs(piece).max())
            raise ValueError(f"it holds {largest:.4g}, more than {dtype.name.lower()} can hold")
        signals.append(signal)
        noises.append(noise)
    return float16.worst_db(np.concatenate(signals), np.concatenate(noises))


def narrowed(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    """Return a float32 tensor as one of 16 bits; a large one is rounded at first use and waits in a temporary file."""
    dims = query.dims(tensor)

    def compute() -> np.ndarray:
        rounded = np.empty(int(np.prod(dims, dtype=np.int64)), dtype.numpy())
        at = 0
        for piece in _pieces(tensor):
            rounded[at : at + piece.size] = float16.narrowed(piece.reshape(-1), dtype.numpy())
            at += piece.size
        return rounded.reshape(dims)

    if tensor.nbytes < LAZY_BYTES:
        return ir.tensor(compute(), dtype=dtype)
    return ir.LazyTensor(lambda: _parked(compute(), dtype), dtype, ir.Shape(dims), cache=True)


def _parked(array: np.ndarray, dtype: ir.DataType) -> ir.TensorProtocol:
    stored = parked(array, None)
    assert stored.dtype == dtype
    return stored


def _pieces(tensor: ir.TensorProtocol) -> Iterator[np.ndarray]:
    """Yield a float32 tensor as rows, [some, n]."""
    dims = query.dims(tensor)
    rows = dims[0] if len(dims) > 1 else 1
    row = int(np.prod(dims, dtype=np.int64)) // max(1, rows)
    step = max(1, PIECE_BYTES // max(1, 4 * row))
    whole = None if isinstance(tensor, StoredTensor) else np.ascontiguousarray(tensor.numpy()).reshape(rows, row)
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        if isinstance(tensor, StoredTensor):
            data = tensor.stored.source.read(tensor.stored.offset + 4 * start * row, 4 * (stop - start) * row)
            yield np.frombuffer(data, "<f4").reshape(-1, row)
        else:
            assert whole is not None
            yield whole[start:stop]
