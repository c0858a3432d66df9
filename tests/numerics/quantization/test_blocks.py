"""Few-bit integers in blocks: in range, near the weights, better than the plain range, exact where they can be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.numerics.quantization.blocks import (
    BlockGrid,
    round_half_quadratic,
    round_nearest,
    spread,
    with_parameters,
)

GRIDS = [BlockGrid(bits, block, symmetric) for bits in (2, 4, 8) for block in (16, 32) for symmetric in (True, False)]
grids = st.sampled_from(GRIDS)


@st.composite
def weights(draw):
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    heavy = rng.standard_t(3, (rows, columns)) if draw(st.booleans()) else rng.uniform(0, 1, (rows, columns))
    return (heavy * draw(st.sampled_from([1e-3, 1.0, 50.0]))).astype(np.float32)


def _block_errors(weight, blocks):
    error = np.square(weight - blocks.floats())
    starts = np.arange(0, weight.shape[1], blocks.grid.block)
    return np.add.reduceat(error, starts, axis=1)


@settings(max_examples=40, deadline=None)
@given(weights(), grids)
def test_integers_are_in_range_and_no_block_is_worse_than_with_its_full_range(weight, grid):
    found = round_nearest(weight, grid)
    assert found.integers.shape == weight.shape
    assert found.scale.shape == found.zero.shape == (len(weight), grid.count(weight.shape[1]))
    assert found.integers.max(initial=0) <= grid.levels
    assert np.all(found.scale != 0)
    plain = round_nearest(weight, grid, candidates=1)
    assert np.all(_block_errors(weight, found) <= _block_errors(weight, plain) * (1 + 1e-4) + 1e-12)


@settings(max_examples=40, deadline=None)
@given(weights(), grids)
def test_the_full_range_is_off_by_half_a_step_at_most(weight, grid):
    found = round_nearest(weight, grid, candidates=1)
    step = np.abs(spread(found.scale, grid.block, weight.shape[1]))
    # one end of a symmetric grid is clipped by up to a step, as is an end that a rounded zero point leaves out
    assert np.all(np.abs(weight - found.floats()) <= step * 1.001 + 1e-7)


@settings(max_examples=25, deadline=None)
@given(weights(), grids)
def test_half_quadratic_fits_most_weights_better(weight, grid):
    def robust(blocks):
        return np.sum(np.abs(weight - blocks.floats()) ** 0.7)

    assert robust(round_half_quadratic(weight, grid)) <= robust(round_nearest(weight, grid)) * (1 + 1e-4)


def test_half_quadratic_is_strictly_better_on_outliers():
    weight = np.random.default_rng(0).standard_t(3, (16, 64)).astype(np.float32)
    for grid in (BlockGrid(2, 32, True), BlockGrid(4, 32, False)):
        near, robust = round_nearest(weight, grid), round_half_quadratic(weight, grid)
        assert np.mean(np.abs(weight - robust.floats()) ** 0.7) < 0.999 * np.mean(np.abs(weight - near.floats()) ** 0.7)


@pytest.mark.parametrize("grid", GRIDS)
def test_weights_on_the_grid_come_back(grid):
    rng = np.random.default_rng(1)
    integers = rng.integers(0, grid.levels + 1, (4, 64))
    integers[:, ::16], integers[:, 1::16] = 0, grid.levels
    zero = grid.middle if grid.symmetric else 1
    weight = (0.25 * (integers - zero)).astype(np.float32)
    assert np.allclose(round_nearest(weight, grid).floats(), weight, atol=1e-5)


def test_zero_is_exact_and_blocks_of_zeros_stay_zero():
    weight = np.random.default_rng(2).standard_normal((3, 64)).astype(np.float32)
    weight[:, ::2] = 0
    weight[1] = 0
    for grid in GRIDS:
        assert np.all(round_nearest(weight, grid).floats()[weight == 0] == 0)


def test_importance_moves_the_error_to_where_it_does_not_count():
    weight = np.random.default_rng(3).standard_normal((32, 32)).astype(np.float32)
    importance = np.where(np.arange(32) < 4, 100.0, 0.01)
    grid = BlockGrid(2, 32, symmetric=True)
    plain, weighted = round_nearest(weight, grid), round_nearest(weight, grid, importance)

    def counted(blocks):
        return np.sum(importance * np.square(weight - blocks.floats()))

    assert counted(weighted) < 0.9 * counted(plain)


def test_bands_of_rows_change_nothing():
    weight = np.random.default_rng(4).standard_normal((700, 96)).astype(np.float32)
    grid = BlockGrid(4, 32, symmetric=False)
    whole = round_half_quadratic(weight, grid)
    for rows in (slice(0, 1), slice(350, 360), slice(699, 700)):
        part = round_half_quadratic(weight[rows], grid)
        assert np.array_equal(part.integers, whole.integers[rows])
        assert np.array_equal(part.scale, whole.scale[rows])


def test_given_parameters_round_to_the_nearest():
    grid = BlockGrid(4, 16, symmetric=True)
    weight = np.linspace(-1, 1, 32, dtype=np.float32)[None]
    found = with_parameters(weight, grid, np.full((1, 2), 0.125, np.float32), np.full((1, 2), 8, np.uint8))
    assert np.all(np.abs(found.floats() - weight)[weight < 0.9375] <= 0.0625)
    assert found.floats().max() == pytest.approx(0.875)  # clipped
