"""Fits arrays that a user gave to what a model declares: type, shape, scale. Refuses what would lose values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError

if TYPE_CHECKING:
    from ..runtime.tensor_spec import TensorSpec


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """x * scale - mean; one number, or one per channel."""

    scale: tuple[float, ...] = (1.0,)
    mean: tuple[float, ...] = (0.0,)
    channels_last: bool = False

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Return float32 `array * scale - mean`; the channels are axis 1, or the last one (`channels_last`).

        Raises:
            DataError: the number of values is neither 1 nor the number of channels.

        """
        factors, offsets = (_per_channel(v, array.shape, last=self.channels_last) for v in (self.scale, self.mean))
        return np.asarray(array.astype(np.float32) * factors - offsets, np.float32)


def _per_channel(values: Sequence[float], shape: tuple[int, ...], *, last: bool) -> np.ndarray:
    array = np.array(values, np.float32)
    if array.size == 1:
        return array.reshape(())
    axis = len(shape) - 1 if last else 1
    if axis >= len(shape) or shape[axis] != array.size:
        raise DataError(
            f"scale or mean has {array.size} values and the data {list(shape)} other channels",
            hint="Give one value, or one per channel; --layout says where the channels are",
        )
    return array.reshape([-1 if a == axis else 1 for a in range(len(shape))])


def fit(array: Any, spec: TensorSpec, *, where: str) -> Any:
    """Return `array` in the type and shape of the input `spec`; a missing batch axis of 1 is added.

    Args:
        array: anything that numpy makes an array of; lists pass unchanged for sequence inputs.
        spec: what the model declares.
        where: names the sample in errors.

    Raises:
        DataError: another shape, or a type that can't be converted without losing values.

    """
    if not spec.type.startswith("tensor("):
        return array
    try:
        found = np.asarray(array)
    except ValueError as error:
        raise DataError(
            f"input {spec} expected, the data is no array: its rows differ in length", where=where
        ) from error
    if found.ndim + 1 == len(spec.shape) and (not isinstance(dim := spec.shape[0], int) or dim < 0 or dim == 1):
        found = found[None]
    if not fits(found.shape, spec):
        raise _refusal(found, spec, where, "")
    return _convert(found, spec, where)


def fits(shape: Sequence[int], spec: TensorSpec) -> bool:
    """Say whether an array of `shape` is accepted by the input."""
    return len(shape) == len(spec.shape) and all(
        not isinstance(declared, int) or declared < 0 or declared == size
        for declared, size in zip(spec.shape, shape, strict=True)
    )


def zeros(
    spec: TensorSpec, feed: Mapping[str, Any], specs: Sequence[TensorSpec], *, empty: Collection[int] = ()
) -> np.ndarray:
    """Return the zero state for an input: symbols take their size from the feed's other inputs, others its batch.

    Args:
        spec: the input.
        feed: input name -> array, of the others.
        specs: all inputs.
        empty: axes of no length, along which a cache grows.
    """
    sizes: dict[str, int] = {}
    batch = 1
    for other in specs:
        array = feed.get(other.name)
        if isinstance(array, np.ndarray) and array.ndim == len(other.shape):
            sizes |= {d: n for d, n in zip(other.shape, array.shape, strict=True) if isinstance(d, str)}
            batch = array.shape[0] if array.ndim > 1 else batch
    shape = [d if isinstance(d, int) and d >= 0 else sizes.get(str(d), batch) for d in spec.shape]
    shape = [0 if axis in empty else size for axis, size in enumerate(shape)]
    return np.zeros(shape, spec.dtype or np.float32)


def non_finite(feed: Mapping[str, Any]) -> str | None:
    """Return which input of a feed holds NaN or infinite values and how many, None where none does."""
    for name, array in feed.items():
        if isinstance(array, np.ndarray) and array.dtype.kind in "fc":
            bad = array.size - int(np.isfinite(array).sum())
            if bad:
                return f"{bad} of {array.size} values of {name!r} are NaN or infinite"
    return None


def _convert(array: np.ndarray, spec: TensorSpec, where: str) -> np.ndarray:
    if spec.type == "tensor(string)":
        if array.dtype.kind not in "UO":
            raise _refusal(array, spec, where, "")
        return array.astype(object)
    if spec.dtype is None or array.dtype == spec.dtype:
        return array
    if array.dtype.kind not in "biuf":
        raise _refusal(array, spec, where, "")
    if array.dtype.kind == "f" and spec.dtype.kind != "f":
        raise _refusal(array, spec, where, "fractions would be lost")
    with np.errstate(over="ignore"):
        converted = array.astype(spec.dtype)
    if array.dtype.kind == "f":
        # Rounding to a shorter float is what everyone expects; running over its range is not.
        lossless = bool((np.isfinite(converted) == np.isfinite(array)).all())
    else:
        lossless = bool((converted.astype(array.dtype) == array).all()) and _same_sign(converted, array)
    if not lossless:
        raise _refusal(array, spec, where, "values don't fit")
    return converted


def _same_sign(converted: np.ndarray, array: np.ndarray) -> bool:
    return bool(((converted < 0) == (array < 0)).all()) if converted.dtype.kind != "b" else True


def _refusal(array: np.ndarray, spec: TensorSpec, where: str, why: str) -> DataError:
    found = f"the data has {array.dtype} {list(array.shape)}"
    message = f"input {spec} expected, {found}" + (f" ({why})" if why else "")
    return DataError(message, where=where, hint=_layout_hint(array.shape, spec))


def _layout_hint(shape: tuple[int, ...], spec: TensorSpec) -> str:
    """Say how pictures whose channels are at the other end are turned; "" where that would not do."""
    if len(shape) != 4 or fits(shape, spec):
        return ""
    for now, order in (("last", (0, 3, 1, 2)), ("first", (0, 2, 3, 1))):
        if fits([shape[axis] for axis in order], spec):
            moved = ", ".join(map(str, order))
            return f"The channels of the data are {now}, the model takes them elsewhere: save x.transpose({moved})"
    return ""
