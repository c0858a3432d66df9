r"""Runs passes on a model, keeps what is proved, takes back what is not, and names the rewrite at fault.

    before --clone--> passes (gate counts rewrites) --> candidate --proof.problem()--> None: kept
                                                                 \\--> text: bisect over the gate's count,
                                                                      deny the culprit, run again

Neighbouring lossless passes are run to a fixpoint and proved together, since one proof costs more than all of
them; a failed proof is narrowed down to a single rewrite, within a time, and to a pass after that. Lossy passes are
proved one by one. A pass that ends in an internal error is taken back as a whole: which rewrite led to it is for us to
find out.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import onnx_ir as ir

from .accounting import covers_layers, unmentioned
from .base.clock import Clock
from .base.gate import Gate, Memo
from .base.group_time import AllTheTime, GroupTime
from .core import Action, BestSoFar, Change, Context, Pass
from .errors import OnnxCompressError, StoppedByUserError, TimeUpError, UsageError
from .io import model_io
from .ops.weight_layers import weighted_layers

log = logging.getLogger(__name__)

_MOST_ROUNDS = 12
"""Rounds of a group of lossless passes; each opens work for the others, and all models seen settle in 2 to 5."""

_MOST_CULPRITS = 16
"""Wrong rewrites that are singled out before the whole group is taken back."""

_BISECTION_TIMES = 16.0
"""Time for the search of wrong rewrites, in times of what it took to make and prove all of them: one among a thousand
takes 12 attempts, each shorter than the first. Chosen by judgement; not measured."""
_LEAST_BISECTION_SECONDS = 20.0
"""Least time for that search. Chosen by judgement; not measured."""

TIME_UP = "the time limit was reached"
STOPPED = "the user interrupted the run"
_NOT_FOUND = "which rewrite is at fault was not found in the time for it"


class Proof(Protocol):
    """Holds the model as it was before a group of passes, and judges what they made of it."""

    def problem(self, candidate: ir.Model) -> str | None:
        """Return one line that says what is wrong with the candidate, None where it is as good as before."""
        ...

    def excess(self, candidate: ir.Model) -> str | None:
        """Return one line that says by how much a candidate without fault is over a limit to back off to, else None.

        Lossy passes make their least harmful rewrites first: the longest prefix within the limit is kept.
        """
        ...


Prover = Callable[[ir.Model, bool], Proof]
"""Makes the proof for a group: (model before it, whether its passes are lossless) -> proof."""


@dataclass(frozen=True)
class InternalError:
    """A bug of ours that cost a pass its work."""

    pass_name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.pass_name}: {self.reason}"


@dataclass(frozen=True)
class Outcome:
    """The model after all passes and everything that was done or refused, in order."""

    model: ir.Model
    changes: list[Change]
    internal_errors: tuple[InternalError, ...] = ()
    """Of the passes that were taken back because of them."""
    cut_short: tuple[str, ...] = ()
    """Names of the passes that the end of the time, or the user, has stopped, or that were not begun."""
    lossless_model: ir.Model | None = None
    """The model before the first lossy pass."""
    cut_by: str = TIME_UP
    """What has cut passes short: `TIME_UP` or `STOPPED`."""


def run(
    model: ir.Model, passes: Sequence[Pass], context: Context, prover: Prover, budget: GroupTime | None = None
) -> Outcome:
    """Run passes in order; `model` itself is never edited.

    Args:
        model: the model to start from.
        passes: in the order of the recipe.
        context: its gate is replaced for every attempt.
        prover: makes the proof that a group of passes has to stand.
        budget: the time for it; None for all that it takes.
    """
    done = Outcome(model, [], lossless_model=model)
    for group in _groups(passes):
        if done.cut_short:  # what is left of the time is for the result, which another pass would change
            late = [Change.skipped(p.name, done.cut_by) for p in group]
            names = tuple(p.name for p in group)
            done = replace(done, changes=done.changes + late, cut_short=done.cut_short + names)
            continue
        log.info("running %s", ", ".join(p.name for p in group))
        outcome = _in_time(done.model, group, context, prover, budget or AllTheTime())
        if not group[0].lossless and all(c.action is not Action.APPLIED for c in outcome.changes):
            outcome = replace(outcome, model=done.model)  # a copy of it
        if covers_layers(group[0]) and not outcome.cut_short:
            after = None if outcome.model is done.model else outcome.model
            outcome.changes.extend(unmentioned(group[0], weighted_layers(done.model), after, outcome.changes, context))
        is_lossless = group[0].lossless and done.lossless_model is done.model
        done = Outcome(
            outcome.model,
            done.changes + outcome.changes,
            done.internal_errors + outcome.internal_errors,
            done.cut_short + outcome.cut_short,
            outcome.model if is_lossless else done.lossless_model,
            outcome.cut_by,
        )
    return done


def _in_time(before: ir.Model, group: Sequence[Pass], context: Context, prover: Prover, budget: GroupTime) -> Outcome:
    """Run a group; where it is stopped before it ends, prove the best that it had found until then."""
    best = BestSoFar(is_wanted=budget.may_end_early)

    names = tuple(p.name for p in group)

    def work(clock: Clock) -> Outcome:
        proof = prover(before, group[0].lossless)
        found = _Group(before, group, replace(context, clock=clock, best=best), proof).run()
        return replace(found, cut_short=names) if clock.is_over and not group[0].lossless else found

    def proved() -> Outcome:
        proof = prover(before, group[0].lossless)
        faults = []
        for offered in best.offers:
            fault = proof.problem(offered.model) or proof.excess(offered.model)
            if fault is None:
                return Outcome(offered.model, list(offered.changes))
            faults.append(fault)
        return Outcome(before, [Change.skipped(name, f"{why}; of what it had found, {faults[0]}") for name in names])

    try:
        return budget.passes(work, lossless=group[0].lossless, has_found=lambda: bool(best.offers))
    except StoppedByUserError:
        why = STOPPED
    except TimeUpError:
        why = TIME_UP
    log.info("%s cut short", ", ".join(names))
    nothing = Outcome(before, [Change.skipped(name, why) for name in names])
    try:
        found = budget.proof(proved) if best.offers else nothing
    except TimeUpError:
        found = nothing
    return replace(found, cut_short=names, cut_by=why)


def _groups(passes: Iterable[Pass]) -> Iterator[list[Pass]]:
    """Split passes into runs of lossless neighbours and single lossy ones."""
    for lossless, group in itertools.groupby(passes, key=lambda p: p.lossless):
        if lossless:
            yield list(group)
        else:
            yield from ([p] for p in group)


@dataclass(frozen=True)
class _Attempt:
    model: ir.Model
    changes: list[Change]
    admitted: list[tuple[str, str]]
    problem: str | None


class _BugError(Exception):
    """A bug of ours in a pass (None: in the proof)."""

    def __init__(self, guilty: Pass | None, error: Exception) -> None:
        super().__init__(f"internal error: {type(error).__name__}: {error}: please report".replace("\n", " "))
        self.guilty = guilty


class _Group:
    """Passes that are proved together: applies them, and takes back what is wrong."""

    def __init__(self, before: ir.Model, passes: Sequence[Pass], context: Context, proof: Proof) -> None:
        self._before = before
        self._passes = list(passes)
        self._context = context
        self._proof = proof
        self._denied: dict[tuple[str, str], str] = {}
        self._errors: list[InternalError] = []
        self._lost: list[Change] = []
        """Of passes that were taken back as a whole."""

    def run(self) -> Outcome:
        """Apply the group; on a failed proof deny the culprits one after the other, at worst take all of it back.

        A pass with an internal error is left out, and the others begin anew.
        """
        while self._passes:
            try:
                outcome = self._proved()
            except _BugError as error:
                log.warning("internal error, please report it", exc_info=error.__cause__)
                guilty = self._passes if error.guilty is None else [error.guilty]
                self._errors += [InternalError(p.name, str(error)) for p in guilty]
                self._leave_out(guilty, str(error))
            else:
                return replace(outcome, changes=outcome.changes + self._lost, internal_errors=tuple(self._errors))
        return Outcome(self._before, self._lost, tuple(self._errors))

    def _leave_out(self, passes: Sequence[Pass], why: str) -> None:
        self._lost += [Change(pass_name=p.name, target="graph", action=Action.ROLLED_BACK, reason=why) for p in passes]
        self._passes = [p for p in self._passes if all(p is not other for other in passes)]

    def _proved(self) -> Outcome:
        started = time.monotonic()
        attempt = self._attempt()
        now = time.monotonic()
        deadline = now + max(_LEAST_BISECTION_SECONDS, _BISECTION_TIMES * (now - started))
        while attempt.problem is not None and len(self._denied) < _MOST_CULPRITS:
            suspects = self._suspects(attempt, deadline)
            if len(suspects) == 1:
                log.info("%s on %s is taken back: %s", *suspects[0], attempt.problem)
                self._denied[suspects[0]] = attempt.problem
            elif not suspects:
                break
            elif not self._leave_out_all(suspects, attempt.problem):
                attempt = replace(attempt, problem=f"{attempt.problem}; {_NOT_FOUND}")
                break
            attempt = self._attempt()
        taken_back = [
            Change(pass_name=name, target=target, action=Action.ROLLED_BACK, reason=why)
            for (name, target), why in self._denied.items()
        ]
        if attempt.problem is None:
            if taken_back:
                names = sorted({change.pass_name for change in taken_back})
                log.warning("%s wrong rewrites of %s taken back", len(taken_back), ", ".join(names))
            outcome = self._within_limit(attempt)
            return Outcome(outcome.model, outcome.changes + taken_back)
        return Outcome(self._before, self._all_lost(attempt, attempt.problem) + taken_back)

    def _leave_out_all(self, suspects: Sequence[tuple[str, str]], problem: str) -> bool:
        """Take back the passes that these rewrites are of; False where none would be left."""
        names = {name for name, _ in suspects}
        passes = [p for p in self._passes if p.name in names]
        if len(passes) == len(self._passes):
            return False
        log.warning("%s taken back: %s", ", ".join(sorted(names)), problem)
        self._leave_out(passes, f"{problem}; {_NOT_FOUND}")
        return True

    def _all_lost(self, attempt: _Attempt, problem: str) -> list[Change]:
        log.warning("%s taken back: %s", ", ".join(p.name for p in self._passes), problem)
        lost = [
            replace(c, action=Action.ROLLED_BACK, reason=problem, bytes_after=c.bytes_before)
            if c.action is Action.APPLIED
            else c
            for c in attempt.changes
        ]
        return lost or [
            Change(pass_name=p.name, target="graph", action=Action.ROLLED_BACK, reason=problem) for p in self._passes
        ]

    def _within_limit(self, whole: _Attempt) -> Outcome:
        """Keep the longest prefix of an attempt's rewrites that is within the proof's limit; the rest is taken back."""
        excess = self._proof.excess(whole.model) if whole.admitted else None
        if excess is None:
            return Outcome(whole.model, whole.changes)
        best = Outcome(self._before, [c for c in whole.changes if c.action is not Action.APPLIED])
        good, bad = 0, len(whole.admitted)
        while bad - good > 1:
            middle = (good + bad) // 2
            attempt = self._attempt(limit=middle)
            if attempt.problem is None and self._proof.excess(attempt.model) is None:
                good, best = middle, Outcome(attempt.model, attempt.changes)
            else:
                bad = middle
        log.warning("%s rewrites taken back: %s", len(whole.admitted) - good, excess)
        lost = [
            Change(pass_name=name, target=target, action=Action.ROLLED_BACK, reason=f"with it, {excess}")
            for name, target in whole.admitted[good:]
        ]
        return Outcome(best.model, best.changes + lost)

    def _suspects(self, failed: _Attempt, deadline: float) -> list[tuple[str, str]]:
        """Return the rewrite that completes the shortest failing prefix, more than one where the time is up.

        None are returned when not even one rewrite is at fault.
        """
        if not failed.admitted or self._attempt(limit=0).problem is not None:
            return []
        good, bad = 0, len(failed.admitted)
        while bad - good > 1 and time.monotonic() < deadline:
            middle = (good + bad) // 2
            attempt = self._attempt(limit=middle)
            good, bad = (middle, bad) if attempt.problem is None else (good, middle)
        return failed.admitted[good:bad]

    def _attempt(self, *, limit: int | None = None) -> _Attempt:
        """Apply the group to a copy under a gate and prove the result.

        Raises:
            _BugError: a pass or the proof has a bug.
        """
        gate = Gate(limit=limit, denied=frozenset(self._denied))
        candidate = model_io.clone(self._before)
        changes: list[Change] = []
        try:
            changes = _apply(candidate, self._passes, replace(self._context, gate=gate, memo=Memo(gate)))
            problem = self._proof.problem(candidate) if gate.admitted else None
        except (UsageError, MemoryError, _BugError):  # words or code of the user: to be mended, not worked around
            raise
        except OnnxCompressError as error:
            problem = str(error)
        except Exception as error:
            raise _BugError(None, error) from error
        is_same = problem is None and not gate.admitted and all(c.action is not Action.APPLIED for c in changes)
        return _Attempt(self._before if is_same else candidate, changes, gate.admitted, problem)


def _apply(model: ir.Model, group: Sequence[Pass], context: Context) -> list[Change]:
    """Run the passes of a group in place: lossless ones in turns until nothing changes, a lossy one once.

    A pass that had nothing to do is not asked again before another one has changed something.
    """
    done: list[Change] = []
    refused: dict[int, list[Change]] = {}
    idle: set[int] = set()
    rounds = _MOST_ROUNDS if group[0].lossless else 1
    for _ in range(rounds):
        for index, p in enumerate(group):
            if index in idle:
                continue
            before = len(context.gate.admitted)
            changes = _run(p, model, context)
            applied = [c for c in changes if c.action is Action.APPLIED]
            done += applied
            refused[index] = [c for c in changes if c.action is not Action.APPLIED]
            if applied or len(context.gate.admitted) != before:
                idle.clear()
            else:
                idle.add(index)
        if len(idle) == len(group):
            break
    return done + [change for index in sorted(refused) for change in refused[index]]


def _run(p: Pass, model: ir.Model, context: Context) -> list[Change]:
    """Run a pass.

    Raises:
        _BugError: it has a bug, which must not cost the user the other passes.
    """
    try:
        return p.run(model, context)
    except (OnnxCompressError, MemoryError):
        raise
    except Exception as error:
        raise _BugError(p, error) from error
