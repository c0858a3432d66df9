"""Shape and type inference, from a model's inputs and constants alone.

Declared shapes of outputs and of intermediate values are often wrong in exported files, so none of them is
believed: they are taken out before inference.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from ..graph import query
from ..io import model_io

if TYPE_CHECKING:
    from ..core import Context

Dim = int | str | None
"""A size, the name of a dynamic dimension, or None where nothing is known."""

_Fact = tuple[ir.DataType | None, tuple[Dim, ...] | None]


class Shapes:
    """Inferred shapes and types of a model's values, asked by value; made by `infer`."""

    def __init__(self, known: dict[str, _Fact]) -> None:
        self._known = known

    def shape(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """Return the dimensions of a value, None where not even the rank is known."""
        if value is None:
            return None
        tensor = query.constant_tensor(value)
        if tensor is not None:
            return query.dims(tensor)
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

    def all_static(self) -> dict[str, tuple[int, ...]]:
        """Return name -> dimensions of the values of which every one is a known number."""
        return {
            name: tuple(d for d in dims if isinstance(d, int))
            for name, (_, dims) in self._known.items()
            if dims is not None and all(isinstance(d, int) for d in dims)
        }

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """Return the element type of a tensor value, None where it is not known."""
        if value is None:
            return None
        tensor = query.constant_tensor(value)
        if tensor is not None:
            return tensor.dtype
        return self._known.get(value.name or "", (None, None))[0]


def infer(model: ir.Model) -> Shapes:
    """Infer shapes and types of all values from the graph's inputs and constants; weights are not read.

    An operator that inference can't handle leaves the values behind it unknown.
    """
    return infer_proto(model_io.skeleton(model))


def inferred(model: ir.Model, context: Context) -> Shapes:
    """Do as `infer` does, once between two rewrites; not to be asked between the gate's yes and the edit."""
    if context.memo is None:
        return infer(model)
    found: Shapes = context.memo.get("shapes", lambda: infer(model))
    return found


def infer_at(model: ir.Model, sizes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Do as `infer` does, with the shapes of `sizes` for the inputs named there."""
    proto = model_io.skeleton(model)
    for info in proto.graph.input:
        if info.name in sizes and info.type.HasField("tensor_type"):
            info.type.tensor_type.shape.Clear()
            for size in sizes[info.name]:
                info.type.tensor_type.shape.dim.add(dim_value=size)
    return infer_proto(proto)


def infer_proto(proto: onnx.ModelProto) -> Shapes:
    """Do as `infer` does for a skeleton whose input shapes the caller has filled in; `proto` is changed."""
    _forget(proto.graph)
    for body in all_graphs(proto.graph):
        _put_in_order(body)
    try:
        proto = onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError, RuntimeError):
        return Shapes(dict(_declared(proto.graph.input)))
    facts: dict[str, list[_Fact]] = {}
    for body in all_graphs(proto.graph):
        own = dict((*_declared(body.input), *_declared(body.value_info), *_declared(body.output)))
        for name in _defined(body):
            facts.setdefault(name, []).append(own.get(name, (None, None)))
    # bodies side by side may use one name for different values: then only what holds for all is known
    return Shapes({name: found[0] for name, found in facts.items() if all(f == found[0] for f in found)})


def _forget(proto: onnx.GraphProto) -> None:
    """Drop declared shapes of all but the graph's inputs; in bodies those of their inputs too.

    Inputs of a body follow from outside, and may change their shape from iteration to iteration of a loop.
    """
    del proto.value_info[:]
    for output in proto.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    for body in _bodies(proto):
        for info in body.input:
            if info.type.HasField("tensor_type"):
                info.type.tensor_type.ClearField("shape")
        _forget(body)


def _put_in_order(proto: onnx.GraphProto) -> None:
    """Put each node behind what it reads, as the runtime does: inference takes them as they stand.

    Converters to float16 write the Casts of weights behind the nodes that read them.
    """
    made = {output: index for index, node in enumerate(proto.node) for output in node.output if output}
    needed = {index: {made[name] for name in _read(node) if name in made} for index, node in enumerate(proto.node)}
    if all(other < index for index, others in needed.items() for other in others):
        return
    try:
        order = list(graphlib.TopologicalSorter(needed).static_order())
    except graphlib.CycleError:  # there is no order: what they make stays unknown
        return
    nodes = [onnx.NodeProto.FromString(proto.node[index].SerializeToString()) for index in order]
    del proto.node[:]
    proto.node.extend(nodes)


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, and that the nodes in its bodies do."""
    yield from node.input
    for attr in node.attribute:
        for body in (attr.g, *attr.graphs):
            yield from (output.name for output in body.output)
            for inner in body.node:
                yield from _read(inner)


def _bodies(proto: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in proto.node:
        for attr in node.attribute:
            if attr.type == onnx.AttributeProto.GRAPH:
                yield attr.g
            elif attr.type == onnx.AttributeProto.GRAPHS:
                yield from attr.graphs


def all_graphs(proto: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a serialized graph and every body in it, outermost first."""
    yield proto
    for body in _bodies(proto):
        yield from all_graphs(body)


def _defined(proto: onnx.GraphProto) -> set[str]:
    """Return the names of the values that a graph takes or makes, without those inside its bodies."""
    made = {output for node in proto.node for output in node.output if output}
    return made | {info.name for info in proto.input} | {tensor.name for tensor in proto.initializer}


def _declared(infos: object) -> Iterator[tuple[str, _Fact]]:
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
