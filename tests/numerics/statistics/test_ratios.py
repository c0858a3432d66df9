"""Ratios of sums, and their intervals by resampling samples."""

import numpy as np
import pytest
from scipy.stats import t

from onnxcompress.numerics.statistics.estimate import Estimate
from onnxcompress.numerics.statistics.ratios import mean_interval, worst_ratio


def test_the_worst_group_counts():
    over, under = np.array([[1.0, 8.0], [3.0, 0.0]]), np.array([[10.0, 1.0], [10.0, 3.0]])
    found = worst_ratio(over, under)
    assert found.value == 2
    assert found.low <= 2 <= found.high


def test_equal_samples_leave_no_doubt_and_one_sample_leaves_much():
    found = mean_interval(np.full(20, 0.3))
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.3, 0.3))
    assert mean_interval(np.array([0.2])) == Estimate(0.2, 0.05, 0.8)


def test_the_interval_is_about_that_of_students_t_and_the_same_each_time():
    values = np.random.default_rng(0).standard_normal(30)
    found = mean_interval(values)
    half = t.ppf(0.95, 29) * values.std(ddof=1) / np.sqrt(30)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.15)
    assert found == mean_interval(values)


def test_the_interval_holds_the_mean_of_skewed_samples_in_most_cases():
    random = np.random.default_rng(1)
    held = [found.low <= 1 <= found.high for found in (mean_interval(random.gamma(1, 1, 32)) for _ in range(200))]
    assert 0.82 < np.mean(held) < 0.95
