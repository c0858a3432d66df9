"""Run a user's program so that its sessions are recorded, its code unchanged."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..runtime import programs
from .store import FeedStore

_INJECTED = Path(__file__).parent / "injected"
"""The folder that PYTHONPATH begins with."""

_VARIABLE = "ONNXCOMPRESS_RECORD_TO"
"""Tells the hook where to record to."""


def check(command: Sequence[str]) -> None:
    """Refuse a program that can't be started.

    Raises:
        UsageError: nothing was given, or there is no such program.
    """
    if not command:
        raise UsageError("no program to run", hint="Write it after --: onnxcompress record -o FEEDS -- python app.py")
    if shutil.which(command[0]) is None:
        is_script = command[0].endswith(".py") and Path(command[0]).is_file()
        hint = f"Write python {command[0]}" if is_script else "Give a program that is on the PATH, or its path"
        raise UsageError("is no program that can be run", where=command[0], hint=hint)


def run(command: Sequence[str], folder: Path, *, most: int, keep: str, max_bytes: int, seed: int) -> int:
    """Run a program and record what its sessions are fed, in its child processes too; return its exit code.

    Args:
        command: the program and its arguments.
        folder: empty.
        most: samples kept of each model.
        keep: which: see `FeedStore`.
        max_bytes: of all samples.
        seed: of the draw.

    Returns:
        The program's exit code; 128 and the number of the signal where one has ended it.

    Raises:
        ModelError: the system can't start it.
    """
    FeedStore(folder, most=most, keep=keep, max_bytes=max_bytes, seed=seed).close()
    code = programs.run(command, variables={_VARIABLE: str(folder.absolute())}, python_path=str(_INJECTED))
    for part in (*folder.glob(".*.part"), *folder.glob("*/.*.part")):  # of a process that was killed
        part.unlink(missing_ok=True)
    return code


def inherits_python_path(command: Sequence[str]) -> bool:
    """Say whether Python, as it is called, reads PYTHONPATH and runs a sitecustomize."""
    flags = itertools.takewhile(lambda word: word.startswith("-") and word[1:2] not in "cm-", command[1:])
    return not (Path(command[0]).name.startswith("python") and any(set("IES") & set(flag) for flag in flags))
