"""What is known of a value that may flow from part to part, and the names by which the runtime calls types."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..shapes.infer import Shapes

_TEXTS = {
    ir.DataType.FLOAT: "float",
    ir.DataType.DOUBLE: "double",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BOOL: "bool",
    ir.DataType.STRING: "string",
    **{ir.DataType[f"{s}INT{bits}"]: f"{s.lower()}int{bits}" for s in ("", "U") for bits in (8, 16, 32, 64)},
}
_DTYPES = {text: dtype for dtype, text in _TEXTS.items()}
_STRING_BYTES = 64
"""What an element of a tensor of strings counts: the runtime's own share, and a short text."""


@dataclass(frozen=True)
class Fact:
    """A value at one feed: element type (None: unknown, or no tensor that can be handed over), bytes, shape."""

    dtype: ir.DataType | None
    bytes: float
    dims: tuple[int, ...] | None


def text(dtype: ir.DataType) -> str | None:
    """Return what the runtime calls tensors of a type, None for those that its Python interface has no array for."""
    name = _TEXTS.get(dtype)
    return None if name is None else f"tensor({name})"


def from_text(name: str) -> ir.DataType | None:
    """Return the element type that the runtime calls so, None where there is no array for it."""
    return _DTYPES.get(name.removeprefix("tensor(").removesuffix(")"))


def inferred(shapes: Shapes, value: ir.Value) -> Fact | None:
    """Return what shape inference says of a value, None where its type or size stays open."""
    dtype, dims = shapes.dtype(value), shapes.static(value)
    if dtype is None or dims is None:
        return None
    bits = 8 * _STRING_BYTES if dtype == ir.DataType.STRING else dtype.bitwidth
    return Fact(dtype, math.prod(dims) * bits / 8, dims)


def seen(found: object, type_text: str) -> Fact:
    """Return what a run showed: an array and what the runtime calls its type; other things are no tensor."""
    if not isinstance(found, np.ndarray):
        items = found if isinstance(found, list) else []
        return Fact(None, float(sum(getattr(item, "nbytes", 0) for item in items)), None)
    size = found.size * _STRING_BYTES if found.dtype.kind == "O" else found.nbytes
    return Fact(from_text(type_text), float(size), found.shape)
