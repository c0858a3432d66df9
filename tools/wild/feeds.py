"""Samples as the trial reads them: one feed each, with state carried from one to the next where a model has one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

Feed = dict[str, Any]
"""Inputs of one run by name, batch axis included."""
State = Mapping[str, str]
"""Name of an input -> name of the output that it gets one feed later."""

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
    **{f"tensor({s}int{bits})": np.dtype(f"{s}int{bits}") for s in ("", "u") for bits in (8, 16, 32, 64)},
}


def session(path: Path | str, *, optimize: bool = True) -> ort.InferenceSession:
    """Open a session of one thread, that is the calling one, with the runtime's optimizations or without."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def read(path: Path, inputs: Sequence[Any], state: State) -> Iterator[Feed]:
    """Yield the feeds of a .npz with a leading sample axis, or of a folder of .npz, one feed each.

    Args:
        path: the file or folder.
        inputs: the model's (`InferenceSession.get_inputs()`); arrays that are no input are left out.
        state: inputs that are filled by `Run`; they may be missing.
    """
    ranks = {each.name: len(each.shape) for each in inputs}
    types = {each.name: _TYPES.get(each.type) for each in inputs}

    def fit(name: str, array: np.ndarray) -> np.ndarray:
        dtype = types[name]
        return array.astype(dtype, copy=False) if dtype is not None else array.astype(object)

    if path.is_dir():
        for file in sorted(path.glob("*.npz")):
            with np.load(file, allow_pickle=False) as arrays:
                known = {name: arrays[name] for name in arrays.files if name in ranks}
            yield {n: fit(n, a[None] if a.ndim == ranks[n] - 1 else a) for n, a in known.items()}
        return
    with np.load(path, allow_pickle=False) as arrays:
        whole = {name: arrays[name] for name in arrays.files if name in ranks}
        unnamed = [name for name in arrays.files if name not in ("label", "labels", "y")]
        if not whole and len(ranks) == 1 and len(unnamed) == 1:
            whole = {next(iter(ranks)): arrays[unnamed[0]]}
    counts = {len(array) for array in whole.values()}
    if len(counts) != 1:
        missing = sorted(set(ranks) - set(whole) - set(state))
        raise ValueError(f"{path}: arrays of {sorted(counts)} samples; missing {missing}")
    for index in range(counts.pop()):
        one = {name: array[index : index + 1] for name, array in whole.items()}
        yield {n: fit(n, a[0] if a.ndim == ranks[n] + 1 else a) for n, a in one.items()}


class Run:
    """A model that is run feed by feed; each model carries a state of its own."""

    def __init__(self, path: Path | str, state: State, *, optimize: bool = True) -> None:
        self.session = session(path, optimize=optimize)
        self.inputs = self.session.get_inputs()
        self.outputs = [each.name for each in self.session.get_outputs()]
        self._state = dict(state)
        self._carried: Feed = {}

    def full(self, feed: Mapping[str, Any]) -> Feed:
        """Return the feed with its state: carried, as given in the first feed, or zeros."""
        filled = dict(feed)
        for spec in self.inputs:
            if spec.name in self._carried:
                filled[spec.name] = self._carried[spec.name]
            elif spec.name in self._state and spec.name not in filled:
                shape = [dim if isinstance(dim, int) else 1 for dim in spec.shape]
                filled[spec.name] = np.zeros(shape, _TYPES.get(spec.type, np.float32))
        return {spec.name: filled[spec.name] for spec in self.inputs if spec.name in filled}

    def step(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs by name and carry the state on."""
        found = dict(zip(self.outputs, self.session.run(None, self.full(feed)), strict=True))
        self._carried = {name: found[output] for name, output in self._state.items()}
        return found


def bytes_of(feed: Mapping[str, Any]) -> int:
    """Return the bytes of all arrays of a feed."""
    return sum(int(np.asarray(array).nbytes) for array in feed.values())


def write_single(source: Path, model: Path, state: State, folder: Path) -> int:
    """Write feeds one a file, with the state that the model itself has at each, for tools that know no state.

    Returns:
        how many were written.
    """
    run = Run(model, state)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for count, feed in enumerate(read(source, run.inputs, state), 1):
        np.savez(folder / f"{count:05d}.npz", **run.full(feed))
        if state:
            run.step(feed)
    return count
