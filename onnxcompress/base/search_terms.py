"""Values that a search and its caller exchange: its effort, its state, the CPU seconds of its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

Effort = Literal["quick", "default", "thorough"]
"""Length of a search, see `search.effort`."""


@dataclass(frozen=True, kw_only=True)
class SearchStatus:
    """State of a search, for a display: what it does, figures of the best so far ("" for none), the time left."""

    stage: str
    best: str
    left: Callable[[], str]


def no_status(_: SearchStatus) -> None:
    """Show nothing."""


class StepLog(Protocol):
    """Takes the CPU seconds of the steps of a search, see `search.effort`."""

    def known(self, label: str) -> float | None:
        """Return what a step took in the run that is replayed or continued, None where that is not known."""
        ...

    def note(self, label: str, seconds: float) -> float:
        """Take what a step has taken, and return what counts: what is known, else that."""
        ...
