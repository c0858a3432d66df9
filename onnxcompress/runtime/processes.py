"""Processes for work that may not take this one with it: one-shot calls, and objects that live there.

A model can make onnxruntime abort, hang or take all memory. In a process of its own that is a `ModelError`.

Messages are pickles with their length before them, on the child's standard input and output. The first one makes an
object, each further one calls a method of it. The child imports only what the requests name, never the user's
`__main__`, and ends when its standard input closes: it can't outlive this process.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, Literal, TypeVar

from ..errors import LostWorkerError, ModelError, OnnxCompressError, StuckError

T = TypeVar("T")

_POLL_SECONDS = 0.25
"""Time between two looks whether the answer is still wanted. Chosen by judgement; not measured."""

_LENGTH = struct.Struct("<Q")
_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);from onnxcompress.runtime.processes import serve; serve()"
)


@dataclass(frozen=True, kw_only=True)
class Isolated(Generic[T]):
    """Value of a function called in its own process, its seconds there, and that process's peak memory."""

    value: T
    seconds: float
    peak_memory_bytes: int


def call_isolated(
    function: Callable[..., T],
    *args: Any,
    timeout_seconds: float = math.inf,
    memory_bytes: int | None = None,
    stopped: threading.Event | None = None,
) -> Isolated[T]:
    """Call `function(*args)` in a fresh process and return its value with its time and peak memory.

    Arguments and value are pickled: give paths where models are large.

    Args:
        function: a function at the top level of an importable module.
        args: its arguments.
        timeout_seconds: for the call, start of the process included.
        memory_bytes: most memory that the process may allocate (mapped files don't count); enforced on Linux.
        stopped: set where the answer is not wanted any more: the process is killed.

    Raises:
        LostWorkerError: the process crashed, or was killed.
        StuckError: the time is up.
        ModelError: it ran out of memory.
        OnnxCompressError: the function raised it.
        RuntimeError: the function raised anything else (its traceback is in the message).
    """
    if function.__module__ == "__main__":
        msg = f"{function.__qualname__} is defined in __main__, which another process can't import"
        raise TypeError(msg)
    deadline = time.monotonic() + timeout_seconds
    call = RemoteObject(
        _Call, function, args, timeout_seconds=timeout_seconds, memory_bytes=memory_bytes, stopped=stopped
    )
    try:
        answer: Isolated[T] = call.call("run", timeout_seconds=deadline - time.monotonic())
        return answer
    except StuckError:
        raise _stuck(timeout_seconds) from None
    finally:
        call.close()


class RemoteObject:
    """Makes `factory(*args)` in a new process and calls its methods there.

    Args:
        factory: a class or function at the top level of an importable module.
        args: its arguments, pickled.
        timeout_seconds: for making it, start of the process included.
        memory_bytes: most memory that the process may allocate (mapped files don't count), None for no limit.
        stopped: set where no answer is wanted any more: the process is killed.

    Raises:
        ModelError: the process died while making it, or ran out of memory.
        StuckError: the time is up.
        OnnxCompressError: `factory` raised it.
    """

    def __init__(
        self,
        factory: Callable[..., Any],
        *args: Any,
        timeout_seconds: float,
        memory_bytes: int | None,
        stopped: threading.Event | None = None,
    ) -> None:
        self._memory_bytes = memory_bytes
        self._stopped = stopped or threading.Event()
        self._log = tempfile.TemporaryFile(prefix="onnxcompress-")  # noqa: SIM115 - open as long as the process
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own module
            [sys.executable, "-c", _BOOTSTRAP, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self.close = weakref.finalize(self, _end, self._process, self._log)
        """Ends the process; further calls are refused."""
        try:
            self._ask((memory_bytes, factory, args), timeout_seconds)
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *args: Any, timeout_seconds: float, **named: Any) -> Any:
        """Call a method of the object there.

        Raises:
            ModelError: the process died, now or before, or ran out of memory.
            StuckError: the time is up; the process is ended.
            OnnxCompressError: the method raised it.
        """
        if not self.close.alive:
            raise ModelError("the process that ran the model has ended before")
        return self._ask((method, args, named), timeout_seconds)

    def _ask(self, request: Any, timeout_seconds: float) -> Any:
        """Send a request and return its answer; a watcher ends the process where that takes too long."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        deadline, answered = time.monotonic() + timeout_seconds, threading.Event()
        threading.Thread(target=self._watch, args=(deadline, answered), daemon=True).start()
        try:
            _write(self._process.stdin, request)
            answer: _Answer = pickle.loads(_read(self._process.stdout))  # noqa: S301 - written by our own process
        except (EOFError, OSError):
            status = self._process.wait()
            self._log.seek(0)
            log = self._log.read().decode(errors="replace")
            self.close()
            if self._stopped.is_set():
                raise LostWorkerError("the process was stopped") from None
            raise _stuck(timeout_seconds) if time.monotonic() >= deadline else _crash(status, log) from None
        except BaseException:
            self.close()  # what it sends next would be the answer to this request
            raise
        finally:
            answered.set()
        return self._unpacked(answer)

    def _watch(self, deadline: float, answered: threading.Event) -> None:
        while not answered.wait(max(0.0, min(_POLL_SECONDS, deadline - time.monotonic()))):
            if self._stopped.is_set() or time.monotonic() >= deadline:
                self._process.kill()
                return

    def _unpacked(self, answer: _Answer) -> Any:
        if answer.outcome == "refusal":
            raise answer.value
        if answer.outcome == "memory":
            limit = self._memory_bytes
            most = "there is" if limit is None else f"the limit of {limit / 1e6:.0f} MB"
            raise ModelError(f"running the model needs more memory than {most}")
        if answer.outcome == "bug":
            msg = f"the worker process failed:\n{answer.value}"
            raise RuntimeError(msg)
        return answer.value


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process in bytes (0 where the system doesn't tell).

    Linux's own record is read, since `getrusage` inherits the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def age_seconds() -> float:
    """Return how long ago this process began (0 where the system doesn't tell); a fork is as old as itself."""
    try:
        began = int(
            Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
        )
        uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    return max(0.0, uptime - began / os.sysconf("SC_CLK_TCK"))


def serve() -> None:
    """Make the object that the first request names and answer calls; the child's whole life."""
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    held: list[Any] = []

    def make() -> None:
        memory_bytes, factory, args = pickle.loads(requests.get())  # noqa: S301 - written by our own process
        _limit_memory(memory_bytes)
        held.append(factory(*args))

    def call() -> Any:
        method, args, named = pickle.loads(requests.get())  # noqa: S301 - written by our own process
        return getattr(held[0], method)(*args, **named)

    _write(outgoing, _answer(make))
    while True:
        _write(outgoing, _answer(call))


class _Call:
    """A function and its arguments, to be called in another process."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._function, self._args = function, args

    def run(self) -> Isolated[Any]:
        start = time.perf_counter()
        value = self._function(*self._args)
        seconds = time.perf_counter() - start
        return Isolated(value=value, seconds=seconds, peak_memory_bytes=peak_memory_bytes())


@dataclass(frozen=True)
class _Answer:
    """Outcome of a request: its value, the error to raise, or the traceback of a bug."""

    outcome: Literal["value", "refusal", "memory", "bug"]
    value: Any = None


def _answer(work: Callable[[], Any]) -> _Answer:
    try:
        return _Answer("value", work())
    except OnnxCompressError as error:
        return _Answer("refusal", error)
    except MemoryError:
        return _Answer("memory")
    except Exception:  # noqa: BLE001 - whatever it is, the other side raises it
        return _Answer("bug", traceback.format_exc())


def _listen(requests: queue.SimpleQueue[bytes]) -> None:
    """Read requests until the other side closes the stream or dies, which ends this process, busy or not."""
    try:
        with contextlib.suppress(EOFError), os.fdopen(os.dup(0), "rb") as incoming:
            while True:
                requests.put(_read(incoming))
    except MemoryError:
        os.write(2, b"MemoryError: a request is too large\n")
    os._exit(1)  # without destructors, in which a runtime may crash


def _write(stream: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message, protocol=5)
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes:
    """Return the pickle of one message.

    Raises:
        EOFError: the other side has closed the stream.
    """
    start = stream.read(_LENGTH.size)
    if len(start) == _LENGTH.size:
        (length,) = _LENGTH.unpack(start)
        data = stream.read(length)
        if len(data) == length:
            return data
    raise EOFError


def _limit_memory(memory_bytes: int | None) -> None:
    """Limit this process's private writable memory: file mappings, which weights are read through, don't count."""
    if memory_bytes is not None and sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


def _stuck(timeout_seconds: float) -> StuckError:
    return StuckError(f"onnxruntime did not finish within {timeout_seconds:g} s")


def _crash(status: int, log: str) -> LostWorkerError:
    """Return the error for a process that ended with an exit status (negative: the signal) and these last words."""
    try:
        how = f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        how = f"ended with exit status {status}"
    lines = log.strip().splitlines()
    said = f" (it said: {lines[-1].strip()[:200]})" if lines else ""
    return LostWorkerError(f"the process that ran the model {how}{said}")


def _end(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, log):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
