"""Sets of rows in any order, and sequences of symbols."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.numerics.statistics.row_matching import category_scale, edit_distance, matching_cost

WORDS = st.text("abc", max_size=8)
ONE = np.ones(2)


def _plain(a, b):
    """Return the distance by the recursion that defines it."""
    if not a or not b:
        return len(a) + len(b)
    return min(_plain(a[1:], b) + 1, _plain(a, b[1:]) + 1, _plain(a[1:], b[1:]) + (a[0] != b[0]))


@given(st.text("ab", max_size=5), st.text("abc", max_size=5))
def test_the_edit_distance_is_that_of_its_definition(a, b):
    assert edit_distance([ord(c) for c in a], [ord(c) for c in b]) == _plain(a, b)


@given(WORDS, WORDS, WORDS)
def test_the_edit_distance_is_a_metric(a, b, c):
    codes = [[ord(symbol) for symbol in word] for word in (a, b, c)]
    ab, bc, ac = (edit_distance(codes[i], codes[j]) for i, j in ((0, 1), (1, 2), (0, 2)))
    assert ac <= ab + bc
    assert ab == edit_distance(codes[1], codes[0])
    assert (ab == 0) == (a == b)


def test_the_order_of_rows_does_not_count():
    rows = np.random.default_rng(0).standard_normal((40, 2)) * 5
    assert matching_cost(rows, rows[::-1], np.ones(40), ONE) == (0, 40)


def test_a_lost_row_counts_by_its_weight_and_a_near_one_by_its_distance():
    rows = np.array([[0.0, 0.0], [10.0, 0.0], [20.0, 0.0], [30.0, 0.0]])
    weights = np.array([0.7, 0.1, 0.1, 0.1])
    assert matching_cost(rows, rows[1:], weights, ONE) == pytest.approx((0.7, 1))
    moved = rows + np.array([[0.2, 0.0], [0, 0], [0, 0], [0, 0]])
    assert matching_cost(rows, moved, weights, ONE) == pytest.approx((0.7 * 0.2**2 / 2 / 2, 1))
    assert matching_cost(rows, rows + 100, weights, ONE) == pytest.approx((1, 1))


def test_a_partner_serves_one_row_only():
    rows = np.array([[0.0, 0.0], [0.1, 0.0]])
    assert matching_cost(rows, rows[:1], np.ones(2), ONE) == (1, 2)


def test_sets_without_rows():
    none = np.zeros((0, 2))
    assert matching_cost(none, np.ones((1, 2)), np.zeros(0), ONE) == (0, 0)
    assert matching_cost(np.ones((1, 2)), none, np.ones(1), ONE) == (1, 1)
    assert matching_cost(np.ones((1, 2)), np.ones((1, 2)), np.zeros(1), ONE) == (0, 0)


def test_rows_of_two_categories_are_no_pair():
    rows = np.array([[0.0, 1.0, 3.0]])
    scale = np.array([1.0, 1.0, category_scale(3)])
    assert matching_cost(rows, rows, np.ones(1), scale) == (0, 1)
    assert matching_cost(rows, rows + np.array([0, 0, 1]), np.ones(1), scale) == (1, 1)
