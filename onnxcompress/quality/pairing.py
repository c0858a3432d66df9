"""Pairs of outputs of two models: taken apart into samples, and whether and as what they can be compared."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from ..core import Feed
from ..numerics.statistics.spectral_distance import FRAME
from .output_kinds import KindDecision, OutputKind


def batch_size(feed: Feed) -> int:
    """Return the number of samples in a feed: the length of axis 0 where all inputs share it, else 1."""
    lengths = {array.shape[0] for array in feed.values() if isinstance(array, np.ndarray) and array.ndim}
    is_whole = all(isinstance(array, np.ndarray) for array in feed.values())
    return lengths.pop() if is_whole and len(lengths) == 1 and min(lengths) > 0 else 1


def array_bytes(run: Mapping[str, Any]) -> int:
    """Return the bytes of the arrays among some values."""
    return sum(value.nbytes for value in run.values() if isinstance(value, np.ndarray))


def inputs_apart(feed: Feed, count: int) -> list[dict[str, np.ndarray]]:
    """Return the inputs of each sample without their batch axis; inputs of another length are left out."""
    arrays = {k: v for k, v in feed.items() if isinstance(v, np.ndarray) and v.ndim and len(v) == count}
    return [{name: array[index] for name, array in arrays.items()} for index in range(count)]


class InputsApart(Sequence[dict[str, np.ndarray]]):
    """The inputs of each sample of several feeds, which are read anew each time: see `inputs_apart`.

    Args:
        feeds: several, of which each holds a number of samples.
        batches: these numbers.
    """

    def __init__(self, feeds: Sequence[Feed], batches: Sequence[int]) -> None:
        self._feeds, self._batches = feeds, batches
        self._places = [(number, index) for number, count in enumerate(batches) for index in range(count)]

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, np.ndarray]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, np.ndarray] | list[dict[str, np.ndarray]]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        number, place = self._places[index]
        return inputs_apart(self._feeds[number], self._batches[number])[place]

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for feed, count in zip(self._feeds, self._batches, strict=True):
            yield from inputs_apart(feed, count)


@dataclass(frozen=True)
class Layout:
    """Axes by which the samples of an output are taken apart, the same in all feeds whatever their lengths.

    Args:
        has_batch: axis 0 counts samples; else a feed is one sample, as with rows whose number depends on the data.
        single: axes of a sample that are dropped, since their length is 1 in every sample.
    """

    has_batch: bool
    single: tuple[int, ...] = ()


def layout(values: Sequence[Any], batches: Sequence[int], *, counts_rows: bool = False) -> Layout:
    """Return how the samples of an output of several feeds are taken apart.

    Args:
        values: the output for each feed.
        batches: the number of samples in each.
        counts_rows: the graph says that axis 0 does not count samples.
    """
    pairs = zip(values, batches, strict=True)
    has_batch = not counts_rows and all(isinstance(v, np.ndarray) and v.ndim and len(v) == n for v, n in pairs)
    apart_only = Layout(has_batch)
    samples = samples_apart(values, batches, apart_only)
    ranks = {sample.ndim if isinstance(sample, np.ndarray) else -1 for sample in samples}
    rank = max(ranks, default=-1)
    if len(ranks) != 1 or rank < 1:
        return apart_only
    single = [a for a in range(rank - 1) if all(s.shape[a] == 1 for s in samples) and (a > 0 or rank < 3)]
    return Layout(has_batch, () if counts_rows and rank == 2 else tuple(single))


def samples_apart(values: Sequence[Any], batches: Sequence[int], how: Layout) -> list[Any]:
    """Return the samples of an output of several feeds, of which each holds a number of samples."""
    return [one for value, count in zip(values, batches, strict=True) for one in apart(value, count, how)]


def apart(value: Any, count: int, how: Layout) -> list[Any]:
    """Return the parts of an output that belong to one sample each, without the batch axis; else the whole."""
    if not isinstance(value, np.ndarray):
        return [value]
    is_batch = how.has_batch and value.ndim and len(value) == count
    return [_squeezed(np.asarray(each), how.single) for each in (value if is_batch else [value])]


def _squeezed(array: np.ndarray, single: tuple[int, ...]) -> np.ndarray:
    """Return an array without those of some axes whose length is 1."""
    return array.squeeze(tuple(axis for axis in single if axis < array.ndim - 1 and array.shape[axis] == 1))


def choices_last(value: Any, axis: int | None) -> Any:
    """Return an output whose choices were made along an axis with that axis last."""
    return np.moveaxis(value, axis, -1) if axis is not None and isinstance(value, np.ndarray) and value.ndim else value


def is_float(value: Any) -> bool:
    """Return whether a value is an array of floats that holds something."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size > 0


def incomparable(one: Any, other: Any, kind: OutputKind) -> str | None:
    """Return why two values can't be compared at all."""
    if isinstance(one, np.ndarray) != isinstance(other, np.ndarray):
        return "only one of the models gives an array"
    if not isinstance(one, np.ndarray):
        a, b = _flattened(one), _flattened(other)
        return None if a.shape == b.shape else f"sequences of {a.size} and {b.size} numbers"
    if one.dtype.kind != other.dtype.kind:
        return f"{one.dtype} of the original and {other.dtype} of the result"
    if one.dtype.kind == "f" and one.shape == other.shape and (np.isfinite(one) & ~np.isfinite(other)).any():
        return "numbers that are not finite where the original's are"
    free = (OutputKind.DETECTION_ROWS, OutputKind.SELECTION, OutputKind.SIGNAL)
    is_other_table = kind is OutputKind.DETECTION_ROWS and one.shape[1:] != other.shape[1:]
    if one.shape == other.shape or (kind in free and not is_other_table):
        return None
    is_rows = one.ndim == other.ndim == 2 and one.shape[1] == other.shape[1]
    is_signal = one.dtype.kind in "fiu" and min(one.size, other.size) >= FRAME and one.ndim == other.ndim
    return None if is_rows or is_signal else f"{list(one.shape)} of the original and {list(other.shape)} of the result"


def kind_of_pair(decision: KindDecision, one: Any, other: Any) -> OutputKind:
    """Return the kind by which a pair is compared: another than the output's where the shapes differ."""
    if not isinstance(one, np.ndarray) or one.shape == other.shape:
        return decision.kind
    if decision.kind in (OutputKind.DETECTION_ROWS, OutputKind.SELECTION, OutputKind.SIGNAL):
        return decision.kind
    if one.ndim == 2 and one.shape[1] == other.shape[1]:
        return OutputKind.DETECTION_ROWS if one.dtype.kind == "f" else OutputKind.SELECTION
    return OutputKind.SIGNAL


def as_array(value: Any) -> np.ndarray:
    """Return an array as it is, a sequence or a map as its numbers in order."""
    return value if isinstance(value, np.ndarray) else _flattened(value)


def _flattened(value: Any) -> np.ndarray:
    """Return the numbers of a sequence, of arrays or of maps, in order; of texts their checksums."""
    if isinstance(value, Mapping):
        return _flattened([value[key] for key in sorted(value, key=str)])
    if isinstance(value, str):
        return np.array([zlib.crc32(value.encode())], np.float64)
    if isinstance(value, np.ndarray) and value.dtype.kind in "OUS":
        return _flattened(value.ravel().tolist())
    if isinstance(value, list | tuple):
        return np.concatenate([_flattened(each) for each in value]) if value else np.zeros(0)
    return np.atleast_1d(np.asarray(value, np.float64)).ravel()


def same_shape_input(value: np.ndarray, inputs: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Return the first input of an output's shape, None without one."""
    return next((array for array in inputs.values() if array.shape == value.shape), None)
