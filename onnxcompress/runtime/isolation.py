"""Isolation of the runtime from the rest: whoever runs a command, or a job for a server, chooses it.

"none"        the runtime works in this process
"expendable"  so it does, but somebody starts the work again, "apart", if this process dies: a run that can't be
ended otherwise ends the process
"apart"       every session lives in a process of its own; one that crashes or hangs is a `ModelError`
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final, Literal

Isolation = Literal["none", "expendable", "apart"]

MANY_NODES = 20_000
"""The runtime takes some 3 KB for each, and a few sessions may be open at a time."""

_CURRENT: Final[ContextVar[Isolation]] = ContextVar("isolation", default="none")


def current() -> Isolation:
    """Return what was chosen for the work at hand."""
    return _CURRENT.get()


@contextlib.contextmanager
def isolated(kind: Isolation) -> Iterator[None]:
    """Choose for everything inside of the `with` block."""
    token = _CURRENT.set(kind)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def roomy(nodes: int, *, is_large: bool = False) -> contextlib.AbstractContextManager[None]:
    """Choose "apart" for very many nodes, or a large model: the runtime's copies take a process of their own."""
    wanted = (nodes > MANY_NODES or is_large) and os.name == "posix"
    return isolated("apart") if wanted else contextlib.nullcontext()
