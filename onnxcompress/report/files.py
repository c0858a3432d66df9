"""Writes a report in the form that its file's name asks for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..base import atomic_files
from ..base.json_text import dumps
from ..errors import UsageError
from ..jobs.report import Report

_PAGES = (".html", ".htm", ".md")
_LIBRARIES = ("jinja2", "matplotlib")


def check_format(path: Path) -> None:
    """Refuse before the work starts a report that can't be written.

    Raises:
        UsageError: no format has that suffix, or a package is missing.
    """
    suffix = path.suffix.lower()
    if suffix not in (*_PAGES, ".json"):
        raise UsageError(f"no report is named {suffix or 'so'}", where=str(path), hint="Name it .html, .md or .json")
    missing = [name for name in _LIBRARIES if suffix in _PAGES and importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"a {suffix} report needs {' and '.join(missing)}",
            where="--report",
            hint="pip install 'onnxcompress[report]', or name it .json",
        )


def write_report(report: Report, path: Path) -> None:
    """Write a report atomically.

    Raises:
        ModelError: the file can't be written.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        text = dumps(report.as_json())
    else:
        from . import html

        text = html.markdown(report) if suffix == ".md" else html.html(report)
    data = text.encode("utf-8", "backslashreplace")
    atomic_files.write(path, [data], len(data))
