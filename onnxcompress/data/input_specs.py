"""Specifications of a model's inputs: names, dtypes, shapes, and the runtime's names of types."""

from __future__ import annotations

import onnx_ir as ir

from ..graph import query
from ..runtime.tensor_spec import TensorSpec, array_type

_TEXTS = {
    ir.DataType.FLOAT: "float",
    ir.DataType.DOUBLE: "double",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BOOL: "bool",
    ir.DataType.STRING: "string",
    **{ir.DataType[f"{s}INT{bits}"]: f"{s.lower()}int{bits}" for s in ("", "U") for bits in (8, 16, 32, 64)},
}
_DTYPES = {text: dtype for dtype, text in _TEXTS.items()}


def input_specs(model: ir.Model) -> list[TensorSpec]:
    """Return the inputs that a feed may hold, as a session of the whole model would give them, without loading it.

    First those that it must hold, then initializers that callers may override.
    """
    found = []
    for value in sorted(model.graph.inputs, key=ir.Value.is_initializer):
        if value.is_initializer() and not query.has_optional_inputs(model):
            continue
        text = _full_text(value.type)
        dtype = None if text == "tensor(string)" else array_type(text)
        dims = value.shape if isinstance(value.type, ir.TensorType) and value.shape is not None else ()
        shape = tuple(d if isinstance(d, int) else d.value for d in dims)
        found.append(TensorSpec(value.name or "", dtype, shape, text, is_optional=value.is_initializer()))
    return found


def _full_text(kind: ir.TypeProtocol | None) -> str:
    """Return the runtime's name of any type."""
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        name = "seq" if isinstance(kind, ir.SequenceType) else "optional"
        return f"{name}({_full_text(kind.elem_type)})"
    if not isinstance(kind, ir.TensorType):
        return str(kind)
    return f"tensor({_TEXTS.get(kind.dtype, kind.dtype.name.lower())})"


def type_text(kind: ir.TypeProtocol | None) -> str | None:
    """Return the runtime's name of a type, None for one that can't flow from part to part."""
    return dtype_text(kind.dtype) if isinstance(kind, ir.TensorType) else None


def dtype_text(dtype: ir.DataType) -> str | None:
    """Return the runtime's name of tensors of a type, None where its Python interface has no arrays for it."""
    name = _TEXTS.get(dtype)
    return None if name is None else f"tensor({name})"


def dtype_from_text(name: str) -> ir.DataType | None:
    """Return the element type of a name of the runtime, None where there are no arrays for it."""
    return _DTYPES.get(name.removeprefix("tensor(").removesuffix(")"))
