"""The best option at each place within a budget: as brute force finds it."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.numerics.optimization.allocation import allocate

options = st.lists(st.tuples(st.integers(1, 40), st.floats(0, 10, allow_subnormal=False)), min_size=1, max_size=3)
places = st.lists(options, min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(places, st.integers(1, 240))
def test_it_is_as_good_as_brute_force_and_within_the_budget(table, budget):
    costs, losses = [[c for c, _ in row] for row in table], [[loss for _, loss in row] for row in table]
    found = allocate(costs, losses, budget)
    every = itertools.product(*(range(len(row)) for row in table))
    totals = [
        (sum(row[i] for row, i in zip(losses, pick, strict=True)), pick)
        for pick in every
        if sum(row[i] for row, i in zip(costs, pick, strict=True)) <= budget
    ]
    if not totals:
        assert found is None
        return
    assert found is not None
    assert sum(row[i] for row, i in zip(costs, found, strict=True)) <= budget * (1 + 1e-6)
    best = min(total for total, _ in totals)
    assert sum(row[i] for row, i in zip(losses, found, strict=True)) <= best * (1 + 1e-3) + 1e-3


def test_more_budget_goes_where_it_helps_most():
    costs = [[4, 8], [4, 8], [4, 8]]
    losses = [[1.0, 0.1], [5.0, 0.5], [2.0, 0.2]]
    assert allocate(costs, losses, 12) == [0, 0, 0]
    assert allocate(costs, losses, 16) == [0, 1, 0]
    assert allocate(costs, losses, 20) == [0, 1, 1]
    assert allocate(costs, losses, 24) == [1, 1, 1]
    assert allocate(costs, losses, 11) is None
