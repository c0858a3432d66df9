"""Which of a teacher's values a student's layers are to give: found by name, by shape, and by what activations say.

    student layer --same name? same rows of the same shape?--> teacher's value --weights, correlation--> its channels

A channel whose weights are numbers out of one channel of the teacher is that channel, as in a model that was cut.
Where there is none such, activations tell: rows of both are those of the same samples at the same positions, so each
channel of a student can be correlated with each of a teacher's, and the largest sum of correlations is taken. Where
they tell nothing, as in a student that has learnt nothing yet, layers of the same shape in the same order are pairs.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from ..activations import observe
from ..core import Feed
from ..numerics.linear.correlation import assigned, correlations
from ..numerics.linear.patches import choose
from ..ops.linear import LinearLayer, linear_layers

_ROWS = 4096
"""Rows from which correlations are computed, about."""
_SAMPLES = 64
_LEAST = 0.5
"""Mean correlation from which on a value of another name counts as what a layer is to give."""
_SURE = 0.8
"""From here on it does so even where a layer of the same shape stands at the same place."""
_CHANCE = 0.2
"""By how much mean correlations of layers that have learnt nothing differ: each channel takes what suits it best."""


By = Literal["weights", "name", "activations", "shape"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What a layer of the student is to give.

    Args:
        layer: the student's layer.
        student: the name of its output.
        teacher: the teacher's value.
        by: how it was found.
        correlation: mean over channels of the correlation before anything was changed.
        channels: which of the teacher's channels, in order; None for all.
    """

    layer: str
    student: str
    teacher: str
    by: By
    correlation: float
    channels: np.ndarray | None

    def as_json(self) -> dict[str, object]:
        """Return the pair for a report."""
        return {
            "layer": self.layer,
            "student": self.student,
            "teacher": self.teacher,
            "by": self.by,
            "correlation": round(self.correlation, 4),
            "channels": None if self.channels is None else len(self.channels),
        }


def pair_layers(student: ir.Model, teacher: ir.Model, feeds: Sequence[Feed], *, seed: int = 0) -> list[Pair]:
    """Return a pair for each layer of the student's main graph for which the teacher has a value to learn from.

    A value of the same name is taken where it has as many rows and at least as many channels; else the one, of as many
    rows, whose channels the layer's are most like, if they are alike at all; else that of the layer of the same shape
    that stands at its place.

    Raises:
        ModelError: the runtime can't run one of the two.
    """
    mine = {layer.y.name or "": layer for layer in linear_layers(student) if layer.node.graph is student.graph}
    theirs = {layer.y.name or "": layer for layer in linear_layers(teacher) if layer.node.graph is teacher.graph}
    chosen = list(observe.batched(student, feeds[:_SAMPLES], _SAMPLES))
    chosen = chosen if len(chosen) == 1 else list(feeds[:_SAMPLES])
    same_name = [name for name in mine if name not in theirs and _has(teacher, name)]
    axes = {name: mine[name].channel_axis for name in same_name} | {
        n: layer.channel_axis for n, layer in theirs.items()
    }
    ours = _rows(student, chosen, {name: layer.channel_axis for name, layer in mine.items()}, seed)
    known = _rows(teacher, chosen, axes, seed)
    placed = _placed(list(mine.values()), list(theirs.values()))
    found = []
    for name, layer in mine.items():
        rows = ours.get(name)
        if rows is None:
            continue
        cut_from = _cut_from(layer, theirs[name]) if name in theirs else None
        best = _named(name, rows, known, cut_from) or _unnamed(rows, known, placed.get(name))
        if best is not None:
            source, by, channels, correlation = best
            found.append(
                Pair(
                    layer=layer.label,
                    student=name,
                    teacher=source,
                    by=by,
                    correlation=correlation,
                    channels=channels,
                )
            )
    return found


_Match = tuple[str, By, "np.ndarray | None", float]


@dataclass(frozen=True)
class _SimilarityRows:
    """Some rows of a value, float32 [n, channels], and how many all samples have."""

    chosen: np.ndarray
    count: int

    def fits(self, other: _SimilarityRows) -> bool:
        """Say whether the other one has as many rows, and a channel for each."""
        return other.count == self.count and other.chosen.shape[1] >= self.chosen.shape[1]


def _cut_from(layer: LinearLayer, other: LinearLayer) -> np.ndarray | None:
    """Return for each channel of a layer the one of the other's whose numbers are all of its own, None if any lacks it.

    Numbers are told apart by their bits: no two trained channels have the same ones.
    """
    found: list[int] = []
    rows, others = _numbers(layer), _numbers(other)
    for row in rows:
        start = found[-1] + 1 if found else 0
        order = [*range(start, len(others)), *range(start)]
        channel = next((n for n in order if n not in found and np.isin(row, others[n]).all()), None)
        if channel is None:
            return None
        found.append(channel)
    return np.asarray(found, np.int64)


def _numbers(layer: LinearLayer) -> list[np.ndarray]:
    """Return what makes each output channel: its weights and its bias."""
    matrix, bias = layer.matrix(), layer.bias()
    rows = matrix.reshape(-1, matrix.shape[-1])
    return list(rows if bias is None else np.column_stack([rows, bias]))


def _named(
    name: str, rows: _SimilarityRows, known: Mapping[str, _SimilarityRows], cut_from: np.ndarray | None
) -> _Match | None:
    other = known.get(name)
    if other is None or not rows.fits(other):
        return None
    table = correlations(rows.chosen, other.chosen)
    if table.shape[0] == table.shape[1]:
        return name, "name", None, float(np.diag(table).mean())
    channels = assigned(table) if cut_from is None else cut_from
    return name, "name" if cut_from is None else "weights", channels, _mean(table, channels)


def _most_alike(rows: _SimilarityRows, known: Mapping[str, _SimilarityRows]) -> _Match | None:
    best: _Match | None = None
    for name, other in known.items():
        if rows.fits(other):
            table = correlations(rows.chosen, other.chosen)
            channels = assigned(table)
            correlation = _mean(table, channels)
            if correlation >= _LEAST and (best is None or correlation > best[3]):
                best = name, "activations", channels, correlation
    return best


def _unnamed(rows: _SimilarityRows, known: Mapping[str, _SimilarityRows], placed: str | None) -> _Match | None:
    """Return what is most alike; where that is not sure, what stands at the same place, unless that is less alike."""
    best = _most_alike(rows, known)
    other = None if placed is None else known.get(placed)
    if (best is not None and best[3] >= _SURE) or placed is None or other is None or not rows.fits(other):
        return best
    table = correlations(rows.chosen, other.chosen)
    if best is not None and _mean(table, assigned(table)) < best[3] - _CHANCE:
        return best
    return placed, "shape", None, float(np.diag(table).mean())


def _mean(table: np.ndarray, channels: np.ndarray) -> float:
    return float(table[np.arange(len(channels)), channels].mean())


def _placed(mine: Sequence[LinearLayer], theirs: Sequence[LinearLayer]) -> dict[str, str]:
    """Return output -> the other's output for the longest common sequence of layers of the same kind and shape."""
    ours, others = ([(layer.node.op_type, *layer.shape) for layer in each] for each in (mine, theirs))
    matched = difflib.SequenceMatcher(None, ours, others, autojunk=False).get_matching_blocks()
    return {
        mine[block.a + at].y.name or "": theirs[block.b + at].y.name or ""
        for block in matched
        for at in range(block.size)
    }


def _has(model: ir.Model, name: str) -> bool:
    return any(output.name == name for node in model.graph for output in node.outputs)


def _rows(model: ir.Model, feeds: Sequence[Feed], axes: Mapping[str, int], seed: int) -> dict[str, _SimilarityRows]:
    """Return the same rows, by sample and position, of all values that have as many rows."""
    parts: dict[str, list[np.ndarray]] = {}
    counts: dict[str, int] = {}
    watch = observe.ActivationTap(model, axes, skip_refused=True)
    for number, feed in enumerate(feeds):
        for name, array in watch.run(feed).items():
            last = np.moveaxis(array, axes[name], -1)
            count = math.prod(last.shape[:-1])
            at = choose(count, math.ceil(_ROWS / len(feeds)), np.random.default_rng([seed, number, count]))
            parts.setdefault(name, []).append(last.reshape(count, -1)[at])
            counts[name] = counts.get(name, 0) + count
    return {name: _SimilarityRows(np.concatenate(each), counts[name]) for name, each in parts.items()}


def channels_kept(pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
    """Return what `refit` takes as `keep`."""
    return {pair.student: pair.channels for pair in pairs if pair.channels is not None}
