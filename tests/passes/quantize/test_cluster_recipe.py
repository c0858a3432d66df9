"""Optimal few values: no worse than an even grid, exact where there are few, zeros kept."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.numerics.quantization.kmeans import codebook, nearest


def _error(values, centers):
    return float(np.square(values - centers[nearest(values, centers)]).sum())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 40), st.sampled_from([1, 3, 30]), st.integers(0, 2**32 - 1))
def test_each_value_is_the_mean_of_what_it_stands_for_or_zero(size, count, freedom, seed):
    values = np.random.default_rng(seed).standard_t(freedom, size).astype(np.float32)
    centers = codebook(values, count)
    assert 1 <= len(centers) <= count
    assert np.all(np.diff(centers) > 0)
    index = nearest(values, centers)
    assert np.array_equal(index, np.abs(values[:, None] - centers).argmin(axis=1)) or np.allclose(
        np.abs(values - centers[index]), np.abs(values[:, None] - centers).min(axis=1)
    )
    if len(np.unique(values)) <= count:
        assert _error(values, centers) == 0


def test_it_is_better_than_an_even_grid_and_near_the_best_for_a_normal():
    values = np.random.default_rng(0).standard_normal(200_000)
    for count, best in ((2, 0.3634), (4, 0.1175), (8, 0.03454), (16, 0.009497)):  # Max 1960, table I
        found = _error(values, codebook(values, count)) / len(values)
        assert found < best * 1.05
    even = np.linspace(values.min(), values.max(), 16)
    assert _error(values, codebook(values, 16)) < 0.3 * _error(values, even)


def test_zeros_stay_zero():
    values = np.random.default_rng(1).standard_normal(1000).astype(np.float32) + 0.4
    values[::3] = 0
    centers = codebook(values, 8)
    assert 0 in centers
    assert np.all(centers[nearest(values, centers)][::3] == 0)
    assert 0 not in codebook(values[values != 0], 8)


def test_nothing_and_little():
    assert codebook(np.zeros((0, 3), np.float32), 4).tolist() == [0.0]
    assert codebook(np.array([2.0, 2.0, -1.0]), 4).tolist() == [-1.0, 2.0]
