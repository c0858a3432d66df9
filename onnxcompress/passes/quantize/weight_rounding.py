"""Weights as integers, read from their file a few MB at a time and never held as a whole in float.

Scales and their error need one or two readings of a weight, its integers another, which for a large weight happens when
they are first asked for: until then only its scales are in memory, and from then on its integers are in a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...base import host
from ...graph import query
from ...io.tensors import StoredTensor, computed, cut
from ...numerics import snr
from ...numerics.quantization import affine_weights
from ...targets import facts as targets

PIECE_BYTES = 8 << 20
"""Bytes of a weight that are read at a time. Chosen by judgement; not measured."""
KEPT_BYTES = 64 << 20
"""Bytes up to which a weight is kept in memory between the reading for the scales and the one for the error. Chosen by
judgement; not measured."""
LAZY_BYTES = 16 << 20
"""Bytes from which on a weight is rounded only when its integers are first read. Chosen by judgement; not measured."""


def saturates(target: str) -> bool:
    """Say whether the kernels of a target add two products in 16 bits: this machine's do, on x64 without VNNI."""
    return target == targets.HERE and host.adds_in_16_bits()


@dataclass(frozen=True)
class Rounding:
    """Scales of a weight and the error of rounding by them.

    Args:
        tensor: the float weight.
        axis: the axis whose every index has a scale of its own, None for one scale.
        scale: the scales, of the weight's type; [] or [channels].
        signal: the sum of squares of the weight.
        noise: the sum of squared differences that rounding makes.
        bits: the integers' bits, 8 or less.
    """

    tensor: ir.TensorProtocol
    axis: int | None
    scale: np.ndarray
    signal: float
    noise: float
    bits: int = 8

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise of the weight, in decibels."""
        return snr.db(self.signal, self.noise)

    def integers(self, *, transposed: bool) -> ir.TensorProtocol:
        """Return the int8 tensor, its two axes swapped if asked for.

        A large one is computed at first use, piece by piece, and then waits in a temporary file.
        """
        dims = query.dims(self.tensor)
        shape = tuple(reversed(dims)) if transposed else dims
        if self.tensor.nbytes >= LAZY_BYTES:
            return computed(lambda: self._computed(transposed=transposed), ir.DataType.INT8, shape)
        parts = [part.reshape(-1) for part in self._computed(transposed=transposed)]
        return ir.tensor(np.concatenate(parts).reshape(shape))

    def _computed(self, *, transposed: bool) -> Iterator[np.ndarray]:
        """Yield the integers part by part, in the order in which they are stored."""
        scale, dims = self.scale.reshape(-1), query.dims(self.tensor)
        if not transposed:
            for where, piece in _pieces(self.tensor, _grouped(dims, self.axis)):
                yield affine_weights.round_to(piece, scale[where[1]], self.bits)
            return
        step = max(1, PIECE_BYTES // max(1, dims[0] * self.tensor.dtype.bitwidth // 8))
        for start in range(0, dims[1], step):
            columns = slice(start, min(dims[1], start + step))
            part = cut(self.tensor, 1, columns).numpy().astype(np.float32, copy=False)
            if self.axis == 1:
                yield affine_weights.round_to(part.T[None], scale[columns], self.bits)[0]
            else:
                grouped = part[None] if self.axis == 0 else part.reshape(1, 1, -1)
                yield affine_weights.round_to(grouped, scale, self.bits).reshape(part.shape).T


def round_weight(tensor: ir.TensorProtocol, axis: int | None, *, clip: bool, bits: int = 8) -> Rounding:
    """Choose the scales of a float32 or float16 weight as int8 and measure what rounding does to it.

    Fewer bits leave the ends of int8 unused.

    Raises:
        ValueError: it holds NaN or infinities, or is too large for a scale of its own type.
    """
    dims = query.dims(tensor)
    shape = _grouped(dims, axis)
    peak = np.zeros(shape[1], np.float32)
    signal = 0.0
    kept = list(_pieces(tensor, shape)) if tensor.nbytes <= KEPT_BYTES else None
    for where, piece in kept or _pieces(tensor, shape):
        channels = where[1]
        reach = np.maximum(piece.max(axis=(0, 2)), -piece.min(axis=(0, 2)))
        peak[channels] = np.maximum(peak[channels], reach)
        signal += snr.energy(piece)
    scale = affine_weights.scales_for(peak, bits, tensor.dtype.numpy())
    candidates = affine_weights.clip_candidates(scale) if clip else [scale]
    errors = _errors(kept or _pieces(tensor, shape), shape, candidates, bits)
    scale, noise = affine_weights.best_candidate(candidates, errors)
    return Rounding(tensor, axis, scale.reshape(() if axis is None else (-1,)), signal, float(noise.sum()), bits)


_Where = tuple[slice, slice, slice]


def _errors(
    pieces: Iterable[tuple[_Where, np.ndarray]], shape: tuple[int, int, int], scales: list[np.ndarray], bits: int
) -> np.ndarray:
    """Return the squared error of each channel for each candidate of scales: float64 [candidates, channels]."""
    total = np.zeros((len(scales), shape[1]))
    for where, piece in pieces:
        for row, scale in zip(total, scales, strict=True):
            row[where[1]] += affine_weights.squared_error(piece, scale[where[1]], bits)
    return total


def _grouped(dims: tuple[int, ...], axis: int | None) -> tuple[int, int, int]:
    """View a weight as [outer, channels, inner], where one scale for all leaves outer free to be cut."""
    if axis is None:
        return dims[0], 1, int(np.prod(dims[1:], dtype=np.int64))
    return affine_weights.grouped_shape(dims, axis)


def _pieces(tensor: ir.TensorProtocol, shape: tuple[int, int, int]) -> Iterator[tuple[_Where, np.ndarray]]:
    """Yield a weight in parts, float32, each with its place in [outer, channels, inner]."""
    outer, channels, inner = shape
    rows, values = (channels, inner) if outer == 1 else (outer, channels * inner)
    itemsize = tensor.dtype.bitwidth // 8
    step = max(1, PIECE_BYTES // max(1, values * itemsize))
    whole = None if isinstance(tensor, StoredTensor) else np.ascontiguousarray(tensor.numpy()).reshape(rows, values)
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        if isinstance(tensor, StoredTensor):
            stored = tensor.stored
            data = stored.source.read(stored.offset + start * values * itemsize, (stop - start) * values * itemsize)
            part = np.frombuffer(data, np.dtype(tensor.dtype.numpy()).newbyteorder("<"))
        else:
            assert whole is not None
            part = whole[start:stop]
        part = part.astype(np.float32, copy=False)
        cut = slice(start, stop)
        where = (slice(0, 1), cut, slice(None)) if outer == 1 else (cut, slice(None), slice(None))
        yield where, part.reshape((1, -1, inner) if outer == 1 else (-1, channels, inner))
