"""The header of an archive: files with size, SHA-256 and segments; written, read, checked.

    archive = "ONNXPACK", version, lengths of the header packed and unpacked (3 x 4 bytes, little-endian),
              the header (JSON in a zstd frame with a checksum), then the blocks of every file, one after the other

Segments are runs of bytes of one kind. One of 64 KiB and more has blocks of its own; shorter ones of a kind share
blocks, which are written where the first of their bytes are due.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from typing import Annotated

import pydantic
import zstandard

from ..errors import ModelError
from ..io.sources import PACKED, ByteSource, read_chunks
from .blocks import BLOCK_BYTES, damaged
from .layout import RangeKind, Segment

SUFFIX = ".onnxpack"
_VERSION = 1
"""Of the format; a reader refuses any other."""

_START = struct.Struct("<8sIII")

_OWN_BYTES = 64 << 10
"""Segments from this size on have blocks of their own."""
_MOST_HEADER_BYTES = 256 << 20
"""Longer headers are refused before memory is taken for them. Chosen by judgement; not measured."""
_MOST_RATIO = 1000
"""Most bytes restored from one byte of an archive, without `max_bytes`. Chosen by judgement; not measured."""
_ALWAYS_BYTES = 1 << 30
"""What is unpacked without `max_bytes`: this much, or more where the archive's own size makes it likely."""


def _safe(name: str) -> str:
    """Let a file name pass that stays below the folder it is put into, on any system."""
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts):
        raise ValueError("a file name that is empty, absolute, or leaves the folder")
    if re.search(r"[\x00-\x1f\\:]", name):
        raise ValueError("a file name with a backslash, a colon or a control character")
    return name


class ArchivedFile(pydantic.BaseModel, extra="forbid", frozen=True):
    """One file in an archive: its segments are (kind, bytes)."""

    name: Annotated[str, pydantic.AfterValidator(_safe)]
    size: Annotated[int, pydantic.Field(ge=0, lt=1 << 62)]
    sha256: Annotated[str, pydantic.Field(pattern="^[0-9a-f]{64}$")]
    segments: tuple[tuple[RangeKind, pydantic.PositiveInt], ...]

    @pydantic.model_validator(mode="after")
    def _add_up(self) -> ArchivedFile:
        if sum(length for _, length in self.segments) != self.size:
            raise ValueError("segments that don't add up to the file")
        if any(length % kind.width for kind, length in self.segments):
            raise ValueError("a segment that ends within a word")
        return self


class Header(pydantic.BaseModel, extra="forbid", frozen=True):
    """Files of an archive: the model first, then those that it keeps tensors in."""

    files: Annotated[tuple[ArchivedFile, ...], pydantic.Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _differ(self) -> Header:
        if len({file.name for file in self.files}) < len(self.files):
            raise ValueError("two files of one name")
        return self

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files)

    def to_bytes(self) -> bytes:
        """Return the start of an archive, up to its first block."""
        text = self.model_dump_json().encode()
        packed = zstandard.ZstdCompressor(level=19, write_checksum=True).compress(text)
        return _START.pack(PACKED, _VERSION, len(packed), len(text)) + packed


def make_header(sources: dict[str, tuple[ByteSource, tuple[Segment, ...]]]) -> Header:
    """Return the header for files by name, each of which is read once for its hash.

    Raises:
        ModelError: a name can't be kept.
    """
    files = []
    for name, (source, parts) in sources.items():
        digest = hashlib.sha256()
        for chunk in read_chunks(source, 0, source.size):
            digest.update(chunk)
        try:
            runs = tuple((part.kind, part.length) for part in parts)
            files.append(ArchivedFile(name=name, size=source.size, sha256=digest.hexdigest(), segments=runs))
        except pydantic.ValidationError as error:
            raise ModelError(f"can't be packed: {_why(error)}", where=source.label, hint="Rename the file") from error
    return Header(files=tuple(files))


def blocks_of(file: ArchivedFile) -> Iterator[tuple[RangeKind, list[tuple[int, int]]]]:
    """Yield the blocks of a file in order: the kind, and (offset, length) of the pieces in it."""
    short: dict[RangeKind, list[tuple[int, int]]] = {}
    at = 0
    for kind, length in file.segments:
        if length < _OWN_BYTES:
            short.setdefault(kind, []).append((at, length))
        at += length
    begun = dict.fromkeys(short, 0)
    at = 0
    for kind, length in file.segments:
        if length >= _OWN_BYTES:
            for start in range(at, at + length, BLOCK_BYTES):
                yield kind, [(start, min(BLOCK_BYTES, at + length - start))]
        elif begun[kind] < len(short[kind]) and short[kind][begun[kind]][0] == at:
            first, size = begun[kind], 0
            while begun[kind] < len(short[kind]) and size + short[kind][begun[kind]][1] <= BLOCK_BYTES:
                size += short[kind][begun[kind]][1]
                begun[kind] += 1
            yield kind, short[kind][first : begun[kind]]
        at += length


class Cursor:
    """Reads an archive from front to back."""

    def __init__(self, source: ByteSource, at: int) -> None:
        self._source = source
        self._at = at

    @property
    def left(self) -> int:
        """The bytes that are not read yet."""
        return self._source.size - self._at

    def read(self, length: int) -> bytes:
        """Return the next bytes."""
        if length > self.left:
            raise damaged("it is cut short")
        self._at += length
        return self._source.read(self._at - length, length)


def read_header(source: ByteSource) -> tuple[Header, int]:
    """Return the header of an archive and where the blocks begin; its sizes are checked before there is room made."""
    cursor = Cursor(source, 0)
    if source.size < _START.size or source.read(0, len(PACKED)) != PACKED:
        hint = f"Give a {SUFFIX} file that `onnxcompress compress --pack` wrote"
        raise ModelError("is not an archive of a model", where=source.label, hint=hint)
    _, version, packed, size = _START.unpack(cursor.read(_START.size))
    if version != _VERSION:
        message = f"is an archive of version {version}; this onnxcompress knows version {_VERSION}"
        raise ModelError(message, where=source.label, hint="Install a newer onnxcompress")
    if size > _MOST_HEADER_BYTES:
        raise damaged(f"its header says that it has {size:,} bytes")
    data = cursor.read(packed)
    try:
        if zstandard.frame_content_size(data) != size:
            raise damaged("the header is not as long as it says")
        text = zstandard.ZstdDecompressor(max_window_size=_MOST_HEADER_BYTES).decompress(data, allow_extra_data=False)
        return Header.model_validate_json(text), _START.size + packed
    except zstandard.ZstdError as error:
        raise damaged(f"the header can't be read ({error})") from error
    except pydantic.ValidationError as error:
        raise damaged(f"its header has {_why(error)}") from error


def _why(error: pydantic.ValidationError) -> str:
    """Return what a header is refused for."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place and first["type"] != "value_error" else first["msg"].split(", ", 1)[-1]


def check_size(header: Header, archive_bytes: int, max_bytes: int | None) -> None:
    """Raise where an archive says that it holds more than the user, or common sense, admits."""
    most = max(_ALWAYS_BYTES, _MOST_RATIO * archive_bytes) if max_bytes is None else max_bytes
    if header.size > most:
        raise ModelError(
            f"holds {header.size:,} bytes in an archive of {archive_bytes:,}, more than the {most:,} that are admitted",
            hint="Give --max-bytes if you trust it",
        )
