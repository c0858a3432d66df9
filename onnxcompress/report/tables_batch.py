"""A batch as one table."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from ..errors import one_line
from ..jobs.batch import Batch, Item
from .tables import cell, grid
from .wording import number, small


def batch_tables(found: Batch) -> list[RenderableType]:
    """Return the table of all models, and a line for each that is not done."""
    table = grid("model", "bytes before", "after", "ratio", "time", "drop", "outcome", numbers=(1, 2, 3, 4, 5))
    for item in found.items:
        table.add_row(cell(item.source), *_figures(item), f"{item.outcome}{', before' if item.resumed else ''}")
    missing = [item for item in found.items if item.outcome != "done"]
    lines = [Text(one_line(f"{item.source}: {item.message}")) for item in missing]
    return [table, *lines]


def _figures(item: Item) -> list[str]:
    if item.report is None:
        return [""] * 5
    before, after = item.report["input"]["bytes"], item.report["output"]["bytes"]
    latency, quality = item.report["latency"], item.report["quality"]
    time = f"{latency['ratio']:.3f}" if latency is not None and latency.get("trusted", True) else ""
    drop = "" if quality is None or quality["drop"] is None else small(quality["drop"])
    return [number(before), number(after), f"{after / before:.3f}", time, drop]
