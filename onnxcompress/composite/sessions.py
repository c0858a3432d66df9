"""Sessions as programs know them from onnxruntime, on the sessions of this package, and the time that each took."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runtime import session as runtime
from ..runtime.tensor_spec import TensorSpec
from .memory import RunMemory


class PartSession:
    """One part of a pipeline, loaded: with the methods of onnxruntime's sessions that programs use.

    Args:
        session: optimizations on, as a user has it.
        model: its file.
        memory: of runs that were made before; None: none is kept.
    """

    def __init__(self, session: runtime.Session, model: str, memory: RunMemory | None = None) -> None:
        self._session, self._model, self._memory = session, model, memory
        self.runs = 0
        self.cpu_seconds = 0.0
        """CPU seconds of the calling thread, in which a model of one thread runs; remembered runs count, too."""

    @classmethod
    def opened(cls, path: Path, *, threads: int = 1, memory: RunMemory | None = None) -> PartSession:
        """Load a model.

        Raises:
            ModelError: the runtime can't load it.
        """
        return cls(runtime.open_session(path, optimize=True, threads=threads), str(path), memory)

    def get_inputs(self) -> Sequence[TensorSpec]:
        """Return name, type and shape of each input."""
        return self._session.inputs

    def get_outputs(self) -> Sequence[TensorSpec]:
        """Return name, type and shape of each output."""
        return self._session.outputs

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], _: Any = None) -> list[Any]:
        """Run the model and return the values of some outputs, None for all, in order.

        Raises:
            ModelError: the runtime refuses the feed.
        """
        names = [spec.name for spec in self._session.outputs] if output_names is None else list(output_names)
        label = " ".join([self._model, *names])
        key = None if self._memory is None else self._memory.key(label, input_feed)
        known = None if self._memory is None else self._memory.known(key)
        if known is None:
            started = time.thread_time()
            found = self._session.run(input_feed, names)
            known = found, time.thread_time() - started
            if self._memory is not None:
                self._memory.note(label, key, *known)
        self.cpu_seconds += known[1]
        self.runs += 1
        return [known[0][name] for name in names]


def outputs_of(session: Any, feed: Mapping[str, Any]) -> dict[str, Any]:
    """Run a session, recorded or not, and return its outputs by name."""
    names = [spec.name for spec in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))
