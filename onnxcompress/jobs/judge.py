"""Measures candidates against the original: bytes, score on held-out samples, and paired time.

    candidate --score--> drop, sqnr  \
              --race---> latency      >-- Trial
              --bytes--> size        /

Times are recorded under a label, so that a run can be replayed with the times of an earlier one and come to the same
model, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..base.report_value import ReportValue
from ..base.size_limits import APART_BYTES
from ..base.spilled_arrays import SpilledArrays
from ..core import Feed, Prefer, Trial
from ..data.evaluation_set import Evaluation
from ..errors import UsageError
from ..numerics.statistics.estimate import Estimate
from ..numerics.threads import one_thread
from ..quality.compare_outputs import measure
from ..quality.output_plan import OutputPlan, Runs
from ..quality.result import Quality
from ..runtime import latency as timing
from ..runtime.latency import Latency
from ..runtime.loaded_model import LoadedModel
from ..search.checkpoint import Checkpoint, digest

_RACE_SECONDS = 2.0
"""Time of a race between the original and one candidate; chosen by judgement, not measured."""

_KEPT_BYTES = 1 << 30
"""Outputs of the original that are kept, most of them in a file, so that it is not run again for every candidate."""


class Measurement(ReportValue):
    """Figures of one candidate, as a checkpoint keeps them."""

    drop: float | None
    drop_interval: tuple[float, float] | None = None
    divergence: float | None = None
    latency: Latency | None


class Timings:
    """Times of races by label: measured here, or replayed from the report of an earlier run."""

    def __init__(
        self, replayed: Mapping[str, Latency] | None = None, cpu_seconds: Mapping[str, float] | None = None
    ) -> None:
        self._replayed = dict(replayed or {})
        self.cpu_seconds = dict(cpu_seconds or {})
        """Those that steps of a search took, by label, in the run that is replayed."""
        self.used: dict[str, Latency] = {}

    @classmethod
    def read(cls, path: Path) -> Timings:
        """Read the times that the report of an earlier run holds.

        Raises:
            UsageError: the file can't be read, or is no report with times.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            known = {label: Latency(**latency) for label, latency in content["timings"].items()}
            seconds = {label: float(each) for label, each in content.get("cpu_seconds", {}).items()}
        except OSError as error:
            raise UsageError(f"can't read the timings: {error.strerror}", where=str(path)) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(
                "is no report with timings", where=str(path), hint="Give a file that --json wrote in an earlier run"
            ) from error
        return cls(known, seconds)

    def knows(self, label: str) -> bool:
        """Say whether the time for a label is replayed."""
        return label in self._replayed

    def race(self, label: str, measured: Callable[[], Latency]) -> Latency:
        """Return the time that is to be replayed for a label, or else measure it."""
        known = self._replayed.get(label)
        self.used[label] = measured() if known is None else known
        return self.used[label]


class Races:
    """Times candidates against the original, by a label; see `core.Context.race`."""

    def __init__(
        self, base: LoadedModel, feeds: Sequence[Feed], *, plan: OutputPlan, timings: Timings, threads: int
    ) -> None:
        self._base = base
        self._plan = plan
        self._feeds = feeds
        self._timings = timings
        self._threads = threads
        self._raced: dict[str, Latency] = {}

    def __call__(self, model: ir.Model, label: str) -> float:
        """Return the time of a candidate as a part of the original's; the same bytes are raced once."""

        def raced() -> Latency:
            candidate = LoadedModel(model, threads=self._threads, like=self._base)
            key = "" if candidate.size_bytes > APART_BYTES else digest([candidate.data])
            found = self._raced.get(key)
            if found is None:
                sessions = self._plan.timed(self._base), self._plan.timed(candidate)
                found = timing.race_each(*sessions, self._feeds, max_seconds=_RACE_SECONDS)
            if key:
                self._raced[key] = found
            return found

        return self._timings.race(label, raced).overall_ratio


class Trials:
    """The judge of one run of `compress`; see `core.Judge`.

    Args:
        base: the original.
        held_out: samples that passes don't see.
        feeds: what is timed, see `Evaluation.timed`.
        final: says by how much a candidate is over the limit where the user's own samples decide.
        limit: most that the estimated score may fall.
        prefer: see `core.Prefer`.
        plan: the outputs, and the values behind them, that are compared.
        timed: False where the candidates are meant for another processor than this one.
        timings: records and replays.
        threads: of the runtime when it is timed.
        checkpoint: where what is measured is noted, and read again by a run that continues.
        confidence: that the loss is within the limit, where not the estimate but its upper end decides.
    """

    def __init__(
        self,
        base: LoadedModel,
        held_out: Evaluation,
        feeds: Sequence[Feed],
        *,
        final: Callable[[LoadedModel], str | None],
        limit: float | None,
        prefer: Prefer,
        plan: OutputPlan,
        timed: bool,
        timings: Timings,
        threads: int,
        checkpoint: Checkpoint | None = None,
        confidence: float | None = None,
    ) -> None:
        self.limit = limit
        self.prefer: Prefer = prefer
        self._base = base
        self._held_out = held_out
        self._feeds = feeds
        self._final = final
        self._plan = plan
        self._confidence = confidence
        self._timed = timed
        self._timings = timings
        self._threads = threads
        self._checkpoint = checkpoint
        self._scored: dict[str, Quality] = {}
        self._original = _Recorded(plan.session(base), len(held_out.feeds))

    def __call__(self, model: ir.Model, label: str) -> Trial:
        """Score and time a candidate; times are recorded and replayed under the label."""
        return self._trial(model, label if self._timed else None, self._held_out)

    def score(self, model: ir.Model, *, most: int | None = None) -> Trial:
        """Score a candidate, on `most` samples at most, without timing it."""
        judged = self._held_out if most is None else replace(self._held_out, feeds=self._held_out.feeds[:most])
        return self._trial(model, None, judged)

    def fault(self, model: ir.Model) -> str | None:
        """Return by how much a candidate is over the limit where the user's own samples decide, None within it."""
        return self._final(LoadedModel(model, threads=self._threads, like=self._base))

    def _trial(self, model: ir.Model, label: str | None, judged: Evaluation) -> Trial:
        candidate = LoadedModel(model, threads=self._threads, like=self._base)
        measured = self._noted(candidate, label, judged)
        latency = None
        if label is not None:
            latency = self._timings.race(label, lambda: measured.latency or self._race(candidate))
        return Trial(
            bytes=candidate.size_bytes,
            size_ratio=candidate.size_bytes / self._base.size_bytes,
            latency_ratio=None if latency is None else latency.overall_ratio,
            drop=measured.drop,
            drop_interval=measured.drop_interval,
            divergence=measured.divergence,
            decisive_drop=decisive_drop(measured.drop, measured.drop_interval, self._confidence),
            latency_ms=None if latency is None else latency.compressed_ms,
            slower=None if latency is None or latency.overall_interval is None else latency.is_slower,
        )

    def _noted(self, candidate: LoadedModel, label: str | None, judged: Evaluation) -> Measurement:
        """Return the figures that an interrupted run measured of the same bytes, or measure and note them."""
        if self._checkpoint is None:
            return self._measured(candidate, label, judged)
        name = digest([candidate.data, str(len(judged.feeds)), label or ""])
        noted = self._checkpoint.trial(name)
        known = None if noted is None else Measurement.model_validate(noted)
        is_timed = label is None or self._timings.knows(label)
        if known is None or (known.latency is None and not is_timed):
            known = self._measured(candidate, label, judged)
            self._checkpoint.note_trial(name, known.as_json())
        return known

    def _measured(self, candidate: LoadedModel, label: str | None, judged: Evaluation) -> Measurement:
        quality = self._quality(candidate, judged)
        is_raced = label is not None and not self._timings.knows(label)
        return Measurement(
            drop=quality.drop,
            drop_interval=quality.drop_interval,
            divergence=quality.divergence,
            latency=self._race(candidate) if is_raced else None,
        )

    def _quality(self, candidate: LoadedModel, judged: Evaluation) -> Quality:
        """Compare with the original; bytes that were scored before on the same samples are not run again."""
        key = digest([candidate.data, str(len(judged.feeds))])
        if key not in self._scored:
            self._original.rewind()
            with one_thread():
                self._scored[key] = measure(self._original, self._plan.session(candidate), judged, plan=self._plan)
        return self._scored[key]

    def _race(self, candidate: LoadedModel) -> Latency:
        first, second = self._plan.timed(self._base), self._plan.timed(candidate)
        return timing.race_each(first, second, self._feeds, max_seconds=_RACE_SECONDS)


def decisive_drop(drop: float | None, interval: tuple[float, float] | None, confidence: float | None) -> float | None:
    """Return the loss that a limit is compared with: the estimate, or its upper end at a confidence."""
    if drop is None or interval is None or confidence is None:
        return drop
    return Estimate(drop, *interval).upper(confidence)


class _Recorded:
    """A session whose outputs for a fixed round of feeds are kept from the first round on."""

    def __init__(self, session: Runs, count: int) -> None:
        self._session = session
        self._count = count
        self._kept = SpilledArrays()
        self._kept_bytes = 0
        self._next = 0

    def rewind(self) -> None:
        """Begin a round again."""
        self._next = 0

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs for the next feed of the round, which begins again after the last one."""
        index, self._next = self._next, (self._next + 1) % self._count
        if index < len(self._kept):
            return self._kept[index]
        found = self._session.run(feed)
        self._kept_bytes += sum(np.asarray(each).nbytes for each in found.values())
        if index == len(self._kept) and self._kept_bytes <= _KEPT_BYTES:
            self._kept.append(found)
        return found
