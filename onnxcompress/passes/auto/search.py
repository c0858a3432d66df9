"""The smallest and fastest model within the limit on quality, found by building candidates and measuring them.

    reductions    channels are cut, blocks dropped, layers made thin: how much is found by halving the way between good
                  and too much; then those that go together, by what each lost alone (`mixing`)
    x numbers     int8 in the way that measures best, weights of a few bits
    --judge-->    the best that is allowed; if the user's own samples object, the next best

The model as it is stays a valid answer. A search takes the best of many, so it looks at steadier figures than the
report's (`Trial.expected_drop`), and leaves a part of the limit for what few samples don't show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...base.gate import Gate, Memo
from ...core import Action, Built, Candidate, Change, Context, Judge, Need, Pass, Trial
from ...data import feeds as feed_facts
from ...errors import ModelError
from ...graph import edit
from ...io import model_io
from ...search import candidates as search
from ...search.archive import Archive, ScopedJudge
from ...shapes import count as counting
from .. import available
from .. import build as build_pass
from ..quantize.weights import QuantizeWeights
from .build import Builder, BuildOrder, PassCall
from .strategy import Halving, Level, shared_out

Reduction = Literal["drop-blocks", "prune-channels", "low-rank"]
Numbers = Literal["quantize-int8", "quantize-blocks"]

_GRAPH = "graph"
_AS_IT_IS = "whole"
_SHARE, _SHARE_OF_COSINE = 1 / 2, 1 / 4
"""Part of the limit that a reduction may take: of an expected loss of hits, which may be twice as much by labels (where
the original is surer than it is right), and of a cosine."""
_ADDED = 1.15
"""By how much numbers may raise what is lost by a reduction."""
_MILDER = 2
"""Further models that are built where the user's own samples refuse all reductions."""
_NEAR_MISS = 3.0
"""A reduction that loses up to so many times what it may is tried again with training, where samples are enough."""
_LEAST_TO_TRAIN = 512
_FEW_BUILDS, _MILD = 2, 0.85
"""Where no more models than this can be built in that time, the first one keeps this part."""
_MAIN: Reduction = "prune-channels"
"""What is tried ever further. The others are tried once, to learn what they lose, and then together with it."""
_PROBED: Mapping[Reduction, float] = {"drop-blocks": 0.85, "low-rank": 0.6}
"""The part that the others keep; they are tried where twice the models could be built."""
_IN_ORDER: tuple[Reduction, ...] = ("drop-blocks", "prune-channels", "low-rank")
"""How reductions follow each other in one model."""
_SHARE_OF_MIXED = 1 / 2
"""Part of what one reduction may lose that several may lose together. More is fitted to the same samples: by labels
cuts lost twice what was expected of them, mixtures four times."""
_WORTH_MIXING = 0.9
"""Several together are built if they are predicted to cost less than this part of the best alone, and taken if they
do."""
_WORTH_SLOW = 0.9
"""Where int8 takes more than this part of the time, weights of few bits are tried too."""


@plain_dataclass(frozen=True)
class _Start:
    """A model before its numbers are made smaller."""

    label: str
    built: Built
    lost: float | None = None
    """What the reduction loses; None where there was none."""
    keep: tuple[Reduction, float] | None = None


@dataclass(frozen=True, kw_only=True)
class SearchBest:
    """Make the smallest and fastest model within the limit: fewer channels, smaller numbers, as is measured best."""

    name: ClassVar[str] = "search-best"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA_IF_GIVEN})

    reductions: tuple[Reduction, ...] = _IN_ORDER
    """What makes the model itself smaller, alone and together."""
    numbers: tuple[Numbers, ...] = ("quantize-int8", "quantize-blocks")
    """What makes its numbers smaller; the second only for size, or where the first saves no time."""
    builds: Annotated[int, Field(ge=0)] = 5
    """Models that are built by each reduction, at most."""
    work: Annotated[float, Field(gt=0)] = 1e11
    """Multiply-accumulates of one run over all samples, summed up over those models, at most: none is built where one
    such run has more. A build takes the time of many runs; five of a small classifier take a minute or two."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Replace the model by the best candidate; without data, store its weights as int8."""
        if context.judge is None:
            why = "nothing is measured in a plan" if context.feeds else "without --data, only weights are made smaller"
            return [*QuantizeWeights().run(model, context), _skipped(why)]
        if not context.gate.admits(self.name, _GRAPH):
            return []
        return _AutoSearch(model, context, context.judge, self).run()


class _AutoSearch:
    """The search on one model."""

    def __init__(self, model: ir.Model, context: Context, judge: Judge, options: SearchBest) -> None:
        self.model, self.context, self.judge, self.options = model, context, judge, options
        self.archive = context.archive or Archive()
        self.builder = Builder(model, context)
        self.refusals: list[Change] = []
        self.made: dict[str, str] = {}
        self.kept: dict[str, tuple[Reduction, float]] = {}
        self.stuck: set[Reduction] = set()
        self.levels: dict[Reduction, list[Level]] = {}
        self.allowed: float | None = None
        affordable = self._affordable()
        self.builds = min(options.builds, affordable)
        self.first = Halving() if affordable > _FEW_BUILDS else Halving(keep=_MILD)
        has_time = affordable >= 2 * options.builds
        wanted = sorted(set(options.reductions) & set(available()), key=lambda name: (name != _MAIN, name))
        self.reductions = [name for name in wanted if name == _MAIN or has_time]

    def run(self) -> list[Change]:
        """Turn the model into the best candidate and say what was done and what was not."""
        try:
            found = self._found()
            chosen = self._accepted(*found)
        finally:
            self.builder.close()
        if chosen is None:
            return [*self.refusals, *self._told(found[0], None)]
        return self._become(chosen, found[0])

    def _found(self) -> tuple[list[Candidate], dict[str, dict[str, Any]]]:
        """Return the candidates, and the numbers that were best on the whole model."""
        if self.builds:
            for name in self.reductions:
                self._ahead(name, [_PROBED.get(name, self.first.keep)])
        found = list(self._finished(_Start(_AS_IT_IS, Built(self.model, ())), {}))
        numbers = {name: options for best in self._ranked(found)[:1] for name, options in self._way(best).items()}
        for name in self.reductions:
            if name == _MAIN:
                for start in self._reduced(name):
                    found += self._finished(start, numbers)
            elif not self.context.clock.is_over:
                self._judged(name, _PROBED[name])
        mixed = self._mixed()
        if mixed is not None:
            found += self._clearly_better(self._finished(mixed, numbers), found)
        return found, numbers

    def _affordable(self) -> int:
        """Return how many models can be built in a few minutes."""
        if not self.options.reductions or not self.options.builds:
            return 0
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

    def _ranked(self, found: Sequence[Candidate]) -> list[Candidate]:
        """Return those that may be the result, best first; those that meet the user's other limits before all."""
        ranked = search.ranked(found, self.judge.prefer, self.judge.limit)
        return sorted(ranked, key=lambda c: self.context.excess(c.trial) is not None)

    def _accepted(self, found: list[Candidate], numbers: Mapping[str, Any]) -> Candidate | None:
        """Return the best that the user's own samples allow; a reduction that they refuse is tried again, milder."""
        refused: set[str] = set()
        milder = _MILDER
        while True:
            ranked = self._ranked([c for c in found if c.label not in refused])
            if not ranked:
                return None
            best = ranked[0]
            faulty = [self.kept[label] for label in refused if label in self.kept]
            if faulty and best.label not in self.kept and milder and not self.context.clock.is_over:
                milder -= 1
                name, keep = max(faulty, key=lambda each: each[1])
                start = self._judged(name, round(keep**0.5, 4))
                more = list(self._finished(start, numbers)) if start is not None else []
                found += more
                milder = milder if more else 0
            elif self._is_refused(best):
                refused.add(best.label)
            else:
                return best

    def _is_refused(self, candidate: Candidate) -> bool:
        """Say whether the user's own samples object, and write down how."""
        fault = self.judge.fault(candidate.model)
        if fault is not None:
            self.refusals.append(_skipped(f"{candidate.label}: {search.figures(candidate.trial)}; {fault}"))
        return fault is not None

    def _become(self, chosen: Candidate, found: list[Candidate]) -> list[Change]:
        before = model_io.model_bytes(self.model)
        edit.become(self.model, chosen.model)
        self.archive.choose(chosen)
        summary = Change(
            pass_name=SearchBest.name,
            target=_GRAPH,
            action=Action.APPLIED,
            reason=f"{chosen.label}: {search.figures(chosen.trial)}",
            bytes_before=before,
            bytes_after=chosen.trial.bytes,
        )
        return [summary, *chosen.changes, *self.refusals, *self._told(found, chosen)]

    def _told(self, found: list[Candidate], chosen: Candidate | None) -> Iterator[Change]:
        """Yield why the other candidates are not the result."""
        for each in found:
            if each is not chosen:
                why = search.objection(each.trial, self.judge.prefer, self.judge.limit)
                why = why or self.context.excess(each.trial) or "another one is better"
                yield _skipped(f"{each.label}: {search.figures(each.trial)}; {why}")

    def _reduced(self, name: Reduction) -> Iterator[_Start]:
        """Yield models reduced ever further, then those between the last that was good and the first that was not."""
        step: Halving | None = self.first
        for _ in range(self.builds):
            if step is None or name in self.stuck:
                return
            if self.context.clock.is_over:
                self.refusals.append(_skipped(f"{name}: the time is over, {step.keep:.3f} was not tried"))
                return
            after = (step.after(is_good=True), step.after(is_good=False))
            self._ahead(name, [step.keep, *(each.keep for each in after if each is not None)])
            start = self._judged(name, step.keep)
            if start is not None:
                yield start
            step = step.after(is_good=start is not None)

    def _ahead(self, name: Reduction, keeps: Sequence[float]) -> None:
        """Let models be built elsewhere that will be asked for, or might be."""
        orders = [BuildOrder((_step(name, keep),)) for keep in keeps]
        self.builder.ahead(order for order in orders if not self.archive.has(_place(order)))

    def _judged(self, name: Reduction, keep: float) -> _Start | None:
        """Return the model with a part of its multiplications left, None where that loses too much or can't be."""
        is_enough = len(self.context.feeds) >= _LEAST_TO_TRAIN
        for trains in (False, True) if is_enough and name == _MAIN else (False,):
            step = _step(name, keep, trains=trains)
            start = self._reduce([step], f"{name} {keep:.3f}{', trained' if trains else ''}")
            if start is None:
                self.stuck.add(name)
                return None
            trial = self.judge.score(start.built.model)
            lost, most = _lost(trial), self._most(trial)
            self.allowed = most
            if lost is not None and not trains:
                self.levels.setdefault(name, []).append(Level(step, self._cost(start, trial), lost))
            if lost is None or most is None or lost <= most:
                return replace(start, lost=lost, keep=(name, keep))
            self.refusals.append(_too_lossy(start.label, lost, most))
            if lost > _NEAR_MISS * most:
                return None
        return None

    def _mixed(self) -> _Start | None:
        """Return the model with the reductions that go together best, None where that is not worth it or not good."""
        kinds = [self.levels.get(name, []) for name in _IN_ORDER]
        if self.allowed is None or self.context.clock.is_over:
            return None
        most = self.allowed * _SHARE_OF_MIXED
        chosen = shared_out(kinds, most)
        alone = [level.cost for level in self.levels.get(_MAIN, []) if level.lost <= self.allowed]
        is_worth = math.prod(level.cost for level in chosen) < min(alone, default=1.0) * _WORTH_MIXING
        if not is_worth or all(level.step.name == _MAIN for level in chosen):
            return None
        steps = [level.step for level in chosen]
        start = self._reduce(steps, " + ".join(f"{s.name} {dict(s.options)['keep_macs']:.3f}" for s in steps))
        if start is None:
            return None
        lost = _lost(self.judge.score(start.built.model))
        if lost is not None and lost > most:
            self.refusals.append(_too_lossy(start.label, lost, most))
            return None
        return replace(start, lost=lost)

    def _clearly_better(self, mixed: Iterable[Candidate], others: Sequence[Candidate]) -> list[Candidate]:
        """Return those of several reductions together that cost clearly less than all else that may be the result."""
        ranked = self._ranked(others)
        least = search.cost(ranked[0].trial, self.judge.prefer) if ranked else math.inf
        found = []
        for each in mixed:
            if search.cost(each.trial, self.judge.prefer) < least * _WORTH_MIXING:
                found.append(each)
            else:
                self.refusals.append(
                    _skipped(f"{each.label}: {search.figures(each.trial)}; fewer reductions do as well")
                )
        return found

    def _cost(self, start: _Start, trial: Trial) -> float:
        """Return what a reduction leaves of what is to be small; multiplications stand for time."""
        largest = feed_facts.largest(self.context.feeds)
        before, after = (counting.count(each, largest).macs for each in (self.model, start.built.model))
        time = after / before if before and after else None
        return search.cost(replace(trial, latency_ratio=time), self.judge.prefer)

    def _most(self, trial: Trial) -> float | None:
        """Return what a reduction may lose."""
        if self.judge.limit is None:
            return None
        return self.judge.limit * _SHARE

    def _reduce(self, steps: Sequence[PassCall], label: str) -> _Start | None:
        """Return the reduced model, None where nothing can go."""
        order = BuildOrder(tuple(steps))
        try:
            built = self.archive.built(_place(order), lambda: self.builder.built(order))
        except ModelError as error:
            self.refusals.append(_skipped(f"{label}: {error.message}"))
            return None
        if not _was_applied(built.changes):
            self.refusals += built.changes
            return None
        return _Start(label, built)

    def _finished(self, start: _Start, known: Mapping[str, Any]) -> Iterator[Candidate]:
        """Yield the candidates that come of a model; where the best way of the whole model is known, that one."""
        before: Candidate | None = None
        for name in self.options.numbers:
            if self.context.clock.is_over and start.label != _AS_IT_IS:
                return
            if (known and name not in known) or (before is not None and not self._is_wanted(before)):
                continue
            found = self._numbered(start, name, known.get(name, {}))
            if found is not None:
                before = before or found
                yield found

    def _is_wanted(self, before: Candidate) -> bool:
        """Say whether weights of few bits could be better than the numbers that were tried before."""
        ratio = before.trial.latency_ratio
        is_slow = ratio is None or ratio > _WORTH_SLOW
        bad = search.objection(before.trial, self.judge.prefer, self.judge.limit) or self.context.excess(before.trial)
        return self.judge.prefer == "size" or is_slow or bad is not None

    def _numbered(self, start: _Start, name: str, options: Mapping[str, Any]) -> Candidate | None:
        """Return the candidate that comes of a model by smaller numbers, None where there is none that may be."""
        copy = model_io.clone(start.built.model)
        try:
            changes = self._run(build_pass(name, options), copy, start.label)
            done = [c for c in changes if c.action is Action.APPLIED and c.target == _GRAPH]
            said = done[0].details.get("route") or name if done else name
            if not _was_applied(changes):
                self.refusals += changes
                return None
            label = f"{start.label}, {said}"
            trial = self.judge(copy, f"{SearchBest.name}/{label}")
        except ModelError as error:
            self.refusals.append(_skipped(f"{start.label}, {name}: {error.message}"))
            return None
        found = Candidate(label=label, model=copy, changes=(*start.built.changes, *changes), trial=trial)
        self.made[label] = name
        if start.keep is not None:
            self.kept[label] = start.keep
        self.archive.offer(found, prefer=self.judge.prefer, limit=self.judge.limit)
        lost, most = _lost(trial), self._most(trial)
        if start.lost is not None and lost is not None and most is not None:
            most = max(most, start.lost) * _ADDED
            if lost > most:
                why = f"with smaller numbers it would lose {lost:.4f}, more than {most:.4f}"
                self.refusals.append(_skipped(f"{label}: {search.figures(trial)}; {why}"))
                return None
        return found

    def _way(self, best: Candidate) -> dict[str, dict[str, Any]]:
        """Return pass -> the options by which it goes the way of a candidate again."""
        routes = [c.details["route"] for c in best.changes if "route" in c.details]
        options = {"routes": (str(routes[-1]).partition(",")[0],)} if routes else {}
        return {self.made[best.label]: options}

    def _run(self, one: Pass, model: ir.Model, label: str) -> list[Change]:
        """Run a pass on a copy; it sees no more than the held-out samples."""
        gate = Gate()
        judge = ScopedJudge(self.judge, f"{SearchBest.name}/{label}")
        return one.run(model, replace(self.context, gate=gate, memo=Memo(gate), judge=judge, archive=None))


def _step(name: Reduction, keep: float, *, trains: bool = False) -> PassCall:
    options: list[tuple[str, Any]] = [("keep_macs", keep)]
    if not trains:
        options.append(("distill_steps", 0))
    if name == "low-rank":
        options.append(("accept", "smaller"))
    return PassCall(name=name, options=tuple(options))


def _place(order: BuildOrder) -> str:
    """Return what a model is called in a checkpoint."""
    return f"{SearchBest.name}/{order.label}"


def _too_lossy(label: str, lost: float, most: float) -> Change:
    return _skipped(f"{label}: it would lose {lost:.4f}, more than {most:.4f}")


def _lost(trial: Trial) -> float | None:
    return trial.limited_drop


def _was_applied(changes: Sequence[Change]) -> bool:
    return any(c.action is Action.APPLIED for c in changes)


def _skipped(reason: str) -> Change:
    return Change(pass_name=SearchBest.name, target=_GRAPH, action=Action.SKIPPED, reason=reason)
