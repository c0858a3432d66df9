"""The walk over a graph that collects how its channels are related: one step a node, bodies where they stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from . import graph, ops, shapes, symbolic
from .channel_flow import Axis, Flow, Pin, Step, UnfollowedError

if TYPE_CHECKING:
    import onnx_ir as ir

BRANCHES = ("then_branch", "else_branch")


def follow(model: ir.Model, feed: Mapping[str, np.ndarray]) -> Flow:
    """Relate the channels of all values of the main graph and its bodies at the shapes of a feed.

    Names of values must be unique across bodies (`normalize` sees to that); what is not known pins.
    """
    always = symbolic.interpret(model, shapes.infer(model))
    sizes = {name: tuple(np.shape(array)) for name, array in feed.items()}
    at = symbolic.interpret(model, shapes.infer_at(model, sizes)) if sizes else always
    flow = Flow(at=at, always=always, opset=graph.opset(model))
    for value in model.graph.inputs:
        _set_pinned(flow, value, Pin(str(value.name), "graph input"))
    _walk(model.graph, flow)
    for value in model.graph.outputs:
        flow.pin_value(value, Pin(str(value.name), "graph output"))
    return flow


def _set_pinned(flow: Flow, value: ir.Value, pin: Pin) -> None:
    dims = flow.at.dims(value)
    if dims is not None:
        flow.axes[value] = [pin] * len(dims)


def _walk(body: ir.Graph, flow: Flow) -> None:
    for node in body:
        if not graph.is_op(node, "Constant"):
            _step(node, flow)


def _step(node: ir.Node, flow: Flow) -> None:
    step = Step(node, flow)
    refusal = "its channels are not followed"
    found: list[list[Axis]] = []
    try:
        if graph.is_op(node, "If"):
            found = _branches(step)
        elif graph.bodies(node):
            found = _loop(node, flow)
        else:
            links = ops.spec(node).links
            if links is None:
                raise UnfollowedError(f"the channels of {node.op_type} are not followed")
            found = links(step)
        _check(node, found, flow)
    except UnfollowedError as error:
        refusal, found = str(error), []
        step.followed.clear()
    pin = Pin(graph.label(node), refusal)
    for port, value in enumerate(node.inputs):
        if value is not None and port not in step.followed:
            flow.pin_value(value, pin)
    for index, output in enumerate(node.outputs):
        if index < len(found):
            flow.axes[output] = found[index]
        else:
            _set_pinned(flow, output, pin)


def _check(node: ir.Node, found: list[list[Axis]], flow: Flow) -> None:
    """Refuse axes that are not as long as the node's outputs are at the feed."""
    for output, axes in zip(node.outputs, found, strict=False):
        dims = flow.dims(output)
        if dims is None:
            continue
        lengths = [n if isinstance(axis, Pin) else len(axis) for axis, n in zip(axes, dims, strict=False)]
        if len(axes) != len(dims) or tuple(lengths) != dims:
            raise UnfollowedError(f"{output.name} has another shape than follows from its inputs")


def _loop(node: ir.Node, flow: Flow) -> list[list[Axis]]:
    """Follow what a Loop or Scan computes inside; what goes in and out from round to round is kept."""
    state = Pin(graph.label(node), f"state of a {node.op_type}")
    for body in graph.bodies(node):
        for value in body.inputs:
            _set_pinned(flow, value, state)
        _walk(body, flow)
        for value in body.outputs:
            flow.pin_value(value, state)
    raise UnfollowedError(state.reason)


def _branches(step: Step) -> list[list[Axis]]:
    """Unite what the two branches of an If give; a branch whose result no run can use is left out."""
    node, flow = step.node, step.flow
    bodies = [node.attributes[name].as_graph() for name in BRANCHES]
    for body in bodies:
        _walk(body, flow)
    found: list[list[Axis]] = []
    for index, output in enumerate(node.outputs):
        known = flow.always.dims(output)
        given = [body.outputs[index] for body in bodies]
        axes = [flow.of(value) for value in given]
        ranks = {None if each is None else len(each) for each in axes}
        rank = len(known) if known is not None else ranks.pop() if len(ranks) == 1 else None
        fitting = [each for each in axes if each is not None and len(each) == rank]
        if rank is None or not fitting or None in axes:
            for value in given:
                flow.pin_value(value, step.pinned("its branches give results of other shapes"))
            found.append([step.pinned("its branches give results of other shapes")] * (rank or 0))
            continue
        found.append(_united(step, fitting, [value for value in given if len(flow.of(value) or ()) == rank]))
    return found


def _united(step: Step, axes: list[list[Axis]], values: list[ir.Value]) -> list[Axis]:
    out = list(axes[0])
    if len(axes) == 1:
        return out
    sizes = [step.flow.dims(value) for value in values]
    for place, (one, other) in enumerate(zip(*axes, strict=True)):
        if sizes[0] is not None and sizes[1] is not None and sizes[0][place] == sizes[1][place]:
            out[place] = step.unite(one, other)
        else:
            reason = "its branches give results of other sizes"
            out[place] = step.pin(one, reason)
            step.pin(other, reason)
    return out
