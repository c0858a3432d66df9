"""Remembers what costly runs of parts gave, so that the same part on the same inputs is not run for every choice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..base.spilled_arrays import SpilledArrays

_LEAST_SECONDS = 0.03
"""Runs that take less are not remembered: steps of a decoder read caches of many megabytes, which take as long to tell
apart. Chosen by judgement; not measured."""
_MOST_BYTES = 1 << 30
"""Of all outputs that are kept, most of them in a file. Chosen by judgement."""


class RunMemory:
    """Outputs of runs by model and inputs; the same bytes give the same outputs, since runs are on one processor."""

    def __init__(self) -> None:
        self._places: dict[bytes, tuple[int, float]] = {}
        self._kept = SpilledArrays()
        self._kept_bytes = 0
        self._costly: set[str] = set()

    def key(self, model: str, feed: Mapping[str, Any]) -> bytes | None:
        """Return what tells a run apart, None where runs of the model are not remembered."""
        if model not in self._costly or not all(isinstance(value, np.ndarray) for value in feed.values()):
            return None
        found = hashlib.blake2b(model.encode(), digest_size=16)
        for name, value in sorted(feed.items()):
            if value.dtype.hasobject:
                return None
            found.update(f"{name}{value.dtype}{value.shape}".encode())
            found.update(np.ascontiguousarray(value).data)
        return found.digest()

    def known(self, key: bytes | None) -> tuple[dict[str, Any], float] | None:
        """Return the outputs of a run and the CPU seconds that it took, None where it was not made."""
        place = None if key is None else self._places.get(key)
        return None if place is None else (self._kept[place[0]], place[1])

    def note(self, model: str, key: bytes | None, outputs: Mapping[str, Any], seconds: float) -> None:
        """Keep the outputs of a run where its model is one that takes long; from its second run on that is known."""
        if seconds >= _LEAST_SECONDS:
            self._costly.add(model)
        size = sum(value.nbytes for value in outputs.values() if isinstance(value, np.ndarray))
        if key is None or self._kept_bytes + size > _MOST_BYTES:
            return
        self._kept_bytes += size
        self._places[key] = len(self._kept), seconds
        self._kept.append(outputs)
