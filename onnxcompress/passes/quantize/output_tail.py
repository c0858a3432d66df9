"""Nodes behind a model's last products: the decoding of boxes, sigmoids of scores, the choice of detections.

    ... -> Conv -> Reshape -> Concat -> Softmax -> Conv (few products) -> Mul -> Concat with scores -> outputs
                   `------------------------------- tail --------------------------------------'

Integers save next to nothing there, and whatever they round is part of the result: boxes in pixels and scores between
0 and 1 that a Concat joins would share one scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from ...graph import constants as float_constants
from ...graph import query
from ...ops import table as ops

ShapeOf = Callable[[ir.Value], tuple[int, ...] | None]

_FEW = 1e-3
"""Part of all multiply-accumulates, and of all weights, up to which a product counts as decoding: the expectation over
16 bins in a YOLOv8 has .00012 and .000005 of them, the last convolution for each of its scales .001 and more, the
classifier of a ResNet-50 .0005 of the former and .08 of the latter. Chosen by judgement."""


def output_tail(graph: ir.Graph, shape_of: ShapeOf) -> set[ir.Node]:
    """Return the nodes of a graph behind which no product is left, but for those with a part of 0.001 at most.

    Nothing is returned where there is no larger product. A product whose MACs are not known is large, and so is a
    control-flow node.

    Args:
        graph: the main graph.
        shape_of: value -> its shape, None where it is not known.
    """
    macs: dict[ir.Node, float | None] = {}
    weights: dict[ir.Node, int] = {}
    for node in graph:
        count = ops.spec(node).macs
        if count is not None:
            inputs = [None if value is None else shape_of(value) for value in node.inputs]
            macs[node] = count(node, inputs, [shape_of(value) for value in node.outputs])
            constants = (float_constants.tensor(value) for value in node.inputs)
            weights[node] = sum(tensor.size for tensor in constants if tensor is not None)
    least = _FEW * sum(count for count in macs.values() if count is not None)
    most_weights = _FEW * sum(weights.values())
    large = {node for node, count in macs.items() if count is None or count > least or weights[node] > most_weights}
    large.update(node for node in graph if query.bodies(node))
    before: set[ir.Node] = set()
    waiting = list(large)
    while waiting:
        node = waiting.pop()
        for value in _reads(node):
            maker = value.producer()
            if maker is not None and maker.graph is graph and maker not in before and maker not in large:
                before.add(maker)
                waiting.append(maker)
    return set(graph) - before - large if large else set()


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node reads, its bodies included."""
    yield from (value for value in node.inputs if value is not None)
    for body in query.bodies(node):
        yield from (value for value in body.outputs if value is not None)
        for inner in body:
            yield from _reads(inner)
