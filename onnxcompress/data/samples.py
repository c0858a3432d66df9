"""Samples: a name each, and a way to load its arrays; and stacks of samples cut along their sample axis.

**Sample axis.** In an `.npz` (and a dict of arrays) an array with one axis more than the model's input is a stack:
each `x[i]` is one feed. With as many axes, axis 0 is cut: into `x[i:i+1]` where the model's first dimension is
dynamic or 1, and into `x[i*N:(i+1)*N]` where it is fixed at N. An array that holds one sample beside others that
hold more is used for every sample (a sampling rate, an initial state).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError

if TYPE_CHECKING:
    from ..runtime.tensor_spec import TensorSpec

Raw = Mapping[str, Any]

LABEL_NAMES = ("label", "labels", "y")

ANY = "*"
"""Replaces the only input's name in a sample that has one array without a name."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A feed before it is fitted to a model: `load` returns its arrays, label included, by name."""

    name: str
    load: Callable[[], Raw]


def by_input(raw: Raw, specs: Sequence[TensorSpec], where: str, *, optional: frozenset[str]) -> dict[str, Any]:
    """Return the arrays by the names of the inputs; a single-input model accepts any one array.

    Args:
        raw: array name -> array.
        specs: the model's inputs; those that have a default need no array.
        where: names the sample in errors.
        optional: further inputs that need none.

    Raises:
        DataError: an input has no array.

    """
    needed = [spec.name for spec in required(specs) if spec.name not in optional]
    if len(raw) == 1 and len(needed) == 1 and not set(raw) <= {spec.name for spec in specs}:
        return {needed[0]: next(iter(raw.values()))}
    missing = [name for name in needed if name not in raw]
    if missing:
        found = ", ".join(repr(name) for name in raw if name != ANY) or "nothing with a name"
        raise DataError(
            f"no array for input {missing[0]!r}; the data has {found}", where=where, hint=inputs_hint(specs)
        )
    return {spec.name: raw[spec.name] for spec in specs if spec.name in raw}


def required(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return the inputs that have no default."""
    return [spec for spec in specs if not spec.is_optional]


def inputs_hint(specs: Sequence[TensorSpec]) -> str:
    """Return the hint that lists a model's inputs."""
    return f"The model's inputs are {', '.join(str(spec) for spec in specs)}"


def cut_stack(
    arrays: Mapping[str, np.ndarray], specs: Sequence[TensorSpec], *, source: str, optional: frozenset[str]
) -> list[Sample]:
    """Cut arrays with a leading sample axis into samples, by the rule in the module's docstring."""
    names = {spec.name for spec in specs}
    label_name = next((name for name in LABEL_NAMES if name in arrays and name not in names), None)
    inputs = by_input({k: v for k, v in arrays.items() if k != label_name}, specs, source, optional=optional)
    steps = {spec.name: _step(inputs[spec.name], spec, source) for spec in specs if spec.name in inputs}
    counts = {name: _count(inputs[name], step, name, source) for name, step in steps.items()}
    count = _common_count(counts, source)

    def load(index: int) -> Raw:
        sample = {name: _slice(inputs[name], step, index if counts[name] > 1 else 0) for name, step in steps.items()}
        if label_name is None:
            return sample
        return sample | {label_name: _label(arrays[label_name], count, index, source)}

    return [Sample(name=f"{source}[{i}]", load=partial(load, i)) for i in range(count)]


def _step(array: np.ndarray, spec: TensorSpec, source: str) -> int | None:
    """Return how an array is cut: 0 a stack of samples, N slices of N along axis 0, None not at all."""
    rank = len(spec.shape)
    if array.ndim == rank + 1:
        return 0
    if array.ndim == rank:
        first = spec.shape[0] if rank else None
        return None if rank == 0 else first if isinstance(first, int) and first > 0 else 1
    raise DataError(
        f"input {spec} expected, with a sample axis before it or cut along its first axis; "
        f"the data has {array.dtype} {list(array.shape)}",
        where=source,
    )


def _count(array: np.ndarray, step: int | None, name: str, source: str) -> int:
    """Return the number of samples in an array.

    Raises:
        DataError: they don't fill the batches of the size that the model is fixed to.

    """
    if step is None:
        return 1
    left = array.shape[0] % max(step, 1)
    if left:
        raise DataError(
            f"{array.shape[0]} samples of {name!r} don't fill batches of {step}, the size that the model is fixed to",
            where=source,
            hint=f"Leave the last {left} out" if left < array.shape[0] else f"Give {step} or more",
        )
    return int(array.shape[0]) // max(step, 1)


def _common_count(counts: Mapping[str, int], source: str) -> int:
    """Return the number of samples; an array of one sample serves all.

    Raises:
        DataError: the arrays give different numbers.

    """
    several = {name: count for name, count in counts.items() if count != 1}
    for name, count in several.items():
        first, number = next(iter(several.items()))
        if count != number:
            raise DataError(f"{number} samples of {first!r} and {count} of {name!r}", where=source)
    return next(iter(several.values()), 1)


def _slice(array: np.ndarray, step: int | None, index: int) -> np.ndarray:
    if step is None:
        return array
    part = np.asarray(array[index] if step == 0 else array[index * step : (index + 1) * step])
    if isinstance(array, np.memmap):
        part = part.copy()
        _release(array)
    return part


def _release(array: np.memmap[Any, Any]) -> None:
    """Let go of the pages of a mapped file that were read: as long as they are mapped they count as this process's."""
    mapped: Any = array.base
    if isinstance(mapped, mmap.mmap) and hasattr(mapped, "madvise"):  # not on Windows
        mapped.madvise(mmap.MADV_DONTNEED)


def _label(labels: np.ndarray, count: int, index: int, source: str) -> np.ndarray:
    """Return the labels of one sample: `labels` holds one row, or the same number of rows, per sample."""
    each, left = divmod(labels.shape[0], count) if labels.ndim else (0, 0)
    if each == 0 or left:
        found = labels.shape[0] if labels.ndim else labels.size
        raise DataError(f"{found} labels for {count} feeds", where=source)
    return np.asarray(labels[index * each : (index + 1) * each])
