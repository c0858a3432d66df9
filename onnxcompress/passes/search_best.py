"""The smallest and fastest model within the limit on quality, found by building candidates and measuring them.

    reductions    channels are cut, blocks dropped: how much is found by halving the way between good and too much
    x numbers     int8 in the way that measures best, weights of a few bits
    --judge-->    the best that is allowed; if the user's own samples object, the next best

The model as it is stays a valid answer. Reductions are judged with a quarter of the limit: few held-out samples see
little of what they lose (64 showed a quarter of what 2,000 did), and numbers may then add hardly any noise to theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from .. import graph, model_io, search
from ..archive import Archive
from ..core import Action, Change, Context, Gate, Judge, Memo, Need, Pass, Prefer, Trial
from ..errors import ModelError
from ..search import Built, Candidate
from . import available
from . import build as build_pass
from .quantize_weights import QuantizeWeights

Reduction = Literal["prune-channels", "drop-blocks"]
Numbers = Literal["quantize-int8", "quantize-blocks"]

_GRAPH = "graph"
_AS_IT_IS = "whole"
_FIRST_KEEP = 0.5
_LEAST_KEEP = 0.08
_SHARE = 0.25
"""Part of the limit that a reduction may take."""
_MILDER = 2
"""Further models that are built where the user's own samples refuse all reductions."""
_NOISIER = 1.05
"""By how much numbers may raise the noise that a reduction has made."""
_NEAR = 1.15
"""Parts that are kept count as the same where they differ by less."""


@plain_dataclass(frozen=True)
class _Start:
    """A model before its numbers are made smaller."""

    label: str
    built: Built
    noise: float | None = None
    """What the reduction did to the outputs; None where there was none."""
    keep: tuple[Reduction, float] | None = None


@dataclass(frozen=True, kw_only=True)
class SearchBest:
    """Make the smallest and fastest model within the limit: fewer channels, smaller numbers, as is measured best."""

    name: ClassVar[str] = "search-best"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA_IF_GIVEN})

    reductions: tuple[Reduction, ...] = ("prune-channels",)
    """What makes the model itself smaller."""
    numbers: tuple[Numbers, ...] = ("quantize-int8", "quantize-blocks")
    """What makes its numbers smaller."""
    builds: Annotated[int, Field(ge=0)] = 5
    """Models that are built by each reduction, at most."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Replace the model by the best candidate; without data, store its weights as int8."""
        if context.judge is None:
            why = "nothing is measured in a plan" if context.feeds else "without --data, only weights are made smaller"
            return [*QuantizeWeights().run(model, context), _skipped(why)]
        if not context.gate.admits(self.name, _GRAPH):
            return []
        return _Search(model, context, context.judge, self).run()


class _Search:
    """The search on one model."""

    def __init__(self, model: ir.Model, context: Context, judge: Judge, options: SearchBest) -> None:
        self.model, self.context, self.judge, self.options = model, context, judge, options
        self.archive = context.archive or Archive()
        self.refusals: list[Change] = []
        self.made: dict[str, str] = {}
        self.kept: dict[str, tuple[Reduction, float]] = {}
        self.is_stuck = False

    def run(self) -> list[Change]:
        """Turn the model into the best candidate and say what was done and what was not."""
        whole = _Start(_AS_IT_IS, Built(self.model, ()))
        found = list(self._finished(whole, {}))
        allowed = search.ranked(found, self.judge.prefer, self.judge.limit)
        numbers = {name: options for each in allowed for name, options in self._way(each).items()}
        for name in self.options.reductions:
            for start in self._reduced(name):
                found += self._finished(start, numbers)
        chosen = self._accepted(found, numbers)
        return self._become(chosen, found) if chosen else [*self.refusals, *self._told(found, None)]

    def _accepted(self, found: list[Candidate], numbers: Mapping[str, Any]) -> Candidate | None:
        """Return the best that the user's own samples allow; a reduction that they refuse is tried again, milder."""
        refused: set[str] = set()
        milder = _MILDER
        while True:
            rest = [c for c in found if c.label not in refused]
            ranked = search.ranked(rest, self.judge.prefer, self.judge.limit)
            if not ranked:
                return None
            best = ranked[0]
            faulty = [self.kept[label] for label in refused if label in self.kept]
            if faulty and best.label not in self.kept and milder and not self.context.clock.is_over:
                milder -= 1
                name, keep = max(faulty, key=lambda each: each[1])
                start = self._judged(name, keep**0.5)
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
        graph.become(self.model, chosen.model)
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
                why = search.objection(each.trial, self.judge.prefer, self.judge.limit) or "another one is better"
                yield _skipped(f"{each.label}: {search.figures(each.trial)}; {why}")

    def _reduced(self, name: Reduction) -> Iterator[_Start]:
        """Yield models reduced ever further, then those between the last that was good and the first that was not."""
        if name not in available():
            return
        good, bad, keep = 1.0, 0.0, _FIRST_KEEP
        for _ in range(self.options.builds):
            if self.context.clock.is_over:
                self.refusals.append(_skipped(f"{name}: the time is over, {keep:.3f} was not tried"))
                return
            start = self._judged(name, keep)
            if start is not None:
                yield start
                good = keep
            elif self.is_stuck:
                return
            else:
                bad = keep
            keep = good * _FIRST_KEEP**0.5 if bad == 0 else (good * bad) ** 0.5
            if keep < _LEAST_KEEP or (bad and good / bad < _NEAR):
                return

    def _judged(self, name: Reduction, keep: float) -> _Start | None:
        """Return the model with a part of its multiplications left, None where that loses too much or can't be."""
        start = self._reduce(name, keep)
        self.is_stuck = start is None
        if start is None:
            return None
        limit = None if self.judge.limit is None else self.judge.limit * _SHARE
        trial = self.judge.score(start.built.model)
        if limit is not None and trial.drop is not None and trial.drop > limit:
            why = f"the score falls by {trial.drop:.4g}, more than {limit:g}"
            self.refusals.append(_skipped(f"{start.label}: {why}"))
            return None
        return replace(start, noise=search.noise(trial), keep=(name, keep))

    def _reduce(self, name: Reduction, keep: float) -> _Start | None:
        """Return the model with a part of its multiplications left, None where nothing can go."""
        label = f"{name} {keep:.3f}"

        def build() -> Built:
            copy = model_io.clone(self.model)
            changes = self._run(build_pass(name, {"keep_macs": round(keep, 4)}), copy, label, limit=None)
            return Built(copy, tuple(changes))

        try:
            built = self.archive.built(f"{SearchBest.name}/{label}", build)
        except ModelError as error:
            self.refusals.append(_skipped(f"{label}: {error.message}"))
            return None
        if not _was_applied(built.changes):
            self.refusals += built.changes
            return None
        return _Start(label, built)

    def _finished(self, start: _Start, known: Mapping[str, Any]) -> Iterator[Candidate]:
        """Yield the candidates that come of a model; where the best way of the whole model is known, that one."""
        for name in self.options.numbers:
            if self.context.clock.is_over and start.label != _AS_IT_IS:
                return
            if known and name not in known:
                continue
            copy = model_io.clone(start.built.model)
            try:
                changes = self._run(build_pass(name, known.get(name, {})), copy, start.label, limit=self.judge.limit)
                done = [c for c in changes if c.action is Action.APPLIED and c.target == _GRAPH]
                said = done[0].details.get("route") or name if done else name
                if not _was_applied(changes):
                    self.refusals += changes
                    continue
                label = f"{start.label}, {said}"
                trial = self.judge(copy, f"{SearchBest.name}/{label}")
            except ModelError as error:
                self.refusals.append(_skipped(f"{start.label}, {name}: {error.message}"))
                continue
            found = Candidate(label=label, model=copy, changes=(*start.built.changes, *changes), trial=trial)
            self.made[label] = name
            if start.keep is not None:
                self.kept[label] = start.keep
            self.archive.offer(found, prefer=self.judge.prefer, limit=self.judge.limit)
            if start.noise is not None and search.noise(trial) > start.noise * _NOISIER:
                why = "smaller numbers add too much to what is lost already"
                self.refusals.append(_skipped(f"{label}: {search.figures(trial)}; {why}"))
            else:
                yield found

    def _way(self, best: Candidate) -> dict[str, dict[str, Any]]:
        """Return pass -> the options by which it goes the way of a candidate again."""
        routes = [c.details["route"] for c in best.changes if "route" in c.details]
        options = {"routes": (str(routes[-1]).partition(",")[0],)} if routes else {}
        return {self.made[best.label]: options}

    def _run(self, one: Pass, model: ir.Model, label: str, *, limit: float | None) -> list[Change]:
        """Run a pass on a copy; it sees no more than the held-out samples."""
        gate = Gate()
        inner = replace(
            self.context,
            gate=gate,
            memo=Memo(gate),
            judge=_Within(self.judge, f"{SearchBest.name}/{label}", limit),
            archive=None,
        )
        return one.run(model, inner)


class _Within:
    """A judge for a pass that makes a part of a candidate: whether the whole is accepted is decided later."""

    def __init__(self, outer: Judge, place: str, limit: float | None) -> None:
        self._outer = outer
        self._place = place
        self.limit = limit
        self.prefer: Prefer = outer.prefer

    def __call__(self, model: ir.Model, label: str) -> Trial:
        """Score and time a candidate."""
        return self._outer(model, f"{self._place}/{label}")

    def score(self, model: ir.Model, *, most: int | None = None) -> Trial:
        """Score a candidate without timing it."""
        return self._outer.score(model, most=most)

    def fault(self, model: ir.Model) -> str | None:  # noqa: ARG002 - the protocol's signature
        """Find none."""
        return None


def _was_applied(changes: Sequence[Change]) -> bool:
    return any(c.action is Action.APPLIED for c in changes)


def _skipped(reason: str) -> Change:
    return Change(pass_name=SearchBest.name, target=_GRAPH, action=Action.SKIPPED, reason=reason)
