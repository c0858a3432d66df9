"""Moments answer what the rows would: means, covariances and errors, in parts or as a whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.numerics.linear import moments
from onnxcompress.numerics.linear.moments import Moments
from tests.helpers import floats


def rows(groups: int, n: int, columns: int, outputs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return floats(groups, n, columns, seed=seed) + 3, floats(groups, n, outputs, seed=seed + 1) - 2


def summed(x: np.ndarray, y: np.ndarray | None, **options: bool) -> Moments:
    found = Moments(x.shape[0], x.shape[2], 0 if y is None else y.shape[2], **options)
    found.update(x, y)
    return found


def assert_equal(one: Moments, other: Moments) -> None:
    assert one.count == other.count
    for name in ("x", "xx", "y", "xy", "yy"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 3),
    n=st.integers(1, 40),
    columns=st.integers(1, 5),
    outputs=st.integers(1, 4),
    cut=st.integers(0, 40),
    seed=st.integers(0, 100),
)
def test_parts_merge_to_the_whole_and_the_whole_is_what_numpy_finds(groups, n, columns, outputs, cut, seed):
    x, y = rows(groups, n, columns, outputs, seed)
    whole = summed(x, y)
    parts = summed(x[:, :cut], y[:, :cut]).merge(summed(x[:, cut:], y[:, cut:]))
    assert_equal(parts, whole)
    wide, goals = x.astype(np.float64), y.astype(np.float64)
    np.testing.assert_allclose(whole.mean(), wide.mean(1), rtol=1e-12)
    np.testing.assert_allclose(whole.second(), wide.transpose(0, 2, 1) @ wide / n, rtol=1e-12)
    for g in range(groups):
        both = np.cov(np.concatenate([wide[g], goals[g]], 1), rowvar=False, bias=True).reshape(columns + outputs, -1)
        np.testing.assert_allclose(whole.covariance()[g], both[:columns, :columns], atol=1e-9)
        np.testing.assert_allclose(whole.cross_covariance()[g], both[:columns, columns:], atol=1e-9)
        np.testing.assert_allclose(whole.target_variance()[g], np.diag(both[columns:, columns:]), atol=1e-9)
    weights, bias = floats(groups, outputs, columns, seed=seed + 2), floats(groups, outputs, seed=seed + 3)
    missed = goals - wide @ weights.transpose(0, 2, 1) - bias[:, None]
    np.testing.assert_allclose(whole.error(weights, bias), np.square(missed).mean(1), rtol=1e-9, atol=1e-9)


def test_many_rows_are_summed_in_pieces():
    x, y = rows(2, 50, 4, 3, 0)
    pieces = Moments(2, 4, 3)
    pieces.update(x, y, chunk_rows=7)
    assert_equal(pieces, summed(x, y))


def test_without_squares_means_are_known_and_no_more():
    x, y = rows(1, 9, 4, 3, 0)
    part = summed(x, y, is_full=False)
    np.testing.assert_allclose(part.target_mean(), y.mean(1), rtol=1e-6)
    assert part.xx is None
    for ask in (part.second, part.covariance, part.cross_covariance):
        with pytest.raises(ValueError, match="not summed"):
            ask()
    both = part.merge(part)
    assert both.count == 18
    np.testing.assert_allclose(both.target_variance(), part.target_variance(), rtol=1e-12)
    with pytest.raises(ValueError, match="moments of"):
        part.merge(summed(x, y))


def test_rows_that_do_not_fit_are_refused():
    x, y = rows(1, 9, 4, 3, 0)
    with pytest.raises(ValueError, match="columns"):
        Moments(2, 4, 3).update(x, y)
    with pytest.raises(ValueError, match="targets"):
        Moments(1, 4, 3).update(x)
    with pytest.raises(ValueError, match="targets"):
        Moments(1, 4).update(x, y)
    assert summed(x, None).xy is not None


def test_rows_wanted():
    assert moments.rows_wanted(999) == 64000
    assert moments.rows_wanted(1999, per_column=16) == 32000
    assert moments.rows_wanted(2) == 16384
    assert moments.rows_wanted(2, least=10) == 192


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_products_in_single_precision_are_near_those_in_double_even_far_from_zero(offset):
    x, y = floats(2, 9000, 6) + np.float32(offset), floats(2, 9000, 3, seed=1) - np.float32(offset)
    exact, single = summed(x, y), summed(x, y, is_single=True)
    for name in ("x", "y", "yy"):
        np.testing.assert_array_equal(getattr(single, name), getattr(exact, name))
    np.testing.assert_allclose(single.covariance(), exact.covariance(), atol=2e-6)
    np.testing.assert_allclose(single.cross_covariance(), exact.cross_covariance(), atol=2e-6)
    assert (single.xx != exact.xx).any(), "it is another precision"


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_rows_whose_squares_single_precision_can_not_hold_are_summed_in_double(scale):
    x, y = floats(1, 50, 3) * np.float32(scale), floats(1, 50, 2, seed=1)
    assert_equal(summed(x, y, is_single=True), summed(x, y))
    assert_equal(summed(y, x, is_single=True), summed(y, x))
