"""One-dimensional k-means: optimal scalar quantization of numbers of any distribution.

Lloyd's algorithm (Lloyd 1982, "Least squares quantization in PCM", method I) on sorted numbers, where one iteration
takes a binary search for each value. It starts from the density of values that is best for many of them, the cube root
of the numbers' own (Panter and Dite 1951, eq. 22).
"""

from __future__ import annotations

import numpy as np

_ITERATIONS = 200
"""Most iterations of Lloyd's algorithm. Chosen by judgement; not measured."""
_SETTLED = 1e-5
"""Part of the error by which an iteration must lower it to go on. Chosen by judgement; not measured."""
_BINS = 2048
"""Bins of the density from which the algorithm starts. Chosen by judgement; not measured."""


def codebook(values: np.ndarray, count: int) -> np.ndarray:
    """Return the values that represent an array with the least squared error that Lloyd's algorithm finds.

    Where the array has zeros, one of the values is zero: pruned weights stay zero.

    Args:
        values: finite floats of any shape.
        count: most values.

    Returns:
        float32, sorted, at most `count` of them, at least one.
    """
    ordered = np.sort(values, axis=None).astype(np.float64)
    distinct = np.unique(ordered)
    if len(distinct) <= count:
        return distinct.astype(np.float32) if len(distinct) else np.zeros(1, np.float32)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    squares = float(np.square(ordered).sum())
    centers = _start(ordered, count)
    last = np.inf
    for _ in range(_ITERATIONS):
        edges = np.searchsorted(ordered, (centers[1:] + centers[:-1]) / 2)
        bounds = np.concatenate([[0], edges, [len(ordered)]])
        counts, totals = np.diff(bounds), np.diff(sums[bounds])
        centers = np.where(counts > 0, totals / np.maximum(counts, 1), centers)
        error = squares - float(np.sum(np.square(totals) / np.maximum(counts, 1)))
        if error >= last * (1 - _SETTLED):
            break
        last = error
    if ordered[np.searchsorted(ordered, 0.0) % len(ordered)] == 0:
        centers[np.argmin(np.abs(centers))] = 0.0
    return np.unique(centers.astype(np.float32))


def nearest(values: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return the index of the nearest center for each value: uint8 of the values' shape.

    Args:
        values: floats.
        centers: sorted, at most 256.
    """
    middles = (centers[1:] + centers[:-1]) / 2
    return np.searchsorted(middles, values).astype(np.uint8)


def _start(ordered: np.ndarray, count: int) -> np.ndarray:
    """Return values whose density is the cube root of that of the numbers."""
    counts, edges = np.histogram(ordered, bins=_BINS)
    share = np.cumsum(np.cbrt(counts))
    share /= share[-1]
    wanted = (np.arange(count) + 0.5) / count
    return np.asarray(np.interp(wanted, np.concatenate([[0.0], share]), edges))
