"""Symmetric quantization of weights: signed integers with one scale for each channel, and no zero point.

    q = clip(round(w / s), -high, high)        w' = s q        high = 2^(bits - 1) - 1

(Krishnamoorthi, arXiv 1806.08342, section 2; with zero points, for activations: `affine_activations`.) The lowest
integer is not used. Rounding is to nearest, ties to even, so |w - w'| <= s/2 for every w inside the range.

Weights come as float32 [outer, channels, inner]; a few MB are computed at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..snr import CHUNK_VALUES

CLIP_RATIOS = (0.95, 0.9, 0.85, 0.8, 0.74, 0.68, 0.6, 0.5)
"""Fractions of the largest magnitude that are tried beside 1; finer steps change the error by under 0.05 dB."""


def largest_integer(bits: int) -> int:
    """Return the largest integer of 2 to 8 bits; the least one that is used is its negative.

    Raises:
        ValueError: other numbers of bits.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"{bits} bits: 2 to 8 are possible")
    return int(2 ** (bits - 1) - 1)


def scales_for(peak: np.ndarray, bits: int, dtype: np.dtype | type = np.float32) -> np.ndarray:
    """Return the scales, of type `dtype`, for channels with these largest magnitudes, float32 [channels].

    A scale is never 0 nor denormal, which runtimes flush to 0: a channel of zeros gets 1, a range too small the least
    normal number. It is rounded up to `dtype`, so that no value leaves the grid.

    Raises:
        ValueError: a magnitude is not finite, or needs a scale beyond `dtype`.
    """
    if not np.isfinite(peak).all():
        raise ValueError("NaN or infinities")
    exact = peak.astype(np.float64) / largest_integer(bits)
    with np.errstate(over="ignore"):
        scale = exact.astype(dtype)
    scale = np.where(scale < exact, np.nextafter(scale, np.asarray(np.inf, dtype)), scale).astype(dtype)
    if not np.isfinite(scale).all():
        raise ValueError(f"a range of {peak.max():g} needs a scale beyond {np.dtype(dtype).name}")
    return np.where(peak == 0, np.asarray(1, dtype), np.maximum(scale, np.finfo(dtype).tiny)).astype(dtype)


def round_to(grouped: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """Return the integers of float32 [outer, channels, inner], int8 of the same shape, for a scale of each channel."""
    out = np.empty(grouped.shape, np.int8)
    for piece in _pieces(grouped.shape):
        out[piece] = _rounded(grouped[piece], scale[piece[1], None], bits)
    return out


def squared_error(grouped: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """Return for each channel the sum of (w - w')^2, float64 [channels]."""
    total = np.zeros(grouped.shape[1])
    for piece in _pieces(grouped.shape):
        values, step = grouped[piece], scale[piece[1], None]
        work = _rounded(values, step, bits)
        work *= step
        work -= values
        np.square(work, out=work)
        total[piece[1]] += work.sum(axis=(0, 2), dtype=np.float64)
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
    """Return for each channel the scale with the least error, and that error; the first of equals wins.

    Args:
        scales: candidates, [channels] each.
        errors: the squared error of each, [candidates, channels].
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
    """Cut [outer, channels, inner] into pieces of about CHUNK_VALUES."""
    outer, channels, inner = shape
    step_inner = max(1, min(inner, CHUNK_VALUES))
    step_channels = max(1, min(channels, CHUNK_VALUES // step_inner))
    step_outer = max(1, CHUNK_VALUES // (step_inner * step_channels))
    for a in range(0, outer, step_outer):
        for b in range(0, channels, step_channels):
            for c in range(0, inner, step_inner):
                yield slice(a, a + step_outer), slice(b, b + step_channels), slice(c, c + step_inner)


def _rounded(values: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    high = largest_integer(bits)
    work: np.ndarray = np.divide(values, scale, dtype=np.float32)
    np.rint(work, out=work)
    np.clip(work, -high, high, out=work)
    return work
