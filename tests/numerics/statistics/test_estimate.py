"""Estimates with their intervals."""

import pytest
from scipy.stats import norm

from onnxcompress.numerics.statistics.estimate import Estimate


def test_the_upper_end_moves_with_the_confidence():
    found = Estimate(0.01, 0.0, 0.03)
    assert found.upper(0.95) == pytest.approx(0.03)
    assert found.upper(0.5) == 0.01
    assert found.upper(0.8) == pytest.approx(0.01 + 0.02 * norm.ppf(0.8) / norm.ppf(0.95))


def test_estimates_are_scaled_and_the_larger_is_taken_end_by_end():
    assert Estimate(1, 0, 3).scaled(2) == Estimate(2, 0, 6)
    assert Estimate(1, 0, 3).at_least(Estimate(0.5, 0.2, 4)) == Estimate(1, 0.2, 4)
    assert Estimate.exact(0.5) == Estimate(0.5, 0.5, 0.5)
