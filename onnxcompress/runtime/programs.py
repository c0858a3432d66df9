"""Run a program of the user's, with its own terminal, as if it had been started without us."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

from ..errors import ModelError

_SIGNALLED = 128
"""Exit codes of shells for a program that a signal has ended: this and its number."""


def run(command: Sequence[str], *, variables: Mapping[str, str], python_path: str) -> int:
    """Run a program and return its exit code, 128 and the number of the signal where one has ended it.

    A signal that asks us to end is passed on. Ctrl-C reaches the program from the terminal.

    Args:
        command: the program and its arguments.
        variables: added to the environment.
        python_path: put before what PYTHONPATH holds.

    Raises:
        ModelError: the system can't start it.
    """
    path = os.pathsep.join([python_path, *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        process = subprocess.Popen(list(command), env={**os.environ, **variables, "PYTHONPATH": path})  # noqa: S603
    except OSError as error:
        raise ModelError(f"can't be started ({error.strerror or error})", where=command[0]) from error
    before = {
        number: signal.signal(number, lambda got, _: process.send_signal(got))
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    }
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else _SIGNALLED - status
