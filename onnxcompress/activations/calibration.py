"""Ranges of activations from one streaming pass over samples, kept by what they were measured on.

model, feeds --observe--> a Histogram for each value --Store--> found again by the hashes of model and data
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base import atomic_files
from ..core import Action, Cache, Change, Progress
from ..data import feeds as feed_facts
from ..errors import DataError
from ..io import model_io
from ..io.tensors import chunks
from ..numerics.quantization.histograms import Histogram
from .observe import MEMORY_BYTES, batched, enough_feeds, observe, value_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..core import Feed

_JOINED = 16
"""Samples that are run together where the model allows it: more takes memory and no time off."""
_JOINED_PART = 2
"""Of the memory for values, joined samples take one part of so many: fewer are joined, rather than run in turns."""
_MANY = 32
"""From so many samples on it pays to try whether they can be joined."""
_LEAST_UPDATES = 8
"""Runs from which on a value's range can be judged to be still growing; chosen by judgement, not measured."""
_LATE = 0.75
"""Part of the runs after which a new extreme counts as late; chosen by judgement, not measured."""
_WIDENING_SHARE = 0.25
"""Share of late-growing values from which on the data is called too little; chosen by judgement, not measured."""


@dataclass(frozen=True)
class Calibration:
    """Histograms of a model's activations on samples.

    Args:
        histograms: value -> what was counted; a value that no run computed has an empty one.
        refused: value -> why it can't be observed.
    """

    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def merged(self, other: Calibration) -> Calibration:
        """Return what both have seen: parts of the samples, in any order, add up to the whole."""
        found = {}
        for name in dict.fromkeys((*self.histograms, *other.histograms)):
            found[name] = Histogram()
            for part in (self, other):
                if name in part.histograms:
                    found[name].merge(part.histograms[name])
        return Calibration(found, {**self.refused, **other.refused})

    def notes(self) -> list[str]:
        """Return a line for each thing about the samples that the user should know."""
        lines = []
        seen = {name: h for name, h in self.histograms.items() if h.updates}
        broken = {name: h.non_finite for name, h in seen.items() if h.non_finite}
        if broken:
            name = next(iter(broken))
            more = f" and {len(broken) - 1} more values" if len(broken) > 1 else ""
            lines.append(
                f"{broken[name]} numbers of {name!r}{more} are NaN or infinite inside the model; they are left out"
            )
        moving = {n: h for n, h in seen.items() if h.updates >= _LEAST_UPDATES and not h.is_constant}
        late = [name for name, h in moving.items() if h.grown_at > _LATE * h.updates]
        if len(late) > _WIDENING_SHARE * len(moving):
            lines.append(
                f"the ranges of {len(late)} of {len(moving)} values were still widening in the last quarter of the "
                "samples; more samples would help"
            )
        return lines

    def changes(self, pass_name: str) -> list[Change]:
        """Return the notes, and what could not be observed, as entries of the report."""
        refused = [(name, f"not calibrated: {reason}") for name, reason in self.refused.items()]
        return [
            Change(pass_name=pass_name, target=target, action=Action.SKIPPED, reason=reason)
            for target, reason in (*refused, *(("graph", note) for note in self.notes()))
        ]


class CalibrationCache:
    """Calibrations by the hashes of model and samples: in memory, and in files where a folder is given."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._found: dict[str, Calibration] = {}

    def get(self, key: str) -> Calibration:
        """Return what is known under a key, an empty calibration where nothing is.

        Raises:
            DataError: its file is damaged.
        """
        if key not in self._found:
            path = self._path(key)
            self._found[key] = load(path) if path is not None and path.is_file() else Calibration()
        return self._found[key]

    def put(self, key: str, calibration: Calibration) -> None:
        """Keep a calibration under a key."""
        self._found[key] = calibration
        path = self._path(key)
        if path is not None:
            save(calibration, path)

    def _path(self, key: str) -> Path | None:
        return None if self._folder is None else self._folder / f"calibration-{key}.npz"


def calibrate(
    model: ir.Model,
    feeds: Iterable[Feed],
    names: Iterable[str],
    *,
    state: Mapping[str, str] | None = None,
    store: Cache[Calibration] | None = None,
    threads: int = 1,
    memory_bytes: int = MEMORY_BYTES,
    progress: Progress = lambda _, items: iter(items),
) -> Calibration:
    """Count the values that activations take, in one pass over the samples.

    Samples without state are run together where the model treats them one by one; then a histogram counts runs, not
    samples, as `updates`. Where their values are very large, fewer samples are run (see `enough_feeds`).

    Args:
        model: the model in floats.
        feeds: complete feeds, of any number and shapes; they are read more than once unless they can't be.
        names: the values wanted, of any graph of the model, inputs too; those of loops are counted over all rounds.
        state: input -> output whose value it gets from the run before.
        store: what was found before; only values that are not in there are observed.
        threads: threads that one operator may use.
        memory_bytes: most that the values of one run may take.
        progress: wraps the loop over samples.

    Raises:
        ModelError: the model can't be run.
        DataError: a file of the store is damaged.
    """
    wanted = list(dict.fromkeys(names))
    if iter(feeds) is feeds and store is not None:
        feeds = list(feeds)
    key = "" if store is None else fingerprint(model, feeds, state or {})
    known = Calibration() if store is None else store.get(key)
    missing = [name for name in wanted if name not in known.histograms and name not in known.refused]
    if missing:
        collectors = {name: Histogram() for name in missing}
        if not state and isinstance(feeds, Sequence):
            feeds = enough_feeds(model, feeds, missing)
        if not state and isinstance(feeds, Sequence) and len(feeds) >= _MANY:
            each = sum(value_bytes(model, feeds, missing).values())
            feeds = batched(model, feeds, min(_JOINED, memory_bytes // (_JOINED_PART * max(1, each))))
        refused = observe(
            model, feeds, collectors, state=state, threads=threads, memory_bytes=memory_bytes, progress=progress
        )
        found = {name: histogram for name, histogram in collectors.items() if name not in refused}
        known = Calibration({**known.histograms, **found}, {**known.refused, **refused})
        if store is not None:
            store.put(key, known)
    return Calibration(
        {name: known.histograms[name] for name in wanted if name in known.histograms},
        {name: known.refused[name] for name in wanted if name in known.refused},
    )


def fingerprint(model: ir.Model, feeds: Iterable[Feed], state: Mapping[str, str]) -> str:
    """Return a text that is equal for equal models, weights included, on equal samples."""
    digest = hashlib.blake2b(digest_size=16)
    proto, tensors = model_io.detach(model)
    digest.update(proto.SerializeToString(deterministic=True))
    for index in sorted(tensors):
        for chunk in chunks(tensors[index]):
            digest.update(chunk)
    digest.update(repr(sorted(state.items())).encode())
    for feed in feeds:
        for name in sorted(feed):
            for each in feed_facts.arrays(feed[name]):
                array = np.ascontiguousarray(each)
                digest.update(f"{name}:{array.dtype}{array.shape}".encode())
                digest.update(array.tobytes() if array.dtype != object else repr(array.tolist()).encode())
    return digest.hexdigest()


def save(calibration: Calibration, path: Path) -> None:
    """Write a calibration to a `.npz`, whole or not at all; the folder is made where it is missing.

    Raises:
        ModelError: it can't be written.
    """
    found = calibration.histograms
    parts = [histogram.arrays() for histogram in found.values()]
    arrays: dict[str, Any] = {
        "names": np.array(list(found), np.str_),
        "refused": np.array([list(pair) for pair in calibration.refused.items()], np.str_).reshape(-1, 2),
        "sizes": np.array([part["counts"].size for part in parts], np.int64),
    }
    for kind in ("counts", "extremes", "numbers"):
        empty = np.zeros(0, np.float64 if kind == "extremes" else np.int64)
        arrays[kind] = np.concatenate([empty, *(part[kind] for part in parts)])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write(path, [buffer.getbuffer()], buffer.getbuffer().nbytes)


def load(path: Path) -> Calibration:
    """Read what `save` wrote.

    Raises:
        DataError: the file is missing, damaged, or something else.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = [str(name) for name in arrays["names"]]
            cuts = np.cumsum(arrays["sizes"])[:-1]
            counts = np.split(arrays["counts"], cuts) if names else []
            extremes, numbers = (np.split(arrays[kind], len(names) or 1) for kind in ("extremes", "numbers"))
            found = {
                name: Histogram.from_arrays({"counts": c, "extremes": e, "numbers": n})
                for name, c, e, n in zip(names, counts, extremes, numbers, strict=False)
            }
            refused = {str(name): str(reason) for name, reason in arrays["refused"]}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"not a calibration ({error})", where=str(path), hint="Delete it") from error
    return Calibration(found, refused)
