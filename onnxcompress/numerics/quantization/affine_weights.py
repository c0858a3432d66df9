"""Affine quantization of weights: integers with a scale, and a zero point where asked, for each group of values.

    q = clip(round(w / s) + z, low, high)        w' = s (q - z)

(Jacob et al., arXiv 1712.05877, eq. 1; Krishnamoorthi, arXiv 1806.08342, section 2.) A group is the whole tensor,
a channel (all values at one index of an axis), or a block (so many consecutive indices of an axis). Rounding is to
nearest, ties to even, so |w - w'| <= s/2 for every w inside the range.

Everything is computed in float32 (float16 input is widened), a few MB at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..snr import CHUNK_VALUES

CLIP_RATIOS = (0.95, 0.9, 0.85, 0.8, 0.74, 0.68, 0.6, 0.5)
"""Fractions of the largest magnitude that are tried beside 1; finer steps change the error by under 0.05 dB."""


@dataclass(frozen=True)
class Grid:
    """The integers of a scheme: `symmetric` ones are signed and without a zero point, others unsigned.

    The lowest signed integer is not used, so that the grid is symmetric around zero.
    """

    bits: int
    symmetric: bool

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"{self.bits} bits: 2 to 8 are possible")

    @property
    def low(self) -> int:
        """The least integer."""
        return -self.high if self.symmetric else 0

    @property
    def high(self) -> int:
        """The greatest integer."""
        return (1 << (self.bits - 1)) - 1 if self.symmetric else (1 << self.bits) - 1

    @property
    def dtype(self) -> type[np.signedinteger | np.unsignedinteger]:
        """The numpy type that holds the integers, one a byte."""
        return np.int8 if self.symmetric else np.uint8


@dataclass(frozen=True)
class Quantized:
    """Integers of the original's shape, with the scale and zero point of each group.

    `scale` is float32: a scalar for axis None, [channels] for an axis, and with blocks the original's shape with
    ceil(n / block) in place of the axis's n. `zero_point` has the same shape, None stands for zero.
    """

    values: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None
    axis: int | None
    block: int | None = None


def quantize(array: np.ndarray, *, axis: int | None, bits: int, symmetric: bool, block: int | None = None) -> Quantized:
    """Round a float array to integers, with the range of each group that which its values take.

    Raises:
        ValueError: the array is empty or holds NaN or infinities, or axis, block or bits don't fit.
    """
    grid = Grid(bits, symmetric)
    if axis is None and block is not None:
        raise ValueError("blocks need an axis")
    grouped = _group(_widen(array), axis, block)
    low, high = grouped.min(axis=(0, 2)), grouped.max(axis=(0, 2))
    scale, zero_point = scale_and_zero_point(low, high, grid)
    values = round_to(grouped, scale, zero_point, grid)
    shape = _scale_shape(array.shape, axis, block)
    return Quantized(
        _ungroup(values, array.shape, axis, block),
        scale.reshape(shape),
        None if zero_point is None else zero_point.reshape(shape),
        axis,
        block,
    )


def dequantize(quantized: Quantized) -> np.ndarray:
    """Return the float32 array that the integers stand for."""
    values, axis, block = quantized.values, quantized.axis, quantized.block
    scale, zero_point = quantized.scale, quantized.zero_point
    if axis is not None and block is not None:
        n = values.shape[axis]
        scale = np.repeat(scale, block, axis=axis).take(np.arange(n), axis=axis)
        if zero_point is not None:
            zero_point = np.repeat(zero_point, block, axis=axis).take(np.arange(n), axis=axis)
    elif axis is not None:
        spread = [1] * values.ndim
        spread[axis] = -1
        scale = scale.reshape(spread)
        zero_point = None if zero_point is None else zero_point.reshape(spread)
    shifted = values.astype(np.float32)
    if zero_point is not None:
        shifted -= zero_point.astype(np.float32)
    shifted *= scale
    return shifted


def scale_and_zero_point(
    low: np.ndarray, high: np.ndarray, grid: Grid, dtype: np.dtype | type = np.float32
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the scale, of type `dtype`, and the zero point for ranges [low, high], which are widened to hold 0.

    A scale is never 0 nor denormal, which runtimes flush to 0: a group of zeros gets 1, a range too small the least
    normal number. It is rounded up to `dtype`, so that no value leaves the grid.

    Raises:
        ValueError: a range is not finite.
    """
    low, high = np.minimum(low, 0).astype(np.float32), np.maximum(high, 0).astype(np.float32)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("NaN or infinities")
    wide_low, wide_high = low.astype(np.float64), high.astype(np.float64)
    span = np.maximum(-wide_low, wide_high) if grid.symmetric else wide_high - wide_low
    exact = span / (grid.high if grid.symmetric else grid.high - grid.low)
    with np.errstate(over="ignore"):
        scale = exact.astype(dtype)
    scale = np.where(scale < exact, np.nextafter(scale, np.asarray(np.inf, dtype)), scale).astype(dtype)
    if not np.isfinite(scale).all():
        raise ValueError(f"a range of {span.max():g} needs a scale beyond {np.dtype(dtype).name}")
    scale = np.where(span == 0, np.asarray(1, dtype), np.maximum(scale, np.finfo(dtype).tiny)).astype(dtype)
    if grid.symmetric:
        return scale, None
    zero_point = np.clip(np.rint(grid.low - wide_low / scale), grid.low, grid.high)
    return scale, zero_point.astype(grid.dtype)


def round_to(grouped: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, grid: Grid) -> np.ndarray:
    """Return the integers of `grouped`, float32 [outer, groups, inner], for a scale of each group."""
    out = np.empty(grouped.shape, grid.dtype)
    for piece in _pieces(grouped.shape):
        groups = piece[1]
        work = np.divide(grouped[piece], scale[groups, None], dtype=np.float32)
        np.rint(work, out=work)
        if zero_point is not None:
            work += zero_point[groups, None]
        np.clip(work, grid.low, grid.high, out=work)
        out[piece] = work
    return out


def squared_error(grouped: np.ndarray, scale: np.ndarray, grid: Grid) -> np.ndarray:
    """Return for each group the sum of (w - w')^2 under a symmetric grid, float64 [groups]."""
    total = np.zeros(grouped.shape[1])
    for piece in _pieces(grouped.shape):
        groups, values = piece[1], grouped[piece]
        step = scale[groups, None]
        work = np.divide(values, step, dtype=np.float32)
        np.rint(work, out=work)
        np.clip(work, grid.low, grid.high, out=work)
        work *= step
        work -= values
        np.square(work, out=work)
        total[groups] += work.sum(axis=(0, 2), dtype=np.float64)
    return total


def clip_candidates(scale: np.ndarray, ratios: Sequence[float] = CLIP_RATIOS) -> list[np.ndarray]:
    """Return scales to try, the given ones first: the others clip all values beyond a fraction of the largest.

    The clipping threshold alpha that minimises the squared error after rounding is the objective of OCTAV
    (arXiv 2206.06501, eq. 3); at 8 bits it is flat around its minimum, so that a grid of fractions finds what
    their Newton steps do.
    """
    least = np.finfo(scale.dtype).tiny
    return [scale, *(np.maximum(scale * scale.dtype.type(ratio), least) for ratio in ratios)]


def best_candidate(scales: Sequence[np.ndarray], errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each group the scale with the least error, and that error; the first of equals wins.

    Args:
        scales: candidates, [groups] each.
        errors: the squared error of each, [candidates, groups].
    """
    best = errors.argmin(axis=0)
    return np.take_along_axis(np.stack(scales), best[None], 0)[0], np.take_along_axis(errors, best[None], 0)[0]


def grouped_shape(shape: Sequence[int], axis: int | None) -> tuple[int, int, int]:
    """Return the [outer, channels, inner] that a tensor of `shape` has around an axis (None: one channel).

    Raises:
        ValueError: there is no such axis.
    """
    size = int(np.prod(shape, dtype=np.int64))
    if axis is None:
        return 1, 1, size
    if not 0 <= axis < len(shape):
        raise ValueError(f"no axis {axis} in {list(shape)}")
    outer = int(np.prod(shape[:axis], dtype=np.int64))
    return outer, shape[axis], int(np.prod(shape[axis + 1 :], dtype=np.int64))


def _pieces(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice, slice]]:
    """Cut [outer, groups, inner] into pieces of about CHUNK_VALUES."""
    outer, groups, inner = shape
    step_inner = max(1, min(inner, CHUNK_VALUES))
    step_groups = max(1, min(groups, CHUNK_VALUES // step_inner))
    step_outer = max(1, CHUNK_VALUES // (step_inner * step_groups))
    for a in range(0, outer, step_outer):
        for b in range(0, groups, step_groups):
            for c in range(0, inner, step_inner):
                yield slice(a, a + step_outer), slice(b, b + step_groups), slice(c, c + step_inner)


def _widen(array: np.ndarray) -> np.ndarray:
    if array.dtype not in (np.float16, np.float32):
        raise ValueError(f"{array.dtype}: float32 and float16 can be quantized")
    if not array.size:
        raise ValueError("an empty array")
    return array.astype(np.float32, copy=False)


def _group(array: np.ndarray, axis: int | None, block: int | None) -> np.ndarray:
    """View an array as [outer, groups, inner]; with blocks the last is filled up with its own last values."""
    if block is None or axis is None:
        return array.reshape(grouped_shape(array.shape, axis))
    if block < 1:
        raise ValueError(f"blocks of {block}")
    outer, n, inner = grouped_shape(array.shape, axis)
    count = -(-n // block)
    view = array.reshape(outer, n, inner)
    if n % block:
        view = np.concatenate([view, np.repeat(view[:, -1:], count * block - n, axis=1)], axis=1)
    blocks = view.reshape(outer * count, block, inner)
    return np.ascontiguousarray(blocks.transpose(1, 0, 2)).reshape(block, outer * count * inner, 1)


def _ungroup(values: np.ndarray, shape: tuple[int, ...], axis: int | None, block: int | None) -> np.ndarray:
    if block is None or axis is None:
        return values.reshape(shape)
    outer, n, inner = grouped_shape(shape, axis)
    count = -(-n // block)
    blocks = values.reshape(block, outer * count, inner).transpose(1, 0, 2)
    return np.ascontiguousarray(blocks.reshape(outer, count * block, inner)[:, :n]).reshape(shape)


def _scale_shape(shape: tuple[int, ...], axis: int | None, block: int | None) -> tuple[int, ...]:
    if axis is None:
        return ()
    if block is None:
        return (shape[axis],)
    return (*shape[:axis], -(-shape[axis] // block), *shape[axis + 1 :])
