"""Clipping of weights: W' = max(min(W, alpha), -alpha)."""

from __future__ import annotations

import numpy as np

_CANDIDATES = 100
"""Clips that are tried for the least squared error. Chosen by judgement; not measured."""
_STEP = 0.01
"""Step between them, as a part of the largest weight. Chosen by judgement; not measured."""


def percentile(weights: np.ndarray, percent: float) -> np.ndarray:
    """Return the percentile of the absolute values of each row as alpha, float64 [rows].

    Args:
        weights: [rows, n].
        percent: the percentile, 0 to 100.
    """
    return np.asarray(np.percentile(np.abs(weights.astype(np.float64)), percent, axis=1))


def least_error(weights: np.ndarray, bits: int) -> np.ndarray:
    """Return alpha for each row, float64 [rows], with the least squared error after symmetric rounding to `bits`.

    The error is that of clipping and of rounding together, as in OCTAV (Sakr et al. 2022, eq. 3), found by trying
    since the optimum is flat; a row of zeros has alpha 0.

    Args:
        weights: [rows, n].
        bits: bits of the integers, 2 or more: 2^(bits - 1) - 1 steps on either side.
    """
    wide = weights.astype(np.float64)
    largest = np.abs(wide).max(axis=1, initial=0.0)
    best, least = largest.copy(), np.full(len(wide), np.inf)
    steps = 2 ** (bits - 1) - 1
    for number in range(_CANDIDATES):
        alpha = largest * (1 - _STEP * number)
        scale = np.where(alpha > 0, alpha / steps, 1.0)[:, None]
        rounded = np.clip(np.rint(wide / scale), -steps, steps) * scale
        error = np.square(wide - rounded).sum(axis=1)
        better = error < least
        best, least = np.where(better, alpha, best), np.where(better, error, least)
    return np.asarray(best)
