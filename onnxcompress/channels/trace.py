"""The walk over a graph that collects how its channels are related: one step a node, bodies where they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from ..graph import query
from ..shapes import infer as shapes
from ..shapes import resolve, symbolic
from . import rules
from .relations import NodeContext, Relations
from .types import Axis, Pin, UnfollowedError

if TYPE_CHECKING:
    import onnx_ir as ir

BRANCHES = ("then_branch", "else_branch")


def follow(model: ir.Model, feed: Mapping[str, np.ndarray]) -> Relations:
    """Relate the channels of all values of the main graph and its bodies at the shapes of a feed.

    Names of values must be unique across bodies (`normalize` sees to that); what is not known pins.
    """
    always = symbolic.interpret(model, shapes.infer(model))
    flow = Relations(at=resolve.facts_at(model, feed, always), always=always, opset=query.opset(model))
    for value in model.graph.inputs:
        _set_pinned(flow, value, Pin(str(value.name), "graph input"))
    _walk(model.graph, flow)
    for value in model.graph.outputs:
        flow.pin_value(value, Pin(str(value.name), "graph output"))
    return flow


def _set_pinned(flow: Relations, value: ir.Value, pin: Pin) -> None:
    rank = flow.rank(value)
    if rank is not None:
        flow.axes[value] = [pin] * rank


def _walk(body: ir.Graph, flow: Relations) -> None:
    for node in body:
        if not query.is_op(node, "Constant"):
            _step(node, flow)


def _step(node: ir.Node, flow: Relations) -> None:
    step = NodeContext(node, flow)
    refusal = "its channels are not followed"
    found: Sequence[list[Axis] | None] = []
    try:
        if query.is_op(node, "If"):
            found = _branches(step)
        elif query.bodies(node):
            _loop(node, flow)
        else:
            links = rules.rule(node)
            if links is None:
                raise UnfollowedError(f"the channels of {node.op_type} are not followed")
            found = links(step)
        _check(node, found, flow)
    except UnfollowedError as error:
        refusal, found = str(error), []
        step.followed.clear()
    pin = Pin(query.label(node), refusal)
    for port, value in enumerate(node.inputs):
        if value is not None and port not in step.followed:
            flow.pin_value(value, pin)
    for index, output in enumerate(node.outputs):
        axes = found[index] if index < len(found) else None
        if axes is not None:
            flow.axes[output] = axes
        else:
            _set_pinned(flow, output, pin)


def _check(node: ir.Node, found: Sequence[list[Axis] | None], flow: Relations) -> None:
    """Refuse axes that are not as long as the node's outputs are at the feed."""
    for output, axes in zip(node.outputs, found, strict=False):
        dims = flow.dims(output)
        if dims is None or axes is None:
            continue
        lengths = [n if isinstance(axis, Pin) else len(axis) for axis, n in zip(axes, dims, strict=False)]
        if len(axes) != len(dims) or tuple(lengths) != dims:
            raise UnfollowedError(f"{output.name} has another shape than follows from its inputs")


def _loop(node: ir.Node, flow: Relations) -> NoReturn:
    """Follow what a Loop or Scan computes inside; its state from iteration to iteration is kept."""
    state = Pin(query.label(node), f"state of a {node.op_type}")
    for body in query.bodies(node):
        if query.is_op(node, "Loop"):
            _carry_shapes(node, body, flow)
        for value in body.inputs:
            _set_pinned(flow, value, state)
        _walk(body, flow)
        for value in body.outputs:
            flow.pin_value(value, state)
    raise UnfollowedError(state.reason)


def _carry_shapes(node: ir.Node, body: ir.Graph, flow: Relations) -> None:
    """Note the shapes of a Loop's state, where the feed's run has shown that it keeps them from round to round."""
    for first, state, last in zip(node.inputs[2:], body.inputs[2:], body.outputs[1:], strict=False):
        dims, dtype = flow.dims(first), None if last is None else flow.dtype(last)
        is_kept = dims is not None and dims == flow.dims(last) and flow.dims(state) is None
        if is_kept and dims is not None and dtype is not None:
            flow.at.learn(state, dims, dtype)


def _branches(step: NodeContext) -> list[list[Axis] | None]:
    """Unite what the two branches of an If give; a branch whose result no run can use is left out."""
    node, flow = step.node, step.flow
    bodies = [node.attributes[name].as_graph() for name in BRANCHES]
    for body in bodies:
        _walk(body, flow)
    found: list[list[Axis] | None] = []
    for index, output in enumerate(node.outputs):
        given = [body.outputs[index] for body in bodies]
        axes = [flow.of(value) for value in given]
        known = flow.always.dims(output)
        ranks = {None if each is None else len(each) for each in axes}
        rank = len(known) if known is not None else ranks.pop() if len(ranks) == 1 else None
        fitting = [(value, each) for value, each in zip(given, axes, strict=True) if each and len(each) == rank]
        if fitting and None not in axes:
            found.append(_united(step, fitting))
            continue
        pin = step.pinned("its branches give results of other shapes")
        for value in given:
            flow.pin_value(value, pin)
        found.append(None if rank is None else [pin] * rank)
    return found


def _united(step: NodeContext, given: list[tuple[ir.Value, list[Axis]]]) -> list[Axis]:
    """Return the axes of what one branch gives, or those of both united."""
    if len(given) == 1:
        return given[0][1]
    (first, one), (second, other) = given
    sizes, others = step.flow.dims(first), step.flow.dims(second)
    out = list(one)
    for place, (axis, beside) in enumerate(zip(one, other, strict=True)):
        if sizes is not None and others is not None and sizes[place] == others[place]:
            out[place] = step.unite(axis, beside)
        else:
            out[place] = step.pin(axis, "its branches give results of other sizes")
            step.pin(beside, "its branches give results of other sizes")
    return out
