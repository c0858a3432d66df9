"""Layers become two or three thin ones, whose weights have fewer numbers and which multiply less.

    W [out, in]  ->  A [out, r], B [r, in]          Conv k x k: also k x 1 and 1 x k, or 1 x 1, k x k and 1 x 1

Directions are those that matter for what the layers give on the samples (`numerics.lowrank`). How much each layer may
lose is shared out by integer programming over what cuts were measured to do to the outputs. The last of the thin layers
is refitted on what reaches it, then all are trained on the original's outputs. The result is taken only where it is
smaller and, unless `accept` is "smaller", measured faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from ... import targets
from ...core import Change, Context, Judge, Need
from ...data import feeds as feed_facts
from ...distillation import reconstruct
from ...distillation.train import Distilled, affordable, distill, divided
from ...errors import UsageError
from ...graph import edit, query
from ...io import model_io
from ...numerics.optimization.allocation import allocate
from ...ops import table as ops
from ...ops.linear import linear_layers
from ...quality.divergence import Divergence
from ...shapes import count as counting
from ..fold import layer_composition
from . import factorizations
from .factorizations import Factorization, Form, Option
from .shortcuts import seen_shapes

_GRAPH = "graph"
_FORMS: dict[str, tuple[Form, ...]] = {
    "best": ("matrix", "rows", "spatial", "tucker"),
    "rows": ("matrix", "rows"),
    "spatial": ("matrix", "spatial"),
    "tucker": ("matrix", "tucker"),
    "none": ("matrix",),
}
_SAMPLES = 256
"""Samples by which directions are found, at most."""
_SCORED = (16, 128)
"""Fewest and most samples on which outputs are compared."""
_SCORED_MACS = 2e11
"""Multiplications of the runs for all candidates together, about."""
_RETRIES = 2
"""Times that only the better half of the layers is tried again."""
_FASTER = 0.98
"""Part of the time it took before that a result may take, to count as faster."""

Share = Annotated[float | None, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """Matrices and convolutions become products of thin ones where that is smaller and faster, by what data shows."""

    name: ClassVar[str] = "low-rank"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})

    keep_parameters: Share = None
    """Part of the parameters of the layers that are looked at (--only, --skip) that is kept."""
    keep_macs: Share = None
    """Part of these layers' multiplications that is kept."""
    divergence: Annotated[float, Field(ge=0)] = 0.002
    """Without such a budget: how much the outputs are predicted to diverge at most (nats for class scores, part of the
    variance for others)."""
    conv: Literal["best", "rows", "spatial", "tucker", "none"] = "best"
    """How convolutions with a kernel are written: k x k and 1 x 1 (rows), k x 1 and 1 x k (spatial), between two of
    1 x 1 (tucker), the best of these for each, or not at all."""
    multiple: Annotated[int | None, Field(ge=1)] = None
    """Ranks are multiples of this. None: of what the target's kernels like."""
    accept: Literal["faster", "smaller"] = "faster"
    """faster: the result has to be smaller and faster. smaller: it may be slower."""
    refit: bool = True
    """Refit the last of the thin layers, and the layers behind, to what the original gives in their place."""
    distill_steps: Annotated[int, Field(ge=0)] = 200
    """Batches by which all layers are trained on the original's outputs in the end; 0 for none."""

    def __post_init__(self) -> None:
        """Refuse two budgets."""
        if self.keep_parameters is not None and self.keep_macs is not None:
            raise UsageError("low-rank: keep_parameters and keep_macs are given", hint="Give one of them")

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Replace the model by one with thin layers, or leave it as it is."""
        if context.state:
            return [self._skipped("samples that carry a state from one run to the next can't be taken apart")]
        found = [layer_composition.free_layer(layer.node) for layer in linear_layers(model)]
        layers = [
            layer
            for layer in found
            if layer is not None and layer.node.graph is model.graph and layer_composition.has_own_weight(layer)
            if context.selects(layer.node)
        ]
        largest = feed_facts.largest(context.feeds)
        shapes = seen_shapes(model, largest)
        some = context.feeds[:: max(1, -(-len(context.feeds) // _SAMPLES))]
        possible = factorizations.candidates(
            layers,
            model,
            some,
            shapes,
            forms=_FORMS[self.conv],
            multiple=self.multiple or targets.channel_multiple(context.target),
            seed=context.seed,
        )
        if not possible:
            return [self._skipped("no layer is large enough to be worth thin ones")]
        if not context.gate.admits(self.name, _GRAPH):
            return []
        macs = ops.total_macs(model, counting.shape_lookup(shapes)).total
        scored = min(_SCORED[1], max(_SCORED[0], int(_SCORED_MACS / max(1, macs * len(possible)))))
        judge = Divergence(model, context.feeds[:: max(1, -(-len(context.feeds) // scored))])
        chosen = self._chosen(
            possible, [_measured(model, each, judge) for each in context.progress("Probing", possible)]
        )
        if chosen is None:
            return [self._skipped("even the thinnest layers are over the budget")]
        return self._tried(model, chosen, judge, context)

    def _chosen(self, possible: Sequence[Factorization], slopes: Sequence[float]) -> list[_RankChoice] | None:
        """Share the budget out; None where it can't be met."""
        by_macs = self.keep_macs is not None
        costs = [
            [float(each.macs if by_macs else each.numbers)]
            + [float(option.macs if by_macs else option.numbers) for option in each.options]
            for each in possible
        ]
        losses = [
            [0.0, *(slope * option.error for option in each.options)]
            for each, slope in zip(possible, slopes, strict=True)
        ]
        keep = self.keep_macs if by_macs else self.keep_parameters
        if keep is None:
            taken = allocate(losses, costs, self.divergence)
        else:
            taken = allocate(costs, losses, keep * sum(each[0] for each in costs))
        if taken is None:
            return None
        return [
            _RankChoice(each, each.options[index - 1], loss[index])
            for each, index, loss in zip(possible, taken, losses, strict=True)
            if index
        ]

    def _tried(self, model: ir.Model, chosen: list[_RankChoice], judge: Divergence, context: Context) -> list[Change]:
        """Build what was chosen; where it is not good enough, the better half of it."""
        refusals: list[Change] = []
        before = None if context.judge is None else context.judge(model, f"{self.name}/before").latency_ratio
        size = model_io.model_bytes(model)
        for attempt in range(_RETRIES + 1):
            if not chosen:
                break
            made = model_io.clone(model)
            _write(made, chosen)
            ratio = None if context.judge is None else context.judge(made, f"{self.name}/{attempt}").latency_ratio
            is_slow = before is not None and ratio is not None and ratio > _FASTER * before
            if is_slow and self.accept == "faster" and before and ratio:
                refusals.append(self._skipped(f"{len(chosen)} layers: {ratio / before:.2f} of the time, not faster"))
                chosen = sorted(chosen, key=lambda each: each.share)[: len(chosen) // 2]
                continue
            built = self._finished(made, model, judge, context)
            after = model_io.model_bytes(made)
            drop = None if context.judge is None else context.judge.score(made).drop
            why = (
                f"{after:,} bytes, not fewer than {size:,}" if after >= size else _objection(made, drop, context.judge)
            )
            if why is None:
                edit.become(model, made)
                return [self._summary(built, chosen, (size, after), drop), *map(self._written, chosen), *refusals]
            refusals.append(self._skipped(f"{len(chosen)} layers: {why}"))
            chosen = sorted(chosen, key=lambda each: each.loss / max(1, each.saved))[: len(chosen) // 2]
        return [*refusals, self._skipped("no layer is worth thin ones")]

    def _finished(self, made: ir.Model, original: ir.Model, judge: Divergence, context: Context) -> _BuiltFactors:
        """Refit and train a model that has been cut, in place."""
        cut = judge.of(made)
        refitted = None
        if self.refit:
            learnt_from, judged_by = divided(context.feeds)
            known = {query.label(node) for node in original.graph}
            reached: set[ir.Node] = set()
            for node in made.graph:
                if query.label(node) not in known or any(v.producer() in reached for v in query.reads(node)):
                    reached.add(node)
            reconstruct.refit(
                made,
                original,
                learnt_from,
                held_out=judged_by,
                selects=lambda node: node in reached and context.selects(node),
                seed=context.seed,
                progress=context.progress,
            )
            refitted = judge.of(made)
        distilled = None
        if self.distill_steps:
            steps, batch = affordable(made, context.feeds[0], self.distill_steps)
            distilled = distill(
                made,
                original,
                context.feeds,
                steps=steps,
                batch=batch,
                seed=context.seed,
                selects=context.selects,
                progress=context.progress,
            )
        return _BuiltFactors(cut, refitted, distilled, judge.of(made))

    def _summary(
        self, made: _BuiltFactors, chosen: Sequence[_RankChoice], sizes: tuple[int, int], drop: float | None
    ) -> Change:
        predicted = sum(each.loss for each in chosen)
        figures = [f"{len(chosen)} layers as thin ones", f"predicted loss {predicted:.3g}, measured {made.cut:.3g}"]
        details: dict[str, Any] = {"predicted_loss": predicted, "loss_when_cut": made.cut, "loss": made.loss}
        if made.refitted is not None:
            figures.append(f"refitted {made.refitted:.3g}")
            details["loss_refitted"] = made.refitted
        if made.distilled is not None:
            details["distillation"] = made.distilled.reason
            figures += made.distilled.told(made.loss)
        if drop is not None:
            figures.append(f"the score falls by {drop:.4f}")
            details["measured_drop"] = drop
        return Change.applied(
            self.name, "; ".join(figures), bytes_before=sizes[0], bytes_after=sizes[1], details=details
        )

    def _written(self, choice: _RankChoice) -> Change:
        option = choice.option
        rank = " and ".join(map(str, option.ranks))
        return Change.applied(
            self.name,
            f"{option.form} of rank {rank}: {option.numbers / choice.candidate.numbers:.2f} of its numbers",
            target=choice.candidate.label,
            details={
                "form": option.form,
                "ranks": list(option.ranks),
                "numbers_before": choice.candidate.numbers,
                "numbers": option.numbers,
                "error": option.error,
                "predicted_loss": choice.loss,
            },
        )

    def _skipped(self, reason: str) -> Change:
        return Change.skipped(self.name, reason)


@plain_dataclass(frozen=True)
class _RankChoice:
    """An option of a layer, with the loss that is predicted of it."""

    candidate: Factorization
    option: Option
    loss: float

    @property
    def share(self) -> float:
        """The part of the layer's multiplications that is left."""
        return self.option.macs / max(1, self.candidate.macs)

    @property
    def saved(self) -> int:
        """The numbers that are saved."""
        return self.candidate.numbers - self.option.numbers


@plain_dataclass(frozen=True)
class _BuiltFactors:
    """The divergence of a result's outputs when it was cut, when it was refitted and in the end."""

    cut: float
    refitted: float | None
    distilled: Distilled | None
    loss: float


def _objection(made: ir.Model, drop: float | None, judge: Judge | None) -> str | None:
    """Return why a result may not be taken, None where it may."""
    if judge is None or judge.limit is None:
        return None
    if drop is not None and drop > judge.limit:
        return f"the score falls by {drop:.4g}, more than {judge.limit:g}"
    return judge.fault(made)


def _write(model: ir.Model, chosen: Sequence[_RankChoice]) -> None:
    """Write layers of a copy as thin ones."""
    nodes = {query.label(node): node for node in model.graph}
    names = edit.Names(model)
    for choice in chosen:
        layer = layer_composition.free_layer(nodes[choice.candidate.label])
        assert layer is not None
        factorizations.write(layer, choice.option, choice.candidate.bases, names)


def _measured(model: ir.Model, candidate: Factorization, judge: Divergence) -> float:
    """Return what a layer's error costs the outputs, for each part of its mean square, by a cut in the middle."""
    option = sorted(candidate.options, key=lambda each: each.error)[len(candidate.options) // 2]
    made = model_io.clone(model)
    _write(made, [_RankChoice(candidate, option, 0.0)])
    return judge.of(made) / max(option.error, np.finfo(np.float64).eps)
