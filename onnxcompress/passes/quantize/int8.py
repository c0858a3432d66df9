"""Layers run on int8 by the route that was measured best on this model.

Up to four routes are built, scored on held-out samples and timed against the original:

    static    whatever the target runs on integers, with ranges from the data
    mixed     matrix products and LSTMs with the range of each run, everything else with ranges from the data
    dynamic   matrix products and LSTMs with the range of each run, everything else in floats
    weights   weights are stored as int8, the arithmetic stays float

A model that computes in float16 is widened to float32 beforehand, which integer kernels read; its floats are stored as
they were. On each route what stays float has its weights stored as int8; tables that make up much of the file are tried
in 4 bits on the best one. A route that loses too much gets other tries: what saves little time stays float, ranges are
clipped, channels equalized, layers refitted, and at last layers that hurt most are left out. One that still loses too
much, or is slower than the original, is refused with its figures. Where no route remains the model is kept as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Annotated, ClassVar

import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...accounting import LEFT_BY_CHOICE, why_nothing
from ...core import DESELECTED, GRAPH, Action, Candidate, Change, Context, Judge, Need, Trial
from ...data import feeds as feed_facts
from ...errors import ModelError
from ...graph import constants, edit, query
from ...io import model_io
from ...ops import table as ops
from ...ops.weight_layers import WeightedLayer
from ...search import candidates as search
from ...search.effort import SearchEffort
from ...shapes import resolve
from ..float16.widen import widened_for
from .blocks import QuantizeBlocks
from .dynamic import QuantizeDynamic
from .equalize import Equalize
from .int8_routes import Route, RouteBuilder, RoutePasses, RouteVariant, is_of_its_own, static_layers
from .static import QuantizeStatic
from .weights import QuantizeWeights

_WORTH_RECOVERING = 0.25
"""Part of the limit from which on a drop is worth trying to recover from. Chosen by judgement; not measured."""
_WORTH_SEARCHING = 0.9
"""Part of the best cost below which a route that loses too much is searched for the layers at fault. Chosen by
judgement; not measured."""
_MOST_HALVINGS = 3
"""Times that the limit is halved for a candidate that the user's own samples refuse. Chosen by judgement; not
measured."""
_SEARCH_SECONDS = 150.0
"""CPU seconds after which no further variant of a measured route is begun, but for `--effort thorough`. Chosen by
judgement; not measured."""

_HURTS_MOST = "float: it hurts the output most for what it saves"


@plain_dataclass(frozen=True, kw_only=True)
class RouteChange(Change):
    """Summary of the route that became the model."""

    route: Route


@plain_dataclass(frozen=True, kw_only=True)
class _TriedRoute(Candidate):
    """A measured variant of a route."""

    variant: RouteVariant

    @property
    def layers(self) -> list[str]:
        """The labels of the layers that run with ranges from the data."""
        return static_layers(self.changes)

    @property
    def drop(self) -> float:
        """Loss that is held against the limit, 0 where no output can be scored."""
        return self.trial.limited_drop or 0.0


@dataclass(frozen=True, kw_only=True)
class QuantizeInt8:
    """Run layers on int8 with fixed ranges, with ranges of each run, or only stored so: what measures best."""

    name: ClassVar[str] = "quantize-int8"
    lossless: ClassVar[bool] = False
    covers_layers: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})

    routes: Annotated[tuple[Route, ...], Field(min_length=1)] = ("static", "mixed", "dynamic", "weights")
    """Routes to try, in this order; of those that are alike in cost and quality the first is taken."""
    recover: bool = True
    """Try clipped ranges, equalized channels and refitted layers where a static route loses something."""
    static: QuantizeStatic = QuantizeStatic()
    """Of the routes static and mixed; a careful try has a noise_ps of 400 at least."""
    dynamic: QuantizeDynamic = QuantizeDynamic()
    """Of the routes mixed and dynamic."""
    weights: QuantizeWeights = QuantizeWeights()
    """For the weights that stay float."""
    tables: QuantizeBlocks = QuantizeBlocks(scheme="int4/block32/sym")
    """For tables of few bits."""
    equalize: Equalize = Equalize()
    """For equalized channels; the route dynamic sets its scheme and insert."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Replace the model by the best candidate, or leave it as it is."""
        if not context.gate.admits(self.name, GRAPH):
            return []
        if context.judge is None:
            route = self.routes[0]
            wide = widened_for(model, context, for_integers=True)
            builder = RouteBuilder(wide.model or model, context, self.passes)
            found, changes = builder.build(RouteVariant(route=route))
            edit.become(model, found)
            why = f"nothing was measured, the first route is taken: {route}"
            return [_skipped(why), *wide.changes, *wide.refusals, *changes]
        return _RouteSearch(model, context, context.judge, self).run()

    def why_left(self, layer: WeightedLayer, changes: Sequence[Change]) -> str | None:
        """Return why a layer that no route mentions stays as it was."""
        why = why_nothing(changes)
        return why or (None if layer.form else LEFT_BY_CHOICE)

    @property
    def passes(self) -> RoutePasses:
        """The passes that routes are made of."""
        return RoutePasses(
            static=self.static, dynamic=self.dynamic, weights=self.weights, tables=self.tables, equalize=self.equalize
        )


class _RouteSearch:
    """The search for the best route on one model; `refusals` fills with what was tried in vain."""

    def __init__(self, model: ir.Model, context: Context, judge: Judge, options: QuantizeInt8) -> None:
        self.model, self.context, self.judge, self.options = model, context, judge, options
        self.effort = SearchEffort(context.clock, None if context.effort == "thorough" else _SEARCH_SECONDS)
        self.wide = widened_for(model, context, for_integers=True)
        self.builder = RouteBuilder(self.wide.model or model, context, options.passes)
        self.refusals = list(self.wide.refusals)

    def run(self) -> list[Change]:
        """Turn the model into the best candidate and report what was done and what was not."""
        candidates = self._candidates()
        chosen = next((c for c in map(self._accepted, self._ranked(candidates)) if c is not None), None)
        chosen = chosen or self._unscored(candidates)
        for candidate in candidates:
            if chosen is None or candidate.variant.route != chosen.variant.route:
                self._refuse(candidate, self._objection(candidate.trial) or "another route is better")
        if chosen is None:
            return [*self._advice(candidates), *self.refusals, *self.wide.undone("no route was taken")]
        edit.become(self.model, chosen.model)
        if self.context.archive is not None:
            self.context.archive.choose(chosen, place=QuantizeInt8.name)
        return [*_route_changes(chosen), *self.refusals]

    def _offer(self, found: Sequence[_TriedRoute]) -> None:
        """Offer the best so far, for the case that the time is over before the search ends."""
        best = next(iter(self._ranked(found)), None)
        if best is not None and self.context.best.is_wanted:
            self.context.best.offer(model_io.clone(best.model), [*_route_changes(best), *self.refusals])

    def _unscored(self, candidates: Sequence[_TriedRoute]) -> _TriedRoute | None:
        """Return the candidate with nothing but int8 weights, where no output can be scored."""
        if any(candidate.trial.drop is not None for candidate in candidates):
            return None
        return next((c for c in candidates if c.variant.route == "weights"), None)

    def _advice(self, candidates: Sequence[_TriedRoute]) -> Iterator[Change]:
        """Yield the best of the candidates that lose too much, and the limit that would take it."""
        limit = self.judge.limit
        losing = [c for c in candidates if limit is not None and c.trial.limited_drop is not None and c.drop > limit]
        best = next(iter(search.ranked(losing, self.judge.prefer, None)), None)
        if best is not None:
            needed = math.ceil(best.drop * 1000) / 1000
            figures = search.figures(best.trial)
            yield _skipped(
                f"no route is within the limit of {limit:g}; --max-drop {needed:g} takes {best.label}: {figures}"
            )

    def _candidates(self) -> list[_TriedRoute]:
        """Return the measured routes, each by the best variant that was found."""
        found: list[_TriedRoute] = []
        for route in self.options.routes:
            if self.context.clock.is_over:
                self.refusals.append(_skipped(f"{route}: not tried, the time is over"))
                continue
            variant = RouteVariant(route=route)
            built, changes = self.builder.build(variant)
            if not is_of_its_own(route, changes, self.options.passes):
                continue
            try:
                found.append(self._measured(variant, built, changes))
                self._offer(found)
            except ModelError as error:
                self.refusals.append(_skipped(f"{route}: {error.message}"))
        for index, candidate in enumerate(found):
            if (candidate.layers or not candidate.variant.has_ranges) and self._could_win(candidate, found):
                found[index] = self._improved(candidate)
                self._offer(found)
        return [*found, *self._with_small_tables(found)]

    def _with_small_tables(self, found: Sequence[_TriedRoute]) -> Iterator[_TriedRoute]:
        """Yield the best candidate with tables of 4 bits, where they are large."""
        best = next(iter(self._ranked(found)), None)
        if best is not None and not self.effort.is_over and self.builder.has_large_tables:
            yield self._tried(replace(best.variant, small_tables=True))

    def _improved(self, candidate: _TriedRoute) -> _TriedRoute:
        """Return a candidate that loses less, where one is needed and found."""
        limit = self.judge.limit
        if limit is None or self.effort.is_over:
            return candidate
        if self.options.recover and candidate.drop > limit * _WORTH_RECOVERING and candidate.variant.route != "weights":
            candidate = self._recovered(candidate)
        if candidate.drop <= limit:
            return candidate
        relaxed = self._relaxed(candidate, limit)
        if relaxed is None:
            return candidate
        self._refuse(candidate, f"it loses too much: {relaxed.label} instead")
        return relaxed

    def _recovered(self, candidate: _TriedRoute) -> _TriedRoute:
        """Try each measure against the rounding of activations, and keep it where the held-out error falls."""
        best = candidate
        measures = ["equalized"]
        if best.layers:
            measures = ["guarded", "equalized", *(["refit"] if self.builder.can_refit else [])]
        for measure in measures:
            if self.effort.is_over:
                break
            variant = replace(best.variant, **{measure: True})  # type: ignore[arg-type]  # all three are flags
            built, changes = self.builder.build(variant)
            if search.noise(self.judge.score(built)) < search.noise(best.trial):
                tried = self._measured(variant, built, changes)
                if search.noise(tried.trial) < search.noise(best.trial) and tried.drop <= best.drop:
                    best = tried
        return best

    def _relaxed(self, candidate: _TriedRoute, limit: float) -> _TriedRoute | None:
        """Return the candidate within the limit, with fewer nodes on integers, or None where that can't be.

        First those that save little time are left out, then layer by layer those that hurt the output most. Of routes
        without ranges from the data it is the weights that stay float.
        """
        has_ranges = candidate.variant.has_ranges
        if has_ranges and not candidate.layers:
            return None
        if has_ranges and not candidate.variant.careful:
            careful = self._tried(replace(candidate.variant, careful=True))
            if careful.drop <= limit and careful.layers:
                return careful
        plain = replace(candidate.variant, refit=False)
        left_out = search.least_left_out(
            lambda names: self.builder.build(replace(plain, left_out=names), weights=not has_ranges)[0],
            self._costs(candidate.layers) if has_ranges else self._stored_bytes(),
            self.judge,
            limit,
            clock=self.effort,
            progress=self.context.progress,
        )
        return self._tried(replace(plain, left_out=left_out)) if left_out else None

    def _accepted(self, candidate: _TriedRoute) -> _TriedRoute | None:
        """Return a candidate if the user's own samples agree, or one with fewer layers until they do."""
        limit = candidate.drop
        for _ in range(_MOST_HALVINGS):
            fault = self.judge.fault(candidate.model)
            if fault is None:
                return candidate
            self._refuse(candidate, fault)
            limit /= 2
            relaxed = self._relaxed(candidate, limit) if limit > 0 else None
            if relaxed is None or self._objection(relaxed.trial):
                return None
            candidate = relaxed
        return None

    def _tried(self, variant: RouteVariant) -> _TriedRoute:
        return self._measured(variant, *self.builder.build(variant))

    def _measured(self, variant: RouteVariant, built: ir.Model, changes: list[Change]) -> _TriedRoute:
        trial = self.judge(built, f"{QuantizeInt8.name}/{variant.label}")
        explained = (*self.wide.changes, *self._explained(changes, variant.left_out), *_left_float(variant))
        tried = _TriedRoute(label=variant.label, model=built, changes=explained, trial=trial, variant=variant)
        if self.context.archive is not None:
            prefer, limit = self.judge.prefer, self.judge.limit
            self.context.archive.offer(tried, prefer=prefer, limit=limit, place=QuantizeInt8.name)
        return tried

    def _explained(self, changes: Iterable[Change], left_out: frozenset[str]) -> Iterator[Change]:
        """Yield changes, those about layers that were left out, and about their weights, with the true reason."""
        nodes = (node for node in (self.wide.model or self.model).graph if query.label(node) in left_out)
        read = {value.name for node in nodes for value in node.inputs if value is not None}
        for change in changes:
            is_layer = change.pass_name == QuantizeStatic.name and change.target in left_out
            if is_layer or (change.target in read and change.reason.startswith(DESELECTED)):
                yield replace(change, reason=_HURTS_MOST)
            else:
                yield change

    def _could_win(self, candidate: _TriedRoute, others: Sequence[_TriedRoute]) -> bool:
        """Return True where a candidate is the best, or clearly cheaper than the best but for its drop."""
        ranked = self._ranked(others)
        if ranked and ranked[0] is candidate:
            return True
        without = replace(candidate.trial, drop=0.0, decisive_drop=0.0)
        if self._objection(candidate.trial) is None or self._objection(without):
            return False
        least = search.cost(ranked[0].trial, self.judge.prefer) if ranked else float("inf")
        return search.cost(candidate.trial, self.judge.prefer) < least * _WORTH_SEARCHING

    def _costs(self, layers: Sequence[str]) -> Mapping[str, float]:
        """Return layer -> its MACs at the shapes of the largest feed, 1 where they are not known."""
        shapes = resolve.infer_dims(self.model, feed_facts.largest(self.context.feeds))
        counted = ops.node_macs(self.model, resolve.shape_lookup(shapes))
        macs = {query.label(node): count for node, count in counted}
        return {name: float(macs.get(name) or 1) for name in layers}

    def _stored_bytes(self) -> dict[str, float]:
        """Return node -> bytes of the float weights that it reads."""
        found: dict[str, float] = {}
        for node, _, value in ops.weight_reads(self.model):
            tensor = constants.tensor(value)
            if tensor is not None and self.context.selects(node):
                found[query.label(node)] = found.get(query.label(node), 0.0) + tensor.nbytes
        return found

    def _ranked(self, candidates: Sequence[_TriedRoute]) -> list[_TriedRoute]:
        return search.ranked(candidates, self.judge.prefer, self.judge.limit)

    def _objection(self, trial: Trial) -> str | None:
        return search.objection(trial, self.judge.prefer, self.judge.limit)

    def _refuse(self, candidate: Candidate, why: str) -> None:
        self.refusals.append(_skipped(f"{candidate.label}: {search.figures(candidate.trial)}; {why}"))


def _route_changes(chosen: _TriedRoute) -> list[Change]:
    """Return what was done to get a candidate, with a summary."""
    summary = RouteChange(
        pass_name=QuantizeInt8.name,
        target=GRAPH,
        action=Action.APPLIED,
        reason=f"{chosen.label}: {search.figures(chosen.trial)}",
        details={"route": chosen.label},
        route=chosen.variant.route,
    )
    return [summary, *chosen.changes]


def _left_float(variant: RouteVariant) -> Iterator[Change]:
    """Yield why weights stay float on a route without ranges from the data."""
    for name in () if variant.has_ranges else sorted(variant.left_out):
        yield Change.skipped(QuantizeInt8.name, _HURTS_MOST, target=name)


def _skipped(reason: str) -> Change:
    return Change.skipped(QuantizeInt8.name, reason)
