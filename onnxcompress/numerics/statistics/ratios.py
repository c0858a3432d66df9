"""Ratios of sums over few samples, with intervals by resampling whole samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from .estimate import Estimate

RESAMPLES = 400
"""Draws of the bootstrap. Chosen by judgement; not measured."""
_TAIL = 0.05
"""Probability beyond either end of a 90% interval."""
_ALONE = 4.0
"""Factor to both sides where a single sample says nothing about the spread."""


def worst_ratio(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """Return the largest over the groups of sum(numerators) / sum(denominators), with its 90% interval.

    Samples are resampled (bootstrap), never positions within them, which are not independent.

    Args:
        numerators: float [samples, groups].
        denominators: float [samples, groups], sums that are positive for each group.
    """
    count = len(numerators)
    value = float((numerators.sum(0) / denominators.sum(0)).max())
    if count == 1:
        return Estimate(value, value / _ALONE, value * _ALONE)
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)
    floor = denominators.sum(0) * 1e-3
    found = ((weights @ numerators) / np.maximum(weights @ denominators, floor)).max(1)
    return resampled(value, found, count)


def resampled(value: float, draws: Sequence[float] | np.ndarray, count: int) -> Estimate:
    """Return a value with the 90% interval that resampling gives it.

    The interval is widened as Student's t is against the normal distribution, and for the divisor of the variance.

    Args:
        value: of the samples as they are.
        draws: float [draws], the same of resampled ones.
        count: number of samples, two at least.
    """
    widening = float(stdtrit(count - 1, 1 - _TAIL) / stdtrit(10**6, 1 - _TAIL)) * (count / (count - 1)) ** 0.5
    low, high = (float(end) for end in np.quantile(np.asarray(draws), [_TAIL, 1 - _TAIL]))
    return Estimate(value, value - max(0.0, value - low) * widening, value + max(0.0, high - value) * widening)


def mean_interval(values: np.ndarray) -> Estimate:
    """Return the mean of float [samples] with its 90% interval."""
    return worst_ratio(values[:, None], np.ones((len(values), 1)))
