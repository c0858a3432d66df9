"""A sequence of feeds that are loaded each time they are read, so that memory holds one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np

from ..core import Feed


class Lazy(Sequence[Feed]):
    """The feeds that `load` returns for these indices."""

    def __init__(self, indices: Sequence[int], load: Callable[[int], Feed]) -> None:
        self._indices = indices
        self._load = load

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Feed: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Feed]: ...
    def __getitem__(self, index: int | slice) -> Feed | Sequence[Feed]:
        if isinstance(index, slice):
            return Lazy(self._indices[index], self._load)
        return self._load(self._indices[index])


def elements(feed: Mapping[str, Any]) -> int:
    """Return how many numbers a feed holds."""
    return sum(int(np.size(array)) for value in feed.values() for array in arrays(value))


def largest(feeds: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the feed with the most elements, the first of several."""
    return max(feeds, key=elements)


def dims(feed: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the dimensions of what has some."""
    return {name: tuple(np.shape(value)) for name, value in feed.items() if is_array(value)}


def is_array(value: Any) -> bool:
    """Say whether an input is an array or a number, and no sequence or nothing."""
    return value is not None and not isinstance(value, list | tuple)


def arrays(value: Any) -> list[Any]:
    """Return what an input holds, array by array."""
    if value is None:
        return []
    return [array for each in value for array in arrays(each)] if isinstance(value, list | tuple) else [value]
