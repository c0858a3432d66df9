"""Rounding errors of 16-bit floats.

IEEE 754-2019, 3.6: binary16 has 10 bits of mantissa, normal numbers from 6.1e-5 and a largest one of 65504; numbers
below are spaced 6e-8 apart and end at 0. bfloat16 has 7 bits and the exponents of float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FLOAT16_MAX = 65504.0
"""The largest finite float16."""
NEGLIGIBLE = 1e-8
"""Noise of a row, as a part of the mean row's signal, that is ignored however large it is in its own row. Chosen by
judgement; not measured."""


def narrowed(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Return floats rounded to a type of 16 bits; numbers that are too large become infinite."""
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def row_losses(rows: np.ndarray, dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return signal and noise of each row when rounded to `dtype`.

    Args:
        rows: finite float32 [rows, n].
        dtype: float16 or bfloat16.

    Returns:
        sums of squares, of the values and of the differences: float64 [rows] each; the latter may be infinite.
    """
    noise = narrowed(rows, dtype).astype(np.float32)
    with np.errstate(invalid="ignore"):
        noise -= rows
    return np.square(rows, dtype=np.float64).sum(axis=1), np.square(noise, dtype=np.float64).sum(axis=1)


def worst_db(signal: np.ndarray, noise: np.ndarray) -> float:
    """Return the least signal-to-noise ratio of rows whose noise counts, in decibels; infinite where none does.

    Args:
        signal: sum of squares of each row, float64 [rows].
        noise: that of its differences, float64 [rows].
    """
    counts = noise > NEGLIGIBLE * signal.mean()
    if not counts.any():
        return float("inf")
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(signal[counts] / noise[counts]).min())
