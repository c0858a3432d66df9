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
_SAMPLING_OPSET = 11
"""Opset from which on Resize says at which coordinates it samples."""
_HARDMAX_OPSET = 13
"""Opset from which on Hardmax compares along one axis, before along all from one on; the converter changes nothing."""
_FLATTENING = ("Hardmax", "LogSoftmax", "Softmax")
"""The operators of which that is true; the converter knows the other two."""
_GROUP_NORM_OPSET = 21
"""Opset from which on GroupNormalization has a scale for each channel; the converter writes shapes that don't fit."""


def convert_opset(model: ir.Model, version: int) -> ir.Model:
    """Return `model` at `version` of the default opset, its ir_version raised to what that needs.

    Where no operator in the graph differs between both opsets only the import changes. Otherwise onnx's
    version converter rewrites the graph (never the weights, which it doesn't see), and what it drops,
    functions and the metadata of nodes and values, is restored by name. Functions keep the opset they import.

    What the converter is known to get wrong is refused, or put right: see the operators below.

    Raises:
        ModelError: when the converter can't.

    """
    current = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
    if current is None:
        raise ModelError("opset conversion: the model imports no default opset")
    newest = onnx.defs.onnx_opset_version()
    if not 1 <= version <= newest:
        raise ModelError(f"opset conversion: this onnx knows opsets 1 to {newest}, not {version}")
    problem = _unconverted(model, current, version)
    if problem is not None:
        raise ModelError(f"opset conversion to {version}: {problem}")
    converted = _with_import(model, version) if _is_same(model, current, version) else _convert(model, version)
    if current < _SAMPLING_OPSET <= version:
        _keep_sampling(converted)
    needed = _ir_version(converted)
    converted.ir_version = max(converted.ir_version, needed)
    return converted


def _unconverted(model: ir.Model, current: int, version: int) -> str | None:
    """Return what the converter would leave invalid or make wrong, None where there is nothing."""
    low, high = sorted((current, version))
    for node in model.graph.all_nodes():
        if node.domain not in _DEFAULT_DOMAINS:
            continue
        if node.op_type == "GroupNormalization" and low < _GROUP_NORM_OPSET <= high:
            return f"GroupNormalization has other scales from opset {_GROUP_NORM_OPSET} on"
        if node.op_type == "Hardmax" and low < _HARDMAX_OPSET <= high and _int(node, "axis", 1) != -1:
            return f"Hardmax compares along other axes from opset {_HARDMAX_OPSET} on"
    for function in model.functions.values():  # runtimes read their bodies by the opset of the model
        own = function.opset_imports.get("", function.opset_imports.get("ai.onnx", current))
        broken = sorted({node.op_type for node in function.all_nodes() if not _stays_valid(node, own, version)})
        if broken:
            return f"the local function {function.name} has operators of opset {own}: {', '.join(broken)}"
    return None


def _stays_valid(node: ir.Node, current: int, version: int) -> bool:
    """Say whether an operator that is left as it is has the same inputs, attributes and axes in another opset."""
    if node.domain not in _DEFAULT_DOMAINS or _since(node.op_type, current) == _since(node.op_type, version):
        return True
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        return False
    low, high = sorted((current, version))
    if node.op_type in _FLATTENING and low < _HARDMAX_OPSET <= high and _int(node, "axis", 1) != -1:
        return False
    return schema.min_input <= len(node.inputs) <= schema.max_input and set(node.attributes) <= set(schema.attributes)


def _keep_sampling(converted: ir.Model) -> None:
    """Say where a linear Resize samples: opset 10 had one way, which is not the default of later ones."""
    for node in converted.graph.all_nodes():
        is_linear = node.op_type == "Resize" and node.domain in _DEFAULT_DOMAINS and _mode(node) == "linear"
        if is_linear and "coordinate_transformation_mode" not in node.attributes:
            node.attributes.add(ir.AttrString("coordinate_transformation_mode", "asymmetric"))


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _mode(node: ir.Node) -> str:
    attribute = node.attributes.get("mode")
    return "nearest" if attribute is None else attribute.as_string()


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
