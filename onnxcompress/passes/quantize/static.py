"""Layers and what lies between them run on integers, with ranges of activations that the data shows.

    Conv(x, w, b) -> Relu   ->   Q DQ(Relu(Conv(DQ(x_q), DQ(w_int8), b)))

as QuantizeLinear and DequantizeLinear, which the runtime fuses into integer kernels. What runs on integers is the
choice that costs the least time by the target's facts (`placement`); what the runtime then does not fuse is set back to
floats, until nothing falls back any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...activations.calibration import Calibration, calibrate
from ...activations.layer_inputs import sample_rows
from ...core import DESELECTED, Change, Context, Need
from ...data import feeds as feed_facts
from ...errors import ModelError
from ...graph import constants as float_constants
from ...graph import query
from ...io import model_io
from ...numerics.quantization.affine_activations import affine_for, quantize
from ...numerics.quantization.histograms import Histogram
from ...numerics.quantization.saturation import wants_seven_bits
from ...ops.linear import linear_layers
from ...runtime import session as runtime
from ...shapes import infer as shapes
from ...targets import facts as targets
from ..raise_opset import raise_opset
from .clip_ranges import choose_ranges
from .fused_kernels import Kernels, read_back
from .kernel_groups import units
from .placement import Placement, plan
from .qdq import QdqWriter, Range, WrittenLayer
from .weight_rounding import saturates

_SEVEN = ", weights in 7 bits against saturation"
_MOST_ROUNDS = 10
"""Times that units which fell back are taken out and the rest is planned again. Chosen by judgement; not measured."""
_MOST_DB = 999.0
"""Decibels reported for a weight without any error: JSON has no infinity."""


@plain_dataclass(frozen=True)
class Settled:
    """A placement that the runtime runs as it is meant to, and what was learnt on the way."""

    placement: Placement
    kernels: Kernels
    layers: Mapping[str, WrittenLayer]


@dataclass(frozen=True, kw_only=True)
class QuantizeStatic:
    """Run layers on int8 with fixed ranges of activations, and what lies between them, where that is faster."""

    name: ClassVar[str] = "quantize-static"
    lossless: ClassVar[bool] = False
    covers_layers: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})

    noise_ps: Annotated[float, Field(ge=0)] = 100.0
    """What rounding one element of an activation counts beside the time, in picoseconds: more leaves more on floats.
    A text recogniser with hard swishes: 0 takes 0.40 of the time of floats and loses 0.55 points, 100 0.43 and 0.20,
    400 0.42 and 0.05; a MobileNet: 100 is as 0, from 200 on its depthwise layers go back and 0.64 becomes 0.83."""

    ranges: Literal["extremes", "guarded"] = "extremes"
    """extremes: what the samples reach. guarded: less, where the layers that read an activation gain by it."""

    accumulator: Literal["auto", "wide", "narrow"] = "auto"
    """narrow: for x64 without VNNI, where two products are added in 16 bits: layers that would saturate get weights of
    7 bits. auto: as this processor does, where it is the target."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Quantize every graph of `model`: layers, those that lose least first, then products of activations."""
        facts = targets.static_facts(context.target)
        try:
            raised = model if query.opset(model) >= facts.opset else model_io.convert_opset(model, facts.opset)
        except ModelError as error:
            reason = f"opset stays at {query.opset(model)}: {error.message}"
            return [Change.skipped(self.name, reason)]
        run = StaticRun(raised, context, facts, noise_ps=self.noise_ps)
        if self.ranges == "guarded":
            run.guard_ranges()
        is_narrow = self.accumulator == "narrow" or (self.accumulator == "auto" and saturates(context.target))
        if facts.activation == "uint8" and is_narrow:
            run.avoid_saturation()
        whole = run.settle(only=None)
        order = _least_harm_first(whole)
        if raised is not model:
            if not order:
                return run.write(whole, self.name)
            changes = raise_opset(model, context, self.name, facts.opset, "scales by channel need it")
            if query.opset(model) < facts.opset:
                return changes
            run = StaticRun(model, context, facts, noise_ps=self.noise_ps, like=run)
        else:
            changes = []
        admitted = [label for label in order if context.gate.admits(self.name, label)]
        is_whole = len(admitted) == len(order)
        final = whole if is_whole and raised is model else run.settle(only=None if is_whole else frozenset(admitted))
        return changes + run.calibration.changes(self.name) + run.write(final, self.name)


class StaticRun:
    """One model at the opset that its target needs, to be placed and written.

    Args:
        model: edited by `write` only.
        context: its feeds are calibrated on; its gate is not asked.
        facts: the target's.
        noise_ps: what rounding an element of an activation counts, see `placement.plan`.
        like: a run of the same model in other objects, whose findings are taken over.

    Attributes:
        ranges: name of a value that units read or make -> least and greatest value; may be replaced by better ones.
        refused: label of a unit -> why it stays on floats.
        seven_bits: labels of layers whose weights get 7 bits, since 16-bit sums would saturate.
    """

    def __init__(
        self,
        model: ir.Model,
        context: Context,
        facts: targets.StaticFacts,
        *,
        noise_ps: float = 0.0,
        like: StaticRun | None = None,
    ) -> None:
        self.noise_ps = noise_ps
        self.model, self.context, self.facts = model, context, facts
        self.calibration = Calibration()
        self.refused: dict[str, str] = {}
        self.ranges: dict[str, Range] = {}
        self.seven_bits: set[str] = set()
        self.shapes: shapes.Shapes
        if like is not None:
            self.shapes, self.refused = like.shapes, like.refused
            self.ranges, self.calibration, self.seven_bits = like.ranges, like.calibration, like.seven_bits
            return
        largest = feed_facts.largest(context.feeds)
        self.shapes = shapes.infer_at(model, feed_facts.dims(largest))
        self._observe()

    def guard_ranges(self) -> None:
        """Replace extremes by clipped ranges where the outputs of the layers behind gain by it."""
        grid = self.facts.grid
        chosen = choose_ranges(
            self.model,
            self.context.feeds,
            self.calibration,
            grid,
            state=self.context.state,
            seed=self.context.seed,
            progress=self.context.progress,
        )
        for name in self.ranges:
            if name in chosen:
                affine = chosen[name].affine
                self.ranges[name] = affine.low, affine.high

    def avoid_saturation(self) -> None:
        """Find the layers that lose less with weights of 7 bits than by saturation of 16-bit sums, on samples."""
        layers = [layer for layer in linear_layers(self.model) if layer.x.name in self.ranges]
        rows = sample_rows(
            self.model,
            self.context.feeds,
            layers,
            state=self.context.state,
            seed=self.context.seed,
            progress=self.context.progress,
        )
        for layer in layers:
            seen = rows[id(layer.node)]
            if seen.is_empty or layer.is_fixed:
                continue
            affine = affine_for(*self.ranges[layer.x.name or ""], self.facts.grid)
            integers = quantize(seen.rows(), affine)
            if wants_seven_bits(integers, layer.matrix(), zero_point=affine.zero_point):
                self.seven_bits.add(layer.label)

    def settle(self, only: frozenset[str] | None) -> Settled:
        """Plan, write into a copy, look what the runtime does, and leave out what fell back, until nothing does."""
        refused = dict(self.refused)
        for _ in range(_MOST_ROUNDS):
            copy = model_io.clone(self.model)
            placement = self._plan(copy, refused, only)
            if not placement.units:
                break
            layers = self._writer(copy, placement).write()
            try:
                kernels = self._read_back(copy, placement, layers)
            except ModelError as error:
                refused |= {unit.label: f"with quantizers, {error.message}" for unit in placement.units}
                continue
            if not kernels.fallen:
                return Settled(self._plan(self.model, refused, only), kernels, {w.unit.label: w for w in layers})
            refused |= kernels.fallen
        return Settled(self._plan(self.model, refused, frozenset()), Kernels({}, {}), {})

    def write(self, settled: Settled, pass_name: str) -> list[Change]:
        """Write a placement into the model and report the result for each layer."""
        placement, kernels = settled.placement, settled.kernels.of_layer
        sizes = _freed_bytes(placement)
        layers = {w.unit.label: w for w in self._writer(self.model, placement).write()} if placement.units else {}
        changes = []
        stored: set[str] = set()
        for unit in placement.products:
            layer = layers.get(unit.label)
            if layer is None:
                changes.append(Change.applied(pass_name, "int8: a product of activations", target=unit.label))
                continue
            kernel = kernels.get(unit.label, "as the target's documentation says")
            rounding = layer.rounding
            changes.append(
                Change.applied(
                    pass_name,
                    f"int8: {kernel}{_SEVEN if unit.label in self.seven_bits else ''}",
                    target=unit.label,
                    bytes_before=sizes[unit.label],
                    bytes_after=(0 if layer.integers in stored else rounding.tensor.size) + rounding.scale.nbytes,
                    details={"sqnr_db": round(min(rounding.sqnr_db, _MOST_DB), 2)},
                )
            )
            stored.add(layer.integers)
        others = Counter(unit.node.op_type for unit in placement.units if not unit.multiplies)
        if others:
            listed = ", ".join(f"{count} {kind}" for kind, count in others.most_common())
            changes.append(Change.applied(pass_name, f"on integers in between: {listed}"))
        return changes + [
            Change.skipped(pass_name, f"float: {why}", target=query.label(node))
            for node, why in placement.reasons.items()
        ]

    def _plan(self, model: ir.Model, refused: Mapping[str, str], only: frozenset[str] | None) -> Placement:
        return plan(model, self.facts, self.shapes, refused=refused, only=only, noise_ps=self.noise_ps)

    def _writer(self, model: ir.Model, placement: Placement) -> QdqWriter:
        return QdqWriter(model, placement, self.ranges, self.facts, self.shapes, seven_bits=self.seven_bits)

    def _read_back(self, model: ir.Model, placement: Placement, layers: list[WrittenLayer]) -> Kernels:
        if self.context.target != targets.HERE:
            return Kernels({}, {})
        return read_back(
            runtime.optimized_graph(model_io.to_bytes(model)),
            {w.unit.label: w.integers for w in layers},
            [(u.label, [query.label(node) for node in u.nodes]) for u in placement.units],
        )

    def _observe(self) -> None:
        """Find the ranges of all values that may become integers; units whose ranges are unknown are refused."""
        found = [
            unit
            for body in query.graphs_outside_functions(self.model)
            for unit in units(body, self.facts, self.shapes)[0]
        ]
        for unit in found:
            if not self.context.selects(unit.node):
                self.refused[unit.label] = DESELECTED
        values = dict.fromkeys(v.name for u in found for v in (*u.inputs, *u.outputs) if v.name)
        self.calibration = calibrate(
            self.model,
            self.context.feeds,
            values,
            state=self.context.state,
            store=self.context.calibrations,
            progress=self.context.progress,
        )
        why = dict(self.calibration.refused)
        for name, histogram in self.calibration.histograms.items():
            problem = _problem(histogram)
            if problem is None:
                self.ranges[name] = histogram.low, histogram.high
            else:
                why[name] = problem
        for unit in found:
            for value in (*unit.inputs, *unit.outputs):
                if value.name in why:
                    self.refused.setdefault(unit.label, f"the range of {value.name} is not known: {why[value.name]}")


def _freed_bytes(placement: Placement) -> dict[str, int]:
    """Return label -> bytes of the float weight that is no longer stored: a shared one with its first layer."""
    found: dict[str, int] = {}
    taken = {unit.node for unit in placement.products}
    seen: set[ir.Value] = set()
    for unit in placement.products:
        value = None if unit.weight is None else unit.node.inputs[unit.weight]
        goes = value is not None and value not in seen and all(use.node in taken for use in value.uses())
        found[unit.label] = float_constants.stored_bytes(value) if value is not None and goes else 0
        if value is not None:
            seen.add(value)
    return found


def _problem(histogram: Histogram) -> str | None:
    """Say why what was counted is no range to quantize by, None where it is one."""
    if not histogram.updates:
        return "no sample computes it"
    if histogram.low > histogram.high:
        return "NaN or infinities only"
    return "always zero on the samples" if histogram.low == histogram.high == 0 else None


def _least_harm_first(settled: Settled) -> list[str]:
    """Return the labels of layers by the noise that rounding makes of their weights, then of products without one."""

    def noise(label: str) -> float:
        rounding = settled.layers[label].rounding
        return rounding.noise / max(rounding.signal, float(np.finfo(float).tiny))

    labels = [unit.label for unit in settled.placement.products]
    layers = sorted((label for label in labels if label in settled.layers), key=noise)
    return layers + [label for label in labels if label not in settled.layers]
