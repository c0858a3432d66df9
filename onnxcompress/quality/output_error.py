"""Deviation of an output's values from the original's, summed up over feeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import ModelError
from . import metrics
from .result import OutputDifference

_YES = 0.5
"""A sigmoid that stays below this on all samples never says yes."""


class Difference:
    """Running sums for one output.

    Args:
        name: the output's.
        is_sigmoid: a sigmoid makes it, so that each element is the chance of a yes.
    """

    def __init__(self, name: str, *, is_sigmoid: bool = False) -> None:
        self._name = name
        self._is_sigmoid = is_sigmoid
        self._moments = np.zeros(3)
        self._error = self._max_abs = 0.0
        self._largest = -math.inf
        self._not_finite = [0, 0]

    def add(self, expected: np.ndarray, got: Any) -> None:
        """Count one pair of arrays; elements that are not finite in both are counted and left out.

        Raises:
            ModelError: the second is no array of the same shape.
        """
        if not isinstance(got, np.ndarray) or got.shape != expected.shape:
            shape = list(got.shape) if isinstance(got, np.ndarray) else type(got).__name__
            raise ModelError(f"output {self._name!r} is {list(expected.shape)} of one and {shape} of the other model")
        finite = np.isfinite(expected), np.isfinite(got)
        self._not_finite = [n + int(f.size - f.sum()) for n, f in zip(self._not_finite, finite, strict=True)]
        fine = finite[0] & finite[1]
        x, y = expected[fine].astype(np.float64), got[fine].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is reported as unknown
            self._moments += _moments(x, y)
            difference = np.subtract(x, y, out=y)  # in place: outputs may take much memory
            self._error += float(difference @ difference)
            self._max_abs = max(self._max_abs, float(np.abs(difference, out=difference).max(initial=0.0)))
        if self._is_sigmoid:
            self._largest = max(self._largest, float(x.max(initial=-math.inf)))

    def result(self) -> OutputDifference:
        """Return the figures: None where they are not defined or infinite."""
        square, error = float(self._moments[1]), self._error
        sqnr_db = 10 * math.log10(square / error) if error and square and math.isfinite(error) else None
        found = OutputDifference(
            max_abs=_finite(self._max_abs),
            cosine=metrics.cosine_of_moments(*map(float, self._moments)) if np.isfinite(self._moments).all() else None,
            sqnr_db=_finite(sqnr_db),
            not_finite=(self._not_finite[0], self._not_finite[1]),
        )
        if self._is_sigmoid and self._largest < _YES:
            return found.model_copy(update={"largest": _finite(self._largest)})
        return found


def _moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return sum(x*y), sum(x*x) and sum(y*y) of two float64 vectors."""
    return np.array([x @ y, x @ x, y @ y])


def _finite(value: float | None) -> float | None:
    """Return a number, None for one that overflowed."""
    return None if value is None or not math.isfinite(value) else float(value)
