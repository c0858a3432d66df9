"""Adam (Kingma & Ba 2015, algorithm 1): gradient descent with a step size of its own for every number."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

_FIRST, _SECOND = 0.9, 0.999
"""Decay of the means of gradients and of their squares, as in the paper."""
_EPSILON = 1e-8
"""Added to the root of the mean square, as in the paper."""


class Adam:
    """Moves arrays against their gradients.

    Args:
        values: name -> float32 array; replaced in `values` at every step.
    """

    def __init__(self, values: Mapping[str, np.ndarray]) -> None:
        self.values = dict(values)
        self._means = {name: np.zeros_like(array) for name, array in values.items()}
        self._squares = {name: np.zeros_like(array) for name, array in values.items()}
        self._steps = 0

    def step(self, gradients: Mapping[str, np.ndarray], rate: float) -> None:
        """Move all values once.

        Args:
            gradients: name -> array of the value's shape, for all values.
            rate: most that a number moves, about.
        """
        self._steps += 1
        first, second = 1 - _FIRST**self._steps, 1 - _SECOND**self._steps
        for name, gradient in gradients.items():
            mean, square = self._means[name], self._squares[name]
            mean += (1 - _FIRST) * (gradient - mean)
            square += (1 - _SECOND) * (gradient * gradient - square)
            moved = self.values[name] - rate / first * mean / (np.sqrt(square / second) + _EPSILON)
            self.values[name] = moved.astype(np.float32)


def falling(step: int, steps: int) -> float:
    """Return the part of the learning rate at a step: half a cosine from 1 to 0, after a short rise."""
    rise = max(1, steps // 20)
    return min(1.0, (step + 1) / rise) * 0.5 * (1 + math.cos(math.pi * step / steps))
