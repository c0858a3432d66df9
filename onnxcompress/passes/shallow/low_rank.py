"""Replace layers by two or three low-rank factors, whose weights have fewer numbers and which multiply less.

    W [out, in]  ->  A [out, r], B [r, in]          Conv k x k: also k x 1 and 1 x k, or 1 x 1, k x k and 1 x 1

Directions are those that matter for the outputs of the layers on the samples (`numerics.linear.lowrank`). The ranks of
all layers are chosen together by integer programming over the measured effect of trial factorizations on the outputs.
The last factors are refitted on the inputs that reach them, then all are trained on the original's outputs. The result
is taken only where it is smaller and, unless `accept` is "smaller", measured faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...accounting import why_nothing
from ...core import GRAPH, Change, Context, Feed, Need
from ...data import feeds as feed_facts
from ...distillation import reconstruct
from ...distillation.sample_split import divided
from ...distillation.train import Distilled
from ...errors import UsageError
from ...graph import edit, query
from ...io import model_io
from ...numerics.optimization.allocation import allocate
from ...ops import table as ops
from ...ops.linear import linear_layers, why_not_linear
from ...ops.weight_layers import WeightedLayer
from ...quality.divergence import Divergence
from ...search import drafts
from ...shapes import resolve
from ...targets import facts as targets
from ..fold import layer_composition
from . import factorizations, recovery
from .factorizations import Factorization, Form, Option
from .shortcuts import main_shapes

_FORMS: dict[str, tuple[Form, ...]] = {
    "best": ("matrix", "rows", "spatial", "tucker"),
    "rows": ("matrix", "rows"),
    "spatial": ("matrix", "spatial"),
    "tucker": ("matrix", "tucker"),
    "none": ("matrix",),
}
_SAMPLES = 256
"""Most samples from which directions are computed. Chosen by judgement; not measured."""
_SCORED = (16, 128)
"""Fewest and most samples on which outputs are compared. Chosen on the zoo models."""
_SCORED_MACS = 2e11
"""Multiplications of the runs for all candidates together, about. Chosen on the zoo models, for time."""
_DRAFT = "neither refitted nor trained"
"""Difference of a plan from a run."""
_RETRIES = 2
"""Attempts with the better half of the layers after a refusal. Chosen by judgement; not measured."""
_FASTER = 0.98
"""Most of the time before that a result may take, as a part, to count as faster: about the noise of paired timings.
Chosen by judgement; not measured."""

Share = Annotated[float | None, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """Matrices and convolutions become low-rank factors, chosen on data, where that is smaller and faster."""

    name: ClassVar[str] = "low-rank"
    lossless: ClassVar[bool] = False
    covers_layers: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})

    keep_parameters: Share = None
    """Part of the parameters of the selected layers (--only, --skip) that is kept."""
    keep_macs: Share = None
    """Part of these layers' multiplications that is kept."""
    divergence: Annotated[float, Field(ge=0)] = 0.002
    """Without such a budget: most predicted divergence of the outputs (nats for class scores, part of the variance for
    others)."""
    conv: Literal["best", "rows", "spatial", "tucker", "none"] = "best"
    """Form of convolutions with a kernel: k x k and 1 x 1 (rows), k x 1 and 1 x k (spatial), between two of
    1 x 1 (tucker), the best of these for each, or not at all."""
    multiple: Annotated[int | None, Field(ge=1)] = None
    """Ranks are multiples of this. None: the multiple that suits the target's kernels."""
    accept: Literal["faster", "smaller"] = "faster"
    """faster: the result has to be smaller and faster. smaller: it may be slower."""
    refit: bool = True
    """Refit the last factors, and the layers after them, to the original's values."""
    distill_steps: Annotated[int, Field(ge=0)] = 200
    """Batches by which all layers are trained on the original's outputs in the end; 0 for none."""

    def __post_init__(self) -> None:
        """Refuse two budgets."""
        if self.keep_parameters is not None and self.keep_macs is not None:
            raise UsageError("low-rank: keep_parameters and keep_macs are given", hint="Give one of them")

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Replace the model by one with low-rank factors, or keep it."""
        if context.state:
            return [
                Change.skipped(self.name, "samples that carry a state from one run to the next can't be taken apart")
            ]
        found = [layer_composition.free_layer(layer.node) for layer in linear_layers(model)]
        layers = [
            layer
            for layer in found
            if layer is not None and layer.node.graph is model.graph and query.sole_consumer(layer.weight) is not None
            if context.selects(layer.node)
        ]
        largest = feed_facts.largest(context.feeds)
        shapes = main_shapes(model, largest)
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
            return [Change.skipped(self.name, "no layer is large enough to be worth factorizing")]
        if not context.gate.admits(self.name, GRAPH):
            return []
        macs = ops.total_macs(model, resolve.shape_lookup(shapes)).total
        feeds = _scored(context, macs, len(possible))
        judge = Divergence(model, feeds)
        chosen = self._chosen(
            possible, [_measured(model, each, judge) for each in context.progress("Probing", possible)]
        )
        if chosen is None:
            return [Change.skipped(self.name, "even the lowest ranks are over the budget")]
        built = self._built(model, chosen, judge, context)
        return drafts.marked(built, _DRAFT, samples=len(feeds)) if context.is_plan else built

    def why_left(self, layer: WeightedLayer, changes: Sequence[Change]) -> str | None:
        """Return why a layer that `run` did not factorize keeps its weights."""
        if layer.form:
            return None
        why = why_not_linear(layer.node) or why_nothing(changes[::-1])
        return why or "its ranks stay full: lower ones would save less than they lose"

    def _chosen(self, possible: Sequence[Factorization], slopes: Sequence[float]) -> list[_RankChoice] | None:
        """Choose options within the budget; None where it can't be met."""
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

    def _built(self, model: ir.Model, chosen: list[_RankChoice], judge: Divergence, context: Context) -> list[Change]:
        """Build the chosen factors; where the result is not good enough, the better half of them."""
        refusals: list[Change] = []
        before = None if context.judge is None else context.judge(model, f"{self.name}/before").latency_ratio
        size = model_io.model_bytes(model)
        for attempt in range(_RETRIES + 1):
            if not chosen:
                break
            factored = model_io.clone(model)
            _write(factored, chosen)
            ratio = None if context.judge is None else context.judge(factored, f"{self.name}/{attempt}").latency_ratio
            is_slow = before is not None and ratio is not None and ratio > _FASTER * before
            if is_slow and self.accept == "faster" and before and ratio:
                refusals.append(
                    Change.skipped(self.name, f"{len(chosen)} layers: {ratio / before:.2f} of the time, not faster")
                )
                chosen = sorted(chosen, key=lambda each: each.share)[: len(chosen) // 2]
                continue
            built = self._recovered(factored, model, judge, context)
            after = model_io.model_bytes(factored)
            drop = None if context.judge is None else context.judge.score(factored).limited_drop
            why = (
                f"{after:,} bytes, not fewer than {size:,}"
                if after >= size
                else recovery.limit_fault(factored, drop, context.judge)
            )
            if why is None:
                edit.become(model, factored)
                return [self._summary(built, chosen, (size, after), drop), *map(self._layer_change, chosen), *refusals]
            refusals.append(Change.skipped(self.name, f"{len(chosen)} layers: {why}"))
            chosen = sorted(chosen, key=lambda each: each.loss / max(1, each.saved))[: len(chosen) // 2]
        return [*refusals, Change.skipped(self.name, "no layer is worth factorizing")]

    def _recovered(self, factored: ir.Model, original: ir.Model, judge: Divergence, context: Context) -> _BuiltFactors:
        """Refit and train a factorized model in place; neither for a plan, whose bytes these do not change."""
        cut = judge.of(factored)
        if context.is_plan:
            return _BuiltFactors(cut, None, None, cut)
        refitted = None
        if self.refit:
            fitted, held_out = divided(context.feeds)
            reached = recovery.reached_nodes(factored, original)
            reconstruct.refit(
                factored,
                original,
                fitted,
                held_out=held_out,
                selects=lambda node: node in reached and context.selects(node),
                seed=context.seed,
                progress=context.while_time,
            )
            refitted = judge.of(factored)
        distilled = recovery.train(factored, original, context, self.distill_steps)
        return _BuiltFactors(cut, refitted, distilled, judge.of(factored))

    def _summary(
        self, built: _BuiltFactors, chosen: Sequence[_RankChoice], sizes: tuple[int, int], drop: float | None
    ) -> Change:
        predicted = sum(each.loss for each in chosen)
        figures = [f"{len(chosen)} layers factorized", f"predicted loss {predicted:.3g}, measured {built.cut:.3g}"]
        details: dict[str, Any] = {"predicted_loss": predicted, "loss_when_cut": built.cut, "loss": built.loss}
        if built.refitted is not None:
            figures.append(f"refitted {built.refitted:.3g}")
            details["loss_refitted"] = built.refitted
        if drop is not None:
            details["measured_drop"] = drop
        return recovery.summary(
            self.name, figures, details, distilled=built.distilled, loss=built.loss, drop=drop, sizes=sizes
        )

    def _layer_change(self, choice: _RankChoice) -> Change:
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


@plain_dataclass(frozen=True)
class _RankChoice:
    """A chosen option of a layer, with its predicted loss."""

    candidate: Factorization
    option: Option
    loss: float

    @property
    def share(self) -> float:
        """Part of the layer's multiplications that is kept."""
        return self.option.macs / max(1, self.candidate.macs)

    @property
    def saved(self) -> int:
        """Elements of the weights that are saved."""
        return self.candidate.numbers - self.option.numbers


@plain_dataclass(frozen=True)
class _BuiltFactors:
    """Divergence of a result's outputs after the factorization, after the refit and in the end."""

    cut: float
    refitted: float | None
    distilled: Distilled | None
    loss: float


def _scored(context: Context, macs: int, candidates: int) -> Sequence[Feed]:
    """Return the samples on which the outputs with each candidate are compared; in a plan as few as it can afford."""
    feeds = context.feeds
    if context.is_plan:
        return drafts.some(feeds, macs, candidates)
    count = min(_SCORED[1], max(_SCORED[0], int(_SCORED_MACS / max(1, macs * candidates))))
    return feeds[:: max(1, -(-len(feeds) // count))]


def _write(model: ir.Model, chosen: Sequence[_RankChoice]) -> None:
    """Factorize layers of a copy."""
    nodes = {query.label(node): node for node in model.graph}
    names = edit.Names(model)
    for choice in chosen:
        layer = layer_composition.free_layer(nodes[choice.candidate.label])
        assert layer is not None
        factorizations.write(layer, choice.option, choice.candidate.bases, names)


def _measured(model: ir.Model, candidate: Factorization, judge: Divergence) -> float:
    """Return the divergence of the outputs per part of the layer's mean square that is missed, by a middle option."""
    option = sorted(candidate.options, key=lambda each: each.error)[len(candidate.options) // 2]
    factored = model_io.clone(model)
    _write(factored, [_RankChoice(candidate, option, 0.0)])
    return judge.of(factored) / max(option.error, np.finfo(np.float64).eps)
