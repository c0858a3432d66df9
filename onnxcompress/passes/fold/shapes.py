"""Fold shape arithmetic: what follows from the dimensions of the inputs is stored, the rest is shared.

    Reshape(x, Concat(Gather(Shape(x), 0), Gather(Shape(x), 1), 4, 32))   ->   Reshape(x, [0, 0, 4, 32])

Assumed: a named dimension is one size wherever the name occurs, and where a target keeps one unknown
dimension as -1, none of the others is 0 (onnxruntime refuses such a Reshape).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ...core import Change, Context, LosslessPass
from ...graph import edit, query
from ...numerics.polynomials import Size
from ...shapes import infer as shapes
from ...shapes import rules_layout, symbolic
from ...shapes.facts import Content, Facts

_OPEN_END = 2**63 - 1
"""End of a Slice that reaches to the end of its axis: the largest int64."""
_Key = tuple[ir.DataType, tuple[int, ...], tuple[Size | None, ...]]


@dataclass(frozen=True, kw_only=True)
class FoldShapes(LosslessPass):
    """Known shapes become constants, nodes that keep a shape are removed, equal shape expressions become one."""

    name: ClassVar[str] = "fold-shapes"

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Rewrite `model` in place."""
        facts = symbolic.interpret(model, shapes.inferred(model, context))
        folding = _Folding(model, context, facts)
        for body in query.graphs_outside_functions(model):
            for node in reversed(tuple(body)):  # from the end: what only a folded node needed is never looked at
                if node.graph is not None:
                    folding.fold(node)
        folding.share(model.graph, {})
        return folding.changes


class _Folding:
    """One run of the pass over a model whose facts are known."""

    def __init__(self, model: ir.Model, context: Context, facts: Facts) -> None:
        self.changes: list[Change] = []
        self._names = edit.Names(model)
        self._context = context
        self._facts = facts
        self._rules: dict[str, Callable[[ir.Node], bool]] = {
            "Reshape": self._reshape,
            "Expand": self._expand,
            "Slice": self._slice,
            "Concat": self._concat,
        }

    def fold(self, node: ir.Node) -> None:
        """Store what a node computes, or remove or simplify one whose shape is known."""
        if node.domain in query.STANDARD_DOMAINS and not self._store(node) and node.op_type in self._rules:
            self._rules[node.op_type](node)

    def share(self, body: ir.Graph, known: dict[_Key, ir.Value]) -> None:
        """Let readers of a shape expression read the first value that has it, in this graph or around it."""
        known = dict(known)
        for node in tuple(body):
            if node.graph is None:
                continue
            for inner in query.bodies(node):
                self.share(inner, known)
            for output in node.outputs:
                self._share(node, output, known)

    def _share(self, node: ir.Node, output: ir.Value, known: dict[_Key, ir.Value]) -> None:
        content = self._facts.content(output)
        if content is None or not output.uses() or output.is_graph_output():
            return
        if content.is_number() or None in content.elements or not content.elements:
            return
        key = (content.dtype, content.shape, content.elements)
        first = known.setdefault(key, output)
        producer = first.producer()
        if first is output or producer is None or producer.graph is None:
            known[key] = output
        elif self._admits(node):
            self._applied(node, f"{output.name} is the same as {first.name}: {_text(content)}")
            edit.replace_value(output, first)
            edit.remove_unread(output)

    def _admits(self, node: ir.Node) -> bool:
        return self._context.gate.admits(FoldShapes.name, query.label(node))

    def _applied(self, node: ir.Node, reason: str) -> None:
        self.changes.append(Change.applied(FoldShapes.name, reason, target=query.label(node)))

    def _store(self, node: ir.Node) -> bool:
        """Store a node's output where every element is known."""
        if len(node.outputs) != 1 or query.bodies(node) or query.is_op(node, "Constant"):
            return False
        output = node.outputs[0]
        content = self._facts.content(output)
        array = None if content is None else content.array()
        if content is None or array is None or not (output.uses() or output.is_graph_output()):
            return False
        if not self._admits(node):
            return True
        self._applied(node, f"its value follows from the inputs' shapes: {_text(content)}")
        inputs = _sources(node)
        edit.replace_by_constant(node, self._names, [array])
        for value in inputs:
            edit.remove_unread(value)
        return True

    def _drop(self, node: ir.Node, reason: str) -> bool:
        """Remove a node whose output is its first input."""
        source = node.inputs[0]
        if source is None or not edit.can_replace(node.outputs[0], source) or not self._admits(node):
            return False
        self._applied(node, reason)
        inputs = _sources(node)
        edit.replace_node(node, [source])
        for value in inputs:
            edit.remove_unread(value)
        return True

    def _set_input(self, node: ir.Node, port: int, numbers: list[int]) -> None:
        """Let a node read constant numbers, and remove what only computed them before."""
        old = node.inputs[port]
        name = f"{query.label(node)}_{port}"
        new = edit.add_initializer(query.home(node), self._names, name, np.array(numbers, dtype=np.int64))
        node.replace_input_with(port, new)
        if old is not None:
            edit.remove_unread(old)

    def _reshape(self, node: ir.Node) -> bool:
        data, result = self._facts.dims(node.inputs[0]), self._facts.dims(node.outputs[0])
        if (
            data is not None
            and data == result
            and self._drop(node, f"its input has this shape already: {_dims(result)}")
        ):
            return True
        target = self._facts.content(node.inputs[1]) if len(node.inputs) > 1 else None
        if target is None or result is None or query.constant_tensor(node.inputs[1]) is not None:
            return False
        numbers = _target(data, result, target, keeps_zero=bool(query.attribute(node, "allowzero", 0)))
        if numbers is None or not self._admits(node):
            return False
        self._applied(node, f"the target {_text(target)} is {numbers}")
        node.attributes.pop("allowzero", None)
        self._set_input(node, 1, numbers)
        return True

    def _expand(self, node: ir.Node) -> bool:
        data, result = self._facts.dims(node.inputs[0]), self._facts.dims(node.outputs[0])
        if (
            data is not None
            and data == result
            and self._drop(node, f"its input has this shape already: {_dims(result)}")
        ):
            return True
        target = self._facts.content(node.inputs[1])
        if target is None or data is None or query.constant_tensor(node.inputs[1]) is not None:
            return False
        offset = len(target.elements) - len(data)
        numbers: list[int] = []
        for index, element in enumerate(target.elements):
            number = None if element is None else element.as_int()
            if number is None and index >= offset and element == data[index - offset]:
                number = 1  # stretched to what it is
            if number is None:
                return False
            numbers.append(number)
        if not self._admits(node):
            return False
        self._applied(node, f"the target {_text(target)} is {numbers}")
        self._set_input(node, 1, numbers)
        return True

    def _slice(self, node: ir.Node) -> bool:
        data = self._facts.dims(node.inputs[0])
        bounds = rules_layout.slice_bounds(node, lambda port: self._facts.content(node.inputs[port]))
        if data is None or not bounds or any(not -len(data) <= axis < len(data) for axis in bounds):
            return False
        starts: list[int | None] = []
        ends: list[int | None] = []
        whole = True
        for axis, (start, end, stride) in bounds.items():
            first = None if start is None else start.as_int()
            last = None if end is None else end.as_int()
            open_end = rules_layout.reaches_end(end, data[axis]) and stride is not None and stride > 0
            whole = whole and first == 0 and stride == 1 and open_end
            starts.append(first)
            ends.append(last if last is not None else _OPEN_END if open_end else None)
        if whole and self._drop(node, "it takes everything"):
            return True
        changed = False
        for port, numbers in ((1, starts), (2, ends)):
            known = [n for n in numbers if n is not None]
            if len(node.inputs) <= port or len(known) < len(numbers) or query.constant_tensor(node.inputs[port]):
                continue
            if self._admits(node):
                self._applied(node, f"its {'starts' if port == 1 else 'ends'} are {known}")
                self._set_input(node, port, known)
                changed = True
        return changed

    def _concat(self, node: ir.Node) -> bool:
        """Remove operands without elements."""
        result, axis = self._facts.dims(node.outputs[0]), int(query.attribute(node, "axis", 0))
        if result is None or not -len(result) <= axis < len(result):
            return False
        kept = [value for value in node.inputs if not self._is_empty(value, axis)]
        if not kept or len(kept) == len(node.inputs):
            return False
        if len(kept) > 1 or kept[0] is None or not edit.can_replace(node.outputs[0], kept[0]):
            if not self._admits(node):
                return False
            self._applied(node, f"{len(node.inputs) - len(kept)} of its operands are empty")
            edit.turn_into(node, node.op_type, kept, {"axis": axis})
            return True
        if not self._admits(node):
            return False
        self._applied(node, f"all its operands but {kept[0].name} are empty")
        others = [value for value in _sources(node) if value is not kept[0]]
        edit.replace_node(node, [kept[0]])
        for value in others:
            edit.remove_unread(value)
        return True

    def _is_empty(self, value: ir.Value | None, axis: int) -> bool:
        dims = self._facts.dims(value)
        return bool(dims) and dims is not None and dims[axis].as_int() == 0


def _target(
    data: tuple[Size, ...] | None, result: tuple[Size, ...], target: Content, *, keeps_zero: bool
) -> list[int] | None:
    """Return a constant target that makes the same shape, None where two dimensions stay unknown."""
    numbers: list[int] = []
    for index, (element, size) in enumerate(zip(target.elements, result, strict=True)):
        number, asked = size.as_int(), None if element is None else element.as_int()
        if asked == 0 and keeps_zero:
            return None
        if number is not None and number > 0:
            numbers.append(number)
        elif data is not None and index < len(data) and data[index] == size:
            numbers.append(0)
        elif element is not None and (asked is None or asked == -1):
            numbers.append(-1)
        else:
            return None
    return numbers if numbers.count(-1) <= 1 else None


def _sources(node: ir.Node) -> list[ir.Value]:
    return [value for value in dict.fromkeys(node.inputs) if value is not None and not value.is_initializer()]


def _text(content: Content) -> str:
    parts = ["?" if e is None else str(e) for e in content.elements[:8]]
    more = ", ..." if len(content.elements) > 8 else ""
    return f"[{', '.join(parts)}{more}]"


def _dims(dims: tuple[Size, ...] | None) -> str:
    return f"[{', '.join(str(d) for d in dims or ())}]"
