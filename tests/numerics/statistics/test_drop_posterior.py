"""The loss estimated without labels: its formulas by another calculation, and what must hold of any estimate."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gamma

from onnxcompress.numerics.statistics.drop_posterior import drop_posterior
from onnxcompress.numerics.statistics.estimate import Estimate

ROWS = {"rows": 1.0, "confidence": 0.9, "chance": 0.1}
SHARES = st.floats(0, 1)


def _by_scipy(lost, divergence, *, rows, confidence, chance):
    n, top, total = len(lost), confidence - chance, lost.sum()
    mean = divergence.mean()
    prior = top * (1 - np.exp(-(0.1 + 0.25 * confidence) * mean / top))
    t2 = 0.35**2 + divergence.var() / (n * mean**2)
    event = (((lost - lost.mean()) ** 2).sum() + 0.09 / rows) / (total + 0.3)
    a, b = 1 / t2 + total / event, 1 / (t2 * prior) + n / event
    low, high = gamma.ppf([0.05, 0.95], a, scale=1 / b)
    return a / b, low / 1.25 - 0.002, high * 1.25 + 0.002


@pytest.mark.parametrize(("count", "rows"), [(16, 1.0), (64, 1.0), (64, 49.0), (1, 1.0)])
def test_the_formulas_are_those_of_the_gamma_distribution(count, rows):
    random = np.random.default_rng(count)
    lost = np.where(random.random(count) < 0.1, random.random(count), 0.0)
    divergence = random.gamma(0.5, 0.05, count)
    facts = ROWS | {"rows": rows}
    found = drop_posterior(lost, divergence, **facts)
    assert (found.value, found.low, found.high) == pytest.approx(_by_scipy(lost, divergence, **facts), rel=1e-9)


def test_models_that_are_equal_lose_nothing():
    assert drop_posterior(np.zeros(64), np.zeros(64), **ROWS) == Estimate(0, 0, 0)
    assert drop_posterior(np.zeros(64), np.full(64, 1e-10), **ROWS) == Estimate(0, 0, 0)


def test_gains_are_no_evidence():
    divergence = np.full(8, 0.01)
    assert drop_posterior(np.full(8, -0.2), divergence, **ROWS) == drop_posterior(np.zeros(8), divergence, **ROWS)


@settings(deadline=None)
@given(st.lists(st.floats(0, 3), min_size=2, max_size=80), st.floats(1.01, 5), st.floats(0.2, 1), SHARES)
def test_the_estimate_rises_with_the_divergence_and_lies_in_its_interval(values, factor, confidence, part):
    divergence = np.array(values)
    lost = np.zeros(len(values))
    lost[0] = part
    facts = {"rows": 1.0, "confidence": confidence, "chance": 0.01}
    one, more = drop_posterior(lost, divergence, **facts), drop_posterior(lost, divergence * factor, **facts)
    for found in (one, more):
        assert found.low <= found.value <= found.high
        assert found.value >= 0
    assert more.value >= one.value * (1 - 1e-9)


@settings(deadline=None)
@given(st.integers(0, 6), st.floats(0.001, 0.1), SHARES)
def test_no_single_decision_of_64_decides(flips, mean, size):
    divergence = np.random.default_rng(flips).gamma(0.5, 2 * mean, 64)
    lost = np.zeros(64)
    lost[:flips] = 0.3
    before = drop_posterior(lost, divergence, **ROWS).value
    lost[flips] = size
    after = drop_posterior(lost, divergence, **ROWS).value
    assert abs(after - before) < (1 / 64 if size <= 0.5 else 2 / 64)


def test_more_evidence_is_a_larger_loss():
    divergence = np.full(64, 0.05)
    found = [
        drop_posterior(np.r_[np.full(k, 0.4), np.zeros(64 - k)], divergence, **ROWS).value for k in range(0, 20, 2)
    ]
    assert found == sorted(found)
