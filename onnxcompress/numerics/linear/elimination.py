"""Cost and order of removing inputs of a linear layer whose other inputs compensate.

The layer computes W' x, with W [channels, outputs] and x of covariance C [channels, channels]. Without the channels S
the best weights of the others, K, are W_K + C_KK^-1 C_KS W_S, and the remaining error is

    tr W_S' ([C^-1]_SS)^-1 W_S

(Optimal Brain Surgeon, Hassibi & Stork 1992, eq. 5, for all outputs at once and for blocks as in Frantar & Alistarh
2022, eq. 5). Channels are removed one block after the other; after each, C^-1 becomes that of the remaining channels by
a block of Gaussian elimination (ibid., lemma 1). C is centred: the bias compensates the missing mean.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .positive_definite import factorized, require_finite

_TINY = float(np.finfo(np.float64).tiny)
_FLOOR = 1e-8
"""Least variance of a channel, as a part of the mean variance. Chosen by judgement; not measured."""
_COVARIANCE = "the covariance of a layer's inputs"
_RISE = 1e-4
"""Growth of a score below which it counts as unchanged, as a part. Chosen by judgement; not measured."""


def shrunk(covariance: np.ndarray, samples: int) -> np.ndarray:
    """Return a covariance whose correlations are shrunk for the number of samples.

    Oracle approximating shrinkage (Chen, Wiesel, Eldar & Hero 2010, eq. 23), of the correlations to none at all.

    Args:
        covariance: float64 [n, n].
        samples: independent samples that it was estimated from.

    Raises:
        NotFiniteError: it has numbers that are not finite.
    """
    require_finite(covariance, _COVARIANCE)
    n = len(covariance)
    variances = np.diag(covariance)
    scale = np.sqrt(np.maximum(variances, max(_FLOOR * float(variances.mean()), _TINY)))
    correlations = covariance / scale[:, None] / scale[None, :]
    squares, trace = float(np.square(correlations).sum()), float(np.trace(correlations))
    below = (samples + 1 - 2 / n) * (squares - trace**2 / n)
    rho = 1.0 if below <= 0 else min(1.0, ((1 - 2 / n) * squares + trace**2) / below)
    correlations *= 1 - rho
    correlations[np.diag_indices(n)] = 1.0
    return np.asarray(correlations * scale[:, None] * scale[None, :])


def compensated(weights: np.ndarray, covariance: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the best weights float64 [channels, outputs] without some channels, whose rows are zero.

    Args:
        weights: float64 [channels, outputs].
        covariance: positive definite, float64 [channels, channels].
        kept: bool [channels].

    Raises:
        NotFiniteError: the covariance has numbers that are not finite.
    """
    found = np.zeros_like(weights)
    products = covariance[np.ix_(kept, ~kept)] @ weights[~kept]
    found[kept] = weights[kept] + factorized(covariance[np.ix_(kept, kept)], _COVARIANCE).solve(products)
    return found


class Consumer:
    """A layer from which channels are removed; costs are parts of the variance of its outputs.

    Args:
        weights: float [channels, outputs].
        covariance: float64 [channels, channels], positive definite where the others compensate.
        compensates: False where they can't, so that the cost is the variance of the removed part.

    Raises:
        NotFiniteError: weights or covariance have numbers that are not finite.
    """

    def __init__(self, weights: np.ndarray, covariance: np.ndarray, *, compensates: bool = True) -> None:
        self._weights = weights.astype(np.float64)
        self._covariance = covariance
        require_finite(weights, "a layer's weights")
        require_finite(covariance, _COVARIANCE)
        self._inverse = factorized(covariance, _COVARIANCE).inverse() if compensates else None
        self._least = 1 / np.maximum(np.diag(covariance), _TINY)
        """What the diagonal of the inverse can't be below: the cost is at most that without compensation."""
        self._missing = np.zeros((1, self._weights.shape[1]))
        self._removed = np.zeros(len(covariance), bool)
        self.variance = max(
            float(np.einsum("ij,io,jo->", covariance, self._weights, self._weights, optimize=True)), 0.0
        )
        """Variance of the outputs, summed."""

    def cost(self, block: np.ndarray) -> float:
        """Return the cost of removing the channels int [n] after those that are removed already."""
        if self.variance <= 0:
            return 0.0
        block = block[~self._removed[block]]
        rows = self._weights[block]
        if self._inverse is None:
            before = self._covariance[np.ix_(block, np.flatnonzero(self._removed))] @ self._weights[self._removed]
            found = np.sum(rows * (self._covariance[np.ix_(block, block)] @ rows + 2 * before))
        elif len(block) == 1:
            found = np.sum(rows * rows) / max(self._inverse[block[0], block[0]], self._least[block[0]])
        else:
            found = np.sum(rows * factorized(self._inverse[np.ix_(block, block)]).solve(rows))
        return max(float(found), 0.0) / self.variance

    def remove(self, block: np.ndarray) -> None:
        """Remove the channels int [n] and let the others compensate."""
        block = block[~self._removed[block]]
        if not len(block):
            return
        self._removed[block] = True
        if self._inverse is None:
            return
        left = self._inverse[:, block]
        solved = factorized(left[block]).solve(np.concatenate([self._weights[block], left.T], axis=1))
        outputs = self._weights.shape[1]
        self._weights -= left @ solved[:, :outputs]
        self._inverse -= left @ solved[:, outputs:]
        self._weights[block] = 0.0
        self._inverse[block] = self._inverse[:, block] = 0.0


@dataclass(frozen=True, eq=False)
class Curve:
    """Order in which groups are removed, and the loss up to each of them.

    Args:
        order: the groups, the first to remove first.
        losses: float64 [groups, consumers], total loss of each consumer once a group is removed.
    """

    order: tuple[int, ...]
    losses: np.ndarray


def curve(consumers: Sequence[Consumer], blocks: Mapping[int, Sequence[np.ndarray]], *, most: int) -> Curve:
    """Remove groups from the consumers, each time the one that costs least then, and return the losses.

    Args:
        consumers: changed in place; they are as after the last group.
        blocks: group -> for each consumer its channels int [n], maybe none.
        most: groups to remove.
    """

    def costs(group: int) -> list[float]:
        return [c.cost(block) if len(block) else 0.0 for c, block in zip(consumers, blocks[group], strict=True)]

    heap = [(sum(costs(group)), group) for group in blocks]
    heapq.heapify(heap)
    order: list[int] = []
    losses: list[np.ndarray] = []
    total = np.zeros(len(consumers))
    while heap and len(order) < most:
        before, group = heapq.heappop(heap)
        now = costs(group)
        score = sum(now)
        if heap and score > heap[0][0] and score > before * (1 + _RISE) + _TINY:
            heapq.heappush(heap, (score, group))  # its cost has grown: maybe another one is next
            continue
        for consumer, block in zip(consumers, blocks[group], strict=True):
            if len(block):
                consumer.remove(block)
        total = total + now
        order.append(group)
        losses.append(total)
    return Curve(tuple(order), np.reshape(losses, (len(order), len(consumers))))
