"""One value of a model that is compared, and its samples in the outputs of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import pairing, row_tables
from .output_kinds import KindDecision
from .output_sources import Source


@dataclass(frozen=True)
class JudgedValue:
    """One value that is compared: an output, a piece of one, or a float behind one.

    Args:
        name: of the value in the original.
        decision: its kind.
        source: the computation behind it.
        layout: how its samples are taken apart.
        axis: along which a choice is made; moved to the end before samples are taken apart.
        table: names and layouts of the outputs that make a table of rows together, this one included.
    """

    name: str
    decision: KindDecision
    source: Source
    layout: pairing.Layout
    axis: int | None = None
    table: tuple[tuple[str, pairing.Layout], ...] = ()

    def samples(self, run: Mapping[str, Any], count: int) -> list[Any]:
        """Return what a run of a batch gives for each of its samples."""
        if self.table:
            members = [pairing.apart(run[name], count, how) for name, how in self.table]
            return [row_tables.joined(each) for each in zip(*members, strict=True)]
        return pairing.apart(pairing.choices_last(run[self.name], self.axis), count, self.layout)
