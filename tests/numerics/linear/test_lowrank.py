"""Whitened decompositions: no factors of their rank do better, and their errors are what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.numerics.linear.lowrank import input_basis, output_basis


def _case(outputs: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((200, columns)) @ (
        random.standard_normal((columns, columns)) * random.random(columns)
    )
    return random.standard_normal((outputs, columns)), np.cov(rows.T, bias=True).reshape(columns, columns)


def _error(gap: np.ndarray, covariance: np.ndarray) -> float:
    return float(np.einsum("oi,ij,oj->", gap, covariance, gap))


def _factors(weights: np.ndarray, covariance: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    found = output_basis(weights, weights @ covariance @ weights.T)
    return found.basis[:, :rank], found.dual[:rank] @ weights


@settings(max_examples=40, deadline=None)
@given(outputs=st.integers(1, 9), columns=st.integers(2, 9), seed=st.integers(0, 99), data=st.data())
def test_the_error_is_what_it_says_and_falls_to_nothing(outputs, columns, seed, data):
    weights, covariance = _case(outputs, columns, seed)
    total = _error(weights, covariance)
    rank = data.draw(st.integers(0, min(outputs, columns)))
    for errors, product in (
        (
            output_basis(weights, weights @ covariance @ weights.T).errors(),
            np.matmul(*_factors(weights, covariance, rank)),
        ),
        (
            (found := input_basis(weights, covariance)).errors(),
            weights @ found.basis[:, :rank] @ found.dual[:rank],
        ),
    ):
        assert errors[0] == pytest.approx(1)
        assert (np.diff(errors) <= 1e-12).all()
        assert _error(weights - product, covariance) <= (errors[rank] + 1e-3) * total * 1.01
        if rank == min(outputs, columns):
            np.testing.assert_allclose(
                product, weights, atol=1e-6 * np.abs(weights).max() * np.linalg.cond(covariance) ** 0.5
            )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99))
def test_it_beats_the_plain_decomposition_and_chance(seed):
    weights, covariance = _case(8, 8, seed)
    a, b = _factors(weights, covariance, 3)
    ours = _error(weights - a @ b, covariance)
    left, values, right = np.linalg.svd(weights)
    assert ours <= _error(weights - (left[:, :3] * values[:3]) @ right[:3], covariance) * 1.001
    nudged = np.random.default_rng(seed).standard_normal(b.shape) * 0.01 * np.abs(b).mean()
    assert ours <= _error(weights - a @ (b + nudged), covariance) * 1.001
    inputs = input_basis(weights, covariance)
    assert _error(weights - weights @ inputs.basis[:, :3] @ inputs.dual[:3], covariance) <= ours * 1.01


def test_inputs_that_never_differ_give_factors_all_the_same():
    weights = np.arange(12.0).reshape(3, 4)
    a, b = _factors(weights, np.zeros((4, 4)), 3)
    np.testing.assert_allclose(a @ b, weights, atol=1e-9)
    found = input_basis(weights, np.zeros((4, 4)))
    np.testing.assert_allclose(weights @ found.basis @ found.dual, weights, atol=1e-9)
