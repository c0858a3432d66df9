"""Which reductions go together: what may be lost is shared out between kinds, by what each of them lost alone.

    channels cut to .84, .77, .71 ...   |
    blocks dropped to .85 ...           |--allocate--> one level of each kind, or none of it
    layers made thin to .6 ...          |

Losses of different kinds are taken to add up, and what they leave of size and time to multiply. Both are guesses: what
comes out is built and measured like anything else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...numerics.optimization.allocation import allocate
from .build import PassCall

_FIRST = 0.5
_STEP = 0.5**0.5
_LEAST = 0.08
_NEAR = 1.15
"""Parts that are kept count as the same where they differ by less."""


@dataclass(frozen=True)
class Level:
    """A reduction that was tried alone.

    Args:
        step: how it is done.
        cost: what is left of what is to be small, as a part: more than 0.
        lost: what it loses.
    """

    step: PassCall
    cost: float
    lost: float


def shared_out(kinds: Sequence[Sequence[Level]], most: float) -> tuple[Level, ...]:
    """Return the levels, one of a kind at most, that leave least while they lose no more than `most` together."""
    kinds = [levels for levels in kinds if levels]
    if not kinds or most <= 0:
        return ()
    lost = [[0.0, *(max(level.lost, 0.0) / most for level in levels)] for levels in kinds]
    least = math.log(min(level.cost for levels in kinds for level in levels))
    left = [[-least, *(math.log(level.cost) - least for level in levels)] for levels in kinds]
    taken = allocate(lost, left, 1.0)
    assert taken is not None  # nothing of anything loses nothing
    return tuple(levels[at - 1] for levels, at in zip(kinds, taken, strict=True) if at)


@dataclass(frozen=True)
class Halving:
    """One step: `keep` is tried, `good` is the least part that is known to be good, `bad` the largest that is not."""

    keep: float = _FIRST
    good: float = 1.0
    bad: float = 0.0

    def after(self, *, is_good: bool) -> Halving | None:
        """Return the next step, None where there is nothing left to find out."""
        now = replace(self, good=self.keep) if is_good else replace(self, bad=self.keep)
        keep = now.good * _STEP if now.bad == 0 else (now.good * now.bad) ** 0.5
        if keep < _LEAST or (now.bad and now.good / now.bad < _NEAR):
            return None
        return replace(now, keep=round(keep, 4))
