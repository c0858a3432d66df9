"""The models that the fold tools are measured on, each with a stable key, a file and recorded inputs."""

from __future__ import annotations

import fnmatch
import importlib.util
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from bench.process import ROOT

BACKEND_KINDS = ("simple", "pytorch-converted", "pytorch-operator", "node")
LIGHT_FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
RECORDED_FEEDS = 2


@dataclass(frozen=True)
class Model:
    """A model of the corpus; `recorded` is a pickled list of feeds, by name or in the order of the inputs."""

    key: str
    path: Path
    recorded: Path | None = None

    @property
    def real(self) -> bool:
        """Whether this is a whole network: these get a row of their own."""
        return self.key.partition("/")[0] not in BACKEND_KINDS

    @property
    def size_bytes(self) -> int:
        """The file with the external data that it refers to."""
        model = onnx.load(self.path, load_external_data=False) if self.path.stat().st_size < 1 << 30 else None
        files = {self.path}
        for tensor in model.graph.initializer if model else ():
            files |= {self.path.parent / e.value for e in tensor.external_data if e.key == "location"}
        return sum(file.stat().st_size for file in files)


def load_eval(folder: Path) -> ModuleType:
    """Import a zoo folder's `eval.py` by path."""
    spec = importlib.util.spec_from_file_location(f"eval_{folder.name}", folder / "eval.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def real_models(zoo: Path | None, work: Path) -> Iterator[Model]:
    """Yield the zoo folder, the repository's own models and the `light_*` networks of the onnx package."""
    if zoo is not None:
        feeds: dict[Path, Path | None] = {}
        for path in sorted(zoo.rglob("*.onnx")):
            if path.parent not in feeds:
                feeds[path.parent] = _zoo_feeds(path.parent, work)
            recorded = feeds[path.parent]
            if recorded is not None and not _fits(path, recorded):
                recorded = None
            yield Model(f"zoo/{path.relative_to(zoo).with_suffix('')}", path, recorded)
    for path in sorted((ROOT / "models").rglob("*.onnx")):
        yield Model(str(path.relative_to(ROOT).with_suffix("")), path)
    for path in sorted(LIGHT_FOLDER.glob("*.onnx")):
        yield Model(f"light/{path.stem.removeprefix('light_')}", path)


def backend_models(work: Path, kinds: tuple[str, ...] = BACKEND_KINDS) -> Iterator[Model]:
    """Yield the backend test models; they are written below `work` once."""
    for kind in kinds:
        folder = work / "corpus" / f"{kind}-{onnx.__version__}"
        if not (folder / "complete").exists():
            _write_backend_models(kind, folder)
        for path in sorted(folder.rglob("model.onnx")):
            recorded = path.with_name("feeds.pickle")
            key = f"{kind}/{path.parent.name.removeprefix('test_')}"
            yield Model(key, path, recorded if recorded.exists() else None)


def corpus(zoo: Path | None, work: Path, *, only: str | None, limit: int | None) -> list[Model]:
    """All models whose key matches the glob `only`, at most `limit` of them."""

    def wanted(key: str) -> bool:
        return only is None or fnmatch.fnmatch(key, only)

    models = [m for m in real_models(zoo, work) if wanted(m.key)]
    kinds = tuple(k for k in BACKEND_KINDS if only is None or _could_match(only, k))
    models += [m for m in backend_models(work, kinds) if wanted(m.key)]
    return models[:limit]


def _could_match(pattern: str, kind: str) -> bool:
    head, slash, _ = pattern.partition("/")
    return not slash or fnmatch.fnmatch(kind, head)


def _zoo_feeds(folder: Path, work: Path) -> Path | None:
    target = work / "feeds" / f"{folder.name}.pickle"
    if not (folder / "eval.py").exists():
        return None
    if not target.exists():
        module = load_eval(folder)
        feeds = getattr(module, "calib_feeds", None) or getattr(module, "feeds", None)
        if feeds is None:
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(pickle.dumps([dict(feed) for feed in feeds(RECORDED_FEEDS)]))
    return target


def _fits(path: Path, recorded: Path) -> bool:
    model = onnx.load(path, load_external_data=False)
    held = {i.name for i in model.graph.initializer}
    feed = pickle.loads(recorded.read_bytes())[0]  # noqa: S301  written above
    return {i.name for i in model.graph.input} - held <= set(feed)


def _write_backend_models(kind: str, folder: Path) -> None:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind=kind)
    for case in cases:
        target = folder / case.name
        target.mkdir(parents=True, exist_ok=True)
        if case.model is not None:
            onnx.save(case.model, target / "model.onnx")
            feeds: list[list[Any]] = [list(inputs) for inputs, _ in case.data_sets or []]
        else:
            source = Path(str(case.model_dir))
            (target / "model.onnx").write_bytes((source / "model.onnx").read_bytes())
            model = onnx.load(source / "model.onnx")
            held = {i.name for i in model.graph.initializer}
            types = [i.type for i in model.graph.input if i.name not in held]
            feeds = [_read_data_set(d, types) for d in sorted(source.glob("test_data_set_*"))]
        if feeds:
            (target / "feeds.pickle").write_bytes(pickle.dumps(feeds[:RECORDED_FEEDS]))
    (folder / "complete").touch()


def _read_data_set(folder: Path, types: list[onnx.TypeProto]) -> list[Any]:
    from onnx import numpy_helper

    readers: dict[str, tuple[type[Any], Callable[[Any], Any]]] = {
        "tensor_type": (onnx.TensorProto, numpy_helper.to_array),
        "sequence_type": (onnx.SequenceProto, numpy_helper.to_list),
        "optional_type": (onnx.OptionalProto, numpy_helper.to_optional),
    }
    values = []
    for index, kind in enumerate(types):
        file = folder / f"input_{index}.pb"
        if not file.exists():
            break
        message, convert = readers[str(kind.WhichOneof("value"))]
        values.append(convert(message.FromString(file.read_bytes())))
    return values
