"""Measured effect of cuts on a model's outputs: a few are tried for each family, and the curve is fitted to them.

predicted (parts of what readers give)   0.03   0.12   0.4
measured (divergence of the outputs)     .001   .007   .054     -->  curve in units of the outputs
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ...channels import groups as channel_engine
from ...channels.groups import Channels
from ...core import Feed
from ...graph import edit
from ...io import model_io
from ...numerics.linear.elimination import Curve
from ...quality.divergence import Divergence
from . import consumers, loss_curves
from .consumers import ChannelConsumer, Statistics
from .loss_curves import Family

CUTS = (0.03, 0.12, 0.4)
"""Predicted losses of a family at which it is tried. Chosen by judgement; not measured."""
ONE_CUT = (0.12,)
"""The same for a plan, which takes a straight line through it: a third of the runs. Chosen by judgement."""
_LEAST = 1e-9
"""Least rise of the divergence from one cut to the next, so that curves rise: above rounding."""


def measured(
    channels: Channels,
    found: Sequence[Family],
    curves: Sequence[Curve],
    sites: Sequence[ChannelConsumer],
    statistics: Statistics,
    divergence: Divergence,
    feed: Feed,
    *,
    cuts: Sequence[float] = CUTS,
    progress: Callable[[str, Sequence[Any]], Iterator[Any]] = lambda _, items: iter(items),
) -> list[Curve]:
    """Return the curves in units of the divergence of the outputs.

    Args:
        channels: of the model, which is left as it is.
        found: families, as many as curves.
        curves: by what the readers lose.
        sites: of the channels.
        statistics: what reaches the sites.
        divergence: from the model itself.
        feed: the one that the channels were found at.
        cuts: predicted losses of a family at which it is tried.
        progress: wraps the loop over the families.
    """
    trial = _ProbeTrial(channels, sites, statistics, divergence, feed)
    result = []
    for index in progress("Probing", range(len(found))):
        family, curve = found[index], curves[index]
        total = curve.losses.sum(axis=1)
        points = [(0.0, 0.0)]
        for wanted in cuts:
            count = min(int(np.searchsorted(total, wanted)) + 1, len(curve.order))
            if count and total[count - 1] > points[-1][0]:
                loss = trial.loss(family, curve.order[:count])
                points.append((float(total[count - 1]), max(loss, points[-1][1] + _LEAST)))
        result.append(Curve(curve.order, _through(points, total)[:, None]))
    return result


def _through(points: Sequence[tuple[float, float]], at: np.ndarray) -> np.ndarray:
    """Return the broken line through the points, continued behind the last one by its slope from the origin."""
    x, y = np.array(points).T
    if len(x) < 2:
        return np.zeros(len(at))
    return np.asarray(np.where(at <= x[-1], np.interp(at, x, y), y[-1] * at / x[-1]))


class _ProbeTrial:
    """Tries cuts on copies of a model."""

    def __init__(
        self,
        channels: Channels,
        sites: Sequence[ChannelConsumer],
        statistics: Statistics,
        divergence: Divergence,
        feed: Feed,
    ) -> None:
        self._channels = channels
        self._sites = sites
        self._statistics = statistics
        self._divergence = divergence
        self._feed = feed

    def loss(self, family: Family, removed: Sequence[int]) -> float:
        """Return how far the outputs go from those of the whole model."""
        inexact = any(self._channels.groups[group].inexact for group in family.groups)
        if inexact or not all(self._sites[index].can_compensate for index in family.sites):
            return self._cut(removed)
        return self._masked(family, removed)

    def _masked(self, family: Family, removed: Sequence[int]) -> float:
        """Zero the weights of the removed channels, which is equivalent; the weights are restored."""
        keeps = self._channels.keeps(removed)
        names = edit.Names(self._channels.model)
        before = []
        for index in family.sites:
            site = self._sites[index]
            assert site.layer is not None
            before.append((site.layer, site.layer.matrix(), site.layer.bias()))
            loss_curves.compensate(site, self._statistics, keeps(site.read.ids), names)
        found = self._divergence.of(self._channels.model)
        for layer, matrix, bias in before:
            layer.with_weights(matrix, bias, names)
        return found

    def _cut(self, removed: Sequence[int]) -> float:
        copy = model_io.clone(self._channels.model)
        own = channel_engine.find_groups(copy, self._feed)
        loss_curves.take_out(own, removed, consumers.sites(own), self._statistics)
        return self._divergence.of(copy)
