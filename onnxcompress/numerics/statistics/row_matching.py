"""Distances between sets of rows in any order, and between sequences of symbols."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MOST_ROWS = 400
"""Rows of the largest weight that are matched; the time grows with the square."""
_FAR = 2.0
"""Squared distance, in standard deviations, from which on two rows are none of a pair."""


def unmatched_share(rows: np.ndarray, others: np.ndarray, weights: np.ndarray, scale: np.ndarray) -> float:
    """Return half of the weighted mean squared distance between rows and their partners among `others`.

    Partners are chosen greedily, rows of the largest weight first, each time the nearest that is left. A row without
    a partner, or with one further away than 2, counts as 2, so that a set that shares nothing gives 1.

    Args:
        rows: float [n, columns].
        others: float [m, columns].
        weights: float [n], not negative.
        scale: the standard deviation of each column, float [columns], positive.
    """
    order = np.argsort(-weights, kind="stable")[:_MOST_ROWS]
    if not len(order) or not weights[order].sum() > 0:
        return 0.0 if len(rows) == len(others) else 1.0
    total = 0.0
    free = np.ones(len(others), bool)
    scaled, candidates = rows / scale, others / scale
    for index in order:
        cost = _FAR
        if free.any():
            distances = np.where(free, np.square(candidates - scaled[index]).mean(1), np.inf)
            nearest = int(distances.argmin())
            if distances[nearest] < _FAR:
                cost, free[nearest] = float(distances[nearest]), False
        total += weights[index] * cost
    return total / float(weights[order].sum()) / _FAR


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the fewest insertions, deletions and replacements that turn one sequence into the other (Levenshtein)."""
    row = np.arange(len(other) + 1)
    symbols = np.asarray(other)
    for index, symbol in enumerate(one):
        replaced = row[:-1] + (symbols != symbol)
        best = np.minimum(replaced, row[1:] + 1)
        row = np.concatenate([[index + 1], best])
        row = np.minimum.accumulate(row - np.arange(len(row))) + np.arange(len(row))
    return int(row[-1])
