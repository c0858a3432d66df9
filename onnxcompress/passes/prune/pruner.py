"""Channel pruning from end to end: rounds of cutting and refitting, then training on what the original gives.

round:  Channels -> curves -> measured curves -> shares that meet the round's budget -> cut -> refit
end:    distillation, kept where the loss on samples held out falls
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ...channels import groups as channel_engine
from ...channels.groups import Channels
from ...core import Feed, Progress, no_progress
from ...distillation.reconstruct import refit
from ...distillation.targets import LayerMatch
from ...distillation.train import Distilled, affordable, distill
from ...io import model_io
from ...numerics.linear.elimination import Curve
from ...numerics.threads import one_thread
from ...quality.divergence import Divergence
from ...search import drafts
from ...search.checkpoint import digest
from ...shapes import count as counting
from . import consumers, loss_curves, probe_cuts
from .budgets import Budgeting, Of
from .loss_curves import Family
from .options import PruneOptions

log = logging.getLogger(__name__)

_PROBES = (24, 256)
"""Samples on which the outputs are compared, at least and at most. Chosen by judgement; not measured."""
_PROBING_MACS = 2e11
"""MACs of the original on them for each family and round, summed up: a third of the probing. Chosen by judgement; not
measured."""


@dataclass(kw_only=True)
class Pruned:
    """Result of channel pruning.

    Args:
        model: the pruned model.
        left: part of the budget's thing that is left.
        families: (name, channels before, channels after) of those that lost some.
        predicted: divergence of the outputs that was predicted before the last cut; None where nothing was measured.
        cut: the same after the last cut, measured.
        refitted: the same after the refit.
        final: the same in the end.
        layers: layers that were refitted.
        unseen: names of families that no sample came to, and that stay.
        distilled: how the training went; None where there was none.
    """

    model: ir.Model
    left: float
    families: list[tuple[str, int, int]] = field(default_factory=list)
    predicted: float | None = None
    cut: float | None = None
    refitted: float | None = None
    final: float | None = None
    layers: int = 0
    unseen: list[str] = field(default_factory=list)
    distilled: Distilled | None = None


@dataclass(frozen=True, kw_only=True)
class _Costs:
    """Costs of cutting a model; the numbers of groups and sites are those of its channels.

    Args:
        families: that can be cut.
        unseen: names of those that could be but that no sample came to.
        curves: of the families.
        statistics: what reaches the sites; None where only weights are looked at.
        before: divergence of the model from the original; None where the curves are in other units than that.
    """

    families: list[Family]
    unseen: list[str]
    curves: list[Curve]
    statistics: consumers.Statistics | None
    before: float | None


@dataclass(kw_only=True)
class _Stage:
    """A copy after some cuts; it is not changed any more.

    Args:
        pruned: the copy and the figures of the last cut.
        kept: output of a layer -> which of the original's channels are left.
        sizes: family -> its number of groups in the original, and now.
        costs: of cutting it further; None until they are needed.
    """

    pruned: Pruned
    kept: dict[str, np.ndarray] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    costs: _Costs | None = None


class Pruner:
    """Prunes copies of one model.

    Args:
        original: not changed.
        feeds: the user's samples, complete; empty for none.
        feed: at whose shapes channels are found and MACs counted.
        options: of the pass, but for the budget, which is given to `run`.
        of: quantity that the budget is a part of.
        timed: at whose shapes layers are timed, for a budget of time; None for `feed`.
        state: input -> output whose value it gets from the run before.
        selects: False for nodes to skip.
        seed: of all random choices.
        progress: wraps long loops.
        while_time: wraps those that may end before their last item, where the time is up.
        findings: keeps the stages of the last cut, for other pruners of the original; None for this one alone.
        is_plan: measure on as few samples, and with as few trial cuts, as a plan can afford.

    Attributes:
        blocked: name -> reason of the original's constants of which nothing can be removed.
        compared: number of samples on which outputs are compared.
    """

    def __init__(
        self,
        original: ir.Model,
        feeds: Sequence[Feed],
        feed: Feed,
        options: PruneOptions,
        *,
        of: Of,
        timed: Feed | None = None,
        state: Mapping[str, str] | None = None,
        selects: Callable[[ir.Node], bool] = lambda _: True,
        seed: int = 0,
        progress: Progress = no_progress,
        while_time: Progress = no_progress,
        findings: MutableMapping[str, Any] | None = None,
        is_plan: bool = False,
    ) -> None:
        self._original = original
        self._feeds = feeds
        self._feed = feed
        self._options = options
        self._criterion = options.criterion or ("reconstruction" if feeds else "magnitude")
        self._of = of
        self._state = dict(state or {})
        self._selects = selects
        self._seed = seed
        self._progress = progress
        self._while_time = while_time
        channels = channel_engine.find_groups(model_io.clone(original), feed)
        self._budgeting = Budgeting(of, original, channels, feed if timed is None else timed)
        families = loss_curves.families(channels, selects)
        self._family_names = [family.label for family in families]
        self.blocked = channels.blocked()
        self._is_plan = is_plan
        self._probes = self._some(len(families)) if feeds else feeds
        self.compared = len(self._probes)
        self._from_original = Divergence(original, self._probes, state=self._state) if feeds else None
        self._findings = {} if findings is None else findings

    def run(self, keep: float, *, is_draft: bool = False) -> Pruned:
        """Return a pruned copy.

        Args:
            keep: part of what the budget is about that may be left.
            is_draft: cut once without refit: to be timed.
        """
        found = self.cut(keep, is_draft=is_draft)
        return found if is_draft else self.finish(found)

    def cut(self, keep: float, *, is_draft: bool = False) -> Pruned:
        """Return a copy that is cut and refitted but not trained: its shapes are final.

        Args:
            keep: part of what the budget is about that may be left.
            is_draft: cut once without refit: to be timed.
        """
        if not self._family_names:
            return Pruned(model=model_io.clone(self._original), left=1.0)
        refits = self._options.refit and bool(self._feeds) and not is_draft
        steps = self._steps(keep) if refits else (keep,)
        if self._key not in self._findings:
            self._findings[self._key] = {(): self._begin()}
        known: dict[tuple[float, ...], _Stage] = self._findings[self._key]
        done = max((each for each in known if each == steps[: len(each)]), key=len) if refits else ()
        before = stage = known[done]
        for step in steps[len(done) :]:
            before, stage = stage, self._round(stage, step, refits=refits)
        if refits and done != steps:  # the next cut goes on from this one, or from the one before
            self._findings[self._key] = {(): known[()], steps[:-1]: before, steps: stage}
        pruned = replace(stage.pruned, model=model_io.clone(stage.pruned.model))
        pruned.families = [(name, size, left) for name, (size, left) in stage.sizes.items()]
        pruned.final = pruned.refitted
        return pruned

    def _some(self, families: int) -> Sequence[Feed]:
        """Return the samples on which outputs are compared."""
        feeds = self._feeds
        macs = counting.count(self._original, feeds[0]).macs or 0
        if self._is_plan:
            return drafts.some(feeds, macs, families, in_order=bool(self._state))
        count = families * self._options.rounds
        probes = int(min(max(_PROBING_MACS / max(1, macs * count), _PROBES[0]), _PROBES[1]))
        return feeds[:probes] if self._state else feeds[:: max(1, -(-len(feeds) // probes))]

    def _steps(self, keep: float) -> tuple[float, ...]:
        """Return the parts that are left after each cut."""
        rounds, stages = self._options.rounds, self._options.stages
        return (*stages, keep) if stages else tuple(keep ** ((number + 1) / rounds) for number in range(rounds))

    def _begin(self) -> _Stage:
        """Return the original before the first cut."""
        start = model_io.clone(self._original)
        if self._feeds and self._criterion == "reconstruction":
            loss_curves.own_constants(start, self._selects)
        return _Stage(pruned=Pruned(model=start, left=1.0))

    def finish(self, found: Pruned) -> Pruned:
        """Train a copy that is cut, and return it."""
        if self._feeds and self._options.distill_steps and found.families and not self._state:
            steps, batch = affordable(found.model, self._feeds[0], self._options.distill_steps)
            found.distilled = distill(
                found.model,
                self._original,
                self._feeds,
                steps=steps,
                batch=batch,
                seed=self._seed,
                progress=self._while_time,
            )
            found.final = self._distance(found.model)
        return found

    def _round(self, stage: _Stage, target: float, *, refits: bool) -> _Stage:
        """Return what comes of a stage when a copy of it is cut once and refitted."""
        student = model_io.clone(stage.pruned.model)
        found = replace(stage.pruned, model=student)
        channels = channel_engine.find_groups(student, self._feed)
        meter = self._budgeting.of(student, channels)
        sites = consumers.sites(channels)
        stage.costs = costs = stage.costs or self._costs(student, channels, sites, stage.sizes)
        found.unseen = costs.unseen
        sizes = dict(stage.sizes)
        with one_thread():
            counts = [len(family.groups) for family in costs.families]
            share = loss_curves.uniform if self._options.scope == "uniform" else loss_curves.allocate
            taken = share(costs.curves, counts, meter, target, multiple=self._options.multiple or 1)
            found.left = meter.left
            if costs.before is not None:
                losses = (c.losses[k - 1].sum() for c, k in zip(costs.curves, taken, strict=True) if k)
                found.predicted = costs.before + float(sum(losses))
                log.info("%.3f of the %s will be left: predicted loss %.3g", found.left, self._of, found.predicted)
            removed = loss_curves.chosen(costs.curves, taken)
            for family, size, goes in zip(costs.families, counts, taken, strict=True):
                if goes:
                    sizes[family.label] = (sizes.get(family.label, (size, size))[0], size - goes)
            makes_up = costs.statistics if self._criterion == "reconstruction" else None
            left = loss_curves.take_out(channels, removed, sites, makes_up)
        kept = loss_curves.composed(stage.kept, left)
        found.cut = found.refitted = self._distance(student)
        if found.cut is not None:
            log.info("measured loss %.3g", found.cut)
        if refits and not self._state and removed:
            changes = refit(
                student,
                self._original,
                self._feeds,
                LayerMatch(channels=kept),
                selects=self._selects,
                seed=self._seed,
                progress=self._while_time,
            )
            found.layers = sum(change.is_applied for change in changes)
            found.refitted = self._distance(student)
        return _Stage(pruned=found, kept=kept, sizes=sizes)

    @functools.cached_property
    def _key(self) -> str:
        """Digest of all that the stages of cutting the original depend on."""
        options = replace(
            self._options,
            keep_macs=None,
            keep_parameters=None,
            keep_bytes=None,
            keep_latency=None,
            stages=(),
            distill_steps=0,
        )
        choices = (self._of, options, self._seed, self._state, self._family_names)
        arrays = (np.asarray(feed[name]) for feed in (*self._feeds, self._feed) for name in sorted(feed))
        return digest([b"prune-channels", model_io.to_bytes(self._original), repr(choices), *arrays])

    def _costs(
        self,
        student: ir.Model,
        channels: Channels,
        sites: Sequence[consumers.ChannelConsumer],
        sizes: Mapping[str, tuple[int, int]],
    ) -> _Costs:
        """Find out what it costs to cut a student of which families have been cut before, down to `sizes`."""
        families = loss_curves.families(channels, self._selects)
        statistics = None
        if self._feeds and self._criterion != "magnitude":
            read = {index for family in families for index in family.sites}
            statistics = consumers.gather(
                student,
                [sites[index] for index in sorted(read)],
                self._feeds,
                state=self._state,
                seed=self._seed,
                progress=self._progress,
            )
        unseen: list[Family] = []
        if statistics is not None:
            seen = {index for family in families for index in family.sites if statistics.is_seen(sites[index])}
            unseen = [family for family in families if family.sites and not seen.intersection(family.sites)]
            families = [family for family in families if family not in unseen]
        before = None
        with one_thread():
            whole = {family.label: len(family.groups) for family in families}
            whole |= {name: size for name, (size, _) in sizes.items() if name in whole}
            curves = [
                self._curve(channels, family, sites, statistics, whole[family.label])
                for family in self._progress("Eliminating channels", families)
            ]
            if statistics is not None and self._criterion == "reconstruction" and self._options.scope == "global":
                before = self._distance(student) or 0.0
                divergence = Divergence(student, self._probes, state=self._state)
                curves = probe_cuts.measured(
                    channels,
                    families,
                    curves,
                    sites,
                    statistics,
                    divergence,
                    self._feed,
                    cuts=probe_cuts.ONE_CUT if self._is_plan else probe_cuts.CUTS,
                    progress=self._progress,
                )
        return _Costs(
            families=families,
            unseen=[family.label for family in unseen],
            curves=curves,
            statistics=statistics,
            before=before,
        )

    def _curve(
        self,
        channels: Channels,
        family: Family,
        sites: Sequence[consumers.ChannelConsumer],
        statistics: consumers.Statistics | None,
        size: int,
    ) -> Curve:
        """Return the curve of a family that had `size` groups in the original."""
        most = max(0, len(family.groups) - max(1, round(self._options.min_keep * size)))
        if statistics is None:
            return loss_curves.magnitude(channels, family, norm=self._options.norm, most=most)
        if self._criterion == "activation":
            return loss_curves.activation(channels, family, sites, statistics, most=most)
        return loss_curves.reconstruction(channels, family, sites, statistics, most=most)

    def _distance(self, model: ir.Model) -> float | None:
        return None if self._from_original is None else self._from_original.of(model)
