"""Numbers and fields of the protobuf wire format: https://protobuf.dev/programming-guides/encoding."""

from __future__ import annotations

BYTES = 2
"""Wire type of a field of a length that comes first: text, bytes, or a message."""


def varint(buffer: bytes, at: int) -> tuple[int, int]:
    """Return the number at `at` and where it ends; IndexError past the end, OverflowError over ten bytes."""
    byte = buffer[at]
    if byte < 0x80:
        return byte, at + 1
    value = byte & 0x7F
    for step in range(1, 10):
        byte = buffer[at + step]
        value |= (byte & 0x7F) << 7 * step
        if byte < 0x80:
            return value, at + step + 1
    raise OverflowError


def encode(value: int) -> bytes:
    """Return a number of zero or more as the bytes of a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def header(number: int, length: int) -> bytes:
    """Return the tag and the length that begin a field of bytes."""
    return encode(number << 3 | BYTES) + encode(length)


def message(number: int, content: bytes) -> bytes:
    """Return a field of bytes."""
    return header(number, len(content)) + content
