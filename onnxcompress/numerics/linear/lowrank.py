"""Low-rank factorization of a matrix with the least error of its outputs.

    W ~ A B,    A [outputs, r],  B [r, columns],    least E |(W - A B) x|^2

With C = L L' = E x x' the second moments of the inputs, the error is |(W - A B) L|^2 (Frobenius), whose least over all
rank r is the truncated singular value decomposition W L = U S V' (Eckart & Young 1936): A B L = U_r U_r' W L. This is
SVD-LLM's whitening (Wang et al. 2024, arXiv 2403.07378, eq. 3 to 5). U and S^2 are the eigenvectors and eigenvalues of
W C W', the second moments of the outputs without their bias, so that A = U_r and B = U_r' W need neither C nor its
inverse (Zhang et al. 2015, arXiv 1411.4229, eq. 5). The errors of all ranks are the sums of the discarded values.

On the side of the inputs, with L' W' = U S V', the same least error is that of W (L^-T U_r)(U_r' L') (`input_basis`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from ..threads import one_thread
from .positive_definite import factorized, require_finite, svd

_DAMPING = 1e-4
"""Part of the mean square that is added as if all inputs varied alike: what no sample showed is not zero. Chosen by
judgement; not measured."""


@dataclass(frozen=True)
class Decomposition:
    """Directions in the order of the mean square along them.

    Args:
        basis: float64 [channels, n], orthonormal columns where they are outputs.
        dual: float64 [n, channels]; `basis @ dual` is the projection, the identity where all directions are taken.
        values: float64 [n], the mean square along each, falling.
        mean: float64 [channels], subtracted before: the part of it that a cut loses belongs in a bias.
    """

    basis: np.ndarray
    dual: np.ndarray
    values: np.ndarray
    mean: np.ndarray | None = None

    def lost(self, rank: int) -> np.ndarray:
        """Return the part of the mean that a cut to a rank loses: float64 [channels]."""
        if self.mean is None:
            return np.zeros(len(self.basis))
        found: np.ndarray = self.mean - self.basis[:, :rank] @ (self.dual[:rank] @ self.mean)
        return found

    def errors(self) -> np.ndarray:
        """Return the error of every rank from 0 to n as a part of the outputs' mean square, [n + 1]."""
        tails = np.append(np.cumsum(self.values[::-1])[::-1], 0.0)
        return tails / max(float(self.values.sum()), np.finfo(np.float64).tiny)


def output_basis(weights: np.ndarray, moments: np.ndarray) -> Decomposition:
    """Decompose the outputs of a matrix.

    Args:
        weights: float [outputs, columns].
        moments: float64 [outputs, outputs], mean products of its outputs; need not have full rank.

    Raises:
        NotFiniteError: weights or moments have numbers that are not finite.
    """
    with one_thread():
        weights = weights.astype(np.float64)
        require_finite(weights, "a weight")
        require_finite(moments, "the moments of a matrix's outputs")
        values, basis = scipy.linalg.eigh(_damped(moments, weights @ weights.T), check_finite=False)
    basis = basis[:, ::-1]
    return Decomposition(basis, basis.T, np.maximum(values[::-1], 0.0))


def input_basis(weights: np.ndarray, moments: np.ndarray) -> Decomposition:
    """Decompose the inputs of a matrix: `weights @ basis` multiplies `dual @ x` instead of x.

    Args:
        weights: float [outputs, columns].
        moments: float64 [columns, columns], mean products of its inputs; need not have full rank.

    Raises:
        NotFiniteError: weights or moments have numbers that are not finite.
    """
    with one_thread():
        weights = weights.astype(np.float64)
        require_finite(weights, "a weight")
        lower = factorized(_damped(moments, np.eye(len(moments))), "the moments of a matrix's inputs").root()
        left, values, _ = svd(lower.T @ weights.T)
        dual = scipy.linalg.solve_triangular(lower, left, trans="T", lower=True, check_finite=False).T
    return Decomposition(lower @ left, dual, values**2)


def _damped(moments: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Return moments with a small part of other ones added."""
    level = float(np.trace(moments)) / max(float(np.trace(like)), np.finfo(np.float64).tiny)
    found: np.ndarray = (moments + moments.T) / 2 + (_DAMPING * level if level > 0 else 1.0) * like
    return found
