"""The end of a run that takes too long, in this process; one in a process of its own is killed by `processes`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from .isolation import current
from .time_limit import run_options

GRACE_SECONDS = 1.0
"""What a run has to end in by itself once its time is up."""


class RunTimeout:
    """Ends a run whose time is up, be it its own or that of the work that it is a part of (`time_limit`).

    Args:
        max_seconds: the time, None for no limit.
        options: makes the runtime's options of a run, whose `terminate` ends it between two nodes.
    """

    def __init__(self, max_seconds: float | None, options: Callable[[], Any]) -> None:
        self.options: Any = run_options(options)
        self.is_over = False
        self._timer: threading.Timer | None = None
        if max_seconds is not None:
            self.options = self.options or options()
            self._is_expendable = current() == "expendable"
            self._timer = threading.Timer(max_seconds, self._end)
            self._timer.daemon = True
            self._timer.start()

    def stop(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        self.is_over = True
        if self.options is not None:
            self.options.terminate = True
        if self._is_expendable:  # one node alone may never end
            self._timer = threading.Timer(GRACE_SECONDS, os.abort)
            self._timer.daemon = True
            self._timer.start()


def run_seconds(weight_bytes: int, elements: int) -> float:
    """Return how long one run of a model on a synthetic feed may take before it counts as stuck."""
    each = min(1e-5, 5e-8 + 2.5e-10 * weight_bytes)  # an element meets each weight about once
    return 1.5 + weight_bytes / 2e7 + elements * each
