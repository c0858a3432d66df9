"""Distances between sets of rows in any order, and between sequences of symbols."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MOST_ROWS = 400
"""Rows of the largest weight that are matched; the time grows with the square."""
_FAR = 2.0
"""Squared distance, in standard deviations, from which on two rows are none of a pair."""


def box_scale(columns: int) -> float:
    """Return the part of its width by which a box's edges are divided: moved by a third (IoU .5), it is no pair."""
    return float(1 / (3 * np.sqrt(_FAR * columns / 2)))


def category_scale(columns: int) -> float:
    """Return the scale by which two rows of so many columns are no pair where one column differs by 1: by category."""
    return float(1 / np.sqrt(2 * _FAR * columns))  # twice as far, against rounding


def matching_cost(rows: np.ndarray, others: np.ndarray, weights: np.ndarray, scale: np.ndarray) -> tuple[float, float]:
    """Return the weighted sum of squared distances between rows and their partners among `others`, and the weights'.

    Partners are chosen greedily, rows of the largest weight first, each time the nearest that is left. A row without
    a partner, or with one further away than 2, costs 2; costs are halved, so that a set that shares nothing costs as
    much as it weighs.

    Args:
        rows: float [n, columns].
        others: float [m, columns].
        weights: float [n], not negative.
        scale: by what differences are divided, float [columns], or [n, columns] where rows have scales of their own.
    """
    own = np.broadcast_to(scale, rows.shape)
    order = np.argsort(-weights, kind="stable")[:_MOST_ROWS]
    order = order[weights[order] > 0]
    total = 0.0
    free = np.ones(len(others), bool)
    for index in order:
        cost = _FAR
        if free.any():
            distances = np.where(free, np.square((others - rows[index]) / own[index]).mean(1), np.inf)
            nearest = int(distances.argmin())
            if distances[nearest] < _FAR:
                cost, free[nearest] = float(distances[nearest]), False
        total += weights[index] * cost / _FAR
    return total, float(weights[order].sum())


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
