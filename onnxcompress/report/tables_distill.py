"""A transfer from teacher to student as tables: a pure function from the report to what rich can print."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..errors import one_line
from . import tables as report_tables
from . import tables_compare

if TYPE_CHECKING:
    from ..jobs.distill import TransferReport


def transfer_tables(found: TransferReport, *, verbose: bool) -> list[RenderableType]:
    """Return what is printed of a transfer: its stages, the layers where all are wanted, teacher and student."""
    parts: list[RenderableType] = [_stages(found)]
    if verbose:
        parts.append(_layers(found))
    lines = []
    if found.unpaired and not verbose:
        lines.append(f"{len(found.unpaired)} layers have no pair in the teacher (--verbose lists all)")
    if found.distilled is not None:
        lines.append(f"trained from end to end: {found.distilled.reason}")
    tables = [each for each in tables_compare.comparison_tables(found.comparison) if isinstance(each, Table)]
    return [*parts, *(Text(one_line(line)) for line in lines), *tables]


def _stages(found: TransferReport) -> Table:
    title = f"distillation: {len(found.pairs)} layers from their pair, then the outputs"
    table = report_tables.grid("stage", "divergence from the teacher", "", title=title, numbers=(1,))
    for name, value in found.divergences.items():
        shown = f"{value:.4g}" if math.isfinite(value) else "no numbers"
        table.add_row(name, shown, "kept" if name == found.kept else "")
    return table


def _layers(found: TransferReport) -> Table:
    table = report_tables.grid(
        "layer", "teacher's value", "found by", "correlation", "what was done", title="layers", numbers=(3,)
    )
    outcomes = {each.layer: each.reason for each in found.refits}
    for pair in found.pairs:
        done = outcomes.get(pair.layer, "")
        table.add_row(
            report_tables.cell(pair.layer), report_tables.cell(pair.teacher), pair.by, f"{pair.correlation:.3f}", done
        )
    for name in found.unpaired:
        table.add_row(report_tables.cell(name), "", "", "", outcomes.get(name, ""))
    return table
