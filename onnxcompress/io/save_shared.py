"""Save several models of one folder so that equal weights are stored once, in a data file that all of them refer to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError
from . import wire
from .save import data_chunks, layout
from .serialize import Skeleton, to_proto
from .tensors import chunks, refer

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Shared:
    """Models whose large tensors are in one data file.

    Args:
        skeletons: the models by their path within the folder.
        tensors: the distinct large tensors of all.
        places: digest of a tensor's content -> its place among `tensors`.
        saved_bytes: that are stored once instead of more often.
    """

    skeletons: Mapping[Path, Skeleton]
    tensors: tuple[ir.TensorProtocol, ...]
    places: Mapping[bytes, int]
    saved_bytes: int


def shared(models: Mapping[Path, ir.Model]) -> Shared:
    """Find equal tensors of 1 KiB and more in several models; each tensor is read once.

    Args:
        models: by their path within the folder of results; all in one folder.
    """
    skeletons = {path: to_proto(model) for path, model in models.items()}
    tensors: list[ir.TensorProtocol] = []
    places: dict[bytes, int] = {}
    saved_bytes = 0
    for skeleton in skeletons.values():
        for tensor in skeleton.tensors:
            key = _digest(tensor)
            if key in places:
                saved_bytes += tensor.nbytes
            else:
                places[key] = len(tensors)
                tensors.append(tensor)
    return Shared(skeletons, tuple(tensors), places, saved_bytes)


def write(found: Shared, folder: Path, stem: str) -> list[Path]:
    """Write models and their data file into a folder that nobody else uses yet; return the paths, the data file last.

    The data file is named after the stem and the hash of its content.

    Raises:
        ModelError: a file can't be written.
    """
    tensors = list(found.tensors)
    offsets, _ = layout(tensors)
    digest = hashlib.sha256()
    part = folder / f".{stem}.part"
    _put(part, _noted(data_chunks(tensors, offsets), digest))
    parent = next(iter(found.skeletons)).parent
    data = folder / parent / f"{stem}-{digest.hexdigest()[:12]}.data"
    written = []
    for path, skeleton in found.skeletons.items():
        for proto, tensor in zip(skeleton.protos, skeleton.tensors, strict=True):
            place = tensors[found.places[_digest(tensor)]]
            refer(proto, data.name, offsets[id(place)], tensor.nbytes)
        plan = wire.plan(skeleton.serialize())
        _put(folder / path, plan.chunks(skeleton.chunks))
        written.append(folder / path)
    part.replace(data)
    return [*written, data]


def _digest(tensor: ir.TensorProtocol) -> bytes:
    found = hashlib.sha256()
    for chunk in chunks(tensor):
        found.update(chunk)
    return found.digest()


def _noted(content: Iterable[bytes | memoryview], digest: hashlib._Hash) -> Iterable[bytes | memoryview]:
    for chunk in content:
        digest.update(chunk)
        yield chunk


def _put(path: Path, content: Iterable[bytes | memoryview]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            for chunk in content:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ModelError(f"can't be written ({error.strerror or error})", where=str(path)) from error
