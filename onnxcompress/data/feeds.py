"""A sequence of feeds that are loaded each time they are read, so that memory holds one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np

from ..base.feed_facts import arrays, dims, elements, is_array
from ..core import Feed

__all__ = ["Lazy", "arrays", "dims", "elements", "is_array", "largest"]


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


def largest(feeds: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the feed with the most elements, the first of several."""
    return max(feeds, key=elements)
