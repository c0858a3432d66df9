"""Minimum cut: binary choices that cost less where neighbours agree, at the least total cost.

    E(x) = sum_i c_i(x_i) + sum_ij w_ij [x_i = 1, x_j = 0],   w_ij >= 0

is a regular function of binary variables, so that a minimum cut finds its minimum exactly (Kolmogorov and Zabih,
IEEE PAMI 26(2), 2004, theorem 4.1): the source is 1, the sink is 0, and an edge is cut where its tail is
on the source's side and its head is not.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

_MOST = 1 << 30
"""Bound of the scaled costs, which scipy wants as 32-bit integers: all finite ones together become about half of it."""


class Choices:
    """Collects variables and costs; all costs are non-negative."""

    def __init__(self) -> None:
        self._count = 0
        self._edges: dict[tuple[int, int], float] = defaultdict(float)

    def variable(self, *, cost_yes: float = 0.0, cost_no: float = 0.0) -> int:
        """Add a choice and return its number."""
        number = self._count
        self._count += 1
        self.add(number, cost_yes=cost_yes, cost_no=cost_no)
        return number

    def add(self, variable: int, *, cost_yes: float = 0.0, cost_no: float = 0.0) -> None:
        """Add to the cost of a choice by itself; infinite for a forbidden one."""
        if cost_no:
            self._edges[_SOURCE, variable] += cost_no
        if cost_yes:
            self._edges[variable, _SINK] += cost_yes

    def split(self, first: int, second: int, cost: float) -> None:
        """Add a cost that is paid where `first` is yes and `second` is no; infinite: first implies second."""
        if cost and first != second:
            self._edges[first, second] += cost

    def solve(self) -> np.ndarray:
        """Return the cheapest choices, bool [variables]; of equal ones that with the fewest yes."""
        source, sink = self._count, self._count + 1
        finite = sum(cost for cost in self._edges.values() if np.isfinite(cost))
        scale = (_MOST / 2) / finite if finite > 0 else 1.0
        rows, columns, capacities = [], [], []
        for (tail, head), cost in self._edges.items():
            rows.append(source if tail == _SOURCE else tail)
            columns.append(sink if head == _SINK else head)
            capacities.append(round(cost * scale) if np.isfinite(cost) else _MOST)
        size = self._count + 2
        graph = scipy.sparse.csr_matrix((np.asarray(capacities, np.int32), (rows, columns)), (size, size))
        residual = graph - maximum_flow(graph, source, sink).flow
        residual.data = np.maximum(residual.data, 0)
        residual.eliminate_zeros()
        chosen = np.zeros(size, bool)
        chosen[breadth_first_order(residual, source, return_predecessors=False)] = True
        return chosen[: self._count]


_SOURCE, _SINK = -1, -2
