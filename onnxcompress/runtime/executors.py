"""Executors for work in pieces: processes of this machine, or a Dask cluster.

Both are `concurrent.futures.Executor`s. A crash or a lost worker is a `LostWorkerError` of the one piece.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from ..errors import LostWorkerError, UsageError
from .processes import call_isolated

P = ParamSpec("P")
T = TypeVar("T")

_RETRIES = 2
"""Further tries of a piece whose worker was lost. Chosen by judgement; not measured."""
_CONNECT_SECONDS = 15
"""For a scheduler to answer. Chosen by judgement; not measured."""


class Processes(Executor):
    """Runs each piece in a fresh process, a few at a time: a crash takes nothing else with it."""

    elsewhere_seconds = 0.0

    def __init__(self, workers: int) -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="onnxcompress")
        self._stopped = threading.Event()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function of the top level of a module; arguments and value are pickled."""
        return self._threads.submit(self._call, functools.partial(fn, *args, **kwargs))

    def share(self, value: T) -> T:
        """Return a value for many pieces: the value itself."""
        return value

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as its base
        """End; without `wait`, processes that still run are killed."""
        if not wait:
            self._stopped.set()
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)

    def _call(self, piece: Callable[[], T]) -> T:
        return call_isolated(piece, stopped=self._stopped).value


class DaskCluster(Executor):
    """Runs pieces on the workers of a Dask scheduler; a piece whose worker is lost is begun again on another.

    Args:
        address: of the scheduler, as tcp://host:8786.

    Raises:
        UsageError: nobody answers there, or Dask is not installed.
    """

    def __init__(self, address: str) -> None:
        if importlib.util.find_spec("distributed") is None:
            hint = "pip install 'onnxcompress[distributed]'"
            raise UsageError("a Dask cluster needs the package distributed", where="--scheduler", hint=hint)
        import distributed

        try:
            self._client = distributed.Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            hint = "Start one there: dask scheduler"
            raise UsageError(f"no Dask scheduler answers ({error})", where=address, hint=hint) from error
        self._inner = self._client.get_executor(pure=False, retries=_RETRIES)
        self._killed: type[Exception] = distributed.KilledWorker
        self._counting = threading.Lock()
        self.elsewhere_seconds = 0.0
        """CPU seconds of the pieces that have ended; what a worker does for others meanwhile counts too."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function of the top level of a module that workers have too; arguments may be shared values."""
        inner: Future[tuple[T, float]] = self._inner.submit(_counted, fn, *args, **kwargs)
        outer: Future[T] = Future()
        outer.set_running_or_notify_cancel()
        inner.add_done_callback(functools.partial(self._hand_on, outer))
        return outer

    def share(self, value: T) -> Any:
        """Send a value to all workers once, and return its reference."""
        return self._client.scatter(value, broadcast=True)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as its base
        """End; without `wait`, or with `cancel_futures`, pieces that were not begun are not begun any more."""
        self._inner.shutdown(wait=wait and not cancel_futures)
        self._client.close()

    def _hand_on(self, outer: Future[T], inner: Future[tuple[T, float]]) -> None:
        try:
            value, seconds = inner.result()
            with self._counting:
                self.elsewhere_seconds += seconds
            outer.set_result(value)
        except self._killed as error:
            outer.set_exception(LostWorkerError(f"the workers that it ran on went away: {error}"))
        except CancelledError:
            outer.set_exception(LostWorkerError("the cluster gave it up"))
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever asks for the result gets it
            outer.set_exception(error)


def _counted(fn: Callable[..., T], *args: Any, **kwargs: Any) -> tuple[T, float]:
    """Return what a function returns, and the CPU seconds of its process meanwhile."""
    begun = time.process_time()
    value = fn(*args, **kwargs)
    return value, time.process_time() - begun


@contextlib.contextmanager
def opened(*, workers: int, scheduler: str | None) -> Iterator[Processes | DaskCluster]:
    """Give an executor for the time of a block; when the block is left by an error, what still runs is given up.

    Raises:
        UsageError: no scheduler answers.
    """
    executor = Processes(workers) if scheduler is None else DaskCluster(scheduler)
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


@contextlib.contextmanager
def wanted(*, workers: int, scheduler: str | None) -> Iterator[Processes | DaskCluster | None]:
    """Give an executor for the time of a block where one is asked for, by more than one worker or a scheduler.

    What still runs when the block is left is given up.

    Raises:
        UsageError: no scheduler answers.
    """
    if workers == 1 and scheduler is None:
        yield None
        return
    executor = Processes(workers) if scheduler is None else DaskCluster(scheduler)
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
