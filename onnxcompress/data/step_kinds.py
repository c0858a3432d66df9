"""Kinds of steps of a model with a cache: a prompt without a past, one token with a past, and what lies between.

Two feeds are of one kind where every dimension is 0 in both, 1 in both, or more in both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..base import feed_facts
from ..core import Feed

Kind = tuple[tuple[str, tuple[int, ...]], ...]


def cache_inputs(names: Collection[str], known: Collection[str]) -> frozenset[str]:
    """Return the inputs that hold a cache: those that are known to, and those that are called so."""
    return frozenset(name for name in names if name in known or feed_facts.CACHE_NAME.search(name))


def kind(feed: Mapping[str, Any]) -> Kind:
    """Return the kind of a feed."""
    return tuple((name, tuple(min(size, 2) for size in dims)) for name, dims in sorted(feed_facts.dims(feed).items()))


def timed(feeds: Sequence[Feed], caches: Collection[str]) -> tuple[Feed, ...]:
    """Return the feeds that are timed: of the steps with a past that take least the largest, and the largest prompt.

    Args:
        feeds: samples.
        caches: inputs that hold a cache; without any the largest feed is the only one.
    """
    if not caches:
        return (max(feeds, key=feed_facts.elements),)
    kinds = [kind(feed) for feed in feeds]
    with_past = [index for index, feed in enumerate(feeds) if _elements(feed, caches)]
    if not with_past or len(set(kinds)) == 1:
        return (max(feeds, key=feed_facts.elements),)
    new = [_new(each, caches) for each in kinds]
    fewest = min(new[index] for index in with_past)
    steps = [index for index in with_past if new[index] == fewest]
    prompts = [index for index in range(len(feeds)) if new[index] > fewest]
    chosen = [feeds[max(steps, key=lambda index: feed_facts.elements(feeds[index]))]]
    if prompts:
        others = [name for name in feeds[0] if name not in caches]
        chosen.append(feeds[max(prompts, key=lambda index: _elements(feeds[index], others))])
    return tuple(chosen)


def _elements(feed: Mapping[str, Any], names: Collection[str]) -> int:
    return feed_facts.elements({name: feed[name] for name in names if name in feed})


def _new(each: Kind, caches: Collection[str]) -> int:
    """Return how many dimensions of the inputs that hold no cache are more than one."""
    return sum(size > 1 for name, dims in each if name not in caches for size in dims)
