"""Read a ModelProto whose large tensors are references into an onnx_ir model.

onnx_ir's own serde drops or refuses some of what files hold. Here that is kept:

- sparse initializers: a value whose tensor is a SparseTensor;
- sparse tensor attributes, type attributes and strings that onnx_ir can't express: an `ir.Attr` of the right
  type whose value is the AttributeProto, or bytes;
- map and opaque types (`ZipMap` outputs): a RawType;
- training graphs: bytes in `model.graph.meta`, written back as they came;
- attributes of old exporters without a `type`: the type follows from the field that is set.

Models that contradict themselves are refused: see `validate`; so are tensors whose data do not fill their shape.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import warnings
from typing import TYPE_CHECKING, TypeVar

import onnx
import onnx_ir as ir
from onnx_ir import serde

from ..errors import ModelError
from ..graph.query import graphs, replace_tensors
from .serialize import TRAINING_INFO, RawType
from .stored_lists import stored_list
from .tensors import SparseTensor, check_inline, check_sparse, refer
from .validate import check_graph, check_inputs, check_versions
from .wire import LIST_LOCATION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_SPARSE_LOCATION = "#sparse_initializer"
_Attribute = onnx.AttributeProto
_Proto = TypeVar("_Proto", onnx.AttributeProto, onnx.TypeProto)
_UNSUPPORTED_ATTRIBUTES = frozenset({_Attribute.SPARSE_TENSOR, _Attribute.SPARSE_TENSORS})
_FIELDS_OF_TYPES = {
    "f": _Attribute.FLOAT,
    "i": _Attribute.INT,
    "s": _Attribute.STRING,
    "t": _Attribute.TENSOR,
    "g": _Attribute.GRAPH,
    "floats": _Attribute.FLOATS,
    "ints": _Attribute.INTS,
    "strings": _Attribute.STRINGS,
    "tensors": _Attribute.TENSORS,
    "graphs": _Attribute.GRAPHS,
}


def from_proto(
    proto: onnx.ModelProto, resolve: Callable[[ir.ExternalTensor], ir.TensorProtocol], where: str
) -> ir.Model:
    """Return the model in `proto`, which is used up; `resolve` turns a reference into its tensor.

    Raises:
        ModelError: when `proto` is not a consistent model (`where` names it).

    """
    try:
        return _from_proto(proto, resolve, where)
    except ModelError:
        raise
    except (RecursionError, MemoryError) as error:
        raise ModelError("is nested too deeply or too large to read", where=where) from error
    except Exception as error:
        raise ModelError(f"is not a consistent model ({_root_cause(error)})", where=where) from error


def _from_proto(
    proto: onnx.ModelProto, resolve: Callable[[ir.ExternalTensor], ir.TensorProtocol], where: str
) -> ir.Model:
    prepared = _Prepared(proto, where)
    with _quiet():
        model = serde.deserialize_model(proto)
    check_versions(model, where)
    if prepared.training_info:
        model.graph.meta[TRAINING_INFO] = prepared.training_info

    def finish(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if isinstance(tensor, ir.ExternalTensor):
            if str(tensor.location) == _SPARSE_LOCATION:
                return SparseTensor(prepared.sparse[tensor.offset or 0])
            return resolve(tensor)
        if isinstance(tensor, serde.TensorProtoTensor):
            check_inline(tensor.raw, f"{where}, tensor {tensor.name!r}")
        if isinstance(tensor, ir.StringTensor) and len(tensor.string_data()) != tensor.size:
            raise ModelError("strings that do not fill its shape", where=f"{where}, tensor {tensor.name!r}")
        return tensor

    for graph in graphs(model):
        _restore_lists(graph, resolve)
        replace_tensors(graph, finish)
        if prepared.attributes:
            _restore_attributes(graph, prepared)
        if prepared.types:
            _restore_types(graph, prepared)
        check_graph(graph, model, where)
    check_inputs(model, where)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnx from warning of external_data keys that it ignores, and onnx_ir of what is refused here."""
    logger = logging.getLogger(serde.__name__)
    was_disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled


class _Prepared:
    """A proto with what onnx_ir can't express hidden in what it can; changes the proto."""

    def __init__(self, proto: onnx.ModelProto, where: str) -> None:
        self.where = where
        self.mark = secrets.token_hex(8)  # unguessable, so that no file can hold one
        self.sparse: list[onnx.SparseTensorProto] = []
        self.types: list[onnx.TypeProto] = []
        self.attributes: list[onnx.AttributeProto] = []
        self.training_info = [info.SerializeToString(deterministic=True) for info in proto.training_info]
        proto.ClearField("training_info")
        self._graph(proto.graph)
        for function in proto.functions:
            self._values(function.value_info)
            self._nodes(function.node)
            for attribute in function.attribute_proto:
                self._attribute(attribute)

    def _graph(self, graph: onnx.GraphProto) -> None:
        for values in (graph.input, graph.output, graph.value_info):
            self._values(values)
        for sparse in graph.sparse_initializer:
            self._sparse_initializer(graph, sparse)
        self._nodes(graph.node)

    def _nodes(self, nodes: Sequence[onnx.NodeProto]) -> None:
        for node in nodes:
            for attribute in node.attribute:
                self._attribute(attribute)

    def _sparse_initializer(self, graph: onnx.GraphProto, sparse: onnx.SparseTensorProto) -> None:
        if onnx.TensorProto.EXTERNAL in (sparse.values.data_location, sparse.indices.data_location):
            raise ModelError("a sparse tensor with external data", where=f"{self.where}, {sparse.values.name!r}")
        for tensor in (sparse.values, sparse.indices):
            check_inline(tensor, f"{self.where}, sparse tensor {sparse.values.name!r}")
        check_sparse(sparse, f"{self.where}, sparse tensor {sparse.values.name!r}")
        dense = graph.initializer.add(name=sparse.values.name, data_type=sparse.values.data_type, dims=sparse.dims)
        refer(dense, _SPARSE_LOCATION, len(self.sparse), 0)
        self.sparse.append(sparse)

    def _values(self, values: Sequence[onnx.ValueInfoProto]) -> None:
        for value in values:
            if value.HasField("type") and not _is_known(value.type):
                value.metadata_props.add(key=self.mark, value=str(len(self.types)))
                self.types.append(_copy(value.type))
                value.ClearField("type")

    def _attribute(self, attribute: onnx.AttributeProto) -> None:
        if not attribute.type and not attribute.ref_attr_name:
            _set_type(attribute)
        kind = attribute.type
        if attribute.ref_attr_name:
            return
        if kind == _Attribute.GRAPH:
            self._graph(attribute.g)
        elif kind == _Attribute.GRAPHS:
            for graph in attribute.graphs:
                self._graph(graph)
        elif kind in _UNSUPPORTED_ATTRIBUTES or not _is_expressible(attribute):
            for unused in ("t", "g", "tensors", "graphs"):
                attribute.ClearField(unused)
            self.attributes.append(_copy(attribute))
            attribute.Clear()
            attribute.name = self.attributes[-1].name
            attribute.type = _Attribute.STRING
            attribute.s = f"{self.mark}{len(self.attributes) - 1}".encode()


def _set_type(attribute: onnx.AttributeProto) -> None:
    for descriptor, _ in attribute.ListFields():
        if descriptor.name in _FIELDS_OF_TYPES:
            attribute.type = _FIELDS_OF_TYPES[descriptor.name]
            return


def _is_known(proto: onnx.TypeProto) -> bool:
    kind = proto.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        element = getattr(proto, kind).elem_type
        return element.WhichOneof("value") is not None and _is_known(element)
    return kind in (None, "tensor_type", "sparse_tensor_type")


def _is_expressible(attribute: onnx.AttributeProto) -> bool:
    kind = attribute.type
    if kind == _Attribute.TYPE_PROTO:
        return _is_known(attribute.tp)
    if kind == _Attribute.TYPE_PROTOS:
        return all(_is_known(proto) for proto in attribute.type_protos)
    if kind == _Attribute.STRING:
        return _is_text(attribute.s)
    if kind == _Attribute.STRINGS:
        return all(_is_text(text) for text in attribute.strings)
    return True


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _copy(proto: _Proto) -> _Proto:
    copy = type(proto)()
    copy.CopyFrom(proto)
    return copy


def _restore_lists(graph: ir.Graph | ir.Function, resolve: Callable[[ir.ExternalTensor], ir.TensorProtocol]) -> None:
    """Put long lists in the place of the tensors that refer to them."""
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            value = attribute.value if attribute.type == ir.AttributeType.TENSOR else None
            if isinstance(value, ir.ExternalTensor) and str(value.location) == LIST_LOCATION:
                node.attributes[name] = stored_list(name, value, resolve(value))


def _restore_attributes(graph: ir.Graph | ir.Function, prepared: _Prepared) -> None:
    holders = [node.attributes for node in graph]
    if isinstance(graph, ir.Function):
        holders.append(graph.attributes)
    for attributes in holders:
        for name, attribute in list(attributes.items()):
            is_text = attribute.type == ir.AttributeType.STRING and isinstance(attribute.value, str)
            if is_text and attribute.value.startswith(prepared.mark):
                index = int(attribute.value.removeprefix(prepared.mark))
                attributes[name] = _raw_attribute(prepared.attributes[index])


def _raw_attribute(proto: onnx.AttributeProto) -> ir.Attr:
    kind = ir.AttributeType(proto.type)
    if kind == ir.AttributeType.STRING:
        return ir.Attr(proto.name, kind, proto.s, doc_string=proto.doc_string or None)
    if kind == ir.AttributeType.STRINGS:
        return ir.Attr(proto.name, kind, list(proto.strings), doc_string=proto.doc_string or None)
    if kind == ir.AttributeType.TYPE_PROTOS:
        return ir.Attr(proto.name, kind, [proto], doc_string=proto.doc_string or None)
    return ir.Attr(proto.name, kind, proto, doc_string=proto.doc_string or None)


def _restore_types(graph: ir.Graph | ir.Function, prepared: _Prepared) -> None:
    values = {*graph.inputs, *graph.outputs, *(output for node in graph for output in node.outputs)}
    for value in values:
        index = value.metadata_props.pop(prepared.mark, None)
        if index is not None:
            value.type = RawType(prepared.types[int(index)])


def _root_cause(error: BaseException) -> str:
    """Return the first of a chain of errors, in one line: later ones are of the libraries that passed it on."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__
