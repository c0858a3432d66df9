"""Type, bytes and shape of a value at one feed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..data.input_specs import dtype_from_text
from ..shapes.infer import Shapes

_STRING_BYTES = 64
"""Bytes counted for an element of a tensor of strings: the runtime's own share, and a short text; not measured."""


@dataclass(frozen=True)
class ValueSize:
    """A value at one feed: element type (None: unknown, or no tensor that can be passed on), bytes, shape."""

    dtype: ir.DataType | None
    bytes: float
    dims: tuple[int, ...] | None


def inferred(shapes: Shapes, value: ir.Value) -> ValueSize | None:
    """Return what shape inference says of a value, None where its type or size stays open."""
    dtype, dims = shapes.dtype(value), shapes.static(value)
    if dtype is None or dims is None:
        return None
    bits = 8 * _STRING_BYTES if dtype == ir.DataType.STRING else dtype.bitwidth
    return ValueSize(dtype, math.prod(dims) * bits / 8, dims)


def seen(found: object, type_text: str) -> ValueSize:
    """Return what a run showed: an array and what the runtime calls its type; other things are no tensor."""
    if not isinstance(found, np.ndarray):
        items = found if isinstance(found, list) else []
        return ValueSize(None, float(sum(getattr(item, "nbytes", 0) for item in items)), None)
    size = found.size * _STRING_BYTES if found.dtype.kind == "O" else found.nbytes
    return ValueSize(dtype_from_text(type_text), float(size), found.shape)
