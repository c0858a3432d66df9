"""Blockwise quantization to few bits: a scale, and maybe a zero point, for every block of neighbouring weights.

    w ~ s (q - z)      q in [0, 2^bits - 1], one s and one z for `block` weights along the input axis

Without zero points of its own a block has z = 2^(bits - 1), and its scale may be negative: the larger of the two ends
of the integers, -2^(bits - 1), then meets the weight of the largest magnitude, whichever sign it has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CANDIDATES = 16
"""Clipped ranges that are tried for each block. Chosen by judgement; not measured."""
_PART_ELEMENTS = 1 << 15
"""Weights of one step, which stay in the processor's cache. Chosen by judgement; not measured."""
_LEAST_RANGE = 0.5
"""Smallest part of a block's full range that is tried. Chosen by judgement; not measured."""
_HQQ_ITERATIONS = 20
"""Most iterations of half-quadratic quantization, as in HQQ."""
_HQQ_BETA, _HQQ_KAPPA, _HQQ_NORM = 10.0, 1.01, 0.7
"""Penalty, its growth per iteration, and the norm, as in HQQ."""


@dataclass(frozen=True)
class BlockGrid:
    """Integers of `bits` bits in blocks of `block`; `symmetric` ones have no zero points of their own."""

    bits: int
    block: int
    symmetric: bool

    @property
    def levels(self) -> int:
        """The largest integer."""
        return int(2**self.bits - 1)

    @property
    def middle(self) -> int:
        """The zero point of a symmetric block."""
        return int(2 ** (self.bits - 1))

    @property
    def stored(self) -> BlockGrid:
        """The grid whose integers have a type: 3 bits are kept in 4, of which packing takes one away."""
        return BlockGrid(4, self.block, self.symmetric) if self.bits == 3 else self

    def count(self, inputs: int) -> int:
        """Return the number of blocks of a row; the last one may be cut short."""
        return -(-inputs // self.block)


@dataclass(frozen=True)
class Blocks:
    """A weight matrix in few bits.

    Args:
        grid: the integers.
        integers: uint8 [out, in], at most `grid.levels`.
        scale: float32 [out, blocks].
        zero: uint8 [out, blocks]; `grid.middle` everywhere where the grid is symmetric.
    """

    grid: BlockGrid
    integers: np.ndarray
    scale: np.ndarray
    zero: np.ndarray

    def floats(self) -> np.ndarray:
        """Return the dequantized weights: float32 [out, in]."""
        inputs = self.integers.shape[1]
        difference = self.integers.astype(np.float32) - spread(self.zero.astype(np.float32), self.grid.block, inputs)
        return np.asarray(difference * spread(self.scale, self.grid.block, inputs))

    def as_stored(self) -> Blocks:
        """Return the same weights on `grid.stored`."""
        stored = self.grid.stored
        shift = np.uint8(stored.middle - self.grid.middle) if stored.symmetric else np.uint8(0)
        return Blocks(stored, self.integers + shift, self.scale, self.zero + shift)


def spread(per_block: np.ndarray, block: int, inputs: int) -> np.ndarray:
    """Repeat the parameter of each block for its weights: [out, blocks] -> [out, in]."""
    return np.asarray(np.repeat(per_block, block, axis=1)[:, :inputs])


def round_nearest(
    weight: np.ndarray, grid: BlockGrid, importance: np.ndarray | None = None, *, candidates: int = CANDIDATES
) -> Blocks:
    """Round every weight to the nearest integer, with the scales of least squared error.

    The scale of each block is searched among ranges that clip up to half of it (MSE clipping, as OCTAV,
    arXiv 2206.06501, but by search, which also serves few levels).

    Args:
        weight: float [out, in].
        grid: the integers.
        importance: float [in] >= 0, weight of an error at each input (the mean square of its activations); None: all
            count the same.
        candidates: ranges that are tried; 1 for the full range alone.
    """
    found = [
        _searched(part, grid, importance, np.linspace(1.0, _LEAST_RANGE, candidates, dtype=np.float32))
        for part in _parts(weight)
    ]
    return with_parameters(weight, grid, *(np.concatenate(each) for each in zip(*found, strict=True)))


def _searched(
    weight: np.ndarray, grid: BlockGrid, importance: np.ndarray | None, ranges: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scale and zero point of each block, [out, blocks], with the least squared error of all ranges."""
    blocked = _blocked(weight, grid)
    weights = None if importance is None else _blocked(np.broadcast_to(importance, weight.shape), grid)
    scale = np.ones(blocked.shape[:2], np.float32)
    zero = np.full(blocked.shape[:2], grid.middle, np.uint8)
    least = np.full(blocked.shape[:2], np.inf, np.float32)
    for part in ranges:
        for tried_scale, tried_zero in _parameters(blocked, grid, part):
            error = _error(blocked, tried_scale, tried_zero, grid, weights)
            better = error < least
            scale[better], zero[better], least[better] = tried_scale[better], tried_zero[better], error[better]
    return scale, zero


def _parts(weight: np.ndarray) -> list[np.ndarray]:
    """Split a matrix into bands of rows that fit in a processor's cache; at least one, be it empty."""
    rows = max(1, _PART_ELEMENTS // max(1, weight.shape[1]))
    return [weight[start : start + rows] for start in range(0, max(1, len(weight)), rows)]


def with_parameters(weight: np.ndarray, grid: BlockGrid, scale: np.ndarray, zero: np.ndarray) -> Blocks:
    """Round float [out, in] to the nearest integers under given scales and zero points [out, blocks]."""
    inputs = weight.shape[1]
    each = spread(scale, grid.block, inputs)
    integers = np.rint(weight / each + spread(zero.astype(np.float32), grid.block, inputs))
    return Blocks(grid, np.clip(integers, 0, grid.levels).astype(np.uint8), scale.astype(np.float32), zero)


def round_half_quadratic(weight: np.ndarray, grid: BlockGrid) -> Blocks:
    """Round with scales and zero points that fit most weights well and a few badly, without data.

    Half-quadratic quantization (HQQ, Badri and Shaji 2023): alternately shrinks the error of each weight towards
    zero, by the proximal operator of |e|^0.7, and moves the parameters to the mean of the rest. Where the
    zero point is whole, as it has to be here, the shrunk error moves the scale instead.

    Args:
        weight: float [out, in].
        grid: the integers.
    """
    found = [_half_quadratic(part, grid) for part in _parts(weight)]
    return with_parameters(weight, grid, *(np.concatenate(each) for each in zip(*found, strict=True)))


def _half_quadratic(weight: np.ndarray, grid: BlockGrid) -> tuple[np.ndarray, np.ndarray]:
    """Return the scale and zero point of each block, [out, blocks]."""
    scale, zero = _searched(weight, grid, None, np.linspace(1.0, _LEAST_RANGE, CANDIDATES, dtype=np.float32))
    blocked = _blocked(weight, grid)
    best_scale, best_zero, least = scale, zero, _robust(blocked, scale, zero, grid)
    beta = _HQQ_BETA
    for _ in range(_HQQ_ITERATIONS):
        integers = _rounded(blocked, scale, zero, grid)
        error = blocked - scale[..., None] * (integers - zero[..., None])
        size = np.abs(error)
        with np.errstate(divide="ignore"):
            shrunk = np.sign(error) * np.maximum(0, size - size ** (_HQQ_NORM - 1) / beta)
        target = blocked - np.where(size > 0, shrunk, 0)
        if not grid.symmetric:
            moved = np.rint(np.mean(integers - target / scale[..., None], axis=-1))
            zero = np.clip(moved, 0, grid.levels).astype(np.uint8)
        offset = integers - zero[..., None].astype(np.float32)
        norm = np.sum(offset * offset, axis=-1)
        fitted = np.sum(target * offset, axis=-1) / np.maximum(norm, 1e-12)
        scale = np.where((norm > 0) & (np.abs(fitted) > 1e-12), fitted, scale).astype(np.float32)
        loss = _robust(blocked, scale, zero, grid)
        better = loss < least
        if not better.any():
            break
        best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero, best_zero)
        least = np.minimum(loss, least)
        beta *= _HQQ_KAPPA
    return best_scale, best_zero


def _robust(blocked: np.ndarray, scale: np.ndarray, zero: np.ndarray, grid: BlockGrid) -> np.ndarray:
    """Return the sum of |error|^0.7 of each block: float32 [out, blocks]."""
    error = blocked - scale[..., None] * (_rounded(blocked, scale, zero, grid) - zero[..., None])
    return np.asarray(np.sum(np.abs(error) ** _HQQ_NORM, axis=-1), np.float32)


def _blocked(weight: np.ndarray, grid: BlockGrid) -> np.ndarray:
    """Return float32 [out, blocks, block], filled up with zeros."""
    out, inputs = weight.shape
    count = grid.count(inputs)
    padded = np.zeros((out, count * grid.block), np.float32)
    padded[:, :inputs] = weight
    return padded.reshape(out, count, grid.block)


def _parameters(blocked: np.ndarray, grid: BlockGrid, part: np.float32) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return scales and zero points [out, blocks] that cover a part of each block's range."""
    if grid.symmetric:
        peak = np.take_along_axis(blocked, np.abs(blocked).argmax(axis=-1)[..., None], axis=-1)[..., 0]
        zero = np.full(peak.shape, grid.middle, np.uint8)
        whole = np.where(peak == 0, np.float32(1), peak)
        ends = (-grid.middle, grid.levels - grid.middle) if grid.bits > 1 else (-grid.middle,)
        return [(np.asarray(part * whole / end, np.float32), zero) for end in ends if end]
    low, high = np.minimum(blocked.min(axis=-1), 0) * part, np.maximum(blocked.max(axis=-1), 0) * part
    scale = np.where(high > low, (high - low) / grid.levels, np.float32(1)).astype(np.float32)
    return [(scale, np.clip(np.rint(-low / scale), 0, grid.levels).astype(np.uint8))]


def _rounded(blocked: np.ndarray, scale: np.ndarray, zero: np.ndarray, grid: BlockGrid) -> np.ndarray:
    return np.asarray(np.clip(np.rint(blocked / scale[..., None] + zero[..., None]), 0, grid.levels))


def _error(
    blocked: np.ndarray, scale: np.ndarray, zero: np.ndarray, grid: BlockGrid, importance: np.ndarray | None
) -> np.ndarray:
    """Return the squared error of each block, weighted: float32 [out, blocks]."""
    error = blocked - scale[..., None] * (_rounded(blocked, scale, zero, grid) - zero[..., None])
    square = error * error if importance is None else error * error * importance
    return np.asarray(square.sum(axis=-1), np.float32)
