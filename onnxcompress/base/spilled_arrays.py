"""Arrays that are kept for later: the first of them in memory, the others in a temporary file without a name."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, overload

import numpy as np

MEMORY_BYTES = 32 << 20
"""Bytes of arrays that stay in memory. Chosen by judgement: a part of the 600 MB that a command may take beyond its
model, and more than what classifiers give for 64 samples."""
_LEAST_BYTES = 1 << 16
"""Smaller arrays stay in memory: they don't add up to much."""


@dataclass(frozen=True)
class _Stored:
    """An array in the file, from an offset on."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class SpilledArrays(Sequence[dict[str, Any]]):
    """Outputs of runs, one dictionary after the other; each is read anew when it is asked for.

    The file has no name (on Windows it is removed when it is closed), so that nothing is left behind even where the
    process is killed. What can't be written stays in memory.

    Args:
        memory_bytes: of arrays that stay in memory.
    """

    def __init__(self, *, memory_bytes: int = MEMORY_BYTES) -> None:
        self._memory_bytes = memory_bytes
        self._held_bytes = self._file_bytes = 0
        self._runs: list[dict[str, Any]] = []
        self._file: IO[bytes] | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes of arrays in memory."""
        return self._held_bytes

    def append(self, run: Mapping[str, Any]) -> None:
        """Keep the values of a run; those that are no arrays stay in memory."""
        self._runs.append({name: self._kept(value) for name, value in run.items()})

    def __len__(self) -> int:
        return len(self._runs)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return {name: self._read(value) for name, value in self._runs[index].items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def _kept(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        is_written = value.nbytes >= _LEAST_BYTES and not value.dtype.hasobject
        if is_written and self._held_bytes + value.nbytes > self._memory_bytes:
            try:
                return self._written(value)
            except OSError:  # the disk is full
                pass
        self._held_bytes += value.nbytes
        return value.copy()  # what a session gives may keep a larger block of its memory

    def _written(self, array: np.ndarray) -> _Stored:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="onnxcompress-", buffering=0)  # noqa: SIM115 - open as long as this
            weakref.finalize(self, self._file.close)
        offset, left = self._file_bytes, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        self._file.seek(offset)
        while left:
            left = left[self._file.write(left) :]
        self._file_bytes += array.nbytes
        return _Stored(offset, array.shape, array.dtype)

    def _read(self, value: Any) -> Any:
        if not isinstance(value, _Stored):
            return value
        assert self._file is not None
        found = np.empty(value.shape, value.dtype)
        self._file.seek(value.offset)
        left = found.reshape(-1).view(np.uint8).data
        while left:
            count = self._file.readinto(left)  # type: ignore[attr-defined]
            if not count:
                raise OSError("a temporary file is shorter than what was written")
            left = left[count:]
        return found
