"""Symbolic facts of values: dimensions, and the elements of small tensors of whole numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph import query
from ..numerics.polynomials import Size
from .infer import Shapes

Dims = tuple[Size, ...]

MOST_ELEMENTS = 256
"""Tensors with more elements are not followed: what shapes are computed from is small."""
INTEGERS = frozenset({ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64})
"""Types whose elements are followed: what shapes are computed in."""
_MOST_FORKS = 64
"""Undecided Ifs of a model whose branches are told apart by what follows; bounds the time, not measured."""


@dataclass(frozen=True)
class Content:
    """The elements of a small tensor of whole numbers (bool: 0 and 1); None for one that is not known."""

    dtype: ir.DataType
    shape: tuple[int, ...]
    elements: tuple[Size | None, ...]

    def is_number(self) -> bool:
        """Say whether every element is a known number."""
        return all(e is not None and e.as_int() is not None for e in self.elements)

    def numbers(self) -> list[int] | None:
        """Return the elements, None unless all are known numbers."""
        found = [None if e is None else e.as_int() for e in self.elements]
        return [n for n in found if n is not None] if None not in found else None

    def array(self) -> np.ndarray | None:
        """Return the tensor, None unless all elements are known numbers that its type can hold."""
        numbers = self.numbers()
        if numbers is None:
            return None
        try:
            return np.array(numbers, dtype=self.dtype.numpy()).reshape(self.shape)
        except OverflowError:
            return None


@dataclass(frozen=True)
class Fact:
    """Dimensions and elements of one value, None where unknown."""

    dims: Dims | None = None
    content: Content | None = None


UNKNOWN = Fact()


class ImpossibleError(Exception):
    """A node would fail in every run: what was assumed of its inputs can't be."""


class Facts:
    """Facts by value. A fork sees those of its parent and keeps its own apart."""

    def __init__(self, inferred: Shapes, parent: Facts | None = None) -> None:
        self.inferred = inferred
        self._parent = parent
        self._own: dict[ir.Value, Fact] = {}
        self._seen: dict[ir.Value, np.dtype[Any]] = {}
        self._fresh: itertools.count[int] = itertools.count() if parent is None else parent._fresh  # noqa: SLF001
        self.forks_left = _MOST_FORKS if parent is None else 0

    def fork(self) -> Facts:
        """Return facts to which assumptions can be added."""
        return Facts(self.inferred, self)

    def set(self, value: ir.Value, fact: Fact) -> None:
        """Keep what is known of a value."""
        self._own[value] = fact

    def of(self, value: ir.Value | None) -> Fact:
        """Return what is known of a value."""
        if value is None:
            return UNKNOWN
        facts: Facts | None = self
        while facts is not None:
            if value in facts._own:  # noqa: SLF001
                return facts._own[value]  # noqa: SLF001
            facts = facts._parent  # noqa: SLF001
        fact = self._constant(value)
        self._own[value] = fact
        return fact

    def dims(self, value: ir.Value | None) -> Dims | None:
        """Return the dimensions of a value, None where not even the rank is known."""
        return self.of(value).dims

    def static(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Return the dimensions of a value when every one is a known number, None otherwise."""
        dims = self.dims(value)
        numbers = None if dims is None else [size.as_int() for size in dims]
        return None if numbers is None or None in numbers else tuple(n for n in numbers if n is not None)

    def dtype(self, value: ir.Value) -> np.dtype[Any] | None:
        """Return the type of a value's elements, None where it is not known."""
        dtype = self.inferred.dtype(value)
        return self._seen.get(value) if dtype is None else dtype.numpy()

    def learn(self, value: ir.Value, dims: Sequence[int], dtype: np.dtype[Any]) -> None:
        """Keep dimensions and type that a run has shown of a value whose shape can't be inferred."""
        self.set(value, Fact(tuple(Size.number(n) for n in dims), self.content(value)))
        self._seen[value] = dtype

    def content(self, value: ir.Value | None) -> Content | None:
        """Return the elements of a value, None where they are not followed."""
        return self.of(value).content

    def fresh(self) -> Size:
        """Return a size of which nothing is known."""
        return Size.symbol(f"?{next(self._fresh)}")

    def inferred_dims(self, value: ir.Value) -> Dims | None:
        """Return what shape inference says, with a fresh size for every unnamed dimension."""
        dims = self.inferred.shape(value)
        if dims is None:
            return None
        return tuple(
            Size.number(d) if isinstance(d, int) else Size.symbol(d) if d and d != "?" else self.fresh() for d in dims
        )

    def _constant(self, value: ir.Value) -> Fact:
        tensor = query.constant_tensor(value)
        if tensor is None:
            return Fact(self.inferred_dims(value))
        shape = query.dims(tensor)
        content = None
        if tensor.dtype in INTEGERS and tensor.size <= MOST_ELEMENTS:
            numbers = tensor.numpy().reshape(-1).tolist()
            content = Content(tensor.dtype, shape, tuple(Size.number(n) for n in numbers))
        return Fact(tuple(Size.number(n) for n in shape), content)


def broadcast(shapes: Sequence[Dims | None], fresh: Callable[[], Size]) -> Dims | None:
    """Return the dimensions that operands are stretched to.

    Raises:
        ImpossibleError: two of them can't go together.
    """
    known = [dims for dims in shapes if dims is not None]
    if len(known) < len(shapes) or not known:
        return None
    rank = max(len(dims) for dims in known)
    padded = [(Size.number(1),) * (rank - len(dims)) + dims for dims in known]
    return tuple(_stretched(column, fresh) for column in zip(*padded, strict=True))


def _stretched(column: Iterable[Size], fresh: Callable[[], Size]) -> Size:
    wide = list(dict.fromkeys(size for size in column if size.as_int() != 1))
    if not wide:
        return Size.number(1)
    numbers = [size for size in wide if size.as_int() is not None]
    if len(numbers) > 1:
        raise ImpossibleError
    if numbers:
        return numbers[0]  # the others are this number or 1
    return wide[0] if len(wide) == 1 else fresh()
