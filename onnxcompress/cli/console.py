"""Results on standard output; log and progress on stderr."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import one_line
from .display import Display, Silence

if TYPE_CHECKING:
    from rich.console import RenderableType

_PIPE_WIDTH = 10_000
"""Columns where no terminal sets a limit: tables take what they need, and no name is cut."""


class _Stderr(logging.Handler):
    """Writes to what is standard error at the time: a display puts itself in its place, and lines above its own."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(self.format(record) + "\n")


def start_log(*, verbose: bool, quiet: bool) -> None:
    """Send the log to stderr: warnings, with -v what is being done as well, with -q errors only."""
    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="onnxcompress: %(message)s", handlers=[_Stderr()])


def warn(message: str) -> None:
    """Log a warning."""
    logging.getLogger(__package__).warning("%s", one_line(message))


def end_with_bugs(errors: Sequence[str], *, is_lost: bool) -> None:
    """Name bugs of ours on the last line of stderr; end with their exit code where nothing was done because of them."""
    if errors:
        from ..jobs import internal_errors

        sys.stderr.write(f"onnxcompress: {internal_errors.last_line(errors)}\n")
        if is_lost:
            raise typer.Exit(internal_errors.EXIT_CODE)


def say(message: str) -> None:
    """Log what has been done, for -v."""
    logging.getLogger(__package__).info("%s", one_line(message))


def aside(message: str) -> None:
    """Write a line to stderr, where standard output belongs to somebody else."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"onnxcompress: {one_line(message)}\n")


def show(parts: Sequence[RenderableType]) -> None:
    """Print to standard output: in colours and in its width on a terminal, plain and unwrapped elsewhere."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPE_WIDTH, no_color=True)
    with console.capture() as captured:
        for index, part in enumerate(parts):
            console.print(*([""] if index else []), part, sep="\n")
    lines = captured.get().splitlines()
    _write("\n".join(line.rstrip() for line in lines) + "\n")


def show_json(document: Any) -> None:
    """Print a document to standard output as JSON."""
    from ..base.json_text import dumps

    _write(dumps(document))


def write_json(path: Path, document: Any) -> None:
    """Write a document atomically as JSON."""
    from ..base import atomic_files
    from ..base.json_text import dumps

    content = dumps(document).encode()
    atomic_files.write(path, [content], len(content))


def publish(
    document: Any, tables: Callable[[], Sequence[RenderableType]], *, json_option: str | None, quiet: bool
) -> None:
    """Write a result as JSON where --json names a file, and print it as JSON for `-`, else as tables unless quiet."""
    path = json_path(json_option)
    if path is not None:
        write_json(path, document)
    if json_option == "-":
        show_json(document)
    elif not quiet:
        show(tables())


def json_path(option: str | None) -> Path | None:
    """Return the file that --json names, None for none and for standard output."""
    return None if option in (None, "-") else Path(str(option))


def display(*, quiet: bool) -> Silence:
    """Return what shows on stderr how far a command is; it shows nothing but on a terminal."""
    return Silence() if quiet or not sys.stderr.isatty() else Display()


def progress(*, quiet: bool) -> Callable[[str, Sequence[Any]], Iterator[Any]]:
    """Return what wraps a loop in a bar on stderr, which appears after a second and only on a terminal."""
    return display(quiet=quiet).progress


def _write(text: str) -> None:
    """Write to standard output; the exit code is the same where the reader has closed it."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
