"""A comparison as tables: a pure function from what was found to what rich can print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..errors import one_line
from .page_model import figures
from .tables import add_figures, cell, grid
from .wording import number

if TYPE_CHECKING:
    from ..jobs.compare import Comparison
    from ..quality.result import OutputDifference


def comparison_tables(found: Comparison) -> list[RenderableType]:
    """Return what is printed of a comparison."""
    title = " and ".join(one_line(facts.path or "model") for facts in (found.original, found.compressed))
    table = grid("", "first", "second", "ratio", title=title, numbers=(1, 2, 3))
    add_figures(table, figures(found.original, found.compressed, found.quality, found.latency))
    equal = "equal within rounding" if found.difference is None else f"not equal: {found.difference}"
    parts: list[RenderableType] = [table]
    if found.quality.outputs:
        parts.append(_outputs(found.quality.outputs))
    notes = [f"note: {note}" for note in found.notes]
    return [*parts, *(Text(one_line(line)) for line in (f"with the runtime's optimizations off: {equal}", *notes))]


def _outputs(outputs: Mapping[str, OutputDifference]) -> Table:
    table = grid("output", "largest difference", "cosine", "SQNR, dB", "not finite", numbers=(1, 2, 3, 4))
    for name, of in outputs.items():
        sqnr = "" if of.sqnr_db is None else f"{of.sqnr_db:.1f}"
        strange = " and ".join(number(n) for n in of.not_finite) if any(of.not_finite) else ""
        largest = "" if of.max_abs is None else f"{of.max_abs:.3g}"
        cosine = "" if of.cosine is None else f"{of.cosine:.6f}"
        table.add_row(cell(name), largest, cosine, sqnr, strange)
    return table
