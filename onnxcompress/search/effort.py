"""Bound of a search for which nobody has set a time: CPU seconds, so that other work on the machine counts little."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..core import Clock


class SearchEffort:
    """Is over when the time limit is, or when the process has worked for some CPU seconds since it was made.

    Args:
        clock: the user's time limit.
        seconds: CPU seconds.
        now: CPU seconds of the process, for tests.
    """

    def __init__(self, clock: Clock, seconds: float, *, now: Callable[[], float] = time.process_time) -> None:
        self._clock = clock
        self._own = Clock(seconds, now=now)

    @property
    def is_over(self) -> bool:
        """True when nothing more should be begun."""
        return self._clock.is_over or self._own.is_over
