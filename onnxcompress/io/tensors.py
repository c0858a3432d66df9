"""Tensors whose bytes stay in a file, and what is common to all: their size, their bytes in chunks."""

from __future__ import annotations

import math
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir import serde

from ..errors import ModelError
from .sources import InMemory, OpenFile, read_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .sources import ByteSource

_VALUE_FIELDS = ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")
_MAX_DENSE_BYTES = 2**31
"""Larger sparse tensors are refused: a few bytes in a file could ask for any memory. Chosen by judgement."""


class ByteRange:
    """The bytes of one tensor in a file or in memory: what a StoredTensor keeps instead of an array."""

    def __init__(
        self, source: ByteSource, offset: int, length: int, dtype: ir.DataType, shape: tuple[int, ...]
    ) -> None:
        self.source = source
        self.offset = offset
        self.length = length
        self.dtype = dtype
        self.shape = shape

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        array = self._read()
        return array if dtype is None else array.astype(dtype)

    def __repr__(self) -> str:
        return f"{self.length} bytes at {self.offset} of {self.source.label}"

    def _read(self) -> np.ndarray[Any, Any]:
        if isinstance(self.source, InMemory):
            data = np.frombuffer(self.source.data, np.uint8, self.length, self.offset)
        else:
            data = np.empty(self.length, np.uint8)
            self.source.read_into(self.offset, data.data)
        if self.dtype.bitwidth < 8:
            packed = ir.PackedTensor(data, self.dtype, shape=ir.Shape(self.shape))
            return packed.numpy()
        array = data.view(np.dtype(self.dtype.numpy()).newbyteorder("<")).reshape(self.shape)
        return array if sys.byteorder == "little" else array.astype(self.dtype.numpy())


class StoredTensor(ir.Tensor[Any]):
    """A tensor read from its file at each use, never kept: `numpy()` gives a fresh array.

    The file stays open, so the tensor outlives its file being replaced or deleted. Not a memory map, whose
    pages would count as resident memory; not an ir.ExternalTensor, which other writers would save as a
    reference.
    """

    def __init__(self, stored: ByteRange, *, name: str | None, doc_string: str | None = None) -> None:
        super().__init__(stored, stored.dtype, shape=ir.Shape(stored.shape), name=name, doc_string=doc_string)

    @property
    def stored(self) -> ByteRange:
        """The range of bytes that it reads."""
        stored = self.raw
        assert isinstance(stored, ByteRange)
        return stored

    def tobytes(self) -> bytes:
        """Return the bytes as ONNX stores them: little-endian, types below a byte packed."""
        return self.stored.source.read(self.stored.offset, self.stored.length)

    def tofile(self, file: Any) -> None:
        """Write the bytes to `file`, a few MiB at a time."""
        for chunk in chunks(self):
            file.write(chunk)


class SparseTensor(ir.Tensor[Any]):
    """A sparse initializer: saved as it came, and a dense array to whoever asks for its values."""

    def __init__(self, proto: onnx.SparseTensorProto) -> None:
        self.proto = proto
        values = proto.values
        dtype = ir.DataType(values.data_type)
        super().__init__(_SparseValues(proto), dtype, shape=ir.Shape(proto.dims), name=values.name)


class _SparseValues:
    def __init__(self, proto: onnx.SparseTensorProto) -> None:
        self.proto = proto
        self.shape = tuple(proto.dims)
        self.dtype = ir.DataType(proto.values.data_type)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        if math.prod(self.shape) * self.dtype.itemsize > _MAX_DENSE_BYTES:
            raise ModelError("a sparse tensor of more than 2 GiB when dense", where=self.proto.values.name)
        dense = np.zeros(self.shape, self.dtype.numpy())
        indices = serde.TensorProtoTensor(self.proto.indices).numpy()
        at = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), self.shape)
        dense.reshape(-1)[at] = serde.TensorProtoTensor(self.proto.values).numpy()
        return dense if dtype is None else dense.astype(dtype)


def chunks(tensor: ir.TensorProtocol) -> Iterator[bytes | memoryview]:
    """Yield the bytes of `tensor` as ONNX stores them, without a second copy where its type allows that."""
    if isinstance(tensor, StoredTensor):
        stored = tensor.stored
        yield from read_chunks(stored.source, stored.offset, stored.length)
        return
    packed = tensor.dtype.bitwidth < 8 or isinstance(tensor, serde.TensorProtoTensor)
    array = None if packed else np.ascontiguousarray(tensor.numpy())
    if array is None or array.dtype.byteorder == ">" or sys.byteorder != "little":
        yield tensor.tobytes()
    else:
        yield array.reshape(-1).view(np.uint8).data


def refer(proto: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Make `proto` a reference to `length` bytes at `offset` of `location`."""
    proto.ClearField("external_data")
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        proto.external_data.add(key=key, value=value)


def excerpt(tensor: ir.TensorProtocol, offset: int, length: int) -> bytes:
    """Return some of the bytes of `tensor` as ONNX stores them; of a file no others are read."""
    if isinstance(tensor, StoredTensor):
        length = max(0, min(length, tensor.stored.length - offset))
        return tensor.stored.source.read(tensor.stored.offset + offset, length)
    (whole,) = chunks(tensor)
    return bytes(whole[offset : offset + length])


def nbytes(dtype: ir.DataType, dims: tuple[int, ...]) -> int:
    """Return the bytes of a tensor as ONNX stores it, types below a byte packed."""
    return (math.prod(dims) * dtype.bitwidth + 7) // 8


def stored_tensor(proto: ir.ExternalTensor, source: ByteSource) -> StoredTensor:
    """Return the tensor that an external reference describes, its extent checked against `source`.

    Raises:
        ModelError: when the length differs from what type and shape need, or is past the end.

    """
    dims = tuple(int(size) for size in proto.shape.numpy())
    where = f"{source.label}, tensor {proto.name!r}"
    if proto.dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        raise ModelError(f"external data of type {proto.dtype.name}", where=where)
    _check_dims(dims, where)
    needed = nbytes(proto.dtype, dims)
    offset = proto.offset or 0
    length = needed if proto.length is None else proto.length
    if offset < 0:
        raise ModelError(f"its data begin at byte {offset}, a negative offset", where=where)
    if length != needed:
        raise ModelError(f"has {length} bytes; {proto.dtype.name} {list(dims)} needs {needed}", where=where)
    if offset + length > source.size:
        message = f"its data end at byte {offset + length} of a file of {source.size} bytes"
        raise ModelError(message, where=where, hint="The file is cut short, or belongs to another model")
    stored = ByteRange(source, offset, length, proto.dtype, dims)
    tensor = StoredTensor(stored, name=proto.name, doc_string=proto.doc_string)
    tensor.metadata_props.update(proto.metadata_props)
    return tensor


def open_beside(folder: Path, location: str) -> OpenFile:
    """Open the external data file `location` of a model in `folder`.

    Raises:
        ModelError: when it is missing, or `location` leaves the folder: absolute, `..`, or through a link.

    """
    where = os.fspath(folder / location) if location else os.fspath(folder.resolve())
    parts = re.split(r"[\\/]", location)
    if not location or "\0" in location:
        raise ModelError("external data without a usable file name", where=where)
    if Path(location).is_absolute() or ".." in parts or re.match(r"[A-Za-z]:", location):
        home = os.fspath(folder.resolve())
        raise ModelError(f"external data at {location!r}, outside of the model's folder", where=home)
    if not (folder / location).resolve().is_relative_to(folder.resolve()):
        raise ModelError("external data through a link that leaves the model's folder", where=where)
    try:
        return OpenFile(folder / location)
    except ModelError as error:
        hint = "Keep the data file beside the model, under the name it was saved with"
        raise ModelError(f"external data: {error.message}", where=where, hint=hint) from error


def check_inline(proto: onnx.TensorProto, where: str) -> None:
    """Raise ModelError unless the values in `proto` are as many as its shape says."""
    dims = tuple(proto.dims)
    _check_dims(dims, where)
    dtype = ir.DataType(proto.data_type)
    if dtype == ir.DataType.UNDEFINED:
        raise ModelError("a tensor without a type", where=where)
    own = "raw_data" if proto.HasField("raw_data") else onnx.helper.tensor_dtype_to_field(proto.data_type)
    filled = [field for field in _VALUE_FIELDS if len(getattr(proto, field))]
    if set(filled) - {own}:
        raise ModelError(f"has values in {' and '.join(filled)}; {dtype.name} has them in {own}", where=where)
    if dtype == ir.DataType.STRING:
        found, needed, unit = len(proto.string_data), math.prod(dims), "strings"
    elif own == "raw_data":
        found, needed, unit = len(proto.raw_data), nbytes(dtype, dims), "bytes"
    else:
        found = len(getattr(proto, own))
        needed, unit = math.prod(dims), "values"
        if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
            needed *= 2
        elif dtype.bitwidth in (2, 4):
            needed = nbytes(dtype, dims)
    if found != needed:
        raise ModelError(f"has {found} {unit}; {dtype.name} {list(dims)} needs {needed}", where=where)


def check_sparse(proto: onnx.SparseTensorProto, where: str) -> None:
    """Raise ModelError unless a sparse tensor has one place within its shape for each of its values."""
    dims = tuple(proto.dims)
    _check_dims(dims, where)
    count = math.prod(proto.values.dims)
    if len(proto.values.dims) != 1 or tuple(proto.indices.dims) not in ((count,), (count, len(dims))):
        found = f"values {list(proto.values.dims)} and indices {list(proto.indices.dims)}"
        raise ModelError(f"{found} don't go together in {list(dims)}", where=where)
    if proto.indices.data_type != ir.DataType.INT64:
        raise ModelError("indices that are not int64", where=where)
    at = serde.TensorProtoTensor(proto.indices).numpy()
    limits = np.array(dims if at.ndim == 2 else math.prod(dims), dtype=object)
    if count and not bool(np.all((at >= 0) & (at < limits))):
        raise ModelError(f"an index outside of {list(dims)}", where=where)


def _check_dims(dims: tuple[int, ...], where: str) -> None:
    if any(size < 0 for size in dims):
        raise ModelError(f"a negative dimension in {list(dims)}", where=where)


def cut(tensor: ir.TensorProtocol, axis: int, where: slice) -> ir.TensorProtocol:
    """Return a part of a tensor of whole bytes along an axis; of a file no other bytes are read, at each use anew."""
    index = (slice(None),) * axis + (where,)
    if not isinstance(tensor, StoredTensor):
        return ir.tensor(tensor.numpy()[index], name=tensor.name)
    source = _TensorSlice(tensor.stored, axis, *where.indices(tensor.stored.shape[axis])[:2])
    return StoredTensor(ByteRange(source, 0, source.size, tensor.stored.dtype, source.shape), name=tensor.name)


class _TensorSlice:
    """The bytes of a part of a stored tensor."""

    def __init__(self, whole: ByteRange, axis: int, start: int, stop: int) -> None:
        count, (outer, inner) = whole.shape[axis], (whole.shape[:axis], whole.shape[axis + 1 :])
        one = math.prod(inner) * whole.dtype.bitwidth // 8
        self.shape = (*outer, stop - start, *inner)
        self.label = whole.source.label
        self._source, self._first = whole.source, whole.offset + start * one
        self._row, self._stride = (stop - start) * one, count * one
        self.size = math.prod(outer) * self._row

    def read(self, offset: int, length: int) -> bytes:
        target = bytearray(length)
        self.read_into(offset, memoryview(target))
        return bytes(target)

    def read_into(self, offset: int, target: memoryview) -> None:
        done = 0
        while done < len(target):
            row, at = divmod(offset + done, self._row)
            length = min(self._row - at, len(target) - done)
            self._source.read_into(self._first + row * self._stride + at, target[done : done + length])
            done += length


def parked(array: np.ndarray[Any, Any], name: str | None) -> StoredTensor:
    """Return an array as a tensor whose bytes wait in a temporary file, so that they take no memory.

    The file has no name any more; its space is freed with the tensor.

    Raises:
        ModelError: there is no room for it.

    """
    dtype = ir.DataType.from_numpy(array.dtype)
    return StoredTensor(ByteRange(_in_a_file([array]), 0, array.nbytes, dtype, array.shape), name=name)


def computed(
    parts: Callable[[], Iterable[np.ndarray[Any, Any]]], dtype: ir.DataType, shape: tuple[int, ...]
) -> StoredTensor:
    """Return a tensor that is computed at first use, and waits in a temporary file from then on.

    Args:
        parts: gives the elements in the order in which they are stored, little-endian, in arrays of any shape.
        dtype: of whole bytes.
        shape: of the tensor.
    """
    size = nbytes(dtype, shape)
    return StoredTensor(ByteRange(_Computed(parts, size), 0, size, dtype, shape), name=None)


class _Computed:
    """Bytes that are computed when they are first read."""

    label = "a new weight"

    def __init__(self, parts: Callable[[], Iterable[np.ndarray[Any, Any]]], size: int) -> None:
        self.size = size
        self._parts = parts
        self._file: OpenFile | None = None

    def read(self, offset: int, length: int) -> bytes:
        return self._made().read(offset, length)

    def read_into(self, offset: int, target: memoryview) -> None:
        self._made().read_into(offset, target)

    def _made(self) -> OpenFile:
        self._file = self._file or _in_a_file(self._parts())
        return self._file


def _in_a_file(parts: Iterable[np.ndarray[Any, Any]]) -> OpenFile:
    try:
        with tempfile.NamedTemporaryFile(prefix="onnxcompress-") as file:
            for part in parts:
                np.ascontiguousarray(part).tofile(file)
            file.flush()
            return OpenFile(file.name)
    except OSError as error:
        raise ModelError(f"no room for a new weight: {error.strerror}", where=tempfile.gettempdir()) from error
