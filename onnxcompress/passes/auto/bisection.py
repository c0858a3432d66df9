"""How much to keep next: ever less while that is good, then halfway between the last good part and the first bad."""

from __future__ import annotations

from dataclasses import dataclass, replace

_FIRST = 0.5
_STEP = 0.5**0.5
_LEAST = 0.08
_NEAR = 1.15
"""Parts that are kept count as the same where they differ by less."""


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
