"""Outputs that are columns of one table of rows: boxes, scores and classes of the same detections.

    boxes [n, 4]   scores [n]   classes [n]   ->   rows [n, 6]          count []: the number of rows

Compared one by one, two detections that change places would be errors of all three; so they are joined and matched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .output_kinds import sorted_column

_LEAST_ROWS = 5
"""Rows from which on a falling column is no chance: five fall by chance in 1 of 120. Chosen by judgement."""


@dataclass(frozen=True)
class RowTable:
    """Outputs that belong together.

    Args:
        columns: names of the outputs that are joined.
        counts: names of the outputs that count rows.
        why: what showed it.
    """

    columns: tuple[str, ...]
    counts: tuple[str, ...]
    why: str


def find(values: Mapping[str, Sequence[object]], inputs: Sequence[Mapping[str, np.ndarray]]) -> RowTable | None:
    """Return the outputs that are columns of one table, None where there is none.

    They have one length in each sample, and either the data decide that length, or one of them is a column of numbers
    that never rises (scores that the rows are sorted by). One of them has several columns of floats.

    Args:
        values: output -> what it is for each sample.
        inputs: of each sample.
    """
    arrays = {
        name: [np.asarray(each) for each in found]
        for name, found in values.items()
        if all(isinstance(each, np.ndarray) and each.dtype.kind in "fiub" for each in found)
    }
    rows = {name: found for name, found in arrays.items() if _is_rows(found)}
    boxes = [name for name, found in rows.items() if found[0].ndim == 2 and found[0].dtype.kind == "f"]
    for box in boxes:
        lengths = [len(each) for each in rows[box]]
        columns = tuple(name for name, found in rows.items() if [len(each) for each in found] == lengths)
        if len(columns) < 2:
            continue
        shapes = {tuple(array.shape for array in each.values()) for each in inputs}
        vary = len(set(lengths)) > 1 and len(shapes) == 1 and len(inputs) == len(lengths)
        is_sorted = any(_falls(rows[name]) for name in columns)
        if not vary and not is_sorted:
            continue
        counts = tuple(name for name, found in arrays.items() if name not in columns and _counts(found, lengths))
        why = "rows that the data number" if vary else "rows sorted by an output that never rises"
        return RowTable(columns, counts, f"{why}: {', '.join(columns)} together")
    return None


def joined(columns: Sequence[object]) -> object:
    """Return the table of one sample, float64 [rows, columns]; without rows where its columns have several lengths."""
    tables = [np.asarray(each, np.float64) for each in columns]
    tables = [each.reshape(len(each), -1) if each.ndim else each.reshape(1, 1) for each in tables]
    width = sum(each.shape[1] for each in tables)
    if len({len(each) for each in tables}) > 1:
        return np.zeros((0, width))
    return np.concatenate(tables, axis=1)


def _is_rows(arrays: Sequence[np.ndarray]) -> bool:
    ranks = {array.ndim for array in arrays}
    return len(ranks) == 1 and ranks <= {1, 2} and len({array.shape[1:] for array in arrays}) == 1


def _falls(arrays: Sequence[np.ndarray]) -> bool:
    if arrays[0].ndim != 1 or arrays[0].dtype.kind != "f" or max(map(len, arrays)) < _LEAST_ROWS:
        return False
    return sorted_column([array[:, None] for array in arrays]) is not None


def _counts(arrays: Sequence[np.ndarray], lengths: Sequence[int]) -> bool:
    """Return whether an output is a whole number for each sample, at most that of its rows."""
    if any(array.size != 1 or array.dtype.kind not in "iu" for array in arrays):
        return False
    numbers = [int(array.reshape(-1)[0]) for array in arrays]
    return all(0 <= number <= length for number, length in zip(numbers, lengths, strict=True))
