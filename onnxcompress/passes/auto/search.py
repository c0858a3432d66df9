"""The smallest and fastest model within the limit on quality, found by building candidates and measuring them.

    reductions    channels are cut, blocks dropped, layers factored: how far is found by halving between good and too
                  far; then the best of them together, by their losses alone (`strategy`)
    x numbers     int8 by the route that measures best, weights of a few bits
    --judge-->    the best that is allowed; if the user's own samples refuse it, the next best

The model as it is remains a valid answer. A search takes the best of many, so it ranks by divergence, whose variance is
low, and leaves a part of the limit for what few samples don't show.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Annotated, ClassVar

import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...accounting import LEFT_BY_CHOICE, why_nothing
from ...base.search_terms import SearchStatus
from ...core import GRAPH, Built, Change, Context, Judge, Need, Pass
from ...data import feeds as feed_facts
from ...graph import edit
from ...io import model_io
from ...ops.weight_layers import WeightedLayer
from ...search import candidates as search
from ...search.archive import Archive
from ...search.effort import SearchBudget
from ...shapes import count as counting
from .. import changed_options
from ..prune.channels import PruneChannels
from ..quantize.blocks import QuantizeBlocks
from ..quantize.int8 import QuantizeInt8
from ..quantize.weights import QuantizeWeights
from ..shallow.drop_blocks import DropBlocks
from ..shallow.low_rank import LowRank
from .build import Builder
from .quantized import WHOLE, CandidateMaker, Numbers, QuantizedCandidate
from .reductions import IN_ORDER, MAIN, PROBED, WORTH_MIXING, Reducer, Reduction, Start
from .strategy import Halving

_MILDER = 2
"""Further models that are built where the user's own samples refuse all reductions. Chosen by judgement; not
measured."""
_FEW_BUILDS = 2
"""Where no more models than this can be built, the first one is a mild one. Chosen by judgement; not measured."""
_MILD = 0.85
"""Part of the multiplications that a mild reduction keeps. Chosen by judgement; not measured."""


@dataclass(frozen=True, kw_only=True)
class SearchBest:
    """Make the smallest and fastest model within the limit: fewer channels, smaller numbers, as is measured best."""

    name: ClassVar[str] = "search-best"
    lossless: ClassVar[bool] = False
    covers_layers: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA_IF_GIVEN})

    reductions: tuple[Reduction, ...] = (MAIN,)
    """Passes that make the model itself smaller, alone and together; those of which a budget is set are tried too.
    Blocks dropped and layers factored were part of no result of seven models, at a quarter to a third of the time."""
    numbers: tuple[Numbers, ...] = ("quantize-int8", "quantize-blocks")
    """Passes that make its numbers smaller; the second only for size, or where the first saves no time."""
    builds: Annotated[int, Field(ge=0)] = 5
    """Models that are built by each reduction, at most."""
    work: Annotated[float, Field(gt=0)] = 1e11
    """Multiply-accumulates of one run over all samples, summed up over those models, at most: none is built where one
    such run has more. A build takes the time of many runs; five of a small classifier take a minute or two."""
    drop_blocks: DropBlocks = DropBlocks()
    """A keep_macs that is set is the only one that is tried; trained only where that may bring it within the limit."""
    prune_channels: PruneChannels = PruneChannels()
    """The same; a budget of another kind too."""
    low_rank: LowRank = LowRank(accept="smaller")
    """The same."""
    quantize_int8: QuantizeInt8 = QuantizeInt8()
    """First of the numbers."""
    quantize_blocks: QuantizeBlocks = QuantizeBlocks()
    """Second of the numbers."""
    quantize_weights: QuantizeWeights = QuantizeWeights()
    """Without data."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Replace the model by the best candidate; without data, store its weights as int8."""
        if context.judge is None:
            why = "nothing is measured in a plan" if context.feeds else "without --data, only weights are made smaller"
            return [*self.quantize_weights.run(model, context), _skipped(why)]
        if not context.gate.admits(self.name, GRAPH):
            return []
        return _AutoSearch(model, context, context.judge, self).run()

    def why_left(self, layer: WeightedLayer, changes: Sequence[Change]) -> str | None:
        """Return why a layer that no change is about stays as it was."""
        why = why_nothing(changes)
        return why or (None if layer.form else LEFT_BY_CHOICE)


@plain_dataclass(frozen=True)
class _Effort:
    """Number of models to build of each reduction, the first part that is kept, and the reductions to try."""

    builds: int
    first: Halving
    reductions: list[Reduction]


class _AutoSearch:
    """The search on one model; `refusals` fills with what was tried in vain."""

    def __init__(self, model: ir.Model, context: Context, judge: Judge, options: SearchBest) -> None:
        self.model, self.context, self.judge, self.options = model, context, judge, options
        self.refusals: list[Change] = []
        self.archive = context.archive or Archive()
        self.builder = Builder(model, context)
        self.offered: QuantizedCandidate | None = None
        self.budget = SearchBudget(
            context.effort, context.clock, context.steps, workers=context.executor, begins=self._show
        )
        every = (options.drop_blocks, options.prune_channels, options.low_rank, options.quantize_int8)
        held: dict[str, Pass] = {one.name: one for one in (*every, options.quantize_blocks)}
        said = options.name, self.refusals
        self.reducer = Reducer(model, context, judge, self.builder, self.archive, self.budget, held, *said)
        self.maker = CandidateMaker(
            context, judge, self.archive, held, options.numbers, self.reducer, self.budget, *said
        )

    def run(self) -> list[Change]:
        """Turn the model into the best candidate and report what was done and what was not."""
        try:
            candidates, best = self._candidates(self._effort())
            self._show("choosing")
            chosen = self._accepted(candidates, best)
        finally:
            self.builder.close()
        others = [self._not_chosen(each) for each in candidates if each is not chosen]
        if chosen is None and candidates and all(each.trial.drop is None for each in candidates):
            why = _skipped("no output can be scored, so only weights are made smaller; --output-kind may help")
            return [*self.options.quantize_weights.run(self.model, self.context), why, *self.refusals, *others]
        if chosen is None:
            return [*self.refusals, *others]
        return [*self._become(chosen), *self.refusals, *others]

    def _effort(self) -> _Effort:
        """Return what can be built within the work that is allowed."""
        options = self.options
        asked = {name for name in IN_ORDER if self.reducer.has_budget(name)}
        is_all = self.context.effort == "thorough" and "reductions" not in changed_options(options)
        named = IN_ORDER if is_all else options.reductions
        wanted = sorted({*named, *asked}, key=lambda name: (name != MAIN, name))
        affordable = self._affordable() if wanted and options.builds else 0
        has_time = affordable >= 2 * options.builds
        return _Effort(
            builds=min(options.builds, affordable),
            first=Halving() if affordable > _FEW_BUILDS else Halving(keep=_MILD),
            reductions=[name for name in wanted if name == MAIN or has_time],
        )

    def _affordable(self) -> int:
        """Return the number of models that can be built in a few minutes, or as many as are wanted."""
        if self.context.effort == "thorough" and "work" not in changed_options(self.options):
            return 2 * self.options.builds
        largest = feed_facts.largest(self.context.feeds)
        counts = counting.count(self.model, largest)
        macs = counts.macs
        if macs is None:  # then every weight counts for every element that is read
            macs = counts.parameters * max(1, feed_facts.elements(largest))
        once = macs * len(self.context.feeds)
        if once > self.options.work:
            why = f"{once:.2g} multiplications for all samples are more than {self.options.work:.2g}"
            self.refusals.append(_skipped(f"reductions would take too long: {why} (search-best.work)"))
        return int(self.options.work / max(1, once))

    def _candidates(self, effort: _Effort) -> tuple[list[QuantizedCandidate], QuantizedCandidate | None]:
        """Return the candidates, and the best one of the whole model."""
        if effort.builds:
            for name in effort.reductions:
                self.reducer.ahead(name, [PROBED.get(name, effort.first.keep)])
        found = list(self.maker.candidates(Start(WHOLE, Built(self.model, ())), None))
        best = next(iter(self._ranked(found)), None)
        self._offer(found)
        self.reducer.numbers = "" if best is None else best.numbers
        for name in effort.reductions:
            if name == MAIN:
                no_gain = functools.partial(self._no_gain, found)
                for start in self.reducer.ever_further(name, effort.first, effort.builds, no_gain):
                    found += self.maker.candidates(start, best)
                    self._offer(found)
            elif (why := self.reducer.objection(name)) is not None:
                self.refusals.append(_skipped(f"{name}: not tried: {why}"))
            else:
                self.reducer.reduced(name, PROBED[name])
        mixed = self.reducer.mixed()
        if mixed is not None:
            found += self._clearly_better(self.maker.candidates(mixed, best), found)
        return found, best

    def _clearly_better(
        self, mixed: Iterable[QuantizedCandidate], others: Sequence[QuantizedCandidate]
    ) -> list[QuantizedCandidate]:
        """Return those of several reductions together that cost clearly less than all else that may be the result."""
        ranked = self._ranked(others)
        least = search.cost(ranked[0].trial, self.judge.prefer) if ranked else math.inf
        found = []
        for each in mixed:
            if search.cost(each.trial, self.judge.prefer) < least * WORTH_MIXING:
                found.append(each)
            else:
                why = f"{each.label}: {search.figures(each.trial)}; fewer reductions do as well"
                self.refusals.append(_skipped(why))
        return found

    def _accepted(self, found: list[QuantizedCandidate], like: QuantizedCandidate | None) -> QuantizedCandidate | None:
        """Return the best that the user's own samples allow; after refused reductions milder ones are tried.

        Args:
            found: candidates; the milder ones are appended.
            like: the best one of the whole model.
        """
        refused: dict[str, QuantizedCandidate] = {}
        milder = _MILDER
        while True:
            ranked = self._ranked([c for c in found if c.label not in refused])
            if not ranked:
                return None
            best = ranked[0]
            reduced = [c.keep for c in refused.values() if c.keep is not None]
            if reduced and best.keep is None and milder:
                name, keep = max(reduced, key=lambda each: each[1])
                start = self._milder(name, round(keep**0.5, 4))
                more = [] if start is None else list(self.maker.candidates(start, like))
                found += more
                milder = milder - 1 if more else 0
                continue
            fault = self.judge.fault(best.model)
            if fault is None:
                return best
            self.refusals.append(_skipped(f"{best.label}: {search.figures(best.trial)}; {fault}"))
            refused[best.label] = best

    def _milder(self, name: Reduction, keep: float) -> Start | None:
        """Return the model less reduced than one that was refused, None where there is no time or it loses too much."""
        why = self.reducer.objection(name)
        if why is None:
            return self.reducer.reduced(name, keep)
        self.refusals.append(_skipped(f"{name} {keep:.3f}: not tried: {why}"))
        return None

    def _no_gain(self, found: Sequence[QuantizedCandidate], name: Reduction, keep: float) -> str | None:
        """Return why a model that keeps a part of its multiplications can't be better than the best so far.

        At most, the time of the last good one falls with the multiplications, and its bytes to those of the smallest
        model that keeps less, where one was built; to nothing where none was.
        """
        ranked = self._ranked(found)
        if not ranked or self.context.excess(ranked[0].trial) is not None:  # then what is smaller or faster is wanted
            return None
        sizes = {1.0: 1.0, **self.reducer.sizes.get(name, {})}
        of_this = [(c.keep[1], c) for c in found if c.keep is not None and c.keep[0] == name]
        kept, last = min(of_this, key=lambda each: each[0], default=(1.0, ranked[0]))
        size = min((size for part, size in sizes.items() if part <= keep), default=0.0) / sizes[kept]
        time = None if last.trial.latency_ratio is None else last.trial.latency_ratio * keep / kept
        at_most = replace(last.trial, size_ratio=last.trial.size_ratio * size, latency_ratio=time)
        least, reachable = (search.cost(each, self.judge.prefer) for each in (ranked[0].trial, at_most))
        if reachable * search.EQUAL < least:
            return None
        return f"without any loss it would cost {reachable:.3f} at least, and {ranked[0].label} costs {least:.3f}"

    def _ranked(self, found: Sequence[QuantizedCandidate]) -> list[QuantizedCandidate]:
        """Return those that may be the result, best first; those that meet the user's other limits before all."""
        ranked = search.ranked(found, self.judge.prefer, self.judge.limit)
        return sorted(ranked, key=lambda c: self.context.excess(c.trial) is not None)

    def _become(self, chosen: QuantizedCandidate) -> list[Change]:
        changes = self._changes(chosen)
        edit.become(self.model, chosen.model)
        self.archive.choose(chosen)
        return changes

    def _changes(self, chosen: QuantizedCandidate) -> list[Change]:
        """Return what was done to get a candidate, with a summary."""
        # no bytes: they stand with the changes that it is made of
        summary = Change.applied(SearchBest.name, f"{chosen.label}: {search.figures(chosen.trial)}")
        return [summary, *chosen.changes]

    def _offer(self, found: Sequence[QuantizedCandidate]) -> None:
        """Offer the best so far where it is another one than before, in case that the search is stopped."""
        best = next(iter(self._ranked(found)), None)
        if best is None or best is self.offered:
            return
        self.offered = best
        if self.context.best.is_wanted:
            self.context.best.offer(model_io.clone(best.model), [*self._changes(best), *self.refusals])

    def _show(self, stage: str) -> None:
        """Show a step that begins, beside the best so far."""
        best = "" if self.offered is None else search.figures(self.offered.trial)
        self.context.show(SearchStatus(stage=stage, best=best, left=self.budget.left))

    def _not_chosen(self, other: QuantizedCandidate) -> Change:
        """Report why a candidate is not the result."""
        why = search.objection(other.trial, self.judge.prefer, self.judge.limit)
        why = why or self.context.excess(other.trial) or "another one is better"
        return _skipped(f"{other.label}: {search.figures(other.trial)}; {why}")


def _skipped(reason: str) -> Change:
    return Change.skipped(SearchBest.name, reason)
