"""Cholesky factorization of covariances and second moments that may be singular, or nearly so.

    M  =  D (S + ridge I) D,      S = D^-1 M D^-1 with a diagonal of about 1,      S + ridge I = L L'

Channels that are never active make rows of zeros, equal channels equal rows, fewer samples than channels a rank below
the number of channels, and cancellation negative eigenvalues. The diagonal scale D takes differences of size out
(van der Sluis 1969: within a factor of n no diagonal scaling has a smaller condition); the ridge is 0 where that is
enough, and widened until the smallest pivot is above rounding. It is a part of each channel's own variance, so that
channels of 1e18 do not drown those of 1e-30. D has powers of two, by which a regular matrix is factorized as it would
be without.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

_DEAD = 1e-24
"""Variance of a channel that never varies, as a part of the largest one: rounding of float32 (6e-8) squared is 4e-15,
so nothing that was measured lies below. Chosen by judgement; not measured."""
_RIDGES = (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1.0)
"""Parts of each channel's variance that are added to it, until the matrix is positive definite. Chosen by judgement."""
_ROUNDING = 4 * float(np.finfo(np.float64).eps)
"""Rounding of a pivot per row of the matrix."""


class NotFiniteError(ValueError):
    """Statistics hold numbers that are not finite, so that nothing can be solved from them."""


def require_finite(array: np.ndarray, what: str) -> None:
    """Refuse numbers that are not finite.

    Args:
        array: any shape.
        what: name of it in the error.

    Raises:
        NotFiniteError: how many are not.
    """
    finite = np.isfinite(array)
    if not finite.all():
        shape = list(array.shape)
        raise NotFiniteError(f"{what} {shape} has {int(finite.size - finite.sum())} numbers that are not finite")


@dataclass(frozen=True, eq=False)
class Cholesky:
    """Factor of a positive definite matrix: M + ridge diag(M) = D L L' D.

    Args:
        lower: L, float64 [n, n], zeros above the diagonal.
        scale: diagonal of D, float64 [n], powers of two.
        ridge: part of each diagonal element that was added.
    """

    lower: np.ndarray
    scale: np.ndarray
    ridge: float

    def solve(self, right: np.ndarray) -> np.ndarray:
        """Return M^-1 right: float64 [n, k].

        Args:
            right: float64 [n, k].
        """
        scaled = right / self.scale[:, None]
        found = scipy.linalg.cho_solve((self.lower, True), scaled, overwrite_b=True, check_finite=False)
        return np.asarray(found / self.scale[:, None])

    def inverse(self) -> np.ndarray:
        """Return M^-1, float64 [n, n]."""
        found = scipy.linalg.cho_solve((self.lower, True), np.eye(len(self.scale)), check_finite=False)
        return np.asarray(found / self.scale[:, None] / self.scale[None, :])

    def root(self) -> np.ndarray:
        """Return D L, the lower triangular factor of the matrix: float64 [n, n]."""
        return np.asarray(self.lower * self.scale[:, None])


def factorized(matrix: np.ndarray, what: str = "a covariance") -> Cholesky:
    """Factorize a symmetric matrix that is positive semidefinite but for rounding, with the least ridge that it takes.

    Args:
        matrix: float64 [n, n]; zeros alone count as the identity.
        what: name of it in errors.

    Raises:
        NotFiniteError: it has numbers that are not finite.
    """
    require_finite(matrix, what)
    diagonal = np.diag(matrix)
    largest = float(diagonal.max(initial=0.0))
    least = _DEAD * largest if largest > 0 else 1.0
    scale = np.exp2(np.rint(0.5 * np.log2(np.maximum(diagonal, max(least, float(np.finfo(np.float64).tiny))))))
    scaled = matrix / scale[:, None] / scale[None, :]
    own = np.where(diagonal > least, np.diag(scaled), 1.0)
    scaled[np.diag_indices(len(scale))] = own
    smallest = _ROUNDING * max(1, len(scale))
    for ridge in _RIDGES:
        scaled[np.diag_indices(len(scale))] = own * (1 + ridge)
        try:
            lower = scipy.linalg.cholesky(scaled, lower=True, check_finite=False)
        except scipy.linalg.LinAlgError:
            continue
        if np.square(np.diag(lower)).min(initial=np.inf) > smallest:
            return Cholesky(lower, scale, ridge)
    # No covariance: correlations above 1. What is left of it without them is its diagonal.
    return Cholesky(np.diag(np.sqrt(own)), scale, np.inf)


def inverse_root(matrix: np.ndarray, what: str = "a covariance") -> np.ndarray:
    """Return the upper triangular U with U' U = matrix^-1, float64 [n, n].

    With the order of rows and columns turned around, matrix = R R' of an upper triangular R, and U = R^-1: one
    factorization, where that of the inverse takes a second one, which fails sooner.

    Args:
        matrix: float64 [n, n], as of `factorized`.
        what: name of it in errors.

    Raises:
        NotFiniteError: it has numbers that are not finite.
    """
    turned = factorized(matrix[::-1, ::-1], what)
    root = turned.lower[::-1, ::-1]
    found = scipy.linalg.solve_triangular(root, np.eye(len(root)), lower=False, overwrite_b=True, check_finite=False)
    return np.asarray(found / turned.scale[None, ::-1])


def svd(matrix: np.ndarray, what: str = "a matrix") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the thin singular value decomposition U, s, V' of a matrix, float64.

    The fast algorithm (divide and conquer) fails to converge on some matrices; the slow one (QR) is taken there.

    Args:
        matrix: float64 [m, n].
        what: name of it in errors.

    Raises:
        NotFiniteError: it has numbers that are not finite.
    """
    require_finite(matrix, what)
    try:
        left, values, right = scipy.linalg.svd(matrix, full_matrices=False, check_finite=False)
    except scipy.linalg.LinAlgError:
        left, values, right = scipy.linalg.svd(matrix, full_matrices=False, check_finite=False, lapack_driver="gesvd")
    return left, values, right
