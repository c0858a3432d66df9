"""One model of a batch, as work that another process or machine can do: everything in it can be pickled."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from ..core import Prefer
from ..data.evaluation_set import DataOptions
from ..errors import ModelError
from ..io import model_io
from ..targets import HERE
from .compress import Result, compress, located
from .setup import Verify


@dataclass(frozen=True, kw_only=True)
class Options:
    """How each model is compressed: see `compression.compress`."""

    recipe: str | Path = "auto"
    data: str | None = None
    eval_data: str | None = None
    metric: str | None = None
    max_drop: float | None = None
    settings: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    max_bytes: int | None = None
    max_latency: str | None = None
    target: str = HERE
    prefer: Prefer = "balanced"
    time_limit: float | None = None
    seed: int = 0
    threads: int = 1
    keep_node_metadata: bool = False
    data_options: DataOptions = field(default_factory=DataOptions)
    verify: Verify = "auto"

    def run(self, source: str | onnx.ModelProto) -> Result:
        """Compress one model."""
        return compress(
            source,
            recipe=self.recipe,
            data=self.data,
            eval_data=self.eval_data,
            metric=self.metric,
            max_drop=self.max_drop,
            settings=self.settings,
            only=self.only,
            skip=self.skip,
            max_bytes=self.max_bytes,
            max_latency=self.max_latency,
            target=self.target,
            prefer=self.prefer,
            time_limit=self.time_limit,
            seed=self.seed,
            threads=self.threads,
            keep_node_metadata=self.keep_node_metadata,
            data_options=self.data_options,
            verify=self.verify,
        )


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


def pack(*paths: str | Path | None) -> Shipped:
    """Read the files and folders among these; what is no path (a function's name, a shipped recipe) is left out.

    Raises:
        OSError: one can't be read.
    """
    found: dict[str, bytes | dict[str, bytes]] = {}
    for path in (Path(each) for each in paths if each is not None):
        if path.is_file():
            found[str(path)] = path.read_bytes()
        elif path.is_dir():
            files = sorted(each for each in path.rglob("*") if each.is_file())
            found[str(path)] = {each.relative_to(path).as_posix(): each.read_bytes() for each in files}
    return Shipped(found)


@dataclass(frozen=True, kw_only=True)
class BatchAnswer:
    """What became of a model: the JSON report, and the model itself where it was not written by the worker."""

    report: dict[str, Any]
    model: bytes | None = None


def here(source: str, target: str, options: Options) -> BatchAnswer:
    """Compress a model and write the result; for a process of this machine."""
    result = options.run(source)
    path = result.save(target, force=True)
    return BatchAnswer(report=located(result.report, path).as_json())


def elsewhere(name: str, model: bytes, options: Options, shipped: Shipped) -> BatchAnswer:
    """Compress a model that was sent, with data that was sent, and send the result back.

    Raises:
        ModelError: it is too large to be sent.
    """
    places = _unpack(shipped)
    mine = replace(
        options,
        recipe=places.get(str(options.recipe), options.recipe),
        data=places.get(options.data or "", options.data),
        eval_data=places.get(options.eval_data or "", options.eval_data),
    )
    result = mine.run(onnx.load_model_from_string(model))
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
