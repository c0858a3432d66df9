"""Which operator follows which rule."""

from __future__ import annotations

from collections.abc import Mapping

from .. import ops, sizes
from .arithmetic import ARITHMETIC
from .arrangement import ARRANGEMENT
from .facts import UNKNOWN, Fact, ImpossibleError, broadcast
from .slicing import SLICING
from .step import Rule, Step, as_it_came


def _same(step: Step) -> list[Fact]:
    return [Fact(step.dims())]


def _matmul(step: Step) -> list[Fact]:
    a, b = step.dims(0), step.dims(1)
    if a is None or b is None:
        return [UNKNOWN]
    if not a or not b or sizes.equal(a[-1], b[-2] if len(b) > 1 else b[-1]) is False:
        raise ImpossibleError
    batch = broadcast([a[:-2], b[:-2]], step.fresh)
    rows, columns = a[-2:-1], (b[-1:] if len(b) > 1 else ())
    return [Fact(None if batch is None else batch + rows + columns)]


def _recurrent(step: Step) -> list[Fact]:
    dims = step.dims()
    if dims is not None and len(dims) != 3:
        raise ImpossibleError
    return []


def _convolution(step: Step) -> list[Fact]:
    data, weight = step.dims(0), step.dims(1)
    if data is not None and weight is not None and len(data) != len(weight):
        raise ImpossibleError
    return []


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(ops.SAME_SHAPE, _same),
    **ARITHMETIC,
    **ARRANGEMENT,
    **SLICING,
    "Identity": as_it_came,
    "MatMul": _matmul,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
}
"""Operator of the standard domain -> the facts of its outputs."""
