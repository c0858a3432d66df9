"""Layers run on int8 in the way that was measured best on this model.

Up to four routes are built, scored on held-out samples and timed against the original:

    static    whatever the target runs on integers, with ranges from the data
    mixed     matrix products and LSTMs with the range of each run, everything else with ranges from the data
    dynamic   matrix products and LSTMs with the range of each run, everything else in floats
    weights   weights are stored as int8, the arithmetic stays float

On each of them what stays float has its weights stored as int8; tables that make much of the file are tried in 4 bits
on the best one. A route that loses too much gets other tries: what saves little time stays float, ranges are clipped,
channels equalized, layers refitted, and at last layers that hurt most are left out. One that still loses too much, or
is slower than the original, is refused with its figures. Where no route is left the model stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...base.gate import Gate, Memo
from ...core import Action, Candidate, Change, Context, Feed, Judge, Need, Pass, Trial
from ...data import feeds as feed_facts
from ...errors import ModelError
from ...graph import edit, query
from ...io import model_io
from ...ops import table as ops
from ...search import candidates as search
from ...shapes import resolve
from .blocks import QuantizeBlocks
from .dynamic import QuantizeDynamic
from .equalize import Equalize
from .int8_refit import refitted
from .static import QuantizeStatic
from .weight_storage import sites
from .weights import QuantizeWeights

Route = Literal["static", "mixed", "dynamic", "weights"]

_PASSES: Mapping[Route, Sequence[Pass]] = {
    "static": (QuantizeStatic(),),
    "mixed": (QuantizeDynamic(), QuantizeStatic()),
    "dynamic": (QuantizeDynamic(),),
    "weights": (),
}
"""What a route runs before quantize-weights."""

_GRAPH = "graph"
_CAREFUL_PS = 400.0
"""`QuantizeStatic.noise_ps` of a careful try."""
_WORTH_MENDING = 0.25
"""The part of the limit from which on a drop is worth the time of trying to recover from it."""
_WORTH_SEARCHING = 0.9
"""A route that loses too much is searched for the layers at fault where it costs less than this part of the best."""
_FEW_BITS = "int4/block32/sym"
_MUCH = 0.05
"""The part of all weights from which on a table is worth a try in few bits."""
_STEPS = 3
"""Times that the limit is halved for a candidate that the user's own samples object to."""


@plain_dataclass(frozen=True, kw_only=True)
class _RouteVariant:
    """A route and how it is gone.

    Args:
        route: which passes are run.
        careful: more of what is rounded for little time stays float.
        guarded: ranges are clipped where layers gain by it.
        equalized: channels are scaled between layers beforehand.
        refit: layers are refitted to make good what integers do to activations.
        small_tables: tables have 4 bits.
        left_out: layers that stay float.
    """

    route: Route
    careful: bool = False
    guarded: bool = False
    equalized: bool = False
    refit: bool = False
    small_tables: bool = False
    left_out: frozenset[str] = frozenset()

    @property
    def label(self) -> str:
        """What reports and timings call it."""
        said = {"carefully": self.careful, "clipped": self.guarded, "equalized": self.equalized, "refitted": self.refit}
        said["tables of 4 bits"] = self.small_tables
        parts = [self.route, *(word for word, holds in said.items() if holds)]
        return ", ".join(parts) + (f", without {_counted(self.left_out)}" if self.left_out else "")

    @property
    def static(self) -> QuantizeStatic:
        """The static pass with the options that this way sets."""
        usual = QuantizeStatic()
        return QuantizeStatic(
            noise_ps=_CAREFUL_PS if self.careful else usual.noise_ps,
            ranges="guarded" if self.guarded else usual.ranges,
        )


@plain_dataclass(frozen=True, kw_only=True)
class _TriedRoute(Candidate):
    """A candidate, and how it came about."""

    way: _RouteVariant

    @property
    def layers(self) -> list[str]:
        """The labels of the layers that run with ranges from the data."""
        return _layers(self.changes)


@dataclass(frozen=True, kw_only=True)
class QuantizeInt8:
    """Run layers on int8 with fixed ranges, with ranges of each run, or only stored so: what measures best."""

    name: ClassVar[str] = "quantize-int8"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})

    routes: Annotated[tuple[Route, ...], Field(min_length=1)] = ("static", "mixed", "dynamic", "weights")
    """What is tried, in this order; of routes that are alike in cost and quality the first is taken."""
    recover: bool = True
    """Try clipped ranges, equalized channels and refitted layers where a static route loses something."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Replace the model by the best candidate, or leave it as it is."""
        if not context.gate.admits(self.name, _GRAPH):
            return []
        if context.judge is None:
            route = self.routes[0]
            found, changes = _build(model, _RouteVariant(route=route), context)
            edit.become(model, found)
            return [_skipped(f"nothing was measured, the first route is taken: {route}"), *changes]
        return _RouteSearch(model, context, context.judge, recover=self.recover).run(self.routes)


class _RouteSearch:
    """The search for the best way on one model."""

    def __init__(self, model: ir.Model, context: Context, judge: Judge, *, recover: bool) -> None:
        self.model, self.context, self.judge, self.recover = model, context, judge, recover
        self.refusals: list[Change] = []

    def run(self, routes: Sequence[Route]) -> list[Change]:
        """Turn the model into the best candidate and say what was done and what was not."""
        candidates = self._candidates(routes)
        chosen = next((c for c in map(self._accepted, self._ranked(candidates)) if c is not None), None)
        for candidate in candidates:
            if chosen is None or candidate.way.route != chosen.way.route:
                self._refuse(candidate, self._objection(candidate.trial) or "another route is better")
        if chosen is None:
            return self.refusals
        edit.become(self.model, chosen.model)
        if self.context.archive is not None:
            self.context.archive.choose(chosen, place=QuantizeInt8.name)
        summary = Change(
            pass_name=QuantizeInt8.name,
            target=_GRAPH,
            action=Action.APPLIED,
            reason=f"{chosen.label}: {search.figures(chosen.trial)}",
            details={"route": chosen.label},
        )
        return [summary, *chosen.changes, *self.refusals]

    def _candidates(self, routes: Sequence[Route]) -> list[_TriedRoute]:
        """Return the routes that can be gone, measured, in the best way that was found."""
        found: list[_TriedRoute] = []
        for route in routes:
            if self.context.clock.is_over:
                self.refusals.append(_skipped(f"{route}: not tried, the time is over"))
                continue
            way = _RouteVariant(route=route)
            built, changes = _build(self.model, way, self.context)
            done = {c.pass_name for c in _applied(changes)}
            if not done.issuperset(one.name for one in _PASSES[route]) or not done:
                continue  # it comes down to another route
            try:
                found.append(self._measured(way, built, changes))
            except ModelError as error:
                self.refusals.append(_skipped(f"{route}: {error.message}"))
        for index, candidate in enumerate(found):
            if (candidate.layers or candidate.way.route == "dynamic") and self._could_win(candidate, found):
                found[index] = self._improved(candidate)
        return [*found, *self._with_small_tables(found)]

    def _with_small_tables(self, found: Sequence[_TriedRoute]) -> Iterator[_TriedRoute]:
        """Yield the best candidate with tables of 4 bits, where they make much of it."""
        best = next(iter(self._ranked(found)), None)
        if best is not None and not self.context.clock.is_over and _large_tables(self.model, self.context):
            yield self._tried(replace(best.way, small_tables=True))

    def _improved(self, candidate: _TriedRoute) -> _TriedRoute:
        """Return a candidate that loses less, where one is needed and found."""
        limit = self.judge.limit
        if limit is None or self.context.clock.is_over:
            return candidate
        if self.recover and _drop(candidate) > limit * _WORTH_MENDING:
            candidate = self._recovered(candidate)
        if _drop(candidate) <= limit or not candidate.layers:
            return candidate
        relaxed = self._relaxed(candidate, limit)
        if relaxed is None:
            return candidate
        self._refuse(candidate, f"it loses too much: {relaxed.label} instead")
        return relaxed

    def _recovered(self, candidate: _TriedRoute) -> _TriedRoute:
        """Try each means against the rounding of activations, and keep it where the held-out error falls."""
        best = candidate
        for means in (_clipped, _equalized, _refitted) if best.layers else (_equalized,):
            if self.context.clock.is_over:
                break
            way = means(best.way)
            error = search.noise(self.judge.score(_build(self.model, way, self.context)[0]))
            if error < search.noise(best.trial):
                tried = self._tried(way)
                if search.noise(tried.trial) < search.noise(best.trial) and _drop(tried) <= _drop(best):
                    best = tried
        return best

    def _relaxed(self, candidate: _TriedRoute, limit: float) -> _TriedRoute | None:
        """Return the candidate within the limit, with fewer nodes on integers, or None where that can't be.

        Those that save little time go first, then layer by layer those that hurt the output most.
        """
        if not candidate.way.careful:
            careful = self._tried(replace(candidate.way, careful=True))
            if _drop(careful) <= limit and careful.layers:
                return careful
        plain = replace(candidate.way, refit=False)
        feed = feed_facts.largest(self.context.feeds)
        left_out = search.least_left_out(
            lambda names: _build(self.model, replace(plain, left_out=names), self.context, weights=False)[0],
            _costs(self.model, candidate.layers, feed),
            self.judge,
            limit,
            clock=self.context.clock,
            progress=self.context.progress,
        )
        return self._tried(replace(plain, left_out=left_out)) if left_out else None

    def _accepted(self, candidate: _TriedRoute) -> _TriedRoute | None:
        """Return a candidate if the user's own samples agree, or one with fewer layers until they do."""
        limit = _drop(candidate)
        for _ in range(_STEPS):
            fault = self.judge.fault(candidate.model)
            if fault is None:
                return candidate
            self._refuse(candidate, fault)
            limit /= 2
            relaxed = self._relaxed(candidate, limit) if limit > 0 and candidate.layers else None
            if relaxed is None or self._objection(relaxed.trial):
                return None
            candidate = relaxed
        return None

    def _tried(self, way: _RouteVariant) -> _TriedRoute:
        return self._measured(way, *_build(self.model, way, self.context))

    def _measured(self, way: _RouteVariant, built: ir.Model, changes: list[Change]) -> _TriedRoute:
        trial = self.judge(built, f"{QuantizeInt8.name}/{way.label}")
        explained = tuple(_explained(changes, way.left_out))
        tried = _TriedRoute(label=way.label, model=built, changes=explained, trial=trial, way=way)
        if self.context.archive is not None:
            prefer, limit = self.judge.prefer, self.judge.limit
            self.context.archive.offer(tried, prefer=prefer, limit=limit, place=QuantizeInt8.name)
        return tried

    def _could_win(self, candidate: _TriedRoute, others: Sequence[_TriedRoute]) -> bool:
        """Say whether a candidate is the best, or would be by more than a few layers are worth but for its drop."""
        ranked = self._ranked(others)
        if ranked and ranked[0] is candidate:
            return True
        without = replace(candidate.trial, drop=None)
        if self._objection(candidate.trial) is None or self._objection(without):
            return False
        least = search.cost(ranked[0].trial, self.judge.prefer) if ranked else float("inf")
        return search.cost(candidate.trial, self.judge.prefer) < least * _WORTH_SEARCHING

    def _ranked(self, candidates: Sequence[_TriedRoute]) -> list[_TriedRoute]:
        return search.ranked(candidates, self.judge.prefer, self.judge.limit)

    def _objection(self, trial: Trial) -> str | None:
        return search.objection(trial, self.judge.prefer, self.judge.limit)

    def _refuse(self, candidate: Candidate, why: str) -> None:
        self.refusals.append(_skipped(f"{candidate.label}: {search.figures(candidate.trial)}; {why}"))


def _build(
    model: ir.Model, way: _RouteVariant, context: Context, *, weights: bool = True
) -> tuple[ir.Model, list[Change]]:
    """Go a way on a copy of the model; layers that are left out have, if at all, their weights stored as int8.

    Args:
        model: the float model; not changed.
        way: which passes, with which options.
        context: its gate is not asked: a way is gone or not.
        weights: whether what stays float has its weights stored as int8.
    """
    if way.refit:
        plain = replace(way, refit=False)
        quantized, made = _build(model, plain, context, weights=False)
        mended = refitted(model, quantized, _layers(made), context)
        return _build(model if mended is None else mended, plain, context, weights=weights)
    copy = model_io.clone(model)
    changes: list[Change] = []
    route = [way.static if isinstance(one, QuantizeStatic) else one for one in _PASSES[way.route]]
    if way.equalized:
        changes += _equalize(copy, way, context)
    if way.small_tables:
        route.append(QuantizeBlocks(scheme=_FEW_BITS))
    for one in (*route, *([QuantizeWeights()] if weights else [])):
        gate = Gate()
        inner = replace(context, gate=gate, memo=Memo(gate))
        if isinstance(one, QuantizeBlocks):
            tables = _large_tables(copy, context)
            inner = replace(inner, selects=lambda n: query.label(n) in tables, judge=None, race=None, max_bytes=None)  # noqa: B023
        elif not isinstance(one, QuantizeWeights):
            inner = replace(inner, selects=lambda n: context.selects(n) and query.label(n) not in way.left_out)
        changes += one.run(copy, inner)
    return copy, changes


def _large_tables(model: ir.Model, context: Context) -> frozenset[str]:
    """Return the labels of the nodes that look rows up in weights which nothing else reads, and that are large."""
    found = [site for site, fault in sites(model, context.selects, channelwise=True) if not fault and not site.others]
    total = query.tensor_bytes(v for body in query.graphs_outside_functions(model) for v in body.initializers.values())
    return frozenset(
        query.label(reader.node) for site in found if site.stored_bytes > total * _MUCH for reader in site.tables
    )


def _equalize(model: ir.Model, way: _RouteVariant, context: Context) -> list[Change]:
    """Scale channels before layers that will run on integers; for ranges of each run by a Mul where it takes one."""
    gate = Gate()
    inner = replace(context, gate=gate, memo=Memo(gate))
    if way.route != "dynamic":
        return Equalize().run(model, inner)
    chosen = {query.label(node) for product in QuantizeDynamic().products(model, inner) for node in product.nodes}
    inner = replace(inner, selects=lambda node: context.selects(node) and query.label(node) in chosen)
    return Equalize(scheme="dynamic-int8", insert=True).run(model, inner)


def _clipped(way: _RouteVariant) -> _RouteVariant:
    return replace(way, guarded=True)


def _equalized(way: _RouteVariant) -> _RouteVariant:
    return replace(way, equalized=True)


def _refitted(way: _RouteVariant) -> _RouteVariant:
    return replace(way, refit=True)


def _applied(changes: Iterable[Change]) -> Iterator[Change]:
    return (c for c in changes if c.action is Action.APPLIED)


def _layers(changes: Iterable[Change]) -> list[str]:
    """Return the labels of the layers with weights that run with ranges from the data."""
    return [c.target for c in _applied(changes) if c.pass_name == QuantizeStatic.name and "sqnr_db" in c.details]


def _costs(model: ir.Model, layers: Sequence[str], feed: Feed) -> dict[str, float]:
    """Return layer -> its MACs at the shapes of a feed, 1 where they are not known."""
    shape_of = resolve.shape_lookup(resolve.infer_dims(model, feed))
    macs = {query.label(node): count for node, count in ops.node_macs(model, shape_of)}
    return {name: float(macs.get(name) or 1) for name in layers}


def _explained(changes: Iterable[Change], left_out: frozenset[str]) -> Iterator[Change]:
    """Yield changes, those about layers that were left out with the true reason."""
    for change in changes:
        if change.pass_name == QuantizeStatic.name and change.target in left_out:
            yield replace(change, reason="float: it hurts the output most for what it saves")
        else:
            yield change


def _skipped(reason: str) -> Change:
    return Change(pass_name=QuantizeInt8.name, target=_GRAPH, action=Action.SKIPPED, reason=reason)


def _drop(candidate: Candidate) -> float:
    return candidate.trial.drop or 0.0


def _counted(layers: Collection[str]) -> str:
    return "1 layer" if len(layers) == 1 else f"{len(layers)} layers"
