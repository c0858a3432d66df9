"""Two models are timed in turns, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from onnxcompress.runtime import session as runtime
from onnxcompress.runtime.latency import Latency, TimedSession, glance, race, seen


class _Timed:
    """A session whose runs take the seconds that it is told, on a clock of its own."""

    threads = 1
    provider = runtime.PROVIDER

    def __init__(self, clock: list[float], seconds: Iterator[float], order: list[str], name: str) -> None:
        self._clock, self._seconds, self._order, self._name = clock, seconds, order, name

    def run(self, _feed: Mapping[str, Any]) -> None:
        self._order.append(self._name)
        self._clock[0] += next(self._seconds)


def _constant(seconds: float) -> Iterator[float]:
    while True:
        yield seconds


def _race(a: Iterator[float], b: Iterator[float], **options: Any) -> tuple[Latency, list[str]]:
    clock, order = [0.0], []
    one, other = (_Timed(clock, s, order, name) for s, name in ((a, "A"), (b, "B")))
    return race(one, other, {}, clock=lambda: clock[0], **options), order  # type: ignore[arg-type]


def test_a_race_goes_in_turns_after_a_warm_up():
    latency, order = _race(_constant(0.010), _constant(0.005), rounds=5)
    assert "".join(order).endswith("AB" * 5)
    assert {"A", "B"} <= set(order[:-10])
    assert (latency.original_ms, latency.compressed_ms) == (pytest.approx(10), pytest.approx(5))
    assert latency.ratio == pytest.approx(0.5)
    assert latency.runs == 5


def test_one_slow_run_does_not_decide_a_race():
    def hiccup() -> Iterator[float]:
        for index in range(100):
            yield 1.0 if index in (4, 8) else 0.010

    latency, _ = _race(_constant(0.010), hiccup(), rounds=9, max_seconds=100)
    assert latency.ratio == pytest.approx(1.0)


def test_short_runs_are_repeated_and_time_is_kept():
    latency, _ = _race(_constant(0.0001), _constant(0.0001), rounds=3, min_seconds=0.001)
    assert latency.original_ms == pytest.approx(0.1)
    assert latency.runs >= 30
    latency, _ = _race(_constant(2.0), _constant(2.0), max_seconds=5)
    assert latency.runs == 3  # the least number of pairs, though they take longer


def test_a_model_against_itself_is_timed_once():
    clock, order = [0.0], []
    session = _Timed(clock, _constant(0.01), order, "A")
    assert race(session, session, {}, rounds=3, clock=lambda: clock[0]).ratio == 1.0  # type: ignore[arg-type]
    assert 3 < len(order) < 6  # twice as many runs would time it as two


def test_a_glance_ends_within_its_time():
    clock, order = [0.0], []
    one, other = (_Timed(clock, _constant(0.1), order, name) for name in "AB")
    latency = glance(one, other, {}, max_seconds=0.05)  # type: ignore[arg-type]
    assert latency.runs >= 1
    assert set(latency.as_json()) == {"original_ms", "compressed_ms", "ratio", "runs", "threads", "provider"}


def test_times_of_runs_that_were_made_anyway_are_those_of_the_longest_feed():
    clock = [0.0]
    sessions = [_Timed(clock, iter(seconds), [], "A") for seconds in ((0.1, 0.4), (0.3, 0.2))]
    watched = [TimedSession(session, clock=lambda: clock[0]) for session in sessions]  # type: ignore[arg-type]
    for each in watched:
        each.run({})
        each.run({})
    latency = seen(*watched)
    assert (latency.original_ms, latency.compressed_ms) == (pytest.approx(400), pytest.approx(200))
    assert (latency.ratio, latency.runs) == (pytest.approx(0.5), 1)
