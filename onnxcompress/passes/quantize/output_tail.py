"""Nodes behind a model's last products: the decoding of boxes, sigmoids of scores, the choice of detections.

    ... -> Conv -> Reshape -> Concat -> Softmax -> Conv (few products) -> Mul -> Concat with scores -> outputs
                   `------------------------------- tail --------------------------------------'

Integers save next to nothing there, and whatever they round is part of the result: boxes in pixels and scores between
0 and 1 that a Concat joins would share one scale.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ...graph import query
from ...ops import table as ops

ShapeOf = Callable[[ir.Value], tuple[int, ...] | None]

_FEW = 1e-3
"""Part of all multiply-accumulates up to which a product counts as decoding: the expectation over 16 bins in a YOLOv8
has .00012 of them, the last convolution for each of its scales .001 and more. Chosen by judgement."""


def output_tail(graph: ir.Graph, shape_of: ShapeOf) -> set[ir.Node]:
    """Return the nodes of a graph behind which no product is left, but for those with a part of 0.001 of all MACs.

    Nothing is returned where no product with more is there. A product whose MACs are not known counts as large, and so
    does what a control-flow node does.

    Args:
        graph: the main graph.
        shape_of: value -> its shape, None where it is not known.
    """
    macs: dict[ir.Node, float | None] = {}
    for node in graph:
        count = ops.spec(node).macs
        if count is not None:
            inputs = [None if value is None else shape_of(value) for value in node.inputs]
            macs[node] = count(node, inputs, [shape_of(value) for value in node.outputs])
    least = _FEW * sum(count for count in macs.values() if count is not None)
    large = {node for node, count in macs.items() if count is None or count > least}
    large.update(node for node in graph if query.bodies(node))
    before: set[ir.Node] = set()
    waiting = list(large)
    while waiting:
        node = waiting.pop()
        for value in node.inputs:
            maker = None if value is None else value.producer()
            if maker is not None and maker not in before and maker not in large:
                before.add(maker)
                waiting.append(maker)
    return set(graph) - before - large if large else set()
