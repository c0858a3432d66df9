"""The limits that a user gives: bytes, latency, drop of the score."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..core import Trial
from ..errors import LimitError, UsageError
from ..quality.result import Quality
from .judge import decisive_drop
from .report import Report


@dataclass(frozen=True, kw_only=True)
class LatencyLimit:
    """Most time of a run: milliseconds, or a factor of the original's."""

    value: float
    is_ratio: bool

    @classmethod
    def parse(cls, text: str) -> LatencyLimit:
        """Read "0.5x" or "3ms".

        Raises:
            UsageError: it has another form or is zero.
        """
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(x|ms)\s*", text.lower())
        if match is None or float(match[1]) <= 0:
            raise UsageError(f"{text!r} is no limit of latency", where="--max-latency", hint="Write it as 0.5x or 3ms")
        return cls(value=float(match[1]), is_ratio=match[2] == "x")

    def fault(self, *, ratio: float, milliseconds: float | None) -> str | None:
        """Return by how much a latency is over the limit, None where it is not or was not measured."""
        measured, unit = (ratio, "x") if self.is_ratio else (milliseconds, " ms")
        return (
            None
            if measured is None or measured <= self.value
            else f"a run takes {measured:.3f}{unit}, more than {self.value:g}{unit}"
        )


def excess(trial: Trial, *, max_bytes: int | None, latency: LatencyLimit | None) -> str | None:
    """Return by how much a candidate is over the limits of bytes and time, None within them."""
    if max_bytes is not None and trial.bytes > max_bytes:
        return f"{trial.bytes:,} bytes are more than {max_bytes:,}"
    if latency is None or trial.latency_ratio is None:
        return None
    return latency.fault(ratio=trial.latency_ratio, milliseconds=trial.latency_ms)


def check_limits(report: Report, latency_limit: LatencyLimit | None, *, confidence: float | None = None) -> None:
    """Raise where a limit that the user gave is not met.

    Raises:
        LimitError: by how much; with the report.
    """
    max_bytes = report.limits.max_bytes
    if max_bytes is not None and report.output.bytes > max_bytes:
        text = f"the result has {report.output.bytes:,} bytes, more than {max_bytes:,}"
        raise LimitError(text, report=report)
    if latency_limit is not None and report.latency is not None:
        fault = latency_limit.fault(ratio=report.latency.ratio, milliseconds=report.latency.compressed_ms)
        if fault is not None:
            raise LimitError(fault, report=report)
    check_drop(report.quality, report.limits.max_drop, report, confidence=confidence)


def check_drop(
    quality: Quality | None, max_drop: float | None, report: object, *, confidence: float | None = None
) -> None:
    """Raise LimitError, with the report, where the metric falls by more than it may, or nothing shows by how much."""
    if quality is None or max_drop is None:
        return
    drop = decisive_drop(quality.drop, quality.drop_interval, confidence)
    if drop is None:
        text = f"no output can be scored, so nothing shows that the loss is within --max-drop {max_drop:g}"
        raise LimitError(text, report=report)
    if drop > max_drop:
        text = f"{quality.metric} falls by {drop:.4g}, more than --max-drop {max_drop:g} allows"
        raise LimitError(text, report=report)
