"""A few MiB of bytes of one kind, compressed without loss: the transform and codes that make them smallest.

    block = transform (1 byte), then its streams, each: code (1 byte), length (4 bytes, little-endian), bytes

    PLAIN    the bytes
    PLANES   one stream for each byte of a word
    ROTATED  the same after the sign of a float was rotated to the other end, so that the exponent is one byte
    SPARSE   a bit for each word, whether it is not zero, then the planes of those that are not, rotated if floats
    PALETTE  the different words (at most 256), then one byte for each word

The reader knows how long each stream will be before it makes room for it. Of the codes, `_ENTROPY` finds hardly
any repetitions and is fast; `_MATCHES` searches thoroughly and is slow. Neighbours' differences, arithmetic or
XOR, were measured and make exponents larger (3.2 instead of 2.5 bits in a language model).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import zstandard

from ..errors import ModelError
from ..numerics import byte_planes
from .layout import RangeKind

BLOCK_BYTES = 4 << 20
"""Most bytes of a block, and of memory for each kind. Chosen by judgement; not measured."""
_SAMPLE_BYTES = 128 << 10
"""Of each stream this much is searched thoroughly, to see whether it pays to do so with all of it."""
_SAMPLE_WORDS = 32 << 10
"""So many words show which transform is the best."""
_PAYS = 0.99
"""A thorough search is worth its time where it leaves less than this share."""
_WINDOW_LOG = 22
"""Base-2 logarithm of the window: a whole block."""
_STREAM = struct.Struct("<BI")


class _Transform(enum.IntEnum):
    """First byte of a block."""

    PLAIN, PLANES, SPARSE, PALETTE, ROTATED = range(5)


_RAW, _ZSTD = 0, 1
_MOST_COLOURS = 256
"""Different words of a palette: an index is one byte."""
_FEWEST_ZEROS = 1 / 16
"""Share of words from which on it may pay to say where they are."""
Read = Callable[[int], bytes]
"""Returns the next so many bytes of the archive, or raises ModelError."""


class Encoder:
    """Compresses blocks."""

    def __init__(self) -> None:
        self._entropy = zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters(
                strategy=zstandard.STRATEGY_FAST,
                window_log=17,
                hash_log=6,
                chain_log=6,
                search_log=1,
                min_match=7,
                target_length=0,
                write_content_size=False,
            )
        )
        self._matches = zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters.from_level(
                19, window_log=_WINDOW_LOG, write_content_size=False
            )
        )

    def encode(self, data: bytes, kind: RangeKind) -> bytes:
        """Return the block of `data`: at most `BLOCK_BYTES` bytes, a whole number of words of `kind`."""
        words = np.frombuffer(data, f"<u{kind.width}")
        if kind.width == 1:
            return self._written(_Transform.PLAIN, [words])
        few = _middle(words, _SAMPLE_WORDS)
        tried = sorted(
            (len(block), transform) for transform in _Transform if (block := self._block(few, kind, transform))
        )
        blocks = (self._block(words, kind, transform) for _, transform in tried)
        return next(block for block in blocks if block is not None)  # PLAIN always is one

    def _block(self, words: byte_planes.Words, kind: RangeKind, transform: _Transform) -> bytes | None:
        streams = _streams(words, kind, transform)
        return None if streams is None else self._written(transform, streams)

    def _written(self, transform: _Transform, streams: Sequence[np.ndarray]) -> bytes:
        parts = [bytes([transform])]
        for stream in streams:
            code, packed = self._shortest(stream.tobytes())
            parts += [_STREAM.pack(code, len(packed)), packed]
        return b"".join(parts)

    def _shortest(self, data: bytes) -> tuple[int, bytes]:
        """Return the code that makes a stream shortest and what it makes of it."""
        best = (_RAW, data)
        fast = self._entropy.compress(data)
        if len(fast) < len(data):
            best = (_ZSTD, fast)
        few = _middle(data, _SAMPLE_BYTES)
        usual = len(best[1]) if few is data else min(len(few), len(self._entropy.compress(few)))
        thorough = self._matches.compress(few)
        if len(thorough) < _PAYS * usual:
            if few is not data:
                thorough = self._matches.compress(data)
            if len(thorough) < len(best[1]):
                best = (_ZSTD, thorough)
        return best


class Decoder:
    """Restores blocks, with room for what is announced and no more."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG)

    def decode(self, read: Read, length: int, kind: RangeKind) -> bytes:
        """Return the next block, `length` bytes of one kind.

        Raises:
            ModelError: it is cut short or says something else.
        """
        count = length // kind.width
        (transform,) = read(1)
        if transform == _Transform.PLAIN:
            return self._exactly(read, length)
        if transform in (_Transform.PLANES, _Transform.ROTATED):
            words = self._planes(read, kind, count, rotate=transform == _Transform.ROTATED)
        elif transform == _Transform.SPARSE:
            bits = np.frombuffer(self._exactly(read, -(-count // 8)), np.uint8)
            rest = self._planes(read, kind, int(byte_planes.flags(bits, count).sum()), rotate=kind.rotates)
            words = byte_planes.join_zeros(bits, rest, count)
        elif transform == _Transform.PALETTE:
            values = self._stream(read, _MOST_COLOURS * kind.width)
            indices = np.frombuffer(self._exactly(read, count), np.uint8)
            if len(values) % kind.width or indices.max() >= len(values) // kind.width:
                raise damaged("a palette does not fit")
            words = np.frombuffer(values, f"<u{kind.width}")[indices]
        else:
            raise damaged(f"transform {transform} is unknown")
        return words.tobytes()

    def _planes(self, read: Read, kind: RangeKind, count: int, *, rotate: bool) -> byte_planes.Words:
        taken = [np.frombuffer(self._exactly(read, count), np.uint8) for _ in range(kind.width)]
        return byte_planes.join(np.stack(taken), rotate=rotate)

    def _exactly(self, read: Read, length: int) -> bytes:
        data = self._stream(read, length)
        if len(data) != length:
            raise damaged(f"a stream has {len(data)} bytes and not {length}")
        return data

    def _stream(self, read: Read, most: int) -> bytes:
        """Return the next stream; `most` is checked before there is room made for it."""
        code, length = _STREAM.unpack(read(_STREAM.size))
        if code not in (_RAW, _ZSTD) or length > most:
            raise damaged(f"a stream of {length} bytes where at most {most} are due")
        data = read(length)
        if code == _RAW:
            return data
        try:
            if zstandard.frame_content_size(data) != -1:
                raise damaged("a stream says its own length")
            return self._zstd.decompress(data, max_output_size=most, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise damaged(str(error)) from error


def damaged(why: str) -> ModelError:
    """Return the error to raise for an archive that can't be as `pack` wrote it."""
    return ModelError(f"the archive is damaged: {why}", hint="Download or make it again")


def _streams(words: byte_planes.Words, kind: RangeKind, transform: _Transform) -> list[np.ndarray] | None:
    """Return what a transform makes of words, None where it is not for them."""
    if transform is _Transform.PLAIN:
        return [words]
    if transform is _Transform.PLANES:
        return list(byte_planes.split(words, rotate=False))
    if transform is _Transform.ROTATED:
        return list(byte_planes.split(words, rotate=True)) if kind.rotates else None
    if transform is _Transform.SPARSE:
        if np.count_nonzero(words) > (1 - _FEWEST_ZEROS) * len(words):
            return None
        bits, rest = byte_planes.split_zeros(words)
        return [bits, *byte_planes.split(rest, rotate=kind.rotates)]
    found = byte_planes.split_palette(words)
    return None if found is None else list(found)


def _middle(items: Any, most: int) -> Any:
    """Return `items`, or a piece of `most` of them from the middle."""
    start = (len(items) - most) // 2
    return items if start <= 0 else items[start : start + most]
