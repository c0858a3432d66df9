"""Many models with one recipe: each on its own, so that one that fails, or a worker that is lost, loses nothing else.

models --state file says done?--> resumed
--submit--> executor --> Answer | error --> model and state file, both written atomically --> Item
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..base import atomic_files
from ..base.json_text import dumps
from ..base.versions import versions
from ..errors import LimitError, LostWorkerError, OnnxCompressError, UsageError, one_line
from ..io import wire
from ..io.sources import OpenFile
from ..recipe import Recipe
from ..runtime import executors
from ..runtime.executors import DaskCluster, Processes
from . import batch_worker
from .batch_worker import BatchAnswer, Shipped
from .options import CompressOptions

log = logging.getLogger(__name__)

Outcome = Literal["done", "limit", "failed", "bug"]

_EXIT_CODES = {"done": 0, "limit": 1, "failed": 3, "bug": 70}

_TRIES = 2
"""For a model whose worker was lost; chosen by judgement: a second loss points to the model."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """Outcome of one model.

    Args:
        source: its path.
        target: where the result is, or would be.
        outcome: "limit" where a limit that was given is not met, "bug" where an error is ours.
        message: why it is not done, empty where it is.
        report: the JSON report, None without a result.
        resumed: an earlier run has done it.
    """

    source: str
    target: str
    outcome: Outcome
    message: str = ""
    resumed: bool = False
    report: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the entry of `models` in the JSON of a batch."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Outcomes of all models, in the order in which they were given."""

    items: tuple[Item, ...]

    @property
    def exit_code(self) -> int:
        """0 where all are done; 70 where an error is ours, else 3 where a model failed, else 1 for a limit."""
        return max((_EXIT_CODES[item.outcome] for item in self.items), default=0)

    @property
    def internal_errors(self) -> tuple[str, ...]:
        """Bugs of ours that cost passes their work, each with its model."""
        reports = ((item.source, item.report or {}) for item in self.items)
        return tuple(f"{source}: {text}" for source, report in reports for text in report.get("internal_errors", ()))

    def as_json(self) -> dict[str, Any]:
        """Return the batch as JSON-serialisable values."""
        counts = {outcome: sum(item.outcome == outcome for item in self.items) for outcome in _EXIT_CODES}
        return {"schema": 1, "counts": counts, "models": [item.as_json() for item in self.items]}


def compress_many(
    sources: Iterable[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    options: CompressOptions = CompressOptions(),  # noqa: B008 - frozen
    *,
    workers: int = 1,
    scheduler: str | None = None,
    force: bool = False,
    done: Callable[[Item], None] = lambda _: None,
) -> Batch:
    """Compress models, each in a process of its own, and write them into a folder, each with a state file.

    A model whose state file says that it was done with the same content and options is not done again.

    Args:
        sources: .onnx files and folders, which are searched for them.
        folder: made where there is none; folders in it mirror those that were searched.
        options: for all of them.
        workers: processes at a time.
        scheduler: address of a Dask scheduler, whose workers do it in their stead.
        force: do all anew, and replace files that are not of an earlier run.
        done: is called with each model as it is done.

    Raises:
        UsageError: options are wrong, no model is found, two have one name, or a file is in the way.
        ModelError: the folder can't be written to.
    """
    recipe = Recipe.load(options.recipe, options.settings)
    if recipe.needs_data and options.data is None:
        raise UsageError(f"recipe {recipe.name!r} needs data", hint="Give --data")
    for name, given in (("data", options.data), ("eval_data", options.eval_data)):
        if not isinstance(given, str | os.PathLike | None):
            raise UsageError(f"a batch takes {name} as a path or as module:function")
    root = Path(folder)
    plan = targets(sources, root)
    shown = json.dumps([recipe.as_json(), options, versions()], default=str, sort_keys=True)
    inputs = [_fingerprint(options.data), _fingerprint(options.eval_data), shown]
    found: dict[Path, Item] = {}
    left: dict[Path, str] = {}
    for source, target in plan.items():
        key = hashlib.sha256("\n".join([_model_fingerprint(source), *inputs]).encode()).hexdigest()
        state = _BatchState.read(target)
        if not force and state is not None and state.holds(key, target):
            found[source] = state.item(source, target)
            done(found[source])
        elif not force and os.path.lexists(target) and (state is None or not state.is_untouched(target)):
            raise UsageError("exists already and is not of an earlier batch", where=str(target), hint="Give --force")
        else:
            left[source] = key
    with executors.opened(workers=workers, scheduler=scheduler) as executor:
        for item in _run(executor, {source: plan[source] for source in left}, options):
            source = Path(item.source)
            _BatchState.record(item, left[source])
            found[source] = item
            done(item)
    return Batch(items=tuple(found[source] for source in plan))


def targets(sources: Iterable[str | os.PathLike[str]], folder: Path) -> dict[Path, Path]:
    """Return model -> place of its result.

    Raises:
        UsageError: there is none, a source is neither file nor folder, or two would be written to one place.
    """
    plan: dict[Path, Path] = {}
    for source in map(Path, sources):
        if folder.absolute() == (source if source.is_dir() else source.parent).absolute():
            raise UsageError("is where the models are", where=str(folder), hint="Give another folder")
        if source.is_dir():
            models = sorted(p for p in source.rglob("*.onnx") if folder.absolute() not in p.absolute().parents)
            inside = {model: model.relative_to(source) for model in models}
        elif source.is_file():
            inside = {source: Path(source.name)}
        else:
            raise UsageError("is neither a file nor a folder", where=str(source))
        for model, name in inside.items():
            if (other := next((m for m, t in plan.items() if t == folder / name and m != model), None)) is not None:
                raise UsageError(
                    f"{other} and {model} would both become {folder / name}", hint="Give the folder that holds both"
                )
            plan[model] = folder / name
    if not plan:
        raise UsageError("no .onnx file is found there", where=", ".join(map(str, sources)))
    return plan


def _run(executor: Processes | DaskCluster, plan: dict[Path, Path], options: CompressOptions) -> Iterable[Item]:
    """Yield models as they are done; one whose worker was lost gets a second try."""
    if not plan:
        return
    shipped = batch_worker.pack(options.recipe, options.data, options.eval_data) if _is_far(executor) else None
    tries = dict.fromkeys(plan, 0)
    pending = list(plan)
    while pending:
        shared = None if shipped is None else executor.share(shipped)
        futures: dict[Future[BatchAnswer], Path] = {}
        for source in pending:
            tries[source] += 1
            plan[source].parent.mkdir(parents=True, exist_ok=True)
            try:
                futures[_submit(executor, source, plan[source], options, shared)] = source
            except OnnxCompressError as error:
                yield _failed(source, plan[source], error)
        pending = []
        for future in as_completed(futures):
            source = futures[future]
            try:
                yield _done(source, plan[source], future.result())
            except LostWorkerError as error:
                if tries[source] < _TRIES:
                    log.warning("%s: %s; once more", source, error.message)
                    pending.append(source)
                else:
                    yield _failed(source, plan[source], error)
            except Exception as error:  # noqa: BLE001 - one model's failure must not cost the user the others
                yield _failed(source, plan[source], error)


def _is_far(executor: Processes | DaskCluster) -> bool:
    return isinstance(executor, DaskCluster)


def _submit(
    executor: Processes | DaskCluster, source: Path, target: Path, options: CompressOptions, shared: Shipped | None
) -> Future[BatchAnswer]:
    if shared is None:
        return executor.submit(batch_worker.here, str(source), str(target), options)
    return executor.submit(batch_worker.elsewhere, str(source), batch_worker.message(source), options, shared)


def _done(source: Path, target: Path, answer: BatchAnswer) -> Item:
    report = answer.report
    if answer.model is not None:
        atomic_files.write(target, [answer.model], len(answer.model))
        report = {**report, "output": {**report["output"], "path": str(target)}}
    outcome: Outcome = "bug" if report["is_lost"] else "done"
    message = "; ".join(report["internal_errors"])
    return Item(source=str(source), target=str(target), outcome=outcome, message=message, report=report)


def _failed(source: Path, target: Path, error: Exception) -> Item:
    is_ours = not isinstance(error, OnnxCompressError | OSError | MemoryError)
    outcome: Outcome = "bug" if is_ours else "limit" if isinstance(error, LimitError) else "failed"
    if is_ours:
        log.warning("%s: internal error, please report it: %s", source, error)
    text = one_line(str(error).strip().splitlines()[-1] if is_ours and str(error).strip() else str(error))
    return Item(source=str(source), target=str(target), outcome=outcome, message=text or type(error).__name__)


@dataclass(frozen=True, kw_only=True)
class _BatchState:
    """File beside a result with the key of its inputs and its outcome."""

    key: str
    outcome: Outcome
    message: str
    digest: str | None
    report: dict[str, Any] | None

    @classmethod
    def read(cls, target: Path) -> _BatchState | None:
        """Return the state of a result, None where there is none that can be read."""
        try:
            found = json.loads(_state_path(target).read_text(encoding="utf-8"))
            return cls(**{name: found[name] for name in ("key", "outcome", "message", "digest", "report")})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @classmethod
    def record(cls, item: Item, key: str) -> None:
        """Write the outcome of a model."""
        target = Path(item.target)
        digest = _file_digest(target) if item.outcome == "done" else None
        content = {"schema": 1, "key": key, "source": item.source, "outcome": item.outcome, "message": item.message}
        data = dumps({**content, "digest": digest, "report": item.report}).encode()
        path = _state_path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.write(path, [data], len(data))

    def item(self, source: Path, target: Path) -> Item:
        """Return the outcome of an earlier run."""
        told = {name: getattr(self, name) for name in ("outcome", "message", "report")}
        return Item(source=str(source), target=str(target), resumed=True, **told)

    def holds(self, key: str, target: Path) -> bool:
        """Say whether a model need not be done again: it was, or can't meet the limit."""
        is_final = self.outcome == "limit" or (self.outcome == "done" and self.is_untouched(target))
        return self.key == key and is_final

    def is_untouched(self, target: Path) -> bool:
        """Say whether the result is what was written."""
        return self.digest is not None and target.is_file() and _file_digest(target) == self.digest


def _state_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _model_fingerprint(path: Path) -> str:
    """Return a digest of a model's file, with size and time of the files beside it that it names."""
    try:
        content = wire.scan(OpenFile(path))
    except OnnxCompressError:
        content = b""
    beside = sorted(f for f in path.parent.iterdir() if f.name != path.name and os.fsencode(f.name) in content)
    return "\n".join([_file_digest(path), *(_fingerprint(str(each)) for each in beside)])


def _fingerprint(path: str | os.PathLike[str] | None) -> str:
    """Return path, sizes and times of a file or of the files of a folder; of a function, its name only."""
    if path is None:
        return ""
    place = Path(path)
    files: Sequence[Path] = sorted(place.rglob("*")) if place.is_dir() else [place] if place.exists() else []
    marks = [f"{f} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files if f.is_file()]
    return "\n".join([str(path), *marks])
