"""Compression of one model from end to end.

load -> Run, prepare -> Context, run_recipe -> RecipeResult, measure_result -> ResultFigures, make_report -> Report
"""

from __future__ import annotations

import functools
import json
import logging
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from .. import pipeline
from ..activations.calibration import CalibrationCache
from ..base.clock import Clock
from ..base.versions import versions
from ..core import Candidate, Change, Context, Trial, Workers
from ..errors import ModelError, TimeUpError, UsageError
from ..io import model_io
from ..ops.weight_layers import quantized_state
from ..packing import archive as packing
from ..quality import ablation, metrics
from ..quality.compare_outputs import quality_notes
from ..quality.kind_overrides import parse_kinds
from ..quality.output_plan import OutputPlan
from ..recipe import Recipe
from ..runtime import executors
from ..runtime.loaded_model import LoadedModel, path_of
from ..runtime.processes import peak_memory_bytes
from ..runtime.time_limit import within
from ..search import drafts
from ..search.archive import Archive
from ..search.checkpoint import Checkpoint, digest
from ..search.effort import StepSeconds
from ..targets import facts as targets
from . import internal_errors, pareto, setup, time_budget
from .dropped_metadata import without_metadata
from .interrupts import Interrupts
from .judge import Races, Timings, Trials
from .limits import LatencyLimit, check_limits, excess
from .measure_result import RecipeResult, ResultFigures, measure_result, unmeasured, without_lossy
from .node_selector import selector
from .notes import measurement_notes, nothing_notes, quantized_notes, sample_notes
from .options import RunOptions, takes_keywords
from .prover import Prover
from .report import Limits, Report, ResolvedRecipe, Verification
from .setup import Run, RunSamples
from .time_budget import TimeBudget

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from .options import ModelSource

log = logging.getLogger(__name__)


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

    def pack(self, path: str | os.PathLike[str], *, force: bool = False, external_data: str = "auto") -> packing.Packed:
        """Write one lossless archive of the model, for delivery: `unpack` restores what `save` would have written.

        Raises:
            UsageError: the file exists and `force` is not given.
            ModelError: it can't be written.
        """
        return packing.save_packed(self.model, path, external_data=external_data, force=force)  # type: ignore[arg-type]

    def graph(self) -> gs.Graph:
        """Return the model as an onnx-graphsurgeon graph."""
        from ..io import graphsurgeon

        return graphsurgeon.to_surgeon(self.model)


@takes_keywords(RunOptions)
def compress(source: ModelSource, options: RunOptions) -> Result:
    """Make a model smaller and faster by a recipe, and prove that it is still good.

    Args:
        source: a path, a ModelProto, an onnx_ir model or an onnx-graphsurgeon graph; never changed.
        options: each is a keyword of its own, see `onnxcompress.jobs.options.RunOptions`.

    Raises:
        ModelError: the model can't be read or run.
        DataError: the data can't be read or does not fit.
        UsageError: recipe, pass, field or pattern are unknown or out of range.
        LimitError: a limit that was given is not met; its `report` says by how much.
    """
    with Interrupts(is_wanted=options.keep_best) as interrupts:
        return _compressed(source, options, interrupts)


def _compressed(source: ModelSource, options: RunOptions, interrupts: Interrupts) -> Result:
    started, clock = time.monotonic(), Clock(options.time_limit)
    begun = begin(source, options)
    try:
        end = clock.earlier(time_budget.writing_seconds(model_io.model_bytes(begun.original)))
        run = within(lambda: load(source, options, begun, started=started, clock=clock), end)
        budget = TimeBudget(clock, within(lambda: time_budget.predicted(run), end), interrupts)
    except TimeUpError:
        return _unstarted(source, options, begun, started)
    prover = Prover(run)
    done = run_recipe(run, prepare(run), prover, budget)
    try:
        measured = within(lambda: measure_result(run, done, prover, budget), budget.measuring)
    except TimeUpError:
        done = without_lossy(run, done)
        measured = unmeasured(run, done)
    report = make_report(run, done, measured)
    for note in done.late:
        log.warning("%s", note)
    if not options.plan:
        check_limits(report, run.latency_limit, confidence=options.confidence)
    if options.pareto_dir is not None:
        write_front(Path(options.pareto_dir), run, done.model, report, prover)
    return Result(done.model, report)


@dataclass(frozen=True, kw_only=True)
class Begun:
    """The model and the checked options: all that is known before anything is run."""

    recipe: Recipe
    latency_limit: LatencyLimit | None
    timings: Timings
    original: ir.Model


def begin(source: ModelSource, options: RunOptions) -> Begun:
    """Check the options and read the model."""
    recipe = Recipe.load(options.recipe, options.settings)
    if recipe.lossless and (options.only or options.skip):
        raise UsageError(
            f"--only and --skip limit lossy passes, and recipe {recipe.name!r} has none",
            hint="Leave them out: every pass of this recipe keeps what the model computes",
        )
    if recipe.needs_data and options.data is None:
        raise UsageError(f"recipe {recipe.name!r} needs data", hint="Give --data")
    latency_limit = None if options.max_latency is None else LatencyLimit.parse(options.max_latency)
    if options.metric is not None:
        metrics.resolve_metric(options.metric)
    targets.check(options.target)
    timings = Timings() if options.timings is None else Timings.read(Path(options.timings))
    return Begun(recipe=recipe, latency_limit=latency_limit, timings=timings, original=model_io.load(source))


def load(source: ModelSource, options: RunOptions, begun: Begun, *, started: float, clock: Clock) -> Run:
    """Load the model in the runtime, read the data, and choose how the result is proved."""
    original, recipe = begun.original, begun.recipe
    selects = selector(original, options.only, options.skip)
    base = LoadedModel(original, source, threads=options.threads)
    samples, proof = setup.read_inputs(base, setup.open_session(base, options), recipe, options)
    start, dropped = without_metadata(original, base.size_bytes, keep_node_metadata=options.keep_node_metadata)
    checkpoint = _checkpoint(base, recipe, samples, options)
    return Run(
        options=options,
        recipe=recipe,
        started=started,
        clock=clock,
        timings=begun.timings,
        latency_limit=begun.latency_limit,
        base=base,
        selects=selects,
        start=start,
        dropped=dropped,
        samples=samples,
        proof=proof,
        plan=OutputPlan.of(original, overrides=parse_kinds(options.output_kinds), states=samples.judged.carried),
        checkpoint=checkpoint,
        archive=Archive(checkpoint, keeps_models=options.pareto_dir is not None),
        steps=StepSeconds(begun.timings.cpu_seconds, checkpoint),
    )


def _checkpoint(base: LoadedModel, recipe: Recipe, samples: RunSamples, options: RunOptions) -> Checkpoint | None:
    """Open the checkpoint under a digest of everything that intermediate results depend on."""
    if options.checkpoint is None:
        return None
    max_drop = recipe.max_drop if options.max_drop is None else options.max_drop
    own_limit = None if recipe.max_drop is None else max_drop
    choices = (options.prefer, options.target, options.seed, options.threads, list(options.only), list(options.skip))
    judging = (options.confidence, *options.output_kinds)
    shown = json.dumps([(recipe.as_json(), own_limit, *choices, *judging), versions()], sort_keys=True, default=str)
    judged = [samples.judged] if samples.given is None else [samples.given, samples.judged]
    arrays = (np.asarray(feed[name]) for each in judged for feed in each.feeds for name in sorted(feed))
    return Checkpoint(Path(options.checkpoint), digest([base.data, shown, *arrays]))


def prepare(run: Run) -> Context:
    """Return what passes are given: the samples that they may see, the judge of candidates, and the limits."""
    options, working = run.options, run.samples.working
    race = None
    if run.proof.is_whole and options.target == targets.HERE and not options.plan:
        race = Races(run.base, run.samples.timed, plan=run.plan, timings=run.timings, threads=options.threads)
    return Context(
        feeds=working.feeds if working else (),
        state=working.state if working else {},
        calibrations=CalibrationCache(),
        seed=options.seed,
        target=options.target,
        judge=_judge(run),
        archive=run.archive,
        is_plan=options.plan,
        clock=run.clock,
        race=race,
        selects=run.selects,
        frozen_inputs=setup.frozen_inputs(run),
        max_bytes=options.max_bytes,
        excess=functools.partial(excess, max_bytes=options.max_bytes, latency=run.latency_limit),
        progress=options.progress,
        effort=options.effort,
        steps=run.steps,
        show=options.show,
    )


def _judge(run: Run) -> Trials | None:
    """Return the judge of candidates; None for a plan, by regions, and without samples of the user."""
    samples, options = run.samples, run.options
    if not run.proof.is_whole or samples.held_out is None or options.plan:
        return None
    return Trials(
        run.base,
        samples.held_out,
        samples.timed,
        final=lambda candidate: run.excess_drop(candidate, run.search_limit),
        limit=run.search_limit,
        prefer=options.prefer,
        plan=run.plan,
        confidence=options.confidence,
        timed=options.target == targets.HERE,
        timings=run.timings,
        threads=options.threads,
        checkpoint=run.checkpoint,
    )


def run_recipe(run: Run, context: Context, prover: Prover, budget: TimeBudget) -> RecipeResult:
    """Run the passes of the recipe under their proof; a lossy one leaves its name in a model that it changes."""
    options = run.options
    with executors.wanted(workers=options.workers, scheduler=options.scheduler) as executor:
        outcome = pipeline.run(run.start, run.recipe.active, replace(context, executor=executor), prover, budget)
        done = RecipeResult(
            model=outcome.model,
            changes=(*run.dropped, *outcome.changes),
            notes=(*map(str, outcome.internal_errors), *prover.notes()),
            internal_errors=outcome.internal_errors,
            late=tuple([f"{outcome.cut_by}: {', '.join(outcome.cut_short)} cut short"] if outcome.cut_short else []),
            is_interrupted=bool(outcome.cut_short) and outcome.cut_by == pipeline.STOPPED,
            lossless_model=outcome.lossless_model,
        )
        if options.sensitivity and run.proof.is_whole and not options.plan:
            done = _with_ablations(run, done, executor)
    if done.model is not outcome.lossless_model:
        done.model.metadata_props["onnxcompress.recipe"] = run.recipe.name
    return done


def _with_ablations(run: Run, done: RecipeResult, executor: Workers | None) -> RecipeResult:
    """Add the effect of zeroing each layer, or a line that says why that is not known."""
    feeds = (run.samples.given or run.samples.judged).feeds
    try:
        found = ablation.before_and_after(run.original, done.model, feeds, executor=executor)
    except ModelError as error:
        return replace(done, notes=(*done.notes, f"what the model depends on was not measured: {error.message}"))
    return replace(done, ablations=found)


def _unstarted(source: ModelSource, options: RunOptions, begun: Begun, started: float) -> Result:
    """Return the model as it is, where there was no time for anything."""
    note = f"{pipeline.TIME_UP} before the model and the data were loaded: the model is written as it is"
    log.warning("%s", note)
    figures = time_budget.unmeasured_facts(begun.original, path_of(source))
    report = Report(
        input=figures,
        output=replace(figures, path=None),
        recipe=ResolvedRecipe.model_validate(begun.recipe.as_json()),
        limits=Limits(max_drop=options.max_drop, max_bytes=options.max_bytes, max_latency=options.max_latency),
        quality=None,
        latency=None,
        seconds=round(time.monotonic() - started, 3),
        peak_memory_bytes=peak_memory_bytes(),
        changes=tuple(Change.skipped(p.name, pipeline.TIME_UP) for p in begun.recipe.active),
        verification=Verification(mode="none"),
        versions=versions(),
        notes=(note,),
    )
    check_limits(report, begun.latency_limit, confidence=options.confidence)
    return Result(begun.original, report)


def make_report(run: Run, done: RecipeResult, measured: ResultFigures) -> Report:
    """Return the report of a run."""
    options = run.options
    quantized = quantized_state(run.original)
    return Report(
        input=measured.input,
        output=measured.output,
        recipe=ResolvedRecipe.model_validate(run.recipe.as_json()),
        limits=Limits(max_drop=options.max_drop, max_bytes=options.max_bytes, max_latency=options.max_latency),
        quality=measured.quality,
        latency=measured.latency,
        seconds=round(time.monotonic() - run.started, 3),
        peak_memory_bytes=peak_memory_bytes(),
        changes=done.changes,
        verification=measured.verification,
        timings=run.timings.used,
        candidates=run.archive.tried,
        effort=options.effort,
        cpu_seconds=run.steps.used,
        interrupted=done.is_interrupted,
        versions=versions(),
        sensitivity=done.ablations,
        internal_errors=tuple(map(str, done.internal_errors)),
        quantized_before=quantized,
        is_lost=internal_errors.all_was_lost(done.internal_errors, done.changes, run.recipe.active),
        notes=(
            *run.proof.notes,
            *done.notes,
            *nothing_notes(done.changes),
            *drafts.notes(done.changes),
            *quantized_notes(quantized, done.changes, run.recipe.active),
            *sample_notes(run.original, run.samples),
            *measurement_notes(
                run.samples,
                measured.latency,
                measured.verification,
                is_optimized=_is_optimized(run, measured.verification),
                is_scored_plain=measured.quality is not None and run.is_scored_plain,
            ),
            *(quality_notes(measured.quality, run.search_limit) if measured.quality is not None else ()),
            *done.late,
        ),
    )


def _is_optimized(run: Run, verification: Verification) -> bool:
    """Return whether the runtime can load the original with its optimizations on; True where that was not needed."""
    return verification.mode != "full" or run.is_scored_plain or run.base.fast.is_optimized


def write_front(folder: Path, run: Run, result: ir.Model, report: Report, prover: Prover) -> None:
    """Write the candidates that nothing beats, the original among them, each with its model."""
    prefer, limit = run.options.prefer, run.own_limit
    if not run.archive.tried:
        drop = None if report.quality is None else report.quality.drop
        ratio = None if report.latency is None else report.latency.ratio
        measured = _candidate("result", result, report.output.bytes, report.input.bytes, drop=drop, ratio=ratio)
        run.archive.offer(measured, prefer=prefer, limit=limit)
    size = run.base.size_bytes
    run.archive.offer(_candidate("original", run.original, size, size, drop=0.0, ratio=1.0), prefer=prefer, limit=limit)
    pareto.write_front(folder, run.archive.front, report, prover(run.start, run.recipe.lossless).problem)


def _candidate(
    label: str, model: ir.Model, size: int, original_size: int, *, drop: float | None, ratio: float | None
) -> Candidate:
    """Return the original, or a result, as a candidate with its figures."""
    size_ratio = size / original_size
    trial = Trial(bytes=size, size_ratio=size_ratio, latency_ratio=ratio, drop=drop)
    return Candidate(label=label, model=model, changes=(), trial=trial)
