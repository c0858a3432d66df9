"""Correlations between columns, and the assignment of columns to each other."""

from __future__ import annotations

import numpy as np
import scipy.optimize


def correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of each column with each: float64 [columns of one, columns of the other].

    A column that does not vary, or has numbers that are not finite, correlates with nothing.

    Args:
        one: float [n, columns].
        other: float [n, columns].
    """
    left, right = _standard(one), _standard(other)
    found: np.ndarray = left.T @ right
    return found


def assigned(table: np.ndarray) -> np.ndarray:
    """Return a column for each row, all distinct, with the largest sum of entries: int [rows].

    Args:
        table: float [rows, columns], with at least as many columns.
    """
    _, columns = scipy.optimize.linear_sum_assignment(table, maximize=True)
    return np.asarray(columns, np.int64)


def _standard(rows: np.ndarray) -> np.ndarray:
    """Return columns of mean 0 and length 1; 0 where a column does not vary or is not finite."""
    numbers = np.where(np.isfinite(rows).all(axis=0), rows, 0).astype(np.float64)
    centred = numbers - numbers.mean(axis=0)
    length = np.sqrt(np.square(centred).sum(axis=0))
    scale = np.abs(numbers).max(axis=0, initial=0.0)
    is_flat = length <= 1e-6 * np.maximum(scale, np.finfo(np.float64).tiny)
    return np.where(is_flat, 0.0, centred / np.where(is_flat, 1.0, length))
