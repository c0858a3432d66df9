"""Lint of samples: inputs that never change, samples of one number, a scale that the model does not expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..graph import query

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..core import Feed

_LOOKED_AT = 64
"""Samples that are looked at, evenly spread; all where there are fewer."""
_PIXEL = 255
"""Largest value of an 8-bit image."""
_BRIGHT = 100
"""Whole numbers from 0 to above this are pixels."""
_DIVISOR = 50.0
"""A model that divides its input by so much or more wants pixels."""
_NAMED = 3
"""Samples that a line names."""


@dataclass
class _Seen:
    """One input over the samples: its extremes, and the samples that hold one number only."""

    low: float = np.inf
    high: float = -np.inf
    whole: bool = True
    flat: list[int] = field(default_factory=list)
    first: np.ndarray | None = None
    same: bool = True


def oddities(model: ir.Model, feeds: Sequence[Feed], *, state: Mapping[str, str] | None = None) -> list[str]:
    """Return a line for each odd thing about samples that can spoil what is measured on them.

    Looked at are inputs of floats with at least two axes that carry no state.

    Args:
        model: the model that the samples are for.
        feeds: complete feeds.
        state: input -> output that it is carried from.
    """
    step = max(1, -(-len(feeds) // _LOOKED_AT))
    looked_at = range(0, len(feeds), step)
    seen: dict[str, _Seen] = {}
    for index in looked_at:
        for name, array in feeds[index].items():
            if name not in (state or {}) and isinstance(array, np.ndarray) and _is_data(array):
                _look(seen.setdefault(name, _Seen()), index, array)
    lines = []
    for name, found in seen.items():
        lines += _lines(name, found, len(looked_at))
        value = next((v for v in model.graph.inputs if v.name == name), None)
        if value is not None and (line := _scale(name, found, value)):
            lines.append(line)
    return lines


def _is_data(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and array.ndim > 1 and array.size > 1


def _look(seen: _Seen, index: int, array: np.ndarray) -> None:
    low, high = float(array.min()), float(array.max())
    seen.low, seen.high = min(seen.low, low), max(seen.high, high)
    if low == high:
        seen.flat.append(index)
    seen.whole = seen.whole and bool((np.rint(array) == array).all())
    if seen.first is None:
        seen.first = array
    elif seen.same:
        seen.same = seen.first.shape == array.shape and bool((seen.first == array).all())


def _lines(name: str, seen: _Seen, count: int) -> list[str]:
    if seen.low == seen.high:
        return [f"input {name!r} is {seen.low:g} everywhere in every sample"]
    if count > 1 and seen.same:
        return [f"all samples hold the same {name!r}"]
    if seen.flat:
        which = ", ".join(map(str, seen.flat[:_NAMED])) + (", ..." if len(seen.flat) > _NAMED else "")
        return [f"{len(seen.flat)} of {count} samples hold one number only in {name!r} (sample {which})"]
    return []


def _scale(name: str, seen: _Seen, value: ir.Value) -> str | None:
    """Return what is unlikely about the range of an input, by what the model does with it first."""
    divisor = _divisor(value)
    if divisor >= _DIVISOR and seen.low >= 0 and seen.high <= 1:
        return f"the model divides input {name!r} by {divisor:g}, and the samples lie in 0 to 1 already; see --scale"
    pixels = seen.whole and seen.low >= 0 and _BRIGHT < seen.high <= _PIXEL
    if pixels and divisor == 1.0:
        return (
            f"input {name!r} holds whole numbers up to {seen.high:g}, and the model does not scale them; "
            "if it was trained on other numbers, give --scale (0.00392 for 0 to 1) and --mean"
        )
    return None


def _divisor(value: ir.Value) -> float:
    """Return the number by which all readers of an input divide it; 0 where one does something else of that kind."""
    found = set()
    for use in value.uses():
        node = use.node
        if query.is_op(node, "Cast", "Transpose", "Identity", "Reshape", "Unsqueeze"):
            found.add(_divisor(node.outputs[0]))
        elif query.is_op(node, "Div", "Mul") and use.idx in (0, 1):
            factor = query.small_constant(node.inputs[1 - use.idx])
            typical = 0.0 if factor is None or factor.dtype.kind != "f" else float(np.abs(factor).mean())
            found.add(typical if node.op_type == "Div" and use.idx == 0 else 1 / typical if typical else 0.0)
        else:
            found.add(0.0 if query.is_op(node, "Sub", "Add", "BatchNormalization", "InstanceNormalization") else 1.0)
    return found.pop() if len(found) == 1 else 0.0
