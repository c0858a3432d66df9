"""Identity of a model: digests of its file and of the weights that lie beside it."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass

_CHUNK_BYTES = 4 << 20
"""Read at a time. Chosen by judgement; not measured."""

_OVERLAP_BYTES = 4096
"""Of two chunks, so that no entry is cut in two; names of files are shorter."""

_BLOCK_BYTES, _BLOCKS = 1 << 16, 256
"""Blocks of a file of weights that its digest is of, evenly spaced: 16 MiB, read in 15 ms where all of a 2 GB file
takes 1.5 s. Training changes all weights. Chosen by judgement."""

_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f]|[\x80-\xff][\x01-\x1f])", re.DOTALL)
"""The entry `location` of an external tensor in protobuf's wire format: field 1, its name, field 2, a length."""


@dataclass(frozen=True)
class ModelIdentity:
    """Digests of a model.

    Attributes:
        sha256: of the file, in hexadecimal digits.
        weights: of the files of weights beside it; "" where it has none, or where they were not found.
    """

    sha256: str
    weights: str = ""

    def matches(self, other: ModelIdentity) -> bool:
        """Say whether both are the same model, as far as is known."""
        unknown = not self.weights or not other.weights
        return self.sha256 == other.sha256 and (unknown or self.weights == other.weights)


def of_file(path: str | os.PathLike[str]) -> ModelIdentity:
    """Return the identity of the model in a file.

    Raises:
        OSError: it can't be read.
    """
    digest, places, tail = hashlib.sha256(), set(), b""
    with open(path, "rb") as file:  # noqa: PTH123 - takes what the runtime takes
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            places |= _locations(tail + chunk)
            tail = chunk[-_OVERLAP_BYTES:]
    return ModelIdentity(digest.hexdigest(), _weights(places, os.path.dirname(os.path.abspath(path))))  # noqa: PTH100, PTH120


def of_bytes(data: bytes, folder: str | None = None) -> ModelIdentity:
    """Return the identity of a serialized model, whose weights may lie in files in `folder` (default: where we are)."""
    return ModelIdentity(hashlib.sha256(data).hexdigest(), _weights(_locations(data), folder or os.curdir))


def _locations(data: bytes) -> set[str]:
    """Return the names of files of weights that bytes of a model mention."""
    found = set()
    for match in _LOCATION.finditer(data):
        length = match[1]
        size = length[0] if len(length) == 1 else (length[0] & 0x7F) | length[1] << 7
        name = data[match.end() : match.end() + size]
        if len(name) == size:
            found.add(name.decode("utf-8", "replace"))
    return found


def _weights(places: set[str], folder: str) -> str:
    """Return the digest of files of weights: names, sizes, and blocks of each; "" where one is missing."""
    digest = hashlib.sha256()
    for place in sorted(places):
        try:
            with open(os.path.join(folder, place), "rb") as file:  # noqa: PTH118, PTH123
                size = os.fstat(file.fileno()).st_size
                digest.update(f"{place}\0{size}\0".encode())
                for offset in _offsets(size):
                    file.seek(offset)
                    digest.update(file.read(_BLOCK_BYTES))
        except (OSError, ValueError):
            return ""
    return digest.hexdigest() if places else ""


def _offsets(size: int) -> list[int]:
    last = max(0, size - _BLOCK_BYTES)
    if size <= _BLOCK_BYTES * _BLOCKS:
        return list(range(0, size, _BLOCK_BYTES))
    return [last * index // (_BLOCKS - 1) for index in range(_BLOCKS)]
