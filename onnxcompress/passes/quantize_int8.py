"""Layers run on int8 in the way that was measured best on this model.

Up to four routes are built, scored on held-out samples and timed against the original:

    static    whatever the target runs on integers, with ranges from the data
    mixed     matrix products and LSTMs with the range of each run, everything else with ranges from the data
    dynamic   matrix products and LSTMs with the range of each run, everything else in floats
    weights   weights are stored as int8, the arithmetic stays float

On each of them what stays float has its weights stored as int8. A route that loses too much gets another try without
the layers that hurt most; one that still does, or is slower than the original, is refused with its figures. Where no
route is left the model stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from .. import graph, model_io, ops, search, stats
from ..core import Action, Change, Context, Feed, Gate, Judge, Memo, Need, Pass
from ..errors import ModelError
from ..search import Candidate
from .quantize_dynamic import QuantizeDynamic
from .quantize_static import QuantizeStatic
from .quantize_weights import QuantizeWeights

Route = Literal["static", "mixed", "dynamic", "weights"]

_PASSES: Mapping[Route, Sequence[Pass]] = {
    "static": (QuantizeStatic(),),
    "mixed": (QuantizeDynamic(), QuantizeStatic()),
    "dynamic": (QuantizeDynamic(),),
    "weights": (),
}
"""What a route runs before quantize-weights."""

_CAREFUL_PS = 400.0
"""`QuantizeStatic.noise_ps` of a route's second try: more of what is rounded for little time stays float."""

_CAREFUL = ", carefully"
_GRAPH = "graph"
_WORTH_SEARCHING = 0.9
"""A route that loses too much is searched for the layers at fault where it costs less than this part of the best."""
_STEPS = 3
"""Times that the limit is halved for a candidate that the user's own samples object to."""


@plain_dataclass(frozen=True)
class _Built:
    """A copy of the model with a route's passes applied."""

    model: ir.Model
    changes: tuple[Change, ...]

    def applied(self, kind: type[Pass]) -> list[Change]:
        """Return what a pass did in it."""
        return [c for c in self.changes if c.pass_name == kind.name and c.action is Action.APPLIED]


@dataclass(frozen=True, kw_only=True)
class QuantizeInt8:
    """Run layers on int8 with fixed ranges, with ranges of each run, or only stored so: what measures best."""

    name: ClassVar[str] = "quantize-int8"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})

    routes: Annotated[tuple[Route, ...], Field(min_length=1)] = ("static", "mixed", "dynamic", "weights")
    """What is tried, in this order; of routes that are alike in cost and quality the first is taken."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Replace the model by the best candidate, or leave it as it is."""
        if context.judge is None:
            return self._unmeasured(model, context)
        if not context.gate.admits(self.name, _GRAPH):
            return []
        candidates, refusals = self._candidates(model, context, context.judge)
        chosen: Candidate | None = None
        for candidate in search.ranked(candidates, context.judge.prefer, context.judge.limit):
            chosen, refused = self._accepted(model, candidate, context, context.judge)
            refusals += refused
            if chosen is not None:
                break
        for candidate in candidates:
            if chosen is None or candidate.label != chosen.label:
                why = search.objection(candidate.trial, context.judge.prefer, context.judge.limit)
                refusals.append(self._refusal(candidate, why or "another route is better"))
        if chosen is None:
            return refusals
        graph.become(model, chosen.model)
        summary = Change(
            pass_name=self.name,
            target=_GRAPH,
            action=Action.APPLIED,
            reason=f"{chosen.label}: {_figures(chosen)}",
            details={"route": chosen.label},
        )
        return [summary, *chosen.changes, *refusals]

    def _candidates(self, model: ir.Model, context: Context, judge: Judge) -> tuple[list[Candidate], list[Change]]:
        """Return the routes that can be gone, measured, and why others can't."""
        found: list[Candidate] = []
        refusals: list[Change] = []
        for route in self.routes:
            built = _build(model, route, context)
            if not all(built.applied(type(one)) for one in _PASSES[route]):
                continue  # it comes down to another route
            try:
                trial = judge(built.model, f"{self.name}/{route}")
            except ModelError as error:
                refusals.append(self._skipped(f"{route}: {error.message}"))
                continue
            found.append(Candidate(label=route, model=built.model, changes=built.changes, trial=trial))
        for index, candidate in enumerate(found):
            if judge.limit is not None and self._could_win(candidate, found, judge):
                relaxed = self._relaxed(model, candidate, judge.limit, context, judge)
                if relaxed is not None:
                    refusals.append(self._refusal(candidate, f"it loses too much: {relaxed.label} instead"))
                    found[index] = relaxed
        return found, refusals

    def _could_win(self, candidate: Candidate, others: Sequence[Candidate], judge: Judge) -> bool:
        """Say whether a candidate would be the best by more than a few layers are worth, were it not for its drop."""
        without = replace(candidate, trial=replace(candidate.trial, drop=None))
        if search.objection(candidate.trial, judge.prefer, judge.limit) is None or not _layers(candidate.changes):
            return False
        if search.objection(without.trial, judge.prefer, judge.limit):
            return False
        best = search.ranked(others, judge.prefer, judge.limit)
        least = search.cost(best[0].trial, judge.prefer) if best else float("inf")
        return search.cost(candidate.trial, judge.prefer) < least * _WORTH_SEARCHING

    def _relaxed(
        self, model: ir.Model, candidate: Candidate, limit: float, context: Context, judge: Judge
    ) -> Candidate | None:
        """Return the candidate within the limit, with fewer nodes on integers, or None where that can't be.

        Those that save little time go first, then layer by layer those that hurt the output most.
        """
        route = _route(candidate)
        if not candidate.label.endswith(_CAREFUL):
            built = _build(model, route, context, careful=True)
            label = f"{route}{_CAREFUL}"
            trial = judge(built.model, f"{self.name}/{label}")
            careful = Candidate(label=label, model=built.model, changes=built.changes, trial=trial)
            if trial.drop is not None and trial.drop <= limit and _layers(built.changes):
                return careful
        layers = _layers(candidate.changes)
        costs = _costs(model, layers, max(context.feeds, key=_elements))
        left_out = search.least_left_out(
            lambda names: _build(model, route, context, left_out=names, weights=False).model,
            costs,
            judge,
            limit,
            progress=context.progress,
        )
        if not left_out:
            return None
        built = _build(model, route, context, left_out=left_out)
        label = f"{route} without {_counted(left_out)}"
        return Candidate(
            label=label,
            model=built.model,
            changes=tuple(_explained(built.changes, left_out)),
            trial=judge(built.model, f"{self.name}/{label}"),
        )

    def _accepted(
        self, model: ir.Model, candidate: Candidate, context: Context, judge: Judge
    ) -> tuple[Candidate | None, list[Change]]:
        """Return a candidate if the user's own samples agree, or one with fewer layers until they do."""
        refusals: list[Change] = []
        limit = candidate.trial.drop
        for _ in range(_STEPS):
            fault = judge.fault(candidate.model)
            if fault is None:
                return candidate, refusals
            refusals.append(self._refusal(candidate, fault))
            if not limit or limit <= 0 or not _layers(candidate.changes):
                break
            limit /= 2
            relaxed = self._relaxed(model, candidate, limit, context, judge)
            if relaxed is None or search.objection(relaxed.trial, judge.prefer, judge.limit):
                break
            candidate = relaxed
        return None, refusals

    def _unmeasured(self, model: ir.Model, context: Context) -> list[Change]:
        """Go the first route where nothing can be measured: to be proved, or only planned, by others."""
        if not context.gate.admits(self.name, _GRAPH):
            return []
        route = self.routes[0]
        built = _build(model, route, context)
        graph.become(model, built.model)
        return [self._skipped(f"nothing was measured, the first route is taken: {route}"), *built.changes]

    def _refusal(self, candidate: Candidate, why: str) -> Change:
        return self._skipped(f"{candidate.label}: {_figures(candidate)}; {why}")

    def _skipped(self, reason: str) -> Change:
        return Change(pass_name=self.name, target=_GRAPH, action=Action.SKIPPED, reason=reason)


def _build(
    model: ir.Model,
    route: Route,
    context: Context,
    *,
    careful: bool = False,
    left_out: frozenset[str] = frozenset(),
    weights: bool = True,
) -> _Built:
    """Go a route on a copy of the model; layers that are left out have, if at all, their weights stored as int8."""
    copy = model_io.clone(model)
    changes: list[Change] = []
    for each in (*_PASSES[route], *([QuantizeWeights()] if weights else [])):
        one = replace(each, noise_ps=_CAREFUL_PS) if careful and isinstance(each, QuantizeStatic) else each
        gate = Gate()
        keeps_all = isinstance(one, QuantizeWeights)
        inner = replace(
            context,
            gate=gate,
            memo=Memo(gate),
            selects=context.selects
            if keeps_all
            else lambda node: context.selects(node) and graph.label(node) not in left_out,
        )
        changes += one.run(copy, inner)
    return _Built(copy, tuple(changes))


def _route(candidate: Candidate) -> Route:
    return candidate.label.split()[0].rstrip(",")  # type: ignore[return-value]


def _layers(changes: Iterable[Change]) -> list[str]:
    """Return the labels of the layers that run with ranges from the data."""
    return [
        c.target
        for c in changes
        if c.pass_name == QuantizeStatic.name and c.action is Action.APPLIED and "sqnr_db" in c.details
    ]


def _costs(model: ir.Model, layers: Sequence[str], feed: Feed) -> dict[str, float]:
    """Return layer -> its MACs at the shapes of a feed, 1 where they are not known."""
    shape_of = stats.shape_lookup(stats.resolve_shapes(model, feed))
    macs = {graph.label(node): count for node, count in ops.node_macs(model, shape_of)}
    return {name: float(macs.get(name) or 1) for name in layers}


def _explained(changes: Iterable[Change], left_out: frozenset[str]) -> Iterator[Change]:
    """Yield changes, those about layers that were left out with the true reason."""
    for change in changes:
        if change.pass_name == QuantizeStatic.name and change.target in left_out:
            yield replace(change, reason="float: it hurts the output most for what it saves")
        else:
            yield change


def _figures(candidate: Candidate) -> str:
    trial = candidate.trial
    parts = [f"{trial.size_ratio:.3f} of the size"]
    if trial.latency_ratio is not None:
        parts.append(f"{trial.latency_ratio:.2f} of the time")
    if trial.drop is not None:
        parts.append(f"drop {trial.drop:.4f}")
    return ", ".join(parts)


def _counted(layers: Collection[str]) -> str:
    return "1 layer" if len(layers) == 1 else f"{len(layers)} layers"


def _elements(feed: Feed) -> int:
    return sum(int(np.size(array)) for array in feed.values())
