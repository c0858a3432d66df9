"""A report as plain rows of text and numbers, for pages: nothing here knows what a page is written in.

Names in a model are hostile input: control characters are spelled out here, escaping is the page's matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import passes
from ..core import Action, Change
from ..errors import UsageError, one_line
from ..jobs.report import Report
from ..quality.ablation import Ablation, LayerAblation
from .tables import grouped, number, small

MOST_ROWS = 3000
"""Rows of the table of layers; the JSON report has the others."""

_OUTCOMES = {Action.APPLIED: "done", Action.SKIPPED: "left alone", Action.ROLLED_BACK: "taken back"}
_GRAPH = "graph"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One quantity before and after; `share` is after / before, None where that says nothing."""

    title: str
    before: str
    after: str
    share: float | None
    said: str


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """What became of one node or weight."""

    name: str
    by: str
    outcome: str
    reason: str
    before: int
    after: int
    error_db: float | None
    share: float | None
    """What is left of its bytes, None where it has none."""


@dataclass(frozen=True, kw_only=True)
class PassSummary:
    """What one pass did many times over."""

    by: str
    outcome: str
    count: int
    saved: int
    reason: str
    examples: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """A candidate that was measured."""

    number: int
    label: str
    size_ratio: float
    latency_ratio: float | None
    drop: float | None
    chosen: bool
    said: str


@dataclass(frozen=True, kw_only=True)
class WeightRow:
    """How much an output changes when a layer falls silent, in percent, and when each part of its channels does."""

    change: str
    channels: str
    half: str
    """How many of the parts make half of what all of them make."""
    bars: tuple[float, ...]
    """Height of each part's bar, percent of the highest one of this layer."""


@dataclass(frozen=True, kw_only=True)
class Reliance:
    """What a model leaned on at one layer, before and after; None where the layer is gone or was not measured."""

    name: str
    before: WeightRow | None
    after: WeightRow | None


@dataclass(frozen=True, kw_only=True)
class View:
    """Everything that a page shows."""

    title: str
    figures: tuple[Figure, ...]
    outputs: tuple[tuple[str, str, str, str], ...]
    notes: tuple[str, ...]
    points: tuple[Point, ...]
    reliances: tuple[Reliance, ...]
    layers: tuple[LayerRow, ...]
    hidden: int
    steps: tuple[PassSummary, ...]
    passes: tuple[tuple[str, str], ...]
    recipe: str
    command: str | None
    facts: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]


def view(report: Report) -> View:
    """Return what a page shows of a report."""
    layers = [c for c in report.changes if _is_about_a_layer(c)]
    others = [c for c in report.changes if not _is_about_a_layer(c)]
    shown = sorted(layers[:MOST_ROWS], key=lambda c: list(_OUTCOMES).index(c.action))
    return View(
        title=_name(report.input.path or "model"),
        figures=tuple(_figures(report)),
        outputs=tuple(_output(name, found) for name, found in (report.quality or {}).get("outputs", {}).items()),
        notes=tuple(one_line(note) for note in report.notes),
        points=tuple(_points(report)),
        reliances=tuple(_reliance(each) for each in report.sensitivity[:MOST_ROWS]),
        layers=tuple(_layer(change) for change in shown),
        hidden=max(0, len(layers) - MOST_ROWS),
        steps=tuple(_steps(others)),
        passes=tuple((_name(p["name"]), _options(p)) for p in report.recipe["passes"]),
        recipe=_name(report.recipe["name"]),
        command=None if report.command is None else one_line(report.command),
        facts=tuple(_facts(report)),
        versions=tuple((name, _name(version)) for name, version in report.versions.items()),
    )


def _is_about_a_layer(change: Change) -> bool:
    """Say whether a change is a decision of a lossy pass about one node or weight."""
    return change.target != _GRAPH and not _is_lossless(change.pass_name)


def _is_lossless(name: str) -> bool:
    try:
        return passes.pass_class(name).lossless
    except UsageError:  # what is done before all passes has a name, too
        return True


def _figures(report: Report) -> list[Figure]:
    found = [
        _figure("file, bytes", report.input.bytes, report.output.bytes),
        _figure("nodes", report.input.nodes, report.output.nodes),
        _figure("parameters", report.input.parameters, report.output.parameters),
        _figure("MACs", report.input.macs, report.output.macs),
    ]
    if report.packed is not None:
        found.insert(1, _figure("download, bytes", report.input.bytes, report.packed.packed_bytes))
    if report.latency is not None:
        was, now, ratio = (report.latency[key] for key in ("original_ms", "compressed_ms", "ratio"))
        title = f"latency, ms ({report.latency['threads']} thread{'s' if report.latency['threads'] > 1 else ''})"
        found.append(Figure(title=title, before=f"{was:.3f}", after=f"{now:.3f}", share=ratio, said=f"{ratio:.3f}"))
    if report.quality is not None:
        q = report.quality
        texts = ["unknown" if q[key] is None else f"{q[key]:.4f}" for key in ("original", "compressed")]
        said = "" if q["drop"] is None else f"drop {small(q['drop'])}"
        title = _name(f"{q['metric']} ({q['samples']:,} samples)")
        found.append(Figure(title=title, before=texts[0], after=texts[1], share=None, said=said))
    return found


def _figure(title: str, before: int | None, after: int | None) -> Figure:
    share = after / before if before and after is not None else None
    said = "" if share is None else f"{share:.3f}"
    return Figure(title=title, before=number(before), after=number(after), share=share, said=said)


def _output(name: str, found: Mapping[str, Any]) -> tuple[str, str, str, str]:
    cells = (found["max_abs"], found["cosine"], found["sqnr_db"])
    texts = ["" if value is None else form.format(value) for value, form in zip(cells, _FORMS, strict=True)]
    return _name(name), texts[0], texts[1], texts[2] or "no difference"


_FORMS = ("{:.3g}", "{:.6f}", "{:.1f}")


def _points(report: Report) -> list[Point]:
    return [
        Point(
            number=index,
            label=_name(tried.label),
            size_ratio=tried.trial.size_ratio,
            latency_ratio=tried.trial.latency_ratio,
            drop=tried.trial.drop,
            chosen=tried.chosen,
            said="chosen" if tried.chosen else one_line(tried.objection or "allowed, another one is better"),
        )
        for index, tried in enumerate(report.candidates, start=1)
    ]


def _reliance(found: LayerAblation) -> Reliance:
    return Reliance(name=_name(found.layer), before=_weight(found.before), after=_weight(found.after))


def _weight(lean: Ablation | None) -> WeightRow | None:
    if lean is None:
        return None
    shares, count = sorted(lean.parts, reverse=True), 0
    while 2 * sum(shares[:count]) < sum(shares):
        count += 1
    highest = max(shares, default=0.0)
    return WeightRow(
        change=f"{100 * lean.change:.0f}%",
        channels=f"{lean.channels:,}",
        half=f"{count} of {len(shares)}" if shares else "",
        bars=tuple(round(100 * part / highest, 1) for part in lean.parts) if highest else (),
    )


def _layer(change: Change) -> LayerRow:
    error = change.details.get("sqnr_db")
    return LayerRow(
        name=_name(change.target),
        by=_name(change.pass_name),
        outcome=_OUTCOMES[change.action],
        reason=one_line(change.reason),
        before=change.bytes_before,
        after=change.bytes_after,
        error_db=float(error) if isinstance(error, int | float) else None,
        share=change.bytes_after / change.bytes_before if change.bytes_before else None,
    )


def _steps(changes: Sequence[Change]) -> list[PassSummary]:
    found = []
    for action, outcome in _OUTCOMES.items():
        for (name, reason), members in grouped([c for c in changes if c.action is action]).items():
            targets = [c.target for c in members if c.target != _GRAPH]
            found.append(
                PassSummary(
                    by=_name(name),
                    outcome=outcome,
                    count=len(members),
                    saved=sum(c.bytes_before - c.bytes_after for c in members) if action is Action.APPLIED else 0,
                    reason=one_line(reason),
                    examples=", ".join(_name(target) for target in dict.fromkeys(targets[:3])),
                )
            )
    return found


def _options(entry: Mapping[str, Any]) -> str:
    return one_line(", ".join(f"{key}={value}" for key, value in entry.items() if key != "name"))


def _facts(report: Report) -> list[tuple[str, str]]:
    found = [("time of the run", f"{report.seconds:.1f} s"), ("proved", _proof(report.verification))]
    if report.peak_memory_bytes:
        found.append(("peak memory", f"{report.peak_memory_bytes / 1e6:.0f} MB"))
    if report.quality is not None and "data" in report.quality:
        found.append(("compared on", _name(report.quality["data"])))
    given = {name.replace("_", "-"): value for name, value in report.limits.items() if value is not None}
    found += [(f"limit --{name}", _name(str(value))) for name, value in given.items()]
    if report.latency is not None:
        found.append(("timed", f"{report.latency['runs']} pairs of runs, {_name(report.latency['provider'])}"))
    return found


def _proof(verification: Mapping[str, Any]) -> str:
    whole = "not at all: this is a plan" if verification["mode"] == "none" else "as a whole"
    return f"{verification['regions']} regions" if verification["mode"] == "regions" else whole


def _name(text: str) -> str:
    return one_line(text) or "(no name)"
