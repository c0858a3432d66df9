"""Affine quantization of activations: one scale and one zero point for a range of real numbers.

    q = clip(round(x / s) + z, low, high)        x' = s (q - z)

(Jacob et al., arXiv 1712.05877, eq. 1; Nagel et al., arXiv 2106.08295, eq. 4 to 6.) Zero is represented exactly: a
range is widened to hold it, and z is a whole number. Rounding is to nearest, ties to even, in float32 as runtimes do.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

Kind = Literal["u8", "s8", "u16", "s16"]

LEAST_SPAN = 1e-6
"""Width that narrower ranges are widened to: a value that never changes needs a scale too. Chosen by judgement; not
measured."""

_LIMITS = MappingProxyType({"u8": (0, 255), "s8": (-128, 127), "u16": (0, 65535), "s16": (-32768, 32767)})
_DTYPES = MappingProxyType({"u8": np.uint8, "s8": np.int8, "u16": np.uint16, "s16": np.int16})


@dataclass(frozen=True)
class IntegerGrid:
    """The integers of a type; `symmetric` ones have a fixed zero point in their middle.

    The lowest integer of a symmetric grid is not used, so that it reaches as far to both sides.
    """

    kind: Kind
    symmetric: bool = False

    @property
    def low(self) -> int:
        """The least integer."""
        return _LIMITS[self.kind][0] + self.symmetric

    @property
    def high(self) -> int:
        """The greatest integer."""
        return _LIMITS[self.kind][1]

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid."""
        return (_LIMITS[self.kind][0] + _LIMITS[self.kind][1] + 1) // 2

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type that holds the integers."""
        return np.dtype(_DTYPES[self.kind])


@dataclass(frozen=True)
class Affine:
    """A scale, a positive normal float32, and a zero point on a grid."""

    grid: IntegerGrid
    scale: np.float32
    zero_point: int

    @property
    def low(self) -> float:
        """The least real number that is represented."""
        return float(self.scale) * (self.grid.low - self.zero_point)

    @property
    def high(self) -> float:
        """The greatest real number that is represented."""
        return float(self.scale) * (self.grid.high - self.zero_point)


def affine_for(low: float, high: float, grid: IntegerGrid, *, least_span: float = LEAST_SPAN) -> Affine:
    """Return the scale and zero point for the range [low, high].

    The range is widened to hold 0 and to be `least_span` wide at least. A range that begins or ends at 0 has its zero
    point at that end of the grid, and its other end is not exceeded by more than float32 rounds, which never leads
    outwards: an activation that limits the range stays redundant after it.

    Raises:
        ValueError: the range is not finite, or too wide for a float32 scale.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"[{low}, {high}] is no range")
    if high - low < least_span:
        low, high = (low, low + least_span) if high >= -low else (high - least_span, high)
    exact = max(-low, high) / (grid.high - grid.middle) if grid.symmetric else (high - low) / (grid.high - grid.low)
    if exact > float(np.finfo(np.float32).max):
        raise ValueError(f"[{low:g}, {high:g}] needs a scale beyond float32")
    scale = max(_rounded_inwards(exact, grid), np.finfo(np.float32).tiny)
    zero_point = grid.middle if grid.symmetric else int(np.clip(np.rint(grid.low - low / exact), grid.low, grid.high))
    return Affine(grid, scale, zero_point)


def quantize(array: np.ndarray, affine: Affine) -> np.ndarray:
    """Return the integers of an array, in the type of the grid."""
    return _integers(array, affine).astype(affine.grid.dtype)


def fake_quantize(array: np.ndarray, affine: Affine) -> np.ndarray:
    """Return an array as it comes back from its integers, float32."""
    work = _integers(array, affine)
    work -= np.float32(affine.zero_point)
    work *= affine.scale
    return work


def _integers(array: np.ndarray, affine: Affine) -> np.ndarray:
    work: np.ndarray = np.divide(array, affine.scale, dtype=np.float32)
    np.rint(work, out=work)
    work += np.float32(affine.zero_point)
    np.clip(work, affine.grid.low, affine.grid.high, out=work)
    return work


def _rounded_inwards(exact: float, grid: IntegerGrid) -> np.float32:
    """Return the greatest float32 with which the grid does not reach beyond `exact` times its steps."""
    scale = np.float32(exact)
    steps = np.float32(grid.high - grid.middle if grid.symmetric else grid.high - grid.low)
    while float(scale) > exact or float(scale * steps) > exact * float(steps):
        scale = np.nextafter(scale, np.float32(0))
    return scale
