"""Checks of files before they are mapped: plain, whole, and not leading out of their folder."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import onnx

from ..errors import ModelError

_CHUNK_BYTES = 1 << 20
"""Read at a time for a checksum. Chosen by judgement; not measured."""

_AGAIN = "Split the model again, or copy its folder again"


def identity(path: Path) -> tuple[int, int, int]:
    """Return what changes when a file is replaced or written to.

    Raises:
        ModelError: it is missing, a link, or no file.
    """
    status = _plain_file(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


def check_content(path: Path, size: int, crc32: str) -> None:
    """Raise ModelError unless a file has this size and CRC-32; it is read a MiB at a time."""
    found = _plain_file(path).st_size
    if found != size:
        raise ModelError(f"has {found} bytes and should have {size}", where=os.fspath(path), hint=_AGAIN)
    if f"{_crc32(path):08x}" != crc32:
        raise ModelError("is damaged: its CRC-32 is not the manifest's", where=os.fspath(path), hint=_AGAIN)


def check_locations(path: Path, allowed: Collection[str]) -> None:
    """Raise ModelError where a model refers to data in other files than `allowed`."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own class, which it keeps private
        raise ModelError("is no ONNX model", where=os.fspath(path), hint=_AGAIN) from error
    for location in _locations(model):
        if location not in allowed:
            message = f"refers to data at {location!r}, which the manifest does not list for it"
            raise ModelError(message, where=os.fspath(path), hint=_AGAIN)


def data_files(path: Path) -> list[str]:
    """Return the files that a model refers to for its data, as it names them.

    Raises:
        ModelError: it is no model.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own class, which it keeps private
        raise ModelError("is no ONNX model", where=os.fspath(path)) from error
    return sorted(set(_locations(model)))


def _plain_file(path: Path) -> os.stat_result:
    """Return the status of a file in the folder itself.

    Raises:
        ModelError: it is missing, a link, or no file.
    """
    try:
        status = path.lstat()
    except OSError as error:
        raise ModelError(f"is missing ({error.strerror or error})", where=os.fspath(path), hint=_AGAIN) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a link, which may lead out of the folder" if stat.S_ISLNK(status.st_mode) else "no file"
        raise ModelError(f"is {kind}", where=os.fspath(path), hint=_AGAIN)
    return status


def _crc32(path: Path) -> int:
    value, buffer = 0, bytearray(_CHUNK_BYTES)
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                value = zlib.crc32(memoryview(buffer)[:count], value)
    except OSError as error:
        raise ModelError(f"can't be read ({error.strerror or error})", where=os.fspath(path)) from error
    return value


def _locations(message: Any) -> Iterator[str]:
    """Yield where the tensors in a message say that their data are, whatever the message."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in [value] if hasattr(value, "ListFields") else value:
            if isinstance(inner, onnx.TensorProto):
                yield from (entry.value for entry in inner.external_data if entry.key == "location")
            yield from _locations(inner)
