"""Match the layers of a student with values of the teacher: by name, by shape, and by activations.

    student layer --same name? same rows of the same shape?--> teacher's value --weights, correlation--> its channels

A channel whose weights are all among those of one channel of the teacher is that channel, as in a pruned model. Where
there is none, activations decide: rows of both are those of the same samples at the same positions, so each channel of
a student can be correlated with each of a teacher's, and the assignment with the largest sum of correlations is taken.
Where they are not correlated, as in an untrained student, layers of the same shape in the same order are pairs.
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
from .targets import LayerMatch

_ROWS = 4096
"""Rows from which correlations are computed, about. Chosen by judgement; not measured."""
_SAMPLES = 64
"""Most samples from which they are taken. Chosen by judgement; not measured."""
_LEAST = 0.5
"""Least mean correlation of a layer with a value of another name. Chosen by judgement; not measured."""
_SURE = 0.8
"""Mean correlation that decides even against a layer of the same shape at the same place. Chosen by judgement; not
measured."""
_CHANCE = 0.2
"""Difference of mean correlations that chance explains in untrained layers, where each channel takes the best of many.
Chosen by judgement; not measured."""


By = Literal["weights", "name", "activations", "shape"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A layer of the student and its counterpart in the teacher.

    Args:
        layer: the student's layer.
        student: the name of its output.
        teacher: the teacher's value.
        by: criterion by which it was found.
        correlation: mean over channels of the correlation before anything was changed.
        channels: the teacher's channels, int [n], in order; None for all.
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

    A value of the same name is taken where it has as many rows and at least as many channels; else the most correlated
    one of as many rows, if it is correlated at all; else that of the layer of the same shape at the same place.

    Raises:
        ModelError: the runtime can't run one of the two.
    """
    student_layers, teacher_layers = _layers(student), _layers(teacher)
    batches = list(observe.batched(student, feeds[:_SAMPLES], _SAMPLES))
    batches = batches if len(batches) == 1 else list(feeds[:_SAMPLES])
    student_axes = {name: layer.channel_axis for name, layer in student_layers.items()}
    made = {output.name for node in teacher.graph for output in node.outputs}
    same_name = [name for name in student_layers if name not in teacher_layers and name in made]
    teacher_axes = {name: student_axes[name] for name in same_name}
    teacher_axes |= {name: layer.channel_axis for name, layer in teacher_layers.items()}
    student_rows = _rows(student, batches, student_axes, seed)
    teacher_rows = _rows(teacher, batches, teacher_axes, seed)
    same_place = _aligned(list(student_layers.values()), list(teacher_layers.values()))
    pairs = []
    for name, layer in student_layers.items():
        rows = student_rows.get(name)
        if rows is None:
            continue
        channels = _equal_channels(layer, teacher_layers[name]) if name in teacher_layers else None
        match = _by_name(name, rows, teacher_rows, channels)
        match = match or _by_activations(rows, teacher_rows, same_place.get(name))
        if match is not None:
            pairs.append(
                Pair(
                    layer=layer.label,
                    student=name,
                    teacher=match.teacher,
                    by=match.by,
                    correlation=match.correlation,
                    channels=match.channels,
                )
            )
    return pairs


def _layers(model: ir.Model) -> dict[str, LinearLayer]:
    """Return output -> linear layer of the main graph."""
    return {layer.y.name or "": layer for layer in linear_layers(model) if layer.node.graph is model.graph}


@dataclass(frozen=True)
class _Counterpart:
    """A value of the teacher that a layer corresponds to."""

    teacher: str
    by: By
    channels: np.ndarray | None
    correlation: float


@dataclass(frozen=True)
class _SimilarityRows:
    """Sampled rows of a value, float32 [n, channels], and the number of rows of all samples."""

    chosen: np.ndarray
    count: int

    def fits(self, other: _SimilarityRows) -> bool:
        """Say whether the other one has as many rows, and a channel for each."""
        return other.count == self.count and other.chosen.shape[1] >= self.chosen.shape[1]


def _equal_channels(layer: LinearLayer, other: LinearLayer) -> np.ndarray | None:
    """Return for each channel of a layer the one of the other's whose weights include its own, None if any has none.

    Weights are compared bit by bit: no two trained channels have the same ones.
    """
    found: list[int] = []
    rows, others = _weights(layer), _weights(other)
    for row in rows:
        start = found[-1] + 1 if found else 0
        order = [*range(start, len(others)), *range(start)]
        channel = next((n for n in order if n not in found and np.isin(row, others[n]).all()), None)
        if channel is None:
            return None
        found.append(channel)
    return np.asarray(found, np.int64)


def _weights(layer: LinearLayer) -> list[np.ndarray]:
    """Return the weights and the bias of each output channel."""
    matrix, bias = layer.matrix(), layer.bias()
    rows = matrix.reshape(-1, matrix.shape[-1])
    return list(rows if bias is None else np.column_stack([rows, bias]))


def _by_name(
    name: str, rows: _SimilarityRows, teacher: Mapping[str, _SimilarityRows], equal_channels: np.ndarray | None
) -> _Counterpart | None:
    other = teacher.get(name)
    if other is None or not rows.fits(other):
        return None
    table = correlations(rows.chosen, other.chosen)
    if table.shape[0] == table.shape[1]:
        return _Counterpart(name, "name", None, float(np.diag(table).mean()))
    if equal_channels is None:
        channels = assigned(table)
        return _Counterpart(name, "name", channels, _mean(table, channels))
    return _Counterpart(name, "weights", equal_channels, _mean(table, equal_channels))


def _most_correlated(rows: _SimilarityRows, teacher: Mapping[str, _SimilarityRows]) -> _Counterpart | None:
    best: _Counterpart | None = None
    for name, other in teacher.items():
        if rows.fits(other):
            table = correlations(rows.chosen, other.chosen)
            channels = assigned(table)
            correlation = _mean(table, channels)
            if correlation >= _LEAST and (best is None or correlation > best.correlation):
                best = _Counterpart(name, "activations", channels, correlation)
    return best


def _by_activations(
    rows: _SimilarityRows, teacher: Mapping[str, _SimilarityRows], same_place: str | None
) -> _Counterpart | None:
    """Return the most correlated value; where it is not sure, that at the same place, unless it is less correlated."""
    best = _most_correlated(rows, teacher)
    other = None if same_place is None else teacher.get(same_place)
    if (best is not None and best.correlation >= _SURE) or same_place is None or other is None or not rows.fits(other):
        return best
    table = correlations(rows.chosen, other.chosen)
    if best is not None and _mean(table, assigned(table)) < best.correlation - _CHANCE:
        return best
    return _Counterpart(same_place, "shape", None, float(np.diag(table).mean()))


def _mean(table: np.ndarray, channels: np.ndarray) -> float:
    return float(table[np.arange(len(channels)), channels].mean())


def _aligned(student: Sequence[LinearLayer], teacher: Sequence[LinearLayer]) -> dict[str, str]:
    """Return output -> the teacher's output for the longest common sequence of layers of the same kind and shape."""
    one, other = ([(layer.node.op_type, *layer.shape) for layer in each] for each in (student, teacher))
    matched = difflib.SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
    return {
        student[block.a + at].y.name or "": teacher[block.b + at].y.name or ""
        for block in matched
        for at in range(block.size)
    }


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


def layer_match(pairs: Sequence[Pair]) -> LayerMatch:
    """Return the pairs as `refit` takes them."""
    return LayerMatch(
        values={pair.student: pair.teacher for pair in pairs},
        channels={pair.student: pair.channels for pair in pairs if pair.channels is not None},
    )
