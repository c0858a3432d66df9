"""Adam finds the least of a bowl; the rate rises, then falls to nothing."""

import numpy as np
import pytest

from onnxcompress.numerics.optimization.adam import Adam, falling


def test_it_finds_the_least_of_a_bowl_whatever_the_scales():
    goal = {"a": np.array([1.0, -2.0], np.float32), "b": np.array([[0.5]], np.float32)}
    adam = Adam({name: np.zeros_like(array) for name, array in goal.items()})
    for step in range(400):
        slopes = {"a": 1e4 * (adam.values["a"] - goal["a"]), "b": 1e-3 * (adam.values["b"] - goal["b"])}
        adam.step(slopes, 0.05 * falling(step, 400))
    for name, array in goal.items():
        np.testing.assert_allclose(adam.values[name], array, atol=0.02)
        assert adam.values[name].dtype == np.float32


def test_the_first_step_is_as_large_as_the_rate_and_the_given_arrays_stay():
    start = np.zeros(3, np.float32)
    adam = Adam({"w": start})
    adam.step({"w": np.array([1e-3, -5.0, 70.0], np.float32)}, 0.01)
    np.testing.assert_allclose(adam.values["w"], [-0.01, 0.01, -0.01], rtol=1e-3)
    assert not start.any()


def test_the_rate_rises_and_falls():
    rates = [falling(step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(1.0, abs=0.02)
    assert rates[0] < 0.3
    assert rates[-1] < 0.01
    assert falling(0, 1) == 1.0
