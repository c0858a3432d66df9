"""A matrix as the product of two thin ones, nearest in what it makes of its inputs.

    W ~ A B,    A [outputs, r],  B [r, columns],    least E |(W - A B)(x - mean)|^2

With C = L L' the covariance of the inputs, the error is |(W - A B) L|^2 (Frobenius), whose least over all rank r is the
truncated singular value decomposition of W L (Eckart & Young 1936): W L = U S V', A = U_r S_r^(1/2),
B = S_r^(1/2) V_r' L^-1. This is SVD-LLM's whitening (Wang et al. 2024, arXiv 2403.07378, eq. 3 to 5), centred, since
the means go into the bias. The errors of all ranks are the tails of the squared singular values (ibid., theorem 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from .threads import one_thread

_DAMPING = 1e-4
"""Part of the mean variance that is added to every direction of the inputs: what no sample showed is not nothing."""


@dataclass(frozen=True)
class Decomposition:
    """The singular value decomposition of a whitened matrix, from which factors of any rank are read.

    Args:
        left: float64 [outputs, n], U.
        values: float64 [n], S, falling.
        right: float64 [n, columns], V' L^-1.
        variance: variance of the outputs, summed over them.
    """

    left: np.ndarray
    values: np.ndarray
    right: np.ndarray
    variance: float

    def errors(self) -> np.ndarray:
        """Return the error of every rank from 0 to n as a part of the outputs' variance, [n + 1]."""
        tails = np.append(np.cumsum((self.values**2)[::-1])[::-1], 0.0)
        return tails / max(self.variance, np.finfo(np.float64).tiny)

    def factors(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Return A [outputs, rank] and B [rank, columns], float64."""
        roots = np.sqrt(self.values[:rank])
        return self.left[:, :rank] * roots, roots[:, None] * self.right[:rank]


def decompose(weights: np.ndarray, covariance: np.ndarray) -> Decomposition:
    """Decompose a matrix whose inputs have a covariance.

    Args:
        weights: float [outputs, columns].
        covariance: float64 [columns, columns], symmetric; need not have full rank.
    """
    with one_thread():
        weights = weights.astype(np.float64)
        columns = len(covariance)
        damped = (covariance + covariance.T) / 2
        level = float(np.trace(damped)) / columns
        damped[np.diag_indices(columns)] += _DAMPING * level if level > 0 else 1.0
        lower = scipy.linalg.cholesky(damped, lower=True, check_finite=False)
        left, values, right = scipy.linalg.svd(weights @ lower, full_matrices=False, check_finite=False)
        unwhitened = scipy.linalg.solve_triangular(lower, right.T, trans="T", lower=True, check_finite=False).T
    return Decomposition(left, values, unwhitened, float((values**2).sum()))


def largest_useful_rank(outputs: int, columns: int) -> int:
    """Return the largest rank whose factors have fewer numbers than the matrix; 0 where there is none."""
    return max(0, (outputs * columns - 1) // (outputs + columns))
