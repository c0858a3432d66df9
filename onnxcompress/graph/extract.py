"""Cut nodes out of a model as a model of their own, whose weights stay on disk until they are used.

x ... h --MatMul--Relu--> y ...        extract([MatMul, Relu], inputs=[h], outputs=[y])  -->  h --MatMul--Relu--> y
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from . import query

Typed = Callable[[ir.Value], tuple[ir.TypeProtocol | None, ir.Shape | None]]
"""value -> its type and shape as far as they are known."""


def extract(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    *,
    typed: Typed,
    name: str = "region",
) -> ir.Model:
    """Return a model of some nodes of the main graph; tensors are shared with the whole model, nothing else.

    Args:
        model: is not changed, but for the order of nodes in bodies where it is none.
        nodes: in topological order; everything that they read is made by them, an initializer, or in `inputs`.
        inputs: what has to be fed. An initializer among them, one that callers may override, keeps its default.
        outputs: what the nodes make, or initializers.
        typed: gives what the inputs and outputs declare; an unknown type of an output is left to the runtime.
        name: of the graph.
    """
    weights = {value.name: value for node in nodes for value in query.reads(node) if value.is_initializer()}
    weights |= {value.name: value for value in (*inputs, *outputs) if value.is_initializer()}
    view = ir.GraphView(
        inputs,
        outputs,
        nodes=nodes,
        initializers=list(weights.values()),
        opset_imports=dict(model.opset_imports),
        name=name,
    )
    functions = [function.clone() for function in _called(model, nodes)]
    try:
        body = view.clone()
    except RuntimeError:  # onnx_ir copies only what is in order
        for inner in (inner for node in nodes for inner in query.bodies(node)):
            inner.sort()
        body = view.clone()
    piece = ir.Model(body, ir_version=model.ir_version, functions=functions)
    for own, value in zip((*piece.graph.inputs, *piece.graph.outputs), (*inputs, *outputs), strict=True):
        own.type, own.shape = typed(value)
    return piece


def _called(model: ir.Model, nodes: Sequence[ir.Node]) -> list[ir.Function]:
    """Return the local functions that nodes call, directly, in their bodies or through others."""
    if not model.functions:
        return []
    found: dict[ir.OperatorIdentifier, ir.Function] = {}
    pending = list(nodes)
    while pending:
        node = pending.pop()
        pending += [inner for body in query.bodies(node) for inner in body]
        identifier = node.op_identifier()
        if identifier in model.functions and identifier not in found:
            found[identifier] = model.functions[identifier]
            pending += list(found[identifier])
    return [function for identifier, function in model.functions.items() if identifier in found]
