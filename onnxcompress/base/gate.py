"""The gate that numbers rewrites, and the memo of what is known between two of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Gate:
    """Numbers the rewrites of a run in the order they are made and says which may be made.

    A run with the same gate makes the same rewrites, so a wrong one is found by bisection: `limit` admits
    only the first so many, and `denied` shuts out those that were found wrong.
    """

    def __init__(self, *, limit: int | None = None, denied: frozenset[tuple[str, str]] = frozenset()) -> None:
        self.limit = limit
        self.denied = denied
        self.admitted: list[tuple[str, str]] = []

    def admits(self, pass_name: str, target: str) -> bool:
        """Say whether the rewrite (pass, target) may be made now, and count it if so."""
        if (pass_name, target) in self.denied:
            return False
        if self.limit is not None and len(self.admitted) >= self.limit:
            return False
        self.admitted.append((pass_name, target))
        return True


class Memo:
    """Facts about the one model that passes edit, kept until the next rewrite."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._found: dict[str, tuple[int, Any]] = {}

    @property
    def version(self) -> int:
        """The rewrites made so far: whoever edits a model asks the gate first."""
        return len(self._gate.admitted)

    def get(self, key: str, find: Callable[[], Any]) -> Any:
        """Return what `find` found, anew only when the model has been rewritten since.

        Not to be asked between the gate's yes and the edit.
        """
        version, found = self._found.get(key, (-1, None))
        if version != self.version:
            found = find()
            self._found[key] = self.version, found
        return found
