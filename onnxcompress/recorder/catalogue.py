"""Index of a recording: its models, the one that is meant, and the outputs that are states."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.feed_facts import CACHE_NAME
from ..errors import DataError
from . import identity
from .identity import ModelIdentity
from .store import INDEX, SCHEMA, SETTINGS

if TYPE_CHECKING:
    from ..runtime.tensor_spec import TensorSpec

_LEAST_SHARE = 0.2
"""Of the runs in which an input could be a state: so often it has to be the output. Beams and new sequences break a
chain now and then. Chosen by judgement."""


@dataclass(frozen=True, kw_only=True)
class RecordedModel:
    """One model of a recording.

    Attributes:
        folder: where its samples are.
        path: the file that the program has loaded, "" where it gave bytes.
        identity: its digests.
        inputs: names.
        outputs: names.
        runs: that were seen; of a process that was killed some of the last second may be missing.
        samples: that were kept.
        sample_bytes: theirs.
        states: input -> output of the run before.
        sources: input -> (model, output) whose value it was.
        caches: outputs that go on as the cache of this model or of another, and so are no results.
        notes: what could not be stored.
    """

    folder: Path
    path: str
    identity: ModelIdentity
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    runs: int
    samples: int
    sample_bytes: int
    states: Mapping[str, str]
    sources: Mapping[str, tuple[str, str]]
    caches: tuple[str, ...]
    notes: tuple[str, ...]


def is_recording(folder: str | os.PathLike[str]) -> bool:
    """Say whether a folder holds a recording."""
    return Path(folder, SETTINGS).is_file()


def read(folder: Path) -> list[RecordedModel]:
    """Return the models of a recording, by the names of their folders.

    Raises:
        DataError: its files can't be read.
    """
    indices = {path.parent: _json(path) for path in sorted(folder.glob(f"*/{INDEX}"))}
    try:
        states = {each: _states(index["links"]) for each, index in indices.items()}
        return [
            RecordedModel(
                folder=each,
                path=index["path"],
                identity=ModelIdentity(index["sha256"], index["weights"]),
                inputs=tuple(spec[0] for spec in index["inputs"]),
                outputs=tuple(spec[0] for spec in index["outputs"]),
                runs=index["runs"],
                samples=len(list(each.glob("*.npz"))),
                sample_bytes=sum(path.stat().st_size for path in each.glob("*.npz")),
                states=states[each],
                sources={name: (origin[0], origin[1]) for name, origin in index["sources"].items()},
                caches=_caches(each, indices, states),
                notes=tuple(index["notes"]),
            )
            for each, index in indices.items()
        ]
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise DataError(f"an index of the recording is damaged ({error})", where=str(folder)) from error


def faults(folder: Path) -> list[str]:
    """Return what went wrong while a recording was made.

    Raises:
        DataError: it can't be read.
    """
    found = _json(folder / SETTINGS).get("faults", [])
    return [str(text) for text in found]


def find(source: Any, model: Any, specs: Sequence[TensorSpec]) -> RecordedModel | None:
    """Return the part of a recording that holds samples of a model, None where `source` is no recording.

    Args:
        source: of samples: the folder of a recording, or that of one of its models, which is taken for any model.
        model: its path, its bytes or a ModelProto; anything else is found by the names of its inputs.
        specs: the inputs of the model.

    Raises:
        DataError: none or several of the recorded models can be meant, or the recording is damaged.
    """
    if not isinstance(source, str | Path) or not Path(source).is_dir():
        return None
    folder = Path(source)
    if not is_recording(folder):
        parent = folder.absolute().parent
        if not (folder / INDEX).is_file() or not is_recording(parent):
            return None
        return next(each for each in read(parent) if each.folder.name == folder.absolute().name)
    models = read(folder)
    if not models:
        raise DataError("no run was recorded", where=str(folder), hint="; ".join(faults(folder)))
    return _meant(folder, models, model, specs)


def _meant(folder: Path, models: Sequence[RecordedModel], model: Any, specs: Sequence[TensorSpec]) -> RecordedModel:
    known = _identity(model)
    names = {spec.name for spec in specs if not spec.is_optional}
    fitting = [each for each in models if names <= set(each.inputs)]
    found = [each for each in models if known is not None and known.matches(each.identity)]
    if known is None and len(fitting) == 1:
        found = fitting
    if len(found) == 1:
        if not found[0].samples:
            notes = "; ".join(found[0].notes) or "It was loaded and not run"
            raise DataError("no sample of this model was recorded", where=str(found[0].folder), hint=notes)
        return found[0]
    listed = ", ".join(each.folder.name for each in models)
    example = (found or fitting or list(models))[0].folder
    raise DataError(
        f"samples of {listed} were recorded, {'of which several are' if found else 'none of which is'} this model",
        where=str(folder),
        hint=f"Give --data {example} to use those of a model with the same inputs",
    )


def _identity(model: Any) -> ModelIdentity | None:
    """Return the identity of a model, None where it has no bytes of its own."""
    if isinstance(model, str | os.PathLike):
        try:
            return identity.of_file(model)
        except OSError as error:
            raise DataError(f"can't be read ({error.strerror or error})", where=str(model)) from error
    if isinstance(model, bytes):
        return identity.of_bytes(model)
    serialize = getattr(model, "SerializeToString", None)
    return None if serialize is None else identity.of_bytes(serialize())


def _states(links: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """Return input -> output of the run before, where an input was mostly that."""
    found = {}
    for name, outputs in links.items():
        output, hits = max(((o, n) for o, n in outputs.items() if o), key=lambda pair: pair[1], default=("", 0))
        if output and hits >= _LEAST_SHARE * sum(outputs.values()):
            found[name] = output
    return found


def _caches(
    folder: Path, indices: Mapping[Path, Mapping[str, Any]], states: Mapping[Path, Mapping[str, str]]
) -> tuple[str, ...]:
    """Return the outputs of a model that only go on as a cache, here or in another model; none where all would be."""
    outputs = [spec[0] for spec in indices[folder]["outputs"]]
    own = set(states[folder].values())
    handed = {
        output
        for other, index in indices.items()
        for name, (model, output) in index["sources"].items()
        if model == folder.name and (name in states[other] or CACHE_NAME.search(name))
    }
    for caches in (own | handed, own):
        if caches < set(outputs):
            return tuple(name for name in outputs if name in caches)
    return ()


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"can't be read ({error})", where=str(path)) from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise DataError("is no index of a recording that this version reads", where=str(path))
    return found
