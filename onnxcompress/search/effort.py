"""Bounds of searches in CPU seconds, so that other work on the machine counts little.

    first step (the whole model in int8) --times 3 or 10--> bound
    next step --cost of those of its kind so far--> begun, or left out with a reason

What steps took is noted: a run that is replayed or continued decides by the same figures.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from ..base.clock import Clock, cpu_seconds
from ..base.search_terms import Effort, StepLog
from ..core import Workers
from ..errors import TimeUpError
from .checkpoint import Checkpoint

TIMES: Final[Mapping[Effort, float]] = {"quick": 3.0, "default": 10.0, "thorough": math.inf}
"""Bound of a search, in CPU seconds that the whole model in int8 took. Chosen by judgement; not measured."""
LEAST_SECONDS: Final[Mapping[Effort, float]] = {"quick": 0.0, "default": 300.0, "thorough": math.inf}
"""CPU seconds that the bound is never below. Chosen on three classifiers of .4 to 2.8 MB, whose searches end by
themselves after 92 to 176."""


class SearchEffort:
    """Is over when the time limit is, or when this process and its children have worked for some CPU seconds.

    Args:
        clock: the user's time limit.
        seconds: CPU seconds from now on; None: no bound.
        now: CPU seconds, for tests.
    """

    def __init__(self, clock: Clock, seconds: float | None, *, now: Callable[[], float] = cpu_seconds) -> None:
        self._clock = clock
        self._own = Clock(seconds, now=now)

    @property
    def is_over(self) -> bool:
        """True when nothing more should be begun."""
        return self._clock.is_over or self._own.is_over


class StepSeconds:
    """CPU seconds of steps by label; see `base.search_terms.StepLog`.

    Args:
        replayed: those of an earlier run, which count in place of measured ones.
        checkpoint: keeps them for a run that continues.
    """

    def __init__(self, replayed: Mapping[str, float] | None = None, checkpoint: Checkpoint | None = None) -> None:
        self._replayed = replayed or {}
        self._checkpoint = checkpoint
        self.used: dict[str, float] = {}

    def known(self, label: str) -> float | None:
        """Return what a step took in the run that is replayed or continued, None where that is not known."""
        if label in self._replayed:
            return self._replayed[label]
        noted = None if self._checkpoint is None else self._checkpoint.trial(_in_checkpoint(label))
        return None if noted is None else float(noted["cpu_seconds"])

    def note(self, label: str, seconds: float) -> float:
        """Take what a step has taken, and return what counts: what is known, else that."""
        known = self.known(label)
        if known is None and self._checkpoint is not None:
            self._checkpoint.note_trial(_in_checkpoint(label), {"cpu_seconds": seconds})
        self.used[label] = seconds if known is None else known
        return self.used[label]


_GIVEN_UP = ", given up"
"""What is appended to the label of a step that did not end, and so does not count as one that did."""


def _in_checkpoint(label: str) -> str:
    return f"cpu seconds of {label}"


class SearchBudget:
    """Shares out the CPU seconds of a search, step by step; unbounded until the first step has ended.

    Args:
        effort: how many there are.
        clock: the user's time limit.
        log: of what steps took.
        workers: others that work for the search, None where there are none.
        begins: told of the label of each step that is begun.
        now: CPU seconds of this process and its children.
    """

    def __init__(
        self,
        effort: Effort,
        clock: Clock,
        log: StepLog | None,
        *,
        workers: Workers | None = None,
        begins: Callable[[str], None] = lambda _: None,
        now: Callable[[], float] = cpu_seconds,
    ) -> None:
        self.effort = effort
        self._clock = clock
        self._log = log or StepSeconds()
        self._workers = workers
        self._begins = begins
        self._children = now
        self._costs: dict[str, tuple[float, float]] = {}
        """Kind of step -> CPU seconds and seconds of the last one."""
        self._spent = 0.0
        self._begun: float | None = None
        self.bound = math.inf

    @contextlib.contextmanager
    def step(self, kind: str, label: str) -> Iterator[None]:
        """Count what a block takes, if it ends; the label is unique in the run."""
        self._begins(label)
        self._begun, clock_left = self.now(), self._clock.left_seconds
        yield
        seconds = self._log.note(label, self.now() - self._begun)
        self._begun = None
        self._spent += seconds
        passed = clock_left - self._clock.left_seconds if self._clock.is_limited else 0.0
        self._costs[kind] = (seconds, passed)

    @contextlib.contextmanager
    def first_step(self, kind: str, label: str) -> Iterator[None]:
        """Count what a block takes, and set the bound by it; what workers do ahead meanwhile is not in the bound."""
        begun = time.process_time()
        with self.step(kind, label):
            yield
        seconds = self.last(kind)
        if self._workers is not None:
            seconds = self._log.note(f"{label}, without workers", time.process_time() - begun)
        self.bound = max(TIMES[self.effort] * seconds, LEAST_SECONDS[self.effort])

    def now(self) -> float:
        """Return the CPU seconds so far of this process, its children, and workers elsewhere."""
        return self._children() + (0.0 if self._workers is None else self._workers.elsewhere_seconds)

    def allows_guess(self, kind: str) -> bool:
        """Say whether workers may begin a step of a kind that perhaps nobody asks for."""
        is_unknown = math.isinf(self.bound) and self.effort == "quick"  # then no time is to spare
        return not is_unknown and self.objection(kind) is None

    def last(self, kind: str) -> float:
        """Return the CPU seconds of the last step of a kind, 0 where there was none."""
        return self._costs.get(kind, (0.0, 0.0))[0]

    @property
    def left_seconds(self) -> float:
        """CPU seconds that are left, infinite without a bound."""
        running = 0.0 if self._begun is None else self.now() - self._begun
        return self.bound - self._spent - running

    def clock(self, label: str, *, kept_seconds: float = 0.0) -> Clock:
        """Return a clock by which a step has to end, so that some CPU seconds are left after it.

        Raises:
            TimeUpError: it took longer in the run that is replayed or continued.
        """
        if not math.isfinite(self.bound):
            return Clock()
        known, left = self._log.known(label), self.left_seconds
        given_up = self._log.known(f"{label}{_GIVEN_UP}")
        if known is None or (given_up is not None and given_up < left - kept_seconds):  # there is more time now
            return Clock(left - kept_seconds, now=self.now)
        if given_up is not None or known >= left:
            raise TimeUpError
        return Clock()

    def give_up(self, label: str) -> str:
        """Note that a step did not end in its time, and return why it was given up."""
        self._log.note(f"{label}{_GIVEN_UP}", 0.0 if self._begun is None else self.now() - self._begun)
        return f"{label}: given up: no more of the {self.bound_text} are left for it"

    def objection(self, *kinds: str) -> str | None:
        """Return why steps of some kinds, one after another, should not be begun; None where they may be.

        Each is expected to take what the last one of its kind took; of a kind that is new, nothing is known, and it
        may be begun while anything is left.
        """
        if self._clock.is_over:
            return "the time is over"
        cpu, wall = (sum(each) for each in zip(*(self._costs.get(kind, (0.0, 0.0)) for kind in kinds), strict=True))
        if self.left_seconds <= 0:
            return f"{self.bound_text} are spent"
        if cpu > self.left_seconds:
            return f"it would take about {cpu:.0f} CPU s, and of {self.bound_text} {self.left_seconds:.0f} are left"
        if wall > self._clock.left_seconds:
            left = self._clock.left_seconds
            return f"the time is over before it would end: it would take about {wall:.0f} s, and {left:.0f} are left"
        return None

    def left(self) -> str:
        """Return what is left, in words, for a display."""
        parts = []
        if math.isfinite(self.bound):
            parts.append(f"{max(0.0, self.left_seconds):.0f} of {self.bound:.0f} CPU s left")
        if self._clock.is_limited:
            parts.append(f"{max(0.0, self._clock.left_seconds):.0f} s left")
        return ", ".join(parts) or "no time limit"

    @property
    def bound_text(self) -> str:
        """The bound, in words."""
        return f"{self.bound:.0f} CPU s (--effort {self.effort})"
