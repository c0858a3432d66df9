"""Mutations of bytes: flips, cuts, insertions, and edits of a protobuf message field by field."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

EXTREMES = (0, 1, 127, 128, 255, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 62) + 1, (1 << 63) - 1, (1 << 64) - 1)
_MOST_DEPTH = 9


@dataclass
class Field:
    """A field of a message: its content is bytes, a number, or the fields of a message inside."""

    number: int
    wire: int
    content: bytes | int | list[Field]


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    """Change a few bits, more often near the start, where the structure is."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        limit = len(out) if rng.random() < 0.5 else min(len(out), 400)
        out[int(rng.integers(limit))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut the end, the start, or a piece out of the middle."""
    first, last = sorted(int(at) for at in rng.integers(len(data) + 1, size=2))
    return (data[:first], data[last:], data[:first] + data[last:])[int(rng.integers(3))]


def insert(data: bytes, rng: np.random.Generator) -> bytes:
    """Insert random or repeated bytes."""
    at, count = int(rng.integers(len(data) + 1)), int(rng.integers(1, 40))
    if rng.random() < 0.5:
        return data[:at] + rng.bytes(count) + data[at:]
    return data[:at] + data[at : at + count] * int(rng.integers(1, 30)) + data[at:]


def overwrite(data: bytes, rng: np.random.Generator) -> bytes:
    """Put an extreme number, in one of its encodings, over what is there."""
    value = EXTREMES[int(rng.integers(len(EXTREMES)))]
    encoded = (varint(value), value.to_bytes(8, "little"), (value & 0xFFFFFFFF).to_bytes(4, "little"))
    piece = encoded[int(rng.integers(3))]
    at = int(rng.integers(max(1, len(data) - len(piece))))
    return data[:at] + piece + data[at + len(piece) :]


BYTES: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (flip, cut, insert, overwrite)


def any_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Apply one of the mutations of bytes."""
    return BYTES[int(rng.integers(len(BYTES)))](data, rng) if data else rng.bytes(8)


def splice(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Delete, repeat, move, renumber or exchange some fields of a message; enclosing lengths are put right."""
    fields = parse(data)
    if fields is None:
        return any_bytes(data, rng)
    donors = list(_walk(parse(other) or fields))
    for _ in range(int(rng.integers(1, 4))):
        places = list(_lists(fields))
        weights = np.array([len(place) for place in places], float)
        place = places[int(rng.choice(len(places), p=weights / weights.sum()))]
        at = int(rng.integers(len(place)))
        _edit(place, at, copy.deepcopy(donors[int(rng.integers(len(donors)))]), rng)
        if not fields:
            break
    return encode(fields)


def _edit(place: list[Field], at: int, donor: Field, rng: np.random.Generator) -> None:
    field = place[at]
    match int(rng.integers(7)):
        case 0:
            del place[at]
        case 1:
            place[at:at] = [copy.deepcopy(field) for _ in range(int(rng.integers(1, 5)))]
        case 2:
            place.insert(at, donor)
        case 3:
            place[at] = Field(field.number, donor.wire, donor.content)
        case 4:
            place[at] = Field(int(rng.integers(1, 30)), field.wire, field.content)
        case 5:
            place[at] = Field(field.number, 0, EXTREMES[int(rng.integers(len(EXTREMES)))])
        case _:
            content = field.content
            if isinstance(content, bytes):
                content = any_bytes(content, rng)
            elif isinstance(content, int):
                content = EXTREMES[int(rng.integers(len(EXTREMES)))]
            place[at] = Field(field.number, field.wire, content)


def parse(data: bytes, depth: int = 0) -> list[Field] | None:
    """Return the fields of a message, None where the bytes are none; texts that look like messages count as such."""
    fields: list[Field] = []
    at = 0
    try:
        while at < len(data):
            tag, at = _read_varint(data, at)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 1000:
                return None
            if wire == 0:
                value, at = _read_varint(data, at)
                fields.append(Field(number, wire, value))
                continue
            length = {1: 8, 5: 4}.get(wire, -1)
            if wire == 2:
                length, at = _read_varint(data, at)
            if length < 0 or at + length > len(data):
                return None
            content = data[at : at + length]
            at += length
            inner = parse(content, depth + 1) if wire == 2 and 1 < length < 1 << 16 and depth < _MOST_DEPTH else None
            fields.append(Field(number, wire, inner or content))
    except IndexError:
        return None
    return fields


def encode(fields: list[Field]) -> bytes:
    """Return the message of these fields."""
    out = bytearray()
    for field in fields:
        content = encode(field.content) if isinstance(field.content, list) else field.content
        out += varint(field.number << 3 | (0 if isinstance(content, int) else field.wire or 2))
        if isinstance(content, int):
            out += varint(content)
        elif field.wire in (1, 5):
            width = 8 if field.wire == 1 else 4
            out += content[:width].ljust(width, b"\0")
        else:
            out += varint(len(content)) + content
    return bytes(out)


def varint(value: int) -> bytes:
    """Return the encoding of a number that is not negative."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError


def _lists(fields: list[Field]) -> Iterator[list[Field]]:
    if fields:
        yield fields
    for field in fields:
        if isinstance(field.content, list):
            yield from _lists(field.content)


def _walk(fields: list[Field]) -> Iterator[Field]:
    for field in fields:
        yield field
        if isinstance(field.content, list):
            yield from _walk(field.content)
