"""Bytes that stay where they are: an open file, or memory, read by position.

A model's weights are read from its file by `os.pread` and not through a memory map: mapped pages count as
resident memory, and a map of a file that someone truncates kills the process.
"""

from __future__ import annotations

import os
import stat
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKED = b"ONNXPACK"
"""First bytes of an archive of a model, which `packing.archive` writes."""
CHUNK_BYTES = 4 << 20
"""Read and written at a time. Chosen by judgement; not measured."""


class ByteSource(Protocol):
    """Something that holds bytes at positions 0 to `size`."""

    @property
    def size(self) -> int:
        """The number of bytes."""
        ...

    @property
    def label(self) -> str:
        """Name for messages."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset` on, or raise ModelError."""
        ...

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `offset` on, or raise ModelError."""
        ...


class InMemory:
    """Bytes in memory, read without a copy where the caller allows it."""

    def __init__(self, data: bytes, label: str = "model") -> None:
        self.data = data
        self.size = len(data)
        self.label = label

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset` on."""
        if offset < 0 or offset + length > self.size:
            raise ModelError(f"bytes {offset} to {offset + length} are past the end", where=self.label)
        return self.data[offset : offset + length]

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `offset` on."""
        target[:] = self.read(offset, len(target))


class OpenFile:
    """A regular file, opened once and kept open, so that it outlives being replaced or deleted.

    The descriptor is closed with the last tensor that reads from it.

    Raises:
        ModelError: when it is missing, unreadable, or not a regular file.

    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.label = os.fspath(path)
        try:
            descriptor = os.open(self.label, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise ModelError(_reason(error), where=self.label) from error
        except ValueError as error:
            raise ModelError("not a usable file name", where=repr(self.label)) from error
        self._finalizer = weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            self._finalizer()
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ModelError(f"is {kind}", where=self.label, hint="Give the path of an .onnx file")
        self.size = status.st_size
        self._modified = status.st_mtime_ns

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset` on."""
        data = os.pread(self._descriptor, length, offset) if 0 <= offset <= self.size - length else b""
        if len(data) == length and self._is_unchanged():
            return data
        target = bytearray(length)  # past the end, cut short or changed: the careful way says which
        self.read_into(offset, memoryview(target))
        return bytes(target)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `offset` on."""
        if offset < 0 or offset + len(target) > self.size:
            raise ModelError(f"bytes {offset} to {offset + len(target)} are past the end", where=self.label)
        done = 0
        while done < len(target):
            count = os.preadv(self._descriptor, [target[done : done + (1 << 30)]], offset + done)
            if not count:
                break
            done += count
        if done < len(target) or not self._is_unchanged():
            raise ModelError("was changed while it was being read", where=self.label, hint="Run again")

    def reachable_path(self) -> str | None:
        """Return an absolute path under which another process finds this very file, None when there is none."""
        own = os.fstat(self._descriptor)
        path = Path(self.label).absolute()
        try:
            there = path.stat()
        except OSError:
            return None
        return str(path) if (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino) else None

    def _is_unchanged(self) -> bool:
        status = os.fstat(self._descriptor)
        return (status.st_size, status.st_mtime_ns) == (self.size, self._modified)


def read_chunks(source: ByteSource, offset: int, length: int) -> Iterator[bytes]:
    """Yield `length` bytes from `offset` on, a few MiB at a time."""
    for start in range(offset, offset + length, CHUNK_BYTES):
        yield source.read(start, min(CHUNK_BYTES, offset + length - start))


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return f"can't be opened ({error.strerror or error})"
