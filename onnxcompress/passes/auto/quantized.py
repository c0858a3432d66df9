"""Smaller numbers for a model: int8 by the route that measures best, or weights of few bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import onnx_ir as ir

from ...base.clock import Clock
from ...base.gate import Gate, Memo
from ...core import GRAPH, Action, BestSoFar, Candidate, CandidateLog, Change, Context, Judge, Pass
from ...errors import ModelError, TimeUpError
from ...io import model_io
from ...runtime.time_limit import within
from ...search import candidates as search
from ...search.archive import ScopedJudge
from ...search.effort import SearchBudget
from .. import build as build_pass
from .. import changed_options
from ..quantize.int8 import RouteChange
from ..quantize.int8_routes import Route
from .reductions import Reducer, Reduction, Start, expected_loss, was_applied

Numbers = Literal["quantize-int8", "quantize-blocks"]

WHOLE = "whole"
"""Label of the model without a reduction."""

_ADDED = 1.15
"""Factor by which numbers may raise the loss of a reduction. Chosen by judgement; not measured."""
_WORTH_SLOW = 0.9
"""Part of the original's time above which weights of few bits are tried beside int8. Chosen by judgement; not
measured."""


@dataclass(frozen=True, kw_only=True)
class QuantizedCandidate(Candidate):
    """A candidate of the search: its reduction, the pass that made its numbers smaller, and the route of that pass."""

    keep: tuple[Reduction, float] | None
    numbers: Numbers
    route: Route | None


class CandidateMaker:
    """Makes candidates from models.

    Args:
        context: of the search.
        judge: scores and times candidates.
        archive: told of every candidate.
        held: passes by name, with the options that the user set.
        numbers: passes to try, in this order.
        reducer: knows what may be lost.
        budget: CPU seconds of the search.
        place: prefix of labels where times are recorded.
        refusals: filled with what was tried in vain.
    """

    def __init__(
        self,
        context: Context,
        judge: Judge,
        archive: CandidateLog,
        held: Mapping[str, Pass],
        numbers: tuple[Numbers, ...],
        reducer: Reducer,
        budget: SearchBudget,
        place: str,
        refusals: list[Change],
    ) -> None:
        self._budget = budget
        self._context, self._judge, self._archive, self._held = context, judge, archive, held
        self._numbers, self._reducer, self._place, self._refusals = numbers, reducer, place, refusals

    def candidates(self, start: Start, like: QuantizedCandidate | None) -> Iterator[QuantizedCandidate]:
        """Yield the candidates from a model; where the best of the whole model is known, by its pass and route only."""
        first: QuantizedCandidate | None = None
        for index, name in enumerate(self._numbers):
            if (like is not None and name != like.numbers) or (first is not None and not self._wants_more(first)):
                continue
            label = f"{start.label}, {name}"
            is_needed = start.label == WHOLE and (first is None or self._fault(first) is not None)
            why = None if is_needed else self._budget.objection(name)
            if why is not None:
                self._refuse(f"{label}: not tried: {why}")
                return
            step = self._budget.first_step if start.label == WHOLE and index == 0 else self._budget.step
            with step(name, label):
                found = self._quantized(start, name, None if like is None else like.route, is_needed=is_needed)
            if found is not None:
                first = first or found
                yield found

    def _wants_more(self, before: QuantizedCandidate) -> bool:
        """Return True where weights of few bits could be better than the numbers that were tried before."""
        ratio = before.trial.latency_ratio
        is_slow = ratio is None or ratio > _WORTH_SLOW
        return self._judge.prefer == "size" or is_slow or self._fault(before) is not None

    def _fault(self, found: QuantizedCandidate) -> str | None:
        """Return why a candidate may not be the result, or is over the user's limits; None for neither."""
        why = search.objection(found.trial, self._judge.prefer, self._judge.limit)
        return why or self._context.excess(found.trial)

    def _quantized(
        self, start: Start, name: Numbers, route: Route | None, *, is_needed: bool
    ) -> QuantizedCandidate | None:
        """Return the candidate from a model by one pass, None where there is none that may be.

        Args:
            start: the model.
            name: the pass.
            route: the only one that it is to try, where it has several.
            is_needed: let it take longer than is left, since there is no valid candidate without it.
        """
        copy = model_io.clone(start.built.model)
        options: dict[str, Any] = changed_options(self._held[name]) | ({} if route is None else {"routes": (route,)})
        try:
            clock = Clock() if is_needed else self._budget.clock(f"{start.label}, {name}")
            changes = within(lambda: self._run(build_pass(name, options), copy, start.label), clock)
            if not was_applied(changes):
                self._refusals += changes
                return None
            summary = next((c for c in changes if c.action is Action.APPLIED and c.target == GRAPH), None)
            method = name if summary is None else summary.details.get("route") or name
            label = f"{start.label}, {method}"
            trial = self._judge(copy, f"{self._place}/{label}")
        except ModelError as error:
            self._refuse(f"{start.label}, {name}: {error.message}")
            return None
        except TimeUpError:
            self._refuse(self._budget.give_up(f"{start.label}, {name}"))
            return None
        found = QuantizedCandidate(
            label=label,
            model=copy,
            changes=(*start.built.changes, *changes),
            trial=trial,
            keep=start.keep,
            numbers=name,
            route=summary.route if isinstance(summary, RouteChange) else None,
        )
        self._archive.offer(found, prefer=self._judge.prefer, limit=self._judge.limit)
        lost, most = expected_loss(trial), self._reducer.most()
        if start.lost is not None and lost is not None and most is not None:
            most = max(most, start.lost) * _ADDED
            if lost > most:
                why = f"with smaller numbers it would lose {lost:.4f}, more than {most:.4f}"
                self._refuse(f"{label}: {search.figures(trial)}; {why}")
                return None
        return found

    def _run(self, one: Pass, model: ir.Model, label: str) -> list[Change]:
        """Run a pass on a copy; it sees only the held-out samples."""
        gate = Gate()
        judge = ScopedJudge(self._judge, f"{self._place}/{label}")
        best = self._context.best if label == WHOLE else BestSoFar()  # of another model, it is not judged as a whole
        inner = replace(self._context, gate=gate, memo=Memo(gate), judge=judge, archive=None, best=best)
        return one.run(model, inner)

    def _refuse(self, reason: str) -> None:
        self._refusals.append(Change.skipped(self._place, reason))
