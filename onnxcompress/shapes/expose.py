"""Inner values of a model become outputs of a copy of it, so that a run shows them.

A value of the main graph is listed as an output. One inside a body is passed out level by level:

    If          an output more on both branches; the branch that lacks the value gives an empty tensor of its type
    Loop, Scan  a scan output more: the values of all rounds, stacked along a new first axis (all of one shape)

What can't be passed out is refused with a reason: a value that some rounds of a loop don't compute, or that is in
a local function, or that shares its name with another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import edit, query
from ..io import model_io
from . import infer as shapes

_UNION_OPSET = 11
"""From here on the branches of an If may give different shapes."""


@dataclass(frozen=True)
class Exposure:
    """A copy of a model that gives inner values.

    Args:
        model: the copy; it computes nothing that the wanted values and kept outputs don't need.
        outputs: value -> the output that gives it.
        refused: value -> why it can't be given.
    """

    model: ir.Model
    outputs: Mapping[str, str]
    refused: Mapping[str, str]


def expose(model: ir.Model, names: Iterable[str], *, keep: Iterable[str] = ()) -> Exposure:
    """Return a copy of `model` with the values `names` as outputs, beside those of its outputs that `keep` names.

    Inputs and constants of the main graph are refused: they need no run.

    Raises:
        ModelError: the model has an If of an old opset, and can't be converted to a newer one.
    """
    copy = model_io.clone(model)
    if query.opset(copy) < _UNION_OPSET and any(query.is_op(node, "If") for node in query.nodes(copy)):
        copy = model_io.convert_opset(copy, _UNION_OPSET)
    return _Exposer(copy).expose(list(dict.fromkeys(names)), frozenset(keep))


class _RefusedError(Exception):
    """A value can't be passed out, for the reason that the exception holds."""


class _Exposer:
    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._names = edit.Names(model)
        self._shapes: shapes.Shapes | None = None
        self._parents: dict[int, ir.Node] = {}
        self._found: dict[str, list[tuple[ir.Value, ir.Graph]]] = {}
        for body in query.graphs_outside_functions(model):
            for node in body:
                self._parents.update({id(inner): node for inner in query.bodies(node)})
            values = [*body.inputs, *(output for node in body for output in node.outputs)]
            for value in values:
                if value.name:
                    self._found.setdefault(value.name, []).append((value, body))

    def expose(self, names: list[str], keep: frozenset[str]) -> Exposure:
        outputs: dict[str, str] = {}
        refused: dict[str, str] = {}
        given: list[ir.Value] = []
        for name in names:
            try:
                value = self._lifted(name)
            except _RefusedError as reason:
                refused[name] = str(reason)
                continue
            given.append(value)
            outputs[name] = value.name or ""
        self._set_outputs(given, keep)
        return Exposure(self.model, outputs, refused)

    def _lifted(self, name: str) -> ir.Value:
        """Return the value of the main graph that holds the value `name`, wherever that is."""
        found = self._found.get(name, [])
        if len(found) > 1:
            raise _RefusedError("two values have this name")
        if not found:
            raise _RefusedError("no such value outside of local functions")
        value, home = found[0]
        if query.constant_tensor(value) is not None:
            raise _RefusedError("it is a constant")
        if home is self.model.graph and value.is_graph_input():
            raise _RefusedError("it is an input")
        sometimes = False
        while home is not self.model.graph:
            node = self._parents[id(home)]
            if query.is_op(node, "If"):
                value, sometimes = self._through_if(node, home, value, name), True
            elif not query.is_op(node, "Loop", "Scan"):
                raise _RefusedError(f"it is in a body of {node.op_type}")
            elif sometimes:
                raise _RefusedError("not every round of a loop computes it")
            else:
                value = self._through_loop(node, home, value)
            assert isinstance(node.graph, ir.Graph)
            home = node.graph
        return value

    def _through_if(self, node: ir.Node, home: ir.Graph, value: ir.Value, name: str) -> ir.Value:
        if self._shapes is None:
            self._shapes = shapes.infer(self.model)
        dtype = self._shapes.dtype(value) or self._shapes.dtype(self._found[name][0][0])
        if dtype is None:
            raise _RefusedError("its type is not known, which the branch without it needs")
        for body in query.bodies(node):
            if body is home:
                body.outputs.append(self._own(body, value))
            else:
                empty = ir.tensor(np.zeros([0], dtype.numpy()), name="empty", dtype=dtype)
                made = ir.node("Constant", [], {"value": empty})
                made.outputs[0].name = self._names.fresh("nothing")
                body.append(made)
                body.outputs.append(made.outputs[0])
        return self._new_output(node, value)

    def _through_loop(self, node: ir.Node, home: ir.Graph, value: ir.Value) -> ir.Value:
        home.outputs.append(self._own(home, value))
        for name in ("scan_output_axes", "scan_output_directions"):
            axes = query.attribute(node, name)
            if axes is not None:
                node.attributes[name] = ir.AttrInt64s(name, [*axes, 0])
        return self._new_output(node, value)

    def _own(self, body: ir.Graph, value: ir.Value) -> ir.Value:
        """Return the value, or a copy where it is listed as an output already or comes in from outside."""
        if not value.is_graph_output() and not value.is_graph_input():
            return value
        made = ir.node("Identity", [value])
        made.outputs[0].name = self._names.fresh(f"{value.name}_copy")
        body.append(made)
        return made.outputs[0]

    def _new_output(self, node: ir.Node, value: ir.Value) -> ir.Value:
        node.resize_outputs(len(node.outputs) + 1)
        output = node.outputs[-1]
        output.name = self._names.fresh(f"{value.name}_shown")
        return output

    def _set_outputs(self, given: list[ir.Value], keep: frozenset[str]) -> None:
        """List what is wanted as outputs, and drop what only the other outputs need."""
        outputs = self.model.graph.outputs
        before = list(outputs)
        wanted = dict.fromkeys([*(value for value in before if value.name in keep), *given])
        outputs.clear()
        outputs.extend(wanted)
        for value in before:
            if value not in wanted:
                edit.remove_unread(value)
