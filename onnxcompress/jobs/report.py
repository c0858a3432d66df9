"""Report of one run of `compress`, as a value and as JSON; its schema is `report-schema.json` beside this module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic

from ..base.report_value import Count, NotNegative, ReportValue
from ..base.search_terms import Effort
from ..core import Action, Change, Trial
from ..ops.weight_layers import QuantizedState
from ..packing.archive import Packed
from ..quality.ablation import LayerAblation
from ..quality.result import Quality
from ..runtime.latency import Latency
from ..search.archive import TriedCandidate
from ..shapes.count import ModelFacts

SCHEMA = 1
"""Version of the JSON report."""


class PassOptions(ReportValue, extra="allow"):
    """A pass of a recipe: its name and every option that is set."""

    name: str


class ResolvedRecipe(ReportValue):
    """The recipe that was run: every pass with every option that is set."""

    name: str
    passes: tuple[PassOptions, ...]


class Limits(ReportValue):
    """The limits that were given, null for those that were not."""

    max_drop: float | None = None
    """Most that the metric may fall, absolute."""
    max_bytes: Count | None = None
    max_latency: str | None = None
    """As given: "0.5x" of the original's, or "3ms"."""


class Verification(ReportValue):
    """Kind of the proof: as a whole, by the regions that changed, or none (a plan)."""

    mode: Literal["full", "regions", "none"]
    regions: Count = 0
    """Number of regions that were run; it and what follows are only there in mode "regions"."""
    seconds: NotNegative = 0.0
    """Time of the worker processes."""
    peak_memory_bytes: Count = 0
    """Of the largest worker process."""


class ChangeEntry(ReportValue, extra="allow"):
    """JSON of a change: one decision of a pass about one target, with further facts of that pass."""

    pass_name: str = pydantic.Field(alias="pass")
    target: str
    """A node, an initializer, or "graph"."""
    action: Action
    reason: str
    bytes_before: Count
    bytes_after: Count


@dataclass(frozen=True, kw_only=True)
class CandidateEntry(Trial):
    """JSON of a candidate: what was measured on held-out samples, and why it may not be the result (null: it may)."""

    label: str
    objection: str | None
    chosen: bool


class PackedEntry(ReportValue):
    """JSON of an archive: its path, its bytes, and the bytes and names of the files in it, the model's first."""

    path: str
    bytes: Count
    unpacked_bytes: Count
    files: tuple[str, ...]


@dataclass(frozen=True)
class _WrittenAs:
    """Gives a field the schema of the JSON that it is written as."""

    entry: type[Any]

    def __get_pydantic_core_schema__(self, source: object, handler: pydantic.GetCoreSchemaHandler) -> Any:
        return handler.generate_schema(self.entry)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that one run of `compress` measured, decided and did."""

    __pydantic_config__: ClassVar = pydantic.ConfigDict(use_attribute_docstrings=True)

    input: ModelFacts
    output: ModelFacts
    recipe: ResolvedRecipe
    limits: Limits
    quality: Quality | None
    """null where nothing was compared."""
    latency: Latency | None
    """null where nothing was timed."""
    seconds: NotNegative
    """Time of the run."""
    peak_memory_bytes: Count
    verification: Verification
    timings: Mapping[str, Latency] = field(default_factory=dict)
    """Every time that was measured, by label; --timings replays it."""
    changes: tuple[Annotated[Change, _WrittenAs(ChangeEntry)], ...]
    notes: tuple[str, ...] = ()
    quantized_before: QuantizedState | None = None
    """Layers whose weights the model held in 8 bits or fewer as it was given, and those in floats; null where none."""
    effort: Effort = "default"
    """How long the search was to go on."""
    cpu_seconds: Mapping[str, NotNegative] = field(default_factory=dict)
    """CPU seconds of the steps of the search, by label; --timings replays them."""
    interrupted: bool = False
    """Whether the user ended the search (Ctrl-C with --keep-best): the result is the best that it had found."""
    candidates: tuple[Annotated[TriedCandidate, _WrittenAs(CandidateEntry)], ...] = ()
    """All candidates that were measured before one of them was chosen."""
    sensitivity: tuple[LayerAblation, ...] = ()
    """Effect of zeroing each layer, before and after (null: the layer was removed); empty without --report."""
    versions: Mapping[str, str] = field(default_factory=dict)
    internal_errors: tuple[str, ...] = ()
    """Bugs of ours that cost passes their work, which was taken back."""
    is_lost: bool = False
    """Whether nothing of the recipe was done because of them."""
    command: str | None = None
    """As it was typed; null from Python."""
    packed: Annotated[Packed, _WrittenAs(PackedEntry)] | None = None
    """The archive that was written in place of the model (--pack); output.bytes is the model's."""

    def as_json(self) -> dict[str, Any]:
        """Return the JSON report, schema 1."""
        return {"schema": SCHEMA} | {each.name: _json(getattr(self, each.name)) for each in fields(self)}

    def located(self, path: Path) -> Report:
        """Return the report with the path that the result was written to."""
        return replace(self, output=replace(self.output, path=str(path)))

    def delivered(self, archive: Packed) -> Report:
        """Return the report with the archive that the result was written to."""
        return replace(self.located(archive.path), packed=archive)


def _json(value: Any) -> Any:
    if hasattr(value, "as_json"):
        return value.as_json()
    if isinstance(value, Mapping):
        return {key: _json(each) for key, each in value.items()}
    return [_json(each) for each in value] if isinstance(value, tuple) else value


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the report; further keys may be added to it anywhere."""
    found = _plain(pydantic.TypeAdapter(Report).json_schema())
    properties = {"schema": {"const": SCHEMA}} | found["properties"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **found,
        "title": "Report of onnxcompress, schema 1: written by `onnxcompress compress --json`",
        "required": ["schema", *found["required"]],
        "properties": properties,
    }


def _plain(schema: Any) -> Any:
    """Leave out titles, which repeat the names of the keys, and what forbids further keys."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _plain(each)
        for key, each in schema.items()
        if not (key == "title" and isinstance(each, str)) and (key, each) != ("additionalProperties", False)
    }
