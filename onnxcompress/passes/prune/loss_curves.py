"""Choice of channel groups to remove: curves of loss, group after group, and the shares that meet a budget.

Channels --families--> groups that are read and made by the same nodes
--curves----> the order in which those of a family are removed, and the loss of each of their readers
--allocate--> where to stop on each curve, so that a budget is met at the least loss
--take_out--> the kept ones compensate, and the model is cut
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import onnx_ir as ir

from ...channels import remove as channel_removal
from ...channels.groups import ChannelGroup, Channels
from ...channels.types import Pin
from ...graph import constants as float_constants
from ...graph import edit, query
from ...numerics.linear import elimination
from ...numerics.linear.elimination import Consumer, Curve
from ...ops.linear import linear_layers
from .consumers import ChannelConsumer, Statistics

Norm = Literal["l1", "l2"]

_SAME = 1e-9
"""Part by which prices must rise to differ: above rounding."""
_OVERSHOOT = 0.01
"""Part by which a budget may be missed. Chosen by judgement; not measured."""
_STEPS = 4
"""Steps in which a family is cut, at least. Chosen by judgement; not measured."""


class Meter(Protocol):
    """Counts the quantity of a budget down while groups are removed."""

    @property
    def left(self) -> float:
        """The part that is left."""
        ...

    def saved(self, groups: Sequence[int]) -> float:
        """Return by how much `left` would fall if these groups were removed too."""
        ...

    def allows(self, group: int) -> bool:
        """Return True where something is left of every axis without the group."""
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
        label: the nodes that make them and read them first.
    """

    groups: tuple[int, ...]
    sites: tuple[int, ...]
    label: str


def families(channels: Channels, selects: Callable[[ir.Node], bool]) -> list[Family]:
    """Return the families of the groups that only nodes which may be changed read and make."""
    place = {id(read): index for index, read in enumerate(channels.flow.reads)}
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], list[ChannelGroup]] = {}
    for group in channels.groups:
        if all(selects(use.node) for use in (*group.reads, *group.made)):
            reads = tuple(sorted({place[id(use.at)] for use in group.reads}))
            makers = tuple(sorted({id(use.node) for use in group.made}))
            found.setdefault((reads, makers), []).append(group)
    return [
        Family(groups=tuple(group.id for group in groups), sites=reads, label=_label(groups[0]))
        for (reads, _), groups in found.items()
    ]


def _label(group: ChannelGroup) -> str:
    ends = [query.label(uses[0].node) for uses in (group.made, group.reads) if uses]
    return " -> ".join(ends) or f"group {group.id}"


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
    channels: Channels, family: Family, sites: Sequence[ChannelConsumer], statistics: Statistics, *, most: int
) -> Curve:
    """Return the curve by the loss of the readers when the kept channels compensate for the others."""
    readers = []
    for index in family.sites:
        site = sites[index]
        covariance = statistics.covariance(site)
        weights = site.weights()
        if covariance is None:
            covariance, weights = np.eye(site.channels), np.zeros((site.channels, 1))
        readers.append(Consumer(weights, covariance, compensates=site.can_compensate))
    return elimination.curve(readers, blocks_of(channels, family), most=most)


def magnitude(channels: Channels, family: Family, *, norm: Norm, most: int) -> Curve:
    """Return the curve by the norms of the weights that make the channels, each maker's as parts of their mean."""
    scores = dict.fromkeys(family.groups, 0.0)
    makers: dict[int, dict[int, float]] = {}
    for number in family.groups:
        group = channels.groups[number]
        for use in group.made or group.reads:
            if use.at.weight is not None and float_constants.is_float(use.at.weight):
                found = makers.setdefault(id(use.at), {})
                found[number] = _norm(use.at.weight, use.at.weight_axis, use.indices, norm)
    for found in makers.values():
        mean = sum(found.values()) / len(found) or 1.0
        for number, size in found.items():
            scores[number] += size / mean
    return _ranked(scores, most=most)


def _norm(weight: ir.Value, axis: int, indices: np.ndarray, norm: Norm) -> float:
    array = float_constants.read(weight)
    part = np.take(array, indices[indices < array.shape[axis]], axis=axis).astype(np.float64)
    return float(np.abs(part).sum() if norm == "l1" else np.sqrt(np.square(part).sum()))


def activation(
    channels: Channels, family: Family, sites: Sequence[ChannelConsumer], statistics: Statistics, *, most: int
) -> Curve:
    """Return the curve by the power of each channel in its readers, without compensation."""
    readers = []
    for index in family.sites:
        covariance = statistics.covariance(sites[index])
        known = np.zeros(sites[index].channels) if covariance is None else np.diag(covariance)
        readers.append(Consumer(sites[index].weights(), np.diag(known), compensates=False))
    blocks = blocks_of(channels, family)
    scores = {
        group: sum(reader.cost(block) for reader, block in zip(readers, own, strict=True) if len(block))
        for group, own in blocks.items()
    }
    return _ranked(scores, most=most)


def _ranked(scores: Mapping[int, float], *, most: int) -> Curve:
    """Return the curve of groups with a score each, as parts of the sum of all."""
    order = sorted(scores, key=lambda group: (scores[group], group))[:most]
    total = sum(scores.values()) or 1.0
    return Curve(tuple(order), np.cumsum([scores[group] / total for group in order]).reshape(-1, 1))


def allocate(
    curves: Sequence[Curve], sizes: Sequence[int], meter: Meter, budget: float, *, multiple: int = 1
) -> list[int]:
    """Return how many groups of each curve go so that a budget is met, always those that cost least for what they save.

    Args:
        curves: the curves.
        sizes: groups of each family, of which the curve need not take all.
        meter: fresh; afterwards without the groups that go.
        budget: part of what there was that may be left.
        multiple: the number of groups that stay is a multiple of this; of less where a family is small, or where the
            budget would be missed by far.
    """
    slopes = [_rising(curve.losses.sum(axis=1)) for curve in curves]
    taken = [0] * len(curves)
    steps = [_multiple(size, multiple) for size in sizes]

    def upcoming(index: int) -> tuple[int, ...]:
        start = taken[index]
        count = (sizes[index] - start) % steps[index] or steps[index]
        return curves[index].order[start : start + count] if start + count <= len(curves[index].order) else ()

    def price(index: int) -> float:
        groups, start = upcoming(index), taken[index]
        saved = meter.saved(groups) if groups else 0.0
        return math.inf if saved <= 0 else float(slopes[index][start : start + len(groups)].sum()) / saved

    def take(index: int) -> None:
        for group in upcoming(index):
            meter.remove(group)
            taken[index] += 1

    heap = [(price(index), index) for index in range(len(curves))]
    heapq.heapify(heap)
    too_large: list[int] = []
    while heap and meter.left > budget:
        before, index = heapq.heappop(heap)
        now = price(index)
        if heap and now > heap[0][0] and now > before * (1 + _SAME):
            heapq.heappush(heap, (now, index))
            continue
        groups = upcoming(index)
        if math.isinf(now) or not all(meter.allows(group) for group in groups):
            continue
        if meter.left - meter.saved(groups) < budget - _OVERSHOOT:
            too_large.append(index)
            continue
        take(index)
        heapq.heappush(heap, (price(index), index))
    while meter.left > budget and too_large:  # then in the smallest steps that there are
        index = too_large.pop(0)
        steps[index] = 1
        while meter.left > budget and upcoming(index) and meter.allows(upcoming(index)[0]):
            take(index)
    return taken


def _multiple(size: int, wanted: int) -> int:
    """Return the step in which a family of this size is cut: a few groups are not worth large ones."""
    while wanted > 1 and size < _STEPS * wanted:
        wanted //= 2
    return wanted


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
    channels: Channels, removed: Collection[int], sites: Sequence[ChannelConsumer], statistics: Statistics | None
) -> dict[str, np.ndarray]:
    """Cut groups out of the model after the kept channels compensate for them.

    Args:
        channels: of the model; they don't hold any more afterwards.
        removed: the groups.
        sites: of `channels`.
        statistics: what reaches the sites, None for no compensation.

    Returns:
        output of a linear layer -> int64 [n], which of its channels it still has.
    """
    keeps = channels.keeps(removed)
    names = edit.Names(channels.model)
    for site in sites:
        if statistics is not None and site.can_compensate:
            compensate(site, statistics, keeps(site.read.ids), names)
    left = {}
    for layer in linear_layers(channels.model):
        axes = channels.flow.axes.get(layer.y)
        axis = None if axes is None else axes[layer.channel_axis]
        if axis is not None and not isinstance(axis, Pin) and not keeps(axis).all():
            left[layer.y.name or ""] = np.flatnonzero(keeps(axis))
    channel_removal.cut(channels, removed)
    return left


def own_constants(model: ir.Model, selects: Callable[[ir.Node], bool]) -> None:
    """Give linear layers initializers of their own, full biases included, so that `compensate` replaces no values.

    The channels of values are found before layers compensate; a bias made later would not be cut with them.
    """
    names = edit.Names(model)
    for layer in linear_layers(model):
        if layer.is_fixed or not selects(layer.node):
            continue
        groups, out, _ = layer.shape
        bias = layer.bias_value
        if layer.has_bias and (bias is None or not _is_own(bias, groups * out)):
            stored = layer.bias()
            layer.with_weights(None, np.zeros(groups * out, np.float32) if stored is None else stored, names)
        if len(layer.weight.uses()) == 1 and not layer.weight.is_initializer():
            layer.with_weights(layer.matrix(), None, names)


def _is_own(value: ir.Value, size: int) -> bool:
    is_alone = value.is_initializer() and len(value.uses()) == 1 and not value.is_graph_output()
    return is_alone and math.prod(float_constants.dims(value)) == size


def compensate(site: ChannelConsumer, statistics: Statistics, kept: np.ndarray, names: edit.Names) -> None:
    """Let the kept channels, bool [channels], compensate for the others, whose weights become zero."""
    covariance, mean = statistics.covariance(site), statistics.mean(site)
    if covariance is None or mean is None or kept.all() or not kept.any():
        return
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


def uniform(
    curves: Sequence[Curve], sizes: Sequence[int], meter: Meter, budget: float, *, multiple: int = 1
) -> list[int]:
    """Return how many groups of each curve go so that the budget is met and all lose the same share, about.

    Args:
        curves: the curves.
        sizes: groups of each family.
        meter: fresh; afterwards without the groups that go.
        budget: part of what there was that may be left.
        multiple: as of `allocate`.
    """
    taken = [0] * len(curves)
    steps = [_multiple(size, multiple) for size in sizes]
    for percent in range(1, 101):
        for index, (curve, size) in enumerate(zip(curves, sizes, strict=True)):
            stay = -(-size * (100 - percent) // 100)
            goes = min(size - -(-stay // steps[index]) * steps[index], len(curve.order))
            while meter.left > budget and taken[index] < goes and meter.allows(curve.order[taken[index]]):
                meter.remove(curve.order[taken[index]])
                taken[index] += 1
        if meter.left <= budget:
            break
    return taken


def chosen(curves: Iterable[Curve], taken: Iterable[int]) -> list[int]:
    """Return the groups that go."""
    return sorted({group for curve, count in zip(curves, taken, strict=True) for group in curve.order[:count]})
