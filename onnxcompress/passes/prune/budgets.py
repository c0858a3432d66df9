"""Budgets of pruning: MACs, parameters, bytes of the file, or time.

Time is a table of each layer's own, measured in the runtime at the shapes of a feed, and falls with the layer's
MACs; what that misses (kernels that like some counts of channels, time between layers) shows in a race of the whole
model, by which the budget is corrected.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from ...channels.count import ChannelCount
from ...channels.groups import Channels
from ...core import Feed
from ...errors import ModelError
from ...graph import query
from ...graph.extract import extract
from ...io import model_io
from ...ops import table as ops
from ...runtime import session as runtime
from ...shapes import count as counting
from ...shapes import resolve

Of = Literal["macs", "parameters", "bytes", "latency"]

_RUNS = 7
"""Timed runs of a node, of which the fastest counts. Chosen by judgement; not measured."""
_LEAST_SECONDS = 5e-4
"""Seconds of one timed run: shorter nodes are repeated. Chosen by judgement; not measured."""


class Budget:
    """Counts one thing down while groups are taken out.

    Args:
        tally: fresh.
        of_costs: count what the tally calls MACs, rather than parameters.
        whole: what the original has of it.
        beside: what is there beside the counted, and stays: bytes of a file that are no weights.
        unit: how much one counted thing is.
    """

    def __init__(
        self, tally: ChannelCount, *, of_costs: bool, whole: float, beside: float = 0.0, unit: float = 1.0
    ) -> None:
        self._tally = tally
        self._of_costs = of_costs
        self._whole = max(whole, 1e-30)
        self._beside = beside
        self._unit = unit

    @property
    def left(self) -> float:
        """The part of the original that is left."""
        counted = self._tally.costs if self._of_costs else self._tally.parameters
        return (self._beside + self._unit * counted) / self._whole

    def saved(self, groups: Sequence[int]) -> float:
        """Return by how much `left` would fall if these groups were removed too, about."""
        parameters, costs = self._tally.saved(groups[0])
        return len(groups) * self._unit * (costs if self._of_costs else parameters) / self._whole

    def allows(self, group: int) -> bool:
        """Return True where something is left of every axis without the group."""
        return self._tally.allows(group)

    def remove(self, group: int) -> None:
        """Take a group out."""
        self._tally.remove(group)


class Budgeting:
    """Makes budgets for an original and what has become of it."""

    def __init__(self, of: Of, original: ir.Model, channels: Channels, feed: Feed) -> None:
        self._of = of
        tally = channels.tally()
        self._macs, self._parameters = float(tally.macs), float(tally.parameters)
        self._bytes = float(model_io.model_bytes(original))
        self._rates: dict[str, float] = {}
        if of == "latency":
            self._rates = _rates(original, feed)
            self._macs = channels.tally(weigh=self._weigh).costs

    def of(self, model: ir.Model, channels: Channels) -> Budget:
        """Return a fresh budget for a model that has lost groups already."""
        if self._of == "latency":
            return Budget(channels.tally(weigh=self._weigh), of_costs=True, whole=self._macs)
        tally = channels.tally()
        if self._of == "macs":
            return Budget(tally, of_costs=True, whole=self._macs)
        if self._of == "parameters":
            return Budget(tally, of_costs=False, whole=self._parameters)
        size, counted = float(model_io.model_bytes(model)), float(tally.parameters)
        weights = min(size, float(sum(tensor.nbytes for _, tensor, count in counting.constants(model) if count)))
        unit = weights / max(counted, 1.0)
        return Budget(tally, of_costs=False, whole=self._bytes, beside=size - weights, unit=unit)

    def _weigh(self, where: str) -> float:
        """Return microseconds a MAC; for a node that could not be timed what is usual."""
        usual = statistics.median(self._rates.values()) if self._rates else 1.0
        return self._rates.get(where, usual)


def _rates(model: ir.Model, feed: Feed) -> dict[str, float]:
    """Return node -> microseconds for each of its MACs, timed alone at the shapes of a feed."""
    shapes = resolve.infer_dims(model, feed)
    counted = ops.node_macs(model, resolve.shape_lookup(shapes))
    known: dict[tuple[object, ...], float | None] = {}
    found = {}
    for node, macs in counted:
        if not macs or node.graph is not model.graph:
            continue
        key = _kind(node, shapes)
        if key not in known:
            known[key] = _microseconds(model, node, shapes)
        spent = known[key]
        if spent is not None:
            found[query.label(node)] = spent / macs
    return found


def _kind(node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> tuple[object, ...]:
    """Return what the time of a node depends on."""
    attributes = tuple(sorted((name, str(each.value)) for name, each in node.attributes.items()))
    return (node.op_type, attributes, *(None if v is None else _dims(v, shapes) for v in node.inputs))


def _dims(value: ir.Value, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    tensor = query.constant_tensor(value)
    return shapes.get(value.name or "") if tensor is None else query.dims(tensor)


def _microseconds(model: ir.Model, node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> float | None:
    """Return the least time of a run of a node alone, None where it can't be run so."""
    inputs = [value for value in dict.fromkeys(query.reads(node)) if not value.is_initializer()]
    inputs = [value for value in inputs if query.constant_tensor(value) is None]
    if any(shapes.get(value.name or "") is None for value in inputs):
        return None
    dtype = ir.TensorType(ir.DataType.FLOAT)
    constants = [n for n in (v.producer() for v in query.reads(node) if query.constant_tensor(v) is not None) if n]
    try:
        piece = extract(
            model,
            [*constants, node],
            inputs,
            [node.outputs[0]],
            typed=lambda value: (value.type or dtype, None),
            name="layer",
        )
        session = runtime.open_session(model_io.to_bytes(piece), optimize=True)
        feed = {spec.name: np.ones(shapes[spec.name], spec.dtype or np.float32) for spec in session.inputs}
        session.run(feed)
        started = time.perf_counter()
        session.run(feed)
        loops = max(1, min(200, math.ceil(_LEAST_SECONDS / max(time.perf_counter() - started, 1e-7))))
        spans = []
        for _ in range(_RUNS):
            started = time.perf_counter()
            for _ in range(loops):
                session.run(feed)
            spans.append((time.perf_counter() - started) / loops)
    except ModelError:
        return None
    return 1e6 * min(spans)
