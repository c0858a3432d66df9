"""An object that lives in a process of its own: calls go there, and its death is an error here."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from typing import IO, Any

from ..errors import ModelError, OnnxCompressError, StuckError
from .processes import crash, limit_memory

_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from onnxcompress.runtime.remote_objects import serve; serve()"
)
_LENGTH = struct.Struct("<Q")


class RemoteObject:
    """Makes `factory(*args)` in a new process and calls its methods there.

    Args:
        factory: a class or function at the top level of an importable module.
        args: its arguments, pickled.
        timeout_seconds: for making it.
        memory_bytes: most memory that the process may allocate (mapped files don't count), None for no limit.

    Raises:
        ModelError: the process died while making it.
        StuckError: the time is up.
        OnnxCompressError: `factory` raised it.
    """

    def __init__(
        self, factory: Callable[..., Any], *args: Any, timeout_seconds: float, memory_bytes: int | None
    ) -> None:
        self._log = tempfile.TemporaryFile(prefix="onnxcompress-")  # noqa: SIM115 - open as long as the process
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own module
            [sys.executable, "-c", _BOOTSTRAP, json.dumps(sys.path), json.dumps(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._finalizer = weakref.finalize(self, _end, self._process, self._log)
        self._send((factory, args), timeout_seconds)

    def call(self, method: str, *args: Any, timeout_seconds: float, **named: Any) -> Any:
        """Call a method of the object there.

        Raises:
            ModelError: the process died, now or before.
            StuckError: the time is up; the process is ended.
            OnnxCompressError: the method raised it.
        """
        if not self._finalizer.alive:
            raise ModelError("the process that ran the model has ended before")
        return self._send((method, args, named), timeout_seconds)

    def _send(self, request: Any, timeout_seconds: float) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_seconds
        try:
            write(self._process.stdin, request)
            ready, _, _ = select.select([self._process.stdout], [], [], timeout_seconds)
            if not ready:
                self._finalizer()
                raise StuckError(f"onnxruntime did not finish within {timeout_seconds:g} s")
            timer = threading.Timer(max(1.0, deadline - time.monotonic()), self._process.kill)
            timer.start()
            try:
                outcome, value = read(self._process.stdout)
            finally:
                timer.cancel()
        except (EOFError, BrokenPipeError):
            status = self._process.wait()
            self._log.seek(0)
            log = self._log.read().decode(errors="replace")
            self._finalizer()
            raise crash(status, log) from None
        if outcome == "refusal":
            raise value
        if outcome == "bug":
            msg = f"the process of the model failed:\n{value}"
            raise RuntimeError(msg)
        return value


def serve() -> None:
    """Make the object that is asked for and answer calls; the other process's whole life."""
    limit_memory(json.loads(sys.argv[2]))
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    with contextlib.suppress(EOFError, BrokenPipeError):
        factory, args = read(incoming)
        held = _answer(outgoing, factory, args, {}, shows=False)
        while True:
            method, args, named = read(incoming)
            _answer(outgoing, getattr(held, method), args, named, shows=True)
    os._exit(0)


def _answer(
    stream: IO[bytes], function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any], *, shows: bool
) -> Any:
    value = None
    try:
        value = function(*args, **named)
        answer = ("value", value if shows else None)
    except OnnxCompressError as error:
        answer = ("refusal", error)
    except MemoryError:
        answer = ("refusal", ModelError("running the model needs more memory than there is"))
    except Exception:  # noqa: BLE001 - whatever it is, the other side raises it
        answer = ("bug", traceback.format_exc())
    write(stream, answer)
    return value


def write(stream: IO[bytes], message: Any) -> None:
    """Write one message."""
    data = pickle.dumps(message, protocol=5)
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def read(stream: IO[bytes]) -> Any:
    """Read one message.

    Raises:
        EOFError: the other side has closed it.
    """
    start = stream.read(_LENGTH.size)
    if len(start) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(start)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)  # noqa: S301 - written by our own process


def _end(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, log):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
