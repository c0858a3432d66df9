"""Sessions of the runtime in processes of their own: what crashes or hangs there is an error here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base import host
from .processes import RemoteObject
from .run_timeout import GRACE_SECONDS

LOAD_SECONDS = 600.0
"""Most time for loading a model. Chosen by judgement; not measured."""
RUN_SECONDS = 3600.0
"""Most time for one run, where nothing else limits it. Chosen by judgement; not measured."""


class RemoteSession:
    """A session in a process of its own.

    Args:
        held: makes what answers there: `specs()`, inputs, optional inputs and outputs as `Node`s, and
            `run(feed, names, max_seconds=)`.
        args: its arguments.
    """

    def __init__(self, held: Callable[..., Any], *args: Any) -> None:
        self._remote = RemoteObject(held, *args, timeout_seconds=LOAD_SECONDS, memory_bytes=host.spare_memory_bytes())
        self.inputs, self.optional_inputs, self.outputs = self._remote.call("specs", timeout_seconds=LOAD_SECONDS)

    def is_optimized(self) -> bool:
        """Return whether the runtime's optimizations are on there."""
        return bool(self._remote.call("is_optimized", timeout_seconds=LOAD_SECONDS))

    def get_inputs(self) -> list[Any]:
        """Describe the inputs as the runtime's own session does."""
        return list(self.inputs)

    def get_overridable_initializers(self) -> list[Any]:
        """Describe the inputs that have a default as the runtime's own session does."""
        return list(self.optional_inputs)

    def get_outputs(self) -> list[Any]:
        """Describe the outputs as the runtime's own session does."""
        return list(self.outputs)

    def run(self, feed: Mapping[str, Any], names: Sequence[str], max_seconds: float | None) -> dict[str, Any]:
        """Run once; the process is ended where a run takes longer."""
        limit = RUN_SECONDS if max_seconds is None else max_seconds
        found: dict[str, Any] = self._remote.call(
            "run", feed, names, timeout_seconds=limit + GRACE_SECONDS, max_seconds=limit
        )
        return found

    def run_time(self, feed: Mapping[str, Any]) -> Any:
        """Run once and return the time that it took there."""
        return self._remote.call("run_time", feed, timeout_seconds=RUN_SECONDS)


@dataclass(frozen=True)
class Node:
    """An input or output as the runtime describes it."""

    name: str
    type: str
    shape: list[Any]


class SessionHost:
    """Other end of a `RemoteSession`.

    Args:
        opens: makes a `session.Session`.
        model: what is opened.
        options: of `opens`.
    """

    def __init__(self, opens: Callable[..., Any], model: bytes | Path, options: Mapping[str, Any]) -> None:
        self._session = opens(model, **options)

    def specs(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Return name, type and shape of inputs, optional inputs and outputs, as the runtime's own objects do."""
        sides = (self._session.inputs, self._session.optional_inputs, self._session.outputs)
        return tuple([Node(spec.name, spec.type, list(spec.shape)) for spec in side] for side in sides)  # type: ignore[return-value]

    def is_optimized(self) -> bool:
        """Return whether the runtime's optimizations are on."""
        found: bool = self._session.is_optimized
        return found

    def run(self, feed: Mapping[str, Any], names: Sequence[str], *, max_seconds: float) -> dict[str, Any]:
        """Run once."""
        found: dict[str, Any] = self._session.run(feed, names, max_seconds=max_seconds)
        return found

    def run_time(self, feed: Mapping[str, Any]) -> Any:
        """Run once and return the time."""
        return self._session.run_time(feed)
