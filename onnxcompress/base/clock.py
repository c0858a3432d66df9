"""Clocks: the time that is left, and the CPU seconds that a run has taken, its other processes included."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path


class Clock:
    """Time limit that starts when it is made; passes that search return the best so far when it is over.

    Args:
        seconds: the time, None for all the time that it takes.
        now: seconds of a monotonic clock.
    """

    def __init__(self, seconds: float | None = None, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = math.inf if seconds is None else now() + seconds

    def earlier(self, seconds: float) -> Clock:
        """Return a clock that is over some seconds before this one."""
        return Clock(None if not self.is_limited else self.left_seconds - seconds, now=self._now)

    @property
    def is_limited(self) -> bool:
        """False where the clock is never over."""
        return math.isfinite(self._end)

    @property
    def left_seconds(self) -> float:
        """Seconds until it is over, negative after that, infinite without a limit."""
        return self._end - self._now()

    @property
    def is_over(self) -> bool:
        """True when nothing more should be begun."""
        return self._now() >= self._end


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of all that it started: those that ended, and those that still run.

    Those that run are only known where the system has /proc with lists of children (Linux).
    """
    ended = os.times()  # first: a process that ends in between is left out once, not counted twice
    own = time.process_time() + ended.children_user + ended.children_system
    return own + sum(map(_seconds_of, _children(os.getpid())))


def _children(process: int) -> Iterator[int]:
    """Yield the processes that one has started, and those that they have."""
    found: list[int] = []
    for task in _listed(process):
        with contextlib.suppress(OSError, ValueError):
            found += map(int, (task / "children").read_text(encoding="ascii").split())
    for child in found:
        yield child
        yield from _children(child)


def _listed(process: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{process}/task").iterdir())
    except OSError:
        return []


def _seconds_of(process: int) -> float:
    """Return the CPU seconds of a process that runs, and of those that it has waited for; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0
