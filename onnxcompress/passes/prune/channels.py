"""Channels, heads and hidden units are cut out, and what they gave is made up for.

    w1 [64, 32, 3, 3], w2 [128, 64, 3, 3]   ->   w1 [41, 32, 3, 3], w2 [128, 41, 3, 3]

Which ones: those whose loss the layers behind can make up for best, for what they save. Then every layer is refitted
to what the original gives there, and at last all are trained together on the original's outputs; no labels needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from ... import targets
from ...activations import observe
from ...core import Action, Change, Context, DataFor, Feed, Judge, Need
from ...data import feeds as feed_facts
from ...data import synthetic
from ...data.feeds import Lazy
from ...errors import ModelError, UsageError
from ...graph import edit
from ...io import model_io
from ...runtime import session as runtime
from .budgets import Of
from .loss_curves import Norm
from .pruner import Plan, Pruned, Pruner

Share = Annotated[float | None, Field(gt=0, le=1)]

_GRAPH = "graph"
_DEFAULT = 0.7
"""Part of the MACs that is kept where nothing else is asked for."""
_RETRIES = 2
"""Times that more is kept where the score falls too much and no budget was asked for."""
_RACES = 3
"""Drafts that are timed, at most, to meet a budget of time."""
_NEAR = 0.03
"""Part of a budget of time within which it counts as met."""
_CLOSE = 0.02
"""What may be left above a budget that counts as met."""
_JOINED = 4
"""Samples that are joined, at most, to find channels at: what has one index is not told apart."""


@dataclass(frozen=True, kw_only=True)
class PruneChannels:
    """Cut channels, heads and hidden units out until a budget is met, and make up for what they gave."""

    name: ClassVar[str] = "prune-channels"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = DataFor("criterion", "reconstruction", "activation")  # type: ignore[assignment]  # a descriptor

    keep_macs: Share = None
    """Part of the multiply-accumulates that is kept. Without any budget 0.7, more where the score falls too much."""
    keep_parameters: Share = None
    """Part of the parameters that is kept."""
    keep_bytes: Share = None
    """Part of the file's bytes that is kept."""
    keep_latency: Share = None
    """Part of the time of a run that is kept, on this machine."""
    criterion: Literal["reconstruction", "activation", "magnitude"] | None = None
    """What goes first: that for which the others make up best; what gives least on the samples; the smallest weights.
    None: reconstruction with data, magnitude without."""
    norm: Norm = "l2"
    """How magnitude measures the weights of a channel."""
    scope: Literal["global", "uniform"] = "global"
    """global: channels go where they cost least for what they save. uniform: the same share of every layer."""
    min_keep: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Part of the channels of a layer that stays at least."""
    multiple: Annotated[int | None, Field(ge=1)] = None
    """The number of channels of a layer is a multiple of this afterwards. None: of what the target's kernels like."""
    rounds: Annotated[int, Field(ge=1, le=8)] = 2
    """Cuts, each with a refit after it: more are slower, and lose less where much is cut."""
    refit: bool = True
    """Refit layers to what the original gives in their place, from samples."""
    distill_steps: Annotated[int, Field(ge=0)] = 400
    """Batches by which all layers are trained on the original's outputs in the end; 0 for none."""
    samples: Annotated[int, Field(ge=2)] = 2048
    """Samples that are used, at most."""

    def __post_init__(self) -> None:
        """Refuse several budgets at once."""
        if len(self._budgets) > 1:
            given = " and ".join(f"keep_{name}" for name, _ in self._budgets)
            raise UsageError(f"prune-channels: {given} are given", hint="Give one of them")

    @property
    def _budgets(self) -> list[tuple[Of, float]]:
        every: Sequence[tuple[Of, float | None]] = (
            ("macs", self.keep_macs),
            ("parameters", self.keep_parameters),
            ("bytes", self.keep_bytes),
            ("latency", self.keep_latency),
        )
        return [(name, value) for name, value in every if value is not None]

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Replace the model by its pruned copy, or leave it as it is."""
        if not context.gate.admits(self.name, _GRAPH):
            return []
        feeds = _some(context.feeds, self.samples, in_order=bool(context.state))
        if self.criterion not in (None, "magnitude") and not feeds:
            return [self._skipped("there are no samples", 0)]
        try:
            feed = _joined(model, feeds) if feeds else _made_up(model, context.seed)
        except ModelError as error:
            return [self._skipped(str(error), 0)]
        plan = self._plan(context.target, has_data=bool(feeds))
        largest = feed_facts.largest(feeds) if feeds else feed
        pruner = Pruner(
            model,
            feeds,
            feed,
            plan,
            timed=largest,
            state=context.state,
            selects=context.selects,
            seed=context.seed,
            progress=context.progress,
        )
        keep = plan.keep
        judge = context.judge
        found = None
        if plan.of == "latency" and judge is not None:
            keep, found = self._met(pruner, keep, judge)
        size = model_io.model_bytes(model)
        refusals: list[Change] = []
        for attempt in range(_RETRIES + 1):
            found = found or pruner.run(keep, is_draft=context.is_plan)
            if not found.families:
                return [*refusals, self._skipped("no channel can go: `inspect` says what keeps them", size)]
            why = None if judge is None or self._budgets else _objection(found.model, judge)
            if why is None:
                edit.become(model, found.model)
                return [self._summary(found, plan, keep, size), *self._families(found), *refusals]
            refusals.append(self._skipped(f"{found.left:.3f} of the {plan.of} left: {why}", size))
            found = None
            keep = (1 + keep) / 2 if attempt + 1 < _RETRIES else (1 + 2 * keep) / 3
        return refusals

    def _plan(self, target: str, *, has_data: bool) -> Plan:
        of, keep = self._budgets[0] if self._budgets else ("macs", _DEFAULT)
        return Plan(
            of=of,
            keep=keep,
            criterion=self.criterion or ("reconstruction" if has_data else "magnitude"),
            norm=self.norm,
            scope=self.scope,
            min_keep=self.min_keep,
            multiple=self.multiple or targets.channel_multiple(target),
            rounds=self.rounds,
            refits=self.refit,
            steps=self.distill_steps,
        )

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

    def _summary(self, found: Pruned, plan: Plan, keep: float, size: int) -> Change:
        details: dict[str, Any] = {
            "kept": round(found.left, 4),
            "asked": round(keep, 4),
            "layers_refitted": found.layers,
        }
        figures = [f"{found.left:.3f} of the {plan.of} left"]
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
        return Change(
            pass_name=self.name,
            target=_GRAPH,
            action=Action.APPLIED,
            reason="; ".join(figures),
            bytes_before=size,
            bytes_after=model_io.model_bytes(found.model),
            details=details,
        )

    def _families(self, found: Pruned) -> list[Change]:
        return [
            Change(
                pass_name=self.name,
                target=name,
                action=Action.APPLIED,
                reason=f"{after} of {before} stay",
                details={"before": before, "after": after},
            )
            for name, before, after in found.families
        ] + [
            Change(pass_name=self.name, target=name, action=Action.SKIPPED, reason="no sample comes to it")
            for name in found.unseen
        ]

    def _skipped(self, reason: str, size: int) -> Change:
        return Change(
            pass_name=self.name,
            target=_GRAPH,
            action=Action.SKIPPED,
            reason=reason,
            bytes_before=size,
            bytes_after=size,
        )


def _objection(model: ir.Model, judge: Judge) -> str | None:
    """Return why a model may not be the result, None where it may."""
    if judge.limit is None:
        return None
    drop = judge.score(model).drop
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
