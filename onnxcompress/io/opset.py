"""Raise or lower the opset of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx.version_converter
import onnx_ir as ir

from ..errors import ModelError
from .clone import clone
from .deserialize import from_proto
from .metadata import copy_records
from .serialize import to_proto

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEFAULT_DOMAINS = ("", "ai.onnx")


def convert_opset(model: ir.Model, version: int) -> ir.Model:
    """Return `model` at `version` of the default opset, its ir_version raised to what that needs.

    Where no operator in the graph differs between both opsets only the import changes. Otherwise onnx's
    version converter rewrites the graph (never the weights, which it doesn't see), and what it drops,
    functions and the metadata of nodes and values, is restored by name. Functions keep the opset they import.

    Raises:
        ModelError: when the converter can't.

    """
    current = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
    if current is None:
        raise ModelError("opset conversion: the model imports no default opset")
    newest = onnx.defs.onnx_opset_version()
    if not 1 <= version <= newest:
        raise ModelError(f"opset conversion: this onnx knows opsets 1 to {newest}, not {version}")
    converted = _with_import(model, version) if _is_same(model, current, version) else _convert(model, version)
    needed = _ir_version(converted)
    converted.ir_version = max(converted.ir_version, needed)
    return converted


def _is_same(model: ir.Model, current: int, version: int) -> bool:
    """Tell whether every default-domain operator in the graph is defined alike in both opsets."""
    return all(_since(op, current) == _since(op, version) is not None for op in _operators(model.graph))


def _operators(graph: ir.Graph) -> Iterator[str]:
    seen = set()
    for node in graph.all_nodes():
        if node.domain in _DEFAULT_DOMAINS:
            seen.add(node.op_type)
    yield from sorted(seen)


def _since(op_type: str, version: int) -> int | None:
    try:
        return int(onnx.defs.get_schema(op_type, version, "").since_version)
    except onnx.defs.SchemaError:
        return None


def _ir_version(model: ir.Model) -> int:
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    return int(onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True))


def _with_import(model: ir.Model, version: int) -> ir.Model:
    copy = clone(model)
    for domain in _DEFAULT_DOMAINS:
        if domain in copy.opset_imports:
            copy.opset_imports[domain] = version
    return copy


def _convert(model: ir.Model, version: int) -> ir.Model:
    skeleton = to_proto(model)
    try:
        proto = onnx.version_converter.convert_version(skeleton.proto, version)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"opset conversion to {version} failed ({reason})") from error
    converted = from_proto(proto, lambda reference: skeleton.tensor(reference.offset or 0), "converted model")
    _restore(converted, model)
    return converted


def _restore(converted: ir.Model, model: ir.Model) -> None:
    """Give `converted` what the converter dropped."""
    copy_records(model, converted)
    for function in model.functions.values():
        converted.functions[function.identifier()] = function.clone()
    for domain, imported in model.opset_imports.items():
        converted.opset_imports.setdefault(domain, imported)
    converted.ir_version = max(converted.ir_version, model.ir_version)
