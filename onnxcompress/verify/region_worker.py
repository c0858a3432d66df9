"""Runs the two pieces of a region on the same inputs: what a worker process does for a proof by regions.

Each worker imports this anew: nothing that reads or writes models may come with it, which takes longer than the work.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ModelError
from ..numerics import snr
from ..quality import equality
from ..runtime import session as runtime
from ..runtime.isolation import run_seconds
from ..runtime.processes import Isolated, peak_memory_bytes

LEAST_SQNR_DB = 10.0
"""A lossy rewrite whose piece keeps less of the signal than this is broken, not coarse (8 bits keep 35 to 45 dB)."""


@dataclass(frozen=True)
class Leaf:
    """An input of a piece: drawn at random in this type and shape, or given."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    given: np.ndarray | None


@dataclass(frozen=True)
class StoredValue:
    """A weight of a piece that a worker reads from the file where it is, instead of getting a copy."""

    name: str
    path: str
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """The bytes of it."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Job:
    """A region in files, for a worker."""

    before: Path
    after: Path
    leaves: tuple[Leaf, ...]
    stored: tuple[StoredValue, ...]
    output: str
    lossless: bool
    is_sigmoid: bool
    load_optimized: bool
    """Also load the piece after with the runtime's optimizations on: done once for each kind of piece."""
    seed: int


@dataclass(frozen=True)
class Verdict:
    """Result of a piece: the problem (None: none), and the SQNR of its outputs (None: all equal, or no float)."""

    problem: str | None
    sqnr_db: float | None
    is_blind: bool = False
    """The piece of the original does not run: no rewrite of it can be proved."""


class Jobs:
    """Runs jobs, in a worker process."""

    def run(self, jobs: Sequence[Job]) -> Isolated[list[Verdict]]:
        """Run both pieces of each region."""
        started = time.perf_counter()
        verdicts = [_run(job) for job in jobs]
        seconds = time.perf_counter() - started
        return Isolated(value=verdicts, seconds=seconds, peak_memory_bytes=peak_memory_bytes())


def _run(job: Job) -> Verdict:
    feed = {leaf.name: _values(leaf, job.seed) for leaf in job.leaves}
    feed |= {weight.name: _mapped(weight) for weight in job.stored}
    try:
        expected = _output(job.before, feed, optimize=False)
    except ModelError as error:
        return Verdict(f"can't be checked, the original does not run: {error.message}", None, is_blind=True)
    try:
        got = _output(job.after, feed, optimize=False)
        if job.load_optimized:
            runtime.open_session(job.after, optimize=True)
    except ModelError as error:
        return Verdict(error.message, None)
    before, after = {job.output: expected}, {job.output: got}
    sigmoids = (job.output,) if job.is_sigmoid else ()
    problem = (
        equality.mismatch(before, after, sigmoids=sigmoids) if job.lossless else equality.degenerate(before, after)
    )
    if problem is not None or expected.dtype.kind != "f":
        return Verdict(problem, None)
    fine = np.isfinite(expected) & np.isfinite(got)
    sqnr_db = snr.sqnr_db(expected[fine], got[fine])
    if not job.lossless and sqnr_db < LEAST_SQNR_DB:
        problem = f"keeps {sqnr_db:.1f} dB of the signal, less than {LEAST_SQNR_DB:.0f}"
    return Verdict(problem, sqnr_db if np.isfinite(sqnr_db) else None)


def _output(path: Path, feed: Mapping[str, np.ndarray], *, optimize: bool) -> np.ndarray:
    session = runtime.open_session(path, optimize=optimize)
    wanted = {spec.name for spec in session.inputs}
    given = {name: array for name, array in feed.items() if name in wanted}
    sizes = [sum(array.nbytes for array in given.values()), sum(array.size for array in given.values())]
    limit = run_seconds(path.stat().st_size + sizes[0], sizes[1])
    (value,) = session.run(given, max_seconds=limit).values()
    if not isinstance(value, np.ndarray):
        raise ModelError("a region's output is not a tensor")
    return value


def _mapped(weight: StoredValue) -> np.ndarray:
    return np.memmap(weight.path, np.dtype(weight.dtype).newbyteorder("<"), "r", weight.offset, weight.shape)


def _values(leaf: Leaf, seed: int) -> np.ndarray:
    if leaf.given is not None:
        return leaf.given
    rng = np.random.default_rng([seed, zlib.crc32(leaf.name.encode())])
    return rng.standard_normal(leaf.shape).astype(leaf.dtype)
