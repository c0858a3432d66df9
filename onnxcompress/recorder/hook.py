"""Watches the sessions of onnxruntime in a program: its methods are replaced, and do what they did.

A fault of recording is written down as a note and never reaches the program.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import identity
from .links import SessionLinks
from .store import FeedStore, KeptModel, PendingSample

MODULE = "onnxruntime.capi.onnxruntime_inference_collection"
"""Where the runtime's classes are."""

_WATCHED, _BOUND = "_onnxcompress_watched", "_onnxcompress_bound"
"""Attributes of a session and of a binding."""

_inside = threading.local()


class WatchedSession:
    """One session and where its samples go.

    Args:
        store: the recording.
        session: of the runtime, or anything with `get_inputs` and `get_outputs`.
        model: its identity.
        path: its file, "" where it was given as bytes.
    """

    def __init__(self, store: FeedStore, session: Any, model: identity.ModelIdentity, path: str) -> None:
        self._store, self._links = store, SessionLinks()
        self._types = {spec.name: spec.type for spec in _inputs(session)}
        self.outputs = [spec.name for spec in session.get_outputs()]
        facts = {
            "inputs": [[spec.name, spec.type, list(spec.shape or ())] for spec in _inputs(session)],
            "outputs": [[spec.name, spec.type, list(spec.shape or ())] for spec in session.get_outputs()],
        }
        self.kept: KeptModel = store.model(model, path=path, facts=facts)

    def before(self, feed: Mapping[str, Any]) -> PendingSample | None:
        """Write what a run is fed where it is to be kept, and look which outputs of the last run it is fed."""
        values = {name: _array(value) for name, value in feed.items()}
        if self._links.is_watching:
            given = {name: array for name, array in values.items() if array is not None}
            origins = {name: self._store.handed_over.origin(feed[name]) for name in given}
            sources = {name: origin for name, origin in origins.items() if origin and origin[0] != self.kept.name}
            self.kept.link(self._links.seen(given), sources)
        for name, array in values.items():
            if array is None:
                kind = self._types.get(name, type(feed[name]).__name__)
                self.kept.note(f"input {name!r} is {kind}, which can't be stored: runs with it are left out")
                return None
        return self.kept.pending({name: array for name, array in values.items() if array is not None})

    def after(self, sample: PendingSample | None, names: Sequence[str] | None, outputs: Sequence[Any] | None) -> None:
        """Keep the sample of a run that has succeeded.

        Args:
            sample: what `before` returned.
            names: of the outputs, None for all.
            outputs: theirs, None where they are not known: then no links are found.
        """
        if sample is not None:
            sample.commit()
        if outputs is not None and self._links.is_watching:
            found = dict(zip(names or self.outputs, outputs))  # noqa: B905 - as in Python 3.8
            self._store.handed_over.add(self.kept.name, found)
            self._links.ran({name: _array(value) for name, value in found.items()})


class Watch:
    """Replaces methods of the runtime's classes until `stop`.

    Args:
        module: the runtime's module of the name `MODULE`.
        store: where samples go.
    """

    def __init__(self, module: Any, store: FeedStore) -> None:
        self._store = store
        self._before: list[tuple[type, str, Any]] = []
        session, binding = module.InferenceSession, module.IOBinding
        self._replace(session, "__init__", self._opened)
        self._replace(session, "run", self._ran)
        self._replace(session, "run_with_ort_values", self._ran)
        self._replace(session, "run_async", self._ran_async)
        self._replace(session, "run_with_iobinding", self._ran_bound)
        self._replace(session, "run_with_ortvaluevector", self._ran_vector)
        for name in ("bind_cpu_input", "bind_ortvalue_input", "bind_input", "bind_output", "bind_ortvalue_output"):
            self._replace(binding, name, functools.partial(self._bound, name))
        for name in ("clear_binding_inputs", "clear_binding_outputs"):
            self._replace(binding, name, functools.partial(self._cleared, name))
        atexit.register(self._store.flush)

    def stop(self) -> None:
        """Put the methods back and write what was counted."""
        for owner, name, method in reversed(self._before):
            if method is None:
                delattr(owner, name)
            else:
                setattr(owner, name, method)
        self._before.clear()
        atexit.unregister(self._store.flush)
        self._store.flush()

    def _replace(self, owner: type, name: str, by: Callable[..., Any]) -> None:
        """Replace a method by `by(method, self, ...)`."""
        method = getattr(owner, name, None)
        if method is None:  # an older runtime has none
            return

        @functools.wraps(method)
        def replacement(*args: Any, **named: Any) -> Any:
            return by(method, *args, **named)

        self._before.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, replacement)

    def _watched(self, session: Any) -> WatchedSession | None:
        """Return how a session is watched, one that was opened before from now on; None where it can't be."""
        known = vars(session).get(_WATCHED)
        if known is not None and known[0] is self._store:
            found: WatchedSession | None = known[1]
            return found
        watched = None
        with _guarded(self._store, "a session"):
            path, data = getattr(session, "_model_path", None), getattr(session, "_model_bytes", None)
            if path:
                watched = WatchedSession(self._store, session, identity.of_file(path), _absolute(path))
            elif data:
                watched = WatchedSession(self._store, session, identity.of_bytes(data), "")
        setattr(session, _WATCHED, (self._store, watched))
        return watched

    def _opened(self, method: Any, session: Any, *args: Any, **named: Any) -> None:
        method(session, *args, **named)
        self._watched(session)

    def _ran(self, method: Any, session: Any, output_names: Any, feed: Any, *args: Any, **named: Any) -> Any:
        with self._recorded(session, feed) as done:
            outputs = method(session, output_names, feed, *args, **named)
            done(output_names, outputs)
            return outputs

    @contextlib.contextmanager
    def _recorded(self, session: Any, feed: Any) -> Iterator[Callable[[Any, Any], None]]:
        """Keep what a run is fed once it calls what this gives with its names and outputs."""
        watched = None if getattr(_inside, "recording", False) else self._watched(session)
        sample, outcome = None, []
        if watched is not None and isinstance(feed, Mapping):
            with _guarded(self._store, "a run"):
                sample = watched.before(feed)
        try:
            yield lambda names, outputs: outcome.append((names, outputs))
        finally:
            if watched is not None:
                with _guarded(self._store, "a run"):
                    if outcome:
                        watched.after(sample, *outcome[0])
                    elif sample is not None:
                        sample.discard()

    def _ran_async(
        self, method: Any, session: Any, output_names: Any, feed: Any, callback: Any, *args: Any, **named: Any
    ) -> Any:
        watched, sample = self._watched(session), None
        if watched is not None:
            with _guarded(self._store, "a run"):
                sample = watched.before(feed)

        def called(results: Any, user_data: Any, error: str) -> Any:
            if sample is not None:
                with _guarded(self._store, "a run"):
                    sample.discard() if error else sample.commit()
            return callback(results, user_data, error)

        return method(session, output_names, feed, called, *args, **named)

    def _ran_bound(self, method: Any, session: Any, iobinding: Any, *args: Any, **named: Any) -> Any:
        inputs, names = _bound_of(iobinding)
        with self._recorded(session, inputs) as done:
            method(session, iobinding, *args, **named)
            outputs = None
            with _guarded(self._store, "the outputs of a binding"):
                found = iobinding.get_outputs()
                outputs = found if len(found) == len(names) else None
            done(list(names), outputs)

    def _ran_vector(self, method: Any, session: Any, *args: Any, **named: Any) -> Any:
        watched = self._watched(session)
        if watched is not None:
            watched.kept.note("runs by run_with_ortvaluevector are not recorded")
        return method(session, *args, **named)

    def _bound(self, kind: str, method: Any, binding: Any, name: str, *args: Any, **named: Any) -> Any:
        result = method(binding, name, *args, **named)
        inputs, names = _bound_of(binding)
        if "output" in kind:
            names[name] = None
        else:
            value = next(iter([*args, *named.values()]), None)
            inputs[name] = _Pointer(*args, **named) if kind == "bind_input" else value
        return result

    def _cleared(self, kind: str, method: Any, binding: Any) -> Any:
        inputs, names = _bound_of(binding)
        (names if "outputs" in kind else inputs).clear()
        return method(binding)


class _Pointer:
    """An input that was bound by its address."""

    def __init__(
        self, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], buffer_ptr: int
    ) -> None:
        self._is_here = (device_type, device_id) == ("cpu", 0)
        self._type, self._shape, self._address = element_type, tuple(shape), buffer_ptr

    def array(self) -> np.ndarray | None:
        """Return what is there now, None where it is not in the memory of the processor."""
        if not self._is_here or isinstance(self._type, int):
            return None
        kind = np.dtype(self._type)
        facts = {"data": (self._address, True), "shape": self._shape, "typestr": kind.str, "version": 3}
        return np.asarray(type("Memory", (), {"__array_interface__": facts})())


def _bound_of(binding: Any) -> tuple[dict[str, Any], dict[str, None]]:
    """Return input -> value and the names of the outputs that were bound, in order."""
    found: tuple[dict[str, Any], dict[str, None]] = vars(binding).setdefault(_BOUND, ({}, {}))
    return found


def _array(value: Any) -> np.ndarray | None:
    """Return a value that a session is fed or returns as an array, None where it is no tensor or not on the CPU."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, _Pointer):
        return value.array()
    if hasattr(value, "is_tensor") and hasattr(value, "numpy"):  # an OrtValue
        try:
            return np.asarray(value.numpy()) if value.is_tensor() else None
        except (RuntimeError, ValueError, TypeError):  # a type that numpy has not
            return None
    if isinstance(value, (bool, int, float, np.generic)):
        return np.asarray(value)
    return None


def _inputs(session: Any) -> list[Any]:
    optional = getattr(session, "get_overridable_initializers", list)
    return [*session.get_inputs(), *optional()]


def _absolute(path: str) -> str:
    from pathlib import Path

    return str(Path(path).absolute())


@contextlib.contextmanager
def _guarded(store: FeedStore, what: str) -> Iterator[None]:
    """Write down a fault of recording, and go on."""
    was, _inside.recording = getattr(_inside, "recording", False), True
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the program must not see it
        with contextlib.suppress(Exception):
            store.fault(f"{what} could not be recorded: {type(error).__name__}: {error}")
    finally:
        _inside.recording = was
