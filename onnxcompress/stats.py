"""What `inspect` and the report count: parameters, nodes, and the shapes at which MACs are counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from . import graph, model_io, ops, shapes

Dims = tuple[int, ...]

_FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
    | {d for d in ir.DataType if d.name.startswith("FLOAT8") or d.name.startswith("FLOAT4")}
)
_QUANTIZED = frozenset(
    d
    for d in ir.DataType
    if d.name in ("INT8", "UINT8", "INT16", "UINT16", "INT4", "UINT4", "INT2", "UINT2")
)


@dataclass(frozen=True)
class Counts:
    """The figures that the report gives for a model: `macs` is None where no shape is known."""

    nodes: int
    parameters: int
    macs: int | None
    uncounted: tuple[str, ...] = ()


def count(model: ir.Model, feed: Mapping[str, np.ndarray] | None = None) -> Counts:
    """Count nodes, parameters and MACs, these at the shapes of a feed (without one, where shapes are fixed)."""
    macs = ops.total_macs(model, shape_lookup(resolve_shapes(model, feed or {})))
    known = macs.total or not macs.uncounted
    return Counts(node_count(model), parameters(model), macs.total if known else None, macs.uncounted)


def node_count(model: ir.Model) -> int:
    """Return the number of nodes in all graphs, bodies and local functions included, Constant nodes left out."""
    return sum(not graph.is_op(node, "Constant") for node in graph.nodes(model))


def parameters(model: ir.Model) -> int:
    """Return the number of weight elements: of float constants, and of integer ones that stand for floats.

    A tensor counts once, however many read it. Integers count when they have 16 bits or fewer, since indices and
    shapes have more. Scales and zero points of quantized weights don't count: a quantized model has as many
    parameters as its original.
    """
    total = 0
    seen: set[int] = set()
    for value in _constants(model):
        tensor = graph.constant_tensor(value)
        if tensor is None or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if tensor.dtype in _FLOATS:
            total += 0 if _is_scale(value) else tensor.size
        elif tensor.dtype in _QUANTIZED:
            total += 0 if _is_scale(value) else tensor.size * _packed(value)
    return total


def resolve_shapes(model: ir.Model, feed: Mapping[str, np.ndarray]) -> dict[str, Dims]:
    """Return the dimensions of every value by name at the shapes of a feed; what can't be inferred is left out.

    Names that stand for different things in different bodies are left out too.
    """
    proto = model_io.skeleton(model)
    for value in proto.graph.input:
        if value.name in feed and value.type.HasField("tensor_type"):
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for size in feed[value.name].shape:
                shape.dim.add(dim_value=size)
    inferred = shapes.infer_proto(proto)
    return {
        name: tuple(size for size in dims if isinstance(size, int))
        for name in inferred.names()
        if (dims := inferred.named(name)) is not None and all(isinstance(size, int) for size in dims)
    }


def shape_lookup(resolved: Mapping[str, Dims]) -> ops.ShapeOf:
    """Return the function that `ops.total_macs` wants: constants know their own shape, others are looked up."""

    def shape_of(value: ir.Value) -> Dims | None:
        tensor = graph.constant_tensor(value)
        if tensor is not None:
            return tuple(int(size) for size in tensor.shape.numpy())
        return resolved.get(value.name or "")

    return shape_of


def _constants(model: ir.Model) -> Iterator[ir.Value]:
    """Yield every initializer and every output of a Constant node, in all graphs."""
    for body in graph.graphs(model):
        yield from body.initializers.values()
        for node in body:
            if graph.is_op(node, "Constant"):
                yield node.outputs[0]


def _is_scale(value: ir.Value) -> bool:
    """Say whether a constant only scales or shifts a quantized weight."""
    uses = value.uses()
    return bool(uses) and all(
        graph.is_op(use.node, "QuantizeLinear", "DequantizeLinear") and use.idx > 0 for use in uses
    )


def _packed(value: ir.Value) -> int:
    """Return how many weights one stored element holds: more than one where an operator packs bits in bytes."""
    for use in value.uses():
        if use.node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            return int(8 // graph.attribute(use.node, "bits", 4))
    return 1
