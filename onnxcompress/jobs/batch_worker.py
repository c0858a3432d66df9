"""One model of a batch, as work that another process or machine can do: everything in it can be pickled."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from ..errors import ModelError
from ..io import model_io
from ..runtime.processes import age_seconds
from .compress import compress
from .options import CompressOptions


@dataclass(frozen=True)
class Shipped:
    """Files that go to another machine: for each path as it was given, its content, or that of the files under it."""

    contents: Mapping[str, bytes | Mapping[str, bytes]]

    @property
    def digest(self) -> str:
        """A name for these contents."""
        found = hashlib.sha256()
        for path, content in self.contents.items():
            files = {"": content} if isinstance(content, bytes) else content
            for name, data in files.items():
                found.update(f"{path}\n{name}\n{len(data)}\n".encode())
                found.update(data)
        return found.hexdigest()


def pack(*sources: object) -> Shipped:
    """Read the files and folders among these; the others (a function's name, a shipped recipe) are skipped.

    Raises:
        OSError: one can't be read.
    """
    found: dict[str, bytes | dict[str, bytes]] = {}
    for path in (Path(each) for each in sources if isinstance(each, str | os.PathLike)):
        if path.is_file():
            found[str(path)] = path.read_bytes()
        elif path.is_dir():
            files = sorted(each for each in path.rglob("*") if each.is_file())
            found[str(path)] = {each.relative_to(path).as_posix(): each.read_bytes() for each in files}
    return Shipped(found)


@dataclass(frozen=True, kw_only=True)
class BatchAnswer:
    """Result of one model: the JSON report, and the model itself where it was not written by the worker."""

    report: dict[str, Any]
    model: bytes | None = None


def here(source: str, target: str, options: CompressOptions) -> BatchAnswer:
    """Compress a model and write the result; for a process of this machine, whose start counts for the time limit."""
    limit = None if options.time_limit is None else max(0.0, options.time_limit - age_seconds())
    result = compress(source, **vars(replace(options, time_limit=limit)))
    path = result.save(target, force=True)
    return BatchAnswer(report=result.report.located(path).as_json())


def elsewhere(name: str, model: bytes, options: CompressOptions, shipped: Shipped) -> BatchAnswer:
    """Compress a model that was sent, with data that was sent, and send the result back.

    Raises:
        ModelError: it is too large to be sent.
    """
    places = _unpack(shipped)
    mine = replace(
        options,
        recipe=places.get(str(options.recipe), options.recipe),
        data=places.get(str(options.data), options.data),
        eval_data=places.get(str(options.eval_data), options.eval_data),
    )
    result = compress(onnx.load_model_from_string(model), **vars(mine))
    report = replace(result.report, input=replace(result.report.input, path=name))
    return BatchAnswer(report=report.as_json(), model=model_io.to_bytes(result.model))


def message(path: Path) -> bytes:
    """Return a model as one message, external data included.

    Raises:
        ModelError: it can't be read, or has more than 2 GiB.
    """
    model = model_io.load(path)
    if model_io.model_bytes(model) >= 2**31:
        raise ModelError("over 2 GiB can't be sent to a cluster", where=str(path), hint="Use --workers here")
    return model_io.to_bytes(model)


def _unpack(shipped: Shipped) -> dict[str, str]:
    """Write what was sent to a temporary folder, once on each machine, and return path as given -> path here."""
    root = Path(tempfile.gettempdir()) / f"onnxcompress-{os.getuid()}-{shipped.digest[:32]}"
    places = {given: root / f"{index:02d}" / Path(given).name for index, given in enumerate(shipped.contents)}
    if not root.is_dir():
        with tempfile.TemporaryDirectory(prefix="onnxcompress-", dir=root.parent) as made:
            for index, (given, content) in enumerate(shipped.contents.items()):
                start = Path(made) / "all" / f"{index:02d}" / Path(given).name
                files = {"": content} if isinstance(content, bytes) else content
                for name, data in files.items():
                    path = start / name if name else start
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
            if shipped.contents:
                try:
                    (Path(made) / "all").rename(root)
                except OSError:
                    if not root.is_dir():  # else another worker of this machine was quicker
                        raise
    return {given: str(place) for given, place in places.items()}
