"""Ridge regression around given weights, the penalty chosen on held-out rows.

    W' = W + (Y - X W)' X (X'X + lambda I)^-1,    lambda = ratio * trace(X'X) / columns

is ridge regression (Hoerl & Kennard 1970, eq. 2.1) of the residual of the weights W: without evidence, they are kept.
Rows and targets are centred, so that the bias is fitted freely. Only moments are needed, of the rows to solve from and
of other rows to choose the ratio by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..threads import one_thread
from .moments import Moments
from .positive_definite import factorized, require_finite

RATIOS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
"""Penalties that are tried, as parts of the mean diagonal of X'X: from the strongest on, until they don't help. Chosen
by judgement; not measured."""
_PATIENCE = 2
"""Penalties in a row without gain after which weaker ones are not tried. Chosen by judgement; not measured."""
_MOMENTS = "the moments of a layer's inputs"
EXACT = 1e-10
"""Error, as a part of the targets' variance, below which there is nothing to fit."""


@dataclass(frozen=True, kw_only=True)
class RidgeFit:
    """Result of a ridge fit: weights, bias, penalty, error before and after.

    Args:
        weights: float64 [groups, outputs, columns].
        bias: float64 [groups, outputs].
        ratio: the penalty chosen; None where only the bias was fitted.
        before: error of the given weights on the held-out rows, as a part of the variance of the targets there.
        after: the same of the solution from the rows to solve from.
    """

    weights: np.ndarray
    bias: np.ndarray
    ratio: float | None
    before: float
    after: float


def fit(
    train: Moments,
    held_out: Moments,
    weights: np.ndarray,
    bias: np.ndarray,
    *,
    has_bias: bool,
    ratios: Sequence[float] = RATIOS,
) -> RidgeFit:
    """Fit weights and bias to the targets, or the bias alone, whichever is best on the held-out rows.

    The final solution is computed from both sets of rows. Where none is better than the given weights, those are
    returned, with `after` equal to `before`.

    Args:
        train: moments of the rows to solve from; not full ones give the bias alone.
        held_out: moments of other rows.
        weights: [groups, outputs, columns], before.
        bias: [groups, outputs], before.
        has_bias: False to keep the bias.
        ratios: penalties to try, falling; none to fit the bias alone.

    Raises:
        ValueError: the held-out moments are not full, while those to solve from are.
        NotFiniteError: weights, bias or moments have numbers that are not finite.
    """
    weights, bias = weights.astype(np.float64), bias.astype(np.float64)
    require_finite(weights, "a layer's weights")
    require_finite(bias, "a layer's bias")
    for moments in (train, held_out):
        moments.require_finite()
    if not train.is_full:
        return _fit_means(train, held_out, weights, bias, has_bias=has_bias)
    with one_thread():
        before = relative_error(held_out, weights, bias)
        best = RidgeFit(weights=weights, bias=bias, ratio=None, before=before, after=before)
        if not before > EXACT or train.count < 2:
            return best
        failures = 0
        for ratio in (*((None,) if has_bias else ()), *ratios):
            found = solve(train, weights, bias, ratio=ratio, has_bias=has_bias)
            after = relative_error(held_out, *found)
            failures = 0 if after < best.after or ratio is None else failures + 1
            if after < best.after:
                best = RidgeFit(weights=found[0], bias=found[1], ratio=ratio, before=before, after=after)
            if failures == _PATIENCE:
                break
        if best.after == before:
            return best
        final = solve(train.merge(held_out), weights, bias, ratio=best.ratio, has_bias=has_bias)
    return RidgeFit(weights=final[0], bias=final[1], ratio=best.ratio, before=before, after=best.after)


def solve(
    moments: Moments, weights: np.ndarray, bias: np.ndarray, *, ratio: float | None, has_bias: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights and the bias of least squared error under one penalty; of None for the bias alone.

    Args:
        moments: full, with targets.
        weights: float64 [groups, outputs, columns].
        bias: float64 [groups, outputs].
        ratio: the penalty as a part of the mean diagonal of X'X, centred where there is a bias; above 0.
        has_bias: False to keep the bias.

    Raises:
        NotFiniteError: the moments have numbers that are not finite.
    """
    if ratio is not None:
        if has_bias:
            squares, products = moments.covariance(), moments.cross_covariance()
        else:
            squares, mean = moments.second(), moments.mean()
            products = moments.cross_covariance() + mean[:, :, None] * (moments.target_mean() - bias)[:, None, :]
        residual = products - squares @ weights.transpose(0, 2, 1)
        weights = weights + np.stack([_solve_one(*each, ratio) for each in zip(squares, residual, strict=True)])
    if has_bias:
        bias = moments.target_mean() - np.einsum("gok,gk->go", weights, moments.mean())
    return weights, bias


def relative_error(moments: Moments, weights: np.ndarray, bias: np.ndarray) -> float:
    """Return the mean squared error over all outputs as a part of the variance of the targets."""
    error, variance = moments.error(weights, bias).sum(), moments.target_variance().sum()
    return float(error / variance) if variance > 0 else float(error > 0)


def _solve_one(squares: np.ndarray, residual: np.ndarray, ratio: float) -> np.ndarray:
    """Return the change of one group's weights, [outputs, columns]."""
    penalty = ratio * np.trace(squares) / len(squares)
    if penalty <= 0:
        return np.zeros(residual.T.shape)
    damped = squares.copy()
    damped[np.diag_indices(len(damped))] += penalty
    found: np.ndarray = factorized(damped, _MOMENTS).solve(residual).T
    return found


def _fit_means(train: Moments, held_out: Moments, weights: np.ndarray, bias: np.ndarray, *, has_bias: bool) -> RidgeFit:
    """Fit the bias where only means are known: by the error of the mean outputs on the held-out rows."""

    def mean_error(of: Moments, with_bias: np.ndarray) -> np.ndarray:
        found: np.ndarray = of.target_mean() - np.einsum("gok,gk->go", weights, of.mean()) - with_bias
        return found

    variance = held_out.target_variance().sum()
    before = float(np.square(mean_error(held_out, bias)).sum() / variance) if variance > 0 else 0.0
    if not has_bias or before <= EXACT:
        return RidgeFit(weights=weights, bias=bias, ratio=None, before=before, after=before)
    shifted = bias + mean_error(train, bias)
    after = float(np.square(mean_error(held_out, shifted)).sum() / variance)
    if after >= before:
        return RidgeFit(weights=weights, bias=bias, ratio=None, before=before, after=before)
    final = bias + mean_error(train.merge(held_out), bias)
    return RidgeFit(weights=weights, bias=final, ratio=None, before=before, after=after)
