"""What a run found and did, as a value: printed by `text`, written as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core import Change
from ..pack.archive import Packed
from ..quality.ablation import LayerAblation
from ..search.archive import TriedCandidate
from ..shapes.count import ModelFacts

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that one run of `compress` has to say; `quality` and `latency` are None where not measured."""

    input: ModelFacts
    output: ModelFacts
    recipe: dict[str, Any]
    limits: dict[str, Any]
    quality: dict[str, Any] | None
    latency: dict[str, Any] | None
    seconds: float
    peak_memory_bytes: int
    changes: tuple[Change, ...]
    verification: dict[str, Any]
    """`mode` full, regions or none; with regions their number, and time and peak memory of the worker processes."""
    timings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What was timed, by label: `--timings` replays it."""
    notes: tuple[str, ...] = field(default=())
    packed: Packed | None = None
    """The archive that was written instead of a model."""
    candidates: tuple[TriedCandidate, ...] = ()
    """What was measured before one of them was chosen."""
    versions: Mapping[str, str] = field(default_factory=dict)
    sensitivity: tuple[LayerAblation, ...] = ()
    """What the model leans on, before and after; empty where no page was asked for."""
    command: str | None = None
    """The words that the user typed; None where the library was called."""

    def as_json(self) -> dict[str, Any]:
        """Return the JSON report, schema 1."""
        return {
            "schema": SCHEMA,
            "input": self.input.as_json(),
            "output": self.output.as_json(),
            "recipe": self.recipe,
            "limits": self.limits,
            "quality": self.quality,
            "latency": self.latency,
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "verification": self.verification,
            "timings": self.timings,
            "changes": [change.as_json() for change in self.changes],
            "notes": list(self.notes),
            "candidates": [each.as_json() for each in self.candidates],
            "sensitivity": [each.as_json() for each in self.sensitivity],
            "versions": dict(self.versions),
            "command": self.command,
            "packed": None if self.packed is None else self.packed.as_json(),
        }
