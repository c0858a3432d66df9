"""Rules of operators that compute: element by element, or over all elements of a vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ..numerics import polynomials
from ..numerics.polynomials import Size
from .facts import INTEGERS, MOST_ELEMENTS, UNKNOWN, Content, Fact, ImpossibleError, broadcast
from .rule_step import Rule, RuleContext, as_it_came, from_front, spread, with_content


def _cast(step: RuleContext) -> list[Fact]:
    content, to = step.content(), ir.DataType(step.attribute("to", 0))
    if content is None or to not in INTEGERS:
        return [Fact(step.dims())]
    elements = tuple(_converted(e, to) for e in content.elements)
    return [Fact(step.dims(), Content(to, content.shape, elements))]


def _converted(element: Size | None, to: ir.DataType) -> Size | None:
    """Return an element in another type; sizes are taken to fit into 32 bits, as every index has to."""
    if element is None or to in (ir.DataType.INT64, ir.DataType.INT32):
        number = None if element is None else element.as_int()
        fits = number is None or to == ir.DataType.INT64 or -(2**31) <= number < 2**31
        return element if fits else None
    number = element.as_int()
    return None if number is None else Size.number(int(number != 0))


def _broadcast(step: RuleContext) -> list[Fact]:
    return [Fact(broadcast([step.dims(port) for port in range(len(step.node.inputs))], step.fresh))]


def _elementwise(combine: Callable[..., Size | bool | None], *, to_bool: bool = False) -> Rule:
    """Return the rule of an operator that combines its operands element by element."""

    def rule(step: RuleContext) -> list[Fact]:
        dims = _broadcast(step)[0].dims
        contents = [c for c in step.contents if c is not None]
        if len(contents) < len(step.node.inputs) or not contents:
            return [Fact(dims)]
        try:
            shape = np.broadcast_shapes(*(c.shape for c in contents))
        except ValueError as error:
            raise ImpossibleError from error
        if int(np.prod(shape)) > MOST_ELEMENTS:
            return [Fact(dims)]
        columns = [spread(c, shape) for c in contents]
        dtype = ir.DataType.BOOL if to_bool else contents[-1].dtype
        combined = (_combined(combine, column) for column in zip(*columns, strict=True))
        elements = tuple(_converted(e, dtype) for e in combined)
        return with_content(Content(dtype, shape, elements))

    return rule


def _combined(combine: Callable[..., Size | bool | None], column: Sequence[Size | None]) -> Size | None:
    if any(item is None for item in column):
        return None
    made = combine(*column)
    return Size.number(int(made)) if isinstance(made, bool) else made


def _choose(condition: Size, x: Size, y: Size) -> Size | None:
    number = condition.as_int()
    return (x if x == y else None) if number is None else x if number else y


def _where(step: RuleContext) -> list[Fact]:
    if step.content(1) is None or step.content(2) is None:
        return _broadcast(step)
    return _elementwise(_choose)(step)


def _and(a: Size, b: Size) -> Size | None:
    x, y = a.as_int(), b.as_int()
    if x == 0 or y == 0:
        return Size.number(0)
    return None if x is None or y is None else Size.number(1)


def _or(a: Size, b: Size) -> Size | None:
    x, y = a.as_int(), b.as_int()
    if x == 1 or y == 1:
        return Size.number(1)
    return None if x is None or y is None else Size.number(0)


def _not(a: Size) -> Size | None:
    number = a.as_int()
    return None if number is None else Size.number(1 - number)


def _not_less(a: Size, b: Size) -> bool | None:
    answer = polynomials.less(a, b)
    return None if answer is None else not answer


def _fold_left(combine: Callable[[Size, Size], Size | None]) -> Callable[..., Size | None]:
    """Return a function of any number of operands from one of two."""

    def of_many(first: Size, *others: Size) -> Size | None:
        total: Size | None = first
        for other in others:
            total = None if total is None else combine(total, other)
        return total

    return of_many


def _reduce_all(combine: Callable[[Size, Size], Size]) -> Rule:
    """Return the rule of a reduction, which follows the elements of a vector that is reduced as a whole."""

    def rule(step: RuleContext) -> list[Fact]:
        dims, axes = step.dims(), step.integers("axes", 1, default=())
        if dims is None or axes is None:
            return [UNKNOWN]
        if not axes and step.attribute("noop_with_empty_axes", 0):
            return as_it_came(step)
        places = {from_front(axis, len(dims)) for axis in axes} or set(range(len(dims)))
        keep = bool(step.attribute("keepdims", 1))
        made = tuple(Size.number(1) if i in places else d for i, d in enumerate(dims) if keep or i not in places)
        content = step.content()
        if content is None or len(content.shape) != 1 or not content.elements or None in content.elements:
            return [Fact(made)]
        elements = [e for e in content.elements if e is not None]
        total = elements[0]
        for element in elements[1:]:
            total = combine(total, element)
        return with_content(Content(content.dtype, (1,) if keep else (), (total,)))

    return rule


ARITHMETIC: Mapping[str, Rule] = {
    **dict.fromkeys(("Pow", "Sum", "Mean", "Xor"), _broadcast),
    "Cast": _cast,
    "Neg": _elementwise(lambda a: a * -1),
    "Add": _elementwise(lambda a, b: a + b),
    "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b),
    "Div": _elementwise(polynomials.quotient),
    "Mod": _elementwise(polynomials.remainder),
    "Min": _elementwise(_fold_left(polynomials.least)),
    "Max": _elementwise(_fold_left(polynomials.greatest)),
    "Equal": _elementwise(polynomials.equal, to_bool=True),
    "Less": _elementwise(polynomials.less, to_bool=True),
    "Greater": _elementwise(lambda a, b: polynomials.less(b, a), to_bool=True),
    "LessOrEqual": _elementwise(lambda a, b: _not_less(b, a), to_bool=True),
    "GreaterOrEqual": _elementwise(_not_less, to_bool=True),
    "And": _elementwise(_and, to_bool=True),
    "Or": _elementwise(_or, to_bool=True),
    "Not": _elementwise(_not, to_bool=True),
    "Where": _where,
    "ReduceProd": _reduce_all(lambda a, b: a * b),
    "ReduceSum": _reduce_all(lambda a, b: a + b),
}
