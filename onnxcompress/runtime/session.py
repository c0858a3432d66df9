"""Sessions and optimized graphs of onnxruntime: its only importer.

Every failure of the runtime becomes a `ModelError` with the runtime's own reason in one line.
"""

from __future__ import annotations

import contextlib
import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from ..base import host
from ..errors import ModelError, StuckError
from . import isolation
from .error_text import reason
from .held_model import HEAVY_RUN_BYTES, HeldModel, give_back_others, give_back_unused
from .processes import call_isolated
from .remote_session import LOAD_SECONDS, RemoteSession, SessionHost
from .run_timeout import RunTimeout
from .tensor_spec import ARRAY_TYPES, TensorSpec

PROVIDER = "CPUExecutionProvider"


_SILENT = 4
"""The runtime's log level at which only fatal events are written: failures reach the user as exceptions."""


_RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *(
        kind
        for kind in vars(ort_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception
    ),
    RuntimeError,
    ValueError,
    TypeError,
    OverflowError,
    MemoryError,
    UnicodeError,
)

_MOST_WAITED = 0.05
"""Share of a run that its threads may wait for processors before it counts as disturbed. Chosen by judgement."""
_SHRINK = ("memory.enable_memory_arena_shrinkage", "cpu:0")
"""Option of a run: the memory of its activations is returned to the system, which the session would keep for the next.

Several sessions are open at a time, and each would keep once to twice of what its largest run takes. On small models
runs take the same time as without.
"""
_LARGE_RUN_BYTES = 64 << 20
"""Memory that a run takes anew, from which on it is returned after timed runs too. Chosen by judgement."""
_SEED = 1
"""Of random operators without a seed of their own: a fresh session draws the same again."""
ort.set_seed(_SEED)


@dataclass(frozen=True)
class RunTime:
    """Time of one run.

    Args:
        seconds: by the CPU clock of the calling thread, in which a model of one thread runs; else by the wall clock.
        is_disturbed: threads waited for a processor that others had; never with one thread, or on other than Linux.
    """

    seconds: float
    is_disturbed: bool = False


class Session:
    """A model loaded in onnxruntime on the CPU; made by `open_session`."""

    def __init__(
        self,
        session: ort.InferenceSession | RemoteSession,
        *,
        threads: int,
        is_optimized: bool = False,
        has_arena: bool = True,
        reload: Callable[[bool], ort.InferenceSession] | None = None,
        size_bytes: int = 0,
    ) -> None:
        self._held = HeldModel(session, reload, has_arena=has_arena, size_bytes=size_bytes)
        self.threads = threads
        self.is_optimized = is_optimized
        """Whether the runtime's optimizations are on."""
        self.provider = PROVIDER
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        """The inputs that a feed must hold."""
        overridable = session.get_overridable_initializers()
        self.optional_inputs = tuple(replace(_spec(node), is_optional=True) for node in overridable)
        """Those that have a default: initializers that are inputs too (a threshold, an initial state)."""
        self._is_large = False
        self.slowest_seconds, self.fastest_seconds = 0.0, math.inf
        """Wall seconds of the longest and the shortest run so far."""
        self.outputs = tuple(_spec(node) for node in session.get_outputs())

    @property
    def feedable(self) -> tuple[TensorSpec, ...]:
        """Everything that a feed may hold: the inputs, then those that have a default."""
        return self.inputs + self.optional_inputs

    @property
    def is_heavy(self) -> bool:
        """True once a run took so much memory that no other model should be loaded meanwhile."""
        return self._held.is_heavy

    def mark_heavy(self) -> None:
        """Say so before the first run: the model is given back as soon as another is loaded."""
        self._held.mark_heavy()

    def give_back(self) -> bool:
        """Give back the memory of the model, which the next run loads anew; False where it can't be."""
        return self._held.give_back()

    @property
    def _session(self) -> ort.InferenceSession | RemoteSession:
        return self._held.get()

    def run(
        self, feed: Mapping[str, Any], names: Sequence[str] | None = None, *, max_seconds: float | None = None
    ) -> dict[str, Any]:
        """Run the model once; the memory that its activations took is returned to the system.

        Args:
            feed: input name -> array (or list of arrays for a sequence), types and shapes as declared.
            names: the outputs wanted; None for all.
            max_seconds: the run is ended after this time, between two nodes or rounds of a loop; None for no limit.

        Returns:
            output name -> array, or list, dict or None where the model declares a sequence, map or optional.

        Raises:
            ModelError: the runtime refuses the feed or fails while running it.
            StuckError: the time is up.

        """
        return self._run(feed, names, max_seconds=max_seconds, keeps_memory=False)

    def _run(
        self, feed: Mapping[str, Any], names: Sequence[str] | None, *, max_seconds: float | None, keeps_memory: bool
    ) -> dict[str, Any]:
        """Do as `run` does; with `keeps_memory` as a user's session would, unless a run takes very much."""
        wanted = [spec.name for spec in self.outputs] if names is None else list(names)
        session = self._held.get()
        if self.is_heavy:
            give_back_others(self._held)
        touched = host.touched_bytes()
        watch, started = RunTimeout(max_seconds, ort.RunOptions), time.perf_counter()
        try:
            if isinstance(session, RemoteSession):
                return session.run(dict(feed), wanted, max_seconds)
            options = watch.options or ort.RunOptions()
            if self._held.has_arena and (self._is_large or not keeps_memory):
                options.add_run_config_entry(*_SHRINK)
            values = session.run(wanted, dict(feed), options)
        except _RUNTIME_ERRORS as error:
            if watch.is_over:
                raise StuckError(f"a run did not end within {max_seconds:.0f} s") from error
            raise ModelError(f"onnxruntime can't run the model: {reason(error)}") from error
        finally:
            watch.stop()
            seconds = time.perf_counter() - started
            self.slowest_seconds = max(self.slowest_seconds, seconds)
            self.fastest_seconds = min(self.fastest_seconds, seconds)
            touched = host.touched_bytes() - touched
            self._is_large = self._is_large or touched > _LARGE_RUN_BYTES
            if touched > HEAVY_RUN_BYTES:
                self.mark_heavy()
        if self.is_heavy and self._held.has_arena:
            values = [value.copy() if isinstance(value, np.ndarray) else value for value in values]
            del session
            self.give_back()
        if self.is_heavy:
            host.return_free_memory()
        return dict(zip(wanted, values, strict=True))

    def run_time(self, feed: Mapping[str, Any]) -> RunTime:
        """Run the model once and return its time, measured in the process that it runs in.

        Raises:
            ModelError: the runtime refuses the feed or fails while running it.
        """
        if isinstance(self._session, RemoteSession):
            found: RunTime = self._session.run_time(dict(feed))
            return found
        clock = time.thread_time if self.threads == 1 else time.perf_counter
        waited, started = host.waited_seconds(), clock()
        self._run(feed, None, max_seconds=None, keeps_memory=True)
        seconds, waited = clock() - started, host.waited_seconds() - waited
        return RunTime(seconds, is_disturbed=self.threads > 1 and waited > _MOST_WAITED * seconds)

    def end_profile(self) -> Path:
        """Stop profiling and return the file that the runtime wrote; for sessions of `open_profiled`."""
        assert not isinstance(self._session, RemoteSession)
        return Path(self._session.end_profiling())


def open_session(
    model: bytes | Path,
    *,
    optimize: bool,
    threads: int = 1,
    again: Callable[[], bytes | Path] | None = None,
    is_heavy: bool = False,
) -> Session:
    """Load a model on the CPU.

    Some models (a Clip of doubles behind a Relu) load with the optimizations off only: then they are, see
    `Session.is_optimized`.

    Args:
        model: a serialized ModelProto, or the path of one (needed where weights are in external files).
        optimize: True for the runtime's full optimizations (speed, quality), False for none (equality).
        threads: threads that one operator may use.
        again: gives the same once more. The session may give back its memory then, while another model is in use.
        is_heavy: runs are known to take much memory, see `held_model`.

    Raises:
        ModelError: the runtime can't load the model, with its reason.

    """
    size_bytes = len(model) if isinstance(model, bytes) else 0
    give_back_unused(coming_bytes=size_bytes)

    def opened(model: bytes | Path, *, optimize: bool) -> Session:
        loaded = _load(model, _options(optimize=optimize, threads=threads, has_arena=not is_heavy))
        reload = None if again is None else functools.partial(_reload, again, optimize=optimize, threads=threads)
        found = Session(
            loaded,
            threads=threads,
            is_optimized=optimize,
            reload=reload,
            has_arena=not is_heavy,
            size_bytes=size_bytes,
        )
        if is_heavy:
            found.mark_heavy()
        return found

    if isolation.current() == "apart":
        remote = RemoteSession(SessionHost, open_session, model, {"optimize": optimize, "threads": threads})
        return Session(remote, threads=threads, is_optimized=remote.is_optimized())
    try:
        return opened(model, optimize=optimize)
    except ModelError:
        if not optimize:
            raise
        with contextlib.suppress(ModelError):
            return opened(model, optimize=False)
        raise


def _reload(
    again: Callable[[], bytes | Path],
    has_arena: bool,  # noqa: FBT001 - the signature that `HeldModel` asks for
    *,
    optimize: bool,
    threads: int,
) -> ort.InferenceSession:
    return _load(again(), _options(optimize=optimize, threads=threads, has_arena=has_arena))


def open_part(path: Path, *, optimize: bool, threads: int, pack: bool) -> Session:
    """Load a model whose weights are in data files so that it takes little memory: theirs, and what is alive.

    The weights are mapped from the files. Memory is returned to the system once it is not needed, which an arena
    would keep, and no block is laid out for all activations of a run.

    Args:
        path: the model.
        optimize: as of `open_session`.
        threads: threads that one operator may use.
        pack: let the runtime copy matrices into the layout that its kernels like, as it does by default: each copy
            takes the place of the mapped weight. Without, loading is quick, and results may differ in rounding.

    Raises:
        ModelError: the runtime can't load the model, with its reason.
    """
    if isolation.current() == "apart":
        given = {"optimize": optimize, "threads": threads, "pack": pack}
        return Session(RemoteSession(SessionHost, open_part, path, given), threads=threads)
    options = _options(optimize=optimize, threads=threads, has_arena=False)
    if not pack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return Session(_load(path, options), threads=threads, has_arena=False)


def open_profiled(model: bytes | Path, *, threads: int, prefix: Path) -> Session:
    """Load a model, optimized, that writes a profile of its runs to a file that begins with `prefix`.

    Raises:
        ModelError: the runtime can't load the model, with its reason.
    """
    options = _options(optimize=True, threads=threads)
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    return Session(_load(model, options), threads=threads)


@dataclass(frozen=True)
class OptimizedNode:
    """A node of the graph that the runtime executes; names that it knows from the file are kept."""

    op_type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def optimized_graph(model: bytes | Path) -> list[OptimizedNode]:
    """Return the nodes that the runtime executes, bodies of If, Loop and Scan included.

    Raises:
        ModelError: the runtime can't load the model.

    """
    if isolation.current() == "apart":
        return call_isolated(optimized_graph, model, timeout_seconds=LOAD_SECONDS).value
    with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
        path = Path(folder, "optimized.onnx")
        options = _options(optimize=True, threads=1)
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        _load(model, options)
        graph = onnx.load(path, load_external_data=False).graph
    return [OptimizedNode(n.op_type, n.name, tuple(n.input), tuple(n.output)) for n in _walk(graph)]


def optimized_nodes(model: bytes | Path) -> list[str]:
    """Return the operator types of the graph that the runtime executes, bodies of If, Loop and Scan included.

    Raises:
        ModelError: the runtime can't load the model.

    """
    return [node.op_type for node in optimized_graph(model)]


def _load(model: bytes | Path, options: ort.SessionOptions) -> ort.InferenceSession:
    where = "" if isinstance(model, bytes) else str(model)
    watch = RunTimeout(LOAD_SECONDS, ort.RunOptions) if isolation.current() == "expendable" else None
    if isinstance(model, Path) and not model.is_file():
        raise ModelError("no such file", where=where)
    give_back_others()
    try:
        source = model if isinstance(model, bytes) else str(model)
        session = ort.InferenceSession(source, options, providers=[PROVIDER], enable_fallback=0)
        vars(session)["_model_bytes"] = None  # kept for another provider, which there is not
        return session
    except _RUNTIME_ERRORS as error:
        raise ModelError(f"onnxruntime can't load the model: {reason(error)}", where=where) from error
    finally:
        if watch is not None:
            watch.stop()


def _options(*, optimize: bool, threads: int, has_arena: bool = True) -> ort.SessionOptions:
    levels = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = options.enable_mem_pattern = has_arena
    if not has_arena:  # shapes are read as soon as they are known: values that only they need are let go
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    # Two sessions take turns in a race: the idle one must not keep the processor busy.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _spec(node: Any) -> TensorSpec:
    return TensorSpec(node.name, ARRAY_TYPES.get(node.type), tuple(node.shape or ()), node.type)


def _walk(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _walk(body)
