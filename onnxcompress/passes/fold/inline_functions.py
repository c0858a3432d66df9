"""Replace calls of local functions by their nodes; a function that can't be inlined is kept, with the reason.

onnx_ir copies the nodes; what it can't do is refused or prepared before, so that it never stops half-way:
outputs that are inputs or listed twice get an Identity, calls that omit outputs get them back, and opsets
are compared operator by operator (a function that imports another version of a domain means the same where none
of its operators changed in between).
"""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from ...core import Change, Context
from ...graph import edit, query

Identifier = tuple[str, str, str]


def inline_functions(model: ir.Model, context: Context, pass_name: str) -> list[Change]:
    """Inline every local function that is called and can be, and return what was done and refused."""
    if not model.functions:
        return []
    changes: list[Change] = []
    chosen: set[Identifier] = set()
    recursive = _recursive(model)
    imports = dict(model.opset_imports)
    calls = {node.op_identifier() for node in query.nodes(model)}
    called = [identifier for identifier in model.functions if identifier in calls]
    for identifier in called:
        function = model.functions[identifier]
        target = ":".join(part for part in identifier if part)
        refusal = "calls itself" if recursive else _refusal(model, function, imports)
        if refusal is None and context.gate.admits(pass_name, target):
            chosen.add(identifier)
            for domain, version in function.opset_imports.items():
                imports.setdefault(domain, version)
            size, copies = _constant_bytes(function), _calls(model, identifier)
            reason = "local function inlined"
            changes.append(
                Change.applied(pass_name, reason, target=target, bytes_before=size, bytes_after=size * copies)
            )
        elif refusal is not None:
            changes.append(Change.skipped(pass_name, f"local function not inlined: it {refusal}", target=target))
    if chosen:
        _inline(model, chosen, imports)
    return changes


def _inline(model: ir.Model, chosen: set[Identifier], imports: Mapping[str, int]) -> None:
    """Inline the chosen functions, which are known to fit."""
    names = edit.Names(model)
    for identifier in chosen:
        function = model.functions[identifier]
        _separate_outputs(function, names)
        for domain in function.opset_imports:
            function.opset_imports[domain] = imports[domain]
    for node in query.nodes(model):
        if node.op_identifier() in chosen:
            function = model.functions[node.op_identifier()]
            known = len(node.outputs)
            node.resize_outputs(len(function.outputs))
            for output in node.outputs[known:]:
                output.name = names.fresh(f"{query.label(node)}_out")
            for output in node.outputs:
                output.name = output.name or names.fresh(f"{query.label(node)}_out")
    InlinePass(criteria=lambda function: function.identifier() in chosen)(model)


def _constant_bytes(function: ir.Function) -> int:
    """Return the bytes of the constants in a function, which each of its calls gets when it is inlined."""
    nodes = (*function, *query.inner_nodes(function))
    return query.tensor_bytes(node.outputs[0] for node in nodes if query.is_op(node, "Constant"))


def _calls(model: ir.Model, identifier: Identifier) -> int:
    """Return how often a function is called, once all that call it are inlined; none calls itself."""
    found = 0
    for body in query.graphs_outside_functions(model):
        found += sum(node.op_identifier() == identifier for node in body)
    for other, function in model.functions.items():
        own = sum(node.op_identifier() == identifier for node in (*function, *query.inner_nodes(function)))
        found += own * _calls(model, other) if own else 0
    return found


def _separate_outputs(function: ir.Function, names: edit.Names) -> None:
    """Give each output of a function a node of its own: not an input, not the same value twice."""
    seen: set[ir.Value] = set()
    for index, output in enumerate(function.outputs):
        if output.producer() is None or output in seen:
            copy = ir.node("Identity", [output], name=names.fresh(f"{output.name}_copy"))
            copy.outputs[0].name = names.fresh(f"{output.name}_copy")
            function.append(copy)
            function.outputs[index] = copy.outputs[0]
        seen.add(function.outputs[index])


def _refusal(model: ir.Model, function: ir.Function, imports: Mapping[str, int]) -> str | None:
    """Return why a function can't be inlined into this model, None where it can."""
    for node in (*function, *query.inner_nodes(function)):
        version = function.opset_imports.get(node.domain, 0)
        model_version = imports.get(node.domain, version)
        if version == model_version or node.op_identifier() in model.functions:
            continue
        if not _is_unchanged(node, version, model_version):
            used = f"{node.op_type} of opset {version}"
            return f"uses {used}, which means something else in the model's opset {model_version}"
    for node in query.nodes(model):
        if node.op_identifier() != function.identifier():
            continue
        if query.bodies(node):
            return "takes a graph as attribute"
        if len(node.inputs) > len(function.inputs):
            return f"has {len(function.inputs)} inputs but is called with {len(node.inputs)}"
        if len(node.outputs) > len(function.outputs):
            return f"has {len(function.outputs)} outputs but is called for {len(node.outputs)}"
        filled = dict(zip(function.inputs, node.inputs, strict=False))
        if any(output in function.inputs and filled.get(output) is None for output in function.outputs):
            return "returns an input that a call omits"
    return None


def _is_unchanged(node: ir.Node, one: int, other: int) -> bool:
    """Say whether an operator is defined alike in two opset versions."""
    try:
        schemas = [onnx.defs.get_schema(node.op_type, version, node.domain) for version in (one, other)]
    except onnx.defs.SchemaError:
        return False
    return schemas[0].since_version == schemas[1].since_version


def _recursive(model: ir.Model) -> bool:
    """Say whether functions call each other in a circle."""
    calls = {
        identifier: {n.op_identifier() for n in (*function, *query.inner_nodes(function))} & set(model.functions)
        for identifier, function in model.functions.items()
    }
    try:
        TopologicalSorter(calls).prepare()
    except CycleError:
        return True
    return False
