"""Signal-to-noise ratios in decibels."""

from __future__ import annotations

import numpy as np

CHUNK_VALUES = 1 << 18
"""Values of one step: 1 MB of float32, which stays in the processor's cache. Chosen by judgement; not measured."""
_TINY = float(np.finfo(np.float32).tiny)


def energy(array: np.ndarray) -> float:
    """Return the sum of squares, accumulated in float64 over pieces of float32; squares of float16 would overflow."""
    flat = array.reshape(-1)
    wide = np.result_type(flat.dtype, np.float32)
    starts = range(0, flat.size, CHUNK_VALUES)
    return sum(float(np.square(flat[i : i + CHUNK_VALUES], dtype=wide).sum(dtype=np.float64)) for i in starts)


def error_energy(reference: np.ndarray, other: np.ndarray) -> float:
    """Return the sum of squared differences; where shapes differ, the energy of the reference: all is lost."""
    if reference.shape != other.shape:
        return energy(reference)
    return energy(np.subtract(other, reference, dtype=np.float64))


def db(signal: float, noise: float) -> float:
    """Return a ratio of energies in decibels: infinity without noise."""
    if noise <= 0:
        return float("inf")
    return float(10 * np.log10(max(signal, _TINY) / noise))


def sqnr_db(reference: np.ndarray, approximation: np.ndarray) -> float:
    """Return the signal-to-quantization-noise ratio of an array in decibels: infinity where both are equal."""
    wide = reference.astype(np.float64)
    return db(float(np.square(wide).sum()), float(np.square(wide - approximation).sum()))
