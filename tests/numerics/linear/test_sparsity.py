"""Masks, patterns, elimination and projections against their definitions; clips that lower the error."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.numerics.linear import sparsity
from onnxcompress.numerics.linear.sparsity import SparsityPattern
from onnxcompress.numerics.quantization import weight_clipping

SEEDS = st.integers(0, 10_000)


def test_patterns_are_read_and_wrong_ones_named():
    assert SparsityPattern.parse("2:4") == SparsityPattern(2, 4)
    assert SparsityPattern.parse("free") == SparsityPattern()
    for text in ("4:4", "0:4", "2/4", ""):
        with pytest.raises(ValueError, match="neither"):
            SparsityPattern.parse(text)


def test_the_smallest_go_from_each_row_or_from_all():
    scores = np.array([[[1.0, 2.0, 9.0, 8.0], [3.0, 4.0, 5.0, 6.0]]])
    rows = sparsity.smallest(scores, 0.5, per_row=True)
    assert rows.tolist() == [[[True, True, False, False], [True, True, False, False]]]
    whole = sparsity.smallest(scores, 0.25, per_row=False)
    assert whole.tolist() == [[[True, True, False, False], [False] * 4]]
    assert not sparsity.smallest(scores, 0.0, per_row=False).any()


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from(["2:4", "1:4", "1:2"]), st.integers(3, 14))
def test_every_whole_group_keeps_its_largest(seed, text, columns):
    pattern = SparsityPattern.parse(text)
    scores = np.random.default_rng(seed).random((3, columns))
    goes = sparsity.patterned(scores, pattern)
    for row, start in itertools.product(range(3), range(0, columns, pattern.of)):
        part, gone = scores[row, start : start + pattern.of], goes[row, start : start + pattern.of]
        if len(part) < pattern.of:
            assert not gone.any()
        else:
            assert (~gone).sum() == pattern.kept
            assert part[~gone].min() >= part[gone].max()


def case(seed, columns=24, outputs=8):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((300, columns)) @ (np.eye(columns) + 0.5 * rng.standard_normal((columns, columns)))
    return x, rng.standard_normal((outputs, columns)), x.T @ x / 300


def error(x, one, other):
    return float(np.square(x @ (one - other).T).mean())


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from(["free", "2:4"]))
def test_elimination_has_the_zeros_wanted_and_less_error_than_magnitude(seed, text):
    x, w, h = case(seed)
    pattern = SparsityPattern.parse(text)
    found = sparsity.eliminated(w, h, 0.5, pattern)
    assert (found == 0).mean() == pytest.approx(0.5)
    if pattern.of:
        assert ((found.reshape(8, -1, 4) == 0).sum(axis=2) == 2).all()
    goes = sparsity.patterned(np.abs(w), pattern) if pattern.of else sparsity.smallest(np.abs(w), 0.5, per_row=False)
    assert error(x, found, w) < error(x, np.where(goes, 0, w), w)


def test_columns_make_up_for_a_copy_of_them():
    x, w, _ = case(1, columns=6)
    x[:, 3:] = x[:, :3]
    found = sparsity.eliminated(w, x.T @ x / len(x), 0.5, SparsityPattern())
    assert error(x, found, w) < 0.3 * error(x, np.where(found == 0, 0, w), w)


def test_blocks_of_columns_are_decided_on_one_after_the_other():
    _, w, h = case(2, columns=200)
    found = sparsity.eliminated(w, h, 0.5, SparsityPattern())
    assert (found[:, :112] == 0).mean() == pytest.approx(0.5)
    assert (found[:, 112:] == 0).mean() == pytest.approx(0.5)


def test_without_the_last_solution_the_later_columns_compensate_alone():
    x, w, h = case(3, columns=64)
    solved = sparsity.eliminated(w, h, 0.5, SparsityPattern())
    plain = sparsity.eliminated(w, h, 0.5, SparsityPattern(), most_work=0)
    np.testing.assert_array_equal(plain == 0, solved == 0)
    assert error(x, solved, w) < error(x, plain, w) < error(x, np.where(plain == 0, 0, w), w)


@pytest.mark.parametrize("text", ["free", "2:4"])
def test_many_columns_come_close_to_the_exact_solution_by_iteration(text, monkeypatch):
    x, w, h = case(4, columns=320)
    x += 3 * x[:, :1]  # correlated, as the inputs of layers are
    h = x.T @ x / len(x)
    pattern = SparsityPattern.parse(text)
    found = sparsity.eliminated(w, h, 0.5, pattern)
    few = sparsity.eliminated(w, h, 0.5, pattern, most_work=3 * 8 * 320**2)
    plain = sparsity.eliminated(w, h, 0.5, pattern, most_work=0)
    monkeypatch.setattr(sparsity, "_MANY_COLUMNS", 1000)
    exact = sparsity.eliminated(w, h, 0.5, pattern)
    np.testing.assert_array_equal(found == 0, exact == 0)
    damped = h + 0.01 * np.trace(h) / 320 * np.eye(320)
    losses = [float(np.einsum("oi,ij,oj->", e - w, damped, e - w)) for e in (exact, found, few, plain)]
    assert losses[0] <= losses[1] <= 1.01 * losses[0]
    assert losses[1] < losses[2] < losses[3]


def test_use_is_size_times_what_it_multiplies():
    w, h = np.array([[1.0, -2.0]]), np.diag([16.0, 1.0])
    assert sparsity.by_use(w, h).tolist() == [[4.0, 2.0]]


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.floats(0.05, 1.5))
def test_projections_meet_the_bound_and_nothing_nearer_does(seed, share):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((3, 7))
    for project, order in ((sparsity.within_l1, 1), (sparsity.within_l2, 2)):
        limit = share * np.linalg.norm(w.reshape(-1), order)
        found = project(w, limit)
        assert np.linalg.norm(found.reshape(-1), order) <= limit * (1 + 1e-9)
        if share > 1.001:
            np.testing.assert_array_equal(found, w)
        other = rng.standard_normal((3, 7))
        other *= limit / np.linalg.norm(other.reshape(-1), order)
        for part in (0.01, 0.5):  # every point of the ball is on a line from the nearest one
            nearby = (1 - part) * found + part * other
            assert np.linalg.norm(w - found) <= np.linalg.norm(w - nearby) + 1e-9


def test_a_bound_by_the_1_norm_makes_zeros():
    w = np.array([[5.0, -3.0, 0.5, 0.1]])
    np.testing.assert_allclose(sparsity.within_l1(w, 6.0), [[4.0, -2.0, 0.0, 0.0]])


def test_percentiles_are_those_of_absolute_values():
    w = np.array([np.arange(-50, 51, dtype=np.float32), np.linspace(0, 1, 101, dtype=np.float32)])
    np.testing.assert_allclose(weight_clipping.percentile(w, 100), [50, 1])
    np.testing.assert_allclose(weight_clipping.percentile(w, 50)[1], 0.5)


def rounding_error(w, alpha, bits):
    steps = 2 ** (bits - 1) - 1
    scale = alpha / steps
    return float(np.square(w - np.clip(np.rint(w / scale), -steps, steps) * scale).sum())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_clip_of_least_error_beats_none_and_any_other(bits):
    w = np.random.default_rng(0).standard_t(3, (1, 4000)).astype(np.float32)
    alpha = weight_clipping.least_error(w, bits)[0]
    best = rounding_error(w, alpha, bits)
    assert best <= rounding_error(w, float(np.abs(w).max()), bits) * (1 + 1e-6)
    assert bits == 8 or best < 0.9 * rounding_error(w, float(np.abs(w).max()), bits)
    assert all(best <= rounding_error(w, part * alpha, bits) * 1.02 for part in (0.6, 0.8, 1.25, 1.6))


def test_more_bits_clip_less_and_zeros_stay_zeros():
    w = np.vstack([np.random.default_rng(1).standard_normal(2000), np.zeros(2000)])
    alphas = [weight_clipping.least_error(w, bits)[0] for bits in (2, 3, 4, 6)]
    assert alphas == sorted(alphas)
    assert weight_clipping.least_error(w, 4)[1] == 0
