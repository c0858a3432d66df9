"""Sessions as programs know them from onnxruntime, on the sessions of this package, and the time that each took."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runtime import session as runtime
from ..runtime.tensor_spec import TensorSpec


class PartSession:
    """One part of a pipeline, loaded: with the methods of onnxruntime's sessions that programs use.

    Args:
        session: optimizations on, as a user has it.
    """

    def __init__(self, session: runtime.Session) -> None:
        self._session = session
        self.runs = 0
        self.cpu_seconds = 0.0
        """CPU seconds of the calling thread, in which a model of one thread runs."""

    @classmethod
    def opened(cls, path: Path, *, threads: int = 1) -> PartSession:
        """Load a model.

        Raises:
            ModelError: the runtime can't load it.
        """
        return cls(runtime.open_session(path, optimize=True, threads=threads))

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
        started = time.thread_time()
        found = self._session.run(input_feed, output_names)
        self.cpu_seconds += time.thread_time() - started
        self.runs += 1
        return list(found.values())


def outputs_of(session: Any, feed: Mapping[str, Any]) -> dict[str, Any]:
    """Run a session, recorded or not, and return its outputs by name."""
    names = [spec.name for spec in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))
