"""Run a split model part by part within a memory budget.

    feeds --> part 0 --h--> part 1 --h--> ... --> outputs
               |             |
               freed         loaded by a thread while part 0 runs, where both fit

Parts stay loaded where the budget allows. The first to be unloaded is the one whose next turn is farthest away: runs
pass the parts in a circle, in which the least recently used part is the very one that comes next. Of parts that a run
does not need, the least recently used is unloaded first.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ..base.quantities import parse_bytes, show_bytes
from ..errors import DataError, LimitError, ModelError, UsageError
from ..io import file_checks
from ..runtime import session as runtime
from ..runtime.session import Session
from ..runtime.tensor_spec import TensorSpec, array_type
from . import manifest as manifests
from .manifest import Part, Tensor

_AGAIN = "Split the model again, or copy its folder again"


class PartitionedModel:
    """A split model, used as an `onnxruntime.InferenceSession` is.

    Args:
        folder: what `split` wrote.
        max_memory: most bytes that parts and what flows between them may take, also as text ("64MB"); what Python
            and the runtime take by themselves comes on top. None: all parts stay loaded.
        optimize: the runtime's optimizations. Off, outputs are those of the whole model to the bit. On, and with a
            budget that does not hold all parts, float weights are used where they are mapped and not packed for
            each run, which is several times quicker and differs in rounding.
        threads: threads that one operator may use.
        prefetch: check, and load where it fits, the next part in a thread while one runs.

    Raises:
        ModelError: it is no split model, or damaged.
        LimitError: a part alone needs more than `max_memory`.

    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        max_memory: int | str | None = None,
        optimize: bool = True,
        threads: int = 1,
        prefetch: bool = True,
    ) -> None:
        self._folder = Path(folder)
        self.manifest = manifests.read(self._folder)
        self._budget = parse_bytes(max_memory, where="max_memory") if isinstance(max_memory, str) else max_memory
        self._parts = self.manifest.parts
        self._check_budget()
        self._optimize = optimize
        self._threads = threads
        holds_all = self._budget is None or self._all_bytes(range(len(self._parts))) <= self._budget
        self._packs_all = holds_all or not optimize
        self._flowing = {tensor.name: tensor for tensor in (*self.manifest.values, *self.manifest.outputs)}
        self._verified: dict[str, tuple[int, int, int]] = {}
        self._loaded: dict[int, Session] = {}
        self._used: dict[int, int] = {}
        self._clock = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch") if prefetch else None
        self._pending: tuple[int, Future[Session | None]] | None = None
        self.loads = 0
        """Times that a part was loaded."""
        self.prefetches = 0
        """Times that the thread loaded one, while another part ran."""
        self.inputs = tuple(_spec(tensor) for tensor in self.manifest.inputs)
        """Specs of what a feed must hold."""
        self.optional_inputs = tuple(replace(_spec(t), is_optional=True) for t in self.manifest.optional_inputs)
        """Specs of the inputs that have a default, which a feed may override."""
        self.outputs = tuple(_spec(tensor) for tensor in self.manifest.outputs)

    @property
    def loaded(self) -> tuple[int, ...]:
        """The parts that are in memory now, by number."""
        return tuple(sorted(self._loaded))

    def get_inputs(self) -> list[TensorSpec]:
        """Return what a feed must hold, as objects with `name`, `type` and `shape`."""
        return list(self.inputs)

    def get_outputs(self) -> list[TensorSpec]:
        """Return the specs of the outputs, as objects with `name`, `type` and `shape`."""
        return list(self.outputs)

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]) -> list[Any]:
        """Run the parts that the outputs need, one after another.

        Args:
            output_names: the outputs wanted; None for all.
            input_feed: input name -> array, types and shapes as declared.

        Returns:
            the outputs, in the order of their names.

        Raises:
            UsageError: there is no such output.
            DataError: the feed does not fit the inputs.
            ModelError: a part is missing, damaged, or can't run, or gives something other than it should.

        """
        names = [spec.name for spec in self.outputs] if output_names is None else list(output_names)
        known = {spec.name for spec in self.outputs}
        for name in names:
            if name not in known:
                raise UsageError(f"there is no output {name!r}", hint=f"There are {', '.join(sorted(known))}")
        values = self._checked(input_feed)
        with self._lock:
            try:
                self._run_parts(self._route(names), values, frozenset(names))
            finally:
                self._settle()
        return [values[name] for name in names]

    def close(self) -> None:
        """Free all parts; the next run loads them again."""
        with self._lock:
            self._settle()
            self._loaded.clear()
            _give_back_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _run_parts(self, route: Sequence[int], values: dict[str, Any], wanted: frozenset[str]) -> None:
        last = {name: turn for turn, index in enumerate(route) for name in self._parts[index].inputs}
        for turn, index in enumerate(route):
            part = self._parts[index]
            session = self._take(index, route, following=route[turn + 1] if turn + 1 < len(route) else None)
            optional = set(part.optional_inputs)
            feed = {name: values[name] for name in part.inputs if name in values or name not in optional}
            needed = [name for name in part.outputs if name in wanted or last.get(name, -1) > turn]
            try:
                made = session.run(feed, needed)
            except ModelError as error:
                raise ModelError(error.message, where=self._where(part)) from error
            del feed, session
            for name, value in made.items():
                self._check(self._flowing[name], value, part)
            values.update(made)
            del made
            for name in [name for name in values if name not in wanted and last.get(name, -1) <= turn]:
                del values[name]

    def _route(self, names: Sequence[str]) -> list[int]:
        """Return the parts that some outputs need, in order."""
        needed, route = set(names), []
        for index in range(len(self._parts) - 1, -1, -1):
            part = self._parts[index]
            if not needed.isdisjoint(part.outputs):
                needed.update(part.inputs)
                route.append(index)
        return route[::-1]

    def _take(self, index: int, route: Sequence[int], *, following: int | None) -> Session:
        """Return a part ready to run, with memory for the run, while the thread turns to the one that follows."""
        self._clock += 1
        self._used[index] = self._clock
        self._settle()
        self._make_space(index, index, route)
        if following is not None:
            self._prefetch(following, index, route)
        if index not in self._loaded:
            self._loaded[index] = self._load(index)
            self.loads += 1
        return self._loaded[index]

    def _prefetch(self, index: int, running: int, route: Sequence[int]) -> None:
        """Let the thread check the files of the next part, and load it where it fits beside the running one."""
        if self._pool is None or index in self._loaded:
            return
        held = {running, index}
        fits = self._budget is None or self._bytes(running, held) <= self._budget
        if fits:
            self._make_space(running, index, route)
        self._pending = index, self._pool.submit(self._load if fits else self._verify, index)

    def _settle(self) -> None:
        """Wait for the thread and keep what it has loaded; what it failed at is tried again when it is needed."""
        if self._pending is None:
            return
        index, future = self._pending
        self._pending = None
        session = None if future.exception() is not None else future.result()
        if session is not None:
            self._loaded[index] = session
            self.loads += 1
            self.prefetches += 1

    def _make_space(self, running: int, coming: int, route: Sequence[int]) -> None:
        """Free parts until one fits in beside the one that runs and all others that are kept."""
        freed = False
        while self._budget is not None and self._bytes(running, {*self._loaded, running, coming}) > self._budget:
            others = [index for index in self._loaded if index not in (running, coming)]
            if not others:
                break
            turns = {index: turn for turn, index in enumerate(route)}
            now = turns[running]
            idle = [index for index in others if index not in turns]
            chosen = (
                min(idle, key=lambda index: self._used.get(index, 0))
                if idle
                else max(others, key=lambda index: (turns[index] - now - 1) % len(route))
            )
            del self._loaded[chosen]
            freed = True
        if freed:
            _give_back_memory()

    def _bytes(self, running: int, held: set[int]) -> int:
        """Return the estimate for one part that runs beside others that are loaded, or being loaded."""
        others = sum(self._parts[index].weight_bytes for index in held if index != running)
        return self._parts[running].peak_bytes + others + sum(map(self._copied_bytes, held - self._loaded.keys()))

    def _copied_bytes(self, index: int) -> int:
        """Return what is there twice while a part is loaded: the weight that is being packed."""
        return self._parts[index].largest_bytes if self._packs(index) else 0

    def _packs(self, index: int) -> bool:
        return self._packs_all or self._parts[index].packs

    def _all_bytes(self, held: range) -> int:
        """Return the most that a run takes with all parts loaded."""
        return sum(self._parts[i].weight_bytes for i in held) + max(
            self._parts[i].peak_bytes - self._parts[i].weight_bytes for i in held
        )

    def _check_budget(self) -> None:
        if self._budget is None:
            return
        if self._budget < 1:
            raise UsageError(f"{self._budget} bytes are no budget", where="max_memory")
        most = max(self._parts, key=lambda part: part.peak_bytes)
        if most.peak_bytes > self._budget:
            raise LimitError(
                f"{most.file} alone needs {show_bytes(most.peak_bytes)} ({most.peak_bytes} bytes), "
                f"more than {show_bytes(self._budget)}",
                where=os.fspath(self._folder),
                hint="Split the model again with that --max-memory",
            )

    def _load(self, index: int) -> Session:
        part = self._parts[index]
        self._verify(index)
        try:
            session = runtime.open_part(
                self._folder / part.file, optimize=self._optimize, threads=self._threads, pack=self._packs(index)
            )
        except ModelError as error:
            raise ModelError(error.message, where=self._where(part), hint=_AGAIN) from error
        return session

    def _verify(self, index: int) -> None:
        """Check size and hash of a part's files, unless they are as they were when that was done.

        Raises:
            ModelError: one is missing, is no plain file, or has another content.
        """
        part = self._parts[index]
        for name in (part.file, *part.data):
            path = self._folder / name
            found = file_checks.identity(path)
            if self._verified.get(name) == found:
                continue
            expected = self.manifest.files[name]
            file_checks.check_content(path, expected.bytes, expected.crc32)
            if name == part.file:
                file_checks.check_locations(path, part.data)
            self._verified[name] = found

    def _checked(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Return a feed that has what the model wants.

        Raises:
            DataError: it has not.
        """
        optional = {name for part in self._parts for name in part.optional_inputs}
        wanted = {spec.name: spec for spec in self.inputs}
        known = [str(spec) for spec in self.inputs]
        for name in feed:
            if name not in wanted and name not in optional:
                raise DataError(f"there is no input {name!r}", hint=f"There are {', '.join(known)}")
        for spec in self.inputs:
            if spec.name not in feed:
                raise DataError(f"input {spec} is not fed")
            if spec.dtype is None:
                continue
            array = np.asarray(feed[spec.name])
            if _is_text(array) != (spec.dtype.kind == "O") or (spec.dtype.kind != "O" and array.dtype != spec.dtype):
                raise DataError(f"input {spec} is fed {array.dtype} {list(array.shape)}")
        for tensor in self.manifest.inputs:
            if tensor.name in feed and not _fits(tensor.shape, np.shape(feed[tensor.name])):
                raise DataError(f"input {_spec(tensor)} is fed {list(np.shape(feed[tensor.name]))}")
        return dict(feed)

    def _check(self, tensor: Tensor, value: Any, part: Part) -> None:
        """Raise ModelError unless a value is of the type and shape that the manifest lists."""
        dtype = array_type(tensor.type)
        if dtype is None:
            return
        if isinstance(value, np.ndarray) and value.dtype == dtype and _fits(tensor.shape, value.shape):
            return
        given = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ModelError(f"gives {given} for {_spec(tensor)}", where=self._where(part), hint=_AGAIN)

    def _where(self, part: Part) -> str:
        return os.fspath(self._folder / part.file)


def _give_back_memory() -> None:
    """Let the C library return freed memory to the system, where it can (glibc keeps smaller blocks otherwise)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(
        name=tensor.name, dtype=array_type(tensor.type), shape=tuple(tensor.shape or ()), type=tensor.type
    )


def _is_text(array: np.ndarray) -> bool:
    return array.dtype.kind in "OSU"


def _fits(declared: Sequence[int | str | None] | None, shape: Sequence[int]) -> bool:
    """Say whether a shape has the declared rank and fixed sizes."""
    if declared is None:
        return True
    return len(declared) == len(shape) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(declared, shape, strict=True)
    )
