"""The report as tables: pure functions from a report to what rich can print.

Names in a model are hostile input: they are shown as text, never as markup, and control characters are spelled out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..core import Action, Change
from ..errors import one_line
from ..jobs.report import Report
from ..pack.archive import Packed
from ..shapes.count import ModelFacts

_EXAMPLES = 3

_TYPE_NAME = re.compile(r"(u?int|b?float|fp)\d+\w*|\d+-?bits?|[A-Z][a-z]+\w*")
"""Words that stay when reasons are compared although there is a digit in them: types and operators."""
_NUMBER = re.compile(r"-?\d[\d,.]*%?")


def renderables(report: Report, *, every_change: bool) -> list[RenderableType]:
    """Return what is printed of a report: the figures, the changes (grouped unless all are wanted), the notes."""
    parts: list[RenderableType] = [figures(report)]
    if every_change:
        parts += [change_table(report.changes)] if report.changes else []
    else:
        parts += [table for table in (applied(report), refused(report), rolled_back(report)) if table is not None]
    return [*parts, *(Text(f"note: {one_line(note)}") for note in report.notes)]


def figures(report: Report) -> Table:
    """Return the table of the model before and after."""
    table = grid("", "before", "after", "ratio", title=_title(report.input), numbers=(1, 2, 3))
    add_figures(table, report.input, report.output, report.quality, report.latency)
    if report.packed is not None:
        was, now = report.input.bytes, report.packed.packed_bytes
        table.add_row("download, bytes", number(was), number(now), f"{now / was:.3f}" if was else "")
    if report.output.path:
        table.caption = Text(f"written to {one_line(report.output.path)}", no_wrap=True, overflow="ignore")
    return table


def unpacked(found: Packed) -> Table:
    """Return the table of what was restored from an archive."""
    table = grid("", "bytes", title=one_line(found.path.name), numbers=(1,))
    table.add_row("archive", number(found.packed_bytes))
    table.add_row("restored", number(found.unpacked_bytes))
    table.caption = Text(f"written to {one_line(str(found.path))}", no_wrap=True, overflow="ignore")
    for name in found.files[1:]:
        table.caption.append(f"\nand {one_line(name)} beside it")
    return table


def add_figures(
    table: Table,
    before: ModelFacts,
    after: ModelFacts,
    quality: Mapping[str, Any] | None,
    latency: Mapping[str, Any] | None,
) -> None:
    """Add a row for each figure of two models; what was not measured gets none."""
    for title, was, now in (
        ("file, bytes", before.bytes, after.bytes),
        ("nodes", before.nodes, after.nodes),
        ("parameters", before.parameters, after.parameters),
        ("MACs", before.macs, after.macs),
    ):
        table.add_row(title, number(was), number(now), f"{now / was:.3f}" if was and now is not None else "")
    if latency:
        title = f"latency, ms ({_counted(latency['threads'], 'thread')})"
        table.add_row(title, *(f"{latency[key]:.3f}" for key in ("original_ms", "compressed_ms", "ratio")))
    if quality:
        title = f"{quality['metric']} ({_counted(quality['samples'], 'sample')})"
        drop = "" if quality["drop"] is None else f"drop {small(quality['drop'])}"
        table.add_row(cell(title), _score(quality["original"]), _score(quality["compressed"]), drop)


def applied(report: Report) -> Table | None:
    """Return the table of what was done, one row for each pass and kind of rewrite; None where nothing was."""
    changes = [c for c in report.changes if c.action is Action.APPLIED]
    if not changes:
        return None
    table = grid("pass", "count", "bytes saved", "what was done", title="done", numbers=(1, 2))
    for (name, kind), members in grouped(changes).items():
        saved = sum(c.bytes_before - c.bytes_after for c in members)
        table.add_row(cell(name), number(len(members)), number(saved) if saved else "", cell(kind))
    return table


def refused(report: Report) -> Table | None:
    """Return the table of what was left alone, one row for each pass and reason; None where nothing was."""
    changes = [c for c in report.changes if c.action is Action.SKIPPED]
    if not changes:
        return None
    table = grid("pass", "count", "why it was left alone", "for example", title="left alone", numbers=(1,))
    for (name, kind), members in grouped(changes).items():
        examples = ", ".join(dict.fromkeys(c.target for c in members[:_EXAMPLES]))
        table.add_row(cell(name), number(len(members)), cell(kind), cell(examples))
    return table


def rolled_back(report: Report) -> Table | None:
    """Return the table of what was taken back, each by name; None where nothing was."""
    changes = [c for c in report.changes if c.action is Action.ROLLED_BACK]
    if not changes:
        return None
    table = grid("pass", "target", "what was wrong", title="taken back")
    for c in changes:
        table.add_row(cell(c.pass_name), cell(c.target), cell(c.reason))
    return table


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


def number(value: int | None) -> str:
    """Return a whole number with separators."""
    return "unknown" if value is None else f"{value:,}"


def small(value: float) -> str:
    """Return a difference with four decimals, or two digits where those would all be zero."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.0005 else f"{value:.2g}"


def kind(reason: str) -> str:
    """Return a reason with the names and numbers that make it one of its kind replaced by "…" and "N"."""
    words: list[str] = []
    for word in reason.split():
        core = word.strip("\"'`()[]{},;:.")
        masked = _masked(core)
        shown = word if masked == core else word.replace(core, masked).replace("'", "")
        if masked == "…":
            shown = shown.rstrip(",;")
        if not (words and masked == "…" and words[-1] == "…"):
            words.append(shown)
    return " ".join(words)


def _masked(word: str) -> str:
    if _NUMBER.fullmatch(word):
        return "N"
    if _TYPE_NAME.fullmatch(word) or word.startswith("--") or not re.search(r"[\d/_:.]", word):
        return word
    return "…"


def grouped(changes: Sequence[Change]) -> dict[tuple[str, str], list[Change]]:
    """Return changes by pass and kind of reason; a kind with one wording only keeps that wording."""
    groups: defaultdict[tuple[str, str], list[Change]] = defaultdict(list)
    for change in changes:
        groups[change.pass_name, kind(change.reason)].append(change)
    return {
        (name, members[0].reason if len({c.reason for c in members}) == 1 else shape): members
        for (name, shape), members in groups.items()
    }


def _title(facts: ModelFacts) -> str:
    return one_line(facts.path) if facts.path else "model"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _score(value: Any) -> str:
    return "unknown" if value is None else f"{value:.4f}"
