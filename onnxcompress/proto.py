"""Between onnx_ir models and ModelProtos whose large tensors are references.

`from_proto` reads a proto of which `wire.scan` (or `to_proto`) has taken the large tensors out; `to_proto` is
the inverse. Both keep what onnx_ir's own serde drops or refuses:

- sparse initializers: a value whose tensor is a SparseTensor;
- sparse tensor attributes, type attributes and strings that onnx_ir can't express: an `ir.Attr` of the right
  type whose value is the AttributeProto, or bytes;
- map and opaque types (`ZipMap` outputs): a RawType;
- training graphs: bytes in `model.graph.meta`, written back as they came;
- attributes of old exporters without a `type`: the type follows from the field that is set.

Not kept, because they say nothing: value_info of initializers that only repeats type and shape, and of names
that no node makes.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import onnx
import onnx_ir as ir
from onnx_ir import serde

from .errors import ModelError
from .tensors import SparseTensor, check_inline, chunks, open_beside, stored_tensor
from .wire import LARGE_BYTES, MAX_MESSAGE_BYTES, Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .sources import OpenFile

TRAINING_INFO = "onnxcompress.training_info"
"""Key in `model.graph.meta` of the serialised TrainingInfoProtos."""

_SPARSE_LOCATION = "#sparse_initializer"
_QUANTIZATION = "quant_parameter_tensor_names"  # where onnx_ir keeps a value's quantization annotation
_FUNCTION_VALUE_INFO_IR_VERSION = 10
_DEVICE_IR_VERSION = 11
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


class RawType(ir.TypeProtocol):
    """A type that onnx_ir has no class for (map, opaque), kept as its proto."""

    def __init__(self, proto: onnx.TypeProto) -> None:
        self.proto = proto
        self.denotation = proto.denotation or None
        self.elem_type = self.dtype = ir.DataType.UNDEFINED

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RawType) and self.proto == other.proto

    def __hash__(self) -> int:
        return hash(self.proto.SerializeToString(deterministic=True))

    def __repr__(self) -> str:
        return f"RawType({self.proto.WhichOneof('value')})"


@dataclass(frozen=True)
class Skeleton:
    """A model without its large tensors.

    Args:
        proto: the model; a large tensor is a reference whose `offset` is its index in `tensors`.
        tensors: the tensors that were left out, in the order of the file.
        protos: their TensorProtos within `proto`, to redirect the references.

    """

    proto: onnx.ModelProto
    tensors: list[ir.TensorProtocol] = field(default_factory=list)
    protos: list[onnx.TensorProto] = field(default_factory=list)

    def serialize(self) -> bytes:
        """Return the bytes of `proto`, the same for the same model.

        Raises:
            ModelError: when there are more than 2 GiB outside of the large tensors.

        """
        size = self.proto.ByteSize()
        if size > MAX_MESSAGE_BYTES:
            raise ModelError(f"{size} bytes outside of its large tensors, more than an ONNX file can hold")
        data: bytes = self.proto.SerializeToString(deterministic=True)
        return data


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


def to_proto(model: ir.Model, *, large_bytes: int = LARGE_BYTES) -> Skeleton:
    """Return the skeleton of `model`: tensors of `large_bytes` and more are left out, unread.

    Raises:
        ModelError: when a text in `model` is not UTF-8.

    """
    skeleton = Skeleton(onnx.ModelProto())
    try:
        _Writer(skeleton, model.ir_version, large_bytes).model(model)
    except UnicodeError as error:
        raise ModelError(f"a text that is not UTF-8 ({error})", where=model.graph.name or "") from error
    return skeleton


def clone(model: ir.Model) -> ir.Model:
    """Return a copy of `model` that can be changed freely; the tensors are shared.

    Nodes that are not in topological order, which `ir.Model.clone` refuses, are fine.
    """
    try:
        copy = model.clone()
    except RuntimeError:
        proto, tensors = detach(model)
        copy = restore(proto, tensors)
    copy.meta.update(model.meta)
    files: dict[str, OpenFile] = {}

    def keep_open(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        if tensor.path not in files:
            files[tensor.path] = open_beside(Path(tensor.base_dir), str(tensor.location))
        return stored_tensor(tensor, files[tensor.path])

    for graph in graphs(copy):
        replace_tensors(graph, keep_open)
    return copy


def replace_content(model: ir.Model, other: ir.Model) -> None:
    """Make `model` what `other` is, in place, for passes whose edit yields a new model; `other` is used up."""
    model.graph = other.graph
    model.ir_version = other.ir_version
    model.functions.clear()
    model.functions.update(other.functions)
    model.metadata_props.clear()
    model.metadata_props.update(other.metadata_props)


def detach(model: ir.Model) -> tuple[onnx.ModelProto, dict[int, ir.TensorProtocol]]:
    """Return the skeleton of `model`, and its large tensors by the offsets of their references."""
    detached = to_proto(model)
    return detached.proto, dict(enumerate(detached.tensors))


def restore(proto: onnx.ModelProto, tensors: Mapping[int, ir.TensorProtocol]) -> ir.Model:
    """Return the model in a skeleton that something has changed, its references replaced by `tensors`.

    Args:
        proto: what became of a skeleton from `detach`; it is not changed.
        tensors: what `detach` returned with it.

    Raises:
        ModelError: when `proto` is not a consistent model, or refers to a tensor that is not there.

    """
    own = onnx.ModelProto()
    own.CopyFrom(proto)

    def resolve(reference: ir.ExternalTensor) -> ir.TensorProtocol:
        tensor = tensors.get(reference.offset or 0)
        if tensor is None or str(reference.location) != "#raw_data":
            raise ModelError(f"refers to unknown data at {reference.location!r}", where=repr(reference.name))
        return tensor

    return from_proto(own, resolve, "model")


def graphs(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """Yield the main graph, the functions, and the sub-graphs of both."""
    waiting: list[ir.Graph | ir.Function] = [*reversed(model.functions.values()), model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.GRAPH:
                    waiting.append(attribute.as_graph())
                elif attribute.type == ir.AttributeType.GRAPHS:
                    waiting.extend(attribute.as_graphs())


def replace_tensors(graph: ir.Graph | ir.Function, replace: Callable[[ir.TensorProtocol], ir.TensorProtocol]) -> None:
    """Put `replace(tensor)` in the place of every tensor of one graph: initializers and attributes."""
    if isinstance(graph, ir.Graph):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = replace(value.const_value)
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.is_ref() or isinstance(attribute.value, _Attribute):
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                tensor = replace(attribute.value)
                if tensor is not attribute.value:
                    node.attributes[name] = ir.AttrTensor(name, tensor, doc_string=attribute.doc_string)
            elif attribute.type == ir.AttributeType.TENSORS:
                tensors = [replace(tensor) for tensor in attribute.value]
                node.attributes[name] = ir.AttrTensors(name, tensors, doc_string=attribute.doc_string)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__


# Reading


def _from_proto(
    proto: onnx.ModelProto, resolve: Callable[[ir.ExternalTensor], ir.TensorProtocol], where: str
) -> ir.Model:
    prepared = _Prepared(proto, where)
    with _quiet():
        model = serde.deserialize_model(proto)
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
        replace_tensors(graph, finish)
        _check_texts(graph, where)
        _check_values(graph, where)
        if prepared.attributes:
            _restore_attributes(graph, prepared)
        if prepared.types:
            _restore_types(graph, prepared)
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


def _check_values(graph: ir.Graph | ir.Function, where: str) -> None:
    """Raise ModelError where a node, or the graph as its output, uses a value that nothing makes."""
    for node in graph:
        for value in node.inputs:
            if value is not None and not _is_made(value):
                name = node.name or node.op_type
                raise ModelError(f"node {name!r} uses {value.name!r}, which nothing makes", where=where)
    for value in graph.outputs:
        if not _is_made(value):
            raise ModelError(f"output {value.name!r} is made by no node", where=where)


def _is_made(value: ir.Value) -> bool:
    return value.producer() is not None or value.is_graph_input() or value.is_initializer()


def _check_texts(graph: ir.Graph | ir.Function, where: str) -> None:
    """Raise ModelError for names and records that are not UTF-8, which protobuf hands over as bytes."""
    holders: list[ir.Node | ir.Value] = list(graph.inputs)
    if isinstance(graph, ir.Graph):
        holders += graph.initializers.values()
    texts: list[object] = [graph.name, graph.doc_string]
    for node in graph:
        texts += (node.op_type, node.domain, node.overload, *node.attributes)
        holders.append(node)
        holders += node.outputs
    for holder in holders:
        texts += (holder.name, holder.doc_string)
        for pair in holder.metadata_props.items():
            texts += pair
    if any(isinstance(text, bytes) for text in texts):
        wrong = next(text for text in texts if isinstance(text, bytes))
        raise ModelError(f"a name or record that is not UTF-8: {wrong[:40]!r}", where=where)


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


def _restore_attributes(graph: ir.Graph | ir.Function, prepared: _Prepared) -> None:
    holders = [node.attributes for node in graph]
    if isinstance(graph, ir.Function):
        holders.append(graph.attributes)
    for attributes in holders:
        for name, attribute in list(attributes.items()):
            if isinstance(attribute.value, str) and attribute.value.startswith(prepared.mark):
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


# Writing


def refer(proto: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Make `proto` a reference to `length` bytes at `offset` of `location`."""
    proto.ClearField("external_data")
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        proto.external_data.add(key=key, value=value)


class _Writer:
    """Writes a model into a skeleton, metadata in the order in which it was inserted."""

    def __init__(self, skeleton: Skeleton, ir_version: int, large_bytes: int) -> None:
        self.skeleton = skeleton
        self.ir_version = ir_version
        self.large_bytes = large_bytes

    def model(self, model: ir.Model) -> None:
        proto = self.skeleton.proto
        proto.ir_version = model.ir_version
        for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
            value = getattr(model, name)
            if value:
                setattr(proto, name, value)
        for domain, version in model.opset_imports.items():
            proto.opset_import.add(domain=domain, version=version)
        _write_pairs(proto.metadata_props, model.metadata_props)
        if model.ir_version >= _DEVICE_IR_VERSION:
            for configuration in model.device_configurations:
                proto.configuration.append(serde.serialize_model_configuration(configuration))
        self.graph(proto.graph, model.graph)
        for info in model.graph.meta.get(TRAINING_INFO, ()):
            proto.training_info.add().ParseFromString(info)
        for function in model.functions.values():
            self.function(proto, function)

    def graph(self, proto: onnx.GraphProto, graph: ir.Graph) -> None:
        _set_text(proto, name=graph.name, doc_string=graph.doc_string)
        for value in graph.inputs:
            _write_value(proto.input.add(), value)
        for value in graph.outputs:
            _write_value(proto.output.add(), value)
        inputs, outputs = set(graph.inputs), set(graph.outputs)
        for value in graph.initializers.values():
            self.initializer(proto, value, is_input=value in inputs)
        for node in graph:
            self.node(proto.node.add(), node)
            for value in node.outputs:
                if value not in outputs and _says_something(value):
                    _write_value(proto.value_info.add(), value)
        _write_annotations(proto, graph)
        _write_pairs(proto.metadata_props, graph.metadata_props)

    def initializer(self, proto: onnx.GraphProto, value: ir.Value, *, is_input: bool) -> None:
        tensor = value.const_value
        if tensor is None:
            raise ModelError("an initializer without a tensor", where=repr(value.name))
        if not is_input and (value.metadata_props or value.doc_string):
            _write_value(proto.value_info.add(), value)
        if isinstance(tensor, SparseTensor):
            sparse = proto.sparse_initializer.add()
            sparse.CopyFrom(tensor.proto)
            sparse.values.name = value.name or ""
        else:
            self.tensor(proto.initializer.add(), tensor, value.name)

    def function(self, proto: onnx.ModelProto, function: ir.Function) -> None:
        out = proto.functions.add()
        _set_text(out, domain=function.domain, name=function.name, overload=function.overload)
        _set_text(out, doc_string=function.doc_string)
        for domain, version in function.opset_imports.items():
            out.opset_import.add(domain=domain, version=version)
        _write_pairs(out.metadata_props, function.metadata_props)
        out.input.extend(value.name for value in function.inputs)
        out.output.extend(value.name for value in function.outputs)
        for attribute in function.attributes.values():
            if attribute.value is None:
                out.attribute.append(attribute.name)
            else:
                self.attribute(out.attribute_proto.add(), attribute)
        for node in function:
            self.node(out.node.add(), node)
        self.function_values(proto, out, function)

    def function_values(self, proto: onnx.ModelProto, out: onnx.FunctionProto, function: ir.Function) -> None:
        """Write types of a function's values: before IR version 10 under long names in the main graph."""
        values = [*function.inputs, *(value for node in function for value in node.outputs)]
        for value in filter(_says_something, values):
            if self.ir_version >= _FUNCTION_VALUE_INFO_IR_VERSION:
                _write_value(out.value_info.add(), value)
            else:
                info = proto.graph.value_info.add()
                _write_value(info, value)
                info.name = f"{function.domain}::{function.name}/{value.name}"

    def node(self, proto: onnx.NodeProto, node: ir.Node) -> None:
        proto.op_type = node.op_type
        _set_text(proto, domain=node.domain, name=node.name, overload=node.overload, doc_string=node.doc_string)
        proto.input.extend(_name(value) for value in node.inputs)
        outputs = [_name(value) for value in node.outputs]
        while outputs and not outputs[-1]:
            outputs.pop()
        proto.output.extend(outputs)
        for attribute in node.attributes.values():
            self.attribute(proto.attribute.add(), attribute)
        if node.metadata_props:
            _write_pairs(proto.metadata_props, node.metadata_props)
        if self.ir_version >= _DEVICE_IR_VERSION:
            for configuration in node.device_configurations:
                proto.device_configurations.append(serde.serialize_node_device_configuration(configuration))

    def attribute(self, proto: onnx.AttributeProto, attribute: ir.Attr) -> None:
        if attribute.is_ref():
            serde.serialize_reference_attribute_into(proto, attribute)
            return
        raw = _raw_proto(attribute)
        if raw is not None:
            proto.CopyFrom(raw)
            return
        kind = attribute.type
        if kind in _TENSOR_AND_GRAPH_FIELDS:
            proto.name = attribute.name
            proto.type = _Attribute.AttributeType.Value(kind.name)
            _set_text(proto, doc_string=attribute.doc_string)
        if kind == ir.AttributeType.TENSOR:
            self.tensor(proto.t, attribute.value, attribute.value.name)
        elif kind == ir.AttributeType.TENSORS:
            for tensor in attribute.value:
                self.tensor(proto.tensors.add(), tensor, tensor.name)
        elif kind == ir.AttributeType.GRAPH:
            self.graph(proto.g, attribute.as_graph())
        elif kind == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                self.graph(proto.graphs.add(), graph)
        else:
            serde.serialize_attribute_into(proto, attribute)

    def tensor(self, proto: onnx.TensorProto, tensor: ir.TensorProtocol, name: str | None) -> None:
        if tensor.dtype == ir.DataType.STRING:
            self.header(proto, tensor, name)
            proto.string_data.extend(_strings(tensor))
            return
        is_large = tensor.nbytes >= self.large_bytes
        if isinstance(tensor, serde.TensorProtoTensor) and not (is_large and tensor.raw.HasField("raw_data")):
            proto.CopyFrom(tensor.raw)
            for replaced in ("metadata_props", "external_data", "data_location"):
                proto.ClearField(replaced)
            _write_pairs(proto.metadata_props, tensor.metadata_props)
            _set_text(proto, name=name)
            return
        self.header(proto, tensor, name)
        if is_large:
            index = len(self.skeleton.tensors)
            refer(proto, Reference("raw_data", index, tensor.nbytes).location, index, tensor.nbytes)
            self.skeleton.tensors.append(tensor)
            self.skeleton.protos.append(proto)
        else:
            proto.raw_data = b"".join(bytes(chunk) for chunk in chunks(tensor))

    def header(self, proto: onnx.TensorProto, tensor: ir.TensorProtocol, name: str | None) -> None:
        proto.data_type = tensor.dtype.value
        proto.dims.extend(int(size) for size in tensor.shape.numpy())
        _set_text(proto, name=name, doc_string=tensor.doc_string)
        _write_pairs(proto.metadata_props, tensor.metadata_props)


_TENSOR_AND_GRAPH_FIELDS = frozenset(
    {ir.AttributeType.TENSOR, ir.AttributeType.TENSORS, ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
)


def _raw_proto(attribute: ir.Attr) -> onnx.AttributeProto | None:
    """Return the proto to write for an attribute that onnx_ir can't express, None for others."""
    value = attribute.value
    if isinstance(value, _Attribute):
        return value
    if attribute.type == ir.AttributeType.TYPE_PROTOS and value and isinstance(value[0], _Attribute):
        return value[0]
    is_bytes = isinstance(value, bytes) and attribute.type == ir.AttributeType.STRING
    if not is_bytes and not (attribute.type == ir.AttributeType.STRINGS and any(isinstance(v, bytes) for v in value)):
        return None
    proto = _Attribute(name=attribute.name, type=attribute.type.name)
    _set_text(proto, doc_string=attribute.doc_string)
    if is_bytes:
        proto.s = value
    else:
        proto.strings.extend(v if isinstance(v, bytes) else v.encode() for v in value)
    return proto


def _strings(tensor: ir.TensorProtocol) -> list[bytes]:
    values = tensor.string_data() if isinstance(tensor, ir.StringTensor) else tensor.numpy().reshape(-1).tolist()
    return [value.encode() if isinstance(value, str) else bytes(value) for value in values]


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""


def _set_text(proto: Any, **texts: str | None) -> None:
    for name, text in texts.items():
        if text:
            setattr(proto, name, text)


def _write_pairs(entries: Any, pairs: Any) -> None:
    for key, value in pairs.items():
        entries.add(key=key, value=value)


def _says_something(value: ir.Value) -> bool:
    return bool(value.name) and (value.type is not None or bool(value.doc_string) or bool(value.metadata_props))


def _write_value(proto: onnx.ValueInfoProto, value: ir.Value) -> None:
    _set_text(proto, name=value.name, doc_string=value.doc_string)
    if isinstance(value.type, RawType):
        proto.type.CopyFrom(value.type.proto)
    elif value.type is not None:
        serde.serialize_type_into(proto.type, value.type)
        if value.shape is not None:
            serde.serialize_shape_into(proto.type, value.shape)
    if value.metadata_props:
        _write_pairs(proto.metadata_props, value.metadata_props)


def _write_annotations(proto: onnx.GraphProto, graph: ir.Graph) -> None:
    made = (value for node in graph for value in node.outputs)
    for value in dict.fromkeys((*graph.inputs, *graph.initializers.values(), *made)):
        names = value.meta.get(_QUANTIZATION) if value.meta else None
        if names:
            annotation = proto.quantization_annotation.add(tensor_name=value.name)
            _write_pairs(annotation.quant_parameter_tensor_names, names)
