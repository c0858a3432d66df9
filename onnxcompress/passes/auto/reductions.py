"""Models with fewer multiplications: channels cut, blocks dropped, layers factored, alone and together.

a call of a pass --Builder--> reduced model --judge--> its expected loss --within the share of the limit?--> start
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import onnx_ir as ir

from ...core import Action, Built, CandidateLog, Change, Context, Judge, Pass, Trial
from ...data import feeds as feed_facts
from ...errors import ModelError, TimeUpError
from ...runtime.time_limit import within
from ...search import candidates as search
from ...search.effort import SearchBudget
from ...shapes import count as counting
from .. import changed_options
from .build import Builder, BuildOrder, PassCall
from .strategy import Halving, Level, shared_out

Reduction = Literal["drop-blocks", "prune-channels", "low-rank"]

IN_ORDER: tuple[Reduction, ...] = ("drop-blocks", "prune-channels", "low-rank")
"""Order of reductions within one model."""
MAIN: Reduction = "prune-channels"
"""The reduction that is tried ever further; the others are tried once, to measure their loss, and then with it."""
PROBED: Mapping[Reduction, float] = {"drop-blocks": 0.85, "low-rank": 0.6}
"""Part of the multiplications that the other reductions keep. Chosen by judgement; not measured."""

_SHARE = 1 / 2
"""Part of the limit that a reduction may take: by labels three pruned classifiers lost .5 to 1.8 times the estimate."""
_SHARE_OF_MIXED = 1 / 2
"""Part of the loss of one reduction that several may have together. Measured on resnet14: by labels cuts lost twice
their expected loss, mixtures four times."""
_NEAR_MISS = 3.0
"""Up to so many times the allowed loss a reduction is tried again with training. Chosen by judgement; not measured."""
_LEAST_TO_TRAIN = 512
"""Samples from which on training is tried. Chosen by judgement; not measured."""
WORTH_MIXING = 0.9
"""Several reductions are built where their predicted cost is below this part of the best alone, and taken where the
measured one is. Chosen by judgement; not measured."""
_BUDGETS = frozenset({"keep_macs", "keep_parameters", "keep_bytes", "keep_latency", "divergence"})
"""Options of reductions that say how far they go; where the user sets one, nothing else is tried."""
_STEPS = frozenset({"rounds", "stages"})
"""Options of the main reduction that set the cuts on the way to its budget."""


@dataclass(frozen=True)
class Start:
    """A model to be quantized.

    Args:
        label: name in reports.
        built: the model and its changes.
        lost: expected loss of the reduction; None for the whole model, or where it is not known.
        keep: the reduction and the part that it keeps, for milder ones; None where there is no such part.
    """

    label: str
    built: Built
    lost: float | None = None
    keep: tuple[Reduction, float] | None = None


class Reducer:
    """Builds reduced models and measures their losses.

    Args:
        model: the whole model; not changed.
        context: of the search.
        judge: scores the models.
        builder: carries orders out.
        archive: keeps built models for interrupted runs.
        budget: CPU seconds of the search.
        held: passes by name, with the options that the user set.
        place: prefix of the names in the archive.
        refusals: filled with what was tried in vain.
    """

    def __init__(
        self,
        model: ir.Model,
        context: Context,
        judge: Judge,
        builder: Builder,
        archive: CandidateLog,
        budget: SearchBudget,
        held: Mapping[str, Pass],
        place: str,
        refusals: list[Change],
    ) -> None:
        self._budget = budget
        self._model, self._context, self._judge = model, context, judge
        self._builder, self._archive, self._held, self._place = builder, archive, held, place
        self._refusals = refusals
        self._exhausted: set[Reduction] = set()
        self._levels: dict[Reduction, list[Level]] = {}
        self.numbers = ""
        """The pass that makes numbers of reduced models smaller; "" as long as that is not known."""
        self.sizes: dict[Reduction, dict[float, float]] = {}
        """Reduction -> part kept -> part of the original's bytes, of every model that was built."""
        self._path: tuple[float, ...] = ()
        """The parts kept by the main reduction that were good, from the largest on: a model is cut further from the
        last one that was good, so that this is done once."""

    def ahead(self, name: Reduction, keeps: Sequence[float], *, path: Sequence[float] | None = None) -> None:
        """Order models from workers that will be asked for, or might be, from a path that is expected."""
        if not self._budget.allows_guess(name):
            return
        orders = [BuildOrder((self._call(name, keep, path=path),)) for keep in keeps]
        self._builder.ahead(order for order in orders if not self._archive.has(self._name(order)))

    def ever_further(
        self, name: Reduction, first: Halving, builds: int, no_gain: Callable[[Reduction, float], str | None]
    ) -> Iterator[Start]:
        """Yield good models reduced ever further, then those between the last good one and the first bad one.

        Args:
            name: the reduction.
            first: where it begins.
            builds: most models to build.
            no_gain: says why a model that keeps some part can't be better than the best so far, None where it can.
        """
        step: Halving | None = first
        for _ in range(builds):
            if step is None or name in self._exhausted:
                return
            why = self.objection(name) or (None if self.has_budget(name) else no_gain(name, step.keep))
            if why is not None:
                self._refuse(f"{_amount(self._call(name, step.keep))}: not tried: {why}")
                return
            good, bad = step.after(is_good=True), step.after(is_good=False)
            here = (*_stages(self._path, step.keep), step.keep)
            self.ahead(name, [step.keep, *([] if bad is None else [bad.keep])])
            self.ahead(name, [] if good is None else [good.keep], path=here)
            start = self.reduced(name, step.keep)
            if start is not None:
                self._path = here
                yield start
            if self.has_budget(name):
                return
            step = bad if start is None else good

    def objection(self, name: Reduction) -> str | None:
        """Return why no model should be reduced and quantized any more, None where one may be."""
        return self._budget.objection(name, self.numbers)

    def reduced(self, name: Reduction, keep: float) -> Start | None:
        """Return the model with a part of its multiplications left, None where that loses too much or can't be."""
        can_train = name == MAIN and len(self._context.feeds) >= _LEAST_TO_TRAIN
        for trains in (False, True) if can_train else (False,):
            call = self._call(name, keep, trains=trains)
            label, kind = _amount(call), f"{name}, trained" if trains else name
            why = self._budget.objection(kind, self.numbers) if trains else None
            if why is not None:
                self._refuse(f"{label}, trained: not tried: {why}")
                return None
            measured = self._measured([call], f"{label}{', trained' if trains else ''}", kind)
            if measured is None:
                self._exhausted.add(name)
                return None
            start, trial = measured
            lost, most = expected_loss(trial), self.most()
            self.sizes.setdefault(name, {})[keep] = trial.size_ratio
            if lost is not None and not trains:
                self._levels.setdefault(name, []).append(Level(call, self._cost(start, trial), lost, most))
            if most is None or (lost is not None and lost <= most):
                return replace(start, lost=lost, keep=None if self.has_budget(name) else (name, keep))
            self._refuse_lossy(start, lost, most)
            if lost is None or lost > _NEAR_MISS * most:
                return None
        return None

    def mixed(self) -> Start | None:
        """Return the model with the best reductions together, None where that is not worth it or loses too much."""
        kinds = [self._levels.get(name, []) for name in IN_ORDER]
        allowed = next((level.allowed for levels in kinds for level in levels), None)
        if allowed is None:
            return None
        most = allowed * _SHARE_OF_MIXED
        chosen = shared_out(kinds, most)
        alone = [level.cost for level in self._levels.get(MAIN, []) if level.lost <= allowed]
        is_worth = math.prod(level.cost for level in chosen) < min(alone, default=1.0) * WORTH_MIXING
        if not is_worth or all(level.step.name == MAIN for level in chosen):
            return None
        calls = [level.step for level in chosen]
        label = " + ".join(map(_amount, calls))
        why = self._budget.objection(*(call.name for call in calls), self.numbers)
        if why is not None:
            self._refuse(f"{label}: not tried: {why}")
            return None
        measured = self._measured(calls, label, "together")
        if measured is None:
            return None
        start, lost = measured[0], expected_loss(measured[1])
        if lost is None or lost > most:
            self._refuse_lossy(start, lost, most)
            return None
        return replace(start, lost=lost)

    def most(self) -> float | None:
        """Return the most that a reduction may lose, None without a limit."""
        if self._judge.limit is None:
            return None
        return self._judge.limit * _SHARE

    def _call(
        self, name: Reduction, keep: float, *, trains: bool = False, path: Sequence[float] | None = None
    ) -> PassCall:
        """Return the call of a reduction: the search's options first, then the other ones that are not usual."""
        held = changed_options(self._held[name])
        options: dict[str, Any] = {} if self.has_budget(name) else {"keep_macs": keep}
        if name == MAIN and options and not _STEPS.intersection(held):
            options["stages"] = _stages(self._path if path is None else path, keep)
        if not trains:
            options["distill_steps"] = 0
        return PassCall(name=name, options=tuple((options | {k: held[k] for k in held if k not in options}).items()))

    def has_budget(self, name: Reduction) -> bool:
        """Return True where the user set a budget of a reduction."""
        return bool(_BUDGETS.intersection(changed_options(self._held[name])))

    def _measured(self, calls: Sequence[PassCall], label: str, kind: str) -> tuple[Start, Trial] | None:
        """Return the reduced model and its score, None where nothing can be removed or no time is left for it."""
        with self._budget.step(kind, label):
            start = self._built(calls, label)
            return None if start is None else (start, self._judge.score(start.built.model))

    def _built(self, calls: Sequence[PassCall], label: str) -> Start | None:
        """Return the reduced model, None where nothing can be removed or no time is left for it."""
        order = BuildOrder(tuple(calls))
        try:
            built = self._archive.built(self._name(order), lambda: self._within_budget(order, label))
        except ModelError as error:
            self._refuse(f"{label}: {error.message}")
            return None
        except TimeUpError:
            self._refuse(self._budget.give_up(label))
            return None
        if not was_applied(built.changes):
            self._refusals += built.changes
            return None
        return Start(label, built)

    def _within_budget(self, order: BuildOrder, label: str) -> Built:
        """Return what an order gives, if that leaves time to make its numbers smaller.

        Raises:
            TimeUpError: it does not.
        """
        clock = self._budget.clock(label, kept_seconds=self._budget.last(self.numbers))
        return within(lambda: self._builder.built(order), clock)

    def _cost(self, start: Start, trial: Trial) -> float:
        """Return the cost of a reduced model; its multiplications represent its time."""
        largest = feed_facts.largest(self._context.feeds)
        before, after = (counting.count(each, largest).macs for each in (self._model, start.built.model))
        time = after / before if before and after else None
        return search.cost(replace(trial, latency_ratio=time), self._judge.prefer)

    def _name(self, order: BuildOrder) -> str:
        """Return the name of a model in a checkpoint."""
        return f"{self._place}/{order.label}"

    def _refuse(self, reason: str) -> None:
        self._refusals.append(Change.skipped(self._place, reason))

    def _refuse_lossy(self, start: Start, lost: float | None, most: float) -> None:
        why = "no output can be scored" if lost is None else f"it would lose {lost:.4f}, more than {most:.4f}"
        self._refuse(f"{start.label}: {why}")


def expected_loss(trial: Trial) -> float | None:
    """Return the loss that searches go by: the expected drop, the measured one where there is none."""
    return trial.limited_drop


def was_applied(changes: Sequence[Change]) -> bool:
    """Return True where something was done."""
    return any(c.action is Action.APPLIED for c in changes)


def _stages(path: Sequence[float], keep: float) -> tuple[float, ...]:
    """Return what is kept after the cuts before the last one: those of the path, else half of the way."""
    return tuple(part for part in path if part > keep) or (round(keep**0.5, 4),)


def _amount(call: PassCall) -> str:
    """Return a reduction with its budget, as reports name it."""
    options = dict(call.options)
    if "keep_macs" in options:
        return f"{call.name} {options['keep_macs']:.3f}"
    return " ".join([call.name, *(f"{key} {options[key]:g}" for key in sorted(_BUDGETS.intersection(options)))])
