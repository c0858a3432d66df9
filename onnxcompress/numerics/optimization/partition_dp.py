"""Partition of a sequence of steps: the memory of every possible part, and dynamic programs over them.

Steps 0 .. n-1 run in order. Each makes values, which live until their last reader has run, and reads weights. A part is
a run of steps [i, j). While it runs it holds its weights, the values made before it that are read from i on (all the
time: the caller keeps its inputs), and its own values that it still needs. Values that later parts read are output as
copies. A part's memory does not depend on the cuts between other steps, which the dynamic program requires (minimax and
additive partition of a sequence: T. H. Cormen et al., Introduction to Algorithms, ch. 14).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Steps:
    """Memory model of a sequence of steps.

    Args:
        count: the number of steps, n.
        made: int64 [values], the step that computes each value; -1 for inputs.
        last: int64 [values], the last step that reads it; n for outputs.
        sizes: float64 [values], in bytes.
        uses: for each weight the steps that read it, ascending.
        weights: float64 [weights], in bytes; a weight that several parts read counts in each.
        inner: float64 [steps], bytes that a step takes besides the values while it runs.
    """

    count: int
    made: np.ndarray
    last: np.ndarray
    sizes: np.ndarray
    uses: Sequence[Sequence[int]]
    weights: np.ndarray
    inner: np.ndarray


@dataclass(frozen=True)
class Table:
    """The memory of every part between two of the cuts.

    Args:
        cuts: int64 [m + 1], the steps before which may be cut, from 0 to n.
        peak: float64 [m, m + 1], bytes of the part from cut a to cut b; infinite unless a < b.
        weights: float64 [m, m + 1], bytes of its weights alone.
        crossing: float64 [m + 1], bytes that cross a cut, computed by a step before it.
    """

    cuts: np.ndarray
    peak: np.ndarray
    weights: np.ndarray
    crossing: np.ndarray


def crossing(steps: Steps, *, inputs: bool) -> np.ndarray:
    """Return the bytes that are computed before and read from each step on: float64 [n + 1].

    Args:
        steps: the sequence.
        inputs: True to count inputs too.
    """
    chosen = np.ones(len(steps.made), bool) if inputs else steps.made >= 0
    first, last, sizes = steps.made[chosen] + 1, steps.last[chosen], steps.sizes[chosen]
    change = np.zeros(steps.count + 2)
    np.add.at(change, first, sizes)
    np.add.at(change, np.maximum(last, first - 1) + 1, -sizes)
    return np.cumsum(change)[: steps.count + 1]


def table(steps: Steps, cuts: np.ndarray) -> Table:
    """Return the memory of every part between two of `cuts` (int64, from 0 to n): O(m n) time, O(m^2) memory."""
    n, m = steps.count, len(cuts) - 1
    live = _live(steps) + steps.inner
    held = crossing(steps, inputs=True)
    order = np.argsort(steps.made, kind="stable")
    reads: list[list[int]] = [[] for _ in range(n)]
    upcoming = [list(reversed(uses)) for uses in steps.uses]
    entering = np.zeros(n)  # weights by the step, from the part's first on, that reads them first
    for weight, uses in enumerate(upcoming):
        if uses:
            entering[uses[-1]] += steps.weights[weight]
        for use in uses:
            reads[use].append(weight)
    ending = np.zeros(n + 1)  # sizes of the values made before the part, by their last reader
    peak, weights = np.full((m, m + 1), np.inf), np.zeros((m, m + 1))
    at = taken = 0
    for a in range(m):
        start = int(cuts[a])
        for step in range(at, start):
            for weight in reads[step]:
                upcoming[weight].pop()
                entering[step] -= steps.weights[weight]
                if upcoming[weight]:
                    entering[upcoming[weight][-1]] += steps.weights[weight]
        at = start
        while taken < len(order) and steps.made[order[taken]] < start:
            value = order[taken]
            ending[steps.last[value]] += steps.sizes[value]
            taken += 1
        before = np.cumsum(ending[::-1])[::-1]  # made before the part and read at this step or later
        inside = np.maximum.accumulate(live[start:] - before[start:n])
        ends = cuts[a + 1 :] - 1
        copied = 2.0 * (held[cuts[a + 1 :]] - before[cuts[a + 1 :]])
        weights[a, a + 1 :] = np.cumsum(entering[start:])[ends - start]
        activations = held[start] + np.maximum(inside[ends - start], copied)
        peak[a, a + 1 :] = weights[a, a + 1 :] + activations
    return Table(cuts, peak, weights, crossing(steps, inputs=False)[cuts])


def parts_within(found: Table, limit: float) -> list[int]:
    """Return the cuts (indices, from 0 to m) that fewest bytes cross, with no part above `limit` bytes.

    Of equally cheap ones those with fewest parts. Empty where there is none.
    """
    m = len(found.cuts) - 1
    best, source = np.full(m + 1, np.inf), np.zeros(m + 1, np.int64)
    best[0] = 0.0
    price = found.crossing + 1.0  # a byte for each cut, so that none is useless
    for b in range(1, m + 1):
        total = np.where(found.peak[:b, b] <= limit, best[:b] + price[:b], np.inf)
        source[b] = np.argmin(total)
        best[b] = total[source[b]]
    return _path([source] * m, m) if np.isfinite(best[m]) else []


def exactly(found: Table, count: int) -> list[int]:
    """Return the cuts into `count` parts (1 to m) with the smallest peak, then with fewest bytes crossing."""
    m = len(found.cuts) - 1
    least = np.full(m + 1, np.inf)
    least[0] = 0.0
    for _ in range(count):
        least = np.maximum(least[:m, None], found.peak).min(axis=0)
    allowed = found.peak <= least[m]
    best = np.full(m + 1, np.inf)
    best[0] = 0.0
    sources = []
    for _ in range(count):
        total = np.where(allowed, (best + found.crossing)[:m, None], np.inf)
        sources.append(total.argmin(axis=0))
        best = total.min(axis=0)
    return _path(sources[::-1], m)


def least_peak(found: Table) -> tuple[float, tuple[int, int]]:
    """Return the smallest budget in bytes that any partition meets, and the steps [i, j) of the part that needs it."""
    m = len(found.cuts) - 1
    least, source = np.zeros(m + 1), np.zeros(m + 1, np.int64)
    for b in range(1, m + 1):
        reached = np.maximum(least[:b], found.peak[:b, b])
        source[b] = len(reached) - 1 - np.argmin(reached[::-1])  # the shortest part of several
        least[b] = reached[source[b]]
    path = _path([source] * m, m)
    a, b = max(itertools.pairwise(path), key=lambda part: found.peak[part])
    return float(least[m]), (int(found.cuts[a]), int(found.cuts[b]))


def thinned(steps: Steps, cuts: np.ndarray, most: int) -> np.ndarray:
    """Return at most about `most` of the cuts: those around the heaviest steps, and the cheapest of each stretch."""
    if len(cuts) <= most:
        return cuts
    price = crossing(steps, inputs=False)
    mass = _live(steps) + steps.inner
    for weight, uses in enumerate(steps.uses):
        mass[list(uses)] += steps.weights[weight]
    heaviest = np.argsort(-mass, kind="stable")[: most // 4]
    low = cuts[np.searchsorted(cuts, heaviest, side="right") - 1]
    high = cuts[np.searchsorted(cuts, heaviest + 1, side="left")]
    stretches = np.array_split(cuts, most // 2)
    cheapest = [stretch[np.argmin(price[stretch])] for stretch in stretches]
    return np.unique(np.concatenate([low, high, cheapest, cuts[[0, -1]]]))


def _live(steps: Steps) -> np.ndarray:
    """Return the bytes that are alive while each step runs, whole sequence in one part: float64 [n]."""
    change = np.zeros(steps.count + 1)
    np.add.at(change, np.maximum(steps.made, 0), steps.sizes)
    np.add.at(change, np.minimum(steps.last, steps.count - 1) + 1, -steps.sizes)
    return np.cumsum(change)[: steps.count]


def _path(sources: Sequence[np.ndarray], end: int) -> list[int]:
    """Follow sources back from the last cut to the first; `sources` are those of the last part, the one before, ..."""
    path = [end]
    for source in sources:
        if path[-1] == 0:
            break
        path.append(int(source[path[-1]]))
    return path[::-1]
