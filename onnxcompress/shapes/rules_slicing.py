"""The rule of Slice."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from ..numerics import polynomials
from ..numerics.polynomials import Size
from .facts import Content, Fact
from .rule_step import Rule, Step, as_int, attribute_vector, from_front, vector, with_content

FAR = 2**31 - 1
"""Exporters write a slice's open end as the largest int32 or int64."""


def _slice(step: Step) -> list[Fact]:
    bounds = slice_bounds(step.node, step.content)
    dims = step.dims()
    if bounds is None or dims is None:
        return [Fact(None if dims is None else tuple(step.fresh() for _ in dims))]
    made = list(dims)
    content = step.content()
    for axis, (start, end, stride) in bounds.items():
        place = from_front(axis, len(dims))
        made[place] = _sliced(dims[place], start, end, stride) or step.fresh()
        number, first, last = dims[place].as_int(), as_int(start), as_int(end)
        if content is None or len(content.shape) != 1 or number is None or first is None or last is None or not stride:
            content = None
        else:
            content = vector(content.elements[_python_slice(first, last, stride)], content.dtype)
    return with_content(content, tuple(made)) if content is not None else [Fact(tuple(made))]


def slice_bounds(
    node: ir.Node, content: Callable[[int], Content | None]
) -> dict[int, tuple[Size | None, Size | None, int | None]] | None:
    """Return axis -> (start, end, step) of a Slice, None where the axes are not known."""
    if "starts" in node.attributes:
        starts, ends = attribute_vector(node, "starts"), attribute_vector(node, "ends")
        axes, steps = attribute_vector(node, "axes"), None
        has_axes, has_steps = axes is not None, False
    else:
        starts, ends = content(1), content(2)
        has_axes, has_steps = (p < len(node.inputs) and node.inputs[p] is not None for p in (3, 4))
        axes, steps = (content(3) if has_axes else None), (content(4) if has_steps else None)
    one = starts if starts is not None else ends if ends is not None else axes
    if one is None or (has_axes and axes is None):
        return None
    count = len(one.elements)
    places = list(range(count)) if axes is None else axes.numbers()
    if places is None or len(places) != count:
        return None
    nothing: tuple[Size | None, ...] = (None,) * count
    strides: list[int | None] = [1] * count
    if has_steps:
        strides = [None if e is None else e.as_int() for e in steps.elements] if steps is not None else [None] * count
    begin = starts.elements if starts is not None else nothing
    until = ends.elements if ends is not None else nothing
    return {axis: (begin[i], until[i], strides[i]) for i, axis in enumerate(places)}


def _python_slice(start: int, end: int, stride: int) -> slice:
    """Return the slice as Python counts it: an end before the first element is open when going backwards."""
    return slice(start, None if stride < 0 and end < -FAR + 1 else end, stride)


def reaches_end(end: Size | None, dim: Size) -> bool:
    """Say whether a slice that ends at `end` takes everything up to the last element."""
    number = as_int(end)
    if end is None:
        return False
    return (number is not None and number >= FAR) or (end - dim).at_least(0)


def _sliced(dim: Size, start: Size | None, end: Size | None, stride: int | None) -> Size | None:
    """Return how many elements of an axis a slice takes, None where that is not known."""
    first, last, size = as_int(start), as_int(end), dim.as_int()
    if stride is None or start is None or end is None:
        return None
    if size is not None and first is not None and last is not None:
        return Size.number(len(range(size)[_python_slice(first, last, stride)]))
    if stride != 1:
        return None
    if first == 0:
        if reaches_end(end, dim):
            return dim
        return polynomials.least(end, dim) if end.at_least(0) else None
    if first is not None and first > 0 and reaches_end(end, dim):
        return dim - first if dim.at_least(first) else None
    return None


SLICING: Mapping[str, Rule] = {"Slice": _slice}
