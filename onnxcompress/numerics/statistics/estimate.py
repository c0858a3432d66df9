"""An estimated quantity with its 90% interval."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.special import ndtri


@dataclass(frozen=True)
class Estimate:
    """An estimate and the ends of its 90% interval, in the unit of the quantity."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Estimate:
        """Return a value that is known."""
        return cls(value, value, value)

    def upper(self, confidence: float) -> float:
        """Return what the quantity is below with some probability, above one half; .95 gives `high`."""
        return self.value + (self.high - self.value) * float(ndtri(confidence) / ndtri(0.95))

    def scaled(self, factor: float) -> Estimate:
        """Return the estimate in another unit; `factor` is positive."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def at_least(self, other: Estimate) -> Estimate:
        """Return the larger of two estimates, end by end."""
        return Estimate(max(self.value, other.value), max(self.low, other.low), max(self.high, other.high))
