"""Pairs of outputs of two models: taken apart into samples, and whether and as what they can be compared."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core import Feed
from ..numerics.statistics.spectral_distance import FRAME
from .output_kinds import KindDecision, OutputKind


def batch_size(feed: Feed) -> int:
    """Return the number of samples in a feed: the length of axis 0 where all inputs share it, else 1."""
    lengths = {array.shape[0] for array in feed.values() if isinstance(array, np.ndarray) and array.ndim}
    is_whole = all(isinstance(array, np.ndarray) for array in feed.values())
    return lengths.pop() if is_whole and len(lengths) == 1 and min(lengths) > 0 else 1


def inputs_apart(feed: Feed, count: int) -> list[dict[str, np.ndarray]]:
    """Return the inputs of each sample without their batch axis; inputs of another length are left out."""
    arrays = {k: v for k, v in feed.items() if isinstance(v, np.ndarray) and v.ndim and len(v) == count}
    return [{name: array[index] for name, array in arrays.items()} for index in range(count)]


def samples_apart(values: Sequence[Any], batches: Sequence[int]) -> list[Any]:
    """Return the samples of an output of several feeds, of which each holds a number of samples."""
    return [one for value, count in zip(values, batches, strict=True) for one in apart(value, count)]


def apart(value: Any, count: int) -> list[Any]:
    """Return the parts of an output that belong to one sample each, without the batch axis; else the whole."""
    if isinstance(value, np.ndarray) and value.ndim and len(value) == count:
        return [_squeezed(np.asarray(value[index])) for index in range(count)]
    return [_squeezed(value) if isinstance(value, np.ndarray) else value]


def _squeezed(array: np.ndarray) -> np.ndarray:
    """Return an array without axes of length 1, but for the first of three and more (channels) and the last."""
    kept = [n for axis, n in enumerate(array.shape[:-1]) if n != 1 or (axis == 0 and array.ndim > 2)]
    return array.reshape(*kept, *array.shape[-1:]) if array.ndim else array


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
