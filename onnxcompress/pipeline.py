r"""Runs passes on a model, keeps what is proved, takes back what is not, and names the rewrite at fault.

    before --clone--> passes (gate counts rewrites) --> candidate --proof.problem()--> None: kept
                                                                 \\--> text: bisect over the gate's count,
                                                                      deny the culprit, run again

Neighbouring lossless passes are run to a fixpoint and proved together, since one proof costs more than all of
them; a failed proof is narrowed down to a single rewrite. Lossy passes are proved one by one.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import onnx_ir as ir

from .base.gate import Gate, Memo
from .core import Action, Change, Context, Pass
from .errors import OnnxCompressError, UsageError
from .io import model_io

log = logging.getLogger(__name__)

_MOST_ROUNDS = 12
"""Rounds of a group of lossless passes; each opens work for the others, and all models seen settle in 2 to 5."""

_MOST_CULPRITS = 16
"""Wrong rewrites that are singled out before the whole group is taken back."""


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
class Outcome:
    """The model after all passes and everything that was done or refused, in order."""

    model: ir.Model
    changes: list[Change]


def run(model: ir.Model, passes: Sequence[Pass], context: Context, prover: Prover) -> Outcome:
    """Run passes in order; `model` itself is never edited.

    Args:
        model: the model to start from.
        passes: in the order of the recipe.
        context: its gate is replaced for every attempt.
        prover: makes the proof that a group of passes has to stand.
    """
    changes: list[Change] = []
    for group in _groups(passes):
        log.info("running %s", ", ".join(p.name for p in group))
        outcome = _prove_group(model, group, context, prover(model, group[0].lossless))
        model, changes = outcome.model, changes + outcome.changes
    return Outcome(model, changes)


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


def _prove_group(before: ir.Model, group: Sequence[Pass], context: Context, proof: Proof) -> Outcome:
    """Apply a group; on a failed proof deny the culprits one after the other, at worst take all of it back."""
    denied: dict[tuple[str, str], str] = {}
    attempt = _attempt(before, group, context, proof, denied=frozenset())
    while attempt.problem is not None and len(denied) < _MOST_CULPRITS:
        culprit = _culprit(before, group, context, proof, attempt, frozenset(denied))
        if culprit is None:
            break
        log.info("%s on %s is taken back: %s", *culprit, attempt.problem)
        denied[culprit] = attempt.problem
        attempt = _attempt(before, group, context, proof, denied=frozenset(denied))
    taken_back = [Change.rolled_back(name, why, target=target) for (name, target), why in denied.items()]
    if attempt.problem is None:
        if denied:
            log.warning("%s wrong rewrites of %s taken back", len(denied), ", ".join(sorted({n for n, _ in denied})))
        outcome = _within_limit(before, group, context, proof, attempt, frozenset(denied))
        return Outcome(outcome.model, outcome.changes + taken_back)
    log.warning("%s taken back: %s", ", ".join(p.name for p in group), attempt.problem)
    lost = [
        replace(c, action=Action.ROLLED_BACK, reason=attempt.problem, bytes_after=c.bytes_before)
        if c.action is Action.APPLIED
        else c
        for c in attempt.changes
    ]
    if not lost:
        lost = [Change.rolled_back(p.name, attempt.problem) for p in group]
    return Outcome(before, lost + taken_back)


def _within_limit(
    before: ir.Model,
    group: Sequence[Pass],
    context: Context,
    proof: Proof,
    whole: _Attempt,
    denied: frozenset[tuple[str, str]],
) -> Outcome:
    """Keep the longest prefix of an attempt's rewrites that is within the proof's limit; the rest is taken back."""
    excess = proof.excess(whole.model) if whole.admitted else None
    if excess is None:
        return Outcome(whole.model, whole.changes)
    best = Outcome(before, [c for c in whole.changes if c.action is not Action.APPLIED])
    good, bad = 0, len(whole.admitted)
    while bad - good > 1:
        middle = (good + bad) // 2
        attempt = _attempt(before, group, context, proof, denied=denied, limit=middle)
        if attempt.problem is None and proof.excess(attempt.model) is None:
            good, best = middle, Outcome(attempt.model, attempt.changes)
        else:
            bad = middle
    log.warning("%s rewrites taken back: %s", len(whole.admitted) - good, excess)
    lost = [Change.rolled_back(name, f"with it, {excess}", target=target) for name, target in whole.admitted[good:]]
    return Outcome(best.model, best.changes + lost)


def _culprit(
    before: ir.Model,
    group: Sequence[Pass],
    context: Context,
    proof: Proof,
    failed: _Attempt,
    denied: frozenset[tuple[str, str]],
) -> tuple[str, str] | None:
    """Find the rewrite that completes the shortest failing prefix; None when not even one rewrite is at fault."""
    if not failed.admitted or _attempt(before, group, context, proof, denied=denied, limit=0).problem is not None:
        return None
    good, bad = 0, len(failed.admitted)
    while bad - good > 1:
        middle = (good + bad) // 2
        attempt = _attempt(before, group, context, proof, denied=denied, limit=middle)
        good, bad = (middle, bad) if attempt.problem is None else (good, middle)
    return failed.admitted[bad - 1]


def _attempt(
    before: ir.Model,
    group: Sequence[Pass],
    context: Context,
    proof: Proof,
    *,
    denied: frozenset[tuple[str, str]],
    limit: int | None = None,
) -> _Attempt:
    """Apply a group to a copy under a gate and prove the result."""
    gate = Gate(limit=limit, denied=denied)
    candidate = model_io.clone(before)
    changes: list[Change] = []
    try:
        changes = _apply(candidate, group, replace(context, gate=gate, memo=Memo(gate)))
        problem = proof.problem(candidate) if gate.admitted else None
    except (UsageError, MemoryError):  # the user's own words or code are at fault: to be mended, not worked around
        raise
    except OnnxCompressError as error:
        problem = str(error)
    except Exception as error:  # a bug in one pass must not cost the user the others; it is named in the report
        log.warning("internal error, please report it", exc_info=error)
        problem = f"internal error: {type(error).__name__}: {error}"
    is_same = problem is None and not gate.admitted and all(c.action is not Action.APPLIED for c in changes)
    return _Attempt(before if is_same else candidate, changes, gate.admitted, problem)


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
            changes = p.run(model, context)
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
