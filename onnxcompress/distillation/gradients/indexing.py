"""Derivatives of operators that copy elements to other places: Slice with steps, Pad that repeats what is inside.

dx[i] = sum of dy[j] over the places j to which element i was copied, along each axis in turn
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .rule import NoRuleError, RuleNode

_MOST_COPIES = 64
"""Most copies of one element along an axis. Chosen by judgement, for the size of the graph."""


def slice_(node: RuleNode, dy: str) -> dict[int, str]:
    """Differentiate Slice with constant bounds."""
    dims = node.dims(node.node.input[0])
    starts, ends, axes, steps = (node.integers(port) for port in (1, 2, 3, 4))
    assert starts is not None
    assert ends is not None
    axes = list(range(len(starts))) if axes is None else [axis % len(dims) for axis in axes]
    steps = [1] * len(starts) if steps is None else steps
    before, after = [0] * len(dims), [0] * len(dims)
    value = dy
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = dims[axis]
        at = range(size)[_bounds(start, end, step, size)]
        if step == 1:
            before[axis], after[axis] = at.start, size - at.stop
        else:
            value = _returned(node, value, axis, list(at), size)
    return {0: node.pad(value, before, after)}


def _bounds(start: int, end: int, step: int, size: int) -> slice:
    """Return ONNX's bounds as Python's: an end below the first element means that there is none."""
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if step > 0:
        return slice(min(max(start, 0), size), max(min(end, size), 0), step)
    return slice(min(max(start, 0), size - 1), None if end < 0 else end, step)


def pad(node: RuleNode, dy: str) -> dict[int, str]:
    """Differentiate Pad by its data: zeros, constants, or values repeated in mode reflect, edge or wrap."""
    dims = node.dims(node.node.input[0])
    pads, axes = node.integers(1), node.integers(3)
    if pads is None:
        raise NoRuleError("its pads are not constant")
    if node.wants(2):
        raise NoRuleError("its constant_value is not constant")
    mode = node.attribute("mode", "constant")
    axes = list(range(len(dims))) if axes is None else [axis % len(dims) for axis in axes]
    value = dy
    for place, axis in enumerate(axes):
        before, after = pads[place], pads[len(axes) + place]
        if before or after:
            value = _returned(node, value, axis, _sources(dims[axis], before, after, mode), dims[axis])
    return {0: value}


def _sources(size: int, before: int, after: int, mode: str) -> list[int]:
    """Return which element each place along a padded axis holds; -1 for a constant."""
    given = np.arange(size)[max(-before, 0) : size - max(-after, 0)]
    width = (max(before, 0), max(after, 0))
    if mode == "constant":
        return list(np.pad(given, width, constant_values=-1))
    return list(np.pad(given, width, mode=mode))  # type: ignore[call-overload]  # reflect, edge, wrap


def _returned(node: RuleNode, value: str, axis: int, sources: Sequence[int], size: int) -> str:
    """Add each element along an axis to the one it was copied from.

    Args:
        node: the node.
        value: the derivative of the copies.
        axis: the axis.
        sources: for each element along the axis, from which it was copied; -1 for none.
        size: extent of the axis before.

    Raises:
        NoRuleError: one element was copied very often.
    """
    copies: list[list[int]] = [[] for _ in range(size)]
    for place, source in enumerate(sources):
        if source >= 0:
            copies[source].append(place)
    most = max(map(len, copies), default=0)
    if most > _MOST_COPIES:
        raise NoRuleError(f"it copies an element {most} times")
    start = next((at for at in range(len(sources)) if sources[at] >= 0), 0)
    inner = list(sources[start : start + size])
    if most == 1 and inner == list(range(size)):
        return node.slice(value, [start], [start + size], [axis])
    rank = len(node.dims(node.node.input[0]))
    zero = [1 if each == axis else 0 for each in range(rank)]
    widened = node.pad(value, [0] * rank, zero)
    parts = [
        node.add("Gather", widened, node.ints([(each + [len(sources)] * most)[turn] for each in copies]), axis=axis)
        for turn in range(max(most, 1))
    ]
    return node.add("Sum", *parts) if len(parts) > 1 else parts[0]
