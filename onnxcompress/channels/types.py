"""Values of the channel engine: ids, pins, and what a node reads, makes and multiplies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

Ids = np.ndarray
"""int64 [n]: the channel id of each index of an axis."""
FIRST_WHERE = 9
"""Opset from which a computed number can be overwritten."""
ITSELF = -1
"""The port of a `Read` of what the node has made itself: the state of a recurrent layer, queries and keys."""


@dataclass(frozen=True, eq=False)
class Pin:
    """Reason why indices of an axis can't be removed, and the node (or graph input) where that was found.

    `by_nature`: such an axis is never pruned, in any graph (positions, kernels, a single index).
    """

    where: str
    reason: str
    by_nature: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


Axis = Ids | Pin
"""The channels of one axis of a value, or why they can't be removed."""


class UnfollowedError(Exception):
    """A node whose channels can't be followed; the message is the reason, for a report."""


@dataclass(frozen=True, eq=False)
class Read:
    """A node sums over an axis of what it reads through `port`; `weight` is the constant that it multiplies with.

    `weight` is None where that is a computed value; `weight_axis` is the axis of it that is summed over.
    """

    node: ir.Node
    port: int
    axis: int
    ids: Ids
    weight: ir.Value | None = None
    weight_axis: int = 0


@dataclass(frozen=True, eq=False)
class Made:
    """A node makes the channels of an axis of its first output; see `Read` for `weight`."""

    node: ir.Node
    axis: int
    ids: Ids
    weight: ir.Value | None = None
    weight_axis: int = 0


@dataclass(frozen=True, eq=False)
class Product:
    """Each id of `flat` is removed with any of the ids beside it in `factors`; all are int64 [n]."""

    flat: Ids
    factors: tuple[Ids, ...]


@dataclass(frozen=True, eq=False)
class Cost:
    """A share of a node's MACs that is proportional to the number of indices left in each of the axes."""

    node: ir.Node
    share: float
    axes: tuple[Ids, ...]
    pins: tuple[Pin, ...] = ()
