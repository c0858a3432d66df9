"""Greedy texts of connectionist temporal classification, and how far two of them are apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def collapse(best: np.ndarray, blank: int) -> list[int]:
    """Return a greedy text: repeated classes once, without blanks."""
    kept = [int(c) for index, c in enumerate(best) if index == 0 or c != best[index - 1]]
    return [c for c in kept if c != blank]


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the least number of insertions, deletions and replacements."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]
