"""Sparsification of a matrix: by magnitude, by use, or by elimination.

    magnitude     |w|                        within a layer, or as parts of the layer's norm across layers
    use           |w| ||x||                  Wanda (Sun et al. 2023, eq. 1), per output
    elimination   w^2 / [H^-1]_jj            column by column, the later columns compensating
                                             (SparseGPT, Frantar & Alistarh 2023, algorithm 1);
                                             then all that are kept, W_K + C_KK^-1 C_KS W_S, where affordable

A norm budget ||W'|| <= T is met by the nearest weights: shrunk alike for the 2-norm, each by the same amount down to
zero for the 1-norm (Duchi et al. 2008, figure 1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import scipy.linalg

_BLOCK = 16
"""Columns that are decided together in elimination; fewer take more account of earlier columns. Chosen by judgement;
not measured."""
MOST_WORK = 1e11
"""Most multiplications of the last solution for all kept weights together. Chosen by judgement; not measured."""
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
    """
    left = weights.astype(np.float64)
    count = left.shape[1]
    damped = second + _DAMPING * max(float(np.trace(second)) / count, float(np.finfo(float).tiny)) * np.eye(count)
    inverse = scipy.linalg.cho_solve(scipy.linalg.cho_factor(damped, lower=True), np.eye(count))
    factor = scipy.linalg.cholesky(inverse, lower=False)  # row j: what is left of H^-1 once the columns before are done
    scale = np.diag(factor)
    size = _BLOCK if not pattern.of else max(1, _BLOCK // pattern.of) * pattern.of
    for start in range(0, count, size):
        stop = min(start + size, count)
        removed = np.zeros((len(left), stop - start), bool)
        if not pattern.of:
            removed = smallest(np.square(left[:, start:stop] / scale[start:stop]), ratio, per_row=False)
        for column in range(start, stop):
            if pattern.of and (column - start) % pattern.of == 0 and column + pattern.of <= count:
                part = slice(column, column + pattern.of)
                removed[:, column - start : column - start + pattern.of] = patterned(
                    np.square(left[:, part] / scale[part]), pattern
                )
            lost = np.where(removed[:, column - start], left[:, column], 0.0) / scale[column]
            left[:, column + 1 :] -= np.outer(lost, factor[column, column + 1 :])
            left[removed[:, column - start], column] = 0.0
    if len(left) * (count * (left != 0).mean()) ** 3 / 3 > most_work:
        return left
    for row, before in zip(left, weights.astype(np.float64), strict=True):
        kept = row != 0
        products = damped[np.ix_(kept, ~kept)] @ before[~kept]
        solved = scipy.linalg.solve(damped[np.ix_(kept, kept)], products, assume_a="pos", overwrite_a=True)
        row[kept] = before[kept] + solved
    return left


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
