"""Rows of a benchmark in a JSON file: a row that it has already, without an error, is not measured again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any


def load(path: Path | None, kind: Callable[..., Any]) -> list[Any]:
    """Return the rows of an earlier run that ended without an error; none where there is no file.

    Args:
        path: the file.
        kind: makes a row, a data class with `key` and `error`, of its fields.

    Raises:
        ValueError, TypeError: the file holds something else.
    """
    if path is None or not path.exists():
        return []
    return [row for row in (kind(**each) for each in json.loads(path.read_text())) if not row.error]


def left(rows: Sequence[Any], wanted: Sequence[Any]) -> list[Any]:
    """Return what is wanted and has no row yet; both have a `key`."""
    known = {row.key for row in rows}
    return [each for each in wanted if each.key not in known]


def save(rows: Sequence[Any], path: Path | None) -> None:
    """Write the rows where there is a file for them."""
    if path is not None:
        path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
