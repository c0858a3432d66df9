"""Count of what remains when channels are removed: parameters, MACs, and axes that must not become empty."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from .solve import incidences
from .types import Axis, Ids, Pin


@dataclass(frozen=True, eq=False)
class Amount:
    """A number that is proportional to what is left of each of some axes: elements of a constant, or MACs of a node."""

    where: str
    number: float
    axes: tuple[Axis, ...]

    @property
    def free(self) -> list[Ids]:
        """The axes that have ids."""
        return [axis for axis in self.axes if not isinstance(axis, Pin)]


class ChannelCount:
    """Counts down parameters and MACs as groups are taken out; made by `Channels.tally`.

    Args:
        members: bool [classes, groups], the classes removed with each group.
        classes: int64 [ids].
        axes: every axis that must keep an index.
        sizes, costs: what parameters and MACs are made of.
    """

    def __init__(
        self,
        members: sparse.csr_array,
        classes: Ids,
        axes: Sequence[Ids],
        sizes: Sequence[Amount],
        costs: Sequence[Amount],
    ) -> None:
        self._members = sparse.csc_array(members)
        self._removed = np.zeros(members.shape[0], bool)
        arrays = {id(ids): ids for ids in axes}
        for amount in (*sizes, *costs):
            arrays.update((id(ids), ids) for ids in amount.free)
        place = {key: index for index, key in enumerate(arrays)}
        self._incidence = sparse.csc_array(incidences(list(arrays.values()), classes, members.shape[0]))
        self._lengths = np.array([len(ids) for ids in arrays.values()], np.int64)
        self._left = self._lengths.copy()
        self._amounts = [(each, [place[id(ids)] for ids in each.free]) for each in (*sizes, *costs)]
        self._is_cost = [False] * len(sizes) + [True] * len(costs)
        self._now = np.array([each.number for each, _ in self._amounts], float)
        self._of_axis: defaultdict[int, list[int]] = defaultdict(list)
        for index, (_, numbers) in enumerate(self._amounts):
            for number in dict.fromkeys(numbers):
                self._of_axis[number].append(index)
        self._totals = {
            is_cost: float(self._now[np.array(self._is_cost, bool) == is_cost].sum()) for is_cost in (False, True)
        }

    @property
    def parameters(self) -> int:
        """Elements of constants that are left."""
        return round(self._totals[False])

    @property
    def costs(self) -> float:
        """The same as `macs`, not rounded: what is left where MACs have been weighed."""
        return self._totals[True]

    @property
    def macs(self) -> int:
        """Multiply-accumulates that are left, at the feed's shapes."""
        return round(self._totals[True])

    def allows(self, group: int) -> bool:
        """Say whether something is left of every axis when the group is removed too."""
        axes, counts, _ = self._lost(group)
        return bool((self._left[axes] > counts).all())

    def saved(self, group: int) -> tuple[float, float]:
        """Return how many parameters and MACs would go with the group now."""
        axes, counts, _ = self._lost(group)
        lost = dict(zip(axes.tolist(), counts.tolist(), strict=True))
        found = [0.0, 0.0]
        for index in {index for axis in lost for index in self._of_axis[axis]}:
            amount, numbers = self._amounts[index]
            left = self._left[numbers] - [lost.get(number, 0) for number in numbers]
            now = amount.number * float(np.prod(left / self._lengths[numbers]))
            found[self._is_cost[index]] += float(self._now[index]) - now
        return found[0], found[1]

    def remove(self, group: int) -> None:
        """Remove a group; does nothing when it is removed already."""
        axes, counts, classes = self._lost(group)
        self._removed[classes] = True
        self._left[axes] -= counts
        for index in sorted({index for axis in axes.tolist() for index in self._of_axis[axis]}):
            amount, numbers = self._amounts[index]
            now = amount.number * float(np.prod(self._left[numbers] / self._lengths[numbers]))
            self._totals[self._is_cost[index]] += now - self._now[index]
            self._now[index] = now

    def _lost(self, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which axes lose how many indices when the group is removed, and the classes removed."""
        start, stop = self._members.indptr[group : group + 2]
        classes = self._members.indices[start:stop]
        classes = classes[~self._removed[classes]]
        lost = self._incidence[:, classes].tocoo()
        axes, inverse = np.unique(lost.row, return_inverse=True)
        return axes, np.bincount(inverse, weights=lost.data, minlength=len(axes)).astype(np.int64), classes
