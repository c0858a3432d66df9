"""Least squares from moments: numpy's without penalty, the old weights with a large one, none that is worse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.numerics.linear import ridge
from onnxcompress.numerics.linear.moments import Moments
from onnxcompress.numerics.linear.positive_definite import NotFiniteError
from tests.helpers import floats


def summed(x: np.ndarray, y: np.ndarray, *, is_full: bool = True) -> Moments:
    made = Moments(x.shape[0], x.shape[2], y.shape[2], is_full=is_full)
    made.update(x, y)
    return made


def problem(groups: int, n: int, columns: int, outputs: int, seed: int, noise: float = 0.5):
    x = floats(groups, n, columns, seed=seed) + 2
    truth, offset = floats(groups, outputs, columns, seed=seed + 1), floats(groups, 1, outputs, seed=seed + 2)
    return x, x @ truth.transpose(0, 2, 1) + offset + noise * floats(groups, n, outputs, seed=seed + 3), truth


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 3),
    columns=st.integers(1, 5),
    outputs=st.integers(1, 3),
    seed=st.integers(0, 100),
    has_bias=st.booleans(),
)
def test_a_vanishing_penalty_gives_least_squares_and_a_huge_one_the_old_weights(
    groups, columns, outputs, seed, has_bias
):
    x, y, _ = problem(groups, 60, columns, outputs, seed)
    old, bias = floats(groups, outputs, columns, seed=seed + 4), floats(groups, outputs, seed=seed + 5)
    moments = summed(x, y)
    found, found_bias = ridge.solve(moments, old.astype(float), bias.astype(float), ratio=1e-12, has_bias=has_bias)
    for g in range(groups):
        if has_bias:
            wide = np.concatenate([x[g], np.ones((60, 1))], 1).astype(float)
            expected = np.linalg.lstsq(wide, y[g].astype(float), rcond=None)[0].T
            np.testing.assert_allclose(found_bias[g], expected[:, -1], atol=1e-4)
            expected = expected[:, :-1]
        else:
            expected = np.linalg.lstsq(x[g].astype(float), (y[g] - bias[g]).astype(float), rcond=None)[0].T
            np.testing.assert_array_equal(found_bias[g], bias[g])
        np.testing.assert_allclose(found[g], expected, atol=1e-4)
    stay, _ = ridge.solve(moments, old.astype(float), bias.astype(float), ratio=1e12, has_bias=has_bias)
    np.testing.assert_allclose(stay, old, atol=1e-4)


def test_the_penalty_is_the_mean_diagonal_in_parts():
    x, y, _ = problem(1, 60, 3, 2, 0)
    moments, old, bias = summed(x, y), np.zeros((1, 2, 3)), np.zeros((1, 2))
    found, _ = ridge.solve(moments, old, bias, ratio=0.1, has_bias=True)
    centred, goals = (a[0].astype(float) - a[0].mean(0) for a in (x, y))
    penalty = 0.1 * np.trace(centred.T @ centred) / 3
    expected = np.linalg.solve(centred.T @ centred + penalty * np.eye(3), centred.T @ goals).T
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def fitted(old: np.ndarray, *, n: int = 400, noise: float = 0.5, **options):
    x, y, truth = problem(1, n + 300, 6, 2, 7, noise)
    bias = options.pop("bias", np.zeros((1, 2)))
    train, held_out = summed(x[:, :n], y[:, :n]), summed(x[:, n:], y[:, n:])
    return ridge.fit(train, held_out, old, bias, **{"has_bias": True} | options), held_out, truth


def test_weights_that_are_far_off_are_fitted():
    found, held_out, truth = fitted(np.zeros((1, 2, 6)))
    assert found.before > 1
    assert found.after == pytest.approx(0.25 / held_out.target_variance().mean(), rel=0.2)
    np.testing.assert_allclose(found.weights, truth, atol=0.1)
    assert found.ratio == min(ridge.RATIOS)
    assert ridge.relative_error(held_out, found.weights, found.bias) < found.before


def test_few_noisy_rows_are_held_to_a_larger_penalty_than_many():
    truth = problem(1, 1, 6, 2, 7)[2]
    near = truth + 0.3 * floats(1, 2, 6, seed=9)
    few, many = (fitted(near, n=n, noise=3.0)[0].ratio for n in (12, 5000))
    assert many is not None
    assert few is None or few > many


def test_a_fit_to_something_else_is_refused():
    """The rows to solve from follow another law than the held-out ones: the old weights, which are right, stay."""
    x, y, truth = problem(1, 700, 6, 2, 7, 0.1)
    right = y.mean(1) - np.einsum("gok,gk->go", truth, x.mean(1))
    wrong, other = summed(x[:, :400], -y[:, :400]), summed(x[:, 400:], y[:, 400:])
    found = ridge.fit(wrong, other, truth, right, has_bias=True)
    assert found.after == found.before
    np.testing.assert_array_equal(found.weights, truth)
    np.testing.assert_array_equal(found.bias, right)


def test_a_bias_alone():
    truth = problem(1, 1, 6, 2, 7)[2].astype(float)
    found, _, _ = fitted(truth, noise=0.1, ratios=())
    assert found.ratio is None
    assert found.after < found.before / 10
    np.testing.assert_array_equal(found.weights, truth)
    kept, _, _ = fitted(truth, ratios=(), has_bias=False)
    assert kept.after == kept.before
    np.testing.assert_array_equal(kept.bias, 0)


def test_a_bias_from_means():
    x, y, truth = problem(1, 700, 6, 2, 7, 0.1)
    parts = [summed(x[:, s], y[:, s], is_full=False) for s in (slice(400), slice(400, None))]
    found = ridge.fit(*parts, truth, np.zeros((1, 2)), has_bias=True)
    np.testing.assert_allclose(found.bias, y.mean(1) - np.einsum("gok,gk->go", truth, x.mean(1)), atol=1e-5)
    assert found.after < found.before / 100
    again = ridge.fit(*parts, found.weights, found.bias, has_bias=True)
    assert again.after <= again.before
    assert ridge.fit(*parts, truth, np.zeros((1, 2)), has_bias=False).after == found.before


def test_nothing_to_learn_and_nothing_to_learn_from():
    x, _, truth = problem(1, 300, 6, 2, 7)
    exact = x @ truth.transpose(0, 2, 1)
    found = ridge.fit(summed(x, exact), summed(x, exact), truth, np.zeros((1, 2)), has_bias=True)
    np.testing.assert_array_equal(found.weights, truth)
    constant = np.ones_like(x)
    found = ridge.fit(summed(constant, exact), summed(constant, exact), truth, np.zeros((1, 2)), has_bias=True)
    np.testing.assert_array_equal(found.weights, truth)
    np.testing.assert_allclose(found.bias + truth.sum(2), exact.mean(1), atol=1e-4)


def test_rows_that_are_no_numbers_are_named():
    x, y, truth = problem(1, 300, 6, 2, 7)
    good, broken = summed(x, y), summed(x * np.nan, y)
    for train, held_out in ((good, broken), (broken, good)):
        with pytest.raises(NotFiniteError, match="the sum over a layer's inputs"):
            ridge.fit(train, held_out, truth, np.zeros((1, 2)), has_bias=True)


def test_a_penalty_too_small_for_equal_columns_is_widened():
    x, y, _ = problem(1, 300, 1, 2, 7)
    x = np.repeat(x, 4, axis=2)
    moments, old, bias = summed(x, y), np.zeros((1, 2, 4)), np.zeros((1, 2))
    weights, bias = ridge.solve(moments, old, bias, ratio=1e-30, has_bias=True)
    np.testing.assert_allclose(weights, np.broadcast_to(weights[:, :, :1], weights.shape), rtol=1e-3)
    least = ridge.solve(moments, old, bias, ratio=1e-9, has_bias=True)
    assert ridge.relative_error(moments, weights, bias) <= ridge.relative_error(moments, *least) * (1 + 1e-6)
