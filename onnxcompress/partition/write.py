"""Write the parts of a model: a small `.onnx` file each, and their weights in data files that can be mapped.

    part-000.onnx  part-000.data     weights that this part alone reads
    part-001.onnx  part-001.data
                   shared-000.data   weights that the same several parts read, stored once

Weights are streamed, one tensor in memory at a time, and hashed on their way.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ..io import save as saving
from ..io import wire
from ..io.serialize import Skeleton, to_proto
from ..io.tensors import refer
from .manifest import StoredFile

Writer = Callable[[str, Iterable[bytes | memoryview], int], None]
"""(name, content, size in bytes) -> the file is written."""


@dataclass(frozen=True)
class PartFiles:
    """The files of one part: the model, and where its large weights are."""

    model: str
    data: tuple[str, ...]


def write_parts(parts: Sequence[ir.Model], write: Writer) -> tuple[list[PartFiles], dict[str, StoredFile]]:
    """Write parts and return the files of each, and the size and hash of every file by its name.

    Raises:
        ModelError: a part can't be serialised or written.
    """
    skeletons = [to_proto(part) for part in parts]
    groups = _groups(skeletons)
    names = _names(groups)
    files: dict[str, StoredFile] = {}
    for owners, tensors in groups.items():
        offsets, size = saving.layout(tensors)
        files[names[owners]] = _written(write, names[owners], saving.data_chunks(tensors, offsets), size)
        inside = {id(tensor) for tensor in tensors}
        for owner in owners:
            skeleton = skeletons[owner]
            for proto, tensor in zip(skeleton.protos, skeleton.tensors, strict=True):
                if id(tensor) in inside:
                    refer(proto, names[owners], offsets[id(tensor)], tensor.nbytes)
    found = []
    for index, skeleton in enumerate(skeletons):
        name, plan = f"part-{index:03d}.onnx", wire.plan(skeleton.serialize())
        files[name] = _written(write, name, plan.chunks(skeleton.chunks), plan.size)
        found.append(PartFiles(name, tuple(names[owners] for owners in groups if index in owners)))
    return found, files


def into(folder: Path) -> Writer:
    """Return a writer into a folder that this process alone uses and soon removes."""

    def write(name: str, content: Iterable[bytes | memoryview], _size: int) -> None:
        with (folder / name).open("wb") as file:
            file.writelines(content)

    return write


def _written(write: Writer, name: str, content: Iterable[bytes | memoryview], size: int) -> StoredFile:
    """Write a file and return its hashes, taken on the way."""
    sha256, crc32 = hashlib.sha256(), 0

    def hashed() -> Iterator[bytes | memoryview]:
        nonlocal crc32
        for chunk in content:
            sha256.update(chunk)
            crc32 = zlib.crc32(chunk, crc32)
            yield chunk

    write(name, hashed(), size)
    return StoredFile(bytes=size, sha256=sha256.hexdigest(), crc32=f"{crc32:08x}")


def _groups(skeletons: Sequence[Skeleton]) -> dict[tuple[int, ...], list[ir.TensorProtocol]]:
    """Return the tensors by the parts that read them, in the order of the parts."""
    owners: dict[int, dict[int, None]] = {}
    tensors: dict[int, ir.TensorProtocol] = {}
    for index, skeleton in enumerate(skeletons):
        for tensor in skeleton.tensors:
            owners.setdefault(id(tensor), {})[index] = None
            tensors[id(tensor)] = tensor
    groups: dict[tuple[int, ...], list[ir.TensorProtocol]] = {}
    for key, readers in owners.items():
        groups.setdefault(tuple(readers), []).append(tensors[key])
    return groups


def _names(groups: Iterable[tuple[int, ...]]) -> dict[tuple[int, ...], str]:
    groups = list(groups)
    shared = [owners for owners in groups if len(owners) > 1]
    alone = {owners: f"part-{owners[0]:03d}.data" for owners in groups if len(owners) == 1}
    return alone | {owners: f"shared-{index:03d}.data" for index, owners in enumerate(shared)}
