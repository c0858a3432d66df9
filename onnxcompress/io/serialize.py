"""Write an onnx_ir model as a ModelProto whose large tensors are references.

Unlike onnx_ir's own serde, which it uses for types, shapes and plain attributes, it writes what `deserialize`
keeps (sparse initializers, map types, training graphs, text that is not UTF-8), metadata in the order in which it
was inserted, and no value_info that only repeats the type and shape of an initializer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
from onnx_ir import serde

from ..errors import ModelError
from .stored_lists import StoredList, without_list
from .tensors import SparseTensor, chunks, refer
from .wire import LARGE_BYTES, LIST_LOCATION, MAX_MESSAGE_BYTES, Reference

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TRAINING_INFO = "onnxcompress.training_info"
"""Key in `model.graph.meta` of the serialised TrainingInfoProtos."""

_QUANTIZATION = "quant_parameter_tensor_names"  # where onnx_ir keeps a value's quantization annotation
_FUNCTION_VALUE_INFO_IR_VERSION = 10
"""From this version of the IR on functions have value_info."""
_DEVICE_IR_VERSION = 11
"""From this version of the IR on models and nodes have device configurations."""
_FIRST_LIST = 1 << 40
"""Offset of the reference to the first long list in a skeleton: beyond the index of any tensor."""


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
        lists: long lists of attributes, left out likewise; their references count on from `_FIRST_LIST`.
        stand_ins: their AttributeProtos within `proto`.

    """

    proto: onnx.ModelProto
    tensors: list[ir.TensorProtocol] = field(default_factory=list)
    protos: list[onnx.TensorProto] = field(default_factory=list)
    lists: list[StoredList] = field(default_factory=list)
    stand_ins: list[onnx.AttributeProto] = field(default_factory=list)

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

    def tensor(self, offset: int) -> ir.TensorProtocol:
        """Return what a reference with this offset refers to: a tensor, or a list as bytes of an attribute."""
        return self.tensors[offset] if offset < _FIRST_LIST else self.lists[offset - _FIRST_LIST].stored

    def chunks(self, reference: Reference) -> Iterable[bytes | memoryview]:
        """Return the bytes that a reference refers to, for `StreamPlan.chunks`."""
        return chunks(self.tensor(reference.offset))

    def by_offset(self) -> dict[int, ir.TensorProtocol]:
        """Return everything that is left out, by the offsets of its references."""
        lists = {_FIRST_LIST + index: each.stored for index, each in enumerate(self.lists)}
        return dict(enumerate(self.tensors)) | lists

    def drop_lists(self) -> None:
        """Make empty lists of the long ones, so that the checker and shape inference understand `proto`."""
        for proto, attribute in zip(self.stand_ins, self.lists, strict=True):
            without_list(proto, attribute)


def to_proto(model: ir.Model, *, large_bytes: int = LARGE_BYTES, keep_lists: bool = False) -> Skeleton:
    """Return the skeleton of `model`: tensors of `large_bytes` and more are left out, unread.

    So are long lists of attributes that are still in their file, unless `keep_lists`.

    Raises:
        ModelError: when a text in `model` is not UTF-8.

    """
    skeleton = Skeleton(onnx.ModelProto())
    try:
        _ModelWriter(skeleton, model.ir_version, large_bytes, keep_lists=keep_lists).model(model)
    except UnicodeError as error:
        raise ModelError(f"a text that is not UTF-8 ({error})", where=model.graph.name or "") from error
    return skeleton


class _ModelWriter:
    """Writes a model into a skeleton, metadata in the order in which it was inserted."""

    def __init__(self, skeleton: Skeleton, ir_version: int, large_bytes: int, *, keep_lists: bool) -> None:
        self.skeleton = skeleton
        self.ir_version = ir_version
        self.large_bytes = large_bytes
        self.keep_lists = keep_lists

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
        if isinstance(attribute, StoredList):
            self.list(proto, attribute)
            return
        raw = _raw_proto(attribute)
        if raw is not None:
            proto.CopyFrom(raw)
            return
        kind = attribute.type
        if kind in _TENSOR_AND_GRAPH_FIELDS:
            proto.name = attribute.name
            proto.type = onnx.AttributeProto.AttributeType.Value(kind.name)
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

    def list(self, proto: onnx.AttributeProto, attribute: StoredList) -> None:
        if self.keep_lists:
            proto.ParseFromString(attribute.stored.tobytes())
            proto.type = onnx.AttributeProto.AttributeType.Value(attribute.type.name)
            return
        proto.name, proto.type = attribute.name, onnx.AttributeProto.TENSOR
        self.header(proto.t, attribute.stored, attribute.type.name)
        refer(proto.t, LIST_LOCATION, _FIRST_LIST + len(self.skeleton.lists), attribute.nbytes)
        self.skeleton.lists.append(attribute)
        self.skeleton.stand_ins.append(proto)

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
    if isinstance(value, onnx.AttributeProto):
        return value
    if attribute.type == ir.AttributeType.TYPE_PROTOS and value and isinstance(value[0], onnx.AttributeProto):
        return value[0]
    is_bytes = isinstance(value, bytes) and attribute.type == ir.AttributeType.STRING
    if not is_bytes and not (attribute.type == ir.AttributeType.STRINGS and any(isinstance(v, bytes) for v in value)):
        return None
    proto = onnx.AttributeProto(name=attribute.name, type=attribute.type.name)
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


def _write_pairs(entries: Any, pairs: Mapping[str, str]) -> None:
    for key, value in pairs.items():
        entries.add(key=key, value=value)


def _says_something(value: ir.Value) -> bool:
    return bool(value.name) and (value.type is not None or bool(value.doc_string) or bool(value.metadata_props))


def _write_value(proto: onnx.ValueInfoProto, value: ir.Value) -> None:
    _set_text(proto, name=value.name, doc_string=value.doc_string)
    if type(value.type) is ir.TensorType and not value.type.denotation:
        _write_tensor_type(proto.type.tensor_type, value.type, value.shape)
    elif isinstance(value.type, RawType):
        proto.type.CopyFrom(value.type.proto)
    elif value.type is not None:
        serde.serialize_type_into(proto.type, value.type)
        if value.shape is not None:
            serde.serialize_shape_into(proto.type, value.shape)
    if value.metadata_props:
        _write_pairs(proto.metadata_props, value.metadata_props)


def _write_tensor_type(proto: onnx.TypeProto.Tensor, kind: ir.TensorType, shape: ir.Shape | None) -> None:
    proto.elem_type = kind.dtype.value
    if shape is None:
        return
    proto.shape.SetInParent()
    for axis, size in enumerate(shape):
        dim = proto.shape.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        elif size.value is not None:
            dim.dim_param = str(size.value)
        if denotation := shape.get_denotation(axis):
            dim.denotation = denotation


def _write_annotations(proto: onnx.GraphProto, graph: ir.Graph) -> None:
    made = (value for node in graph for value in node.outputs)
    for value in dict.fromkeys((*graph.inputs, *graph.initializers.values(), *made)):
        names = value.meta.get(_QUANTIZATION) if value.meta else None
        if names:
            annotation = proto.quantization_annotation.add(tensor_name=value.name)
            _write_pairs(annotation.quant_parameter_tensor_names, names)
