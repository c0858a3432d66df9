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
from typing import Any

import numpy as np
import onnx

from ..errors import ModelError
from ..numerics import snr
from ..quality import equality
from ..quality.equality import Runs
from ..runtime import session as runtime
from ..runtime.processes import Isolated, peak_memory_bytes
from ..runtime.run_timeout import run_seconds
from . import shadow
from .noise_floor import noise_floor

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
    is_bounded: bool
    load_optimized: bool
    """Also load the piece after with the runtime's optimizations on: done once for each kind of piece."""
    seed: int


@dataclass(frozen=True)
class RegionVerdict:
    """Result of a piece: the problem (None: none), and the SQNR of its outputs (None: all equal, or no float)."""

    problem: str | None
    sqnr_db: float | None
    is_blind: bool = False
    """The piece of the original does not run: no rewrite of it can be proved."""


class Jobs:
    """Runs jobs, in a worker process."""

    def run(self, jobs: Sequence[Job]) -> Isolated[list[RegionVerdict]]:
        """Run both pieces of each region."""
        started = time.perf_counter()
        verdicts = [_run(job) for job in jobs]
        seconds = time.perf_counter() - started
        return Isolated(value=verdicts, seconds=seconds, peak_memory_bytes=peak_memory_bytes())


def _run(job: Job) -> RegionVerdict:
    feed = {leaf.name: _values(leaf, job.seed) for leaf in job.leaves}
    feed |= {w.name: np.memmap(w.path, np.dtype(w.dtype).newbyteorder("<"), "r", w.offset, w.shape) for w in job.stored}
    try:
        before = _RegionSide(job.before, job.output, feed)
        expected = before.run()
    except ModelError as error:
        return RegionVerdict(f"can't be checked, the original does not run: {error.message}", None, is_blind=True)
    try:
        got = _RegionSide(job.after, job.output, feed, like=before).run()
        if job.load_optimized and not runtime.open_session(job.after, optimize=True).is_optimized:
            return RegionVerdict("onnxruntime can load it with its optimizations off only", None)
    except ModelError as error:
        return RegionVerdict(error.message, None)
    outputs = {job.output: expected}, {job.output: got}
    problem = (
        before.mismatch(expected, got, is_bounded=job.is_bounded) if job.lossless else equality.degenerate(*outputs)
    )
    if problem is not None or expected.dtype.kind != "f":
        return RegionVerdict(problem, None)
    fine = np.isfinite(expected) & np.isfinite(got)
    sqnr_db = snr.sqnr_db(expected[fine], got[fine])
    if not job.lossless and sqnr_db < LEAST_SQNR_DB:
        problem = f"keeps {sqnr_db:.1f} dB of the signal, less than {LEAST_SQNR_DB:.0f}"
    return RegionVerdict(problem, sqnr_db if np.isfinite(sqnr_db) else None)


class _RegionSide:
    """One of the two pieces of a region: float16 is float32 in it, and random numbers are drawn from fixed seeds.

    Args:
        path: the piece.
        output: what it makes.
        feed: its inputs, and those of the other piece.
        like: the piece of the original, whose seeds are taken; None for that piece itself.
    """

    def __init__(
        self, path: Path, output: str, feed: Mapping[str, np.ndarray], *, like: _RegionSide | None = None
    ) -> None:
        self._output = output
        self._size_bytes = path.stat().st_size
        self._model: Path | bytes = path
        message = onnx.load(path)
        self.draws: shadow.Draws = like.draws if like else shadow.draws(message)
        has_halves = shadow.has_halves(message)
        if has_halves:
            shadow.float32_shadow(message)
        if self.draws:
            shadow.seeded(message, self.draws)
        if has_halves or self.draws:
            self._model = message.SerializeToString()
        names = {value.name for value in message.graph.input}
        given = {name: array for name, array in feed.items() if name in names}
        self._feed = shadow.widened(given) if has_halves else given

    def run(self) -> np.ndarray:
        """Return the output, with the runtime's optimizations off.

        Raises:
            ModelError: the runtime can't run it.
        """
        (found,) = self._runs(None, [self._feed], optimize=False)
        value: np.ndarray = found[self._output]
        if not isinstance(value, np.ndarray):
            raise ModelError("a region's output is not a tensor")
        return value

    def mismatch(self, expected: np.ndarray, got: np.ndarray, *, is_bounded: bool) -> str | None:
        """Return where the output of the other piece differs from that of this one, but for rounding."""
        floor = noise_floor(
            [{self._output: expected}],
            [self._feed],
            self._runs,
            self._message,
            bounded=[self._output] if is_bounded else [],
        )
        return floor.mismatch([{self._output: got}])

    def _runs(self, model: onnx.ModelProto | None, feeds: Sequence[Mapping[str, Any]], *, optimize: bool) -> Runs:
        session = runtime.open_session(self._model if model is None else model.SerializeToString(), optimize=optimize)
        sizes = [sum(array.nbytes for array in self._feed.values()), sum(array.size for array in self._feed.values())]
        limit = run_seconds(self._size_bytes + sizes[0], sizes[1])
        return [session.run(feed, max_seconds=limit) for feed in feeds]

    def _message(self) -> onnx.ModelProto:
        return onnx.load_model_from_string(self._model) if isinstance(self._model, bytes) else onnx.load(self._model)


def _values(leaf: Leaf, seed: int) -> np.ndarray:
    if leaf.given is not None:
        return leaf.given
    rng = np.random.default_rng([seed, zlib.crc32(leaf.name.encode())])
    return rng.standard_normal(leaf.shape).astype(leaf.dtype)
