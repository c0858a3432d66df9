"""Remove what no output depends on: nodes, weights, outputs that nobody reads, functions, operator sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import onnx
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ...core import Change, Context, LosslessPass
from ...graph import edit, query

_LOOP_STATE_FROM = 2
"""Inputs of a Loop before its state: the trip count and the condition."""


@dataclass(frozen=True, kw_only=True)
class RemoveDead(LosslessPass):
    """Removes nodes, outputs and initializers that nothing reads, in every graph, and what is declared for nothing."""

    name: ClassVar[str] = "remove-dead"

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Visit nodes from the last to the first, and a body right after its node's unread outputs are removed."""
        cleaning = _Cleaning(model, context)
        cleaning.clean(model.graph)
        for function in model.functions.values():
            cleaning.clean(function.graph)
        for body in query.graphs_outside_functions(model):
            cleaning.drop_weights(body)
        cleaning.drop_functions()
        cleaning.drop_opsets()
        return cleaning.changes


class _Cleaning:
    """One run of the pass."""

    def __init__(self, model: ir.Model, context: Context) -> None:
        self.changes: list[Change] = []
        self._model = model
        self._context = context
        self._opset = query.opset(model)

    def clean(self, body: ir.Graph) -> None:
        """Remove dead nodes and outputs of a graph and the bodies in it."""
        for node in reversed(tuple(body)):
            is_dead = not any(_is_read(output) for output in node.outputs)
            if is_dead and self._admits(query.label(node), "nothing reads its outputs"):
                edit.discard_bodies(node)
                body.remove(node, safe=True)
                continue
            node = self._drop_body_outputs(node)
            self._drop_optional_outputs(node)
            for inner in query.bodies(node):
                self.clean(inner)

    def drop_weights(self, body: ir.Graph) -> None:
        """Remove initializers that nothing reads."""
        for name, value in tuple(body.initializers.items()):
            if value.uses() or value.is_graph_output() or value.is_graph_input():
                continue
            if self._admits(name, "nothing reads this weight", query.tensor_bytes([value])):
                del body.initializers[name]

    def drop_functions(self) -> None:
        """Remove local functions that are never called."""
        called = set(_called(self._model))
        for identifier in tuple(self._model.functions):
            if identifier not in called:
                name = ":".join(part for part in identifier if part)
                if self._admits(f"function {name}", "it is never called"):
                    del self._model.functions[identifier]

    def drop_opsets(self) -> None:
        """Remove imports of operator sets that no node uses."""
        used = {node.domain for node in query.nodes(self._model)} | {key[0] for key in self._model.functions}
        for domain in tuple(self._model.opset_imports):
            if domain in used or domain in query.STANDARD_DOMAINS:
                continue
            if self._admits(f"opset {domain}", "no node is of this domain"):
                del self._model.opset_imports[domain]

    def _drop_body_outputs(self, node: ir.Node) -> ir.Node:
        """Drop unread outputs that bodies compute: any of an If, what a Loop collects. Return the node that is left."""
        if query.is_op(node, "If"):
            first, offset = 0, 0
        elif query.is_op(node, "Loop"):
            first, offset = len(node.inputs) - _LOOP_STATE_FROM, 1
        else:
            return node
        unread = [i for i, output in enumerate(node.outputs) if i >= first and not _is_read(output)]
        if not unread or len(unread) == len(node.outputs) or not self._admits(*_target_and_reason(node, unread)):
            return node
        for body in query.bodies(node):
            for index in reversed(unread):
                body.outputs.pop(index + offset)
        return edit.without_outputs(node, unread)

    def _drop_optional_outputs(self, node: ir.Node) -> None:
        """Drop optional outputs that nobody reads: the last ones are removed, others lose their name."""
        unread = [
            i
            for i, output in enumerate(node.outputs)
            if output.name and not _is_read(output) and self._is_optional(node, i)
        ]
        if not unread or not self._admits(*_target_and_reason(node, unread)):
            return
        for index in unread:
            node.outputs[index].name = ""
        count = len(node.outputs)
        while count > 1 and not node.outputs[count - 1].name:
            count -= 1
        node.resize_outputs(count)

    def _is_optional(self, node: ir.Node, index: int) -> bool:
        """Say whether a node means the same without one of its outputs."""
        if node.domain not in query.STANDARD_DOMAINS:
            return False
        if query.is_op(node, "BatchNormalization") and (self._opset < 14 or query.attribute(node, "training_mode", 0)):
            return False  # in old opsets the number of outputs is what turns training on
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset)
        except onnx.defs.SchemaError:
            return False
        return (
            index < len(schema.outputs)
            and schema.outputs[index].option == onnx.defs.OpSchema.FormalParameterOption.Optional
        )

    def _admits(self, target: str, reason: str, size_bytes: int = 0) -> bool:
        """Ask the gate and note the change."""
        if not self._context.gate.admits(RemoveDead.name, target):
            return False
        self.changes.append(Change.applied(RemoveDead.name, reason, target=target, bytes_before=size_bytes))
        return True


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _target_and_reason(node: ir.Node, unread: list[int]) -> tuple[str, str]:
    """Return the target and the reason of dropping outputs."""
    names = ", ".join(str(node.outputs[i].name) for i in unread)
    return f"{query.label(node)}:{names}", f"nothing reads {names}"


def _called(model: ir.Model) -> Iterator[tuple[str, str, str]]:
    """Yield the local functions that the main graph calls, directly or through others."""
    pending = [node for body in query.graphs_outside_functions(model) for node in body]
    seen: set[tuple[str, str, str]] = set()
    while pending:
        identifier = pending.pop().op_identifier()
        if identifier in model.functions and identifier not in seen:
            seen.add(identifier)
            yield identifier
            function = model.functions[identifier]
            pending += [*function, *query.inner_nodes(function)]
