"""Save a model atomically, in one file or with external data, one tensor in memory at a time."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..base.atomic_files import Pending, check_target, locked_folder, remove_stale
from ..errors import ModelError, OnnxCompressError
from . import wire
from .serialize import to_proto
from .sources import OpenFile
from .tensors import chunks, refer

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from .serialize import Skeleton

_INLINE_LIMIT_BYTES = wire.MAX_MESSAGE_BYTES - (1 << 20)
"""Larger models have external data: protobuf's limit, and a MiB for what readers add."""
_ALIGNMENT_BYTES = 4096
"""A page, so that onnxruntime can map a tensor."""
_HASH_DIGITS = 12
"""Hexadecimal digits of the hash in the name of a data file: 48 bits tell files in one folder apart."""


@dataclass(frozen=True)
class SavedFile:
    """Files that `save` wrote.

    Args:
        path: the model.
        bytes: its size, external data included.
        data_path: the file that holds its large tensors, None when they are inline.

    """

    path: Path
    bytes: int
    data_path: Path | None = None


def save(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    external_data: Literal["auto", "always", "never"] = "auto",
    force: bool = False,
) -> SavedFile:
    """Write `model` to `path`, so that a crash at any point leaves an existing model there whole.

    Tensors of 1 KiB and more go into a data file beside the model ("always"), into the model ("never"), or
    into the model as long as that stays under protobuf's 2 GiB ("auto"). The data file is named after the
    hash of its content: it never replaces the data of another model. When `path` held a model whose data file
    `save` made, and no other model in the folder refers to it, that data file is removed.

    Writing over the file that the weights are read from is safe (with `force`): it stays open meanwhile. The
    same model gives the same bytes.

    Raises:
        UsageError: when `path` exists and `force` is off, or is no place for a file.
        ModelError: when the model does not fit ("never" over 2 GiB, a full disk).

    """
    target = Path(path).absolute()
    check_target(target, force=force)
    remove_stale(target)
    skeleton = to_proto(model)
    plan = wire.plan(skeleton.serialize())
    if external_data == "never" and plan.size > wire.MAX_MESSAGE_BYTES:
        message = f"needs {plan.size} bytes, over the 2 GiB that fit into one file"
        raise ModelError(message, where=os.fspath(target), hint="Allow external data")
    if external_data == "never" or (external_data == "auto" and plan.size <= _INLINE_LIMIT_BYTES):
        return _save_inline(skeleton, plan, target)
    if not skeleton.tensors:
        return _save_inline(skeleton, plan, target)
    return _save_external(skeleton, target)


def save_scratch(model: ir.Model, path: Path) -> None:
    """Write `model` inline to a file that this process alone uses and soon removes: neither atomic nor synced.

    Raises:
        ModelError: when it can't be written.
    """
    skeleton = to_proto(model)
    plan = wire.plan(skeleton.serialize())
    try:
        with path.open("wb") as file:
            for chunk in plan.chunks(skeleton.chunks):
                file.write(chunk)
    except OSError as error:
        raise ModelError(
            f"can't write a temporary file: {error.strerror}", where=os.fspath(path), hint="Free space, or set TMPDIR"
        ) from error


def _save_inline(skeleton: Skeleton, plan: wire.StreamPlan, target: Path) -> SavedFile:
    content = plan.chunks(skeleton.chunks)
    pending = Pending(target, content, plan.size)
    try:
        with locked_folder(target.parent):
            outdated = _own_data_files(target)
            pending.commit()
            _remove_unused(outdated, target.parent)
    finally:
        pending.discard()
    return SavedFile(target, plan.size)


def _save_external(skeleton: Skeleton, target: Path) -> SavedFile:
    offsets, data_size = layout(skeleton.tensors)
    digest = hashlib.sha256()
    data = Pending(target, _hashed(data_chunks(skeleton.tensors, offsets), digest), data_size)
    try:
        name = f"{target.stem}-{digest.hexdigest()[:_HASH_DIGITS]}.data"
        for proto, tensor in zip(skeleton.protos, skeleton.tensors, strict=True):
            refer(proto, name, offsets[id(tensor)], tensor.nbytes)
        plan = wire.plan(skeleton.serialize())
        pending = Pending(target, plan.chunks(skeleton.chunks), plan.size)
        try:
            with locked_folder(target.parent):
                outdated = _own_data_files(target)
                data_path = data.commit(name)
                pending.commit()
                _remove_unused(outdated - {name}, target.parent)
        finally:
            pending.discard()
    finally:
        data.discard()
    return SavedFile(target, plan.size + data_size, data_path)


def layout(tensors: list[ir.TensorProtocol]) -> tuple[dict[int, int], int]:
    """Return the offset of each tensor by its id (one used twice has one place), and the size of all."""
    offsets: dict[int, int] = {}
    end = 0
    for tensor in tensors:
        if id(tensor) not in offsets:
            offsets[id(tensor)] = start = -(-end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
            end = start + tensor.nbytes
    return offsets, end


def data_chunks(tensors: list[ir.TensorProtocol], offsets: dict[int, int]) -> Iterator[bytes | memoryview]:
    """Yield the content of a data file with tensors at the places that `layout` gave them."""
    at = 0
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        yield bytes(offsets[id(tensor)] - at)
        at = offsets[id(tensor)]
        for chunk in chunks(tensor):
            at += len(chunk)
            yield chunk
        if at != offsets[id(tensor)] + tensor.nbytes:
            raise ModelError(f"a tensor is not {tensor.nbytes} bytes long, as it says", where=repr(tensor.name))


def _hashed(content: Iterator[bytes | memoryview], digest: hashlib._Hash) -> Iterator[bytes | memoryview]:
    for chunk in content:
        digest.update(chunk)
        yield chunk


def _own_data_files(model: Path) -> set[str]:
    """Return the data files that the model at `model` refers to and `save` made for it."""
    pattern = rf"{re.escape(model.stem)}-[0-9a-f]{{{_HASH_DIGITS}}}\.data".encode()
    try:
        return {found.decode() for found in re.findall(pattern, wire.scan(OpenFile(model)))}
    except OnnxCompressError:
        return set()


def _remove_unused(names: set[str], folder: Path) -> None:
    """Remove those of `names` that no model in `folder` refers to."""
    if not names:
        return
    for other in folder.glob("*.onnx"):
        try:
            content = wire.scan(OpenFile(other))
        except OnnxCompressError:
            return
        names = {name for name in names if name.encode() not in content}
    for name in names:
        (folder / name).unlink(missing_ok=True)
