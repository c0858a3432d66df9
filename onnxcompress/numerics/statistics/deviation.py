"""Root mean square deviation of arrays from reference arrays: of all elements, and of each channel.

Arrays come in lists, one for each feed, and are pooled: a channel is an index along an axis that is equally long in
all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

WHOLE = "all elements"

CHANNEL_ELEMENTS = 256
"""Least elements of a channel, for its root mean square to say anything (relative standard error 4%)."""
_MOST_CHANNELS = 2048
"""Longer axes are positions rather than channels. Chosen by judgement; not measured."""
Deviation = Mapping[str, np.ndarray]
"""Group of elements (`WHOLE` or an axis) -> root mean square, float64 [1] or [channels]."""
UNIT = 2.0**-24
"""Half the distance of 1 to the next float32: the least relative rounding of a result."""


def deviation(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> Deviation:
    """Return the root mean square of `got - expected` where `expected` is finite.

    Of what is not floating-point (integers, booleans, strings) the share of unequal elements is returned instead.

    Args:
        expected: arrays of any shape and type, one for each feed.
        got: arrays of the same shapes and types.
    """
    if expected[0].dtype.kind not in "fc":
        count = sum(array.size for array in expected)
        unequal = sum(int(np.count_nonzero(a != b)) for a, b in zip(expected, got, strict=True))
        return {WHOLE: np.array([unequal / max(1, count)])}
    return _pooled([_difference(a, b) for a, b in zip(expected, got, strict=True)])


def least_noise(expected: Sequence[np.ndarray], *, unit: float = UNIT, absolute: float = 0.0) -> Deviation:
    """Return the least noise that a result in floating point has: a part of its own root mean square.

    A channel that is dead, as small as the rounding of the others, is given the noise of all elements.

    Args:
        expected: arrays, one for each feed.
        unit: relative rounding of the type that the result was computed in.
        absolute: noise that an element has however small it is.
    """
    if expected[0].dtype.kind not in "fc":
        return {WHOLE: np.zeros(1)}
    power = _pooled([_difference(np.zeros((), array.dtype), array) for array in expected])
    whole = power[WHOLE]
    return {
        group: np.maximum(np.where(values > unit * whole, values, whole) * unit, absolute)
        for group, values in power.items()
    }


def larger(a: Deviation, b: Deviation) -> Deviation:
    """Return the larger of two deviations, group by group; both are of arrays of the same shapes."""
    return {group: np.maximum(values, b[group]) for group, values in a.items()}


def worst(found: Deviation, noise: Deviation) -> tuple[float, str]:
    """Return the largest multiple of the noise that was found, and the channel that has it ("" for all elements)."""
    ratios = {
        group: np.divide(values, noise[group], out=np.where(values > 0, np.inf, 0.0), where=noise[group] > 0)
        for group, values in found.items()
    }
    group = max(ratios, key=lambda each: float(ratios[each].max(initial=0)))
    multiple = float(ratios[group].max(initial=0))
    return multiple, "" if group == WHOLE else f"channel {int(ratios[group].argmax())} of {group}"


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    kind = np.complex128 if a.dtype.kind == "c" else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        signed = np.array(b, kind)
        signed -= a  # in place, as what follows: outputs may take much memory
        found = np.abs(signed, out=signed) if signed.dtype.kind == "f" else np.abs(signed)
    found = np.asarray(found)
    found[~np.isfinite(found)] = 0
    return found


def _pooled(differences: Sequence[np.ndarray]) -> Deviation:
    """Return the root mean square of differences, which are overwritten."""
    count = sum(each.size for each in differences)
    peak = max((float(each.max(initial=0)) for each in differences), default=0.0) or 1.0  # squares overflow
    squares = [np.square(np.divide(each, peak, out=each), out=each) for each in differences]
    found = {WHOLE: peak * np.sqrt(np.array([sum(float(each.sum()) for each in squares) / max(1, count)]))}
    first = differences[0]
    for axis in sorted({1, first.ndim - 1}) if first.ndim > 1 else ():
        lengths = {each.shape[axis] for each in differences}
        length = first.shape[axis]
        if len(lengths) > 1 or not 1 < length <= _MOST_CHANNELS or count < length * CHANNEL_ELEMENTS:
            continue
        others = tuple(each for each in range(first.ndim) if each != axis)
        sums = np.sum([each.sum(axis=others) for each in squares], axis=0)
        found[f"axis {axis}"] = peak * np.sqrt(sums * (length / count))
    return found
