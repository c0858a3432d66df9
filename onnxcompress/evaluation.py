"""Labelled samples by which original and result are scored."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .core import Feed
from .errors import DataError

LABEL_NAMES = ("label", "labels", "y")

_BATCH = 50
"""Samples run at once; accuracy does not depend on it, time and memory do."""


@dataclass(frozen=True)
class Evaluation:
    """Feeds to judge a model by, and one label for each sample where there are labels (integer [samples])."""

    feeds: Sequence[Feed]
    labels: np.ndarray | None
    source: str


def read_evaluation(path: Path) -> Evaluation:
    """Read a `.npz` whose arrays are named after the inputs, with a leading sample axis, and a label array.

    Raises:
        DataError: it can't be read, is empty, or its arrays differ in their number of samples.
    """
    where = str(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"can't read it as .npz: {error}", where=where, hint="Write it with numpy.savez") from error
    labels = next((arrays.pop(name) for name in LABEL_NAMES if name in arrays), None)
    if not arrays or any(a.ndim == 0 for a in arrays.values()):
        raise DataError("there is no array with a sample axis in it", where=where)
    counts = {name: len(array) for name, array in arrays.items()}
    if labels is not None:
        counts["labels"] = len(labels)
    samples = next(iter(counts.values()))
    if len(set(counts.values())) > 1 or not samples:
        raise DataError(f"the arrays must have the same number of samples, at least one; found {counts}", where=where)
    feeds = [{name: a[i : i + _BATCH] for name, a in arrays.items()} for i in range(0, samples, _BATCH)]
    return Evaluation(feeds, labels, where)
