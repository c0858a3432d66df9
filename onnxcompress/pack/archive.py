"""One archive that holds a model, and the files that it keeps tensors in, as small as they get without loss.

    archive = "ONNXPACK", version, lengths of the header packed and unpacked (3 x 4 bytes, little-endian),
              the header (JSON in a zstd frame with a checksum), then the blocks of every file, one after the other

The header names the files with size, SHA-256 and segments, runs of bytes of one kind. Files are bytes here: nothing
is serialised anew, so what comes out is what went in, alignment of external data included. A segment of 64 KiB and
more has blocks of its own; shorter ones of a kind share blocks, which are written where the first of their bytes
are due. Reader and writer hold one block of each kind at most.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import onnx_ir as ir
import pydantic
import zstandard

from ..base import atomic_files
from ..errors import ModelError, UsageError
from ..io.save import save
from ..io.sources import ByteSource, OpenFile, read_chunks
from ..io.tensors import open_beside
from .blocks import BLOCK_BYTES, Decoder, Encoder, damaged
from .layout import RangeKind, Segment, model_layout, segments

SUFFIX = ".onnxpack"
MAGIC = b"ONNXPACK"
_VERSION = 1
_START = struct.Struct("<8sIII")
_OWN_BYTES = 64 << 10
"""Segments from this size on have blocks of their own."""
_MOST_HEADER_BYTES = 256 << 20
_MOST_RATIO = 1000
_ALWAYS_BYTES = 1 << 30
"""What is unpacked without `max_bytes`: this much, or more where the archive's own size makes it likely."""

_FEW_BYTES = 4 << 20
"""Two files of a few bytes need no check of free space beforehand."""


def _safe(name: str) -> str:
    """Let a file name pass that stays below the folder it is put into, on any system."""
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts):
        raise ValueError("a file name that is empty, absolute, or leaves the folder")
    if re.search(r"[\x00-\x1f\\:]", name):
        raise ValueError("a file name with a backslash, a colon or a control character")
    return name


class _File(pydantic.BaseModel, extra="forbid", frozen=True):
    """One file in an archive: its segments are (kind, bytes)."""

    name: Annotated[str, pydantic.AfterValidator(_safe)]
    size: Annotated[int, pydantic.Field(ge=0, lt=1 << 62)]
    sha256: Annotated[str, pydantic.Field(pattern="^[0-9a-f]{64}$")]
    segments: tuple[tuple[RangeKind, pydantic.PositiveInt], ...]

    @pydantic.model_validator(mode="after")
    def _add_up(self) -> _File:
        if sum(length for _, length in self.segments) != self.size:
            raise ValueError("segments that don't add up to the file")
        if any(length % kind.width for kind, length in self.segments):
            raise ValueError("a segment that ends within a word")
        return self


class _Header(pydantic.BaseModel, extra="forbid", frozen=True):
    """What an archive holds: the model first, then the files that it keeps tensors in."""

    files: Annotated[tuple[_File, ...], pydantic.Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _differ(self) -> _Header:
        if len({file.name for file in self.files}) < len(self.files):
            raise ValueError("two files of one name")
        return self

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """An archive that was written, or what was restored from it.

    Args:
        path: the archive, or the model.
        packed_bytes: size of the archive.
        unpacked_bytes: size of the model and its data files.
        files: their names, the model's first.
    """

    path: Path
    packed_bytes: int
    unpacked_bytes: int
    files: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the object of the JSON report."""
        return {
            "path": str(self.path),
            "bytes": self.packed_bytes,
            "unpacked_bytes": self.unpacked_bytes,
            "files": list(self.files),
        }


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Say whether a file is an archive of a model."""
    source = OpenFile(path)
    return source.size >= len(MAGIC) and source.read(0, len(MAGIC)) == MAGIC


def pack(model: str | os.PathLike[str], target: str | os.PathLike[str], *, force: bool = False) -> Packed:
    """Write an archive of a model file, and of the files that it keeps tensors in, whole or not at all.

    Any file can be packed; one that is no model profits less.

    Raises:
        UsageError: `target` exists and `force` is off, or is no place for a file.
        ModelError: a file can't be read, changes meanwhile, or the archive can't be written.
    """
    source, place = OpenFile(model), Path(target).absolute()
    atomic_files.check_target(place, force=force)
    atomic_files.remove_stale(place)
    layout = model_layout(source)
    name = Path(model).name
    sources: dict[str, tuple[ByteSource, tuple[Segment, ...]]] = {name: (source, layout.segments)}
    places: dict[str, list[tuple[int, int | None, RangeKind]]] = {}
    for location, found in layout.external.items():
        places.setdefault(os.path.normpath(location), []).extend(found)
    for location, found in places.items():
        data = open_beside(Path(model).parent, location)
        sources[location] = (data, segments(found, data.size))
    header = _header(sources)
    pending = atomic_files.Pending(place, _packed(header, [each for each, _ in sources.values()]), header.size)
    try:
        size = pending.path.stat().st_size
        pending.commit()
    finally:
        pending.discard()
    return Packed(
        path=place, packed_bytes=size, unpacked_bytes=header.size, files=tuple(file.name for file in header.files)
    )


def save_packed(
    model: ir.Model,
    target: str | os.PathLike[str],
    *,
    external_data: Literal["auto", "always", "never"] = "auto",
    force: bool = False,
) -> Packed:
    """Write an archive of the files that `saving.save` would write; these need room beside it meanwhile.

    The model in it has the archive's name with the suffix .onnx.

    Raises:
        UsageError, ModelError: as `save` and `pack` do.
    """
    place = Path(target).absolute()
    atomic_files.check_target(place, force=force)
    atomic_files.remove_stale(place)
    folder = atomic_files.PendingFolder(place)
    try:
        saved = save(model, folder.path / place.with_suffix(".onnx").name, external_data=external_data)
        return pack(saved.path, place, force=force)
    finally:
        folder.discard()


def unpack(
    archive: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    force: bool = False,
    max_bytes: int | None = None,
) -> Packed:
    """Restore the model in an archive to `target`, and the files that it keeps tensors in beside it.

    Everything is written under temporary names, compared with its SHA-256 and then put into place, the model last.

    Args:
        archive: what `pack` wrote.
        target: where the model goes, under any name.
        force: replace files that exist.
        max_bytes: most bytes to restore. Without it 1 GiB, or 1,000 times the archive if that is more.

    Raises:
        UsageError: a file exists and `force` is off, or `target` is no place for a file.
        ModelError: the archive is damaged or says more than it holds, or there is no room.
    """
    source, place = OpenFile(archive), Path(target).absolute()
    try:
        header, start = _read_header(source)
        _check_size(header, source.size, max_bytes)
        return _restore(header, _Cursor(source, start), place, archive_bytes=source.size, force=force)
    except ModelError as error:
        raise ModelError(error.message, where=error.where or source.label, hint=error.hint) from error


def _header(sources: dict[str, tuple[ByteSource, tuple[Segment, ...]]]) -> _Header:
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
            files.append(_File(name=name, size=source.size, sha256=digest.hexdigest(), segments=runs))
        except pydantic.ValidationError as error:
            raise ModelError(f"can't be packed: {_why(error)}", where=source.label, hint="Rename the file") from error
    return _Header(files=tuple(files))


def _packed(header: _Header, sources: Sequence[ByteSource]) -> Iterator[bytes]:
    """Yield the bytes of an archive."""
    text = header.model_dump_json().encode()
    packed = zstandard.ZstdCompressor(level=19, write_checksum=True).compress(text)
    yield _START.pack(MAGIC, _VERSION, len(packed), len(text)) + packed
    encoder = Encoder()
    for file, source in zip(header.files, sources, strict=True):
        for kind, pieces in _blocks(file):
            yield encoder.encode(b"".join(source.read(*piece) for piece in pieces), kind)


def _blocks(file: _File) -> Iterator[tuple[RangeKind, list[tuple[int, int]]]]:
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


class _Cursor:
    """Reads an archive from front to back."""

    def __init__(self, source: ByteSource, at: int) -> None:
        self._source = source
        self._at = at

    @property
    def left(self) -> int:
        """How many bytes there still are."""
        return self._source.size - self._at

    def read(self, length: int) -> bytes:
        """Return the next bytes."""
        if length > self.left:
            raise damaged("it is cut short")
        self._at += length
        return self._source.read(self._at - length, length)


def _read_header(source: ByteSource) -> tuple[_Header, int]:
    """Return the header of an archive and where the blocks begin; its sizes are checked before there is room made."""
    cursor = _Cursor(source, 0)
    if source.size < _START.size or source.read(0, len(MAGIC)) != MAGIC:
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
        return _Header.model_validate_json(text), _START.size + packed
    except zstandard.ZstdError as error:
        raise damaged(f"the header can't be read ({error})") from error
    except pydantic.ValidationError as error:
        raise damaged(f"its header has {_why(error)}") from error


def _why(error: pydantic.ValidationError) -> str:
    """Return what a header is refused for."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place and first["type"] != "value_error" else first["msg"].split(", ", 1)[-1]


def _check_size(header: _Header, archive_bytes: int, max_bytes: int | None) -> None:
    """Raise where an archive says that it holds more than the user, or common sense, admits."""
    most = max(_ALWAYS_BYTES, _MOST_RATIO * archive_bytes) if max_bytes is None else max_bytes
    if header.size > most:
        raise ModelError(
            f"holds {header.size:,} bytes in an archive of {archive_bytes:,}, more than the {most:,} that are admitted",
            hint="Give --max-bytes if you trust it",
        )


def _restore(header: _Header, cursor: _Cursor, target: Path, *, archive_bytes: int, force: bool) -> Packed:
    """Write the files of an archive, check them, put them into place."""
    places = [target, *(target.parent / file.name for file in header.files[1:])]
    if target.name in [file.name for file in header.files[1:]]:
        raise UsageError("is also the name of the model's data file", where=os.fspath(target), hint="Give another -o")
    if not target.parent.is_dir():
        atomic_files.check_target(target, force=force)
    decoder = Decoder()
    pending: list[atomic_files.Pending] = []
    with ExitStack() as undo:
        for place in places:
            _make_folders(place, target.parent, undo)
            atomic_files.check_target(place, force=force)
            atomic_files.remove_stale(place)
        free = shutil.disk_usage(target.parent).free
        if header.size > max(free, _FEW_BYTES):
            raise ModelError(f"{header.size:,} bytes are needed, {free:,} are free", where=os.fspath(target))
        for file, place in zip(header.files, places, strict=True):
            pending.append(atomic_files.Pending(place, _checked(file, decoder, cursor), file.size))
            undo.callback(pending[-1].discard)
        if cursor.left:
            raise damaged(f"{cursor.left:,} bytes too many")
        for each in reversed(pending):
            each.commit()
        undo.pop_all()
    return Packed(
        path=target,
        packed_bytes=archive_bytes,
        unpacked_bytes=header.size,
        files=tuple(os.fspath(place.relative_to(target.parent)) for place in places),
    )


def _make_folders(place: Path, root: Path, undo: ExitStack) -> None:
    """Make the folders between `root` and a file that are not there; `undo` removes them again.

    Raises:
        ModelError: one is a link that leads out of `root`, or can't be made.
    """
    for folder in reversed([each for each in place.parents if each.is_relative_to(root) and each != root]):
        try:
            folder.mkdir()
        except FileExistsError:
            if not folder.resolve().is_relative_to(root.resolve()):
                raise ModelError("a link that leads out of the model's folder", where=os.fspath(folder)) from None
        except OSError as error:
            raise ModelError(f"can't be made ({error.strerror})", where=os.fspath(folder)) from error
        else:
            undo.callback(_remove_folder, folder)


def _remove_folder(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def _checked(file: _File, decoder: Decoder, cursor: _Cursor) -> Iterator[bytes]:
    """Yield the bytes of a file in order, and raise at their end where they are not those that were packed."""
    digest = hashlib.sha256()
    early: dict[int, bytes] = {}
    at = 0
    for kind, pieces in _blocks(file):
        data = memoryview(decoder.decode(cursor.read, sum(length for _, length in pieces), kind))
        start = 0
        for offset, length in pieces:
            early[offset] = bytes(data[start : start + length])
            start += length
        while at in early:
            piece = early.pop(at)
            digest.update(piece)
            at += len(piece)
            yield piece
    if digest.hexdigest() != file.sha256:
        raise damaged(f"{file.name!r} does not come out as it went in")
