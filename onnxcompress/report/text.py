"""The report as tables for a terminal or a pipe."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import passes
from ..core import Action, Change
from . import Report

_EXAMPLES = 3
_PIPE_WIDTH = 200


def show(report: Report, *, every_change: bool) -> None:
    """Print a report to standard output: the figures, then the changes, aggregated unless all are asked for."""
    console = _console()
    console.print(figures(report))
    console.print(change_table(report.changes) if every_change else summary(report.changes))
    for note in report.notes:
        console.print(f"note: {escape(note)}")


def figures(report: Report) -> Table:
    """Return the table of the model before and after."""
    table = Table("", "before", "after", "ratio", title="onnxcompress")
    before, after = report.input, report.output
    for title, was, now in (
        ("bytes", before.bytes, after.bytes),
        ("nodes", before.nodes, after.nodes),
        ("parameters", before.parameters, after.parameters),
        ("MACs", before.macs, after.macs),
    ):
        table.add_row(title, _number(was), _number(now), f"{now / was:.3f}" if was and now is not None else "")
    if report.latency:
        spent = report.latency
        table.add_row(
            "latency, ms", f"{spent['original_ms']:.3f}", f"{spent['compressed_ms']:.3f}", f"{spent['ratio']:.3f}"
        )
    if report.quality:
        quality = report.quality
        title = f"{quality['metric']} of {quality['samples']} samples"
        drop = "" if quality["drop"] is None else f"drop {quality['drop']:.4f}"
        table.add_row(title, _score(quality["original"]), _score(quality["compressed"]), drop)
    if report.output.path:
        table.add_row("file", escape(str(report.input.path or "")), escape(report.output.path), "")
    return table


def summary(changes: Sequence[Change]) -> Table:
    """Return a table of the changes, one row for each pass, action and reason; rewrites taken back stand alone."""
    table = Table("pass", "action", "count", "bytes saved", "what or why", "for example", title="changes")
    groups: defaultdict[tuple[str, str, str], list[Change]] = defaultdict(list)
    for change in changes:
        alone = change.target if change.action is Action.ROLLED_BACK else ""
        groups[change.pass_name, str(change.action), change.reason + ("\0" + alone if alone else "")].append(change)
    for (name, action, reason), members in groups.items():
        saved = sum(c.bytes_before - c.bytes_after for c in members) if action == Action.APPLIED else 0
        examples = ", ".join(c.target for c in members[:_EXAMPLES])
        text = reason.split("\0")[0]
        table.add_row(name, action, str(len(members)), _number(saved) if saved else "", escape(text), escape(examples))
    return table


def change_table(changes: Sequence[Change]) -> Table:
    """Return a table with a row for every change."""
    table = Table("pass", "target", "action", "bytes before", "bytes after", "reason", title="changes")
    for c in changes:
        sizes = _number(c.bytes_before), _number(c.bytes_after)
        table.add_row(c.pass_name, escape(c.target), str(c.action), *sizes, escape(c.reason))
    return table


def show_passes(names: Sequence[str]) -> None:
    """Print what passes do and, when it is a single one, its options."""
    table = Table("pass", "lossless", "what it changes")
    for name in names:
        kind = passes.pass_class(name)
        table.add_row(name, "yes" if kind.lossless else "no", escape((kind.__doc__ or "").splitlines()[0]))
    console = _console()
    console.print(table)
    if len(names) == 1:
        options = Table("option", "type", "default")
        for option in dataclasses.fields(passes.pass_class(names[0])):  # type: ignore[arg-type]
            options.add_row(option.name, escape(str(option.type)), _default(option))
        console.print(options)


def _default(option: dataclasses.Field[Any]) -> str:
    return "required" if option.default is dataclasses.MISSING else escape(repr(option.default))


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _score(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
