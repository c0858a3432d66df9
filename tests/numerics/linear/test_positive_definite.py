"""Factorizations of matrices that are singular, badly scaled, or no numbers at all."""

import warnings

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.numerics.linear import correlation, elimination, lowrank, positive_definite, ridge, sparsity
from onnxcompress.numerics.linear.moments import Moments
from onnxcompress.numerics.linear.positive_definite import NotFiniteError, factorized, inverse_root
from onnxcompress.numerics.linear.sparsity import SparsityPattern
from onnxcompress.numerics.quantization import gptq
from onnxcompress.numerics.quantization.blocks import BlockGrid

COLUMNS, OUTPUTS = 24, 6


def rows(kind, seed=0, count=300):
    """Return float32 rows [count, COLUMNS] as a layer sees them."""
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.standard_normal((count, COLUMNS)) @ (np.eye(COLUMNS) + 0.3 * rng.standard_normal(COLUMNS)), 0)
    if kind == "dead":
        x[:, 3:9] = 0
    elif kind == "all dead":
        x[:] = 0
    elif kind == "constant":
        x[:, 3:9] = 7.25
    elif kind == "all constant":
        x[:] = 1e4
    elif kind == "equal":
        x[:, 12:] = x[:, :12]
    elif kind == "enormous":
        x[:, 0] *= 1e18
        x[:, 1] *= 1e-30
    elif kind == "all enormous":
        x *= 1e25
    elif kind == "all tiny":
        x *= 1e-30
    elif kind == "few":
        x = x[:5]
    elif kind == "one":
        x = x[:1]
    return x.astype(np.float32)


KINDS = [
    *("plain", "dead", "all dead", "constant", "all constant", "equal", "enormous", "all enormous", "all tiny"),
    *("few", "one"),
]


def moments(x, w):
    both = Moments(1, COLUMNS, OUTPUTS)
    both.update(x[None], (x.astype(np.float64) @ w.T.astype(np.float64))[None])
    return both


def weight(seed=1):
    return np.random.default_rng(seed).standard_normal((OUTPUTS, COLUMNS)).astype(np.float32)


def relative_error(x, before, after):
    """Return the squared error of the outputs as a part of their squares, 0 where there are none."""
    x = x.astype(np.float64)
    x = x / max(np.abs(x).max(), 1e-300)
    lost, whole = x @ (np.float64(after) - before).T, x @ np.float64(before).T
    return float(np.square(lost).sum() / max(np.square(whole).sum(), 1e-300))


@pytest.fixture(autouse=True)
def _loud():
    with warnings.catch_warnings(), np.errstate(over="raise", invalid="raise", divide="raise"):
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("centred", [True, False])
def test_every_covariance_is_factorized(kind, centred):
    found = moments(rows(kind), weight())
    matrix = (found.covariance() if centred else found.second())[0]
    factor = factorized(matrix)
    inverse, root = factor.inverse(), inverse_root(matrix)
    assert np.isfinite(inverse).all()
    assert np.isfinite(root).all()
    assert not np.tril(root, -1).any()
    assert (np.diag(inverse) > 0).all()
    # What was factorized is the matrix, but for the ridge, on the scale of each channel.
    size = np.sqrt(np.maximum(np.diag(matrix), positive_definite._DEAD * np.diag(matrix).max()))
    deviation = np.abs(factor.root() @ factor.root().T - matrix) / np.maximum(np.outer(size, size), 1e-300)
    off = ~np.eye(COLUMNS, dtype=bool)
    if np.diag(matrix).max() > 0:
        assert deviation[off].max() < 1e-5
    assert factor.ridge <= 1e-6


def test_a_regular_matrix_has_no_ridge_and_its_plain_factor():
    x = rows("plain")
    matrix = x.T.astype(np.float64) @ x
    factor = factorized(matrix)
    assert factor.ridge == 0
    np.testing.assert_allclose(factor.root(), scipy.linalg.cholesky(matrix, lower=True), rtol=1e-12)
    np.testing.assert_allclose(factor.solve(np.eye(COLUMNS)), np.linalg.inv(matrix), rtol=1e-8, atol=1e-12)
    upper = scipy.linalg.cholesky(np.linalg.inv(matrix), lower=False)
    np.testing.assert_allclose(inverse_root(matrix), upper, rtol=1e-6, atol=1e-9)


def test_what_is_no_covariance_keeps_its_diagonal():
    factor = factorized(np.array([[4.0, 100.0], [100.0, 4.0]]))
    np.testing.assert_allclose(factor.inverse(), np.eye(2) / 4)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(0, 14), st.floats(-30, 18), st.floats(-30, 18))
def test_any_rank_and_scale_gives_finite_solutions(seed, size, rank, low, high):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(min(low, high), max(low, high), size)
    x = rng.standard_normal((rank, size)) * scale
    found = factorized(x.T @ x).solve(rng.standard_normal((size, 2)))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["free", "2:4"])
def test_elimination_of_weights_survives_every_kind_of_input(kind, text):
    x, w = rows(kind), weight()
    found = sparsity.eliminated(w, moments(x, w).second()[0], 0.5, SparsityPattern.parse(text))
    assert np.isfinite(found.astype(np.float32)).all()
    assert (found == 0).mean() == pytest.approx(0.5)
    magnitude = np.where(sparsity.smallest(np.abs(w), 0.5, per_row=False), 0, w)
    assert relative_error(x, w, found) <= relative_error(x, w, magnitude) + 1e-6


def test_without_any_input_the_smallest_weights_are_removed():
    w = weight()[:, :16]  # one block of columns is decided on at once
    found = sparsity.eliminated(w, np.zeros((16, 16)), 0.5, SparsityPattern())
    np.testing.assert_array_equal(found == 0, sparsity.smallest(np.abs(w), 0.5, per_row=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [1, 5, 100_000])
def test_elimination_of_channels_survives_every_kind_of_input(kind, samples):
    x, w = rows(kind), weight()
    covariance = elimination.shrunk(moments(x, w).covariance()[0], samples)
    blocks = {group: [np.array([2 * group, 2 * group + 1])] for group in range(COLUMNS // 2)}
    single = {group: [np.array([group])] for group in range(COLUMNS)}
    for groups in (blocks, single):
        curve = elimination.curve([elimination.Consumer(w.T, covariance)], groups, most=len(groups) - 1)
        assert np.isfinite(curve.losses).all()
        assert (np.diff(curve.losses[:, 0]) >= 0).all()
    kept = np.ones(COLUMNS, bool)
    kept[[0, 5, 13]] = False
    found = elimination.compensated(w.T.astype(np.float64), covariance, kept).T
    assert np.isfinite(found.astype(np.float32)).all()
    centred = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)
    assert relative_error(centred, w, found) <= relative_error(centred, w, np.where(kept, w, 0)) + 1e-6


def test_dead_channels_are_removed_first_and_copies_cost_nothing():
    w = weight()
    covariance = elimination.shrunk(moments(rows("dead"), w).covariance()[0], 100_000)
    groups = {group: [np.array([group])] for group in range(COLUMNS)}
    curve = elimination.curve([elimination.Consumer(w.T, covariance)], groups, most=6)
    assert sorted(curve.order) == list(range(3, 9))
    covariance = moments(rows("equal"), w).covariance()[0]
    curve = elimination.curve([elimination.Consumer(w.T, covariance)], groups, most=12)
    assert curve.losses[-1, 0] < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_refits_survive_every_kind_of_input(kind):
    w, wanted = weight(), weight(2)
    train, held_out = moments(rows(kind), wanted), moments(rows(kind, seed=3), wanted)
    found = ridge.fit(train, held_out, w[None], np.zeros((1, OUTPUTS)), has_bias=True)
    assert np.isfinite(found.weights.astype(np.float32)).all()
    assert found.after <= found.before


@pytest.mark.parametrize("kind", KINDS)
def test_low_rank_factors_survive_every_kind_of_input(kind):
    x, w = rows(kind), weight()
    found = moments(x, w)
    outputs = np.float64(w) @ found.second()[0] @ np.float64(w).T
    for basis, rank in ((lowrank.output_basis(w, outputs), OUTPUTS), (lowrank.input_basis(w, found.second()[0]), 6)):
        assert np.isfinite(basis.basis).all()
        assert np.isfinite(basis.dual).all()
        assert basis.errors()[rank] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_survives_every_kind_of_input(kind):
    w, h = weight(), moments(rows(kind), weight()).second()[0]
    found = gptq.round_with_moments(w, h, BlockGrid(bits=4, block=8, symmetric=True)).floats()
    assert np.isfinite(found).all()
    assert float(np.abs(found - w).max()) < 2 * float(np.abs(w).max())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_named(bad):
    w, h = weight(), np.eye(COLUMNS)
    h[2, 3] = bad
    seen, good = moments(rows("plain"), w), moments(rows("plain"), w)
    seen.xx[0, 2, 3] = bad
    solvers = {
        "a covariance": lambda: factorized(h),
        "the second moments of a layer's inputs": lambda: sparsity.eliminated(w, h, 0.5, SparsityPattern()),
        "the covariance of a layer's inputs": lambda: elimination.shrunk(h, 10),
        "covariance": lambda: elimination.Consumer(w.T, h),
        "the sum over a layer's inputs": lambda: ridge.fit(seen, good, w[None], np.zeros((1, 6)), has_bias=True),
        "the moments of a matrix's inputs": lambda: lowrank.input_basis(w, h),
        "the moments of a matrix's outputs": lambda: lowrank.output_basis(w.T, h),
        "the moments of a layer's inputs": lambda: gptq.round_with_moments(w, h, BlockGrid(4, 8, symmetric=True)),
    }
    for what, solve in solvers.items():
        with pytest.raises(NotFiniteError, match=rf"{what} .*not finite"):
            solve()
    broken = w.copy()
    broken[0, 0] = bad
    with pytest.raises(NotFiniteError, match=r"a weight \[6, 24\] has 1 numbers"):
        sparsity.eliminated(broken, np.eye(COLUMNS), 0.5, SparsityPattern())


def test_a_decomposition_that_does_not_converge_is_done_the_slow_way(monkeypatch):
    true = scipy.linalg.svd

    def fails(matrix, **options):
        if options.get("lapack_driver", "gesdd") == "gesdd":
            raise scipy.linalg.LinAlgError("SVD did not converge")
        return true(matrix, **options)

    monkeypatch.setattr(positive_definite.scipy.linalg, "svd", fails)
    matrix = np.random.default_rng(0).standard_normal((5, 3))
    left, values, right = positive_definite.svd(matrix)
    np.testing.assert_allclose(left * values @ right, matrix)


def test_a_column_that_is_not_finite_correlates_with_nothing():
    x = rows("plain")
    x[5, 2] = np.nan
    table = correlation.correlations(x, rows("plain"))
    assert not table[2].any()
    np.testing.assert_allclose(np.delete(np.diag(table), 2), 1)
    assert sorted(correlation.assigned(table)) == list(range(COLUMNS))
