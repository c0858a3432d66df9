"""Channels, heads and hidden units are removed, and the others compensate for them.

    w1 [64, 32, 3, 3], w2 [128, 64, 3, 3]   ->   w1 [41, 32, 3, 3], w2 [128, 41, 3, 3]

Those are removed whose loss the layers behind compensate best, for what they save. Then every layer is refitted
to what the original gives there, and at last all are trained together on the original's outputs; no labels needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ...accounting import why_nothing
from ...activations import observe
from ...core import GRAPH, Change, Context, DataFor, Feed, Judge, Need
from ...data import feeds as feed_facts
from ...data import synthetic
from ...data.feeds import Lazy
from ...errors import ModelError
from ...graph import edit
from ...io import model_io
from ...ops.weight_layers import WeightedLayer, weighted_layers
from ...runtime import session as runtime
from ...search import drafts
from ...targets import facts as targets
from .budgets import Of
from .options import PruneOptions
from .pruner import Pruned, Pruner

_KEEP_MACS = (0.7, 0.85, 0.9)
"""Parts of the MACs that are kept where no budget is given: the first, or the next where the score falls too much.
Chosen by judgement; not measured."""
_RACES = 3
"""Drafts that are timed, at most, to meet a budget of time. Chosen by judgement; not measured."""
_NEAR = 0.03
"""Part of a budget of time within which it counts as met. Chosen by judgement; not measured."""
_CLOSE = 0.02
"""Part of the original by which a budget may be exceeded and counts as met: what the interface promises."""
_DRAFT = "cut once, neither refitted nor trained"
"""Difference of a plan from a run."""
_JOINED = 4
"""Samples that are joined, at most, to find channels at: an axis of one index is not told apart from others."""


@dataclass(frozen=True, kw_only=True)
class PruneChannels(PruneOptions):
    """Remove channels, heads and hidden units until a budget is met, and compensate for them."""

    name: ClassVar[str] = "prune-channels"
    lossless: ClassVar[bool] = False
    covers_layers: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = DataFor("criterion", "reconstruction", "activation")  # type: ignore[assignment]  # a descriptor

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Replace the model by its pruned copy, or leave it as it is."""
        if not context.gate.admits(self.name, GRAPH):
            return []
        feeds = _some(context.feeds, self.samples, in_order=bool(context.state))
        if self.criterion not in (None, "magnitude") and not feeds:
            return [self._skipped("there are no samples", 0)]
        try:
            feed = _joined(model, feeds) if feeds else _made_up(model, context.seed)
        except ModelError as error:
            return [self._skipped(str(error), 0)]
        of = self.budgets[0][0] if self.budgets else "macs"
        pruner = Pruner(
            model,
            feeds,
            feed,
            replace(self, multiple=self.multiple or targets.channel_multiple(context.target)),
            of=of,
            timed=feed_facts.largest(feeds) if feeds else feed,
            state=context.state,
            selects=context.selects,
            seed=context.seed,
            progress=context.progress,
            while_time=context.while_time,
            findings=None if context.is_plan else context.findings,
            is_plan=context.is_plan,
        )
        blocked = list(self._blocked(model, pruner.blocked, context))
        found = self._on_budget(model, pruner, context) if self.budgets else self._within_limit(model, pruner, context)
        if context.is_plan and feeds:
            found = drafts.marked(found, _DRAFT, samples=pruner.compared)
        return [*found, *blocked]

    def why_left(self, layer: WeightedLayer, changes: Sequence[Change]) -> str | None:  # noqa: ARG002 - as its signature is wanted
        """Return why a layer with channels that could be removed keeps all of them."""
        return why_nothing(changes) or "none of its channels is removed: others cost less for what they save"

    def _blocked(self, model: ir.Model, reasons: Mapping[str, str], context: Context) -> Iterator[Change]:
        """Yield a refusal for each layer of which no channel can be removed."""
        for layer in weighted_layers(model):
            found = [reasons.get(weight.name) for weight in layer.main]
            if context.selects(layer.node) and found and all(found):
                size = sum(weight.bytes for weight in layer.main)
                why = f"no channel of it can be removed: {found[0]}"
                yield Change.skipped(self.name, why, target=layer.label, bytes_before=size)

    def _on_budget(self, model: ir.Model, pruner: Pruner, context: Context) -> list[Change]:
        """Meet the budget that is given, whatever the score."""
        of, keep = self.budgets[0]
        if of == "latency" and context.judge is not None:
            keep, found = self._met(pruner, keep, context.judge)
        else:
            found = pruner.run(keep, is_draft=context.is_plan)
        return self._become(model, found, of, keep) if found.families else [self._nothing(model)]

    def _within_limit(self, model: ir.Model, pruner: Pruner, context: Context) -> list[Change]:
        """Keep more of the MACs until the score stays within the limit."""
        refusals: list[Change] = []
        size = model_io.model_bytes(model)
        for keep in _KEEP_MACS:
            found = pruner.run(keep, is_draft=context.is_plan)
            if not found.families:
                return [*refusals, self._nothing(model)]
            why = None if context.judge is None else _objection(found.model, context.judge)
            if why is None:
                return [*self._become(model, found, "macs", keep), *refusals]
            refusals.append(self._skipped(f"{found.left:.3f} of the macs left: {why}", size))
        return refusals

    def _met(self, pruner: Pruner, wanted: float, judge: Judge) -> tuple[float, Pruned]:
        """Return a model that takes the part of time that is wanted, and the part that was kept by the table of times.

        The time of drafts between the last one that was too slow and the last one too fast is taken as a line; what is
        cut in rounds has other shapes, so that it is timed as well and corrected once before it is trained.
        """
        slow, fast = (1.0, 1.0), (0.0, 0.0)
        keep = wanted
        for number in range(_RACES):
            ratio = judge(pruner.run(keep, is_draft=True).model, f"{self.name}/draft {number} {keep:.4f}").latency_ratio
            if ratio is None or abs(ratio / wanted - 1) <= _NEAR:
                break
            slow, fast = ((keep, ratio), fast) if ratio > wanted else (slow, (keep, ratio))
            if slow[1] <= fast[1]:
                break
            keep = fast[0] + (wanted - fast[1]) * (slow[0] - fast[0]) / (slow[1] - fast[1])
        found = pruner.cut(keep)
        ratio = judge(found.model, f"{self.name}/cut {keep:.4f}").latency_ratio
        if ratio is not None and ratio < 1 and abs(ratio / wanted - 1) > _NEAR:
            keep = max(keep / 2, 1 - (1 - keep) * (1 - wanted) / (1 - ratio))
            found = pruner.cut(keep)
        return keep, pruner.finish(found)

    def _become(self, model: ir.Model, found: Pruned, of: Of, keep: float) -> list[Change]:
        """Turn the model into its pruned copy."""
        size = model_io.model_bytes(model)
        edit.become(model, found.model)
        return [self._summary(found, of, keep, size), *self._families(found)]

    def _summary(self, found: Pruned, of: Of, keep: float, size: int) -> Change:
        details: dict[str, Any] = {
            "kept": round(found.left, 4),
            "asked": round(keep, 4),
            "layers_refitted": found.layers,
        }
        figures = [f"{found.left:.3f} of the {of} left"]
        if found.left > keep + _CLOSE:
            figures.append(f"{keep:.3f} was asked for: pinned channels and min_keep allow no more")
        losses = {
            "predicted_loss": found.predicted,
            "loss_when_cut": found.cut,
            "loss_refitted": found.refitted,
            "loss": found.final,
        }
        details |= {name: float(f"{value:.4g}") for name, value in losses.items() if value is not None}
        if found.predicted is not None and found.cut is not None:
            figures.append(f"predicted loss {found.predicted:.3g}, measured {found.cut:.3g}")
        if found.refitted is not None and found.layers:
            figures.append(f"refitted {found.refitted:.3g}")
        if found.distilled is not None:
            details["distillation"] = found.distilled.reason
            figures += found.distilled.figures(found.final)
        return Change.applied(
            self.name,
            "; ".join(figures),
            bytes_before=size,
            bytes_after=model_io.model_bytes(found.model),
            details=details,
        )

    def _families(self, found: Pruned) -> list[Change]:
        cut = [
            Change.applied(
                self.name, f"{after} of {before} stay", target=name, details={"before": before, "after": after}
            )
            for name, before, after in found.families
        ]
        return cut + [Change.skipped(self.name, "no sample comes to it", target=name) for name in found.unseen]

    def _nothing(self, model: ir.Model) -> Change:
        return self._skipped("no channel can go: `inspect` says what keeps them", model_io.model_bytes(model))

    def _skipped(self, reason: str, size: int) -> Change:
        return Change.skipped(self.name, reason, bytes_before=size)


def _objection(model: ir.Model, judge: Judge) -> str | None:
    """Return why a model may not be the result, None where it may."""
    if judge.limit is None:
        return None
    drop = judge.score(model).limited_drop
    if drop is not None and drop > judge.limit:
        return f"the score falls by {drop:.4g}, more than {judge.limit:g}"
    return judge.fault(model)


def _some(feeds: Sequence[Feed], most: int, *, in_order: bool) -> Sequence[Feed]:
    """Return at most so many feeds, evenly spread; from the first on where they carry a state."""
    if len(feeds) <= most:
        return feeds
    if in_order:
        return feeds[:most]
    return Lazy([index * len(feeds) // most for index in range(most)], feeds.__getitem__)


def _joined(model: ir.Model, feeds: Sequence[Feed]) -> Feed:
    return next(iter(observe.batched(model, feeds[:_JOINED], _JOINED)))


def _made_up(model: ir.Model, seed: int) -> Feed:
    session = runtime.open_session(model_io.to_bytes(model), optimize=False)
    return synthetic.tried_feeds(model, session, seed=seed, count=1)[0].feed
