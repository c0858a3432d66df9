"""A recording on disk, which several threads and processes may write at a time and any of them may leave half-way.

    FEEDS/recording.json       how samples are chosen, and how many processes have written
    FEEDS/MODEL/00-0000012.npz one run: process 0, its 12th of this model
    FEEDS/MODEL/index.json     the model, its samples, its states, what could not be stored

Every file is written beside its place and moved there, under a lock of the folder. Each run gets a priority, and those
of least priority number are kept: the number of the run (`first`), or a random one, which makes a fair draw of all runs
(`reservoir`) however many processes there are; `shapes` takes from the most frequent shapes first when it has to give
something up. Over the budget of bytes the model that has most gives a sample up.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import re
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .identity import ModelIdentity
from .links import HandedOver

SCHEMA = 1
SETTINGS, INDEX = "recording.json", "index.json"
_FLUSH_SECONDS = 1.0
"""Most time until what was counted is written. Chosen by judgement."""
KEEPS = ("reservoir", "first", "shapes")


class FeedStore:
    """A folder of samples by model.

    Args:
        folder: an empty or new folder, or one that another process has begun.
        most: samples of each model.
        keep: which: "first", "reservoir" (a fair draw) or "shapes" (spread over shapes).
        max_bytes: of all samples.
        seed: of the draw.

    Raises:
        OSError: the folder can't be written to.
    """

    def __init__(
        self, folder: Path, *, most: int = 256, keep: str = "reservoir", max_bytes: int = 500_000_000, seed: int = 0
    ) -> None:
        self.folder, self.handed_over = folder, HandedOver()
        self._threads, self._is_locked, self._is_closed = threading.RLock(), False, False
        folder.mkdir(parents=True, exist_ok=True)
        with self.locked():
            if not (folder / SETTINGS).is_file():
                first = {"schema": SCHEMA, "most": most, "keep": keep, "max_bytes": max_bytes, "seed": seed}
                _write_json(folder / SETTINGS, {**first, "processes": 0})
            self.settings = self._enrol()
        self._models: dict[ModelIdentity, KeptModel] = {}
        os.register_at_fork(after_in_child=self._begin_again)

    def _enrol(self) -> dict[str, Any]:
        """Take the next number of a process."""
        settings: dict[str, Any] = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
        self.process = int(settings["processes"])
        _write_json(self.folder / SETTINGS, {**settings, "processes": self.process + 1})
        return settings

    def _begin_again(self) -> None:
        """In a forked child: be another process, whose locks nobody holds."""
        self._threads, self._is_locked = threading.RLock(), False
        if self.folder.is_dir() and not self._is_closed:
            with self.locked():
                self._enrol()
        for model in self._models.values():
            model.begin()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other threads and processes out; may be nested."""
        with self._threads:
            descriptor = None if self._is_locked else os.open(self.folder, os.O_RDONLY)
            try:
                if descriptor is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                    self._is_locked = True
                yield
            finally:
                if descriptor is not None:
                    self._is_locked = False
                    os.close(descriptor)

    def counting(self) -> contextlib.AbstractContextManager[Any]:
        """Keep other threads out."""
        return self._threads

    def model(self, identity: ModelIdentity, *, path: str, facts: Mapping[str, Any]) -> KeptModel:
        """Return where samples of a model go: a folder with its file's name.

        Args:
            identity: the model.
            path: its file, "" where it was given as bytes.
            facts: inputs and outputs: what else is to stand in its index.
        """
        with self.locked():
            if identity not in self._models:
                stem = re.sub(r"[^\w.-]", "_", Path(path).stem).lstrip(".") or "model"
                name = stem
                while (known := self.index(name)) is not None:
                    if known["sha256"] == identity.sha256 and known["weights"] == identity.weights:
                        break
                    name = f"{stem}-{identity.sha256[:8]}" if name == stem else f"{name}-{identity.weights[:8] or 2}"
                if known is None:
                    (self.folder / name).mkdir()
                    first = {"schema": SCHEMA, "name": name, "path": path, "sha256": identity.sha256}
                    counted = {"runs": 0, "samples": [], "links": {}, "sources": {}, "notes": []}
                    self.write_index(name, {**first, "weights": identity.weights, **facts, **counted})
                self._models[identity] = KeptModel(self, name)
            return self._models[identity]

    def index(self, name: str) -> dict[str, Any] | None:
        """Return what is known of a model by the name of its folder, None where there is none."""
        try:
            found: dict[str, Any] = json.loads((self.folder / name / INDEX).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found

    def write_index(self, name: str, index: Mapping[str, Any]) -> None:
        """Replace what is known of a model."""
        _write_json(self.folder / name / INDEX, index)

    def indices(self) -> dict[str, dict[str, Any]]:
        """Return what is known of every model."""
        names = sorted(path.parent.name for path in self.folder.glob(f"*/{INDEX}"))
        return {name: index for name in names if (index := self.index(name)) is not None}

    def fault(self, text: str) -> None:
        """Write down, once, what went wrong while recording."""
        with self.locked():
            path = self.folder / SETTINGS
            settings = json.loads(path.read_text(encoding="utf-8"))
            _write_json(path, {**settings, "faults": sorted({*settings.get("faults", []), text})})

    def close(self) -> None:
        """Write what was counted; no more is to come."""
        self.flush()
        self._is_closed = True

    def flush(self) -> None:
        """Write what was counted."""
        for model in list(self._models.values()):
            model.flush()


class KeptModel:
    """Samples of one model."""

    def __init__(self, store: FeedStore, name: str) -> None:
        self.store, self.name = store, name
        self.folder = store.folder / name
        self.begin()

    def begin(self) -> None:
        """Begin to count, as a process of its own."""
        settings = self.store.settings
        self._random = random.Random(f"{settings['seed']}/{self.name}/{self.store.process}")  # noqa: S311
        self._runs, self._unwritten, self._written = 0, 0, time.monotonic()
        self._links: Counter[tuple[str, str]] = Counter()
        self._sources: dict[str, tuple[str, str]] = {}
        self._notes: set[str] = set()
        self._samples: list[dict[str, Any]] = []
        self._ceiling = float("inf")

    def note(self, text: str) -> None:
        """Name something that is not stored, once."""
        with self.store.locked():
            if text not in self._notes:
                self._notes.add(text)
                self._sync(None)

    def link(self, found: Mapping[str, list[Any]], sources: Mapping[str, tuple[str, str]]) -> None:
        """Count which outputs became inputs, see `links`."""
        self._links.update((name, outputs[0]) for name, outputs in found.items())
        self._sources.update(sources)

    def pending(self, feed: Mapping[str, np.ndarray]) -> PendingSample | None:
        """Write a run's inputs beside their place where they are to be kept, None where they are not."""
        with self.store.counting():
            run = self._runs
            self._runs += 1
            self._unwritten += 1
            key = float(run) if self.store.settings["keep"] == "first" else self._random.random()
            shapes = " ".join(f"{name}:{'x'.join(map(str, array.shape))}" for name, array in sorted(feed.items()))
            sample = {"file": f"{self.store.process:02d}-{run:07d}.npz", "key": key, "shapes": shapes}
            if not self._is_wanted(sample):
                if time.monotonic() - self._written > _FLUSH_SECONDS:
                    self.flush()
                return None
        part = self.folder / f".{sample['file']}.part"
        try:
            _write_npz(part, feed)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return PendingSample(self, part, {**sample, "bytes": part.stat().st_size})

    def _is_wanted(self, sample: Mapping[str, Any]) -> bool:
        if sample["key"] >= self._ceiling:
            return False
        full = len(self._samples) >= self.store.settings["most"]
        return not full or self._given_up([*self._samples, sample]) is not sample

    def _given_up(self, samples: list[Any]) -> Any:
        """Return the sample that is given up first."""
        if self.store.settings["keep"] != "shapes":
            return max(samples, key=lambda each: each["key"])
        counts, kinds = Counter(each["shapes"] for each in samples), Counter(_kind(each) for each in samples)
        return max(samples, key=lambda each: (counts[each["shapes"]], kinds[_kind(each)], each["key"]))

    def commit(self, sample: dict[str, Any], part: Path) -> None:
        """Put a sample in its place, and give up what is too much."""
        most_bytes = self.store.settings["max_bytes"]
        if sample["bytes"] > most_bytes:
            part.unlink()
            self.note(f"samples that are larger than all that may be kept ({most_bytes:,} bytes) are left out")
            return
        with self.store.locked():
            part.replace(self.folder / sample["file"])
            self._sync(sample)

    def flush(self) -> None:
        """Write what was counted since the last time."""
        if self._unwritten:
            with self.store.locked():
                self._sync(None)

    def _sync(self, sample: dict[str, Any] | None) -> None:
        """Join what this process knows with what others have written; the lock is held."""
        indices = self.store.indices()
        index = indices[self.name]
        index["runs"] += self._unwritten
        for (name, output), count in self._links.items():
            outputs = index["links"].setdefault(name, {})
            outputs[output] = outputs.get(output, 0) + count
        index["sources"].update({name: list(origin) for name, origin in self._sources.items()})
        index["notes"] = sorted({*index["notes"], *self._notes})
        index["samples"] += [] if sample is None else [sample]
        self._unwritten, self._written = 0, time.monotonic()
        self._links.clear()
        given_up: list[tuple[str, Any]] = []
        while len(index["samples"]) > self.store.settings["most"]:
            given_up.append((self.name, self._give_up(index)))
        sizes = {name: sum(each["bytes"] for each in one["samples"]) for name, one in indices.items()}
        while sum(sizes.values()) > self.store.settings["max_bytes"]:
            largest = max(sizes, key=lambda name: (sizes[name], name))
            least = self._give_up(indices[largest])
            sizes[largest] -= least["bytes"]
            given_up.append((largest, least))
            if self.store.settings["keep"] != "shapes":
                indices[largest]["ceiling"] = min(indices[largest].get("ceiling", least["key"]), least["key"])
        for name in {self.name, *(name for name, _ in given_up)}:
            self.store.write_index(name, indices[name])
        for name, each in given_up:
            (self.store.folder / name / each["file"]).unlink(missing_ok=True)
        self._samples, self._ceiling = index["samples"], index.get("ceiling", float("inf"))

    def _give_up(self, index: dict[str, Any]) -> Any:
        found = self._given_up(index["samples"])
        index["samples"].remove(found)
        return found


class PendingSample:
    """A sample that is written, and kept once its run has succeeded."""

    def __init__(self, model: KeptModel, part: Path, facts: dict[str, Any]) -> None:
        self._model, self._part, self._facts = model, part, facts

    def commit(self) -> None:
        """Keep it."""
        self._model.commit(self._facts, self._part)

    def discard(self) -> None:
        """Leave it out: the runtime has refused it."""
        self._part.unlink(missing_ok=True)


def _kind(sample: Mapping[str, Any]) -> str:
    """Return the shapes with every size above one as the same: a prompt, a step with a cache, a step without."""
    return re.sub(r"(?<=[:x])(?:[2-9]|[1-9][0-9]+)(?=x|$| )", "n", sample["shapes"])


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays uncompressed, so that they can be mapped; texts as numpy's own type of text."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            stored = array.astype(np.str_) if array.dtype.kind == "O" else array
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, stored, allow_pickle=False)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content), encoding="utf-8")
    part.replace(path)
