"""Channels are scaled between neighbouring layers, so that int8 loses less; the float model computes the same bits.

    Linear(w1, b1) -> Relu -> Linear(w2)      ->  Linear(w1 / s, b1 / s) -> Relu -> Linear(w2 * s)
    LayerNormalization(g, b) -> Linear(w2)    ->  LayerNormalization(g / s, b / s) -> Linear(w2 * s)
    x -> MatMul(w)                            ->  x -> Mul(1 / s) -> MatMul(w * s)          (only with `insert`)

s holds powers of two, one for each channel, chosen by simulating int8 or few-bit weights on samples. It is written
only where the error that rounding makes at the outputs of the layers behind falls clearly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from ...activations.layer_inputs import LayerRows, sample_rows
from ...base import schemes
from ...core import Change, Context, Need
from ...graph import edit
from ...numerics.quantization.blocks import BlockGrid
from ...numerics.quantization.equalization import (
    BlockSimulation,
    Int8Simulation,
    Maker,
    ScaledReader,
    Simulation,
    best_scale,
)
from ...ops.linear import LinearLayer
from ...targets import facts as targets
from . import equalization_sites
from .equalization_sites import ScalingSite

_INT8, _DYNAMIC = "int8", "dynamic-int8"
_WORTH_A_NODE, _LOUD = 0.5, 3e-4
"""The part of the error that a Mul has to take off, and the error (noise to signal) from which on one is put in."""


def _checked(scheme: str) -> str:
    return scheme if scheme in (_INT8, _DYNAMIC) else schemes.checked_blocks(scheme)


@plain_dataclass(frozen=True)
class ScalingDecision:
    """The scales of one place, float32 [channels], and what int8 loses without and with them (noise to signal)."""

    site: ScalingSite
    scale: np.ndarray
    how: str
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Equalize:
    """Scale channels between layers by powers of two where rounding then loses less; floats stay bit by bit."""

    name: ClassVar[str] = "equalize"
    lossless: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})

    scheme: Annotated[str, AfterValidator(_checked)] = "int8"
    """What scales are for: int8, weights and activations of 8 bits; dynamic-int8, where activations have the whole
    range of each run; or weights alone in blocks, as int4/block32/sym."""
    least_gain: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Scales are written only where they take off this part of the simulated error, at least."""
    insert: bool = False
    """Put a Mul before matrix products where nothing can take the scales, the error is more than 3e-4 of the output's
    power, and half of it is removed."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Scale channels in every graph of `model`."""
        names = edit.Names(model)
        changes = []
        for decision in self.decide(model, context):
            if context.gate.admits(self.name, decision.site.label):
                decision.site.apply(decision.scale, names)
                changes.append(self._change(decision))
        return changes

    def decide(self, model: ir.Model, context: Context) -> list[ScalingDecision]:
        """Return the scales that lower the simulated error enough, in the order of the graph."""
        sites = equalization_sites.find(model)
        if self.insert:
            sites += equalization_sites.find_unmade(model, sites)
        sites = [
            site for site in sites if all(context.selects(layer.node) for layer in (*_makers(site), *site.readers))
        ]
        if not sites or not context.feeds:
            return []
        rows = sample_rows(
            model,
            context.feeds,
            [layer for site in sites for layer in (*_makers(site), *site.readers)],
            state=context.state,
            seed=context.seed,
            progress=context.progress,
        )
        found = (self._decision(site, rows, context.target) for site in context.progress("Equalizing", sites))
        return [decision for decision in found if decision is not None]

    def _decision(self, site: ScalingSite, rows: dict[int, LayerRows], target: str) -> ScalingDecision | None:
        seen = [rows[id(layer.node)] for layer in (*_makers(site), *site.readers)]
        if any(each.is_empty for each in seen):
            return None  # no sample took this branch
        readers = [_reader(each, site.channels) for each in seen[len(_makers(site)) :]]
        maker = None if site.maker is None else Maker(seen[0].rows(), site.maker.matrix())
        scale, how, before, after = best_scale(self._simulation(site, target), readers, maker)
        # the noise of rounding is itself a sample: where it has few numbers, a gain may be chance
        chance = min(0.5, 3 / math.sqrt(max(1, sum(reader.outputs.size for reader in readers))))
        gain = max(self.least_gain, _WORTH_A_NODE) if site.takes_node else self.least_gain
        is_clear = after <= before * (1 - gain) * (1 - chance) and (before > _LOUD or not site.takes_node)
        return ScalingDecision(site, scale, how, before, after) if is_clear and site.holds(scale) else None

    def _change(self, decision: ScalingDecision) -> Change:
        readers = ", ".join(layer.label for layer in decision.site.readers[:3])
        gain_db = 10 * math.log10(decision.before / decision.after)
        by_node = ", by a Mul" if decision.site.takes_node else ""
        return Change.applied(
            self.name,
            f"channels scaled by powers of two before {readers} ({decision.how}{by_node}): "
            f"{self.scheme} loses {gain_db:.1f} dB less",
            target=decision.site.label,
            details={
                "scales": decision.how,
                "error_before": float(f"{decision.before:.4g}"),
                "error_after": float(f"{decision.after:.4g}"),
            },
        )

    def _simulation(self, site: ScalingSite, target: str) -> Simulation:
        if self.scheme not in (_INT8, _DYNAMIC):
            scheme = schemes.parse(self.scheme)
            assert scheme.block is not None
            return BlockSimulation(BlockGrid(scheme.bits, scheme.block, scheme.symmetric))
        facts = targets.static_facts(target)
        rows = (facts.operator(layer.node.op_type) for layer in (*_makers(site), *site.readers))
        per_channel = all(row is None or row.channels for row in rows)
        return Int8Simulation(facts.grid, per_channel=per_channel, clips=self.scheme == _INT8)


def _reader(seen: LayerRows, channels: int) -> ScaledReader:
    """Return a layer as a reader of so many channels, each of which may fill several columns in a row."""
    lows, highs = (each.reshape(channels, -1) for each in (seen.extremes.lows, seen.extremes.highs))
    return ScaledReader(seen.rows(), seen.layer.matrix(), lows.min(axis=1), highs.max(axis=1))


def _makers(site: ScalingSite) -> Sequence[LinearLayer]:
    return () if site.maker is None else (site.maker,)
