"""Split samples into those to learn from and those held out to choose and accept by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core import Feed
from ..data import feeds as feed_facts
from ..data.feeds import Lazy

_EVERY_OF_MANY, _EVERY_OF_FEW = 8, 4
"""One in eight samples is held out of many for training, one in four of few. Chosen by judgement; not measured."""
_FEW = 512
"""Fewer samples than this are few. Chosen by judgement; not measured."""
_EVERY_OF_REFIT = 5
"""One feed in five is held out for a refit. Chosen by judgement; not measured."""


def commonest_shape(feeds: Sequence[Feed]) -> list[int]:
    """Return the indices of the feeds with the commonest shapes and dtypes."""
    by_kind: dict[tuple[Any, ...], list[int]] = {}
    for index, feed in enumerate(feeds):
        key = tuple(
            sorted((name, dims, np.asarray(feed[name]).dtype.str) for name, dims in feed_facts.dims(feed).items())
        )
        by_kind.setdefault(key, []).append(index)
    return max(by_kind.values(), key=len, default=[])


def held_out_of(indices: Sequence[int]) -> Sequence[int]:
    """Return those of samples of one shape that training holds out."""
    every = _EVERY_OF_FEW if len(indices) < _FEW else _EVERY_OF_MANY
    return indices[every - 1 :: every]


def divided(feeds: Sequence[Feed]) -> tuple[Sequence[Feed], Sequence[Feed] | None]:
    """Return the feeds that may be learnt from before `distill` gets all of them, and those that it judges by.

    A model that has seen the latter could only seem to get worse. None where there are too few to hold any out.
    """
    held_out = held_out_of(commonest_shape(feeds))
    if not held_out:
        return feeds, None
    rest = [index for index in range(len(feeds)) if index not in set(held_out)]
    return Lazy(rest, feeds.__getitem__), Lazy(held_out, feeds.__getitem__)


def divided_for_refit(feeds: Sequence[Feed]) -> tuple[list[Feed], list[Feed]]:
    """Return the feeds to solve from and every fifth one, or one of fewer, to choose by."""
    every = min(_EVERY_OF_REFIT, max(2, len(feeds)))
    is_held_out = [number % every == every - 1 for number in range(len(feeds))]
    return (
        [feed for feed, held_out in zip(feeds, is_held_out, strict=True) if not held_out],
        [feed for feed, held_out in zip(feeds, is_held_out, strict=True) if held_out],
    )


def joined(feeds: Sequence[Feed]) -> Feed:
    """Return feeds of one shape as one batch."""
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
