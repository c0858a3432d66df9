"""Residual branches and blocks of a chain go, and the layers behind them make up for it.

    y = x + branch(x)    ->  y = x + b        or y = x + W x + b

Which of them go is found by measuring (`block_search`). In the end the layers behind are refitted on all
samples, and all layers trained together on what the original gives.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...core import Change, Context, Need
from ...data import feeds as feed_facts
from ...graph import edit
from ...io import model_io
from .drop_search import BlockDropSearch, By, DropResult, DropState

_GRAPH = "graph"
_OVER = 0.02
"""The budget may be missed by this part of all multiplications."""


@dataclass(frozen=True, kw_only=True)
class DropBlocks:
    """Residual branches and repeated blocks that matter least go; later layers are refitted to make up for them."""

    name: ClassVar[str] = "drop-blocks"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})

    keep_macs: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Part of the multiplications that is to be left, at most; blocks go until it is reached."""
    most: Annotated[int, Field(ge=0)] | None = None
    """Blocks or branches that may go, at most; as many as `keep_macs` takes by default."""
    by: By = "bias"
    """What stands in for what is gone: its mean, or a linear map of what goes past it ("linear")."""
    distill_steps: Annotated[int, Field(ge=0)] = 200
    """Batches by which all layers are trained on the original's outputs in the end; 0 for none."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Replace the model by one with blocks gone, or leave it as it is."""
        if context.state:
            return [self._skipped("samples that carry a state from one run to the next can't be taken apart")]
        largest = feed_facts.largest(context.feeds)
        search = BlockDropSearch(model, context, largest, self.by)
        if not search.shortcuts(search.start):
            return [self._skipped("there is no residual branch or block to go past")]
        if not context.gate.admits(self.name, _GRAPH):
            return []
        total = search.macs
        wanted = (1 - self.keep_macs) * total
        least = wanted - _OVER * total
        states = [search.start]
        while len(states) - 1 != self.most and states[-1].macs < least:
            following = search.next(states[-1], max(wanted - states[-1].macs, 1.0))
            if following is None:
                break
            states.append(following)
        if len(states) > 1:
            states[-1] = search.improved(states[-1], min(least, states[-1].macs), self.most)
        return self._best(model, states, search, context, total)

    def _best(
        self, model: ir.Model, states: list[DropState], search: BlockDropSearch, context: Context, total: int
    ) -> list[Change]:
        """Refit the last state on all samples; go back while it is over the limit."""
        changes: list[Change] = []
        while len(states) > 1:
            state = states.pop()
            found = search.finished(state, self.distill_steps)
            trial = None if context.judge is None else context.judge.score(found.model)
            limit = None if context.judge is None else context.judge.limit
            drop = None if trial is None else trial.drop
            over = limit is not None and drop is not None and drop > limit
            fault = f"the score falls by {drop:.4g}, more than {limit:g}" if over else None
            if fault is None and limit is not None and context.judge is not None:
                fault = context.judge.fault(found.model)
            if fault is not None:
                changes.append(self._skipped(f"without {', '.join(each.label for each in state.gone)}: {fault}"))
                continue
            before = model_io.model_bytes(model)
            edit.become(model, found.model)
            return [
                self._summary(state, found, total, drop, (before, model_io.model_bytes(model))),
                *(
                    Change.applied(
                        self.name, f"it goes, {each.macs / total:.1%} of the multiplications", target=each.label
                    )
                    for each in state.gone
                ),
                *changes,
            ]
        return [*changes, self._skipped("nothing could go: the model is small enough, or every candidate is worse")]

    def _summary(
        self, state: DropState, found: DropResult, total: int, drop: float | None, sizes: tuple[int, int]
    ) -> Change:
        layers = sum(each.is_applied for each in found.refits)
        figures = [
            f"{len(state.gone)} blocks are gone, {state.macs / total:.1%} of the multiplications",
            f"divergence of the outputs {state.loss:.3g} predicted",
            f"{found.refitted or 0.0:.3g} with {layers} layers refitted",
        ]
        details: dict[str, Any] = {
            "macs_kept": 1 - state.macs / total,
            "predicted_divergence": state.loss,
            "refitted_divergence": found.refitted,
            "measured_divergence": found.loss,
            "layers_refitted": layers,
            "measured_drop": drop,
        }
        if found.distilled is not None:
            details["distillation"] = found.distilled.reason
            figures += found.distilled.told(found.loss)
        if drop is not None:
            figures.append(f"the score falls by {drop:.4f}")
        return Change.applied(
            self.name, "; ".join(figures), bytes_before=sizes[0], bytes_after=sizes[1], details=details
        )

    def _skipped(self, reason: str) -> Change:
        return Change.skipped(self.name, reason)
