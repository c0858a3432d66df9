"""Multiple-choice knapsack: one option for each of many items, with the least sum of losses within a budget."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.sparse

_NODES = 20_000
"""Nodes of the search tree after which the best solution so far is taken: a limit on time would not be reproducible.
Chosen by judgement; not measured."""
_GAP = 1e-4
"""Relative gap to the optimum at which the search ends. Chosen by judgement; not measured."""


def allocate(costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]], budget: float) -> list[int] | None:
    """Choose an option for each item by integer programming (solved by HiGHS).

    Args:
        costs: for each item the cost of each of its options, in bytes, MACs or microseconds.
        losses: for each item the loss of each of its options; losses of different items add up.
        budget: most total cost.

    Returns:
        the index of each item's option; None where even the cheapest options cost more than the budget.
    """
    if sum(min(each) for each in costs) > budget:
        return None
    sizes = [len(each) for each in costs]
    starts = np.cumsum([0, *sizes])
    cost, loss = (np.concatenate([np.asarray(each, np.float64) for each in table]) for table in (costs, losses))
    scale = max(float(loss.max(initial=0.0)), float(np.finfo(float).tiny))
    items = np.repeat(np.arange(len(sizes)), sizes)
    once = scipy.sparse.csr_array((np.ones(len(cost)), (items, np.arange(len(cost)))), shape=(len(sizes), len(cost)))
    found = scipy.optimize.milp(
        loss / scale,
        constraints=[
            scipy.optimize.LinearConstraint(once, 1, 1),
            scipy.optimize.LinearConstraint(cost[None, :] / max(budget, 1.0), -np.inf, budget / max(budget, 1.0)),
        ],
        integrality=np.ones(len(cost)),
        bounds=scipy.optimize.Bounds(0, 1),
        options={"node_limit": _NODES, "mip_rel_gap": _GAP},
    )
    if found.x is None:
        return [int(np.argmin(each)) for each in costs]
    return [int(np.argmax(found.x[start:stop])) for start, stop in itertools.pairwise(starts)]
