"""Remove blocks from copies of a model, one after the other, and measure the divergence of its outputs.

Each step removes the block that costs the outputs least for the multiplications that it saves. The candidates with the
least immediate effect are refitted, roughly, and measured again on other samples; the rest is measured anew after each
step. A removed block is replaced by its mean, or by a linear map of the value that bypasses it, which the refit finds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from ...activations import observe
from ...core import Context, Feed
from ...distillation import reconstruct
from ...distillation.sample_split import divided
from ...distillation.targets import LayerMatch, RefitEffort
from ...distillation.train import Distilled
from ...errors import ModelError
from ...graph import edit, query
from ...io import model_io
from ...ops import table as ops
from ...ops.linear import linear_layers
from ...quality.divergence import Divergence
from ...shapes import resolve
from . import recovery
from .shortcuts import Shortcut, find_shortcuts, main_shapes

By = Literal["bias", "linear"]

_SAMPLES = (48, 480)
"""Fewest and most samples on which candidates are refitted and measured: two thirds and one. Chosen on the zoo
models."""
_SAMPLE_MACS = 1e10
"""Multiplications of one run of all these samples, about. Chosen on the zoo models, for time."""
_ROWS = 8
"""Rows per column of the rough refits. Chosen on the zoo models."""
_ALL_ROWS = 64
"""Rows per column of the last refit. Chosen on the zoo models."""
_WORK = 5e11
"""Multiplications of all rough refits of one step, about: it limits the candidates. Chosen on the zoo models."""
_ROWS_ABOUT = 1e4
"""Rows of a rough refit in the estimate of its multiplications. Estimated; not measured."""
_BATCH = 32
"""Feeds that are joined to observe values, at most. Chosen by judgement; not measured."""
_MOST_REFITTED = 8
"""Most candidates that are refitted in one step. Chosen on the zoo models."""
_OTHERS = 3
"""Sets of blocks that are measured beside the one that was found step by step. Chosen on the zoo models."""
_MOST_TOGETHER = 3
"""Most blocks of such a set. Chosen by judgement; not measured."""
_NONE_LOST = 1e-12
"""Divergence below which candidates count as equally good, so that the savings decide."""


@dataclass(frozen=True, kw_only=True)
class DroppedBlock:
    """A removed block: its label, the multiplications saved, the values before and after it."""

    label: str
    macs: int
    out: str
    through: str
    nodes: frozenset[str]

    @classmethod
    def of(cls, shortcut: Shortcut, by: By) -> DroppedBlock:
        """Return the block that a shortcut bypasses."""
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
    """A model without some blocks."""

    model: ir.Model
    dropped: tuple[DroppedBlock, ...]
    loss: float

    @property
    def macs(self) -> int:
        """The multiplications saved."""
        return sum(each.macs for each in self.dropped)


@dataclass(frozen=True, kw_only=True)
class DropResult:
    """A model without some blocks, refitted and trained on all samples.

    Args:
        model: the model.
        refits: the change of each layer.
        refitted: divergence of the outputs after the refit; None where it is not finite.
        distilled: result of the training; None where there was none.
        loss: divergence of the outputs in the end.
    """

    model: ir.Model
    refits: list[reconstruct.RefitChange]
    refitted: float | None
    distilled: Distilled | None
    loss: float | None


class BlockDropSearch:
    """Searches for blocks that one model can do without; the model is not changed.

    Args:
        model: the model.
        context: its feeds, seed and `selects`, which admits the nodes that may be removed.
        largest: the feed at whose shapes multiplications are counted.
        by: replacement of removed blocks.

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
        self.start = DropState(model=model, dropped=(), loss=0.0)

    def shortcuts(self, state: DropState) -> list[Shortcut]:
        """Return the blocks that may be removed from a state's model."""
        taken = {(each.out, each.through) for each in state.dropped}
        return [
            shortcut
            for shortcut in find_shortcuts(state.model, self._shapes)
            if (shortcut.out.name, shortcut.through.name) not in taken
            and all(self._context.selects(node) for node in shortcut.nodes)
        ]

    def next(self, state: DropState, left: float) -> DropState | None:
        """Return a state without the block that costs least for what it saves; None if there is none.

        Args:
            state: the state before.
            left: multiplications that are still to be saved, above 0; saving more counts for nothing.
        """
        tried = self._ranked(state, left)[: self._most_refitted()]
        found: list[DropState] = []
        for shortcut in self._context.progress("Refitting blocks", tried):
            dropped = DroppedBlock.of(shortcut, self._by)
            if dropped.macs <= 0:
                continue
            edited = self._without(state, shortcut, self._by)
            self._refit(edited, self._fitted, _ROWS)
            loss = self.measured(edited)
            if loss is not None:
                found.append(DropState(model=edited, dropped=(*state.dropped, dropped), loss=loss))
        if not state.dropped:
            self._singles = found
        lost = state.loss
        return min(
            found, key=lambda new: max(new.loss - lost, _NONE_LOST) / min(new.dropped[-1].macs, left), default=None
        )

    def draft(self, target: float, least: float, most: int | None) -> DropState:
        """Return a state for a plan: without the blocks of least immediate effect, each measured once.

        What a refit would regain is not looked at, and the order is not measured anew: the full search may
        choose others.

        Args:
            target: multiplications to save, above 0; saving more counts for nothing.
            least: those that suffice.
            most: most blocks to remove.
        """
        state = self.start
        for shortcut in self._ranked(state, target):
            if state.macs >= least or len(state.dropped) == most:
                break
            following = self._followed(state, DroppedBlock.of(shortcut, self._by))
            loss = None if following is None else self.measured(following.model)
            if following is not None and loss is not None and following.macs > state.macs:
                state = replace(following, loss=loss)
        return state

    def _ranked(self, state: DropState, left: float) -> list[Shortcut]:
        """Return the blocks by the divergence of the outputs without each for what it saves, the least first."""
        rough: list[tuple[float, Shortcut]] = []
        for shortcut in self._context.progress("Measuring blocks", self.shortcuts(state)):
            loss = self.measured(self._without(state, shortcut, "bias"))
            if loss is not None:
                rough.append((loss / min(shortcut.macs, left), shortcut))
        rough.sort(key=lambda each: each[0])
        return [shortcut for _, shortcut in rough]

    def improved(self, state: DropState, least: float, most: int | None) -> DropState:
        """Return the state, or one that loses less and saves enough: other sets of blocks, then fewer of them.

        Args:
            state: the state that was found step by step.
            least: multiplications that are to be saved.
            most: most blocks to remove.
        """
        for dropped in self._sets(least, len(state.dropped) if most is None else most):
            other = self._rebuilt(dropped)
            if other is not None and other.loss < state.loss:
                state = other
        while True:
            fewer = [
                rebuilt
                for spare in state.dropped
                if len(state.dropped) > 1 and state.macs - spare.macs >= least
                if (rebuilt := self._rebuilt([each for each in state.dropped if each is not spare])) is not None
            ]
            best = min(fewer, key=lambda each: each.loss, default=state)
            if best.loss >= state.loss:
                return state
            state = best

    def finished(self, state: DropState, steps: int) -> DropResult:
        """Return the original without the blocks, its layers refitted and then trained together on all samples.

        It begins anew: rough fits would be judged by samples that they have seen.
        """
        edited = self._removed(state.dropped)
        if edited is None:
            edited = model_io.clone(state.model)
        fitted, held_out = divided(self._context.feeds)
        refits = self._refit(edited, fitted, _ALL_ROWS, held_out=held_out)
        refitted = self.measured(edited)
        distilled = recovery.train(edited, self._model, self._context, steps)
        return DropResult(
            model=edited, refits=refits, refitted=refitted, distilled=distilled, loss=self.measured(edited)
        )

    def _sets(self, least: float, most: int) -> list[tuple[DroppedBlock, ...]]:
        """Return sets of blocks that save enough, those first whose losses, each alone, add up to least."""
        found: list[tuple[float, tuple[DroppedBlock, ...]]] = []
        for size in range(1, min(most, _MOST_TOGETHER) + 1):
            for states in itertools.combinations(self._singles, size):
                dropped = tuple(state.dropped[0] for state in states)
                apart = sum(len(each.nodes) for each in dropped) == len(
                    frozenset().union(*(each.nodes for each in dropped))
                )
                if apart and sum(each.macs for each in dropped) >= least:
                    found.append((sum(state.loss for state in states), dropped))
        found.sort(key=lambda each: each[0])
        return [dropped for _, dropped in found[:_OTHERS]]

    def _rebuilt(self, dropped: Sequence[DroppedBlock]) -> DropState | None:
        """Return the state without just these blocks; None where one can't be removed without another."""
        edited = self._removed(dropped)
        if edited is None:
            return None
        self._refit(edited, self._fitted, _ROWS)
        loss = self.measured(edited)
        return None if loss is None else DropState(model=edited, dropped=tuple(dropped), loss=loss)

    def _removed(self, dropped: Sequence[DroppedBlock]) -> ir.Model | None:
        """Return the original without these blocks, not refitted; None where one can't be removed without another."""
        state: DropState | None = self.start
        for each in dropped:
            state = None if state is None else self._followed(state, each)
        return None if state is None else state.model

    def _followed(self, state: DropState, dropped: DroppedBlock) -> DropState | None:
        """Return a state without one more block, not refitted or measured; None where it can't be removed any more."""
        by_values = {(s.out.name, s.through.name): s for s in self.shortcuts(state)}
        shortcut = by_values.get((dropped.out, dropped.through))
        if shortcut is None:
            return None
        edited = self._without(state, shortcut, self._by)
        return DropState(model=edited, dropped=(*state.dropped, dropped), loss=state.loss)

    def _refit(
        self, edited: ir.Model, feeds: Sequence[Feed], rows: int, *, held_out: Sequence[Feed] | None = None
    ) -> list[reconstruct.RefitChange]:
        """Refit the layers that a change has reached: those after it, and those that are added to its result."""
        reached = _reached(edited, self._model)
        known = {query.label(node) for node in self._model.graph}
        maps = {
            node.inputs[1].name or "": node.outputs[0].name or ""
            for node in edited.graph
            if query.label(node) not in known and node.inputs[1] is not None and node.inputs[1].producer() is not None
            if query.is_op(node, "Add")
        }
        return reconstruct.refit(
            edited,
            self._model,
            feeds,
            LayerMatch(values=maps),
            held_out=held_out,
            selects=lambda node: node in reached and self._context.selects(node),
            effort=RefitEffort(rows_per_column=rows),
            seed=self._context.seed,
        )

    def measured(self, edited: ir.Model) -> float | None:
        """Return the divergence of a model's outputs, None where it can't be run or gives no numbers."""
        try:
            found = self._divergence.of(edited)
        except ModelError:
            return None  # its shapes were the same by coincidence
        return found if math.isfinite(found) else None

    def _most_refitted(self) -> int:
        work = sum(layer.shape[0] * layer.shape[2] ** 2 * _ROWS_ABOUT for layer in linear_layers(self._model))
        return max(2, min(_MOST_REFITTED, int(_WORK / max(work, 1.0))))

    def _without(self, state: DropState, shortcut: Shortcut, by: By) -> ir.Model:
        """Return a copy of a state's model in which the shortcut is taken."""
        edited = model_io.clone(state.model)
        values = {v.name: v for v in edited.graph.inputs} | {v.name: v for n in edited.graph for v in n.outputs}
        out, through = values[shortcut.out.name], values[shortcut.through.name]
        names = edit.Names(edited)
        maker = out.producer()
        assert maker is not None
        mean = self._mean(state.model, shortcut)
        if by == "linear":
            value = _mapped(maker, through, mean, names, shortcut)
        else:
            shape = (-1, *[1] * (len(shortcut.shape) - 1 - shortcut.axis % len(shortcut.shape)))
            value = edit.add_initializer(edited.graph, names, f"{shortcut.label}_mean", mean.reshape(shape))
        added = edit.put_after(value.producer() or maker, names, "Add", [through, value], hint=f"{shortcut.label}_past")
        edit.take_over(out, added.outputs[0])
        return edited

    def _mean(self, model: ir.Model, shortcut: Shortcut) -> np.ndarray:
        """Return the mean difference of the original's value to the value that bypasses it: float32 [channels]."""
        name, bypass = shortcut.out.name or "", shortcut.through.name or ""
        total, count = np.zeros(shortcut.shape[shortcut.axis]), 0
        feeds = list(observe.batched(self._model, self._fitted, _BATCH))
        originals = observe.stream(self._model, feeds, [name])
        bypasses = observe.stream(model, feeds, [bypass])
        for one, other in zip(originals, bypasses, strict=True):
            gap = np.moveaxis(one[name].astype(np.float64) - other[bypass], shortcut.axis, -1).reshape(-1, len(total))
            total += gap.sum(axis=0)
            count += len(gap)
        return (total / count).astype(np.float32)


def _reached(edited: ir.Model, original: ir.Model) -> set[ir.Node]:
    """Return the nodes of a changed copy that read a changed value, or are added to one."""
    reached = recovery.reached_nodes(edited, original)
    for node in [each for each in reached if query.is_op(each, "Add")]:
        for maker in [m for v in node.inputs if v is not None and (m := v.producer()) is not None]:
            above = [v.producer() for v in maker.inputs if v is not None] if query.is_op(maker, "Add") else []
            reached.update(each for each in (maker, *above) if each is not None)
    return reached


def _mapped(maker: ir.Node, through: ir.Value, mean: np.ndarray, names: edit.Names, shortcut: Shortcut) -> ir.Value:
    """Return a linear map of the bypassing value, inserted after `maker`: zero but for its bias before the refit."""
    home, hint, width = query.home(maker), f"{shortcut.label}_map", len(mean)
    spatial = len(shortcut.shape) - 2
    bias = edit.add_initializer(home, names, f"{hint}_bias", mean)
    if shortcut.axis % len(shortcut.shape) == 1 and spatial > 0:
        weight = edit.add_initializer(home, names, hint, np.zeros((width, width, *[1] * spatial), np.float32))
        return edit.put_after(maker, names, "Conv", [through, weight, bias], hint=f"{hint}_conv").outputs[0]
    weight = edit.add_initializer(home, names, hint, np.zeros((width, width), np.float32))
    product = edit.put_after(maker, names, "MatMul", [through, weight], hint=f"{hint}_product")
    return edit.put_after(product, names, "Add", [product.outputs[0], bias], hint=f"{hint}_sum").outputs[0]
