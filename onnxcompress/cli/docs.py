"""`onnxcompress docs`: the pages of `onnxcompress/docs`, which are part of the package."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLE = "Example: onnxcompress docs getting-started"

FOLDER = Path(__file__).parent.parent / "docs"
"""The pages: TOPIC.md. Each begins with its title and, below it, one line that says what it is about."""


def topics() -> dict[str, str]:
    """Return the topics with one line each, in the order of the alphabet."""
    return {path.stem: summary(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.md"))}


def summary(page: str) -> str:
    """Return the first line below the title of a page."""
    lines = [line.strip() for line in page.splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else ""


def show_docs(
    topic: Annotated[str | None, typer.Argument(help="The page to print.", show_default=False)] = None,
) -> None:
    """List the pages of the documentation, or print one: Markdown in a pipe, laid out on a terminal."""
    from rich.console import Console, RenderableType
    from rich.markdown import Markdown
    from rich.text import Text

    from .console import show

    if topic is None:
        show([_table(), Text("`onnxcompress docs TOPIC` prints a page.")])
        return
    page = read(topic)
    parts: list[RenderableType] = [Markdown(page) if Console().is_terminal else Text(page.rstrip("\n"))]
    show(parts)


def _table() -> Table:
    """Return the topics, each with its line."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("topic", "what it is about", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name, line in topics().items():
        table.add_row(Text(name, no_wrap=True), Text(line))
    return table


def read(topic: str) -> str:
    """Return a page as Markdown.

    Raises:
        UsageError: there is no such page.
    """
    known = [path.stem for path in sorted(FOLDER.glob("*.md"))]
    wanted = topic.strip().lower().removesuffix(".md").replace("_", "-")
    if wanted in known:
        return (FOLDER / f"{wanted}.md").read_text(encoding="utf-8")
    close = difflib.get_close_matches(wanted, known, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}"
    raise UsageError(f"unknown topic {topic!r}", hint=hint)
