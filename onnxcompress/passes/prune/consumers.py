"""Consumers of channels: the nodes that sum over them, with their weights and the statistics of their inputs.

    Channels --sites--> ChannelConsumer (node, weights) --observe--> Statistics --> numerics.elimination

A product of two computed values (queries and keys) is a consumer as well: what is lost is the sum of products of
the removed channels, and nothing can compensate for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...activations import observe
from ...channels.groups import Channels
from ...channels.types import ITSELF, Read
from ...core import Feed
from ...graph import constants as float_constants
from ...graph import edit, query
from ...numerics.linear import elimination
from ...numerics.linear.moments import MOST_COLUMNS, Moments
from ...numerics.linear.patches import choose
from ...ops.linear import LinearLayer, linear_layer

_BATCH = 64
"""Feeds that are joined at most, where the model takes them together. Chosen by judgement; not measured."""
_ROWS_PER_COLUMN = 64
"""Rows for each channel from which a covariance is estimated. Chosen by judgement; not measured."""
_LEAST_ROWS = 16384
"""Rows from which a covariance is estimated, at least. Chosen by judgement; not measured."""


@dataclass(frozen=True, eq=False)
class ChannelConsumer:
    """A node that sums over an axis of what it reads.

    Args:
        read: how it reads.
        layer: the node as a linear layer, None where it is none.
        channels: length of the axis.
    """

    read: Read
    layer: LinearLayer | None
    channels: int

    @property
    def label(self) -> str:
        """The name of the node, with the port where it reads through another than the first."""
        port = self.read.port
        return query.label(self.read.node) + (f":{port}" if port > 0 else "")

    @property
    def values(self) -> list[tuple[str, int]]:
        """The values whose channels are summed over, each with the axis that numbers them."""
        node, read = self.read.node, self.read
        if read.port == ITSELF:
            return [(node.outputs[0].name or "", -1)]
        found = [(_name(node.inputs[read.port]), read.axis)]
        if read.weight is None and len(node.inputs) == 2:
            found.append((_name(node.inputs[1 - read.port]), read.weight_axis))
        return found

    @property
    def can_compensate(self) -> bool:
        """True where its weights can be changed so that other channels compensate for removed ones."""
        weight = self.read.weight
        return self.layer is not None and weight is not None and len(weight.uses()) == 1

    @property
    def has_bias(self) -> bool:
        """True where the layer's bias can take over the constant part of what is lost."""
        return self.layer is not None and self.layer.has_bias

    def weights(self) -> np.ndarray:
        """Return the weights, float32 [channels, outputs]; ones for a product of two computed values."""
        if self.read.weight is None:
            return np.ones((self.channels, 1), np.float32)
        stored = float_constants.read(self.read.weight).astype(np.float32)
        if self.layer is not None:
            matrix = self.layer.matrix()
            groups, out, _ = matrix.shape
            per_group = self.channels // groups
            return matrix.reshape(groups, out, per_group, -1).transpose(0, 2, 1, 3).reshape(self.channels, -1)
        return np.moveaxis(stored, self.read.weight_axis, 0).reshape(self.channels, -1)

    def write(self, weights: np.ndarray, shift: np.ndarray | None, names: edit.Names) -> None:
        """Write weights [channels, outputs] back, and add to the bias what is given for each output channel.

        Raises:
            ValueError: a number is beyond the stored type.
        """
        assert self.layer is not None
        groups, out, columns = self.layer.shape
        parts = weights.reshape(groups, self.channels // groups, out, -1).transpose(0, 2, 1, 3)
        bias = self.layer.bias()
        if shift is not None and (bias is not None or self.layer.has_bias):
            bias = shift + (0 if bias is None else bias)
        self.layer.with_weights(
            np.ascontiguousarray(parts).reshape(groups, out, columns).astype(np.float32),
            None if bias is None else np.asarray(bias, np.float32),
            names,
        )


def _name(value: ir.Value | None) -> str:
    return "" if value is None or value.name is None else value.name


def sites(channels: Channels) -> list[ChannelConsumer]:
    """Return the places where channels are summed over, by the place of their reads in `channels.flow.reads`."""
    found = []
    for read in channels.flow.reads:
        layer = linear_layer(read.node) if read.weight is not None else None
        plain = layer if isinstance(layer, LinearLayer) and layer.weight is read.weight else None
        found.append(ChannelConsumer(read, None if plain is not None and plain.is_fixed else plain, len(read.ids)))
    return found


class _Spread:
    """Sums over the rows of one value along one axis."""

    def __init__(self, axis: int, runs: int, random: np.random.Generator) -> None:
        self._axis = axis
        self._runs = runs
        self._random = random
        self.moments: Moments | None = None

    def update(self, array: np.ndarray) -> None:
        last = np.moveaxis(array, self._axis, -1)
        columns = last.shape[-1]
        if self.moments is None:
            self.moments = Moments(1, columns, is_full=columns <= MOST_COLUMNS)
        count = math.prod(last.shape[:-1])
        most = max(_LEAST_ROWS, _ROWS_PER_COLUMN * columns)
        at = choose(count, max(1, -(-most // self._runs)), self._random)
        self.moments.update(last[np.unravel_index(at, last.shape[:-1])][None])


class _AllConsumers:
    """Passes a value to all that sum along an axis of it."""

    def __init__(self) -> None:
        self.takers: dict[int, _Spread] = {}

    def update(self, array: np.ndarray) -> None:
        for taker in self.takers.values():
            taker.update(array)


class Statistics:
    """Moments of the inputs of consumers in runs on samples; made by `gather`."""

    def __init__(self, found: Mapping[str, _AllConsumers], samples: int) -> None:
        self._found = found
        self._samples = samples

    def is_seen(self, site: ChannelConsumer) -> bool:
        """Return True where a run computed the site."""
        return any(self._moments(*each) is not None for each in site.values)

    def mean(self, site: ChannelConsumer) -> np.ndarray | None:
        """Return the mean of each channel, float64 [channels], None where no run came to the site."""
        moments = self._moments(*site.values[0])
        return None if moments is None else moments.mean()[0]

    def covariance(self, site: ChannelConsumer) -> np.ndarray | None:
        """Return a positive definite covariance, float64 [channels, channels], None where no run came to the site.

        Of a product it is that of the products of channels; where no bias can take the means over, they are in it.
        """
        parts = [self._moments(*each) for each in site.values]
        if any(each is None or each.count < 2 or each.columns != site.channels for each in parts):
            return None
        arrays = [_covariance(each) for each in parts if each is not None]
        if len(arrays) == 2 and parts[0] is not None:
            mean = parts[0].mean()[0]
            return np.asarray((arrays[0] + np.outer(mean, mean)) * arrays[1])
        groups = 1 if site.layer is None else site.layer.groups
        found = elimination.shrunk(arrays[0], self._samples)
        mean = self.mean(site)
        if not site.has_bias and mean is not None:
            found = found + np.outer(mean, mean)
        if groups > 1:
            number = np.arange(site.channels) * groups // site.channels
            found = np.where(number[:, None] == number[None, :], found, 0.0)
        return found

    def _moments(self, name: str, axis: int) -> Moments | None:
        taker = self._found[name].takers.get(axis) if name in self._found else None
        return None if taker is None else taker.moments


def _covariance(moments: Moments) -> np.ndarray:
    """Return the covariance, of which only the diagonal is known where there are too many channels."""
    if moments.xx is not None:
        return np.asarray(moments.covariance()[0])
    return np.eye(moments.columns)


def gather(
    model: ir.Model,
    found: Sequence[ChannelConsumer],
    feeds: Sequence[Feed],
    *,
    state: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: Callable[[str, Sequence[Any]], Iterator[Any]] = lambda _, items: iter(items),
) -> Statistics:
    """Run the model on samples and gather the moments of the inputs of consumers.

    Raises:
        ModelError: the runtime fails.
    """
    joined = feeds if state else observe.batched(model, feeds, _BATCH)
    runs = -(-len(feeds) // observe.joined_size(joined))
    takers: dict[str, _AllConsumers] = {}
    random = np.random.default_rng(seed)
    for site in found:
        for name, axis in site.values:
            takers.setdefault(name, _AllConsumers()).takers.setdefault(axis, _Spread(axis, runs, random))
    takers.pop("", None)
    observe.observe(model, joined, takers, state=state, progress=progress)
    return Statistics(takers, len(feeds))
