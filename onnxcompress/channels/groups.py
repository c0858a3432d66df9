"""Coupled channels of a graph: indices of constants to remove together, who reads and makes them, what is kept, why.

    find_groups(model, feed) -> Channels: groups, keeps(removed) -> remove.cut / remove.masked
                                          tally() -> parameters and MACs left, group after group

A group is the smallest set of indices that can be taken out of a model. Two groups are independent; an index may be
in two (dimension 3 of head 1 is removed with the head, and with dimension 3 of all heads).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from ..graph import query
from ..ops import table as ops
from ..shapes import count as counting
from . import trace
from .count import Amount, ChannelCount
from .relations import Relations
from .solve import Solved, solve
from .types import Axis, Cost, Ids, Made, Pin, Read

if TYPE_CHECKING:
    import onnx_ir as ir

_EXAMPLES = 3
"""Nodes that a report names for each reason at most."""


@dataclass(frozen=True, eq=False)
class Slice:
    """Indices of one axis of a constant."""

    value: ir.Value
    axis: int
    indices: Ids


@dataclass(frozen=True, eq=False)
class Use:
    """A node that reads or makes channels of a group: `indices` of the axis that `at` names.

    For a `Read` the axis is one of the node's input, and of `at.weight` where that is a constant; for a `Made` it is
    one of the node's output, and of `at.weight`.
    """

    at: Read | Made
    indices: Ids

    @property
    def node(self) -> ir.Node:
        """The node that reads or makes the channels."""
        return self.at.node


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Coupled channels that must be removed together.

    Args:
        id: its place in `Channels.groups`.
        slices: indices of constants that are removed.
        reads: layers that sum over channels of the group: where its loss is felt and can be compensated.
        made: layers that make channels of the group.
        inexact: nodes whose result for other channels changes too (statistics of a normalisation); empty where
            taking the group out equals zeroing it at all reads.
        parameters: constant elements removed when it alone is taken out.
        macs: multiply-accumulates removed when it alone is taken out, at the feed.
    """

    id: int
    slices: tuple[Slice, ...]
    reads: tuple[Use, ...]
    made: tuple[Use, ...]
    inexact: tuple[ir.Node, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Kept:
    """Elements and MACs that one reason keeps from being removed."""

    reason: str
    parameters: int
    macs: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Prunable:
    """Part of a model that channel pruning can reach, in one group or many; `kept` says what keeps the rest.

    Args:
        parameters: all elements of constants.
        parameters_cut: those in a row, column or slice that can be removed.
        parameters_exact: the part of them for which that is exact.
        macs, macs_cut, macs_exact: the same of multiply-accumulates.
        groups: number of groups.
        kept: reasons, those that keep the most parameters first.
    """

    parameters: int
    parameters_cut: int
    parameters_exact: int
    macs: int
    macs_cut: int
    macs_exact: int
    groups: int
    kept: tuple[Kept, ...]


class Channels:
    """The groups of one model; made by `find_groups`. It holds until the model is edited."""

    def __init__(self, model: ir.Model, flow: Relations, solved: Solved) -> None:
        self.model = model
        self._flow = flow
        self._solved = solved
        self.constants: Mapping[ir.Value, list[Axis]] = flow.constants
        """The axes of every constant that is followed."""
        entries = solved.removed_with.tocoo()
        carried = np.zeros(solved.removed_with.shape[0], bool)
        for ids in (axis for axes in self.constants.values() for axis in axes if not isinstance(axis, Pin)):
            carried[solved.classes[ids]] = True
        atoms = np.unique(entries.col[carried[entries.row]])
        number = np.full(solved.removed_with.shape[1], -1)
        number[atoms] = np.arange(len(atoms))
        there = number[entries.col] >= 0
        self.members = sparse.csr_array(
            (np.ones(int(there.sum()), bool), (entries.row[there], number[entries.col[there]])),
            shape=(solved.removed_with.shape[0], len(atoms)),
        )
        """bool [classes, groups]: the classes removed with each group."""

    def __len__(self) -> int:
        return int(self.members.shape[1])

    @property
    def flow(self) -> Relations:
        """Result of the walk: fixes, reads, axes of every value."""
        return self._flow

    def removed_classes(self, removed: Collection[int]) -> np.ndarray:
        """Return bool [classes], the classes removed with these groups."""
        chosen = np.zeros(len(self), np.int64)
        chosen[list(removed)] = 1
        return np.asarray(self.members.astype(np.int64) @ chosen) > 0

    def keeps(self, removed: Collection[int]) -> Callable[[Ids], np.ndarray]:
        """Return the function that says of ids int64 [n] which stay, bool [n], when these groups are taken out."""
        lost = self.removed_classes(removed)
        return lambda ids: ~lost[self._solved.classes[ids]]

    def groups_of(self, ids: Ids) -> list[tuple[int, Ids]]:
        """Return (group, indices) of an axis for every group that has some of it."""
        rows = self._solved.classes[ids]
        first, counts = self.members.indptr[rows], np.diff(self.members.indptr)[rows]
        indices = np.repeat(np.arange(len(ids)), counts)
        within = np.arange(len(indices)) - np.repeat(np.cumsum(counts) - counts, counts)
        groups = self.members.indices[np.repeat(first, counts) + within]
        order = np.lexsort((indices, groups))
        groups, indices = groups[order], indices[order]
        starts = np.flatnonzero(np.diff(groups, prepend=-1))
        return [(int(groups[start]), part) for start, part in zip(starts, np.split(indices, starts[1:]), strict=False)]

    @cached_property
    def groups(self) -> list[ChannelGroup]:
        """All groups, in the order of the graph."""
        count = len(self)
        slices: list[list[Slice]] = [[] for _ in range(count)]
        reads: list[list[Use]] = [[] for _ in range(count)]
        made: list[list[Use]] = [[] for _ in range(count)]
        inexact: list[dict[ir.Node, None]] = [{} for _ in range(count)]
        for value, axes in self.constants.items():
            for place, axis in enumerate(axes):
                if not isinstance(axis, Pin):
                    for group, indices in self.groups_of(axis):
                        slices[group].append(Slice(value, place, indices))
        for uses, found in ((self._flow.reads, reads), (self._flow.made, made)):
            for use in uses:
                for group, indices in self.groups_of(use.ids):
                    found[group].append(Use(use, indices))
        for ids, node in self._flow.inexact:
            for group, _ in self.groups_of(ids):
                inexact[group][node] = None
        parameters, macs = self._alone(self._sizes), self._alone(self._costs)
        return [
            ChannelGroup(
                id=i,
                slices=tuple(slices[i]),
                reads=tuple(reads[i]),
                made=tuple(made[i]),
                inexact=tuple(inexact[i]),
                parameters=round(parameters[i]),
                macs=round(macs[i]),
            )
            for i in range(count)
        ]

    def _alone(self, amounts: Sequence[Amount]) -> np.ndarray:
        """Return float [groups], the amount removed with each group alone."""
        found = np.zeros(len(self))
        for each in amounts:
            left: dict[int, float] = {}
            for ids in each.free:
                for group, indices in self.groups_of(ids):
                    left[group] = left.get(group, 1.0) * (1 - len(indices) / len(ids))
            for group, share in left.items():
                found[group] += each.number * (1 - share)
        return found

    @cached_property
    def _sizes(self) -> list[Amount]:
        """Parameters, tensor by tensor, as `stats.parameters` counts them."""
        unread = Pin("graph", "it is not read where channels are followed")
        return [
            Amount(str(value.name), count, tuple(self.constants.get(value, [unread])))
            for value, _, count in counting.constants(self.model)
            if count
        ]

    @cached_property
    def _costs(self) -> list[Amount]:
        """MACs, node by node, those of the recurrent ones in two parts."""
        of_node: dict[ir.Node, list[Cost]] = {}
        for cost in self._flow.costs:
            of_node.setdefault(cost.node, []).append(cost)
        found: list[Amount] = []
        for node, macs in ops.node_macs(self.model, self._flow.dims):
            where = query.label(node)
            if node not in of_node:
                pin = Pin(where, f"the channels of {node.op_type} are not followed")
                found.append(Amount(where, macs or 0, (pin,)))
            found += [Amount(where, (macs or 0) * c.share, (*c.axes, *c.pins)) for c in of_node.get(node, ())]
        return found

    def tally(self, *, weigh: Callable[[str], float] | None = None) -> ChannelCount:
        """Return a count of what is left, from which groups can be taken one after the other.

        Args:
            weigh: says by what the MACs of a node, by its label, are to be multiplied; None for 1.
        """
        costs = self._costs
        if weigh is not None:
            costs = [Amount(each.where, each.number * weigh(each.where), each.axes) for each in costs]
        axes = [axis for found in self._flow.axes.values() for axis in found if not isinstance(axis, Pin)]
        return ChannelCount(self.members, self._solved.classes, axes, self._sizes, costs)

    def empties(self, removed: Collection[int]) -> list[str]:
        """Return the values of which an axis would have no index left when these groups go."""
        keeps = self.keeps(removed)
        arrays = {
            id(axis): (axis, value)
            for value, axes in self._flow.axes.items()
            for axis in axes
            if not isinstance(axis, Pin)
        }
        return [str(value.name) for axis, value in arrays.values() if not keeps(axis).any()]

    def reach(self) -> Prunable:
        """Say how much of the model channel pruning can reach, and what keeps the rest."""
        inexact = np.zeros(len(self), bool)
        for ids, _ in self._flow.inexact:
            inexact[[group for group, _ in self.groups_of(ids)]] = True
        some, exact = self.removed_classes(range(len(self))), self.removed_classes(np.flatnonzero(~inexact).tolist())
        kept: dict[str, list[tuple[float, float, str]]] = {}
        totals = []
        for place, amounts in enumerate((self._sizes, self._costs)):
            whole = [(each, self._kept(each, some)) for each in amounts]
            for each, left in whole:
                if left:
                    pair = (left, 0.0) if place == 0 else (0.0, left)
                    kept.setdefault(self._why(each), []).append((*pair, each.where))
            total = sum(each.number for each in amounts)
            totals.append(
                (total, total - sum(left for _, left in whole), total - sum(self._kept(a, exact) for a in amounts))
            )
        reasons = [
            Kept(
                reason=reason,
                parameters=round(sum(p for p, _, _ in found)),
                macs=round(sum(m for _, m, _ in found)),
                examples=tuple(dict.fromkeys(where for _, _, where in found))[:_EXAMPLES],
            )
            for reason, found in kept.items()
        ]
        (parameters, cut, sure), (macs, macs_cut, macs_sure) = totals
        return Prunable(
            parameters=round(parameters),
            parameters_cut=round(cut),
            parameters_exact=round(sure),
            macs=round(macs),
            macs_cut=round(macs_cut),
            macs_exact=round(macs_sure),
            groups=len(self),
            kept=tuple(sorted(reasons, key=lambda k: (-k.parameters, -k.macs, k.reason))),
        )

    def blocked(self) -> dict[str, str]:
        """Return name -> reason of the constants of which nothing can be removed."""
        some = self.removed_classes(range(len(self)))
        return {each.where: self._why(each) for each in self._sizes if self._kept(each, some) >= each.number}

    def _kept(self, amount: Amount, lost: np.ndarray) -> float:
        """Return what would be left of an amount if every index went that can."""
        shares = [float((~lost[self._solved.classes[ids]]).mean()) for ids in amount.free]
        return amount.number * math.prod(shares)

    def _why(self, amount: Amount) -> str:
        """Return what keeps (the rest of) an amount, axis by axis; what no graph could cut only where that is all."""
        pins = [axis for axis in amount.axes if isinstance(axis, Pin)]
        for ids in amount.free:
            numbers = self._solved.pins[self._solved.classes[ids]]
            if (numbers >= 0).any():
                pins.append(self._solved.reasons[numbers[numbers >= 0][0]])
        if not pins:
            return "a single number"
        found = [str(pin) for pin in pins if not pin.by_nature] or [pins[0].reason]
        return "; ".join(dict.fromkeys(found))


def find_groups(model: ir.Model, feed: Mapping[str, np.ndarray]) -> Channels:
    """Return the channels of a model whose bodies have no value names in common (`normalize` sees to that).

    Args:
        model: read only; the groups speak of its values and nodes.
        feed: input name -> array; only the shapes count. Sizes that the inputs leave open are resolved at it, and a
            group is found only where it holds at every other feed as well. Larger is better: what has one index at
            the feed is not told apart.
    """
    flow = trace.follow(model, feed)
    return Channels(model, flow, solve(flow))
