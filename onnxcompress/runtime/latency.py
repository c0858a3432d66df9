"""Times of two models, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..base.report_value import NotNegative, Positive, ReportValue
from .session import Session


class Latency(ReportValue):
    """Two sessions timed in turns; the report's `latency` object.

    `ratio` need not be the quotient of the two medians in `original_ms` and `compressed_ms`.
    """

    original_ms: NotNegative
    compressed_ms: NotNegative
    ratio: NotNegative
    """Median over the paired runs of compressed / original; below 1 is faster."""
    runs: Positive
    threads: Positive
    provider: str


def race(
    a: Session,
    b: Session,
    feed: Mapping[str, Any],
    *,
    rounds: int = 41,
    least_rounds: int = 3,
    min_seconds: float = 0.001,
    max_seconds: float = 4.0,
    warm_up_runs: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Time two sessions on one feed: warm up, then A B A B ..., and take the median of the paired ratios.

    Args:
        a: the original.
        b: the compressed model.
        feed: input name -> array, for both.
        rounds: pairs at most.
        least_rounds: pairs that are made however long they take.
        min_seconds: a measurement repeats the run until the original takes at least this long.
        max_seconds: no further pair is begun after this time.
        warm_up_runs: runs of each before the first that is timed.
        clock: seconds, for tests.

    A model against itself, one session given twice, is timed alone: its ratio is 1.

    Raises:
        ModelError: one of the two can't run the feed.

    """
    for session in (a, b) * warm_up_runs:
        _seconds(session, feed, loops=1, clock=clock)

    def pair(loops: int) -> tuple[float, float]:
        first = _seconds(a, feed, loops=loops, clock=clock)
        return first, first if a is b else _seconds(b, feed, loops=loops, clock=clock)

    deadline = clock() + max_seconds
    pairs = [pair(1)]
    loops = max(1, min(1000, round(min_seconds / max(pairs[0][0], 1e-7) + 0.5)))
    if loops > 1:
        pairs.clear()  # too short to count
    while len(pairs) < least_rounds or (len(pairs) < rounds and clock() < deadline):
        pairs.append(pair(loops))
    return Latency(
        original_ms=1e3 * statistics.median(first for first, _ in pairs) / loops,
        compressed_ms=1e3 * statistics.median(second for _, second in pairs) / loops,
        ratio=statistics.median(second / first for first, second in pairs),
        runs=len(pairs) * loops,
        threads=a.threads,
        provider=a.provider,
    )


class TimedSession:
    """A session that notes how long its runs take."""

    def __init__(self, session: Session, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.session = session
        self.seconds: list[float] = []
        self._clock = clock

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Run the model once, as `Session.run` does."""
        start = self._clock()
        found = self.session.run(feed)
        self.seconds.append(self._clock() - start)
        return found


def seen(a: TimedSession, b: TimedSession) -> Latency:
    """Return the times of the feed that took the original longest, of two sessions that have run the same feeds."""
    first, second = max(zip(a.seconds, b.seconds, strict=True))
    return Latency(
        original_ms=1e3 * first,
        compressed_ms=1e3 * second,
        ratio=second / first,
        runs=1,
        threads=a.session.threads,
        provider=a.session.provider,
    )


def glance(a: Session, b: Session, feed: Mapping[str, Any], *, max_seconds: float) -> Latency:
    """Time two sessions, warm from a run of this feed, as `race` does but within a few seconds or less; see `runs`."""
    share = max_seconds / 2 / 15
    return race(
        a, b, feed, rounds=15, least_rounds=1, min_seconds=min(share, 0.001), max_seconds=max_seconds, warm_up_runs=0
    )


def _seconds(session: Session, feed: Mapping[str, Any], *, loops: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(loops):
        session.run(feed)
    return clock() - start
