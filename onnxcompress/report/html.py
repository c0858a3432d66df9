"""A report as one self-contained page, or as Markdown.

Everything that comes from a model or from a command is escaped by the template engine. A page's only script is the
one that is named by its hash in the page's own security policy: nothing else in it could run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re

import jinja2
from markupsafe import Markup

from ..jobs.report import Report
from . import plots
from .page_model import Page, page

_MARKS = re.compile(r"([\\`*_{}\[\]()#+!|~<>&$-])")
_MOST_MARKDOWN_ROWS = 200
"""Rows of each table in Markdown; chosen by judgement, so that a page can be read."""


def html(report: Report) -> str:
    """Return the report as one HTML page that needs nothing from elsewhere."""
    shown = page(report)
    script = _environment().get_template("filter.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("report.html")
        .render(v=shown, plot=_plot(shown), script=Markup(script), digest=digest)  # noqa: S704 - both are our own
    )


def markdown(report: Report) -> str:
    """Return the report as Markdown; names are escaped, tables are cut at 200 rows."""
    return _environment().get_template("report.md").render(v=page(report), most=_MOST_MARKDOWN_ROWS)


def _plot(shown: Page) -> Markup | None:
    """Return the plot of the candidates, None where there is nothing to choose from."""
    return Markup(plots.candidates(shown.points)) if len(shown.points) > 1 else None  # noqa: S704 - numbers only


@functools.cache
def _environment() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("onnxcompress.report", "templates"),
        autoescape=jinja2.select_autoescape(["html"], default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["mark"] = lambda text: _MARKS.sub(r"\\\1", str(text))
    found.filters["commas"] = lambda value: f"{value:,}"
    return found
