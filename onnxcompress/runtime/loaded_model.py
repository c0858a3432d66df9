"""A model that is not changed any more, and what is made of it once: its bytes and its sessions."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..base.size_limits import APART_BYTES, LIST_TIMES
from ..errors import ModelError
from ..graph import query
from ..io import model_io
from ..io.wire import MAX_MESSAGE_BYTES
from . import isolation
from . import session as runtime


class LoadedModel:
    """Serialises a model and loads it in the runtime when first asked, and never again.

    Args:
        model: must not be changed from now on.
        source: what it was loaded from, for messages and for files over 2 GiB.
        threads: of the optimized session; equality is tested with one.
        like: a model whose runs take about as much memory.

    Where runs take very much memory, its sessions give back the model while another is in use.
    """

    def __init__(
        self, model: ir.Model, source: Any = None, *, threads: int = 1, like: LoadedModel | None = None
    ) -> None:
        self.model = model
        self.source = source
        self._threads = threads
        self._like = like
        self._data: bytes | None = None

    @property
    def path(self) -> str | None:
        """The file that it was loaded from, None where it came otherwise."""
        return path_of(self.source)

    @functools.cached_property
    def size_bytes(self) -> int:
        """The bytes of the model as one file."""
        stored = sum(value.const_value.nbytes for value in self.model.graph.initializers.values() if value.const_value)
        is_small = stored + self._list_bytes <= APART_BYTES
        return len(self.data) if is_small else model_io.model_bytes(self.model)

    @property
    def runtime_bytes(self) -> int:
        """Bytes of weights that take as much memory in the runtime as this model does, for `base.size_limits`."""
        return self.size_bytes + (LIST_TIMES - 1) * self._list_bytes

    @functools.cached_property
    def _list_bytes(self) -> int:
        return model_io.list_bytes(self.model)

    @property
    def data(self) -> bytes:
        """The model as one message, weights included."""
        if self._data is not None:
            return self._data
        data = model_io.to_bytes(self.model)
        if len(data) <= APART_BYTES:
            self._data = data
        return data

    @functools.cached_property
    def plain(self) -> runtime.Session:
        """A session with the runtime's optimizations off, for equality."""
        return self._open(optimize=False, threads=1)

    def close_plain(self) -> None:
        """Give back the memory of `plain`, which is opened anew when it is asked for."""
        plain: runtime.Session | None = vars(self).get("plain")
        if plain is not None and not plain.give_back():
            del vars(self)["plain"]

    @property
    def is_heavy(self) -> bool:
        """True where a run is known to take so much memory that no other model should be loaded meanwhile."""
        opened = (vars(self).get(name) for name in ("plain", "fast"))
        is_like = self._like is not None and self._like.is_heavy
        return is_like or any(session is not None and session.is_heavy for session in opened)

    @functools.cached_property
    def fast(self) -> runtime.Session:
        """A session as a user has it, optimizations on, for quality and speed."""
        return self._open(optimize=True, threads=self._threads)

    def showing(self, shown: ir.Model, *, optimize: bool = True) -> runtime.Session:
        """Return a session of a changed copy of the model, that has more outputs or other inputs."""
        other = LoadedModel(shown, threads=self._threads, like=self)
        return other.fast if optimize else other.plain

    def _open(self, *, optimize: bool, threads: int) -> runtime.Session:
        with isolation.roomy(query.node_count(self.model)):
            if self.path is not None and self.size_bytes > MAX_MESSAGE_BYTES:
                return open_one(self.model, self.source, optimize=optimize, threads=threads)
            again = functools.partial(model_io.to_bytes, self.model)
            return open_bytes(
                self.data,
                self.source,
                optimize=optimize,
                threads=threads,
                again=again,
                is_heavy=self.is_heavy,
            )


def path_of(source: object) -> str | None:
    """Return the path of a source that is one."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else None


def open_one(model: ir.Model, source: object, *, optimize: bool, threads: int = 1) -> runtime.Session:
    """Load a model in the runtime: from memory, or from its file where it is over 2 GiB."""
    path = path_of(source)
    if path is not None and model_io.model_bytes(model) > MAX_MESSAGE_BYTES:
        return runtime.open_session(Path(path), optimize=optimize, threads=threads)
    return open_bytes(model_io.to_bytes(model), source, optimize=optimize, threads=threads)


def open_bytes(
    data: bytes,
    source: object,
    *,
    optimize: bool,
    threads: int = 1,
    again: Callable[[], bytes] | None = None,
    is_heavy: bool = False,
) -> runtime.Session:
    """Load a serialized model in the runtime; a failure names the path that it came from."""
    try:
        return runtime.open_session(data, optimize=optimize, threads=threads, again=again, is_heavy=is_heavy)
    except ModelError as error:
        raise ModelError(error.message, where=error.where or path_of(source) or "", hint=error.hint) from error
