"""Quantization placement: the choice of int8 regions that takes the least time by the target's measured costs.

Every unit (see `units`) reads integers or floats, and each value it makes is output as integers or floats. A
conversion between neighbours costs time in proportion to the tensor; so the choice is a minimum cut (numerics.mincut):

    sum over units     of float or integer time
    sum over values    of Q once, where it is float and some unit reads integers
                       of DQ for each reader, where it is integers and the reader wants floats

Islands of integers, and where they end, follow from that: a unit that is slower on integers still joins where two
conversions would cost more, and a convolution stays on floats where its island is too small to pay for the round trip.
Layers that lose too much are left out by `int8`; those that the runtime does not fuse go back to floats in `static`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from ...graph import constants as float_constants
from ...graph import query
from ...numerics.optimization.mincut import Choices
from ...ops import table as ops
from ...shapes.infer import Shapes
from ...targets.facts import StaticFacts
from .kernel_groups import KernelGroup, Saturation, units
from .output_tail import output_tail

_GUESS = 4096
"""Elements assumed of a tensor of unknown shape. Chosen by judgement; not measured."""

_NEVER = math.inf


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantizer:
    """Tensors with one scale and zero point.

    Args:
        source: the value whose range decides.
        made: values that units output as integers.
        read: float values that are quantized for the units of a graph that read integers.
        least: the lower bound of an absorbed activation function, which the least integer must represent.
        saturation: the source's integers are those that this makes, whatever its range.
    """

    source: ir.Value
    made: list[ir.Value] = field(default_factory=list)
    read: list[tuple[ir.Value, ir.Graph]] = field(default_factory=list)
    least: float | None = None
    saturation: Saturation | None = None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Quantization placement: units in int8, their quantizers, reasons for the rest.

    Args:
        units: the units that do, in the order of the graphs.
        quantizers: how their activations are grouped.
        reasons: layer with a weight that stays on floats -> why.
    """

    units: tuple[KernelGroup, ...]
    quantizers: tuple[Quantizer, ...]
    reasons: dict[ir.Node, str]

    @property
    def products(self) -> list[KernelGroup]:
        """The units that multiply and accumulate."""
        return [unit for unit in self.units if unit.multiplies]

    @property
    def sources(self) -> list[ir.Value]:
        """The values whose ranges are needed."""
        return [quantizer.source for quantizer in self.quantizers if quantizer.saturation is None]


def plan(
    model: ir.Model,
    facts: StaticFacts,
    shapes: Shapes,
    *,
    refused: Mapping[str, str],
    only: Collection[str] | None = None,
    noise_ps: float = 0.0,
) -> Placement:
    """Choose what runs on integers; nothing is changed.

    Args:
        model: at an opset of `facts.opset` or more.
        facts: the target's.
        shapes: of the model, at the sizes that matter.
        refused: labels of nodes that must stay on floats -> why.
        noise_ps: what rounding an element of an activation counts, in picoseconds: more leaves more on floats.
        only: labels of the products and convolutions that may run on integers; None for all.
    """
    rounds = _inside_loops(model)
    chosen: list[KernelGroup] = []
    quantizers: list[Quantizer] = []
    reasons: dict[ir.Node, str] = {}
    for body in query.graphs_outside_functions(model):
        found, why_not = units(body, facts, shapes)
        reasons |= why_not
        tail = output_tail(body, shapes.static) if body is model.graph else set()
        allowed = []
        for unit in found:
            why = next((refused[query.label(n)] for n in unit.nodes if query.label(n) in refused), None)
            if why is None and unit.multiplies and only is not None and unit.label not in only:
                why = "taken back"
            if why is None and tail.issuperset(unit.nodes):
                why = "behind the last large products it would only round what is output"
            if why is None and unit.multiplies and unit.weight is None and body in rounds:
                why = "what a loop carries from round to round would be rounded in each"
            if why is not None:
                if unit.weight is not None:
                    reasons[unit.node] = why
            else:
                allowed.append(unit)
        problem = _Problem(body, allowed, facts, shapes, noise_ps)
        mine, groups = problem.solve()
        chosen += mine
        quantizers += groups
        taken = set(mine)
        for unit in allowed:
            if unit.weight is not None and unit not in taken:
                reasons[unit.node] = problem.why_float(unit)
    return Placement(units=tuple(chosen), quantizers=tuple(quantizers), reasons=reasons)


def _inside_loops(model: ir.Model) -> set[ir.Graph]:
    """Return the bodies that run several times, those inside them included."""
    found: set[ir.Graph] = set()
    for body in query.graphs_outside_functions(model):  # outer ones come first
        for node in body:
            if body in found or query.is_op(node, "Loop", "Scan"):
                found.update(query.bodies(node))
    return found


class _Problem:
    """The choice for one graph."""

    def __init__(
        self, body: ir.Graph, found: list[KernelGroup], facts: StaticFacts, shapes: Shapes, noise_ps: float
    ) -> None:
        self.noise_ps = noise_ps
        self.body, self.units, self.facts, self.shapes = body, found, facts, shapes
        self.choices = Choices()
        self.owner = {node: unit for unit in found for node in unit.nodes}
        self.maker = {output: unit for unit in found for output in unit.outputs}
        self.reads: dict[KernelGroup, int] = {}
        self.hands: dict[KernelGroup, int] = {}
        self.costs: dict[KernelGroup, tuple[float, float]] = {}

    def solve(self) -> tuple[list[KernelGroup], list[Quantizer]]:
        """Return the units that run on integers and the groups of their activations."""
        if not self.units:
            return [], []
        for unit in self.units:
            self._add_unit(unit)
        values = dict.fromkeys(v for unit in self.units for v in (*unit.inputs, *unit.outputs))
        for value in values:
            self._add_value(value)
        answer = self.choices.solve()
        reading = self._with_layers({unit for unit in self.units if answer[self.reads[unit]]})
        return self._groups(reading, {unit for unit in reading if answer[self.hands[unit]]})

    def _with_layers(self, reading: set[KernelGroup]) -> set[KernelGroup]:
        """Return the units of those islands in which something is multiplied; the others would only lose accuracy."""
        island = {unit: unit for unit in reading}

        def root(unit: KernelGroup) -> KernelGroup:
            while island[unit] is not unit:
                island[unit] = unit = island[island[unit]]
            return unit

        for unit in (u for u in self.units if u in reading):
            for value in unit.inputs:
                maker = self.maker.get(value)
                if maker in reading and maker is not None:
                    island[root(unit)] = root(maker)
        kept = {root(unit) for unit in reading if unit.multiplies}
        return {unit for unit in reading if root(unit) in kept}

    def why_float(self, unit: KernelGroup) -> str:
        """Say why an integer kernel was not chosen."""
        plain, integer = self.costs[unit]
        if integer >= plain:
            return "faster on floats on the target"
        return f"integers would save {(plain - integer) / 1e6:.3g} us, less than their conversions cost"

    def _add_unit(self, unit: KernelGroup) -> None:
        size = self._work(unit)
        plain, integer = size * unit.facts.float_ps, size * unit.facts.integer_ps
        if self._is_quantizer_itself(unit):
            integer = 0.0
        elif unit.saturation is not None:
            integer += size * self.noise_ps
        self.costs[unit] = plain, integer
        reads = self.choices.variable(cost_yes=integer, cost_no=plain)
        self.reads[unit] = self.hands[unit] = reads
        if unit.facts.float_output:
            hands = self.choices.variable()
            self.choices.split(hands, reads, _NEVER)
            self.hands[unit] = hands
        if unit.bias is not None and unit.facts.bias == "none":
            self.choices.add(self.hands[unit], cost_yes=_NEVER)

    def _add_value(self, value: ir.Value) -> None:
        """Add what it costs where a value's maker and its readers don't agree."""
        costs, elements = self.facts.conversions, self._elements(value)
        maker = self.maker.get(value)
        made = None if maker is None else self.hands[maker]
        node_ps = 1e3 * costs.node_ns
        quantize = (
            node_ps
            + elements * costs.quantize_ps
            + self._layout(value, [u for u, _ in self._uses(value) if u is not None])
        )
        dequantize = node_ps + elements * costs.dequantize_ps + self._layout(value, [] if maker is None else [maker])
        some = self.choices.variable(cost_yes=elements * self.noise_ps)
        if made is None:
            self.choices.add(some, cost_yes=quantize)
        else:
            self.choices.split(some, made, quantize)
        for reader, node in self._uses(value):
            if reader is not None:
                self.choices.split(self.reads[reader], some, _NEVER)
                if made is not None:
                    self.choices.split(made, self.reads[reader], dequantize)
            elif made is not None and not (node is not None and query.is_op(node, "Shape", "Size")):
                self.choices.add(made, cost_yes=dequantize)

    def _is_quantizer_itself(self, unit: KernelGroup) -> bool:
        """Say whether a hard sigmoid only has to be the quantizer of what another unit makes for nobody else."""
        if unit.saturation is None or unit.saturation.multiplies_input:
            return False
        maker = self.maker.get(unit.inputs[0])
        return (
            maker is not None
            and maker.facts.form != "moves"
            and maker.saturation is None
            and query.sole_consumer(unit.inputs[0]) is unit.node
        )

    def _uses(self, value: ir.Value) -> Iterator[tuple[KernelGroup | None, ir.Node | None]]:
        """Yield who reads a value: units through their activations, other nodes, and None for a graph output."""
        inside = self.maker.get(value)
        for use in value.uses():
            unit = self.owner.get(use.node)
            if unit is None or use.node is not unit.node or use.idx not in unit.reads:
                unit = None
            if inside is None and use.node.graph is not self.body:
                continue  # a value from outside is somebody else's matter there
            yield unit, use.node
        if value.is_graph_output():
            yield None, None

    def _layout(self, value: ir.Value, around: list[KernelGroup]) -> float:
        """Return what it costs to bring a feature map into the layout of integer convolutions, or out of it."""
        if not any(query.is_op(unit.node, "Conv") for unit in around):
            return 0.0
        return self._elements(value) * self.facts.conversions.layout_ps

    def _work(self, unit: KernelGroup) -> float:
        """Return the multiply-accumulates of a unit, or the elements of its largest tensor."""
        if unit.facts.form == "compute":
            count = ops.spec(unit.node).macs
            shape = self.shapes.static
            macs = count and count(
                unit.node, [shape(v) for v in unit.node.inputs], [shape(v) for v in unit.node.outputs]
            )
            if macs:
                return macs
            weight = None if unit.weight is None else float_constants.tensor(unit.node.inputs[unit.weight])
            return _GUESS * (64 if weight is None else max(1, weight.size // max(1, query.dims(weight)[0])))
        return max(self._elements(v) for v in (*unit.inputs, *unit.outputs))

    def _elements(self, value: ir.Value) -> int:
        dims = self.shapes.static(value)
        return _GUESS if dims is None else math.prod(dims)

    def _groups(
        self, reading: set[KernelGroup], handing: set[KernelGroup]
    ) -> tuple[list[KernelGroup], list[Quantizer]]:
        """Return the units that read integers, and their activations by scale: those that are moved share one."""
        made: dict[ir.Value, Quantizer] = {}
        read: dict[ir.Value, Quantizer] = {}
        chosen = [unit for unit in self.units if unit in reading]
        for unit in chosen:
            sigmoid = unit.saturation is not None and not unit.saturation.multiplies_input
            if sigmoid and self._is_quantizer_itself(unit):
                made.pop(unit.inputs[0], None)
            for value in unit.inputs if not sigmoid else ():
                if value not in made and value not in read:
                    read[value] = Quantizer(source=value, read=[(value, self.body)])
            if unit not in handing:
                continue
            output = unit.outputs[0]
            if sigmoid:
                made[output] = Quantizer(source=output, saturation=unit.saturation)
            elif unit.facts.form == "moves":
                group = made.get(unit.inputs[0]) or read[unit.inputs[0]]
                group.made.extend(unit.outputs)
                made.update(dict.fromkeys(unit.outputs, group))
            else:
                made[output] = Quantizer(source=output, made=[output], least=unit.least)
        return chosen, list({id(g): g for g in (*made.values(), *read.values())}.values())
