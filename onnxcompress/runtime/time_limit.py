"""Work that ends when its time is up, whatever it is doing.

    caller --thread--> work;  time is up --> runs of the runtime are ended, the thread is interrupted --> given up

The work is in a thread of its own, so that a call into native code (loading a model, one node, a decomposition) can't
hold up the caller: such a thread is left behind and ends with the call. An interrupt is like a Ctrl-C in the middle
of the work: what it was editing is not to be used afterwards.
"""

from __future__ import annotations

import contextvars
import ctypes
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from ..errors import TimeUpError

if TYPE_CHECKING:
    from ..base.clock import Clock

T = TypeVar("T")

GRACE_SECONDS = 0.5
"""What interrupted work has to close its files and processes in. Chosen by judgement; not measured."""
_POLL_SECONDS = 0.05
"""Time between two looks at the clock. Chosen by judgement."""
_AGAIN_SECONDS = 0.2
"""Time between two interrupts of work that continues, because it took the first for something else. By judgement."""


class WorkInterrupt(BaseException):
    """Raised within work whose time is up; no `Exception`, so that nothing takes it for a failure of a model."""


_CURRENT: Final[contextvars.ContextVar[_Work[Any] | None]] = contextvars.ContextVar("work", default=None)


def within(work: Callable[[], T], clock: Clock, *, grace_seconds: float = GRACE_SECONDS, in_thread: bool = False) -> T:
    """Return what `work()` returns, if it does so before a clock is over; without a limit it is called here.

    An error in the caller's thread meanwhile, such as the user's interrupt, stops the work as well.

    Args:
        work: called in another thread, in the caller's context.
        clock: its limit.
        grace_seconds: time for interrupted work to clean up in.
        in_thread: have a thread for it without a limit too, so that an interrupt is heard at once, whatever it does.

    Raises:
        TimeUpError: the clock is over.
        Exception: whatever the work raises.
    """
    if not clock.is_limited and not in_thread:
        return work()
    if clock.is_over:
        raise TimeUpError
    task = _Work(work)
    try:
        task.start()  # an interrupt that comes while the thread starts is one for the work, too
        while clock.left_seconds > 0 and not task.done.wait(min(_POLL_SECONDS, clock.left_seconds)):
            pass
    except BaseException:  # the user's interrupt is one for the work
        task.stop(grace_seconds)
        raise
    if not task.done.is_set():
        task.stop(grace_seconds)
    return task.result()


def run_options(make: Callable[[], Any]) -> Any:
    """Return options for one run of the runtime, whose `terminate` is set when the time is up; None without a limit.

    Args:
        make: makes the options.
    """
    task = _CURRENT.get()
    if task is None:
        return None
    task.options = make()
    if task.is_stopped:
        task.options.terminate = True
    return task.options


class _Work(Generic[T]):
    """Work in a thread; `options` are those of the run of the runtime that it is in, or was in last."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._value: list[T] = []
        self._error: BaseException | None = None
        self.done = threading.Event()
        self.is_stopped = False
        self.options: Any = None
        context = contextvars.copy_context()
        context.run(_CURRENT.set, self)
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="onnxcompress-work", daemon=True)

    def start(self) -> None:
        """Begin the work."""
        self._thread.start()

    def stop(self, grace_seconds: float) -> None:
        """Interrupt the work and wait until it has ended, no longer than the grace; then it is left behind."""
        self.is_stopped = True
        left = grace_seconds
        while not self.done.is_set() and left > 0:
            self._interrupt()
            self.done.wait(min(_AGAIN_SECONDS, left))
            left -= _AGAIN_SECONDS

    def result(self) -> T:
        """Return the value of work that has ended.

        Raises:
            TimeUpError: it was interrupted, or has not ended.
        """
        if self.done.is_set() and self._value:
            return self._value[0]
        if self._error is not None and not isinstance(self._error, WorkInterrupt) and not self.is_stopped:
            raise self._error
        raise TimeUpError

    def _run(self) -> None:
        try:
            self._value.append(self._work())
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
            self._error = error
        finally:
            self.done.set()

    def _interrupt(self) -> None:
        ident = self._thread.ident
        if ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(WorkInterrupt))
        if self.options is not None:
            self.options.terminate = True
