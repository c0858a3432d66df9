"""Mean average precision of detections at an overlap of one half."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...numerics.statistics.boxes import overlaps
from .metric import TaskMetric, mean

_OVERLAP = 0.5
"""Least intersection over union of a detection with an object that it finds: the 50 of mAP50."""

Matched = dict[int, tuple[np.ndarray, int]]
"""Class -> (float [detections, 2]: score, and 1 where an object was found; number of objects)."""


def _rows(values: Any, width: int, what: str) -> np.ndarray:
    found = np.asarray(values, np.float64)
    if found.ndim == 3 and found.shape[0] == 1:
        found = found[0]
    if found.size == 0:
        return np.zeros((0, width))
    if found.ndim != 2 or found.shape[1] != width:
        raise ValueError(f"{what} have to be [n, {width}], not {list(found.shape)}")
    return found


def _matched(prediction: Any, reference: Any) -> Matched:
    """Match the detections of one image with its objects, the surest first, each object once.

    Args:
        prediction: [n, 6]: x1, y1, x2, y2, score, class.
        reference: [m, 5]: x1, y1, x2, y2, class; classes below zero are padding.
    """
    found, objects = _rows(prediction, 6, "detections"), _rows(reference, 5, "objects")
    objects = objects[objects[:, 4] >= 0]
    matched: Matched = {}
    for label in sorted({*found[:, 5].astype(int).tolist(), *objects[:, 4].astype(int).tolist()}):
        wanted = objects[objects[:, 4].astype(int) == label]
        mine = found[found[:, 5].astype(int) == label]
        mine = mine[np.argsort(-mine[:, 4], kind="stable")]
        is_free = np.ones(len(wanted), bool)
        hits = []
        for row, with_each in zip(mine, overlaps(mine[:, :4], wanted[:, :4]), strict=True):
            overlap = np.where(is_free, with_each, -1.0)
            best = int(np.argmax(overlap)) if overlap.size else -1
            is_hit = best >= 0 and overlap[best] >= _OVERLAP
            if is_hit:
                is_free[best] = False
            hits.append([row[4], float(is_hit)])
        matched[label] = np.array(hits, np.float64).reshape(-1, 2), len(wanted)
    return matched


def _average_precision(rows: np.ndarray, objects: int) -> float:
    """Return the area under the envelope of precision over recall."""
    rows = rows[np.argsort(-rows[:, 0], kind="stable")]
    right = np.cumsum(rows[:, 1])
    precision = right / np.arange(1, len(rows) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(envelope * rows[:, 1]) / objects)


def _map50(images: Sequence[Matched]) -> float:
    """Return the mean over the classes that have objects."""
    precisions = []
    for label in sorted({name for image in images for name in image}):
        parts = [image[label] for image in images if label in image]
        objects = sum(count for _, count in parts)
        if objects:
            precisions.append(_average_precision(np.concatenate([rows for rows, _ in parts]), objects))
    return mean(precisions) if precisions else math.nan


MAP50 = TaskMetric(name="map50", statistic=_matched, score=_map50)
"""Mean over the classes of the average precision at an overlap of one half, all points of the curve."""
