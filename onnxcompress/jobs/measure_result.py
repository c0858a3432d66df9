"""Figures of a result: scored, timed and counted, as far as the time allows."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace

import onnx_ir as ir

from .. import pipeline
from ..core import Change
from ..io import model_io
from ..quality.ablation import LayerAblation
from ..quality.result import Quality
from ..runtime import latency as timing
from ..runtime.latency import Latency
from ..runtime.loaded_model import LoadedModel
from ..shapes import count as counting
from ..shapes.count import ModelFacts, facts
from . import time_budget
from .prover import Prover
from .report import Verification
from .setup import Run
from .time_budget import TimeBudget

_TIMED_SHARE = 0.02
"""Share of the time so far that lossless recipes, without a limit of latency, spend on timing the result.

Where that is not enough for a figure that can be trusted, the result is not timed. Chosen by judgement.
"""

_LEAST_TIMED_SECONDS = 0.05
"""They spend at least this: a small model is folded too fast for the share to time it. Chosen by judgement."""


@dataclass(frozen=True, kw_only=True)
class RecipeResult:
    """The model that the recipe has made, what was done, and the effect of zeroing each layer where that is wanted."""

    model: ir.Model
    changes: tuple[Change, ...]
    ablations: tuple[LayerAblation, ...] = ()
    notes: tuple[str, ...] = ()
    internal_errors: tuple[pipeline.InternalError, ...] = ()
    late: tuple[str, ...] = ()
    """Lines on what the time limit, or the user, has cut short."""
    is_interrupted: bool = False
    """Whether the user has ended the passes before they had ended."""
    lossless_model: ir.Model | None = None
    """The model before the first lossy pass."""


@dataclass(frozen=True, kw_only=True)
class ResultFigures:
    """Figures of the original and the result; quality and latency are None where not measured."""

    input: ModelFacts
    output: ModelFacts
    quality: Quality | None
    latency: Latency | None
    verification: Verification


def measure_result(run: Run, done: RecipeResult, prover: Prover, budget: TimeBudget) -> ResultFigures:
    """Score, time and count the original and the result."""
    is_same = done.model is run.start and not run.dropped
    result = prover.proved(done.model) or LoadedModel(done.model, threads=run.options.threads, like=run.base)
    result = run.base if is_same else result
    quality, latency, verification = None, None, Verification(mode="none")
    if run.options.plan:
        pass
    elif not run.proof.is_whole:
        quality, verification = prover.region_figures()
    else:
        quality, latency = _scored_and_timed(run, result, budget)
        verification = Verification(mode="full")
    largest = run.samples.largest
    counts = counting.count(run.original, largest)
    before = facts(run.original, counts, run.base.path, size_bytes=run.base.size_bytes)
    is_lossless = run.recipe.lossless
    size_bytes = result.size_bytes if is_lossless else model_io.model_bytes(done.model)  # a recipe's name is in there
    if is_same:
        after = replace(before, path=None, bytes=size_bytes)
    else:
        known = counts.shapes if is_lossless else {}
        after = facts(done.model, counting.count(done.model, largest, known=known), None, size_bytes=size_bytes)
    return ResultFigures(input=before, output=after, quality=quality, latency=latency, verification=verification)


def _scored_and_timed(run: Run, result: LoadedModel, budget: TimeBudget) -> tuple[Quality, Latency | None]:
    """Compare and time original and result; lossless recipes without a limit of latency take little time for it."""
    quality = run.quality(run.base, result, progress=run.options.progress)
    if run.is_scored_plain and run.latency_limit is None:
        return quality, None
    feeds = run.samples.timed
    sessions = run.plan.timed(run.base), run.plan.timed(result)
    if not run.recipe.lossless or run.latency_limit is not None:
        seconds = budget.race_seconds
        if seconds is None or (run.clock.is_limited and seconds < timing.least_seconds(*sessions)):
            return quality, None
        raced = functools.partial(timing.race_each, *sessions, feeds, max_seconds=seconds)
        return quality, run.timings.race("result", raced)
    for session in sessions if run.plan.fixed is not None else ():
        session.run_time(feeds[0])  # they were made for this, and a glance is at warm sessions
    spare_seconds = max(_LEAST_TIMED_SECONDS, _TIMED_SHARE * (time.monotonic() - run.started))
    return quality, timing.glance(*sessions, feeds[0], max_seconds=spare_seconds)


def without_lossy(run: Run, done: RecipeResult) -> RecipeResult:
    """Return the result before the first lossy pass: what was lost after it was not measured."""
    lossy = frozenset(p.name for p in run.recipe.active if not p.lossless)
    model = done.lossless_model if lossy and done.lossless_model is not None else done.model
    note = f"{pipeline.TIME_UP}: the result was neither scored nor timed" + (
        ", so it is the model without the lossy passes" if model is not done.model else ""
    )
    changes = done.changes if model is done.model else time_budget.taken_back(done.changes, lossy)
    return replace(done, model=model, changes=changes, late=(*done.late, note))


def unmeasured(run: Run, done: RecipeResult) -> ResultFigures:
    """Return the figures that can be had at once."""
    return ResultFigures(
        input=time_budget.unmeasured_facts(run.original, run.base.path, run.base.size_bytes),
        output=time_budget.unmeasured_facts(done.model, None),
        quality=None,
        latency=None,
        verification=Verification(mode="full" if run.proof.is_whole else "none"),
    )
