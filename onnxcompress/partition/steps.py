"""Steps of a model's main graph and what each reads: what a model is split between.

    ids --Shape--> n ------------------+            companions: Shape, W's Cast: made anew in each part that reads them
    ids --Gather--> h --MatMul--> y --Reshape--> z  steps:      Gather, MatMul, Reshape
                        W --Cast--+

A node that constants alone decide (weights on their way through Cast, DequantizeLinear, Transpose), or the shapes of
the model's inputs (shape arithmetic, while it stays small), has no place of its own: it is a companion of its
readers. So is a DequantizeLinear: integers are passed on and not floats, and the runtime finds it beside the
operator that it is fused with. Every other node is a step. If, Loop and Scan are one step each, with all they hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..graph import query
from ..graph.query import topological
from ..numerics.optimization.partition_dp import Steps
from ..ops import table as ops
from .value_types import ValueSize

SMALL_BYTES = 1024
"""Shape arithmetic up to this size is made anew in each part; larger results are passed on."""
PAGE_BYTES = 4096
"""Page size of the systems that are supported."""
_NEARBY_BYTES = 16 * PAGE_BYTES
"""Bytes that the system maps around a byte that is read from a mapped file: Linux's fault-around of 16 pages."""


@dataclass(frozen=True)
class Needs:
    """Values and constants that a step or companion reads, its companions' reads included."""

    values: frozenset[ir.Value] = frozenset()
    """Inputs of the graph, and outputs of other steps."""
    constants: frozenset[ir.Value] = frozenset()
    """Constants, and what companions make of constants alone."""
    companions: frozenset[ir.Node] = frozenset()


@dataclass(frozen=True)
class SplitSteps:
    """The steps of a model in order.

    Args:
        model: it must not be changed meanwhile.
        steps: nodes of the main graph, topologically sorted.
        needs: what each step reads.
        companions: the nodes that have no place of their own -> what they read.
        position: the index of each node, companions included, by which the nodes of a part are sorted.
    """

    model: ir.Model
    steps: Sequence[ir.Node]
    needs: Mapping[ir.Node, Needs]
    companions: Mapping[ir.Node, Needs]
    position: Mapping[ir.Node, int] = field(repr=False)

    def reordered(self, steps: Sequence[ir.Node]) -> SplitSteps:
        """Return the same flow in another order of its steps, which must be topological too."""
        return SplitSteps(self.model, list(steps), self.needs, self.companions, self.position)

    def ancestors(self, node: ir.Node) -> set[ir.Node]:
        """Return the steps that a step needs, itself included."""
        found = {node}
        pending = [node]
        while pending:
            for value in self.needs[pending.pop()].values:
                producer = value.producer()
                if producer is not None and producer not in found:
                    found.add(producer)
                    pending.append(producer)
        return found

    def last_read(self) -> dict[ir.Value, int]:
        """Return the last step that reads each value."""
        return {value: step for step, node in enumerate(self.steps) for value in self.needs[node].values}

    def last_wanted(self) -> dict[ir.Value, int]:
        """Return the last step that reads each value, the number of steps for outputs of the model."""
        made = self.made()
        outputs = {value: len(self.steps) for value in self.model.graph.outputs if value in made}
        return self.last_read() | outputs

    def made(self) -> dict[ir.Value, int]:
        """Return the step that makes each value."""
        return {output: step for step, node in enumerate(self.steps) for output in node.outputs}

    def nodes(self, start: int, end: int) -> list[ir.Node]:
        """Return the nodes of a part in order: its steps and their companions."""
        chosen = self.steps[start:end]
        helpers = dict.fromkeys(helper for node in chosen for helper in self.needs[node].companions)
        return sorted((*helpers, *chosen), key=self.position.__getitem__)


def flow(model: ir.Model, facts: Mapping[ir.Value, ValueSize]) -> SplitSteps:
    """Return the flow of a model; `facts` are the sizes by which shape arithmetic counts as small.

    Raises:
        ModelError: the nodes need each other in a circle.
    """
    order = topological(model.graph)
    outputs = set(model.graph.outputs)
    inputs = set(model.graph.inputs)
    companions: dict[ir.Node, Needs] = {}
    needs: dict[ir.Node, Needs] = {}
    for node in order:
        read = query.reads(node)
        own = _needs(read, companions)
        if _may_accompany(node, read, inputs, companions, outputs) and (
            not own.values
            or node.op_type == "DequantizeLinear"
            or all(facts.get(output, _UNKNOWN).bytes <= SMALL_BYTES for output in node.outputs)
        ):
            companions[node] = own
        else:
            needs[node] = own
    return SplitSteps(model, list(needs), needs, companions, {node: index for index, node in enumerate(order)})


def steps_of(found: SplitSteps, facts: Mapping[ir.Value, ValueSize]) -> Steps:
    """Return the arrays of a flow at the sizes of one feed, by which it is cut."""
    count = len(found.steps)
    last, made = found.last_wanted(), found.made()
    values = [*(value for value in last if value not in made), *made]
    constants: dict[ir.Value, list[int]] = {}
    own: list[tuple[int, float]] = []
    for step, node in enumerate(found.steps):
        looked_up = _looked_up(node, facts)
        own += [(step, size) for size in (*looked_up.values(), _stored_bytes(node)) if size]
        for value in found.needs[node].constants - looked_up.keys():
            constants.setdefault(value, []).append(step)
    for value in found.model.graph.outputs:  # what no step makes is given with the last part
        if value not in made and value not in found.model.graph.inputs and count:
            constants.setdefault(value, []).append(count - 1)
    return Steps(
        count=count,
        made=np.array([made.get(value, -1) for value in values], np.int64),
        last=np.array([last.get(value, made.get(value)) for value in values], np.int64),
        sizes=np.array([_value_bytes(value, facts) for value in values], np.float64),
        uses=[*constants.values(), *([step] for step, _ in own)],
        weights=np.array([*(_constant_bytes(v, facts) for v in constants), *(size for _, size in own)], np.float64),
        inner=np.array([_body_bytes(node, facts) + _anew_bytes(node, found, facts) for node in found.steps]),
    )


def _may_accompany(
    node: ir.Node,
    read: Sequence[ir.Value],
    inputs: set[ir.Value],
    companions: Mapping[ir.Node, Needs],
    outputs: set[ir.Value],
) -> bool:
    is_known = node.domain in query.STANDARD_DOMAINS or node.op_type == "DequantizeLinear"
    if not is_known or ops.is_nondeterministic(node) or query.bodies(node) or not outputs.isdisjoint(node.outputs):
        return False
    if query.is_op(node, "Shape", "Size") and read and read[0] in inputs and not read[0].is_initializer():
        return True
    known = read[1:] if node.op_type == "DequantizeLinear" else read
    return all(value not in inputs and _is_decided(value, companions) for value in known)


def _is_decided(value: ir.Value, companions: Mapping[ir.Node, Needs]) -> bool:
    """Say whether constants or the shapes of inputs decide a value, and not the numbers that are fed."""
    maker = value.producer()
    if maker is None or maker not in companions:
        return query.constant_tensor(value) is not None
    return maker.op_type != "DequantizeLinear" or not companions[maker].values


def _needs(read: Iterable[ir.Value], companions: Mapping[ir.Node, Needs]) -> Needs:
    values: set[ir.Value] = set()
    constants: set[ir.Value] = set()
    helpers: set[ir.Node] = set()
    for value in read:
        node = value.producer()
        if node is not None and node in companions:
            inner = companions[node]
            helpers |= {node, *inner.companions}
            constants |= inner.constants if inner.values else {value, *inner.constants}
            values |= inner.values
        elif value.is_initializer():
            constants.add(value)
            if value.is_graph_input():
                values.add(value)
        else:
            values.add(value)
    return Needs(frozenset(values), frozenset(constants), frozenset(helpers))


_UNKNOWN = ValueSize(None, math.inf, None)
_NONE = Needs()


def _value_bytes(value: ir.Value, facts: Mapping[ir.Value, ValueSize]) -> float:
    """Return the bytes of what is fed or made; outputs that nobody names, and defaults of inputs, are none."""
    known = facts.get(value, _UNKNOWN).bytes
    return known if math.isfinite(known) and not value.is_initializer() else 0.0


def _constant_bytes(value: ir.Value, facts: Mapping[ir.Value, ValueSize]) -> float:
    """Return what a constant takes in memory: a stored one its bytes, a made one what it is made into."""
    tensor = value.const_value if value.is_initializer() else query.constant_tensor(value)
    if tensor is not None:
        return float(tensor.nbytes)
    known = facts.get(value, _UNKNOWN).bytes
    return known if math.isfinite(known) else 0.0


def _anew_bytes(node: ir.Node, found: SplitSteps, facts: Mapping[ir.Value, ValueSize]) -> float:
    """Return the bytes of what companions make of values for a step, and not of constants alone."""
    made = [
        value
        for value in query.reads(node)
        if (maker := value.producer()) and found.companions.get(maker, _NONE).values
    ]
    return sum(_value_bytes(value, facts) for value in made)


def _looked_up(node: ir.Node, facts: Mapping[ir.Value, ValueSize]) -> dict[ir.Value, float]:
    """Return the tables of which a step reads some rows, and the bytes that these take: the rest stays on disk."""
    found: dict[ir.Value, float] = {}
    for weight in ops.spec(node).weights:
        table = node.inputs[weight.port] if weight.is_table and weight.port < len(node.inputs) else None
        tensor = query.constant_tensor(table)
        if table is None or tensor is None or not table.is_initializer() or query.attribute(node, "axis", 0) != 0:
            continue
        rows = query.dims(tensor)[0] if tensor.shape.rank() else 0
        result = facts.get(node.outputs[0], _UNKNOWN)
        if not rows or result.dtype is None or not math.isfinite(result.bytes):
            continue
        row_bytes = tensor.nbytes / rows
        count = result.bytes * 8 / result.dtype.bitwidth / max(tensor.size / rows, 1)
        if sum(value is table for value in query.reads(node)) == 1:
            found[table] = min(float(tensor.nbytes), count * (row_bytes + _NEARBY_BYTES))
    return found


def _body_bytes(node: ir.Node, facts: Mapping[ir.Value, ValueSize]) -> float:
    """Return what the bodies of a step take while it runs: the most of what one makes that is alive at once."""
    return max((_one_body_bytes(body, facts) for body in query.bodies(node)), default=0.0)


def _one_body_bytes(body: ir.Graph, facts: Mapping[ir.Value, ValueSize]) -> float:
    last: dict[ir.Value, int] = {}
    nodes = list(body)
    for index, node in enumerate(nodes):
        last.update(dict.fromkeys(query.reads(node), index))
    last.update(dict.fromkeys(body.outputs, len(nodes)))
    ending: dict[int, float] = {}
    live = peak = 0.0
    for index, node in enumerate(nodes):
        for output in node.outputs:
            known = facts.get(output, _UNKNOWN).bytes
            size = known if math.isfinite(known) and not query.is_op(node, "Constant") else 0.0
            live += size
            end = last.get(output, index)
            ending[end] = ending.get(end, 0.0) + size
        peak = max(peak, live + _body_bytes(node, facts))
        live -= ending.pop(index, 0.0)
    return peak


def _stored_bytes(node: ir.Node) -> float:
    """Return the bytes of all weights in the bodies of a step; the runtime holds those of both branches of an If."""
    total = 0.0
    for body in query.bodies(node):
        total += sum(float(v.const_value.nbytes) for v in body.initializers.values() if v.const_value is not None)
        for inner in body:
            tensor = query.constant_tensor(inner.outputs[0]) if query.is_op(inner, "Constant") else None
            total += _stored_bytes(inner) + (0.0 if tensor is None else float(tensor.nbytes))
    return total
