"""Boxes by their corners: how far they overlap, and which of those that overlap remain."""

from __future__ import annotations

import numpy as np

_TINY = 1e-30
"""Least area of a union, against division by zero."""


def overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the intersection over the union of all pairs, float64 [n, m].

    Args:
        one: float [n, 4], each box by its low corner and its high one.
        other: float [m, 4], likewise.
    """
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0.0), -1)
    areas = [np.prod(np.maximum(each[:, 2:] - each[:, :2], 0.0), -1) for each in (one, other)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, _TINY), np.float64)


def suppressed(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, *, overlap: float, most: int) -> np.ndarray:
    """Return the indices of the boxes that remain, highest score first (greedy non-maximum suppression).

    A box is removed where one of its own class with a higher score overlaps it by more than `overlap`.

    Args:
        boxes: float [n, 4], corners.
        scores: float [n].
        labels: classes, int [n].
        overlap: intersection over union.
        most: boxes of the highest scores that are looked at.
    """
    order = np.argsort(-scores, kind="stable")[:most]
    beats = (overlaps(boxes[order], boxes[order]) > overlap) & (labels[order][:, None] == labels[order][None])
    alive = np.ones(len(order), bool)
    for index in range(len(order)):
        if alive[index]:
            alive[index + 1 :] &= ~beats[index, index + 1 :]
    return np.asarray(order[alive])
