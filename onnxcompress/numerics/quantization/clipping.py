"""Clipping ranges of activations: candidates from histograms, and a choice by the error of the layers that read them.

The squared error of a clipping range [a, b] with steps s is, for densities that are smooth within a step,

    E(a, b) = s^2 / 12 * P(a <= x <= b) + sum over x outside of (distance to the range)^2

(OCTAV, arXiv 2206.06501, eq. 3 and 4.) It is minimised over a grid of a and b, and the best few are evaluated with
their rounding; the exact extremes are always among the candidates, so none is chosen that is worse on the histogram.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .affine_activations import LEAST_SPAN, Affine, IntegerGrid, affine_for, fake_quantize
from .histograms import Histogram

FRACTIONS = tuple(float(f) for f in np.geomspace(1.0, 0.02, 48))
"""Parts of the extremes that are tried as ends of the range. Chosen by judgement; not measured."""
COVERAGES = (0.99999, 0.9999, 0.999)
"""Parts of the values that percentile ranges cover. Chosen by judgement; not measured."""
LEAST_GAIN = 0.02
"""Least part of the layers' error that a clip must remove. Chosen on the zoo models."""
_EVALUATED = 6
"""Ranges of least expected error that are evaluated exactly. Chosen by judgement; not measured."""
_MOST_POINTS = 8
"""Most points that represent a bin. Chosen by judgement; not measured."""


@dataclass(frozen=True)
class ClipCandidate:
    """A way to quantize an activation.

    Args:
        method: "min-max", "mse", "percentile 99.99", or "known" for a range that needs no data.
        affine: scale and zero point.
        squared_error: mean squared error over the values of the histogram.
    """

    method: str
    affine: Affine
    squared_error: float


def candidates(
    histogram: Histogram,
    grid: IntegerGrid,
    *,
    within: tuple[float, float] | None = None,
    known: tuple[float, float] | None = None,
    least_span: float = LEAST_SPAN,
) -> list[ClipCandidate]:
    """Return ways to quantize an activation: its extremes first, then clipped ones that differ, best first.

    Args:
        histogram: its values.
        grid: the integers.
        within: limits that the activation can't exceed (those of a Relu or Clip): no range exceeds them.
        known: the range by definition, as of Softmax and Sigmoid; it is the only candidate.
        least_span: narrower ranges are widened to this.

    Raises:
        ValueError: a range is too wide for a float32 scale.
    """

    def candidate(method: str, low: float, high: float) -> ClipCandidate:
        affine = affine_for(low, high, grid, least_span=least_span)
        return ClipCandidate(method, affine, squared_error(histogram, affine))

    if known is not None:
        return [candidate("known", *known)]
    low, high = (histogram.low, histogram.high) if histogram.low <= histogram.high else (0.0, 0.0)
    if within is not None:
        low, high = max(low, min(within[0], 0.0)), min(high, max(within[1], 0.0))
    low, high = min(low, 0.0), max(high, 0.0)
    widest = candidate("min-max", low, high)
    if histogram.is_constant or high - low <= least_span:
        return [widest]
    found = [candidate("mse", *ends) for ends in _least_errors(histogram, low, high, grid)]
    for coverage in COVERAGES:
        ends = histogram.central_range(coverage)
        found.append(candidate(f"percentile {coverage * 100:g}", max(ends[0], low), min(ends[1], high)))
    chosen: dict[tuple[float, int], ClipCandidate] = {}
    for each in sorted(found, key=lambda c: c.squared_error):
        key = (float(each.affine.scale), each.affine.zero_point)
        if key != (float(widest.affine.scale), widest.affine.zero_point):
            chosen.setdefault(key, each)
    return [widest, *chosen.values()]


def least_squared_error(found: Sequence[ClipCandidate]) -> ClipCandidate:
    """Return the candidate with the least squared error on the histogram, the first of equals."""
    return min(found, key=lambda c: c.squared_error)


def guarded(found: Sequence[ClipCandidate], output_error: Callable[[Affine], float]) -> ClipCandidate:
    """Return the candidate with the least output error, the first one unless another is clearly better.

    Args:
        found: candidates, the one to keep in doubt first.
        output_error: error of the outputs of the layers that read the activation under a scale and zero point.
    """
    best, least = found[0], output_error(found[0].affine) * (1 - LEAST_GAIN)
    for each in found[1:]:
        error = output_error(each.affine)
        if error < least:
            best, least = each, error
    return best


@dataclass(frozen=True)
class LayerInput:
    """Sampled inputs of a linear layer, and its matrix.

    Args:
        rows: sampled, float32 [groups, n, columns].
        weight: float32 [groups, out, columns].
        lows: the least value of each input channel over all samples, float32 [channels].
        highs: the greatest.
    """

    rows: np.ndarray
    weight: np.ndarray
    lows: np.ndarray
    highs: np.ndarray

    @property
    def outputs(self) -> np.ndarray:
        """Outputs for the rows, without bias: float32 [groups, n, out]."""
        return np.asarray(self.rows @ self.weight.swapaxes(1, 2))

    @functools.cached_property
    def energy(self) -> float:
        """Sum of squares of the outputs, never zero."""
        return max(float(np.square(self.outputs, dtype=np.float64).sum()), float(np.finfo(np.float32).tiny))

    @functools.cached_property
    def gains(self) -> np.ndarray:
        """The sum of squared weights of each input channel, over outputs and places: float64 [channels]."""
        columns = np.square(self.weight, dtype=np.float64).sum(axis=1)
        return np.asarray(columns.reshape(self.lows.size, -1).sum(axis=1))

    def unseen(self, affine: Affine, clipped: float) -> float:
        """Return the noise of clipped values that the sampled rows lack: rare ones count, too.

        Args:
            affine: scale and zero point.
            clipped: the mean squared distance of all values to the range.
        """
        beyond = np.maximum(np.maximum(affine.low - self.rows, self.rows - affine.high), 0)
        missing = clipped * self.rows.size - float(np.square(beyond, dtype=np.float64).sum())
        excess = np.square(
            np.maximum(np.maximum(affine.low - self.lows, self.highs - affine.high), 0), dtype=np.float64
        )
        if missing <= 0 or not excess.any():
            return 0.0
        places = self.weight.shape[0] * self.weight.shape[2] // self.lows.size
        return float(missing * (self.gains * excess).sum() / excess.sum() / places)


def layer_error(affine: Affine, inputs: Iterable[LayerInput], histogram: Histogram) -> float:
    """Return the noise-to-signal ratio at the outputs of linear layers whose input is quantized, summed over layers.

    Args:
        affine: scale and zero point.
        inputs: the layers.
        histogram: of the input, all samples: values that are clipped too rarely to be in the rows are taken from
            there, and assigned to the channels by how far they exceed the range.
    """
    clipped = _clipped(histogram, affine)
    total = 0.0
    for each in inputs:
        noise = (fake_quantize(each.rows, affine) - each.rows) @ each.weight.swapaxes(1, 2)
        seen = float(np.square(noise, dtype=np.float64).sum())
        total += (seen + each.unseen(affine, clipped)) / each.energy
    return total


def _clipped(histogram: Histogram, affine: Affine) -> float:
    """Return the mean squared distance of values to the range, zeros included."""
    step = float(affine.scale) / 2
    beyond = np.maximum(affine.low - step - histogram.centers, histogram.centers - affine.high - step)
    total = float((np.square(np.maximum(beyond, 0)) * histogram.counts).sum())
    return total / max(histogram.total, 1)


def squared_error(histogram: Histogram, affine: Affine) -> float:
    """Return the mean squared error of quantizing the values of a histogram; zeros have none.

    A bin represents points spread over it, closer than a quarter of a step where that takes no more than eight.
    """
    total = histogram.total
    if not total or not histogram.counts.size:
        return 0.0
    points = int(np.clip(np.ceil(4 * histogram.width / float(affine.scale)), 1, _MOST_POINTS))
    offsets = (np.arange(points) + 0.5) / points - 0.5
    values = histogram.centers[:, None] + offsets * histogram.width
    values = np.clip(values, histogram.low, histogram.high)
    integers = np.clip(np.rint(values / float(affine.scale)) + affine.zero_point, affine.grid.low, affine.grid.high)
    error = np.square((integers - affine.zero_point) * float(affine.scale) - values).mean(axis=1)
    return float(error @ histogram.counts) / total


def _least_errors(histogram: Histogram, low: float, high: float, grid: IntegerGrid) -> list[tuple[float, float]]:
    """Return the ends of the ranges with the least expected error, a few to be evaluated exactly."""
    fractions = np.array(FRACTIONS)
    if grid.symmetric:
        ends = max(-low, high) * fractions
        lows, highs = -ends, ends
    else:
        lows = low * fractions if low < 0 else np.zeros(1)
        highs = high * fractions if high > 0 else np.zeros(1)
    below, above = _outside(histogram, lows, highs)
    outside_counts, outside_errors = (
        (b + a if grid.symmetric else b[:, None] + a[None]) for b, a in zip(below, above, strict=True)
    )
    spans = highs - lows if grid.symmetric else highs[None] - lows[:, None]
    steps = spans / (grid.high - grid.low)
    expected = np.square(steps) / 12 * (histogram.total - histogram.zeros - outside_counts) + outside_errors
    best = np.argsort(expected, axis=None, kind="stable")[:_EVALUATED]
    if grid.symmetric:
        return [(float(lows[i]), float(highs[i])) for i in best]
    rows, columns = np.unravel_index(best, expected.shape)
    return [(float(lows[r]), float(highs[c])) for r, c in zip(rows, columns, strict=True)]


def _outside(
    histogram: Histogram, lows: np.ndarray, highs: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return how many values are below each low, and the squares of their distances; the same above each high."""
    centers, counts = histogram.centers, histogram.counts

    def beyond(ends: np.ndarray, sign: int) -> tuple[np.ndarray, np.ndarray]:
        order = slice(None, None, -sign)
        at = sign * centers[order]  # falling: the outermost first
        weights = counts[order].astype(np.float64)
        sums = [np.concatenate([[0.0], np.cumsum(weights * at**power)]) for power in range(3)]
        number = np.searchsorted(-at, -sign * ends, side="left")
        count, first, second = (each[number] for each in sums)
        limits = sign * ends
        return count, np.maximum(second - 2 * limits * first + np.square(limits) * count, 0.0)

    return beyond(lows, -1), beyond(highs, 1)
