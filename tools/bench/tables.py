"""One table type that prints with rich and is written as Markdown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable


@dataclass
class Table:
    """A titled table of texts; the first column is left-aligned, the others right-aligned."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        """Append a row: floats with two decimals, integers with thousands separators, None as a dash."""
        self.rows.append([show(cell) for cell in cells])

    def markdown(self) -> str:
        """Return the table as GitHub Markdown under a bold title."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = [self.columns, rule, *([c.replace("|", r"\|") for c in row] for row in self.rows)]
        return f"**{self.title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def show(cell: object) -> str:
    """Return a cell as text."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.2f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def publish(tables: Sequence[Table], *, markdown: Path | None) -> None:
    """Print the tables (as Markdown unless on a terminal) and, where asked, write them as Markdown."""
    console = Console()
    for table in tables:
        if not console.is_terminal:
            sys.stdout.write(table.markdown() + "\n")
            continue
        rich_table = RichTable(title=table.title, title_justify="left")
        for index, column in enumerate(table.columns):
            rich_table.add_column(column, justify="right" if index else "left", overflow="fold")
        for row in table.rows:
            rich_table.add_row(*row)
        console.print(rich_table)
    if markdown is not None:
        markdown.write_text("\n".join(table.markdown() for table in tables))
