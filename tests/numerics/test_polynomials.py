"""Expressions over sizes agree with the numbers that they stand for."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.numerics import polynomials
from onnxcompress.numerics.polynomials import Size

_VALUES = {"a": 3, "b": 0, "c": 7}
_NAMED = st.sampled_from(sorted(_VALUES)).map(Size.symbol)
_EXPRESSIONS = st.recursive(
    st.one_of(st.integers(-4, 9).map(Size.number), _NAMED),
    lambda inner: st.tuples(st.sampled_from([operator.add, operator.sub, operator.mul]), inner, inner).map(
        lambda parts: parts[0](parts[1], parts[2])
    ),
    max_leaves=6,
)


def _value(size: Size) -> int:
    total = 0
    for names, factor in size.terms.items():
        for name in names:
            factor *= _VALUES[name]
        total += factor
    return total


@given(_EXPRESSIONS, _EXPRESSIONS)
def test_arithmetic_is_that_of_the_numbers(x: Size, y: Size) -> None:
    assert _value(x + y) == _value(x) + _value(y)
    assert _value(x - y) == _value(x) - _value(y)
    assert _value(x * y) == _value(x) * _value(y)


@given(_EXPRESSIONS, _EXPRESSIONS)
def test_what_is_claimed_for_all_sizes_holds_for_these(x: Size, y: Size) -> None:
    assert polynomials.equal(x, y) in (None, _value(x) == _value(y))
    assert polynomials.less(x, y) in (None, _value(x) < _value(y))
    if x.at_least(2):
        assert _value(x) >= 2


@given(_EXPRESSIONS, _EXPRESSIONS)
def test_an_exact_quotient_multiplies_back(x: Size, y: Size) -> None:
    if y.terms:
        assert (x * y).is_tractable() is False or (found := (x * y).divided(y)) is None or found * y == x * y


def test_a_term_divides_exactly_or_not_at_all() -> None:
    a, b = Size.symbol("a"), Size.symbol("b")
    assert (a * b * 6).divided(b * 2) == a * 3
    assert (a * b * 6).divided(b * 4) is None
    assert (a + b).divided(a) is None
    assert (a * 3 + b * 3).divided(a + b) == Size.number(3)
    assert a.divided(Size.number(0)) is None


@pytest.mark.parametrize(("x", "y", "expected"), [(7, 2, 3), (-7, 2, -3), (7, -2, -3), (-7, -2, 3), (1, 0, None)])
def test_numbers_divide_as_onnx_does(x: int, y: int, expected: int | None) -> None:
    found = polynomials.quotient(Size.number(x), Size.number(y))
    assert (None if found is None else found.as_int()) == expected


@pytest.mark.parametrize(
    "function", [polynomials.quotient, polynomials.least, polynomials.greatest, polynomials.remainder]
)
def test_equal_inexact_expressions_are_equal_and_others_are_not(function: Callable[[Size, Size], Size | None]) -> None:
    a, b = Size.symbol("a") + 1, Size.symbol("b") + 3
    assert function(a, b) == function(Size.symbol("a") + 1, b)
    assert function(a, b) != function(a + 1, b)
    assert function(a - 5, b) is None or function is polynomials.least  # the sign is open


def test_a_difference_may_be_negative() -> None:
    assert not (Size.symbol("a") - Size.symbol("b")).at_least(0)
    assert polynomials.least(Size.symbol("a") - 5, Size.symbol("a")) == Size.symbol("a") - 5
