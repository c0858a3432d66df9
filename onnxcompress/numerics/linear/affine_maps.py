"""Affine maps y = scale * x + shift per channel, and their merge into the weights of a linear operator.

With W the weight of a linear operator f(x) = W x + bias:

    map after f:    s (W x + b) + t  =  (s W) x  +  (s b + t)
    map before f:   W (s x + t) + b  =  (W s) x  +  (b + W t)
    maps in a row:  s2 (s1 x + t1) + t2  =  (s2 s1) x  +  (s2 t1 + t2)

All arithmetic is float64; `stored` rounds once, to the weight's type, and says where that loses too much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

BLOCK = 1 << 20
"""Elements that are held in float64 at a time: 8 MB. Chosen by judgement; not measured."""


@dataclass(frozen=True)
class AffineMap:
    """y = scale * x + shift; both are float64 of length 1 (the same for every channel) or of one length."""

    scale: Array
    shift: Array

    @classmethod
    def of(cls, *, scale: npt.ArrayLike = 1.0, shift: npt.ArrayLike = 0.0) -> AffineMap:
        """Make a map from numbers or arrays of any shape with one varying axis at most."""
        return cls(np.asarray(scale, dtype=np.float64).reshape(-1), np.asarray(shift, dtype=np.float64).reshape(-1))

    def then(self, after: AffineMap) -> AffineMap:
        """Return the map that does this one first and `after` second."""
        return AffineMap(after.scale * self.scale, after.scale * self.shift + after.shift)

    @property
    def finite(self) -> bool:
        """Say whether every number of the map is finite."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    @property
    def scales(self) -> bool:
        """Say whether the map multiplies by anything but one."""
        return bool((self.scale != 1.0).any())

    @property
    def shifts(self) -> bool:
        """Say whether the map adds anything but zero."""
        return bool((self.shift != 0.0).any())


_EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Type -> spacing of its numbers at 1."""
_NEGLIGIBLE = 1e-37
"""Absolute error that is always accepted: the least normal float32 is 1.2e-38."""


def batch_norm(
    scale: npt.ArrayLike, bias: npt.ArrayLike, mean: npt.ArrayLike, variance: npt.ArrayLike, epsilon: float
) -> AffineMap | None:
    """Return the map of a batch normalisation with fixed statistics (arXiv 1502.03167, algorithm 2, line 11).

    None where variance + epsilon is not positive or a number is not finite: no map equals it.
    """
    gamma, beta, mu, var = (np.asarray(p, dtype=np.float64).reshape(-1) for p in (scale, bias, mean, variance))
    spread = var + epsilon
    if not np.isfinite(spread).all() or (spread <= 0).any():
        return None
    factor = gamma / np.sqrt(spread)
    found = AffineMap(factor, beta - factor * mu)
    return found if found.finite else None


def along(vector: Array, axis: int, rank: int) -> Array:
    """Return the vector shaped so that it broadcasts along one axis of an array of `rank` dimensions."""
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)


def grouped(scale: Array, shape: tuple[int, ...], *, block_axis: int, channel_axis: int, groups: int) -> Array:
    """Return a weight's factors, broadcasting to `shape`, when channels run over (group, `channel_axis`).

    Args:
        scale: float64 of length 1, or groups * shape[channel_axis], group by group.
        shape: the weight's.
        block_axis: the axis that the groups divide into equal blocks.
        channel_axis: the axis that holds the channels of one group; not `block_axis`.
        groups: 1 for operators that know no groups.

    """
    rank = len(shape)
    if scale.size == 1 or groups == 1:
        return along(scale, channel_axis, rank)
    each = shape[block_axis] // groups
    blocks = [np.repeat(along(part, channel_axis, rank), each, axis=block_axis) for part in np.split(scale, groups)]
    return np.concatenate(blocks, axis=block_axis)


def scaled(weight: np.ndarray, factors: Array, *, axis: int | None = None, block: int = BLOCK) -> np.ndarray | None:
    """Multiply in float64 and round to the weight's type, some rows at a time; None as for `stored`."""
    if weight.ndim == 0:
        return stored(weight.astype(np.float64) * factors.reshape(()), weight.dtype)
    result = np.empty_like(weight)
    rows = max(1, block * weight.shape[0] // max(1, weight.size))
    for start in range(0, weight.shape[0], rows):
        part = slice(start, start + rows)
        by = factors[part] if factors.shape[0] > 1 else factors
        product = stored(weight[part].astype(np.float64) * by, weight.dtype, axis=axis)
        if product is None:
            return None
        result[part] = product
    return result


def respond_grouped(weight: npt.ArrayLike, shift: Array, *, groups: int) -> Array:
    """Return the response of a convolution without padding to a constant input: W t, float64 [out].

    Args:
        weight: [out, in / groups, *kernel].
        shift: float64 of length 1 or `in`: the input's value in each channel.
        groups: as of the convolution.

    """
    array = np.asarray(weight)
    taps = array.reshape(array.shape[0], array.shape[1], -1).sum(axis=2, dtype=np.float64)
    full = np.broadcast_to(shift, (groups * taps.shape[1],)) if shift.size == 1 else shift
    rows, parts = np.split(taps, groups), np.split(full, groups)
    return np.concatenate([row @ part for row, part in zip(rows, parts, strict=True)])


def stored(exact: Array, dtype: np.dtype[np.generic], *, axis: int | None = None) -> np.ndarray | None:
    """Round to `dtype`; None where a number overflows or loses more than the type's rounding.

    More than rounding is an error above eps * (|number| + root mean square of its channel along `axis`), as
    happens among float16 numbers below 6e-5.
    """
    with np.errstate(over="ignore", under="ignore"):
        rounded = exact.astype(dtype)
    back = rounded.astype(np.float64)
    if not np.isfinite(back).all():
        return None
    if dtype.itemsize < 8:
        others = tuple(i for i in range(exact.ndim) if axis is not None and i != axis % exact.ndim)
        eps = _EPS[dtype.name]
        size = np.sqrt(np.mean(exact * exact, axis=others or None, keepdims=True))
        if (np.abs(back - exact) > eps * (np.abs(exact) + size) + _NEGLIGIBLE).any():
            return None
    return rounded
