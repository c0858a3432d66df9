"""The main job from end to end: load, run the recipe, prove, compare, and hand over a result that can be saved.

source --load--> original --pipeline (WholeProof)--> result --measure--> Report
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from . import metrics, model_io, pipeline, runtime, stats, synthetic
from .core import Action, Change, Context, Feed
from .errors import LimitError, ModelError, UsageError
from .evaluation import Evaluation
from .proof import WholeProof
from .recipe import Recipe
from .report import ModelFacts, Report

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

_PROOF_FEEDS = 2
"""Synthetic feeds of a proof: two sizes of every dynamic dimension."""

_LARGEST_BYTES = 2**31 - 1
"""What onnxruntime can be given in one piece."""


@dataclass(frozen=True)
class Result:
    """A compressed model and the report of how it came about."""

    model: ir.Model
    report: Report

    @property
    def changes(self) -> tuple[Change, ...]:
        """Every decision of the run: what was done, refused or taken back."""
        return self.report.changes

    def save(self, path: str | os.PathLike[str], *, force: bool = False, external_data: str = "auto") -> Path:
        """Write the model atomically and return its path.

        Raises:
            UsageError: the file exists and `force` is not given.
            ModelError: it can't be written.
        """
        return Path(model_io.save(self.model, Path(path), external_data=external_data, force=force).path)  # type: ignore[arg-type]

    def graph(self) -> gs.Graph:
        """Return the model as an onnx-graphsurgeon graph."""
        from . import surgeon

        return surgeon.to_surgeon(self.model)


def compress(
    source: str | os.PathLike[str] | onnx.ModelProto | ir.Model | gs.Graph,
    *,
    recipe: str | Path | Recipe = "auto",
    evaluation: Evaluation | None = None,
    metric: str = "top1",
    max_drop: float | None = None,
    settings: Iterable[str] = (),
    max_bytes: int | None = None,
    seed: int = 0,
    threads: int = 1,
    keep_node_metadata: bool = False,
) -> Result:
    """Make a model smaller and faster by a recipe, and prove that it is still good.

    Args:
        source: a path, a ModelProto, an onnx_ir model or an onnx-graphsurgeon graph; never changed.
        recipe: the name of a shipped recipe, a TOML file, or a `Recipe`.
        evaluation: labelled feeds for the quality figures; without them synthetic feeds compare the outputs.
        metric: `top1`, `top5`, or `module:function(outputs, labels)`; higher is better.
        max_drop: most that the metric may fall, absolute (0.01 is one point).
        settings: `PASS.FIELD=VALUE` texts.
        max_bytes: most bytes of the result.
        seed: of the synthetic feeds.
        threads: of the runtime when it is timed.
        keep_node_metadata: keep what exporters wrote beside each node.

    Raises:
        ModelError: the model can't be read or run.
        UsageError: recipe, pass or field are unknown or out of range.
        LimitError: a limit that was given is not met.
    """
    started = time.monotonic()
    chosen = Recipe.load(recipe, settings)
    if chosen.needs_data and evaluation is None:
        raise UsageError(f"recipe {chosen.name!r} needs data", hint="Give --data")
    original = model_io.load(source)
    if model_io.model_bytes(original) > _LARGEST_BYTES:
        raise ModelError(
            f"the model has {model_io.model_bytes(original):,} bytes; over 2 GiB it can't be proved in one piece",
            where=str(source) if isinstance(source, str | os.PathLike) else "",
        )
    session = runtime.open_session(model_io.to_bytes(original), optimize=False)
    feeds = synthetic.runnable_feeds(original, session, seed=seed, count=_PROOF_FEEDS)
    start = model_io.clone(original)
    first = [] if keep_node_metadata else _drop_records(start)
    outcome = pipeline.run(
        start,
        chosen.passes,
        Context(seed=seed),
        lambda model, lossless: WholeProof(model, feeds, lossless=lossless),
    )
    result = outcome.model
    if not chosen.lossless:
        result.metadata_props["onnxcompress.recipe"] = chosen.name
    judged = evaluation or Evaluation(feeds, None, "synthetic")
    quality, latency = _measure(original, result, judged, metric=metric, threads=threads)
    largest = max(judged.feeds, key=lambda feed: sum(np.asarray(a).size for a in feed.values()))
    path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    report = Report(
        input=replace(_facts(original, largest, path), bytes=_bytes_on_disk(original, path)),
        output=_facts(result, largest, None),
        recipe=chosen.as_json(),
        limits={"max_drop": max_drop, "max_bytes": max_bytes},
        quality=quality,
        latency=latency.as_json(),
        seconds=round(time.monotonic() - started, 3),
        peak_memory_bytes=_peak_memory_bytes(),
        changes=tuple(first + outcome.changes),
    )
    _check_limits(report)
    return Result(result, report)


def located(report: Report, path: Path) -> Report:
    """Return the report with the path that the result was written to."""
    return replace(report, output=replace(report.output, path=str(path)))


def _drop_records(model: ir.Model) -> list[Change]:
    dropped = model_io.drop_node_records(model)
    if not dropped.count:
        return []
    reason = f"{dropped.count} records that the exporter wrote beside nodes and values are dropped"
    return [
        Change(
            pass_name="drop-node-records",
            target="graph",
            action=Action.APPLIED,
            reason=reason,
            bytes_before=dropped.bytes,
        )
    ]


def _bytes_on_disk(model: ir.Model, path: str | None) -> int:
    """Return the bytes of the file as it is; with external data, or without a file, what an inline one takes."""
    inline = model_io.model_bytes(model)
    on_disk = 0 if path is None else Path(path).stat().st_size
    return inline if on_disk < inline // 2 else on_disk


def _facts(model: ir.Model, feed: Feed, path: str | None) -> ModelFacts:
    counts = stats.count(model, feed)
    return ModelFacts(
        path=path,
        bytes=model_io.model_bytes(model),
        nodes=counts.nodes,
        parameters=counts.parameters,
        macs=counts.macs,
    )


def _measure(
    original: ir.Model, result: ir.Model, judged: Evaluation, *, metric: str, threads: int
) -> tuple[dict[str, Any], runtime.Latency]:
    """Run both models as a user would, optimizations on, and compare outputs, metric and time."""
    a = runtime.open_session(model_io.to_bytes(original), optimize=True, threads=threads)
    b = runtime.open_session(model_io.to_bytes(result), optimize=True, threads=threads)
    sums: dict[str, _Difference] = {}
    scores: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for feed in judged.feeds:
        before, after = a.run(feed), b.run(feed)
        for name, expected in before.items():
            if isinstance(expected, np.ndarray) and expected.dtype.kind == "f":
                sums.setdefault(name, _Difference()).add(expected, after[name])
        if judged.labels is not None:
            scores[0].append(next(iter(before.values())))
            scores[1].append(next(iter(after.values())))
    outputs = {name: difference.as_json() for name, difference in sums.items()}
    quality: dict[str, Any] = {"samples": len(judged.feeds), "data": judged.source, "outputs": outputs}
    if judged.labels is None:
        worst = min((o["cosine"] for o in outputs.values() if o["cosine"] is not None), default=None)
        quality |= {
            "metric": "cosine",
            "original": 1.0,
            "compressed": worst,
            "drop": None if worst is None else 1.0 - worst,
        }
    else:
        score = metrics.resolve_metric(metric)
        labels = judged.labels
        was, now = (float(score(np.concatenate(each), labels)) for each in scores)
        quality |= {
            "metric": metric,
            "samples": len(labels),
            "original": was,
            "compressed": now,
            "drop": was - now,
        }
    largest = max(judged.feeds, key=lambda feed: sum(np.asarray(x).size for x in feed.values()))
    return quality, runtime.race(a, b, largest)


class _Difference:
    """Running sums of how far one output's values are from the original's."""

    def __init__(self) -> None:
        self._product = self._expected = self._got = self._error = 0.0
        self._max_abs = 0.0

    def add(self, expected: np.ndarray, got: np.ndarray) -> None:
        """Count one pair of arrays of equal shape; elements that are not finite in both are left out."""
        fine = np.isfinite(expected) & np.isfinite(got)
        x, y = expected[fine].astype(np.float64), got[fine].astype(np.float64)
        self._product += float(x @ y)
        self._expected += float(x @ x)
        self._got += float(y @ y)
        self._error += float((x - y) @ (x - y))
        self._max_abs = max(self._max_abs, float(np.abs(x - y).max(initial=0.0)))

    def as_json(self) -> dict[str, float | None]:
        """Return max_abs, cosine and sqnr_db; None where they are not defined or infinite."""
        sqnr_db = 10 * np.log10(self._expected / self._error) if self._error and self._expected else None
        return {
            "max_abs": self._max_abs,
            "cosine": metrics.cosine_of_moments(self._product, self._expected, self._got),
            "sqnr_db": None if sqnr_db is None else float(sqnr_db),
        }


def _check_limits(report: Report) -> None:
    """Raise where a limit that the user gave is not met."""
    limits: Mapping[str, Any] = report.limits
    drop = (report.quality or {}).get("drop")
    if limits["max_drop"] is not None and drop is not None and drop > limits["max_drop"]:
        raise LimitError(f"the metric falls by {drop:.4f}, more than --max-drop {limits['max_drop']}")
    if limits["max_bytes"] is not None and report.output.bytes > limits["max_bytes"]:
        raise LimitError(f"the result has {report.output.bytes:,} bytes, more than {limits['max_bytes']:,}")


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
