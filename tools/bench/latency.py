"""Steadiness of latency ratios: on a quiet core, and beside busy loops on the same core.

`race` is measured, and beside it figures that it could use, from pairs of single runs in random order.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.tables import Table
from onnxcompress.runtime.latency import race
from onnxcompress.runtime.session import Session, open_session

PAIRS = 60
"""Pairs of runs behind each of the figures beside `race`."""

Times = np.ndarray
"""Seconds, float64 [pairs, 2 models]."""

FIGURES: Mapping[str, tuple[str, Callable[[Times], float]]] = {
    "wall clock, median of pair ratios": ("wall", lambda x: float(np.median(x[:, 1] / x[:, 0]))),
    "wall clock, lower quartiles": ("wall", lambda x: _ratio(np.percentile(x, 25, axis=0))),
    "CPU clock of the thread, sums": ("cpu", lambda x: _ratio(x.sum(axis=0))),
    "CPU clock of the thread, medians": ("cpu", lambda x: _ratio(np.median(x, axis=0))),
    "CPU clock of the thread, lower quartiles": ("cpu", lambda x: _ratio(np.percentile(x, 25, axis=0))),
}
"""Name -> (clock, figure from the times of pairs)."""

RACE = "race"


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """Ratios of one figure, one for each repeat; of `race` also how often its interval held the quiet median."""

    figure: str
    quiet: tuple[float, ...]
    busy: tuple[float, ...]
    covered: float | None = None

    @property
    def worst(self) -> float:
        """Largest deviation of a busy ratio from the quiet median, as a part of it."""
        true = statistics.median(self.quiet)
        return max(abs(each / true - 1) for each in self.busy)


def measure(model: Path, other: Path, *, core: int, loops: int, repeats: int, seconds: float) -> list[Ratios]:
    """Return the ratios of every figure, with and without busy loops."""
    sessions = open_session(model, optimize=True), open_session(other, optimize=True)
    rng = np.random.default_rng(0)
    feed = {
        spec.name: rng.standard_normal([dim if isinstance(dim, int) else 1 for dim in spec.shape]).astype(spec.dtype)
        for spec in sessions[0].inputs
    }
    quiet: dict[str, list[float]] = {name: [] for name in (RACE, *FIGURES)}
    busy: dict[str, list[float]] = {name: [] for name in (RACE, *FIGURES)}
    intervals = []
    for found, count in ((quiet, 0), (busy, loops)):
        with _beside(core, count):
            for seed in range(repeats):
                latency = race(*sessions, feed, max_seconds=seconds, seed=seed)
                intervals += [latency.ratio_interval] if count else []
                found[RACE].append(latency.ratio)
                times = _times(sessions, feed, seed)
                for name, (clock, figure) in FIGURES.items():
                    found[name].append(figure(times[clock]))
    true = statistics.median(quiet[RACE])
    covered = sum(low <= true <= high for low, high in intervals) / len(intervals)
    return [
        Ratios(figure=n, quiet=tuple(quiet[n]), busy=tuple(busy[n]), covered=covered if n == RACE else None)
        for n in quiet
    ]


def table(rows: Sequence[Ratios], *, loops: int) -> Table:
    """Tabulate the range of each figure and its worst deviation."""
    out = Table(
        f"Latency ratios on a quiet core, and beside {loops} busy loops on the same core",
        ["figure", "quiet", "busy", "worst deviation", "quiet median within the interval"],
    )
    for row in rows:
        ranges = [f"{min(ratios):.3f} .. {max(ratios):.3f}" for ratios in (row.quiet, row.busy)]
        out.add(row.figure, *ranges, f"{100 * row.worst:.1f}%", "" if row.covered is None else f"{row.covered:.2f}")
    return out


def _times(sessions: tuple[Session, Session], feed: Mapping[str, np.ndarray], seed: int) -> dict[str, Times]:
    order = random.Random(seed)  # noqa: S311 - an order of runs is no secret
    found = {clock: np.empty((PAIRS, 2)) for clock in ("wall", "cpu")}
    for pair in range(PAIRS):
        for side in order.sample((0, 1), 2):
            wall, cpu = time.perf_counter(), time.thread_time()
            sessions[side].run(feed)
            found["cpu"][pair, side] = time.thread_time() - cpu
            found["wall"][pair, side] = time.perf_counter() - wall
    return found


def _ratio(times: np.ndarray) -> float:
    return float(times[1] / times[0])


@contextlib.contextmanager
def _beside(core: int, loops: int) -> Iterator[None]:
    """Bind this thread to a core, beside so many processes that never rest."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()
        os.sched_setaffinity(0, before)
