"""Write a file so that its name holds either the old content, whole, or the new content, whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ModelError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Pending:
    """A temporary file beside `target`, which becomes `target` at `commit` and is removed by `discard`."""

    def __init__(self, target: Path, chunks: Iterable[bytes | memoryview], size: int) -> None:
        """Write `chunks`, `size` bytes in all, to the disk.

        Raises:
            ModelError: when the disk is full or the folder can't be written to; nothing is left behind.

        """
        self.target = target
        self.path = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(6)}.tmp")
        try:
            with _explained(target, size), self.path.open("xb") as file:
                _keep_mode(file.fileno(), target)
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            self.discard()
            raise

    def commit(self, name: str | None = None) -> Path:
        """Put the file in its place (under `name` in the same folder, if given) and return where that is."""
        final = self.target.with_name(name) if name else self.target
        with _explained(final, 0):
            self.path.replace(final)
            _sync_folder(final.parent)
        return final

    def discard(self) -> None:
        """Remove the temporary file if it is still there."""
        self.path.unlink(missing_ok=True)


def write(target: Path, chunks: Iterable[bytes | memoryview], size: int) -> None:
    """Replace `target` by `chunks`, `size` bytes in all, or leave it untouched."""
    pending = Pending(target, chunks, size)
    try:
        pending.commit()
    finally:
        pending.discard()


def check_target(target: Path, *, force: bool) -> None:
    """Raise unless `target` can be written, before any work is done for it.

    Raises:
        UsageError: when it exists and `force` is off, is a folder or a device, or its folder does not exist.
        ModelError: when its folder is not writable.

    """
    where = os.fspath(target)
    if target.is_dir():
        raise UsageError("is a folder", where=where, hint="Give the name of the file to write")
    if target.exists() and not target.is_file():
        raise UsageError("is a device or a pipe, not a file", where=where, hint="Give the name of a file")
    if not target.parent.is_dir():
        raise UsageError("its folder does not exist", where=where, hint=f"Create {target.parent} first")
    if not force and os.path.lexists(target):
        raise UsageError("exists already", where=where, hint="Give --force to replace it")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ModelError("no permission to write into its folder", where=where)


def remove_stale(target: Path) -> None:
    """Remove temporary files of `target` whose process is gone."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.[0-9a-f]{{12}}\.tmp")
    for path in target.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not _is_alive(int(match[1])):
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep other runs from putting files into `folder`; where the system can't lock, do without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _keep_mode(descriptor: int, target: Path) -> None:
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(target: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = os.fspath(target)
        if error.errno in _FULL:
            message = f"no space left to write it: {size} bytes are needed"
            raise ModelError(message, where=where, hint="Free some space, or write to another disk") from error
        raise ModelError(f"can't be written ({error.strerror or error})", where=where) from error
