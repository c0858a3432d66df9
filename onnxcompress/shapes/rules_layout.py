"""Rules of operators that make, join, cut and rearrange tensors, and of those that tell their shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from ..graph import query
from ..numerics import polynomials
from ..numerics.polynomials import Size
from .facts import INTEGERS, MOST_ELEMENTS, UNKNOWN, Content, Dims, Fact, ImpossibleError, broadcast
from .rule_step import Rule, RuleContext, as_int, attribute_vector, from_front, spread, vector, with_content

FAR = 2**31 - 1
"""Exporters write a slice's open end as the largest int32 or int64."""


def _shape(step: RuleContext) -> list[Fact]:
    dims = step.dims()
    if dims is None:
        return [UNKNOWN]
    end = query.attribute(step.node, "end")
    part = dims[slice(step.attribute("start", 0), None if end is None else int(end))]
    return with_content(vector(part))


def _size(step: RuleContext) -> list[Fact]:
    dims = step.dims()
    total = None if dims is None else polynomials.product(dims)
    return with_content(Content(ir.DataType.INT64, (), (total,))) if total is not None else [Fact(())]


def _gather(step: RuleContext) -> list[Fact]:
    data, indices = step.dims(0), step.dims(1)
    if data is None or indices is None:
        return [UNKNOWN]
    axis = from_front(step.attribute("axis", 0), len(data))
    dims = data[:axis] + indices + data[axis + 1 :]
    content, at = step.content(0), step.content(1)
    wanted = at.numbers() if at is not None else None
    if content is None or wanted is None or at is None or len(content.shape) != 1:
        return [Fact(dims)]
    count = len(content.elements)
    if not all(-count <= n < count for n in wanted):
        raise ImpossibleError
    return with_content(Content(content.dtype, at.shape, tuple(content.elements[n] for n in wanted)))


def _concat(step: RuleContext) -> list[Fact]:
    shapes = [step.dims(port) for port in range(len(step.node.inputs))]
    contents = [c for c in step.contents if c is not None]
    if len(contents) == len(shapes) and all(len(c.shape) == 1 for c in contents):
        return with_content(vector((e for c in contents for e in c.elements), contents[0].dtype))
    known = [dims for dims in shapes if dims is not None]
    if len(known) < len(shapes) or len({len(dims) for dims in known}) != 1:
        if len({len(dims) for dims in known}) > 1:
            raise ImpossibleError
        return [UNKNOWN]
    axis = from_front(step.attribute("axis", 0), len(known[0]))
    total = Size.number(0)
    for one in known:
        total = total + one[axis]
    merged = [next((s for s in column if s.as_int() is not None), column[0]) for column in zip(*known, strict=True)]
    merged[axis] = total
    return [Fact(tuple(merged))]


def _unsqueeze(step: RuleContext) -> list[Fact]:
    dims, axes = step.dims(), step.integers("axes", 1)
    if dims is None or axes is None:
        return [UNKNOWN]
    rank = len(dims) + len(axes)
    places = {from_front(axis, rank) for axis in axes}
    rest = iter(dims)
    made = tuple(Size.number(1) if i in places else next(rest) for i in range(rank))
    return [Fact(made, _reshaped(step.content(), made))]


def _squeeze(step: RuleContext) -> list[Fact]:
    dims = step.dims()
    if dims is None:
        return [UNKNOWN]
    axes = step.integers("axes", 1, default=())
    if axes is None or (not axes and not all(d.as_int() is not None for d in dims)):
        return [UNKNOWN]
    places = {from_front(a, len(dims)) for a in axes} or {i for i, d in enumerate(dims) if d.as_int() == 1}
    if any(polynomials.equal(dims[i], Size.number(1)) is False for i in places):
        raise ImpossibleError
    made = tuple(d for i, d in enumerate(dims) if i not in places)
    return [Fact(made, _reshaped(step.content(), made))]


def _reshaped(content: Content | None, dims: Dims) -> Content | None:
    shape = [d.as_int() for d in dims]
    if content is None or None in shape:
        return None
    known = tuple(n for n in shape if n is not None)
    if math.prod(known) != len(content.elements):
        raise ImpossibleError
    return Content(content.dtype, known, content.elements)


def _reshape(step: RuleContext) -> list[Fact]:
    target = step.content(1) if step.has(1) else attribute_vector(step.node, "shape")
    if target is None:
        count = step.dims(1)
        rank = count[0].as_int() if count else None
        return [Fact(None if rank is None else tuple(step.fresh() for _ in range(rank)))]
    dims = reshaped_dims(step.dims(), target, keeps_zero=bool(step.attribute("allowzero", 0)), fresh=step.fresh)
    return [Fact(dims, _reshaped(step.content(), dims))]


def reshaped_dims(data: Dims | None, target: Content, *, keeps_zero: bool, fresh: Callable[[], Size]) -> Dims:
    """Return the dimensions that Reshape makes of `data` for a target (0: as in the input, -1: what is left)."""
    made: list[Size | None] = []
    for index, element in enumerate(target.elements):
        number = None if element is None else element.as_int()
        if element is None or number == -1:
            made.append(None)
        elif number == 0 and not keeps_zero:
            if data is not None and index >= len(data):
                raise ImpossibleError
            made.append(fresh() if data is None else data[index])
        else:
            made.append(element)
    if made.count(None) == 1 and data is not None:
        rest = polynomials.product(tuple(size for size in made if size is not None))
        left = polynomials.product(data).divided(rest) if rest.is_tractable() else None
        if left is None and rest.as_int() is not None and polynomials.product(data).as_int() is not None:
            raise ImpossibleError
        made[made.index(None)] = left if left is not None and left.is_tractable() else fresh()
    return tuple(fresh() if size is None else size for size in made)


def _flatten(step: RuleContext) -> list[Fact]:
    dims = step.dims()
    if dims is None:
        return [Fact((step.fresh(), step.fresh()))]
    axis = step.attribute("axis", 1)
    axis = axis + len(dims) if axis < 0 else axis
    return [Fact((polynomials.product(dims[:axis]), polynomials.product(dims[axis:])))]


def _transpose(step: RuleContext) -> list[Fact]:
    dims = step.dims()
    if dims is None:
        return [UNKNOWN]
    perm = query.attribute(step.node, "perm", tuple(reversed(range(len(dims)))))
    if len(perm) != len(dims):
        raise ImpossibleError
    return [Fact(tuple(dims[i] for i in perm), step.content() if len(dims) < 2 else None)]


def _split(step: RuleContext) -> list[Fact]:
    dims = step.dims()
    if dims is None:
        return []
    axis, count = from_front(step.attribute("axis", 0), len(dims)), len(step.node.outputs)
    whole = dims[axis].as_int()
    lengths: list[Size | None]
    if "split" in step.node.attributes or step.has(1):
        content = step.content(1) if step.has(1) else attribute_vector(step.node, "split")
        lengths = list(content.elements) if content is not None else [None] * count
    elif whole is not None:
        part = -(-whole // count)
        lengths = [Size.number(max(0, min(part, whole - part * i))) for i in range(count)]
    else:
        lengths = [dims[axis].divided(Size.number(count))] * count
    if len(lengths) != count:
        raise ImpossibleError
    parts = [step.fresh() if n is None else n for n in lengths]
    return [Fact((*dims[:axis], part, *dims[axis + 1 :])) for part in parts]


def _expand(step: RuleContext) -> list[Fact]:
    target = step.content(1)
    if target is None or any(e is None or (as_int(e) or 0) < 0 for e in target.elements):
        return [UNKNOWN]
    wanted = tuple(e for e in target.elements if e is not None)
    dims = broadcast([step.dims(), wanted], step.fresh)
    shape = [] if dims is None else [d.as_int() for d in dims]
    content = step.content()
    if content is None or dims is None or None in shape:
        return [Fact(dims)]
    fixed = tuple(n for n in shape if n is not None)
    if int(np.prod(fixed, dtype=np.int64)) > MOST_ELEMENTS:
        return [Fact(dims)]
    return with_content(Content(content.dtype, fixed, tuple(spread(content, fixed))))


def _constant_of_shape(step: RuleContext) -> list[Fact]:
    target = step.content()
    if target is None or any(e is None for e in target.elements):
        return [UNKNOWN]
    dims = tuple(e for e in target.elements if e is not None)
    tensor = query.attribute(step.node, "value")
    shape = target.numbers()
    if tensor is None or tensor.dtype not in INTEGERS or shape is None:
        return [Fact(dims)]
    count = int(np.prod(shape, dtype=np.int64))
    if not 0 <= count <= MOST_ELEMENTS:
        return [Fact(dims)]
    element = Size.number(int(tensor.numpy().reshape(-1)[0]))
    return with_content(Content(tensor.dtype, tuple(shape), (element,) * count))


def _range(step: RuleContext) -> list[Fact]:
    ends = [step.content(port) for port in range(3)]
    if any(c is None or len(c.elements) != 1 for c in ends):
        return [Fact((step.fresh(),))]
    start, limit, delta = (c.elements[0] for c in ends if c is not None)
    if start is None or limit is None or delta is None:
        return [Fact((step.fresh(),))]
    first, last, stride = start.as_int(), limit.as_int(), delta.as_int()
    dtype = ends[0].dtype if ends[0] is not None else ir.DataType.INT64
    if first is not None and last is not None and stride:
        count = max(0, -((first - last) // stride))  # len(range(...)) has 63 bits
        if count > 256:
            return [Fact((Size.number(count),))]
        return with_content(vector(map(Size.number, range(first, last, stride)), dtype))
    length = limit - start
    return [Fact((length if stride == 1 and length.at_least(0) else step.fresh(),))]


ARRANGEMENT: Mapping[str, Rule] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Split": _split,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
}


def _slice(step: RuleContext) -> list[Fact]:
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
