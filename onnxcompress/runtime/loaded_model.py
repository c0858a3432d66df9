"""A model that is not changed any more, and what is made of it once: its bytes and its sessions."""

from __future__ import annotations

import functools
from typing import Any

import onnx_ir as ir

from ..io import model_io
from ..jobs import compare as compare_job
from ..shapes import count as counting
from . import isolation
from . import session as runtime

_KEPT_BYTES = 64 << 20
"""Larger models are serialised anew for each session: memory counts for more than the time it takes."""


class Opened:
    """Serialises a model and loads it in the runtime when first asked, and never again.

    Args:
        model: must not be changed from now on.
        source: what it was loaded from, for messages and for files over 2 GiB.
        threads: of the optimized session; equality is tested with one.
    """

    def __init__(self, model: ir.Model, source: Any = None, *, threads: int = 1) -> None:
        self.model = model
        self._source = source
        self._threads = threads
        self._data: bytes | None = None

    @property
    def path(self) -> str | None:
        """The file that it was loaded from, None where it came otherwise."""
        return compare_job.path_of(self._source)

    @functools.cached_property
    def size_bytes(self) -> int:
        """The bytes of the model as one file."""
        stored = sum(value.const_value.nbytes for value in self.model.graph.initializers.values() if value.const_value)
        return len(self.data) if stored <= _KEPT_BYTES else model_io.model_bytes(self.model)

    @property
    def data(self) -> bytes:
        """The model as one message, weights included."""
        if self._data is not None:
            return self._data
        data = model_io.to_bytes(self.model)
        if len(data) <= _KEPT_BYTES:
            self._data = data
        return data

    @functools.cached_property
    def plain(self) -> runtime.Session:
        """A session with the runtime's optimizations off, for equality."""
        return self._open(optimize=False, threads=1)

    @functools.cached_property
    def fast(self) -> runtime.Session:
        """A session as a user has it, optimizations on, for quality and speed."""
        return self._open(optimize=True, threads=self._threads)

    def _open(self, *, optimize: bool, threads: int) -> runtime.Session:
        with isolation.roomy(counting.node_count(self.model)):
            if self.path is not None and self.size_bytes > compare_job.LARGEST_BYTES:
                return compare_job.open_one(self.model, self._source, optimize=optimize, threads=threads)
            return compare_job.open_bytes(self.data, self._source, optimize=optimize, threads=threads)
