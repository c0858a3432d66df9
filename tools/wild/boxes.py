"""Tables of detections: which columns are boxes, scores and classes, and how many boxes two tables share."""

from __future__ import annotations

import numpy as np

from wild.kinds import sorted_column

THRESHOLD = 0.25
"""Least score of a detection that counts, as detectors' own demonstrations have it."""
_OVERLAP = 0.5


def f1_counts(one: np.ndarray, other: np.ndarray) -> tuple[int, int, int]:
    """Return how many detections of two tables match, and how many each has.

    Args:
        one: the original's rows, [..., rows, columns] with a box, a score and maybe a class in each.
        other: the result's.
    """
    tables = [each.reshape(-1, each.shape[-1]).astype(np.float64) for each in (one, other)]
    boxes, score, label = columns(tables[0])
    kept = []
    for table in tables:
        table = table[np.isfinite(table).all(1)]
        kept.append(table[table[:, score] >= THRESHOLD])
    first, second = kept
    if not len(first) or not len(second):
        return 0, len(first), len(second)
    overlap = _overlaps(first[:, boxes], second[:, boxes])
    if label is not None:
        overlap = np.where(first[:, None, label].round() == second[None, :, label].round(), overlap, 0.0)
    return len(_matches(overlap)), len(first), len(second)


def score_sums(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return the sums of the scores of matched detections and of all, of two tables [n, 6] (corners, score, class)."""
    overlap = _overlaps(one[:, :4], other[:, :4]) * (one[:, None, 5] == other[None, :, 5])
    matched = sum(float(one[i, 4] + other[j, 4]) for i, j in _matches(overlap))
    return matched, float(one[:, 4].sum() + other[:, 4].sum())


def _matches(overlap: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs of boxes by their overlap, largest first, each box in one pair; `overlap` is used up."""
    found = []
    while overlap.size and overlap.max() >= _OVERLAP:
        i, j = (int(each) for each in np.unravel_index(overlap.argmax(), overlap.shape))
        overlap[i, :], overlap[:, j] = 0.0, 0.0
        found.append((i, j))
    return found


def columns(table: np.ndarray) -> tuple[list[int], int, int | None]:
    """Return the columns of boxes, of the score and of the class of a table.

    The score falls along the rows, or else is the first column of fractions behind the boxes; the class is a column
    of integers; boxes are the first four of the others.
    """
    count = table.shape[1]
    score = sorted_column([table]) if len(table) > 1 else None
    fractions = [c for c in range(count) if ((table[:, c] >= 0) & (table[:, c] <= 1)).all()]
    if score is None or score not in fractions:
        score = next((c for c in fractions if c >= 4), count - 1)
    whole = [c for c in range(count) if c != score and (table[:, c] == table[:, c].round()).all()]
    labels = [c for c in whole if c == count - 1 or c == score + 1 or c == 0]
    label = labels[-1] if labels and count > 5 else None
    boxes = [c for c in range(count) if c not in (score, label)][-4 if label == 0 else 0 :][:4]
    return boxes, score, label


def joined(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """Return one table of detections from outputs of their own, sorted by score, float64 [rows, 5 or 6]."""
    parts = [boxes.reshape(-1, 4), scores.reshape(-1, 1), *([] if classes is None else [classes.reshape(-1, 1)])]
    rows = min(map(len, parts))
    table = np.concatenate([part[:rows].astype(np.float64) for part in parts], 1)
    return table[np.argsort(-table[:, 4], kind="stable")]


def _overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the intersection over the union of all pairs of boxes, by corners or by centre and size."""
    if (one[:, 2:] < one[:, :2]).any():
        one, other = (np.concatenate([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], 1) for b in (one, other))
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), -1)
    areas = [np.prod(np.maximum(b[:, 2:] - b[:, :2], 0), -1) for b in (one, other)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12)
