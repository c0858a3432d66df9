"""Chooses among measured candidates, and leaves out what hurts most until a limit is met.

    candidates --trial--> allowed? --cost--> the least; within 5% of it, the one that loses least

All of it is decided by numbers that a `Judge` measured: nothing here knows what a candidate is made of.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import onnx_ir as ir

from ..base.clock import Clock
from ..core import Candidate, Judge, Prefer, Trial
from .effort import SearchEffort

_SAMPLES = 8
"""Held-out samples on which the error of one site alone is measured: errors differ by far more than samples do."""
_GROUPS = 8
"""Groups of sites whose errors are measured at a time: one by one, a detector of 64 layers took 64 quantized models
where groups of groups take at most 25. Chosen by judgement; not measured."""
_LEVELS = 2
"""Times that groups are divided. Chosen by judgement; not measured."""
EQUAL = 1.05
"""Costs and times that differ by less count as equal: measured times are not sharper."""


SomeCandidate = TypeVar("SomeCandidate", bound=Candidate)


def cost(trial: Trial, prefer: Prefer) -> float:
    """Return what is to be least: size ratio times latency ratio, or one of them; a time that is not known is 1."""
    latency = trial.latency_ratio or 1.0
    return {"balanced": trial.size_ratio * latency, "speed": latency, "size": trial.size_ratio}[prefer]


def objection(trial: Trial, prefer: Prefer, limit: float | None) -> str | None:
    """Return why a candidate may not be the result, None where it may."""
    if limit is not None and trial.limited_drop is None:
        return "no output can be scored, so nothing shows that the loss is within the limit"
    if limit is not None and trial.limited_drop is not None and trial.limited_drop > limit:
        return f"the loss is {trial.limited_drop:.4g}, more than {limit:g}"
    if prefer != "size" and trial.latency_ratio is not None and _is_slower(trial, trial.latency_ratio):
        return f"it is slower than the original: {trial.latency_ratio:.2f} times its time"
    return None


def _is_slower(trial: Trial, ratio: float) -> bool:
    """Noise refuses nothing: on a busy core the ratio of two runs of 20 us was anything from .9 to 1.2."""
    return ratio > EQUAL if trial.slower is None else trial.slower


def ranked(candidates: Sequence[SomeCandidate], prefer: Prefer, limit: float | None) -> list[SomeCandidate]:
    """Return the candidates that may be the result, best first.

    Of those whose costs are within 5% of the least, the one with the least divergence comes first: its variance is far
    less than that of the drop. Of equals, the one that was given first. Where times are wanted and not known, they come
    in the order in which they were given.
    """
    rest = [c for c in candidates if objection(c.trial, prefer, limit) is None]
    if prefer != "size" and any(c.trial.latency_ratio is None for c in rest):
        return rest
    found: list[SomeCandidate] = []
    while rest:
        least = min(cost(c.trial, prefer) for c in rest)
        near = [c for c in rest if cost(c.trial, prefer) <= least * EQUAL]
        first = min(near, key=lambda c: (noise(c.trial), candidates.index(c)))
        found.append(first)
        rest.remove(first)
    return found


Marked = TypeVar("Marked")


def front(candidates: Sequence[tuple[Marked, Trial]]) -> list[Marked]:
    """Return those that no other one beats in size, time or drop without being worse in another of the three.

    Of candidates with the same figures the first is returned. What was not measured counts as no different from the
    original.
    """
    figures = [(t.bytes, t.latency_ratio or 1.0, max(t.drop or 0.0, 0.0)) for _, t in candidates]
    return [
        candidates[i][0]
        for i, mine in enumerate(figures)
        if not any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and (other != mine or j < i)
            for j, other in enumerate(figures)
            if j != i
        )
    ]


def figures(trial: Trial) -> str:
    """Return what was measured, in words."""
    parts = [f"{trial.size_ratio:.3f} of the size"]
    if trial.latency_ratio is not None:
        parts.append(f"{trial.latency_ratio:.2f} of the time")
    if trial.drop is not None:
        parts.append(f"drop {trial.drop:.4f}")
    return ", ".join(parts)


def noise(trial: Trial) -> float:
    """Return the divergence of the outputs, 0 where none is known."""
    return trial.divergence or 0.0


def least_left_out(
    build: Callable[[frozenset[str]], ir.Model],
    sites: Mapping[str, float],
    judge: Judge,
    limit: float,
    *,
    clock: Clock | SearchEffort = Clock(),  # noqa: B008 - without a limit it has no state
    progress: Callable[[str, Sequence[frozenset[str]]], Iterable[frozenset[str]]] = lambda _, items: items,
) -> frozenset[str] | None:
    """Return the sites to leave out so that the score stays within a limit, as few and as cheap ones as it takes.

    The error that a group of neighbours makes alone is measured on the model's output; those with the most error for
    what they save are left out first, and how many of them it takes is found by bisection on the score itself. The
    same is then done with smaller groups of what was left out. Up to eight sites are measured one by one.

    Args:
        build: makes the model with all sites but the given ones.
        sites: name -> what leaving it in saves (MACs, bytes, microseconds), in the order of the graph.
        judge: scores models.
        limit: most that the score may fall.
        clock: when it has to end.
        progress: wraps the loop over sites.

    Returns:
        the names; None where the limit is not met with one group alone, or the time is over before it is known.
    """

    def meets(left_out: frozenset[str]) -> bool:
        drop = judge.score(build(left_out)).limited_drop
        return drop is not None and drop <= limit

    if meets(frozenset()):
        return frozenset()
    everything, questioned = frozenset(sites), list(sites)
    found: frozenset[str] | None = None
    for _ in range(_LEVELS):
        groups = _neighbours(questioned)
        errors = []
        for group in progress("Measuring sensitivity", groups):
            if clock.is_over:
                return found
            errors.append(noise(judge.score(build(everything - group), most=_SAMPLES)))
        worth = [sum(sites[name] for name in group) for group in groups]
        order = sorted(range(len(groups)), key=lambda i: (-errors[i] / max(worth[i], math.ulp(1.0)), i))
        low, high = 0, len(order) if found is not None else len(order) - 1
        if high < 1 or (found is None and not meets(_joined(groups, order[:high]))):
            return None
        while high - low > 1 and not clock.is_over:
            middle = (low + high) // 2
            low, high = (low, middle) if meets(_joined(groups, order[:middle])) else (middle, high)
        found = _joined(groups, order[:high])
        if all(len(group) == 1 for group in groups):
            break
        questioned = [name for name in questioned if name in found]
    return found


def _neighbours(names: Sequence[str]) -> list[frozenset[str]]:
    """Return names in groups of neighbours, as even as can be."""
    count = min(len(names), _GROUPS)
    edges = [len(names) * index // count for index in range(count + 1)]
    return [frozenset(names[a:b]) for a, b in itertools.pairwise(edges)]


def _joined(groups: Sequence[frozenset[str]], chosen: Iterable[int]) -> frozenset[str]:
    return frozenset().union(*(groups[index] for index in chosen))
