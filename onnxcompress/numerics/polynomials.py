"""Exact arithmetic on sizes: polynomials with whole coefficients over the sizes of dynamic dimensions.

    2*batch*seq - 1        Size.symbol("batch") * Size.symbol("seq") * 2 - 1

Every symbol is a size of 0 or more. Other expressions (a division with a remainder, a minimum) become symbols of their
own that are named after their operands, so that equal expressions stay equal.
"""

from __future__ import annotations

from collections.abc import Mapping

_MOST_TERMS = 16
"""Most terms of an expression that is followed. Chosen by judgement; not measured."""
_MOST_NUMBER = 2**62
"""Bound of the coefficients that are followed: numbers in models are int64."""

_Monomial = tuple[str, ...]


class Size:
    """A whole number that is known as an expression; equal expressions compare equal."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: Mapping[_Monomial, int]) -> None:
        self.terms = {key: terms[key] for key in sorted(terms) if terms[key]}
        self._hash = hash(tuple(self.terms.items()))

    @classmethod
    def number(cls, number: int) -> Size:
        """Return the size that is a number."""
        return cls({(): int(number)})

    @classmethod
    def symbol(cls, name: str) -> Size:
        """Return the size with a name."""
        return cls({(name,): 1})

    def as_int(self) -> int | None:
        """Return the number, None where it depends on a symbol."""
        if not self.terms:
            return 0
        return self.terms.get(()) if len(self.terms) == 1 else None

    def is_tractable(self) -> bool:
        """Say whether the expression is small enough to go on with."""
        return len(self.terms) <= _MOST_TERMS and all(abs(n) < _MOST_NUMBER for n in self.terms.values())

    def at_least(self, number: int) -> bool:
        """Say whether the value is certain to be `number` or more, whatever the symbols are."""
        constant = self.terms.get((), 0)
        return constant >= number and all(n >= 0 for key, n in self.terms.items() if key)

    def __add__(self, other: Size | int) -> Size:
        terms = dict(self.terms)
        for key, n in _of(other).terms.items():
            terms[key] = terms.get(key, 0) + n
        return Size(terms)

    def __sub__(self, other: Size | int) -> Size:
        return self + _of(other) * -1

    def __mul__(self, other: Size | int) -> Size:
        terms: dict[_Monomial, int] = {}
        for a, n in self.terms.items():
            for b, m in _of(other).terms.items():
                key = tuple(sorted(a + b))
                terms[key] = terms.get(key, 0) + n * m
        return Size(terms)

    def divided(self, other: Size) -> Size | None:
        """Return the quotient where the division has no remainder for certain, None otherwise.

        A divisor that is a sum is only found where it is the whole of `self`, up to a factor.
        """
        if not other.terms:
            return None
        if len(other.terms) == 1:
            return self._by_term(*next(iter(other.terms.items())))
        lead, n = next(iter(other.terms.items()))
        share = self.terms.get(lead, 0)
        factor = None if not share or share % n else Size.number(share // n)
        return factor if factor is not None and other * factor == self else None

    def _by_term(self, divisor: _Monomial, n: int) -> Size | None:
        terms: dict[_Monomial, int] = {}
        for key, m in self.terms.items():
            rest = list(key)
            for name in divisor:
                if name not in rest:
                    return None
                rest.remove(name)
            if m % n:
                return None
            terms[tuple(rest)] = m // n
        return Size(terms)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        parts = ["*".join([str(n), *key] if n != 1 or not key else key) for key, n in self.terms.items()]
        return " + ".join(parts) or "0"

    def __repr__(self) -> str:
        return f"Size({self})"


def equal(a: Size, b: Size) -> bool | None:
    """Say whether two sizes are equal for all values of the symbols (True) or for none (False), None otherwise."""
    difference = a - b
    if not difference.terms:
        return True
    return False if difference.at_least(1) or (difference * -1).at_least(1) else None


def less(a: Size, b: Size) -> bool | None:
    """Say whether a < b for all values of the symbols (True) or for none (False), None otherwise."""
    difference = b - a
    if difference.at_least(1):
        return True
    return False if (difference * -1).at_least(0) else None


def quotient(a: Size, b: Size) -> Size | None:
    """Return a / b rounded towards 0, None where the sign or a division by 0 leaves that open."""
    x, y = a.as_int(), b.as_int()
    if x is not None and y is not None:
        return None if y == 0 else Size.number(abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1))
    if (exact := a.divided(b)) is not None:
        return exact
    return Size.symbol(f"({a})//({b})") if a.at_least(0) and b.at_least(0) else None


def remainder(a: Size, b: Size) -> Size | None:
    """Return the remainder of a / b for sizes of 0 and more, None where the sign leaves it open."""
    if not (a.at_least(0) and b.at_least(0)) or not b.terms:
        return None
    x, y = a.as_int(), b.as_int()
    if x is not None and y is not None:
        return Size.number(x % y)
    return Size.number(0) if a.divided(b) is not None else Size.symbol(f"({a})%({b})")


def least(a: Size, b: Size) -> Size | None:
    """Return the smaller of two sizes, None where a negative one can't be named."""
    smaller = less(a, b)
    return _extreme("min", a, b) if smaller is None else a if smaller else b


def greatest(a: Size, b: Size) -> Size | None:
    """Return the larger of two sizes, None where a negative one can't be named."""
    smaller = less(a, b)
    return _extreme("max", a, b) if smaller is None else b if smaller else a


def _extreme(name: str, a: Size, b: Size) -> Size | None:
    first, second = sorted((str(a), str(b)))
    return Size.symbol(f"{name}({first}, {second})") if a.at_least(0) and b.at_least(0) else None


def product(sizes: tuple[Size, ...]) -> Size:
    """Return the number of elements of a tensor with these dimensions."""
    total = Size.number(1)
    for size in sizes:
        total = total * size
    return total


def _of(value: Size | int) -> Size:
    return value if isinstance(value, Size) else Size.number(value)
