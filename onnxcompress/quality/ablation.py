"""Ablation: relative change of a model's outputs when a layer, or a part of its channels, is zeroed.

    layer --> x switch --> readers      switch: an input, ones by default, zeros for what is ablated

A layer is found in the compressed model by the name of the value that it makes, which passes keep.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from ..activations import observe
from ..core import Feed, Workers
from ..graph import edit
from ..io import model_io
from ..numerics import snr
from ..ops.linear import linear_layers
from ..shapes import count as counting
from ..shapes import fixed_values
from .output_sources import with_sources

_PARTS = 8
"""Parts of a layer's channels, neighbours together, that are zeroed one after another."""
_MOST_SAMPLES = 16
"""Samples that are run. Chosen by judgement; not measured."""
_MACS = 4e10
"""Multiply-accumulates that are spent on one model: 10 to 20 seconds."""
_UNKNOWN_MACS = 10**8
"""Multiply-accumulates that are assumed where they can't be counted. Chosen by judgement; not measured."""
_TINY = float(np.finfo(float).tiny)


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Relative RMS change of the worst output when a layer is zeroed.

    `parts` is the same for equal parts of the layer's channels, in order; empty where there was no time for them.
    """

    change: float
    channels: int
    parts: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class LayerAblation:
    """Ablation of a layer in a model and in its compressed form; None where a layer is not there any more."""

    layer: str
    before: Ablation | None
    after: Ablation | None

    def as_json(self) -> dict[str, Any]:
        """Return the entry of `sensitivity` in the JSON report."""
        return asdict(self)


def before_and_after(
    original: ir.Model, compressed: ir.Model, feeds: Sequence[Feed], *, executor: Workers | None = None
) -> tuple[LayerAblation, ...]:
    """Ablate every layer of a model, and the same layers of a compressed form of it.

    Args:
        original: its linear layers in the main graph are looked at.
        compressed: may be the original.
        feeds: complete feeds.
        executor: does one model elsewhere while the other is done here.

    Raises:
        ModelError: the runtime can't run one of them.
    """
    top = [layer for layer in linear_layers(original) if layer.node.graph is original.graph]
    axes = {layer.y.name or "": 1 if layer.window is not None else -1 for layer in top}
    some = list(feeds[:_MOST_SAMPLES])
    data = model_io.to_bytes(compressed)
    sent = None if executor is None else executor.submit(ablations, data, axes, some)
    before = ablations(model_io.to_bytes(original), axes, some)
    after = ablations(data, axes, some) if sent is None else sent.result()
    return tuple(
        LayerAblation(layer=layer.label, before=before.get(layer.y.name or ""), after=after.get(layer.y.name or ""))
        for layer in top
    )


def ablations(data: bytes, axes: Mapping[str, int], feeds: Sequence[Feed]) -> dict[str, Ablation]:
    """Return the ablation of each value that the main graph of a model makes; for another process, too.

    Args:
        data: the model.
        axes: name of a value -> its axis of channels; names that the model does not have are left out.
        feeds: complete feeds.
    """
    plain = model_io.load(onnx.load_model_from_string(data))
    model = with_sources(plain)
    made = {value.name or "": value for node in model.graph for value in node.outputs}
    macs = counting.count(model, feeds[0]).macs or _UNKNOWN_MACS
    runs = int(max(1.0, _MACS / macs))
    found = [name for name in axes if name in made]
    shapes = _shapes(model, feeds[0], found)
    found = [name for name in found if name in shapes][:runs]
    parts = _PARTS if len(found) * (1 + _PARTS) <= runs else 0
    count = min(max(1, runs // max(1, len(found) * (1 + parts))), len(feeds))
    joined = list(observe.batched(model, feeds[:count], count))
    fresh = edit.Names(model)
    switches = {name: _switched(model, made[name], axes[name], shapes[name], fresh) for name in found}
    session = fixed_values.opened(plain, model)
    names = [spec.name for spec in session.outputs if spec.dtype is not None and spec.dtype.kind == "f"]
    expected = [session.run(feed, names) for feed in joined]

    def change(name: str, first: int, last: int) -> float:
        key, switch = switches[name]
        zeroed = switch.copy()
        zeroed.reshape(-1)[first:last] = 0
        got = [session.run({**feed, key: zeroed}, names) for feed in joined]
        return _change(names, expected, got)

    changes: dict[str, Ablation] = {}
    for name in found:
        channels = int(shapes[name][axes[name]])
        edges = [channels * part // parts for part in range(parts + 1)] if parts else []
        pairs = [(a, b) for a, b in itertools.pairwise(edges) if b > a]
        changes[name] = Ablation(
            change=change(name, 0, channels), channels=channels, parts=tuple(change(name, a, b) for a, b in pairs)
        )
    return changes


def _shapes(model: ir.Model, feed: Feed, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of those values that are arrays of float32 with an axis for channels."""
    values = next(iter(observe.stream(model, [feed], names)), {}) if names else {}
    return {n: np.shape(v) for n, v in values.items() if np.asarray(v).dtype == np.float32 and np.ndim(v) > 1}


def _switched(
    model: ir.Model, value: ir.Value, axis: int, shape: Sequence[int], names: edit.Names
) -> tuple[str, np.ndarray]:
    """Let a value be multiplied by an input of ones and return the input's name and those ones."""
    ones = np.ones([shape[axis], *[1] * (len(shape) - 2)] if axis == 1 else [shape[axis]], np.float32)
    switch = edit.add_initializer(model.graph, names, f"{value.name}_switch", ones)
    model.graph.inputs.append(switch)
    edit.insert_after(value, names, "Mul", switch)
    return switch.name or "", ones


def _change(names: Sequence[str], expected: Sequence[Mapping[str, Any]], got: Sequence[Mapping[str, Any]]) -> float:
    worst = 0.0
    pairs = list(zip(expected, got, strict=True))
    for name in names:
        error = sum(snr.error_energy(was[name], now[name]) for was, now in pairs)
        power = sum(snr.energy(was[name]) for was in expected)
        worst = max(worst, math.sqrt(error / max(power, _TINY)))
    return worst
