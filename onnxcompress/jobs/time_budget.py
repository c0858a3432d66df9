"""The time that a user allows for a run: what is left for passes once measuring and writing have theirs.

    |-- start, load --|-- lossless passes --|-- lossy passes --(soft end)--|-- proof, score --|-- race, count, write --|

Passes look at the soft end and stop by themselves; who has not stopped at the end is interrupted, and the best that it
had found is proved and scored in the time that was kept for it. The times are predicted from runs of the original.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from ..base.clock import Clock
from ..core import Action, Change
from ..errors import StoppedByUserError
from ..graph.query import node_count
from ..io import model_io
from ..pipeline import TIME_UP
from ..runtime.latency import RACE_SECONDS
from ..runtime.processes import age_seconds
from ..runtime.time_limit import within
from ..shapes import count as counting
from ..shapes.count import ModelFacts
from .interrupts import Interrupts

if TYPE_CHECKING:
    import onnx_ir as ir

    from .setup import Run

T = TypeVar("T")

_WRITE_SECONDS = 0.4
"""Time to make a report, print and write it, whatever the model. Chosen by judgement: .2 s on an idle processor."""
_WRITTEN_BYTES_A_SECOND = 1e8
"""Speed at which a model is serialised, checked and written. Chosen by judgement; not measured."""
_MOST_SLOW = 8.0
"""Slowness that is believed: a process that has only waited was not slowed down. Chosen by judgement."""
_SPARE = 1.25
"""Factor on times that were measured. Chosen by judgement; not measured."""
_MOST_SHARE = 0.5
"""Part of what is left that is kept for the end, at most: with less, what passes find is not worth the wait."""
_SOFT_SHARE = 0.15
"""Part of the time of passes that is kept for the step that they are in when they look. Chosen by judgement."""


@dataclass(frozen=True, kw_only=True)
class Finishing:
    """Predicted seconds of what comes after the passes: a proof with a score, and the rest."""

    judging: float = 0.0
    writing: float = _WRITE_SECONDS


class TimeBudget:
    """Shares out what is left; see `base.group_time`. Without a limit everything is simply called.

    Args:
        clock: limit of the run.
        finishing: what comes after the passes.
        interrupts: whether the user may end passes, and when.
    """

    def __init__(self, clock: Clock, finishing: Finishing, interrupts: Interrupts | None = None) -> None:
        self._clock = clock
        self._finishing = finishing
        self._interrupts = interrupts or Interrupts()

    @property
    def may_end_early(self) -> bool:
        """True where a pass can be stopped before it ends, so that what it has found until then is wanted."""
        return self._clock.is_limited or self._interrupts.is_wanted

    def passes(self, work: Callable[[Clock], T], *, lossless: bool, has_found: Callable[[], bool] = lambda: False) -> T:
        """Return what work on a group returns.

        Raises:
            TimeUpError: it was interrupted.
            StoppedByUserError: the user has interrupted it, and wants what it has found.
        """
        if not self.may_end_early:
            return work(self._clock)
        end = self.measuring if lossless else self.measuring.earlier(self._finishing.judging)
        soft = end.earlier(max(self._finishing.judging, _SOFT_SHARE * end.left_seconds)) if end.is_limited else end
        try:
            done = within(lambda: work(soft), end, in_thread=self._interrupts.is_wanted and not lossless)
        except KeyboardInterrupt:
            if self._interrupts.is_wanted and has_found():
                raise StoppedByUserError from None
            raise
        self._interrupts.is_result_found |= has_found()
        return done

    def proof(self, work: Callable[[], T]) -> T:
        """Return what the proof of a result that passes had found so far returns.

        Raises:
            TimeUpError: it was interrupted.
        """
        return within(work, self.measuring)

    @property
    def measuring(self) -> Clock:
        """Over when nothing but writing can be done."""
        return self._clock.earlier(self._finishing.writing)

    @property
    def race_seconds(self) -> float | None:
        """Seconds for a race, None where there is no time for one."""
        if not self._clock.is_limited:
            return RACE_SECONDS
        left = self.measuring.left_seconds / 2
        return min(RACE_SECONDS, left) if left > 0 else None


def writing_seconds(size_bytes: int) -> float:
    """Return the predicted seconds of report and file for a model of so many bytes, on a processor as busy as now."""
    return slowness() * (_WRITE_SECONDS + size_bytes / _WRITTEN_BYTES_A_SECOND)


def slowness() -> float:
    """Return how many seconds a second of this process's work has taken so far: more than 1 beside other processes."""
    return min(_MOST_SLOW, max(1.0, age_seconds() / max(time.process_time(), 0.1)))


def predicted(run: Run) -> Finishing:
    """Predict the end of a run, from one run of the original; without a time limit nothing is run."""
    writing = writing_seconds(run.base.size_bytes)
    if not run.proof.is_whole or not run.clock.is_limited or run.options.plan:
        return Finishing(writing=writing)
    started = time.perf_counter()
    scored = run.plan.session(run.base)
    opened = time.perf_counter()
    scored.run(run.samples.largest)
    once = time.perf_counter() - opened
    score = 2 * (len(run.samples.judged.feeds) * once + opened - started)
    proof = opened - started + len(run.proof.feeds) * once
    judging = min(_SPARE * (score + proof), _MOST_SHARE * max(0.0, run.clock.left_seconds))
    return Finishing(judging=judging, writing=writing)


def unmeasured_facts(model: ir.Model, path: str | None, size_bytes: int | None = None) -> ModelFacts:
    """Return the figures of a model that can be had at once: its MACs are not counted."""
    counts = counting.Counts(node_count(model), counting.parameters(model), None)
    return counting.facts(model, counts, path, size_bytes=size_bytes or model_io.model_bytes(model))


def taken_back(changes: tuple[Change, ...], lossy: frozenset[str]) -> tuple[Change, ...]:
    """Return changes, those of some passes as taken back since there was no time to measure the result.

    Args:
        changes: of a run.
        lossy: names of the passes.
    """
    return tuple(
        replace(c, action=Action.ROLLED_BACK, reason=f"{TIME_UP} before its loss was measured")
        if c.pass_name in lossy and c.action is Action.APPLIED
        else c
        for c in changes
    )
