"""Facts of a feed: how many numbers it holds, and its dimensions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

CACHE_NAME = re.compile("past|cache", re.IGNORECASE)
"""Names of inputs that hold a cache."""


def elements(feed: Mapping[str, Any]) -> int:
    """Return how many numbers a feed holds."""
    return sum(int(np.size(array)) for value in feed.values() for array in arrays(value))


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
