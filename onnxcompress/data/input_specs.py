"""Specifications of a model's inputs: names, dtypes, shapes, and the runtime's names of types."""

from __future__ import annotations

import onnx_ir as ir

from ..runtime import session as runtime

_TEXTS = {
    ir.DataType.FLOAT: "float",
    ir.DataType.DOUBLE: "double",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BOOL: "bool",
    ir.DataType.STRING: "string",
    **{ir.DataType[f"{s}INT{bits}"]: f"{s.lower()}int{bits}" for s in ("", "U") for bits in (8, 16, 32, 64)},
}
_DTYPES = {text: dtype for dtype, text in _TEXTS.items()}


def input_specs(model: ir.Model) -> list[runtime.TensorSpec]:
    """Return what has to be fed, as a session of the whole model would say it."""
    return [
        runtime.TensorSpec(
            name=value.name or "",
            dtype=runtime.array_type(type_text(value.type) or ""),
            shape=tuple(d if isinstance(d, int) else d.value for d in value.shape or ()),
            type=type_text(value.type) or str(value.type),
        )
        for value in model.graph.inputs
        if not value.is_initializer()
    ]


def type_text(kind: ir.TypeProtocol | None) -> str | None:
    """Return what the runtime calls a type, None for one that can't flow from part to part."""
    return dtype_text(kind.dtype) if isinstance(kind, ir.TensorType) else None


def declared_inputs(model: ir.Model) -> tuple[runtime.TensorSpec, ...]:
    """Return what a model declares about the inputs that a feed must hold, without loading it in the runtime."""
    specs = []
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        dims = () if value.shape is None else tuple(value.shape)
        shape = tuple(dim if isinstance(dim, int) else dim.value for dim in dims)
        numbers = value.dtype not in (None, ir.DataType.STRING, ir.DataType.UNDEFINED)
        dtype = value.dtype.numpy() if numbers and value.dtype is not None else None
        specs.append(runtime.TensorSpec(value.name or "", dtype, shape, str(value.type)))
    return tuple(specs)


def dtype_text(dtype: ir.DataType) -> str | None:
    """Return what the runtime calls tensors of a type, None for those that its Python interface has no array for."""
    name = _TEXTS.get(dtype)
    return None if name is None else f"tensor({name})"


def dtype_from_text(name: str) -> ir.DataType | None:
    """Return the element type that the runtime calls so, None where there is no array for it."""
    return _DTYPES.get(name.removeprefix("tensor(").removesuffix(")"))
