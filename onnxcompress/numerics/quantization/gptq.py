"""Rounding with second moments of the inputs: weights that are not yet rounded compensate the errors of the others.

With H = X'X / n of a layer's inputs the loss of rounded weights w' is (w - w')' H (w - w'), the mean squared error of
the output. GPTQ (arXiv 2210.17323) rounds one input after the other and moves the rest to the optimum; cyclic
coordinate descent (as in QuantEase, arXiv 2309.01885) then changes single integers, and least squares the scales, while
the loss falls.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..linear.positive_definite import inverse_root, require_finite
from .blocks import BlockGrid, Blocks, round_nearest, spread

_MOMENTS = "the moments of a layer's inputs"
_BATCH = 128
"""Inputs whose corrections are gathered before the rest of the matrix is updated, as in GPTQ."""
_SWEEPS = 2
"""Sweeps of coordinate descent. Chosen by judgement; not measured."""
_SAMPLED_OUTPUTS = 64
"""Outputs by which a damping is chosen. Chosen by judgement; not measured."""
_PART = 8 << 20
"""Elements of the weight of one step, for memory: outputs are independent of each other. Chosen by judgement; not
measured."""


def loss(weight: np.ndarray, rounded: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Return the mean squared error of each output, float64 [out].

    Args:
        weight: float [out, in].
        rounded: float [out, in].
        moments: float [in, in], X'X / n of the inputs.
    """
    error = np.asarray(weight, moments.dtype) - rounded
    return np.asarray(np.einsum("oi,oi->o", error @ moments, error), np.float64)


def round_with_moments(
    weight: np.ndarray, moments: np.ndarray, grid: BlockGrid, *, damping: float = 0.01, refine: bool = True
) -> Blocks:
    """Round a weight with the least change of the layer's output on inputs with the given moments.

    Never worse, output by output, than `round_nearest` with the inputs' mean squares as importance.

    Args:
        weight: float [out, in].
        moments: float64 [in, in], X'X / n of the inputs.
        grid: the integers.
        damping: part of the mean of the diagonal that is added to it.
        refine: also change single integers and scales afterwards.

    Raises:
        NotFiniteError: weight or moments have numbers that are not finite.
    """
    require_finite(weight, "a weight")
    require_finite(moments, _MOMENTS)
    size = len(moments)
    mean = float(np.trace(moments)) / size
    if mean > 0:  # float32 holds no squares of 1e20; a power of two changes no digit
        unit = 2.0 ** np.rint(np.log2(mean))
        moments, mean = moments / unit, mean / unit
    damped = moments + np.eye(size) * (damping * mean if mean > 0 else 1.0)
    nearest = round_nearest(weight, grid, np.maximum(np.diag(damped), 0))
    upper = inverse_root(damped, _MOMENTS).astype(np.float32)
    damped = damped.astype(np.float32)
    step = max(1, _PART // max(1, size))
    integers, scale, zero = nearest.integers.copy(), nearest.scale.copy(), nearest.zero.copy()
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        part = np.asarray(weight[rows], np.float32)
        begun = Blocks(grid, nearest.integers[rows], nearest.scale[rows], nearest.zero[rows])
        found = _gptq(part, upper, begun)
        if refine:
            found = _refined(part, damped, found)
        better = loss(part, found.floats(), damped) < loss(part, begun.floats(), damped)
        integers[rows][better], scale[rows][better] = found.integers[better], found.scale[better]
    return Blocks(grid, integers, scale, zero)


def best_damping(
    weight: np.ndarray, moments: np.ndarray, held_out: np.ndarray, grid: BlockGrid, dampings: Sequence[float]
) -> float:
    """Return the damping with which some of the outputs change least on inputs that were held out.

    Few inputs determine correlations of columns poorly: corrections for them are then wrong for others.

    Args:
        weight: float [out, in].
        moments: float64 [in, in], X'X / n of the inputs to round by.
        held_out: float64 [in, in], the same of other inputs.
        grid: the integers.
        dampings: candidates.
    """
    some = weight[:: max(1, len(weight) // _SAMPLED_OUTPUTS)]

    def error(damping: float) -> float:
        found = round_with_moments(some, moments, grid, damping=damping)
        return float(loss(some, found.floats(), held_out).sum())

    return min(dampings, key=error)


def _gptq(weight: np.ndarray, upper: np.ndarray, begun: Blocks) -> Blocks:
    """Round input after input under given scales, each error passed on to the inputs that follow."""
    grid, size = begun.grid, weight.shape[1]
    scale = spread(begun.scale, grid.block, size)
    zero = spread(begun.zero.astype(np.float64), grid.block, size)
    rest = weight.copy()
    integers = np.empty(weight.shape, np.float32)
    for start in range(0, size, _BATCH):
        stop = min(size, start + _BATCH)
        errors = np.empty((len(weight), stop - start), np.float32)
        for j in range(start, stop):
            integers[:, j] = np.clip(np.rint(rest[:, j] / scale[:, j] + zero[:, j]), 0, grid.levels)
            left = rest[:, j] - scale[:, j] * (integers[:, j] - zero[:, j])
            errors[:, j - start] = left / upper[j, j]
            rest[:, j + 1 : stop] -= np.outer(errors[:, j - start], upper[j, j + 1 : stop])
        rest[:, stop:] -= errors @ upper[start:stop, stop:]
    return Blocks(grid, integers.astype(np.uint8), begun.scale, begun.zero)


def _refined(weight: np.ndarray, moments: np.ndarray, found: Blocks) -> Blocks:
    """Change integers one by one, then scales, in turns."""
    for _ in range(_SWEEPS):
        found = _descended(weight, moments, _rescaled(weight, moments, found))
    return _rescaled(weight, moments, found)


def _descended(weight: np.ndarray, moments: np.ndarray, found: Blocks) -> Blocks:
    """Give each integer in turn its best value while all others are fixed."""
    grid, size = found.grid, weight.shape[1]
    scale = spread(found.scale, grid.block, size)
    zero = spread(found.zero.astype(np.float32), grid.block, size)
    integers = found.integers.astype(np.float32)
    error = weight - scale * (integers - zero)
    gradient = error @ moments
    diagonal = np.diag(moments)
    for start in range(0, size, _BATCH):
        stop = min(size, start + _BATCH)
        local = gradient[:, start:stop]
        changes = np.zeros((len(weight), stop - start), np.float32)
        for j in range(start, stop):
            wanted = scale[:, j] * (integers[:, j] - zero[:, j]) + local[:, j - start] / diagonal[j]
            best = np.clip(np.rint(wanted / scale[:, j] + zero[:, j]), 0, grid.levels)
            change = scale[:, j] * (best - integers[:, j])
            integers[:, j] = best
            changes[:, j - start] = change
            local -= np.outer(change, moments[j, start:stop])
        gradient[:, stop:] -= changes @ moments[start:stop, stop:]
    return Blocks(grid, integers.astype(np.uint8), found.scale, found.zero)


def _rescaled(weight: np.ndarray, moments: np.ndarray, found: Blocks) -> Blocks:
    """Give the scale of each block in turn its best value while everything else is fixed."""
    grid, size = found.grid, weight.shape[1]
    offset = found.integers.astype(np.float32) - spread(found.zero.astype(np.float32), grid.block, size)
    scale = found.scale.copy()
    error = weight - offset * spread(scale, grid.block, size)
    gradient = error @ moments
    for b in range(grid.count(size)):
        cut = slice(b * grid.block, min(size, (b + 1) * grid.block))
        own = offset[:, cut]
        slope = np.einsum("oi,oi->o", gradient[:, cut], own)
        curvature = np.einsum("oi,oi->o", own @ moments[cut, cut], own)
        step = np.divide(slope, curvature, out=np.zeros_like(slope), where=curvature > 0)
        step = np.where(np.abs(scale[:, b] + step) > np.finfo(np.float32).tiny, step, 0)
        scale[:, b] += step
        gradient[:, cut.stop :] -= (own * step[:, None]) @ moments[cut, cut.stop :]
    return Blocks(grid, found.integers, scale, found.zero)
