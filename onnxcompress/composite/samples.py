"""Samples of a pipeline: what its run function takes, and the label of the prediction."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..base.user_code import load_function
from ..data import load as data_loading
from ..data.evaluation_set import LEAST_TO_DIVIDE, DataOptions, held_out_step
from ..data.samples import LABEL_NAMES
from ..errors import DataError, UsageError
from ..runtime.tensor_spec import TensorSpec


@dataclass(frozen=True)
class PipelineSample:
    """One sample: what `run` takes, and its label, None where it has none."""

    inputs: Any
    label: Any = None


def read(source: Any, specs: Sequence[TensorSpec] | None, options: DataOptions) -> list[PipelineSample]:
    """Read the samples of a pipeline.

    Args:
        source: with `specs`, what `--data` takes for one model. Without: `module:function` or an iterable that gives
            dictionaries (the label under `label`, `labels` or `y`) or pairs (sample, label); a .npz whose arrays have a
            leading sample axis; a folder of .npz files, one sample each.
        specs: inputs that samples are fitted to; None: they are passed on as they are.
        options: how data is read, with `specs`.

    Raises:
        DataError: they can't be read, or there are none.
        UsageError: there is no such function.
    """
    if specs is not None and not _is_of_pairs(source):
        found = data_loading.load_data(source, specs, layout=options.layout, size=options.size, scale=options.scale)
        labels: Sequence[Any] = found.labels if found.labels is not None else [None] * len(found.feeds)
        return [PipelineSample(found.feeds[index], labels[index]) for index in range(len(found.feeds))]
    where = str(source) if isinstance(source, str | Path) else "data"
    samples = [_sample(each) for each in _raw(source)]
    if not samples:
        raise DataError("holds no sample", where=where, hint="Give samples to run the pipeline on")
    return samples


def divided(samples: Sequence[PipelineSample]) -> tuple[list[PipelineSample], list[PipelineSample]]:
    """Divide samples in those to work with and those to judge by, as of one model; too few serve for both."""
    if len(samples) < LEAST_TO_DIVIDE:
        return list(samples), list(samples)
    step = held_out_step(len(samples))
    working = [sample for place, sample in enumerate(samples) if place % step != step - 1]
    return working, list(samples[step - 1 :: step])


def _is_of_pairs(source: Any) -> bool:
    """Say whether samples are given as pairs (sample, label), which are passed on as they are."""
    is_listed = isinstance(source, Sequence) and not isinstance(source, str) and bool(source)
    return is_listed and isinstance(source[0], tuple | PipelineSample)


def _raw(source: Any) -> Iterable[Any]:
    """Yield what a source holds, sample by sample."""
    if isinstance(source, str) and ":" in source and not Path(source).exists():
        return _of_function(source)
    if isinstance(source, str | Path):
        return _of_path(Path(source))
    if callable(source):
        return list(source())
    if isinstance(source, Mapping):
        return _rows(source, "data")
    if isinstance(source, Iterable):
        return list(source)
    raise DataError(f"a {type(source).__name__} holds no samples", hint="Give a list, a path or module:function")


def _of_function(name: str) -> list[Any]:
    try:
        return list(load_function(name)())
    except (DataError, UsageError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # the user's own function may raise anything
        text = " ".join(str(error).split())
        raise DataError(f"failed: {type(error).__name__}: {text}", where=name) from error


def _of_path(path: Path) -> list[Any]:
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        if not files:
            raise DataError("holds no .npz file", where=str(path), hint="Give one .npz file a sample")
        return [_arrays(file) for file in files]
    if path.suffix == ".npz" and path.is_file():
        return _rows(_arrays(path), str(path))
    hint = "Give a .npz, a folder of .npz or module:function"
    raise DataError("holds no samples of a pipeline", where=str(path), hint=hint)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, numpy and zlib each raise their own
        raise DataError(f"can't be read ({' '.join(str(error).split())})", where=str(path)) from error


def _rows(arrays: Mapping[str, Any], where: str) -> list[Any]:
    """Take arrays apart along their first axis; each sample keeps an axis of length 1, but for its label."""
    stacks = {name: np.asarray(array) for name, array in arrays.items()}
    lengths = {name: len(array) if array.ndim else 0 for name, array in stacks.items()}
    if len(set(lengths.values())) != 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"the arrays have different numbers of samples: {shown}", where=where)
    count = next(iter(lengths.values()))
    return [
        {name: array[i] if name in LABEL_NAMES else array[i : i + 1] for name, array in stacks.items()}
        for i in range(count)
    ]


def _sample(value: Any) -> PipelineSample:
    if isinstance(value, PipelineSample):
        return value
    if isinstance(value, tuple) and len(value) == 2:
        return PipelineSample(*value)
    if isinstance(value, Mapping):
        label = next((name for name in LABEL_NAMES if name in value), None)
        inputs = {name: each for name, each in value.items() if name != label}
        return PipelineSample(inputs, None if label is None else value[label])
    return PipelineSample(value)


def labels_of(samples: Iterable[PipelineSample]) -> list[Any] | None:
    """Return the labels of all samples, None where one has none."""
    first, second = itertools.tee(samples)
    return [each.label for each in first] if all(each.label is not None for each in second) else None
