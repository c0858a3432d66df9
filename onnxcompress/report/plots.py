"""Plots as SVG within a page: texts remain texts, and the same points give the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from .page_model import Point

_ALLOWED, _REFUSED, _CHOSEN, _ORIGINAL = "#2a78b5", "#a8adb3", "#d1495b", "#444444"


def candidates(points: Sequence[Point]) -> str:
    """Return the plot of size against time, or against the drop where nothing was timed, with points by number."""
    is_timed = any(point.latency_ratio is not None for point in points)
    places = [
        (p, p.size_ratio, height) for p in points if (height := p.latency_ratio if is_timed else p.drop) is not None
    ]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "onnxcompress", "font.size": 9}):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlabel("size, as a part of the original's")
        axes.set_ylabel("time, as a part of the original's" if is_timed else "drop of the score")
        axes.scatter([1.0], [1.0 if is_timed else 0.0], marker="x", color=_ORIGINAL, label="original")
        for kind, colour in (("allowed", _ALLOWED), ("refused", _REFUSED), ("chosen", _CHOSEN)):
            mine = [(x, y) for p, x, y in places if _kind(p) == kind]
            if mine:
                axes.scatter(*zip(*mine, strict=True), color=colour, label=kind, zorder=3)
        for point, x, y in places:
            axes.annotate(str(point.number), (x, y), textcoords="offset points", xytext=(5, 4))
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    svg = target.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)


def _kind(point: Point) -> str:
    return "chosen" if point.chosen else "allowed" if point.said.startswith("allowed") else "refused"
