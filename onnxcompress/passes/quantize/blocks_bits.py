"""Weights that can be cut into blocks, the bytes and loss of each width, and the best choice within a budget."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...base import schemes
from ...core import Context, Feed
from ...numerics import snr
from ...numerics.optimization.allocation import allocate
from ...numerics.quantization.blocks import BlockGrid, round_nearest
from ...quality import weight_sensitivity
from ...search import drafts
from ...shapes import count as counting
from .blocks_rounding import completed
from .blocks_writer import array_of, kernel_fits, matrix_of, shape_of, stored_bytes
from .weight_storage import NODE_BYTES, StoredWeight, sites

_SAMPLED_ROWS = 512
"""Rows of a weight by which the noise of its widths is compared. Chosen by judgement; not measured."""
_CANDIDATES = 4
"""Clipped ranges tried for that: widths differ by far more than ranges do."""
_FEEDS = 8
"""Samples on which the noise of one weight is measured: weights differ by far more than samples do."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A weight that is skipped, and why."""

    target: str
    reason: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class WidthChoice:
    """The width of one weight, what it takes and what it loses: noise to signal, of the output if that was measured."""

    grid: BlockGrid
    bytes: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class Widths:
    """The weights that can be cut into blocks, by name, and the widths that are open to each."""

    grids: Sequence[BlockGrid]
    elements: Mapping[str, int]
    costs: Mapping[str, Sequence[float]]
    losses: Mapping[str, Sequence[float]]
    refused: Sequence[Refused]
    samples: int = 0
    """Samples on which the losses were measured; 0: they are those of the weights alone."""

    def within(self, budget_bytes: float) -> dict[str, WidthChoice]:
        """Return the choice of least loss within a budget, the smallest if nothing is; the least harmful first."""
        names = list(self.elements)
        if not names:
            return {}
        costs, losses = [self.costs[name] for name in names], [self.losses[name] for name in names]
        chosen = allocate(costs, losses, max(budget_bytes, sum(min(c) for c in costs))) or []
        found = {
            name: WidthChoice(grid=self.grids[option], bytes=int(cost[option]), loss=loss[option])
            for name, option, cost, loss in zip(names, chosen, costs, losses, strict=True)
        }
        return dict(sorted(found.items(), key=lambda item: item[1].loss))

    def at(self, bits_per_weight: float) -> dict[str, WidthChoice]:
        """Return the choice of least loss with so many bits for each weight, scales included."""
        return self.within(sum(self.elements.values()) * bits_per_weight / 8)


def survey(model: ir.Model, grids: Sequence[BlockGrid], context: Context, *, min_elements: int) -> Widths:
    """Find the weights of every graph and measure what each width would cost and lose.

    With data the noise that a weight makes in the model's output is measured with the first width that loses
    something; with the others it is less by as much as the weight's own noise is. Without data all weights count alike.
    """
    wanted: dict[str, StoredWeight] = {}
    refused: list[Refused] = []
    for site, refusal in sites(model, context.selects, channelwise=True):
        if site.tensor.size < min_elements:
            continue
        reason = refusal or _objection(site, grids[0])
        if not reason and site.name in wanted:
            reason = "another constant has the same name"
        if reason:
            refused.append(Refused(target=site.name, reason=reason, bytes=site.stored_bytes))
        else:
            wanted[site.name] = site
    losses = {name: _noises(matrix_of(site), grids) for name, site in wanted.items()}
    feeds = _feeds(model, len(wanted), context) if context.feeds and wanted and len(grids) > 1 else []
    if feeds:
        losses = _measured(model, wanted, grids, losses, feeds, context)
    costs = {
        name: [float(stored_bytes(*shape_of(site), grid, is_padded=kernel_fits(site))) for grid in grids]
        for name, site in wanted.items()
    }
    elements = {name: site.tensor.size for name, site in wanted.items()}
    return Widths(grids=grids, elements=elements, costs=costs, losses=losses, refused=refused, samples=len(feeds))


def _noises(weight: np.ndarray, grids: Sequence[BlockGrid]) -> list[float]:
    """Return noise to signal of some rows of a weight on each grid."""
    rows = weight[:: max(1, len(weight) // _SAMPLED_ROWS)]
    signal = max(snr.energy(rows), float(np.finfo(float).tiny))
    return [snr.energy(round_nearest(rows, g, candidates=_CANDIDATES).floats() - rows) / signal for g in grids]


def _feeds(model: ir.Model, weights: int, context: Context) -> Sequence[Feed]:
    """Return the samples on which so many weights are measured, each with a run: in a plan as few as it can afford."""
    feeds = completed(model, context, _FEEDS)
    if not context.is_plan:
        return feeds
    return drafts.some(feeds, counting.count(model, feeds[0]).macs or 0, weights)


def _measured(
    model: ir.Model,
    wanted: Mapping[str, StoredWeight],
    grids: Sequence[BlockGrid],
    losses: Mapping[str, Sequence[float]],
    feeds: Sequence[Feed],
    context: Context,
) -> dict[str, list[float]]:
    """Return the noise in the model's output in place of that of the weights."""

    def rounded(site: StoredWeight) -> np.ndarray:
        return array_of(site, round_nearest(matrix_of(site), grids[0], candidates=_CANDIDATES).floats())

    found = weight_sensitivity.noises(
        model,
        {name: functools.partial(rounded, site) for name, site in wanted.items() if losses[name][0] > 0},
        feeds,
        state=set(context.state.values()),
        progress=context.progress,
    )
    return {
        name: [found.get(name, 0.0) * noise / own[0] if own[0] > 0 else 0.0 for noise in own]
        for name, own in losses.items()
    }


def _objection(site: StoredWeight, grid: BlockGrid) -> str | None:
    if site.tensor.dtype != ir.DataType.FLOAT:
        return f"{site.tensor.dtype.name.lower()} weights are not cut into blocks"
    after = stored_bytes(*shape_of(site), grid, is_padded=kernel_fits(site)) + 8 * (NODE_BYTES + len(site.name))
    if after >= site.stored_bytes:
        return f"would take {after} bytes with its scales and nodes instead of {site.stored_bytes}"
    return None if np.isfinite(site.tensor.numpy()).all() else "can't be rounded: it has NaN or infinite elements"


def grids_of(scheme: schemes.Scheme, *, is_budgeted: bool) -> list[BlockGrid]:
    """Return the widths that are open: the scheme's and wider ones, all where there is a budget to keep to."""
    assert scheme.block is not None
    widths = sorted({scheme.bits, *(bits for bits in schemes.BLOCK_BITS if is_budgeted or bits >= scheme.bits)})
    return [BlockGrid(bits, scheme.block, scheme.symmetric) for bits in widths]


def own_bits(scheme: schemes.Scheme) -> float:
    """Return the bits that a weight takes on a scheme, scales included."""
    assert scheme.block is not None
    return scheme.bits + (16 if scheme.symmetric else 16 + scheme.bits) / scheme.block
