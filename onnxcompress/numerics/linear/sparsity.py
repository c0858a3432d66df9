"""Sparsification of a matrix: by magnitude, by use, or by elimination.

    magnitude     |w|                        within a layer, or as parts of the layer's norm across layers
    use           |w| ||x||                  Wanda (Sun et al. 2023, eq. 1), per output
    elimination   w^2 / [H^-1]_jj            column by column, the later columns compensating
                                             (SparseGPT, Frantar & Alistarh 2023, algorithm 1);
                                             then all that are kept, W_K + C_KK^-1 C_KS W_S, or towards it

A norm budget ||W'|| <= T is met by the nearest weights: shrunk alike for the 2-norm, each by the same amount down to
zero for the 1-norm (Duchi et al. 2008, figure 1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from .positive_definite import factorized, inverse_root, require_finite

_BLOCK = 16
"""Columns that are decided together in elimination; fewer take more account of earlier columns. Chosen by judgement;
not measured."""
MOST_WORK = 1e11
"""Most multiplications of the last solution for all kept weights together. Chosen by judgement; not measured."""
_MANY_COLUMNS = 256
"""Columns above which the last solution is found by iteration. Chosen by judgement; not measured."""
_STEPS = 32
"""Most steps of that iteration. Chosen by judgement; not measured."""
_SETTLED = 1e-4
"""Part of the first gradient's squared length at which it ends. Chosen by judgement; not measured."""
_MOMENTS = "the second moments of a layer's inputs"
_DAMPING = 1e-2
"""Part of the mean diagonal of H that is added to it: that of SparseGPT."""


@dataclass(frozen=True)
class SparsityPattern:
    """Allowed zeros: anywhere for `of` = 0, else all but `kept` numbers of each `of` neighbours."""

    kept: int = 0
    of: int = 0

    @classmethod
    def parse(cls, text: str) -> SparsityPattern:
        """Read "free" or "N:M".

        Raises:
            ValueError: it is neither, or N is not between 1 and M - 1.
        """
        if text == "free":
            return cls()
        found = re.fullmatch(r"(\d+):(\d+)", text)
        if found is None or not 0 < int(found[1]) < int(found[2]):
            raise ValueError(f"{text!r} is neither 'free' nor of the form 2:4")
        return cls(int(found[1]), int(found[2]))


def smallest(scores: np.ndarray, ratio: float, *, per_row: bool) -> np.ndarray:
    """Return a mask of the smallest scores, bool [..., rows, columns]: a share of those of each row, or of each matrix.

    Args:
        scores: [..., rows, columns].
        ratio: the share, rounded to a whole number of elements.
        per_row: True to take the same number from each row.
    """
    flat = scores if per_row else scores.reshape(*scores.shape[:-2], 1, -1)
    removed = np.zeros(flat.shape, bool)
    count = round(ratio * flat.shape[-1])
    if count:
        order = np.argsort(flat, axis=-1, kind="stable")[..., :count]
        np.put_along_axis(removed, order, values=True, axis=-1)
    return removed.reshape(scores.shape)


def patterned(scores: np.ndarray, pattern: SparsityPattern) -> np.ndarray:
    """Return a mask of all but the largest scores of each whole group of columns, bool [..., columns].

    Columns that don't fill a group are kept.
    """
    whole = scores.shape[-1] // pattern.of * pattern.of
    grouped = scores[..., :whole].reshape(*scores.shape[:-1], -1, pattern.of)
    removed = np.zeros(scores.shape, bool)
    ranks = np.argsort(np.argsort(grouped, axis=-1, kind="stable"), axis=-1)
    removed[..., :whole] = (ranks < pattern.of - pattern.kept).reshape(*scores.shape[:-1], whole)
    return removed


def by_use(weights: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Wanda's scores, [outputs, columns].

    Args:
        weights: [outputs, columns].
        second: mean of x' x, float64 [columns, columns].
    """
    return np.asarray(np.abs(weights) * np.sqrt(np.maximum(np.diag(second), 0.0)))


def eliminated(
    weights: np.ndarray, second: np.ndarray, ratio: float, pattern: SparsityPattern, *, most_work: float = MOST_WORK
) -> np.ndarray:
    """Return weights with zeros, for which later columns compensate; float64 [outputs, columns].

    Args:
        weights: [outputs, columns].
        second: mean of x' x, float64 [columns, columns].
        ratio: share of zeros in every block of columns, for a free pattern.
        pattern: allowed zeros.
        most_work: most multiplications of the last solution for all kept weights together.

    Raises:
        NotFiniteError: weights or moments have numbers that are not finite.
    """
    require_finite(weights, "a weight")
    left = weights.astype(np.float64)
    count = left.shape[1]
    damped = second + _DAMPING * max(float(np.trace(second)) / count, float(np.finfo(float).tiny)) * np.eye(count)
    factor = inverse_root(damped, _MOMENTS)  # row j: what is left of H^-1 once the columns before are done
    scale = np.diag(factor)
    size = _BLOCK if not pattern.of else max(1, _BLOCK // pattern.of) * pattern.of
    for start in range(0, count, size):
        stop = min(start + size, count)
        lost = _eliminate_block(left[:, start:stop], factor[start:stop, start:stop], scale[start:stop], ratio, pattern)
        left[:, stop:] -= lost @ factor[start:stop, stop:]
    return _resolved(left, weights.astype(np.float64), damped, most_work)


def _resolved(left: np.ndarray, weights: np.ndarray, second: np.ndarray, most_work: float) -> np.ndarray:
    """Return the best weights with given zeros, or better ones, as far as the work allows.

    Few columns are solved row by row. For many, all rows go down together by conjugate gradients with the diagonal as
    preconditioner (Saad 2003, algorithm 9.1), each within its own zeros: a step is one product of matrices.

    Args:
        left: [outputs, columns] to start from, zeros included.
        weights: [outputs, columns] before.
        second: positive definite, float64 [columns, columns].
        most_work: multiplications, at most.
    """
    kept = left != 0
    outputs, columns = left.shape
    if columns > _MANY_COLUMNS:
        return _descended(left, weights, second, min(_STEPS, int(most_work / (outputs * columns**2))))
    if outputs * (columns * kept.mean()) ** 3 / 3 > most_work:
        return left
    found = np.zeros_like(left)
    for row, mask, before in zip(found, kept, weights, strict=True):
        products = second[np.ix_(mask, ~mask)] @ before[~mask]
        row[mask] = before[mask] + factorized(second[np.ix_(mask, mask)], _MOMENTS).solve(products[:, None])[:, 0]
    return found


def _descended(left: np.ndarray, weights: np.ndarray, second: np.ndarray, steps: int) -> np.ndarray:
    """Go down from given weights within their zeros; the error of no row rises. As `_resolved`."""
    kept = left != 0
    diagonal = np.maximum(np.diag(second), float(np.finfo(np.float64).tiny))
    found = left.copy()
    gradient = np.where(kept, (weights - left) @ second, 0.0)
    step = gradient / diagonal
    slope = np.einsum("oi,oi->o", gradient, step)
    first = slope.sum()
    for _ in range(steps):
        if not slope.sum() > _SETTLED * first:
            break
        across = np.where(kept, step @ second, 0.0)
        curvature = np.einsum("oi,oi->o", step, across)
        length = np.divide(slope, curvature, out=np.zeros_like(slope), where=curvature > 0)[:, None]
        found += length * step
        gradient -= length * across
        scaled = gradient / diagonal
        after = np.einsum("oi,oi->o", gradient, scaled)
        step = scaled + np.divide(after, slope, out=np.zeros_like(slope), where=slope > 0)[:, None] * step
        slope = after
    return found


def _eliminate_block(
    left: np.ndarray, factor: np.ndarray, scale: np.ndarray, ratio: float, pattern: SparsityPattern
) -> np.ndarray:
    """Remove weights of a block of columns, in place; return what the columns after it have to compensate.

    Args:
        left: [outputs, block], changed.
        factor: upper triangular, [block, block].
        scale: its diagonal.
        ratio: share of zeros, for a free pattern.
        pattern: allowed zeros.

    Returns:
        float64 [outputs, block], to be multiplied by the factor's rows of the block.
    """
    width = left.shape[1]
    lost = np.zeros_like(left)
    removed = np.zeros(left.shape, bool)
    if not pattern.of:
        removed = smallest(np.square(left / scale), ratio, per_row=False)
    for column in range(width):
        if pattern.of and column % pattern.of == 0 and column + pattern.of <= width:
            part = slice(column, column + pattern.of)
            removed[:, part] = patterned(np.square(left[:, part] / scale[part]), pattern)
        lost[:, column] = np.where(removed[:, column], left[:, column], 0.0) / scale[column]
        left[:, column + 1 :] -= np.outer(lost[:, column], factor[column, column + 1 :])
        left[removed[:, column], column] = 0.0
    return lost


def within_l2(weights: np.ndarray, limit: float) -> np.ndarray:
    """Return the nearest weights whose squares sum up to at most limit^2."""
    norm = float(np.linalg.norm(weights))
    return weights if norm <= limit else np.asarray(weights * (limit / norm))


def within_l1(weights: np.ndarray, limit: float) -> np.ndarray:
    """Return the nearest weights whose absolute values sum up to at most a limit."""
    sizes = np.sort(np.abs(weights), axis=None)[::-1].astype(np.float64)
    if sizes.sum() <= limit:
        return weights
    above = (np.cumsum(sizes) - limit) / np.arange(1, sizes.size + 1)
    threshold = above[np.flatnonzero(sizes > above)[-1]]
    return np.asarray(np.sign(weights) * np.maximum(np.abs(weights) - threshold, 0.0))
