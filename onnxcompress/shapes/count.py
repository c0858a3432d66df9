"""Figures of a model for `inspect` and the report: parameters, nodes, MACs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph import query
from ..graph.query import node_count
from ..io import model_io
from ..ops import table as ops
from . import resolve
from .resolve import Dims, shape_lookup

_INTEGERS = frozenset(
    {*(ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16)}
    | {*(ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2, ir.DataType.UINT2)}
)
_WEIGHT_TYPES = _INTEGERS | frozenset(
    dtype for dtype in ir.DataType if dtype.name.startswith(("FLOAT", "BFLOAT", "DOUBLE"))
)

_BLOCKS = frozenset({"MatMulNBits", "GatherBlockQuantized"})
"""Operators that read weights of few bits, packed in bytes, and behind them scales and zero points."""
_LSTM_SCALES = 8
"""Input of DynamicQuantizeLSTM from which on there are scales and zero points."""


@dataclass(frozen=True)
class Counts:
    """The figures that the report gives for a model: `macs` is None where no shape is known."""

    nodes: int
    parameters: int
    macs: int | None
    uncounted: tuple[str, ...] = ()
    shapes: Mapping[str, Dims] = field(default_factory=dict, repr=False, compare=False)
    """Value -> dimensions at which MACs were counted, as far as they had to be known."""


def count(
    model: ir.Model, feed: Mapping[str, np.ndarray] | None = None, *, known: Mapping[str, Dims] = MappingProxyType({})
) -> Counts:
    """Count nodes, parameters and MACs, these at the shapes of a feed (without one, where shapes are fixed).

    Args:
        model: the model.
        feed: input name -> array.
        known: value -> dimensions with this feed, of a model in which the same names mean the same.
    """
    resolved = dict(known)
    macs = ops.total_macs(model, shape_lookup(resolved))
    if macs.uncounted:
        resolved |= resolve.infer_dims(model, feed or {})
        macs = ops.total_macs(model, shape_lookup(resolved))
    if macs.uncounted:
        seen = resolve.look_shapes(model, feed or {}, _touched(model, frozenset(macs.uncounted)))
        resolved |= {name: shape.dims for name, shape in seen.items()}
        macs = ops.total_macs(model, shape_lookup(resolved))
    is_known = macs.total or not macs.uncounted
    return Counts(node_count(model), parameters(model), macs.total if is_known else None, macs.uncounted, resolved)


def _touched(model: ir.Model, labels: frozenset[str]) -> list[str]:
    """Return the names of what nodes of the main graph with these labels read and make, if nodes compute it."""
    values = (v for node in model.graph if query.label(node) in labels for v in (*node.inputs, *node.outputs))
    computed = (v for v in values if v is not None and v.producer() is not None and query.constant_tensor(v) is None)
    return list(dict.fromkeys(v.name for v in computed if v.name))


def parameters(model: ir.Model) -> int:
    """Return the number of weight elements: of float constants, and of integer ones that represent floats.

    A tensor counts once, however many read it. Integers count when they have 16 bits or fewer, since indices and
    shapes have more. Scales and zero points of quantized weights don't count: a quantized model has as many
    parameters as its original.
    """
    return sum(count for _, _, count in constants(model))


def constants(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol, int]]:
    """Yield every tensor that is stored, once, with the first value that holds it and how many parameters it counts.

    See `parameters`; no data is read.
    """
    seen: dict[int, ir.TensorProtocol] = {}  # kept alive, so that no other can get the same id
    for value, tensor in _constants(model):
        if id(tensor) not in seen:
            is_weight = tensor.dtype in _WEIGHT_TYPES and not _is_scale(value)
            yield value, tensor, tensor.size * _packed(value) if is_weight else 0
        seen[id(tensor)] = tensor


def _constants(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Yield initializers, also those that callers may override, and the outputs of Constant nodes."""
    for body in query.graphs(model):
        for value in body.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value
        for node in body:
            tensor = query.constant_tensor(node.outputs[0]) if query.is_op(node, "Constant") else None
            if tensor is not None:
                yield node.outputs[0], tensor


def _is_scale(value: ir.Value) -> bool:
    """Say whether a constant only scales or shifts quantized weights, all of them or the rows that are looked up."""
    readers = value.uses()
    return bool(readers) and all(
        (query.is_op(use.node, "Cast") and _is_scale(use.node.outputs[0]))
        or (use.idx > 1 and use.node.op_type in _BLOCKS)
        or (use.idx == 1 and query.is_op(use.node, "Sub") and _casts_integers(use.node.inputs[0]))
        or (use.idx > 0 and query.is_op(use.node, "DequantizeLinear", "QuantizeLinear"))
        or _multiplies_integers(use.node, value)
        or _multiplies_scale(use.node)
        or (use.idx >= _LSTM_SCALES and use.node.op_type == "DynamicQuantizeLSTM")
        or (use.idx == 0 and query.is_op(use.node, "Gather") and _only_multiplies_integers(use.node.outputs[0]))
        for use in readers
    )


def _multiplies_scale(node: ir.Node) -> bool:
    """Say whether a node is a Mul by the scale that activations are quantized with in each run."""
    makers = [None if value is None else value.producer() for value in node.inputs]
    return query.is_op(node, "Mul") and any(query.is_op(maker, "DynamicQuantizeLinear") for maker in makers)


def _only_multiplies_integers(value: ir.Value) -> bool:
    consumer = query.sole_consumer(value)
    return consumer is not None and _multiplies_integers(consumer, value)


def _multiplies_integers(node: ir.Node, factor: ir.Value) -> bool:
    """Say whether a node is a Mul of `factor` by integer weights, or rows of them, that a Cast made floats."""
    if not query.is_op(node, "Mul"):
        return False
    other = next((v for v in node.inputs if v is not None and v is not factor), None)
    shift = None if other is None else other.producer()
    return _casts_integers(shift.inputs[0] if shift is not None and query.is_op(shift, "Sub") else other)


def _casts_integers(value: ir.Value | None) -> bool:
    """Say whether a value is what a Cast makes of integer weights, or of rows of them."""
    cast = None if value is None else value.producer()
    source = cast.inputs[0] if cast is not None and query.is_op(cast, "Cast") else None
    lookup = source.producer() if source is not None else None
    if lookup is not None and query.is_op(lookup, "Gather"):
        source = lookup.inputs[0]
    tensor = query.constant_tensor(source)
    return tensor is not None and tensor.dtype in _INTEGERS


def _packed(value: ir.Value) -> int:
    """Return how many weights one stored element holds: more than one where an operator packs bits in bytes."""
    for use in value.uses():
        if use.node.op_type in _BLOCKS:
            return int(8 // query.attribute(use.node, "bits", 4))
        if query.is_op(use.node, "Reshape"):
            return _packed(use.node.outputs[0])
    return 1


def facts(model: ir.Model, counts: Counts, path: str | None, *, size_bytes: int | None = None) -> ModelFacts:
    """Return the figures of a model; bytes are those of its file, external data included.

    Args:
        model: the model.
        counts: what `stats.count` found in it.
        path: the file that it was loaded from, None where there is none.
        size_bytes: what `model_io.model_bytes` says of it, where the caller knows it already.
    """
    found = ModelFacts(
        path=path,
        bytes=model_io.model_bytes(model) if size_bytes is None else size_bytes,
        nodes=counts.nodes,
        parameters=counts.parameters,
        macs=counts.macs,
    )
    on_disk = 0 if path is None else Path(path).stat().st_size
    return replace(found, bytes=on_disk) if on_disk >= found.bytes // 2 else found


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The size of a model: bytes of its file(s), nodes, weight elements, multiply-accumulates (None: unknown)."""

    path: str | None
    bytes: int
    nodes: int
    parameters: int
    macs: int | None

    def as_json(self) -> dict[str, Any]:
        """Return the report's `input` or `output` object."""
        return {
            "path": self.path,
            "bytes": self.bytes,
            "nodes": self.nodes,
            "parameters": self.parameters,
            "macs": self.macs,
        }
