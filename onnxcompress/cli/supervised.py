"""Do the work in a child that may die: a runtime that crashes ends a command with one line, or is worked around.

The child is a fork of this process before anything heavy is imported, which takes a millisecond. If a signal of its own
kills it (SIGSEGV, SIGABRT, SIGFPE ...), the work is done again, every session in a process of its own: what crashes
there is refused or taken back by name, and the rest is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
from collections.abc import Callable

from ..runtime.isolation import Isolation

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_LOOK_SECONDS = 0.5
"""Most time until a signal is passed on that arrives just before a call that waits. Chosen by judgement."""
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGBUS, signal.SIGTRAP, signal.SIGSYS)
_PR_SET_PDEATHSIG = 1
"""Option of prctl(2): the signal that a child gets when its parent ends."""


class ChildDiedError(Exception):
    """The work was ended by a signal, twice or in a way that a second try would repeat."""

    def __init__(self, number: int) -> None:
        super().__init__(f"was killed by {signal.Signals(number).name}")
        self.number = number


def supervised(work: Callable[[Isolation], int]) -> int:
    """Call `work("expendable")` in a child, and `work("apart")` in another where the first one crashes.

    In the child this returns what `work` returns, and so it does in this process once the child has ended: the caller
    ends the process with it. Where the system can't fork, or others run in this process already, the
    work is done here.

    Raises:
        ChildDiedError: the child was killed, and not by a crash, or the second one crashed too.
    """
    if not hasattr(os, "fork") or threading.active_count() > 1 or "onnxruntime" in sys.modules:
        return work("none")
    first = _fork(work, "expendable")
    if not isinstance(first, _Death):
        return first
    if first.number not in _CRASHES:
        raise ChildDiedError(first.number)
    second = _fork(work, "apart")
    if not isinstance(second, _Death):
        return second
    raise ChildDiedError(second.number)


class _Death:
    """The signal that ended a child."""

    def __init__(self, number: int) -> None:
        self.number = number


def _fork(work: Callable[[Isolation], int], isolation: Isolation) -> int | _Death:
    reading, writing = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_FORWARDED, signal.SIGTSTP))
    parent = os.getpid()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _follow(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_FORWARDED, signal.SIGTSTP))
        code = work(isolation)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os.write(writing, bytes([code]))
        os.close(writing)
        return code
    os.close(writing)
    before = {number: signal.signal(number, lambda got, _: _pass_on(child, got)) for number in _FORWARDED}
    before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, lambda *_: _pause(child))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, before)
    try:
        with os.fdopen(reading, "rb") as pipe:
            while not select.select([pipe], [], [], _LOOK_SECONDS)[0]:
                pass  # a signal that comes just before a call that waits is handled after it
            said = pipe.read()
        _, status = os.waitpid(child, 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if said:  # a runtime that crashes when it is taken down has done its work all the same
        return said[0]
    if os.WIFSIGNALED(status):
        return _Death(os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status)


def _follow(parent: int) -> None:
    """In the child: be a group of its own, so that signals come once, and end when the parent is killed."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _pass_on(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def _pause(child: int) -> None:
    """Stop with the child, and go on with it."""
    os.kill(child, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)
    os.kill(child, signal.SIGCONT)
