"""What is known of shapes and types without running the model, from its inputs alone.

Declared shapes of outputs and of intermediate values are often wrong in exported files, so none of them is
believed: they are taken out before inference.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from . import graph, model_io

Dim = int | str | None
"""A size, the name of a dynamic dimension, or None where nothing is known."""


class Shapes:
    """Inferred shapes and types of a model's values, asked by value; made by `infer`."""

    def __init__(self, known: dict[str, tuple[ir.DataType | None, tuple[Dim, ...] | None]]) -> None:
        self._known = known

    def shape(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """Return the dimensions of a value, None where not even the rank is known."""
        if value is None:
            return None
        tensor = graph.constant_tensor(value)
        if tensor is not None:
            return tuple(int(d) for d in tensor.shape)
        return self._known.get(value.name or "", (None, None))[1]

    def static(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Return the dimensions of a value when every one is a known number, None otherwise."""
        dims = self.shape(value)
        if dims is None or not all(isinstance(d, int) for d in dims):
            return None
        return tuple(d for d in dims if isinstance(d, int))

    def rank(self, value: ir.Value | None) -> int | None:
        """Return the number of dimensions of a value, None where it is not known."""
        dims = self.shape(value)
        return None if dims is None else len(dims)

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """Return the element type of a tensor value, None where it is not known."""
        if value is None:
            return None
        tensor = graph.constant_tensor(value)
        if tensor is not None:
            return tensor.dtype
        return self._known.get(value.name or "", (None, None))[0]


def infer(model: ir.Model) -> Shapes:
    """Infer shapes and types of all values from the graph's inputs and constants; weights are not read.

    An operator that inference can't handle leaves the values behind it unknown.
    """
    proto = model_io.skeleton(model)
    _forget(proto.graph)
    try:
        proto = onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return Shapes(dict(_declared(proto.graph.input)))
    known: dict[str, tuple[ir.DataType | None, tuple[Dim, ...] | None]] = {}
    twice: set[str] = set()
    for name, fact in _facts(proto.graph):
        if name in known and known[name] != fact:
            twice.add(name)
        known[name] = fact
    for name in twice:
        del known[name]
    return Shapes(known)


def _forget(proto: onnx.GraphProto) -> None:
    """Drop declared shapes of everything but the inputs, in the bodies too (a body's inputs follow from outside)."""
    del proto.value_info[:]
    for output in proto.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    for body in _bodies(proto):
        _forget(body)


def _bodies(proto: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in proto.node:
        for attr in node.attribute:
            if attr.type == onnx.AttributeProto.GRAPH:
                yield attr.g
            elif attr.type == onnx.AttributeProto.GRAPHS:
                yield from attr.graphs


def _facts(
    proto: onnx.GraphProto,
) -> Iterator[tuple[str, tuple[ir.DataType | None, tuple[Dim, ...] | None]]]:
    yield from _declared(proto.input)
    yield from _declared(proto.value_info)
    yield from _declared(proto.output)
    for body in _bodies(proto):
        yield from _facts(body)


def _declared(
    infos: object,
) -> Iterator[tuple[str, tuple[ir.DataType | None, tuple[Dim, ...] | None]]]:
    for info in infos:  # type: ignore[attr-defined]
        tensor = info.type.tensor_type
        if not info.type.HasField("tensor_type"):
            yield info.name, (None, None)
            continue
        dtype = ir.DataType(tensor.elem_type) if tensor.elem_type else None
        dims = tuple(_dim(d) for d in tensor.shape.dim) if tensor.HasField("shape") else None
        yield info.name, (dtype, dims)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return dim.dim_param or None
