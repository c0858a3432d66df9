"""The main job from end to end: load, run the recipe, prove, compare, and hand over a result that can be saved.

source --load--> original --pipeline (WholeProof)--> result --measure--> Report
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from .. import pipeline, targets
from ..activations.calibration import CalibrationCache
from ..base.versions import versions
from ..core import Action, Candidate, Change, Clock, Context, Prefer, Progress, Trial, Workers
from ..data import evaluation_set
from ..data.evaluation_set import DataOptions, Evaluation
from ..data.input_specs import input_specs
from ..data.lint import oddities
from ..errors import ModelError, UsageError
from ..io import model_io
from ..pack import archive as packing
from ..quality import ablation, metrics
from ..quality.ablation import LayerAblation
from ..quality.compare_outputs import measure, silent_outputs
from ..quality.estimated_drop import OutputKinds
from ..recipe import Recipe
from ..runtime import executors
from ..runtime import session as runtime
from ..runtime.loaded_model import LoadedModel, path_of
from ..runtime.processes import peak_memory_bytes
from ..search.archive import Archive
from ..search.checkpoint import Checkpoint, digest
from ..shapes import count as counting
from ..shapes.count import ModelFacts, facts
from ..verify.regions import RegionProof
from ..verify.whole import WholeProof
from . import pareto, setup
from .judge import Races, Timings, Trials
from .limits import LatencyLimit, check_limits, excess
from .node_selector import selector
from .report import Report
from .setup import Verify

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

_GLANCE = 0.02
"""Share of the time so far that lossless recipes, which nobody has set a limit, spend on timing the result.

Where that is not enough for a run of each, the times of the runs that were compared have to do.
"""

_MOST_OTHERS = 256
"""Samples that passes see on which the original's scores are looked at by a search."""

_SLOWER_RATIO = 1.05
"""From here on a result counts as slower: smaller differences are noise."""


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


def compress(
    source: str | os.PathLike[str] | onnx.ModelProto | ir.Model | gs.Graph,
    *,
    recipe: str | Path | Recipe = "auto",
    data: Any = None,
    eval_data: Any = None,
    metric: str | None = None,
    max_drop: float | None = None,
    settings: Iterable[str] = (),
    only: Iterable[str] = (),
    skip: Iterable[str] = (),
    max_bytes: int | None = None,
    max_latency: str | None = None,
    target: str = targets.HERE,
    prefer: Prefer = "balanced",
    timings: str | os.PathLike[str] | None = None,
    time_limit: float | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    pareto_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    threads: int = 1,
    keep_node_metadata: bool = False,
    data_options: DataOptions = DataOptions(),  # noqa: B008 - frozen
    verify: Verify = "auto",
    sensitivity: bool = False,
    plan: bool = False,
    progress: Progress = lambda _, items: iter(items),
) -> Result:
    """Make a model smaller and faster by a recipe, and prove that it is still good.

    Args:
        source: a path, a ModelProto, an onnx_ir model or an onnx-graphsurgeon graph; never changed.
        recipe: the name of a shipped recipe, a TOML file, or a `Recipe`.
        data: samples for passes that need some, in any form that `--data` takes, arrays and feeds included.
        eval_data: samples, with labels, by which original and result are scored (default: `data`, else made up).
        metric: `top1`, `top5`, `cosine`, `agreement`, or `module:function(outputs, labels)`; higher is better.
        max_drop: most that the metric may fall, absolute (0.01 is one point).
        settings: `PASS.FIELD=VALUE` texts.
        only: globs on node names and `op:Type`; lossy passes leave all other nodes alone.
        skip: the same, for nodes that lossy passes leave alone.
        max_bytes: most bytes of the result.
        max_latency: most time of a run: "0.5x" of the original's, or "3ms".
        target: where the result is to run: "cpu", this machine, or "arm", "tensorrt", "qnn", which are not timed.
        prefer: "balanced" is the least size ratio times latency ratio among candidates not slower than the original;
            "speed" the fastest; "size" the smallest, be it slower.
        timings: the JSON report of an earlier run, whose times are used again in place of new ones.
        time_limit: seconds after which a search begins nothing new and the best so far is the result.
        workers: processes that build candidates ahead of time; 1: they are built here, one after another.
        scheduler: address of a Dask scheduler whose workers do that.
        checkpoint: a folder that keeps what was found out, so that an interrupted run goes on from there.
        pareto_dir: a new folder for the candidates that nothing beats in size, time and drop, each with its model.
        seed: of the synthetic feeds.
        threads: of the runtime when it is timed.
        keep_node_metadata: keep what exporters wrote beside each node.
        data_options: how `data` and `eval_data` are read.
        verify: "full" runs the whole model, "regions" only what changed, for models that don't fit or that have
            operators the runtime doesn't know; "auto" chooses by size.
        sensitivity: find out what the model leans on, before and after, for the report.
        plan: say what would be done; nothing is proved, scored or timed, and the model is not to be used.
        progress: wraps long loops, for a display.

    Raises:
        ModelError: the model can't be read or run.
        DataError: the data can't be read or does not fit.
        UsageError: recipe, pass, field or pattern are unknown or out of range.
        LimitError: a limit that was given is not met; its `report` says by how much.
    """
    started, clock = time.monotonic(), Clock(time_limit)
    chosen = Recipe.load(recipe, settings)
    if chosen.needs_data and data is None:
        raise UsageError(f"recipe {chosen.name!r} needs data", hint="Give --data")
    latency_limit = None if max_latency is None else LatencyLimit.parse(max_latency)
    if metric is not None:
        metrics.resolve_metric(metric)
    targets.check(target)
    times = Timings() if timings is None else Timings.read(Path(timings))
    original = model_io.load(source)
    path = path_of(source)
    selects = selector(original, only, skip)
    unfed: tuple[str, ...] = ()
    base = LoadedModel(original, source, threads=threads)
    session = None if setup.by_regions(base, verify) else setup.open_whole(base, verify)
    if session is None and (max_drop is not None or max_latency is not None):
        raise UsageError("--max-drop and --max-latency need the whole model to be run", hint="Give --verify full")
    specs = input_specs(original) if session is None else session.inputs
    given = None if data is None else evaluation_set.read(data, specs, data_options)
    working, held_out = (given, given) if given is None or not chosen.uses_data else given.divided()
    judged = held_out if eval_data is None else evaluation_set.read(eval_data, specs, data_options)
    try:
        feeds, expected = setup.proof_feeds(original, session, judged, seed=seed)
    except ModelError as error:
        if verify == "full" or max_drop is not None or max_latency is not None:
            raise
        session, unfed = None, (str(error),)
        feeds, expected = setup.proof_feeds(original, None, judged, seed=seed)
    judged = judged or Evaluation(feeds=feeds, source="synthetic")
    start = model_io.clone(original) if model_io.has_records(original) else original
    first = _drop_records(start, base.size_bytes, keep_node_metadata=keep_node_metadata)
    kinds = OutputKinds.of(original)
    judge_limit = chosen.max_drop if max_drop is None else max_drop
    own_limit = None if chosen.max_drop is None else judge_limit

    def over(candidate: LoadedModel, limit: float | None) -> str | None:
        if limit is None:
            return None
        quality = measure(base.fast, candidate.fast, judged, metric=metric, kinds=kinds)
        drop = quality["drop"]
        is_over = drop is not None and drop > limit
        return f"{quality['metric']} falls by {drop:.4g}, more than {limit:g}" if is_over else None

    kept = None
    if checkpoint is not None:
        options = (chosen.as_json(), own_limit, prefer, target, seed, threads, list(only), list(skip))
        kept = Checkpoint(Path(checkpoint), _key(base, given, judged, options))
    archive = Archive(kept, keeps_models=pareto_dir is not None)
    judge = None
    if session is not None and held_out is not None and given is not None and not plan:
        judge = Trials(
            base,
            held_out,
            given.largest(),
            final=lambda candidate: over(candidate, judge_limit),
            limit=judge_limit,
            prefer=prefer,
            kinds=kinds,
            timed=target == targets.HERE,
            timings=times,
            threads=threads,
            checkpoint=kept,
            others=working.feeds[:_MOST_OTHERS] if working is not None and not working.state else (),
        )
    race = None
    if session is not None and target == targets.HERE and not plan:
        race = Races(base, (given or judged).largest(), timings=times, threads=threads)
    context = Context(
        feeds=working.feeds if working else (),
        state=working.state if working else {},
        calibrations=CalibrationCache(),
        seed=seed,
        target=target,
        judge=judge,
        archive=archive,
        is_plan=plan,
        clock=clock,
        race=race,
        selects=selects,
        max_bytes=max_bytes,
        excess=functools.partial(excess, max_bytes=max_bytes, latency=latency_limit),
        progress=progress,
    )
    region_proofs: list[RegionProof] = []
    whole_proofs: list[WholeProof] = []

    def prover(model: ir.Model, lossless: bool) -> pipeline.Proof:  # noqa: FBT001 - the pipeline's signature
        if plan:
            return _Unproved()
        if session is not None:
            is_first = model is start
            whole_proofs.append(
                WholeProof(
                    model,
                    feeds,
                    lossless=lossless,
                    limit=lambda candidate: over(candidate, own_limit),
                    reference=base if is_first else None,
                    expected=expected if is_first else None,
                    size_bytes=base.size_bytes if is_first and not first else None,
                    threads=threads,
                )
            )
            return whole_proofs[-1]
        region_proofs.append(RegionProof(model, feeds[0], lossless=lossless, seed=seed))
        return region_proofs[-1]

    with executors.wanted(workers=workers, scheduler=scheduler) as executor:
        outcome = pipeline.run(start, chosen.active, replace(context, executor=executor), prover)
        is_wanted = sensitivity and session is not None and not plan
        leans, unleaned = _leans(original, outcome.model, given or judged, executor) if is_wanted else ((), ())
    result = outcome.model
    if not chosen.lossless:
        result.metadata_props["onnxcompress.recipe"] = chosen.name
    largest = (given or judged).largest()
    latency = None
    is_same = result is start and not first
    proved = [p.proved for p in whole_proofs if p.proved is not None and p.proved.model is result]
    other = base if is_same else (proved[0] if proved else LoadedModel(result, threads=threads))
    if plan:
        quality, verification = None, {"mode": "none"}
    elif session is None:
        quality, verification = _region_figures(region_proofs)
    else:
        before = runtime.TimedSession(base.fast)
        after = before if other is base else runtime.TimedSession(other.fast)
        quality = measure(before, after, judged, metric=metric, kinds=kinds, progress=progress)
        if chosen.lossless and max_latency is None:
            latency = runtime.seen(before, after)
            spare = _GLANCE * (time.monotonic() - started)
            if latency.original_ms + latency.compressed_ms <= 1e3 * spare:
                latency = runtime.glance(base.fast, other.fast, largest, max_seconds=spare)
        else:
            latency = times.race("result", lambda: runtime.race(base.fast, other.fast, largest))
        verification = {"mode": "full"}
    counts = counting.count(original, largest)
    input_facts = facts(original, counts, path, size_bytes=base.size_bytes)
    size_bytes = other.size_bytes if chosen.lossless else model_io.model_bytes(result)  # a recipe's name is written in
    output_facts = (
        replace(input_facts, path=None, bytes=size_bytes)
        if is_same
        else facts(
            result,
            counting.count(result, largest, known=counts.shapes if chosen.lossless else {}),
            None,
            size_bytes=size_bytes,
        )
    )
    report = Report(
        input=input_facts,
        output=output_facts,
        recipe=chosen.as_json(),
        limits={"max_drop": max_drop, "max_bytes": max_bytes, "max_latency": max_latency},
        quality=quality,
        latency=None if latency is None else latency.as_json(),
        seconds=round(time.monotonic() - started, 3),
        peak_memory_bytes=peak_memory_bytes(),
        changes=tuple(first + outcome.changes),
        verification=verification,
        timings=times.used,
        candidates=archive.tried,
        versions=versions(),
        sensitivity=leans,
        notes=(
            *unfed,
            *unleaned,
            *_sample_notes(original, given, judged),
            *_notes(judged, latency, verification["mode"]),
            *silent_outputs(quality or {"outputs": {}}),
            *(["the time limit was reached: a longer search may find more"] if clock.is_over else []),
        ),
    )
    if not plan:
        check_limits(report, latency_limit)
    if pareto_dir is not None:
        if not archive.tried:
            archive.offer(_as_candidate("result", result, output_facts, report), prefer=prefer, limit=own_limit)
        archive.offer(_as_candidate("original", original, input_facts, None), prefer=prefer, limit=own_limit)
        pareto.write(Path(pareto_dir), archive.front, report, prover(start, chosen.lossless).problem)
    return Result(result, report)


def _key(base: LoadedModel, given: Evaluation | None, judged: Evaluation, options: Sequence[object]) -> str:
    """Return a digest of everything that findings depend on."""
    shown = json.dumps([options, versions()], sort_keys=True, default=str)
    samples = [] if given is None else [given]
    arrays = (np.asarray(feed[name]) for one in (*samples, judged) for feed in one.feeds for name in sorted(feed))
    return digest([base.data, shown, *arrays])


def _leans(
    original: ir.Model, result: ir.Model, samples: Evaluation, executor: Workers | None
) -> tuple[tuple[LayerAblation, ...], tuple[str, ...]]:
    """Return what the model leans on, or a line that says why that is not known."""
    try:
        return ablation.before_and_after(original, result, samples.feeds, executor=executor), ()
    except ModelError as error:
        return (), (f"what the model leans on was not found out: {error.message}",)


def _as_candidate(label: str, model: ir.Model, found: ModelFacts, report: Report | None) -> Candidate:
    """Return the original, or a result (whose report is given), as a candidate with its figures."""
    quality, latency = (report.quality or {}, report.latency) if report else ({"drop": 0.0}, {"ratio": 1.0})
    ratio = found.bytes / report.input.bytes if report else 1.0
    trial = Trial(
        bytes=found.bytes,
        size_ratio=ratio,
        latency_ratio=latency["ratio"] if latency else None,
        drop=quality.get("drop"),
        least_sqnr_db=None,
    )
    return Candidate(label=label, model=model, changes=(), trial=trial)


def _region_figures(proofs: Sequence[RegionProof]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the report's `quality` and `verification` where only regions were run."""
    measured = [proof.measured for proof in proofs]
    regions = sum(m.regions for m in measured)
    least = min((m.least_sqnr_db for m in measured if m.least_sqnr_db is not None), default=None)
    quality = {
        "metric": "least_region_sqnr_db",
        "samples": regions,
        "original": None,
        "compressed": least,
        "drop": None,
        "outputs": {},
    }
    verification = {
        "mode": "regions",
        "regions": regions,
        "seconds": round(sum(m.seconds for m in measured), 3),
        "peak_memory_bytes": max((m.peak_memory_bytes for m in measured), default=0),
    }
    return quality, verification


class _Unproved:
    """Stands in for a proof where nothing is to be run."""

    def problem(self, candidate: ir.Model) -> str | None:  # noqa: ARG002 - the protocol's signature
        """Find nothing wrong."""
        return None

    def excess(self, candidate: ir.Model) -> str | None:  # noqa: ARG002 - the protocol's signature
        """Find no limit."""
        return None


def _sample_notes(original: ir.Model, given: Evaluation | None, judged: Evaluation) -> list[str]:
    """Return a line for each sample that was left out, and for each odd thing about those that passes work with."""
    if given is None:
        return judged.notes()
    odd = oddities(original, given.feeds, state=given.state)
    return list(dict.fromkeys((*given.notes(), *odd, *judged.notes())))


def _notes(judged: Evaluation, latency: runtime.Latency | None, mode: str) -> list[str]:
    if mode == "none":
        return ["a plan: nothing was proved, scored, timed or written"]
    if mode == "regions":
        return ["proved region by region; the whole model was not run, so neither scored nor timed (--verify full)"]
    notes = []
    if judged.source == "synthetic":
        notes.append("compared on made-up inputs; --eval with labelled samples, or --data, would show the real quality")
    if latency is not None and latency.ratio > _SLOWER_RATIO:
        notes.append(f"the result is {latency.ratio:.2f} times as slow as the original")
    return notes


def located(report: Report, path: Path) -> Report:
    """Return the report with the path that the result was written to."""
    return replace(report, output=replace(report.output, path=str(path)))


def packed(report: Report, archive: packing.Packed) -> Report:
    """Return the report with the archive that the result was written to."""
    return replace(located(report, archive.path), packed=archive)


def _drop_records(model: ir.Model, size_bytes: int, *, keep_node_metadata: bool) -> list[Change]:
    """Drop what exporters wrote beside the graph itself and return what it was."""
    shapes = model_io.drop_declared_shapes(model, size_bytes=size_bytes)
    found = [("drop-declared-shapes", shapes, "types and shapes declared of values in between")]
    if not keep_node_metadata:
        records = model_io.drop_node_records(model, size_bytes=size_bytes - shapes.bytes)
        found.append(("drop-node-records", records, "records that the exporter wrote beside nodes and values"))
    return [
        Change(
            pass_name=name,
            target="graph",
            action=Action.APPLIED,
            reason=f"{dropped.count} {what} are dropped",
            bytes_before=dropped.bytes,
        )
        for name, dropped, what in found
        if dropped.count
    ]
