"""Places of the bytes of tensors in a model's files, and the kind of numbers that they hold."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from ..errors import ModelError
from ..io import wire
from ..io.sources import ByteSource


class RangeKind(enum.StrEnum):
    """Layout of numbers, as far as it matters for taking them apart."""

    BYTES = "bytes"
    """Anything in which no larger words are known."""
    FLOAT16 = "f16"
    BFLOAT16 = "bf16"
    FLOAT32 = "f32"
    FLOAT64 = "f64"
    INT16 = "i16"
    INT32 = "i32"
    INT64 = "i64"

    @property
    def width(self) -> int:
        """Bytes of a word."""
        digits = re.search(r"\d+", self)
        return int(digits[0]) // 8 if digits else 1

    @property
    def rotates(self) -> bool:
        """True where the exponent fills a byte only without the sign."""
        return self in (RangeKind.BFLOAT16, RangeKind.FLOAT32, RangeKind.FLOAT64)


_TYPES = onnx.TensorProto
_KINDS: Mapping[int, RangeKind] = {
    _TYPES.FLOAT16: RangeKind.FLOAT16,
    _TYPES.BFLOAT16: RangeKind.BFLOAT16,
    _TYPES.FLOAT: RangeKind.FLOAT32,
    _TYPES.COMPLEX64: RangeKind.FLOAT32,
    _TYPES.DOUBLE: RangeKind.FLOAT64,
    _TYPES.COMPLEX128: RangeKind.FLOAT64,
    _TYPES.INT16: RangeKind.INT16,
    _TYPES.UINT16: RangeKind.INT16,
    _TYPES.INT32: RangeKind.INT32,
    _TYPES.UINT32: RangeKind.INT32,
    _TYPES.INT64: RangeKind.INT64,
    _TYPES.UINT64: RangeKind.INT64,
}


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of bytes of one kind; a file is a sequence of them without gaps."""

    kind: RangeKind
    length: int


@dataclass(frozen=True)
class FileLayout:
    """The segments of a model's file, and of each file that it keeps tensors in.

    Args:
        segments: of the model itself.
        external: location as the model writes it -> (offset, length or None for the rest, kind) of its tensors.
    """

    segments: tuple[Segment, ...]
    external: dict[str, list[tuple[int, int | None, RangeKind]]]


def model_layout(source: ByteSource) -> FileLayout:
    """Return what is known of the bytes of a model; of bytes that are no model, nothing is."""
    try:
        proto = onnx.ModelProto.FromString(wire.scan(source))
    except (ModelError, ValueError, RuntimeError):
        return FileLayout(segments((), source.size), {})
    except Exception as error:  # protobuf's own, which has no public base
        if type(error).__name__ != "DecodeError":
            raise
        return FileLayout(segments((), source.size), {})
    inside: list[tuple[int, int | None, RangeKind]] = []
    external: dict[str, list[tuple[int, int | None, RangeKind]]] = {}
    for tensor in _tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        place = (_number(entries, "offset") or 0, _number(entries, "length"), _kind(tensor))
        if location.startswith("#"):
            inside.append(place)
        else:
            external.setdefault(location, []).append(place)
    return FileLayout(segments(inside, source.size), external)


def segments(places: Iterable[tuple[int, int | None, RangeKind]], size: int) -> tuple[Segment, ...]:
    """Return the segments of a file of `size` bytes with tensors at some places; what is impossible is left out."""
    found: list[Segment] = []
    at = 0
    for offset, length, kind in sorted(places, key=lambda place: place[0]):
        end = size if length is None else offset + length
        if offset < at or end > size or end <= offset or (end - offset) % kind.width:
            continue
        if offset > at:
            found.append(Segment(RangeKind.BYTES, offset - at))
        found.append(Segment(kind, end - offset))
        at = end
    if size > at:
        found.append(Segment(RangeKind.BYTES, size - at))
    return tuple(found)


def _kind(tensor: onnx.TensorProto) -> RangeKind:
    return _KINDS.get(tensor.data_type, RangeKind.BYTES)


def _number(entries: dict[str, str], key: str) -> int | None:
    """Return an entry as a number, None where there is none."""
    return int(entries[key]) if entries.get(key, "").isdecimal() else None


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a model: initializers and attributes, bodies and functions included."""
    yield from _of_graph(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _of_attributes(node.attribute)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _of_attributes(node.attribute)


def _of_attributes(attributes: Any) -> Iterator[onnx.TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
            yield from _of_graph(body)
