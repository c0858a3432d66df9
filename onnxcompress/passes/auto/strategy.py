"""Combination of reductions: the allowed loss is shared out between kinds, by the loss of each of them alone.

    channels cut to .84, .77, .71 ...   |
    blocks dropped to .85 ...           |--allocate--> one level of each kind, or none of it
    layers factored to .6 ...           |

Losses of different kinds are taken to add up, and their costs to multiply. Both are guesses: the
result is built and measured like any other candidate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...numerics.optimization.allocation import allocate
from .build import PassCall

_FIRST = 0.5
"""Part of the multiplications that is kept first. Chosen by judgement; not measured."""
_STEP = 0.5**0.5
"""Factor to the next part while all are good: two steps halve. Chosen by judgement; not measured."""
_LEAST = 0.08
"""Smallest part that is tried. Chosen by judgement; not measured."""
_NEAR = 1.15
"""Ratio below which two parts count as the same. Chosen by judgement; not measured."""


@dataclass(frozen=True)
class Level:
    """A reduction that was tried alone.

    Args:
        step: the call of its pass.
        cost: part of the original's cost, more than 0.
        lost: its loss.
        allowed: the most that one reduction may lose; None without a limit.
    """

    step: PassCall
    cost: float
    lost: float
    allowed: float | None = None


def shared_out(kinds: Sequence[Sequence[Level]], most: float) -> tuple[Level, ...]:
    """Return the levels, one of a kind at most, with the least cost that lose no more than `most` together."""
    kinds = [levels for levels in kinds if levels]
    if not kinds or most <= 0:
        return ()
    lost = [[0.0, *(max(level.lost, 0.0) / most for level in levels)] for levels in kinds]
    least = math.log(min(level.cost for levels in kinds for level in levels))
    left = [[-least, *(math.log(level.cost) - least for level in levels)] for levels in kinds]
    taken = allocate(lost, left, 1.0) or [0] * len(kinds)
    return tuple(levels[at - 1] for levels, at in zip(kinds, taken, strict=True) if at)


@dataclass(frozen=True)
class Halving:
    """One step: `keep` is tried, `good` is the least part that is known to be good, `bad` the largest that is not."""

    keep: float = _FIRST
    good: float = 1.0
    bad: float = 0.0

    def after(self, *, is_good: bool) -> Halving | None:
        """Return the next step, None where there is nothing left to measure."""
        now = replace(self, good=self.keep) if is_good else replace(self, bad=self.keep)
        keep = now.good * _STEP if now.bad == 0 else (now.good * now.bad) ** 0.5
        if keep < _LEAST or (now.bad and now.good / now.bad < _NEAR):
            return None
        return replace(now, keep=round(keep, 4))
