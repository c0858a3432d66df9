"""Scales between the channels of an activation and the weights that read it, so that both are easier to quantize.

    W x = (W diag(s)) (diag(1/s) x)

for the channels of x, wherever 1/s can be moved into the layer that computes x. Cross-layer equalization (Nagel et al.,
arXiv 1906.04721, eq. 11) balances the weights on both sides; SmoothQuant (Xiao et al., arXiv 2211.10438, eq. 4) moves a
part alpha of the activation's range into the weight:

    s_j = sqrt(max|W1_j| / max|W2_j|)                   s_j = max|x_j|^alpha / max|W2_j|^(1 - alpha)

Where weights alone are rounded, to few bits in blocks, AWQ (Lin et al., arXiv 2306.00978, eq. 4 and 5) makes weights
that meet large activations larger:

    s_j = mean|x_j|^alpha

Scales are rounded to powers of two: multiplying by these is exact, so that the float model computes the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .affine_activations import Affine, IntegerGrid, affine_for, fake_quantize
from .blocks import BlockGrid, round_nearest
from .clipping import LayerInput, candidates, least_squared_error
from .histograms import Histogram

ALPHAS = (0.25, 0.5, 0.75, 1.0)
"""Parts of the ranges that are moved. Chosen by judgement; not measured."""
_BLOCK_CANDIDATES = 4
"""Clipped ranges of a block that are tried for each scale, for time. Chosen by judgement; not measured."""
_MOST = 12
"""Largest exponent of a scale: beyond it numbers may leave the range of their type. Chosen by judgement; not
measured."""


@dataclass(frozen=True)
class ScaledReader(LayerInput):
    """A linear layer that reads the activation; scales are exact, so that its outputs are the same for all of them."""

    @functools.cached_property
    def outputs(self) -> np.ndarray:
        """Outputs for the rows, without bias: float32 [groups, n, out]."""
        return super().outputs

    @property
    def peaks(self) -> np.ndarray:
        """The largest magnitude of each input channel."""
        return np.asarray(np.maximum(-self.lows, self.highs))

    @property
    def means(self) -> np.ndarray:
        """The mean magnitude of each input channel in the rows, float32 [channels]."""
        return np.asarray(by_channel(np.abs(self.rows).mean(axis=1), self.lows.size).mean(axis=1))

    @property
    def weight_peaks(self) -> np.ndarray:
        """Largest magnitude of the weights of each input channel, float32 [channels]."""
        return np.asarray(by_channel(np.abs(self.weight).max(axis=1), self.lows.size).max(axis=1))


@dataclass(frozen=True)
class Maker:
    """The linear layer that computes the activation: sampled `rows` and `weight` as in `ScaledReader`."""

    rows: np.ndarray
    weight: np.ndarray


class Simulation(Protocol):
    """Simulated quantization of layers whose input channels are divided by scales, float32 [channels]."""

    def tried(self, readers: Sequence[ScaledReader], maker: Maker | None, /) -> Mapping[str, np.ndarray]:
        """Return candidate scales by name."""

    def error(self, reader: ScaledReader, scale: np.ndarray) -> float:
        """Return noise to signal of a layer's output."""

    def maker_error(self, maker: Maker, readers: Sequence[ScaledReader], scale: np.ndarray, /) -> float:
        """Return the error from rounding the maker's weight, to first order and as if all of it reached the readers."""


@dataclass(frozen=True)
class Int8Simulation:
    """Weights and activations of 8 bits, as a target quantizes them.

    Args:
        grid: the integers of activations.
        per_channel: each output channel of a weight has a scale of its own.
        clips: the range of activations may be narrower than their values.
    """

    grid: IntegerGrid
    per_channel: bool
    clips: bool = True

    def tried(self, readers: Sequence[ScaledReader], maker: Maker | None) -> Mapping[str, np.ndarray]:
        """Return scales that move a part of the ranges into the weights, and those that balance both weights."""
        peaks = np.max([reader.peaks for reader in readers], axis=0)
        weights = np.max([reader.weight_peaks for reader in readers], axis=0)
        tried = {f"alpha {alpha:g}": migration(peaks, weights, alpha) for alpha in ALPHAS}
        if maker is not None:
            tried["cross-layer"] = migration(np.abs(maker.weight).max(axis=2).reshape(-1), weights, 0.5)
        return tried

    def weight(self, weight: np.ndarray) -> np.ndarray:
        """Return a weight [groups, out, columns] rounded to 8 symmetric bits."""
        axis = 2 if self.per_channel else None
        scale = np.maximum(np.abs(weight).max(axis=axis, keepdims=True) / 127, np.finfo(np.float32).tiny)
        return np.asarray(np.clip(np.rint(weight / scale), -127, 127) * scale, np.float32)

    def error(self, reader: ScaledReader, scale: np.ndarray) -> float:
        """Return noise to signal of a layer's output, with the better range of its input."""
        spread = spread_to(scale, reader.rows.shape[0], reader.rows.shape[2])
        rows, weight = reader.rows / spread, reader.weight * spread
        rounded = self.weight(weight).swapaxes(1, 2)
        ranges = self._ranges(rows, float((reader.lows / scale).min()), float((reader.highs / scale).max()))
        noises = (fake_quantize(rows, affine) @ rounded - reader.outputs for affine in ranges)
        return min(float(np.square(noise, dtype=np.float64).sum()) for noise in noises) / reader.energy

    def maker_error(self, maker: Maker, readers: Sequence[ScaledReader], scale: np.ndarray) -> float:
        """Return the error from rounding the maker's weight, to first order and as if all of it reached the readers."""
        if self.per_channel:
            return 0.0  # each channel has a scale of its own that follows
        groups, out, _ = maker.weight.shape
        weight = maker.weight / scale.reshape(groups, out, 1)
        noise = maker.rows @ (self.weight(weight) - weight).swapaxes(1, 2)
        variance = np.square(noise, dtype=np.float64).mean(axis=1).reshape(-1)
        total = 0.0
        for reader in readers:
            gain = by_channel(np.square(reader.weight, dtype=np.float64).sum(axis=1), scale.size).sum(axis=1)
            signal = reader.energy / reader.rows.shape[1]
            total += float((variance * np.square(scale) * gain).sum() / signal)
        return total

    def _ranges(self, rows: np.ndarray, low: float, high: float) -> list[Affine]:
        """Return the range of all values, and the best one for the sampled rows where clipping is allowed."""
        whole = affine_for(low, high, self.grid)
        if not self.clips:
            return [whole]
        histogram = Histogram()
        histogram.update(rows)
        return [whole, least_squared_error(candidates(histogram, self.grid)).affine]


@dataclass(frozen=True)
class BlockSimulation:
    """Weights alone in few bits, on the integers of `grid`; rounding of the maker follows its scales."""

    grid: BlockGrid

    def tried(self, readers: Sequence[ScaledReader], _maker: Maker | None) -> Mapping[str, np.ndarray]:
        """Return powers of the mean magnitudes of the channels (AWQ, eq. 5)."""
        means = np.mean([reader.means for reader in readers], axis=0)
        return {f"activation-aware, alpha {alpha:g}": migration(means, np.ones_like(means), alpha) for alpha in ALPHAS}

    def error(self, reader: ScaledReader, scale: np.ndarray) -> float:
        """Return noise to signal of a layer's output, its weights rounded to the nearest with clipping."""
        spread = spread_to(scale, reader.rows.shape[0], reader.rows.shape[2])
        noise = 0.0
        for rows, weight in zip(reader.rows / spread, reader.weight * spread, strict=True):
            importance = np.square(rows).mean(axis=0)
            rounded = round_nearest(weight, self.grid, importance, candidates=_BLOCK_CANDIDATES).floats()
            noise += float(np.square(rows @ (rounded - weight).T, dtype=np.float64).sum())
        return noise / reader.energy

    def maker_error(self, _maker: Maker, _readers: Sequence[ScaledReader], _scale: np.ndarray) -> float:
        """Return 0: each output of the maker has scales of its own, which follow."""
        return 0.0


def best_scale(
    simulation: Simulation, readers: Sequence[ScaledReader], maker: Maker | None
) -> tuple[np.ndarray, str, float, float]:
    """Return the scales of channels with the least simulated error, float32 [channels], all powers of two.

    Returns:
        the scales; their name ("alpha 0.5", "cross-layer", "" for none); the error without and with them:
        noise to signal, summed over the readers.
    """

    def error(scale: np.ndarray) -> float:
        own = 0.0 if maker is None else simulation.maker_error(maker, readers, scale)
        return own + sum(simulation.error(reader, scale) for reader in readers)

    best, how = np.ones_like(readers[0].lows), ""
    before = least = error(best)
    for name, scale in simulation.tried(readers, maker).items():
        found = error(scale)
        if found < least:
            best, how, least = scale, name, found
    return best, how, before, least


def migration(peaks: np.ndarray, weight_peaks: np.ndarray, alpha: float) -> np.ndarray:
    """Return s = peaks^alpha / weight_peaks^(1 - alpha), as powers of two around 1; 1 for channels without effect."""
    alive = (peaks > 0) & (weight_peaks > 0) & np.isfinite(peaks) & np.isfinite(weight_peaks)
    exponents = np.zeros(peaks.size)
    logs = alpha * np.log2(peaks[alive], dtype=np.float64) - (1 - alpha) * np.log2(
        weight_peaks[alive], dtype=np.float64
    )
    if logs.size:
        exponents[alive] = np.clip(np.rint(logs - np.median(logs)), -_MOST, _MOST)
    return np.ldexp(np.float32(1), exponents.astype(np.int32))


def spread_to(scale: np.ndarray, groups: int, columns: int) -> np.ndarray:
    """Return the scales of channels for the columns of a matrix: float32 [groups, 1, columns]."""
    return np.repeat(scale, groups * columns // scale.size).reshape(groups, 1, columns)


def by_channel(columns: np.ndarray, channels: int) -> np.ndarray:
    """Return values of columns [groups, columns] by input channel: [channels, columns of each]."""
    return columns.reshape(channels, -1)
