"""Times of two models, measured in turns: a ratio with an interval, and whether it can be trusted.

With one thread the runtime works in the calling thread, whose CPU clock sees the model and not what else the machine
does. More threads are timed by the wall clock, and runs whose threads waited for a processor are counted: where they
are many, the figure says more of the load than of the models.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..base.report_value import NotNegative, Positive, ReportValue
from .session import RunTime

SLOWER_RATIO = 1.05
"""A result counts as slower where the low end of the interval of its ratio is above this. Chosen by judgement."""
PRECISION = 0.02
"""Width of the interval, as a part of the ratio, at which no more pairs are run. Chosen by judgement; not measured."""
_TRUSTED_WIDTH = 0.2
"""Width of the interval, as a part of the ratio, up to which a figure is trusted. Chosen by judgement; not measured."""
_MOST_DISTURBED = 0.1
"""Share of disturbed runs up to which the wall clock is trusted. On 2 cores with a load of 15 it was 0.16 to 0.41."""
_LEAST_PAIRS = 3
"""Pairs that are run however long they take."""
_GLANCE_PAIRS = 9
"""Pairs without which a glance says nothing: the fewest that are resampled."""
_FIRST_CHECK = 21
"""Pairs after which a race may end by precision: fewer may agree by chance. Chosen on made noise; see its tests."""
_MOST_PAIRS = 2000
"""Pairs of one race. Chosen by judgement; not measured."""
_RESAMPLES = 400
"""Bootstrap samples behind an interval. Chosen by judgement; not measured."""
_QUARTILE, _LOW, _HIGH = 25, 5, 95
"""Percentiles: of the times of a model, and of the ends of a 90% interval."""


class TimedSession(Protocol):
    """Protocol of a session that can be timed."""

    threads: int
    provider: str

    @property
    def fastest_seconds(self) -> float:
        """Wall seconds of the shortest run so far, infinite before the first."""
        ...

    def run_time(self, feed: Mapping[str, Any]) -> RunTime:
        """Run the model once and return its time."""
        ...


class Latency(ReportValue):
    """Two models timed in turns, in alternating single runs; the report's `latency` object."""

    original_ms: NotNegative
    """Lower quartile of the runs; by the CPU clock with one thread, else by the wall clock."""
    compressed_ms: NotNegative
    ratio: NotNegative
    """`compressed_ms` / `original_ms`; below 1 is faster."""
    runs: Positive
    """Pairs of runs."""
    threads: Positive
    provider: str
    ratio_interval: tuple[NotNegative, NotNegative] | None = None
    """Ends of the 90% interval of the ratio; not written where an older report is replayed."""
    trusted: bool = True
    """False where the machine was too busy for the figures to mean anything."""
    prompt_original_ms: NotNegative | None = None
    """At a prompt, where the samples of a model with a cache hold one; the figures above are at one step then."""
    prompt_compressed_ms: NotNegative | None = None
    prompt_ratio_interval: tuple[NotNegative, NotNegative] | None = None

    @property
    def prompt_ratio(self) -> float | None:
        """`prompt_compressed_ms` / `prompt_original_ms`."""
        if self.prompt_original_ms is None or self.prompt_compressed_ms is None:
            return None
        return self.prompt_compressed_ms / max(self.prompt_original_ms, 1e-9)

    @property
    def overall_ratio(self) -> float:
        """Ratio by which candidates are chosen: that of a step, or its geometric mean with that of a prompt."""
        return self.ratio if self.prompt_ratio is None else math.sqrt(self.ratio * self.prompt_ratio)

    @property
    def overall_interval(self) -> tuple[float, float] | None:
        """Ends of the 90% interval of `overall_ratio`, both of a mean as if the two were slow together."""
        one, other = self.ratio_interval, self.prompt_ratio_interval
        if one is None or self.prompt_ratio is None:
            return one
        return None if other is None else (math.sqrt(one[0] * other[0]), math.sqrt(one[1] * other[1]))

    @property
    def is_slower(self) -> bool:
        """True where the compressed model is slower beyond noise."""
        interval = self.overall_interval
        return self.trusted and interval is not None and interval[0] > SLOWER_RATIO


RACE_SECONDS = 4.0
"""Time of a race between the original and the result; chosen by judgement, not measured."""


def race(
    a: TimedSession,
    b: TimedSession,
    feed: Mapping[str, Any],
    *,
    max_seconds: float = RACE_SECONDS,
    least_pairs: int = _LEAST_PAIRS,
    precision: float = PRECISION,
    warm_up_runs: int = 1,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Latency:
    """Time two sessions on one feed by pairs of single runs, each in random order, until the ratio is precise.

    Beside three busy loops on one core, ratios of lower quartiles were within 5% of the quiet ones where those of
    medians were within 8%, of sums 19%, and medians of pair ratios by the wall clock 49% (tools/bench.py latency).

    Args:
        a: the original.
        b: the compressed model. The original itself, one session given twice, is timed alone: the ratio is 1.
        feed: input name -> array, for both.
        max_seconds: no further pair is begun after this time.
        least_pairs: pairs that are run however long they take.
        precision: width of the interval, as a part of the ratio, at which the race ends.
        warm_up_runs: runs of each before the first that is timed.
        seed: of the order within the pairs, and of the bootstrap.
        clock: seconds, for tests.

    Raises:
        ModelError: one of the two can't run the feed.
    """
    for session in (a, b) * warm_up_runs:
        session.run_time(feed)
    order, deadline = random.Random(seed), clock() + max_seconds  # noqa: S311 - an order of runs is no secret
    pairs: list[tuple[RunTime, RunTime]] = []
    check = max(least_pairs, _FIRST_CHECK)
    while True:
        pairs.append(_pair(a, b, feed, order))
        is_over = clock() >= deadline or len(pairs) >= _MOST_PAIRS
        if len(pairs) >= least_pairs and (is_over or len(pairs) >= check):
            found = _latency(pairs, a, seed=seed)
            if is_over or a is b or _width(found) <= precision:
                return found
            check = len(pairs) + 1 + len(pairs) // 4


def race_each(
    a: TimedSession, b: TimedSession, feeds: Sequence[Mapping[str, Any]], *, max_seconds: float = RACE_SECONDS
) -> Latency:
    """Time two sessions on one feed, or on a step and a prompt, each for its part of the time; see `race`."""
    found = [race(a, b, feed, max_seconds=max_seconds / len(feeds)) for feed in feeds]
    if len(found) == 1:
        return found[0]
    prompt = found[1]
    at_prompt = {
        "prompt_original_ms": prompt.original_ms,
        "prompt_compressed_ms": prompt.compressed_ms,
        "prompt_ratio_interval": prompt.ratio_interval,
    }
    return found[0].model_copy(update={**at_prompt, "trusted": all(each.trusted for each in found)})


def least_seconds(a: TimedSession, b: TimedSession) -> float:
    """Return how long a race takes at least, from runs before: warm-up and the least pairs; 0 without any."""
    fastest = [s.fastest_seconds for s in (a, b) if math.isfinite(s.fastest_seconds)]
    return (1 + _LEAST_PAIRS) * sum(fastest)


def glance(
    a: TimedSession,
    b: TimedSession,
    feed: Mapping[str, Any],
    *,
    max_seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Latency | None:
    """Time two sessions, warm from runs before, within a short time.

    None where that is not enough for a figure that can be trusted.

    Raises:
        ModelError: one of the two can't run the feed.
    """
    if _GLANCE_PAIRS * (a.fastest_seconds + b.fastest_seconds) > max_seconds:
        return None
    found = race(a, b, feed, max_seconds=max_seconds, least_pairs=_GLANCE_PAIRS, warm_up_runs=0, clock=clock)
    return found if found.trusted else None


def _pair(a: TimedSession, b: TimedSession, feed: Mapping[str, Any], order: random.Random) -> tuple[RunTime, RunTime]:
    if a is b:
        alone = a.run_time(feed)
        return alone, alone
    if order.random() < 0.5:
        first = a.run_time(feed)
        return first, b.run_time(feed)
    second = b.run_time(feed)
    return a.run_time(feed), second


def _latency(pairs: Sequence[tuple[RunTime, RunTime]], session: TimedSession, *, seed: int) -> Latency:
    seconds = np.maximum([[run.seconds for run in pair] for pair in pairs], 1e-9)
    first, second = np.percentile(seconds, _QUARTILE, axis=0)
    ratio = float(second / first)
    interval = _interval(seconds, ratio, seed=seed)
    disturbed = sum(run.is_disturbed for pair in pairs for run in pair) / (2 * len(pairs))
    return Latency(
        original_ms=1e3 * float(first),
        compressed_ms=1e3 * float(second),
        ratio=ratio,
        runs=len(pairs),
        threads=session.threads,
        provider=session.provider,
        ratio_interval=interval,
        trusted=interval[1] - interval[0] <= _TRUSTED_WIDTH * ratio and disturbed <= _MOST_DISTURBED,
    )


def _interval(seconds: np.ndarray, ratio: float, *, seed: int) -> tuple[float, float]:
    """Return the 90% bootstrap interval of the ratio of quartiles; of few pairs the range of their ratios.

    Args:
        seconds: float64 [pairs, 2].
        ratio: lies within the interval.
        seed: of the resampling.
    """
    count = len(seconds)
    if count < _GLANCE_PAIRS:
        ratios = seconds[:, 1] / seconds[:, 0]
        return min(ratio, float(ratios.min())), max(ratio, float(ratios.max()))
    drawn = np.random.default_rng(seed).integers(0, count, (_RESAMPLES, count))
    quartiles = np.percentile(seconds[drawn], _QUARTILE, axis=1)
    low, high = np.percentile(quartiles[:, 1] / quartiles[:, 0], (_LOW, _HIGH))
    return min(ratio, float(low)), max(ratio, float(high))


def _width(latency: Latency) -> float:
    assert latency.ratio_interval is not None
    return (latency.ratio_interval[1] - latency.ratio_interval[0]) / latency.ratio
