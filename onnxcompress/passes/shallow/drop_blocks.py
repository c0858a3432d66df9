"""Remove residual branches and blocks of a chain, and refit the layers after them to compensate.

    y = x + branch(x)    ->  y = x + b        or y = x + W x + b

They are chosen by measuring (`drop_search`). In the end the layers after them are refitted on all samples, and all
layers trained together on the outputs of the original.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...core import GRAPH, Change, Context, Need
from ...data import feeds as feed_facts
from ...graph import edit
from ...io import model_io
from . import recovery
from .drop_search import BlockDropSearch, By, DropResult, DropState

_TOLERANCE = 0.02
"""Part of all multiplications by which the budget may be missed. Chosen by judgement; not measured."""

_NOTHING = "nothing could be removed: the model is small enough, or every candidate is worse"


@dataclass(frozen=True, kw_only=True)
class DropBlocks:
    """Residual branches and repeated blocks that matter least are removed; later layers are refitted to compensate."""

    name: ClassVar[str] = "drop-blocks"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})

    keep_macs: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Most multiplications to keep, as a part; blocks are removed until it is reached."""
    most: Annotated[int, Field(ge=0)] | None = None
    """Most blocks or branches to remove; as many as `keep_macs` takes by default."""
    by: By = "bias"
    """Replacement of a removed block: its mean ("bias"), or a linear map of the value that bypasses it ("linear")."""
    distill_steps: Annotated[int, Field(ge=0)] = 200
    """Batches by which all layers are trained on the original's outputs in the end; 0 for none."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Replace the model by one without some blocks, or keep it."""
        if context.state:
            return [
                Change.skipped(self.name, "samples that carry a state from one run to the next can't be taken apart")
            ]
        largest = feed_facts.largest(context.feeds)
        search = BlockDropSearch(model, context, largest, self.by)
        if not search.shortcuts(search.start):
            return [Change.skipped(self.name, "there is no residual branch or block to bypass")]
        if not context.gate.admits(self.name, GRAPH):
            return []
        target = (1 - self.keep_macs) * search.macs
        least = target - _TOLERANCE * search.macs
        if context.is_plan:
            return self._drafted(model, search.draft(max(target, 1.0), least, self.most), search.macs)
        states = [search.start]
        while len(states) - 1 != self.most and states[-1].macs < least:
            following = search.next(states[-1], max(target - states[-1].macs, 1.0))
            if following is None:
                break
            states.append(following)
        if len(states) > 1:
            states[-1] = search.improved(states[-1], min(least, states[-1].macs), self.most)
        return self._best(model, states, search, context)

    def _best(
        self, model: ir.Model, states: list[DropState], search: BlockDropSearch, context: Context
    ) -> list[Change]:
        """Refit the last state on all samples; go back while it is over the limit."""
        changes: list[Change] = []
        while len(states) > 1:
            state = states.pop()
            found = search.finished(state, self.distill_steps)
            drop = None if context.judge is None else context.judge.score(found.model).limited_drop
            fault = recovery.limit_fault(found.model, drop, context.judge)
            if fault is not None:
                labels = ", ".join(block.label for block in state.dropped)
                changes.append(Change.skipped(self.name, f"without {labels}: {fault}"))
                continue
            before = model_io.model_bytes(model)
            edit.become(model, found.model)
            sizes = (before, model_io.model_bytes(model))
            return [
                self._summary(state, found, search.macs, drop, sizes),
                *self._removals(state, search.macs),
                *changes,
            ]
        return [*changes, Change.skipped(self.name, _NOTHING)]

    def _drafted(self, model: ir.Model, state: DropState, total_macs: int) -> list[Change]:
        """Take over what a plan found: blocks by their immediate effect, without a refit, training or a limit."""
        if not state.dropped:
            return [Change.skipped(self.name, _NOTHING)]
        before = model_io.model_bytes(model)
        edit.become(model, state.model)
        figures = [
            f"{len(state.dropped)} blocks removed, {state.macs / total_macs:.1%} of the multiplications",
            f"divergence of the outputs {state.loss:.3g} before layers are refitted",
        ]
        details = {"macs_kept": 1 - state.macs / total_macs, "measured_divergence": state.loss}
        sizes = (before, model_io.model_bytes(model))
        whole = recovery.summary(self.name, figures, details, distilled=None, loss=state.loss, drop=None, sizes=sizes)
        return [whole, *self._removals(state, total_macs)]

    def _removals(self, state: DropState, total_macs: int) -> list[Change]:
        return [
            Change.applied(
                self.name, f"removed, {block.macs / total_macs:.1%} of the multiplications", target=block.label
            )
            for block in state.dropped
        ]

    def _summary(
        self, state: DropState, found: DropResult, total_macs: int, drop: float | None, sizes: tuple[int, int]
    ) -> Change:
        layers = sum(each.is_applied for each in found.refits)
        figures = [
            f"{len(state.dropped)} blocks removed, {state.macs / total_macs:.1%} of the multiplications",
            f"divergence of the outputs {state.loss:.3g} predicted",
            f"{found.refitted or 0.0:.3g} with {layers} layers refitted",
        ]
        details = {
            "macs_kept": 1 - state.macs / total_macs,
            "predicted_divergence": state.loss,
            "refitted_divergence": found.refitted,
            "measured_divergence": found.loss,
            "layers_refitted": layers,
            "measured_drop": drop,
        }
        return recovery.summary(
            self.name, figures, details, distilled=found.distilled, loss=found.loss, drop=drop, sizes=sizes
        )
