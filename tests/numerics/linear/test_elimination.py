"""Costs and compensation against least squares done the plain way; order and curves; shrinkage of covariances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.numerics.linear import elimination
from onnxcompress.numerics.linear.elimination import Consumer, compensated, curve, shrunk

SEEDS = st.integers(0, 10_000)


def case(seed, channels=6, outputs=3, rows=200):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, channels)) @ rng.standard_normal((channels, channels))
    x -= x.mean(axis=0)
    return x, rng.standard_normal((channels, outputs)), x.T @ x / rows


def left_over(x, w, kept):
    """Return the mean squared error of the best weights for the kept channels, by least squares, as a part."""
    y = x @ w
    best = np.linalg.lstsq(x[:, kept], y, rcond=None)[0]
    return np.square(y - x[:, kept] @ best).sum() / np.square(y).sum()


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True))
def test_the_cost_of_a_block_is_what_least_squares_leaves(seed, block):
    x, w, c = case(seed)
    kept = np.setdiff1d(np.arange(6), block)
    assert Consumer(w, c).cost(np.array(block)) == pytest.approx(left_over(x, w, kept), rel=1e-6, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.permutations(range(6)))
def test_costs_one_after_the_other_add_up_to_that_of_all(seed, order):
    x, w, c = case(seed)
    consumer = Consumer(w, c)
    total = 0.0
    for number, channel in enumerate(order[:5], start=1):
        total += consumer.cost(np.array([channel]))
        consumer.remove(np.array([channel]))
        assert total == pytest.approx(left_over(x, w, np.array(order[number:])), rel=1e-5, abs=1e-8)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.lists(st.booleans(), min_size=6, max_size=6).filter(lambda kept: any(kept) and not all(kept)))
def test_compensated_weights_are_the_best_ones_for_the_channels_kept(seed, kept):
    x, w, c = case(seed)
    kept = np.array(kept)
    found = compensated(w, c, kept)
    best = np.linalg.lstsq(x[:, kept], x @ w, rcond=None)[0]
    np.testing.assert_allclose(found[kept], best, rtol=1e-5, atol=1e-7)
    assert not found[~kept].any()


def test_where_nothing_can_make_up_the_cost_is_the_power_of_what_goes_missing():
    x, w, c = case(3)
    consumer = Consumer(w, c, compensates=False)
    whole = np.square(x @ w).sum()
    first = np.square(x[:, [1, 4]] @ w[[1, 4]]).sum() / whole
    assert consumer.cost(np.array([1, 4])) == pytest.approx(first, rel=1e-9)
    consumer.remove(np.array([1, 4]))
    both = np.square(x[:, [1, 4, 2]] @ w[[1, 4, 2]]).sum() / whole
    assert first + consumer.cost(np.array([2])) == pytest.approx(both, rel=1e-9)
    assert consumer.cost(np.array([1])) == 0.0


def test_what_has_gone_costs_nothing_more_and_a_layer_of_zeros_loses_nothing():
    _, w, c = case(4)
    consumer = Consumer(w, c)
    consumer.remove(np.array([0]))
    consumer.remove(np.array([0]))
    assert consumer.cost(np.array([0])) == 0.0
    assert Consumer(np.zeros_like(w), c).cost(np.array([0, 1])) == 0.0


def test_the_curve_takes_the_cheapest_first_and_a_copy_of_a_channel_for_nothing():
    x, w, _ = case(5, channels=5)
    x[:, 3] = x[:, 1]
    c = x.T @ x / len(x) + 1e-9 * np.eye(5)
    found = curve([Consumer(w, c)], {g: [np.array([g])] for g in range(5)}, most=3)
    assert found.order[0] in (1, 3)
    assert found.losses[0, 0] < 1e-6
    assert (np.diff(found.losses[:, 0]) >= -1e-12).all()
    expected = [left_over(x, w, np.setdiff1d(np.arange(5), found.order[: n + 1])) for n in range(3)]
    np.testing.assert_allclose(found.losses[:, 0], expected, atol=1e-5)


def test_blocks_in_several_consumers_are_counted_in_each():
    (_, w1, c1), (_, w2, c2) = case(6), case(7)
    blocks = {0: [np.array([0]), np.array([], int)], 1: [np.array([1, 2]), np.array([3])]}
    found = curve([Consumer(w1, c1), Consumer(w2, c2)], blocks, most=5)
    assert sorted(found.order) == [0, 1]
    alone = Consumer(w2, c2).cost(np.array([3]))
    assert found.losses[-1, 1] == pytest.approx(alone, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(2, 30))
def test_shrunk_covariances_keep_variances_and_are_positive_definite(seed, rows):
    x, _, _ = case(seed, channels=8, rows=rows)
    x[:, 2] = 0.0
    c = x.T @ x / rows
    found = shrunk(c, rows)
    alive = np.arange(8) != 2
    np.testing.assert_allclose(np.diag(found)[alive], np.diag(c)[alive], rtol=1e-9)
    assert np.linalg.eigvalsh(found).min() > 0


def test_many_samples_are_hardly_shrunk_and_few_are():
    _, _, c = case(8, rows=5000)
    off = c - np.diag(np.diag(c))

    def kept(samples):
        found = shrunk(c, samples)
        return np.sum((found - np.diag(np.diag(found))) * off) / np.sum(off * off)

    assert kept(5000) > 0.99
    assert kept(4) < 0.8


def test_shrinkage_brings_the_estimate_nearer_to_the_truth():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((40, 40)) + 4 * np.eye(40)
    truth = mixing @ mixing.T
    x = rng.standard_normal((50, 40)) @ mixing.T
    c = x.T @ x / 50
    assert np.linalg.norm(shrunk(c, 50) - truth) < 0.9 * np.linalg.norm(c - truth)
    assert elimination.shrunk(np.eye(3), 5).shape == (3, 3)
