"""The report of a pipeline as tables: a pure function from what was found to what rich can print."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..core import Action
from ..errors import one_line
from ..jobs.pipeline_report import PartReport, PipelineReport
from .tables import cell, grid
from .wording import counted, number, small


def pipeline_tables(report: PipelineReport) -> list[RenderableType]:
    """Return what is printed of a pipeline: the whole, its parts, what was taken back, and the notes."""
    parts: list[RenderableType] = [_whole(report), _parts(report)]
    taken = grid("part", "what was wrong", title="taken back")
    for change in report.changes:
        if change.action is Action.ROLLED_BACK:
            taken.add_row(cell(change.target), cell(change.reason))
    parts += [taken] if taken.row_count else []
    notes = [*report.notes, *(f"{part.name}: {note}" for part in report.parts for note in part.notes)]
    return [*parts, *(Text(f"note: {one_line(note)}") for note in notes)]


def _whole(report: PipelineReport) -> Table:
    table = grid("", "before", "after", "ratio", title=one_line(report.input.path or "pipeline"), numbers=(1, 2, 3))
    before, after, quality, time = report.input, report.output, report.quality, report.latency
    table.add_row("files, bytes", number(before.bytes), number(after.bytes), f"{after.bytes / before.bytes:.3f}")
    table.add_row("nodes", number(before.nodes), number(after.nodes), f"{after.nodes / max(1, before.nodes):.3f}")
    label = f"CPU time of a sample, ms ({counted(time.threads, 'thread')})"
    table.add_row(label, f"{time.original_ms:.1f}", f"{time.compressed_ms:.1f}", f"{time.ratio:.3f}")
    scores = [f"{each:.4f}" for each in (quality.original, quality.compressed) if each is not None]
    low, high = quality.drop_interval or (quality.drop, quality.drop)
    said = "" if quality.drop is None else f"drop {small(quality.drop)}"
    table.add_row(f"{quality.metric} ({counted(quality.samples, 'sample')})", *scores, said)
    lines = []
    if low is not None and high is not None:
        lines.append(f"the drop is between {small(low)} and {small(high)} (90%)")
    if report.shared_bytes:
        lines.append(f"{number(report.shared_bytes)} bytes that parts have in common are stored once")
    if report.output.path:
        lines.append(f"written to {one_line(report.output.path)}")
    table.caption = Text("\n".join(lines), no_wrap=True, overflow="ignore")
    return table


def _parts(report: PipelineReport) -> Table:
    table = grid(
        "part", "bytes before", "after", "ratio", "ms before", "after", "samples", "result", numbers=(1, 2, 3, 4, 5, 6)
    )
    for part in report.parts:
        table.add_row(cell(part.name), *_figures(part), cell(part.candidate))
    return table


def _figures(part: PartReport) -> list[str]:
    before, after, times = part.input.bytes, part.output.bytes, part.times
    shown = [number(before), number(after), f"{after / before:.3f}"]
    return [*shown, f"{times.original_ms:.2f}", f"{times.compressed_ms:.2f}", number(part.samples)]
