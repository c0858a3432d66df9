"""The protobuf wire format of ONNX: take a model's large tensors out of it, and put them back.

`scan` reads the structure of a model and leaves the bytes of large tensors where they are: what it returns,
the *skeleton*, is a small ModelProto whose large tensors are references (`external_data` with the location
"#raw_data", an offset and a length). `plan` and `Plan.chunks` are the inverse: they stream a skeleton with
the bytes put back, every enclosing length recomputed, holding one chunk at a time. Locations that begin with
"#" mean data in memory in onnx too, whose checker accepts them.

Tensors are found in graph initializers, node attributes, their sub-graphs and local functions. Sparse tensors
and training graphs stay in the skeleton as they are. What is not rewritten is copied byte for byte, unknown
fields included. A message shorter than the threshold can't hold a large tensor and is skipped unread, which
makes the cost proportional to the number of nodes and not to the bytes.

Wire format: https://protobuf.dev/programming-guides/encoding. Field numbers: onnx.proto.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from ..errors import ModelError
from .sources import ByteSource, InMemory
from .varints import BYTES, encode, header, message, varint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

LARGE_BYTES: Final = 1024
"""Tensors of this many bytes and more are left out of a skeleton."""
MAX_MESSAGE_BYTES: Final = 2**31 - 1
"""Protobuf's limit for one message."""
_MAX_DEPTH: Final = 100
"""Protobuf's own limit for nested messages."""
_WINDOW_BYTES: Final = 1 << 16
"""Read at a time while structure is scanned. Chosen by judgement; not measured."""
_HEADER_BYTES: Final = 20
"""A tag and a length, ten bytes each at most."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, BYTES, 5


class _FieldKind(Enum):
    MODEL = auto()
    GRAPH = auto()
    NODE = auto()
    ATTRIBUTE = auto()
    FUNCTION = auto()
    TENSOR = auto()


_CHILDREN: Final[dict[_FieldKind, dict[int, _FieldKind]]] = {
    _FieldKind.MODEL: {7: _FieldKind.GRAPH, 25: _FieldKind.FUNCTION},
    _FieldKind.GRAPH: {1: _FieldKind.NODE, 5: _FieldKind.TENSOR},
    _FieldKind.NODE: {5: _FieldKind.ATTRIBUTE},
    _FieldKind.ATTRIBUTE: {5: _FieldKind.TENSOR, 6: _FieldKind.GRAPH, 10: _FieldKind.TENSOR, 11: _FieldKind.GRAPH},
    _FieldKind.FUNCTION: {7: _FieldKind.NODE, 11: _FieldKind.ATTRIBUTE},
}
_GRAPH_FIELD: Final = 7
"""Of ModelProto."""

_DATA_TYPE, _EXTERNAL_DATA, _DATA_LOCATION = 2, 13, 14
_PAYLOAD_FIELDS: Final = {"raw_data": 9, "float_data": 4, "double_data": 10}
_LIST: Final = "list"
LIST_LOCATION: Final = f"#{_LIST}"
"""Location of a reference to a whole attribute, written as a tensor inside of it."""
_PAYLOAD_NAMES: Final = {number: name for name, number in _PAYLOAD_FIELDS.items()}
_PAYLOAD_TYPES: Final = {4: frozenset({1, 14}), 10: frozenset({11, 15})}  # stored as float32, as float64
_OTHER_DATA_FIELDS: Final = frozenset({3, 5, 6, 7, 11, _EXTERNAL_DATA, _DATA_LOCATION})


@dataclass(frozen=True, slots=True)
class Reference:
    """Place of the bytes of a tensor that a skeleton leaves out.

    Args:
        name: the field of TensorProto they belong in: raw_data, or float_data or double_data (fixed width); or
            "list" for all of an AttributeProto.
        offset: where they begin in the file that was scanned (or any number that the reader understands).
        length: how many bytes.

    """

    name: str
    offset: int
    length: int

    @property
    def location(self) -> str:
        """The value of the `location` entry in `external_data`."""
        return f"#{self.name}"


@dataclass(slots=True)
class _Edit:
    """A rewritten message: ranges of the source, new bytes, and references to payloads."""

    size: int = 0
    pieces: list[tuple[int, int] | bytes | Reference] = field(default_factory=list)
    replaces_parent: bool = False
    """Whether the message around it is all in here."""

    def copy(self, start: int, end: int) -> None:
        if end > start:
            self.pieces.append((start, end))
            self.size += end - start

    def write(self, data: bytes) -> None:
        self.pieces.append(data)
        self.size += len(data)

    def refer(self, reference: Reference) -> None:
        if reference.name == _LIST:
            self.replaces_parent = True
        else:
            self.write(header(_PAYLOAD_FIELDS[reference.name], reference.length))
        self.pieces.append(reference)
        self.size += reference.length

    def nest(self, number: int, inner: _Edit) -> None:
        self.write(header(number, inner.size))
        self.pieces.extend(inner.pieces)
        self.size += inner.size


@dataclass(frozen=True)
class StreamPlan:
    """A skeleton with its tensors' places known.

    Args:
        size: the bytes of the whole message with all tensors put back.
        references: the tensors that are left out, in the order in which they are written.

    """

    size: int
    references: tuple[Reference, ...]
    _skeleton: bytes
    _pieces: tuple[tuple[int, int] | bytes | Reference, ...]

    def chunks(self, payload: Callable[[Reference], Iterable[bytes | memoryview]]) -> Iterator[bytes | memoryview]:
        """Yield the whole message, calling `payload` for the bytes of one tensor at a time.

        Raises:
            ModelError: when a payload is not as long as its reference says.

        """
        view = memoryview(self._skeleton)
        for piece in self._pieces:
            if isinstance(piece, tuple):
                yield view[piece[0] : piece[1]]
            elif isinstance(piece, bytes):
                yield piece
            else:
                yield from _measured(piece, payload(piece))


def check_outline(source: ByteSource) -> None:
    """Raise ModelError, with the offset, where the outermost message is not whole or has not one graph.

    It takes a few reads whatever the size.
    """
    fields = _fields(_WireReader(source), 0, source.size)
    graphs = sum(1 for number, wire, *_ in fields if (number, wire) == (_GRAPH_FIELD, _BYTES))
    if graphs != 1:
        many = f"holds {graphs} graphs where one is allowed" if graphs else "is not an ONNX model: it holds no graph"
        raise ModelError(many, where=source.label, hint="Export or download the model again")


def scan(
    source: ByteSource, large_bytes: int = LARGE_BYTES, take_list: Callable[[int, int], bytes | None] | None = None
) -> bytes:
    """Return the skeleton of the ModelProto in `source`: tensors of `large_bytes` and more are references.

    Attributes of `large_bytes` and more are what `take_list` makes of the one between two places, unless None.

    Raises:
        ModelError: with the offset, when `source` is not one well-formed protobuf message with one graph, or
            holds more than protobuf's 2 GiB outside of its tensors.

    """
    check_outline(source)
    reader = _WireReader(source)

    def is_large(start: int, end: int) -> bool:
        return end - start >= large_bytes

    def attribute(start: int, end: int) -> _Edit | None:
        found = take_list(start, end) if take_list is not None else None
        return None if found is None else _Edit(len(found), [found])

    rules = _WireRewrite(reader, is_large, lambda a, b: _take_out(reader, a, b, large_bytes), attribute)
    edit = _rewrite(rules, _FieldKind.MODEL)
    if edit is None:
        edit = _Edit()
        edit.copy(0, source.size)
    left = edit.size - sum(piece.length for piece in edit.pieces if isinstance(piece, Reference))
    if left > MAX_MESSAGE_BYTES:
        raise ModelError("holds more than 2 GiB outside of its tensors", where=source.label)
    return b"".join(source.read(p[0], p[1] - p[0]) if isinstance(p, tuple) else _as_bytes(p) for p in edit.pieces)


def plan(skeleton: bytes) -> StreamPlan:
    """Return how to stream `skeleton` with its tensors put back.

    Raises:
        ModelError: when `skeleton` is malformed.

    """
    marks = [found.start() for found in re.finditer(rb"#(?:(?:raw|float|double)_data|list)", skeleton)]

    def is_marked(start: int, end: int) -> bool:
        at = bisect.bisect_left(marks, start)
        return at < len(marks) and marks[at] < end

    reader = _WireReader(InMemory(skeleton, "skeleton"))
    edit = _rewrite(_WireRewrite(reader, is_marked, lambda a, b: _put_back(reader, a, b)), _FieldKind.MODEL)
    if edit is None:
        edit = _Edit()
        edit.copy(0, len(skeleton))
    references = tuple(piece for piece in edit.pieces if isinstance(piece, Reference))
    return StreamPlan(edit.size, references, skeleton, tuple(edit.pieces))


def _as_bytes(piece: bytes | Reference) -> bytes:
    assert isinstance(piece, bytes), "scan writes references as external data"
    return piece


def _measured(reference: Reference, chunks: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    count = 0
    for chunk in chunks:
        count += len(chunk)
        yield chunk
    if count != reference.length:
        raise ModelError(f"a tensor gave {count} bytes where {reference.length} were announced")


class _WireReader:
    """A source with its last window of bytes kept."""

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self._window = source.data if isinstance(source, InMemory) else b""
        self._base = 0

    def window(self, position: int, end: int) -> tuple[bytes, int]:
        """Return bytes that hold the header at `position` (as far as `end` allows), and where they begin."""
        last = self._base + len(self._window)
        if position < self._base or min(position + _HEADER_BYTES, end) > last:
            self._window = self.source.read(position, min(_WINDOW_BYTES, self.source.size - position))
            self._base = position
        return self._window, self._base

    def error(self, message: str, offset: int) -> ModelError:
        """Return the error to raise for a malformed message."""
        return ModelError(
            f"malformed at byte {offset}: {message}",
            where=self.source.label,
            hint="The file is damaged, cut short, or not an ONNX model",
        )


@dataclass(frozen=True, slots=True)
class _WireRewrite:
    """Rules for a message: which parts to look into, and how to rewrite a tensor (None: keep it)."""

    reader: _WireReader
    wanted: Callable[[int, int], bool]
    tensor: Callable[[int, int], _Edit | None]
    attribute: Callable[[int, int], _Edit | None] = lambda _start, _end: None


def _rewrite(
    rules: _WireRewrite, kind: _FieldKind, start: int = 0, end: int | None = None, depth: int = 0
) -> _Edit | None:
    """Return the message of `kind` at [start, end) rewritten, None where nothing in it changes."""
    if end is None:
        end = rules.reader.source.size
    if depth > _MAX_DEPTH:
        raise rules.reader.error(f"messages nested deeper than {_MAX_DEPTH}", start)
    children = _CHILDREN[kind]
    edit = _Edit()
    kept = start
    for number, wire, at, first, after in _fields(rules.reader, start, end):
        child = children.get(number)
        if child is None or wire != _BYTES or not rules.wanted(first, after):
            continue
        if child is _FieldKind.TENSOR:
            inner = rules.tensor(first, after)
        else:
            taken = rules.attribute(first, after) if child is _FieldKind.ATTRIBUTE else None
            inner = taken or _rewrite(rules, child, first, after, depth + 1)
        if inner is not None and inner.replaces_parent and kind is _FieldKind.ATTRIBUTE:
            return _Edit(inner.size, inner.pieces)
        if inner is not None:
            edit.copy(kept, at)
            edit.nest(number, inner)
            kept = after
    if kept == start:
        return None
    edit.copy(kept, end)
    return edit


def _take_out(reader: _WireReader, start: int, end: int, large_bytes: int) -> _Edit | None:
    """Return the TensorProto at [start, end) with its one large payload replaced by a reference."""
    data_type = 0
    payloads: list[tuple[int, int, int, int]] = []
    for number, wire, at, first, after in _fields(reader, start, end):
        if number == _DATA_TYPE and wire == _VARINT:
            record = reader.source.read(at, after - at)
            data_type = varint(record, varint(record, 0)[1])[0]
        elif number in _PAYLOAD_NAMES and wire == _BYTES:
            payloads.append((number, at, first, after))
        elif number in _PAYLOAD_NAMES or number in _OTHER_DATA_FIELDS:
            return None
    if len(payloads) != 1:
        return None
    number, at, first, after = payloads[0]
    if after - first < large_bytes or data_type not in _PAYLOAD_TYPES.get(number, {data_type}):
        return None
    edit = _Edit()
    edit.copy(start, at)
    edit.copy(after, end)
    edit.write(_external_data(Reference(_PAYLOAD_NAMES[number], first, after - first)))
    return edit


def _put_back(reader: _WireReader, start: int, end: int) -> _Edit | None:
    """Return the TensorProto at [start, end) with its reference replaced by the payload."""
    entries: dict[str, str] = {}
    edit = _Edit()
    for number, _, at, first, after in _fields(reader, start, end):
        if number == _EXTERNAL_DATA:
            parts = {n: reader.source.read(a, b - a) for n, _, _, a, b in _fields(reader, first, after)}
            entries[parts.get(1, b"").decode()] = parts.get(2, b"").decode()
        elif number != _DATA_LOCATION:
            edit.copy(at, after)
    name = entries.get("location", "")[1:]
    if not entries.get("location", "").startswith("#") or name not in (*_PAYLOAD_FIELDS, _LIST):
        return None
    if name == _LIST:
        edit = _Edit()
    edit.refer(Reference(name, int(entries["offset"]), int(entries["length"])))
    return edit


def _external_data(reference: Reference) -> bytes:
    entries = {"location": reference.location, "offset": str(reference.offset), "length": str(reference.length)}
    parts = [message(_EXTERNAL_DATA, message(1, k.encode()) + message(2, v.encode())) for k, v in entries.items()]
    return b"".join(parts) + encode(_DATA_LOCATION << 3 | _VARINT) + b"\x01"


def _fields(reader: _WireReader, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (field number, wire type, where the field begins, where its content begins, where it ends)."""
    position = start
    buffer, base = b"", start
    while position < end:
        at = position - base
        if at + _HEADER_BYTES > len(buffer):
            buffer, base = reader.window(position, end)
            at = position - base
        try:
            tag, at = varint(buffer, at)
            wire = tag & 7
            if wire == _BYTES:
                length, at = varint(buffer, at)
                first = base + at
                after = first + length
            elif wire == _VARINT:
                first = after = base + varint(buffer, at)[1]
            elif wire in (_FIXED32, _FIXED64):
                first = base + at
                after = first + (4 if wire == _FIXED32 else 8)
            else:
                raise reader.error(f"wire type {wire} is not used by ONNX", position)
        except IndexError:
            raise reader.error("it ends inside a field", position) from None
        except OverflowError:
            raise reader.error("a number of more than ten bytes", position) from None
        if not tag >> 3:
            raise reader.error("field number 0", position)
        if after > end:
            raise reader.error(f"a field ends at byte {after}, past its end at {end}", position)
        yield tag >> 3, wire, position, first, after
        position = after
