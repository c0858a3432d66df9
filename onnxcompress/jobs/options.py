"""Options of a run, written once: for the library, for a batch, and for the command line."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeAlias, TypeVar

from ..base.search_terms import Effort, SearchStatus, no_status
from ..core import Prefer, Progress, no_progress
from ..data.evaluation_set import DataOptions
from ..recipe import Recipe
from ..targets.facts import HERE

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs
    import onnx_ir as ir

    ModelSource: TypeAlias = str | os.PathLike[str] | onnx.ModelProto | ir.Model | gs.Graph
    """A model: a path, a ModelProto, an onnx_ir model or an onnx-graphsurgeon graph."""

P = ParamSpec("P")
R = TypeVar("R")
OptionsT = TypeVar("OptionsT")

Verify = Literal["auto", "full", "regions"]


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """Options of `compress` that hold for one model as for each of a batch.

    Args:
        recipe: the name of a shipped recipe, a TOML file, or a `Recipe`.
        data: samples for passes that need some, in any form that `--data` takes, arrays and feeds included.
        eval_data: samples, with labels, by which original and result are scored (default: `data`, else synthetic).
        metric: `top1`, `top5`, `cosine`, `agreement`, one of a task (`quality.task.known`), or
            `module:function(outputs, labels)`; higher is better of those.
        max_drop: most that the metric may fall, absolute (0.01 is one point).
        confidence: that the loss is within `max_drop`, for which the upper end of its interval decides; None: the
            estimate decides.
        output_kinds: `NAME=KIND` texts, for outputs whose kind is taken for another.
        settings: `PASS.FIELD=VALUE` texts.
        only: globs on node names and `op:Type`; lossy passes skip all other nodes.
        skip: the same, for nodes that lossy passes skip.
        max_bytes: most bytes of the result.
        max_latency: most time of a run: "0.5x" of the original's, or "3ms".
        target: device that the result is for: "cpu", this machine, or "arm", "tensorrt", "qnn", which are not timed.
        prefer: "balanced" is the least size ratio times latency ratio among candidates not slower than the original;
            "speed" the fastest; "size" the smallest, be it slower.
        time_limit: seconds for all of it, figures included: passes end before, by themselves or interrupted; the best
            that was found is proved, scored and returned; where even loading takes longer, the model as it is.
        effort: length of the search of `auto`: "quick" ends it at 3 times the CPU seconds that the whole model took in
            int8, "default" at 10 times (at least 300 CPU seconds); "thorough" has no bound and tries more.
        seed: of the synthetic feeds.
        threads: of the runtime when it is timed.
        keep_node_metadata: keep the exporter's metadata of each node.
        freeze_inputs: make constants of inputs that have a default; else they stay inputs.
        data_options: how `data` and `eval_data` are read.
        verify: "full" runs the whole model, "regions" only what changed, for models that don't fit or that have
            operators the runtime doesn't know; "auto" chooses by size.
    """

    recipe: str | Path | Recipe = "auto"
    data: Any = None
    eval_data: Any = None
    metric: str | None = None
    max_drop: float | None = None
    confidence: float | None = None
    output_kinds: Iterable[str] = ()
    settings: Iterable[str] = ()
    only: Iterable[str] = ()
    skip: Iterable[str] = ()
    max_bytes: int | None = None
    max_latency: str | None = None
    target: str = HERE
    prefer: Prefer = "balanced"
    time_limit: float | None = None
    effort: Effort = "default"
    seed: int = 0
    threads: int = 1
    keep_node_metadata: bool = False
    freeze_inputs: bool = False
    data_options: DataOptions = field(default_factory=DataOptions)
    verify: Verify = "auto"

    def __post_init__(self) -> None:
        """Keep what may be given as an iterator."""
        for name in ("settings", "only", "skip", "output_kinds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class RunOptions(CompressOptions):
    """Options of `compress`: those of `CompressOptions`, and some that a batch does not have.

    Args:
        timings: the JSON report of an earlier run, whose times are used again in place of new ones.
        workers: processes that build candidates ahead of time; 1: they are built here, one after another.
        scheduler: address of a Dask scheduler whose workers do that.
        checkpoint: a folder that keeps intermediate results, so that an interrupted run is resumed from there.
        pareto_dir: a new folder for the candidates that nothing beats in size, time and drop, each with its model.
        sensitivity: measure the effect of zeroing each layer, before and after, for the report.
        plan: report what would be done; nothing is proved, scored or timed, and the model is not to be used.
        keep_best: a KeyboardInterrupt (Ctrl-C) during a search that has found something ends the search, not the run:
            the best so far is proved, scored and returned. Ctrl-C once more ends the run.
        progress: wraps long loops, for a display.
        show: shows how far a search is.
    """

    timings: str | os.PathLike[str] | None = None
    workers: int = 1
    scheduler: str | None = None
    checkpoint: str | os.PathLike[str] | None = None
    pareto_dir: str | os.PathLike[str] | None = None
    sensitivity: bool = False
    plan: bool = False
    keep_best: bool = False
    progress: Progress = no_progress
    show: Callable[[SearchStatus], None] = no_status


def takes_keywords(
    options: Callable[P, OptionsT],
) -> Callable[[Callable[[ModelSource, OptionsT], R]], Callable[Concatenate[ModelSource, P], R]]:
    """Let a function of a model and options be called with the fields of the options as keywords."""

    def decorate(function: Callable[[ModelSource, OptionsT], R]) -> Callable[Concatenate[ModelSource, P], R]:
        @functools.wraps(function)
        def call(source: ModelSource, *args: P.args, **keywords: P.kwargs) -> R:
            return function(source, options(*args, **keywords))

        source, _ = inspect.signature(function).parameters.values()
        parameters = [source, *inspect.signature(options).parameters.values()]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]  # the model may be given as a keyword, too

    return decorate
