"""What a candidate is expected to lose, for searches that choose among many on few samples.

`Trial.drop` is what the report says of the samples as they are. A search that takes the best of many by such a figure
takes the luckiest, so it looks at a steadier one: errors moved between alike rows where there are few of them (see
`numerics.transplants`), and, where one class has most rows (blanks, silence), the loss in all others by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..numerics.statistics import drop_estimate
from .estimated_drop import OutputKinds, chances

_FEW_ROWS = 1024
"""Rows from which on they speak for themselves."""
_MOST_CLASSES = 64
"""Classes of a row, from the best one on, between which an error can decide."""
_COMMON = 0.5
"""Part of the rows from which on their best class counts as common."""
_SMALL = 1e-12


class SteadyDrop:
    """Gathers pairs of outputs of one model and a candidate.

    Args:
        kinds: what the outputs are.
        skip: outputs that are not judged.
    """

    def __init__(self, kinds: OutputKinds, *, skip: Sequence[str] = ()) -> None:
        self._kinds = kinds
        self._skip = frozenset(skip)
        self._rows: dict[str, _ScoreRows] = {}

    def add(self, expected: Mapping[str, Any], got: Mapping[str, Any]) -> None:
        """Take the outputs for one feed."""
        for name, value in expected.items():
            if name not in self._skip:
                self._rows.setdefault(name, _ScoreRows(is_logits=name in self._kinds.logits)).add(value, got[name])

    @property
    def is_wanting(self) -> bool:
        """Say whether rows are so few that the original's scores on further samples would help."""
        return any(rows.is_few for rows in self._rows.values())

    def drop(self, others: Sequence[Mapping[str, Any]] = ()) -> float | None:
        """Return the expected loss of the output that loses most, None where none scores classes.

        Args:
            others: outputs of the original on samples for which the candidate was not run.
        """
        found = [d for name, rows in self._rows.items() if (d := rows.drop([o[name] for o in others])) is not None]
        return max(found, default=None)


class _ScoreRows:
    """The rows of one output."""

    def __init__(self, *, is_logits: bool) -> None:
        self._is_logits = is_logits
        self._scores: list[np.ndarray] = []
        self._errors: list[np.ndarray] = []
        self._losses: list[np.ndarray] = []
        self._best: list[np.ndarray] = []
        self._count = 0
        self._are_scores = True

    @property
    def is_few(self) -> bool:
        """Whether errors are to be moved between rows."""
        return self._are_scores and 0 < self._count < _FEW_ROWS

    def add(self, expected: Any, got: Any) -> None:
        """Take the outputs for one feed."""
        is_array = isinstance(expected, np.ndarray) and expected.dtype.kind == "f"
        p = chances(expected, is_logits=self._is_logits) if self._are_scores and is_array else None
        if p is None:
            self._are_scores = False
            return
        q = chances(np.nan_to_num(got), is_logits=self._is_logits)
        if q is None or q.shape != p.shape:
            q = np.full_like(p, 1 / p.shape[1])
        rows, best, new = np.arange(len(p)), p.argmax(axis=1), q.argmax(axis=1)
        self._losses.append(p[rows, best] - p[rows, new])
        self._best.append(best)
        self._count += len(p)
        if self._count < _FEW_ROWS:
            scores, errors = drop_estimate.ranked(_logarithms(p), _logarithms(q), _MOST_CLASSES)
            self._scores.append(scores)
            self._errors.append(errors)

    def drop(self, others: Sequence[Any]) -> float | None:
        """Return the mean loss of a row."""
        if not self._are_scores or not self._count:
            return None
        losses, best = np.concatenate(self._losses), np.concatenate(self._best)
        if self.is_few:
            known, errors = np.concatenate(self._scores), np.concatenate(self._errors)
            more = [chances(each, is_logits=self._is_logits) for each in others]
            extra = [_logarithms(p) for p in more if p is not None]
            best = np.concatenate([best, *(each.argmax(axis=1) for each in extra)])
            scores = np.concatenate([known, *(-np.sort(-each, axis=1)[:, :_MOST_CLASSES] for each in extra)])
            losses = drop_estimate.expected_drop(scores, np.exp(scores), known, errors)
        counts = np.bincount(best)
        rare = losses[best != counts.argmax()]
        has_common = counts.max() > _COMMON * len(best) and len(rare) > 0
        return float(max(losses.mean(), rare.mean() if has_common else 0.0))


def _logarithms(p: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(np.maximum(p, _SMALL)))
