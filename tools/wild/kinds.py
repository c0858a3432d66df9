"""What an output means, by simple rules or as the catalog says; written apart from the project's own decision table.

An output is one array a sample, with its batch axis. The names are those of `--output-kind`, and three that belong
together and make one table of detections: boxes, scores, classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_SUM_TOLERANCE = 1e-3
_COMMON_BLANK = 0.4
"""Share of the positions at which the blank of a text is the best class, at least."""
_TEXT_CLASSES = 11
"""Ten digits and a blank."""
_EMBEDDING_WIDTH = 32
_SIGNAL_LENGTH = 1000
"""Values of the shortest signal: an eighth of a second at 8 kHz. Texts have fewer letters. Chosen by judgement."""
_PEAK = 1.25
"""Largest entry of a row, in standard deviations from its mean, as a multiple of what Gaussian rows have: class scores
have more. Embeddings and regressions of four real models had at most 1.1."""


def plain(value: Any) -> np.ndarray:
    """Return an output as one array: maps of class to score as rows of scores, sequences one after another."""
    if isinstance(value, list):
        if value and isinstance(value[0], dict):
            return np.array([[row[key] for key in sorted(row)] for row in value], np.float64)
        parts = [np.asarray(each) for each in value]
        same = len({part.shape for part in parts}) == 1
        return np.stack(parts) if same else np.concatenate([part.ravel() for part in parts] or [np.zeros(0)])
    return np.asarray(value)


def class_axis(array: np.ndarray, kind: str) -> int:
    """Return the axis of the classes of an output with batch axis: channels of pictures, first or last, else the last.

    Channels are last where they sum to 1.
    """
    if kind != "position-scores" or array.ndim < 4 or _are_probabilities([array.reshape(-1, array.shape[-1])]):
        return -1
    return 1


def decide(values: Sequence[np.ndarray]) -> str:
    """Return the kind of an output from the original's values, one array a sample."""
    first = values[0]
    if first.dtype.kind not in "f":
        return "labels"
    if len({value.shape for value in values}) > 1 and all(_is_signal(value) for value in values):
        return "signal"
    rows = [value.reshape(-1, value.shape[-1]) for value in values if value.ndim and value.shape[-1] > 1 and value.size]
    if rows and _are_probabilities(rows):
        return _scores(first, rows)
    if first.ndim >= 4 and first.shape[1] > 1 and _are_probabilities([_channels(value) for value in values]):
        return "position-scores"
    if first.size == 1 and all(0 <= float(value.ravel()[0]) <= 1 for value in values):
        return "binary-score"
    if _is_sorted_table(values):
        return "detection-rows"
    if rows and first.ndim <= 3 and len({row.shape[1] for row in rows}) == 1:
        if rows[0].shape[1] >= 5 and _peak(np.concatenate(rows)) > _PEAK:
            return _scores(first, rows)
        if first.ndim == 2 and rows[0].shape[1] >= _EMBEDDING_WIDTH:
            return "embedding"
    if first.size > 1 and all(((value >= 0) & (value <= 1)).all() for value in values):
        return "mask"
    return "numbers"


def _is_signal(array: np.ndarray) -> bool:
    return array.shape[-1:] == (array.size,) and array.size >= _SIGNAL_LENGTH


def _scores(first: np.ndarray, rows: Sequence[np.ndarray]) -> str:
    if first.ndim < 3 or first.shape[-2] == 1:
        return "class-scores"
    best = np.concatenate([row.argmax(1) for row in rows])
    classes = rows[0].shape[1]
    common = max(float((best == blank).mean()) for blank in (0, classes - 1))
    return "text-scores" if classes >= _TEXT_CLASSES and common > _COMMON_BLANK else "position-scores"


def _channels(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 1, -1).reshape(-1, array.shape[1])


def _are_probabilities(rows: Sequence[np.ndarray]) -> bool:
    return all((row >= 0).all() and np.allclose(row.sum(1), 1, atol=_SUM_TOLERANCE) for row in rows)


def _is_sorted_table(values: Sequence[np.ndarray]) -> bool:
    """Whether each sample is a table of at least five rows in which a column falls."""
    tables = [value.reshape(-1, value.shape[-1]) for value in values if value.ndim in (2, 3)]
    if len(tables) < len(values) or not all(len(t) >= 5 and 5 <= t.shape[1] <= 200 for t in tables):
        return False
    return sorted_column(tables) is not None


def sorted_column(tables: Sequence[np.ndarray]) -> int | None:
    """Return the first column that never rises along the rows of any table and falls somewhere."""
    for column in range(min(t.shape[1] for t in tables)):
        steps = [np.diff(t[:, column].astype(np.float64)) for t in tables]
        if all((s <= 0).all() for s in steps) and any((s < 0).any() for s in steps):
            return column
    return None


def _peak(rows: np.ndarray) -> float:
    rows = rows[:: max(1, len(rows) // 2000)].astype(np.float64)
    if len(rows) > 1:
        rows = rows - rows.mean(0)
    noise = np.random.default_rng(0).standard_normal((500, rows.shape[1]))
    return _height(rows) / _height(noise)


def _height(rows: np.ndarray) -> float:
    return float(np.mean((rows.max(1) - rows.mean(1)) / (rows.std(1) + 1e-12)))
