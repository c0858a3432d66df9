"""Protocol of what shares out the time of a run between groups of passes; see `jobs.time_budget`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from .clock import Clock

T = TypeVar("T")


class GroupTime(Protocol):
    """Shares out the time that a user allows."""

    @property
    def may_end_early(self) -> bool:
        """True where a pass can be stopped before it ends, so that what it has found until then is wanted."""
        ...

    def passes(self, work: Callable[[Clock], T], *, lossless: bool, has_found: Callable[[], bool]) -> T:
        """Return what work on a group returns.

        Args:
            work: gets a clock to end by on its own account.
            lossless: of the group's passes.
            has_found: says whether it has found anything yet that could be the result.

        Raises:
            TimeUpError: it has not ended in time, and was given up.
            StoppedByUserError: the user has stopped it after it had found something.
        """
        ...

    def proof(self, work: Callable[[], T]) -> T:
        """Return what the proof of a result that a group had found so far returns.

        Raises:
            TimeUpError: it has not ended in time, and was given up.
        """
        ...


class AllTheTime:
    """No limit."""

    may_end_early = False

    def passes(
        self,
        work: Callable[[Clock], T],
        *,
        lossless: bool,  # noqa: ARG002 - the protocol's signature
        has_found: Callable[[], bool],  # noqa: ARG002
    ) -> T:
        """Return what the work returns."""
        return work(Clock())

    def proof(self, work: Callable[[], T]) -> T:
        """Return what the work returns."""
        return work()
