"""More samples out of few, for passes that fit weights to what the original gives: nobody has to know the right answer.

    images      moved by a few pixels, every other one mirrored
    mixtures    a x + (1 - a) y of two samples (mixup, Zhang et al. 2018)

The original is asked about every one of them, so a strange sample teaches what the original makes of it, nothing wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core import Feed
from . import feeds as feed_facts

ENOUGH = 512
"""Samples from which on none are added."""
_MIXED = 2
"""Mixtures for each sample."""
_MOVED = 2
"""Pixels that an image is moved at most, in each direction."""
_LEAST_SIDE = 8
"""Length from which on an axis counts as a side of an image."""
_LEAST = 16
"""Samples below which nothing can be learnt of what varies."""


def varied(feeds: Sequence[Feed], *, seed: int, state: Mapping[str, str] | None = None) -> Sequence[Feed]:
    """Return the feeds and variations of them; only the feeds where they are enough, or can't be varied.

    Args:
        feeds: complete feeds; they are varied where all inputs are floats of one shape in all of them.
        seed: of the choice.
        state: input -> output whose value it gets from the run before; then feeds are in an order, and not varied.
    """
    if state or not _LEAST <= len(feeds) < ENOUGH or not _are_alike(feeds):
        return feeds
    random = np.random.default_rng(seed)
    found = [*feeds]
    if any(_sides(array) for array in feeds[0].values()):
        found += [_moved(feed, random) for feed in feeds]
    for _ in range(_MIXED * len(feeds)):
        one, other = (feeds[int(index)] for index in random.integers(0, len(feeds), 2))
        share = np.float32(random.random())
        mixed = {name: (share * one[name] + (1 - share) * other[name]).astype(one[name].dtype) for name in one}
        found.append(_moved(mixed, random))
    return found


def _are_alike(feeds: Sequence[Feed]) -> bool:
    first = feeds[0]
    return all(_is_float_array(array) for array in first.values()) and all(
        np.shape(feed[name]) == np.shape(first[name]) for feed in feeds for name in first
    )


def _is_float_array(value: Any) -> bool:
    return feed_facts.is_array(value) and np.asarray(value).dtype.kind == "f" and np.ndim(value) > 0


def _sides(array: np.ndarray) -> tuple[int, ...]:
    """Return the two axes of an image, none where there is no image."""
    found = tuple(axis for axis in range(1, array.ndim) if array.shape[axis] >= _LEAST_SIDE)
    if array.ndim == 4 and len(found) > 2:
        found = found[1:]  # many channels come first
    return found if array.ndim == 4 and len(found) == 2 else ()


def _moved(feed: Feed, random: np.random.Generator) -> Feed:
    """Return a feed with its images moved, all by the same."""
    steps = tuple(int(step) for step in random.integers(-_MOVED, _MOVED + 1, 2))
    is_mirrored = bool(random.integers(2))
    found = {}
    for name, array in feed.items():
        sides = _sides(array)
        moved = np.roll(array, steps, sides) if sides else array
        found[name] = np.ascontiguousarray(np.flip(moved, sides[-1])) if sides and is_mirrored else moved
    return found
