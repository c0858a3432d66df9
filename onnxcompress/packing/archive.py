"""One archive that holds a model, and the files that it keeps tensors in, as small as they get without loss.

Files are bytes here: nothing is serialised anew, so what comes out is what went in, alignment of external data
included. Reader and writer hold one block of each kind at most. `header` describes the format.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from ..base import atomic_files
from ..errors import ModelError, UsageError
from ..io.save import save
from ..io.sources import ByteSource, OpenFile
from ..io.tensors import open_beside
from .blocks import Decoder, Encoder, damaged
from .header import ArchivedFile, Cursor, Header, blocks_of, check_size, make_header, read_header
from .layout import RangeKind, Segment, model_layout, segments

_FEW_BYTES = 4 << 20
"""Restoring up to so many bytes needs no check of free space beforehand. Chosen by judgement; not measured."""


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
    header = make_header(sources)
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
        target: path of the model, under any name.
        force: replace files that exist.
        max_bytes: most bytes to restore. Without it 1 GiB, or 1,000 times the archive if that is more.

    Raises:
        UsageError: a file exists and `force` is off, or `target` is no place for a file.
        ModelError: the archive is damaged or says more than it holds, or there is no room.
    """
    source, place = OpenFile(archive), Path(target).absolute()
    try:
        header, start = read_header(source)
        check_size(header, source.size, max_bytes)
        return _restore(header, Cursor(source, start), place, archive_bytes=source.size, force=force)
    except ModelError as error:
        raise ModelError(error.message, where=error.where or source.label, hint=error.hint) from error


def _packed(header: Header, sources: Sequence[ByteSource]) -> Iterator[bytes]:
    """Yield the bytes of an archive."""
    yield header.to_bytes()
    encoder = Encoder()
    for file, source in zip(header.files, sources, strict=True):
        for kind, pieces in blocks_of(file):
            yield encoder.encode(b"".join(source.read(*piece) for piece in pieces), kind)


def _restore(header: Header, cursor: Cursor, target: Path, *, archive_bytes: int, force: bool) -> Packed:
    """Write the files of an archive, check them, put them into place."""
    places = [target, *(target.parent / file.name for file in header.files[1:])]
    if target.name in [file.name for file in header.files[1:]]:
        raise UsageError("is also the name of the model's data file", where=os.fspath(target), hint="Give another -o")
    atomic_files.check_target(target, force=force)
    decoder = Decoder()
    pending: list[atomic_files.Pending] = []
    with ExitStack() as undo:
        _make_folders(target, atomic_files.nearest_parent(target), undo)
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


def _checked(file: ArchivedFile, decoder: Decoder, cursor: Cursor) -> Iterator[bytes]:
    """Yield the bytes of a file in order, and raise at their end where they are not those that were packed."""
    digest = hashlib.sha256()
    early: dict[int, bytes] = {}
    at = 0
    for kind, pieces in blocks_of(file):
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
