"""Models in the runtime's memory: of those whose runs take much, one at a time; of the others, as many as are used.

A heavy session is given back when another is loaded or run, and loaded anew when it runs again. Sessions of large
models are given back when many are loaded, the one that was used longest ago first.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

from ..base import host

HEAVY_RUN_BYTES = 256 << 20
"""Memory that a run takes anew, from which on the session's model is loaded anew rather than kept beside another.

Such a run takes about a second, and so does loading a model of 256 MB. Chosen by judgement.
"""

_MOST_LOADED = 3
"""Sessions that are kept whatever they hold: the two that are compared, and one that is being made."""
_MOST_LOADED_BYTES = 192 << 20
"""Weights of all sessions that may be loaded anew, from which on those that were used longest ago are given back.

Six sessions of a 63 MB text-to-speech model took .7 GB, of which three were used again. Chosen by judgement.
"""


class HeldModel:
    """The runtime's object of a session, which may be given back and made anew.

    Args:
        loaded: the object.
        reload: makes it anew, with an arena or without; None where it can't be, so that it is never given back.
        has_arena: whether it has one now. Those of heavy runs get none: an array that is kept would keep a whole
            block of it, of many times its size.
        size_bytes: of its weights.
    """

    def __init__(
        self, loaded: Any, reload: Callable[[bool], Any] | None, *, has_arena: bool, size_bytes: int = 0
    ) -> None:
        self._loaded, self._reload, self.has_arena, self.size_bytes = loaded, reload, has_arena, size_bytes
        self.is_heavy = False
        self._used()

    def get(self) -> Any:
        """Return the object.

        Raises:
            ModelError: it was given back, and the runtime can't load it any more.
        """
        loaded = self._loaded
        if loaded is None:
            assert self._reload is not None
            self.has_arena = not self.is_heavy
            give_back_unused(coming_bytes=self.size_bytes)
            loaded = self._loaded = self._reload(self.has_arena)
        self._used()
        return loaded

    @property
    def is_loaded(self) -> bool:
        """False while it is given back."""
        return self._loaded is not None

    def _used(self) -> None:
        if self._reload is not None:
            _LAST_USE[self] = next(_USES)

    def mark_heavy(self) -> None:
        """Say that a run takes so much memory that no other model should be loaded meanwhile."""
        self.is_heavy = True
        if self._reload is not None:
            _HEAVY.add(self)

    def give_back(self) -> bool:
        """Give back the memory until the object is asked for; False where it can't be made anew."""
        if self._reload is None:
            return False
        self._loaded = None
        return True


_HEAVY: weakref.WeakSet[HeldModel] = weakref.WeakSet()
_USES = itertools.count()
_LAST_USE: weakref.WeakKeyDictionary[HeldModel, int] = weakref.WeakKeyDictionary()
"""Model that may be loaded anew -> number of its last use."""


def give_back_unused(*, coming_bytes: int = 0) -> None:
    """Give back the models that were used longest ago, where all that are loaded are many and large.

    Args:
        coming_bytes: weights of the model that is loaded next.
    """
    loaded = sorted((each for each in list(_LAST_USE) if each.is_loaded), key=lambda each: _LAST_USE[each])
    total = coming_bytes + sum(each.size_bytes for each in loaded)
    is_less = False
    for each in loaded[: 1 - _MOST_LOADED]:
        if total <= _MOST_LOADED_BYTES:
            break
        total -= each.size_bytes
        is_less = each.give_back() or is_less
    if is_less:
        host.return_free_memory()


def give_back_others(kept: HeldModel | None = None) -> None:
    """Give back all heavy models but one, before another is loaded or run."""
    heavy = list(_HEAVY)
    for each in heavy:
        if each is not kept:
            each.give_back()
    if heavy:
        host.return_free_memory()
