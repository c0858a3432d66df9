"""Run a model on data as its user would, and keep what it says.

model, Dataset --run--> output name -> one array, or one per sample where shapes differ --write--> .npz
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..base import atomic_files
from ..errors import ModelError, UsageError
from ..io import model_io
from ..partition import split as split_job
from ..partition.runner import PartitionedModel
from ..runtime import loaded_model

if TYPE_CHECKING:
    from ..data.evaluation_set import DataOptions, Evaluation
    from ..runtime.tensor_spec import TensorSpec


class Runnable(Protocol):
    """Something that runs feeds: a session, or a split model."""

    @property
    def feedable(self) -> Sequence[TensorSpec]:
        """Specs of the inputs, then of those that have a default."""
        ...

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """Specs of the outputs."""
        ...

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs for one feed by name."""
        ...


class _PartsModel:
    """A split model, run as a session is."""

    def __init__(self, model: PartitionedModel) -> None:
        self._model = model
        self.feedable, self.outputs = (*model.inputs, *model.optional_inputs), model.outputs

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._model.run(names, feed), strict=True))


@contextlib.contextmanager
def opened(
    path: Path, *, max_memory: int | None, data: Any, data_options: DataOptions, threads: int
) -> Iterator[Runnable]:
    """Open a model, or a folder that `split` wrote, to run it.

    Args:
        path: the file or folder.
        max_memory: most bytes that weights and live values may take. A model that is not split yet is split for the
            while, into a temporary folder.
        data: the feeds that it will be run on, for splitting.
        data_options: how these are read.
        threads: of the runtime.

    Raises:
        ModelError: it can't be read.
        LimitError: the budget can't be kept.
    """
    if path.is_dir():
        with PartitionedModel(path, max_memory=max_memory, threads=threads) as parts:
            yield _PartsModel(parts)
    elif max_memory is None:
        yield loaded_model.open_one(model_io.load(path), path, optimize=True, threads=threads)
    else:
        with tempfile.TemporaryDirectory(prefix="onnxcompress-") as name:
            folder = Path(name, "parts")
            split_job.split(path, folder, max_memory=max_memory, data=data, data_options=data_options)
            with PartitionedModel(folder, max_memory=max_memory, threads=threads) as parts:
                yield _PartsModel(parts)


def run_model(
    session: Runnable,
    data: Evaluation,
    *,
    progress: Callable[[str, Sequence[Any]], Iterator[Any]] = lambda _, items: iter(items),
) -> dict[str, np.ndarray]:
    """Return every output over all samples, as `outputs.npz` holds them.

    One array by the output's name, samples concatenated along axis 0; where their other dimensions differ, or
    they have no axis, one array per sample: `NAME/00000`, `NAME/00001` and so on, scalars excepted, which are stacked.

    Raises:
        ModelError: the model can't run a sample, or an output is no array.
        UsageError: the data carries the state of an output that there is not.
    """
    names = [spec.name for spec in session.outputs]
    for output in data.state.values():
        if output not in names:
            raise UsageError(
                f"the model has no output {output!r} to carry state from", hint=f"It has {', '.join(names)}"
            )
    collected: dict[str, list[np.ndarray]] = {name: [] for name in names}
    last: dict[str, Any] = {}
    feeds = data.stateful(last)
    for index in progress("Running", range(len(data.feeds))):
        try:
            last.update(session.run(next(feeds)))
        except ModelError as error:
            raise ModelError(error.message, where=f"{data.source}, sample {index}") from error
        for name in names:
            if not isinstance(last[name], np.ndarray):
                raise ModelError(
                    f"output {name!r} is a {type(last[name]).__name__} and no array, which .npz can't hold"
                )
            array = last[name]
            collected[name].append(array.astype(np.str_) if array.dtype.kind == "O" else array)
    return {key: array for name in names for key, array in _joined(name, collected[name])}


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to a `.npz` file, whole or not at all; the same arrays give the same bytes.

    Raises:
        ModelError: the file can't be written.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # numpy.savez takes no array that is called "file"
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    atomic_files.write(path, [buffer.getbuffer()], buffer.getbuffer().nbytes)


def _joined(name: str, arrays: Sequence[np.ndarray]) -> list[tuple[str, np.ndarray]]:
    if all(array.ndim == 0 for array in arrays):
        return [(name, np.stack(arrays))] if arrays else []
    if len({(array.ndim, array.shape[1:]) for array in arrays}) == 1:
        return [(name, np.concatenate(arrays))]
    return [(f"{name}/{index:05d}", array) for index, array in enumerate(arrays)]
