"""Report of one run on a pipeline, as a value and as JSON: like that of `compress`, with the parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..base.report_value import Count, NotNegative, Positive, ReportValue
from ..core import Change
from ..quality.result import Quality
from ..shapes.count import ModelFacts
from .report import SCHEMA, Limits, Report, ResolvedRecipe

ORIGINAL = "original"
"""Name of the candidate of a part that is the part as it was given."""


class WholeTime(ReportValue):
    """CPU time of the whole on the samples that it is judged by, all parts together, one run after the other."""

    original_ms: NotNegative
    """Mean of a sample."""
    compressed_ms: NotNegative
    ratio: NotNegative
    """`compressed_ms` / `original_ms`; longer predictions take longer."""
    runs: Positive
    """Samples."""
    threads: Positive


class PartTimes(ReportValue):
    """CPU time of a run of one part while the whole ran."""

    original_runs: Count
    original_ms: NotNegative
    compressed_runs: Count
    compressed_ms: NotNegative


class TriedChoice(ReportValue):
    """One choice of candidates that the whole was measured with."""

    parts: dict[str, str]
    """Part -> candidate."""
    bytes: Count
    drop: float
    drop_interval: tuple[float, float]
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """Outcome of one part."""

    name: str
    input: ModelFacts
    output: ModelFacts
    candidate: str
    """Recipe of the result, "original" where it is the part as it was given."""
    samples: int
    """Recorded runs that it was compressed on."""
    cpu_seconds: float
    """That its compression took."""
    drop: float | None
    """Loss of the whole with this part's boldest candidate alone; None where it was not measured."""
    drop_interval: tuple[float, float] | None
    times: PartTimes
    report: Report | None
    """Of its own compression."""
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the entry of `parts` in the JSON report."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("input", "output", "times", "report"):
            found[name] = None if found[name] is None else found[name].as_json()
        return {**found, "notes": list(self.notes)}


@dataclass(frozen=True, kw_only=True)
class PipelineReport:
    """Everything that one run on a pipeline measured, decided and did."""

    input: ModelFacts
    output: ModelFacts
    recipe: ResolvedRecipe
    limits: Limits
    quality: Quality
    latency: WholeTime
    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    changes: tuple[Change, ...]
    """Parts that were taken back."""
    parts: tuple[PartReport, ...]
    choices: tuple[TriedChoice, ...]
    """Choices of candidates that the whole was measured with, in order."""
    shared_bytes: int
    """Bytes that the parts have in common and that are stored once."""
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None
    files: tuple[str, ...] = ()
    """That were written, by their path within the folder."""

    @property
    def internal_errors(self) -> tuple[str, ...]:
        """Bugs of ours that cost passes their work, each with its part."""
        found = ((part.name, part.report) for part in self.parts if part.report is not None)
        return tuple(f"{name}: {text}" for name, report in found for text in report.internal_errors)

    def located(self, folder: Path, files: tuple[str, ...]) -> PipelineReport:
        """Return the report with the folder that the result was written to, and the files in it."""
        return replace(self, output=replace(self.output, path=str(folder)), files=files)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON report, schema 1."""
        return {
            "schema": SCHEMA,
            "pipeline": True,
            "input": self.input.as_json(),
            "output": self.output.as_json(),
            "recipe": self.recipe.as_json(),
            "limits": self.limits.as_json(),
            "quality": self.quality.as_json(),
            "latency": self.latency.as_json(),
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "changes": [change.as_json() for change in self.changes],
            "parts": {part.name: part.as_json() for part in self.parts},
            "choices": [choice.as_json() for choice in self.choices],
            "shared_bytes": self.shared_bytes,
            "notes": list(self.notes),
            "versions": dict(self.versions),
            "command": self.command,
            "files": list(self.files),
        }
