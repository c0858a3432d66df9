"""Channel rules of operators that move, slice, join and repeat data, and the fixes that removal needs in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ..graph import query
from ..numerics.polynomials import Size
from .fixups import Frozen, PartSizes, Picks, Sizes, WindowSizes
from .relations import NodeContext
from .rules_linear import Outs
from .types import FIRST_WHERE, Axis, Ids, Pin, UnfollowedError

LAST_SPLIT_ATTRIBUTE = 12
"""Last opset version in which the sizes of Split's parts are an attribute."""


def transpose(step: NodeContext) -> Outs:
    """Transpose: the axes in another order."""
    axes = step.axes(0)
    order = step.attribute("perm") or range(len(axes))[::-1]
    return [[axes[place] for place in order]]


def concat(step: NodeContext) -> Outs:
    """Concat: ids one after the other along the axis, the other axes united."""
    ports = [port for port in range(len(step.node.inputs)) if step.has(port)]
    out, parts = list(step.axes(ports[0])), []
    axis = step.positive(int(step.attribute("axis", 1)), len(out))
    for port in ports:
        axes = step.axes(port)
        parts.append((axes[axis], step.dims(port)[axis]))
        for place, each in enumerate(axes):
            if place != axis:
                out[place] = step.unite(out[place], each)
    out[axis] = joined(step, parts)
    return [out]


def joined(step: NodeContext, parts: Sequence[tuple[Axis, int]]) -> Axis:
    """Return ids one after the other; each part is (axis, length)."""
    pins = [axis for axis, _ in parts if isinstance(axis, Pin)]
    if len(pins) == len(parts):
        return pins[0]
    return np.concatenate([step.array(axis, count) for axis, count in parts if count])


def split(step: NodeContext) -> Outs:
    """Split: each output takes its indices; their numbers follow a cut."""
    axes, node = step.axes(0), step.node
    axis = step.positive(int(step.attribute("axis", 0)), len(axes))
    lengths = [step.out_dims(index)[axis] for index in range(len(node.outputs))]
    ids = axes[axis]
    if isinstance(ids, Pin):
        return [axes for _ in node.outputs]
    if step.has(1) and query.constant_tensor(node.inputs[1]) is None:
        raise UnfollowedError("its lengths are computed at run time")
    ends = np.cumsum(lengths)
    parts = [ids[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    step.fix(PartSizes(node, parts, step.flow.opset <= LAST_SPLIT_ATTRIBUTE))
    return [[*axes[:axis], part, *axes[axis + 1 :]] for part in parts]


def slice_(step: NodeContext) -> Outs:
    """Slice: the indices that it takes; start and end follow a cut, and a stride becomes a list of positions."""
    axes, dims = list(step.axes(0)), step.dims(0)
    starts, ends = step.elements("starts", 1), step.elements("ends", 2)
    places = step.numbers("axes", 3, default=range(len(starts)))
    strides = step.elements("steps", 4) if step.has(4) else [1] * len(starts)
    writable = "starts" in step.node.attributes or (step.can_write(1) and step.can_write(2))
    for place, number in enumerate(places):
        axis = step.positive(number, len(axes))
        ids, start, end, stride = axes[axis], starts[place], ends[place], strides[place]
        if isinstance(ids, Pin):
            continue
        if start is None or end is None or stride is None or not writable or (stride != 1 and len(places) > 1):
            axes[axis] = step.pin(ids, "start, end or stride of the Slice are not fixed")
            continue
        picks = np.arange(dims[axis])[start : None if stride < 0 and end < -len(ids) else end : stride]
        if not len(picks):
            raise UnfollowedError("it takes nothing")
        axes[axis] = ids[picks]
        if stride == 1:
            step.fix(WindowSizes(step.node, (place, len(places)), ids, int(picks[0]), int(picks[-1]) + 1))
        else:
            step.fix(Picks(step.node, axis, ids, picks))
    return [axes]


def _number(size: Size | None) -> int | None:
    return None if size is None else size.as_int()


def gather(step: NodeContext) -> Outs:
    """Gather: constant positions follow a cut of the axis; with computed ones the axis is kept."""
    axes, dims = step.axes(0), step.dims(0)
    axis = step.positive(int(step.attribute("axis", 0)), len(axes))
    ids = axes[axis]
    rank = len(step.dims(1))
    inner: list[Axis]
    picks = query.small_constant(step.node.inputs[1], most=1 << 20)
    if isinstance(ids, Pin) or picks is None or picks.ndim > 1:
        pin = step.pin(ids, "its indices are looked up", by_nature=True)
        inner = [pin] * rank if picks is not None else list(step.axes(1))
    else:
        picks = np.where(picks < 0, picks + dims[axis], picks).astype(np.int64)
        inner = [ids[picks]] if picks.ndim else []
        if not picks.ndim:
            step.pin(ids[picks.reshape(1)], "this one is picked out")
        step.fix(Picks(step.node, axis, ids, picks))
    if step.constant(0) is not None:
        for place, made in enumerate(axes):
            if place != axis:
                step.made(place if place < axis else place - 1 + rank, made, 0, place)
    return [[*axes[:axis], *inner, *axes[axis + 1 :]]]


def shape(step: NodeContext) -> Outs:
    """Shape: what is computed from sizes stays as it is."""
    axes = step.axes(0)
    start, end = int(step.attribute("start", 0)), int(step.attribute("end", len(axes)))
    places = range(len(axes))[start:end]
    free = [(place - places.start, axes[place]) for place in places]
    sizes = [(place, ids) for place, ids in free if not isinstance(ids, Pin)]
    if sizes and step.flow.opset < FIRST_WHERE:
        raise UnfollowedError("a size is read, and this opset can't overwrite it")
    if sizes:
        step.fix(Frozen(step.node, sizes, len(places)))
    return [[step.pinned("is a shape")]]


def squeeze(step: NodeContext) -> Outs:
    """Squeeze: axes of one index go."""
    axes, dims = step.axes(0), step.dims(0)
    numbers = step.numbers("axes", 1, default=[])
    squeezed = {step.positive(n, len(axes)) for n in numbers}
    if not numbers:
        if not all(step.is_static(step.value(0), place) for place in range(len(dims))):
            raise UnfollowedError("which axes go is decided at run time")
        squeezed = {place for place, n in enumerate(dims) if n == 1}
    return [[axis for place, axis in enumerate(axes) if place not in squeezed]]


def unsqueeze(step: NodeContext) -> Outs:
    """Unsqueeze: axes of one index are put in."""
    axes = step.axes(0)
    numbers = step.numbers("axes", 1)
    rank = len(axes) + len(numbers)
    new = {step.positive(n, rank) for n in numbers}
    left = iter(axes)
    return [[step.single() if place in new else next(left) for place in range(rank)]]


def flatten(step: NodeContext) -> Outs:
    """Flatten: the axes before and behind `axis` are merged."""
    axes, dims = step.axes(0), step.dims(0)
    axis = int(step.attribute("axis", 1))
    axis = axis + len(axes) if axis < 0 else axis
    return [[step.merged(axes[:axis], dims[:axis]), step.merged(axes[axis:], dims[axis:])]]


def reshape(step: NodeContext) -> Outs:
    """Reshape: runs of axes that hold the same elements before and after are merged, split, or both."""
    axes, dims, out_dims = step.axes(0), step.dims(0), step.out_dims()
    runs = list(_runs(dims, out_dims))
    before, after = (step.flow.always.dims(value) for value in (step.value(0), step.node.outputs[0]))
    doubtful = [
        index
        for index, (old, new) in enumerate(runs)
        if before is None or after is None or not _is_same(before[old], after[new])
    ]
    out: list[Axis] = []
    for index, (old, new) in enumerate(runs):
        inside = axes[old]
        if len(doubtful) > 1 and doubtful[0] <= index <= doubtful[-1]:
            inside = [step.pin(axis, "which elements it regroups is decided at run time") for axis in inside]
        merged = inside[0] if len(inside) == 1 else step.merged(inside, dims[old])
        out += step.split(merged, out_dims[new])
    _sized(step, 1, out, axes)
    return [out]


def _runs(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Yield the shortest runs of axes, before and after, that hold the same number of elements."""
    if 0 in old or 0 in new:
        raise UnfollowedError("it is empty at the feed")
    i = j = 0
    while i < len(old) or j < len(new):
        first, start, left, right = i, j, 1, 1
        while i == first or j == start or left != right:
            if i < len(old) and (i == first or left < right or j == len(new)):
                left, i = left * old[i], i + 1
            elif j < len(new):
                right, j = right * new[j], j + 1
            else:
                break
        yield slice(first, i), slice(start, j)


def _is_same(old: Sequence[Size], new: Sequence[Size]) -> bool:
    """Say whether two runs of axes hold the same number of elements at every feed."""
    one = Size.number(1)
    return math.prod(old, start=one) == math.prod(new, start=one)


def _sized(step: NodeContext, port: int, out: list[Axis], copied: Sequence[Axis]) -> None:
    """Let the sizes in input `port` follow the output's axes.

    -1 and 1 speak for themselves, and so does 0 where the axis of that place comes from `copied`.
    """
    content = step.flow.always.content(step.value(port))
    entries: list[tuple[int, Ids]] = []
    for place, axis in enumerate(out):
        if isinstance(axis, Pin):
            continue
        number = None if content is None else _number(content.elements[place])
        if number in (-1, 1) or (number == 0 and place < len(copied) and copied[place] is axis):
            continue
        if step.is_static(step.node.outputs[0], place) and step.can_write(port):
            entries.append((place, axis))
        else:
            out[place] = step.pin(axis, "its size is computed at run time")
    if entries:
        step.fix(Sizes(step.node, port, entries, len(out)))


def expand(step: NodeContext) -> Outs:
    """Expand: axes that are stretched get ids of their own, and the target follows."""
    axes, dims, out_dims = step.axes(0), step.dims(0), step.out_dims()
    offset = len(out_dims) - len(axes)
    out: list[Axis] = []
    for place, n in enumerate(out_dims):
        if place >= offset and dims[place - offset] == n:
            out.append(axes[place - offset])
        else:
            out.append(_stretched(step, place, n))
    _sized_from_the_end(step, 1, out)
    return [out]


def constant_of_shape(step: NodeContext) -> Outs:
    """ConstantOfShape: its axes go with whatever they meet, and the sizes follow."""
    out = [_stretched(step, place, n) for place, n in enumerate(step.out_dims())]
    step.followed.add(0)
    _sized(step, 0, out, ())
    return [out]


def _stretched(step: NodeContext, place: int, count: int) -> Axis:
    if count < 2 or not step.is_static(step.node.outputs[0], place):
        return step.pinned("its size is computed at run time")
    return step.flow.fresh(count)


def _sized_from_the_end(step: NodeContext, port: int, out: list[Axis]) -> None:
    """Do as `_sized` does where the vector may be shorter than the output's shape."""
    [length] = step.dims(port)
    offset = len(out) - length
    content = step.flow.always.content(step.value(port))
    entries: list[tuple[int, Ids]] = []
    for place, axis in enumerate(out[offset:]):
        number = None if content is None else _number(content.elements[place])
        if isinstance(axis, Pin) or number in (-1, 1):
            continue
        if step.is_static(step.node.outputs[0], place + offset) and step.can_write(port):
            entries.append((place, axis))
        else:
            out[place + offset] = step.pin(axis, "its size is computed at run time")
    if entries:
        step.fix(Sizes(step.node, port, entries, length))


def tile(step: NodeContext) -> Outs:
    """Tile: ids once more for every repetition."""
    out = list(step.axes(0))
    for place, (axis, times) in enumerate(zip(out, step.elements("repeats", 1), strict=True)):
        if times is None:
            out[place] = step.pin(axis, "it is repeated a number of times that is computed at run time")
        elif not isinstance(axis, Pin) and times != 1:
            out[place] = np.tile(axis, times)
    return [out]


def pad(step: NodeContext) -> Outs:
    """Pad: indices that are added stay; the others pass where the added ones don't copy them."""
    out = list(step.axes(0))
    numbers = step.elements("pads", 1)
    places = step.numbers("axes", 3, default=range(len(out)))
    for index, number in enumerate(places):
        place = step.positive(number, len(out))
        axis, before, after = out[place], numbers[index], numbers[index + len(places)]
        if isinstance(axis, Pin) or (before == 0 and after == 0):
            continue
        if before is None or after is None or min(before, after) < 0 or step.text("mode", "constant") != "constant":
            out[place] = step.pin(axis, "it is padded with what is in it, or by a computed number")
        else:
            added = step.pinned("padding")
            out[place] = joined(step, [(added, before), (axis, len(axis)), (added, after)])
    return [out]


def resize(step: NodeContext) -> Outs:
    """Resize: axes that keep their size pass."""
    odd = step.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    if odd or step.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnfollowedError("it crops, or keeps the aspect ratio")
    out, dims, out_dims = list(step.axes(0)), step.dims(0), step.out_dims()
    places = [step.positive(int(n), len(out)) for n in step.attribute("axes", range(len(out)))]
    entries: list[tuple[int, Ids]] = []
    for index, place in enumerate(places):
        axis = out[place]
        if isinstance(axis, Pin):
            continue
        is_fixed = step.is_static(step.node.outputs[0], place) and (not step.has(3) or step.can_write(3))
        if dims[place] != out_dims[place] or not is_fixed:
            out[place] = step.pin(axis, "it is resized")
        else:
            entries.append((index, axis))
    if entries and step.has(3) and step.dims(3) != (0,):
        step.fix(Sizes(step.node, 3, entries, len(places)))
    return [out]


def regions(step: NodeContext) -> Outs:
    """RoiAlign: the channels of the image pass."""
    axes = step.axes(0)
    for axis in axes[2:]:
        step.pin(axis, "it is cut by position")
    pin = step.pinned("it is cut by position")
    return [[pin, axes[1], pin, pin]]


def depth_to_space(step: NodeContext) -> Outs:
    """DepthToSpace: blocks of the channel axis go to positions; a channel is removed from all of them."""
    axes, dims, block = step.ranked(0, 4), step.dims(0), int(step.attribute("blocksize", 1)) ** 2
    channels = dims[1] // block
    if step.text("mode", "DCR") == "DCR":
        positions, made = step.split(axes[1], (block, channels))
    else:
        made, positions = step.split(axes[1], (channels, block))
    step.pin(positions, "these become positions")
    return [[axes[0], made, *[step.pin(axis, "positions are regrouped") for axis in axes[2:]]]]


def space_to_depth(step: NodeContext) -> Outs:
    """SpaceToDepth: each channel comes once for every position of a block."""
    axes, dims, block = step.ranked(0, 4), step.dims(0), int(step.attribute("blocksize", 1)) ** 2
    made = step.merged([step.pinned("these were positions"), axes[1]], (block, dims[1]))
    return [[axes[0], made, *[step.pin(axis, "positions are regrouped") for axis in axes[2:]]]]
