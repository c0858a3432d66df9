"""The rules of layers: products, convolutions, recurrent layers, and the pads before them."""

from __future__ import annotations

from collections.abc import Mapping

from ..graph import query
from ..numerics import polynomials
from ..numerics.polynomials import Size
from .facts import UNKNOWN, Fact, ImpossibleError, broadcast
from .rule_step import Rule, RuleContext, attribute_vector, from_front


def _matmul(step: RuleContext) -> list[Fact]:
    a, b = step.dims(0), step.dims(1)
    if a is None or b is None:
        return [UNKNOWN]
    if not a or not b or polynomials.equal(a[-1], b[-2] if len(b) > 1 else b[-1]) is False:
        raise ImpossibleError
    batch = broadcast([a[:-2], b[:-2]], step.fresh)
    rows, columns = a[-2:-1], (b[-1:] if len(b) > 1 else ())
    return [Fact(None if batch is None else batch + rows + columns)]


def _gemm(step: RuleContext) -> list[Fact]:
    a, b = step.dims(0), step.dims(1)
    if a is None or b is None:
        return [UNKNOWN]
    if len(a) != 2 or len(b) != 2:
        raise ImpossibleError
    return [Fact((a[1 if step.attribute("transA", 0) else 0], b[0 if step.attribute("transB", 0) else 1]))]


def _recurrent(step: RuleContext) -> list[Fact]:
    dims, weight = step.dims(), step.dims(2)
    if dims is not None and len(dims) != 3:
        raise ImpossibleError
    if dims is None or weight is None or len(weight) != 3 or step.attribute("layout", 0):
        return []
    state = Fact((weight[0], dims[1], weight[2]))
    return [Fact((dims[0], weight[0], dims[1], weight[2])), state, state]


def _transposed_convolution(step: RuleContext) -> list[Fact]:
    data, weight = step.dims(0), step.dims(1)
    if data is not None and weight is not None and len(data) != len(weight):
        raise ImpossibleError
    return []


def _convolution(step: RuleContext) -> list[Fact]:
    data, weight = step.dims(0), step.dims(1)
    if data is None or weight is None or len(data) < 3:
        return [UNKNOWN]
    if len(data) != len(weight):
        raise ImpossibleError
    count = len(data) - 2
    pads = query.integers(step.node, "pads", default=[0] * count * 2)
    strides, dilations = (query.integers(step.node, name, default=[1] * count) for name in ("strides", "dilations"))
    made = [step.fresh() for _ in range(count)]
    if query.attribute(step.node, "auto_pad", "NOTSET") in ("NOTSET", b"NOTSET") and pads and strides and dilations:
        for place in range(count):
            kernel = (weight[place + 2] - 1) * dilations[place] + 1
            space = data[place + 2] + pads[place] + pads[place + count] - kernel
            number = space.as_int()
            if number is not None:
                made[place] = Size.number(number // strides[place] + 1)
            elif strides[place] == 1:
                made[place] = space + 1
    return [Fact((data[0], weight[0], *made))]


def _pad(step: RuleContext) -> list[Fact]:
    dims = step.dims()
    content = step.content(1) if step.has(1) else attribute_vector(step.node, "pads")
    places = step.integers("axes", 3, default=range(len(dims or ())))
    if dims is None or content is None or places is None or len(content.elements) != 2 * len(places):
        return [UNKNOWN]
    made = list(dims)
    for index, place in enumerate(places):
        before, after = content.elements[index], content.elements[index + len(places)]
        axis = from_front(place, len(dims))
        made[axis] = step.fresh() if before is None or after is None else dims[axis] + before + after
    return [Fact(tuple(made))]


LAYERS: Mapping[str, Rule] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Pad": _pad,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
}
"""Operator of the standard domain -> the facts of its outputs."""
