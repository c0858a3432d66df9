"""A child process that answers JSON lines and can be killed: a hang or a crash ends it, not us."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
from pathlib import Path
from typing import Any

TOOLS_FOLDER = Path(__file__).resolve().parent.parent
ROOT = TOOLS_FOLDER.parent


class ChildDiedError(Exception):
    """The child ended or was killed before it answered; the text says how."""


class Child:
    """`PYTHON -m bench.MODULE ARGS`, started when first asked and again after a death."""

    def __init__(self, python: Path | str, module: str, *args: str, with_project: bool) -> None:
        """Prepare the command; `with_project` puts the project's own source tree on the import path."""
        self._command = [str(python), "-P", "-W", "ignore", "-m", f"bench.{module}", *args]
        path = [str(TOOLS_FOLDER)] + ([str(ROOT)] if with_project else [])
        self._environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
        self._process: subprocess.Popen[bytes] | None = None
        self.greeting: dict[str, Any] = {}

    def start(self, *, timeout_seconds: float = 120) -> dict[str, Any]:
        """Start the child unless it runs, and return its greeting."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment,
                start_new_session=True,
            )
            self.greeting = self._read_line(timeout_seconds)
        return self.greeting

    def ask(self, request: dict[str, Any], *, timeout_seconds: float) -> dict[str, Any]:
        """Send one request and return its reply; raises `ChildDiedError` on a crash or time-out."""
        self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._death("closed its input") from error
        return self._read_line(timeout_seconds)

    @property
    def running(self) -> bool:
        """Whether the child has been started and not stopped since."""
        return self._process is not None

    def stop(self) -> None:
        """Kill the child with everything it started; harmless when it does not run."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process = None

    def _read_line(self, timeout_seconds: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_seconds):
                raise self._death(f"no answer in {timeout_seconds:g} s")
        line = self._process.stdout.readline()
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            code = self._process.returncode
            raise self._death(signal.Signals(-code).name if code and code < 0 else f"exit code {code}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _death(self, how: str) -> ChildDiedError:
        self.stop()
        return ChildDiedError(how)
