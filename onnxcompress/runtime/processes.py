"""Run a function in a process of its own, so that what the runtime does to that process stays there.

A model can make onnxruntime abort, hang or eat all memory. Here that is a `ModelError` like any other.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..errors import LostWorkerError, ModelError, OnnxCompressError, StuckError

T = TypeVar("T")

_LOOK_SECONDS = 0.25
"""How often is looked whether an answer is still wanted."""

# The child imports nothing but what the request names: never the user's __main__.
_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from onnxcompress.runtime.processes import serve; serve(sys.argv[2])"
)


@dataclass(frozen=True, kw_only=True)
class Isolated(Generic[T]):
    """What a function returned in its own process, how long it took there, and that process's peak memory."""

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

    Arguments and value are pickled through temporary files: hand over paths where models are large. The
    process is killed at the timeout, and when this one dies.

    Args:
        function: a function at the top level of an importable module.
        args: its arguments.
        timeout_seconds: time for the call, start of the process included.
        stopped: set where the answer is not wanted any more: the process is killed.
        memory_bytes: most memory that the process may allocate (mapped files don't count); enforced on Linux.

    Raises:
        LostWorkerError: the process crashed, or was killed.
        ModelError: it ran out of time or of memory.
        OnnxCompressError: the function raised it.
        RuntimeError: the function raised anything else (its traceback is in the message).

    """
    if function.__module__ == "__main__":
        msg = f"{function.__qualname__} is defined in __main__, which another process can't import"
        raise TypeError(msg)
    with tempfile.TemporaryDirectory(prefix="onnxcompress-") as name:
        folder = Path(name)
        (folder / "request").write_bytes(pickle.dumps((function, args, memory_bytes), protocol=5))
        status = _run_process(folder, timeout_seconds=timeout_seconds, stopped=stopped or threading.Event())
        if not (folder / "answer").exists():
            raise crash(status, (folder / "log").read_text(encoding="utf-8", errors="replace"))
        answer = pickle.loads((folder / "answer").read_bytes())  # noqa: S301 - written by our own process
    return _unpack(answer, memory_bytes)


def serve(folder_name: str) -> None:
    """Answer the request in `folder_name`; the child's whole life."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    folder = Path(folder_name)
    function, args, memory_bytes = pickle.loads((folder / "request").read_bytes())  # noqa: S301
    limit_memory(memory_bytes)
    answer = _answer(function, args)
    partial = folder / "answer.partial"
    partial.write_bytes(pickle.dumps(answer, protocol=5))
    partial.rename(folder / "answer")
    os._exit(0)  # a runtime that crashes in its destructors has answered all the same


@dataclass(frozen=True, kw_only=True)
class _CallAnswer:
    outcome: str
    value: Any
    seconds: float
    peak_memory_bytes: int


def _answer(function: Callable[..., Any], args: tuple[Any, ...]) -> _CallAnswer:
    start = time.perf_counter()
    try:
        outcome, value = "value", function(*args)
    except MemoryError:
        outcome, value = "memory", None
    except OnnxCompressError as error:
        outcome, value = "refusal", error
    except Exception:  # noqa: BLE001 - whatever it is, the parent raises it
        outcome, value = "bug", traceback.format_exc()
    seconds = time.perf_counter() - start
    return _CallAnswer(outcome=outcome, value=value, seconds=seconds, peak_memory_bytes=peak_memory_bytes())


def _unpack(answer: _CallAnswer, memory_bytes: int | None) -> Isolated[Any]:
    if answer.outcome == "refusal":
        raise answer.value
    if answer.outcome == "memory":
        raise ModelError(f"running the model needs more memory than {_limit_text(memory_bytes)}")
    if answer.outcome == "bug":
        msg = f"the worker process failed:\n{answer.value}"
        raise RuntimeError(msg)
    return Isolated(value=answer.value, seconds=answer.seconds, peak_memory_bytes=answer.peak_memory_bytes)


def _limit_text(memory_bytes: int | None) -> str:
    return "there is" if memory_bytes is None else f"the limit of {memory_bytes / 1e6:.0f} MB"


def _run_process(folder: Path, *, timeout_seconds: float, stopped: threading.Event) -> int:
    """Run the child on the request in `folder` and return its exit status (negative: the signal)."""
    command = [sys.executable, "-c", _BOOTSTRAP, json.dumps(sys.path), str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own module
            command, stdin=subprocess.PIPE, stdout=log, stderr=log
        )
        end = time.monotonic() + timeout_seconds
        try:
            while not stopped.is_set():
                try:
                    return process.wait(timeout=max(0.0, min(_LOOK_SECONDS, end - time.monotonic())))
                except subprocess.TimeoutExpired:
                    if time.monotonic() >= end:
                        raise StuckError(f"onnxruntime did not finish within {timeout_seconds:g} s") from None
            raise LostWorkerError("the process was stopped")
        finally:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def crash(status: int, log: str) -> LostWorkerError:
    """Return the error for a process of ours that ended with an exit status (negative: the signal) and these words."""
    try:
        how = f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        how = f"ended with exit status {status}"
    lines = log.strip().splitlines()
    said = f" (it said: {lines[-1].strip()[:200]})" if lines else ""
    return LostWorkerError(f"the process that ran the model {how}{said}")


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


def limit_memory(memory_bytes: int | None) -> None:
    """Limit this process's private writable memory: file mappings, which weights are read through, don't count."""
    if memory_bytes is not None and sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


def _die_with_parent() -> None:
    """End this process when its standard input closes: the parent holds the other end while it lives."""
    while os.read(0, 1):
        pass
    os._exit(1)
