"""Fold tools side by side: each tool on each model, judged against the original; peers can be cached."""

from __future__ import annotations

import hashlib
import json
import queue
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.progress import Progress

from bench.corpus import Model
from bench.process import Child, ChildDiedError
from bench.tables import Table
from bench.worker import OURS, TOOLS

Level = Literal["extended", "all"]
Outcome = Literal["ok", "wrong", "invalid", "crash"]

ALLOWED_GROWTH = 1.01
ALLOWED_GROWTH_BYTES = 2048
MODELS_PER_PROCESS = 50
"""After so many models a tool gets a new process: onnxslim's calls nest deeper with every model."""


@dataclass(frozen=True, kw_only=True)
class Original:
    """A model as it came: what it is compared with."""

    sha256: str
    size_bytes: int
    nodes: int
    optimized_nodes: int
    feeds: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one tool made of one model; sizes and nodes are None where there is no valid file.

    `runtime_only` names operator domains that the original does not use: only onnxruntime runs such a file.
    """

    outcome: Outcome
    reason: str = ""
    seconds: float | None = None
    cpu_seconds: float | None = None
    size_bytes: int | None = None
    nodes: int | None = None
    optimized_nodes: int | None = None
    runtime_only: Sequence[str] = ()

    def grew(self, original: Original) -> bool:
        """Whether a good result is larger than the original beyond the allowance."""
        limit = original.size_bytes * ALLOWED_GROWTH + ALLOWED_GROWTH_BYTES
        return self.outcome == "ok" and self.size_bytes is not None and self.size_bytes > limit


@dataclass
class Results:
    """All results, by tool and model key; saved as JSON and used as the cache of the peers."""

    level: Level
    versions: dict[str, str] = field(default_factory=dict)
    import_seconds: dict[str, float] = field(default_factory=dict)
    originals: dict[str, Original] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    tools: dict[str, dict[str, Result]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote."""
        data: dict[str, Any] = json.loads(path.read_text())
        data["originals"] = {key: Original(**value) for key, value in data["originals"].items()}
        data["tools"] = {t: {k: Result(**v) for k, v in rows.items()} for t, rows in data["tools"].items()}
        return cls(**data)

    def best_peer(self, key: str, *, portable: bool = True) -> tuple[str, Result] | None:
        """Return the peer whose correct result runs fewest nodes; on equal counts the smallest file.

        `portable` leaves out results with operators that only onnxruntime knows: its own offline ones.
        """
        rows = [
            (result.optimized_nodes, result.size_bytes, tool, result)
            for tool, by_key in self.tools.items()
            if tool != OURS and (result := by_key.get(key)) is not None
            if result.outcome == "ok" and result.optimized_nodes is not None
            if not (portable and (result.runtime_only or tool == "onnxruntime"))
        ]
        if not rows:
            return None
        *_, tool, result = min(rows, key=lambda row: row[:3])
        return tool, result


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to run: which tools, with whose Python, how long each may take, how many models at a time.

    Peers are measured where `cache` lacks them, or holds another file of the model, and those of `fresh` always.
    Without a `peer_python` they have no result there.
    """

    tools: Sequence[str]
    peer_python: Path | None
    timeout_seconds: float
    jobs: int
    level: Level
    work: Path
    cache: Results | None = None
    fresh: Sequence[str] = ()


class Lane:
    """One worker per tool and one referee, reused for many models."""

    def __init__(self, settings: Settings) -> None:
        """Prepare the workers; each starts when its first model comes."""
        self._settings = settings
        self._judge = Child(Path(sys.executable), "judge", with_project=False)
        self._tools = {
            tool: Child(Path(sys.executable), "worker", tool, with_project=True)
            if tool == OURS
            else Child(settings.peer_python or Path(), "worker", tool, with_project=False)
            for tool in settings.tools
            if tool == OURS or settings.peer_python is not None
        }
        self._asked: dict[str, int] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="lane-", dir=settings.work))

    def close(self) -> None:
        """Stop every worker and remove this lane's files."""
        for child in (self._judge, *self._tools.values()):
            child.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def greetings(self) -> dict[str, dict[str, Any]]:
        """Start every tool and say its version and import time; raises `ChildDiedError` if one fails."""
        said = {}
        for tool, child in self._tools.items():
            try:
                said[tool] = child.start()
            except ChildDiedError as error:
                python = sys.executable if tool == OURS else self._settings.peer_python
                raise ChildDiedError(f"{tool} does not start in {python}: {error}") from error
        return said

    def measure(self, model: Model) -> tuple[Original | str, dict[str, Result]]:
        """Return the original (or why it is left out), and each tool's result on it."""
        sha256 = _digest(model.path)
        refused, variants = self._reference(model, variants=True)
        if isinstance(refused, str):
            return refused, {}
        original = Original(
            sha256=sha256,
            size_bytes=model.size_bytes,
            nodes=refused["nodes"],
            optimized_nodes=refused["optimized_nodes"],
            feeds=refused["feeds"],
        )
        cache = self._settings.cache
        before = cache.originals.get(model.key) if cache is not None else None
        same = before is not None and before.sha256 == sha256
        results = {}
        for tool in self._settings.tools:
            known = cache.tools.get(tool, {}).get(model.key) if cache is not None and same else None
            if known is None or tool == OURS or tool in self._settings.fresh:
                if tool not in self._tools:
                    continue
                known = self._one(tool, model, variants=variants)
                if known.outcome == "crash" and self._asked.get(tool, 0) > 1:
                    self._stop(tool)  # a process that has seen other models may carry state: once more in a new one
                    known = self._one(tool, model, variants=variants)
            results[tool] = known
        return original, results

    def _stop(self, tool: str) -> None:
        self._tools[tool].stop()
        self._asked[tool] = 0

    def _reference(self, model: Model, *, variants: bool) -> tuple[dict[str, Any] | str, bool]:
        request = {
            "do": "reference",
            "model": str(model.path),
            "recorded": str(model.recorded) if model.recorded else None,
            "variants": variants,
            "folder": str(self._folder),
            "level": self._settings.level,
        }
        try:
            reply = self._judge.ask(request, timeout_seconds=self._settings.timeout_seconds)
        except ChildDiedError as error:
            if variants:
                return self._reference(model, variants=False)
            return f"the original ends the runtime: {error}", variants
        return reply.get("error", reply), variants

    def _one(self, tool: str, model: Model, *, variants: bool) -> Result:
        if self._asked.get(tool, 0) >= MODELS_PER_PROCESS:
            self._stop(tool)
        self._asked[tool] = self._asked.get(tool, 0) + 1
        folder = self._folder / tool
        folder.mkdir()
        target = folder / "model.onnx"
        try:
            try:
                reply = self._tools[tool].ask(
                    {"input": str(model.path), "output": str(target)},
                    timeout_seconds=self._settings.timeout_seconds,
                )
            except ChildDiedError as error:
                return Result(outcome="crash", reason=f"process ended: {error}")
            times = {"seconds": reply["seconds"], "cpu_seconds": reply["cpu_seconds"]}
            if "error" in reply or not target.exists():
                reason = reply.get("error", "no file written")
                return Result(outcome="crash", reason=reason, **times)
            size_bytes = sum(file.stat().st_size for file in folder.iterdir())
            request = {
                "do": "judge",
                "model": str(target),
                "strict": tool == OURS,
                "folder": str(self._folder),
                "level": self._settings.level,
            }
            try:
                said = self._judge.ask(request, timeout_seconds=self._settings.timeout_seconds)
            except ChildDiedError as error:
                self._reference(model, variants=variants)
                said = {"outcome": "invalid", "reason": f"ends the runtime: {error}"}
            if "error" in said:
                said = {"outcome": "invalid", "reason": said["error"]}
            return Result(**times, size_bytes=size_bytes, **said)
        finally:
            shutil.rmtree(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(models: Sequence[Model], settings: Settings, progress: Progress) -> Results:
    """Measure every tool on every model, `jobs` models at a time; results come in the models' order."""
    results = Results(level=settings.level, tools={tool: {} for tool in settings.tools})
    task = progress.add_task("fold", total=len(models))
    lanes: queue.SimpleQueue[Lane] = queue.SimpleQueue()
    made = [Lane(settings) for _ in range(settings.jobs)]

    def measure(model: Model) -> tuple[Model, Original | str, dict[str, Result]]:
        lane = lanes.get()
        try:
            return model, *lane.measure(model)
        finally:
            lanes.put(lane)

    try:
        for tool, greeting in _greetings(made, settings).items():
            results.versions[tool] = greeting["version"]
            results.import_seconds[tool] = greeting["import_seconds"]
        for lane in made:
            lanes.put(lane)
        with ThreadPoolExecutor(settings.jobs) as pool:
            for model, original, by_tool in pool.map(measure, models):
                progress.update(task, advance=1, description=model.key[:40])
                if isinstance(original, str):
                    results.skipped[model.key] = original
                    continue
                results.originals[model.key] = original
                for tool, result in by_tool.items():
                    results.tools[tool][model.key] = result
    finally:
        for lane in made:
            lane.close()
    return results


def _greetings(lanes: Sequence[Lane], settings: Settings) -> dict[str, dict[str, Any]]:
    cache = settings.cache
    if cache is None:
        return lanes[0].greetings()
    known = {
        tool: {"version": cache.versions[tool], "import_seconds": cache.import_seconds[tool]}
        for tool in settings.tools
        if tool != OURS and tool in cache.versions and tool not in settings.fresh
    }
    started = Lane(Settings(**{**vars(settings), "tools": [t for t in settings.tools if t not in known]}))
    try:
        return known | started.greetings()
    finally:
        started.close()


def unmeasured(results: Results) -> int:
    """Return for how many models a peer has no result: they are not in the cache and no Python was given."""
    return sum(any(key not in rows for rows in results.tools.values()) for key in results.originals)


def best_nodes(results: Results) -> dict[str, dict[str, Any]]:
    """Return per model the fewest nodes that a correct peer reaches, for checking oneself against."""
    table = {}
    for key, original in results.originals.items():
        best, offline = results.best_peer(key), results.best_peer(key, portable=False)
        table[key] = {
            "best_nodes": best[1].optimized_nodes if best else original.optimized_nodes,
            "tool": best[0] if best else None,
            "best_nodes_with_runtime_only_operators": offline[1].optimized_nodes if offline else None,
            "original_nodes": original.nodes,
            "original_optimized_nodes": original.optimized_nodes,
        }
    return table


def summary(results: Results) -> Table:
    """Tabulate outcomes, growth and time per tool."""
    table = Table(
        f"Fold tools on {len(results.originals):,} models that run in onnxruntime",
        [
            *("tool", "version", "ok", "wrong", "invalid", "crash", "grew", "most growth, bytes"),
            *("seconds", "CPU s", "import s"),
        ],
    )
    for tool, rows in results.tools.items():
        counts = {o: sum(r.outcome == o for r in rows.values()) for o in ("ok", "wrong", "invalid", "crash")}
        grown = [
            (r.size_bytes or 0) - results.originals[k].size_bytes
            for k, r in rows.items()
            if r.grew(results.originals[k])
        ]
        table.add(
            tool,
            results.versions.get(tool),
            *counts.values(),
            len(grown),
            max(grown, default=None),
            sum(r.seconds or 0.0 for r in rows.values()),
            sum(r.cpu_seconds or 0.0 for r in rows.values()) or None,
            results.import_seconds.get(tool),
        )
    return table


def real_models_table(results: Results, models: Iterable[Model]) -> Table:
    """Tabulate whole networks: bytes and nodes that the runtime is left with, ours beside the best peer."""
    table = Table(
        f"Whole networks: bytes, and nodes after onnxruntime's optimization (level {results.level})",
        ["model", "original", "nodes", "ours", "nodes", "seconds", "best peer", "bytes", "nodes", "seconds"],
    )
    for model in models:
        if not model.real or model.key not in results.originals:
            continue
        original, best = results.originals[model.key], results.best_peer(model.key)
        ours = results.tools.get(OURS, {}).get(model.key)
        table.add(
            model.key,
            original.size_bytes,
            original.optimized_nodes,
            (ours.size_bytes if ours.outcome == "ok" else ours.outcome) if ours else None,
            ours.optimized_nodes if ours else None,
            ours.seconds if ours else None,
            best[0] if best else None,
            best[1].size_bytes if best else None,
            best[1].optimized_nodes if best else None,
            best[1].seconds if best else None,
        )
    return table


def shortfalls(results: Results) -> Table:
    """List each model where ours is not ok, grows, or leaves more nodes than a peer or the original."""
    table = Table("Where onnxcompress falls short", ["model", "what", "ours", "to reach", "by"])
    for key, ours in results.tools.get(OURS, {}).items():
        original, best = results.originals[key], results.best_peer(key)
        if ours.outcome != "ok":
            table.add(key, ours.outcome, ours.reason, None, None)
            continue
        if ours.grew(original):
            table.add(key, "bytes", ours.size_bytes, original.size_bytes, "original")
        if best and (ours.optimized_nodes or 0) > (best[1].optimized_nodes or 0):
            table.add(key, "nodes", ours.optimized_nodes, best[1].optimized_nodes, best[0])
        elif (ours.optimized_nodes or 0) > original.optimized_nodes:
            table.add(key, "nodes", ours.optimized_nodes, original.optimized_nodes, "original")
    return table


def failures(results: Results, models: Iterable[Model]) -> Table:
    """List the whole networks that a tool breaks, with the reason."""
    table = Table("Whole networks that a tool breaks", ["model", "tool", "outcome", "reason"])
    for model in models:
        for tool in results.tools:
            result = results.tools[tool].get(model.key)
            if model.real and result is not None and result.outcome != "ok":
                table.add(model.key, tool, result.outcome, result.reason[:120])
    return table


PEERS = tuple(tool for tool in TOOLS if tool != OURS)
