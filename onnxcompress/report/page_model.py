"""A report as plain rows of text and numbers, for the terminal, HTML and Markdown alike.

Names in a model are hostile input: control characters are spelled out here, escaping is the page's matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .. import passes
from ..core import GRAPH, Action, Change
from ..errors import UsageError, one_line
from ..jobs.report import PassOptions, Report, Verification
from ..packing.archive import Packed
from ..quality.ablation import Ablation
from ..quality.result import OutputDifference, Quality
from ..runtime.latency import Latency
from ..shapes.count import ModelFacts
from .wording import counted, grouped, number, small

MOST_ROWS = 3000
"""Rows of the table of layers; the JSON report has the others. Chosen by judgement; not measured."""
_EXAMPLES = 3
"""Targets that are named of each summary; chosen by judgement."""

_OUTCOMES = {Action.APPLIED: "done", Action.SKIPPED: "skipped", Action.ROLLED_BACK: "taken back"}


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
    """Outcome of one node or weight."""

    name: str
    by: str
    outcome: str
    reason: str
    before: int
    after: int
    error_db: float | None
    share: float | None
    """Bytes after / before, None where it has none."""


@dataclass(frozen=True, kw_only=True)
class PassSummary:
    """Changes of one pass for one kind of reason."""

    by: str
    action: Action
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
class AblationBars:
    """Change of the worst output when a layer is zeroed, in percent, and when each part of its channels is."""

    change: str
    channels: str
    half: str
    """Number of the parts that make half of the sum of all."""
    heights: tuple[float, ...]
    """Of each part's bar, percent of the highest one of this layer."""


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """Ablation of one layer, before and after; None where the layer was removed or not measured."""

    name: str
    before: AblationBars | None
    after: AblationBars | None


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that is shown of a report, as text and numbers."""

    title: str
    figures: tuple[Figure, ...]
    outputs: tuple[tuple[str, str, str, str], ...]
    notes: tuple[str, ...]
    points: tuple[Point, ...]
    ablations: tuple[AblationRow, ...]
    layers: tuple[LayerRow, ...]
    hidden: int
    summaries: tuple[PassSummary, ...]
    passes: tuple[tuple[str, str], ...]
    recipe: str
    command: str | None
    facts: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]


def page(report: Report) -> Page:
    """Return all that is shown of a report."""
    layers = [c for c in report.changes if _is_about_a_layer(c)]
    others = [c for c in report.changes if not _is_about_a_layer(c)]
    shown = sorted(layers[:MOST_ROWS], key=lambda c: list(_OUTCOMES).index(c.action))
    outputs = {} if report.quality is None else report.quality.outputs
    return Page(
        title=_name(report.input.path or "model"),
        figures=figures(report.input, report.output, report.quality, report.latency, report.packed),
        outputs=tuple(_output(name, found) for name, found in outputs.items()),
        notes=tuple(one_line(note) for note in report.notes),
        points=tuple(_points(report)),
        ablations=tuple(
            AblationRow(name=_name(each.layer), before=_bars(each.before), after=_bars(each.after))
            for each in report.sensitivity[:MOST_ROWS]
        ),
        layers=tuple(_layer(change) for change in shown),
        hidden=max(0, len(layers) - MOST_ROWS),
        summaries=summaries(others),
        passes=tuple((_name(each.name), _options(each)) for each in report.recipe.passes),
        recipe=_name(report.recipe.name),
        command=None if report.command is None else one_line(report.command),
        facts=tuple(_facts(report)),
        versions=tuple((name, _name(version)) for name, version in report.versions.items()),
    )


def _is_about_a_layer(change: Change) -> bool:
    """Say whether a change is a decision of a lossy pass about one node or weight."""
    return change.target != GRAPH and not _is_lossless(change.pass_name)


def _is_lossless(name: str) -> bool:
    try:
        return passes.pass_class(name).lossless
    except UsageError:  # what is done before all passes has a name, too
        return True


def figures(
    before: ModelFacts,
    after: ModelFacts,
    quality: Quality | None,
    latency: Latency | None,
    packed: Packed | None = None,
) -> tuple[Figure, ...]:
    """Return every figure of two models; what was not measured has none."""
    found = [_figure("file, bytes", before.bytes, after.bytes)]
    if packed is not None:
        found.append(_figure("download, bytes", before.bytes, packed.packed_bytes))
    found += [
        _figure("nodes", before.nodes, after.nodes),
        _figure("parameters", before.parameters, after.parameters),
        _figure("MACs", before.macs, after.macs),
    ]
    if latency is not None:
        found.append(_latency(latency))
    if quality is not None:
        title = _name(f"{quality.metric} ({counted(quality.samples, 'sample')})")
        was, now = _score(quality.original), _score(quality.compressed)
        said = "" if quality.drop is None else f"drop {small(quality.drop)}"
        found.append(Figure(title=title, before=was, after=now, share=None, said=said))
    return tuple(found)


def _latency(latency: Latency) -> Figure:
    title, ratio = f"latency, ms ({counted(latency.threads, 'thread')})", latency.ratio
    if not latency.trusted:
        return Figure(title=title, before="", after="", share=None, said="unknown: the machine is too busy")
    was, now = f"{latency.original_ms:.3f}", f"{latency.compressed_ms:.3f}"
    return Figure(title=title, before=was, after=now, share=ratio, said=f"{ratio:.3f}")


def _score(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _figure(title: str, before: int | None, after: int | None) -> Figure:
    share = after / before if before and after is not None else None
    said = "" if share is None else f"{share:.3f}"
    return Figure(title=title, before=number(before), after=number(after), share=share, said=said)


def _output(name: str, found: OutputDifference) -> tuple[str, str, str, str]:
    cells = (found.max_abs, found.cosine, found.sqnr_db)
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


def _bars(found: Ablation | None) -> AblationBars | None:
    if found is None:
        return None
    shares, count = sorted(found.parts, reverse=True), 0
    while 2 * sum(shares[:count]) < sum(shares):
        count += 1
    highest = max(shares, default=0.0)
    return AblationBars(
        change=f"{100 * found.change:.0f}%",
        channels=f"{found.channels:,}",
        half=f"{count} of {len(shares)}" if shares else "",
        heights=tuple(round(100 * part / highest, 1) for part in found.parts) if highest else (),
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


def summaries(changes: Sequence[Change]) -> tuple[PassSummary, ...]:
    """Return changes by outcome, pass and kind of reason."""
    found = []
    for action, outcome in _OUTCOMES.items():
        for (name, reason), members in grouped([c for c in changes if c.action is action]).items():
            targets = [c.target for c in members if c.target != GRAPH]
            saved = sum(c.bytes_before - c.bytes_after for c in members) if action is Action.APPLIED else 0
            found.append(
                PassSummary(
                    by=_name(name),
                    action=action,
                    outcome=outcome,
                    count=len(members),
                    saved=saved,
                    reason=one_line(reason),
                    examples=", ".join(_name(target) for target in dict.fromkeys(targets[:_EXAMPLES])),
                )
            )
    return tuple(found)


def _options(entry: PassOptions) -> str:
    return one_line(", ".join(f"{key}={value}" for key, value in (entry.model_extra or {}).items()))


def _facts(report: Report) -> list[tuple[str, str]]:
    found = [("time of the run", f"{report.seconds:.1f} s"), ("proved", _proof(report.verification))]
    if report.peak_memory_bytes:
        found.append(("peak memory", f"{report.peak_memory_bytes / 1e6:.0f} MB"))
    if report.quality is not None and report.quality.data:
        found.append(("compared on", _name(report.quality.data)))
    given = {name.replace("_", "-"): value for name, value in report.limits if value is not None}
    found += [(f"limit --{name}", _name(str(value))) for name, value in given.items()]
    if report.latency is not None:
        found.append(("timed", f"{report.latency.runs} pairs of runs, {_name(report.latency.provider)}"))
    return found


def _proof(verification: Verification) -> str:
    whole = "not at all: this is a plan" if verification.mode == "none" else "as a whole"
    return f"{verification.regions} regions" if verification.mode == "regions" else whole


def _name(text: str) -> str:
    return one_line(text) or "(no name)"
