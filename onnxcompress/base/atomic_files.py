"""Write a file so that its name holds either the old content, whole, or the new content, whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError, UsageError

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
        self.path = target.with_name(_temporary_name(target))
        try:
            make_parents(target)
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


class PendingFolder:
    """A temporary folder beside `target`, which becomes `target` at `commit` and is removed by `discard`."""

    def __init__(self, target: Path) -> None:
        """Make the folder.

        Raises:
            ModelError: it can't be made.

        """
        self.target = target
        self.path = target.with_name(_temporary_name(target))
        make_parents(target)
        with _explained(target, 0):
            self.path.mkdir()

    def write(self, name: str, chunks: Iterable[bytes | memoryview], size: int) -> None:
        """Write a file of `size` bytes into the folder, to the disk.

        Raises:
            ModelError: the disk is full, or the file can't be written.

        """
        with _explained(self.target, size), (self.path / name).open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    def commit(self) -> None:
        """Put the folder in its place; one that is there already steps aside first and is removed after.

        Raises:
            ModelError: it can't be put there; what was there is there again.

        """
        aside = self.target.with_name(_temporary_name(self.target))
        with _explained(self.target, 0):
            _sync_folder(self.path)
            if self.target.is_dir():
                self.target.rename(aside)
            try:
                self.path.rename(self.target)
            except BaseException:
                if aside.is_dir():
                    aside.rename(self.target)
                raise
            _sync_folder(self.target.parent)
        shutil.rmtree(aside, ignore_errors=True)

    def discard(self) -> None:
        """Remove the temporary folder if it is still there."""
        shutil.rmtree(self.path, ignore_errors=True)


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
        UsageError: when it exists and `force` is off, is a folder or a device, or its folder can't be made.
        ModelError: when its folder is not writable.

    """
    where = os.fspath(target)
    if target.is_dir():
        raise UsageError("is a folder", where=where, hint="Give the name of the file to write")
    if target.exists() and not target.is_file():
        raise UsageError("is a device or a pipe, not a file", where=where, hint="Give the name of a file")
    if not force and os.path.lexists(target):
        raise UsageError("exists already", where=where, hint="Give --force to replace it")
    check_parents(target)


def check_parents(target: Path) -> None:
    """Raise unless the folders that a file or folder is to be in are there or can be made.

    Raises:
        UsageError: one of them is a file.
        ModelError: there is no permission to write.
    """
    where = os.fspath(target)
    nearest = nearest_parent(target)
    if not nearest.is_dir():
        raise UsageError(f"{nearest} is no folder", where=where, hint="Give another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ModelError("no permission to write into its folder", where=where)


def nearest_parent(target: Path) -> Path:
    """Return the innermost folder above a path that is there (or what is there in its place)."""
    return next(folder for folder in target.absolute().parents if os.path.lexists(folder))


def make_parents(target: Path) -> None:
    """Make the folders that a file or folder is to be in.

    Raises:
        ModelError: they can't be made.
    """
    with _explained(target, 0):
        target.parent.mkdir(parents=True, exist_ok=True)


def check_folder(target: Path, *, force: bool) -> None:
    """Raise unless `target` can become a new folder of ours, before any work is done for it.

    Raises:
        UsageError: there is something else, it is not empty and `force` is off, it has folders in it (which ours
            never have), or its own folder can't be made.
        ModelError: its folder is not writable.

    """
    where = os.fspath(target)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError("is there and is no folder", where=where, hint="Give the name of a new folder")
    check_parents(target)
    content = list(target.iterdir()) if target.is_dir() else []
    if content and not force:
        raise UsageError("is not empty", where=where, hint="Give --force to replace it")
    if any(path.is_dir() for path in content):
        raise UsageError("has folders in it and is not replaced", where=where, hint="Give the name of a new folder")


def remove_stale(target: Path) -> None:
    """Remove temporary files and folders of `target` whose process has ended."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.[0-9a-f]{{12}}\.tmp")
    for path in target.parent.iterdir() if target.parent.is_dir() else ():
        match = pattern.fullmatch(path.name)
        if match and not _is_alive(int(match[1])):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


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


def _temporary_name(target: Path) -> str:
    return f".{target.name}.{os.getpid()}.{secrets.token_hex(6)}.tmp"


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
