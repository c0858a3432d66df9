"""Shares the loss that a pipeline may have among its parts: one candidate for each, least bytes within the budget."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PartOption:
    """A candidate of one part: its bytes, and what it alone costs the whole (below zero counts as nothing)."""

    bytes: int
    loss: float


Choice = tuple[int, ...]
"""One option for each part, by its place."""


def choose(options: Sequence[Sequence[PartOption]], budget: float, refused: Collection[Choice] = ()) -> Choice | None:
    """Return the choice of least bytes whose losses add up to the budget at most; None where none is left.

    Losses of parts are taken to add up, which the whole is measured for afterwards: a choice that turned out to be over
    the budget is refused, and so is any that is nowhere gentler. Every combination is tried: both are few.

    Args:
        options: of each part, from the boldest to the gentlest.
        budget: most that may be lost.
        refused: choices that were measured and lost too much.
    """
    best: tuple[float, float, Choice] | None = None
    for choice in itertools.product(*(range(len(each)) for each in options)):
        if any(all(mine <= theirs for mine, theirs in zip(choice, other, strict=True)) for other in refused):
            continue
        taken = [each[place] for each, place in zip(options, choice, strict=True)]
        loss = sum(max(0.0, each.loss) for each in taken)
        key = (float(sum(each.bytes for each in taken)), loss, choice)
        if loss <= budget and (best is None or key < best):
            best = key
    return None if best is None else best[2]
