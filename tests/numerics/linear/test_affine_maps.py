"""The formulas of numerics/affine_maps.py against plain arithmetic, on random arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.numerics.linear.affine_maps import AffineMap, batch_norm, grouped, respond_grouped, scaled, stored

seeds = st.integers(0, 2**32 - 1)


def _random_map(generator: np.random.Generator, size: int) -> AffineMap:
    return AffineMap.of(scale=generator.normal(size=size), shift=generator.normal(size=size))


@given(seeds, st.integers(1, 5))
def test_a_map_after_another(seed: int, size: int) -> None:
    generator = np.random.default_rng(seed)
    one, two = _random_map(generator, size), _random_map(generator, 1)
    x = generator.normal(size=(7, size))
    both = one.then(two)
    np.testing.assert_allclose(
        both.scale * x + both.shift, two.scale * (one.scale * x + one.shift) + two.shift, atol=1e-12
    )


@given(seeds)
def test_then_is_associative(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b, c = (_random_map(generator, 4) for _ in range(3))
    left, right = a.then(b).then(c), a.then(b.then(c))
    np.testing.assert_allclose(left.scale, right.scale, atol=1e-12)
    np.testing.assert_allclose(left.shift, right.shift, atol=1e-12)


@given(seeds)
def test_batch_norm_is_its_definition(seed: int) -> None:
    generator = np.random.default_rng(seed)
    gamma, beta, mean = generator.normal(size=(3, 6))
    variance = generator.uniform(0.01, 4, size=6)
    x = generator.normal(size=(5, 6))
    found = batch_norm(gamma, beta, mean, variance, 1e-3)
    assert found is not None
    expected = gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta
    np.testing.assert_allclose(found.scale * x + found.shift, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variance", [[-1.0, 1.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_no_map_for_a_variance_that_is_none(variance: list[float]) -> None:
    assert batch_norm([1, 1], [0, 0], [0, 0], variance, 1e-5) is None


def test_no_map_for_a_zero_variance_and_epsilon() -> None:
    assert batch_norm([1], [0], [0], [0], 0.0) is None
    assert batch_norm([1], [np.inf], [0], [1], 0.0) is None


@given(seeds, st.sampled_from([1, 2, 3]), st.booleans())
def test_grouped_factors_are_those_of_each_channel(seed: int, groups: int, uniform: bool) -> None:
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(2 * groups, 4, 3))
    scale = generator.normal(size=1 if uniform else groups * 4)
    factors = grouped(scale, weight.shape, block_axis=0, channel_axis=1, groups=groups)
    found = np.broadcast_to(factors, weight.shape)
    for row in range(2 * groups):
        for column in range(4):
            expected = scale[0] if uniform else scale[row // 2 * 4 + column]
            assert (found[row, column] == expected).all()


@given(seeds, st.sampled_from([1, 2]))
def test_response_is_that_of_a_constant_input(seed: int, groups: int) -> None:
    generator = np.random.default_rng(seed)
    weight, shift = generator.normal(size=(4, 3, 2, 2)), generator.normal(size=3 * groups)
    found = respond_grouped(weight, shift, groups=groups)
    for row in range(4):
        own = shift[3 * (row // (4 // groups)) :][:3]
        assert found[row] == pytest.approx(sum(weight[row, i].sum() * own[i] for i in range(3)), abs=1e-12)


def test_scaling_by_blocks_of_rows_is_scaling() -> None:
    weight = np.arange(24, dtype=np.float32).reshape(6, 4)
    rows, columns = np.arange(1.0, 7.0).reshape(6, 1), np.arange(1.0, 5.0).reshape(1, 4)
    for factors in (rows, columns, rows * columns, np.full((1, 1), 2.0)):
        found = scaled(weight, factors, block=5)
        assert found is not None
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, (weight * factors).astype(np.float32))
    assert scaled(np.float32([1.0]), np.array([1e39])) is None


def test_rounding_loses_no_more_than_the_type_does() -> None:
    half = np.dtype(np.float16)
    assert stored(np.array([1.0, 1e5]), half) is None, "overflow"
    assert stored(np.array([1e-7, 3.3e-7]), half) is None, "below the smallest normal number"
    found = stored(np.array([1.0001, -3.7]), half)
    assert found is not None
    np.testing.assert_array_equal(found, np.array([1.0001, -3.7], np.float16))
    mixed = np.array([[1.0, 2.0], [1e-7, 3.3e-7]])
    assert stored(mixed, half) is not None, "beside large numbers of the same channel it does not matter"
    assert stored(mixed, half, axis=0) is None, "in a channel of its own it does"
    assert stored(np.array([1e-300]), np.dtype(np.float64)) is not None
