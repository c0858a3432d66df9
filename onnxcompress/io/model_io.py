"""Load a model from anything that holds one; size, serialise and save it. Weights stay on disk until used."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from ..errors import ModelError
from ..graph.query import nodes
from . import wire
from .clone import clone, detach, restore
from .deserialize import from_proto
from .metadata import Dropped, drop_declared_shapes, drop_node_records, has_records
from .opset import convert_opset
from .save import SavedFile, save, save_scratch
from .serialize import to_proto
from .signatures import EXPORT_AGAIN, open_model
from .sources import InMemory, OpenFile
from .stored_lists import Lists, StoredList
from .tensors import StoredTensor, open_beside, stored_tensor

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from .sources import ByteSource

__all__ = [
    "Dropped",
    "SavedFile",
    "StoredTensor",
    "clone",
    "convert_opset",
    "detach",
    "drop_declared_shapes",
    "drop_node_records",
    "has_records",
    "list_bytes",
    "load",
    "model_bytes",
    "restore",
    "save",
    "save_scratch",
    "skeleton",
    "to_bytes",
]


def load(source: str | os.PathLike[str] | onnx.ModelProto | ir.Model | gs.Graph) -> ir.Model:
    """Return the model in `source`, which is never changed: a path, a ModelProto, an ir.Model, or a gs.Graph.

    Weights of 1 KiB and more stay in the file: each use reads them again. The file stays open, so that it may
    be replaced or deleted meanwhile. Those of a ModelProto are copied once, those of an ir.Model and a
    gs.Graph are shared.

    Raises:
        ModelError: when there is no such file, or it holds no usable ONNX model.

    """
    if isinstance(source, str | os.PathLike):
        return _load_file(Path(source))
    if isinstance(source, onnx.ModelProto):
        return _load_bytes(source)
    if isinstance(source, ir.Model):
        return clone(source)
    surgeon = sys.modules.get("onnx_graphsurgeon")
    if surgeon is not None and isinstance(source, surgeon.Graph):
        from .graphsurgeon import from_surgeon

        return from_surgeon(source)
    raise ModelError(
        f"a {type(source).__name__} is not a model",
        hint="Give a path, an onnx.ModelProto, an onnx_ir.Model or an onnx_graphsurgeon.Graph",
    )


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """Return `model` without its large tensors: light enough for the checker and shape inference at any size.

    Tensors of 1 KiB and more are external references to "#raw_data" (which onnx's checker accepts); smaller
    ones, such as shapes, are inline. Long lists of attributes that are still in their file are empty.
    """
    detached = to_proto(model)
    detached.drop_lists()
    return detached.proto


def model_bytes(model: ir.Model) -> int:
    """Return the exact bytes of `model` as one file, without reading its weights."""
    return wire.plan(to_proto(model).serialize()).size


def list_bytes(model: ir.Model) -> int:
    """Return the bytes of the long lists in attributes that are still in their file."""
    attributes = (attribute for node in nodes(model) for attribute in node.attributes.data.values())
    return sum(attribute.nbytes for attribute in attributes if isinstance(attribute, StoredList))


def to_bytes(model: ir.Model) -> bytes:
    """Return `model` as one message, weights included.

    Raises:
        ModelError: when that is over protobuf's 2 GiB.

    """
    detached = to_proto(model)
    plan = wire.plan(detached.serialize())
    if plan.size > wire.MAX_MESSAGE_BYTES:
        message = f"needs {plan.size} bytes, over the 2 GiB that fit into one message"
        raise ModelError(message, hint="Save it with external data and use the file")
    return b"".join(plan.chunks(detached.chunks))


def _load_file(path: Path) -> ir.Model:
    where = os.fspath(path)
    file = open_model(path)
    return _load_source(file, where, folder=path.parent)


def _load_bytes(proto: onnx.ModelProto) -> ir.Model:
    try:
        data = proto.SerializeToString()
    except Exception as error:
        message = f"the ModelProto can't be serialised ({error})"
        raise ModelError(message, hint="Over 2 GiB, save it with external data and give the path") from error
    return _load_source(InMemory(data, "ModelProto"), "ModelProto", folder=None)


def _load_source(source: ByteSource, where: str, folder: Path | None) -> ir.Model:
    lists = Lists(source)
    proto = _parse(wire.scan(source, take_list=lists.stand_in), where)
    _check_header(proto, where)
    files: dict[str, OpenFile] = {}

    def resolve(reference: ir.ExternalTensor) -> ir.TensorProtocol:
        location = str(reference.location)
        if location in _IN_THE_FILE or (location == wire.LIST_LOCATION and reference.offset in lists.taken):
            return stored_tensor(reference, source)
        if folder is None:
            message = f"has external data at {location!r}, and no folder to look for it"
            raise ModelError(message, where=where, hint="Give the path of the model instead")
        if location not in files:
            files[location] = open_beside(folder, location)
        return stored_tensor(reference, files[location])

    return from_proto(proto, resolve, where)


_IN_THE_FILE = frozenset({"#raw_data", "#float_data", "#double_data"})


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except Exception as error:
        raise ModelError("is not an ONNX model, or is damaged", where=where, hint=EXPORT_AGAIN) from error
    return proto


def _check_header(proto: onnx.ModelProto, where: str) -> None:
    if not proto.graph.output:
        raise ModelError("is not an ONNX model: its graph has no outputs", where=where, hint=EXPORT_AGAIN)
    if not proto.ir_version:
        raise ModelError("has no ir_version", where=where, hint=EXPORT_AGAIN)
    newest = int(onnx.IR_VERSION)
    if proto.ir_version > newest:
        message = f"has ir_version {proto.ir_version}; onnx {onnx.__version__} knows up to {newest}"
        raise ModelError(message, where=where, hint="Install a newer onnx")
    if not proto.opset_import:
        raise ModelError("imports no opset", where=where, hint=EXPORT_AGAIN)
