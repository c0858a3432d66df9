"""The report as tables: pure functions from a report to what rich can print.

Names in a model are hostile input: they are shown as text, never as markup, and control characters are spelled out.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..core import GRAPH, Action, Change
from ..errors import one_line
from ..jobs.report import Report
from ..packing.archive import Packed
from . import page_model
from .page_model import Figure, PassSummary
from .wording import number


def report_tables(report: Report, *, every_change: bool) -> list[RenderableType]:
    """Return what is printed of a report: the figures, the changes (grouped unless all are wanted), the notes."""
    parts: list[RenderableType] = [_before_and_after(report)]
    if every_change:
        parts += [change_table(report.changes)] if report.changes else []
    else:
        summaries = page_model.summaries(report.changes)
        parts += [table for table in (_applied(summaries), _skipped(summaries), _rolled_back(report)) if table]
    return [*parts, *(Text(f"note: {one_line(note)}") for note in report.notes)]


def _before_and_after(report: Report) -> Table:
    table = grid("", "before", "after", "ratio", title=one_line(report.input.path or "model"), numbers=(1, 2, 3))
    add_figures(table, page_model.figures(report.input, report.output, report.quality, report.latency, report.packed))
    if report.output.path:
        table.caption = Text(f"written to {one_line(report.output.path)}", no_wrap=True, overflow="ignore")
    return table


def unpacked_table(found: Packed) -> Table:
    """Return the table of what was restored from an archive."""
    table = grid("", "bytes", title=one_line(found.path.name), numbers=(1,))
    table.add_row("archive", number(found.packed_bytes))
    table.add_row("restored", number(found.unpacked_bytes))
    table.caption = Text(f"written to {one_line(str(found.path))}", no_wrap=True, overflow="ignore")
    for name in found.files[1:]:
        table.caption.append(f"\nand {one_line(name)} beside it")
    return table


def add_figures(table: Table, figures: Sequence[Figure]) -> None:
    """Add a row for each figure of two models."""
    for each in figures:
        table.add_row(cell(each.title), each.before, each.after, each.said)


def _applied(summaries: Sequence[PassSummary]) -> Table | None:
    """Return the table of what was done, one row for each pass and kind of rewrite; None where nothing was."""
    table = grid("pass", "count", "bytes saved", "what was done", title="done", numbers=(1, 2))
    for each in summaries:
        if each.action is Action.APPLIED:
            table.add_row(each.by, number(each.count), number(each.saved) if each.saved else "", cell(each.reason))
    return table if table.row_count else None


def _skipped(summaries: Sequence[PassSummary]) -> Table | None:
    """Return the table of what was skipped, one row for each pass and reason; None where nothing was."""
    table = grid("pass", "count", "why it was skipped", "for example", title="skipped", numbers=(1,))
    for each in summaries:
        if each.action is Action.SKIPPED:
            table.add_row(each.by, number(each.count), cell(each.reason), cell(each.examples or GRAPH))
    return table if table.row_count else None


def _rolled_back(report: Report) -> Table | None:
    """Return the table of what was taken back, each by name; None where nothing was."""
    table = grid("pass", "target", "what was wrong", title="taken back")
    for c in report.changes:
        if c.action is Action.ROLLED_BACK:
            table.add_row(cell(c.pass_name), cell(c.target), cell(c.reason))
    return table if table.row_count else None


def change_table(changes: Sequence[Change]) -> Table:
    """Return a table with a row for every change."""
    table = grid("pass", "target", "action", "bytes before", "bytes after", "reason", title="changes", numbers=(3, 4))
    for c in changes:
        sizes = (number(c.bytes_before), number(c.bytes_after)) if c.bytes_before or c.bytes_after else ("", "")
        table.add_row(cell(c.pass_name), cell(c.target), str(c.action), *sizes, cell(c.reason))
    return table


def grid(*titles: str, title: str = "", numbers: Sequence[int] = ()) -> Table:
    """Return an empty table in the style of all; the columns in `numbers` are set to the right."""
    heading = Text(title, no_wrap=True, overflow="ignore") if title else None
    table = Table(
        box=box.SIMPLE_HEAD,
        title=heading,
        title_justify="left",
        caption_justify="left",
        show_edge=False,
        pad_edge=False,
    )
    for index, each in enumerate(titles):
        table.add_column(each, justify="right" if index in numbers else "left", overflow="fold")
    return table


def cell(text: object) -> Text:
    """Return any text, names from a model included, as what it is: one line and no markup."""
    return Text(one_line(str(text)))
