"""Minimum cuts against all answers tried one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.numerics.optimization.mincut import Choices

COSTS = st.integers(0, 50)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 6))
def test_no_other_answer_is_cheaper(data, count):
    alone = [data.draw(st.tuples(COSTS, COSTS)) for _ in range(count)]
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    edges = data.draw(st.lists(st.tuples(st.sampled_from(pairs), COSTS), max_size=8)) if pairs else []
    choices = Choices()
    for yes, no in alone:
        choices.variable(cost_yes=yes, cost_no=no)
    for (i, j), cost in edges:
        choices.split(i, j, cost)

    def energy(answer):
        own = sum(yes if x else no for x, (yes, no) in zip(answer, alone, strict=True))
        return own + sum(cost for (i, j), cost in edges if answer[i] and not answer[j])

    found = choices.solve()
    assert energy(found) == min(energy(answer) for answer in itertools.product((False, True), repeat=count))


def test_implications_hold_whatever_they_cost():
    choices = Choices()
    first = choices.variable(cost_no=5.0)
    second = choices.variable(cost_yes=9.0)
    choices.split(first, second, math.inf)
    assert choices.solve().tolist() == [False, False]
    choices.add(first, cost_no=5.0)
    assert choices.solve().tolist() == [True, True]


def test_without_a_reason_the_answer_is_no():
    choices = Choices()
    choices.variable()
    choices.variable(cost_yes=1.0)
    assert not choices.solve().any()


def test_costs_of_very_different_sizes():
    choices = Choices()
    large = choices.variable(cost_yes=1e15, cost_no=2e15)
    small = choices.variable(cost_yes=2e9, cost_no=1e9)
    assert choices.solve()[[large, small]].tolist() == [True, False]
    assert choices.solve().dtype == np.bool_
