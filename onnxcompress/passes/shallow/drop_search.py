"""Takes blocks out of copies of a model, one after the other, and measures what becomes of its outputs.

Each time the one goes that costs the outputs least for the multiplications that it saves. The candidates whose going
does least at once are refitted, roughly, and measured again on other samples; what is left is measured anew after
each. What goes is replaced by its mean, or by a linear map of what goes past it, which the refit finds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from ...activations import observe
from ...core import Context, Feed
from ...distillation import reconstruct
from ...distillation.train import Distilled, affordable, distill, divided
from ...errors import ModelError
from ...graph import edit, query
from ...io import model_io
from ...ops import table as ops
from ...ops.linear import linear_layers
from ...quality.divergence import Divergence
from ...shapes import resolve
from .shortcuts import Shortcut, find_shortcuts, main_shapes

By = Literal["bias", "linear"]

_SAMPLES = (48, 480)
"""Fewest and most samples that candidates are refitted and measured on: two thirds and one."""
_SAMPLE_MACS = 1e10
"""Multiplications of one run of all these samples, about."""
_ROWS = 8
"""Rows per column of that refit."""
_ALL_ROWS = 64
"""Rows per column of the last one."""
_WORK = 5e11
"""Multiplications of all rough refits of one round, about: it decides how many candidates are refitted."""
_ROWS_ABOUT = 1e4
_TOGETHER = 32
_MOST_REFITTED = 8
_OTHERS = 3
"""Sets of blocks that are measured beside the one that was found step by step."""
_MOST_TOGETHER = 3
_NONE_LOST = 1e-12


@dataclass(frozen=True, kw_only=True)
class DroppedBlock:
    """A block that is gone: its label, the multiplications saved, the values it stood between."""

    label: str
    macs: int
    out: str
    through: str
    nodes: frozenset[str]

    @classmethod
    def of(cls, shortcut: Shortcut, by: By) -> DroppedBlock:
        """Say what goes when a shortcut is taken."""
        channels = shortcut.shape[shortcut.axis]
        map_macs = math.prod(shortcut.shape) * channels if by == "linear" else 0
        return cls(
            label=shortcut.label,
            macs=shortcut.macs - map_macs,
            out=shortcut.out.name or "",
            through=shortcut.through.name or "",
            nodes=frozenset(query.label(node) for node in shortcut.nodes),
        )


@dataclass(frozen=True, kw_only=True)
class DropState:
    """A model with some blocks gone.

    Args:
        model: the model, refitted roughly.
        gone: what is gone, in order.
        loss: the divergence of its outputs.
    """

    model: ir.Model
    gone: tuple[DroppedBlock, ...]
    loss: float

    @property
    def macs(self) -> int:
        """The multiplications saved."""
        return sum(each.macs for each in self.gone)


@dataclass(frozen=True, kw_only=True)
class DropResult:
    """A result.

    Args:
        model: the model.
        refits: what became of each layer.
        refitted: divergence of the outputs after the refit; None where it gives no numbers.
        distilled: how the training went; None where there was none.
        loss: divergence of the outputs in the end.
    """

    model: ir.Model
    refits: list[reconstruct.RefitChange]
    refitted: float | None
    distilled: Distilled | None
    loss: float | None


class BlockDropSearch:
    """Looks for what can go from one model, which it does not change.

    Args:
        model: the model.
        context: feeds, seed, and which nodes may go.
        largest: the feed at whose shapes multiplications are counted.
        by: what stands in for what is gone.

    Raises:
        ModelError: the runtime can't run the model.
    """

    def __init__(self, model: ir.Model, context: Context, largest: Feed, by: By) -> None:
        self._shapes = main_shapes(model, largest)
        self.macs = ops.total_macs(model, resolve.shape_lookup(self._shapes)).total
        self._model = model
        self._context = context
        self._by = by
        count = len(context.feeds)
        few, many = _SAMPLES
        wanted = min(count, max(few, min(many, int(_SAMPLE_MACS / max(self.macs, 1)))))
        chosen = [context.feeds[index * count // wanted] for index in range(wanted)]
        third = max(1, len(chosen) // 3)
        self._scored = chosen[:third]
        self._fitted = chosen[third:] or chosen
        self._divergence = Divergence(model, self._scored)
        self._singles: list[DropState] = []
        self.start = DropState(model=model, gone=(), loss=0.0)

    def shortcuts(self, state: DropState) -> list[Shortcut]:
        """Return what may go from a state's model."""
        taken = {(each.out, each.through) for each in state.gone}
        return [
            shortcut
            for shortcut in find_shortcuts(state.model, self._shapes)
            if (shortcut.out.name, shortcut.through.name) not in taken
            and all(self._context.selects(node) for node in shortcut.nodes)
        ]

    def next(self, state: DropState, left: float) -> DropState | None:
        """Return a state with one block more gone, the one that costs least for what it saves; None if there is none.

        Args:
            state: what is gone already.
            left: multiplications that are still to be saved, above 0; saving more counts for nothing.
        """
        rough: list[tuple[float, Shortcut]] = []
        for shortcut in self._context.progress("Measuring blocks", self.shortcuts(state)):
            loss = self.measured(self._without(state, shortcut, "bias"))
            if loss is not None:
                rough.append((loss / min(shortcut.macs, left), shortcut))
        rough.sort(key=lambda each: each[0])
        tried = [shortcut for _, shortcut in rough[: self._most_refitted()]]
        found: list[DropState] = []
        for shortcut in self._context.progress("Refitting blocks", tried):
            gone = DroppedBlock.of(shortcut, self._by)
            if gone.macs <= 0:
                continue
            made = self._without(state, shortcut, self._by)
            self._refit(made, self._fitted, _ROWS)
            loss = self.measured(made)
            if loss is not None:
                found.append(DropState(model=made, gone=(*state.gone, gone), loss=loss))
        if not state.gone:
            self._singles = found
        lost = state.loss
        return min(
            found,
            key=lambda new: max(new.loss - lost, _NONE_LOST) / min(new.gone[-1].macs, left),
            default=None,
        )

    def improved(self, state: DropState, least: float, most: int | None) -> DropState:
        """Return the state, or one that loses less and saves enough: other sets of blocks, then fewer of them.

        Args:
            state: what was found step by step.
            least: multiplications that are to be saved.
            most: blocks that may go, at most.
        """
        for gone in self._sets(least, len(state.gone) if most is None else most):
            other = self._rebuilt(gone)
            if other is not None and other.loss < state.loss:
                state = other
        while True:
            fewer = [
                rebuilt
                for spare in state.gone
                if len(state.gone) > 1 and state.macs - spare.macs >= least
                if (rebuilt := self._rebuilt([each for each in state.gone if each is not spare])) is not None
            ]
            best = min(fewer, key=lambda each: each.loss, default=state)
            if best.loss >= state.loss:
                return state
            state = best

    def finished(self, state: DropState, steps: int) -> DropResult:
        """Return the original without what is gone, its layers refitted and then trained together on all samples.

        It begins anew: rough fits would be judged by samples that they have seen.

        Args:
            state: what is gone.
            steps: of the training; 0 for none.
        """
        made = self._removed(state.gone)
        if made is None:
            made = model_io.clone(state.model)
        feeds = self._context.feeds
        learnt_from, judged_by = divided(feeds)
        refits = self._refit(made, learnt_from, _ALL_ROWS, held_out=judged_by)
        refitted = self.measured(made)
        distilled = None
        if steps:
            most, batch = affordable(made, feeds[0], steps)
            distilled = distill(
                made,
                self._model,
                feeds,
                steps=most,
                batch=batch,
                seed=self._context.seed,
                progress=self._context.progress,
                selects=self._context.selects,
            )
        return DropResult(model=made, refits=refits, refitted=refitted, distilled=distilled, loss=self.measured(made))

    def _sets(self, least: float, most: int) -> list[tuple[DroppedBlock, ...]]:
        """Return sets of blocks that save enough, those first whose losses, each alone, add up to least."""
        found: list[tuple[float, tuple[DroppedBlock, ...]]] = []
        for size in range(1, min(most, _MOST_TOGETHER) + 1):
            for states in itertools.combinations(self._singles, size):
                gone = tuple(state.gone[0] for state in states)
                apart = sum(len(each.nodes) for each in gone) == len(frozenset().union(*(each.nodes for each in gone)))
                if apart and sum(each.macs for each in gone) >= least:
                    found.append((sum(state.loss for state in states), gone))
        found.sort(key=lambda each: each[0])
        return [gone for _, gone in found[:_OTHERS]]

    def _rebuilt(self, gone: Sequence[DroppedBlock]) -> DropState | None:
        """Return the state with just these blocks gone; None where one can't go without another."""
        made = self._removed(gone)
        if made is None:
            return None
        self._refit(made, self._fitted, _ROWS)
        loss = self.measured(made)
        return None if loss is None else DropState(model=made, gone=tuple(gone), loss=loss)

    def _removed(self, gone: Sequence[DroppedBlock]) -> ir.Model | None:
        """Return the original without these blocks, not refitted; None where one can't go without another."""
        state = self.start
        for each in gone:
            by_values = {(s.out.name, s.through.name): s for s in self.shortcuts(state)}
            shortcut = by_values.get((each.out, each.through))
            if shortcut is None:
                return None
            made = self._without(state, shortcut, self._by)
            state = DropState(model=made, gone=(*state.gone, each), loss=state.loss)
        return state.model

    def _refit(
        self, made: ir.Model, feeds: Sequence[Feed], rows: int, *, held_out: Sequence[Feed] | None = None
    ) -> list[reconstruct.RefitChange]:
        """Refit the layers that a change has reached: those behind it, and those that are added to what it changed."""
        reached = _reached(made, self._model)
        known = {query.label(node) for node in self._model.graph}
        maps = {
            node.inputs[1].name or "": node.outputs[0].name or ""
            for node in made.graph
            if query.label(node) not in known and node.inputs[1] is not None and node.inputs[1].producer() is not None
            if query.is_op(node, "Add")
        }
        return reconstruct.refit(
            made,
            self._model,
            feeds,
            maps,
            held_out=held_out,
            selects=lambda node: node in reached and self._context.selects(node),
            rows_per_column=rows,
            seed=self._context.seed,
        )

    def measured(self, made: ir.Model) -> float | None:
        """Return the divergence of a model's outputs, None where it can't be run or gives no numbers."""
        try:
            found = self._divergence.of(made)
        except ModelError:
            return None  # its shapes were the same by chance
        return found if math.isfinite(found) else None

    def _most_refitted(self) -> int:
        work = sum(layer.shape[0] * layer.shape[2] ** 2 * _ROWS_ABOUT for layer in linear_layers(self._model))
        return max(2, min(_MOST_REFITTED, int(_WORK / max(work, 1.0))))

    def _without(self, state: DropState, shortcut: Shortcut, by: By) -> ir.Model:
        """Return a copy of a state's model in which the shortcut is taken."""
        made = model_io.clone(state.model)
        values = {v.name: v for v in made.graph.inputs} | {v.name: v for n in made.graph for v in n.outputs}
        out, through = values[shortcut.out.name], values[shortcut.through.name]
        names = edit.Names(made)
        maker = out.producer()
        assert maker is not None
        mean = self._mean(state.model, shortcut)
        if by == "linear":
            value = _mapped(maker, through, mean, names, shortcut)
        else:
            shape = (-1, *[1] * (len(shortcut.shape) - 1 - shortcut.axis % len(shortcut.shape)))
            value = edit.add_initializer(made.graph, names, f"{shortcut.label}_mean", mean.reshape(shape))
        added = edit.put_after(value.producer() or maker, names, "Add", [through, value], hint=f"{shortcut.label}_past")
        edit.take_over(out, added.outputs[0])
        return made

    def _mean(self, model: ir.Model, shortcut: Shortcut) -> np.ndarray:
        """Return by how much the original's value is more than what goes past, on average: float32 [channels]."""
        name, past = shortcut.out.name or "", shortcut.through.name or ""
        total, count = np.zeros(shortcut.shape[shortcut.axis]), 0
        feeds = list(observe.batched(self._model, self._fitted, _TOGETHER))
        there = observe.stream(self._model, feeds, [name])
        here = observe.stream(model, feeds, [past])
        for one, other in zip(there, here, strict=True):
            gap = np.moveaxis(one[name].astype(np.float64) - other[past], shortcut.axis, -1).reshape(-1, len(total))
            total += gap.sum(axis=0)
            count += len(gap)
        return (total / count).astype(np.float32)


def _reached(made: ir.Model, original: ir.Model) -> set[ir.Node]:
    """Return the nodes of a changed copy that read or add to what is not as in the original."""
    known = {query.label(node) for node in original.graph}
    reached: set[ir.Node] = set()
    for node in made.graph:
        if query.label(node) not in known or any(v.producer() in reached for v in query.reads(node)):
            reached.add(node)
    for node in [each for each in reached if query.is_op(each, "Add")]:
        for maker in [m for v in node.inputs if v is not None and (m := v.producer()) is not None]:
            above = [v.producer() for v in maker.inputs if v is not None] if query.is_op(maker, "Add") else []
            reached.update(each for each in (maker, *above) if each is not None)
    return reached


def _mapped(maker: ir.Node, through: ir.Value, mean: np.ndarray, names: edit.Names, shortcut: Shortcut) -> ir.Value:
    """Return a linear map of what goes past, put behind `maker`: zero but for its bias, until it is refitted."""
    home, hint, width = query.home(maker), f"{shortcut.label}_map", len(mean)
    spatial = len(shortcut.shape) - 2
    bias = edit.add_initializer(home, names, f"{hint}_bias", mean)
    if shortcut.axis % len(shortcut.shape) == 1 and spatial > 0:
        weight = edit.add_initializer(home, names, hint, np.zeros((width, width, *[1] * spatial), np.float32))
        return edit.put_after(maker, names, "Conv", [through, weight, bias], hint=f"{hint}_conv").outputs[0]
    weight = edit.add_initializer(home, names, hint, np.zeros((width, width), np.float32))
    product = edit.put_after(maker, names, "MatMul", [through, weight], hint=f"{hint}_product")
    return edit.put_after(product, names, "Add", [product.outputs[0], bias], hint=f"{hint}_sum").outputs[0]
