"""Low-variance estimate of the accuracy lost by errors in class scores.

On 64 samples a classifier that loses one hit in a hundred shows none, one or two. But every sample shows an error of
the scores, and an error changes the class only where the first two are close. So errors are exchanged between samples:
each row of scores gets in turn the errors of the rows with the nearest margins, class by class in the order of their
scores.

    drop = mean over rows i and their k nearest rows j of  p_i[0] - p_i[argmax(s_i + e_j)]
"""

from __future__ import annotations

import numpy as np

_NEAREST = 16
"""Rows whose errors each row gets. Chosen by judgement; not measured."""
_SOFT = 0.1
"""Added to margins before their logarithm: margins far below it count as equal. Chosen by judgement; not measured."""


def ranked(scores: np.ndarray, changed: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores in falling order and the errors in the same order of classes.

    Args:
        scores: logarithms of probabilities, up to a constant of each row, float [n, classes].
        changed: the same of another model.
        most: classes that are returned of each row, those with the highest scores.

    Returns:
        float64 [n, most] each; the errors are without their mean over all classes of a row.
    """
    error = changed.astype(np.float64) - scores
    error -= error.mean(axis=1, keepdims=True)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :most]
    return np.take_along_axis(scores.astype(np.float64), order, 1), np.take_along_axis(error, order, 1)


def expected_drop(
    scores: np.ndarray, chances: np.ndarray, known: np.ndarray, errors: np.ndarray, *, nearest: int = _NEAREST
) -> np.ndarray:
    """Return the mean loss of each row under the errors of rows with similar margins.

    Args:
        scores: rows to estimate the loss of, in falling order, float [n, k].
        chances: their probabilities, float [n, k].
        known: scores of the rows whose errors are known, in falling order, float [m, k].
        errors: their errors, float [m, k].
        nearest: errors that each row gets, at most.

    Returns:
        float64 [n]: probability of the best class minus that of the class that becomes the best.
    """
    place, places = (np.log(np.maximum(s[:, 0] - s[:, 1], 0.0) + _SOFT) for s in (scores, known))
    take = min(nearest, len(known))
    found = np.empty(len(scores))
    for i in range(len(scores)):
        near = np.argsort(np.abs(places - place[i]), kind="stable")[:take]
        winners = (scores[i] + errors[near]).argmax(axis=1)
        found[i] = float(np.mean(chances[i, 0] - chances[i, winners]))
    return found
