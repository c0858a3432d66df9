"""Models in the runtime's memory: of those whose runs take much, one at a time.

A heavy session is given back when another is loaded or run, and loaded anew when it runs again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from ..base import host

HEAVY_RUN_BYTES = 256 << 20
"""Memory that a run takes anew, from which on the session's model is loaded anew rather than kept beside another.

Such a run takes about a second, and so does loading a model of 256 MB. Chosen by judgement.
"""


class HeldModel:
    """The runtime's object of a session, which may be given back and made anew.

    Args:
        loaded: the object.
        reload: makes it anew, with an arena or without; None where it can't be, so that it is never given back.
        has_arena: whether it has one now. Those of heavy runs get none: an array that is kept would keep a whole
            block of it, of many times its size.
    """

    def __init__(self, loaded: Any, reload: Callable[[bool], Any] | None, *, has_arena: bool) -> None:
        self._loaded, self._reload, self.has_arena = loaded, reload, has_arena
        self.is_heavy = False

    def get(self) -> Any:
        """Return the object.

        Raises:
            ModelError: it was given back, and the runtime can't load it any more.
        """
        loaded = self._loaded
        if loaded is None:
            assert self._reload is not None
            self.has_arena = not self.is_heavy
            loaded = self._loaded = self._reload(self.has_arena)
        return loaded

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


def give_back_others(kept: HeldModel | None = None) -> None:
    """Give back all heavy models but one, before another is loaded or run."""
    heavy = list(_HEAVY)
    for each in heavy:
        if each is not kept:
            each.give_back()
    if heavy:
        host.return_free_memory()
