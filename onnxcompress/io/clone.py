"""Copies of a model that share its tensors: as an onnx_ir model, and as a light proto and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from ..errors import ModelError
from ..graph.query import graphs, replace_tensors
from .deserialize import from_proto
from .serialize import to_proto
from .tensors import open_beside, stored_tensor
from .wire import LIST_LOCATION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .sources import OpenFile


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


def detach(model: ir.Model, *, keep_lists: bool = False) -> tuple[onnx.ModelProto, dict[int, ir.TensorProtocol]]:
    """Return the skeleton of `model`, and its large tensors by the offsets of their references.

    Long lists of attributes that are still in their file are among the tensors, unless `keep_lists`.
    """
    detached = to_proto(model, keep_lists=keep_lists)
    return detached.proto, detached.by_offset()


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
        if tensor is None or str(reference.location) not in ("#raw_data", LIST_LOCATION):
            raise ModelError(f"refers to unknown data at {reference.location!r}", where=repr(reference.name))
        return tensor

    return from_proto(own, resolve, "model")
