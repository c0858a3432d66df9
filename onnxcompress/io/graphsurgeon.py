"""The onnx-graphsurgeon bridge: a gs.Graph whose weights stay on disk, and back.

Graphsurgeon loses metadata and doc strings, and changes or skips unreported what it can't express. The way
back restores the first by name; models with the second are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_ir import serde

from ..errors import ModelError
from ..graph.query import graphs
from .clone import detach, restore
from .metadata import copy_records
from .serialize import RawType
from .tensors import refer
from .wire import LARGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

_SILENT: Final = G_LOGGER.CRITICAL + 1  # it prints to stdout, errors that it raises included
_ORIGIN: Final = "onnxcompress_origin"
_FIRST_IR_VERSION_WITH_FREE_INITIALIZERS: Final = 4
"""From this version of the IR on initializers need not be inputs as well (onnx/docs/IR.md)."""

_REFUSED_DTYPES: Final = frozenset(
    {
        ir.DataType.INT4,
        ir.DataType.UINT4,
        ir.DataType.INT2,
        ir.DataType.UINT2,
        ir.DataType.FLOAT4E2M1,
        ir.DataType.FLOAT6E2M3,
        ir.DataType.FLOAT6E3M2,
        ir.DataType.FLOAT8E4M3FNUZ,
        ir.DataType.FLOAT8E8M0,
    }
)
_REFUSED_ATTRIBUTES: Final = frozenset(
    {
        ir.AttributeType.TENSORS,
        ir.AttributeType.GRAPHS,
        ir.AttributeType.SPARSE_TENSOR,
        ir.AttributeType.SPARSE_TENSORS,
        ir.AttributeType.TYPE_PROTO,
        ir.AttributeType.TYPE_PROTOS,
    }
)


class TensorValues(LazyValues):  # type: ignore[misc]
    """Values of a gs.Constant that are read from a tensor of ours when they are first asked for.

    Args:
        source: the tensor.
        index: the offset of the reference that is exported in its place.

    """

    def __init__(self, source: ir.TensorProtocol, index: int) -> None:
        proto = onnx.TensorProto(data_type=source.dtype.value, dims=[int(size) for size in source.shape.numpy()])
        refer(proto, "#raw_data", index, source.nbytes)
        super().__init__(proto)
        self.source = source

    def load(self) -> np.ndarray[Any, Any]:
        """Return a copy of the values that the caller may change."""
        return np.array(self.source.numpy())


def to_surgeon(model: ir.Model) -> gs.Graph:
    """Return `model` as a gs.Graph; no weight is read until its `values` are asked for.

    Raises:
        ModelError: when `model` holds what graphsurgeon would lose or change.

    """
    for graph in graphs(model):
        _check(graph)
    proto, tensors = detach(model, keep_lists=True)
    with G_LOGGER.suppress(_SILENT):
        try:
            surgeon = gs.import_onnx(proto)
        except Exception as error:
            raise ModelError(f"graphsurgeon can't import it ({_one_line(error)})") from error
        for constant in _constants(surgeon):
            values = constant._values  # noqa: SLF001 - `values` would load it
            if isinstance(values, LazyValues) and _is_reference(values.tensor):
                index = _offset(values.tensor)
                constant.values = TensorValues(tensors[index], index)
    setattr(surgeon, _ORIGIN, model)
    return surgeon


def from_surgeon(graph: gs.Graph, origin: ir.Model | None = None) -> ir.Model:
    """Return a gs.Graph as a model; `graph` is not changed, its weights are shared.

    Args:
        graph: from `to_surgeon`, or made in any other way.
        origin: the model to restore names, metadata and doc strings from, matched by the names of values; by
            default the one that `to_surgeon` made `graph` from.

    Raises:
        ModelError: when graphsurgeon can't export `graph`, or it refers to external data.

    """
    tensors: dict[int, ir.TensorProtocol] = {}
    with G_LOGGER.suppress(_SILENT):
        try:
            light = graph.copy()
            _detach_constants(light, tensors)
            proto = gs.export_onnx(light)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"graphsurgeon can't export the graph ({_one_line(error)})") from error
    _share_initializers(proto.graph)
    needed = int(onnx.helper.find_min_ir_version_for(proto.opset_import, ignore_unknown=True))
    proto.ir_version = max(proto.ir_version, needed, _FIRST_IR_VERSION_WITH_FREE_INITIALIZERS)
    model = restore(proto, tensors)
    origin = origin or graph.__dict__.get(_ORIGIN)
    if origin is not None:
        copy_records(origin, model)
    return model


# From onnx_ir


def _check(graph: ir.Graph | ir.Function) -> None:
    """Raise ModelError where graphsurgeon would lose or change something in `graph`."""
    if isinstance(graph, ir.Function) and graph.overload:
        raise _refusal("an overloaded function", graph.name)
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    if isinstance(graph, ir.Graph):
        values += graph.initializers.values()
    for value in values:
        _check_type(value)
    for node in graph:
        if node.overload:
            raise _refusal("a call of an overloaded function", node.name)
        for attribute in node.attributes.values():
            _check_attribute(attribute, node)


def _check_type(value: ir.Value) -> None:
    if value.const_value is not None and value.const_value.dtype in _REFUSED_DTYPES:
        raise _refusal(f"type {value.const_value.dtype.name}", value.name)
    if value.type is None:
        return
    if isinstance(value.type, RawType) or not isinstance(value.type, ir.TensorType):
        raise _refusal(f"a {type(value.type).__name__}", value.name)
    if value.type.dtype in _REFUSED_DTYPES:
        raise _refusal(f"type {value.type.dtype.name}", value.name)


def _check_attribute(attribute: ir.Attr, node: ir.Node) -> None:
    where = f"{node.name or node.op_type}.{attribute.name}"
    if attribute.type in _REFUSED_ATTRIBUTES or isinstance(attribute.value, bytes):
        raise _refusal(f"an attribute of type {attribute.type.name}", where)
    is_tensor = attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref()
    if is_tensor and attribute.as_tensor().dtype in _REFUSED_DTYPES:
        raise _refusal(f"type {attribute.as_tensor().dtype.name}", where)


def _refusal(what: str, where: str | None) -> ModelError:
    return ModelError(
        f"onnx-graphsurgeon can't carry {what}",
        where=repr(where or ""),
        hint="Run the surgery before the pass that makes it, or on onnx_ir",
    )


# From graphsurgeon


def _all_graphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    for root in (graph, *graph.functions):
        yield root
        yield from root.subgraphs(recursive=True)


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """Yield the constants of all graphs and functions, those in attributes included, each once."""
    seen: set[int] = set()
    for inner in _all_graphs(graph):
        held = [value for node in inner.nodes for value in node.attrs.values()]
        for tensor in (*inner.tensors().values(), *held):
            if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def _detach_constants(graph: gs.Graph, tensors: dict[int, ir.TensorProtocol]) -> None:
    """Put references in the place of large constants, and their tensors into `tensors`.

    `graph` is a copy made by graphsurgeon, which copies neither attributes nor functions: constants in
    attributes are replaced, and those of functions, which the caller's graph shares, only renumbered.
    """
    taken: dict[int, TensorValues] = {}
    for inner in (graph, *graph.subgraphs(recursive=True)):
        for tensor in inner.tensors().values():
            if isinstance(tensor, gs.Constant):
                tensor.values = _detached(tensor, tensors, taken)
        for node in inner.nodes:
            for name, held in node.attrs.items():
                if isinstance(held, gs.Constant):
                    node.attrs[name] = _replacement(held, _detached(held, tensors, taken))
    for function in graph.functions:
        _number_function(function, tensors)


def _replacement(constant: gs.Constant, values: Any) -> gs.Constant:
    return gs.Constant(constant.name, values, constant.data_location, constant._export_dtype)  # noqa: SLF001


def _detached(constant: gs.Constant, tensors: dict[int, ir.TensorProtocol], taken: dict[int, TensorValues]) -> Any:
    """Return the values to export for `constant`: a reference if they are large, else what it has."""
    values = constant._values  # noqa: SLF001 - `values` would load it
    source = _source(constant, values)
    if source is None:
        return values
    if id(values) not in taken:
        taken[id(values)] = TensorValues(source, len(tensors))
        tensors[len(tensors)] = source
    return taken[id(values)]


def _source(constant: gs.Constant, values: Any) -> ir.TensorProtocol | None:
    """Return the tensor of large values, None for those that are exported as they are."""
    if isinstance(values, TensorValues):
        return values.source
    if isinstance(values, SparseValues):
        return None
    if isinstance(values, LazyValues):
        if values.tensor.data_location == onnx.TensorProto.EXTERNAL:
            message = "the graph refers to external data, and graphsurgeon does not say in which folder"
            raise ModelError(message, where=repr(constant.name), hint="Load the data before importing the model")
        is_large = values.tensor.ByteSize() >= LARGE_BYTES and values.tensor.HasField("raw_data")
        return serde.TensorProtoTensor(values.tensor) if is_large else None
    is_converted = constant._export_dtype not in (None, values.dtype)  # noqa: SLF001
    if values.nbytes < LARGE_BYTES or is_converted or values.dtype.kind in "OSU":
        return None
    return ir.Tensor(values)


def _number_function(function: gs.Function, tensors: dict[int, ir.TensorProtocol]) -> None:
    """Renumber the references in a function."""
    for constant in _constants_of(function):
        values = constant._values  # noqa: SLF001 - `values` would load it
        if isinstance(values, TensorValues):
            refer(values.tensor, "#raw_data", len(tensors), values.source.nbytes)
            tensors[len(tensors)] = values.source


def _constants_of(function: gs.Function) -> Iterator[gs.Constant]:
    for inner in (function, *function.subgraphs(recursive=True)):
        yield from (tensor for tensor in inner.tensors().values() if isinstance(tensor, gs.Constant))
        for node in inner.nodes:
            yield from (value for value in node.attrs.values() if isinstance(value, gs.Constant))


def _share_initializers(graph: onnx.GraphProto) -> None:
    """Move initializers that several graphs hold to the main one.

    Graphsurgeon exports a constant of an outer graph again in every sub-graph that uses it.
    """
    places: dict[str, list[onnx.GraphProto]] = {}
    contents: dict[str, set[bytes]] = {}
    computed: set[str] = set()
    for inner in _all_protos(graph):
        computed.update(value.name for value in inner.input)
        computed.update(name for node in inner.node for name in node.output)
        for tensor in inner.initializer:
            places.setdefault(tensor.name, []).append(inner)
            contents.setdefault(tensor.name, set()).add(tensor.SerializeToString(deterministic=True))
    shared = {
        name: contents[name].pop()
        for name, holders in places.items()
        if len(holders) > 1 and len(contents[name]) == 1 and name not in computed
    }
    for holder in {id(holder): holder for name in shared for holder in places[name]}.values():
        kept = [tensor.SerializeToString() for tensor in holder.initializer if tensor.name not in shared]
        del holder.initializer[:]
        for content in kept:
            holder.initializer.add().ParseFromString(content)
    for content in shared.values():
        graph.initializer.add().ParseFromString(content)


def _all_protos(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _all_protos(attribute.g)


def _is_reference(proto: onnx.TensorProto) -> bool:
    return any(entry.key == "location" and entry.value == "#raw_data" for entry in proto.external_data)


def _offset(proto: onnx.TensorProto) -> int:
    return next(int(entry.value) for entry in proto.external_data if entry.key == "offset")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
