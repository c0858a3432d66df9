"""Builds a model along one route to int8: float model -> equalize -> quantize -> int8 weights for the rest."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from ...base.gate import Gate, Memo
from ...core import Action, Change, Context, Pass
from ...graph import query
from ...io import model_io
from .blocks import QuantizeBlocks
from .dynamic import QuantizeDynamic
from .equalize import Equalize
from .int8_refit import can_refit, refitted
from .static import QuantizeStatic
from .weight_storage import sites
from .weights import QuantizeWeights

Route = Literal["static", "mixed", "dynamic", "weights"]

CAREFUL_PS = 400.0
"""Picoseconds: `QuantizeStatic.noise_ps` of a careful variant; the measurements are there."""
_LARGE_TABLE = 0.05
"""Part of the bytes of all weights from which on a table is tried in few bits. Chosen by judgement; not measured."""


@dataclass(frozen=True, kw_only=True)
class RoutePasses:
    """Passes that routes are made of, with their options."""

    static: QuantizeStatic
    dynamic: QuantizeDynamic
    weights: QuantizeWeights
    tables: QuantizeBlocks
    equalize: Equalize

    def of(self, route: Route) -> tuple[Pass, ...]:
        """Return the passes of a route that run before weights are stored as int8."""
        by_route: dict[Route, tuple[Pass, ...]] = {
            "static": (self.static,),
            "mixed": (self.dynamic, self.static),
            "dynamic": (self.dynamic,),
            "weights": (),
        }
        return by_route[route]


@dataclass(frozen=True, kw_only=True)
class RouteVariant:
    """A route with the measures taken to lose less on it.

    Args:
        route: passes to run.
        careful: more of what would save little time stays float.
        guarded: ranges of activations are clipped where layers gain by it.
        equalized: channels are scaled between layers beforehand.
        refit: layers are refitted to compensate the rounding of activations.
        small_tables: tables have 4 bits.
        left_out: labels of layers that stay float.
    """

    route: Route
    careful: bool = False
    guarded: bool = False
    equalized: bool = False
    refit: bool = False
    small_tables: bool = False
    left_out: frozenset[str] = frozenset()

    @property
    def has_ranges(self) -> bool:
        """True where activations are rounded with ranges from the data."""
        return self.route in ("static", "mixed")

    @property
    def label(self) -> str:
        """Name in reports and timings."""
        measures = {
            "carefully": self.careful,
            "clipped": self.guarded,
            "equalized": self.equalized,
            "refitted": self.refit,
            "tables of 4 bits": self.small_tables,
        }
        count = len(self.left_out)
        without = [f"without {count} layer{'s' * (count > 1)}"] if count else []
        return ", ".join([self.route, *(word for word, is_taken in measures.items() if is_taken), *without])


class RouteBuilder:
    """Builds variants of routes from copies of one float model.

    Args:
        model: not changed.
        context: its gate is not asked: a variant is built whole or not at all.
        passes: what routes run.
    """

    def __init__(self, model: ir.Model, context: Context, passes: RoutePasses) -> None:
        self._model = model
        self._context = context
        self._passes = passes

    @property
    def has_large_tables(self) -> bool:
        """True where tables make enough of the file to be tried in few bits."""
        return bool(self._large_tables(self._model))

    @functools.cached_property
    def can_refit(self) -> bool:
        """True where samples and size allow layers to be refitted."""
        return can_refit(self._model, self._context)

    def build(self, variant: RouteVariant, *, weights: bool = True) -> tuple[ir.Model, list[Change]]:
        """Return the quantized model and the changes made to it.

        Args:
            variant: layers that it leaves out have at most their weights stored as int8; on routes without ranges from
                the data, where that is what is lost by, these stay float too.
            weights: whether weights that stay float are stored as int8.
        """
        model = self._model
        if variant.refit and self.can_refit:
            quantized, changes = self._quantized(model, variant, weights=False)
            model = refitted(model, quantized, static_layers(changes), self._context) or model
        return self._quantized(model, variant, weights=weights)

    def _quantized(self, model: ir.Model, variant: RouteVariant, *, weights: bool) -> tuple[ir.Model, list[Change]]:
        """Quantize a copy of a float model."""
        copy = model_io.clone(model)
        changes = self._equalized(copy, variant) if variant.equalized else []
        inner = self._inner()
        kept = replace(inner, selects=lambda n: inner.selects(n) and query.label(n) not in variant.left_out)
        for one in self._passes.of(variant.route):
            ran = (self._static(variant) if one is self._passes.static else one).run(copy, _with_gate(kept))
            changes += ran
            if not variant.left_out and not any(change.action is Action.APPLIED for change in ran):
                break  # the same as another route, whose passes need not run again
        if variant.small_tables:
            tables = self._large_tables(copy)
            few = replace(inner, selects=lambda n: query.label(n) in tables, judge=None, race=None, max_bytes=None)
            changes += self._passes.tables.run(copy, few)
        if weights:
            stored = self._inner() if variant.has_ranges else _with_gate(kept)
            changes += self._passes.weights.run(copy, stored)
        return copy, changes

    def _static(self, variant: RouteVariant) -> QuantizeStatic:
        usual = self._passes.static
        return replace(
            usual,
            noise_ps=max(CAREFUL_PS, usual.noise_ps) if variant.careful else usual.noise_ps,
            ranges="guarded" if variant.guarded else usual.ranges,
        )

    def _equalized(self, model: ir.Model, variant: RouteVariant) -> list[Change]:
        """Scale channels before layers that will run on int8; for ranges of each run also by a Mul."""
        inner = self._inner()
        if variant.route != "dynamic":
            return self._passes.equalize.run(model, inner)
        products = self._passes.dynamic.products(model, inner)
        labels = {query.label(node) for product in products for node in product.nodes}
        chosen = replace(inner, selects=lambda node: inner.selects(node) and query.label(node) in labels)
        return replace(self._passes.equalize, scheme="dynamic-int8", insert=True).run(model, chosen)

    def _large_tables(self, model: ir.Model) -> frozenset[str]:
        """Return the labels of the nodes that look rows up in large weights which nothing else reads."""
        found = sites(model, self._context.selects, channelwise=True)
        weights = (v for body in query.graphs_outside_functions(model) for v in body.initializers.values())
        least = query.tensor_bytes(weights) * _LARGE_TABLE
        return frozenset(
            query.label(reader.node)
            for site, fault in found
            if not fault and not site.others and site.stored_bytes > least
            for reader in site.tables
        )

    def _inner(self) -> Context:
        return _with_gate(self._context)


def static_layers(changes: Iterable[Change]) -> list[str]:
    """Return the labels of the layers with weights that run with ranges from the data."""
    found = (c for c in changes if c.action is Action.APPLIED and c.pass_name == QuantizeStatic.name)
    return [c.target for c in found if "sqnr_db" in c.details]


def is_of_its_own(route: Route, changes: Sequence[Change], passes: RoutePasses) -> bool:
    """Return True where every pass of a route changed something, so that it is not the same as another route."""
    done = {c.pass_name for c in changes if c.action is Action.APPLIED}
    return bool(done) and done.issuperset(one.name for one in passes.of(route))


def _with_gate(context: Context) -> Context:
    gate = Gate()
    return replace(context, gate=gate, memo=Memo(gate))
