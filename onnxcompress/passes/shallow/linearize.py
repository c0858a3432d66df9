"""Replace nearly linear activations by lines, so that the layers on their two sides become one.

    W2 act(W1 x + b1) + b2    ->    W x + b        where act(u) is nearly s u + t for the u of the samples

The line of each channel is the one of least squares. The part of the activation's variance that it misses is measured,
and the divergence of the outputs once the merged layer is refitted to the outputs of the second one.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from typing import Annotated, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...activations import observe
from ...core import Change, Context, Need
from ...distillation import reconstruct
from ...graph import edit, query
from ...io import model_io
from ...ops import table as ops
from ...ops.linear import LinearLayer
from ...quality.divergence import Divergence
from ..fold import layer_composition
from ..fold.merge_layers import put_in_a_row

_BATCH = 32
"""Feeds that are joined to observe values, at most. Chosen by judgement; not measured."""
_SCORED = 256
"""Most samples on which the outputs are compared. Chosen by judgement; not measured."""


@dataclass(frozen=True, kw_only=True)
class Linearize:
    """Nearly linear activations become lines, and the layers beside them one, where that is no larger."""

    name: ClassVar[str] = "linearize"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})

    missed: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Part of an activation's variance, over all its channels, that the lines may miss."""
    divergence: Annotated[float, Field(ge=0)] = 0.01
    """Most divergence of the outputs in the end (nats for class scores, part of the variance for others)."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Try the activations between layers of the main graph, the most linear first."""
        if context.state:
            return []
        places = {
            place.label: place for node in model.graph if (place := _place(node)) and _is_selected(place, context)
        }
        if not places:
            return []
        lines = _lines(model, list(places.values()), context)
        changes = []
        judge = Divergence(model, context.feeds[:: max(1, len(context.feeds) // _SCORED)])
        original = model_io.clone(model)
        for label, line in sorted(lines.items(), key=lambda each: each[1].missed):
            figure = f"a line for each channel misses {line.missed:.2g} of its variance"
            if line.missed > self.missed:
                changes.append(Change.skipped(self.name, f"not linear: {figure}", target=label))
                continue
            place = next((p for node in model.graph if (p := _place(node)) and p.label == label), None)
            if place is None or not context.gate.admits(self.name, label):
                continue  # removed with one before it
            changes.append(self._merged(model, original, place, line, judge, context))
        return changes

    def _merged(
        self, model: ir.Model, original: ir.Model, place: _Place, line: _LinearFit, judge: Divergence, context: Context
    ) -> Change:
        """Merge at one activation, unless the outputs or the score suffer too much."""
        edited = model_io.clone(model)
        node = next(node for node in edited.graph if query.label(node) == place.label)
        copied = _place(node)
        assert copied is not None
        names = edit.Names(edited)
        first, second = _straighten(copied, line, names), copied.second
        merged = layer_composition.merge_chain(first, second)
        assert isinstance(merged, layer_composition.Merged)
        put_in_a_row(merged, first, names)
        reconstruct.refit(edited, original, context.feeds, selects=lambda each: each is second.node, seed=context.seed)
        loss = judge.of(edited)
        figure = f"a line for each channel misses {line.missed:.2g} of its variance; the outputs diverge by {loss:.3g}"
        drop = None if context.judge is None else context.judge.score(edited).limited_drop
        limit = None if context.judge is None else context.judge.limit
        if not loss <= self.divergence:
            return Change.skipped(self.name, f"{figure}, more than {self.divergence:g}", target=place.label)
        if drop is not None and limit is not None and drop > limit:
            fault = f"the score falls by {drop:.4g}, more than {limit:g}"
            return Change.skipped(self.name, f"{figure}, {fault}", target=place.label)
        before = model_io.model_bytes(model)
        edit.become(model, edited)
        return Change.applied(
            self.name,
            f"removed, {query.label(first.node)} and {query.label(second.node)} become one: {figure}",
            target=place.label,
            bytes_before=before,
            bytes_after=model_io.model_bytes(model),
            details={"predicted_loss": line.missed, "measured_divergence": loss, "measured_drop": drop},
        )


@plain_dataclass(frozen=True)
class _Place:
    """An activation between two layers that can become one without it."""

    node: ir.Node
    first: LinearLayer
    second: LinearLayer

    @property
    def label(self) -> str:
        return query.label(self.node)


@plain_dataclass(frozen=True)
class _LinearFit:
    """Least-squares line: slope and height, float64 [channels], and the part of the activation's variance it misses."""

    slope: np.ndarray
    height: np.ndarray
    missed: float


def _place(node: ir.Node) -> _Place | None:
    """Return an activation with the layers around it, None where they could not be merged."""
    if not query.is_op(node, *ops.ELEMENTWISE) or query.is_op(node, "Cast") or node.inputs[0] is None:
        return None
    if any(query.constant_tensor(value) is None for value in node.inputs[1:] if value is not None):
        return None
    value, result = node.inputs[0], node.outputs[0]
    if query.sole_consumer(value) is None or query.sole_consumer(result) is None:
        return None
    first = layer_composition.layer_of(value)
    reader = query.sole_consumer(result)
    second = layer_composition.free_layer(reader)
    if first is None or second is None or second.x is not result or first.node.graph is not second.node.graph:
        return None
    return (
        _Place(node, first, second)
        if isinstance(layer_composition.merge_chain(first, second), layer_composition.Merged)
        else None
    )


def _is_selected(place: _Place, context: Context) -> bool:
    return all(context.selects(node) for node in (place.node, place.first.node, place.second.node))


def _lines(model: ir.Model, places: list[_Place], context: Context) -> dict[str, _LinearFit]:
    """Return the best line for each activation, by its label; none for those that no sample reaches."""
    sums: dict[str, np.ndarray] = {}
    names = [value.name or "" for place in places for value in (place.node.inputs[0], place.node.outputs[0]) if value]
    for values in observe.stream(model, observe.batched(model, context.feeds, _BATCH), names):
        for place in places:
            x, y = (
                _by_channel(values[name], place.first.channel_axis)
                for name in (place.first.y.name or "", place.node.outputs[0].name or "")
            )
            found = np.stack(
                [np.full(len(x), x.shape[1]), x.sum(1), y.sum(1), (x * x).sum(1), (x * y).sum(1), (y * y).sum(1)]
            )
            sums[place.label] = sums.get(place.label, 0.0) + found
    return {label: _fitted(found) for label, found in sums.items()}


def _by_channel(array: np.ndarray, axis: int) -> np.ndarray:
    """Return an array's elements by channel: float64 [channels, n]."""
    moved = np.moveaxis(array.astype(np.float64), axis, 0)
    return moved.reshape(len(moved), -1)


def _fitted(sums: np.ndarray) -> _LinearFit:
    """Return the line of least squares of each channel from count, sums and sums of products [6, channels]."""
    count, x, y, xx, xy, yy = sums
    mean_x, mean_y = x / count, y / count
    spread = np.maximum(xx / count - mean_x**2, 0.0)
    shared = xy / count - mean_x * mean_y
    variance = np.maximum(yy / count - mean_y**2, 0.0)
    slope = np.where(spread > 0, shared / np.where(spread > 0, spread, 1.0), 0.0)
    missed = np.maximum(variance - slope * shared, 0.0).sum() / max(variance.sum(), np.finfo(np.float64).tiny)
    return _LinearFit(slope, mean_y - slope * mean_x, float(missed))


def _straighten(place: _Place, line: _LinearFit, names: edit.Names) -> LinearLayer:
    """Multiply the line into the first layer and remove the activation; return the new layer."""
    first = place.first
    matrix, bias = first.matrix(), first.bias()
    slope = line.slope.reshape(*matrix.shape[:2], 1)
    height = line.height + (0.0 if bias is None else bias * line.slope)
    value, result = place.node.inputs[0], place.node.outputs[0]
    assert value is not None
    edit.replace_value(result, value)
    edit.remove_node(place.node)
    return first.with_weights((matrix * slope).astype(np.float32), height.astype(np.float32), names)
