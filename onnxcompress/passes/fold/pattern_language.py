"""Patterns of nodes as values: an expression is written as in a paper and matched against a graph.

    x = Var("x")
    half = Op("Mul", Op("Mul", x, Op("Add", Op("Erf", Op("Div", x, Num(2**0.5))), Num(1))), Num(0.5))

`search(half, value)` returns the value of x and the nodes the expression covers, or None. Operands of
commutative operators match in any order, alternatives are tried one after the other, and a name that occurs
twice is one value. Nodes inside the expression must have no readers outside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...graph import query
from .value_bounds import clip_limits

RELATIVE = 1e-6
"""Relative tolerance of constants: float32 has 6e-8, rounding in between a few times that. Chosen by judgement; not
measured."""
COARSE = 1e-3
"""Relative tolerance of constants that are stored as float16 or bfloat16. Chosen by judgement; not measured."""

_COMMUTATIVE = ("Add", "Mul", "Max", "Min", "Sum")


@dataclass(frozen=True)
class Match:
    """Values and numbers of a matched expression by name, and the nodes it covers."""

    values: Mapping[str, ir.Value] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    nodes: tuple[ir.Node, ...] = ()

    def with_value(self, name: str, value: ir.Value) -> Match | None:
        """Bind a name to a value; None where it is bound to another already."""
        if name in self.values:
            return self if self.values[name] is value else None
        return Match({**self.values, name: value}, self.numbers, self.nodes)

    def with_number(self, name: str, number: float) -> Match | None:
        """Bind a name to a number; None where it is bound to another already."""
        if name in self.numbers:
            return self if self.numbers[name] == number else None
        return Match(self.values, {**self.numbers, name: number}, self.nodes)

    def with_node(self, node: ir.Node) -> Match:
        """Add a node to those that are covered."""
        return self if node in self.nodes else Match(self.values, self.numbers, (*self.nodes, node))


class Pattern:
    """An expression over values."""

    def matches(self, value: ir.Value | None, so_far: Match) -> Iterator[Match]:
        """Yield every way in which a value is this expression."""
        raise NotImplementedError


@dataclass(frozen=True)
class Var(Pattern):
    """Any value; the same one wherever the name occurs."""

    name: str

    def matches(self, value: ir.Value | None, so_far: Match) -> Iterator[Match]:
        """Yield one match, with the name bound."""
        found = None if value is None else so_far.with_value(self.name, value)
        if found is not None:
            yield found


@dataclass(frozen=True)
class Num(Pattern):
    """One number: this one, or any number that gets a name."""

    of: float | str

    def matches(self, value: ir.Value | None, so_far: Match) -> Iterator[Match]:
        """Yield one match for a constant of one element without axes that could widen the result."""
        number, tensor = query.scalar(value), query.constant_tensor(value)
        if number is None or tensor is None or tensor.size != 1 or len(query.dims(tensor)) > 1:
            return
        if isinstance(self.of, str):
            found = so_far.with_number(self.of, number)
            if found is not None:
                yield found
        elif close(number, self.of, tensor.dtype):
            yield so_far


def close(number: float, ideal: float, dtype: ir.DataType = ir.DataType.FLOAT) -> bool:
    """Say whether a stored constant is `ideal` within the tolerance of its type."""
    tolerance = COARSE if dtype.itemsize <= 2 else RELATIVE
    return bool(np.isfinite(number)) and abs(number - ideal) <= tolerance * abs(ideal)


@dataclass(frozen=True, init=False)
class Op(Pattern):
    """A node of the standard domain with these operands, and no others.

    `where` says more about the node (its attributes, its axes).
    """

    kind: str
    operands: tuple[Pattern, ...]
    where: Callable[[ir.Node], bool]

    def __init__(self, kind: str, *operands: Pattern, where: Callable[[ir.Node], bool] = lambda _: True) -> None:
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "operands", operands)
        object.__setattr__(self, "where", where)

    def matches(self, value: ir.Value | None, so_far: Match) -> Iterator[Match]:
        """Yield a match for every order and alternative that fits."""
        node = None if value is None else value.producer()
        if node is None or not query.is_op(node, self.kind) or not self.where(node):
            return
        inputs = list(node.inputs)
        if self.kind not in _PORTS_READ_BY_WHERE and len(inputs) != len(self.operands):
            return
        orders = [inputs]
        if self.kind in _COMMUTATIVE and len(inputs) == 2:
            orders.append(inputs[::-1])
        for order in orders:
            for found in _all(self.operands, order, so_far):
                yield found.with_node(node)


_PORTS_READ_BY_WHERE = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "Softmax", "Clip")
"""Operators whose further inputs are settings, attributes in older opsets: `where` reads them."""


def _all(patterns: tuple[Pattern, ...], values: list[ir.Value | None], so_far: Match) -> Iterator[Match]:
    if not patterns:
        yield so_far
        return
    for found in patterns[0].matches(values[0], so_far):
        yield from _all(patterns[1:], values[1:], found)


@dataclass(frozen=True)
class Clip(Pattern):
    """min(max(x, low), high), with the limits in inputs or, in older opsets, in attributes."""

    data: Pattern
    low: Pattern | float
    high: Pattern | float

    def matches(self, value: ir.Value | None, so_far: Match) -> Iterator[Match]:
        """Yield matches for a Clip whose limits are numbers."""
        node = None if value is None else value.producer()
        limits = None if node is None else clip_limits(node)
        if node is None or limits is None:
            return
        for found in self.data.matches(node.inputs[0], so_far.with_node(node)):
            bound: Match | None = found
            for limit, number in zip((self.low, self.high), limits, strict=True):
                if isinstance(limit, Num) and isinstance(limit.of, str):
                    bound = None if bound is None else bound.with_number(limit.of, number)
                elif isinstance(limit, float) and not close(number, limit):
                    bound = None
            if bound is not None:
                yield bound


@dataclass(frozen=True, init=False)
class Any(Pattern):
    """One of several spellings."""

    options: tuple[Pattern, ...]

    def __init__(self, *options: Pattern) -> None:
        object.__setattr__(self, "options", options)

    def matches(self, value: ir.Value | None, so_far: Match) -> Iterator[Match]:
        """Yield the matches of every spelling."""
        for option in self.options:
            yield from option.matches(value, so_far)


def times(*factors: Pattern) -> Pattern:
    """Return the product of three factors or two, however it is bracketed."""
    if len(factors) == 2:
        return Op("Mul", *factors)
    one, two, three = factors
    return Any(
        Op("Mul", Op("Mul", one, two), three),
        Op("Mul", Op("Mul", one, three), two),
        Op("Mul", Op("Mul", two, three), one),
    )


def over(data: Pattern, number: float) -> Pattern:
    """Return x / c, spelled as a division or as a product with 1 / c."""
    return Any(Op("Div", data, Num(number)), Op("Mul", data, Num(1 / number)))


def squared(data: Pattern) -> Pattern:
    """Return x^2, spelled as a power or as a product."""
    return Any(Op("Pow", data, Num(2.0)), Op("Mul", data, data))


def maybe_cast(data: Pattern) -> Pattern:
    """Return x, or x in another float type."""
    return Any(data, Op("Cast", data, where=_to_float))


def _to_float(node: ir.Node) -> bool:
    return ir.DataType(query.attribute(node, "to", 0)).is_floating_point()


def search(pattern: Pattern, value: ir.Value) -> Match | str | None:
    """Return the first way in which a value is the expression, None where it is not.

    A reason where it is one but for a value inside that something outside reads too.
    """
    open_at = ""
    for match in pattern.matches(value, Match()):
        open_at = _read_outside(match, value)
        if not open_at:
            return match
    return f"{open_at} inside it has other readers" if open_at else None


def _read_outside(match: Match, root: ir.Value) -> str:
    """Return the name of a value inside the match that other nodes or graphs read, "" where there is none."""
    owner = root.producer()
    inside = set(match.nodes)
    for node in match.nodes:
        if owner is not None and node.graph is not owner.graph:
            return node.outputs[0].name or "a value"
        for output in node.outputs if node is not owner else ():
            if output.is_graph_output() or any(u.node not in inside for u in output.uses()):
                return output.name or "a value"
    return ""
