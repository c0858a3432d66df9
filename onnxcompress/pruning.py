"""Which groups of channels go: curves of loss, group after group, and the shares of them that meet a budget.

    Channels --families--> groups that are read and made by the same nodes
             --curves----> in which order those of a family go, and what each of their readers loses
             --allocate--> where to stop on each curve, so that a budget is met at the least loss
             --take_out--> the others make up for what goes, and the model is cut
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from . import cutting, graph
from .channel_flow import Pin
from .channels import Channels, Group
from .consumers import Site, Statistics
from .layers import linear_layers
from .numerics import elimination
from .numerics.elimination import Consumer, Curve


class Meter(Protocol):
    """Counts down what a budget is about while groups are taken out."""

    @property
    def left(self) -> float:
        """What is left, as a part of what there was."""
        ...

    def saved(self, groups: Sequence[int]) -> float:
        """Return by how much `left` would fall if these groups went too."""
        ...

    def allows(self, group: int) -> bool:
        """Say whether something is left of every axis when the group goes too."""
        ...

    def remove(self, group: int) -> None:
        """Take a group out."""
        ...


@dataclass(frozen=True, eq=False)
class Family:
    """Groups that the same nodes read and make.

    Args:
        groups: their numbers.
        sites: the places of their readers in the list of sites.
        made: the nodes that make them.
    """

    groups: tuple[int, ...]
    sites: tuple[int, ...]
    made: tuple[ir.Node, ...]

    @property
    def label(self) -> str:
        """The node that makes them first."""
        return graph.label(self.made[0]) if self.made else f"group {self.groups[0]}"


def families(channels: Channels, selects: Callable[[ir.Node], bool]) -> list[Family]:
    """Return the families of the groups that only nodes which may be changed read and make."""
    place = {id(read): index for index, read in enumerate(channels.flow.reads)}
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Group]] = {}
    for group in channels.groups:
        if all(selects(use.node) for use in (*group.reads, *group.made)):
            reads = tuple(sorted({place[id(use.at)] for use in group.reads}))
            makers = tuple(sorted({id(use.node) for use in group.made}))
            found.setdefault((reads, makers), []).append(group)
    return [
        Family(
            groups=tuple(group.id for group in groups),
            sites=reads,
            made=tuple(dict.fromkeys(use.node for use in groups[0].made)),
        )
        for (reads, _), groups in found.items()
    ]


def blocks_of(channels: Channels, family: Family) -> dict[int, list[np.ndarray]]:
    """Return group -> for each site of the family the channels that go with it."""
    place = {id(channels.flow.reads[site]): index for index, site in enumerate(family.sites)}
    found = {}
    for number in family.groups:
        blocks = [np.zeros(0, np.int64) for _ in family.sites]
        for use in channels.groups[number].reads:
            blocks[place[id(use.at)]] = use.indices
        found[number] = blocks
    return found


def reconstruction(
    channels: Channels, family: Family, sites: Sequence[Site], statistics: Statistics, *, most: int
) -> Curve:
    """Return the curve by what the readers lose when the channels that stay make up for the others."""
    readers = []
    for index in family.sites:
        site = sites[index]
        covariance = statistics.covariance(site)
        weights = site.weights()
        if covariance is None:
            covariance, weights = np.eye(site.channels), np.zeros((site.channels, 1))
        readers.append(Consumer(weights, covariance, makes_up=site.can_make_up))
    return elimination.curve(readers, blocks_of(channels, family), most=most)


def ranked(scores: Mapping[int, float], *, most: int) -> Curve:
    """Return the curve of groups with a score each, as parts of the sum of all."""
    order = sorted(scores, key=lambda group: (scores[group], group))[:most]
    total = sum(scores.values()) or 1.0
    return Curve(tuple(order), np.cumsum([scores[group] / total for group in order]).reshape(-1, 1))


def allocate(
    curves: Sequence[Curve],
    scales: Sequence[float],
    meter: Meter,
    budget: float,
    *,
    multiple: int = 1,
    sizes: Sequence[int] | None = None,
) -> list[int]:
    """Return how many groups of each curve go so that the budget is met: always those that cost least for what they save.

    Args:
        curves: the curves.
        scales: what a unit of each curve's loss counts.
        meter: fresh; afterwards without the groups that go.
        budget: part of what there was that may be left.
        multiple: the number of groups that stay is a multiple of this, where the curve goes so far.
        sizes: groups of each family, of which the curve may not take all.
    """
    slopes = [_rising(curve.losses.sum(axis=1) * scale) for curve, scale in zip(curves, scales, strict=True)]
    taken = [0] * len(curves)

    def step(index: int) -> int:
        whole = len(curves[index].order) if sizes is None else sizes[index]
        rest = (whole - taken[index]) % multiple
        return min(rest or multiple, len(curves[index].order) - taken[index])

    def price(index: int) -> float:
        start, count = taken[index], step(index)
        saved = meter.saved(curves[index].order[start : start + count])
        return math.inf if saved <= 0 else float(slopes[index][start : start + count].sum()) / saved

    heap = [(price(index), index) for index, curve in enumerate(curves) if curve.order]
    heapq.heapify(heap)
    while heap and meter.left > budget:
        before, index = heapq.heappop(heap)
        now = price(index)
        if heap and now > heap[0][0] and now > before * (1 + 1e-9):
            heapq.heappush(heap, (now, index))
            continue
        count = step(index)
        groups = curves[index].order[taken[index] : taken[index] + count]
        if math.isinf(now) or not all(meter.allows(group) for group in groups):
            continue
        for group in groups:
            meter.remove(group)
        taken[index] += count
        if taken[index] < len(curves[index].order):
            heapq.heappush(heap, (price(index), index))
    return taken


def _rising(losses: np.ndarray) -> np.ndarray:
    """Return the steps of the convex curve below cumulative losses float64 [n]: pool adjacent violators."""
    means: list[float] = []
    counts: list[int] = []
    for step in np.diff(losses, prepend=0.0).tolist():
        means.append(step)
        counts.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            total = means[-2] * counts[-2] + means[-1] * counts[-1]
            counts[-2:] = [counts[-2] + counts[-1]]
            means[-2:] = [total / counts[-1]]
    return np.repeat(means, counts)


def take_out(
    channels: Channels, removed: Collection[int], sites: Sequence[Site], statistics: Statistics | None
) -> dict[str, np.ndarray]:
    """Cut groups out of the model after the channels that stay have made up for them.

    Args:
        channels: of the model; they don't hold any more afterwards.
        removed: the groups.
        sites: of `channels`.
        statistics: what reaches the sites, None to make up for nothing.

    Returns:
        output of a linear layer -> int64 [n], which of its channels it still has.
    """
    keeps = channels.keeps(removed)
    names = graph.Names(channels.model)
    for site in sites:
        kept = keeps(site.read.ids)
        if statistics is not None and site.can_make_up and kept.any() and not kept.all():
            covariance, mean = statistics.covariance(site), statistics.mean(site)
            if covariance is not None and mean is not None:
                _make_up(site, covariance, mean, kept, names)
    left = {}
    for layer in linear_layers(channels.model):
        axes = channels.flow.axes.get(layer.y)
        axis = None if axes is None else axes[layer.channel_axis]
        if axis is not None and not isinstance(axis, Pin) and not keeps(axis).all():
            left[layer.y.name or ""] = np.flatnonzero(keeps(axis))
    cutting.cut(channels, removed)
    return left


def _make_up(site: Site, covariance: np.ndarray, mean: np.ndarray, kept: np.ndarray, names: graph.Names) -> None:
    before = site.weights().astype(np.float64)
    after = elimination.compensated(before, covariance, kept)
    shift = None
    if site.has_bias and site.layer is not None:
        groups, out, _ = site.layer.shape
        lost = ((before - after) * mean[:, None]).reshape(groups, site.channels // groups, out, -1)
        shift = lost.sum(axis=(1, 3)).reshape(-1)
    site.write(after, shift, names)


def composed(before: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return which of the original's channels are left after two cuts, by output of a layer."""
    return dict(before) | {name: before[name][kept] if name in before else kept for name, kept in now.items()}


def chosen(curves: Iterable[Curve], taken: Iterable[int]) -> list[int]:
    """Return the groups that go."""
    return sorted({group for curve, count in zip(curves, taken, strict=True) for group in curve.order[:count]})
