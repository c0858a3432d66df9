"""Isolation of the runtime from the rest: whoever runs a command, or a job for a server, chooses it.

"none"        the runtime works in this process
"expendable"  so it does, but somebody starts the work again, "apart", if this process dies: a run that can't be
ended otherwise ends the process
"apart"       every session lives in a process of its own; one that crashes or hangs is a `ModelError`
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final, Literal

GRACE_SECONDS = 1.0
"""What a run has to end in by itself once its time is up."""


Isolation = Literal["none", "expendable", "apart"]

MANY_NODES = 20_000
"""The runtime takes some 3 KB for each, and a few sessions may be open at a time."""

_CURRENT: Final[ContextVar[Isolation]] = ContextVar("isolation", default="none")


def current() -> Isolation:
    """Return what was chosen for the work at hand."""
    return _CURRENT.get()


@contextlib.contextmanager
def isolated(kind: Isolation) -> Iterator[None]:
    """Choose for everything inside of the `with` block."""
    token = _CURRENT.set(kind)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def roomy(nodes: int, *, is_large: bool = False) -> contextlib.AbstractContextManager[None]:
    """Choose "apart" for very many nodes, or a large model: the runtime's copies take a process of their own."""
    wanted = (nodes > MANY_NODES or is_large) and os.name == "posix"
    return isolated("apart") if wanted else contextlib.nullcontext()


class RunTimeout:
    """Ends a run whose time is up; without a limit it costs nothing.

    Args:
        max_seconds: the time, None for no limit.
        options: makes the runtime's options of a run, whose `terminate` ends it between two nodes.
    """

    def __init__(self, max_seconds: float | None, options: Callable[[], Any]) -> None:
        self.options: Any = None
        self.is_over = False
        if max_seconds is not None:
            self.options = options()
            self._is_expendable = current() == "expendable"
            self._timer = threading.Timer(max_seconds, self._end)
            self._timer.daemon = True
            self._timer.start()

    def stop(self) -> None:
        """Watch no longer."""
        if self.options is not None:
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
