"""Results of a run kept in a folder, from which an interrupted run continues.

    run.json              identity of the run: a digest of model, data and options
    trial-DIGEST.json     figures of one model
    built-DIGEST.json     changes of one candidate, and
    built-DIGEST.onnx     its model

Each file is written atomically and never changed, so several processes may share a folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..base import atomic_files
from ..core import Action, Built, Change
from ..errors import OnnxCompressError, UsageError
from ..io import model_io

_RUN = "run.json"
_DIGITS = 20
"""Hexadecimal digits of a digest in a file name: 80 bits, beyond chance."""


class Checkpoint:
    """A folder of findings.

    Args:
        folder: made where there is none.
        key: a digest of everything that the findings depend on, see `digest`.

    Raises:
        UsageError: the folder holds the findings of another run, or something else.
        ModelError: it can't be written.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        check(folder)
        folder.mkdir(parents=True, exist_ok=True)
        known = _read(folder / _RUN)
        if known is None:
            if any(folder.iterdir()):
                raise UsageError(
                    "is not empty, and holds no findings of a run", where=str(folder), hint="Give a new folder"
                )
            self._write(_RUN, {"schema": 1, "key": key})
        elif known.get("key") != key:
            raise UsageError(
                "holds the findings of a run with another model, other data or other options",
                where=str(folder),
                hint="Give a new folder, or remove this one",
            )

    def trial(self, name: str) -> dict[str, Any] | None:
        """Return what was noted of a model under a name, None where nothing was."""
        return _read(self._folder / f"trial-{_digest(name)}.json")

    def note_trial(self, name: str, figures: Mapping[str, Any]) -> None:
        """Note what was measured of a model."""
        self._write(f"trial-{_digest(name)}.json", dict(figures))

    def built(self, label: str) -> Built | None:
        """Return the candidate that was built under a label, None where none was or its files are damaged."""
        stem = self._folder / f"built-{_digest(label)}"
        found = _read(stem.with_suffix(".json"))
        if found is None:
            return None
        try:
            model = model_io.load(stem.with_suffix(".onnx"))
        except OnnxCompressError:
            return None
        return Built(model, tuple(Change(**{**each, "action": Action(each["action"])}) for each in found["changes"]))

    def has_built(self, label: str) -> bool:
        """Say whether a candidate was built under a label."""
        return (self._folder / f"built-{_digest(label)}.json").is_file()

    def note_built(self, label: str, built: Built) -> None:
        """Note a candidate: its model first, so that a change list is only there with its model."""
        stem = self._folder / f"built-{_digest(label)}"
        model_io.save(built.model, stem.with_suffix(".onnx"), force=True)
        self._write(f"{stem.name}.json", {"label": label, "changes": [_as_json(c) for c in built.changes]})

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        data = json.dumps(content).encode()
        atomic_files.write(self._folder / name, [data], len(data))


def check(folder: Path) -> None:
    """Raise UsageError, before any work is done, where a folder can't be one of ours."""
    if folder.exists() and not folder.is_dir():
        raise UsageError("is there and is no folder", where=str(folder), hint="Give the name of a new folder")
    atomic_files.check_parents(folder)


def digest(parts: Iterable[bytes | str | np.ndarray]) -> str:
    """Return a digest of bytes, texts and arrays in order."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype}{part.shape}".encode())
            data = str(part.tolist()).encode() if part.dtype.hasobject else np.ascontiguousarray(part).tobytes()
        else:
            data = part.encode() if isinstance(part, str) else part
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.hexdigest()


def _digest(name: str) -> str:
    return digest([name])[:_DIGITS]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _as_json(change: Change) -> dict[str, Any]:
    return {
        "pass_name": change.pass_name,
        "target": change.target,
        "action": str(change.action),
        "reason": change.reason,
        "bytes_before": change.bytes_before,
        "bytes_after": change.bytes_after,
        "details": dict(change.details),
    }
