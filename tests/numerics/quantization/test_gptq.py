"""Rounding by moments: the loss is what rows say, it is never worse than to the nearest, and mostly far better."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.numerics.quantization.blocks import BlockGrid, round_nearest
from onnxcompress.numerics.quantization.gptq import best_damping, loss, round_with_moments

grids = st.builds(BlockGrid, st.sampled_from([2, 4, 8]), st.sampled_from([16, 32]), st.booleans())


def _rows(columns, rank, count=400, seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, rank)) @ rng.standard_normal((rank, columns))
    return mixed + 0.1 * rng.standard_normal((count, columns)) + 0.3


def _problem(out, columns, rank, seed=0):
    rng = np.random.default_rng(seed + 1)
    x = _rows(columns, rank, seed=seed)
    return rng.standard_normal((out, columns)).astype(np.float32), x, x.T @ x / len(x)


def test_the_loss_is_the_mean_squared_error_of_the_output():
    weight, x, moments = _problem(5, 40, 8)
    rounded = round_nearest(weight, BlockGrid(4, 32, symmetric=True)).floats()
    assert np.allclose(loss(weight, rounded, moments), np.mean(np.square(x @ (weight - rounded).T), axis=0), rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(2, 80), st.integers(1, 12), grids, st.integers(0, 1000))
def test_it_is_never_worse_than_to_the_nearest(out, columns, rank, grid, seed):
    weight, _, moments = _problem(out, columns, rank, seed)
    damped = moments + np.eye(columns) * 0.01 * np.trace(moments) / columns
    near = round_nearest(weight, grid, np.diag(damped))
    found = round_with_moments(weight, moments, grid)
    assert found.integers.max() <= grid.levels
    limit = loss(weight, near.floats(), damped)
    assert np.all(loss(weight, found.floats(), damped) <= limit * (1 + 1e-3) + 1e-9)


@pytest.mark.parametrize(("bits", "symmetric", "part"), [(4, True, 0.35), (4, False, 0.35), (2, True, 0.5)])
def test_on_correlated_inputs_it_is_far_better(bits, symmetric, part):
    weight, _, moments = _problem(24, 128, 16)
    grid = BlockGrid(bits, 32, symmetric)
    near = loss(weight, round_nearest(weight, grid).floats(), moments).sum()
    assert loss(weight, round_with_moments(weight, moments, grid).floats(), moments).sum() < part * near


def test_descent_improves_on_plain_gptq():
    weight, _, moments = _problem(24, 128, 16)
    grid = BlockGrid(4, 32, symmetric=True)
    plain = round_with_moments(weight, moments, grid, refine=False).floats()
    refined = round_with_moments(weight, moments, grid).floats()
    assert loss(weight, refined, moments).sum() < 0.8 * loss(weight, plain, moments).sum()


def test_inputs_that_are_never_there_cost_nothing_and_break_nothing():
    weight, x, _ = _problem(6, 64, 8)
    x[:, 10:40] = 0
    found = round_with_moments(weight, x.T @ x / len(x), BlockGrid(4, 32, symmetric=True))
    assert np.isfinite(found.floats()).all()
    none = round_with_moments(weight, np.zeros((64, 64)), BlockGrid(4, 32, symmetric=True))
    assert np.isfinite(none.floats()).all()
    assert np.abs(none.floats() - weight).max() < 0.5


def test_few_inputs_ask_for_more_damping():
    grid = BlockGrid(2, 32, symmetric=True)
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((64, 64)) / 8 + np.eye(64)
    weight = rng.standard_normal((40, 64)).astype(np.float32)

    def moments(count: int) -> np.ndarray:
        rows = rng.standard_normal((count, 64)) @ mix
        return rows.T @ rows / count

    true = mix.T @ mix
    chosen = {}
    for count in (70, 20_000):
        seen = moments(count)
        chosen[count] = best_damping(weight, seen, moments(200), grid, (0.01, 0.1, 1.0))
        rounded = {d: round_with_moments(weight, seen, grid, damping=d).floats() for d in (0.01, 1.0)}
        errors = {d: loss(weight, each, true).sum() for d, each in rounded.items()}
        assert (errors[0.01] > 1.1 * errors[1.0]) == (count == 70)
    assert chosen[70] > chosen[20_000]
