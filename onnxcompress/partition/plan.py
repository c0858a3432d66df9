"""Split planning: admissible split points, their cost, and the choice among them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ..base.quantities import show_bytes
from ..data import input_specs as specs
from ..errors import LimitError, ModelError, UsageError
from ..graph import query
from ..numerics.optimization import partition_dp as numeric
from ..ops import table as ops
from . import steps as split_steps
from .value_types import ValueSize

_MOST_CUTS = 1200
"""Split points that the table of part sizes has at most: it is square. Chosen by judgement; not measured."""


@dataclass(frozen=True, kw_only=True)
class CutPoint:
    """A value at which a model may be cut in two, as `--at` does.

    Args:
        name: the value.
        sent: all values that the second side needs of the first, inputs of the model among them.
        sent_bytes: of these, at the sizes of the feed.
        macs: multiply-accumulates before and after the cut.
        weight_bytes: of the weights before and after the cut; one that both sides read counts in both.
    """

    name: str
    sent: tuple[str, ...]
    sent_bytes: int
    macs: tuple[int, int]
    weight_bytes: tuple[int, int]

    def as_json(self) -> dict[str, Any]:
        """Return the cut as JSON-serialisable values."""
        return {
            "name": self.name,
            "sent": list(self.sent),
            "sent_bytes": self.sent_bytes,
            "macs": list(self.macs),
            "weight_bytes": list(self.weight_bytes),
        }


@dataclass(frozen=True, kw_only=True)
class Suggestions:
    """Places to cut a model in two, first to last.

    Args:
        cuts: the places.
        input_bytes: of the model's inputs, which could be sent instead.
        sizes: input -> shape, of the feed that all bytes are for.
    """

    cuts: Sequence[CutPoint]
    input_bytes: int
    sizes: Mapping[str, Sequence[int]]

    def as_json(self) -> dict[str, Any]:
        """Return the suggestions as JSON-serialisable values."""
        return {
            "schema": 1,
            "sizes": {name: list(shape) for name, shape in self.sizes.items()},
            "input_bytes": self.input_bytes,
            "cuts": [cut.as_json() for cut in self.cuts],
        }


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The cuts that are made: parts [i, j) of a flow, whose steps `--at` may have reordered.

    Args:
        plan: the flow and its sizes.
        cuts: the steps before which is cut, 0 and the number of steps included.
        notes: what is to be said about it.
    """

    plan: SplitPlan
    cuts: Sequence[int]
    notes: tuple[str, ...] = ()

    def parts(self) -> list[tuple[int, int]]:
        """Return the parts as steps [i, j)."""
        return list(zip(self.cuts, self.cuts[1:], strict=False))


class SplitPlan:
    """A flow with the sizes of one feed.

    Raises:
        ModelError: there is nothing to cut.
    """

    def __init__(self, found: split_steps.SplitSteps, facts: Mapping[ir.Value, ValueSize]) -> None:
        if not found.steps:
            raise ModelError("has no node that depends on its inputs: nothing to split")
        self.flow = found
        self.facts = facts
        self.steps = split_steps.steps_of(found, facts)
        self.macs = [_macs(node, facts) for node in found.steps]
        self._made = found.made()
        self._last_read = found.last_read()

    def within(self, budget: int) -> Bounds:
        """Return parts that keep a budget in bytes, each half of it where that can be.

        Raises:
            LimitError: there are none; says what could be kept, and which node sets that.
        """
        possible, table = self._table()
        least, (start, end) = numeric.least_peak(table)
        if least > budget:
            raise self._impossible(budget, least, start, end)
        if table.peak[0, -1] <= budget:
            return Bounds(plan=self, cuts=[0, self.steps.count], notes=("one part: the whole model keeps the budget",))
        chosen = numeric.parts_within(table, max(budget / 2, least))
        return Bounds(plan=self, cuts=[int(possible[index]) for index in chosen])

    def into(self, count: int) -> Bounds:
        """Return `count` parts, or as many as can be made."""
        possible, table = self._table()
        most = min(count, len(possible) - 1)
        notes = (f"{most} and not {count} parts: there is no further place to cut",) if most < count else ()
        return Bounds(plan=self, cuts=[int(possible[index]) for index in numeric.exactly(table, most)], notes=notes)

    def at(self, names: Sequence[str]) -> Bounds:
        """Return parts that end with values of these names: each holds what its value needs and none before has.

        Raises:
            UsageError: there is no such value, or it is no place to cut.
        """
        chosen = sorted({self._cut_node(name) for name in names}, key=self.flow.position.__getitem__)
        done: dict[ir.Node, None] = {}
        cuts = [0]
        for node in chosen:
            needed = self.flow.ancestors(node)
            done |= dict.fromkeys(step for step in self.flow.steps if step in needed)
            cuts.append(len(done))
        if cuts[-1] == self.steps.count:
            raise UsageError(f"nothing comes after {query.label(chosen[-1])!r}", where="--at")
        done |= dict.fromkeys(self.flow.steps)
        plan = SplitPlan(self.flow.reordered(list(done)), self.facts)
        for cut in cuts[1:]:
            plan.check_cut(cut)
        return Bounds(plan=plan, cuts=[*cuts, self.steps.count])

    def check_cut(self, position: int) -> None:
        """Raise UsageError where something that can't be passed on would have to be at a split point."""
        for value, last in self._last_read.items():
            if self._made.get(value, position) < position <= last and not self._flows(value):
                raise UsageError(
                    f"{value.name or 'an unnamed value'!r} can't be passed from part to part", where="--at"
                )

    def suggestions(self, most: int) -> list[CutPoint]:
        """Return the place to cut in each of `most` stretches of equal work at which the fewest bytes are passed on."""
        possible = self._possible()[1:-1]
        if not len(possible):
            return []
        work = np.cumsum([macs or 0 for macs in self.macs])
        share = (work if work[-1] else np.arange(1, self.steps.count + 1))[possible - 1]
        stretch = np.minimum(share * most // max(int(share[-1]), 1), most - 1)
        price = numeric.crossing(self.steps, inputs=True)[possible]
        cheapest = [int(possible[stretch == each][np.argmin(price[stretch == each])]) for each in np.unique(stretch)]
        names = dict.fromkeys(value for position in cheapest if (value := self._last_made(position)) is not None)
        return [cut for value in names if (cut := self._cut(value)) is not None]

    def _table(self) -> tuple[np.ndarray, numeric.Table]:
        possible = numeric.thinned(self.steps, self._possible(), _MOST_CUTS)
        return possible, numeric.table(self.steps, possible)

    def _possible(self) -> np.ndarray:
        """Return the steps before which may be cut: where all that is passed on is tensors with a name.

        Between an operator and the QuantizeLinear that takes its result there is no cut: the runtime makes one
        integer operator of them where they are together.
        """
        hindered = np.zeros(self.steps.count + 1, bool)
        for value, last in self._last_read.items():
            if value in self._made and (not self._flows(value) or _is_quantized_next(value)):
                hindered[self._made[value] + 1 : last + 1] = True
        return np.flatnonzero(~hindered)

    def _flows(self, value: ir.Value) -> bool:
        fact = self.facts.get(value)
        return bool(value.name) and fact is not None and fact.dtype is not None and bool(specs.dtype_text(fact.dtype))

    def _last_made(self, position: int) -> ir.Value | None:
        """Return the value that was made last among those that are passed on at a step."""
        crossing = [v for v, last in self._last_read.items() if self._made.get(v, position) < position <= last]
        return max(crossing, key=self._made.__getitem__, default=None)

    def _cut(self, value: ir.Value) -> CutPoint | None:
        """Return what a cut after a value costs; None where nothing comes after it, or something can't be sent."""
        producer = value.producer()
        assert producer is not None
        first = self.flow.ancestors(producer)
        before = [node in first for node in self.flow.steps]
        if all(before):
            return None
        needed = {v for node in self.flow.steps if node not in first for v in self.flow.needs[node].values}
        sent = [v for v in needed if (v.producer() is None and not v.is_initializer()) or v.producer() in first]
        sent.sort(key=lambda v: self._made.get(v, -1))
        if not all(self._flows(each) for each in sent if each.producer() is not None):
            return None
        macs = [sum(m or 0 for m, b in zip(self.macs, before, strict=True) if b is side) for side in (True, False)]
        stored = [
            sum(
                size
                for size, uses in zip(self.steps.weights, self.steps.uses, strict=True)
                if any(before[use] is side for use in uses)
            )
            for side in (True, False)
        ]
        return CutPoint(
            name=value.name or "",
            sent=tuple(each.name or "" for each in sent),
            sent_bytes=round(sum(self.facts[each].bytes for each in sent if each in self.facts)),
            macs=(macs[0], macs[1]),
            weight_bytes=(round(stored[0]), round(stored[1])),
        )

    def _cut_node(self, name: str) -> ir.Node:
        """Return the step that makes a value.

        Raises:
            UsageError: none does.
        """
        found = next((value for value in self._made if value.name == name), None)
        if found is not None and found.producer() is not None:
            return found.producer()  # type: ignore[return-value]  # the check is in the line above
        if any(value.name == name for value in self.flow.model.graph.inputs):
            raise UsageError(f"{name!r} is an input: nothing comes before it", where="--at")
        if any(output.name == name for node in self.flow.companions for output in node.outputs):
            raise UsageError(
                f"{name!r} depends on constants or shapes only, and is made anew in each part that needs it",
                where="--at",
            )
        if any(o.name == name for inner in query.inner_nodes(self.flow.steps) for o in inner.outputs):
            raise UsageError(f"{name!r} is inside of an If, Loop or Scan, which is not cut", where="--at")
        near = difflib.get_close_matches(name, [value.name or "" for value in self._made], n=3)
        raise UsageError(
            f"there is no value {name!r}",
            where="--at",
            hint=f"Is it {' or '.join(map(repr, near))}?" if near else "--suggest lists places to cut",
        )

    def _impossible(self, budget: int, least: float, start: int, end: int) -> LimitError:
        steps = self.steps
        weights = np.zeros(steps.count)
        for size, uses in zip(steps.weights, steps.uses, strict=True):
            weights[list(uses)] += size
        own = weights + steps.inner
        made = np.zeros(steps.count)
        np.add.at(made, steps.made[steps.made >= 0], steps.sizes[steps.made >= 0])
        alive = made + numeric.crossing(steps, inputs=True)[:-1]
        heaviest = start + int(np.argmax((own + alive)[start:end]))
        node = self.flow.steps[heaviest]
        return LimitError(
            f"no parts keep {show_bytes(budget)}: {node.op_type} node {query.label(node)!r} sets the smallest "
            f"reachable budget, {show_bytes(least)} ({round(least)} bytes): {show_bytes(own[heaviest])} of weights "
            f"and {show_bytes(least - own[heaviest])} of values that are alive beside it",
            hint=f"Give --max-memory {int(np.ceil(least))}, or make the weights smaller first (int8-weights)",
        )


def _is_quantized_next(value: ir.Value, *, through_clip: bool = True) -> bool:
    """Say whether all that happens to a value is that it is quantized, clipped before or not."""
    reader = query.sole_consumer(value)
    if reader is None or reader.op_type == "QuantizeLinear":
        return reader is not None
    is_clip = through_clip and query.is_op(reader, "Relu", "Clip")
    return is_clip and _is_quantized_next(reader.outputs[0], through_clip=False)


def _macs(node: ir.Node, facts: Mapping[ir.Value, ValueSize]) -> int | None:
    """Return the multiply-accumulates of a step, its bodies included; None where a shape is not known."""

    def dims(value: ir.Value) -> tuple[int, ...] | None:
        tensor = query.constant_tensor(value)
        fact = facts.get(value)
        return query.dims(tensor) if tensor is not None else None if fact is None else fact.dims

    total = 0
    for each in (node, *query.inner_nodes([node])):
        count = ops.spec(each).macs
        if count is None:
            continue
        macs = count(
            each, [None if value is None else dims(value) for value in each.inputs], [dims(v) for v in each.outputs]
        )
        if macs is None:
            return None
        total += macs
    return total
