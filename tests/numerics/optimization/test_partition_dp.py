"""Cuts: every part's memory and both dynamic programs, against the plainest way to compute them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.numerics.optimization import partition_dp
from onnxcompress.numerics.optimization.partition_dp import Steps


@st.composite
def _steps(draw):
    n = draw(st.integers(1, 6))
    values = draw(
        st.lists(
            st.tuples(st.integers(-1, n - 1), st.integers(0, n), st.integers(0, 50)).filter(lambda v: v[1] >= v[0]),
            max_size=8,
        )
    )
    weights = draw(st.lists(st.tuples(st.sets(st.integers(0, n - 1), min_size=1), st.integers(1, 90)), max_size=5))
    return Steps(
        count=n,
        made=np.array([v[0] for v in values], np.int64),
        last=np.array([v[1] for v in values], np.int64),
        sizes=np.array([v[2] for v in values], np.float64),
        uses=[sorted(uses) for uses, _ in weights],
        weights=np.array([size for _, size in weights], np.float64),
        inner=np.array(draw(st.lists(st.integers(0, 20), min_size=n, max_size=n)), np.float64),
    )


def _peak(steps, i, j):
    """Go through a part step by step, as a runtime would."""
    weights = sum(w for uses, w in zip(steps.uses, steps.weights, strict=True) if any(i <= use < j for use in uses))
    values = list(zip(steps.made, steps.last, steps.sizes, strict=True))
    held = sum(size for made, last, size in values if made < i <= last)
    running = max(
        steps.inner[p] + sum(size for made, last, size in values if i <= made <= p <= last) for p in range(i, j)
    )
    handed_over = 2 * sum(size for made, last, size in values if i <= made < j <= last)
    return weights + held + max(running, handed_over)


def _table(steps):
    return partition_dp.table(steps, np.arange(steps.count + 1))


def _every_cutting(n):
    inner = range(1, n)
    for count in range(n):
        for chosen in itertools.combinations(inner, count):
            yield [0, *chosen, n]


def _crossing(steps, cutting):
    values = list(zip(steps.made, steps.last, steps.sizes, strict=True))
    return sum(size for cut in cutting[1:-1] for made, last, size in values if 0 <= made < cut <= last)


def _largest(steps, cutting):
    return max(_peak(steps, i, j) for i, j in itertools.pairwise(cutting))


@settings(deadline=None, max_examples=80)
@given(_steps())
def test_the_memory_of_every_part(steps):
    table = _table(steps)
    for i in range(steps.count):
        for j in range(i + 1, steps.count + 1):
            assert table.peak[i, j] == pytest.approx(_peak(steps, i, j))
        assert np.isinf(table.peak[i, : i + 1]).all()


@settings(deadline=None, max_examples=60)
@given(_steps(), st.integers(1, 6))
def test_so_many_parts_the_largest_as_small_as_can_be_then_fewest_bytes_cut(steps, count):
    count = min(count, steps.count)
    found = partition_dp.exactly(_table(steps), count)
    assert len(found) == count + 1
    assert found == sorted(set(found))
    candidates = [cutting for cutting in _every_cutting(steps.count) if len(cutting) == count + 1]
    best = min((_largest(steps, c), _crossing(steps, c)) for c in candidates)
    assert (_largest(steps, found), _crossing(steps, found)) == pytest.approx(best)


@settings(deadline=None, max_examples=60)
@given(_steps(), st.integers(1, 400))
def test_under_a_budget_fewest_bytes_are_cut(steps, budget):
    table = _table(steps)
    found = partition_dp.parts_within(table, budget)
    fitting = [c for c in _every_cutting(steps.count) if _largest(steps, c) <= budget]
    least, (start, end) = partition_dp.least_peak(table)
    assert least == pytest.approx(min(_largest(steps, c) for c in _every_cutting(steps.count)))
    assert _peak(steps, start, end) == pytest.approx(least)
    assert bool(found) == bool(fitting)
    if found:
        assert _largest(steps, found) <= budget
        prices = [_crossing(steps, c) + len(c) for c in fitting]
        assert _crossing(steps, found) + len(found) == pytest.approx(min(prices))


def test_many_steps_are_thinned_around_the_heaviest_and_the_cheapest_cuts():
    n = 4000
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 1000, n).astype(float)
    sizes[1234] = 1.0  # what is handed over after step 1234 is least
    steps = Steps(
        count=n,
        made=np.arange(n),
        last=np.minimum(np.arange(n) + 1, n),
        sizes=sizes,
        uses=[[2000]],
        weights=np.array([1e6]),
        inner=np.zeros(n),
    )
    kept = partition_dp.thinned(steps, np.arange(n + 1), 100)
    assert len(kept) <= 110
    assert {0, n, 2000, 2001, 1235} <= set(kept.tolist())
    least, (start, end) = partition_dp.least_peak(partition_dp.table(steps, kept))
    assert start <= 2000 < end
    assert 1e6 < least <= _peak(steps, 2000, 2001)
    few = np.array([0, 5, n])
    assert partition_dp.thinned(steps, few, 100) is few
