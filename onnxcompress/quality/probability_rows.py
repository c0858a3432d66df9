"""Rows of numbers that are probabilities of classes, or their logarithms."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

_SUM_TOLERANCE = 1e-3
"""Deviation of a row's sum from 1, and of its log-sum-exp from 0, up to which it holds probabilities."""


def are_probabilities(rows: np.ndarray) -> bool:
    """Return whether each row of float [rows, classes] holds numbers from 0 on that sum to 1."""
    return bool((rows >= -_SUM_TOLERANCE).all() and (np.abs(rows.sum(-1) - 1) <= _SUM_TOLERANCE).all())


def are_log_probabilities(rows: np.ndarray) -> bool:
    """Return whether each row of float [rows, classes] holds logarithms of probabilities that sum to 1."""
    return bool((rows <= _SUM_TOLERANCE).all() and (np.abs(logsumexp(rows, axis=-1)) <= _SUM_TOLERANCE).all())


def are_fractions(values: np.ndarray) -> bool:
    """Return whether all numbers lie from 0 to 1."""
    return bool((values >= -_SUM_TOLERANCE).all() and (values <= 1 + _SUM_TOLERANCE).all())
