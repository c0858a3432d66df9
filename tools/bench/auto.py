"""What the default recipe finds without labels, beside the best point of each peer and what is asked of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.int8 import ORIGINAL, OURS, Row, Tool
from bench.tables import Table


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Most that each metric may fall, most of the size, most of the time."""

    drops: Mapping[str, float]
    size: float
    latency: float


GOALS = {
    "fmnist/resnet14": Goal(drops={"top1": 0.01}, size=0.10, latency=0.25),
    "fmnist/mbv2": Goal(drops={"top1": 0.01}, size=0.24, latency=0.50),
    "fmnist/vit": Goal(drops={"top1": 0.01}, size=0.22, latency=0.60),
    "minilm/model": Goal(drops={"sent_acc": 0.01, "lee_pearson": 0.015}, size=0.25, latency=0.40),
    "ppocr_rec/model": Goal(drops={"char_acc": 0.005}, size=0.28, latency=0.62),
    "textgenrnn_lstm/model": Goal(drops={"top1": 0.005}, size=0.28, latency=0.48),
    "silero_vad/model": Goal(drops={"acc": 0.005}, size=0.40, latency=1.0),
}
"""By model key: what is asked with default options, 256 samples and no labels."""

TOOL = Tool(name=OURS)


def read(paths: Sequence[Path]) -> list[Row]:
    """Return rows that the benchmark int8 wrote, of peers and originals only."""
    rows = [Row(**each) for path in paths for each in json.loads(path.read_text())]
    return [row for row in rows if row.tool != OURS]


def table(rows: Sequence[Row], peers: Sequence[Row]) -> Table:
    """Tabulate drop, size and time of ours and of each peer's best point, a star where a goal is missed."""
    title = "auto: what is lost by labels, size and time as a part of float32 (* beyond what is asked)"
    out = Table(title, ["model", "tool", "drop", "asked", "size", "asked", "time", "asked", "seconds", "CPU s", "note"])
    for model, goal in GOALS.items():
        mine = [row for row in rows if row.model == model]
        original = next((row for row in (*mine, *peers) if row.model == model and row.tool == ORIGINAL), None)
        if original is None or not original.bytes:
            continue
        for row in (*(r for r in mine if r.tool == OURS), *_best(model, original, goal, peers)):
            _add(out, row, original, goal)
    return out


def drops(row: Row, original: Row, goal: Goal) -> dict[str, float]:
    """Return by how much each metric of the goal falls."""
    return {name: original.metrics[name] - row.metrics[name] for name in goal.drops if name in row.metrics}


def _best(model: str, original: Row, goal: Goal, peers: Sequence[Row]) -> list[Row]:
    """Return the points of peers with the least size times time: of those that lose no more than is asked, then all.

    A peer is a quantizer, static or dynamic; its settings are its points.
    """
    found = []
    for family in dict.fromkeys(row.tool.partition(",")[0] for row in peers if row.tool != ORIGINAL):
        points = [r for r in peers if r.model == model and r.tool.partition(",")[0] == family and r.latency_ratio]
        kept = [r for r in points if _is_met(drops(r, original, goal), goal)]
        if points:
            found.append(min(kept or points, key=lambda r: (r.bytes or 0) * (r.latency_ratio or 0)))
    return found


def _is_met(lost: Mapping[str, float], goal: Goal) -> bool:
    return all(lost.get(name, 1.0) <= most for name, most in goal.drops.items())


def _add(out: Table, row: Row, original: Row, goal: Goal) -> None:
    lost = drops(row, original, goal)
    size = None if row.bytes is None else row.bytes / (original.bytes or 1)
    out.add(
        row.model,
        row.tool,
        ", ".join(f"{name} {_starred(value, goal.drops[name], '.4f')}" for name, value in lost.items()),
        ", ".join(f"{most:g}" for most in goal.drops.values()),
        None if size is None else _starred(size, goal.size, ".3f"),
        f"{goal.size:g}",
        None if row.latency_ratio is None else _starred(row.latency_ratio, goal.latency, ".2f"),
        f"{goal.latency:g}",
        row.seconds,
        row.cpu_seconds,
        row.error[:80],
    )


def _starred(value: float, most: float, form: str) -> str:
    return f"{value:{form}}{'*' if value > most else ''}"
