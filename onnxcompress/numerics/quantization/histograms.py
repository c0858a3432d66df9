"""Histograms of activations and extremes of their channels, collected run by run in little memory.

A histogram has bins of a width that is a power of two, their edges at multiples of it. The width is the least with
which the values seen so far fit into `BINS` bins, so that it only ever doubles, and two bins become one exactly. Counts
thus depend on the values alone, not on their order: merged parts are equal to the whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

BINS = 4096
"""Bins of a histogram. Chosen by judgement; not measured."""
MOST_COUNTED = 1 << 17
"""Most values of one array that are counted, evenly spread; extremes are those of all. Chosen for time."""
_CHUNK = 1 << 17
"""Values that are binned at a time, for memory. Chosen by judgement; not measured."""
_INDEX_BITS = 23
"""Bits of a bin number, exact in float32."""
_GROWTH = 1.05
"""Factor by which a range must widen to count as grown. Chosen by judgement; not measured."""


class Histogram:
    """Counts of the finite values of arrays, of large ones a part, with the exact extremes of all.

    Attributes:
        low: the least value, infinity before there is one.
        high: the greatest value, minus infinity before there is one.
        zeros: number of exact zeros; they are not in `counts`.
        non_finite: number of NaN and infinities; they are counted nowhere else.
        counts: int64 [bins], of the bins `start`, `start` + 1, ...; bin i is [i, i + 1) * 2**exponent.
        updates: number of arrays.
        grown_at: the number of the last array that widened the range by more than a twentieth.
    """

    def __init__(self, *, most_counted: int = MOST_COUNTED) -> None:
        self._most_counted = most_counted
        self.low, self.high = math.inf, -math.inf
        self.zeros = self.non_finite = 0
        self.exponent = self.start = 0
        self.counts = np.zeros(0, np.int64)
        self.updates = self.grown_at = 0
        self._span = 0.0

    @property
    def total(self) -> int:
        """Number of finite values that were counted."""
        return self.zeros + int(self.counts.sum())

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def centers(self) -> np.ndarray:
        """The middle of each bin, float64 [bins]."""
        return (np.arange(self.start, self.start + self.counts.size) + 0.5) * self.width

    @property
    def is_constant(self) -> bool:
        """True where all values are the same, or there are none."""
        return self.low >= self.high

    def update(self, array: np.ndarray) -> None:
        """Count the values of an array of numbers of any shape."""
        flat = np.ascontiguousarray(array).reshape(-1)
        step = _step(array.shape, self._most_counted)
        if flat.dtype != np.float32:
            with np.errstate(over="ignore"):
                flat = flat.astype(np.float32)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = np.isfinite(flat)
            self.non_finite += int(flat.size - np.count_nonzero(finite))
            flat = flat[finite]
            if not flat.size:
                self.updates += 1
                return
            low, high = float(flat.min()), float(flat.max())
        self.updates += 1
        self._widen(low, high, self.updates)
        flat = flat[::step]
        if low == high == 0.0:
            self.zeros += flat.size
            return
        factor = math.ldexp(1.0, -self.exponent)
        zeros = 0
        for begin in range(0, flat.size, _CHUNK):
            piece = flat[begin : begin + _CHUNK]
            zeros += piece.size - int(np.count_nonzero(piece))
            # exact in float32, unless bins are so wide that small numbers would vanish, or narrower than those
            scaled = piece * factor if -127 < self.exponent <= 0 else piece.astype(np.float64) * factor
            np.floor(scaled, out=scaled)
            scaled -= self.start
            self.counts += np.bincount(scaled.astype(np.intp), minlength=self.counts.size)
        self._move_zeros(zeros)

    def merge(self, other: Histogram) -> None:
        """Add the counts of another one, as if its arrays came after those of this one."""
        before = self.updates
        self.updates += other.updates
        self.non_finite += other.non_finite
        if other.low > other.high:
            return
        self._widen(other.low, other.high, before + other.grown_at)
        if other.counts.size:
            start, counts = _coarsened(other.start, other.counts, self.exponent - other.exponent)
            at = start - self.start
            self.counts[at : at + counts.size] += counts
        self.zeros += other.zeros

    def arrays(self) -> dict[str, np.ndarray]:
        """Return everything as arrays, for a file; `from_arrays` reads them."""
        numbers = [self.zeros, self.non_finite, self.exponent, self.start, self.updates, self.grown_at]
        return {
            "counts": self.counts,
            "extremes": np.array([self.low, self.high, self._span]),
            "numbers": np.array(numbers, np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Histogram:
        """Return the histogram whose `arrays` these are."""
        histogram = cls()
        histogram.counts = np.array(arrays["counts"], np.int64)
        histogram.low, histogram.high, histogram._span = (float(number) for number in arrays["extremes"])
        numbers = [int(number) for number in arrays["numbers"]]
        histogram.zeros, histogram.non_finite, histogram.exponent, histogram.start = numbers[:4]
        histogram.updates, histogram.grown_at = numbers[4:]
        return histogram

    def central_range(self, coverage: float) -> tuple[float, float]:
        """Return the range without (1 - `coverage`) / 2 of the values on either side, to a bin's width.

        It grows with `coverage`, up to the exact extremes at 1. (0, 0) without values.
        """
        if self.low > self.high:
            return 0.0, 0.0
        counts, total = self.counts, self.total
        if coverage >= 1 or not counts.size:
            return self.low, self.high
        if self.zeros:
            counts = counts.copy()
            at = min(max(-self.start, 0), counts.size - 1)
            counts[at] += self.zeros
        tail = (1 - coverage) / 2 * total
        below = np.cumsum(counts)
        first = int(np.searchsorted(below, tail, side="right"))
        last = int(np.searchsorted(below, total - tail, side="left"))
        first, last = min(first, counts.size - 1), min(last, counts.size - 1)
        low, high = (self.start + first) * self.width, (self.start + last + 1) * self.width
        return max(low, self.low), min(high, self.high)

    def _move_zeros(self, zeros: int) -> None:
        if zeros:
            self.zeros += zeros
            self.counts[-self.start] -= zeros

    def _widen(self, low: float, high: float, update: int) -> None:
        """Let the bins cover [low, high] too."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.high - self.low > self._span * _GROWTH:
            self._span, self.grown_at = self.high - self.low, update
        exponent = _exponent(self.low, self.high)
        if exponent is None:
            return
        if self.counts.size:
            exponent = max(exponent, self.exponent)
            start, counts = _coarsened(self.start, self.counts, exponent - self.exponent)
        else:
            start, counts = 0, self.counts
        first, last = _bin(self.low, exponent), _bin(self.high, exponent)
        if first != start or last + 1 != start + counts.size:
            grown = np.zeros(last - first + 1, np.int64)
            if counts.size:
                grown[start - first : start - first + counts.size] = counts
            start, counts = first, grown
        self.exponent, self.start, self.counts = exponent, start, counts


class ChannelExtremes:
    """The least and greatest value of every channel, float32 [channels] each; empty before the first array.

    Args:
        axis: the axis that numbers the channels; negative ones count from the end.
    """

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.lows = np.zeros(0, np.float32)
        self.highs = np.zeros(0, np.float32)

    def update(self, array: np.ndarray) -> None:
        """Add an array [..., channels, ...]; NaN and infinities count as 0."""
        axis = self.axis % array.ndim
        others = tuple(a for a in range(array.ndim) if a != axis)
        values = array.astype(np.float32, copy=False)
        lows, highs = values.min(axis=others), values.max(axis=others)
        if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
            values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
            lows, highs = values.min(axis=others), values.max(axis=others)
        self._take(lows, highs)

    def merge(self, other: ChannelExtremes) -> None:
        """Add the extremes of another one."""
        if other.lows.size:
            self._take(other.lows, other.highs)

    def _take(self, lows: np.ndarray, highs: np.ndarray) -> None:
        self.lows = np.minimum(self.lows, lows) if self.lows.size else lows.copy()
        self.highs = np.maximum(self.highs, highs) if self.highs.size else highs.copy()


def _step(shape: tuple[int, ...], most_counted: int) -> int:
    """Return the step between counted values, without a common divisor with the axes."""
    step = -(-math.prod(shape) // most_counted)
    while step > 1 and any(math.gcd(step, size) > 1 for size in shape):
        step += 1
    return step


def _exponent(low: float, high: float) -> int | None:
    """Return the exponent of the least width with which [low, high] fits into the bins, None where all are 0."""
    peak = max(-low, high)
    if peak == 0:
        return None
    exponent = math.frexp(peak)[1] - _INDEX_BITS
    while _bin(high, exponent) - _bin(low, exponent) >= BINS:
        exponent += 1
    return exponent


def _bin(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _coarsened(start: int, counts: np.ndarray, shift: int) -> tuple[int, np.ndarray]:
    """Join 2**shift neighbouring bins into one."""
    if shift <= 0:
        return start, counts
    bins = np.arange(start, start + counts.size) >> shift
    first = int(bins[0])
    joined = np.zeros(int(bins[-1]) - first + 1, np.int64)
    np.add.at(joined, bins - first, counts)
    return first, joined
